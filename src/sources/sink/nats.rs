//! Publishes to NATS subjects. NATS stores nothing and confirms nothing by itself, so each batch is followed by a marker to an
//! inbox of this connection. When the marker comes back, the server has taken everything before it.

mod batches;

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use async_nats::{Client, HeaderMap, Subscriber, client::PublishErrorKind, connection::State};
use futures_util::{
    FutureExt, StreamExt,
    future::{Either, select},
};
use serde::{Deserialize, Serialize};

use self::batches::Batches;
use super::{
    Outlet, Publish, PublishId, Writer,
    kind::SinkOptions,
    template::{TopicTemplate, Unnameable},
};
use crate::{
    engine::EngineError,
    kind::OptionChecks,
    nats::connection::{Auth, Connection, Events},
    tls::Tls,
};
use tickcast_core::routes::Outcome;

/// Header with the tick's key, a number; only if it has one.
const KEY: &str = "Tickcast-Key";
/// Header with the producer's time, nanoseconds since 1970.
const TIME: &str = "Tickcast-Time";
/// Longest time that the client may take to accept a message while its queue is full and the socket takes nothing.
pub(super) const ACCEPTED: Duration = Duration::from_secs(2);

/// A `[[sink]]` of kind `nats`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Addresses of one cluster: `nats://host:4222`, `tls://host:4222`.
    servers: Vec<String>,
    /// Template of the subject.
    subject: String,
    /// Whether messages have the tick's key and time as headers.
    headers: bool,
    auth: Auth,
    tls: Tls,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            servers: vec!["nats://127.0.0.1:4222".into()],
            subject: "{topic}".into(),
            headers: true,
            auth: Auth::default(),
            tls: Tls::default(),
        }
    }
}

impl SinkOptions for Options {
    const KIND: &'static str = "nats";
    type Writer = Nats;

    fn configure(self, checks: &mut OptionChecks) -> Option<Nats> {
        let subjects = Subjects::new(&self.subject, self.headers, checks);
        let connection = Connection::new(Self::KIND, self.servers, self.auth, self.tls, checks);
        Some(Nats { connection: connection?, subjects: subjects? })
    }
}

/// The form of messages.
#[derive(Clone, Debug)]
pub(super) struct Subjects {
    template: TopicTemplate,
    has_headers: bool,
}

impl Subjects {
    pub(super) fn new(subject: &str, has_headers: bool, checks: &mut OptionChecks) -> Option<Subjects> {
        match TopicTemplate::parse(subject, ".") {
            Ok(template) => Some(Subjects { template, has_headers }),
            Err(why) => {
                checks.refuse("subject", format!("{subject:?}: {why}"));
                None
            }
        }
    }

    /// The subject of a tick.
    pub(super) fn subject(&self, publish: &Publish) -> Result<String, Unnameable> {
        self.template.render(&publish.topic)
    }

    /// The headers of a tick, if it has any.
    pub(super) fn headers(&self, publish: &Publish) -> Option<HeaderMap> {
        self.has_headers.then(|| {
            let mut headers = HeaderMap::new();
            if publish.key != 0 {
                headers.insert(KEY, &*publish.key.to_string());
            }
            headers.insert(TIME, &*publish.producer_time_ns.to_string());
            headers
        })
    }
}

/// A configured sink.
#[derive(Clone, Debug)]
pub struct Nats {
    connection: Connection,
    subjects: Subjects,
}

/// A connection, with the inbox of its markers.
pub struct Connected {
    client: Client,
    events: Arc<Events>,
    inbox: String,
    markers: Subscriber,
}

impl Writer for Nats {
    type Connection = Connected;

    async fn connect(&mut self, _: Duration) -> Result<Connected, EngineError> {
        let events = Arc::new(Events::default());
        let client = self.connection.connect(&events).await?;
        let inbox = client.new_inbox();
        let failed = |error: &dyn std::fmt::Display| EngineError::new("subscribe to an inbox", error);
        let markers = client.subscribe(inbox.clone()).await.map_err(|error| failed(&error))?;
        client.flush().await.map_err(|error| failed(&error))?;
        Ok(Connected { client, events, inbox, markers })
    }

    async fn write(&mut self, connected: Connected, outlet: &mut Outlet) -> Result<Infallible, EngineError> {
        let Connected { client, events, inbox, mut markers } = connected;
        let mut batches = Batches::default();
        loop {
            let mut batch = Vec::new();
            while let Some(publish) = outlet.take() {
                self.pass_on(&client, publish, outlet, &mut batch).await?;
            }
            if !batch.is_empty() {
                batches.push(batch);
                accepted(client.publish(inbox.clone(), "".into())).await?;
            }
            outlet.flush();
            let mut marker = match select(markers.next(), pin!(outlet.ready())).await {
                Either::Left((marker, _)) => Some(marker),
                Either::Right(_) => None,
            };
            while let Some(came) = marker {
                came.ok_or_else(|| EngineError("the client has ended".into()))?;
                events.quiet().await;
                batches.note(events.take_denied(), events.take_noted());
                batches.settle(outlet);
                marker = markers.next().now_or_never();
            }
            if events.is_denied(&inbox) {
                return Err(EngineError(format!("it may not publish to {inbox}: permit _INBOX.>")));
            }
            if events.is_subscription_denied() {
                return Err(EngineError(format!("it may not subscribe to {inbox}: permit _INBOX.>")));
            }
            if client.connection_state() != State::Connected || events.connections() > 1 {
                let why = events.take_last();
                return Err(EngineError(why.unwrap_or_else(|| "the connection has ended".into())));
            }
        }
    }
}

impl Nats {
    async fn pass_on(
        &self,
        client: &Client,
        publish: Publish,
        outlet: &mut Outlet,
        batch: &mut Vec<(PublishId, String)>,
    ) -> Result<(), EngineError> {
        let subject = match self.subjects.subject(&publish) {
            Ok(subject) => subject,
            Err(why) => {
                let why_not = format_args!("topic {:?}: {why}", publish.topic);
                outlet.fail_because(publish.id, why.outcome(), &why_not);
                return Ok(());
            }
        };
        let (id, headers) = (publish.id, self.subjects.headers(&publish));
        let sent = tokio::time::timeout(ACCEPTED, async {
            match headers {
                Some(headers) => {
                    client.publish_with_headers(subject.clone(), headers, publish.payload.into()).await
                }
                None => client.publish(subject.clone(), publish.payload.into()).await,
            }
        });
        match sent.await {
            Ok(Ok(())) => batch.push((id, subject)),
            Ok(Err(error)) if error.kind() == PublishErrorKind::Send => {
                return Err(EngineError::new("publish", error));
            }
            // Too long for the server, for example.
            Ok(Err(error)) => outlet.fail_because(id, Outcome::Refused, &error),
            Err(_) => return Err(EngineError("the server takes nothing".into())),
        }
        Ok(())
    }
}

async fn accepted<E: std::fmt::Display>(
    sent: impl Future<Output = Result<(), E>>,
) -> Result<(), EngineError> {
    let sent = tokio::time::timeout(ACCEPTED, sent).await;
    sent.map_err(|_| EngineError("the server takes nothing".into()))?
        .map_err(|error| EngineError::new("publish", error))
}
