//! Reads NATS subjects, at most once, as NATS delivers them. Messages lost while this server is away or slow are gone; losses
//! that the client or the server reports are counted.

pub mod connection;

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_nats::{Client, Message as NatsMessage, Subscriber, connection::State};
use futures_util::{
    FutureExt, Stream, StreamExt,
    future::{Either, select},
    stream::SelectAll,
};
use serde::{Deserialize, Serialize};
use tokio::task::coop::unconstrained;

use self::connection::{Auth, Connection, Events, Fields};
use super::{
    Source, SourceContext, SourceError,
    demand::{Demanded, read_always},
    engine::{self, EngineError, Ingest, Reader},
    kind::{Configured, OptionChecks, SourceOptions},
    mapping::{MapOptions, Mapping, Message},
    on_demand::{Dialect, LINGER_DEFAULT, OnDemand, OnDemandOptions},
    tls::Tls,
    upstreams::{Step, SubscriptionId},
};
use crate::limits::SOURCE_SUBJECTS_MAX;
use tickcast_common::{clock, values::Time};
use tickcast_proto::pattern;

/// How often the connection's state is checked while no message arrives.
const WATCH: Duration = Duration::from_millis(100);
/// Time from the end of a subscription until NATS has sent the other copies of its last messages. NATS confirms no end, but it writes
/// the copies of a message one after the other.
const SETTLE_NS: u64 = 20_000_000;
/// A pause in which the runtime looks at the socket once, however long the source's thread was busy before.
const LOOK: Duration = Duration::from_millis(1);
const _: () = assert!(LOOK.as_nanos() < SETTLE_NS as u128);

/// A `[[source]]` of kind `nats`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Addresses of one cluster: `nats://host:4222`, `tls://host:4222`.
    servers: Vec<String>,
    /// Subjects to read; `*` and `>` as in NATS.
    subjects: Vec<String>,
    /// Those of them that are subscribed to only while clients ask for their topics.
    on_demand: Vec<String>,
    /// How long a subscription on demand is kept after the last client has left.
    linger: Time,
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
            on_demand: Vec::new(),
            linger: LINGER_DEFAULT,
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
        let on_demand = OnDemandOptions {
            key: "subjects",
            subjects: &self.subjects,
            on_demand: &self.on_demand,
            linger: self.linger,
            map: &self.map,
            dialect: Dialect::Nats,
        };
        let on_demand = OnDemand::new(on_demand, checks);
        if self.queue.is_some() && !self.on_demand.is_empty() {
            checks.refuse(
                "on_demand",
                "not with `queue`, whose members would get messages that their clients have not asked for; remove one",
            );
        }
        let connection = Connection::new("nats", self.servers, self.auth, self.tls, checks);
        let mapping = Mapping::new(&self.map, checks)?;
        connection::check_headers(&mapping, checks);
        let pattern = mapping.pattern();
        let topics = on_demand.as_ref().map_or(&[][..], OnDemand::topics).to_vec();
        let subjects = read_always(self.subjects, &self.on_demand);
        let source = Nats { connection: connection?, subjects, queue: self.queue, mapping, on_demand };
        Some(Configured::new(pattern, source).on_demand(&topics))
    }
}

/// A configured source.
#[derive(Clone, Debug)]
struct Nats {
    connection: Connection,
    /// Those that are read all the time.
    subjects: Vec<String>,
    queue: Option<String>,
    mapping: Mapping,
    on_demand: Option<OnDemand>,
}

impl Source for Nats {
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
        let demanded = Demanded::new(self.on_demand.clone(), !self.subjects.is_empty(), context);
        engine::run(context, self.mapping.clone(), &mut NatsReader { source: self, demanded })
    }
}

/// A source while it runs.
struct NatsReader<'a> {
    source: &'a Nats,
    demanded: Option<Demanded>,
}

/// A subscription, and its number if it is one on demand. Without a subscriber, it never ends: there may be no other for a while.
struct Numbered {
    id: SubscriptionId,
    subscriber: Option<Subscriber>,
}

impl Stream for Numbered {
    type Item = (SubscriptionId, NatsMessage);

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let id = self.id;
        let Some(subscriber) = &mut self.subscriber else { return Poll::Pending };
        subscriber.poll_next_unpin(context).map(|message| message.map(|message| (id, message)))
    }
}

type Messages = SelectAll<Numbered>;

impl Reader for NatsReader<'_> {
    async fn read(&mut self, ingest: &mut Ingest<'_>) -> Result<Infallible, EngineError> {
        let Nats { connection, subjects, queue, .. } = self.source;
        let events = Arc::new(Events::default());
        let client = ingest.waiting(connection.connect(&events)).await?;
        let mut messages = Messages::new();
        for subject in subjects {
            let subscribed = match queue {
                Some(queue) => client.queue_subscribe(subject.clone(), queue.clone()).await,
                None => client.subscribe(subject.clone()).await,
            };
            let subscriber = subscribed.map_err(|error| EngineError::new("subscribe", error))?;
            messages.push(Numbered { id: SubscriptionId::NONE, subscriber: Some(subscriber) });
        }
        if let Some(demanded) = &mut self.demanded {
            messages.push(Numbered { id: SubscriptionId::NONE, subscriber: None });
            for (id, pattern) in demanded.begin() {
                subscribe(&client, &mut messages, id, demanded.subject(&pattern)).await?;
            }
        }
        client.flush().await.map_err(|error| EngineError::new("subscribe", error))?;
        let (mut connections, mut is_connected, mut leaving) = (1, false, Leaving::default());
        loop {
            if let Some(demanded) = &mut self.demanded {
                advance(demanded, ingest, &client, &mut messages, &mut leaving).await?;
                let now_ns = clock::monotonic_ns();
                if leaving.due_ns().is_some_and(|due_ns| due_ns <= now_ns) {
                    // The client reads all that has arrived, and then flushes.
                    tokio::time::sleep(LOOK).await;
                    let flushed = ingest.waiting(tokio::time::timeout(WATCH, client.flush())).await;
                    // Otherwise the connection is broken, which shows below, or busy.
                    if matches!(flushed, Ok(Ok(()))) {
                        while let Some(Some((id, message))) = unconstrained(messages.next()).now_or_never() {
                            take(Some(demanded), ingest, id, &message).await;
                        }
                        ingest.flush();
                        leaving.settle(now_ns, demanded);
                        continue;
                    }
                }
            }
            let left = |due_ns: u64| Duration::from_nanos(due_ns.saturating_sub(clock::monotonic_ns()));
            let (demanded, watch) = (self.demanded.as_ref(), leaving.due_ns().map_or(WATCH, left));
            let changed = async {
                match demanded {
                    Some(demanded) => demanded.changed(watch).await,
                    None => tokio::time::sleep(WATCH).await,
                }
            };
            let is_quiet = match ingest.waiting(select(messages.next(), pin!(changed))).await {
                Either::Left((Some((id, message)), _)) => {
                    take(demanded, ingest, id, &message).await;
                    while let Some(Some((id, message))) = messages.next().now_or_never() {
                        take(demanded, ingest, id, &message).await;
                    }
                    ingest.flush();
                    false
                }
                Either::Left((None, _)) => return Err(EngineError("the client has ended".into())),
                Either::Right(_) => true,
            };
            for subject in events.take_denied_subscriptions() {
                // What one client asks for does not end the subscriptions of others.
                let demanded = self.demanded.as_mut().filter(|_| !subjects.contains(&subject));
                if let Some(demanded) = demanded {
                    if let Some(id) = demanded.id_of(&subject) {
                        let why = format!("{subject:?}: NATS does not permit this user to subscribe to it");
                        demanded.handle_refused(id, &why, ingest);
                        let refused = messages.iter_mut().find(|numbered| numbered.id == id);
                        // The client forgets it, so its stream ends and leaves `messages`: clients may ask for any number.
                        if let Some(subscriber) = refused.and_then(|numbered| numbered.subscriber.as_mut()) {
                            let ended = subscriber.unsubscribe().await;
                            ended.map_err(|error| EngineError::new("unsubscribe", error))?;
                        }
                    }
                    continue;
                }
                if is_connected {
                    ingest.count_hole(1, "NATS keeps none while nobody reads");
                }
                let denial = events.subscription_denial().unwrap_or("a subscription is refused");
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
                ingest.connected(&connection.to_string());
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

async fn subscribe(
    client: &Client,
    messages: &mut Messages,
    id: SubscriptionId,
    subject: String,
) -> Result<(), EngineError> {
    let subscriber = client.subscribe(subject).await.map_err(|error| EngineError::new("subscribe", error))?;
    messages.push(Numbered { id, subscriber: Some(subscriber) });
    Ok(())
}

/// Subscriptions that have ended, and when all copies of their last messages have been sent, in order. Bound:
/// [`SOURCE_ENDING_MAX`](crate::limits::SOURCE_ENDING_MAX).
#[derive(Debug, Default)]
struct Leaving(VecDeque<(u64, SubscriptionId)>);

impl Leaving {
    fn push(&mut self, id: SubscriptionId) {
        self.0.push_back((clock::monotonic_ns() + SETTLE_NS, id));
    }

    /// When the first is due.
    fn due_ns(&self) -> Option<u64> {
        self.0.front().map(|&(due_ns, _)| due_ns)
    }

    /// Notes that all messages of those that were due at a time have been taken, and their copies.
    fn settle(&mut self, was_ns: u64, demanded: &mut Demanded) {
        while self.due_ns().is_some_and(|due_ns| due_ns <= was_ns)
            && let Some((_, id)) = self.0.pop_front()
        {
            demanded.handle_settled(id);
        }
    }
}

/// Subscribes and unsubscribes as clients ask.
async fn advance(
    demanded: &mut Demanded,
    ingest: &mut Ingest<'_>,
    client: &Client,
    messages: &mut Messages,
    leaving: &mut Leaving,
) -> Result<(), EngineError> {
    while let Some(step) = demanded.next_step(ingest) {
        match step {
            Step::Subscribe { id, pattern, .. } => {
                subscribe(client, messages, id, demanded.subject(&pattern)).await?;
            }
            Step::Unsubscribe(id, _) => {
                // What has come already is still taken.
                let found = messages.iter_mut().find(|numbered| numbered.id == id);
                if let Some(subscriber) = found.and_then(|numbered| numbered.subscriber.as_mut()) {
                    let ended = subscriber.unsubscribe().await;
                    ended.map_err(|error| EngineError::new("unsubscribe", error))?;
                }
                leaving.push(id);
            }
            Step::End(id) => ingest.lapse(id),
        }
    }
    Ok(())
}

async fn take(
    demanded: Option<&Demanded>,
    ingest: &mut Ingest<'_>,
    id: SubscriptionId,
    message: &NatsMessage,
) {
    let (subject, headers) = (&*message.subject, Fields(message.headers.as_ref()));
    if demanded.is_some_and(|demanded| !demanded.takes(id, subject, ingest)) {
        return;
    }
    let payload = &*message.payload;
    ingest.take_from(id, Message { subject, key: None, headers: &headers, payload, time_ns: None }).await;
}
