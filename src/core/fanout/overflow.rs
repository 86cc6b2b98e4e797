//! Eviction from the outboxes of sessions that are behind, by each topic's policy and by whether client or server is at fault.

use super::{
    EgressLogs, Fanout,
    topic::Life,
    topic_mut,
    wildcard::{self, Matching},
};
use crate::{
    egress_log::EgressLog,
    ids::SlotId,
    limits::OVERLOAD_WAIT_MS,
    session::{
        Settling, Verdict,
        membership::{Membership, Taking, TopicMap},
        table::Sessions,
    },
};
use tickcast_proto::ids::TopicId;

/// Why frames are evicted from an outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvictionCause {
    /// More bytes wait than the session's bound allows.
    OutboxFull,
    /// More bytes wait than any session may have, because the server is overloaded.
    Overload,
    /// The socket was full for too long: evicts what was queued before this time, CLOCK_MONOTONIC nanoseconds.
    SocketStalled { queued_before_ns: u64 },
    /// The log is about to overwrite old frames: evicts those that are no longer fresh.
    LogWrapping {
        /// They are old because the client is slow, not because the server is overloaded.
        is_slow: bool,
    },
}

impl Fanout {
    /// Evicts frames from outboxes that exceed their bounds, and from those whose frames the log is about to overwrite.
    pub fn evict_overflowing(&mut self, sessions: &mut Sessions, logs: &mut EgressLogs) {
        while let Some(slot) = sessions.pop_over() {
            let is_slow = sessions.is_slow(slot);
            let mut is_overload = false;
            if let Some(session) = sessions.open_mut(slot).filter(|session| session.yields()) {
                // A burst within a few turns is not an overload.
                let waits_long = logs.of(session.format).is_some_and(|log| {
                    let oldest = session.outbox.oldest_shared();
                    oldest.is_some_and(|start| log.has_waited(start, OVERLOAD_WAIT_MS * 1_000_000))
                });
                is_overload = waits_long && !is_slow;
                self.evict_frames(slot, EvictionCause::OutboxFull, sessions, logs);
            }
            if !is_slow && sessions.has_too_much(slot) {
                is_overload = true;
                self.evict_frames(slot, EvictionCause::Overload, sessions, logs);
            }
            sessions.note_overload(u64::from(is_overload));
            match sessions.has_too_much(slot) {
                true => sessions.mark_too_far_behind(slot),
                false => sessions.raise_yield_bytes(slot),
            }
        }
        let due = logs.take_sweeps();
        if due.contains(&true) {
            for slot in sessions.slots() {
                let is_slow = sessions.is_slow(slot);
                let Some(session) = sessions.open_mut(slot) else { continue };
                let yields = due[session.format.index()] && (session.yields() || !is_slow);
                let stale = |log: &EgressLog| {
                    session.outbox.oldest_shared().is_some_and(|start| !log.is_fresh(start))
                };
                if yields && logs.of(session.format).is_some_and(stale) {
                    sessions.note_overload(u64::from(!is_slow));
                    self.evict_frames(slot, EvictionCause::LogWrapping { is_slow }, sessions, logs);
                }
            }
        }
    }

    /// Evicts frames from an outbox: all frames of conflating memberships, whose topics become held, and the oldest frames of
    /// dropping ones, whose gaps are noted. If the server is overloaded, also evicts from memberships that otherwise keep every
    /// tick. O(frames waiting).
    pub fn evict_frames(
        &mut self,
        slot: SlotId,
        cause: EvictionCause,
        sessions: &mut Sessions,
        logs: &EgressLogs,
    ) {
        let (topics, shards, tally) = (&mut self.topics, self.shards, &mut self.tally);
        let entries = &self.entries;
        let matching = Matching::new(&self.patterns, self.tenant_highest, &self.settings.exports);
        let mut inserted = Vec::new();
        let (memberships_left, mut added, mut is_refused) = (sessions.memberships_left(slot), 0, false);
        let (target, is_overloaded) = match cause {
            EvictionCause::Overload => (sessions.overload_target_bytes(slot), true),
            EvictionCause::LogWrapping { is_slow } => (0, !is_slow),
            EvictionCause::OutboxFull | EvictionCause::SocketStalled { .. } => {
                (self.settings.behind_bytes / 2, false)
            }
        };
        sessions.with_outbox(slot, |session| {
            let format = session.format;
            let Some(log) = logs.of(format) else { return };
            let conflating = session.yielding.conflating > 0;
            if conflating {
                session.settling = Settling::Behind;
            }
            let mut memberships = std::mem::take(&mut session.memberships);
            let mut lag = session.lag.take().unwrap_or_default();
            let mut waiting = session.frame_bytes();
            let old_ends = match cause {
                EvictionCause::SocketStalled { queued_before_ns } => log.head_at(queued_before_ns),
                _ => 0,
            };
            let mut stays = match cause {
                EvictionCause::OutboxFull | EvictionCause::Overload => false,
                EvictionCause::SocketStalled { .. } => {
                    session.outbox.oldest_shared().is_none_or(|start| start >= old_ends)
                }
                EvictionCause::LogWrapping { .. } => {
                    session.outbox.oldest_shared().is_none_or(|start| log.is_fresh(start))
                }
            };
            let (subscriptions, principal) = (&session.subscriptions, session.principal.as_deref());
            // The merged delivery by each topic's wildcard groups, cached because many frames may belong to few topics.
            let mut of_groups: TopicMap<Option<Membership>> = TopicMap::default();
            session.outbox.evict(Some(log), |content, len, shared| {
                let id = TopicId(content.topic());
                let mut of_group = None;
                let (membership, is_new) = match memberships.get_mut(id) {
                    Some(membership) => (membership, false),
                    None => {
                        let merged = of_groups.entry(id).or_insert_with(|| {
                            // Frames of an ended life stay in place, like those of a topic that is gone.
                            let topic =
                                topic_mut(topics, id, shards).filter(|topic| topic.life != Life::Ended)?;
                            let merged =
                                wildcard::merged_of_all(matching, entries, topic, subscriptions, principal)?;
                            Some(merged.membership())
                        });
                        let Some(merged) = *merged else { return Verdict::Keep };
                        (of_group.insert(merged), true)
                    }
                };
                let may_go =
                    if is_overloaded { membership.yields_to_overload() } else { membership.yields() };
                if !may_go {
                    return Verdict::Keep;
                }
                let is_recovering = matches!(membership.taking, Taking::Recovering | Taking::Ahead);
                if is_recovering && !content.is_announcement() {
                    // History was requested to fit the room. If it were evicted, it would be requested again.
                    return Verdict::Keep;
                }
                if !membership.conflates() {
                    // The oldest go first: once a frame stays, all later ones do. A private frame has no position in
                    // the log, but it is older than the evicted frames behind it.
                    stays |= match (cause, shared) {
                        (EvictionCause::OutboxFull | EvictionCause::Overload, _) => waiting <= target,
                        (EvictionCause::SocketStalled { .. }, Some(frame)) => frame.start >= old_ends,
                        (EvictionCause::LogWrapping { .. }, Some(frame)) => log.is_fresh(frame.start),
                        (EvictionCause::SocketStalled { .. } | EvictionCause::LogWrapping { .. }, None) => {
                            false
                        }
                    };
                    match (stays, conflating) {
                        (true, false) => return Verdict::KeepRest,
                        (true, true) => return Verdict::Keep,
                        (false, _) => {}
                    }
                }
                // The eviction is announced later, which takes a membership.
                if is_new && added == memberships_left {
                    is_refused = true;
                    return Verdict::Keep;
                }
                added += usize::from(is_new);
                if is_new && let Some(topic) = topic_mut(topics, id, shards) {
                    membership.position = topic.push_member(format, slot, membership);
                    inserted.push(id);
                }
                if !membership.conflates() {
                    let must_list = match content.is_announcement() {
                        true => membership.forget_announcement(),
                        false => membership.lose(content.ticks()),
                    };
                    lag.unannounced.extend(must_list.then_some(id));
                } else if content.is_announcement() {
                    lag.unannounced.extend(membership.forget_announcement().then_some(id));
                } else if membership.taking == Taking::Live {
                    (membership.taking, membership.from) = (Taking::Held, content.ticks().from.0);
                    lag.held.push_back(id);
                    if let Some(topic) = topic_mut(topics, id, shards) {
                        topic.set_skipped(format, membership.position, true);
                    }
                } else {
                    // Already held or paced: extend it to older ticks.
                    membership.from = membership.from.min(content.ticks().from.0);
                }
                if let Some(membership) = of_group {
                    memberships.insert(id, membership);
                }
                waiting -= len as usize;
                tally.evicted += u64::from(content.is_tick());
                Verdict::Evict
            });
            session.memberships = memberships;
            session.lag = (!lag.is_empty()).then_some(lag);
            for id in inserted.drain(..) {
                let membership = session.memberships.get(id).copied();
                // The membership yields or keeps as its subscription does, so the session's bound does not change.
                session.count_membership(None, membership.as_ref());
            }
        });
        sessions.count_memberships(slot, added);
        if is_refused {
            sessions.refuse_membership(slot);
        }
    }
}
