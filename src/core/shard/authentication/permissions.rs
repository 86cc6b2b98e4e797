//! Permissions of sessions: which patterns they may subscribe to, and which topics they may publish.

use super::Shard;
use crate::{ids::SlotId, metrics::counters::Counter, now::Now, session::Session, shard::ingress::quoted};
use tickcast_proto::{ErrorCode, features::Features, reply::Reply};

/// How much of a pattern's topics a session may receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shard) enum Allowed {
    /// All.
    All,
    /// Those that its permissions name.
    Part,
    /// None, or only a part, which the configuration refuses.
    Nothing,
}

impl Shard {
    /// Returns how much of a pattern's topics a session may receive.
    pub(in crate::shard) fn allowed(&self, slot: SlotId, pattern: &str) -> Allowed {
        let Some(session) = self.sessions.get(slot) else { return Allowed::Nothing };
        let Some(principal) = &session.principal else {
            return if self.limits.auth.is_none() { Allowed::All } else { Allowed::Nothing };
        };
        let rules = &principal.permissions.subscribe;
        let filters = self.limits.auth.as_ref().is_some_and(|auth| auth.filters_patterns);
        match rules.covers(pattern) {
            true => Allowed::All,
            false if filters && rules.overlaps(pattern) => Allowed::Part,
            false => Allowed::Nothing,
        }
    }

    /// Counts a pattern of which a session may receive nothing, and returns the error text for its client.
    pub(in crate::shard) fn refuse_pattern(&mut self, pattern: &str) -> String {
        self.counters.add(Counter::SubscriptionsRefused, 1);
        format!("pattern {}: you may not receive all topics that it matches", quoted(pattern.as_bytes()))
    }

    /// Returns whether a session may publish ticks of a topic.
    pub(in crate::shard) fn may_publish(&mut self, slot: SlotId, topic: &str) -> bool {
        let Some(session) = self.sessions.get(slot).filter(|session| !session.is_read_only) else {
            return false;
        };
        match &session.principal {
            Some(principal) => self.authentication.permissions.may_publish(&principal.permissions, topic),
            None => self.limits.auth.is_none(),
        }
    }

    /// Tells a client that its new token does not allow a subscription, which has therefore ended.
    pub(in crate::shard) fn tell_removed(&mut self, slot: SlotId, pattern: &str, now: Now) {
        self.counters.add(Counter::SubscriptionsRemoved, 1);
        let text = format!("pattern {}: the new token does not allow all of it", quoted(pattern.as_bytes()));
        let code = ErrorCode::NotAllowed;
        let has_reasons = |session: &mut Session| session.features.contains(Features::REASONS);
        match self.sessions.open_mut(slot).is_some_and(has_reasons) {
            true => self.reply(slot, &Reply::Removed { pattern, code, text: &text }),
            false => self.fail(slot, 0, code, &text, now),
        }
    }
}
