//! Tests of the outlet, with shards that the test plays.

use std::{convert::Infallible, sync::Arc};

use super::{Confirmed, Outlet, Sink as _, SinkRings, SinkStatus, Writer};
use crate::{
    StopFlag,
    engine::EngineError,
    health::Health,
    limits::SINK_TAKEN_MAX,
    waits::{eventually, joined},
};
use tickcast_common::clock;
use tickcast_core::{
    mesh::{
        SinkLane,
        ring::{Doorbell, Stage},
    },
    metrics::counters::Counter,
    routes::Outcome,
};
use tickcast_proto::{
    frame::{self, HeaderFields, Kind},
    records::{Routed, Settled},
};

const TIMEOUT_NS: u64 = 60_000_000_000;
const RING_BYTES: usize = 1 << 20;

/// The outlet of a sink, with two shards.
pub(super) struct Sink {
    pub(super) outlet: Outlet,
    shards: Vec<SinkLane>,
    status: SinkStatus,
}

impl Sink {
    pub(super) fn new() -> Sink {
        let bells: Vec<_> = (0..2).map(|_| Arc::new(Doorbell::new(|| {}))).collect();
        let SinkRings { lanes, shards } = SinkRings::new(&bells, RING_BYTES);
        let status = SinkStatus::new("engine", "scripted");
        let outlet = Outlet::new(lanes, status.clone(), TIMEOUT_NS);
        Sink { outlet, shards, status }
    }

    /// Sends a tick from a shard, with its deadline `left_ns` away.
    pub(super) fn send(&mut self, shard: usize, ticket: u64, payload: &str, left_ns: u64) {
        let mut stage = Stage::default();
        let fields = HeaderFields { sequence: ticket, ..HeaderFields::default() };
        let record = Routed {
            deadline_ns: clock::monotonic_ns() + left_ns,
            key: 5,
            producer_time_ns: 7,
            topic_len: 8,
            ..Routed::default()
        };
        frame::encode(stage.tail(), Kind::Routed, fields, &record, &[b"orders.a", payload.as_bytes()]);
        self.shards[shard].ticks_out.push(&mut stage);
        assert!(stage.waiting().is_empty(), "the ring has room");
    }

    /// The answers that a shard has received: ticket, outcome, position.
    pub(super) fn answers(&mut self, shard: usize) -> Vec<(u64, Outcome, u64)> {
        self.outlet.flush();
        let mut answers = Vec::new();
        self.shards[shard].answers_in.drain(usize::MAX, |frame| {
            let record: Settled = frame.record().unwrap();
            assert_eq!(frame.text().unwrap(), "orders.a");
            answers.push((frame.header.sequence, Outcome::from_number(record.outcome), record.sequence));
            true
        });
        answers
    }

    fn count(&self, counter: Counter) -> u64 {
        self.status.status().counters().value(counter)
    }
}

fn at(sequence: u64) -> Confirmed {
    Confirmed { epoch: 1, sequence, is_duplicate: false }
}

#[test]
fn ticks_of_shards_are_taken_in_turns_and_each_is_answered_once_where_it_came_from() {
    let mut sink = Sink::new();
    for ticket in 0..3 {
        sink.send(0, ticket, &format!("a{ticket}"), TIMEOUT_NS);
    }
    sink.send(1, 9, "b", TIMEOUT_NS);
    let taken: Vec<_> = std::iter::from_fn(|| sink.outlet.take()).collect();
    let payloads: Vec<_> =
        taken.iter().map(|tick| String::from_utf8(tick.payload.clone()).unwrap()).collect();
    assert_eq!(payloads, ["a0", "b", "a1", "a2"]);
    assert_eq!((&*taken[0].topic, taken[0].key, taken[0].producer_time_ns), ("orders.a", 5, 7));
    assert_eq!((sink.outlet.taken_len(), sink.count(Counter::SinkTicksWaiting)), (4, 4));
    sink.outlet.confirm(taken[2].id, at(1));
    sink.outlet.confirm(taken[1].id, at(2));
    sink.outlet.fail(taken[0].id, Outcome::NoStream);
    // Later answers to the same ticks are ignored, even when another tick has their places.
    sink.send(0, 3, "a3", TIMEOUT_NS);
    let next = sink.outlet.take().unwrap();
    taken[..3].iter().for_each(|tick| sink.outlet.fail(tick.id, Outcome::Refused));
    assert_eq!(sink.answers(0), [(1, Outcome::Confirmed, 1), (0, Outcome::NoStream, 0)]);
    assert_eq!(sink.answers(1), [(9, Outcome::Confirmed, 2)]);
    sink.outlet.confirm(next.id, at(3));
    assert_eq!(sink.answers(0), [(3, Outcome::Confirmed, 3)]);
    let counted = [Counter::SinkTicks, Counter::SinkTicksRefused, Counter::SinkTicksWaiting];
    assert_eq!(counted.map(|counter| sink.count(counter)), [3, 1, 1]);
}

#[test]
fn what_was_taken_is_unconfirmed_when_the_connection_ends() {
    let mut sink = Sink::new();
    sink.outlet.set_connected();
    assert_eq!(sink.status.status().health(), Health::Running);
    (0..3).for_each(|ticket| sink.send(0, ticket, "x", TIMEOUT_NS));
    let first = sink.outlet.take().unwrap();
    let second = sink.outlet.take().unwrap();
    sink.outlet.confirm(first.id, at(1));
    sink.outlet.set_away("it is gone");
    sink.outlet.confirm(second.id, at(2));
    assert_eq!(sink.answers(0), [(0, Outcome::Confirmed, 1), (1, Outcome::Unconfirmed, 0)]);
    assert!(sink.status.status().health().reason().unwrap().contains("it is gone"));
    // The third waits for the next connection.
    assert_eq!(sink.outlet.taken_len(), 0);
    assert!(sink.outlet.take().is_some());
}

#[test]
fn tick_that_has_waited_for_half_of_its_time_is_refused_and_never_passed_on() {
    let mut sink = Sink::new();
    sink.send(0, 1, "late", TIMEOUT_NS / 2 - 1);
    sink.send(0, 2, "in time", TIMEOUT_NS);
    sink.send(0, 3, "late", 0);
    sink.outlet.refuse_late(Outcome::Away);
    assert_eq!(sink.answers(0), [(1, Outcome::Away, 0)], "the third waits behind the second");
    assert_eq!(sink.outlet.take().unwrap().payload, b"in time");
    assert!(sink.outlet.take().is_none());
    assert_eq!(sink.answers(0), [(3, Outcome::Full, 0)]);
    assert_eq!(sink.count(Counter::SinkTicksRefused), 2);
}

#[test]
fn no_more_is_taken_than_may_wait_for_a_confirmation() {
    let mut sink = Sink::new();
    (0..SINK_TAKEN_MAX as u64 + 1)
        .for_each(|ticket| sink.send((ticket % 2) as usize, ticket, "x", TIMEOUT_NS));
    let taken: Vec<_> = std::iter::from_fn(|| sink.outlet.take()).collect();
    assert_eq!(taken.len(), SINK_TAKEN_MAX);
    // Nothing is passed on late, however long the engine confirms nothing.
    sink.send(1, 9_000, "late", 0);
    assert!(sink.outlet.take().is_none());
    sink.outlet.fail(taken[7].id, Outcome::Refused);
    assert!(sink.outlet.take().is_some() && sink.outlet.take().is_none());
}

/// A writer that panics with the first tick, and confirms every other.
#[derive(Clone, Default)]
struct Panics {
    has_panicked: bool,
}

impl Writer for Panics {
    type Connection = ();

    async fn connect(&mut self, _: std::time::Duration) -> Result<(), EngineError> {
        Ok(())
    }

    async fn write(&mut self, (): (), outlet: &mut Outlet) -> Result<Infallible, EngineError> {
        loop {
            while let Some(publish) = outlet.take() {
                assert!(std::mem::replace(&mut self.has_panicked, true), "a tick that cannot be");
                outlet.confirm(publish.id, at(1));
            }
            outlet.flush();
            outlet.ready().await;
        }
    }
}

#[test]
fn a_panic_of_a_client_is_a_lost_connection() {
    let mut sink = Sink::new();
    (1..3).for_each(|ticket| sink.send(0, ticket, "x", TIMEOUT_NS));
    let Sink { mut outlet, mut shards, .. } = sink;
    let stop = StopFlag::default();
    let of_thread = stop.clone();
    let thread = std::thread::spawn(move || Panics::default().run(&mut outlet, &of_thread).unwrap());
    let mut answers = Vec::new();
    eventually("two answers", || {
        shards[0].answers_in.drain(usize::MAX, |frame| {
            let record: Settled = frame.record().unwrap();
            answers.push((frame.header.sequence, Outcome::from_number(record.outcome)));
            true
        });
        answers.len() >= 2
    });
    assert_eq!(answers, [(1, Outcome::Unconfirmed), (2, Outcome::Confirmed)]);
    stop.set();
    joined("the sink", thread);
}
