//! Retries while the kernel is out of memory: the kernel releases the locked memory of an exited server with a delay.

use std::io;

use crate::clock;

/// Pause between two attempts.
const PAUSE_NS: u64 = 100_000_000;

/// Repeats `attempt` while it fails with ENOMEM, every 100 ms until `give_up_ns` (CLOCK_MONOTONIC). Blocks.
///
/// # Errors
/// The error of the last attempt.
pub(in crate::transport) fn while_out_of_memory<T>(
    give_up_ns: u64,
    attempt: impl Fn() -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match attempt() {
            Err(error)
                if error.kind() == io::ErrorKind::OutOfMemory && clock::monotonic_ns() < give_up_ns =>
            {
                clock::sleep_ns(PAUSE_NS);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn only_enomem_is_retried_and_only_until_the_deadline() {
        let enomem = || io::Error::from_raw_os_error(libc::ENOMEM);
        let attempts = Cell::new(0);
        let attempt = |succeed_at: u32, error: fn() -> io::Error| {
            attempts.set(attempts.get() + 1);
            if attempts.get() == succeed_at { Ok(()) } else { Err(error()) }
        };
        assert!(while_out_of_memory(u64::MAX, || attempt(2, enomem)).is_ok());
        assert_eq!(attempts.take(), 2);
        assert!(while_out_of_memory(0, || attempt(2, enomem)).is_err());
        assert_eq!(attempts.take(), 1);
        let emfile = || io::Error::from_raw_os_error(libc::EMFILE);
        assert!(while_out_of_memory(u64::MAX, || attempt(2, emfile)).is_err());
        assert_eq!(attempts.take(), 1);
    }
}
