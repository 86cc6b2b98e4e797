//! CPU affinity and priority of the admin thread: on cores without shards, or else at the lowest priority.

use rustix::process::setpriority_process;

use crate::process::cores::CoreSet;

/// The lowest priority of SCHED_OTHER (setpriority(2)): 15 parts of 1,039 on a core that a shard keeps busy.
const NICE_LOWEST: i32 = 19;

/// Moves the calling thread to the allowed cores that no shard is pinned to.
///
/// If there are none, it gets the lowest priority: the time that the shards leave idle, and a small share of a busy
/// core. If the kernel refuses that, logs it and changes nothing.
pub(super) fn avoid_shard_cores(pinned: &[usize]) {
    // `None` is the calling thread, for setpriority(2) on Linux too.
    let has_moved = CoreSet::allowed().is_ok_and(|allowed| {
        let free = free_cores(&allowed, pinned);
        free.is_some_and(|free| free.apply().is_ok())
    });
    if !has_moved && let Err(error) = setpriority_process(None, NICE_LOWEST) {
        ::log::info!(
            "cannot lower the admin thread's priority: {error}; it competes with the shards on their cores"
        );
    }
}

/// The allowed cores that no shard is pinned to; `None` if there are none.
fn free_cores(allowed: &CoreSet, pinned: &[usize]) -> Option<CoreSet> {
    let free: CoreSet = allowed.cores().filter(|core| !pinned.contains(core)).collect();
    (free != CoreSet::default()).then_some(free)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::process::getpriority_process;

    use super::*;

    fn cores(set: &CoreSet) -> Vec<usize> {
        set.cores().collect()
    }

    #[test]
    fn free_cores_are_the_allowed_ones_without_a_shard() {
        let allowed = CoreSet::from_iter([1, 3, 1_000]);
        assert_eq!(free_cores(&allowed, &[0, 3, 3, 5_000]).map(|set| cores(&set)), Some(vec![1, 1_000]));
        assert!(free_cores(&allowed, &[1, 3, 1_000]).is_none());
    }

    /// The cores and the priority of a thread that avoids shards pinned to these cores.
    fn after_avoiding(pinned: Vec<usize>) -> (Vec<usize>, i32) {
        let thread = thread::spawn(move || {
            avoid_shard_cores(&pinned);
            (cores(&CoreSet::allowed().unwrap()), getpriority_process(None).unwrap())
        });
        thread.join().unwrap()
    }

    #[test]
    fn the_thread_leaves_the_shards_cores_or_lowers_its_priority_and_other_threads_keep_theirs() {
        let allowed = cores(&CoreSet::allowed().unwrap());
        let before = getpriority_process(None).unwrap();
        if let [first, rest @ ..] = &*allowed
            && !rest.is_empty()
        {
            assert_eq!(after_avoiding(vec![*first]), (rest.to_vec(), before));
        }
        assert_eq!(after_avoiding(allowed.clone()), (allowed.clone(), NICE_LOWEST));
        assert_eq!(cores(&CoreSet::allowed().unwrap()), allowed);
        assert_eq!(getpriority_process(None).unwrap(), before);
    }
}
