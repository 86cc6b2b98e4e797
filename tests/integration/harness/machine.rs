//! Who may use the machine, and what ends a test that hangs.

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

/// A test that runs for longer hangs in a call that has no guard of its own. Its servers are ended, and the call fails.
const HUNG_AFTER: Duration = Duration::from_secs(900);

/// Tests that load the whole machine run alone; the others beside each other.
static MACHINE: RwLock<()> = RwLock::new(());

type Pids = Arc<Mutex<Vec<u32>>>;

thread_local! {
    /// The servers of the test that runs on this thread and that have not been waited for.
    static SERVERS: RefCell<Pids> = RefCell::default();
}

/// The right to run, and the watch over it.
pub struct Machine {
    _lock: Lock,
    /// Dropped with the test: the watchdog ends.
    _watchdog: Sender<()>,
}

#[expect(dead_code, reason = "held, not read")]
enum Lock {
    Beside(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

/// For a test that may run beside others.
pub fn beside_others() -> Machine {
    watch(Lock::Beside(MACHINE.read().unwrap_or_else(|poisoned| poisoned.into_inner())))
}

/// For a test that opens thousands of connections or saturates the cores.
pub fn alone() -> Machine {
    watch(Lock::Alone(MACHINE.write().unwrap_or_else(|poisoned| poisoned.into_inner())))
}

/// A server has been started by the test on this thread.
pub fn register(pid: u32) {
    SERVERS.with_borrow(|servers| servers.lock().unwrap().push(pid));
}

/// A server is about to be waited for: from then on its pid may be another's.
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
                eprintln!("the test hangs: ending server {pid}");
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
        }
    });
    Machine { _lock: lock, _watchdog: watchdog }
}
