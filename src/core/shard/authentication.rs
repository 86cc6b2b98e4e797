//! Authentication of sessions. Credentials leave the shard, and a verdict comes back. Meanwhile the session's input waits, and
//! its socket is not read.
//!
//! ```text
//!  HELLO with a token; upgrade with a token; TLS certificate      the handshake waits: nothing has been answered
//!  hello with a token on a WebSocket; refresh                     what follows waits
//!      |
//!  poll_credentials() -> (session, credentials)                   the driver passes them to the verifiers
//!  handle_verdict(session, principal or refusal)
//!      |                          |
//!      |                          '-> CLOSING; a WebSocket is upgraded first, so that a browser can read the code
//!      '-> handover to the shard of the identity, with the principal; WELCOME; EXPIRES; subscriptions are reviewed
//! ```
//!
//! A token's subject is the client's identity and takes precedence over `client=`. It is known only after the verdict, so the
//! shard that accepted the connection has the credentials verified, and hands the verdict over with the connection.

mod caller;
mod expiry;
mod listed;
mod permissions;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

pub(super) use self::permissions::Allowed;
use super::{Shard, timers::TimerKind};
use crate::{
    ids::{SessionId, SlotId},
    limits::{NEW_TOKENS_BURST, NEW_TOKENS_PER_S, REVOCATIONS_RECENT_MAX},
    metrics::counters::Counter,
    now::Now,
    permission_sets::PermissionSets,
    principal::{AuthRefusal, ClientCertificate, Credentials, Principal, Revocation},
    session::{CloseReason, Proof},
    token_bucket::{Bucket, Pace},
};
use tickcast_proto::{ErrorCode, command::Token, features::Features, reply::Reply};

/// Purpose of credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To open the session. The bytes of the handshake are still in its input.
    Handshake,
    /// A hello on an open session; WELCOME answers it.
    Hello {
        /// Its request id.
        request: u32,
        /// Features that it requests.
        features: Option<Features>,
    },
    /// A refresh; EXPIRES answers it.
    Refresh {
        /// Its request id.
        request: u32,
    },
}

/// Credentials without a verdict.
#[derive(Clone, Copy, Debug)]
struct Pending {
    purpose: Purpose,
    /// How the session's principal was proven before.
    before: Proof,
    /// Deadline of the verdict, CLOCK_MONOTONIC nanoseconds.
    due_ns: u64,
}

/// The watch on the expiry of a session's token.
#[derive(Clone, Copy, Debug)]
struct Expiry {
    /// When its timer is due, CLOCK_MONOTONIC nanoseconds.
    due_ns: u64,
    /// Whether the client knows that it expires soon.
    is_announced: bool,
}

/// A recent revocation.
#[derive(Debug)]
struct Revoked {
    revocation: Revocation,
    /// When it was made, seconds since 1970.
    at_s: u64,
    /// When every verdict reflects it, CLOCK_MONOTONIC nanoseconds.
    until_ns: u64,
}

/// State of a session's handshake.
pub(super) enum Entry {
    /// Its principal is known, or is not needed yet.
    Admitted,
    /// It waits for a verdict.
    Waits,
    /// Its credentials are refused.
    Refused(AuthRefusal),
}

/// What a shard knows about its sessions' credentials. Empty without authentication.
#[derive(Debug, Default)]
pub(super) struct Authentication {
    /// Credentials that the driver has not taken. Bound: `pending`.
    queue: VecDeque<(SessionId, Credentials)>,
    /// Credentials without a verdict, also of sessions that have ended since. Bound: `waiting_max`.
    pending: HashMap<SessionId, Pending>,
    /// WebSockets to upgrade and close, because their credentials were refused. Bound: one per session.
    refused: HashMap<SlotId, AuthRefusal>,
    /// Clients' certificates. Bound: one per session.
    certificates: HashMap<SlotId, ClientCertificate>,
    /// Bound: one per session.
    expiries: HashMap<SlotId, Expiry>,
    /// How often sessions may give new tokens. Bound: one per session.
    new_tokens: HashMap<SlotId, Bucket>,
    /// Revocations that verdicts under way may not reflect. Bound: [`REVOCATIONS_RECENT_MAX`].
    revoked: VecDeque<Revoked>,
    /// The first slot whose session is still to be compared with the principals that the configuration file lists.
    listed_review: Option<SlotId>,
    permissions: PermissionSets,
}

impl Authentication {
    /// When the token of the session in a slot is checked next.
    pub(super) fn expiry_due_ns(&self, slot: SlotId) -> Option<u64> {
        self.expiries.get(&slot).map(|expiry| expiry.due_ns)
    }

    /// Takes a client's certificate, unless it is known to prove nothing.
    pub(super) fn take_certificate(&mut self, slot: SlotId) -> Option<ClientCertificate> {
        self.certificates.remove(&slot)
    }

    /// Whether a verdict on the session's credentials will come.
    pub(super) fn awaits_verdict(&self, id: SessionId) -> bool {
        self.pending.contains_key(&id)
    }

    /// Deadline of the verdict on a session's credentials.
    pub(super) fn verdict_due_ns(&self, id: SessionId) -> Option<u64> {
        self.pending.get(&id).map(|pending| pending.due_ns)
    }

    /// Forgets a session that leaves its slot.
    pub(super) fn forget(&mut self, slot: SlotId, principal: Option<&Principal>) {
        self.refused.remove(&slot);
        self.certificates.remove(&slot);
        self.expiries.remove(&slot);
        self.new_tokens.remove(&slot);
        if let Some(principal) = principal {
            self.permissions.release(principal);
        }
    }

    fn is_revoked(&self, principal: &Principal, now: Now) -> bool {
        let mut recent = self.revoked.iter().filter(|revoked| revoked.until_ns > now.monotonic_ns);
        recent.any(|revoked| revoked.revocation.revokes(principal, revoked.at_s))
    }

    /// Counts a new token of an open session, and returns whether it may be verified.
    fn takes_new_token(&mut self, slot: SlotId, now: Now) -> bool {
        let Some(pace) = Pace::new(NEW_TOKENS_PER_S, 1) else { return true };
        let bucket = self.new_tokens.entry(slot).or_default();
        let takes = bucket.has_token(pace, NEW_TOKENS_BURST, now.monotonic_ns);
        if takes {
            bucket.spend(pace, now.monotonic_ns);
        }
        takes
    }

    /// Whether sessions are still to be compared with the principals that the configuration file lists.
    pub(super) fn is_reviewing_listed(&self) -> bool {
        self.listed_review.is_some()
    }

    /// Heap memory in bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        let waiting = |(_, credentials): &(SessionId, Credentials)| {
            credentials.token.as_deref().map_or(0, str::len) + size_of::<(SessionId, Credentials)>()
        };
        self.queue.iter().map(waiting).sum::<usize>()
            + self.pending.capacity() * size_of::<(SessionId, Pending)>()
            + self.expiries.capacity() * size_of::<(SlotId, Expiry)>()
            + self.new_tokens.capacity() * size_of::<(SlotId, Bucket)>()
            + self.certificates.values().map(|certificate| certificate.name.len() + 40).sum::<usize>()
            + self.permissions.heap_bytes()
    }
}

impl Shard {
    /// Returns the next credentials to verify, and the session that waits for the verdict.
    ///
    /// The caller answers each with one [`Shard::handle_verdict`], even if it drops them ([`AuthRefusal::Busy`]) or the session
    /// no longer exists: until then they count against [`AuthLimits::waiting_max`](crate::config::AuthLimits).
    pub fn poll_credentials(&mut self) -> Option<(SessionId, Credentials)> {
        while let Some((id, credentials)) = self.authentication.queue.pop_front() {
            if self.sessions.open_mut(id.slot()).is_some_and(|session| session.id == id) {
                return Some((id, credentials));
            }
            self.authentication.pending.remove(&id);
        }
        None
    }

    /// Continues a session whose credentials have been verified. Call it for at most
    /// [`TURN_VERDICTS`](crate::limits::TURN_VERDICTS) sessions per turn, along with the sockets' events, and call
    /// [`Shard::poll_action`] after it. A session that has ended is ignored.
    pub fn handle_verdict(&mut self, id: SessionId, verdict: Result<Arc<Principal>, AuthRefusal>, now: Now) {
        let Some(Pending { purpose, before, .. }) = self.authentication.pending.remove(&id) else {
            return debug_assert!(false, "each credentials have one verdict");
        };
        let slot = id.slot();
        let Some(session) = self.sessions.open_mut(slot).filter(|session| session.id == id) else { return };
        session.proof = before;
        // Its input no longer waits for the verifiers.
        self.sessions.count_unfinished(slot);
        let Some(session) = self.sessions.open_mut(slot) else { return };
        if self.input_stopped {
            // The server is stopping, so input is no longer processed.
            return if session.is_paused() {
                self.list_paused(slot)
            };
        }
        let verdict = verdict.and_then(|principal| self.check_principal(slot, principal, before, now));
        match verdict {
            Ok(principal) => {
                self.counters.add(Counter::CredentialsAccepted, 1);
                let identity = principal.identity().into_owned();
                let has_changed = self.set_principal(slot, principal, now);
                if purpose != Purpose::Handshake && before != Proof::Credentials {
                    // The handshake has named none, or one that was only claimed.
                    self.claim_identity(slot, &identity, now);
                }
                match purpose {
                    Purpose::Handshake => {}
                    Purpose::Hello { request, features } => self.welcome(slot, request, features, true, now),
                    Purpose::Refresh { request } => self.reply_expires(slot, request, now),
                }
                if purpose != Purpose::Handshake && has_changed {
                    self.queue_review(slot, now);
                }
            }
            // A certificate with an unlisted name proves nothing: the handshake continues as without one.
            Err(AuthRefusal::Missing)
                if purpose == Purpose::Handshake
                    && self.authentication.certificates.remove(&slot).is_some() => {}
            Err(refusal) => self.refuse_credentials_for(slot, refusal, purpose, now),
        }
        self.resume_after_verdict(slot, now);
        self.apply_deferred(now);
    }

    /// Checks what the verifier cannot: later changes, and the session's previous principal.
    fn check_principal(
        &mut self,
        slot: SlotId,
        principal: Arc<Principal>,
        before: Proof,
        now: Now,
    ) -> Result<Arc<Principal>, AuthRefusal> {
        if self.authentication.is_revoked(&principal, now) {
            return Err(AuthRefusal::Revoked);
        }
        let principal = self.listed_now(&principal)?;
        self.claimed_tenant(slot, &principal.tenant)?;
        let known = self.sessions.get(slot).and_then(|session| session.principal.as_deref());
        match known.filter(|_| before == Proof::Credentials) {
            Some(known) if !known.is_same_client(&principal) => {
                Err(AuthRefusal::Invalid("it is for another subject than the session's".into()))
            }
            _ => Ok(principal),
        }
    }

    /// Processes the input that has waited for a verdict.
    fn resume_after_verdict(&mut self, slot: SlotId, now: Now) {
        let Some(session) = self.sessions.open_mut(slot).filter(|session| session.is_paused()) else {
            return;
        };
        if session.protocol.is_new() {
            self.resume_input(slot, usize::MAX, now);
        }
        // It resumes in its turn.
        if self.sessions.open_mut(slot).is_some_and(|session| session.is_paused()) {
            self.list_paused(slot);
        }
    }

    /// Closes the sessions of a revoked principal with 3500. Also refuses the principal to sessions whose verdict is under way,
    /// for longer than a handshake takes; the verifier refuses later ones. `at_s`: when it was revoked, seconds since 1970; the
    /// same for the verifier. O(sessions). Returns the number of sessions closed.
    pub fn revoke(&mut self, revocation: &Revocation, at_s: u64, now: Now) -> usize {
        let revoked = &mut self.authentication.revoked;
        revoked.retain(|revoked| revoked.until_ns > now.monotonic_ns);
        if revoked.len() == REVOCATIONS_RECENT_MAX {
            revoked.pop_front();
        }
        // One deadline for the verdict, and another for the handover.
        let until_ns = now.monotonic_ns.saturating_add(2 * self.limits.handshake_deadline_ns);
        revoked.push_back(Revoked { revocation: revocation.clone(), at_s, until_ns });
        let mut closed = 0;
        for slot in self.sessions.slots() {
            let principal = self.sessions.open_mut(slot).and_then(|session| session.principal.as_deref());
            if principal.is_some_and(|principal| revocation.revokes(principal, at_s)) {
                self.end(slot, CloseReason::Unauthorized(AuthRefusal::Revoked), now);
                closed += 1;
            }
        }
        self.apply_deferred(now);
        closed
    }

    /// Notes a client's TLS certificate. Call it before the first bytes from the client.
    pub fn set_certificate(&mut self, slot: SlotId, certificate: &ClientCertificate) {
        if self.limits.auth.is_some() && self.sessions.open_mut(slot).is_some() {
            self.authentication.certificates.insert(slot, certificate.clone());
        }
    }

    /// Forbids a session to publish, because its listener is read-only. Call it before the first bytes from the client.
    pub fn set_read_only(&mut self, slot: SlotId) {
        if let Some(session) = self.sessions.open_mut(slot) {
            session.is_read_only = true;
        }
    }

    /// Notes that no DNS rebinding attack can have made a connection, because it is over TLS or a Unix socket: a local server then
    /// answers it under every name. Call it before the first bytes from the client.
    pub fn set_safe_from_rebinding(&mut self, slot: SlotId) {
        if let Some(session) = self.sessions.open_mut(slot) {
            session.is_safe_from_rebinding = true;
        }
    }

    /// Returns whether a session's handshake continues here, with the credentials and the identity in it. If not, the session
    /// waits for a verdict, or has begun its handover or its end.
    pub(super) fn begins(&mut self, slot: SlotId, client: &str, token: Option<&Token<'_>>, now: Now) -> bool {
        if !self.sessions.open_mut(slot).is_some_and(|session| session.protocol.is_handshake()) {
            return true;
        }
        match self.enter(slot, token, false, now) {
            Entry::Admitted => self.route_identity(slot, client, now) && self.enter_quota(slot, now),
            Entry::Waits => false,
            Entry::Refused(refusal) => {
                self.end(slot, CloseReason::Unauthorized(refusal), now);
                false
            }
        }
    }

    /// Returns the state of a session's handshake with these credentials. `may_come_later`: a hello may still bring them.
    pub(super) fn enter(
        &mut self,
        slot: SlotId,
        token: Option<&Token<'_>>,
        may_come_later: bool,
        now: Now,
    ) -> Entry {
        if let Err(refusal) = self.check_tenant_is_open(slot) {
            return Entry::Refused(refusal);
        }
        let Some(auth) = &self.limits.auth else { return Entry::Admitted };
        let Some(session) = self.sessions.open_mut(slot) else {
            debug_assert!(false, "only an open session's handshake is processed");
            return Entry::Waits;
        };
        if let Some(refusal) = self.authentication.refused.remove(&slot) {
            return Entry::Refused(refusal);
        }
        match session.proof {
            Proof::Anonymous | Proof::Credentials => return Entry::Admitted,
            Proof::Pending => return Entry::Waits,
            Proof::None => {}
        }
        let refusal = if token.is_some() || self.authentication.certificates.contains_key(&slot) {
            match self.ask(slot, token, Purpose::Handshake, now) {
                Ok(()) => return Entry::Waits,
                Err(refusal) => refusal,
            }
        } else if let Some(anonymous) = &auth.anonymous {
            session.principal = Some(self.authentication.permissions.share(anonymous.clone()));
            session.proof = Proof::Anonymous;
            return Entry::Admitted;
        } else if may_come_later {
            return Entry::Admitted;
        } else {
            AuthRefusal::Missing
        };
        self.counters.add(Counter::CredentialsRefused, 1);
        Entry::Refused(refusal)
    }

    /// Queues a session's credentials for the verifiers. Its input waits for the verdict.
    fn ask(
        &mut self,
        slot: SlotId,
        token: Option<&Token<'_>>,
        purpose: Purpose,
        now: Now,
    ) -> Result<(), AuthRefusal> {
        let certificate = self.authentication.certificates.get(&slot).cloned();
        let credentials = Credentials::new(token, certificate)?;
        let waiting_max = self.limits.auth.as_ref().map_or(0, |auth| auth.waiting_max);
        let Some(session) = self.sessions.open_mut(slot) else {
            debug_assert!(false, "only an open session gives credentials");
            return Err(AuthRefusal::Busy);
        };
        if self.authentication.pending.len() >= waiting_max {
            return Err(AuthRefusal::Busy);
        }
        let id = session.id;
        let due_ns = now.monotonic_ns.saturating_add(self.limits.handshake_deadline_ns);
        let pending = Pending { purpose, before: session.proof, due_ns };
        session.proof = Proof::Pending;
        let earlier = self.authentication.pending.insert(id, pending);
        debug_assert!(earlier.is_none(), "a session's input waits for its verdict");
        self.authentication.queue.push_back((id, credentials));
        self.set_timer(pending.due_ns, TimerKind::Verdict, id);
        Ok(())
    }

    /// Ends a session whose verdict is overdue.
    pub(super) fn check_verdict(&mut self, slot: SlotId, now: Now) {
        let Some(session) = self.sessions.open_mut(slot) else { return };
        let due_ns = self.authentication.verdict_due_ns(session.id);
        if due_ns.is_some_and(|due_ns| due_ns <= now.monotonic_ns) {
            self.end_without_verdict(slot, now);
        }
    }

    /// Ends a session whose verdict has not come in time, which is the server's fault.
    pub(super) fn end_without_verdict(&mut self, slot: SlotId, now: Now) {
        if self.sessions.open_mut(slot).is_none() {
            return;
        }
        self.counters.add(Counter::CredentialsRefused, 1);
        self.end(slot, CloseReason::Unauthorized(AuthRefusal::Busy), now);
    }

    /// Has the credentials of an open session verified. Without authentication, answers as if they never expired.
    pub(super) fn verify_again(&mut self, slot: SlotId, token: &Token<'_>, purpose: Purpose, now: Now) {
        if self.limits.auth.is_none() {
            return match purpose {
                Purpose::Handshake => {}
                Purpose::Hello { request, features } => self.welcome(slot, request, features, true, now),
                Purpose::Refresh { request } => self.reply_expires(slot, request, now),
            };
        }
        if let Purpose::Hello { request, .. } | Purpose::Refresh { request } = purpose
            && !self.authentication.takes_new_token(slot, now)
        {
            self.counters.add(Counter::CredentialsRefusedRate, 1);
            let text = format!(
                "a session may give {NEW_TOKENS_BURST} new tokens at once, and {NEW_TOKENS_PER_S} a second after that"
            );
            return self.fail(slot, request, ErrorCode::RateLimited, &text, now);
        }
        match self.ask(slot, Some(token), purpose, now) {
            Ok(()) => {}
            Err(refusal) => self.refuse_credentials_for(slot, refusal, purpose, now),
        }
    }

    /// Refuses a session's credentials. A session with a principal keeps it if the server is too busy to verify a new token.
    fn refuse_credentials_for(&mut self, slot: SlotId, refusal: AuthRefusal, purpose: Purpose, now: Now) {
        let has_principal = self.sessions.open_mut(slot).is_some_and(|session| session.principal.is_some());
        match (refusal, purpose) {
            (AuthRefusal::Busy, Purpose::Refresh { request }) if has_principal => {
                let text = "too many tokens wait to be verified: send the new one again";
                self.counters.add(Counter::CredentialsRefused, 1);
                self.fail(slot, request, ErrorCode::RateLimited, text, now);
                // It stays what it was, unless a reload has meanwhile removed that.
                self.review_listed_in(slot, now);
            }
            (refusal, _) => self.refuse_credentials(slot, refusal, now),
        }
    }

    /// Ends a session whose credentials are refused. A WebSocket is upgraded first, when its input resumes.
    pub(super) fn refuse_credentials(&mut self, slot: SlotId, refusal: AuthRefusal, now: Now) {
        self.counters.add(Counter::CredentialsRefused, 1);
        let is_http = self.sessions.open_mut(slot).is_some_and(|session| session.protocol.is_http());
        match is_http && refusal != AuthRefusal::Busy {
            true => {
                self.authentication.refused.insert(slot, refusal);
            }
            false => self.end(slot, CloseReason::Unauthorized(refusal), now),
        }
    }

    /// Sets the principal that a session's credentials prove, and its tenant. Returns whether its permissions have changed.
    pub(super) fn set_principal(&mut self, slot: SlotId, principal: Arc<Principal>, now: Now) -> bool {
        match self.claimed_tenant(slot, &principal.tenant) {
            Ok(None) => {}
            Ok(Some(tenant)) => {
                if !self.change_tenant(slot, tenant, now) {
                    return false;
                }
            }
            // A reload removed the tenant while the session was on its way from another shard.
            Err(refusal) => {
                self.end(slot, CloseReason::Unauthorized(refusal), now);
                return false;
            }
        }
        let Some(session) = self.sessions.open_mut(slot) else { return false };
        let principal = self.authentication.permissions.share(principal);
        session.proof = Proof::Credentials;
        let permissions = principal.permissions.clone();
        let before = session.principal.replace(principal);
        if let Some(before) = &before {
            self.authentication.permissions.release(before);
        }
        self.watch_expiry(slot, now);
        before.is_none_or(|before| !Arc::ptr_eq(&before.permissions, &permissions))
    }

    /// Takes over the principal of a session that another shard has handed over.
    pub(super) fn attach_principal(&mut self, slot: SlotId, principal: Arc<Principal>, now: Now) {
        let current = match self.authentication.is_revoked(&principal, now) {
            true => Err(AuthRefusal::Revoked),
            false => self.listed_now(&principal),
        };
        match current {
            Ok(principal) => drop(self.set_principal(slot, principal, now)),
            Err(refusal) => self.end(slot, CloseReason::Unauthorized(refusal), now),
        }
    }

    /// Answers a hello: WELCOME, and EXPIRES if the client has given credentials.
    pub(super) fn welcome(
        &mut self,
        slot: SlotId,
        request: u32,
        features: Option<Features>,
        has_token: bool,
        now: Now,
    ) {
        let mut offered = Features::GRANTED;
        if self.limits.nodes.is_alone() {
            offered = offered.without(Features::NODES);
        }
        if self.limits.feeds.is_empty() {
            offered = offered.without(Features::SOURCES);
        }
        if !self.remembers_message_ids() {
            offered = offered.without(Features::MESSAGE_IDS);
        }
        let is_socket_io = self.welcome_socket_io(slot);
        let Some(session) = self.sessions.open_mut(slot) else { return };
        let tells_expiry = has_token || session.proof == Proof::Credentials;
        if is_socket_io {
            // It has no hello that could ask for features.
            session.features = session.features.union(Features::SOURCES);
            if tells_expiry {
                self.reply_expires(slot, 0, now);
            }
            return self.tell_feeds_not_up(slot);
        }
        let features = session.grant(features.map(|asked| asked.intersection(offered)));
        let (epoch, session, frame_bytes_max) = (self.epoch, session.id.0, self.limits.frame_bytes_max);
        self.reply(slot, &Reply::Welcome { request, epoch, session, frame_bytes_max, features });
        if tells_expiry {
            self.reply_expires(slot, request, now);
        }
        if features.is_some_and(|features| features.contains(Features::NODES)) {
            self.reply_nodes(slot);
        }
        self.tell_feeds_not_up(slot);
    }

    /// Tells a client which node it has reached, and which others there are.
    fn reply_nodes(&mut self, slot: SlotId) {
        // Moved out, because the reply borrows it.
        let nodes = std::mem::take(&mut self.limits.nodes);
        let addresses: Vec<&str> = nodes.addresses.iter().map(|address| &**address).collect();
        self.reply(slot, &Reply::Nodes { node: &nodes.id, addresses: &addresses });
        self.limits.nodes = nodes;
    }
}

#[cfg(test)]
mod tests;
