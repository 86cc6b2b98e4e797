//! Sessions that are behind: what is taken out of their outboxes, what is held back for them, and what they get once
//! there is room. No payload is kept for a session: held topics are slots, and their newest ticks the topic's.

use super::{
    EgressLogs, Fanout,
    topic::{Member, group_of},
    topic_mut,
};
use crate::{
    egress_log::{EgressLog, FrameInfo},
    home::Wanted,
    ids::SlotId,
    limits::SEND_BYTES_MAX,
    session::{
        Verdict,
        membership::{Gap, Membership, Taking},
        table::Sessions,
    },
};
use tickcast_proto::{
    Step, frame,
    ids::{Sequence, TopicId},
    reply::Reply,
};

/// A tick that is to come later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// When, CLOCK_MONOTONIC nanoseconds.
    pub due_ns: u64,
    /// To whom.
    pub slot: SlotId,
    /// Of what.
    pub topic: TopicId,
}

/// Why something is to be taken out of an outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// Too much waits.
    Bytes,
    /// The socket was full for too long: what was queued before this time goes, CLOCK_MONOTONIC nanoseconds.
    Time(u64),
    /// The log comes round: what is no longer fresh goes.
    Sweep,
}

/// Whether a paced member may have a tick now. If not, it is skipped until its time, which is noted.
pub(super) fn is_due(
    id: TopicId,
    sequence: u64,
    member: &mut Member,
    sessions: &mut Sessions,
    paces: &mut Vec<Pace>,
    now_ns: u64,
) -> bool {
    let slot = member.slot();
    let Some(session) = sessions.open_mut(slot) else { return true };
    let Some(membership) = session.memberships.get_mut(&id) else { return true };
    if membership.due_ns <= now_ns {
        membership.paced(now_ns);
        return true;
    }
    (membership.taking, membership.from) = (Taking::Paced, sequence);
    paces.push(Pace { due_ns: membership.due_ns, slot, topic: id });
    member.set_skipped(true);
    false
}

/// Holds a tick back for a session that is behind. Returns `false` if its subscription does not conflate.
pub(super) fn hold(id: TopicId, sequence: u64, member: &mut Member, sessions: &mut Sessions) -> bool {
    let slot = member.slot();
    let Some(session) = sessions.open_mut(slot) else { return true };
    let Some(membership) = session.memberships.get_mut(&id) else { return true };
    if !membership.conflates() {
        return false;
    }
    (membership.taking, membership.from) = (Taking::Held, sequence);
    session.lag_mut().held.push_back(id);
    member.set_skipped(true);
    sessions.make_ready(slot);
    true
}

/// What a notice is that ticks do not come.
pub(super) fn skipped(id: TopicId, from: u64, to: u64) -> FrameInfo {
    // So many at once that 32 bits do not hold them would take a century to publish.
    FrameInfo { topic: id.0, sequence: to, skipped: (to - from).min(u64::from(u32::MAX)) as u32 }
}

impl Membership {
    /// A tick comes now: when the next may. Those that come in time keep their pace, others start it anew.
    fn paced(&mut self, now_ns: u64) {
        // A tick that was held after its time had come has its next one reckoned already.
        if self.due_ns > now_ns {
            return;
        }
        let interval_ns = u64::from(self.interval_us) * 1_000;
        let on_time = now_ns.saturating_sub(self.due_ns) < interval_ns;
        self.due_ns = if on_time { self.due_ns } else { now_ns } + interval_ns;
    }
}

impl Fanout {
    /// Takes what yields out of the outboxes that are over their bounds, and out of those the log comes round to.
    pub fn relieve(&mut self, sessions: &mut Sessions, logs: &mut EgressLogs) {
        while let Some(slot) = sessions.pop_over() {
            if sessions.open_mut(slot).is_some_and(|session| session.yields()) {
                self.yield_frames(slot, Pressure::Bytes, sessions, logs);
            }
            match sessions.is_too_slow(slot) {
                true => sessions.mark_slow(slot),
                false => sessions.raise_yield_bytes(slot),
            }
        }
        let due = logs.take_sweeps();
        if due.contains(&true) {
            for slot in sessions.slots() {
                let Some(session) = sessions.open_mut(slot) else { continue };
                let yields = due[session.format.index()] && session.yields();
                let stale = |log: &EgressLog| {
                    session.outbox.oldest_shared().is_some_and(|start| !log.is_fresh(start))
                };
                if yields && logs.of(session.format).is_some_and(stale) {
                    self.yield_frames(slot, Pressure::Sweep, sessions, logs);
                }
            }
        }
    }

    /// Takes frames out of an outbox: of memberships that conflate all, and their topics are held; of those that drop
    /// the oldest, and their gaps are noted. A look at each frame that waits, at most.
    pub fn yield_frames(
        &mut self,
        slot: SlotId,
        pressure: Pressure,
        sessions: &mut Sessions,
        logs: &EgressLogs,
    ) {
        let (topics, shards, tally) = (&mut self.topics, self.shards, &mut self.tally);
        let target = self.settings.behind_bytes / 2;
        sessions.with_outbox(slot, |session| {
            let format = session.format;
            let Some(log) = logs.of(format) else { return };
            let conflating = session.yielding.conflating > 0;
            session.behind |= conflating;
            let mut memberships = std::mem::take(&mut session.memberships);
            let mut lag = session.lag.take().unwrap_or_default();
            let mut waiting = session.frame_bytes();
            let old_ends = match pressure {
                Pressure::Time(time_ns) => log.head_at(time_ns),
                _ => 0,
            };
            let mut stays = match pressure {
                Pressure::Bytes => false,
                Pressure::Time(_) => session.outbox.oldest_shared().is_none_or(|start| start >= old_ends),
                Pressure::Sweep => session.outbox.oldest_shared().is_none_or(|start| log.is_fresh(start)),
            };
            session.outbox.evict(log, |mark, len, shared| {
                let id = TopicId(mark.topic);
                let Some(membership) = memberships.get_mut(&id) else { return Verdict::Keep };
                if !membership.yields() {
                    return Verdict::Keep;
                }
                if membership.taking == Taking::Recovering && mark.sequence > 0 {
                    // It was asked for, as much as there was room for; taken out, it would be asked for again.
                    return Verdict::Keep;
                }
                if !membership.conflates() {
                    // The oldest go first: behind the first that stays all stay. What is the session's own and stands
                    // before frames that go is older than they are.
                    stays |= match (pressure, shared) {
                        (Pressure::Bytes, _) => waiting <= target,
                        (Pressure::Time(_), Some(frame)) => frame.start >= old_ends,
                        (Pressure::Sweep, Some(frame)) => log.is_fresh(frame.start),
                        (Pressure::Time(_) | Pressure::Sweep, None) => false,
                    };
                    match (stays, conflating) {
                        (true, false) => return Verdict::KeepRest,
                        (true, true) => return Verdict::Keep,
                        (false, _) => {}
                    }
                    let lists = match mark.sequence {
                        0 => membership.forget_announcement(),
                        _ => membership.lose(mark.span()),
                    };
                    lag.untold.extend(lists.then_some(id));
                } else if mark.sequence == 0 {
                    lag.untold.extend(membership.forget_announcement().then_some(id));
                } else if membership.taking == Taking::Live {
                    (membership.taking, membership.from) = (Taking::Held, mark.span().from.0);
                    lag.held.push_back(id);
                    if let Some(topic) = topic_mut(topics, id, shards) {
                        topic.set_skipped(format, membership.position, true);
                    }
                } else {
                    // Held already, or for its pace: from further back.
                    membership.from = membership.from.min(mark.span().from.0);
                }
                waiting -= len as usize;
                tally.taken_out += u64::from(mark.sequence > 0 && mark.skipped == 0);
                Verdict::Evict
            });
            session.memberships = memberships;
            session.lag = (!lag.is_empty()).then_some(lag);
        });
    }

    /// Before a SEND: tells the session what it must know first, and gives it the newest of what was held back, up to
    /// about one SEND.
    pub fn refill(&mut self, slot: SlotId, sessions: &mut Sessions, logs: &mut EgressLogs, now_ns: u64) {
        let send_bytes = self.settings.behind_bytes.min(SEND_BYTES_MAX);
        let Some(session) = sessions.open_mut(slot) else { return };
        if session.lag.is_none() {
            return;
        }
        // What it is given now must not be what makes it yield.
        session.yield_bytes = usize::MAX;
        self.tell(slot, sessions);
        while let Some(session) = sessions.open_mut(slot)
            && session.outbox_bytes() < send_bytes
            && let Some(lag) = session.lag.as_deref_mut()
            && let Some(id) = lag.held.pop_front()
        {
            if !self.release(id, slot, 2 * send_bytes, sessions, logs, now_ns)
                && let Some(session) = sessions.open_mut(slot)
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

    /// A session has nothing left to send: it is no longer behind.
    pub fn caught_up(&mut self, slot: SlotId, sessions: &mut Sessions) {
        if let Some(session) = sessions.any_mut(slot)
            && session.yields()
        {
            session.behind = false;
            sessions.set_yield_bytes(slot);
        }
    }

    /// The time of a paced tick has come. If the socket has no room it is held on.
    pub fn pace_is_due(
        &mut self,
        id: TopicId,
        slot: SlotId,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
        now_ns: u64,
    ) {
        let Some(session) = sessions.open_mut(slot) else { return };
        let Some(membership) = session.memberships.get_mut(&id) else { return };
        if membership.taking != Taking::Paced || membership.due_ns > now_ns {
            return;
        }
        membership.taking = Taking::Held;
        let send_bytes = self.settings.behind_bytes.min(SEND_BYTES_MAX);
        if session.behind || session.outbox_bytes() >= SEND_BYTES_MAX {
            session.lag_mut().held.push_back(id);
            sessions.make_ready(slot);
        } else if !self.release(id, slot, 2 * send_bytes, sessions, logs, now_ns)
            && let Some(session) = sessions.open_mut(slot)
        {
            session.lag_mut().held.push_back(id);
        }
        self.relieve(sessions, logs);
    }

    /// The ticks that are to come later, since this was last asked.
    pub fn take_paces(&mut self) -> Vec<Pace> {
        std::mem::take(&mut self.paces)
    }

    /// Gives a session the newest ticks of a held topic, each preceded by what it stands for, while less than `bytes_max`
    /// waits. Returns `false` when that was not all of them.
    fn release(
        &mut self,
        id: TopicId,
        slot: SlotId,
        bytes_max: usize,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
        now_ns: u64,
    ) -> bool {
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else { return true };
        let Some(session) = sessions.open_mut(slot) else { return true };
        let format = session.format;
        let Some(membership) = session.memberships.get_mut(&id) else { return true };
        if membership.taking != Taking::Held {
            return true;
        }
        if membership.interval_us > 0 {
            membership.paced(now_ns);
        }
        let mut from = membership.from;
        if from < topic.tracked_from {
            membership.wanted = Wanted::Newest;
            session.lag_mut().recovering.push_back(id);
            topic.set_taking(slot, Taking::Recovering, sessions);
            self.queue_pull(slot, sessions);
            return true;
        }
        if !std::mem::replace(&mut membership.announced, true) {
            topic.announce(slot, sessions, logs);
        }
        let Some(group) = group_of(&mut topic.groups, format) else { return true };
        let mut whole = true;
        for (sequence, bytes) in topic.newest.since(from) {
            if sessions.get(slot).is_some_and(|session| session.outbox_bytes() >= bytes_max) {
                whole = false;
                break;
            }
            if sequence > from {
                self.tally.conflated += sequence - from;
                sessions.count_conflated(slot, sequence - from);
                let notice = Reply::Conflated { topic: id, name: &topic.info.name, from, to: sequence };
                sessions.push_private(slot, skipped(id, from, sequence), |out| notice.encode(format, out));
            }
            // The topic's last tick is shared by all who get it now; older ones of its keys are this session's own.
            let last = sequence == topic.newest.sequence();
            let shared = group
                .latest
                .filter(|range| last && logs.of(format).is_some_and(|log| log.is_shareable(range.start)));
            let Ok(Step::Complete(_, tick)) = frame::decode(bytes, usize::MAX) else {
                debug_assert!(false, "what is kept of a topic are whole ticks");
                break;
            };
            if !last {
                let mark = FrameInfo { topic: id.0, sequence, skipped: 0 };
                sessions.push_private(slot, mark, |out| logs.encode_tick(format, &tick, &topic.info, out));
            } else {
                let appended = match (shared, logs.of(format)) {
                    (Some(range), Some(log)) => Some((log, range)),
                    _ => logs.append_tick(format, &tick, &topic.info),
                };
                let Some((log, range)) = appended else {
                    sessions.mark_slow(slot);
                    break;
                };
                group.latest = Some(range);
                sessions.push_range(slot, log, range);
            }
            self.tally.queued += 1;
            from = sequence + 1;
        }
        if let Some(membership) = sessions.any_mut(slot).and_then(|session| session.memberships.get_mut(&id))
        {
            membership.from = from;
        }
        if whole {
            topic.set_taking(slot, Taking::Live, sessions);
        }
        whole
    }

    /// Before a session ends that is still to get what waits for it: the newest of what was held back or paced, and word of
    /// everything else that it will not get. At most `outbox_bytes_max`; past that it learns when it comes back.
    /// `log_bytes_left`: what all that end together may still append to the logs, so that none laps another.
    pub fn finish(
        &mut self,
        slot: SlotId,
        outbox_bytes_max: usize,
        log_bytes_left: &mut u64,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
        now_ns: u64,
    ) {
        let Some(session) = sessions.open_mut(slot) else { return };
        session.yield_bytes = usize::MAX;
        let waits = |membership: &Membership| membership.taking != Taking::Live || membership.is_untold();
        let waiting: Vec<TopicId> = session
            .memberships
            .iter()
            .filter(|(_, membership)| waits(membership))
            .map(|(&id, _)| id)
            .collect();
        self.tell_of(&waiting, slot, sessions);
        for id in waiting {
            let Some(session) = sessions.open_mut(slot) else { return };
            if session.frame_bytes() > outbox_bytes_max {
                return;
            }
            let Some(membership) = session.memberships.get_mut(&id) else { continue };
            if membership.taking == Taking::Paced {
                membership.taking = Taking::Held;
            }
            let (taking, from, format) = (membership.taking, membership.from, session.format);
            let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else { continue };
            let to = topic.newest.sequence() + 1;
            if taking == Taking::Held && from >= topic.tracked_from && *log_bytes_left > 0 {
                let before = logs.head(format);
                self.release(id, slot, outbox_bytes_max, sessions, logs, now_ns);
                *log_bytes_left = log_bytes_left.saturating_sub(logs.head(format) - before);
            } else if taking != Taking::Live && from < to {
                self.tally.dropped += to - from;
                sessions.count_dropped(slot, to - from);
                let notice = Reply::Gap { topic: id, name: &topic.info.name, from, to };
                sessions.push_private(slot, skipped(id, from, to), |out| notice.encode(format, out));
            }
        }
    }

    /// Announcements and gaps that were taken out or came about: before any frame that waits, as many as fit a SEND.
    fn tell(&mut self, slot: SlotId, sessions: &mut Sessions) {
        let Some(lag) = sessions.open_mut(slot).and_then(|session| session.lag.as_deref_mut()) else {
            return;
        };
        let untold = std::mem::take(&mut lag.untold);
        self.scratch.clear();
        let mut told = 0;
        for &id in &untold {
            if self.scratch.len() >= SEND_BYTES_MAX {
                break;
            }
            told += 1;
            self.encode_untold(id, slot, sessions);
        }
        if let Some(lag) = sessions.open_mut(slot).and_then(|session| session.lag.as_deref_mut()) {
            lag.untold = untold;
            lag.untold.drain(..told);
        }
        let notices = &self.scratch;
        sessions.with_outbox(slot, |session| session.outbox.insert_before_frames(notices));
    }

    /// Tells what is still to be told of topics that the session is about to leave: nothing that waits of them is to be
    /// more than was told.
    pub fn tell_of(&mut self, ids: &[TopicId], slot: SlotId, sessions: &mut Sessions) {
        self.scratch.clear();
        for &id in ids {
            self.encode_untold(id, slot, sessions);
        }
        let notices = &self.scratch;
        sessions.with_outbox(slot, |session| session.outbox.insert_before_frames(notices));
    }

    fn encode_untold(&mut self, id: TopicId, slot: SlotId, sessions: &mut Sessions) {
        let Some(session) = sessions.open_mut(slot) else { return };
        let format = session.format;
        let Some(membership) = session.memberships.get_mut(&id) else { return };
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else { return };
        if !std::mem::replace(&mut membership.announced, true) {
            topic.info.encode(format, &mut self.scratch);
        }
        let Gap { from: Sequence(from), to: Sequence(to) } =
            std::mem::replace(&mut membership.gap, Gap::NONE);
        if from < to {
            self.tally.dropped += to - from;
            sessions.count_dropped(slot, to - from);
            Reply::Gap { topic: id, name: &topic.info.name, from, to }.encode(format, &mut self.scratch);
        }
    }
}
