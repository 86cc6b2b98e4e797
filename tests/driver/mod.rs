//! Drives shards on simulated time: bytes in, bytes out. It knows no socket, no thread and no clock.
//!
//! A turn takes the steps of the real executor (`io::executor`), in its order: requests from other shards in, the shard's own
//! turn, SENDs, actions, requests to other shards out.
#![allow(dead_code, reason = "each test program uses a part")]

use std::{collections::BTreeSet, sync::Arc};

use tickcast_core::{
    config::Limits,
    ids::SlotId,
    mesh::{Mesh, mesh, ring::Doorbell},
    metrics::counters::Counters,
    now::Now,
    shard::{Action, ListenerKind, Shard},
};
use tickcast_proto::{
    frame::{self, HeaderFields, Kind},
    ids::ShardId,
    records::{Hello, WireRecord},
};

/// The life of the logs of every driven shard.
pub const EPOCH: u64 = 9;
/// When simulated time begins.
pub const START: Now = Now { monotonic_ns: 1 << 41, realtime_ns: 1 << 60 };

/// Shards, the mesh between them and their doorbells, which wake nobody.
pub fn cluster(
    count: u16,
    limits: &Limits,
    ring_bytes: usize,
) -> (Vec<Shard>, Vec<Mesh>, Vec<Arc<Doorbell>>) {
    let bells: Vec<_> = (0..count).map(|_| Arc::new(Doorbell::new(|| {}))).collect();
    let shard = |id| Shard::new(ShardId(id), count, EPOCH, limits.clone(), Arc::new(Counters::default()));
    ((0..count).map(shard).collect(), mesh(&bells, ring_bytes), bells)
}

/// One turn of a shard, with at most `sends_max` SENDs. `take` gets the slot and the bytes of each and returns whether a part of
/// it stays parked, for want of room in the socket. Returns what the transport is to do.
pub fn turn(
    shard: &mut Shard,
    mut mesh: Option<&mut Mesh>,
    now: Now,
    sends_max: usize,
    take: impl FnMut(u32, &[u8]) -> bool,
) -> Vec<Action> {
    if let Some(mesh) = &mut mesh {
        mesh.take_in(shard, now);
    }
    shard.turn(now);
    flush(shard, now, sends_max, take);
    let actions = std::iter::from_fn(|| shard.poll_action()).collect();
    if let Some(mesh) = mesh {
        mesh.push_out(shard);
    }
    shard.end_turn();
    actions
}

/// The SENDs of a turn: see [`turn`].
pub fn flush(shard: &mut Shard, now: Now, sends_max: usize, mut take: impl FnMut(u32, &[u8]) -> bool) {
    let (mut sends, mut before) = (0, usize::MAX);
    let mut gather = Vec::new();
    while sends != before {
        before = sends;
        shard.prepare_sends(now);
        while sends < sends_max
            && let Some(send) = shard.poll_send(&mut gather, now)
        {
            let bytes = shard.send_bytes(&send, &gather);
            let (len, parked) = (bytes.len(), take(send.slot.0, bytes));
            shard.handle_sent(send.slot, len, parked, now);
            gather.clear();
            sends += 1;
        }
    }
}

/// A native frame.
pub fn frame<R: WireRecord>(kind: Kind, record: &R, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, kind, HeaderFields::default(), record, &[payload]);
    bytes
}

/// A native client's opening.
pub fn hello() -> Vec<u8> {
    frame(Kind::Hello, &Hello::default(), b"x")
}

/// A WebSocket client's opening.
pub fn upgrade_request(path: &str, subprotocol: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
    )
    .into_bytes()
}

/// One shard with the sockets of its sessions: each takes everything, or is full.
pub struct Driver {
    pub shard: Shard,
    pub now: Now,
    /// Sockets that are full: what is sent to them stays parked until [`Driver::open`].
    pub full: BTreeSet<u32>,
    /// What was sent and has not been taken: slot and bytes of each SEND, in order.
    pub sent: Vec<(u32, Vec<u8>)>,
    /// What the transport was to do and nobody has taken.
    pub actions: Vec<Action>,
    parked: BTreeSet<u32>,
}

impl Driver {
    pub fn new(limits: Limits) -> Driver {
        Driver {
            shard: Shard::new(ShardId(0), 1, EPOCH, limits, Arc::new(Counters::default())),
            now: START,
            full: BTreeSet::new(),
            sent: Vec::new(),
            actions: Vec::new(),
            parked: BTreeSet::new(),
        }
    }

    /// A connection that sends its opening, and a turn.
    pub fn accept(&mut self, slot: u32, listener: ListenerKind, opening: &[u8]) {
        self.shard.handle_accept(SlotId(slot), listener, self.now);
        self.shard.handle_bytes(SlotId(slot), opening, self.now);
        self.turn();
    }

    pub fn receive(&mut self, slot: u32, bytes: &[u8]) {
        self.shard.handle_bytes(SlotId(slot), bytes, self.now);
    }

    pub fn turn(&mut self) {
        let (full, parked, sent) = (&self.full, &mut self.parked, &mut self.sent);
        let actions = turn(&mut self.shard, None, self.now, usize::MAX, |slot, bytes| {
            sent.push((slot, bytes.to_vec()));
            full.contains(&slot) && {
                parked.insert(slot);
                true
            }
        });
        self.actions.extend(actions);
    }

    /// Lets time pass without a turn, as if the server's process were stopped.
    pub fn jump(&mut self, duration_ns: u64) {
        self.now.monotonic_ns += duration_ns;
    }

    /// Lets time pass: a turn whenever the shard has asked for one, and one at the end. Returns how many there were before the
    /// end.
    pub fn pass(&mut self, duration_ns: u64) -> u32 {
        let end_ns = self.now.monotonic_ns + duration_ns;
        let mut wakes = 0;
        while let Some(when_ns) = self.shard.next_deadline().filter(|&when_ns| when_ns <= end_ns) {
            self.now.monotonic_ns = self.now.monotonic_ns.max(when_ns);
            self.turn();
            wakes += 1;
        }
        self.now.monotonic_ns = end_ns;
        self.turn();
        wakes
    }

    /// All sockets have room again: they take what was parked, and a turn follows.
    pub fn open(&mut self) {
        self.full.clear();
        for slot in std::mem::take(&mut self.parked) {
            self.shard.handle_writable(SlotId(slot), self.now);
        }
        self.turn();
    }

    /// Takes what was sent to one socket; what was sent to others is forgotten.
    pub fn take_sent(&mut self, slot: u32) -> Vec<u8> {
        let sent = std::mem::take(&mut self.sent);
        sent.into_iter().filter(|(of, _)| *of == slot).flat_map(|(_, bytes)| bytes).collect()
    }
}
