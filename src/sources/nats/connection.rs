//! Connects to NATS: addresses, credentials, TLS, and what the client reports while it runs.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::Chars,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_nats::{Client, ConnectOptions, Event, HeaderMap, HeaderName, ServerAddr};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::{
    engine::{EngineError, secret},
    kind::OptionChecks,
    limits::SOURCE_SERVERS_MAX,
    mapping::{Headers, Mapping},
    tls::{Tls, with_advice},
};
use tickcast_proto::pattern;

/// Messages of one subscription that may wait in the client. Beyond that, messages are lost, or a fetch from JetStream hangs.
/// The bound is more than a batch, and 10 ms at 800,000 messages/s.
pub const SUBSCRIPTION_CAPACITY: usize = 8_192;
/// Timeout for a connection and its handshake.
const CONNECT: Duration = Duration::from_secs(3);
/// Timeout for an answer. A stopped server gives none.
const REQUEST: Duration = Duration::from_secs(2);
/// Silence after which the client pings the server. Without an answer, the connection ends when the next ping is due.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// The table `auth`: at most one method.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// A `.creds` file with a JWT and an nkey seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    credentials_file: Option<PathBuf>,
    /// The user whose password is in `password_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password_file: Option<PathBuf>,
    /// A file with a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_file: Option<PathBuf>,
    /// A file with an nkey seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    nkey_file: Option<PathBuf>,
}

/// How to reach NATS.
#[derive(Clone, Debug)]
pub struct Connection {
    kind: &'static str,
    servers: Vec<ServerAddr>,
    /// Whether all of them require TLS. Then those that a server announces must, too.
    has_tls: bool,
    auth: Auth,
    tls: Tls,
}

/// The addresses, without any credentials in them.
impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, server) in self.servers.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{}:{}", server.host(), server.port())?;
        }
        Ok(())
    }
}

impl Connection {
    /// Checks the options.
    pub fn new(
        kind: &'static str,
        servers: Vec<String>,
        auth: Auth,
        tls: Tls,
        checks: &mut OptionChecks,
    ) -> Option<Connection> {
        checks.within("servers", servers.len(), 1, SOURCE_SERVERS_MAX);
        let mut parsed = Vec::new();
        for server in &servers {
            match server.parse::<ServerAddr>() {
                // It would be printed with the options.
                Ok(address) if address.username().is_some() || address.password().is_some() => {
                    checks.refuse("servers", "an address holds credentials: name a file in `auth` instead");
                }
                Ok(address) if !address.is_websocket() => parsed.push(address),
                _ => {
                    let server = without_credentials(server);
                    checks.refuse("servers", format!("{server:?}: use nats://host:4222 or tls://host:4222"))
                }
            }
        }
        let has_tls = !parsed.is_empty() && parsed.iter().all(ServerAddr::tls_required);
        // What was refused above needs no second refusal.
        tls.check_address(has_tls || parsed.is_empty(), "tls://host:4222", checks);
        let ways = [&auth.credentials_file, &auth.password_file, &auth.token_file, &auth.nkey_file];
        if ways.iter().filter(|way| way.is_some()).count() > 1 {
            checks.refuse("auth", "several kinds of credentials are set; keep one");
        }
        if auth.user.is_some() != auth.password_file.is_some() {
            checks.refuse("auth", "user and password_file belong together");
        }
        ways.into_iter().flatten().for_each(|file| checks.readable("auth", file));
        tls.check(checks);
        (parsed.len() == servers.len()).then_some(Connection { kind, servers: parsed, has_tls, auth, tls })
    }

    /// Connects once. Files are read again each time, so that changed credentials take effect at the next attempt.
    ///
    /// # Errors
    /// No server can be reached or accepts this client, or a file cannot be read.
    pub async fn connect(&self, events: &Arc<Events>) -> Result<Client, EngineError> {
        let noted = events.clone();
        let mut options = ConnectOptions::new()
            .name("tickcast")
            .connection_timeout(CONNECT)
            .request_timeout(Some(REQUEST))
            .ping_interval(PING_INTERVAL)
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .require_tls(self.has_tls)
            .event_callback(move |event| {
                noted.note(&event);
                std::future::ready(())
            });
        if let Some(file) = &self.auth.credentials_file {
            let text = secret(file)?;
            options = options.credentials(&text).map_err(|error| self.file_error(file, &error))?;
        }
        if let (Some(user), Some(file)) = (&self.auth.user, &self.auth.password_file) {
            options = options.user_and_password(user.clone(), secret(file)?);
        }
        if let Some(file) = &self.auth.token_file {
            options = options.token(secret(file)?);
        }
        if let Some(file) = &self.auth.nkey_file {
            options = options.nkey(secret(file)?);
        }
        if let Some(ca) = &self.tls.ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let (Some(cert), Some(key)) = (&self.tls.cert, &self.tls.key) {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        options.connect(&*self.servers).await.map_err(|error| {
            // The cause says more than the kind: which file, which certificate.
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            EngineError(with_advice(format!("{self}: {}{}", error.kind(), cause.unwrap_or_default())))
        })
    }

    fn file_error(&self, file: &Path, error: &dyn fmt::Display) -> EngineError {
        EngineError(format!("{}: {}: {error}", self.kind, file.display()))
    }
}

/// An address as far as it may be shown: it may hold a password although it is not valid.
fn without_credentials(address: &str) -> &str {
    address.rsplit_once('@').map_or(address, |(_, host)| host)
}

/// Refuses subjects that NATS would not accept.
pub fn check_subjects(subjects: &[String], checks: &mut OptionChecks) {
    for subject in subjects {
        if let Err(error) = pattern::check_pattern(subject.as_bytes()) {
            checks.refuse("subjects", format!("{subject:?}: {error}"));
        }
    }
}

/// Refuses a mapping that names a header which no message of NATS can have. The client panics at such names.
pub fn check_headers(mapping: &Mapping, checks: &mut OptionChecks) {
    for name in mapping.headers().filter(|name| name.parse::<HeaderName>().is_err()) {
        checks.refuse(
            "map",
            format!(
                "{{header:{name}}}: NATS has no header of this name: use ASCII without spaces and colons"
            ),
        );
    }
}

/// What the client reports besides messages.
#[derive(Debug, Default)]
pub struct Events {
    noted: AtomicU64,
    connections: AtomicU64,
    slow: AtomicU64,
    last: Mutex<Option<String>>,
    /// Subjects that this client may not publish on. Bound: [`DENIED_MAX`].
    denied: Mutex<Vec<String>>,
    /// Notified when another is added.
    denial: Notify,
    /// The first refusal of a subscription.
    subscription_denial: OnceLock<String>,
    /// Subjects of refused subscriptions. Bound: [`DENIED_MAX`].
    denied_subscriptions: Mutex<Vec<String>>,
}

/// Capacity of the client's event queue. The client drops events that find it full. The value is the client's own, which it
/// does not export.
pub const EVENTS_MAX: u64 = 128;
/// Refused subjects that are remembered until they are taken; more than the client passes on between two calls.
const DENIED_MAX: usize = 4_096;
const _: () = assert!(DENIED_MAX as u64 > EVENTS_MAX);
/// Maximum turns of the runtime in which waiting events are passed on.
const EVENT_TURNS_MAX: u32 = 8;

impl Events {
    fn note(&self, event: &Event) {
        self.noted.fetch_add(1, Relaxed);
        match event {
            Event::Connected => _ = self.connections.fetch_add(1, Relaxed),
            Event::SlowConsumer(_) => _ = self.slow.fetch_add(1, Relaxed),
            Event::ServerError(_) | Event::ClientError(_) => {
                self.note_denied(&event.to_string());
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(event.to_string());
            }
            _ => {}
        }
    }

    fn note_denied(&self, text: &str) {
        // Case matters only in subjects.
        let lower = text.to_ascii_lowercase();
        let after = |what: &str| lower.find(what).map(|at| &text[at + what.len()..]);
        if let Some(rest) = after("permissions violation for subscription") {
            self.subscription_denial.get_or_init(|| text.to_owned());
            let mut denied = self.denied_subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
            if denied.len() < DENIED_MAX {
                let quoted = rest.split_once('"').and_then(|(_, rest)| unquoted(rest));
                denied.push(quoted.unwrap_or_else(|| rest.to_owned()));
            }
        }
        if let Some(rest) = after("permissions violation for publish to \"") {
            let mut denied = self.denied.lock().unwrap_or_else(PoisonError::into_inner);
            if denied.len() < DENIED_MAX {
                // Text that cannot be parsed is no tick's subject, and is passed on unchanged.
                denied.push(unquoted(rest).unwrap_or_else(|| rest.to_owned()));
            }
            self.denial.notify_one();
        }
    }

    /// Waits until the client has passed on the events that it had at the call. On a single-threaded runtime, which sources and
    /// sinks use, every task runs once per turn.
    pub async fn quiet(&self) {
        for _ in 0..EVENT_TURNS_MAX {
            let noted = self.noted.load(Relaxed);
            tokio::task::yield_now().await;
            if self.noted.load(Relaxed) == noted {
                return;
            }
        }
    }

    /// Events of any kind since the last call. At [`EVENTS_MAX`] and more, some may be missing.
    pub fn take_noted(&self) -> u64 {
        self.noted.swap(0, Relaxed)
    }

    /// Whether the server has refused to publish on this subject since [`Events::take_denied`].
    pub fn is_denied(&self, subject: &str) -> bool {
        let denied = self.denied.lock().unwrap_or_else(PoisonError::into_inner);
        denied.iter().any(|denied| denied == subject)
    }

    /// Waits until [`Events::is_denied`]. Only one task may wait.
    pub async fn denied(&self, subject: &str) {
        while !self.is_denied(subject) {
            self.denial.notified().await;
        }
    }

    /// Subjects on which the server has refused to publish since the last call, one for each refused message.
    pub fn take_denied(&self) -> Vec<String> {
        std::mem::take(&mut *self.denied.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the subjects of subscriptions that the server has refused.
    pub fn take_denied_subscriptions(&self) -> Vec<String> {
        std::mem::take(&mut *self.denied_subscriptions.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the server has refused a subscription.
    pub fn is_subscription_denied(&self) -> bool {
        self.subscription_denial().is_some()
    }

    /// The server's words about the first subscription that it has refused. It refuses without ending the connection.
    pub fn subscription_denial(&self) -> Option<&str> {
        self.subscription_denial.get().map(String::as_str)
    }

    /// Adds what the server has reported to an error, which may be no more than a timeout: a request that the server does not
    /// permit gets no answer.
    pub fn explain(&self, EngineError(error): EngineError) -> EngineError {
        match self.take_last() {
            Some(why) if !error.contains(&why) => EngineError(format!("{error}: {why}")),
            _ => EngineError(error),
        }
    }

    /// Number of the client's connections so far: it reconnects when one ends.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Messages that the client has dropped since the last call, because they arrived faster than they were taken.
    pub fn take_slow(&self) -> u64 {
        self.slow.swap(0, Relaxed)
    }

    /// The last error since the last call.
    pub fn take_last(&self) -> Option<String> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Reads a text that the server has quoted like Go's `%q`, from after its opening quote. `None` if it has no end, or is not
/// UTF-8.
fn unquoted(quoted: &str) -> Option<String> {
    let (mut text, mut rest) = (String::new(), quoted.chars());
    loop {
        text.push(match rest.next()? {
            '"' => return Some(text),
            '\\' => match rest.next()? {
                'a' => '\x07',
                'b' => '\x08',
                'f' => '\x0c',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'v' => '\x0b',
                // Above ASCII, it is a byte of text that is not UTF-8.
                'x' => code_point(&mut rest, 2).filter(char::is_ascii)?,
                'u' => code_point(&mut rest, 4)?,
                'U' => code_point(&mut rest, 8)?,
                other => other,
            },
            other => other,
        });
    }
}

/// Takes a code point of this many hexadecimal digits.
fn code_point(rest: &mut Chars<'_>, digits: usize) -> Option<char> {
    let (number, after) = rest.as_str().split_at_checked(digits)?;
    *rest = after.chars();
    u32::from_str_radix(number, 16).ok().and_then(char::from_u32)
}

/// Headers of a message.
pub struct Fields<'a>(pub Option<&'a HeaderMap>);

impl Headers for Fields<'_> {
    fn value(&self, name: &str) -> Option<&str> {
        // `get` with a text panics if it cannot be a name.
        self.0?.get(name.parse::<HeaderName>().ok()?).map(|value| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::{SourceBounds, SourceKind};

    /// What is refused of a source of this kind.
    fn refused(kind: &str, options: &str) -> Vec<(&'static str, String)> {
        let kind = SourceKind::named(kind).unwrap();
        let bounds = SourceBounds { payload_bytes_max: 64, topics_max: 10, reads_files: true };
        let mut checks = OptionChecks::new(bounds);
        let mut table = kind.defaults();
        table.extend(options.parse::<toml::Table>().unwrap());
        kind.configure(&table, &mut checks);
        checks.into_refused()
    }

    #[test]
    fn a_header_that_no_message_can_have_is_refused_and_harmless() {
        let mut headers = HeaderMap::new();
        headers.insert("At", "noon");
        let fields = Fields(Some(&headers));
        assert_eq!((fields.value("At"), fields.value("at")), (Some("noon"), None), "case matters");
        for name in ["a:b", "Größe", "a b"] {
            assert_eq!(fields.value(name), None);
            for (kind, needed) in [("nats", "subjects = ['t.>']"), ("jetstream", "stream = 'T'")] {
                for part in ["topic", "key", "time", "id"] {
                    let refused =
                        refused(kind, &format!("{needed}\nmap = {{ {part} = 'x.{{header:{name}}}' }}"));
                    assert!(refused.len() == 1 && refused[0].0 == "map", "{refused:?}");
                }
            }
        }
    }

    #[test]
    fn an_address_says_whether_a_connection_has_tls_and_its_password_is_never_shown() {
        let refused = |servers: &str, more: &str| {
            refused("nats", &format!("subjects = ['t.>']\nservers = {servers}\n{more}"))
        };
        let tls = "tls = { ca = 'Cargo.toml' }";
        assert_eq!(refused("['tls://a:4222', 'tls://b']", tls), []);
        assert_eq!(refused("['nats://a:4222', 'b']", ""), []);
        for servers in ["['nats://a:4222']", "['tls://a', 'nats://b']", "['a']"] {
            assert_eq!(refused(servers, tls)[0].0, "tls", "{servers}");
        }
        for server in [
            "nats://:secret@h",
            "nats://u:secret@h",
            "nats://u:secret@h:99999",
            "http://u:secret@h",
            "ws://h",
        ] {
            let refused = refused(&format!("['{server}']"), "");
            assert!(refused.len() == 1 && refused[0].0 == "servers", "{refused:?}");
            assert!(!refused[0].1.contains("secret"), "{refused:?}");
        }
    }

    #[test]
    fn subjects_that_would_bring_a_message_twice_and_queues_without_a_name_are_refused() {
        for (options, key) in [
            ("subjects = ['t.>', 't.a']", Some("subjects")),
            ("subjects = ['t.a', '*.a']", Some("subjects")),
            ("subjects = ['a.*', '*.b']", Some("subjects")),
            ("subjects = ['t.*', 't.*.>']", None),
            ("subjects = ['t.>', 't.a']\nqueue = 'q'", None),
            ("subjects = ['t.>']\nqueue = 'q r'", Some("queue")),
            ("subjects = ['t.>']\nqueue = ''", Some("queue")),
        ] {
            let keys: Vec<&str> = refused("nats", options).into_iter().map(|(key, _)| key).collect();
            assert_eq!(keys, Vec::from_iter(key), "{options}");
        }
    }

    #[test]
    fn a_refused_subscription_is_named_in_the_server_s_words() {
        let events = Events::default();
        let text = "Permissions Violation for Subscription to \"md.>\"";
        events.note(&Event::ServerError(async_nats::ServerError::Other(text.into())));
        assert!(events.subscription_denial().is_some_and(|denial| denial.contains(text)));
        let EngineError(why) = events.explain(EngineError("stream T: timed out".into()));
        assert!(why.starts_with("stream T: timed out: ") && why.contains(text), "{why}");
        let EngineError(why) = events.explain(EngineError("gone".into()));
        assert_eq!(why, "gone", "reported once");
    }

    #[test]
    fn refused_subjects_are_read_with_their_escapes() {
        for (quoted, subject) in [
            (r#"other.A""#, Some("other.A")),
            (r#"a\"b\\c" and more"#, Some("a\"b\\c")),
            (r#"\x7f\u200b\U000e0001é""#, Some("\x7f\u{200b}\u{e0001}é")),
            (r#"a\xff""#, None),
            (r#"a\u12""#, None),
            (r"a\", None),
            ("no end", None),
        ] {
            assert_eq!(unquoted(quoted).as_deref(), subject, "{quoted}");
        }
        let events = Events::default();
        events.note_denied("nats: Permissions Violation for Publish to \"a.\\\"B\"");
        assert!(events.is_denied("a.\"B"));
        assert_eq!(events.take_denied(), ["a.\"B"]);
        assert!(!events.is_subscription_denied());
    }
}
