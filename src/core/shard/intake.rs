//! Intake of requests: how sessions, other shards and sources share a shard's room.

use super::{Action, Shard};
use crate::{
    ids::SlotId, limits::TURN_INPUT_BYTES, metrics::counters::Counter, now::Now, session::InputState,
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
    /// Returns whether this turn may take a request of this kind.
    fn admits(&self, kind: IntakeKind) -> bool {
        self.takes_deliveries()
            && match self.preferred_intake == kind {
                true => self.stages.deliveries_have_room(),
                false => self.stages.deliveries_are_half_empty(),
            }
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

    /// Lists a paused session by the room it waits for: its own, or the shard's.
    fn list_paused(&mut self, slot: SlotId) {
        match self.sessions.get(slot).is_some_and(|session| session.takes_input()) {
            true => self.input_queue.push(slot),
            false => self.paused.push(slot),
        }
    }

    /// Resumes paused sessions in fair turns while there is room, for about [`TURN_INPUT_BYTES`]. Returns whether there
    /// were any.
    pub(super) fn resume_paused(&mut self, now: Now) -> bool {
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
            let (is_paused, takes_input) =
                (session.is_some(), session.is_some_and(|session| session.takes_input()));
            self.input_queue.end_turn(slot, used, is_paused && takes_input);
            if is_paused && !takes_input {
                self.paused.push(slot);
            }
            bytes_left = bytes_left.saturating_sub(used.max(1));
            resumed |= waits;
        }
        resumed
    }

    /// Returns whether [`Shard::turn`] would resume a paused session, now or soon.
    pub(super) fn paused_can_resume(&self) -> bool {
        !self.input_queue.is_empty()
            || self
                .paused
                .iter()
                .any(|&slot| self.sessions.get(slot).is_some_and(|session| session.takes_input()))
    }
}
