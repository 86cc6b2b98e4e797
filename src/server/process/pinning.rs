//! Pins a thread to one core.

use std::io;

use rustix::thread::{CpuSet, sched_setaffinity};

/// Pins the calling thread to one core.
///
/// glommio's `Placement::Fixed` reads the machine's topology first, and panics where a sandbox has no /sys. The call itself
/// (sched_setaffinity(2)) needs no sysfs.
///
/// # Errors
/// The core does not exist, or this process may not use it.
pub fn pin_to(core: usize) -> io::Result<()> {
    let failed = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot pin a thread to core {core}: {error}"))
    };
    if core >= CpuSet::MAX_CPU {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    }
    let mut only = CpuSet::new();
    only.set(core);
    sched_setaffinity(None, &only).map_err(|errno| failed(errno.into()))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::thread::sched_getaffinity;

    use super::*;

    #[test]
    fn a_thread_is_pinned_to_an_allowed_core_only() {
        let allowed = sched_getaffinity(None).unwrap();
        let core = (0..CpuSet::MAX_CPU).rfind(|&core| allowed.is_set(core)).unwrap();
        let pinned = thread::spawn(move || {
            pin_to(core).unwrap();
            sched_getaffinity(None).unwrap()
        });
        let pinned = pinned.join().unwrap();
        assert!(pinned.count() == 1 && pinned.is_set(core));
        for missing in [CpuSet::MAX_CPU - 1, CpuSet::MAX_CPU, usize::MAX] {
            let error = pin_to(missing).unwrap_err().to_string();
            assert!(error.contains(&format!("core {missing}: ")), "{error}");
        }
    }
}
