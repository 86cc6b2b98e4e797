//! Limits changed while the server runs.

use std::sync::Arc;

use super::Shard;
use crate::{config::Limits, now::Now};

impl Shard {
    /// Replaces the limits with those of [`Limits::with_reloadable_from`]. Sessions and topics keep what they have; the new
    /// bounds apply at their next change. If the principals that the configuration file lists have changed, the next turns compare
    /// the sessions with them. O(topics) if rules by topic changed, O(sessions) if session bounds changed.
    pub fn reload(&mut self, limits: &Arc<Limits>, now: Now) {
        let listed = |limits: &Limits| limits.auth.as_ref().map(|auth| auth.listed.clone());
        let has_other_principals = listed(&self.limits) != listed(limits);
        let never_pinged = self.limits.ping_interval_ns == u64::MAX;
        self.limits = Limits::clone(limits);
        let limits = &self.limits;
        self.home.set_retention(
            limits.history.clone(),
            limits.history_bytes_max / usize::from(self.shards),
            limits.keys_per_topic_max,
        );
        self.home.set_idle(limits.topic_idle.clone());
        self.home.set_creation(limits.creation);
        self.fanout.set_policies(limits.policies.clone(), limits.behind_bytes, limits.keys_per_topic_max);
        self.fanout.set_awaited_bytes_max(limits.positions_bytes_max / usize::from(self.shards));
        self.budgets.set_limits(limits);
        self.sessions.set_bounds(limits.outbox_bytes_max, limits.behind_bytes);
        self.sessions.set_memberships_max(limits.memberships_max(self.shards));
        self.home.set_tenants(self.limits.tenants.clone());
        self.end_removed_tenants(now);
        if has_other_principals {
            self.begin_listed_review();
        }
        if never_pinged {
            // No session has a heartbeat timer yet.
            for slot in self.sessions.slots() {
                self.note_activity(slot, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SlotId;
    use crate::{
        budgets::{BudgetLimits, Rates},
        home::history::HistoryBounds,
        metrics::counters::{Counter, Counters},
        shard::ListenerKind,
        testing::hello,
    };
    use tickcast_proto::{frame, ids::ShardId, records::Publish, subscription::Rules};

    const NOW: Now = Now { monotonic_ns: 1 << 40, realtime_ns: 1 << 60 };

    fn later(ms: u64) -> Now {
        Now { monotonic_ns: NOW.monotonic_ns + ms * 1_000_000, ..NOW }
    }

    fn shard(limits: Limits) -> Shard {
        let mut shard = Shard::new(ShardId(0), 1, 1, limits, Arc::new(Counters::default()));
        shard.handle_accept(SlotId(0), ListenerKind::Native, NOW);
        shard.handle_bytes(SlotId(0), &hello(), NOW);
        shard
    }

    fn publish(shard: &mut Shard, ticks: usize) {
        let mut bytes = Vec::new();
        (0..ticks).for_each(|_| frame::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), "a", b"1"));
        shard.handle_bytes(SlotId(0), &bytes, NOW);
    }

    #[test]
    fn a_topic_adopts_new_history_bounds_at_its_next_tick() {
        let of = |ticks| Rules::all(HistoryBounds { ticks, bytes: 1 << 16, age_ns: 0 });
        let mut shard = shard(Limits { history: of(10), ..Limits::default() });
        publish(&mut shard, 20);
        assert_eq!(shard.home.topic(0).history().len(), 10);
        shard.reload(&Arc::new(Limits { history: of(3), ..Limits::default() }), NOW);
        publish(&mut shard, 1);
        assert_eq!(shard.home.topic(0).history().len(), 3);
        shard.reload(&Arc::new(Limits { history: of(5), ..Limits::default() }), NOW);
        publish(&mut shard, 9);
        assert_eq!(shard.home.topic(0).history().len(), 5);
    }

    #[test]
    fn the_total_history_bound_holds_after_every_change() {
        let bounded = |history_bytes_max| Arc::new(Limits { history_bytes_max, ..Limits::default() });
        let mut shard = shard(Limits::clone(&bounded(32 << 10)));
        let tick = |shard: &mut Shard, topic: u8| {
            let mut bytes = Vec::new();
            for _ in 0..40 {
                let topic = format!("t.{topic}");
                frame::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), &topic, &[b'1'; 1_000]);
            }
            shard.handle_bytes(SlotId(0), &bytes, NOW);
        };
        let held = |shard: &Shard| -> usize {
            (0..shard.home.len() as u32).map(|index| shard.home.topic(index).history().capacity()).sum()
        };
        for round in 0..4 {
            for topic in 0..4 {
                tick(&mut shard, topic);
            }
            assert!((16 << 10..=32 << 10).contains(&held(&shard)), "{}", held(&shard));
            shard.reload(&bounded(8 << 10), NOW);
            if round % 2 == 1 {
                while shard.home.is_trimming() {
                    shard.turn(NOW);
                }
                assert!(held(&shard) <= 8 << 10, "{}", held(&shard));
            }
            shard.reload(&bounded(32 << 10), NOW);
        }
    }

    #[test]
    fn silent_topics_release_memory_and_busy_ones_keep_a_history() {
        let bounded = |history_bytes_max| Arc::new(Limits { history_bytes_max, ..Limits::default() });
        let mut shard = shard(Limits::clone(&bounded(1 << 20)));
        let tick = |shard: &mut Shard, topic: u32| {
            let mut bytes = Vec::new();
            let topic = format!("t.{topic}");
            for _ in 0..40 {
                frame::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), &topic, &[b'1'; 1_000]);
            }
            shard.handle_bytes(SlotId(0), &bytes, NOW);
        };
        let capacity = |shard: &Shard, index| shard.home.topic(index).history().capacity();
        let held = |shard: &Shard| -> usize {
            (0..shard.home.len() as u32).map(|index| capacity(shard, index)).sum()
        };
        (0..20).for_each(|topic| tick(&mut shard, topic));
        assert!(held(&shard) > 900 << 10, "{}", held(&shard));
        shard.reload(&bounded(512 << 10), NOW);
        let mut turns = 0;
        while shard.home.is_trimming() {
            tick(&mut shard, 7);
            assert!(shard.is_busy() && shard.turn(NOW));
            turns += 1;
            assert!(turns < 100, "the trim ends");
        }
        assert!((256 << 10..=512 << 10).contains(&held(&shard)), "{}", held(&shard));
        assert!(capacity(&shard, 7) >= 16 << 10, "{}", capacity(&shard, 7));
        // A minute later, all ticks have expired.
        shard.reload(&bounded(256 << 10), later(61_000));
        while shard.home.is_trimming() {
            shard.turn(later(61_000));
        }
        assert_eq!(held(&shard), 0);
    }

    #[test]
    fn a_reload_changes_the_publish_rate_of_open_sessions() {
        let mut shard = shard(Limits::default());
        publish(&mut shard, 100);
        let rates = Rates { ticks: 5, ..Rates::default() };
        let budgets = BudgetLimits { session: rates, ..BudgetLimits::default() };
        shard.reload(&Arc::new(Limits { budgets, ..Limits::default() }), NOW);
        publish(&mut shard, 100);
        assert_eq!(shard.counters().value(Counter::TicksRefusedRate), 95);
        shard.reload(&Arc::default(), NOW);
        publish(&mut shard, 100);
        assert_eq!(shard.counters().value(Counter::TicksRefusedRate), 95);
    }

    #[test]
    fn pings_can_be_switched_on_and_off_while_sessions_are_silent() {
        let never = Arc::new(Limits { ping_interval_ns: u64::MAX, ..Limits::default() });
        let pings = |shard: &mut Shard, ms: u64| {
            for step in 0..10 {
                shard.turn(later(ms + step));
            }
            shard.counters().value(Counter::Pings)
        };
        let mut shard = shard(Limits::clone(&never));
        assert_eq!(pings(&mut shard, 100_000), 0);
        shard.reload(&Arc::default(), later(100_000));
        assert_eq!(pings(&mut shard, 130_000), 1);
        shard.reload(&never, later(130_000));
        assert_eq!(pings(&mut shard, 500_000), 1);
        assert_eq!(shard.counters().value(Counter::ClosedHeartbeatTimeout), 0);
    }
}
