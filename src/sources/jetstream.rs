//! Reads a JetStream stream, in order and without loss as long as the stream keeps what has not been read.
//!
//! Uses a plain pull consumer, created anew after every fault at the position after the last message read. The client's ordered
//! consumers silently skip messages when a stream is deleted and recreated. So each attempt checks the stream first:
//!
//! ```text
//!  created differs from last time, or the last sequence went back     another life of the stream: read it from its beginning
//!  first sequence is beyond the next one to read                      retention has passed this reader: counted as lost
//!  a message's sequence is not the next one                           lost or deleted in between: counted as lost
//! ```
//!
//! If the server filters, sequences have holes by themselves: see `filtered.rs`.

mod filtered;
mod past;

use std::{convert::Infallible, fmt, pin::pin, str::FromStr, sync::Arc, time::Duration};

use async_nats::{
    Client,
    datetime::{self, DateTime},
    jetstream::{
        self,
        consumer::{AckPolicy, DeliverPolicy, pull},
        stream::{self, Stream},
    },
};
use futures_util::{
    FutureExt, StreamExt,
    future::{Either, select},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use self::{filtered::Filtered, past::Past};
use super::{
    Source, SourceContext, SourceError,
    engine::{self, EngineError, Ingest, Reader},
    kind::{Configured, OptionChecks, SourceOptions},
    log_reader::{self, ReadBack},
    mapping::{MapOptions, Mapping, Message},
    nats::connection::{self, Auth, Connection, Events, Fields, SUBSCRIPTION_CAPACITY},
    position::PositionKind,
    tls::Tls,
};
use crate::limits::SOURCE_SUBJECTS_MAX;
use tickcast_common::{clock, values::Time};
use tickcast_proto::{
    logged::{LogPosition, log_epoch},
    pattern,
    units::parse_duration_ns,
};

/// Messages per pull. More than the client's capacity would hang it. In pulls of 500, 2,000 and 10,000, a message cost the
/// client 0.86, 0.89 and 0.85 us.
const BATCH_MESSAGES: usize = 1_000;
const _: () = assert!(BATCH_MESSAGES < SUBSCRIPTION_CAPACITY);
/// Lifetime of a pull.
const EXPIRES: Duration = Duration::from_secs(5);
/// Interval of the server's heartbeats. Silence for twice as long ends the attempt.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How often a stream that the server filters is checked, and the longest wait for the answer: reading waits for it.
const CHECK_NS: u64 = 1_000_000_000;
const CHECK_ANSWER: Duration = HEARTBEAT;
/// Time until the next check if there was no answer, nanoseconds: it may not be permitted.
const CHECK_LATER_NS: u64 = 10_000_000_000;
/// Inactivity after which the server forgets a consumer that this reader could not delete.
const INACTIVE: Duration = Duration::from_secs(30);

/// A `[[source]]` of kind `jetstream`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Addresses of one cluster: `nats://host:4222`, `tls://host:4222`.
    servers: Vec<String>,
    /// The stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<String>,
    /// Subjects to read; empty: all of the stream.
    subjects: Vec<String>,
    /// Where to begin.
    start: Start,
    /// Whether the stream's sequences are also those of the topics.
    position: PositionKind,
    /// With `position = "log"`: whether clients whose positions are older than the history get the ticks from the stream.
    read_back: bool,
    /// Messages of the stream to read per second for such clients.
    read_back_rate: u32,
    /// Maximum time in which reading must make progress for such a client.
    read_back_timeout: Time,
    auth: Auth,
    tls: Tls,
    map: MapOptions,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            servers: vec!["nats://127.0.0.1:4222".into()],
            stream: None,
            subjects: Vec::new(),
            start: Start::New,
            position: PositionKind::Local,
            read_back: true,
            read_back_rate: log_reader::RATE_DEFAULT,
            read_back_timeout: log_reader::timeout_default(),
            auth: Auth::default(),
            tls: Tls::default(),
            map: MapOptions::default(),
        }
    }
}

/// Where to begin: `new`, `all`, a sequence, a time (RFC 3339) or a window before now (`10m`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    /// With the next message.
    New,
    /// With the oldest message.
    All,
    /// With this sequence of the stream.
    Sequence(u64),
    /// With the first message of this time or later.
    Time(DateTime),
    /// With the first message that is not older than this many nanoseconds.
    Window(u64),
}

impl FromStr for Start {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Start, &'static str> {
        match text {
            "new" => return Ok(Start::New),
            "all" => return Ok(Start::All),
            _ => {}
        }
        if let Ok(sequence) = text.parse() {
            return Ok(Start::Sequence(sequence));
        }
        if let Ok(window_ns) = parse_duration_ns(text) {
            return Ok(Start::Window(window_ns));
        }
        datetime::parse_rfc3339(text).map(Start::Time).map_err(
            |_| "use new, all, a sequence, a window such as 10m or a time such as 2026-01-31T08:00:00Z",
        )
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Start::New => f.write_str("new"),
            Start::All => f.write_str("all"),
            Start::Sequence(sequence) => write!(f, "{sequence}"),
            Start::Time(time) => write!(f, "{}", rfc3339(time)),
            Start::Window(ns) => f.write_str(&tickcast_proto::units::format_duration(*ns)),
        }
    }
}

impl Serialize for Start {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Start {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Start, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(sequence) => Ok(Start::Sequence(sequence)),
            Written::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

fn rfc3339(time: &DateTime) -> String {
    let time = *time;
    let ns = time.nanosecond();
    let fraction = if ns == 0 { String::new() } else { format!(".{ns:09}") };
    let (month, hour) = (u8::from(time.month()), time.hour());
    let (minute, second) = (time.minute(), time.second());
    format!("{:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z", time.year(), time.day())
}

impl SourceOptions for Options {
    const KIND: &'static str = "jetstream";
    const REQUIRED: &'static [&'static str] = &["stream"];

    fn configure(self, checks: &mut OptionChecks) -> Option<Configured> {
        let stream = self.stream.unwrap_or_default();
        if stream.is_empty() || stream.contains(['.', '*', '>', ' ', '/', '\\']) {
            checks.refuse("stream", format!("{stream:?} is not the name of a stream"));
        }
        checks.within("subjects", self.subjects.len(), 0, SOURCE_SUBJECTS_MAX);
        connection::check_subjects(&self.subjects, checks);
        let (is_on, is_logged) = (self.read_back, self.position == PositionKind::Log);
        let read_back = ReadBack { is_on, rate: self.read_back_rate, timeout: self.read_back_timeout };
        read_back.check(checks);
        let connection = Connection::new("jetstream", self.servers, self.auth, self.tls, checks);
        let mapping = Mapping::new(&self.map, checks)?;
        connection::check_headers(&mapping, checks);
        let (pattern, connection) = (mapping.pattern(), connection?);
        let past = Past::new(connection.clone(), stream.clone(), self.subjects.clone());
        let past = log_reader::Reader::new(past, mapping.clone(), read_back.rate);
        let source = JetStream {
            connection,
            stream,
            subjects: self.subjects,
            start: self.start,
            mapping,
            is_logged,
            position: None,
            filtered: Filtered::default(),
            read_back_to: None,
            set_back: 0,
        };
        let configured = Configured::new(pattern, source).reading_back(is_logged);
        Some(if is_logged { configured.with_log_reader(read_back, past) } else { configured })
    }
}

/// A configured source, and its position in the stream.
#[derive(Clone, Debug)]
struct JetStream {
    connection: Connection,
    stream: String,
    subjects: Vec<String>,
    start: Start,
    mapping: Mapping,
    /// Whether the stream's sequences are also those of the topics.
    is_logged: bool,
    /// Known once reading has begun.
    position: Option<Position>,
    /// Of use only if the server filters.
    filtered: Filtered,
    /// The last sequence of the stream when it was first found: the source has read back once it is there.
    read_back_to: Option<u64>,
    /// How often the stream was found set back with an unchanged creation time.
    set_back: u64,
}

/// The next message to read, in one life of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    /// When the stream was created, nanoseconds since 1970: identifies its life.
    created_ns: i128,
    next: u64,
    /// Everything from this message on has been read; 0: everything from the next message on.
    complete_from: u64,
}

/// Where to continue, according to a check of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Continuation {
    /// At the position.
    Same,
    /// Retention has passed the position: this many messages are lost.
    Passed { next: u64, lost: u64 },
    /// At the beginning: it is another stream of the same name, or one that was set back.
    NewLife,
}

impl Position {
    fn continuation(&self, created_ns: i128, state: &stream::State) -> Continuation {
        if created_ns != self.created_ns || state.last_sequence.saturating_add(1) < self.next {
            return Continuation::NewLife;
        }
        match state.first_sequence.checked_sub(self.next) {
            // The first sequence of an empty stream is beyond its last one.
            Some(lost @ 1..) => Continuation::Passed { next: state.first_sequence, lost },
            _ => Continuation::Same,
        }
    }
}

impl Source for JetStream {
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
        engine::run(context, self.mapping.clone(), self)
    }
}

impl Reader for JetStream {
    async fn read(&mut self, ingest: &mut Ingest<'_>) -> Result<Infallible, EngineError> {
        let events = Arc::new(Events::default());
        let client = ingest.waiting(self.connection.connect(&events)).await?;
        self.read_stream(client, &events, ingest).await.map_err(|error| events.explain(error))
    }
}

impl JetStream {
    async fn read_stream(
        &mut self,
        client: Client,
        events: &Events,
        ingest: &mut Ingest<'_>,
    ) -> Result<Infallible, EngineError> {
        let found = jetstream::new(client).get_stream(&self.stream).await;
        let found = found.map_err(|error| EngineError::new(&format!("stream {}", self.stream), error))?;
        let deliver_policy = self.deliver_from(found.cached_info(), ingest)?;
        let config = pull::Config {
            deliver_policy,
            ack_policy: AckPolicy::None,
            memory_storage: true,
            inactive_threshold: INACTIVE,
            filter_subject: self.server_filter().unwrap_or_default().to_owned(),
            ..pull::Config::default()
        };
        let created_ns = found.cached_info().created.unix_timestamp_nanos();
        let consumer = found.create_consumer(config).await;
        let consumer = consumer.map_err(|error| EngineError::new("create a consumer", error))?;
        self.handle_consumer(
            found.cached_info(),
            (deliver_policy, consumer.cached_info().num_pending),
            ingest,
        );
        let pull =
            consumer.stream().max_messages_per_batch(BATCH_MESSAGES).expires(EXPIRES).heartbeat(HEARTBEAT);
        let mut messages = pull.messages().await.map_err(|error| EngineError::new("pull", error))?;
        ingest.connected(&format!("stream {} at {}", self.stream, self.connection));
        let mut check_ns = clock::monotonic_ns() + CHECK_NS;
        let failure = loop {
            // Returns an error after two missed heartbeats at the latest.
            let mut next = match self.server_filter() {
                None => Some(ingest.waiting(messages.next()).await),
                Some(_) => {
                    let pause = Duration::from_nanos(check_ns.saturating_sub(clock::monotonic_ns()));
                    match ingest.waiting(select(messages.next(), pin!(tokio::time::sleep(pause)))).await {
                        Either::Left((message, _)) => Some(message),
                        Either::Right(_) => messages.next().now_or_never(),
                    }
                }
            };
            let failure = loop {
                match next {
                    Some(Some(Ok(message))) => self.take(created_ns, &message, ingest).await,
                    Some(Some(Err(error))) => break Some(error.to_string()),
                    Some(None) => break Some("the pull has ended".into()),
                    None => break None,
                }
                next = messages.next().now_or_never();
            };
            ingest.flush();
            if let Some(failure) = failure {
                break events.take_last().unwrap_or(failure);
            }
            if self.server_filter().is_some() && clock::monotonic_ns() >= check_ns {
                let pause_ns = ingest.waiting(self.check(&found)).await;
                check_ns = clock::monotonic_ns() + pause_ns;
            }
            // A server that has been away may have forgotten the consumer, or messages.
            if events.connections() > 1 {
                break "the connection was renewed".into();
            }
        };
        // Otherwise the server keeps it until it has been inactive for a while.
        let name = &consumer.cached_info().name;
        let _ = tokio::time::timeout(HEARTBEAT, found.delete_consumer(name)).await;
        Err(EngineError(failure))
    }
}

impl JetStream {
    /// Notes what a new consumer has found.
    fn handle_consumer(
        &mut self,
        info: &stream::Info,
        (deliver_policy, pending): (DeliverPolicy, u64),
        ingest: &mut Ingest<'_>,
    ) {
        let state = &info.state;
        self.filtered.handle_connected((state.first_sequence, state.last_sequence), pending);
        self.read_back_to.get_or_insert(state.last_sequence);
        if let DeliverPolicy::ByStartTime { start_time } = deliver_policy {
            // Another attempt before the first message goes on from here, not from a later time.
            self.start = Start::Time(start_time);
            let is_past = start_time.unix_timestamp_nanos() <= i128::from(clock::realtime_ns());
            if pending == 0 && is_past {
                let next = state.last_sequence.saturating_add(1);
                let created_ns = info.created.unix_timestamp_nanos();
                self.position = Some(Position { created_ns, next, complete_from: next });
            }
        }
        ingest.set_lag(pending);
        if pending == 0 || self.has_read_back() {
            ingest.caught_up();
        }
    }

    /// Whether it has read what the stream had when it was first found. A stream that grows may never have nothing pending.
    fn has_read_back(&self) -> bool {
        self.position.zip(self.read_back_to).is_some_and(|(position, last)| position.next > last)
    }

    /// Checks a stream that the server filters. Returns the time to the next check, nanoseconds.
    async fn check(&mut self, stream: &Stream) -> u64 {
        match tokio::time::timeout(CHECK_ANSWER, stream.get_info()).await {
            Ok(Ok(info)) => {
                self.filtered.handle_check((info.state.first_sequence, info.state.last_sequence));
                CHECK_NS
            }
            Ok(Err(_)) | Err(_) => CHECK_LATER_NS,
        }
    }

    /// Where the consumer begins. Notes the position if it is already known, and counts what is lost before it.
    fn deliver_from(
        &mut self,
        info: &stream::Info,
        ingest: &Ingest<'_>,
    ) -> Result<DeliverPolicy, EngineError> {
        let (created_ns, state) = (info.created.unix_timestamp_nanos(), &info.state);
        let next = match (&self.position, self.start) {
            (Some(position), _) => match position.continuation(created_ns, state) {
                Continuation::Same => position.next,
                Continuation::Passed { next, lost } => {
                    match self.server_filter() {
                        None => ingest.count_hole(lost, "the stream no longer has them"),
                        Some(_) if self.filtered.may_have_lost_before(next) => {
                            ingest.count_hole(1, "retention has passed the source");
                        }
                        Some(_) => {}
                    }
                    next
                }
                Continuation::NewLife => {
                    ingest.warn("it was deleted and made again, or set back: reading it from its beginning");
                    (self.filtered, self.read_back_to) = (Filtered::default(), None);
                    self.set_back += u64::from(created_ns == position.created_ns);
                    state.first_sequence
                }
            },
            (None, Start::New) => state.last_sequence.saturating_add(1),
            (None, Start::All) => state.first_sequence,
            (None, Start::Sequence(sequence)) => {
                let next = sequence.max(state.first_sequence).min(state.last_sequence.saturating_add(1));
                if next != sequence {
                    ingest.warn(&format!(
                        "start = {sequence}: the stream has {} to {}; reading it from {next}",
                        state.first_sequence, state.last_sequence
                    ));
                }
                next
            }
            (None, Start::Time(start_time)) => return Ok(DeliverPolicy::ByStartTime { start_time }),
            (None, Start::Window(window_ns)) => {
                let from_ns = clock::realtime_ns().saturating_sub(window_ns);
                let start_time = datetime::from_nanos(from_ns.into())
                    .map_err(|error| EngineError::new("start of the window", error))?;
                return Ok(DeliverPolicy::ByStartTime { start_time });
            }
        };
        // Sequences count from 1; an empty stream has a first sequence of 0.
        let next = next.max(1);
        let known = self.position.filter(|known| (known.created_ns, known.next) == (created_ns, next));
        // What was read before a hole or in another life says nothing about what follows.
        let complete_from = known.map_or(next, |known| known.complete_from);
        self.position = Some(Position { created_ns, next, complete_from });
        Ok(DeliverPolicy::ByStartSequence { start_sequence: next })
    }

    /// Publishes a message, if it is new and wanted; never returns once the server stops.
    async fn take(&mut self, created_ns: i128, message: &jetstream::Message, ingest: &mut Ingest<'_>) {
        // Only messages of a stream have this information in their reply subject.
        let Ok(info) = message.info() else { return };
        let sequence = info.stream_sequence;
        let known = self.position;
        let expected = known.map_or(sequence, |known| known.next);
        // It has been read before.
        if sequence < expected {
            return;
        }
        let is_filtered = self.server_filter().is_some();
        if self.filtered.handle_message(expected, sequence, info.pending) && is_filtered {
            ingest.count_hole(1, "retention has passed the source");
        }
        let is_hole = !is_filtered && sequence > expected;
        if is_hole {
            let why = format!("sequences {expected} to {} were deleted", sequence - 1);
            ingest.count_hole(sequence - expected, &why);
        }
        let complete_from = known.filter(|_| !is_hole).map_or(sequence, |known| known.complete_from);
        self.position = Some(Position { created_ns, next: sequence.saturating_add(1), complete_from });
        ingest.set_lag(info.pending);
        self.publish(message, sequence, ingest).await;
        if info.pending == 0 || self.has_read_back() {
            ingest.caught_up();
        }
    }

    async fn publish(&self, message: &jetstream::Message, sequence: u64, ingest: &mut Ingest<'_>) {
        let subject = &*message.subject;
        if !self.subjects.is_empty() && !self.subjects.iter().any(|wanted| pattern::matches(wanted, subject))
        {
            return;
        }
        let tick = Message {
            subject,
            key: None,
            headers: &Fields(message.headers.as_ref()),
            payload: &message.payload,
            time_ns: message
                .info()
                .ok()
                .and_then(|info| info.published.unix_timestamp_nanos().try_into().ok()),
        };
        let at = self.position.filter(|_| self.is_logged).map(|position| LogPosition {
            source: 0,
            epoch: self.epoch(position.created_ns),
            position: sequence,
            complete_from: position.complete_from,
        });
        ingest.take_at(tick, at).await;
    }

    /// The subject by which the server filters. Servers before 2.10 accept only one; several are filtered here, which preserves
    /// the stream's order. With positions, the whole stream is read: otherwise messages deleted by retention could not be told
    /// from those of other subjects.
    fn server_filter(&self) -> Option<&str> {
        match &*self.subjects {
            [subject] if !self.is_logged => Some(subject),
            _ => None,
        }
    }

    /// The epoch of one life of the stream, from its name and creation time. A stream that was set back reuses sequences, so it
    /// gets another epoch on every node that has noticed.
    fn epoch(&self, created_ns: i128) -> u64 {
        life_epoch(&self.stream, created_ns, self.set_back)
    }
}

/// The epoch of a life of a stream that was found set back so many times.
fn life_epoch(stream: &str, created_ns: i128, set_back: u64) -> u64 {
    let mut life = created_ns.to_le_bytes().to_vec();
    if set_back > 0 {
        life.extend(set_back.to_le_bytes());
    }
    log_epoch(Options::KIND, stream, &life)
}

#[cfg(test)]
mod tests;
