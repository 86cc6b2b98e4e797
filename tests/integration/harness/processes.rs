//! Child processes: waited for with a guard, ended by pid.

use std::{process::Child, thread, time::Instant};

use super::{GUARD, LOOK_AGAIN};

/// Waits for a child's exit code; `None` for a signal. A child that does not end in time is ended and fails the test.
pub fn wait_for_exit(child: &mut Child) -> Option<i32> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if start.elapsed() > GUARD {
            end(child);
            panic!("process {} did not end", child.id());
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Ends a child that has not ended by itself.
pub fn end(child: &mut Child) {
    // Not yet waited for, so the pid is still this child's.
    if matches!(child.try_wait(), Ok(None)) {
        let _ = child.kill();
        let _ = child.wait();
    }
}
