//! What the service manager is told (sd_notify(3)): ready, alive, stopping. Nothing where there is none (NOTIFY_SOCKET is
//! not set).

use std::sync::Arc;

use sd_notify::NotifyState;

use crate::process::watchdog::{LOOKS_PER_PERIOD, Look, Watchdog};
use tickcast_core::{
    mesh::ring::Doorbell,
    metrics::counters::{Counter, Counters},
};
use tickcast_proto::ids::ShardId;

/// What stopping takes at most besides the drain: the sources, the executors, what the log still has.
const STOP_MARGIN_NS: u64 = 3_000_000_000;
/// Shortest pause between two looks, whatever period was asked for.
const LOOK_NS_LOWEST: u64 = 1_000_000;

/// Every shard listens, and the sources run. `listening`: the addresses, as `systemctl status` shows them.
pub fn ready(listening: &str) {
    let status = format!("serving {listening}");
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// The server stops, and takes `drain_ns` for it at most: a longer drain than the unit's TimeoutStopSec asks for more time.
pub fn stopping(drain_ns: u64) {
    let status = format!("draining, {:.1} s at most", drain_ns as f64 / 1e9);
    let extended = NotifyState::ExtendTimeoutUsec(extended_us(drain_ns));
    tell(&[NotifyState::Stopping, extended, NotifyState::Status(&status)]);
}

/// How long stopping may take, microseconds: 71 minutes at most, which is all that can be said. Never shorter than the
/// unit says: the service manager takes the later of both.
fn extended_us(drain_ns: u64) -> u32 {
    u32::try_from(drain_ns.saturating_add(STOP_MARGIN_NS) / 1_000).unwrap_or(u32::MAX)
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        ::log::warn!("the service manager cannot be told: {error} (NOTIFY_SOCKET)");
    }
}

/// The service manager's watchdog (WatchdogSec= of the unit), fed by the main thread.
pub struct Feeder {
    watchdog: Option<Period>,
    shards: Vec<Watched>,
}

struct Period {
    watchdog: Watchdog,
    look_ns: u64,
    next_ns: u64,
}

/// What shows that a shard is alive, and what wakes it.
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
    /// For shards with these counters, in order, that these doorbells wake. Nothing is ever fed unless the service manager
    /// asks for it.
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
            let look_ns = (period.as_nanos() as u64 / LOOKS_PER_PERIOD).max(LOOK_NS_LOWEST);
            Period {
                watchdog: Watchdog::new(shards.iter().map(Watched::turns)),
                look_ns,
                // At once: a shard that is well answers the first ring before the second look.
                next_ns: now_ns,
            }
        });
        Feeder { watchdog, shards }
    }

    /// A shard has ended: it is not waited for.
    pub fn shard_ended(&mut self, shard: ShardId) {
        if let Some(watched) = self.shards.get_mut(usize::from(shard.0)) {
            watched.ended = true;
        }
    }

    /// Looks and feeds if it is time to. Returns nanoseconds until it is again; `None`: never.
    pub fn turn(&mut self, now_ns: u64) -> Option<u64> {
        let period = self.watchdog.as_mut()?;
        if now_ns >= period.next_ns {
            period.next_ns = now_ns + period.look_ns;
            let turns = self.shards.iter().map(|shard| (!shard.ended).then(|| shard.turns()));
            match period.watchdog.look(turns) {
                Look::Feed => tell(&[NotifyState::Watchdog]),
                Look::Wait { shard, tell: true } => {
                    ::log::warn!("shard {shard} stands still: the watchdog is not fed until it turns again");
                }
                Look::Wait { .. } => {}
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
    fn stopping_may_take_the_drain_and_a_little_more_and_any_drain_can_be_said() {
        assert_eq!(extended_us(5_000_000_000), 8_000_000);
        assert_eq!(extended_us(0), 3_000_000);
        assert_eq!(extended_us(u64::MAX), u32::MAX);
    }
}
