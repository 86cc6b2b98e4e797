//! Requests that exceed a budget: they are refused and counted, and beyond a number per second no longer read.

use super::{Shard, timers::TimerKind};
use crate::{
    budgets::{Cost, Payer},
    ids::SlotId,
    limits::THROTTLE_MS,
    metrics::counters::Counter,
    now::Now,
};
use tickcast_proto::ErrorCode;

impl Shard {
    /// Charges what a session's request costs. Returns `false` after answering the request with an error if a budget is used
    /// up.
    pub(super) fn pay(&mut self, slot: SlotId, request: u32, costs: &[Cost], now: Now) -> bool {
        let Some(session) = self.sessions.open_mut(slot) else { return false };
        let payer = Payer { session: session.id, source: session.source };
        let Err(overspent) = self.budgets.spend(payer, costs, now.monotonic_ns) else { return true };
        self.counters.add(overspent.counter(), 1);
        let text = overspent.text(&self.limits.budgets);
        self.fail(slot, request, ErrorCode::RateLimited, &text, now);
        if !self.budgets.note_refusal(payer.session, now.monotonic_ns) {
            self.throttle(slot, now);
        }
        false
    }

    /// Makes the input of a session wait for [`THROTTLE_MS`].
    fn throttle(&mut self, slot: SlotId, now: Now) {
        let Some(session) = self.sessions.open_mut(slot) else { return };
        if std::mem::replace(&mut session.is_throttled, true) {
            return;
        }
        let id = session.id;
        self.counters.add(Counter::InputThrottled, 1);
        let until_ns = now.monotonic_ns.saturating_add(THROTTLE_MS * 1_000_000);
        self.set_timer(until_ns, TimerKind::Throttle, id);
    }
}

#[cfg(test)]
mod tests;
