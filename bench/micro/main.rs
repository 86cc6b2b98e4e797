//! Microbenchmarks of the hot paths, run by scripts/micro.sh.
//!
//! CPU time is noisy on a shared machine, so compare only runs on one machine, one directly after the other. Each module
//! says what an iteration is: a tick, a delivery, a frame or an entry, never a batch of them.

mod control;
mod decode;
mod egress;
mod encode;
mod keep;
mod load;
mod measure;
mod shard;
mod threads;
mod timers;

use criterion::Criterion;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    encode::bench(&mut criterion);
    egress::bench(&mut criterion);
    shard::bench(&mut criterion);
    threads::bench(&mut criterion);
    timers::bench(&mut criterion);
    decode::bench(&mut criterion);
    keep::bench(&mut criterion);
    control::bench(&mut criterion);
    criterion.final_summary();
}
