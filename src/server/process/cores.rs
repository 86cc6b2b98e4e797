//! The cores of this process: which ones it may use, how many its CPU quota amounts to, and pinning a thread to one.

use std::{io, mem, thread};

use log::Level;
use rustix::thread::sched_getcpu;

use crate::limits::CORE_HIGHEST;

/// Bits of the first mask for the kernel to fill: those of a `cpu_set_t`.
const MASK_BITS_FIRST: usize = 1_024;
const WORD_BITS: usize = libc::c_ulong::BITS as usize;

/// A set of cores. Unlike a `cpu_set_t`, it does not end at core 1,023.
#[derive(Clone, Debug, Default)]
pub struct CoreSet(Vec<libc::c_ulong>);

impl PartialEq for CoreSet {
    /// Whether both contain the same cores, whatever the lengths of their masks.
    fn eq(&self, other: &CoreSet) -> bool {
        self.cores().eq(other.cores())
    }
}

impl Eq for CoreSet {}

impl CoreSet {
    /// The cores that the calling thread may use.
    ///
    /// # Errors
    /// Those of sched_getaffinity(2): a sandbox may refuse it.
    pub fn allowed() -> io::Result<CoreSet> {
        growing(|mask| {
            // SAFETY: the pointer and the length are those of `mask`, which the kernel fills with bits; any value is valid. 0 is
            // the calling thread.
            let result =
                unsafe { libc::sched_getaffinity(0, mem::size_of_val(mask), mask.as_mut_ptr().cast()) };
            if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        })
    }

    /// Restricts the calling thread to these cores.
    ///
    /// # Errors
    /// Those of sched_setaffinity(2): no core of the set exists, or this process may not use it.
    pub fn apply(&self) -> io::Result<()> {
        // SAFETY: the pointer and the length are those of the vector, which the kernel only reads. 0 is the calling thread.
        let result = unsafe {
            libc::sched_setaffinity(0, mem::size_of_val(self.0.as_slice()), self.0.as_ptr().cast())
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The cores in ascending order.
    pub fn cores(&self) -> impl Iterator<Item = usize> {
        let bits = self.0.len() * WORD_BITS;
        (0..bits).filter(|core| self.0[core / WORD_BITS] >> (core % WORD_BITS) & 1 == 1)
    }
}

impl FromIterator<usize> for CoreSet {
    /// Leaves out cores above [`CORE_HIGHEST`], which no kernel has.
    fn from_iter<I: IntoIterator<Item = usize>>(cores: I) -> CoreSet {
        let mut words: Vec<libc::c_ulong> = Vec::new();
        for core in cores.into_iter().filter(|core| *core <= CORE_HIGHEST) {
            words.resize(words.len().max(core / WORD_BITS + 1), 0);
            words[core / WORD_BITS] |= 1 << (core % WORD_BITS);
        }
        CoreSet(words)
    }
}

/// Reads a mask whose size only the kernel knows: it refuses one that is too small with EINVAL.
fn growing(mut read: impl FnMut(&mut [libc::c_ulong]) -> io::Result<()>) -> io::Result<CoreSet> {
    let mut bits = MASK_BITS_FIRST;
    loop {
        let mut words = vec![0; bits / WORD_BITS];
        match read(&mut words) {
            Ok(()) => return Ok(CoreSet(words)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && bits <= CORE_HIGHEST => bits *= 2,
            Err(error) => return Err(error),
        }
    }
}

/// Pins the calling thread to one core.
///
/// glommio's `Placement::Fixed` reads the machine's topology first, and panics where a sandbox has no /sys. The call itself
/// (sched_setaffinity(2)) needs no sysfs.
///
/// # Errors
/// The core does not exist, or this process may not use it.
pub fn pin_to(core: usize) -> io::Result<()> {
    CoreSet::from_iter([core])
        .apply()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot pin a thread to core {core}: {error}")))
}

/// The cores that a server may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cores {
    /// The cores in the order in which shards are pinned to them.
    pub allowed: Vec<usize>,
    /// Whole cores that the cgroup's CPU quota amounts to, at least 1; `None` without a quota, or if it covers all of `allowed`.
    pub quota: Option<usize>,
}

impl Cores {
    /// The cores of this process. Call it before a thread is pinned.
    ///
    /// # Errors
    /// As [`CoreSet::allowed`].
    pub fn of_process() -> io::Result<Cores> {
        let allowed = CoreSet::allowed()?.cores().collect();
        // The standard library reads the quotas of the process's cgroup (v1 and v2) and of all groups above it. On machines whose
        // cores do not fit its mask of 1,024, it takes the lower one of the quota and the number of cores that are online.
        let parallelism = thread::available_parallelism().map_or(usize::MAX, usize::from);
        Ok(Cores::new(allowed, parallelism, sched_getcpu()))
    }

    /// `parallelism`: how many cores may be busy at the same time. `current`: a core that was idle lately.
    fn new(mut allowed: Vec<usize>, parallelism: usize, current: usize) -> Cores {
        let quota = Some(parallelism).filter(|cores| *cores < allowed.len());
        if quota.is_some() {
            // Not all cores get a shard. If all servers on a machine began with core 0, they would share it.
            let first = allowed.iter().position(|core| *core == current).unwrap_or(0);
            allowed.rotate_left(first);
        }
        Cores { allowed, quota }
    }

    /// Shards to run on these cores by default.
    pub fn shards_default(&self) -> usize {
        self.quota.unwrap_or(self.allowed.len())
    }

    /// What to log about the quota, if there is one: a warning if this number of shards exceeds it.
    pub fn quota_notice(&self, shards: u16) -> Option<(Level, String)> {
        let quota = self.quota?;
        let worth = format!("the CPU quota covers {quota} of {} cores; shards: {shards}", self.allowed.len());
        if usize::from(shards) <= quota {
            return Some((Level::Info, worth));
        }
        let text = format!(
            "{worth}. Under load the kernel stops them all for tens of milliseconds at a time: set --shards {quota}, or raise the \
             quota (cpu.max or cpu.cfs_quota_us of the cgroup)"
        );
        Some((Level::Warn, text))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_is_pinned_to_an_allowed_core_only() {
        let core = CoreSet::allowed().unwrap().cores().last().unwrap();
        let pinned = thread::spawn(move || {
            pin_to(core).unwrap();
            CoreSet::allowed().unwrap()
        });
        assert_eq!(pinned.join().unwrap().cores().collect::<Vec<_>>(), [core]);
        for missing in [1_023, 1_024, CORE_HIGHEST, CORE_HIGHEST + 1, usize::MAX] {
            let error = pin_to(missing).unwrap_err().to_string();
            assert!(error.contains(&format!("core {missing}: ")), "{error}");
        }
    }

    #[test]
    fn a_mask_grows_until_the_kernel_accepts_it() {
        let mut sizes = Vec::new();
        let set = growing(|mask| {
            sizes.push(mask.len() * WORD_BITS);
            if mask.len() * WORD_BITS < 4_096 {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            [0, 1_024, 4_095].iter().for_each(|core| mask[core / WORD_BITS] |= 1 << (core % WORD_BITS));
            Ok(())
        });
        assert_eq!(set.unwrap().cores().collect::<Vec<_>>(), [0, 1_024, 4_095]);
        assert_eq!(sizes, [1_024, 2_048, 4_096]);
        let refused = |errno| growing(|_| Err(io::Error::from_raw_os_error(errno))).unwrap_err();
        assert_eq!(refused(libc::EINVAL).raw_os_error(), Some(libc::EINVAL), "a bounded number of attempts");
        assert_eq!(refused(libc::EPERM).raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn a_set_holds_cores_above_1_023() {
        let set = CoreSet::from_iter([5_000, 3, 1_500, usize::MAX]);
        assert_eq!(set.cores().collect::<Vec<_>>(), [3, 1_500, 5_000]);
        assert_eq!(CoreSet::default().cores().count(), 0);
    }

    #[test]
    fn sets_are_equal_if_they_hold_the_same_cores_whatever_their_length() {
        let from_kernel = growing(|mask| {
            mask[0] = 0b101;
            Ok(())
        });
        assert_eq!(from_kernel.unwrap(), CoreSet::from_iter([0, 2]));
        assert_eq!(growing(|_| Ok(())).unwrap(), CoreSet::default());
        assert_ne!(CoreSet::from_iter([0, 2]), CoreSet::from_iter([0, 2, 1_024]));
        assert_ne!(CoreSet::from_iter([2]), CoreSet::from_iter([1]));
    }

    #[test]
    fn a_quota_below_the_cores_limits_the_shards_and_where_they_begin() {
        let cores = |parallelism, current| Cores::new(vec![0, 1, 4, 5], parallelism, current);
        for parallelism in [4, 5, usize::MAX] {
            let all = cores(parallelism, 4);
            assert_eq!((&*all.allowed, all.shards_default()), (&[0, 1, 4, 5][..], 4));
            assert_eq!(all.quota_notice(100), None, "without a quota, more shards are the operator's choice");
        }
        let limited = cores(2, 4);
        assert_eq!((&*limited.allowed, limited.shards_default()), (&[4, 5, 0, 1][..], 2));
        assert_eq!(cores(2, 7).allowed, [0, 1, 4, 5]);
        assert_eq!(limited.quota_notice(2).unwrap().0, Level::Info);
        let (level, text) = limited.quota_notice(3).unwrap();
        assert_eq!(level, Level::Warn);
        assert!(text.contains("covers 2 of 4 cores; shards: 3") && text.contains("set --shards 2"), "{text}");
    }
}
