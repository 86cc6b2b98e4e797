//! Sessions of principals that a reload has changed or removed from the configuration file.

use crate::{
    ids::SlotId,
    limits::TURN_LISTED_REVIEWED,
    listed::Entry,
    now::Now,
    principal::{AuthRefusal, Principal},
    session::CloseReason,
    shard::Shard,
};
use std::sync::Arc;

impl Shard {
    /// Begins to compare all sessions with the principals that the file lists now.
    pub(in crate::shard) fn begin_listed_review(&mut self) {
        self.authentication.listed_review = Some(SlotId(0));
    }

    /// Compares the sessions in the next [`TURN_LISTED_REVIEWED`] slots. Returns whether there were any. Sessions that come
    /// meanwhile have been compared when their credentials were verified.
    pub(in crate::shard) fn review_listed(&mut self, now: Now) -> bool {
        let Some(SlotId(first)) = self.authentication.listed_review else { return false };
        let slots = self.sessions.slots_len();
        let end = slots.min(first.saturating_add(TURN_LISTED_REVIEWED as u32));
        for slot in (first..end).map(SlotId) {
            self.review_listed_in(slot, now);
        }
        self.authentication.listed_review = (end < slots).then_some(SlotId(end));
        true
    }

    /// Compares a session, unless it is anonymous and may be about to become the subject of its token: then a refused verdict ends
    /// it.
    pub(super) fn review_listed_in(&mut self, slot: SlotId, now: Now) {
        let Some(session) = self.sessions.open_mut(slot) else { return };
        let (Some(principal), proof) = (session.principal.clone(), session.proof) else { return };
        let is_anonymous =
            principal.listing.as_ref().is_some_and(|listing| listing.entry == Entry::Anonymous);
        if is_anonymous && self.authentication.awaits_verdict(session.id) {
            return;
        }
        match self.listed_now(&principal) {
            Ok(current) if Arc::ptr_eq(&current, &principal) => {}
            Ok(current) => {
                let has_changed = self.set_principal(slot, current, now);
                if let Some(session) = self.sessions.open_mut(slot) {
                    // It is anonymous, or waits for a verdict, as before.
                    session.proof = proof;
                }
                if has_changed {
                    self.queue_review(slot, now);
                }
            }
            Err(refusal) => self.end(slot, CloseReason::Unauthorized(refusal), now),
        }
    }

    /// Returns a principal as the configuration file lists it now; see [`Listed::current`](crate::listed::Listed::current).
    pub(super) fn listed_now(&self, principal: &Arc<Principal>) -> Result<Arc<Principal>, AuthRefusal> {
        match &self.limits.auth {
            Some(auth) => auth.listed.current(principal),
            None => Ok(principal.clone()),
        }
    }
}
