//! A sink's end of the rings: ticks of all shards in fair turns, and the answer to each.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

use super::{SinkStatus, WATCH};
use crate::{
    LOG_TARGET_SINK,
    health::{Health, Waiting},
    limits::{SINK_TAKEN_BYTES_MAX, SINK_TAKEN_MAX},
};
use tickcast_common::clock;
use tickcast_core::{
    mesh::{
        SinkLane, SinkWake,
        ring::{Doorbell, FrameConsumer, FrameProducer, Stage, frame_ring},
    },
    message_id::DIGEST_BYTES,
    metrics::counters::Counter,
    routes::Outcome,
    topic_key,
};
use tickcast_proto::{
    frame::{self, Frame, HeaderFields, Kind},
    records::{Routed, Settled},
};

/// A sink's ends of the rings to one shard.
#[derive(Debug)]
struct Lane {
    ticks: FrameConsumer,
    answers: FrameProducer,
    /// Answers that wait for room in the ring. Bound: one for each tick that the rings and [`SINK_TAKEN_MAX`] let the sink have.
    stage: Stage,
    bell: Arc<Doorbell>,
}

/// A sink's ends of the rings to all shards.
#[derive(Debug)]
pub struct SinkLanes {
    lanes: Vec<Lane>,
    wake: Arc<Notify>,
}

/// Both ends of the rings between a sink and the shards.
#[derive(Debug)]
pub struct SinkRings {
    /// The sink's ends.
    pub lanes: SinkLanes,
    /// Each shard's ends, in order.
    pub shards: Vec<SinkLane>,
}

impl SinkRings {
    /// Creates the rings to the shards that `bells` wake, of `ring_bytes` each.
    pub fn new(bells: &[Arc<Doorbell>], ring_bytes: usize) -> SinkRings {
        let wake = Arc::new(Notify::new());
        let (lanes, shards) = bells
            .iter()
            .map(|bell| {
                let (ticks_out, ticks) = frame_ring(ring_bytes);
                let (answers, answers_in) = frame_ring(ring_bytes);
                let notify = wake.clone();
                // While the thread is awake, this only stores a permit.
                let wake = SinkWake(Box::new(move || notify.notify_one()));
                let lane = Lane { ticks, answers, stage: Stage::default(), bell: bell.clone() };
                (lane, SinkLane { ticks_out, answers_in, wake })
            })
            .unzip();
        SinkRings { lanes: SinkLanes { lanes, wake }, shards }
    }
}

/// Identifies a tick that a writer has taken and must settle. Never reused for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PublishId {
    place: usize,
    number: u64,
}

/// A tick for the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Its id, to settle it with.
    pub id: PublishId,
    /// The name of its topic.
    pub topic: String,
    /// Its key; 0: none.
    pub key: u64,
    /// The producer's time, nanoseconds since 1970.
    pub producer_time_ns: u64,
    /// What was published.
    pub payload: Vec<u8>,
    /// Its message id, for an engine that recognises message ids. Two ticks with the same one are the same publish.
    pub message_id: Option<[u8; DIGEST_BYTES]>,
}

/// Confirmation that the engine has a tick, and where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confirmed {
    /// Epoch of the position; 0: the engine has no positions.
    pub epoch: u64,
    /// The position; 0: none.
    pub sequence: u64,
    /// The engine had a tick with this message id before; the position is that one's.
    pub is_duplicate: bool,
}

/// A tick that a writer has taken.
#[derive(Debug)]
struct Taken {
    number: u64,
    lane: usize,
    ticket: u64,
    /// The topic's key.
    key: String,
    bytes: usize,
}

/// Where a sink's writer takes ticks and returns their answers.
pub struct Outlet {
    lanes: Vec<Lane>,
    wake: Arc<Notify>,
    status: SinkStatus,
    /// Half of the time to a tick's deadline: ticks not passed on by then are refused.
    pass_on_ns: u64,
    /// The lane that is served first.
    first: usize,
    /// By place; free places are listed in `free`.
    taken: Vec<Option<Taken>>,
    free: Vec<usize>,
    /// Ticks taken so far.
    taken_total: u64,
    taken_bytes: usize,
    is_away: bool,
}

impl Outlet {
    /// Creates the outlet of a sink whose ticks are answered within `ack_timeout_ns`.
    pub fn new(lanes: SinkLanes, status: SinkStatus, ack_timeout_ns: u64) -> Outlet {
        let SinkLanes { lanes, wake } = lanes;
        Outlet {
            lanes,
            wake,
            status,
            pass_on_ns: ack_timeout_ns / 2,
            first: 0,
            taken: Vec::new(),
            free: Vec::new(),
            taken_total: 0,
            taken_bytes: 0,
            is_away: true,
        }
    }

    /// The sink's name.
    pub fn name(&self) -> &str {
        self.status.name()
    }

    /// Time from a publish to its answer.
    pub fn ack_timeout(&self) -> Duration {
        Duration::from_nanos(self.pass_on_ns.saturating_mul(2))
    }

    /// Number of ticks that are taken but not settled.
    pub fn taken_len(&self) -> usize {
        self.taken.len() - self.free.len()
    }

    /// Takes the next tick, if one waits and fewer than [`SINK_TAKEN_MAX`] are taken but not settled. Ticks of one session come
    /// in the order in which it published them. Refuses those that have waited too long.
    pub fn take(&mut self) -> Option<Publish> {
        let now_ns = clock::monotonic_ns();
        if self.is_full() {
            self.refuse_late(Outcome::Full);
        }
        while !self.is_full() {
            let (lane, routed) = self.next_frame(|_| true)?;
            if routed.is_late(now_ns, self.pass_on_ns) {
                self.refuse(lane, &routed, Outcome::Full);
                continue;
            }
            self.taken_total += 1;
            let number = self.taken_total;
            let topic = topic_key::name(&routed.key).to_owned();
            let bytes = routed.payload.len() + routed.key.len();
            let taken = Taken { number, lane, ticket: routed.ticket, key: routed.key, bytes };
            self.taken_bytes += taken.bytes;
            let place = self.free.pop().unwrap_or_else(|| {
                self.taken.push(None);
                self.taken.len() - 1
            });
            self.taken[place] = Some(taken);
            self.note_waiting();
            return Some(Publish {
                id: PublishId { place, number },
                topic,
                key: routed.record.key,
                producer_time_ns: routed.record.producer_time_ns,
                payload: routed.payload,
                message_id: routed.message_id,
            });
        }
        None
    }

    fn is_full(&self) -> bool {
        self.taken_len() >= SINK_TAKEN_MAX || self.taken_bytes >= SINK_TAKEN_BYTES_MAX
    }

    /// Waits until a tick may have come, or for [`WATCH`].
    pub async fn ready(&self) {
        let _ = tokio::time::timeout(WATCH, self.wake.notified()).await;
    }

    /// Answers that the engine has a tick.
    pub fn confirm(&mut self, id: PublishId, confirmed: Confirmed) {
        self.settle(id, Outcome::Confirmed, confirmed);
    }

    /// Answers that a tick is not published, or not confirmed.
    pub fn fail(&mut self, id: PublishId, outcome: Outcome) {
        self.settle(id, outcome, Confirmed::default());
    }

    /// Like [`Outlet::fail`], with the engine's reason in the log (at most ten such lines per second).
    pub fn fail_because(&mut self, id: PublishId, outcome: Outcome, why: &dyn std::fmt::Display) {
        ::log::warn!(target: LOG_TARGET_SINK, "sink {}: a tick is not published: {why}", self.name());
        self.fail(id, outcome);
    }

    /// Pushes the answers into the rings. Never blocks: what does not fit is pushed when the shard has made room.
    pub fn flush(&mut self) {
        for lane in &mut self.lanes {
            if !lane.stage.waiting().is_empty() && lane.answers.push(&mut lane.stage) {
                lane.bell.ring();
            }
        }
    }

    /// Notes that the engine answers.
    pub(super) fn set_connected(&mut self) {
        if std::mem::take(&mut self.is_away) {
            ::log::info!("sink {}: connected", self.name());
        }
        self.status.status().counters().add(Counter::SinkConnections, 1);
        self.status.status().set_health(Health::Running);
    }

    /// Notes that the connection has ended, or that there is none: ticks already taken are unconfirmed.
    pub(super) fn set_away(&mut self, why: &str) {
        ::log::warn!(target: LOG_TARGET_SINK, "sink {}: {why}; trying again", self.name());
        self.is_away = true;
        for place in 0..self.taken.len() {
            if let Some(number) = self.taken[place].as_ref().map(|taken| taken.number) {
                self.fail(PublishId { place, number }, Outcome::Unconfirmed);
            }
        }
        self.flush();
        self.status.status().set_health(Health::Waiting(Waiting::Engine(why.into())));
    }

    /// Refuses ticks that have waited too long and cannot be taken.
    pub(super) fn refuse_late(&mut self, outcome: Outcome) {
        let (now_ns, pass_on_ns) = (clock::monotonic_ns(), self.pass_on_ns);
        while let Some((lane, routed)) = self.next_frame(|record| is_late(record, now_ns, pass_on_ns)) {
            self.refuse(lane, &routed, outcome);
        }
    }

    /// The next `wanted` tick of any shard, with its lane. Checks only the first tick of each shard.
    fn next_frame(&mut self, wanted: impl Fn(&Routed) -> bool) -> Option<(usize, ReceivedTick)> {
        let lanes = self.lanes.len();
        for at in (0..lanes).map(|at| (self.first + at) % lanes) {
            let lane = &mut self.lanes[at];
            let mut received = None;
            // A limit of one byte yields the first frame, whole.
            lane.ticks.drain(1, |frame| {
                received = ReceivedTick::read(frame, &wanted);
                received.is_some()
            });
            if let Some(received) = received {
                if lane.ticks.producer_waits() {
                    lane.bell.ring();
                }
                self.first = (at + 1) % lanes;
                return Some((at, received));
            }
        }
        None
    }

    fn refuse(&mut self, lane: usize, routed: &ReceivedTick, outcome: Outcome) {
        self.status.status().counters().add(Counter::SinkTicksRefused, 1);
        self.answer(lane, routed.ticket, &routed.key, outcome, Confirmed::default());
    }

    /// Answers a tick once: later answers find nothing.
    fn settle(&mut self, id: PublishId, outcome: Outcome, confirmed: Confirmed) {
        let is_it = |taken: &mut Taken| taken.number == id.number;
        let Some(taken) = self.taken.get_mut(id.place).and_then(|place| place.take_if(is_it)) else { return };
        self.free.push(id.place);
        self.taken_bytes -= taken.bytes;
        let counter = match outcome {
            Outcome::Confirmed => Counter::SinkTicks,
            Outcome::Unconfirmed => Counter::SinkTicksUnconfirmed,
            _ => Counter::SinkTicksRefused,
        };
        self.status.status().counters().add(counter, 1);
        self.note_waiting();
        self.answer(taken.lane, taken.ticket, &taken.key, outcome, confirmed);
    }

    fn answer(&mut self, lane: usize, ticket: u64, key: &str, outcome: Outcome, confirmed: Confirmed) {
        let Confirmed { epoch, sequence, is_duplicate } = confirmed;
        let fields = HeaderFields { sequence: ticket, ..HeaderFields::default() };
        let record = Settled {
            epoch,
            sequence,
            outcome: outcome as u16,
            is_duplicate: u16::from(is_duplicate),
            reserved: 0,
        };
        frame::encode(self.lanes[lane].stage.tail(), Kind::Settled, fields, &record, &[key.as_bytes()]);
    }

    fn note_waiting(&self) {
        self.status.status().counters().set(Counter::SinkTicksWaiting, self.taken_len() as u64);
    }
}

/// A tick as it comes out of a ring.
struct ReceivedTick {
    ticket: u64,
    record: Routed,
    key: String,
    payload: Vec<u8>,
    message_id: Option<[u8; DIGEST_BYTES]>,
}

fn is_late(record: &Routed, now_ns: u64, pass_on_ns: u64) -> bool {
    now_ns >= record.deadline_ns.saturating_sub(pass_on_ns)
}

impl ReceivedTick {
    fn read(frame: &Frame<'_>, wanted: impl Fn(&Routed) -> bool) -> Option<ReceivedTick> {
        let record = frame.record::<Routed>().ok().filter(|record| wanted(record))?;
        let (key, rest) = frame.payload().split_at_checked(usize::from(record.topic_len))?;
        let (message_id, payload) = rest.split_at_checked(usize::from(record.message_id_len))?;
        Some(ReceivedTick {
            ticket: frame.header.sequence,
            record,
            key: String::from_utf8(key.to_vec()).ok()?,
            payload: payload.to_vec(),
            message_id: message_id.try_into().ok(),
        })
    }

    fn is_late(&self, now_ns: u64, pass_on_ns: u64) -> bool {
        is_late(&self.record, now_ns, pass_on_ns)
    }
}
