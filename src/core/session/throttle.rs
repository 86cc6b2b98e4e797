//! Sessions whose tenant has used up its egress quota: they wait with their SENDs as for a full socket, so that their policies
//! decide what they lose.

use super::{SendState, table::Sessions};
use crate::{
    ids::{SlotId, TenantId},
    now::Now,
};

impl Sessions {
    /// Makes the sessions of a tenant wait with their next SENDs, or no longer.
    pub fn throttle(&mut self, tenant: TenantId, throttles: bool) {
        self.queues.throttled.retain(|throttled| *throttled != tenant);
        if throttles {
            self.queues.throttled.push(tenant);
        }
    }

    /// The next session that has begun to wait since it was last asked.
    #[inline]
    pub fn pop_newly_throttled(&mut self) -> Option<SlotId> {
        self.queues.newly_throttled.pop()
    }

    /// Lets a session go on that waits for its tenant's quota. Returns whether it did: the caller then serves it as after a SEND.
    pub fn release_throttled(&mut self, slot: SlotId, now: Now) -> bool {
        let Some(session) = self.any_mut(slot).filter(|session| session.send_state == SendState::Throttled)
        else {
            return false;
        };
        session.send_state = SendState::Idle;
        // It could not be pinged meanwhile.
        session.drained_since_heartbeat = true;
        self.note_fullness(slot, false, now);
        true
    }
}
