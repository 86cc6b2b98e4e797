//! One shard and its sessions on simulated sockets that accept everything.
//!
//! A tick takes its whole path through the state machines, without a kernel.

use std::sync::Arc;

use tickcast_client::{ConnectOptions, Connection, Event};
use tickcast_core::{
    config::Limits,
    ids::SlotId,
    metrics::counters::Counters,
    now::Now,
    shard::{ListenerKind, ORIGIN_SOURCE, Shard},
    testing::{EPOCH, START, TurnLoop},
};
use tickcast_proto::{
    Step, WireFormat,
    frame::{self, FLAG_PAYLOAD_JSON},
    ids::ShardId,
    records::Publish,
};

/// Simulated time between two turns: 5,000 ticks/s with one tick per turn.
const TURN_NS: u64 = 200_000;
/// Most turns until a session must be acknowledged: the home opens up to 128 topics of a pattern to its shard in one.
const HANDSHAKE_TURNS_MAX: usize = 1_000;

/// A payload like the simulator's: JSON, 100 bytes.
pub fn payload() -> Vec<u8> {
    format!("{:.<98}\"}}", "{\"at\":1793322000130000000,\"n\":1403,\"pad\":\"").into_bytes()
}

/// Totals of the SENDs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    pub sends: u64,
    pub bytes: u64,
}

/// A shard that is the home of all topics, with its sessions.
pub struct Load {
    pub shard: Shard,
    pub now: Now,
    turns: TurnLoop,
    /// One PUBLISH per topic, as a source sends it.
    publishes: Vec<Vec<u8>>,
    next: usize,
}

impl Load {
    /// Connects `sessions` that subscribe to `>` and announces `topics`.
    ///
    /// [`Load::publish`] publishes to the topics in turn.
    ///
    /// # Panics
    /// If a session is not acknowledged.
    pub fn new(encoding: WireFormat, sessions: u32, topics: usize) -> Load {
        // The simulated clients answer no pings.
        let limits = Limits { ping_interval_ns: u64::MAX, ..Limits::default() };
        let publishes = (0..topics).map(|topic| {
            let mut bytes = Vec::new();
            let (name, record) = (format!("sim.{topic}"), Publish::default());
            frame::encode_publish(&mut bytes, ORIGIN_SOURCE, FLAG_PAYLOAD_JSON, 0, record, &name, &payload());
            bytes
        });
        let mut load = Load {
            shard: Shard::new(ShardId(0), 1, EPOCH, limits, Arc::new(Counters::default())),
            now: START,
            turns: TurnLoop::default(),
            publishes: publishes.collect(),
            next: 0,
        };
        for slot in 0..sessions {
            load.connect(slot, encoding, ">");
        }
        for _ in 0..topics {
            load.publish();
            load.turn();
        }
        load
    }

    /// Connects a session, and subscribes it to a pattern.
    ///
    /// # Panics
    /// If it is not acknowledged.
    pub fn connect(&mut self, slot: u32, encoding: WireFormat, pattern: &str) -> Connection {
        let listener =
            if encoding == WireFormat::TCP_NATIVE { ListenerKind::Native } else { ListenerKind::Http };
        self.shard.handle_accept(SlotId(slot), listener, self.now);
        let mut client = Connection::new(&ConnectOptions::new(encoding));
        let subscribed = client.subscribe(pattern);
        assert!(subscribed.is_ok(), "{subscribed:?}");
        for _ in 0..HANDSHAKE_TURNS_MAX {
            let output = client.poll_transmit().to_vec();
            client.handle_transmitted(output.len());
            self.shard.handle_bytes(SlotId(slot), &output, self.now);
            self.turn_into(|to, bytes| {
                if to == SlotId(slot) {
                    client.handle_bytes(bytes);
                }
            });
            while let Ok(Some(event)) = client.poll_event() {
                if let Event::Subscribed { .. } = event {
                    return client;
                }
            }
        }
        panic!("session {slot} was not acknowledged");
    }

    /// Publishes one tick.
    ///
    /// Its home sequences and stores it, appends it to the egress log and queues it to the sessions.
    pub fn publish(&mut self) {
        if let Ok(Step::Complete(_, frame)) = frame::decode(&self.publishes[self.next], usize::MAX) {
            self.shard.handle_request(None, &frame, self.now);
        }
        self.next = (self.next + 1) % self.publishes.len();
    }

    /// Completes the turn with a SEND for every ready session, each accepted in full.
    pub fn turn(&mut self) -> Sent {
        self.turn_into(|_, _| {})
    }

    fn turn_into(&mut self, mut take: impl FnMut(SlotId, &[u8])) -> Sent {
        let mut sent = Sent::default();
        self.turns.turn(&mut self.shard, None, self.now, usize::MAX, |slot, bytes| {
            take(slot, bytes);
            sent.sends += 1;
            sent.bytes += bytes.len() as u64;
            false
        });
        self.now.monotonic_ns += TURN_NS;
        self.now.realtime_ns += TURN_NS;
        sent
    }
}
