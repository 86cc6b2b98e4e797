//! Reads Redis Streams, in order and without loss as long as a stream keeps what has not been read.
//!
//! Redis does not tell a reader that a stream was trimmed past it, or deleted and recreated. So the reader checks its streams
//! when it connects, and then twice a second while it keeps up:
//!
//! ```text
//!  XINFO STREAM: last id, entries added   then   XREAD, up to the end of the stream
//!      what was added by then and has not been read is lost
//!      last id below the cursor, or fewer entries added than read: another life of the stream, read from its beginning
//! ```

mod logged;
mod past;

use std::{
    collections::HashMap,
    convert::Infallible,
    fmt,
    str::{self, FromStr},
    time::Duration,
};

use redis::{RedisError, Value, aio::MultiplexedConnection, cmd, from_redis_value};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use self::{logged::Life, past::Past};
use super::{
    Source, SourceContext, SourceError,
    engine::{self, EngineError, Ingest, Reader},
    kind::{Configured, OptionChecks, SourceOptions},
    log_reader::{self, ReadBack},
    mapping::{Headers, MapOptions, Mapping, Message},
    position::PositionKind,
    redis::{ANSWER, Auth, Id, Server},
    tls::Tls,
};
use crate::limits::SOURCE_SUBJECTS_MAX;
use tickcast_common::{clock, values::Time};
use tickcast_proto::{
    logged::LogPosition,
    units::{format_duration, parse_duration_ns},
};

/// Most entries of a stream in a reply. In replies of 1,000, an entry costs 1.16 us; of 100, 1.53 us.
const BATCH_ENTRIES: usize = 1_000;
/// Size of a reply, bytes of payloads, from which on the next one has half as many entries. One with less than a quarter of this lets the
/// next have twice as many.
const REPLY_BYTES: usize = 8 << 20;
/// Longest wait for an entry.
const BLOCK: Duration = Duration::from_millis(500);
/// Time between two checks of the streams: one request for each stream.
const LOOK_NS: u64 = 500_000_000;

/// A `[[source]]` of kind `redis-stream`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// `redis://host:6379`, `rediss://host:6379`, `unix:/path`.
    server: String,
    /// Keys of the streams.
    streams: Vec<String>,
    /// The field of an entry that is the payload. The others are headers for the mapping.
    field: String,
    /// Where to begin.
    start: Start,
    /// Whether the ids of the entries are also the sequences of the topics.
    position: PositionKind,
    /// With `position = "log"`: whether clients whose positions are older than the history get the ticks from the streams.
    read_back: bool,
    /// Entries to read per second for such clients.
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
            server: "redis://127.0.0.1:6379".into(),
            streams: Vec::new(),
            field: "data".into(),
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

/// Where to begin: `new`, `all`, after an id (`1793322000000-0`) or a window before now (`10m`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    New,
    All,
    After(Id),
    Window(u64),
}

impl FromStr for Start {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Start, &'static str> {
        match text {
            "new" => Ok(Start::New),
            // As XREAD writes it.
            "all" | "0" => Ok(Start::All),
            _ => text
                .parse()
                .map(Start::After)
                .or_else(|()| parse_duration_ns(text).map(Start::Window))
                .map_err(|_| "use new, all, an id such as 1793322000000-0 or a window such as 10m"),
        }
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Start::New => f.write_str("new"),
            Start::All => f.write_str("all"),
            Start::After(id) => write!(f, "{id}"),
            Start::Window(ns) => f.write_str(&format_duration(*ns)),
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
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl SourceOptions for Options {
    const KIND: &'static str = "redis-stream";
    const REQUIRED: &'static [&'static str] = &["streams"];

    fn configure(self, checks: &mut OptionChecks) -> Option<Configured> {
        checks.within("streams", self.streams.len(), 1, SOURCE_SUBJECTS_MAX);
        let server = Server::new(&self.server, self.auth, self.tls, checks);
        let is_logged = self.position == PositionKind::Log;
        if is_logged && self.streams.len() > 1 && !self.map.tells_subjects_apart(&self.streams) {
            let text = "log: several streams may feed one topic, and a topic has one log: leave map.topic as {subject}, or give \
                        each stream a source of its own";
            checks.refuse("position", text);
        }
        let read_back =
            ReadBack { is_on: self.read_back, rate: self.read_back_rate, timeout: self.read_back_timeout };
        read_back.check(checks);
        let mapping = Mapping::new(&self.map, checks)?;
        let pattern = mapping.pattern();
        let past = server.clone().map(|server| Past::new(server, self.streams.clone(), self.field.clone()));
        let past = log_reader::Reader::new(past?, mapping.clone(), read_back.rate);
        let lives = self.streams.iter().map(|_| Life::default()).collect();
        let streams = self.streams.into_iter().map(|key| (key, None)).collect();
        let (server, field, start) = (server?, self.field, self.start);
        let source = RedisStreams {
            server,
            streams,
            lives,
            is_logged,
            field,
            start,
            batch: BatchSize::default(),
            mapping,
        };
        let configured = Configured::new(pattern, source).reading_back(is_logged);
        Some(if is_logged { configured.with_log_reader(read_back, past) } else { configured })
    }
}

/// How many entries to ask for: fewer if they are long, or if the last reply did not come in time, which a slow link may be the reason of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BatchSize(usize);

impl BatchSize {
    /// Notes the size of a reply, in bytes of payloads.
    fn note(&mut self, bytes: usize) {
        if bytes > REPLY_BYTES {
            self.halve();
        } else if bytes < REPLY_BYTES / 4 {
            self.0 = (2 * self.0).min(BATCH_ENTRIES);
        }
    }

    /// Notes that a reply did not come.
    fn halve(&mut self) {
        self.0 = (self.0 / 2).max(1);
    }
}

impl Default for BatchSize {
    fn default() -> BatchSize {
        BatchSize(BATCH_ENTRIES)
    }
}

/// Bytes of the texts in a reply.
fn bytes_in(reply: &Value) -> usize {
    match reply {
        Value::BulkString(bytes) => bytes.len(),
        Value::Array(items) => items.iter().map(bytes_in).sum(),
        Value::Map(pairs) => pairs.iter().map(|(key, value)| bytes_in(key) + bytes_in(value)).sum(),
        _ => 0,
    }
}

/// A configured source, and its position in each stream.
#[derive(Clone, Debug)]
struct RedisStreams {
    server: Server,
    /// Keys, and where to continue once that is known.
    streams: Vec<(String, Option<Cursor>)>,
    /// With positions: the life of each stream.
    lives: Vec<Life>,
    /// Whether the ids of the entries are also the sequences of the topics.
    is_logged: bool,
    field: String,
    start: Start,
    batch: BatchSize,
    mapping: Mapping,
}

/// The last entry read, in one life of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cursor {
    last: Id,
    /// Entries read or known to be lost, counted like `entries-added`; `None` until this reader has caught up once.
    passed: Option<u64>,
}

/// The result of XINFO STREAM. All zero for a stream that does not exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Info {
    /// The oldest entry; zero for an empty stream.
    first: Id,
    last: Id,
    added: u64,
    length: u64,
}

impl Cursor {
    fn at_start(start: Start, info: Info, now_ms: u64) -> Cursor {
        match start {
            Start::New => Cursor { last: info.last, passed: Some(info.added) },
            Start::All => {
                Cursor { last: Id::default(), passed: Some(info.added.saturating_sub(info.length)) }
            }
            Start::After(last) => Cursor { last, passed: None },
            Start::Window(ns) => {
                let ms = now_ms.saturating_sub(ns / 1_000_000);
                Cursor { last: Id { ms: ms.saturating_sub(1), n: u64::MAX }, passed: None }
            }
        }
    }

    /// Whether the cursor is from another life of the stream, or the stream was set back.
    fn is_outlived(&self, info: Info) -> bool {
        // A cursor in the future was given by the operator.
        self.passed.is_some_and(|passed| info.last < self.last || info.added < passed)
    }

    /// Entries of `info` that have not been read.
    fn behind(&self, info: Info) -> u64 {
        self.passed.map_or(info.length, |passed| info.added.saturating_sub(passed))
    }

    /// Like [`Cursor::behind`], but 0 once the last entry of `info` has been read: for a reader that checks after each read.
    fn left(&self, info: Info) -> u64 {
        if info.last <= self.last { 0 } else { self.behind(info) }
    }

    /// Notes that everything of `info` has been read or is gone, and that `newer` entries beyond it have been read. Returns the
    /// entries lost. A cursor that was given ahead of the stream waits for it.
    fn catch_up(&mut self, info: Info, newer: u64) -> u64 {
        if self.passed.is_none() && newer == 0 && info.last < self.last {
            return 0;
        }
        let lost = self.passed.map_or(0, |passed| info.added.saturating_sub(passed.saturating_sub(newer)));
        self.passed =
            Some(self.passed.map_or(info.added.saturating_add(newer), |passed| passed.saturating_add(lost)));
        lost
    }
}

impl Source for RedisStreams {
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
        engine::run(context, self.mapping.clone(), self)
    }
}

impl Reader for RedisStreams {
    async fn read(&mut self, ingest: &mut Ingest<'_>) -> Result<Infallible, EngineError> {
        let mut redis = ingest.waiting(self.server.connect(BLOCK + ANSWER)).await?;
        if self.is_logged {
            return self.read_logged(&mut redis, ingest).await;
        }
        let mut look_ns = 0;
        loop {
            let infos = match clock::monotonic_ns() >= look_ns {
                true => {
                    look_ns = clock::monotonic_ns().saturating_add(LOOK_NS);
                    Some(self.look(&mut redis, ingest).await?)
                }
                false => None,
            };
            let (reply, most) = ingest.waiting(self.xread(&mut redis)).await?;
            ingest.connected(&self.server.to_string());
            // By stream: entries read that are newer than its info, and whether there may be more.
            let mut read = vec![(0_u64, false); self.streams.len()];
            for (key, entries) in streams_of(reply) {
                let Some(at) = self.streams.iter().position(|(known, _)| *known == key) else { continue };
                let known = infos.as_ref().map(|infos| infos[at].last);
                for entry in &entries {
                    let id = self.take(at, entry, None, ingest).await?;
                    read[at].0 += u64::from(known.is_some_and(|last| id > last));
                }
                read[at].1 = entries.len() >= most;
            }
            ingest.flush();
            let (mut lag, has_looked) = (0_u64, infos.is_some());
            for (at, info) in infos.into_iter().flatten().enumerate() {
                let ((key, cursor), (newer, has_more)) = (&mut self.streams[at], read[at]);
                let Some(cursor) = cursor else { continue };
                if has_more {
                    lag = lag.saturating_add(cursor.behind(info));
                    continue;
                }
                let lost = cursor.catch_up(info, newer);
                if lost > 0 {
                    ingest.count_hole(lost, &format!("stream {key} was trimmed before they were read"));
                }
            }
            if has_looked {
                ingest.set_lag(lag);
            }
        }
    }
}

impl RedisStreams {
    /// Checks every stream, and starts over with those that are in another life.
    async fn look(
        &mut self,
        redis: &mut MultiplexedConnection,
        ingest: &Ingest<'_>,
    ) -> Result<Vec<Info>, EngineError> {
        let mut infos = Vec::with_capacity(self.streams.len());
        for (key, cursor) in &mut self.streams {
            let info = info(redis, &self.server, key).await?;
            match cursor {
                None => *cursor = Some(Cursor::at_start(self.start, info, clock::realtime_ns() / 1_000_000)),
                Some(known) if known.is_outlived(info) => {
                    ingest.warn(&format!(
                        "stream {key} was deleted and made again, or set back: reading it from its beginning"
                    ));
                    *cursor = Some(Cursor::at_start(Start::All, info, 0));
                }
                Some(_) => {}
            }
            infos.push(info);
        }
        Ok(infos)
    }

    /// Reads the next entries of each stream. Also returns how many of one stream there can be.
    async fn xread(&mut self, redis: &mut MultiplexedConnection) -> Result<(Value, usize), EngineError> {
        let BatchSize(most) = self.batch;
        let mut xread = cmd("XREAD");
        xread.arg("COUNT").arg(most).arg("BLOCK").arg(BLOCK.as_millis() as u64).arg("STREAMS");
        for (key, _) in &self.streams {
            xread.arg(key);
        }
        for (_, cursor) in &self.streams {
            xread.arg(cursor.unwrap_or_default().last.to_string());
        }
        match xread.query_async(redis).await {
            Ok(reply) => {
                self.batch.note(bytes_in(&reply));
                Ok((reply, most))
            }
            Err(error) => {
                self.batch.halve();
                Err(failed(&self.server, &error))
            }
        }
    }

    /// Publishes an entry, moves the cursor to it and returns its id.
    async fn take(
        &mut self,
        at: usize,
        entry: &Value,
        position: Option<LogPosition>,
        ingest: &mut Ingest<'_>,
    ) -> Result<Id, EngineError> {
        let (key, cursor) = &mut self.streams[at];
        let Some((id, fields)) = entry_of(entry) else {
            return Err(EngineError(format!("stream {key}: an entry is not what XREAD gives")));
        };
        let cursor = cursor.get_or_insert_default();
        cursor.last = id;
        cursor.passed = cursor.passed.map(|passed| passed + 1);
        let fields = Fields(fields);
        match message_of(key, id, &fields, &self.field) {
            Some(message) => ingest.take_at(message, position).await,
            None => ingest.skip(key, &format!("entry {id} has no field {:?}", self.field)),
        }
        Ok(id)
    }
}

/// The message of an entry, whose payload is in this field, or in its only one. `None` if it has no such field.
fn message_of<'a>(key: &'a str, id: Id, fields: &'a Fields<'a>, field: &str) -> Option<Message<'a>> {
    let payload = fields.bytes(field).or(match fields.0 {
        [_, only] => bytes_of(only),
        _ => None,
    })?;
    let time_ns = id.ms.checked_mul(1_000_000);
    Some(Message { subject: key, key: None, headers: fields, payload, time_ns })
}

/// The result of XINFO STREAM for a stream, which may not exist.
async fn info(redis: &mut MultiplexedConnection, server: &Server, key: &str) -> Result<Info, EngineError> {
    match cmd("XINFO").arg("STREAM").arg(key).query_async::<HashMap<String, Value>>(redis).await {
        Ok(fields) => info_of(&fields).ok_or_else(|| {
            EngineError(format!("{server}: XINFO STREAM has no entries-added: Redis 7.0 or later is needed"))
        }),
        Err(error) if error.code() == Some("ERR") && error.to_string().contains("no such key") => {
            Ok(Info::default())
        }
        Err(error) => Err(failed(server, &error)),
    }
}

fn failed(server: &Server, error: &RedisError) -> EngineError {
    EngineError::new(&server.to_string(), error)
}

/// Streams and their entries in a reply of XREAD: pairs or a map, depending on the protocol version.
fn streams_of(reply: Value) -> Vec<(String, Vec<Value>)> {
    let pair = |key: Value, entries: Value| match entries {
        Value::Array(entries) => Some((from_redis_value(key).ok()?, entries)),
        _ => None,
    };
    match reply {
        Value::Array(streams) => streams
            .into_iter()
            .filter_map(|stream| match stream {
                Value::Array(items) => {
                    let [key, entries] = <[Value; 2]>::try_from(items).ok()?;
                    pair(key, entries)
                }
                _ => None,
            })
            .collect(),
        Value::Map(streams) => streams.into_iter().filter_map(|(key, entries)| pair(key, entries)).collect(),
        _ => Vec::new(),
    }
}

fn entry_of(entry: &Value) -> Option<(Id, &[Value])> {
    match entry {
        Value::Array(items) => match &**items {
            [id, Value::Array(fields)] => Some((text_of(id)?.parse().ok()?, fields)),
            _ => None,
        },
        _ => None,
    }
}

/// Reads a reply of XINFO STREAM; `None` if Redis is too old to count the entries added.
fn info_of(fields: &HashMap<String, Value>) -> Option<Info> {
    let number = |name: &str| match fields.get(name) {
        Some(Value::Int(number)) => u64::try_from(*number).ok(),
        _ => None,
    };
    let id =
        |name: &str| fields.get(name).and_then(text_of).and_then(|id| id.parse().ok()).unwrap_or_default();
    Some(Info {
        first: id("recorded-first-entry-id"),
        last: id("last-generated-id"),
        added: number("entries-added")?,
        length: number("length")?,
    })
}

fn bytes_of(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

fn text_of(value: &Value) -> Option<&str> {
    str::from_utf8(bytes_of(value)?).ok()
}

/// Names and values of an entry, alternating.
struct Fields<'a>(&'a [Value]);

impl Fields<'_> {
    fn bytes(&self, name: &str) -> Option<&[u8]> {
        let pairs = self.0.as_chunks::<2>().0;
        pairs
            .iter()
            .find(|[known, _]| bytes_of(known) == Some(name.as_bytes()))
            .and_then(|[_, value]| bytes_of(value))
    }
}

impl Headers for Fields<'_> {
    fn value(&self, name: &str) -> Option<&str> {
        str::from_utf8(self.bytes(name)?).ok()
    }
}

#[cfg(test)]
mod tests;
