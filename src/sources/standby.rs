//! What a source of a failover group does with a message: publish it, hold it back, or drop it.
//!
//! If messages have ids (`map.id`), a group publishes each id once, and a standby holds back the latest messages. When it takes
//! over, it first publishes those that the source before it has not:
//!
//! ```text
//!  primary    1 2 3 4 | falls silent
//!  fallback   2 3 4 5 6 7 | takes over: of 2 to 7, which it has held, 5 6 7 are new
//! ```
//!
//! Without ids, a standby drops what it reads, because nobody knows whether the other source has published it.

use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasher, RandomState},
    mem::size_of,
    sync::{Mutex, PoisonError},
};

use serde_json::json;

use super::{SourceContext, common::Common, failover::FAILOVER_TURN_NS, mapping::Mapped};
use crate::{
    LOG_TARGET_SOURCE,
    limits::{GROUP_HELD_BYTES_MAX, GROUP_IDS_MAX},
};
use tickcast_common::clock;
use tickcast_core::metrics::counters::Counter;

/// How long a standby holds a message beyond the silence or lag after which it takes over: a turn, plus the delays of a busy
/// machine.
const HELD_NS: u64 = 50 * FAILOVER_TURN_NS;

/// The ids that a group has published most recently, at most [`GROUP_IDS_MAX`]. All its sources share them, with one lock per
/// message.
#[derive(Debug, Default)]
pub struct RecentIds {
    /// How long a standby of the group holds a message.
    hold_ns: u64,
    /// Keyed, so that a feed cannot choose ids that collide.
    hasher: RandomState,
    ids: Mutex<Ids>,
}

#[derive(Debug, Default)]
struct Ids {
    known: HashSet<u64>,
    /// The oldest first.
    order: VecDeque<u64>,
}

impl RecentIds {
    /// Creates those of a group of sources with these settings. A standby must hold what came while it was not known yet that the
    /// source that publishes is silent, or late: any of them may be that one.
    pub fn of_group<'a>(members: impl Iterator<Item = &'a Common> + Clone) -> RecentIds {
        let silent_ns = members.clone().filter_map(|member| member.stale_after_ns).max();
        let late_ns = members.filter_map(|member| member.lag_max_ns).max();
        let parts_ns = [silent_ns, late_ns].into_iter().flatten();
        RecentIds { hold_ns: parts_ns.fold(HELD_NS, u64::saturating_add), ..RecentIds::default() }
    }

    /// How long a standby of the group holds a message, nanoseconds.
    pub fn hold_ns(&self) -> u64 {
        self.hold_ns
    }

    fn contains(&self, id: u64) -> bool {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).known.contains(&id)
    }

    /// Notes an id. Returns whether it is new.
    fn insert(&self, id: u64) -> bool {
        // A panic between the two changes leaves an id that is never forgotten: one among many.
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if !ids.known.insert(id) {
            return false;
        }
        ids.order.push_back(id);
        if ids.order.len() > GROUP_IDS_MAX
            && let Some(oldest) = ids.order.pop_front()
        {
            ids.known.remove(&oldest);
        }
        true
    }
}

/// A message that a standby holds back.
#[derive(Debug)]
struct Held {
    at_ns: u64,
    id: u64,
    topic: Box<str>,
    key: u64,
    time_ns: u64,
    payload: Box<[u8]>,
}

impl Held {
    fn bytes(&self) -> usize {
        size_of::<Held>() + self.topic.len() + self.payload.len()
    }
}

/// One source's part in its group.
///
/// Invariant: `bytes` is the sum of the messages held, and at most [`GROUP_HELD_BYTES_MAX`].
#[derive(Debug, Default)]
pub struct Standby {
    held: VecDeque<Held>,
    bytes: usize,
    /// Messages that the bounds have pushed out before their time and that the group had not published.
    dropped: u64,
    /// When the last of them came.
    dropped_ns: u64,
    /// Whether it has announced on the status topic that it publishes.
    is_announced: bool,
}

/// What to do with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Publish it.
    Publish,
    /// Do not publish it: another source publishes, or has published it.
    Pass,
    /// The server is stopping.
    Stopped,
}

impl Standby {
    /// Decides about a message, and publishes what was held back if this source has taken over. Blocks while a ring is full.
    pub fn admit(
        &mut self,
        mapped: &Mapped<'_>,
        time_ns: u64,
        payload: &[u8],
        context: &mut SourceContext,
    ) -> Admission {
        let ids = context.status.group_ids().cloned();
        let id = ids.as_ref().zip(mapped.id).map(|(ids, id)| ids.hasher.hash_one(id));
        if context.status.is_standby() {
            self.is_announced = false;
            context.status.counters().add(Counter::SourceMessagesStandby, 1);
            if let Some(id) = id {
                let at_ns = clock::monotonic_ns();
                let (topic, payload) = (mapped.topic.into(), payload.into());
                if let Some(ids) = &ids {
                    self.hold(Held { at_ns, id, topic, key: mapped.key, time_ns, payload }, ids);
                }
            }
            return Admission::Pass;
        }
        let Some(ids) = ids else { return Admission::Publish };
        if self.take_over(context).is_none() {
            return Admission::Stopped;
        }
        match id.is_none_or(|id| ids.insert(id)) {
            true => Admission::Publish,
            false => {
                context.status.counters().add(Counter::SourceMessagesRepeated, 1);
                Admission::Pass
            }
        }
    }

    /// If this source has taken over since the last call, announces that it publishes, and publishes what was held back.
    /// Returns whether it has; `None` if the server stops. Blocks while a ring is full.
    pub fn take_over(&mut self, context: &mut SourceContext) -> Option<bool> {
        let Some(ids) = context.status.group_ids().cloned() else { return Some(false) };
        if context.status.is_standby() {
            self.is_announced = false;
            return Some(false);
        }
        let has_taken_over = !self.is_announced;
        let is_held_published =
            self.announce(context) && (self.held.is_empty() || self.publish_held(&ids, context));
        is_held_published.then_some(has_taken_over)
    }

    /// Announces on the status topic, once, that this source publishes now. Returns `false` if the server stops.
    fn announce(&mut self, context: &mut SourceContext) -> bool {
        if std::mem::replace(&mut self.is_announced, true) {
            return true;
        }
        let common = context.status.common();
        let (Some(topic), Some(group)) = (common.status_topic.clone(), &common.group) else { return true };
        let now_ns = clock::realtime_ns();
        let payload =
            json!({ "group": group, "source": common.name, "since_ms": now_ns / 1_000_000 }).to_string();
        context.publish_waiting(&topic, 0, now_ns, payload.as_bytes())
    }

    /// Holds a message, and forgets the oldest beyond the bounds.
    fn hold(&mut self, message: Held, ids: &RecentIds) {
        let now_ns = message.at_ns;
        self.bytes += message.bytes();
        self.held.push_back(message);
        loop {
            let is_full = self.bytes > GROUP_HELD_BYTES_MAX || self.held.len() > GROUP_IDS_MAX;
            let is_old = |oldest: &Held| now_ns.saturating_sub(oldest.at_ns) > ids.hold_ns;
            let has_old = self.held.front().is_some_and(is_old);
            if !is_full && !has_old {
                break;
            }
            let Some(oldest) = self.held.pop_front() else { break };
            self.bytes -= oldest.bytes();
            if !has_old && !ids.contains(oldest.id) {
                // Those before a pause this long were published, or lost long ago.
                let is_first = oldest.at_ns.saturating_sub(self.dropped_ns) > ids.hold_ns;
                self.dropped = if is_first { 1 } else { self.dropped + 1 };
                self.dropped_ns = oldest.at_ns;
            }
        }
    }

    /// Publishes what was held and is new, and counts what should have been held. Returns `false` if the server stops.
    fn publish_held(&mut self, ids: &RecentIds, context: &mut SourceContext) -> bool {
        let oldest_ns = clock::monotonic_ns().saturating_sub(ids.hold_ns);
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 && self.dropped_ns >= oldest_ns {
            let name = context.status.name();
            ::log::warn!(
                target: LOG_TARGET_SOURCE,
                "{name}: {dropped} messages lost: a standby holds at most {GROUP_IDS_MAX} messages and {GROUP_HELD_BYTES_MAX} bytes"
            );
            context.status.counters().add(Counter::SourceMessagesLost, dropped);
        }
        self.bytes = 0;
        for message in std::mem::take(&mut self.held) {
            if message.at_ns < oldest_ns || !ids.insert(message.id) {
                continue;
            }
            if !context.publish_any_waiting(
                &message.topic,
                message.key,
                message.time_ns,
                &message.payload,
                None,
            ) {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Lanes, SourceStatus, StopFlag, common::CommonOptions, failover::Failover, health::Health};
    use tickcast_core::mesh::ring::{Doorbell, frame_ring};

    fn admit(standby: &mut Standby, context: &mut SourceContext, id: Option<&str>) -> Admission {
        let mapped = Mapped { topic: "t", key: 0, producer_time_ns: None, id };
        standby.admit(&mapped, 1, b"1", context)
    }

    #[test]
    fn a_standby_that_takes_over_publishes_what_the_other_has_not_and_nothing_twice() {
        let (producer, _consumer) = frame_ring(1 << 16);
        let lanes = Lanes::new([(producer, Arc::new(Doorbell::new(|| {})))].into_iter());
        let options = CommonOptions { group: Some("g".into()), ..CommonOptions::default() };
        let statuses = ["a", "b"].map(|name| SourceStatus::new("nats", options.resolved(name)));
        statuses.iter().for_each(|status| status.set_health(Health::Running));
        let _failover = Failover::new(&statuses);
        let [a, b] = statuses;
        let mut of_a =
            SourceContext::new(Lanes::new(std::iter::empty()), a.clone(), Vec::new(), StopFlag::default());
        let mut of_b = SourceContext::new(lanes, b.clone(), Vec::new(), StopFlag::default());
        let (mut first, mut second) = (Standby::default(), Standby::default());
        for id in ["1", "2", "3"] {
            assert_eq!(admit(&mut first, &mut of_a, Some(id)), Admission::Publish, "{id}");
        }
        for id in [Some("2"), Some("3"), Some("4"), None, Some("5")] {
            assert_eq!(admit(&mut second, &mut of_b, id), Admission::Pass, "{id:?}");
        }
        assert_eq!(second.held.len(), 4, "one has no id");
        a.set_standby(true);
        b.set_standby(false);
        assert_eq!(admit(&mut second, &mut of_b, Some("6")), Admission::Publish);
        assert_eq!((second.held.len(), second.bytes), (0, 0));
        assert_eq!(b.counters().value(Counter::SourceTicks), 2, "4 and 5");
        assert_eq!(admit(&mut second, &mut of_b, Some("3")), Admission::Pass);
        assert_eq!(admit(&mut second, &mut of_b, None), Admission::Publish);
        assert_eq!(b.counters().value(Counter::SourceMessagesRepeated), 1);
        // It takes over even if no message arrives.
        b.set_standby(true);
        assert_eq!(admit(&mut second, &mut of_b, Some("8")), Admission::Pass);
        assert_eq!(second.take_over(&mut of_b), Some(false));
        b.set_standby(false);
        assert_eq!(second.take_over(&mut of_b), Some(true));
        assert_eq!((second.take_over(&mut of_b), second.held.len()), (Some(false), 0));
        assert_eq!(b.counters().value(Counter::SourceTicks), 3, "and 8");
        assert_eq!(admit(&mut first, &mut of_a, Some("7")), Admission::Pass, "it stands by now");
    }

    #[test]
    fn what_a_standby_holds_is_bounded_by_bytes_number_and_age() {
        let held = |at_ns, bytes: usize| Held {
            at_ns,
            id: at_ns,
            topic: "t".into(),
            key: 0,
            time_ns: 0,
            payload: vec![0; bytes].into(),
        };
        let ids = RecentIds { hold_ns: 100, ..RecentIds::default() };
        let mut standby = Standby::default();
        (0..9).for_each(|at_ns| standby.hold(held(at_ns, GROUP_HELD_BYTES_MAX / 4), &ids));
        assert_eq!(standby.held.iter().map(|held| held.at_ns).collect::<Vec<_>>(), [6, 7, 8]);
        standby.hold(held(107, 0), &ids);
        assert_eq!(standby.held.iter().map(|held| held.at_ns).collect::<Vec<_>>(), [7, 8, 107]);
        let sum: usize = standby.held.iter().map(Held::bytes).sum();
        assert_eq!(standby.bytes, sum);
        let mut standby = Standby::default();
        (0..GROUP_IDS_MAX as u64 + 9).for_each(|_| standby.hold(held(0, 0), &ids));
        assert!(standby.held.len() <= GROUP_IDS_MAX && standby.bytes <= GROUP_HELD_BYTES_MAX);
    }

    #[test]
    fn a_group_holds_messages_for_the_longest_silence_and_lag_of_any_member() {
        const S: u64 = 1_000_000_000;
        let common = |stale_after_ns, lag_max_ns| Common { stale_after_ns, lag_max_ns, ..Common::named("a") };
        for (members, hold_s) in [
            (&[common(Some(60 * S), None), common(Some(5 * S), None)][..], 65),
            (&[common(Some(5 * S), Some(7 * S)), common(Some(2 * S), Some(3 * S))], 17),
            (&[common(None, None)], 5),
        ] {
            assert_eq!(RecentIds::of_group(members.iter()).hold_ns(), hold_s * S, "{members:?}");
        }
    }

    #[test]
    fn what_a_standby_should_have_held_and_could_not_is_counted_when_it_takes_over() {
        let (producer, _consumer) = frame_ring(1 << 20);
        let lanes = Lanes::new([(producer, Arc::new(Doorbell::new(|| {})))].into_iter());
        let options = CommonOptions { group: Some("g".into()), ..CommonOptions::default() };
        let statuses = ["a", "b"].map(|name| SourceStatus::new("nats", options.resolved(name)));
        let _failover = Failover::new(&statuses);
        let b = statuses[1].clone();
        let ids = b.group_ids().unwrap().clone();
        let mut context = SourceContext::new(lanes, b.clone(), Vec::new(), StopFlag::default());
        let mut standby = Standby::default();
        let payload = vec![0; GROUP_HELD_BYTES_MAX / 4];
        let admit = |standby: &mut Standby, context: &mut SourceContext, id: u64| {
            let text = id.to_string();
            let mapped = Mapped { topic: "t", key: 0, producer_time_ns: None, id: Some(&text) };
            if id < 2 {
                ids.insert(ids.hasher.hash_one(&*text));
            }
            standby.admit(&mapped, 1, &payload, context);
        };
        // Room for three: the other has published the first two of the five that are pushed out.
        (0..8).for_each(|id| admit(&mut standby, &mut context, id));
        assert_eq!((standby.held.len(), standby.dropped), (3, 3));
        assert_eq!(b.counters().value(Counter::SourceMessagesLost), 0, "the other may still publish them");
        standby.held.iter_mut().for_each(|held| held.payload = Box::default());
        b.set_standby(false);
        assert_eq!(standby.take_over(&mut context), Some(true));
        assert_eq!(b.counters().value(Counter::SourceMessagesLost), 3);
        assert_eq!(b.counters().value(Counter::SourceTicks), 3);
    }

    #[test]
    fn the_oldest_ids_are_forgotten() {
        let ids = RecentIds::default();
        let count = GROUP_IDS_MAX as u64;
        assert!((0..count).all(|id| ids.insert(id)));
        assert!(!ids.insert(0), "still known");
        assert!(ids.insert(count) && ids.insert(0), "0 was the oldest");
    }
}
