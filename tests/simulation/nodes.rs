//! Nodes that read one log: clients move between them, and get every tick exactly once.
//!
//! ```text
//!  Log: positions, topics, retention, lives            what is true
//!    |            |
//!  Node 0       Node 1      a cluster of shards each, with a reader that falls behind, reads again, and starts anew; in half of
//!    |            |         the runs with a short history, and a reader of the log's past that is away half of the time
//!    \            /
//!     Clients               resume where they were, at any node; check each tick, range and answer against the log
//! ```

use std::collections::{HashMap, VecDeque};

use fastrand::Rng;
use tickcast_core::{
    config::Limits,
    fanout::OpeningUnits,
    home::history::HistoryBounds,
    ids::SlotId,
    limits::LOG_READ_RING,
    log_reads::{
        LogChunk, LogRead, LogReadOutcome, LogReaderConfig, LogReaderLane, LogScan, LogTick, ScanStep,
    },
    mesh::{
        Mesh, SinkWake,
        item_ring::{ItemConsumer, ItemProducer, item_ring},
        ring::{FrameProducer, Stage, frame_ring},
    },
    metrics::counters::Counter,
    now::Now,
    placement::home_shard,
    shard::{Action, ListenerKind, Shard},
    testing::{self, START, TurnLoop},
};
use tickcast_proto::{
    Step,
    features::Features,
    frame::{self, FLAG_SNAPSHOT, Frame, HeaderFields, HelloParts, Kind, TickParts},
    logged::{self, LogPosition, log_epoch},
    records::{Closing, Publish, Recovered, Resume, SkippedRange, Subscribe, Subscribed},
    subscription::{Policy, Rules},
};

const TOPICS: u64 = 4;
const NODES: usize = 2;
const CLIENTS: usize = 6;
const STEPS: usize = 600;
const SETTLE_TURNS: usize = 200;
const RING_BYTES: usize = 96 << 10;
/// How long a session waits for a read of the log: 100 steps.
const READ_TIMEOUT_NS: u64 = 10_000_000;

/// How often a run reached each situation.
#[derive(Debug, Default)]
pub struct Reached {
    pub delivered: u64,
    pub moved: u64,
    pub recovered: u64,
    pub not_recovered: u64,
    pub ahead: u64,
    pub holes: u64,
    pub repeated: u64,
    pub lives: u64,
    pub conflated: u64,
    pub restarted: u64,
    pub opened_in_pieces: u64,
    /// Ticks that came from the log, answers that it no longer has them, and reads that were given up.
    pub read_back: u64,
    pub too_old: u64,
    pub expired: u64,
}

impl Reached {
    pub fn add(&mut self, other: &Reached) {
        self.delivered += other.delivered;
        self.moved += other.moved;
        self.recovered += other.recovered;
        self.not_recovered += other.not_recovered;
        self.ahead += other.ahead;
        self.holes += other.holes;
        self.repeated += other.repeated;
        self.lives += other.lives;
        self.conflated += other.conflated;
        self.restarted += other.restarted;
        self.opened_in_pieces += other.opened_in_pieces;
        self.read_back += other.read_back;
        self.too_old += other.too_old;
        self.expired += other.expired;
    }

    pub fn is_complete(&self) -> bool {
        let Reached { delivered, moved, recovered, not_recovered, ahead, holes, repeated, lives, .. } = *self;
        let others = [moved, recovered, not_recovered, ahead, holes, repeated, lives];
        let more = [self.conflated, self.restarted, self.opened_in_pieces];
        let from_log = [self.read_back, self.too_old, self.expired];
        delivered > 10_000 && others.iter().chain(&more).chain(&from_log).all(|&count| count > 10)
    }
}

/// The log in its present life, and what earlier lives held.
struct Log {
    life: u64,
    /// The first position that retention has left.
    first: u64,
    last: u64,
    /// Topic of each position, by epoch.
    ticks: HashMap<u64, HashMap<u64, u64>>,
}

impl Log {
    fn epoch(&self) -> u64 {
        log_epoch("simulated", "log", &self.life.to_le_bytes())
    }

    fn append(&mut self, rng: &mut Rng) {
        // Some messages map to no topic, or are deleted.
        self.last += rng.u64(1..4);
        let epoch = self.epoch();
        self.ticks.entry(epoch).or_default().insert(self.last, rng.u64(..TOPICS));
    }

    fn begin_another_life(&mut self) {
        self.life += 1;
        (self.first, self.last) = (1, 0);
    }

    fn topic_at(&self, epoch: u64, position: u64) -> Option<u64> {
        self.ticks.get(&epoch)?.get(&position).copied()
    }

    /// Positions of a topic's ticks in a range.
    fn ticks_in(&self, epoch: u64, topic: u64, from: u64, to: u64) -> Vec<u64> {
        (from..to).filter(|&position| self.topic_at(epoch, position) == Some(topic)).collect()
    }
}

fn name(topic: u64) -> String {
    format!("t.{topic}")
}

fn payload(epoch: u64, position: u64) -> String {
    format!("\"{epoch} {position}\"")
}

struct Lane {
    ring: FrameProducer,
    stage: Stage,
}

/// A reader's ends of the rings to one shard.
struct ReaderLane {
    reads: ItemConsumer<LogRead>,
    chunks: ItemProducer<LogChunk>,
    waiting: VecDeque<LogChunk>,
}

/// Reads the past of the log, for places that are older than a node's history.
struct LogReader {
    lanes: Vec<ReaderLane>,
    scan: LogScan,
    epoch: u64,
    next: u64,
}

/// Bits of a ticket below the number of the shard.
const TICKET_BITS: u32 = 32;

impl LogReader {
    fn new(meshes: &mut [Mesh]) -> LogReader {
        let lanes = meshes.iter_mut().map(|mesh| {
            let ((reads_out, reads), (chunks, chunks_in)) =
                (item_ring(LOG_READ_RING), item_ring(LOG_READ_RING));
            let wake = SinkWake(Box::new(|| {}));
            mesh.add_log_reader(LogReaderLane { source: 1, reads_out, chunks_in, wake });
            ReaderLane { reads, chunks, waiting: VecDeque::new() }
        });
        LogReader { lanes: lanes.collect(), scan: LogScan::default(), epoch: 0, next: 0 }
    }

    /// Takes requests, reads up to `messages` positions, and answers.
    fn step(&mut self, log: &Log, messages: u64, now: Now, reached: &mut Reached) {
        for (at, lane) in self.lanes.iter_mut().enumerate() {
            while self.scan.has_room()
                && let Some(read) = lane.reads.pop()
            {
                let ticket = (at as u64) << TICKET_BITS | read.ticket;
                self.scan.want(LogRead { ticket, ..read });
            }
        }
        match self.scan.step(now.monotonic_ns) {
            ScanStep::Idle => {}
            ScanStep::Open { epoch, from } if epoch != log.epoch() => self.scan.refuse(epoch, from + 1),
            ScanStep::Open { epoch, from } if from < log.first => self.scan.refuse(epoch, log.first),
            ScanStep::Open { epoch, from } => {
                (self.epoch, self.next) = (epoch, from);
                self.scan.begin(epoch, from);
            }
            ScanStep::Read if self.epoch != log.epoch() || self.next < log.first => self.scan.end_pass(),
            ScanStep::Read => {
                let end = (log.last + 1).min(self.next.saturating_add(messages));
                for position in self.next..end {
                    let Some(topic) = log.topic_at(self.epoch, position) else { continue };
                    let payload = payload(self.epoch, position);
                    let parts = TickParts { flags: 1, payload: payload.as_bytes(), ..TickParts::default() };
                    self.scan.tick(&LogTick { position, topic: &name(topic), parts });
                }
                let messages = end - self.next;
                self.next = end;
                self.scan.reached(end, messages);
            }
        }
        while let Some(chunk) = self.scan.poll_answer() {
            reached.read_back += u64::from(chunk.ticks);
            reached.too_old += u64::from(chunk.outcome == LogReadOutcome::Gone);
            let (at, ticket) = (chunk.ticket >> TICKET_BITS, chunk.ticket & ((1 << TICKET_BITS) - 1));
            self.lanes[at as usize].waiting.push_back(LogChunk { ticket, ..chunk });
        }
        for lane in &mut self.lanes {
            lane.chunks.push(&mut lane.waiting);
        }
    }
}

/// What the nodes of a run have in common.
#[derive(Clone, Copy)]
struct NodeKind {
    /// The budget of their shards for opening topics, if it is not the usual one.
    opening: Option<OpeningUnits>,
    /// Whether they read the log for places older than their histories.
    has_reader: bool,
}

/// A server that reads the log.
struct Node {
    shards: Vec<Shard>,
    meshes: Vec<Mesh>,
    lanes: Vec<Lane>,
    reader: Option<LogReader>,
    turns: TurnLoop,
    epoch: u64,
    next: u64,
    complete_from: u64,
    next_slot: u32,
}

impl Node {
    /// A node that begins with what the log has of its last `window` positions. If it has a reader of the log's past, it keeps few
    /// ticks itself.
    fn new(log: &Log, window: u64, kind: NodeKind, rng: &mut Rng) -> Node {
        let NodeKind { opening, has_reader } = kind;
        let ticks = if has_reader { 4 } else { 100_000 };
        let log_readers = match has_reader {
            true => vec![LogReaderConfig { source: 1, timeout_ns: READ_TIMEOUT_NS }],
            false => Vec::new(),
        };
        let limits = Limits {
            history: Rules::all(HistoryBounds { ticks, bytes: 1 << 20, age_ns: 0 }),
            log_readers,
            policies: Rules::all(Policy::Keep),
            behind_bytes: 2 << 10,
            ping_interval_ns: u64::MAX,
            is_fed_by_logs: true,
            // More than a run has. The default is cleared for each connection's format, which took half of the time.
            egress_log_bytes: 1 << 20,
            outbox_bytes_max: 1 << 19,
            ..Limits::default()
        };
        let (mut shards, mut meshes, bells) = testing::cluster(rng.u16(1..4), &limits, RING_BYTES);
        if let Some(units) = opening {
            shards.iter_mut().for_each(|shard| shard.set_opening_units(units));
        }
        let lanes = meshes.iter_mut().zip(&bells).map(|(mesh, _)| {
            let (ring, consumer) = frame_ring(RING_BYTES);
            mesh.add_source(consumer);
            Lane { ring, stage: Stage::default() }
        });
        let lanes = lanes.collect();
        let reader = has_reader.then(|| LogReader::new(&mut meshes));
        let next = log.first.max((log.last + 1).saturating_sub(window)).max(1);
        Node {
            shards,
            meshes,
            lanes,
            reader,
            turns: TurnLoop::default(),
            epoch: log.epoch(),
            next,
            complete_from: next,
            next_slot: 0,
        }
    }

    /// Reads up to `positions` of the log.
    fn read(&mut self, log: &Log, positions: u64, reached: &mut Reached) {
        if self.epoch != log.epoch() {
            (self.epoch, self.next, self.complete_from) = (log.epoch(), log.first, log.first);
            reached.lives += 1;
        }
        if self.next < log.first {
            (self.next, self.complete_from) = (log.first, log.first);
            reached.holes += 1;
        }
        let end = log.last.min(self.next.saturating_add(positions));
        while self.next <= end {
            let position = self.next;
            if let Some(topic) = log.topic_at(self.epoch, position) {
                let key = name(topic);
                let home = home_shard(&key, self.lanes.len() as u16);
                let lane = &mut self.lanes[usize::from(home.0)];
                if !lane.stage.has_room() {
                    break;
                }
                let (epoch, complete_from) = (self.epoch, self.complete_from);
                let at = LogPosition { source: 1, epoch, position, complete_from };
                let payload = payload(epoch, position);
                let record = Publish::default();
                logged::encode_append(lane.stage.tail(), at, 1, record, &key, payload.as_bytes());
            }
            self.next += 1;
        }
        for lane in self.lanes.iter_mut().filter(|lane| !lane.stage.waiting().is_empty()) {
            lane.ring.push(&mut lane.stage);
        }
    }
}

/// What a client has of a topic.
#[derive(Clone, Copy, Debug)]
struct Place {
    epoch: u64,
    /// The last sequence received or announced as skipped.
    sequence: u64,
    /// Every tick after it must come, or be announced.
    is_exact: bool,
}

struct Client {
    node: usize,
    shard: usize,
    slot: u32,
    is_linked: bool,
    policy: Policy,
    pattern: String,
    places: HashMap<u64, Place>,
    /// Topic and epoch by id.
    names: HashMap<u32, (u64, u64)>,
    input: Vec<u8>,
    /// The socket is full.
    parked: Vec<u8>,
    is_slow: bool,
    closed: bool,
}

pub struct World {
    rng: Rng,
    now: Now,
    log: Log,
    nodes: Vec<Node>,
    kind: NodeKind,
    clients: Vec<Client>,
    pub reached: Reached,
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut rng = Rng::with_seed(seed);
        let mut log = Log { life: 1, first: 1, last: 0, ticks: HashMap::new() };
        (0..rng.usize(..50)).for_each(|_| log.append(&mut rng));
        // In every other run, topics take several turns to open, as if they had thousands of members.
        let units = OpeningUnits { per_turn: 1 + seed as usize / 2 % 3, at_once: 0 };
        let opening = (seed % 2 == 1).then_some(units);
        let kind = NodeKind { opening, has_reader: seed % 4 >= 2 };
        let nodes = (0..NODES).map(|_| Node::new(&log, 20, kind, &mut rng)).collect();
        let mut world =
            World { rng, now: START, log, nodes, kind, clients: Vec::new(), reached: Reached::default() };
        (0..CLIENTS).for_each(|_| world.connect(HashMap::new()));
        world
    }

    pub fn run(&mut self) {
        for _ in 0..STEPS {
            self.step();
        }
        self.settle();
        self.check_complete();
    }

    fn step(&mut self) {
        self.now.monotonic_ns += 100_000;
        self.now.realtime_ns += 100_000;
        let node = self.rng.usize(..NODES);
        match self.rng.u16(..1_000) {
            0..300 => (0..self.rng.usize(1..8)).for_each(|_| self.log.append(&mut self.rng)),
            300..600 => {
                let positions = self.rng.u64(1..30);
                self.nodes[node].read(&self.log, positions, &mut self.reached);
                self.turn(node);
            }
            600..900 => {
                // The engine is away for half of the time, each time for twice as long as a session waits.
                let is_away = self.now.monotonic_ns / READ_TIMEOUT_NS % 4 < 2;
                let messages = self.rng.u64(1..100);
                if let Some(reader) = self.nodes[node].reader.as_mut().filter(|_| !is_away) {
                    reader.step(&self.log, messages, self.now, &mut self.reached);
                }
                self.turn(node);
            }
            900..950 => {
                let client = self.rng.usize(..self.clients.len());
                self.move_client(client);
            }
            950..970 => {
                // The source connects again, and reads some once more.
                let back = self.rng.u64(1..20);
                let node = &mut self.nodes[node];
                node.next = node.next.saturating_sub(back).max(node.complete_from);
                self.reached.repeated += 1;
            }
            970..980 => {
                let client = self.rng.usize(..self.clients.len());
                self.clients[client].is_slow ^= true;
            }
            980..985 => {
                let behind = self.log.last.saturating_sub(self.rng.u64(..30));
                self.log.first = self.log.first.max(behind).max(1);
            }
            985..987 => self.log.begin_another_life(),
            987..990 => self.restart(node),
            _ => {}
        }
    }

    fn restart(&mut self, node: usize) {
        let (gone, left) =
            std::mem::take(&mut self.clients).into_iter().partition(|client| client.node == node);
        self.clients = left;
        let gone: Vec<Client> = gone;
        let window = self.rng.u64(1..60);
        self.count_expired(node);
        self.nodes[node] = Node::new(&self.log, window, self.kind, &mut self.rng);
        self.reached.restarted += 1;
        // It reads its window back before it is ready for clients.
        for _ in 0..20 {
            self.nodes[node].read(&self.log, 10, &mut self.reached);
            self.turn(node);
        }
        gone.into_iter().for_each(|client| self.connect(client.places));
    }

    fn connect(&mut self, places: HashMap<u64, Place>) {
        let node = self.rng.usize(..NODES);
        let of_node = &mut self.nodes[node];
        let shard = self.rng.usize(..of_node.shards.len());
        let slot = of_node.next_slot;
        of_node.next_slot += 1;
        let policies = [Policy::Conflate, Policy::Drop, Policy::Keep, Policy::Disconnect];
        let mut client = Client {
            node,
            shard,
            slot,
            is_linked: self.rng.bool(),
            policy: policies[self.rng.usize(..policies.len())],
            pattern: if self.rng.bool() { "t.*".into() } else { name(self.rng.u64(..TOPICS)) },
            places,
            names: HashMap::new(),
            input: Vec::new(),
            parked: Vec::new(),
            is_slow: false,
            closed: false,
        };
        let features =
            if client.is_linked { Features::PREVIOUS } else { Features::NONE }.union(Features::COUNTS);
        let mut bytes = Vec::new();
        frame::encode_hello(&mut bytes, &HelloParts { request: 1, client: "", name: "simulated", features });
        let pattern = client.pattern.clone();
        client.places.retain(|topic, _| pattern == "t.*" || pattern == name(*topic));
        for (topic, place) in &client.places {
            let record = Resume { epoch: place.epoch, sequence: place.sequence };
            let topic = name(*topic);
            frame::encode(&mut bytes, Kind::Resume, HeaderFields::default(), &record, &[topic.as_bytes()]);
        }
        let from = if client.places.is_empty() { 0 } else { 3 };
        let record = Subscribe { request: 2, from, policy: client.policy as u8, ..Subscribe::default() };
        frame::encode(&mut bytes, Kind::Subscribe, HeaderFields::default(), &record, &[pattern.as_bytes()]);
        let shard = &mut of_node.shards[shard];
        shard.handle_accept(SlotId(slot), ListenerKind::Native, self.now);
        shard.handle_bytes(SlotId(slot), &bytes, self.now);
        self.clients.push(client);
        self.turn(node);
    }

    /// A client leaves its node and goes on at one of them.
    fn move_client(&mut self, at: usize) {
        let client = self.clients.remove(at);
        if !client.closed {
            let shard = &mut self.nodes[client.node].shards[client.shard];
            shard.handle_error(SlotId(client.slot), 104, self.now);
            while shard.poll_action().is_some() {}
        }
        self.reached.moved += 1;
        self.connect(client.places);
    }

    fn turn(&mut self, node: usize) {
        for shard in 0..self.nodes[node].shards.len() {
            self.turn_shard(node, shard);
        }
    }

    fn turn_shard(&mut self, node: usize, shard: usize) {
        let of_node = &mut self.nodes[node];
        let clients = &mut self.clients;
        let take = |slot: SlotId, bytes: &[u8]| {
            let here =
                |client: &&mut Client| (client.node, client.shard, client.slot) == (node, shard, slot.0);
            let Some(client) = clients.iter_mut().find(here) else { return false };
            let target = if client.is_slow { &mut client.parked } else { &mut client.input };
            target.extend_from_slice(bytes);
            client.is_slow
        };
        let (one, mesh) = (&mut of_node.shards[shard], &mut of_node.meshes[shard]);
        let actions = of_node.turns.turn(one, Some(mesh), self.now, usize::MAX, take);
        self.reached.opened_in_pieces += u64::from(one.opens_topics());
        for action in actions {
            if let Action::Close(slot) | Action::ShutdownWrite(slot) = action {
                let here =
                    |client: &&mut Client| (client.node, client.shard, client.slot) == (node, shard, slot.0);
                if let Some(client) = clients.iter_mut().find(here) {
                    client.closed = true;
                }
            }
        }
        let mut at = 0;
        while at < self.clients.len() {
            let client = &mut self.clients[at];
            if (client.node, client.shard) != (node, shard) {
                at += 1;
                continue;
            }
            if !client.is_slow && !client.parked.is_empty() {
                let parked = std::mem::take(&mut client.parked);
                client.input.extend(parked);
                self.nodes[node].shards[shard].handle_writable(SlotId(client.slot), self.now);
            }
            client.read(&self.log, &mut self.reached);
            if self.clients[at].closed {
                self.move_client(at);
            } else {
                at += 1;
            }
        }
    }

    fn count_expired(&mut self, node: usize) {
        let shards = self.nodes[node].shards.iter();
        self.reached.expired +=
            shards.map(|shard| shard.counters().value(Counter::LogReadsExpired)).sum::<u64>();
    }

    fn settle(&mut self) {
        self.clients.iter_mut().for_each(|client| client.is_slow = false);
        for _ in 0..SETTLE_TURNS {
            self.now.monotonic_ns += 5_000_000;
            for node in 0..NODES {
                self.nodes[node].read(&self.log, u64::MAX, &mut self.reached);
                if let Some(reader) = &mut self.nodes[node].reader {
                    reader.step(&self.log, u64::MAX, self.now, &mut self.reached);
                }
                self.turn(node);
            }
        }
        (0..NODES).for_each(|node| self.count_expired(node));
    }

    /// Every tick of the log that a client was owed has come, or was announced.
    fn check_complete(&self) {
        for client in &self.clients {
            for (topic, place) in client.places.iter().filter(|(_, place)| place.is_exact) {
                // A hole is announced with the next tick after it.
                let read_from = self.nodes[client.node].complete_from;
                let epoch = self.log.epoch();
                let from = if place.epoch == epoch { read_from.max(place.sequence + 1) } else { read_from };
                let missing = self.log.ticks_in(epoch, *topic, from, self.log.last + 1);
                assert!(missing.is_empty(), "t.{topic}: {missing:?} never came; {place:?}");
            }
        }
    }
}

impl Client {
    fn read(&mut self, log: &Log, reached: &mut Reached) {
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
            rest = &rest[used..];
            self.frame(&frame, log, reached);
        }
        self.input = rest.to_vec();
    }

    fn frame(&mut self, frame: &Frame<'_>, log: &Log, reached: &mut Reached) {
        let known = self.names.get(&frame.header.topic_id).copied();
        match frame.kind {
            Kind::Subscribed if frame.header.topic_id != 0 => {
                let topic = frame.text().unwrap().strip_prefix("t.").unwrap().parse().unwrap();
                let epoch = frame.record::<Subscribed>().unwrap().epoch;
                self.names.insert(frame.header.topic_id, (topic, epoch));
            }
            Kind::Tick => {
                let (topic, epoch) = known.expect("announced before its first tick");
                reached.delivered += 1;
                self.tick(topic, epoch, frame, log);
            }
            Kind::Gap | Kind::Conflated => {
                let (topic, epoch) = known.expect("announced before");
                reached.conflated += u64::from(frame.kind == Kind::Conflated);
                let SkippedRange { from, to } = frame.record().unwrap();
                self.skipped(topic, epoch, from, to, log);
            }
            Kind::Recovered => {
                let topic = frame.text().unwrap().strip_prefix("t.").unwrap().parse().unwrap();
                let Recovered { recovered, sequence, .. } = frame.record().unwrap();
                let place = self.places.get(&topic).copied();
                trace(self, topic, format_args!("recovered {recovered} at {sequence}, has {place:?}"));
                reached.ahead +=
                    u64::from(recovered != 0 && place.is_some_and(|place| place.sequence > sequence));
                if recovered == 0 {
                    self.places.remove(&topic);
                    reached.not_recovered += 1;
                } else {
                    reached.recovered += 1;
                }
            }
            Kind::Closing => {
                let code = frame.record::<Closing>().unwrap().code;
                assert!(matches!(code, 3008 | 3013), "{code}: {}", frame.text().unwrap());
                self.closed = true;
            }
            Kind::Error => panic!("{}", frame.text().unwrap()),
            _ => {}
        }
    }

    fn tick(&mut self, topic: u64, epoch: u64, frame: &Frame<'_>, log: &Log) {
        let sequence = frame.header.sequence;
        trace(self, topic, format_args!("tick {sequence} after {}", frame.previous()));
        let text = std::str::from_utf8(frame.payload()).unwrap();
        assert_eq!(log.topic_at(epoch, sequence), Some(topic), "the tick of this position is of this topic");
        assert_eq!(text, payload(epoch, sequence));
        assert!(self.is_linked || !frame.is_linked(), "only who asks gets `previous`");
        let is_snapshot = frame.header.flags & FLAG_SNAPSHOT != 0;
        if let Some(place) = self.places.get(&topic).filter(|place| place.epoch == epoch) {
            assert!(sequence > place.sequence, "t.{topic}: {sequence} after {place:?}");
            if place.is_exact && !is_snapshot {
                let missing = log.ticks_in(epoch, topic, place.sequence + 1, sequence);
                assert!(missing.is_empty(), "t.{topic}: {missing:?} before {sequence}, {place:?}");
                let previous = frame.previous();
                assert!(
                    !self.is_linked || previous <= place.sequence,
                    "{previous} claims a hole after {place:?}"
                );
            }
        }
        self.places.insert(topic, Place { epoch, sequence, is_exact: true });
    }

    fn skipped(&mut self, topic: u64, epoch: u64, from: u64, to: u64, log: &Log) {
        trace(self, topic, format_args!("skipped [{from}, {to})"));
        assert!(from < to);
        let mut is_exact = true;
        if let Some(place) = self.places.get(&topic).filter(|place| place.epoch == epoch) {
            assert!(from > place.sequence, "t.{topic}: [{from}, {to}) after {place:?}");
            if place.is_exact {
                let missing = log.ticks_in(epoch, topic, place.sequence + 1, from);
                is_exact = missing.is_empty();
                // At the end of a life, the loss of what waits may overtake the answer to the client's place.
                assert!(
                    is_exact || epoch != log.epoch(),
                    "t.{topic}: {missing:?} before [{from}, {to}), {place:?}"
                );
            }
        }
        self.places.insert(topic, Place { epoch, sequence: to - 1, is_exact });
    }
}

/// Prints what clients see of a topic, with `TICKCAST_TRACE=TOPIC`; for runs of one seed.
fn trace(client: &Client, topic: u64, what: std::fmt::Arguments<'_>) {
    static TOPIC: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let traced = TOPIC.get_or_init(|| std::env::var("TICKCAST_TRACE").ok());
    if traced.as_deref().is_some_and(|traced| traced == name(topic)) {
        let Client { node, shard, slot, policy, pattern, .. } = client;
        eprintln!("node {node} session {shard}-{slot} {policy:?} {pattern} {}: {what}", name(topic));
    }
}
