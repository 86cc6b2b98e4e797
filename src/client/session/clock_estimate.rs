//! Round trips, and the offset between this machine's clock and the server's.

use std::collections::VecDeque;

/// Pings over which the shortest round trip and the fastest delivery are taken.
const PINGS_REMEMBERED: usize = 6;

/// How far this machine's clock is ahead of the server's.
///
/// A tick says when the server received it. The least of (arrival - receipt) is the offset plus the fastest delivery, which took
/// between nothing and the fastest round trip. So half of that round trip is subtracted, and is also the error. Both least values
/// are over the last [`PINGS_REMEMBERED`] pings.
#[derive(Debug, Default)]
pub(super) struct ClockEstimate {
    round_trips_ns: VecDeque<u64>,
    /// The least difference since each ping; `None`: no tick since.
    differences_ns: VecDeque<Option<i64>>,
}

impl ClockEstimate {
    /// A ping was sent.
    pub(super) fn handle_ping(&mut self) {
        remember(&mut self.differences_ns, None);
    }

    /// A pong has answered.
    pub(super) fn handle_pong(&mut self, round_trip_ns: u64) {
        remember(&mut self.round_trips_ns, round_trip_ns);
    }

    /// Adds a tick that is not of a snapshot: its arrival by this machine's clock minus its receipt by the server's.
    pub(super) fn handle_tick(&mut self, difference_ns: i64) {
        if let Some(last) = self.differences_ns.back_mut() {
            *last = Some(last.map_or(difference_ns, |least| least.min(difference_ns)));
        }
    }

    /// The shortest round trip, in nanoseconds; `None` before the first.
    pub(super) fn round_trip_ns(&self) -> Option<u64> {
        self.round_trips_ns.iter().copied().min()
    }

    /// This machine's clock minus the server's, in nanoseconds; `None` until a round trip and a tick are known.
    pub(super) fn offset_ns(&self) -> Option<i64> {
        let least = self.differences_ns.iter().flatten().min()?;
        let half = i64::try_from(self.round_trip_ns()? / 2).ok()?;
        Some(least.saturating_sub(half))
    }
}

fn remember<T>(values: &mut VecDeque<T>, value: T) {
    if values.len() >= PINGS_REMEMBERED {
        values.pop_front();
    }
    values.push_back(value);
}
