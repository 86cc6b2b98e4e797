//! Connects to Kafka: addresses, credentials, TLS, the client's settings, and what it reports while it runs.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rdkafka::{
    ClientConfig, ClientContext,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
};
use serde::{Deserialize, Serialize};

use crate::{
    LOG_TARGET_SOURCE,
    engine::{EngineError, secret},
    kind::OptionChecks,
    limits::SOURCE_SERVERS_MAX,
    tls::Tls,
};

/// The client, which reports to an [`Events`].
pub type Consumer = BaseConsumer<Events>;

/// Prefix of an address with TLS.
const TLS_SCHEME: &str = "tls://";

/// Settings of every client besides addresses and credentials, under librdkafka's names.
const SETTINGS: [(&str, &str); 7] = [
    ("client.id", "tickcast"),
    // A stopped broker gives no answer. Work resumes within 5 s of its return.
    ("socket.timeout.ms", "3000"),
    ("socket.connection.setup.timeout.ms", "3000"),
    ("reconnect.backoff.ms", "100"),
    ("reconnect.backoff.max.ms", "2000"),
    ("topic.metadata.refresh.interval.ms", "10000"),
    ("receive.message.max.bytes", "67108864"),
];

/// Settings of a client that reads.
const READING: [(&str, &str); 13] = [
    // The client needs a group to assign partitions. No group is joined, and nothing is committed.
    ("group.id", "tickcast"),
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    // A group's members must poll; this reader need not, so that a full ring can stop it. A day is the maximum.
    ("max.poll.interval.ms", "86400000"),
    // The other values skip messages without notice.
    ("auto.offset.reset", "error"),
    ("isolation.level", "read_committed"),
    ("allow.auto.create.topics", "false"),
    ("fetch.wait.max.ms", "500"),
    // The wait after a request has failed, for example because its topic was deleted: `TRUST_NS` of `logged.rs` relies on it.
    ("fetch.error.backoff.ms", "500"),
    // How long nothing more is fetched from a partition after its queue was full. With the default of 1,000, 12,960 messages
    // took 6 s; with 10, 18,000 took 0.6 s.
    ("fetch.queue.backoff.ms", "10"),
    // Memory bounds: messages that wait to be taken, and one answer. An answer contains a whole record batch, however large it
    // is.
    ("queued.max.messages.kbytes", "1024"),
    ("fetch.message.max.bytes", "1048576"),
    ("fetch.max.bytes", "4194304"),
];
/// How often the partitions' ends are reported, for the lag.
const STATISTICS: (&str, &str) = ("statistics.interval.ms", "1000");
/// Whether the end of a partition is reported when the client comes to it.
const ENDS: (&str, &str) = ("enable.partition.eof", "true");

/// How a client authenticates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mechanism {
    /// The password itself. Use it with TLS only.
    #[serde(rename = "PLAIN")]
    Plain,
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    #[default]
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

impl Mechanism {
    const fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// The table `auth`, for SASL. Not used without a user.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    mechanism: Mechanism,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    /// A file with the user's password.
    #[serde(skip_serializing_if = "Option::is_none")]
    password_file: Option<PathBuf>,
}

/// How to reach a cluster.
#[derive(Clone, Debug)]
pub struct Connection {
    /// `host:port` of brokers.
    servers: Vec<String>,
    has_tls: bool,
    auth: Auth,
    tls: Tls,
}

/// The addresses.
impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.servers.join(", "))
    }
}

impl Connection {
    /// Checks the options.
    pub fn new(servers: Vec<String>, auth: Auth, tls: Tls, checks: &mut OptionChecks) -> Option<Connection> {
        checks.within("servers", servers.len(), 1, SOURCE_SERVERS_MAX);
        let with_tls = servers.iter().filter(|server| server.starts_with(TLS_SCHEME)).count();
        if with_tls > 0 && with_tls < servers.len() {
            checks.refuse("servers", format!("either all addresses begin with {TLS_SCHEME} or none does"));
        }
        if with_tls == 0 && tls != Tls::default() {
            checks.refuse("tls", format!("no address in servers begins with {TLS_SCHEME}"));
        }
        let mut parsed = Vec::new();
        for server in &servers {
            match address(server) {
                Some(address) => parsed.push(address.to_owned()),
                None => {
                    checks.refuse("servers", format!("{server:?}: use host:9092 or {TLS_SCHEME}host:9093"))
                }
            }
        }
        if auth.user.is_some() != auth.password_file.is_some() {
            checks.refuse("auth", "user and password_file belong together");
        }
        auth.password_file.iter().for_each(|file| checks.readable("auth", file));
        tls.check(checks);
        (parsed.len() == servers.len()).then_some(Connection {
            servers: parsed,
            has_tls: with_tls > 0,
            auth,
            tls,
        })
    }

    /// Creates a client that reads what is new, and connects by itself.
    ///
    /// # Errors
    /// A file cannot be read, or the client does not accept its contents.
    pub fn consumer(&self) -> Result<Consumer, EngineError> {
        self.create(READING.into_iter().chain([STATISTICS]), Events::default())
    }

    /// Creates a client that reads what is old: it reports the end of a partition.
    ///
    /// # Errors
    /// As [`Connection::consumer`].
    pub fn consumer_of_past(&self) -> Result<Consumer, EngineError> {
        self.create(READING.into_iter().chain([ENDS]), Events::default())
    }

    /// Creates a client that only looks at topics. Brokers answer the requests of a connection in order, so behind a request for
    /// messages an answer takes up to `fetch.wait.max.ms`.
    ///
    /// # Errors
    /// As [`Connection::consumer`].
    pub fn looker(&self) -> Result<Consumer, EngineError> {
        self.create(READING, Events::default())
    }

    /// Creates a client with these settings besides those that every client has. Files are read again each time, so that changed
    /// credentials take effect at the next attempt.
    ///
    /// # Errors
    /// A file cannot be read, or the client does not accept its contents or its settings.
    pub fn create<T: FromClientConfigAndContext<C>, C: ClientContext>(
        &self,
        settings: impl IntoIterator<Item = (&'static str, impl Into<String>)>,
        context: C,
    ) -> Result<T, EngineError> {
        let mut config = ClientConfig::new();
        for (key, value) in SETTINGS {
            config.set(key, value);
        }
        for (key, value) in settings {
            config.set(key, value);
        }
        config.set_log_level(RDKafkaLogLevel::Warning);
        config.set("bootstrap.servers", self.servers.join(","));
        config.set("security.protocol", self.protocol());
        if let (Some(user), Some(file)) = (&self.auth.user, &self.auth.password_file) {
            config.set("sasl.mechanism", self.auth.mechanism.name());
            config.set("sasl.username", user).set("sasl.password", secret(file)?);
        }
        if self.has_tls {
            let files = [
                ("ssl.ca.location", &self.tls.ca),
                ("ssl.certificate.location", &self.tls.cert),
                ("ssl.key.location", &self.tls.key),
            ];
            for (key, file) in files {
                if let Some(file) = file {
                    config.set(key, path(file)?);
                }
            }
        }
        config
            .create_with_context(context)
            .map_err(|error| EngineError::new(&format!("make a client of {self}"), error))
    }

    fn protocol(&self) -> &'static str {
        match (self.has_tls, self.auth.user.is_some()) {
            (false, false) => "plaintext",
            (true, false) => "ssl",
            (false, true) => "sasl_plaintext",
            (true, true) => "sasl_ssl",
        }
    }
}

/// `host:port` of an address as configured.
fn address(server: &str) -> Option<&str> {
    let address = server.strip_prefix(TLS_SCHEME).unwrap_or(server);
    let (host, port) = address.rsplit_once(':')?;
    let is_host = !host.is_empty() && !host.contains([',', ' ', '/', '@']);
    (is_host && port.parse::<u16>().is_ok_and(|port| port > 0)).then_some(address)
}

fn path(file: &Path) -> Result<&str, EngineError> {
    file.to_str().ok_or_else(|| EngineError(format!("{}: the path is not UTF-8", file.display())))
}

/// The end of a partition as the client knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionEnd {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset after the last message that a read-committed consumer receives.
    pub end: i64,
    /// The offset below which the reader has been given every message; `None`: unknown.
    pub drained: Option<i64>,
}

/// What the client reports besides messages, in callbacks on the thread that polls it.
#[derive(Debug, Default)]
pub struct Events {
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    last_error: Option<String>,
    ends: Option<Vec<PartitionEnd>>,
}

impl Events {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last error since the last call: what happened, and to which broker.
    pub fn take_last_error(&self) -> Option<String> {
        self.told().last_error.take()
    }

    /// The ends of the partitions, if they were reported since the last call.
    pub fn take_ends(&self) -> Option<Vec<PartitionEnd>> {
        self.told().ends.take()
    }
}

impl ClientContext for Events {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, text: &str) {
        ::log::debug!(target: LOG_TARGET_SOURCE, "kafka: {facility} {text}");
    }

    fn stats_raw(&self, statistics: &[u8]) {
        if let Some(ends) = ends(statistics) {
            self.told().ends = Some(ends);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        ::log::debug!(target: LOG_TARGET_SOURCE, "kafka: {reason}");
        let mut told = self.told();
        // It says how many brokers are down; the preceding error says why.
        let is_summary = error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown);
        if !is_summary || told.last_error.is_none() {
            told.last_error = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Events {}

/// The ends in the client's statistics (STATISTICS.md of librdkafka), without partitions whose end is not known yet.
fn ends(statistics: &[u8]) -> Option<Vec<PartitionEnd>> {
    #[derive(Deserialize)]
    struct Statistics {
        topics: std::collections::BTreeMap<String, Topic>,
    }
    #[derive(Deserialize)]
    struct Topic {
        partitions: std::collections::BTreeMap<String, Partition>,
    }
    #[derive(Deserialize)]
    struct Partition {
        partition: i32,
        /// Negative if unknown: the broker predates transactions, or nothing was fetched yet.
        ls_offset: i64,
        hi_offset: i64,
        /// The end that the client has come to last; negative if none.
        #[serde(default = "no_end")]
        eof_offset: i64,
        /// Messages that wait to be taken.
        #[serde(default)]
        fetchq_cnt: i64,
    }
    const fn no_end() -> i64 {
        -1
    }
    impl Partition {
        const fn end(&self) -> i64 {
            if self.ls_offset >= 0 { self.ls_offset } else { self.hi_offset }
        }

        fn drained(&self) -> Option<i64> {
            (self.eof_offset >= 0 && self.fetchq_cnt == 0).then_some(self.eof_offset)
        }
    }
    let Statistics { topics } = serde_json::from_slice(statistics).ok()?;
    let of_topic = |(topic, found): (String, Topic)| {
        let known = found.partitions.into_values().filter(|at| at.partition >= 0 && at.end() >= 0);
        known.map(move |at| PartitionEnd {
            topic: topic.clone(),
            partition: at.partition,
            end: at.end(),
            drained: at.drained(),
        })
    };
    Some(topics.into_iter().flat_map(of_topic).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::SourceBounds;

    fn refused(servers: &[&str], auth: Auth, tls: Tls) -> Vec<(&'static str, String)> {
        let bounds = SourceBounds { payload_bytes_max: 1 << 10, topics_max: 10, reads_files: true };
        let mut checks = OptionChecks::new(bounds);
        let servers = servers.iter().map(|&server| server.to_owned()).collect();
        let connection = Connection::new(servers, auth, tls, &mut checks);
        let refused = checks.into_refused();
        assert!(connection.is_some() || !refused.is_empty());
        refused
    }

    #[test]
    fn addresses_say_whether_a_connection_has_tls_and_hold_no_credentials() {
        let plain = |servers: &[&str]| refused(servers, Auth::default(), Tls::default());
        assert_eq!(plain(&["a:9092", "[::1]:9092"]), []);
        assert_eq!(plain(&["tls://a:9093", "tls://b:9093"]), []);
        for bad in [
            &["a:9092", "tls://b:9093"][..],
            &["a"],
            &["kafka://a:1"],
            &["u:p@a:9092"],
            &["a:0"],
            &["a:1,b:2"],
        ] {
            assert_eq!(plain(bad)[0].0, "servers", "{bad:?}");
        }
        let tls = Tls { ca: Some("Cargo.toml".into()), ..Tls::default() };
        assert_eq!(refused(&["a:9092"], Auth::default(), tls)[0].0, "tls");
        let auth = Auth { user: Some("feed".into()), ..Auth::default() };
        assert_eq!(refused(&["a:9092"], auth, Tls::default())[0].0, "auth");
    }

    #[test]
    fn a_client_is_made_of_every_setting() {
        let auth =
            Auth { user: Some("u".into()), password_file: Some("Cargo.toml".into()), ..Auth::default() };
        let connection =
            Connection { servers: vec!["127.0.0.1:1".into()], has_tls: true, auth, tls: Tls::default() };
        assert_eq!(connection.protocol(), "sasl_ssl");
        connection.consumer().unwrap();
        connection.consumer_of_past().unwrap();
    }

    #[test]
    fn the_ends_of_partitions_are_read_from_the_clients_statistics() {
        let text = br#"{"name":"x","topics":{"t":{"topic":"t","partitions":{
            "0":{"partition":0,"ls_offset":7,"hi_offset":9,"eof_offset":6,"fetchq_cnt":0},"1":{"partition":1,"ls_offset":-1001,"hi_offset":-1001},
            "2":{"partition":2,"ls_offset":-1,"hi_offset":5,"eof_offset":5,"fetchq_cnt":1},"-1":{"partition":-1,"ls_offset":3,"hi_offset":3}}}}}"#;
        let end = |partition, end, drained| PartitionEnd { topic: "t".into(), partition, end, drained };
        assert_eq!(ends(text).unwrap(), [end(0, 7, Some(6)), end(2, 5, None)]);
        assert_eq!(ends(b"{}"), None);
    }
}
