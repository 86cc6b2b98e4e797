//! Sessions that are behind: eviction from their outboxes, held topics, and their release once there is room. No
//! payload is kept per session: a held topic is an id, and all sessions share its last values.

use super::{
    EgressLogs, Fanout,
    logged::Notices,
    topic::{EgressTopic, Member, group_of},
    topic_mut,
};
use crate::{
    egress_log::FrameInfo,
    home::{Backfill, Home},
    ids::SlotId,
    limits::SEND_BYTES_MAX,
    session::{
        Content, Settling,
        membership::{Gap, Membership, Taking},
        table::Sessions,
    },
};
use tickcast_proto::{
    Step, frame,
    ids::{Sequence, TopicId},
};

/// A timer for a paced tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaceTimer {
    /// When the tick may be sent, CLOCK_MONOTONIC nanoseconds.
    pub due_ns: u64,
    /// The session.
    pub slot: SlotId,
    /// The topic.
    pub topic: TopicId,
}

/// Bounds on what a closing session still receives.
#[derive(Debug)]
pub struct CloseBudget<'a> {
    /// Bytes that may wait for the session. Beyond that, it learns of its losses when it reconnects.
    pub outbox_bytes_max: usize,
    /// Bytes that all closing sessions together may still append to the logs, so that none laps another.
    pub log_bytes_left: &'a mut u64,
}

/// A held topic to release to a session while less than `bytes_max` waits for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldTopic {
    pub(super) id: TopicId,
    pub(super) slot: SlotId,
    pub(super) bytes_max: usize,
}

/// Whether a paced member may receive a tick now. If not, the member is skipped and a timer is queued.
pub(super) fn pace_allows(
    id: TopicId,
    sequence: u64,
    member: &mut Member,
    sessions: &mut Sessions,
    pace_timers: &mut Vec<PaceTimer>,
    now_ns: u64,
) -> bool {
    let slot = member.slot();
    // Nothing is queued to a closing session.
    let Some(session) = sessions.open_mut(slot) else { return true };
    let Some(membership) = session.memberships.get_mut(id) else {
        debug_assert!(false, "a member of a topic has a membership");
        return true;
    };
    if membership.due_ns <= now_ns {
        membership.advance_pace(now_ns);
        return true;
    }
    (membership.taking, membership.from) = (Taking::Paced, sequence);
    pace_timers.push(PaceTimer { due_ns: membership.due_ns, slot, topic: id });
    member.set_skipped(true);
    false
}

/// Holds a topic for a session that is behind. Returns `false` if its subscription does not conflate.
pub(super) fn hold_if_conflating(
    id: TopicId,
    sequence: u64,
    member: &mut Member,
    sessions: &mut Sessions,
) -> bool {
    let slot = member.slot();
    let Some(session) = sessions.open_mut(slot) else {
        debug_assert!(false, "only an open session is behind");
        return true;
    };
    let Some(membership) = session.memberships.get_mut(id) else {
        debug_assert!(false, "a member of a topic has a membership");
        return true;
    };
    if !membership.conflates() {
        return false;
    }
    (membership.taking, membership.from) = (Taking::Held, sequence);
    session.lag_mut().held.push_back(id);
    member.set_skipped(true);
    sessions.make_ready(slot);
    true
}

/// Describes a notice about ticks that are not delivered: `[from, to)`.
pub(super) fn skipped(id: TopicId, from: u64, to: u64) -> Content {
    Content::Notice { topic: id.0, skipped: Gap { from: Sequence(from), to: Sequence(to) } }
}

impl Membership {
    /// Schedules the next tick, as one is sent now. An on-time tick keeps the rhythm; a late one restarts it.
    fn advance_pace(&mut self, now_ns: u64) {
        // A tick held after its due time has already advanced the pace.
        if self.due_ns > now_ns {
            return;
        }
        let interval_ns = u64::from(self.interval_us) * 1_000;
        let on_time = now_ns.saturating_sub(self.due_ns) < interval_ns;
        self.due_ns = if on_time { self.due_ns } else { now_ns } + interval_ns;
    }
}

impl Fanout {
    /// Prepares the next SEND of a lagging session: pending notices first, then the last values of held topics, up to
    /// about one SEND.
    pub fn refill(
        &mut self,
        slot: SlotId,
        home: &Home,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
        now_ns: u64,
    ) {
        let send_bytes = self.settings.behind_bytes.min(SEND_BYTES_MAX);
        let Some(session) = sessions.open_mut(slot) else { return };
        if session.lag.is_none() {
            return;
        }
        // Frames queued here must not trigger eviction themselves.
        session.yield_bytes = usize::MAX;
        self.flush_notices(slot, SEND_BYTES_MAX, sessions);
        while let Some(session) = sessions.open_mut(slot)
            && session.outbox_bytes() < send_bytes
            && let Some(lag) = session.lag.as_deref_mut()
            && let Some(id) = lag.held.pop_front()
        {
            if !self.release_held(
                HeldTopic { id, slot, bytes_max: 2 * send_bytes },
                home,
                sessions,
                logs,
                now_ns,
            ) && let Some(session) = sessions.open_mut(slot)
            {
                session.lag_mut().held.push_front(id);
            }
        }
        sessions.raise_yield_bytes(slot);
        self.queue_pull(slot, sessions);
        if let Some(session) = sessions.open_mut(slot)
            && session.lag.as_deref().is_some_and(|lag| lag.is_empty())
        {
            session.lag = None;
        }
    }

    /// Notes that a session's outbox is empty, so it is no longer behind.
    pub fn handle_drained(&mut self, slot: SlotId, sessions: &mut Sessions) {
        if let Some(session) = sessions.any_mut(slot) {
            session.settling = Settling::None;
            if session.yields() {
                sessions.set_yield_bytes(slot);
            }
        }
    }

    /// Releases a paced tick that is due, or holds it while the socket is full.
    pub fn handle_pace_due(
        &mut self,
        id: TopicId,
        slot: SlotId,
        home: &Home,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
        now_ns: u64,
    ) {
        let Some(session) = sessions.open_mut(slot) else { return };
        let Some(membership) = session.memberships.get_mut(id) else { return };
        if membership.taking != Taking::Paced || membership.due_ns > now_ns {
            return;
        }
        membership.taking = Taking::Held;
        let send_bytes = self.settings.behind_bytes.min(SEND_BYTES_MAX);
        if session.is_behind() || session.outbox_bytes() >= SEND_BYTES_MAX {
            session.lag_mut().held.push_back(id);
            sessions.make_ready(slot);
        } else if !self.release_held(
            HeldTopic { id, slot, bytes_max: 2 * send_bytes },
            home,
            sessions,
            logs,
            now_ns,
        ) && let Some(session) = sessions.open_mut(slot)
        {
            session.lag_mut().held.push_back(id);
        }
        self.evict_overflowing(sessions, logs);
    }

    /// Takes the timers to set for paced ticks.
    pub fn take_pace_timers(&mut self) -> Vec<PaceTimer> {
        std::mem::take(&mut self.pace_timers)
    }

    /// Queues the last values of a held topic, each preceded by a notice of the ticks it replaces. Returns `false` if
    /// some did not fit.
    pub(super) fn release_held(
        &mut self,
        held: HeldTopic,
        home: &Home,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
        now_ns: u64,
    ) -> bool {
        let HeldTopic { id, slot, bytes_max } = held;
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else { return true };
        let Some(session) = sessions.open_mut(slot) else { return true };
        let format = session.format;
        let Some(membership) = session.memberships.get_mut(id) else { return true };
        if membership.taking != Taking::Held {
            return true;
        }
        if membership.interval_us > 0 {
            membership.advance_pace(now_ns);
        }
        let mut from = membership.from;
        // While ticks wait for the topic to open, its home is ahead of what has been delivered here. It is asked once they are.
        let is_opening = !self.openings.is_empty() && self.openings.contains(id);
        if is_opening || !topic.has_last_values_from(from) {
            membership.wanted = Backfill::Conflated;
            session.lag_mut().recovering.push_back(id);
            topic.set_taking(slot, Taking::Recovering, sessions);
            self.queue_pull(slot, sessions);
            return true;
        }
        if !std::mem::replace(&mut membership.announced, true) {
            topic.announce(slot, sessions, logs);
        }
        let EgressTopic { info, log, groups, last_values, last_sequence, .. } = topic;
        let (notices, last_sequence) = (Notices { info, log: log.as_deref() }, *last_sequence);
        let Some(group) = group_of(groups, format) else {
            debug_assert!(false, "a member is in the group of its format");
            return true;
        };
        let last_values = home.last_values(id).unwrap_or(last_values);
        debug_assert_eq!(
            last_values.sequence(),
            last_sequence,
            "the last values end at the last tick delivered"
        );
        let intact_from = last_values.intact_from(from);
        if intact_from > from {
            notices.lose(slot, (from, intact_from), sessions, &mut self.tally);
            from = intact_from;
        }
        let mut whole = true;
        for (sequence, bytes) in last_values.since(from) {
            if sessions.get(slot).is_some_and(|session| session.outbox_bytes() >= bytes_max) {
                whole = false;
                break;
            }
            let Ok(Step::Complete(_, tick)) = frame::decode(bytes, usize::MAX) else {
                debug_assert!(false, "last values are whole frames");
                break;
            };
            notices.replace(slot, from, &tick, sessions, &mut self.tally);
            // The topic's last tick goes to the shared log; older ones, of other keys, are encoded for this session
            // alone.
            let last = sequence == last_sequence;
            let shared = group
                .latest
                .filter(|range| last && logs.of(format).is_some_and(|log| log.is_shareable(range.start)));
            if !last {
                let frame = FrameInfo { topic: id.0, sequence };
                sessions.push_private(slot, frame, |out| logs.encode_tick(format, &tick, info, out));
            } else {
                let appended = match (shared, logs.of(format)) {
                    (Some(range), Some(log)) => Some((log, range)),
                    _ => logs.append_tick(format, &tick, info),
                };
                let Some((log, range)) = appended else {
                    sessions.mark_too_far_behind(slot);
                    break;
                };
                group.latest = Some(range);
                sessions.push_range(slot, log, range);
            }
            self.tally.queued += 1;
            from = sequence + 1;
        }
        if let Some(membership) = sessions.any_mut(slot).and_then(|session| session.memberships.get_mut(id)) {
            membership.from = from;
        }
        if whole {
            topic.set_taking(slot, Taking::Live, sessions);
            self.share_again(id, slot, sessions);
        }
        whole
    }

    /// Flushes a draining session: the last values of held and paced topics, then gaps for everything else it will not
    /// receive.
    pub fn flush_for_close(
        &mut self,
        slot: SlotId,
        budget: CloseBudget<'_>,
        home: &Home,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
        now_ns: u64,
    ) {
        let CloseBudget { outbox_bytes_max, log_bytes_left } = budget;
        let Some(session) = sessions.open_mut(slot) else { return };
        session.yield_bytes = usize::MAX;
        let waits =
            |membership: &Membership| membership.taking != Taking::Live || membership.is_unannounced();
        let waiting: Vec<TopicId> = session
            .memberships
            .iter()
            .filter(|(_, membership)| waits(membership))
            .map(|(id, _)| id)
            .collect();
        self.flush_notices_of(&waiting, slot, sessions);
        for id in waiting {
            let Some(session) = sessions.open_mut(slot) else { return };
            if session.frame_bytes() > outbox_bytes_max {
                return;
            }
            let Some(membership) = session.memberships.get_mut(id) else { continue };
            if membership.taking == Taking::Paced {
                membership.taking = Taking::Held;
            }
            let (taking, from) = (membership.taking, membership.from);
            let format = session.format;
            let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else { continue };
            let to = topic.last_sequence + 1;
            if taking == Taking::Held && topic.has_last_values_from(from) && *log_bytes_left > 0 {
                let before = logs.head(format);
                self.release_held(
                    HeldTopic { id, slot, bytes_max: outbox_bytes_max },
                    home,
                    sessions,
                    logs,
                    now_ns,
                );
                *log_bytes_left = log_bytes_left.saturating_sub(logs.head(format) - before);
            } else if taking != Taking::Live && from < to {
                self.lose_rest(id, slot, from, sessions);
            }
        }
    }

    /// Announces all ticks of a topic as lost, from a sequence on.
    pub(super) fn lose_rest(&mut self, id: TopicId, slot: SlotId, from: u64, sessions: &mut Sessions) {
        let to = topic_mut(&mut self.topics, id, self.shards).map_or(0, |topic| topic.last_sequence + 1);
        self.lose(id, slot, from, to, sessions);
    }

    /// Announces ticks of a topic as lost, after the frames that wait.
    pub(super) fn lose(&mut self, id: TopicId, slot: SlotId, from: u64, to: u64, sessions: &mut Sessions) {
        if sessions.open_mut(slot).is_some()
            && let Some(topic) = topic_mut(&mut self.topics, id, self.shards)
        {
            topic.notices().lose(slot, (from, to), sessions, &mut self.tally);
        }
    }

    /// Queues pending announcements and gaps before all waiting frames, about as many as fit into `bytes`.
    pub fn flush_notices(&mut self, slot: SlotId, bytes: usize, sessions: &mut Sessions) {
        let Some(lag) = sessions.open_mut(slot).and_then(|session| session.lag.as_deref_mut()) else {
            return;
        };
        let unannounced = std::mem::take(&mut lag.unannounced);
        self.scratch.clear();
        let mut encoded = 0;
        let mut announced: Vec<TopicId> = Vec::new();
        for &id in &unannounced {
            if self.scratch.len() >= bytes {
                break;
            }
            encoded += 1;
            self.encode_notices(id, slot, sessions);
        }
        if let Some(lag) = sessions.open_mut(slot).and_then(|session| session.lag.as_deref_mut()) {
            lag.unannounced = unannounced;
            announced = lag.unannounced.drain(..encoded).collect();
        }
        let notices = &self.scratch;
        sessions.with_outbox(slot, |session| session.outbox.insert_before_frames(notices));
        for id in announced {
            self.share_again(id, slot, sessions);
        }
    }

    /// Queues the pending announcements and gaps of these topics before all waiting frames.
    pub fn flush_notices_of(&mut self, ids: &[TopicId], slot: SlotId, sessions: &mut Sessions) {
        self.scratch.clear();
        for &id in ids {
            self.encode_notices(id, slot, sessions);
        }
        let notices = &self.scratch;
        sessions.with_outbox(slot, |session| session.outbox.insert_before_frames(notices));
        for &id in ids {
            self.share_again(id, slot, sessions);
        }
    }

    fn encode_notices(&mut self, id: TopicId, slot: SlotId, sessions: &mut Sessions) {
        let Some(session) = sessions.open_mut(slot) else { return };
        let (format, features) = (session.format, session.features);
        let Some(membership) = session.memberships.get_mut(id) else { return };
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else {
            return debug_assert!(false, "a membership has a topic");
        };
        if !std::mem::replace(&mut membership.announced, true) {
            topic.info.encode(format, &mut self.scratch);
        }
        let gap = std::mem::replace(&mut membership.gap, Gap::NONE);
        if !gap.is_empty() {
            let ticks = topic.notices().encode_gap((format, features), gap, &mut self.scratch);
            self.tally.dropped += ticks;
            sessions.count_dropped(slot, ticks);
        }
    }
}
