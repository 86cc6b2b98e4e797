//! The driver loop shared by tests, the simulation and the benchmarks: shards on simulated time, bytes in, bytes out. It knows no
//! socket, thread or clock.
//!
//! Only built with the feature `testing`.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    config::Limits,
    ids::SlotId,
    limits::{GATHER_BYTES, SEND_BYTES_MAX, SENDS_PER_SUBMIT},
    mesh::{Mesh, mesh, ring::Doorbell},
    metrics::counters::Counters,
    now::{LiveClock, Now},
    shard::{Action, ListenerKind, Send, Shard},
};
use tickcast_proto::{
    features::Features,
    frame::{self, HeaderFields, HelloParts, Kind},
    ids::ShardId,
    records::WireRecord,
};

/// Epoch of every simulated server.
pub const EPOCH: u64 = 9;
/// When simulated time begins.
pub const START: Now = Now { monotonic_ns: 1 << 41, realtime_ns: 1 << 60 };

/// Creates `count` shards, the mesh between them, and doorbells that wake nobody.
pub fn cluster(
    count: u16,
    limits: &Limits,
    ring_bytes: usize,
) -> (Vec<Shard>, Vec<Mesh>, Vec<Arc<Doorbell>>) {
    let bells: Vec<_> = (0..count).map(|_| Arc::new(Doorbell::new(|| {}))).collect();
    let shard = |id| shard(ShardId(id), count, limits.clone());
    ((0..count).map(shard).collect(), mesh(&bells, ring_bytes), bells)
}

fn shard(id: ShardId, count: u16, limits: Limits) -> Shard {
    let mut shard = Shard::new(id, count, EPOCH, limits, Arc::new(Counters::default()));
    shard.set_live_clock(LiveClock::starting(START));
    shard
}

/// Runs the turns of a shard in the same order as the server's driver: rings in, the shard's turn, SENDs, actions, rings
/// out.
#[derive(Debug, Default)]
pub struct TurnLoop {
    /// Reused from turn to turn, as in the server.
    gather: Vec<u8>,
    /// Whether the shard holds ticks: only sessions with a reply are served.
    pub is_holding: bool,
}

impl TurnLoop {
    /// Runs one turn with at most `sends_max` SENDs. Returns the actions for the transport.
    ///
    /// `take` gets the slot and the bytes of each SEND. It returns whether the socket lacked room, so that part of the
    /// SEND stays parked.
    pub fn turn(
        &mut self,
        shard: &mut Shard,
        mut mesh: Option<&mut Mesh>,
        now: Now,
        sends_max: usize,
        take: impl FnMut(SlotId, &[u8]) -> bool,
    ) -> Vec<Action> {
        if let Some(mesh) = &mut mesh {
            mesh.take_in(shard, now);
        }
        shard.turn(now);
        self.flush(shard, now, sends_max, take);
        let actions = std::iter::from_fn(|| shard.poll_action()).collect();
        if let Some(mesh) = mesh {
            mesh.push_out(shard);
        }
        shard.end_turn();
        actions
    }

    /// Sends for every ready session, in batches of the server's size: see [`TurnLoop::turn`].
    pub fn flush(
        &mut self,
        shard: &mut Shard,
        now: Now,
        sends_max: usize,
        mut take: impl FnMut(SlotId, &[u8]) -> bool,
    ) {
        let mut sends: [Option<Send>; SENDS_PER_SUBMIT] = [None; SENDS_PER_SUBMIT];
        let mut outcomes = [(0, false); SENDS_PER_SUBMIT];
        let mut left = sends_max;
        let poll = if self.is_holding { Shard::poll_urgent_send } else { Shard::poll_send };
        loop {
            self.gather.clear();
            shard.prepare_sends(now);
            let mut len = 0;
            while len < SENDS_PER_SUBMIT.min(left)
                && self.gather.len() + SEND_BYTES_MAX <= GATHER_BYTES
                && let Some(send) = poll(shard, &mut self.gather, now)
            {
                sends[len] = Some(send);
                len += 1;
            }
            if len == 0 {
                break;
            }
            left -= len;
            // The bytes are valid only until the first `handle_sent`.
            for (send, outcome) in sends.iter().flatten().zip(&mut outcomes).take(len) {
                let bytes = shard.send_bytes(send, &self.gather);
                *outcome = (bytes.len(), take(send.slot, bytes));
            }
            for (send, (bytes, parked)) in sends.iter().flatten().zip(outcomes).take(len) {
                shard.handle_sent(send.slot, bytes, parked, now);
            }
        }
    }
}

/// Encodes a native frame.
pub fn frame<R: WireRecord>(kind: Kind, record: &R, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, kind, HeaderFields::default(), record, &[payload]);
    bytes
}

/// Returns a native client's HELLO.
pub fn hello() -> Vec<u8> {
    hello_as("")
}

/// Returns the HELLO of a client with this identity; empty: none.
pub fn hello_as(client: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let hello = HelloParts { request: 1, client, name: "test", features: Features::NONE };
    frame::encode_hello(&mut bytes, &hello);
    bytes
}

/// Returns a WebSocket client's upgrade request.
pub fn upgrade_request(path: &str, subprotocol: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
    )
    .into_bytes()
}

/// A client's WebSocket frame. `first`: FIN, reserved bits and opcode. The mask is zero.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..=125 => frame.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

/// The opcodes and payloads of a server's WebSocket frames, which must be complete.
pub fn messages(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut messages = Vec::new();
    while let [first, second, ..] = *bytes {
        let (start, len) = match second {
            126 => (4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
            127 => (10, bytes[2..10].iter().fold(0, |len, byte| len << 8 | usize::from(*byte))),
            len => (2, usize::from(len)),
        };
        messages.push((first & 0x0f, bytes[start..start + len].to_vec()));
        bytes = &bytes[start + len..];
    }
    assert!(bytes.is_empty(), "whole frames");
    messages
}

/// One shard with simulated sockets, each of which takes everything or is full.
pub struct Driver {
    /// The shard.
    pub shard: Shard,
    /// Simulated time.
    pub now: Now,
    /// Slots of full sockets: SENDs to them stay parked until [`Driver::open`].
    pub full: BTreeSet<u32>,
    /// Maximum SENDs in a turn.
    pub sends_max: usize,
    /// Slot and bytes of each SEND since the last [`Driver::take_sent`], in order.
    pub sent: Vec<(u32, Vec<u8>)>,
    /// Actions of all turns, until a test takes them.
    pub actions: Vec<Action>,
    parked: BTreeSet<u32>,
    turns: TurnLoop,
}

impl Driver {
    /// Creates a shard without sessions.
    pub fn new(limits: Limits) -> Driver {
        Driver {
            shard: shard(ShardId(0), 1, limits),
            now: START,
            full: BTreeSet::new(),
            sends_max: usize::MAX,
            sent: Vec::new(),
            actions: Vec::new(),
            parked: BTreeSet::new(),
            turns: TurnLoop::default(),
        }
    }

    /// Accepts a connection that has sent `opening`, then runs a turn.
    pub fn accept(&mut self, slot: u32, listener: ListenerKind, opening: &[u8]) {
        self.shard.handle_accept(SlotId(slot), listener, self.now);
        self.shard.handle_bytes(SlotId(slot), opening, self.now);
        self.turn();
    }

    /// Passes bytes from a client to the shard.
    pub fn receive(&mut self, slot: u32, bytes: &[u8]) {
        self.shard.handle_bytes(SlotId(slot), bytes, self.now);
    }

    /// Runs one turn.
    pub fn turn(&mut self) {
        let (full, parked, sent) = (&self.full, &mut self.parked, &mut self.sent);
        let take = |SlotId(slot), bytes: &[u8]| {
            sent.push((slot, bytes.to_vec()));
            full.contains(&slot) && {
                parked.insert(slot);
                true
            }
        };
        let actions = self.turns.turn(&mut self.shard, None, self.now, self.sends_max, take);
        self.actions.extend(actions);
    }

    /// Advances time without a turn, as if the server's process were stopped.
    pub fn jump(&mut self, duration_ns: u64) {
        self.now.monotonic_ns += duration_ns;
    }

    /// Advances time with a turn at each of the shard's deadlines, and one at the end. Returns the number of deadlines.
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

    /// Gives all sockets room again: they take their parked SENDs, then a turn runs.
    pub fn open(&mut self) {
        self.full.clear();
        for slot in std::mem::take(&mut self.parked) {
            self.shard.handle_writable(SlotId(slot), self.now);
        }
        self.turn();
    }

    /// Takes the bytes sent to one socket, and discards those sent to others.
    pub fn take_sent(&mut self, slot: u32) -> Vec<u8> {
        let sent = std::mem::take(&mut self.sent);
        // Not byte by byte: some tests take gigabytes.
        sent.into_iter().filter(|(to, _)| *to == slot).map(|(_, bytes)| bytes).collect::<Vec<_>>().concat()
    }
}
