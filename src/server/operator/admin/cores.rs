//! Where the admin thread runs: not where a shard does, if that can be.

use rustix::{
    process::setpriority_process,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// The lowest priority of SCHED_OTHER (setpriority(2)): 15 of 1,039 parts of a core that a shard wants for itself.
const NICE: i32 = 19;

/// The calling thread keeps to the cores that it may use and no shard is `pinned` to. If there are none, it has the lowest
/// priority: it gets what the shards leave, and a small share where they leave nothing. What the kernel refuses is left
/// as it was, with a line in the log.
pub(super) fn make_way(pinned: &[usize]) {
    // 0 and `None` are the calling thread, on Linux also for the priority.
    let moved = sched_getaffinity(None).map(|allowed| free(&allowed, pinned));
    let has_moved = matches!(moved, Ok(Some(free)) if sched_setaffinity(None, &free).is_ok());
    // More cores than the set has room for are not told apart.
    if !has_moved && let Err(error) = setpriority_process(None, NICE) {
        ::log::info!("the admin thread shares the shards' cores at their priority: {error}");
    }
}

/// Those of the allowed cores that none is pinned to; `None` if all are.
fn free(allowed: &CpuSet, pinned: &[usize]) -> Option<CpuSet> {
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
    fn free_cores_are_those_that_are_allowed_and_not_pinned_to() {
        let mut allowed = CpuSet::new();
        [1, 3, 1_000].into_iter().for_each(|core| allowed.set(core));
        assert_eq!(free(&allowed, &[0, 3, 3, 5_000]).map(|set| cores(&set)), Some(vec![1, 1_000]));
        assert!(free(&allowed, &[1, 3, 1_000]).is_none());
    }

    /// The cores and the priority of a thread that has made way for shards pinned to these.
    fn made_way(pinned: Vec<usize>) -> (Vec<usize>, i32) {
        let thread = thread::spawn(move || {
            make_way(&pinned);
            (cores(&sched_getaffinity(None).unwrap()), getpriority_process(None).unwrap())
        });
        thread.join().unwrap()
    }

    #[test]
    fn the_thread_leaves_the_shards_cores_or_yields_them_and_its_process_stays_as_it_is() {
        let allowed = cores(&sched_getaffinity(None).unwrap());
        let before = getpriority_process(None).unwrap();
        if let [first, rest @ ..] = &*allowed
            && !rest.is_empty()
        {
            assert_eq!(made_way(vec![*first]), (rest.to_vec(), before));
        }
        assert_eq!(made_way(allowed.clone()), (allowed.clone(), NICE));
        assert_eq!(cores(&sched_getaffinity(None).unwrap()), allowed);
        assert_eq!(getpriority_process(None).unwrap(), before);
    }
}
