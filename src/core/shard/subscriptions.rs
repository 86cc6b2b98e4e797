//! Subscribe and resume requests of sessions.

use std::borrow::Cow;

use super::{Shard, authentication::Allowed, ingress::quoted};
use crate::{
    budgets::PatternLimits,
    fanout::{Interest, Registration, StartFrom, Subscription, cover_of},
    home::SINCE_UNKNOWN_NS,
    ids::{SlotId, TenantId},
    limits::{
        KNOWN_PATTERN_UNITS, LIVE_SLACK_MS, PATTERN_REQUEST_UNITS, RESUME_BYTES_MAX, RESUME_POSITIONS_MAX,
        RESUME_SLACK_MS,
    },
    metrics::counters::Counter,
    now::{LiveClock, Now},
    session::saved_positions::SavedPositions,
    topic_key,
};
use tickcast_proto::{
    ErrorCode,
    features::Features,
    pattern,
    subscription::{Delivery, Moment, Position, StartPosition},
};

impl Shard {
    /// Returns where a subscription begins, or `None` after answering the request with an error. The session keeps positions
    /// by topic until it joins their topics.
    pub(super) fn start_position(
        &mut self,
        slot: SlotId,
        request: u32,
        from: StartPosition,
        now: Now,
    ) -> Option<StartFrom> {
        match from {
            StartPosition::Live => Some(StartFrom::Live),
            StartPosition::Latest => Some(StartFrom::Latest),
            StartPosition::After(position) => Some(StartFrom::After(position)),
            StartPosition::Resume => Some(StartFrom::SavedPositions { since_ns: 0 }),
            StartPosition::Since(positions, moment) => {
                // Not saved in the session: if the request is refused, the next one must not start then.
                self.start_position(slot, request, StartPosition::AfterEach(positions), now)?;
                Some(StartFrom::SavedPositions { since_ns: self.since_moment(moment, now) })
            }
            StartPosition::AfterEach(positions) => {
                for topic in positions.keys() {
                    if let Err(error) = pattern::check_topic(topic.as_bytes()) {
                        let text = format!("from: topic {}: {error}", quoted(topic.as_bytes()));
                        self.fail(slot, request, ErrorCode::BadTopic, &text, now);
                        return None;
                    }
                }
                let names_bytes = positions.keys().map(|topic| topic.len()).sum();
                let keys: Vec<(Cow<'_, str>, Position)> =
                    positions.iter().map(|(topic, at)| (self.pattern_key(slot, topic), *at)).collect();
                let saved = self.saved_positions(slot, request, keys.len(), names_bytes, now)?;
                keys.iter().for_each(|(key, position)| saved.insert(key, *position));
                Some(StartFrom::SavedPositions { since_ns: std::mem::take(&mut saved.since_ns) })
            }
        }
    }

    /// Saves a position in a topic for the subscription that follows.
    pub(super) fn resume(&mut self, slot: SlotId, topic: &str, position: Position, now: Now) {
        if let Err(error) = pattern::check_topic(topic.as_bytes()) {
            let text = format!("resume: topic {}: {error}", quoted(topic.as_bytes()));
            return self.fail(slot, 0, ErrorCode::BadTopic, &text, now);
        }
        let key = self.pattern_key(slot, topic);
        if let Some(saved) = self.saved_positions(slot, 0, 1, key.len(), now) {
            saved.insert(&key, position);
        }
    }

    /// Sets since when a session has received all ticks of topics in which it has no position: CLOCK_REALTIME in microseconds, by
    /// the clock of the node that it was connected to.
    pub(super) fn set_saved_since(&mut self, slot: SlotId, since_us: u64, now: Now) {
        let since_ns = self.since_realtime(since_us, now);
        let memory = &self.positions_memory;
        let Some(session) = self.sessions.open_mut(slot) else { return };
        let saved = &mut session.lag_mut().saved_positions;
        let saved = saved.get_or_insert_with(|| SavedPositions::new(memory.clone()).into());
        saved.since_ns = since_ns;
    }

    fn since_realtime(&self, since_us: u64, now: Now) -> u64 {
        // The clock of the node that gave it may be ahead by the slack.
        let latest_us = now.realtime_ns / 1_000 + RESUME_SLACK_MS * 1_000;
        match since_us {
            0 => 0,
            since_us if since_us < self.epoch || since_us > latest_us => SINCE_UNKNOWN_NS,
            since_us => {
                let age_ns = now.realtime_ns.saturating_sub(since_us.saturating_mul(1_000));
                let age_ns = age_ns.saturating_add(RESUME_SLACK_MS * 1_000_000);
                now.monotonic_ns.saturating_sub(age_ns).max(SINCE_UNKNOWN_NS + 1)
            }
        }
    }

    /// Since when a client has received all ticks that repeats the moment at which a subscription became live. The slack is short if
    /// this server has given the moment, and covers clocks that differ if another node has.
    fn since_moment(&self, moment: Moment, now: Now) -> u64 {
        if moment.epoch != self.epoch {
            return self.since_realtime(moment.since_us.max(1), now);
        }
        let live_ns = self.live_clock.monotonic_ns(moment.since_us).min(now.monotonic_ns);
        live_ns.saturating_sub(LIVE_SLACK_MS * 1_000_000).max(SINCE_UNKNOWN_NS + 1)
    }

    /// Sets the clock by which the shard tells when a subscription became live. All shards of a server need the same one, because a
    /// client may return to another shard.
    pub fn set_live_clock(&mut self, clock: LiveClock) {
        self.live_clock = clock;
    }

    /// The moment for a subscription that becomes live now, if its client knows what to do with it.
    pub(super) fn live_since(&mut self, slot: SlotId, now: Now) -> Option<u64> {
        let session = self.sessions.open_mut(slot)?;
        session.features.contains(Features::SINCE).then(|| self.live_clock.since_us(now))
    }

    /// The saved positions of a session, if there is room for `count` more; `None` after answering the request with an error.
    fn saved_positions(
        &mut self,
        slot: SlotId,
        request: u32,
        count: usize,
        names_bytes: usize,
        now: Now,
    ) -> Option<&mut SavedPositions> {
        let memory = &self.positions_memory;
        let bytes_max = self.limits.positions_bytes_max / usize::from(self.shards);
        let fits_memory = memory.has_room(count, names_bytes, bytes_max);
        let saved = &mut self.sessions.open_mut(slot)?.lag_mut().saved_positions;
        let saved = saved.get_or_insert_with(|| SavedPositions::new(memory.clone()).into());
        if !saved.has_room(count, names_bytes) {
            let text = format!(
                "from: a session may name {RESUME_POSITIONS_MAX} positions, with {RESUME_BYTES_MAX} bytes of topic names"
            );
            self.fail(slot, request, ErrorCode::BadRequest, &text, now);
            return None;
        }
        if !fits_memory || !saved.try_reserve(count) {
            let text = "the server's memory for positions is used up (--positions-memory)";
            self.fail(slot, request, ErrorCode::TooManySubscriptions, text, now);
            return None;
        }
        self.sessions.open_mut(slot)?.lag_mut().saved_positions.as_deref_mut()
    }

    pub(super) fn fail_not_subscribed(&mut self, slot: SlotId, request: u32, pattern: &str, now: Now) {
        let text = format!("not subscribed to {}", quoted(pattern.as_bytes()));
        self.fail(slot, request, ErrorCode::NotSubscribed, &text, now);
    }

    /// Refuses a request for a wildcard that would need more memberships than the session may have.
    pub(super) fn fail_memberships(&mut self, slot: SlotId, request: u32, now: Now) {
        self.counters.add(Counter::SubscriptionsRefusedMemory, 1);
        let text = "this session's share of the memory for rate limits and history of wildcards is used up \
                    (--memberships-memory)";
        self.fail(slot, request, ErrorCode::TooManySubscriptions, text, now);
    }

    pub(super) fn subscribe(
        &mut self,
        slot: SlotId,
        request: u32,
        pattern: &str,
        delivery: Delivery,
        begin: StartFrom,
        now: Now,
    ) {
        if let Err(error) = pattern::check_pattern(pattern.as_bytes()) {
            let text = format!("pattern {}: {error}", quoted(pattern.as_bytes()));
            return self.fail(slot, request, ErrorCode::BadPattern, &text, now);
        }
        let PatternLimits { wildcards_max, session_bytes_max, source_bytes_max } = self.limits.patterns;
        if pattern::wildcards(pattern) > wildcards_max {
            self.counters.add(Counter::PatternsRefusedWildcards, 1);
            let text = format!(
                "pattern {}: more than {wildcards_max} * (--pattern-wildcards-max)",
                quoted(pattern.as_bytes())
            );
            return self.fail(slot, request, ErrorCode::BadPattern, &text, now);
        }
        let allowed = self.allowed(slot, pattern);
        if allowed == Allowed::Nothing {
            self.charge(KNOWN_PATTERN_UNITS);
            let text = self.refuse_pattern(pattern);
            return self.fail(slot, request, ErrorCode::NotAllowed, &text, now);
        }
        let key = self.pattern_key(slot, pattern);
        let known = self.fanout.entry_of(&key);
        let Some(session) = self.sessions.open_mut(slot) else { return };
        if session.subscriptions.len() >= self.limits.subscriptions_per_session_max {
            let text =
                format!("a session may hold {} subscriptions", self.limits.subscriptions_per_session_max);
            return self.fail(slot, request, ErrorCode::TooManySubscriptions, &text, now);
        }
        if known.is_some_and(|entry| session.subscriptions.to(entry).is_some()) {
            let text = format!("already subscribed to {}", quoted(pattern.as_bytes()));
            return self.fail(slot, request, ErrorCode::AlreadySubscribed, &text, now);
        }
        if session.pattern_bytes as usize + pattern.len() > session_bytes_max {
            self.counters.add(Counter::PatternsRefusedSession, 1);
            let text = format!(
                "a session may hold {session_bytes_max} bytes of patterns (--patterns-per-session-size)"
            );
            return self.fail(slot, request, ErrorCode::TooManySubscriptions, &text, now);
        }
        let source = session.source;
        let share = |bytes: usize| bytes / usize::from(self.shards);
        let is_full = self.fanout.patterns_bytes() >= share(self.limits.patterns_bytes_max);
        if known.is_none() && (is_full || !self.fanout.try_reserve_pattern()) {
            self.counters.add(Counter::PatternsRefusedMemory, 1);
            let text = "the server's memory for patterns is used up (--patterns-memory)";
            return self.fail(slot, request, ErrorCode::TooManySubscriptions, text, now);
        }
        if known.is_none()
            && source_bytes_max > 0
            && self.fanout.source_bytes(source) >= share(source_bytes_max)
        {
            self.counters.add(Counter::PatternsRefusedSource, 1);
            let text =
                "clients of this address use up their memory for patterns (--patterns-per-source-memory)";
            return self.fail(slot, request, ErrorCode::TooManySubscriptions, text, now);
        }
        let needs_memberships = delivery.interval_us > 0 || begin != StartFrom::Live;
        let has_room = self.sessions.memberships_in_pool(slot) > 0;
        if needs_memberships && !pattern::is_exact(pattern) && !has_room {
            return self.fail_memberships(slot, request, now);
        }
        if !self.take_subscription(slot) {
            self.counters.add(Counter::SubscriptionsRefusedTenant, 1);
            let text = "the tenant has as many subscriptions as it may have (quota of its [[tenant]])";
            return self.fail(slot, request, ErrorCode::TooManySubscriptions, text, now);
        }
        let Registration { entry, interest } = self.fanout.subscribe(slot, source, &key);
        self.charge(if interest.is_some() { PATTERN_REQUEST_UNITS } else { KNOWN_PATTERN_UNITS });
        let is_partial = allowed == Allowed::Part;
        let subscription = Subscription { is_partial, ..Subscription::new(entry, delivery, begin) };
        self.sessions.subscribe(slot, subscription, pattern);
        self.counters.add(Counter::SubscriptionsFiltered, u64::from(is_partial));
        self.queue_join(slot, entry, request);
        if let Some(Interest { request, exact, covers }) = interest {
            self.add_interest(if covers { cover_of(&key) } else { key }.as_ref(), exact, request);
        }
    }

    /// The key of a topic's name or a pattern that a session uses. An exact name belongs to the session's tenant, or to the
    /// tenant that exports it.
    pub(super) fn pattern_key<'a>(&self, slot: SlotId, pattern: &'a str) -> Cow<'a, str> {
        let tenant = self.sessions.get(slot).map_or(TenantId::DEFAULT, |session| session.tenant);
        let exports = self.limits.tenants.exports();
        match !exports.is_empty() && pattern::is_exact(pattern) {
            true => topic_key::of(exports.owner(tenant, pattern), pattern),
            false => topic_key::of(tenant, pattern),
        }
    }

    /// The keys of patterns that a session uses, which may not be valid.
    pub(super) fn pattern_keys(&self, slot: SlotId, patterns: &[Cow<'_, str>]) -> Vec<Box<str>> {
        patterns.iter().map(|pattern| self.pattern_key(slot, pattern).into()).collect()
    }
}

#[cfg(test)]
mod memberships_tests;
#[cfg(test)]
mod since_tests;
#[cfg(test)]
mod wildcard_tests;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{config::Limits, metrics::counters::Counters, shard::ListenerKind, testing::hello};
    use tickcast_proto::{
        command::encode_request,
        frame,
        ids::ShardId,
        records::Publish,
        subscription::{Policy, Rules},
    };

    const NOW: Now = Now { monotonic_ns: 1 << 40, realtime_ns: 1 << 60 };

    fn subscribe(shard: &mut Shard, slot: SlotId, pattern: &str) {
        let mut bytes = Vec::new();
        if shard.sessions.get(slot).is_none() {
            shard.handle_accept(slot, ListenerKind::Native, NOW);
            bytes = hello();
        }
        encode_request(&mut bytes, frame::Kind::Subscribe, 1, pattern);
        shard.handle_bytes(slot, &bytes, NOW);
        while shard.turn(NOW) {}
    }

    fn publish(shard: &mut Shard, topic: &str) {
        let mut bytes = Vec::new();
        frame::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), topic, b"1");
        shard.handle_bytes(SlotId(0), &bytes, NOW);
        while shard.turn(NOW) {}
    }

    /// Policies of a session's memberships by topic id, which is the order in which topics were created.
    fn policies(shard: &Shard, slot: SlotId) -> Vec<Policy> {
        let held = &shard.sessions.get(slot).unwrap().memberships;
        let mut held: Vec<_> = held.iter().map(|(id, membership)| (id.0, membership.policy)).collect();
        held.sort_unstable();
        held.into_iter().map(|(_, policy)| policy).collect()
    }

    fn with_drop_by_default() -> Limits {
        Limits { policies: Rules::all(Policy::Drop), ..Limits::default() }
    }

    #[test]
    fn a_new_default_policy_applies_to_later_memberships_only() {
        let mut shard = Shard::new(ShardId(0), 1, 1, Limits::default(), Arc::new(Counters::default()));
        for pattern in ["a.before", "a.after"] {
            subscribe(&mut shard, SlotId(0), pattern);
        }
        publish(&mut shard, "a.before");
        shard.reload(&Arc::new(with_drop_by_default()), NOW);
        publish(&mut shard, "a.before");
        publish(&mut shard, "a.after");
        assert_eq!(policies(&shard, SlotId(0)), [Policy::default(), Policy::Drop]);
    }

    #[test]
    fn a_new_default_policy_applies_to_later_subscriptions_of_a_wildcard_only() {
        let mut shard = Shard::new(ShardId(0), 1, 1, Limits::default(), Arc::new(Counters::default()));
        subscribe(&mut shard, SlotId(0), "a.>");
        shard.reload(&Arc::new(with_drop_by_default()), NOW);
        subscribe(&mut shard, SlotId(1), "a.>");
        let yields = |slot: u32| shard.sessions.get(SlotId(slot)).unwrap().yields();
        assert_eq!((yields(0), yields(1)), (false, true));
    }
}
