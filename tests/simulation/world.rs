//! The simulated world: shards, mesh, one source, transports that take any part of a SEND, and clients that come and go.

use std::collections::{HashMap, HashSet};

use crate::{
    client::{Client, Manner, Published, Seen, State, key_of},
    permissions::{self, TENANTS},
    reached::Reached,
    request::{Begin, Request},
    sink::Sink,
};
use fastrand::Rng;
use tickcast::{
    limits::{
        LAST_VALUES_BYTES_MAX_DEFAULT, MESH_STAGE_BYTES, OUTBOX_RANGES_MAX, REPLY_BYTES_MAX, SEND_BYTES_MAX,
        SINK_IN_FLIGHT_MAX, SINK_STAGE_BYTES_MAX, TIMERS_GONE_MAX, TOPICS_MAX_DEFAULT, TURN_RING_BYTES,
    },
    sources::Lanes,
};
use tickcast_core::{
    budgets::{BudgetLimits, Rates},
    config::{AuthLimits, Limits},
    fanout::OpeningUnits,
    home::history::HistoryBounds,
    ids::{SessionId, SlotId, SourceId, TenantId},
    limits::NEW_TOKENS_BURST,
    mesh::{Mesh, ring::frame_ring},
    metrics::counters::Counter,
    now::Now,
    placement::home_shard,
    principal::Credentials,
    routes::{Route, Routes, SinkConfig, SinkId},
    shard::{Action, ListenerKind, Shard},
    tenants::{Export, Exports, Figure, Importers, TenantConfig, Tenants},
    testing::{self, EPOCH, START, TurnLoop},
    topic_key,
};
use tickcast_proto::{
    WireFormat, pattern,
    subscription::{Policy, Rules},
};

const PATTERNS: [&str; 8] = [">", "t.*", "t.0", "t.1", "t.>", "*.2", "p.>", "c.>"];
/// Topics of the source.
const SOURCE_TOPICS: [&str; 9] = ["p.0", "p.1", "p.2", "p.3", "t.0", "t.1", "t.2", "t.3", "storm.0"];
/// The tenants `a` and `b`, if one exports to the other.
const EXPORTER: TenantId = TenantId(1);
const IMPORTER: TenantId = TenantId(2);
const CLIENTS_MAX: usize = 24;
const SETTLE_TURNS_MAX: usize = 10_000;
/// More than a run publishes: with logs and outboxes of this size no client can be too slow.
const ROOMY_BYTES: usize = 4 << 20;
const HISTORY_BYTES_MAX: usize = 1 << 20;
/// Simulated time for which a shard has no time to send.
const STARVED_NS: u64 = 50_000_000;
/// Simulated time per turn while settling, and the least number of turns: paced ticks have arrived by then.
const SETTLE_TURN_NS: u64 = 5_000_000;
const SETTLE_TURNS_MIN: usize = 60;

/// What a disconnected client remembers until it reconnects.
struct Memory {
    encoding: WireFormat,
    identity: String,
    tenant: usize,
    requested: HashMap<String, Request>,
    seen: HashMap<String, Seen>,
}

/// A life of a topic: see [`Published`].
#[derive(Default)]
struct Life {
    epoch: u64,
    offset: u64,
    sequence: u64,
}

pub struct World {
    rng: Rng,
    now: Now,
    limits: Limits,
    ring_bytes: usize,
    shards: Vec<Shard>,
    meshes: Vec<Mesh>,
    turns: TurnLoop,
    /// Whether a shard holds ticks for its latency budget.
    holding: Vec<bool>,
    /// Shards hold ticks no more, so that everything comes to rest.
    settles: bool,
    lanes: Lanes,
    /// Takes what clients publish to `r.>`, in some runs.
    sink: Option<Sink>,
    clients: Vec<Client>,
    /// Free slots, by shard.
    free: Vec<Vec<u32>>,
    next_slot: Vec<u32>,
    names: u32,
    /// By tenant, who all use the same names. A tick's payload says whose it is.
    published: Vec<Published>,
    /// Topics `p.>` of [`EXPORTER`] are [`IMPORTER`]'s too.
    exports: bool,
    /// The last life of each topic, by its key.
    last_lives: HashMap<String, Life>,
    /// Topics whose publishing client is gone: only a prefix may have arrived.
    gone: HashSet<String>,
    memories: Vec<Memory>,
    /// Topics of clients are refused in this run, because homes are full.
    refuses: bool,
    /// What clients publish has budgets in this run.
    is_limited: bool,
    /// Credentials that wait for the verifier, with the shard of their session.
    verifying: Vec<(usize, SessionId, Credentials)>,
    pub reached: Reached,
}

/// Budgets that clients meet within a run of 0.4 s.
fn budgets(rng: &mut Rng) -> BudgetLimits {
    let rates = |ticks| Rates { ticks, ..Rates::default() };
    BudgetLimits { session: rates(rng.u32(2..40)), source: rates(rng.u32(10..200)) }
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut rng = Rng::with_seed(seed);
        let count = rng.usize(1..=4);
        let roomy = rng.bool();
        let refuses = seed % 8 == 5;
        let has_tenants = seed % 16 == 2;
        let has_tokens = has_tenants || seed % 8 == 6;
        let tenants = if has_tenants { TENANTS.len() } else { 1 };
        let named = TENANTS[1..tenants].iter();
        let configs = named.map(|name| TenantConfig { name: (*name).into(), ..TenantConfig::default() });
        // In some of these runs, one tenant receives topics of another under their names.
        let exports = seed % 32 == 2;
        let export = Export { owner: EXPORTER, topics: "p.>".into(), to: Importers::Named(vec![IMPORTER]) };
        let exported = Exports::new(vec![export; usize::from(exports)]).expect("one export");
        let table = Tenants::new(configs.collect(), exported, count as u16).expect("tenants");
        let is_limited = seed % 8 == 5;
        let has_sink = seed % 4 == 1 && !is_limited;
        let mut routes = Routes::default();
        if has_sink {
            let route = Route { tenant: TenantId::DEFAULT, topics: "r.>".into(), sink: SinkId(0) };
            routes.routes.push(route);
            let ack_timeout_ns = rng.u64(1..100) * 1_000_000;
            routes.sinks.push(SinkConfig { name: "script".into(), ack_timeout_ns, takes_message_ids: false });
        }
        let base_topics = |home: usize| {
            let is_here = |name: &&&str| usize::from(home_shard(name, count as u16).0) == home;
            SOURCE_TOPICS.iter().filter(is_here).count()
        };
        let of_fullest = (0..count).map(base_topics).max().unwrap_or(0);
        let limits = Limits {
            topics_max: if refuses { (of_fullest + rng.usize(1..4)) * count } else { TOPICS_MAX_DEFAULT },
            frame_bytes_max: 4 << 10,
            // In some runs, for clients that offer it.
            deflate: Rules { rules: vec![("t.1".into(), false)], default: seed.is_multiple_of(3) },
            deflate_bytes_min: 40,
            egress_log_bytes: if roomy { ROOMY_BYTES } else { rng.usize(128..200) << 10 },
            outbox_bytes_max: if roomy { ROOMY_BYTES } else { rng.usize(30..60) << 10 },
            behind_bytes: rng.usize(1..50) << 10,
            behind_ns: rng.u64(1..40) * 1_000_000,
            policies: Rules {
                rules: vec![("t.0".into(), Policy::Conflate), ("t.1".into(), Policy::Drop)],
                default: Policy::Keep,
            },
            history: Rules::all(HistoryBounds {
                ticks: rng.usize(0..100),
                bytes: rng.usize(1..40) << 10,
                age_ns: if rng.bool() { 0 } else { rng.u64(1..200) * 1_000_000 },
            }),
            history_bytes_max: HISTORY_BYTES_MAX,
            keys_per_topic_max: 8,
            // Topics of a few runs are forgotten within the run.
            topic_idle: Rules::all(if !refuses && rng.u8(..3) == 0 { rng.u64(2..40) * 1_000_000 } else { 0 }),
            last_values_bytes_max: if seed % 4 == 3 { 8 << 10 } else { LAST_VALUES_BYTES_MAX_DEFAULT },
            // A run lasts 0.4 s. Clients are served at random, so some miss a ping.
            ping_interval_ns: if rng.u8(..4) == 0 { 20_000_000 } else { u64::MAX },
            ping_timeout_ns: 100_000_000,
            // The clock jumps forward now and then.
            handshake_deadline_ns: 3_600_000_000_000,
            auth: has_tokens
                .then(|| AuthLimits { filters_patterns: seed % 16 == 14, ..AuthLimits::default() }),
            budgets: if is_limited { budgets(&mut rng) } else { BudgetLimits::default() },
            tenants: table.into(),
            routes: routes.into(),
            ..Limits::default()
        };
        // Two of the longest frames, pieces of history, fit the ring.
        let ring_bytes = rng.usize(68 << 10..100 << 10);
        let (mut shards, mut meshes, bells) = testing::cluster(count as u16, &limits, ring_bytes);
        if seed % 2 == 1 {
            // Topics take several turns to open, as if they had thousands of members.
            let units = OpeningUnits { per_turn: 1 + seed as usize / 2 % 4, at_once: 0 };
            shards.iter_mut().for_each(|shard| shard.set_opening_units(units));
        }
        let lanes: Vec<_> = meshes
            .iter_mut()
            .zip(&bells)
            .map(|(mesh, bell)| {
                let (producer, consumer) = frame_ring(ring_bytes);
                mesh.add_source(consumer);
                (producer, bell.clone())
            })
            .collect();
        let sink = has_sink.then(|| Sink::new(&mut meshes, ring_bytes));
        let published = || Published { forgets: limits.topic_idle.default > 0, ..Published::default() };
        let published = (0..tenants).map(|_| published()).collect();
        let mut world = World {
            shards,
            now: START,
            refuses,
            limits,
            ring_bytes,
            meshes,
            turns: TurnLoop::default(),
            holding: vec![false; count],
            settles: false,
            is_limited,
            lanes: Lanes::new(lanes.into_iter()),
            sink,
            clients: Vec::new(),
            free: vec![Vec::new(); count],
            next_slot: vec![0; count],
            names: 0,
            published,
            exports,
            last_lives: HashMap::new(),
            gone: HashSet::new(),
            memories: Vec::new(),
            verifying: Vec::new(),
            reached: Reached::default(),
            rng,
        };
        if refuses {
            // From now on, each home has room for these topics and a few more.
            SOURCE_TOPICS.iter().for_each(|topic| world.publish_to(0, topic, 0));
            let _ = world.lanes.flush();
            (0..count).for_each(|shard| world.turn(shard));
        }
        world
    }

    pub fn step(&mut self) {
        self.now.monotonic_ns += self.rng.u64(1..2_000_000);
        self.now.realtime_ns += 1_000;
        if self.rng.u16(..1_000) == 0 {
            // The machine was suspended, or its clock was set.
            self.now.monotonic_ns += self.rng.u64(..3_000_000_000);
            self.now.realtime_ns = self.rng.u64(1 << 59..1 << 61);
        }
        if !self.verifying.is_empty() && self.rng.bool() {
            let at = self.rng.usize(..self.verifying.len());
            self.verify(at);
        }
        self.take_back();
        if let Some(sink) = self.sink.as_mut().filter(|_| self.rng.u8(..3) == 0) {
            sink.step(&mut self.rng);
        }
        match self.rng.u8(..100) {
            0..8 if self.clients.len() < CLIENTS_MAX => self.connect(),
            0..35 => self.publish(),
            35..60 => {
                let shard = self.rng.usize(..self.shards.len());
                self.turn(shard);
            }
            _ if self.clients.is_empty() => self.connect(),
            60..75 => self.client_requests(),
            75..98 => self.transport(),
            _ => self.vanish(),
        }
    }

    /// Forgets the ticks that budgets have refused: nobody receives them.
    fn take_back(&mut self) {
        for client in &mut self.clients {
            if client.publishes.take_back() {
                self.published[client.tenant].ticks.entry(format!("c.{}", client.name)).or_default().pop();
            }
        }
    }

    /// The verifier has looked at one of the credentials.
    fn verify(&mut self, at: usize) {
        let (shard, session, credentials) = self.verifying.swap_remove(at);
        self.shards[shard].handle_verdict(session, permissions::verdict(&credentials), self.now);
        self.reached.verified += 1;
        self.actions(shard);
    }

    /// Draws a tenant, if there are several.
    fn any_tenant(&mut self) -> usize {
        match self.published.len() {
            1 => 0,
            tenants => self.rng.usize(..tenants),
        }
    }

    fn connect(&mut self) {
        let shard = self.rng.usize(..self.shards.len());
        let slot = self.vacant_slot(shard);
        let any = self.any_tenant();
        let memory = self.memories.last();
        let encoding = match memory {
            Some(memory) => memory.encoding,
            None => WireFormat::ALL[self.rng.usize(..WireFormat::ALL.len())],
        };
        let manner = match self.rng.u8(..10) {
            0 => Manner::Stuck,
            1..3 => Manner::Slow,
            _ => Manner::Healthy,
        };
        let listener =
            if encoding == WireFormat::TCP_NATIVE { ListenerKind::Native } else { ListenerKind::Http };
        self.shards[shard].handle_accept(SlotId(slot), listener, self.now);
        if self.is_limited {
            self.shards[shard].set_source(SlotId(slot), SourceId(self.rng.u32(..3)));
        }
        self.names += 1;
        // Some have an identity, and several may share it.
        let identity = match self.rng.bool() {
            _ if memory.is_some() => memory.map(|memory| memory.identity.clone()).unwrap_or_default(),
            true => format!("client-{}", self.rng.u8(..20)),
            false => String::new(),
        };
        let room = self.rng.usize(100..8_000);
        let tenant = memory.map_or(any, |memory| memory.tenant);
        let of_tenant = TENANTS[tenant];
        let token = self.limits.auth.as_ref().map(|_| match &*identity {
            "" => format!("{}.name-{}~{of_tenant}", self.names % permissions::SETS, self.names),
            identity => format!("{}.{identity}~{of_tenant}", self.names % permissions::SETS),
        });
        let mut client = Client::new(self.names, shard, slot, encoding, manner, room, &identity, token);
        client.filters = self.limits.auth.as_ref().is_some_and(|auth| auth.filters_patterns);
        client.is_limited = self.is_limited;
        client.tenant = tenant;
        client.takes_all = manner == Manner::Healthy && self.rng.u8(..3) == 0;
        match self.memories.pop() {
            Some(memory) => self.reconnect(&mut client, memory),
            None => {
                let request = self.request();
                let mut pattern = PATTERNS[self.rng.usize(..PATTERNS.len())];
                // A raw client is closed for a request that is refused.
                while encoding == WireFormat::WEBSOCKET_RAW && !client.may_subscribe(pattern) {
                    pattern = PATTERNS[self.rng.usize(..PATTERNS.len())];
                }
                client.subscribe(pattern, request);
            }
        }
        self.clients.push(client);
    }

    /// Reconnects a client: it sends its positions and requests the ticks since.
    fn reconnect(&mut self, client: &mut Client, memory: Memory) {
        self.reached.reconnected += 1;
        client.seen = memory.seen;
        client.seen.values_mut().for_each(|seen| seen.epoch = 0);
        client.seen.values_mut().for_each(|seen| seen.announced.clear());
        client
            .seen
            .retain(|topic, _| memory.requested.keys().any(|pattern| pattern::matches(pattern, topic)));
        // It may come back with a token that allows less.
        let seen = std::mem::take(&mut client.seen);
        client.seen = seen.into_iter().filter(|(topic, _)| client.permits(topic)).collect();
        for (pattern, request) in memory.requested {
            client.subscribe(&pattern, Request { begin: Begin::Resume, ..request });
        }
    }

    fn request(&mut self) -> Request {
        let begin = match self.rng.u8(..8) {
            0 => Begin::Latest,
            1 => Begin::After(if self.rng.u8(..4) == 0 { 7 } else { EPOCH }, self.rng.u64(..30)),
            2 => Begin::Resume,
            _ => Begin::Live,
        };
        let policy = [
            None,
            Some(Policy::Conflate),
            Some(Policy::Drop),
            Some(Policy::Disconnect),
            Some(Policy::Disconnect),
            Some(Policy::Disconnect),
            Some(Policy::Keep),
        ];
        Request {
            policy: policy[self.rng.usize(..policy.len())],
            interval_ms: [0, 0, 0, 0, 2, 5, 20, 50][self.rng.usize(..8)],
            begin,
        }
    }

    /// Remembers a client that has left and may reconnect.
    fn remember(memories: &mut Vec<Memory>, client: &Client, comes_back: bool) {
        if !comes_back || client.encoding == WireFormat::WEBSOCKET_RAW || client.requested.is_empty() {
            return;
        }
        memories.push(Memory {
            encoding: client.encoding,
            identity: client.identity.clone(),
            tenant: client.tenant,
            requested: client.requested.clone(),
            seen: client.seen.clone(),
        });
    }

    fn publish(&mut self) {
        // A storm publishes more than a ring and its stage hold.
        let storm = self.rng.u8(..30) == 0;
        let tenant = self.any_tenant();
        for _ in 0..if storm { 300 } else { self.rng.usize(1..30) } {
            let kind = if storm { "storm" } else { ["p", "t", "t", "t"][self.rng.usize(..4)] };
            let topic = format!("{kind}.{}", if storm { 0 } else { self.rng.u8(..4) });
            let pad = if storm || self.rng.u8(..20) == 0 { self.rng.usize(..3_000) } else { 0 };
            self.publish_to(tenant, &topic, pad);
        }
        let _ = self.lanes.flush();
    }

    /// The source publishes a tick of a tenant with so many bytes of padding.
    fn publish_to(&mut self, tenant: usize, topic: &str, pad: usize) {
        let is_exported = self.exports && topic.starts_with("p.");
        if is_exported && tenant == IMPORTER.index() {
            return;
        }
        let ticks = self.published[tenant].ticks.entry(topic.into()).or_default();
        let payload = format!("\"{topic} {} {tenant}{}\"", ticks.len() + 1, "x".repeat(pad));
        self.lanes.set_tenant(TenantId(tenant as u16));
        match self.lanes.publish(topic, 1, 1, payload.as_bytes()).is_ok() {
            true => {
                ticks.push(payload.clone());
                if is_exported && tenant == EXPORTER.index() {
                    let ticks = self.published[IMPORTER.index()].ticks.entry(topic.into()).or_default();
                    ticks.push(payload);
                }
            }
            false => self.reached.source_full += 1,
        }
    }

    fn client_requests(&mut self) {
        let client = self.rng.usize(..self.clients.len());
        let request = self.request();
        let client = &mut self.clients[client];
        let pattern = PATTERNS[self.rng.usize(..PATTERNS.len())];
        if client.token.is_some() {
            let is_raw = client.encoding == WireFormat::WEBSOCKET_RAW;
            if self.rng.u8(..8) == 0 || is_raw && !client.may_subscribe(pattern) {
                // A raw client is closed for a token too many, the others are told.
                if !is_raw || client.refreshes < NEW_TOKENS_BURST {
                    client.refresh();
                }
                return;
            }
        }
        match (self.rng.u8(..10), client.subscriptions.get(pattern)) {
            // Only without other subscriptions: a topic that is already covered continues as it is.
            (0..4, None) if client.subscriptions.values().all(|state| *state != State::Requested) => {
                client.subscribe(pattern, request);
            }
            (4, Some(State::Live(_))) => client.unsubscribe(pattern),
            (5, Some(State::Live(_))) => client.update(pattern, request),
            // A flood causes more replies than may wait, so the server must stop reading.
            (6, _) => (0..self.rng.usize(1..4_000)).for_each(|_| client.ping()),
            (7..9, _) => {
                // A raw client is closed for a publish that is refused.
                if self.refuses && client.encoding == WireFormat::WEBSOCKET_RAW {
                    return client.ping();
                }
                if self.sink.is_some() && self.rng.bool() {
                    // A raw client is closed for a publish that fails.
                    if client.encoding == WireFormat::WEBSOCKET_RAW {
                        return client.ping();
                    }
                    // A flood has more than may wait for its answers.
                    let count = if self.rng.u8(..16) == 0 { 1_000 } else { self.rng.usize(1..5) };
                    return (0..count).for_each(|_| client.publish_routed());
                }
                // Who cannot tell which of its ticks was refused publishes one at a time, and takes its number back.
                if self.is_limited {
                    if !client.is_answered || !client.publishes.are_answered() {
                        return client.ping();
                    }
                    if self.rng.u8(..6) == 0 {
                        // Half of the floods have more refused than a session may have at once.
                        let flood = if self.rng.bool() { 1_100..1_300 } else { 1..100 };
                        for _ in 0..self.rng.usize(flood) {
                            let id = client.publishes.begin(0);
                            client.publish(id, "not..valid", 0, "1");
                        }
                        return;
                    }
                }
                if client.is_answered && self.rng.u8(..8) == 0 {
                    let id = client.publishes.begin(0);
                    return client.publish(id, "not..valid", 0, "1");
                }
                // A topic that only this client publishes to.
                let topic = format!("c.{}", client.name);
                for _ in 0..if !self.is_limited && self.rng.u8(..16) == 0 { 1_000 } else { 1 } {
                    let ticks = self.published[client.tenant].ticks.entry(topic.clone()).or_default();
                    let number = ticks.len() as u64 + 1;
                    let payload = format!("\"{topic} {number} \"");
                    let has_id = self.is_limited || self.rng.u8(..4) > 0;
                    let id = if has_id { client.publishes.begin(number) } else { 0 };
                    client.publish(id, &topic, key_of(ticks.len()), &payload);
                    ticks.push(payload);
                }
            }
            _ => client.ping(),
        }
    }

    /// Moves some bytes of one client's connection.
    fn transport(&mut self) {
        let index = self.rng.usize(..self.clients.len());
        let piece = match self.rng.u8(..3) {
            0 => self.rng.usize(1..5),
            1 => self.rng.usize(1..200),
            _ => usize::MAX,
        };
        if self.clients[index].leaving && self.rng.bool() {
            return self.hand_over(index);
        }
        let client = &mut self.clients[index];
        match self.rng.bool() {
            true => self.deliver(index, piece),
            false => {
                let len = match client.manner {
                    Manner::Healthy => usize::MAX,
                    Manner::Slow => self.rng.usize(..300),
                    Manner::Stuck => 0,
                };
                self.read(index, len);
            }
        }
    }

    /// Client to server.
    fn deliver(&mut self, index: usize, len: usize) {
        let client = &mut self.clients[index];
        let len = len.min(client.outgoing.len()).min(64 << 10);
        let bytes: Vec<u8> = client.outgoing.drain(..len).collect();
        let (shard, slot) = (client.shard, client.slot);
        if !bytes.is_empty() && !client.ended {
            self.shards[shard].handle_bytes(SlotId(slot), &bytes, self.now);
            self.actions(shard);
        }
    }

    /// The transport has detached a socket: it moves to another shard.
    fn hand_over(&mut self, index: usize) {
        let (shard, slot) = (self.clients[index].shard, self.clients[index].slot);
        self.clients[index].leaving = false;
        let Some(departure) = self.shards[shard].handle_detached(SlotId(slot)) else { return };
        self.free[shard].push(slot);
        self.reached.handed_over += 1;
        let to = usize::from(departure.to.0);
        assert_ne!(to, shard, "a shard does not hand over to itself");
        let slot = self.vacant_slot(to);
        (self.clients[index].shard, self.clients[index].slot) = (to, slot);
        self.shards[to].handle_attached(SlotId(slot), SourceId::default(), &departure, self.now);
        self.actions(to);
        assert!(
            self.clients.iter().all(|client| !client.leaving || client.shard != to || client.slot != slot)
        );
    }

    fn vacant_slot(&mut self, shard: usize) -> u32 {
        self.free[shard].pop().unwrap_or_else(|| {
            self.next_slot[shard] += 1;
            self.next_slot[shard] - 1
        })
    }

    /// Server to client: the client reads, and the socket takes more of what is parked.
    fn read(&mut self, index: usize, len: usize) {
        let client = &mut self.clients[index];
        client.read(len, &self.published[client.tenant]);
        if !client.parked.is_empty() {
            let room = client.socket_bytes_max.saturating_sub(client.socket.len()).min(client.parked.len());
            client.socket.extend(client.parked.drain(..room));
            if client.parked.is_empty() && !client.ended {
                let (shard, slot) = (client.shard, client.slot);
                self.shards[shard].handle_writable(SlotId(slot), self.now);
                self.actions(shard);
            }
        } else if client.fin && client.socket.is_empty() && !client.ended {
            // It has read to the end and closes.
            let (shard, slot) = (client.shard, client.slot);
            self.shards[shard].handle_eof(SlotId(slot), self.now);
            self.actions(shard);
        }
    }

    fn turn(&mut self, shard: usize) {
        // A quarter of the time, a shard has no time to send.
        let starves = !self.settles && (self.now.monotonic_ns / STARVED_NS + shard as u64).is_multiple_of(4);
        let sends_max = if starves { 0 } else { self.rng.usize(1..40) };
        self.begin_or_end_a_wait(shard);
        self.turns.is_holding = self.holding[shard];
        let (clients, rng, reached) = (&mut self.clients, &mut self.rng, &mut self.reached);
        let mesh = &mut self.meshes[shard];
        let actions =
            self.turns.turn(&mut self.shards[shard], Some(mesh), self.now, sends_max, |slot, bytes| {
                assert!(!bytes.is_empty() && bytes.len() <= SEND_BYTES_MAX);
                let client = clients.iter_mut().find(|client| (client.shard, client.slot) == (shard, slot.0));
                let client = client.expect("a SEND is for an existing client");
                assert!(client.parked.is_empty(), "never two SENDs on one socket");
                let room = client.socket_bytes_max.saturating_sub(client.socket.len());
                let room = if rng.u8(..4) == 0 { rng.usize(..=room) } else { room };
                // What its socket takes is not the limit: the server has no time for more.
                let room = if client.takes_all { usize::MAX } else { room };
                let taken = room.min(bytes.len());
                client.socket.extend_from_slice(&bytes[..taken]);
                client.parked.extend_from_slice(&bytes[taken..]);
                client.was_cut = bytes.len() == SEND_BYTES_MAX;
                let parked = !client.parked.is_empty();
                client.socket_filled |= parked;
                reached.parked += u64::from(parked);
                parked
            });
        self.reached.opened_in_pieces += u64::from(self.shards[shard].opens_topics());
        self.note_lives(shard);
        self.act(shard, actions);
    }

    /// Makes a shard hold ticks for some turns, now and then.
    fn begin_or_end_a_wait(&mut self, shard: usize) {
        let toggles = if self.settles { self.holding[shard] } else { self.rng.u8(..3) == 0 };
        if toggles {
            self.holding[shard] ^= true;
            match self.holding[shard] {
                true => self.shards[shard].hold_ticks(),
                false => self.shards[shard].release_ticks(),
            }
        }
        self.reached.held += u64::from(self.holding[shard]);
    }

    /// Notes the lives of a home's topics, before a client hears of them: a life lasts several turns, and ends some turns after
    /// its last tick.
    fn note_lives(&mut self, shard: usize) {
        let (published, last_lives, exports) = (&mut self.published, &mut self.last_lives, self.exports);
        self.shards[shard].visit_lives(|key, epoch, sequence| {
            let (tenant, name) = topic_key::split(key);
            let is_exported = exports && tenant == EXPORTER && name.starts_with("p.");
            let importer = is_exported.then_some(IMPORTER);
            let life = last_lives.entry(key.into()).or_default();
            if life.epoch != epoch {
                *life = Life { epoch, offset: life.offset + life.sequence, sequence };
                for tenant in importer.into_iter().chain([tenant]) {
                    published[tenant.index()].lives.insert((name.into(), epoch), life.offset);
                }
            }
            life.sequence = sequence;
        });
    }

    fn actions(&mut self, shard: usize) {
        let actions = std::iter::from_fn(|| self.shards[shard].poll_action()).collect();
        self.act(shard, actions);
    }

    /// Performs the actions for the transport.
    fn act(&mut self, shard: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::PauseReceive(_) => self.reached.paused += 1,
                Action::ResumeReceive(_) | Action::HandshakeDone(_) => {}
                Action::Admit(..) => unreachable!("no client here is behind a proxy"),
                Action::HandOver(slot) => {
                    let here = |client: &&mut Client| (client.shard, client.slot) == (shard, slot.0);
                    self.clients.iter_mut().find(here).expect("the client exists").leaving = true;
                }
                Action::ShutdownWrite(slot) | Action::Close(slot) => {
                    let here = |client: &&mut Client| (client.shard, client.slot) == (shard, slot.0);
                    let closes = action == Action::Close(slot);
                    if let Some(client) = self.clients.iter_mut().find(here) {
                        client.fin = true;
                        client.shut |= !closes;
                        client.ended |= closes;
                    }
                    if closes {
                        self.free[shard].push(slot.0);
                    }
                }
            }
        }
        while let Some((session, credentials)) = self.shards[shard].poll_credentials() {
            self.verifying.push((shard, session, credentials));
        }
        self.remove_ended(shard);
    }

    /// Removes clients whose connection the server has closed, and checks the reason.
    fn remove_ended(&mut self, shard: usize) {
        let forgotten: u64 =
            self.shards.iter().map(|shard| shard.counters().value(Counter::TopicsForgotten)).sum();
        let (published, gone, memories) = (&self.published, &mut self.gone, &mut self.memories);
        self.clients.retain_mut(|client| {
            if client.shard != shard || !client.ended {
                return true;
            }
            client.read(usize::MAX, &published[client.tenant]);
            assert!(
                client.closing.is_none_or(|code| matches!(code, 3008 | 3009 | 3011 | 3013)),
                "closed with {:?}",
                client.closing
            );
            // Without a reason: a partly sent frame had to be abandoned, or the socket was full until the linger deadline.
            assert!(
                client.closing.is_some() || !client.shut || client.was_cut || !client.parked.is_empty(),
                "the reason precedes FIN"
            );
            // The frames of a forgotten topic stay in the outbox of a raw client, to which no loss could be announced.
            let keeps_frames = forgotten > 0 && client.encoding == WireFormat::WEBSOCKET_RAW;
            assert!(
                client.closing != Some(3008) || !client.always_yields() || keeps_frames,
                "a client whose ticks may be left out is not closed for being slow"
            );
            assert!(
                client.closing != Some(3008) || client.socket_filled,
                "a client whose socket takes everything at once is not closed for being slow"
            );
            gone.insert(format!("c.{}", client.name));
            Self::remember(memories, client, client.name.is_multiple_of(2));
            false
        });
    }

    /// A client vanishes, perhaps within a frame.
    fn vanish(&mut self) {
        let index = self.rng.usize(..self.clients.len());
        if self.rng.bool() {
            self.clients[index].ping();
            let half = self.clients[index].outgoing.len() / 2;
            self.deliver(index, half);
            self.reached.half_frames += 1;
        }
        if index < self.clients.len() {
            let client = self.clients.remove(index);
            self.gone.insert(format!("c.{}", client.name));
            self.reached.vanished += 1;
            Self::remember(&mut self.memories, &client, client.name.is_multiple_of(2));
            if self.rng.bool() {
                self.shards[client.shard].handle_eof(SlotId(client.slot), self.now);
            }
            // A FIN waits behind unread input; a socket error takes effect at once.
            self.shards[client.shard].handle_error(SlotId(client.slot), 104, self.now);
            self.actions(client.shard);
        }
    }

    /// Runs until nothing moves. Slow clients read everything; stuck ones stay stuck.
    pub fn settle(&mut self) {
        self.settles = true;
        for client in self.clients.iter_mut().filter(|client| !client.takes_all) {
            client.socket_bytes_max = 64 << 10;
        }
        // The rest of a flood that is refused is read within two seconds.
        let mut timed_turns = if self.is_limited { 400 } else { SETTLE_TURNS_MIN };
        let mut settled = false;
        for _ in 0..SETTLE_TURNS_MAX {
            // Ticks that have waited for a topic to open may be paced in turn.
            if self.shards.iter().any(Shard::opens_topics) {
                timed_turns = timed_turns.max(SETTLE_TURNS_MIN);
            }
            // Then the clock stands still, so that nobody is pinged any more, unless a publish that has left late for the sink
            // waits for its deadline.
            let is_routing = self.shards.iter().any(|shard| !shard.routed_are_settled());
            if timed_turns > 0 || is_routing {
                timed_turns = timed_turns.saturating_sub(1);
                self.now.monotonic_ns += SETTLE_TURN_NS;
            }
            let _ = self.lanes.flush();
            for shard in 0..self.shards.len() {
                self.turn(shard);
            }
            let mut index = 0;
            while index < self.clients.len() {
                let before = self.clients.len();
                if self.clients[index].leaving {
                    self.hand_over(index);
                }
                self.deliver(index, usize::MAX);
                if self.clients.len() == before && self.clients[index].manner != Manner::Stuck {
                    self.read(index, usize::MAX);
                }
                index += usize::from(self.clients.len() == before);
            }
            while !self.verifying.is_empty() {
                self.verify(0);
            }
            // The sink may never answer: the deadlines pass.
            if let Some(sink) = &mut self.sink {
                sink.step(&mut self.rng);
                sink.flush();
            }
            let staged = self.lanes.flush().is_ok();
            let still = self.shards.iter().zip(&mut self.meshes).all(|(shard, mesh)| {
                !shard.is_busy()
                    && mesh.requests_are_empty()
                    && mesh.deliveries_are_empty()
                    && shard.requests_flushed()
                    && shard.deliveries_flushed()
                    && shard.routed_are_settled()
            });
            let quiet = |client: &Client| {
                client.manner == Manner::Stuck
                    || (!client.fin
                        && client.outgoing.is_empty()
                        && client.socket.is_empty()
                        && client.parked.is_empty())
            };
            if timed_turns == 0 && staged && still && self.clients.iter().all(quiet) {
                settled = true;
                break;
            }
        }
        assert!(settled, "everything comes to rest");
        self.take_back();
        let totals = |counter| self.shards.iter().map(|shard| shard.counters().value(counter)).sum::<u64>();
        self.reached.slow_closed = totals(Counter::ClosedSlowConsumer);
        self.reached.overload_closed = totals(Counter::ClosedOverloaded);
        self.reached.overloads = totals(Counter::Overloads);
        self.reached.delivered = totals(Counter::TicksDelivered);
        self.reached.deflated = totals(Counter::MessagesDeflated);
        self.reached.conflated = totals(Counter::TicksConflated);
        self.reached.lost = totals(Counter::TicksDropped);
        for client in &self.clients {
            self.reached.recovered += client.recovered;
            self.reached.not_recovered += client.not_recovered;
            self.reached.snapshots += client.snapshots;
            self.reached.batches += client.batches;
            self.reached.lives += client.lives;
            self.reached.acknowledged += client.publishes.acknowledged;
            self.reached.refused += client.publishes.refused;
            self.reached.denied += client.denied;
            self.reached.limited += client.publishes.limited;
            self.reached.routed += client.routed.confirmed.len() as u64;
            self.reached.routed_refused += client.routed.refused.len() as u64;
            self.reached.routed_unconfirmed += client.routed.unconfirmed;
        }
        self.reached.routed_late = totals(Counter::SinkAnswersLate);
        self.reached.filtered = totals(Counter::SubscriptionsFiltered);
        let limited = totals(Counter::TicksRefusedRate) + totals(Counter::TicksRefusedSourceRate);
        assert!(limited >= self.reached.limited, "each tick that a budget refuses is counted");
        self.reached.throttled = totals(Counter::InputThrottled);
        self.reached.pinged = totals(Counter::Pings);
        self.reached.silent_closed = totals(Counter::ClosedHeartbeatTimeout);
    }

    /// Checks promise 1 for every client still open, and promise 2: a healthy client is closed only for its own outbox.
    pub fn check_everything_arrived(&self) {
        let sequenced: u64 =
            self.shards.iter().map(|shard| shard.counters().value(Counter::TicksSequenced)).sum();
        let is_imported = |tenant: usize, topic: &str| {
            self.exports && tenant == IMPORTER.index() && topic.starts_with("p.")
        };
        let ticks = || {
            let all = self.published.iter().enumerate();
            all.flat_map(|(tenant, published)| published.ticks.iter().map(move |ticks| (tenant, ticks)))
                .filter(|(tenant, (topic, _))| !is_imported(*tenant, topic))
                .map(|(_, ticks)| ticks)
        };
        let all: usize = ticks().map(|(_, ticks)| ticks.len()).sum();
        let certain = |(topic, ticks): (&String, &Vec<String>)| {
            if topic.starts_with("c.") { 0 } else { ticks.len() }
        };
        let certain: usize = ticks().map(certain).sum();
        assert!((certain as u64..=all as u64).contains(&sequenced), "every accepted tick was sequenced");
        let mut gone = self.gone.clone();
        // Ticks of a client that is about to end, or that never reads, may not have reached the server.
        let silenced =
            |client: &&Client| client.fin || client.closing.is_some() || client.manner == Manner::Stuck;
        let silenced = |client: &&Client| silenced(client) || client.publishes.is_refused;
        gone.extend(self.clients.iter().filter(silenced).map(|client| format!("c.{}", client.name)));
        if let Some(sink) = &self.sink {
            sink.check(self.clients.iter().map(|client| &client.routed));
        }
        for client in &self.clients {
            if client.manner != Manner::Stuck && client.closing.is_none() && !client.fin {
                client.check_complete(&self.published[client.tenant], &gone);
            }
        }
        let protocol: u64 =
            self.shards.iter().map(|shard| shard.counters().value(Counter::ClosedProtocol)).sum();
        assert_eq!(protocol, 0, "no client broke the protocol");
        if self.limits.outbox_bytes_max == ROOMY_BYTES {
            assert_eq!(self.reached.slow_closed, 0, "there was room for everything");
        }
    }

    /// Checks promise 3: memory stays within its bounds.
    pub fn check_memory(&self) {
        for shard in &self.shards {
            let session =
                self.limits.frame_bytes_max * 2 + 64 * 4096 + OUTBOX_RANGES_MAX / 16 + REPLY_BYTES_MAX * 4;
            let stages = 2 * self.shards.len() * (MESH_STAGE_BYTES + TURN_RING_BYTES);
            // Egress logs with their index, and what the home keeps.
            let topics =
                self.published.iter().map(|published| published.ticks.len()).sum::<usize>() * (32 << 10);
            // Three WebSocket formats, two of them with batches, all of them perhaps deflated, and native frames.
            let formats = 1 + 2 * (3 + 2);
            let bound = formats * self.limits.egress_log_bytes * 2
                + 4 * HISTORY_BYTES_MAX
                + topics
                + shard.sessions_len() * session
                + stages
                + TIMERS_GONE_MAX * 32
                + if self.sink.is_some() { SINK_STAGE_BYTES_MAX + SINK_IN_FLIGHT_MAX * 40 } else { 0 }
                + self.ring_bytes;
            assert!(shard.memory_bytes() <= bound, "{} bytes, bound {bound}", shard.memory_bytes());
        }
    }

    pub fn disconnect_everybody(&mut self) {
        for client in std::mem::take(&mut self.clients) {
            self.shards[client.shard].handle_error(SlotId(client.slot), 104, self.now);
            self.actions(client.shard);
        }
        self.settle();
    }

    pub fn check_nothing_is_left(&self) {
        for shard in &self.shards {
            assert_eq!((shard.sessions_len(), shard.subscriptions_len()), (0, (0, 0)));
            assert_eq!(shard.counters().value(Counter::SessionsOpen), 0);
            assert_eq!(shard.counters().value(Counter::SessionsSubscribed), 0);
        }
        for (_, tenant) in self.limits.tenants.iter() {
            let used =
                [Figure::Connections, Figure::Subscriptions].map(|figure| tenant.account.total(figure));
            assert_eq!(used, [0, 0], "what a tenant uses is given back");
        }
    }
}
