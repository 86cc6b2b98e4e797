//! Reads NATS subjects, at most once, as NATS delivers them. Messages lost while this server is away or slow are gone; losses
//! that the client or the server reports are counted.

pub mod connection;

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use async_nats::{Message as NatsMessage, connection::State};
use futures_util::{
    FutureExt, StreamExt,
    future::{Either, select},
    stream::select_all,
};
use serde::{Deserialize, Serialize};

use self::connection::{Auth, Connection, Events, Fields};
use super::{
    Source, SourceContext, SourceError,
    engine::{self, EngineError, Ingest, Reader},
    kind::{Configured, OptionChecks, SourceOptions},
    mapping::{MapOptions, Mapping, Message},
    tls::Tls,
};
use crate::limits::SOURCE_SUBJECTS_MAX;
use tickcast_proto::pattern;

/// How often the connection's state is checked while no message arrives.
const WATCH: Duration = Duration::from_millis(100);

/// A `[[source]]` of kind `nats`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Addresses of one cluster: `nats://host:4222`, `tls://host:4222`.
    servers: Vec<String>,
    /// Subjects to read; `*` and `>` as in NATS.
    subjects: Vec<String>,
    /// The queue group: each message goes to one of its members.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
    auth: Auth,
    tls: Tls,
    map: MapOptions,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            servers: vec!["nats://127.0.0.1:4222".into()],
            subjects: Vec::new(),
            queue: None,
            auth: Auth::default(),
            tls: Tls::default(),
            map: MapOptions::default(),
        }
    }
}

impl SourceOptions for Options {
    const KIND: &'static str = "nats";
    const REQUIRED: &'static [&'static str] = &["subjects"];

    fn configure(self, checks: &mut OptionChecks) -> Option<Configured> {
        checks.within("subjects", self.subjects.len(), 1, SOURCE_SUBJECTS_MAX);
        connection::check_subjects(&self.subjects, checks);
        match &self.queue {
            Some(queue) if queue.is_empty() || queue.contains(char::is_whitespace) => {
                checks.refuse("queue", format!("{queue:?}: must not be empty or contain white space"));
            }
            // The server gives a message to one subscription of a queue group.
            Some(_) => {}
            None => check_distinct(&self.subjects, checks),
        }
        let connection = Connection::new("nats", self.servers, self.auth, self.tls, checks);
        let mapping = Mapping::new(&self.map, checks)?;
        connection::check_headers(&mapping, checks);
        let pattern = mapping.pattern();
        Some(Configured::new(
            pattern,
            Nats { connection: connection?, subjects: self.subjects, queue: self.queue, mapping },
        ))
    }
}

/// A configured source.
#[derive(Clone, Debug)]
struct Nats {
    connection: Connection,
    subjects: Vec<String>,
    queue: Option<String>,
    mapping: Mapping,
}

impl Source for Nats {
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
        engine::run(context, self.mapping.clone(), self)
    }
}

impl Reader for Nats {
    async fn read(&mut self, ingest: &mut Ingest<'_>) -> Result<Infallible, EngineError> {
        let events = Arc::new(Events::default());
        let client = ingest.waiting(self.connection.connect(&events)).await?;
        let mut subscriptions = Vec::new();
        for subject in &self.subjects {
            let subscribed = match &self.queue {
                Some(queue) => client.queue_subscribe(subject.clone(), queue.clone()).await,
                None => client.subscribe(subject.clone()).await,
            };
            subscriptions.push(subscribed.map_err(|error| EngineError::new("subscribe", error))?);
        }
        client.flush().await.map_err(|error| EngineError::new("subscribe", error))?;
        let (mut messages, mut connections) = (select_all(subscriptions), 1);
        let mut is_connected = false;
        loop {
            let is_quiet =
                match ingest.waiting(select(messages.next(), pin!(tokio::time::sleep(WATCH)))).await {
                    Either::Left((Some(message), _)) => {
                        take(ingest, &message).await;
                        while let Some(Some(message)) = messages.next().now_or_never() {
                            take(ingest, &message).await;
                        }
                        ingest.flush();
                        false
                    }
                    Either::Left((None, _)) => return Err(EngineError("the client has ended".into())),
                    Either::Right(_) => true,
                };
            if let Some(denial) = events.subscription_denial() {
                if is_connected {
                    ingest.count_hole(1, "NATS keeps none while nobody reads");
                }
                return Err(EngineError(denial.into()));
            }
            let lost = events.take_slow();
            if lost > 0 {
                ingest.count_hole(lost, "they came faster than the rings to the shards took them");
            }
            // The client may have reconnected by itself. Otherwise, take first what arrived before the last connection broke.
            let is_broken = is_quiet && client.connection_state() != State::Connected;
            let is_renewed = events.connections() > connections;
            connections = events.connections().max(1);
            if is_broken || is_renewed {
                ingest.count_hole(1, "NATS keeps none while nobody reads");
            }
            if is_broken {
                return Err(EngineError(
                    events.take_last().unwrap_or_else(|| "the connection has ended".into()),
                ));
            }
            // NATS does not confirm a subscription. It refuses one within a turn, unless it is far away.
            if !std::mem::replace(&mut is_connected, true) {
                ingest.connected(&self.connection.to_string());
            }
        }
    }
}

/// Refuses subjects of which two match the same message: it would come twice.
fn check_distinct(subjects: &[String], checks: &mut OptionChecks) {
    for (at, subject) in subjects.iter().enumerate() {
        if let Some(other) = subjects[..at].iter().find(|other| pattern::overlaps(other, subject)) {
            checks.refuse(
                "subjects",
                format!("{subject:?} and {other:?} match the same messages, which would come twice"),
            );
        }
    }
}

async fn take(ingest: &mut Ingest<'_>, message: &NatsMessage) {
    let (subject, headers) = (&*message.subject, Fields(message.headers.as_ref()));
    let payload = &*message.payload;
    ingest.take(Message { subject, key: None, headers: &headers, payload, time_ns: None }).await;
}
