//! Drives shards, their mesh and a population of clients from one seed, and checks the design's promises: sequences
//! strictly increase, delivered + conflated + gaps = published since subscribing, memory stays within its bounds, no
//! client suffers from another's fault, every acknowledgement is true, and nobody receives a topic that it may not.
//!
//! `TICKCAST_SEED=N` runs one seed. `TICKCAST_SEEDS=N` sets the number of seeds, `TICKCAST_FIRST_SEED=N` the first, and
//! `TICKCAST_PROGRESS=1` prints progress: `scripts/simulate.sh` sets these. A failure names its seed.

mod client;
mod message_ids;
mod nodes;
mod permissions;
mod publishes;
mod reached;
mod request;
mod sink;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use reached::Reached;
use world::World;

const SEEDS_DEFAULT: u64 = 1_000;
const STEPS: usize = 400;
/// Seeds between two progress messages.
const PROGRESS_SEEDS: u64 = 500;

fn run(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
        world.check_memory();
    }
    world.settle();
    world.check_everything_arrived();
    world.disconnect_everybody();
    world.check_nothing_is_left();
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

/// Runs the seeds that the environment asks for, [`SEEDS_DEFAULT`] by default.
fn for_every_seed(run: impl Fn(u64)) {
    let seeds = match number("TICKCAST_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("TICKCAST_FIRST_SEED").unwrap_or(0);
            first..first + number("TICKCAST_SEEDS").unwrap_or(SEEDS_DEFAULT)
        }
    };
    let (first, last) = (seeds.start, seeds.end);
    for seed in seeds {
        if catch_unwind(AssertUnwindSafe(|| run(seed))).is_err() {
            panic!("the simulation failed; to repeat it: TICKCAST_SEED={seed} cargo test --test simulation");
        }
        let done = seed + 1 - first;
        if number("TICKCAST_PROGRESS").is_some() && (done.is_multiple_of(PROGRESS_SEEDS) || seed + 1 == last)
        {
            eprintln!("{done} of {} seeds hold", last - first);
        }
    }
}

#[test]
fn promises_hold_for_every_seed() {
    for_every_seed(run);
}

#[test]
fn nodes_that_read_one_log_serve_every_tick_exactly_once_for_every_seed() {
    for_every_seed(|seed| nodes::World::new(seed).run());
}

#[test]
fn a_tick_sent_again_after_any_cut_is_published_exactly_once_for_every_seed() {
    let mut reached = message_ids::Reached::default();
    for seed in 0..20 {
        let mut world = message_ids::World::new(seed);
        world.run();
        reached.add(&world.reached);
    }
    assert!(reached.is_complete(), "{reached:?}");
    for_every_seed(|seed| message_ids::World::new(seed).run());
}

/// The simulation is worth running only if it reaches the situations it is about.
#[test]
fn the_seeds_cover_every_situation() {
    let mut reached = Reached::default();
    for seed in 0..320 {
        let mut world = World::new(seed);
        (0..STEPS).for_each(|_| world.step());
        world.settle();
        reached.add(&world.reached);
    }
    assert!(reached.is_complete(), "{reached:?}");
}

#[test]
fn the_seeds_cover_every_situation_of_nodes() {
    let mut reached = nodes::Reached::default();
    for seed in 0..50 {
        let mut world = nodes::World::new(seed);
        world.run();
        reached.add(&world.reached);
    }
    assert!(reached.is_complete(), "{reached:?}");
}
