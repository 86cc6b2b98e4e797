//! Publishers with message ids whose connections are cut at any byte, and who send what has not been answered again, over any
//! connection to any shard: each tick is sequenced exactly once, and every answer to it has its position.

use std::collections::HashMap;

use fastrand::Rng;
use tickcast_core::{
    config::Limits,
    ids::SlotId,
    mesh::Mesh,
    metrics::counters::Counter,
    now::Now,
    shard::{Action, ListenerKind, Shard},
    testing::{START, TurnLoop, cluster, hello},
};
use tickcast_proto::{
    Step,
    command::encode_request,
    features::Features,
    frame::{self, HeaderFields, HelloParts, Kind},
    records::{Publish, Published},
};

const STEPS: usize = 400;
const PUBLISHERS: usize = 3;
const TOPICS: usize = 4;
/// The subscriber's connection, to the first shard.
const SUBSCRIBER: (usize, u32) = (0, 0);
/// Rounds in which everything is answered once no connection is cut any more.
const ROUNDS: usize = 50;

/// Situations that the seeds must cover.
#[derive(Debug, Default)]
pub struct Reached {
    cuts_in_a_frame: u64,
    answers_lost: u64,
    duplicates: u64,
}

impl Reached {
    pub fn add(&mut self, other: &Reached) {
        self.cuts_in_a_frame += other.cuts_in_a_frame;
        self.answers_lost += other.answers_lost;
        self.duplicates += other.duplicates;
    }

    pub fn is_complete(&self) -> bool {
        self.cuts_in_a_frame > 0 && self.answers_lost > 0 && self.duplicates > 0
    }
}

/// A tick of a publisher. Its payload is its message id.
struct Tick {
    topic: String,
    id: String,
    /// Epoch and sequence.
    answered: Option<(u64, u64)>,
}

struct Connection {
    publisher: usize,
    shard: usize,
    slot: u32,
    /// Bytes on their way to the server.
    output: Vec<u8>,
    /// Bytes on their way to the client.
    input: Vec<u8>,
    /// Request ids, with the publisher's ticks.
    sent: Vec<usize>,
}

pub struct World {
    rng: Rng,
    now: Now,
    shards: Vec<Shard>,
    meshes: Vec<Mesh>,
    turns: TurnLoop,
    slots: u32,
    connections: Vec<Connection>,
    /// By publisher.
    ticks: Vec<Vec<Tick>>,
    /// Bytes that the subscriber has received.
    received: Vec<u8>,
    pub reached: Reached,
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut rng = Rng::with_seed(seed);
        let (shards, meshes, _) = cluster(rng.u16(1..=4), &Limits::default(), 64 << 10);
        let mut world = World {
            rng,
            now: START,
            shards,
            meshes,
            turns: TurnLoop::default(),
            slots: SUBSCRIBER.1 + 1,
            connections: Vec::new(),
            ticks: (0..PUBLISHERS).map(|_| Vec::new()).collect(),
            received: Vec::new(),
            reached: Reached::default(),
        };
        let mut opening = hello();
        encode_request(&mut opening, Kind::Subscribe, 1, ">");
        let (shard, slot) = SUBSCRIBER;
        world.shards[shard].handle_accept(SlotId(slot), ListenerKind::Native, world.now);
        world.shards[shard].handle_bytes(SlotId(slot), &opening, world.now);
        world.settle();
        world
    }

    pub fn run(&mut self) {
        (0..STEPS).for_each(|_| self.step());
        for _ in 0..ROUNDS {
            if self.ticks.iter().flatten().all(|tick| tick.answered.is_some()) {
                break;
            }
            (0..PUBLISHERS).for_each(|publisher| self.connect(publisher));
            for at in 0..self.connections.len() {
                self.publish(at);
                self.transmit(at, usize::MAX);
            }
            self.settle();
            (0..self.connections.len()).for_each(|at| self.read(at));
        }
        self.check();
    }

    fn step(&mut self) {
        self.now.monotonic_ns += self.rng.u64(0..10_000_000);
        match self.rng.u8(0..20) {
            0 | 1 => {
                let publisher = self.rng.usize(0..PUBLISHERS);
                self.connect(publisher);
            }
            2..6 => {
                let publisher = self.rng.usize(0..PUBLISHERS);
                let ticks = &mut self.ticks[publisher];
                let (topic, id) =
                    (format!("t.{}", self.rng.usize(0..TOPICS)), format!("{publisher}-{}", ticks.len()));
                ticks.push(Tick { topic, id, answered: None });
            }
            _ if self.connections.is_empty() => {}
            6..11 => {
                let at = self.rng.usize(0..self.connections.len());
                self.publish(at);
            }
            11..15 => {
                let at = self.rng.usize(0..self.connections.len());
                let bytes = self.rng.usize(0..400);
                self.transmit(at, bytes);
            }
            15 => {
                let at = self.rng.usize(0..self.connections.len());
                self.read(at);
            }
            16 => self.cut(),
            _ => {
                let shard = self.rng.usize(0..self.shards.len());
                self.turn(shard);
            }
        }
    }

    /// Connects a publisher to any shard, unless it has two connections.
    fn connect(&mut self, publisher: usize) {
        if self.connections.iter().filter(|connection| connection.publisher == publisher).count() >= 2 {
            return;
        }
        let (shard, slot) = (self.rng.usize(0..self.shards.len()), self.slots);
        self.slots += 1;
        let features = Features::PUBLISHED.union(Features::MESSAGE_IDS);
        let mut output = Vec::new();
        frame::encode_hello(&mut output, &HelloParts { request: 0, client: "", name: "test", features });
        self.shards[shard].handle_accept(SlotId(slot), ListenerKind::Native, self.now);
        let (input, sent) = (Vec::new(), Vec::new());
        self.connections.push(Connection { publisher, shard, slot, output, input, sent });
    }

    /// Queues ticks without an answer that this connection has not sent yet.
    fn publish(&mut self, at: usize) {
        let connection = &mut self.connections[at];
        for (number, tick) in self.ticks[connection.publisher].iter().enumerate() {
            if tick.answered.is_some() || connection.sent.contains(&number) {
                continue;
            }
            connection.sent.push(number);
            let record = Publish { request: connection.sent.len() as u32, ..Publish::default() };
            let (fields, id) = (HeaderFields::default(), tick.id.as_bytes());
            frame::encode_publish_with(&mut connection.output, fields, record, &tick.topic, id, id);
        }
    }

    /// Passes bytes to the server.
    fn transmit(&mut self, at: usize, bytes: usize) {
        let Connection { shard, slot, output, .. } = &mut self.connections[at];
        let bytes: Vec<u8> = output.drain(..bytes.min(output.len())).collect();
        self.shards[*shard].handle_bytes(SlotId(*slot), &bytes, self.now);
    }

    /// A connection breaks. What is on its way is lost.
    fn cut(&mut self) {
        let at = self.rng.usize(0..self.connections.len());
        let Connection { shard, slot, output, input, .. } = self.connections.swap_remove(at);
        self.reached.cuts_in_a_frame += u64::from(!output.is_empty() && output.get(4..6) != Some(b"tc"));
        self.reached.answers_lost += u64::from(!input.is_empty());
        self.shards[shard].handle_error(SlotId(slot), 104, self.now);
    }

    fn turn(&mut self, shard: usize) {
        let World { connections, received, .. } = self;
        let take = |SlotId(slot), bytes: &[u8]| {
            let mut all = connections.iter_mut();
            match all.find(|connection| (connection.shard, connection.slot) == (shard, slot)) {
                Some(connection) => connection.input.extend_from_slice(bytes),
                None if (shard, slot) == SUBSCRIBER => received.extend_from_slice(bytes),
                None => {}
            }
            false
        };
        let (mesh, now) = (&mut self.meshes[shard], self.now);
        let actions = self.turns.turn(&mut self.shards[shard], Some(mesh), now, usize::MAX, take);
        let is_open = |slot: SlotId| {
            (shard, slot.0) == SUBSCRIBER
                || self.connections.iter().any(|c| (c.shard, c.slot) == (shard, slot.0))
        };
        assert!(
            actions.iter().all(|action| !matches!(action, Action::Close(slot) if is_open(*slot))),
            "the server closes no connection"
        );
    }

    fn settle(&mut self) {
        for _ in 0..8 {
            (0..self.shards.len()).for_each(|shard| self.turn(shard));
        }
    }

    /// A client reads its answers: the same for each publish of one tick.
    fn read(&mut self, at: usize) {
        let Connection { publisher, input, sent, .. } = &mut self.connections[at];
        let mut done = 0;
        while let Ok(Step::Complete(used, frame)) = frame::decode(&input[done..], usize::MAX) {
            done += used;
            match frame.kind {
                Kind::Published => {
                    let Published { epoch, request, is_duplicate } = frame.record().unwrap();
                    let tick = &mut self.ticks[*publisher][sent[request as usize - 1]];
                    let position = (epoch, frame.header.sequence);
                    assert_eq!(*tick.answered.get_or_insert(position), position, "{}", tick.id);
                    assert_eq!(frame.text(), Ok(&*tick.topic));
                    self.reached.duplicates += u64::from(is_duplicate);
                }
                Kind::Welcome => {}
                other => panic!("{other:?}"),
            }
        }
        input.drain(..done);
    }

    /// Asserts that the subscriber has received each tick once, at the position in its publisher's acknowledgement.
    fn check(&mut self) {
        self.settle();
        let (mut names, mut ticks) = (HashMap::new(), HashMap::new());
        let (mut rest, mut sequenced) = (&self.received[..], 0);
        while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
            rest = &rest[used..];
            match frame.kind {
                Kind::Subscribed => {
                    names.insert(frame.header.topic_id, frame.text().unwrap());
                }
                Kind::Tick => {
                    sequenced += 1;
                    let id = std::str::from_utf8(frame.payload()).unwrap();
                    let place = (names[&frame.header.topic_id], frame.header.sequence);
                    assert_eq!(ticks.insert(id, place), None, "{id} is sequenced once");
                }
                _ => {}
            }
        }
        for tick in self.ticks.iter().flatten() {
            let (_, sequence) = tick.answered.unwrap_or_else(|| panic!("{} has an answer", tick.id));
            assert_eq!(ticks.get(&*tick.id), Some(&(&*tick.topic, sequence)));
        }
        assert_eq!(sequenced, self.ticks.iter().flatten().count());
        let counted = self.shards.iter().map(|shard| shard.counters().value(Counter::TicksDuplicate));
        self.reached.duplicates += counted.sum::<u64>();
    }
}
