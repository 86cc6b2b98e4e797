//! Notifications to the service manager (sd_notify(3)): ready, alive, stopping. No-ops if NOTIFY_SOCKET is not set, or empty.

use std::{
    env,
    ffi::OsStr,
    fmt::Write,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use sd_notify::NotifyState;

use crate::process::watchdog::{CHECKS_PER_PERIOD, Verdict, Watchdog};
use tickcast_core::{
    mesh::ring::Doorbell,
    metrics::counters::{Counter, Counters},
};
use tickcast_proto::ids::ShardId;

/// Time for stopping in addition to the drain: for sources, executors and the last log lines.
const STOP_MARGIN_NS: u64 = 3_000_000_000;
/// Longest wait for room in the service manager's socket.
const NOTIFY_TIMEOUT: Duration = Duration::from_millis(100);
/// Shortest pause between two watchdog checks, however short the unit's period.
const CHECK_NS_LOWEST: u64 = 1_000_000;

/// Reports that every shard listens and the sources run. `listening`: the addresses, for `systemctl status`.
pub fn ready(listening: &str) {
    let status = format!("serving {listening}");
    notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// Reports that the server is draining for at most `drain_ns`, and asks for more time than TimeoutStopSec= if necessary.
pub fn stopping(drain_ns: u64) {
    let status = format!("draining, at most {:.1} s", drain_ns as f64 / 1e9);
    let extended = NotifyState::ExtendTimeoutUsec(stop_timeout_us(drain_ns));
    notify(&[NotifyState::Stopping, extended, NotifyState::Status(&status)]);
}

/// Stop time to request, in microseconds; the type caps it at 71 minutes.
///
/// Cannot shorten the unit's timeout: the service manager takes the later of both.
fn stop_timeout_us(drain_ns: u64) -> u32 {
    u32::try_from(drain_ns.saturating_add(STOP_MARGIN_NS) / 1_000).unwrap_or(u32::MAX)
}

/// Sends these states. Logs a failure only once until a notification succeeds again, not at every check of the watchdog.
fn notify(states: &[NotifyState<'_>]) {
    static IS_FAILING: AtomicBool = AtomicBool::new(false);
    let Some(address) = env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty()) else { return };
    let sent = socket_address(&address).and_then(|to| send(&to, states));
    let was_failing = IS_FAILING.swap(sent.is_err(), Relaxed);
    if let Err(error) = sent
        && !was_failing
    {
        ::log::warn!("cannot notify the service manager: NOTIFY_SOCKET={}: {error}", address.display());
    }
}

/// The socket that NOTIFY_SOCKET names: a path, or `@` and the name of an abstract socket. (The sd-notify crate, which formats
/// the messages, treats every address as a path.)
fn socket_address(address: &OsStr) -> io::Result<SocketAddr> {
    match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(address),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "only a path or @ and an abstract name are supported",
        )),
    }
}

fn send(to: &SocketAddr, states: &[NotifyState<'_>]) -> io::Result<()> {
    let mut text = String::new();
    for state in states {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{state}");
    }
    let socket = UnixDatagram::unbound()?;
    // A stuck service manager must not block the main thread.
    socket.set_write_timeout(Some(NOTIFY_TIMEOUT))?;
    // A datagram is sent whole or not at all.
    socket.send_to_addr(text.as_bytes(), to).map(drop)
}

/// Notifies the service manager's watchdog (WatchdogSec= of the unit) from the main thread.
pub struct Feeder {
    watchdog: Option<Period>,
    shards: Vec<Watched>,
}

struct Period {
    watchdog: Watchdog,
    check_ns: u64,
    next_ns: u64,
}

/// A shard's counters, which show its progress, and the doorbell that wakes it.
struct Watched {
    counters: Arc<Counters>,
    bell: Arc<Doorbell>,
    ended: bool,
}

impl Watched {
    fn turns(&self) -> u64 {
        self.counters.value(Counter::Turns)
    }
}

impl Feeder {
    /// For shards with these counters and doorbells, in shard order. Does nothing unless the service manager asks for a
    /// watchdog.
    pub fn new<'a>(
        shards: impl Iterator<Item = (&'a Arc<Counters>, &'a Arc<Doorbell>)>,
        now_ns: u64,
    ) -> Feeder {
        let watched = |(counters, bell): (&Arc<Counters>, &Arc<Doorbell>)| Watched {
            counters: counters.clone(),
            bell: bell.clone(),
            ended: false,
        };
        let shards: Vec<Watched> = shards.map(watched).collect();
        let watchdog = sd_notify::watchdog_enabled().map(|period| {
            let check_ns = (period.as_nanos() as u64 / CHECKS_PER_PERIOD).max(CHECK_NS_LOWEST);
            Period {
                watchdog: Watchdog::new(shards.iter().map(Watched::turns)),
                check_ns,
                // Immediately: a healthy shard responds to the first doorbell before the second check.
                next_ns: now_ns,
            }
        });
        Feeder { watchdog, shards }
    }

    /// Stops watching a shard that has ended.
    pub fn shard_ended(&mut self, shard: ShardId) {
        let watched = self.shards.get_mut(usize::from(shard.0));
        debug_assert!(watched.is_some(), "only a shard of this server can end");
        if let Some(watched) = watched {
            watched.ended = true;
        }
    }

    /// Checks the shards and notifies the watchdog when it is time. Returns the nanoseconds until the next check; `None` without
    /// a watchdog.
    pub fn turn(&mut self, now_ns: u64) -> Option<u64> {
        let period = self.watchdog.as_mut()?;
        if now_ns >= period.next_ns {
            period.next_ns = now_ns + period.check_ns;
            let turns = self.shards.iter().map(|shard| (!shard.ended).then(|| shard.turns()));
            match period.watchdog.check(turns) {
                Verdict::Feed => notify(&[NotifyState::Watchdog]),
                Verdict::Wait { shard, log: true } => {
                    ::log::warn!(
                        "shard {shard} is stuck: the watchdog is not notified until it makes progress"
                    );
                }
                Verdict::Wait { .. } => {}
            }
            self.shards.iter().for_each(|shard| shard.bell.ring());
        }
        Some(period.next_ns - now_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_reaches_a_path_and_an_abstract_name() {
        let name = format!("tickcast-notify-{}", std::process::id());
        let path = env::temp_dir().join(&name);
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        for (socket, address) in [
            (UnixDatagram::bind_addr(&abstract_name), format!("@{name}")),
            (UnixDatagram::bind(&path), path.display().to_string()),
        ] {
            let socket = socket.unwrap();
            let to = socket_address(address.as_ref()).unwrap();
            send(&to, &[NotifyState::Ready, NotifyState::Status("s")]).unwrap();
            let mut buffer = [0; 64];
            let len = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], b"READY=1\nSTATUS=s\n");
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn an_unknown_kind_of_address_is_refused() {
        for address in ["vsock:2:1234", "run/notify", "", &format!("@{}", "x".repeat(200))] {
            assert!(socket_address(address.as_ref()).is_err(), "{address}");
        }
    }

    #[test]
    fn the_stop_timeout_is_the_drain_plus_a_margin_and_saturates() {
        assert_eq!(stop_timeout_us(5_000_000_000), 8_000_000);
        assert_eq!(stop_timeout_us(0), 3_000_000);
        assert_eq!(stop_timeout_us(u64::MAX), u32::MAX);
    }
}
