//! Adds entries to Redis Streams. Each tick is confirmed with its position: the entry's id as one number, and an epoch that
//! names the stream and its life.
//!
//! Redis does not say which life of a stream an id is from. So a key beside the stream holds a generation, and a script reads
//! it in the same step in which it adds the entry. The script sets a new generation if the stream does not exist.

use std::{
    cell::Cell,
    convert::Infallible,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use redis::{Script, Value, aio::MultiplexedConnection, cmd};
use serde::{Deserialize, Serialize};

use super::{
    Confirmed, Outlet, Publish, Writer,
    kind::SinkOptions,
    redis_batch,
    template::{TopicTemplate, Unnameable},
};
use crate::{
    engine::EngineError,
    kind::OptionChecks,
    redis::{ANSWER, Auth, GENERATION, Id, Server, generation_key},
    tls::Tls,
};
use tickcast_common::clock;
use tickcast_proto::logged::log_epoch;

/// Adds an entry. KEYS: stream, generation. ARGV: a new generation, the maximum number of entries (0: no bound), fields and
/// values.
const ADD: &str = "local generation = redis.call('GET', KEYS[2])
if not generation or redis.call('EXISTS', KEYS[1]) == 0 then
  generation = ARGV[1]
  redis.call('SET', KEYS[2], generation)
end
local id
if ARGV[2] == '0' then
  id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 3))
else
  id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', unpack(ARGV, 3))
end
return {KEYS[1], generation, id}";

/// A `[[sink]]` of kind `redis-stream`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// `redis://host:6379`, `rediss://host:6379`, `unix:/path`.
    server: String,
    /// Template of the stream's key. With `{topic}`, clients create as many streams as they publish topics.
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<String>,
    /// Separator of the tokens of `{topic}` in it.
    separator: String,
    /// The field with the payload. Others are `topic`, `time` and, if the tick has one, `key`.
    field: String,
    /// About this many entries are kept; 0: all.
    max_len: u32,
    auth: Auth,
    tls: Tls,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            server: "redis://127.0.0.1:6379".into(),
            stream: None,
            separator: ".".into(),
            field: "data".into(),
            max_len: 0,
            auth: Auth::default(),
            tls: Tls::default(),
        }
    }
}

impl SinkOptions for Options {
    const KIND: &'static str = "redis-stream";
    const REQUIRED: &'static [&'static str] = &["stream"];
    type Writer = Stream;

    fn configure(self, checks: &mut OptionChecks) -> Option<Stream> {
        let server = Server::new(&self.server, self.auth, self.tls, checks);
        if self.field.is_empty() || ["topic", "time", "key"].contains(&&*self.field) {
            checks
                .refuse("field", format!("{:?}: must be another name than topic, time and key", self.field));
        }
        let stream = self.stream.unwrap_or_default();
        match TopicTemplate::parse(&stream, &self.separator) {
            Ok(stream) => Some(Stream {
                server: server?,
                stream,
                field: self.field,
                max_len: self.max_len,
                script: Script::new(ADD),
            }),
            Err(why) => {
                checks.refuse("stream", format!("{stream:?}: {why}"));
                None
            }
        }
    }
}

/// A configured sink.
#[derive(Clone, Debug)]
pub struct Stream {
    server: Server,
    stream: TopicTemplate,
    field: String,
    max_len: u32,
    script: Script,
}

impl Writer for Stream {
    type Connection = MultiplexedConnection;

    async fn connect(&mut self, _: Duration) -> Result<MultiplexedConnection, EngineError> {
        let mut redis = self.server.connect(ANSWER).await?;
        let loaded = cmd("SCRIPT").arg("LOAD").arg(ADD).exec_async(&mut redis).await;
        loaded.map_err(|error| EngineError::new(&format!("{}: load a script", self.server), error))?;
        Ok(redis)
    }

    async fn write(
        &mut self,
        redis: MultiplexedConnection,
        outlet: &mut Outlet,
    ) -> Result<Infallible, EngineError> {
        // A new one for each tick: whichever tick begins a life of a stream, no two lives have the same.
        let connection =
            format!("{:x}-{:x}", clock::realtime_ns(), RandomState::new().hash_one(outlet.name()));
        let ticks = Cell::new(0_u64);
        let Stream { server, stream, field, max_len, script } = &*self;
        redis_batch::write(
            server,
            redis,
            outlet,
            |publish, pipe| {
                let Publish { topic, key, producer_time_ns, payload, .. } = publish;
                let stream = stream.render(topic)?;
                // A stream in place of a generation would make the topic that it belongs to unreadable.
                if stream.ends_with(GENERATION) {
                    return Err(Unnameable::Reserved);
                }
                ticks.set(ticks.get() + 1);
                let generation = format!("{connection}-{:x}", ticks.get());
                let add = pipe.cmd("EVALSHA").arg(script.get_hash()).arg(2).arg(&*stream);
                add.arg(generation_key(&stream)).arg(generation).arg(*max_len);
                add.arg(&**field)
                    .arg(&**payload)
                    .arg("topic")
                    .arg(&**topic)
                    .arg("time")
                    .arg(*producer_time_ns);
                if *key != 0 {
                    add.arg("key").arg(*key);
                }
                Ok(())
            },
            |reply| confirmed(reply).unwrap_or_default(),
        )
        .await
    }
}

/// The position in a reply of the script; `None` if the id does not fit a position.
fn confirmed(reply: &Value) -> Option<Confirmed> {
    let Value::Array(parts) = reply else { return None };
    let [stream, generation, id] = <&[Value; 3]>::try_from(&**parts).ok()?.each_ref().map(text_of);
    let sequence = id?.parse::<Id>().ok()?.position()?;
    Some(Confirmed {
        epoch: log_epoch(Options::KIND, stream?, generation?.as_bytes()),
        sequence,
        is_duplicate: false,
    })
}

fn text_of(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_of_the_script_become_positions_that_a_source_gives_too() {
        let text = |text: &str| Value::BulkString(text.into());
        let reply = |id: &str| Value::Array(vec![text("orders"), text("g1"), text(id)]);
        let confirmed = |id: &str| super::confirmed(&reply(id));
        let epoch = log_epoch(Options::KIND, "orders", b"g1");
        for (id, sequence) in
            [("1735689600000-1", 1), ("1735689600000-8191", 8_191), ("1735689600001-0", 8_192)]
        {
            assert_eq!(confirmed(id), Some(Confirmed { epoch, sequence, is_duplicate: false }), "{id}");
        }
        for bad in
            ["", "1-1", "1735689600000-0", "1735689600000-8192", "9999999999999999-0", "x-1", "1735689600000"]
        {
            assert_eq!(confirmed(bad), None, "{bad}");
        }
    }
}
