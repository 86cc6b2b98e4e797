//! Micro benches of the hot pieces: scripts/micro.sh runs them. CPU time is noisy on a shared machine: they are for the
//! comparison of before and after, on one machine, in a row.
//!
//! What one iteration is stands at each; it is a tick, a delivery, a frame or an entry, never a batch of them.

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
    criterion.final_summary();
}
