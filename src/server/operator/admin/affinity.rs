//! CPU affinity and priority of the admin thread: off the shards' cores, or else behind the shards.

use rustix::{
    process::setpriority_process,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// The lowest priority of SCHED_OTHER (setpriority(2)): 15 parts of 1,039 on a core that a shard keeps busy.
const NICE_LOWEST: i32 = 19;

/// Moves the calling thread to the allowed cores that no shard is pinned to.
///
/// If there are none, it gets the lowest priority: the time that the shards leave idle, and a small share of a busy
/// core. If the kernel refuses that, logs it and changes nothing.
pub(super) fn avoid_shard_cores(pinned: &[usize]) {
    // `None` is the calling thread, for setpriority(2) on Linux too.
    let moved = sched_getaffinity(None).map(|allowed| free_cores(&allowed, pinned));
    let has_moved = matches!(moved, Ok(Some(free)) if sched_setaffinity(None, &free).is_ok());
    // On a machine with more cores than a CpuSet holds, the affinity cannot be read; the priority is lowered instead.
    if !has_moved && let Err(error) = setpriority_process(None, NICE_LOWEST) {
        ::log::info!(
            "cannot lower the admin thread's priority: {error}; it competes with the shards on their cores"
        );
    }
}

/// The allowed cores that no shard is pinned to; `None` if there are none.
fn free_cores(allowed: &CpuSet, pinned: &[usize]) -> Option<CpuSet> {
    let mut free = *allowed;
    pinned.iter().filter(|&&core| core < CpuSet::MAX_CPU).for_each(|&core| free.unset(core));
    (free.count() > 0).then_some(free)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::process::getpriority_process;

    use super::*;

    fn cores(set: &CpuSet) -> Vec<usize> {
        (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect()
    }

    #[test]
    fn free_cores_are_the_allowed_ones_without_a_shard() {
        let mut allowed = CpuSet::new();
        [1, 3, 1_000].into_iter().for_each(|core| allowed.set(core));
        assert_eq!(free_cores(&allowed, &[0, 3, 3, 5_000]).map(|set| cores(&set)), Some(vec![1, 1_000]));
        assert!(free_cores(&allowed, &[1, 3, 1_000]).is_none());
    }

    /// The cores and the priority of a thread that avoids shards pinned to these cores.
    fn after_avoiding(pinned: Vec<usize>) -> (Vec<usize>, i32) {
        let thread = thread::spawn(move || {
            avoid_shard_cores(&pinned);
            (cores(&sched_getaffinity(None).unwrap()), getpriority_process(None).unwrap())
        });
        thread.join().unwrap()
    }

    #[test]
    fn the_thread_leaves_the_shards_cores_or_lowers_its_priority_and_other_threads_keep_theirs() {
        let allowed = cores(&sched_getaffinity(None).unwrap());
        let before = getpriority_process(None).unwrap();
        if let [first, rest @ ..] = &*allowed
            && !rest.is_empty()
        {
            assert_eq!(after_avoiding(vec![*first]), (rest.to_vec(), before));
        }
        assert_eq!(after_avoiding(allowed.clone()), (allowed.clone(), NICE_LOWEST));
        assert_eq!(cores(&sched_getaffinity(None).unwrap()), allowed);
        assert_eq!(getpriority_process(None).unwrap(), before);
    }
}
