//! Reads Redis pub/sub channels, at most once. Messages published while this server is away or slow are gone. Redis does not
//! say how many, so each interruption counts as one loss.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    pin::pin,
    time::Duration,
};

use futures_util::{
    FutureExt, StreamExt,
    future::{Either, select},
};
use redis::{Msg, RedisResult, aio::PubSubSink};
use serde::{Deserialize, Serialize};
use tokio::{
    task::coop::unconstrained,
    time::{sleep, timeout},
};

use super::{
    Source, SourceContext, SourceError,
    demand::{Demanded, read_always},
    engine::{self, EngineError, Ingest, Reader},
    glob,
    kind::{Configured, OptionChecks, SourceOptions},
    mapping::{MapOptions, Mapping, Message},
    on_demand::{Dialect, LINGER_DEFAULT, OnDemand, OnDemandOptions},
    redis::{ANSWER, Auth, Server},
    tls::Tls,
    upstreams::{Step, SubscriptionId},
};
use crate::limits::SOURCE_SUBJECTS_MAX;
use tickcast_common::{clock, values::Time};
use tickcast_proto::pattern;

/// Silence after which Redis is pinged.
const PING: Duration = Duration::from_secs(2);
/// Channels in one request to subscribe.
const BATCH_CHANNELS: usize = 256;

/// A `[[source]]` of kind `redis-pubsub`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// `redis://host:6379`, `rediss://host:6379`, `unix:/path`.
    server: String,
    /// Channels to read, with `*`, `?` and `[...]` as in PSUBSCRIBE.
    channels: Vec<String>,
    /// Those of them that are subscribed to only while clients ask for their topics: names, or whole tokens and `*`.
    on_demand: Vec<String>,
    /// How long a subscription on demand is kept after the last client has left.
    linger: Time,
    auth: Auth,
    tls: Tls,
    map: MapOptions,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            server: "redis://127.0.0.1:6379".into(),
            channels: Vec::new(),
            on_demand: Vec::new(),
            linger: LINGER_DEFAULT,
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
        check_distinct(&self.channels, checks);
        let on_demand = OnDemandOptions {
            key: "channels",
            subjects: &self.channels,
            on_demand: &self.on_demand,
            linger: self.linger,
            map: &self.map,
            dialect: Dialect::Redis,
        };
        let on_demand = OnDemand::new(on_demand, checks);
        let server = Server::new(&self.server, self.auth, self.tls, checks);
        let mapping = Mapping::new(&self.map, checks)?;
        let pattern = mapping.pattern();
        let topics = on_demand.as_ref().map_or(&[][..], OnDemand::topics).to_vec();
        let channels = read_always(self.channels, &self.on_demand);
        let source = PubSub { server: server?, channels, mapping, on_demand };
        Some(Configured::new(pattern, source).on_demand(&topics))
    }
}

/// A configured source.
#[derive(Clone, Debug)]
struct PubSub {
    server: Server,
    /// Those that are read all the time.
    channels: Vec<String>,
    mapping: Mapping,
    on_demand: Option<OnDemand>,
}

impl Source for PubSub {
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
        let demanded = Demanded::new(self.on_demand.clone(), !self.channels.is_empty(), context);
        let mut reader = PubSubReader { source: self, demanded, was_read: false };
        engine::run(context, self.mapping.clone(), &mut reader)
    }
}

/// A source while it runs.
struct PubSubReader<'a> {
    source: &'a PubSub,
    demanded: Option<Demanded>,
    /// Whether an earlier attempt has read: messages sent since then are lost.
    was_read: bool,
}

impl Reader for PubSubReader<'_> {
    async fn read(&mut self, ingest: &mut Ingest<'_>) -> Result<Infallible, EngineError> {
        let PubSub { server, channels, .. } = self.source;
        let client = server.client()?;
        let failed = |error: &dyn std::fmt::Display| EngineError::new(&server.to_string(), error);
        let connected = ingest.waiting(timeout(ANSWER, client.get_async_pubsub())).await;
        let connected = connected.map_err(|_| failed(&"no answer"))?.map_err(|error| failed(&error))?;
        let (mut sink, mut messages) = connected.split();
        if !channels.is_empty() {
            let subscribed = timeout(ANSWER, sink.psubscribe(channels)).await;
            subscribed.map_err(|_| failed(&"no answer"))?.map_err(|error| failed(&error))?;
        }
        let mut subscriptions = Subscriptions::new(channels);
        if let Some(demanded) = &mut self.demanded {
            let wanted = demanded.begin();
            subscriptions
                .subscribe(&wanted, demanded, &mut sink, ingest)
                .await
                .map_err(|error| failed(&error))?;
        }
        if std::mem::replace(&mut self.was_read, true) {
            ingest.count_hole(1, "Redis keeps none while nobody reads");
        }
        ingest.connected(&server.to_string());
        let mut heard_ns = clock::monotonic_ns();
        loop {
            if let Some(demanded) = &mut self.demanded {
                let advanced = subscriptions.advance(demanded, &mut sink, ingest).await;
                advanced.map_err(|error| failed(&error))?;
                if subscriptions.has_leaving() {
                    // Redis has confirmed their ends, so all it sent before lies here: copies of their messages, too.
                    while let Some(Some(message)) = unconstrained(messages.next()).now_or_never() {
                        subscriptions.take(Some(demanded), ingest, &message).await;
                    }
                    ingest.flush();
                    subscriptions.settle(demanded);
                    continue;
                }
            }
            let demanded = self.demanded.as_ref();
            let silence = |heard_ns| Duration::from_nanos(clock::monotonic_ns() - heard_ns);
            let wait = PING.saturating_sub(silence(heard_ns));
            let changed = async {
                match demanded {
                    Some(demanded) => demanded.changed(wait).await,
                    None => sleep(wait).await,
                }
            };
            match ingest.waiting(select(messages.next(), pin!(changed))).await {
                Either::Left((Some(message), _)) => {
                    subscriptions.take(demanded, ingest, &message).await;
                    // The client has no bound on what it has read but not delivered: it reads nothing more while this thread is
                    // here.
                    while let Some(Some(message)) = messages.next().now_or_never() {
                        subscriptions.take(demanded, ingest, &message).await;
                    }
                    ingest.flush();
                    heard_ns = clock::monotonic_ns();
                }
                Either::Left((None, _)) => return Err(failed(&"the connection has ended")),
                Either::Right(_) if silence(heard_ns) < PING => {}
                Either::Right(_) => {
                    let answered = timeout(ANSWER, sink.ping::<redis::Value>()).await;
                    answered.map_err(|_| failed(&"no answer"))?.map_err(|error| failed(&error))?;
                    heard_ns = clock::monotonic_ns();
                }
            }
        }
    }
}

/// The subscriptions on demand of one connection.
struct Subscriptions<'a> {
    /// Patterns that are subscribed to all the time.
    always: HashSet<&'a str>,
    /// By what Redis names in each message: a channel, or a glob. Bound:
    /// [`SOURCE_SUBSCRIPTIONS_MAX`](crate::limits::SOURCE_SUBSCRIPTIONS_MAX).
    channels: HashMap<String, SubscriptionId>,
    globs: HashMap<String, SubscriptionId>,
    /// What is unsubscribed, with whether it is a channel, until its messages have been taken. Bound:
    /// [`SOURCE_ENDING_MAX`](crate::limits::SOURCE_ENDING_MAX).
    leaving: HashMap<SubscriptionId, (String, bool)>,
}

impl<'a> Subscriptions<'a> {
    fn new(always: &'a [String]) -> Subscriptions<'a> {
        let always = always.iter().map(String::as_str).collect();
        Subscriptions { always, channels: HashMap::new(), globs: HashMap::new(), leaving: HashMap::new() }
    }

    /// Subscribes and unsubscribes as clients ask.
    async fn advance(
        &mut self,
        demanded: &mut Demanded,
        sink: &mut PubSubSink,
        ingest: &mut Ingest<'_>,
    ) -> Result<(), String> {
        let mut wanted = Vec::new();
        loop {
            let step = demanded.next_step(ingest);
            if let Some(Step::Subscribe { id, pattern, .. }) = step {
                wanted.push((id, pattern));
                if wanted.len() < BATCH_CHANNELS {
                    continue;
                }
            } else if let Some(Step::Unsubscribe(id, pattern)) = step {
                // Those that take over come first.
                self.subscribe(&std::mem::take(&mut wanted), demanded, sink, ingest).await?;
                self.unsubscribe(id, &pattern, demanded, sink).await?;
                continue;
            } else if let Some(Step::End(id)) = step {
                ingest.lapse(id);
                continue;
            }
            if wanted.is_empty() {
                return Ok(());
            }
            self.subscribe(&std::mem::take(&mut wanted), demanded, sink, ingest).await?;
        }
    }

    /// Subscribes to these patterns of topics. What Redis refuses is reported, and left out.
    async fn subscribe(
        &mut self,
        wanted: &[(SubscriptionId, Box<str>)],
        demanded: &mut Demanded,
        sink: &mut PubSubSink,
        ingest: &Ingest<'_>,
    ) -> Result<(), String> {
        for is_exact in [true, false] {
            let of_kind = wanted.iter().filter(|(_, pattern)| pattern::is_exact(pattern) == is_exact);
            let named: Vec<(SubscriptionId, String)> =
                of_kind.map(|(id, pattern)| (*id, demanded.subject(pattern))).collect();
            for batch in named.chunks(BATCH_CHANNELS) {
                let names: Vec<&str> = batch.iter().map(|(_, name)| &**name).collect();
                let all = answered(subscribe(sink, &names, is_exact)).await?;
                let known = if is_exact { &mut self.channels } else { &mut self.globs };
                if all.is_ok() {
                    known.extend(batch.iter().map(|(id, name)| (name.clone(), *id)));
                    continue;
                }
                // One by one, to find out which it refuses.
                for (id, name) in batch {
                    match answered(subscribe(sink, &[name.as_str()], is_exact)).await? {
                        Ok(()) => _ = known.insert(name.clone(), *id),
                        Err(refused) => demanded.handle_refused(*id, &format!("{name:?}: {refused}"), ingest),
                    }
                }
            }
        }
        Ok(())
    }

    async fn unsubscribe(
        &mut self,
        id: SubscriptionId,
        pattern: &str,
        demanded: &mut Demanded,
        sink: &mut PubSubSink,
    ) -> Result<(), String> {
        let name = demanded.subject(pattern);
        let is_exact = pattern::is_exact(pattern);
        let known = if is_exact { &self.channels } else { &self.globs };
        if known.get(&name) != Some(&id) {
            // It was refused.
            demanded.handle_settled(id);
            return Ok(());
        }
        let ended = async {
            match is_exact {
                true => sink.unsubscribe(&name).await,
                false => sink.punsubscribe(&name).await,
            }
        };
        answered(ended).await?.map_err(|refused| format!("unsubscribing from {name:?}: {refused}"))?;
        self.leaving.insert(id, (name, is_exact));
        Ok(())
    }

    fn has_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Notes that what came before the ends of subscriptions has been taken, and forgets their names, unless they are another's by now.
    fn settle(&mut self, demanded: &mut Demanded) {
        for (id, (name, is_exact)) in self.leaving.drain() {
            let known = if is_exact { &mut self.channels } else { &mut self.globs };
            if known.get(&name) == Some(&id) {
                known.remove(&name);
            }
            demanded.handle_settled(id);
        }
    }

    async fn take(&self, demanded: Option<&Demanded>, ingest: &mut Ingest<'_>, message: &Msg) {
        let (subject, payload) = (message.get_channel_name(), message.get_payload_bytes());
        let mut id = SubscriptionId::NONE;
        if let Some(demanded) = demanded {
            let glob: Option<String> = message.get_pattern().ok().filter(|_| message.from_pattern());
            let found = match &glob {
                Some(glob) if self.always.contains(&**glob) => Some(SubscriptionId::NONE),
                Some(glob) => self.globs.get(glob).copied(),
                None => self.channels.get(subject).copied(),
            };
            let Some(found) = found.filter(|&found| demanded.takes(found, subject, ingest)) else { return };
            id = found;
        }
        ingest.take_from(id, Message { subject, key: None, headers: &(), payload, time_ns: None }).await;
    }
}

/// Refuses channels of which two match the same message: Redis would send it for each.
fn check_distinct(channels: &[String], checks: &mut OptionChecks) {
    for (at, channel) in channels.iter().enumerate() {
        if let Some(other) = channels[..at].iter().find(|other| glob::overlap(other, channel)) {
            checks.refuse(
                "channels",
                format!(
                    "{channel:?} and {other:?} match the same channels, whose messages would come twice; \
                     leave out one that the other contains, or list what each has of its own"
                ),
            );
        }
    }
}

async fn subscribe(sink: &mut PubSubSink, names: &[&str], is_exact: bool) -> RedisResult<()> {
    match is_exact {
        true => sink.subscribe(names).await,
        false => sink.psubscribe(names).await,
    }
}

/// Awaits an answer of Redis. `Ok(Err)`: it refuses the request.
async fn answered(request: impl Future<Output = RedisResult<()>>) -> Result<Result<(), String>, String> {
    match timeout(ANSWER, request).await {
        Err(_) => Err("no answer".into()),
        Ok(Ok(())) => Ok(Ok(())),
        Ok(Err(error)) if error.code().is_some() => Ok(Err(error.to_string())),
        Ok(Err(error)) => Err(error.to_string()),
    }
}
