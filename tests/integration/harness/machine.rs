//! Runs tests side by side or alone, and stops tests that hang.

use std::{
    cell::RefCell,
    sync::{
        Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A test that runs for longer hangs in a call without a guard. Its servers are killed, so that the call fails.
const HUNG_AFTER: Duration = Duration::from_secs(900);

/// Tests that load the whole machine run alone; the others run side by side, and those that mostly wait beside any.
static MACHINE: RwLock<()> = RwLock::new(());

type Pids = Arc<Mutex<Vec<u32>>>;

thread_local! {
    /// Servers of the test on this thread that have not been waited for.
    static SERVERS: RefCell<Pids> = RefCell::default();
}

/// Permission to run, and the watchdog.
pub struct Machine {
    _lock: Lock,
    /// Ends the watchdog when dropped.
    _watchdog: Sender<()>,
}

#[expect(dead_code, reason = "held, not read")]
enum Lock {
    Beside(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
    Waits,
}

/// For a test that may run beside others of this kind.
pub fn beside_others() -> Machine {
    watch(Lock::Beside(MACHINE.read().unwrap_or_else(|poisoned| poisoned.into_inner())))
}

/// For a test that opens thousands of connections or saturates the cores.
pub fn alone() -> Machine {
    watch(Lock::Alone(MACHINE.write().unwrap_or_else(|poisoned| poisoned.into_inner())))
}

/// For a test that waits for a minute or more and needs little of the machine: tests of the other two kinds run meanwhile.
pub fn while_waiting() -> Machine {
    watch(Lock::Waits)
}

/// Notes a server started by the test on this thread.
pub fn register(pid: u32) {
    SERVERS.with_borrow(|servers| servers.lock().unwrap().push(pid));
}

/// Forgets a server that is about to be waited for: its pid may be reused from then on.
pub fn forget(pid: u32) {
    SERVERS.with_borrow(|servers| servers.lock().unwrap().retain(|&server| server != pid));
}

fn watch(lock: Lock) -> Machine {
    let servers = Pids::default();
    SERVERS.set(servers.clone());
    let (watchdog, test) = channel();
    thread::spawn(move || {
        if test.recv_timeout(HUNG_AFTER) == Err(RecvTimeoutError::Timeout) {
            for &pid in servers.lock().unwrap().iter() {
                eprintln!("the test hangs: killing server {pid}");
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
        }
    });
    Machine { _lock: lock, _watchdog: watchdog }
}
