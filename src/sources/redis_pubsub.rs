//! Reads Redis pub/sub channels, at most once. Messages published while this server is away or slow are gone. Redis does not
//! say how many, so each interruption counts as one loss.

use std::{convert::Infallible, pin::pin, time::Duration};

use futures_util::{
    FutureExt, StreamExt,
    future::{Either, select},
};
use redis::Msg;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::{
    Source, SourceContext, SourceError,
    engine::{self, EngineError, Ingest, Reader},
    kind::{Configured, OptionChecks, SourceOptions},
    mapping::{MapOptions, Mapping, Message},
    redis::{ANSWER, Auth, Server},
    tls::Tls,
};
use crate::limits::SOURCE_SUBJECTS_MAX;

/// Silence after which Redis is pinged.
const PING: Duration = Duration::from_secs(2);

/// A `[[source]]` of kind `redis-pubsub`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// `redis://host:6379`, `rediss://host:6379`, `unix:/path`.
    server: String,
    /// Channels to read, with `*`, `?` and `[...]` as in PSUBSCRIBE.
    channels: Vec<String>,
    auth: Auth,
    tls: Tls,
    map: MapOptions,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            server: "redis://127.0.0.1:6379".into(),
            channels: Vec::new(),
            auth: Auth::default(),
            tls: Tls::default(),
            map: MapOptions::default(),
        }
    }
}

impl SourceOptions for Options {
    const KIND: &'static str = "redis-pubsub";
    const REQUIRED: &'static [&'static str] = &["channels"];

    fn configure(self, checks: &mut OptionChecks) -> Option<Configured> {
        checks.within("channels", self.channels.len(), 1, SOURCE_SUBJECTS_MAX);
        let server = Server::new(&self.server, self.auth, self.tls, checks);
        let mapping = Mapping::new(&self.map, checks)?;
        let pattern = mapping.pattern();
        Some(Configured::new(
            pattern,
            PubSub { server: server?, channels: self.channels, mapping, was_read: false },
        ))
    }
}

/// A configured source.
#[derive(Clone, Debug)]
struct PubSub {
    server: Server,
    channels: Vec<String>,
    mapping: Mapping,
    /// Whether an earlier attempt has read: messages sent since then are lost.
    was_read: bool,
}

impl Source for PubSub {
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
        engine::run(context, self.mapping.clone(), self)
    }
}

impl Reader for PubSub {
    async fn read(&mut self, ingest: &mut Ingest<'_>) -> Result<Infallible, EngineError> {
        let client = self.server.client()?;
        let failed = |error: &dyn std::fmt::Display| EngineError::new(&self.server.to_string(), error);
        let connected = ingest.waiting(timeout(ANSWER, client.get_async_pubsub())).await;
        let connected = connected.map_err(|_| failed(&"no answer"))?.map_err(|error| failed(&error))?;
        let (mut sink, mut messages) = connected.split();
        let subscribed = timeout(ANSWER, sink.psubscribe(&self.channels)).await;
        subscribed.map_err(|_| failed(&"no answer"))?.map_err(|error| failed(&error))?;
        if std::mem::replace(&mut self.was_read, true) {
            ingest.count_hole(1, "Redis keeps none while nobody reads");
        }
        ingest.connected(&self.server.to_string());
        loop {
            match ingest.waiting(select(messages.next(), pin!(sleep(PING)))).await {
                Either::Left((Some(message), _)) => {
                    take(ingest, &message).await;
                    // The client has no bound on what it has read but not delivered: it reads nothing more while this thread is
                    // here.
                    while let Some(Some(message)) = messages.next().now_or_never() {
                        take(ingest, &message).await;
                    }
                    ingest.flush();
                }
                Either::Left((None, _)) => return Err(failed(&"the connection has ended")),
                Either::Right(_) => {
                    let answered = timeout(ANSWER, sink.ping::<redis::Value>()).await;
                    answered.map_err(|_| failed(&"no answer"))?.map_err(|error| failed(&error))?;
                }
            }
        }
    }
}

async fn take(ingest: &mut Ingest<'_>, message: &Msg) {
    let (subject, payload) = (message.get_channel_name(), message.get_payload_bytes());
    ingest.take(Message { subject, key: None, headers: &(), payload, time_ns: None }).await;
}
