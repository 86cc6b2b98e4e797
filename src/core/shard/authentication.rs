//! Authentication of sessions. Credentials leave the shard, and a verdict comes back.

use std::sync::Arc;

use super::Shard;
use crate::{
    ids::{SessionId, SlotId},
    now::Now,
    principal::{AuthRefusal, Credentials, Principal, Revocation},
};

impl Shard {
    /// Returns the next credentials to verify, and the session that waits for the verdict.
    ///
    /// The caller answers each with one [`Shard::handle_verdict`], also if it drops them ([`AuthRefusal::Busy`]), and whether the
    /// session still exists or not: until then they count against [`AuthLimits::waiting_max`](crate::config::AuthLimits).
    pub fn poll_credentials(&mut self) -> Option<(SessionId, Credentials)> {
        None
    }

    /// Goes on with a session whose credentials have been verified. Call it for at most
    /// [`TURN_VERDICTS`](crate::limits::TURN_VERDICTS) sessions a turn, with the sockets' events, and [`Shard::poll_action`] after
    /// it. A session that has ended is ignored.
    pub fn handle_verdict(
        &mut self,
        _session: SessionId,
        _verdict: Result<Arc<Principal>, AuthRefusal>,
        _now: Now,
    ) {
    }

    /// Closes the sessions of a revoked principal with 3500, and refuses it for a while to those whose verdict is on its way: longer
    /// than a handshake takes. Later ones the verifier refuses. O(sessions). Returns how many sessions it has closed.
    pub fn revoke(&mut self, _revocation: &Revocation, _now: Now) -> usize {
        0
    }

    /// Notes the name in a client's TLS certificate. Call it right after [`Shard::handle_accept`].
    pub fn set_certificate_name(&mut self, _slot: SlotId, _name: &str) {}

    /// Lets a session publish nothing: its listener is read-only. Call it right after [`Shard::handle_accept`].
    pub fn set_read_only(&mut self, _slot: SlotId) {}
}
