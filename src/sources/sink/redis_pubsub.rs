//! Publishes to Redis channels. A tick is confirmed once Redis has passed it to the subscribers of that moment: Redis stores
//! nothing.

use std::{convert::Infallible, time::Duration};

use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};

use super::{Confirmed, Outlet, Writer, kind::SinkOptions, redis_batch, template::TopicTemplate};
use crate::{
    engine::EngineError,
    kind::OptionChecks,
    redis::{ANSWER, Auth, Server},
    tls::Tls,
};

/// A `[[sink]]` of kind `redis-pubsub`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// `redis://host:6379`, `rediss://host:6379`, `unix:/path`.
    server: String,
    /// Template of the channel.
    channel: String,
    /// Separator of the tokens of `{topic}` in it.
    separator: String,
    auth: Auth,
    tls: Tls,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            server: "redis://127.0.0.1:6379".into(),
            channel: "{topic}".into(),
            separator: ".".into(),
            auth: Auth::default(),
            tls: Tls::default(),
        }
    }
}

impl SinkOptions for Options {
    const KIND: &'static str = "redis-pubsub";
    type Writer = PubSub;

    fn configure(self, checks: &mut OptionChecks) -> Option<PubSub> {
        let server = Server::new(&self.server, self.auth, self.tls, checks);
        match TopicTemplate::parse(&self.channel, &self.separator) {
            Ok(channel) => Some(PubSub { server: server?, channel }),
            Err(why) => {
                checks.refuse("channel", format!("{:?}: {why}", self.channel));
                None
            }
        }
    }
}

/// A configured sink.
#[derive(Clone, Debug)]
pub struct PubSub {
    server: Server,
    channel: TopicTemplate,
}

impl Writer for PubSub {
    type Connection = MultiplexedConnection;

    async fn connect(&mut self, _: Duration) -> Result<MultiplexedConnection, EngineError> {
        self.server.connect(ANSWER).await
    }

    async fn write(
        &mut self,
        redis: MultiplexedConnection,
        outlet: &mut Outlet,
    ) -> Result<Infallible, EngineError> {
        let channel = &self.channel;
        redis_batch::write(
            &self.server,
            redis,
            outlet,
            |publish, pipe| {
                pipe.cmd("PUBLISH").arg(channel.render(&publish.topic)?).arg(&*publish.payload);
                Ok(())
            },
            |_| Confirmed::default(),
        )
        .await
    }
}
