//! Intake of requests: how sessions, other shards and sources share a shard's room, and the units of delivery in a turn.

use super::{Action, Shard};
use crate::{
    fanout::DeliveryCounts,
    ids::SlotId,
    limits::{TURN_DELIVERY_UNITS_PREFERRED, TURN_INPUT_BYTES},
    metrics::counters::Counter,
    now::Now,
    session::{InputState, Session},
};
use tickcast_proto::ids::ShardId;

/// Where requests come from. While the delivery stages are more than half full, only one kind may fill the rest, and the
/// kinds take turns, so that none can fill the room that another waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IntakeKind {
    /// This shard's sessions.
    Sessions,
    /// The other shards.
    Mesh,
    /// Sources.
    Sources,
}

impl IntakeKind {
    /// The kind whose turn comes after this one's.
    pub(super) fn next(self, has_peers: bool) -> IntakeKind {
        match self {
            IntakeKind::Sessions if has_peers => IntakeKind::Mesh,
            IntakeKind::Sessions | IntakeKind::Mesh => IntakeKind::Sources,
            IntakeKind::Sources => IntakeKind::Sessions,
        }
    }
}

impl Shard {
    /// Adds the fan-out's counts since the last call to the counters, and charges its work to the turn's budget.
    pub(super) fn count_ticks(&mut self) {
        let work = self.take_counts();
        self.charge(work);
    }

    /// Adds the fan-out's counts since the last call to the counters. Returns its units of work.
    pub(super) fn take_counts(&mut self) -> usize {
        let tally = self.fanout.take_counts();
        if tally == DeliveryCounts::default() {
            return 0;
        }
        self.counters.add(Counter::TicksDelivered, tally.queued);
        self.counters.add(Counter::TicksTakenOut, tally.evicted);
        self.counters.add(Counter::TicksConflated, tally.conflated);
        self.counters.add(Counter::TicksDropped, tally.dropped);
        self.counters.add(Counter::LogHoles, tally.holes);
        self.counters.add(Counter::DeliveryUnits, tally.work() as u64);
        if tally.opening_units | tally.opening_lost > 0 {
            self.counters.add(Counter::OpeningUnits, tally.opening_units);
            self.counters.add(Counter::OpeningTicksLost, tally.opening_lost);
        }
        tally.work()
    }

    /// Charges units of delivery to the turn's budget for the kind of input being processed.
    pub(super) fn charge(&mut self, units: usize) {
        self.intake_units_left = self.intake_units_left.saturating_sub(units);
    }

    /// Returns whether this turn may take a request of this kind.
    fn admits(&self, kind: IntakeKind) -> bool {
        self.intake_units_left > 0
            && match self.preferred_intake == kind {
                true => self.stages.deliveries_have_room(),
                false => self.stages.deliveries_are_half_empty(),
            }
    }

    /// Begins to take requests of a kind in this turn. The preferred kind has units of delivery left, whatever the kinds before
    /// it have used.
    pub(super) fn begin_intake(&mut self, kind: IntakeKind) {
        if self.preferred_intake == kind {
            self.intake_units_left = self.intake_units_left.max(TURN_DELIVERY_UNITS_PREFERRED);
        }
    }

    /// Begins to take requests from another shard, or from a source (`None`), in this turn.
    pub fn begin_requests(&mut self, from: Option<ShardId>) {
        self.begin_intake(if from.is_some() { IntakeKind::Mesh } else { IntakeKind::Sources });
    }

    /// Returns whether this turn may take a request from another shard, or from a source (`None`). If not, a later turn
    /// may, once [`Shard::takes_requests`] returns `true`.
    pub fn admits_request(&self, from: Option<ShardId>) -> bool {
        self.admits(if from.is_some() { IntakeKind::Mesh } else { IntakeKind::Sources })
    }

    /// Returns whether this turn may process sessions' input. Input adds requests to other shards too.
    pub(super) fn takes_input(&self) -> bool {
        !self.input_stopped && self.admits(IntakeKind::Sessions) && self.stages.requests_have_room()
    }

    /// Pauses a session whose input waits for room, unless it is paused.
    pub(super) fn pause_if(&mut self, slot: SlotId, blocked: bool) {
        if let Some(session) = self.sessions.open_mut(slot)
            && blocked
            && !session.is_paused()
        {
            session.input_state = InputState::Paused;
            self.list_paused(slot);
            self.actions.push_back(Action::PauseReceive(slot));
            self.counters.add(Counter::InputPaused, 1);
        }
    }

    /// Lists a paused session by the room it waits for: its own, or the shard's. One that waits for a verdict is listed once
    /// that has come.
    pub(super) fn list_paused(&mut self, slot: SlotId) {
        if self.sessions.get(slot).is_some_and(Session::awaits_verdict) {
            return;
        }
        match self.takes_input_of(slot) {
            true => self.input_queue.push(slot),
            false => self.paused.push(slot),
        }
    }

    /// Resumes paused sessions in fair turns while there is room, for about [`TURN_INPUT_BYTES`]. Returns whether there
    /// were any.
    pub(super) fn resume_paused(&mut self, now: Now) -> bool {
        self.begin_intake(IntakeKind::Sessions);
        for slot in std::mem::take(&mut self.paused) {
            if self.sessions.open_mut(slot).is_some_and(|session| session.is_paused()) {
                self.list_paused(slot);
            }
        }
        let (mut resumed, mut bytes_left) = (false, TURN_INPUT_BYTES);
        while bytes_left > 0
            && self.takes_input()
            && let Some((slot, credit)) = self.input_queue.begin_turn()
        {
            let waits = self.sessions.open_mut(slot).is_some_and(|session| session.is_paused());
            let used = if waits { self.resume_input(slot, credit, now) } else { 0 };
            let session = self.sessions.open_mut(slot).filter(|session| session.is_paused());
            let is_paused = session.is_some();
            let takes_input = is_paused && self.takes_input_of(slot);
            self.input_queue.end_turn(slot, used, is_paused && takes_input);
            if is_paused && !takes_input {
                self.list_paused(slot);
            }
            bytes_left = bytes_left.saturating_sub(used.max(1));
            resumed |= waits;
        }
        resumed
    }

    /// Returns whether [`Shard::turn`] would resume a paused session, now or soon.
    pub(super) fn paused_can_resume(&self) -> bool {
        !self.input_queue.is_empty() || self.paused.iter().any(|&slot| self.takes_input_of(slot))
    }
}

#[cfg(test)]
mod share_tests;
#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{config::Limits, metrics::counters::Counters};

    #[test]
    fn the_preferred_kind_has_its_turn_whatever_the_others_have_used() {
        let mut shard = Shard::new(ShardId(0), 2, 1, Limits::default(), Arc::new(Counters::default()));
        for (kind, from) in [(IntakeKind::Mesh, Some(ShardId(1))), (IntakeKind::Sources, None)] {
            shard.preferred_intake = kind;
            shard.intake_units_left = 0;
            assert!(!shard.admits_request(from), "others have used the turn's units");
            shard.begin_requests(from);
            assert!(shard.admits_request(from), "{kind:?}");
        }
        shard.preferred_intake = IntakeKind::Sessions;
        shard.intake_units_left = 0;
        shard.begin_requests(None);
        assert!(!shard.admits_request(None), "sources are not preferred in this turn");
        shard.begin_intake(IntakeKind::Sessions);
        assert!(shard.takes_input());
    }
}
