//! A sink that follows a script drawn from the seed, its engine's log, and the account of what clients published to it.

use std::collections::{HashMap, HashSet, VecDeque};

use fastrand::Rng;
use tickcast_core::{
    mesh::{
        Mesh, SinkLane, SinkWake,
        ring::{FrameConsumer, FrameProducer, Stage, frame_ring},
    },
    routes::Outcome,
};
use tickcast_proto::{
    ErrorCode,
    frame::{self, HeaderFields, Kind},
    records::{Routed, Settled},
};

/// Epoch of the engine's positions.
pub const LOG_EPOCH: u64 = 1 << 52 | 7;
/// The first request id of publishes to the sink: those to homes are below.
const FIRST_REQUEST: u32 = 1 << 20;

/// The publishes of one client to the sink's topic `r.NAME`.
#[derive(Debug, Default)]
pub struct RoutedPublishes {
    unanswered: HashMap<u32, String>,
    published: u32,
    /// Position and payload of each that was acknowledged.
    pub confirmed: Vec<(u64, String)>,
    /// Payloads of those that were not published, by what the client was told.
    pub refused: Vec<String>,
    pub unconfirmed: u64,
}

impl RoutedPublishes {
    /// Whether a request id is that of a publish to the sink.
    pub fn is_routed(request: u32) -> bool {
        request >= FIRST_REQUEST
    }

    /// Begins a publish. Returns its request id and payload.
    pub fn begin(&mut self, client: u32) -> (u32, String) {
        let request = FIRST_REQUEST + self.published;
        self.published += 1;
        let payload = format!("\"r.{client} {request}\"");
        self.unanswered.insert(request, payload.clone());
        (request, payload)
    }

    pub fn handle_published(&mut self, request: u32, epoch: u64, sequence: u64) {
        let payload = self.unanswered.remove(&request).expect("one answer, to a request that had none");
        assert_eq!(epoch, LOG_EPOCH);
        self.confirmed.push((sequence, payload));
    }

    pub fn handle_error(&mut self, request: u32, code: u64) {
        let payload = self.unanswered.remove(&request).expect("one answer, to a request that had none");
        match code {
            _ if code == ErrorCode::EngineUnavailable as u64 => self.refused.push(payload),
            _ if code == ErrorCode::Unconfirmed as u64 => self.unconfirmed += 1,
            _ => panic!("{payload}: {code}"),
        }
    }

    /// Asserts that every publish has been answered.
    pub fn check_answered(&self) {
        assert!(self.unanswered.is_empty(), "without an answer: {:?}", self.unanswered);
    }
}

/// A tick that the sink has taken.
struct Taken {
    ticket: u64,
    key: String,
    payload: String,
}

struct Lane {
    ticks: FrameConsumer,
    answers: FrameProducer,
    stage: Stage,
    taken: VecDeque<Taken>,
}

/// The sink: it acknowledges, refuses, delays, loses answers and goes away.
pub struct Sink {
    lanes: Vec<Lane>,
    /// What the engine has. The position of a payload is its index and one.
    pub log: Vec<String>,
}

impl Sink {
    /// Creates the sink with its rings to the shards.
    pub fn new(meshes: &mut [Mesh], ring_bytes: usize) -> Sink {
        let lanes = meshes.iter_mut().map(|mesh| {
            let ((ticks_out, ticks), (answers, answers_in)) =
                (frame_ring(ring_bytes), frame_ring(ring_bytes));
            mesh.add_sink(SinkLane { ticks_out, answers_in, wake: SinkWake(Box::new(|| {})) });
            Lane { ticks, answers, stage: Stage::default(), taken: VecDeque::new() }
        });
        Sink { lanes: lanes.collect(), log: Vec::new() }
    }

    /// Does something of the script.
    pub fn step(&mut self, rng: &mut Rng) {
        let at = rng.usize(..self.lanes.len());
        match rng.u8(..12) {
            // Nothing: the engine is slow.
            0..3 => {}
            // The connection ends: the engine has some of what it was given, and what it has is not confirmed.
            3 => {
                let lane = &mut self.lanes[at];
                for taken in std::mem::take(&mut lane.taken) {
                    if rng.bool() {
                        self.log.push(taken.payload.clone());
                    }
                    lane.answer(&taken, Outcome::Unconfirmed, 0);
                }
            }
            // It takes some, and never answers one of them.
            4 => {
                self.take(at, rng.usize(1..20));
                if let Some(taken) = self.lanes[at].taken.pop_front()
                    && rng.bool()
                {
                    self.log.push(taken.payload);
                }
            }
            5..8 => self.take(at, rng.usize(1..20)),
            // It answers some, in any order.
            _ => {
                for _ in 0..rng.usize(1..20) {
                    let lane = &mut self.lanes[at];
                    if lane.taken.is_empty() {
                        break;
                    }
                    let which = rng.usize(..lane.taken.len());
                    let Some(taken) = lane.taken.remove(which) else { break };
                    match rng.u8(..8) {
                        0 => lane.answer(&taken, Outcome::Refused, 0),
                        1 => lane.answer(&taken, Outcome::Away, 0),
                        _ => {
                            self.log.push(taken.payload.clone());
                            lane.answer(&taken, Outcome::Confirmed, self.log.len() as u64);
                        }
                    }
                }
            }
        }
        self.flush();
    }

    fn take(&mut self, at: usize, most: usize) {
        let lane = &mut self.lanes[at];
        for _ in 0..most {
            let taken = &mut lane.taken;
            lane.ticks.drain(1, |frame| {
                let record: Routed = frame.record().unwrap();
                let (key, payload) = frame.payload().split_at(usize::from(record.topic_len));
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                let (key, payload) = (text(key), text(payload));
                assert!(key.starts_with("r."), "{key}");
                taken.push_back(Taken { ticket: frame.header.sequence, key, payload });
                true
            });
        }
    }

    /// Pushes the answers into the rings. Returns whether all are there.
    pub fn flush(&mut self) -> bool {
        self.lanes.iter_mut().all(|lane| {
            lane.answers.push(&mut lane.stage);
            lane.stage.waiting().is_empty()
        })
    }

    /// Checks what clients were told: the engine has what was acknowledged, where the acknowledgement says, and not what was refused.
    pub fn check<'a>(&self, all: impl Iterator<Item = &'a RoutedPublishes>) {
        let stored: HashSet<&String> = self.log.iter().collect();
        for publishes in all {
            for (position, payload) in &publishes.confirmed {
                assert_eq!(self.log.get(*position as usize - 1), Some(payload), "at {position}");
            }
            for payload in &publishes.refused {
                assert!(!stored.contains(payload), "{payload} was refused, but the engine has it");
            }
        }
    }
}

impl Lane {
    fn answer(&mut self, taken: &Taken, outcome: Outcome, sequence: u64) {
        let fields = HeaderFields { sequence: taken.ticket, ..HeaderFields::default() };
        let epoch = if sequence == 0 { 0 } else { LOG_EPOCH };
        let record = Settled { epoch, sequence, outcome: outcome as u16, ..Settled::default() };
        frame::encode(self.stage.tail(), Kind::Settled, fields, &record, &[taken.key.as_bytes()]);
    }
}
