//! The expiry of sessions' tokens: announced ahead, and after a grace the end of the session.

use super::Expiry;
use crate::{
    ids::SlotId,
    limits::EXPIRY_LOOK_NS,
    listed::Entry,
    now::Now,
    principal::{AuthRefusal, Principal},
    session::CloseReason,
    shard::{Shard, timers::TimerKind},
};
use tickcast_proto::{features::Features, reply::Reply};

/// Interval at which an expired token is checked again while the next one is being verified, nanoseconds.
const VERDICT_LOOK_NS: i128 = 100_000_000;

impl Shard {
    /// Tells a client that has the feature `tokens` when its token expires.
    pub(super) fn reply_expires(&mut self, slot: SlotId, request: u32, now: Now) {
        let Some(session) = self.sessions.open_mut(slot) else { return };
        if !session.features.contains(Features::TOKENS) {
            return;
        }
        let left_ns = session.principal.as_deref().and_then(|principal| left_ns(principal, now));
        // 0 means never.
        let seconds = |left_ns: i128| ((left_ns + 999_999_999) / 1_000_000_000).clamp(1, u32::MAX.into());
        let expires_in_s = left_ns.map_or(0, |left_ns| seconds(left_ns) as u32);
        self.reply(slot, &Reply::Expires { request, expires_in_s });
    }

    /// Begins to watch the expiry of a session's token, if it expires.
    pub(super) fn watch_expiry(&mut self, slot: SlotId, now: Now) {
        self.authentication.expiries.remove(&slot);
        let Some(auth) = &self.limits.auth else { return };
        let principal = self.sessions.open_mut(slot).and_then(|session| session.principal.as_deref());
        if let Some(left_ns) = principal.and_then(|principal| left_ns(principal, now)) {
            // The answer to the hello or refresh announces it.
            let is_announced = left_ns <= i128::from(auth.warning_ns);
            self.set_expiry(slot, left_ns, is_announced, now);
        }
    }

    fn set_expiry(&mut self, slot: SlotId, left_ns: i128, is_announced: bool, now: Now) {
        let Some((auth, session)) = self.limits.auth.as_ref().zip(self.sessions.open_mut(slot)) else {
            return;
        };
        let id = session.id;
        let wait_ns = match (session.awaits_verdict(), is_announced) {
            // The new token decides.
            (true, _) => VERDICT_LOOK_NS,
            (false, true) => left_ns + i128::from(auth.grace_ns),
            (false, false) => left_ns - i128::from(auth.warning_ns),
        };
        let due_ns = now.monotonic_ns.saturating_add(wait_ns.clamp(0, EXPIRY_LOOK_NS.into()) as u64);
        self.authentication.expiries.insert(slot, Expiry { due_ns, is_announced });
        self.set_timer(due_ns, TimerKind::Expiry, id);
    }

    /// Announces the expiry of a session's token or certificate, or ends the session when that has expired.
    pub(in crate::shard) fn check_expiry(&mut self, slot: SlotId, now: Now) {
        let expiry =
            self.authentication.expiries.get(&slot).filter(|expiry| expiry.due_ns <= now.monotonic_ns);
        let (Some(&Expiry { is_announced, .. }), Some(auth)) = (expiry, &self.limits.auth) else { return };
        let Some(session) = self.sessions.open_mut(slot) else { return };
        let Some(left_ns) = session.principal.as_deref().and_then(|principal| left_ns(principal, now)) else {
            return debug_assert!(false, "only the expiry of a token that expires is watched");
        };
        if left_ns + i128::from(auth.grace_ns) <= 0 && !session.awaits_verdict() {
            let listing = session.principal.as_deref().and_then(|principal| principal.listing.as_ref());
            let refusal = match listing.map(|listing| &listing.entry) {
                Some(Entry::Certificate(_)) => AuthRefusal::CertificateExpired,
                _ => AuthRefusal::Expired,
            };
            return self.end(slot, CloseReason::Unauthorized(refusal), now);
        }
        let announces = !is_announced && left_ns <= i128::from(auth.warning_ns);
        if announces {
            self.reply_expires(slot, 0, now);
        }
        self.set_expiry(slot, left_ns, is_announced || announces, now);
    }
}

/// Time until a principal's credentials expire, by the system's clock, nanoseconds; negative: they have expired. `None`: they
/// never expire.
fn left_ns(principal: &Principal, now: Now) -> Option<i128> {
    let expires_at_s = principal.expires_at_s?;
    Some(i128::from(expires_at_s) * 1_000_000_000 - i128::from(now.realtime_ns))
}
