//! Models of everything that threads of this crate share, run by loom in every interleaving and with every stale value
//! that the orderings allow: `scripts/loom.sh`.
//! They test the production code: `mesh` and `shard`. Only foreign parts are
//! replaced: rtrb's ring (`sync/ring.rs`), the eventfd, and the driver's loop around a turn. A lost wake-up shows as a
//! deadlock, which loom reports.

use std::{convert::Infallible, sync::Arc};

use loom::{
    model::Builder,
    sync::{Condvar, Mutex},
    thread,
};

use crate::{
    config::Limits,
    mesh::{
        Mesh,
        handover::{HandoverLanes, lanes_with_capacity},
        lanes::Lanes,
        mesh,
        ring::{Doorbell, FrameConsumer, Stage, frame_ring},
        stop::{Barrier, Stop},
    },
    metrics::counters::{Counter, Counters},
    now::Now,
    placement,
    shard::Shard,
};
use tickcast_proto::{
    frame::{self, HeaderFields, Kind},
    ids::ShardId,
    records::{Hello, Publish},
};

const NOW: Now = Now { monotonic_ns: 1 << 40, realtime_ns: 1 << 60 };

/// Runs every interleaving with at most `preemptions_max` preemptions, a number chosen so that each model takes some
/// seconds. LOOM_MAX_PREEMPTIONS overrides it for all.
fn model(preemptions_max: usize, run: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(preemptions_max);
    let run = std::sync::Arc::new(run);
    // The first thread's stack of 32 KiB is too small to create shards. It only waits, so it adds no interleavings.
    builder.check(move || {
        let run = run.clone();
        spawn(move || run()).join().unwrap();
    });
}

/// A shard's eventfd: any thread writes to it, the shard waits for it.
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

/// Spawns a thread whose stack is large enough for a shard's turn. The size is in words; loom's default is 32 KiB.
fn spawn(run: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    thread::Builder::new().stack_size(64 << 10).spawn(run).unwrap()
}

/// Stages a PUBLISH with a payload of 20 bytes, to a topic whose home is one of two shards.
fn publish(stage: &mut Stage, home: ShardId) {
    let topic =
        (0..).map(|n| format!("t.{n}")).find(|topic| placement::home_shard(topic, 2) == home).unwrap();
    frame::encode_publish(stage.tail(), 0, 0, 0, Publish::default(), &topic, &[b'x'; 20]);
}

/// A shard, and what it sleeps and wakes with.
struct Turner {
    shard: Box<Shard>,
    mesh: Mesh,
    counters: Arc<Counters>,
    bell: Arc<Doorbell>,
    eventfd: Arc<Eventfd>,
}

/// Creates shards with rings of `ring_bytes` between them.
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
    /// Stages ticks for topics of another shard. Returns the bytes staged.
    fn stage(&mut self, count: usize, home: ShardId) -> usize {
        self.shard.with_stages(home, |stages| {
            (0..count).for_each(|_| publish(&mut stages.requests, home));
            stages.requests.waiting().len()
        })
    }

    fn sequenced(&self) -> u64 {
        self.counters.value(Counter::TicksSequenced)
    }

    /// Runs one turn. Returns whether it did anything.
    fn turn(&mut self) -> bool {
        let came = self.mesh.take_in(&mut self.shard, NOW);
        self.mesh.push_out(&mut self.shard) || came
    }

    /// Sleeps as the driver does: checks once more, and waits if there is nothing.
    fn sleep_unless(&mut self, work_waits: impl FnOnce() -> bool) {
        let Ok(()) = self.bell.sleep(|| {
            if !self.mesh.look_again(&mut self.shard) && !work_waits() {
                self.eventfd.wait();
            }
            Ok::<(), Infallible>(())
        });
    }

    /// Runs turns until `done`, and sleeps after a turn that did nothing.
    fn run(mut self, done: impl Fn(&Turner) -> bool) {
        while !done(&self) {
            if !self.turn() {
                self.sleep_unless(|| false);
            }
        }
    }
}

/// Creates a source's ring to the only shard.
fn source(shard: &mut Turner) -> Lanes {
    let (producer, consumer) = frame_ring(1 << 10);
    shard.mesh.add_source(consumer);
    Lanes::new([(producer, shard.bell.clone())].into_iter())
}

/// Mutations that it caught: `Doorbell::ring` or `Doorbell::sleep` without its fence; sleep announced after the last check; a
/// source that rings before it pushes.
#[test]
fn a_tick_that_arrives_while_a_shard_goes_to_sleep_is_seen_or_wakes_it() {
    model(5, || {
        let mut shard = shards(1, 1 << 10).remove(0);
        let mut lanes = source(&mut shard);
        let shard = spawn(|| shard.run(|shard| shard.sequenced() == 2));
        for _ in 0..2 {
            lanes.publish("t", 0, 0, b"1").unwrap();
            lanes.flush().unwrap();
        }
        shard.join().unwrap();
    });
}

/// Starts a thread that pushes a frame into a ring and rings the doorbell of its consumer.
fn writer(bell: &Arc<Doorbell>, ring: fn(&Doorbell)) -> (thread::JoinHandle<()>, FrameConsumer) {
    let (mut producer, consumer) = frame_ring(1 << 8);
    let bell = bell.clone();
    let writer = spawn(move || {
        let mut stage = Stage::default();
        publish(&mut stage, ShardId(0));
        assert!(producer.push(&mut stage));
        ring(&bell);
    });
    (writer, consumer)
}

/// A message other than a tick ends a wait for the latency budget, which here does not end by itself.
#[test]
fn a_message_that_arrives_while_a_shard_goes_to_wait_for_its_budget_is_seen_or_wakes_it() {
    model(5, || {
        let (bell, eventfd) = doorbell();
        let (writer, mut consumer) = writer(&bell, Doorbell::ring);
        let Ok(()) = bell.sleep_within_budget(|| {
            if consumer.is_empty() {
                eventfd.wait();
            }
            Ok::<(), Infallible>(())
        });
        assert!(consumer.drain(usize::MAX, |_| true) > 0);
        writer.join().unwrap();
    });
}

/// A tick wakes nobody who waits for the budget, and is found when the wait has ended: by the turn that follows, or because it
/// wakes the shard from the sleep after that.
#[test]
fn a_tick_that_arrives_while_a_wait_for_the_budget_ends_is_seen_or_wakes_the_shard_later() {
    model(5, || {
        let (bell, eventfd) = doorbell();
        let (writer, mut consumer) = writer(&bell, Doorbell::ring_for_ticks);
        let Ok(()) = bell.sleep_within_budget(|| Ok::<(), Infallible>(()));
        while consumer.drain(usize::MAX, |_| true) == 0 {
            let Ok(()) = bell.sleep(|| {
                if consumer.is_empty() {
                    eventfd.wait();
                }
                Ok::<(), Infallible>(())
            });
        }
        writer.join().unwrap();
    });
}

/// Both sources find the shard asleep. One wakes it, and the tick of the other must not be missed.
#[test]
fn two_sources_that_publish_at_once_are_both_heard() {
    model(3, || {
        let mut shard = shards(1, 1 << 10).remove(0);
        let publish = |mut lanes: Lanes| {
            move || {
                lanes.publish("t", 0, 0, b"1").unwrap();
                lanes.flush().unwrap();
            }
        };
        let (one, mut other) = (publish(source(&mut shard)), publish(source(&mut shard)));
        let shard = spawn(|| shard.run(|shard| shard.sequenced() == 2));
        let one = spawn(one);
        other();
        [shard, one].into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// A fault that it found: sleep without one more push, when room was made between the last push and the announcement of
/// sleep. Mutations that it caught: `FrameConsumer::producer_waits` without its fence, or asked before the drain; a
/// consumer that does not ring; a last check before sleep that leaves out the requests.
#[test]
fn a_producer_that_found_no_room_is_woken_when_there_is_some() {
    model(2, || {
        let [mut from, to] = <[Turner; 2]>::try_from(shards(2, 128)).ok().unwrap();
        assert!(from.stage(2, ShardId(1)) > 128, "both do not fit at once");
        let from = spawn(|| from.run(|from| from.shard.requests_flushed()));
        let to = spawn(|| to.run(|to| to.sequenced() == 2));
        [from, to].into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// The last step of the above in every interleaving: the consumer takes the only frame of a full ring and checks the flag
/// once, while the producer has another frame and goes to sleep.
///
/// Mutations that it caught: `FrameProducer::push` without its fence, without the second attempt, or with the flag set after
/// it; `FrameConsumer::producer_waits` without its fence.
#[test]
fn a_producer_that_goes_to_sleep_while_room_is_made_goes_on() {
    let frame = |stage: &mut Stage| {
        frame::encode(stage.tail(), Kind::Hello, HeaderFields::default(), &Hello::default(), &[]);
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

/// Mutations that it caught: a request that is stored after the doorbells are rung, or before its deadline.
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

/// Mutations that it caught: `Stop::is_passed` with its two checks in the other order, or with a relaxed load; a shard that
/// arrives before it has pushed.
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
                arriving.arrive(ShardId(0), Barrier::Requests);
            }
        });
        let to = spawn(move || {
            stop.arrive(ShardId(1), Barrier::Requests);
            // A stopping shard sleeps for a timer's interval at most.
            while !stop.is_passed(Barrier::Requests, &mut to.mesh) {
                if !to.turn() {
                    thread::yield_now();
                }
            }
            assert_eq!(to.sequenced(), 1);
        });
        [from, to].into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// A shard's part of a handover, driven as the driver does it.
struct HandoverShard {
    lanes: HandoverLanes<u32>,
    bell: Arc<Doorbell>,
    eventfd: Arc<Eventfd>,
}

/// Creates two shards with lanes of one connection.
fn handover_shards() -> [HandoverShard; 2] {
    let bells: Vec<_> = (0..2).map(|_| doorbell()).collect();
    let rung: Vec<_> = bells.iter().map(|(bell, _)| bell.clone()).collect();
    let shards = lanes_with_capacity(&rung, 1).into_iter().zip(bells);
    let shards = shards.map(|(lanes, (bell, eventfd))| HandoverShard { lanes, bell, eventfd });
    shards.collect::<Vec<_>>().try_into().ok().unwrap()
}

impl HandoverShard {
    /// Queues the `n`-th connection for the second shard.
    fn queue(&mut self, n: u32) {
        self.lanes.offer(ShardId(1), n).unwrap();
    }

    fn sleep(&mut self) {
        let Ok(()) = self.bell.sleep(|| {
            if !self.lanes.look_again() {
                self.eventfd.wait();
            }
            Ok::<(), Infallible>(())
        });
    }

    /// Runs turns until every connection has left.
    fn send_all(mut self) {
        while !self.lanes.is_flushed() {
            if !self.lanes.push_out() {
                self.sleep();
            }
        }
    }

    /// Runs turns until `count` connections have arrived, in order.
    fn take_all(mut self, count: u32) {
        let mut taken = 0;
        while taken < count {
            match self.lanes.take() {
                Some(n) => {
                    assert_eq!(n, taken);
                    taken += 1;
                }
                None => self.sleep(),
            }
        }
    }
}

/// One shard hands over more connections than the lane holds. Each shard goes to sleep when it has nothing to do: the consumer
/// until the next connection arrives, the producer until there is room.
///
/// Mutations that it caught: `Starved::take` without its fence; a consumer that does not ring; a last check before sleep
/// without `push_out` or without `has_input`.
#[test]
fn connections_handed_over_through_a_full_lane_all_arrive() {
    model(4, || {
        let [mut from, to] = handover_shards();
        (0..2).for_each(|n| from.queue(n));
        let from = spawn(|| from.send_all());
        let to = spawn(|| to.take_all(2));
        [from, to].into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// The last step of the above: the lane is full, and the producer goes to sleep while the consumer makes room.
///
/// Mutations that it caught: `Starved::announce` without its fence; `ItemProducer::push` without the second attempt.
#[test]
fn a_shard_that_goes_to_sleep_while_its_full_lane_gets_room_hands_over_the_rest() {
    model(6, || {
        let [mut from, to] = handover_shards();
        from.queue(0);
        assert!(from.lanes.push_out() && from.lanes.is_flushed());
        from.queue(1);
        let from = spawn(|| {
            let mut from = from;
            while !from.lanes.is_flushed() {
                from.sleep();
            }
        });
        let to = spawn(|| to.take_all(2));
        [from, to].into_iter().for_each(|thread| thread.join().unwrap());
    });
}
