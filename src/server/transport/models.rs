//! Models of everything that two threads of this crate do with each other, run by loom in every order and with every
//! stale value that the orderings allow: `scripts/loom.sh`.
//!
//! The code under test is the code that runs: `ring`, `mesh`, `shard` and `io::stop`. Only what is not ours is played:
//! rtrb's ring (`sync/ring.rs`), the eventfd, and `io::executor`'s loop around a turn. A lost wake-up is a deadlock here,
//! and loom says so.

use std::{convert::Infallible, sync::Arc};

use loom::{
    model::Builder,
    sync::{Condvar, Mutex},
    thread,
};

use crate::{
    sources::Lanes,
    transport::stop::{Stop, Wait},
};
use tickcast_core::{
    config::Limits,
    mesh::{
        Mesh, mesh,
        ring::{Doorbell, Stage, frame_ring},
    },
    metrics::counters::{Counter, Counters},
    now::Now,
    placement,
    shard::Shard,
};
use tickcast_proto::{
    frame::{self, Kind, Meta},
    ids::ShardId,
    records::{Hello, Publish},
};

const NOW: Now = Now { monotonic_ns: 1 << 40, realtime_ns: 1 << 60 };

/// Every order in which no more than `preemptions_max` times a thread is interrupted where it could go on; as many as
/// stay within some seconds. LOOM_MAX_PREEMPTIONS says otherwise for all.
fn model(preemptions_max: usize, run: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(preemptions_max);
    builder.check(run);
}

/// A shard's eventfd: written to from any thread, waited for by the shard.
#[derive(Default)]
struct Eventfd {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Eventfd {
    fn write(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

fn doorbell() -> (Arc<Doorbell>, Arc<Eventfd>) {
    let eventfd = Arc::new(Eventfd::default());
    let write = eventfd.clone();
    (Arc::new(Doorbell::new(move || write.write())), eventfd)
}

/// Runs it on a thread whose stack takes a shard's turn: in words, loom's own are 32 KiB.
fn spawn(run: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    thread::Builder::new().stack_size(64 << 10).spawn(run).unwrap()
}

/// A PUBLISH with a payload of 20 bytes, to a topic of one of two shards.
fn publish(stage: &mut Stage, home: ShardId) {
    let topic =
        (0..).map(|n| format!("t.{n}")).find(|topic| placement::home_shard(topic, 2) == home).unwrap();
    frame::encode_publish(stage.tail(), 0, 0, 0, Publish::default(), &topic, &[b'x'; 20]);
}

/// A shard on a thread of its own, and all it goes to sleep and wakes with.
struct Turner {
    shard: Box<Shard>,
    mesh: Mesh,
    counters: Arc<Counters>,
    bell: Arc<Doorbell>,
    eventfd: Arc<Eventfd>,
}

/// So many shards, between which the rings have this length.
fn shards(count: u16, ring_bytes: usize) -> Vec<Turner> {
    let bells: Vec<_> = (0..count).map(|_| doorbell()).collect();
    let meshes = mesh(&bells.iter().map(|(bell, _)| bell.clone()).collect::<Vec<_>>(), ring_bytes);
    let turner = |(id, ((bell, eventfd), mesh))| {
        let counters = Arc::new(Counters::default());
        let shard = Box::new(Shard::new(ShardId(id), count, 1, Limits::default(), counters.clone()));
        Turner { shard, mesh, counters, bell, eventfd }
    };
    (0..).zip(bells.into_iter().zip(meshes)).map(turner).collect()
}

impl Turner {
    /// Stages ticks for topics of another shard.
    fn stage(&mut self, count: usize, home: ShardId) -> usize {
        self.shard.with_stages(home, |stages| {
            (0..count).for_each(|_| publish(&mut stages.requests, home));
            stages.requests.waiting().len()
        })
    }

    fn sequenced(&self) -> u64 {
        self.counters.value(Counter::TicksSequenced)
    }

    /// One turn; whether it did something.
    fn turn(&mut self) -> bool {
        let came = self.mesh.take_in(&mut self.shard, NOW);
        self.mesh.push_out(&mut self.shard) || came
    }

    /// As `io::executor` does: looks once more, and waits if there is nothing.
    fn sleep_unless(&mut self, work_waits: impl FnOnce() -> bool) {
        let Ok(()) = self.bell.sleep(|| {
            if !self.mesh.look_again(&mut self.shard) && !work_waits() {
                self.eventfd.wait();
            }
            Ok::<(), Infallible>(())
        });
    }

    /// Turns, and sleeps after one that did nothing, until `done`.
    fn run(mut self, done: impl Fn(&Turner) -> bool) {
        while !done(&self) {
            if !self.turn() {
                self.sleep_unless(|| false);
            }
        }
    }
}

/// An ingest's way to the only shard.
fn ingest(shard: &mut Turner) -> Lanes {
    let (producer, consumer) = frame_ring(1 << 10);
    shard.mesh.add_source(consumer);
    Lanes::new([(producer, shard.bell.clone())].into_iter())
}

/// Caught when tried: `Doorbell::ring` or `Doorbell::sleep` without its fence; sleep announced after the look; an ingest
/// that rings before it pushes.
#[test]
fn what_comes_while_a_shard_goes_to_sleep_is_seen_or_wakes_it() {
    model(5, || {
        let mut shard = shards(1, 1 << 10).remove(0);
        let mut lanes = ingest(&mut shard);
        let shard = spawn(|| shard.run(|shard| shard.sequenced() == 2));
        for _ in 0..2 {
            assert!(lanes.publish("t", 0, 0, b"1"));
            assert!(lanes.flush());
        }
        shard.join().unwrap();
    });
}

/// Both find the shard asleep; one wakes it, and what the other brings must not be missed.
#[test]
fn two_who_bring_something_at_once_are_both_heard() {
    model(4, || {
        let mut shard = shards(1, 1 << 10).remove(0);
        let bring = |mut lanes: Lanes| {
            move || {
                assert!(lanes.publish("t", 0, 0, b"1"));
                assert!(lanes.flush());
            }
        };
        let (one, mut other) = (bring(ingest(&mut shard)), bring(ingest(&mut shard)));
        let shard = spawn(|| shard.run(|shard| shard.sequenced() == 2));
        let one = spawn(one);
        other();
        [shard, one].into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// Caught: sleep without one more push, with room made between the last push and the announcement of sleep (as the
/// code had it until this model). Caught when tried: `FrameConsumer::producer_waits` without its fence, or asked before the
/// drain; a reader that does not ring; a look before sleep that leaves out the requests.
#[test]
fn a_producer_that_found_no_room_is_woken_when_there_is_some() {
    model(3, || {
        let [mut from, to] = <[Turner; 2]>::try_from(shards(2, 128)).ok().unwrap();
        assert!(from.stage(2, ShardId(1)) > 128, "both do not fit at once");
        let from = spawn(|| from.run(|from| from.shard.requests_flushed()));
        let to = spawn(|| to.run(|to| to.sequenced() == 2));
        [from, to].into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// The last step of the above in every order: the reader takes the one frame of a full ring and looks at the flag once,
/// while the writer has another and goes to sleep.
///
/// Caught when tried: `FrameProducer::push` without its fence, without the second attempt, or with the flag set after it;
/// `FrameConsumer::producer_waits` without its fence.
#[test]
fn a_writer_that_goes_to_sleep_while_room_is_made_goes_on() {
    let frame = |stage: &mut Stage| {
        frame::encode(stage.tail(), Kind::Hello, Meta::default(), &Hello::default(), &[]);
        stage.waiting().len()
    };
    model(8, move || {
        let (mut stage, (bell, eventfd)) = (Stage::default(), doorbell());
        let (mut producer, mut consumer) = frame_ring(frame(&mut stage));
        producer.push(&mut stage);
        assert!(stage.waiting().is_empty(), "the ring is full, and nothing waits yet");
        let len = frame(&mut stage);
        let writers_bell = bell.clone();
        let reader = spawn(move || {
            assert_eq!(consumer.drain(usize::MAX, |_| true), len);
            if consumer.producer_waits() {
                writers_bell.ring();
            }
        });
        while !stage.waiting().is_empty() {
            let Ok(()) = bell.sleep(|| {
                if !producer.push(&mut stage) {
                    eventfd.wait();
                }
                Ok::<(), Infallible>(())
            });
        }
        reader.join().unwrap();
    });
}

#[test]
fn two_shards_that_fill_each_others_rings_both_get_on() {
    model(1, || {
        let threads: Vec<_> = shards(2, 128)
            .into_iter()
            .zip([ShardId(1), ShardId(0)])
            .map(|(mut shard, other)| {
                assert!(shard.stage(2, other) > 128, "both do not fit at once");
                spawn(|| shard.run(|shard| shard.shard.requests_flushed() && shard.sequenced() == 2))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// Caught when tried: a request that is noted after the doorbells are rung, or before its deadline is.
#[test]
fn a_stop_reaches_a_shard_that_goes_to_sleep() {
    model(5, || {
        let mut shard = shards(1, 1 << 10).remove(0);
        let stop = Arc::new(Stop::new(vec![shard.bell.clone()]));
        let asked = stop.clone();
        let shard = spawn(move || {
            while !asked.is_requested() {
                shard.sleep_unless(|| asked.is_requested());
            }
            assert_eq!(asked.deadline_ns(), 30);
        });
        stop.request(10, 20);
        shard.join().unwrap();
    });
}

/// Caught when tried: `Stop::is_over` with its two questions in the other order, or with a relaxed load; a shard that says
/// it has arrived before it has pushed.
#[test]
fn a_shard_that_goes_on_in_stopping_has_taken_what_the_others_had_sent() {
    model(5, || {
        let [mut from, mut to] = <[Turner; 2]>::try_from(shards(2, 1 << 10)).ok().unwrap();
        let stop = Arc::new(Stop::new(vec![from.bell.clone(), to.bell.clone()]));
        from.stage(1, ShardId(1));
        let arriving = stop.clone();
        let from = spawn(move || {
            from.turn();
            if from.shard.requests_flushed() {
                arriving.arrive(ShardId(0), Wait::Requests);
            }
        });
        let to = spawn(move || {
            stop.arrive(ShardId(1), Wait::Requests);
            // A shard that stops sleeps for a timer's tick at most.
            while !stop.is_over(Wait::Requests, &mut to.mesh) {
                if !to.turn() {
                    thread::yield_now();
                }
            }
            assert_eq!(to.sequenced(), 1);
        });
        [from, to].into_iter().for_each(|thread| thread.join().unwrap());
    });
}
