//! Sessions whose tenant has used up its egress quota. Their SENDs wait as for a full socket, so that their policies determine
//! what they lose.

use super::{SendState, table::Sessions};
use crate::{
    ids::{SlotId, TenantId},
    now::Now,
};

impl Sessions {
    /// Makes the sessions of a tenant wait with their next SENDs, or stops that.
    pub fn throttle(&mut self, tenant: TenantId, throttles: bool) {
        self.queues.throttled.retain(|throttled| *throttled != tenant);
        if throttles {
            self.queues.throttled.push(tenant);
        }
    }

    /// The next session that has started to wait since the last call.
    #[inline]
    pub fn pop_newly_throttled(&mut self) -> Option<SlotId> {
        self.queues.newly_throttled.pop()
    }

    /// Resumes a session that waits for its tenant's quota. Returns whether it did; the caller then treats it as after a SEND.
    pub fn release_throttled(&mut self, slot: SlotId, now: Now) -> bool {
        let Some(session) = self.any_mut(slot).filter(|session| session.send_state == SendState::Throttled)
        else {
            return false;
        };
        session.send_state = SendState::Idle;
        // It could not be pinged in the meantime.
        session.drained_since_heartbeat = true;
        self.note_fullness(slot, false, now);
        true
    }
}
