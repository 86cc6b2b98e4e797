//! Topics fed by durable logs, on the egress side: holes in the log, sessions ahead of it, and counts of the ticks between two
//! positions.

use std::collections::{BTreeSet, VecDeque};

use super::{DeliveryCounts, EgressLogs, Fanout, conflation::skipped, topic_mut};
use crate::{
    ids::SlotId,
    limits::{LOG_HOLES_PER_TOPIC_MAX, LOG_SEQUENCES_PER_TOPIC_MAX},
    session::{
        membership::{Gap, Taking},
        table::Sessions,
    },
};
use tickcast_proto::{
    WireFormat,
    codec::TopicInfo,
    features::Features,
    frame::Frame,
    ids::{Sequence, TopicId},
    reply::{Reply, Skipped},
};

/// What a shard knows about a topic that a log feeds.
///
/// Invariant: `sequences` is sorted, and ends with `linked_to` once a tick has arrived here.
#[derive(Debug)]
pub(super) struct LogTopic {
    /// The home's last sequence, as far as this shard knows; 0: none yet.
    linked_to: u64,
    /// Sequences of the last ticks, to count those in a range. Bound: [`LOG_SEQUENCES_PER_TOPIC_MAX`].
    sequences: VecDeque<u64>,
    /// The last holes in the log, oldest first. Bound: [`LOG_HOLES_PER_TOPIC_MAX`]; the first also represents all older ones.
    holes: VecDeque<Gap>,
    /// Sessions that wait until the topic catches up with them, by the first sequence that they lack. Bound: the topic's
    /// members.
    ahead: BTreeSet<(u64, SlotId)>,
}

impl LogTopic {
    /// Creates the state of a topic whose home's last sequence is `last`; 0: none.
    pub(super) fn new(last: u64) -> LogTopic {
        LogTopic {
            linked_to: last,
            sequences: VecDeque::new(),
            holes: VecDeque::new(),
            ahead: BTreeSet::new(),
        }
    }

    /// Number of sequences remembered.
    pub(super) fn sequences_len(&self) -> usize {
        self.sequences.len()
    }

    /// Makes a session wait for the tick with this sequence, the first that it lacks, or for a later one.
    pub(super) fn wait(&mut self, from: u64, slot: SlotId) {
        self.ahead.insert((from, slot));
    }

    /// Ends the wait of a session that leaves the topic or goes live.
    pub(super) fn stop_waiting(&mut self, from: u64, slot: SlotId) {
        self.ahead.remove(&(from, slot));
    }

    /// Number of waiting sessions.
    pub(super) fn waiting_len(&self) -> usize {
        self.ahead.len()
    }

    /// Takes out one session that the tick with this sequence reaches, with the first sequence that it lacks.
    fn pop_reached(&mut self, sequence: u64) -> Option<(u64, SlotId)> {
        self.ahead.first().is_some_and(|&(from, _)| from <= sequence).then(|| self.ahead.pop_first())?
    }

    /// Remembers a tick. `left`: how many more sequences all topics together may remember; at 0, the topic's own oldest make
    /// room.
    fn note(&mut self, sequence: u64, left: &mut usize) {
        while self.sequences.len() >= LOG_SEQUENCES_PER_TOPIC_MAX || *left == 0 {
            let Some(_) = self.sequences.pop_front() else { break };
            *left += 1;
        }
        if *left > 0 {
            self.sequences.push_back(sequence);
            *left -= 1;
        }
        self.linked_to = sequence;
    }

    /// Notes that the ticks from one sequence to another, exclusive, were lost on their way. They follow all ticks noted so far.
    /// Returns the first sequence of the hole.
    pub(super) fn lose(&mut self, from: u64, to: u64) -> u64 {
        let from = if self.linked_to > 0 { self.linked_to + 1 } else { from };
        self.note_hole(Gap { from: Sequence(from), to: Sequence(to) });
        self.linked_to = to - 1;
        from
    }

    /// Remembers a hole that follows all others.
    fn note_hole(&mut self, hole: Gap) {
        if self.holes.len() >= LOG_HOLES_PER_TOPIC_MAX
            && let Some(oldest) = self.holes.pop_front()
            && let Some(next) = self.holes.front_mut()
        {
            next.from = oldest.from;
        }
        self.holes.push_back(hole);
    }

    fn ticks_in(&self, from: u64, to: u64) -> u64 {
        let before = |end: u64| self.sequences.partition_point(|&sequence| sequence < end);
        (before(to) - before(from)) as u64
    }
}

/// The part of a topic needed to announce skipped ticks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Notices<'a> {
    pub(super) info: &'a TopicInfo,
    pub(super) log: Option<&'a LogTopic>,
}

impl<'a> Notices<'a> {
    /// Number of ticks in a range that is not empty, as far as known; at least 1. Exact for topics whose sequences the home
    /// assigns. For log topics, exact if the range has no hole and at most [`LOG_SEQUENCES_PER_TOPIC_MAX`] ticks have come
    /// since its start.
    fn ticks_in(self, from: u64, to: u64) -> u64 {
        self.log.map_or(to - from, |log| log.ticks_in(from, to).max(1))
    }

    fn range(self, features: Features, from: u64, to: u64) -> (Skipped<'a>, u64) {
        let ticks = self.ticks_in(from, to);
        let count = features.contains(Features::COUNTS).then_some(ticks);
        (Skipped { topic: self.info.id, name: &self.info.name, from, to, count }, ticks)
    }

    /// Appends a GAP. Returns the number of ticks.
    pub(super) fn encode_gap(
        self,
        (format, features): (WireFormat, Features),
        Gap { from: Sequence(from), to: Sequence(to) }: Gap,
        out: &mut Vec<u8>,
    ) -> u64 {
        let (range, ticks) = self.range(features, from, to);
        Reply::Gap(range).encode(format, out);
        ticks
    }

    /// Queues a GAP for ticks that a session has lost, if there are any, and counts them.
    pub(super) fn lose(
        self,
        slot: SlotId,
        (from, to): (u64, u64),
        sessions: &mut Sessions,
        tally: &mut DeliveryCounts,
    ) {
        let Some(ticks) = self.announce(slot, (from, to), Reply::Gap, sessions) else { return };
        tally.dropped += ticks;
        sessions.count_dropped(slot, ticks);
    }

    /// Queues a CONFLATED for the ticks from a sequence on that a newer one replaces, if there are any, and counts them. Ticks
    /// missing from the log are not replaced: a GAP announces them.
    pub(super) fn replace(
        self,
        slot: SlotId,
        from: u64,
        by: &Frame<'_>,
        sessions: &mut Sessions,
        tally: &mut DeliveryCounts,
    ) {
        if by.previous() < from {
            return;
        }
        let (mut next, to) = (from, by.header.sequence);
        for hole in self.log.into_iter().flat_map(|log| &log.holes) {
            let (lost_from, lost_to) = (hole.from.0.max(next), hole.to.0.min(to));
            if lost_from < lost_to {
                self.conflate(slot, (next, lost_from), sessions, tally);
                self.lose(slot, (lost_from, lost_to), sessions, tally);
                next = lost_to;
            }
        }
        if by.previous() >= next {
            self.conflate(slot, (next, to), sessions, tally);
        }
    }

    fn conflate(
        self,
        slot: SlotId,
        (from, to): (u64, u64),
        sessions: &mut Sessions,
        tally: &mut DeliveryCounts,
    ) {
        let Some(ticks) = self.announce(slot, (from, to), Reply::Conflated, sessions) else { return };
        tally.conflated += ticks;
        sessions.count_conflated(slot, ticks);
    }

    /// Queues the announcement of ticks that a session does not get. Returns their number; `None` if there are none.
    fn announce(
        self,
        slot: SlotId,
        (from, to): (u64, u64),
        notice: impl FnOnce(Skipped<'a>) -> Reply<'a>,
        sessions: &mut Sessions,
    ) -> Option<u64> {
        let session = sessions.get(slot).filter(|_| from < to)?;
        let format = session.format;
        let (range, ticks) = self.range(session.features, from, to);
        let notice = notice(range);
        let content = skipped(self.info.id, from, to);
        sessions.push_private(slot, content, |out| notice.encode_queued(format, out));
        Some(ticks)
    }
}

impl Fanout {
    /// Prepares the delivery of a log's tick: announces any hole before it to all live subscribers, and makes sessions live
    /// that the topic reaches with it.
    #[inline(never)]
    pub(super) fn begin_logged(&mut self, tick: &Frame<'_>, sessions: &mut Sessions, logs: &mut EgressLogs) {
        let (id, sequence) = (TopicId(tick.header.topic_id), tick.header.sequence);
        let previous = tick.previous();
        let log = topic_mut(&mut self.topics, id, self.shards).and_then(|topic| topic.log.as_deref_mut());
        let Some(log) = log else { return debug_assert!(false, "a log feeds the topic") };
        let (last, from) = (log.linked_to, log.linked_to + 1);
        log.note(sequence, &mut self.log_sequences_left);
        if last > 0 && previous >= from {
            log.note_hole(Gap { from: Sequence(from), to: Sequence(previous + 1) });
            self.tally.holes += 1;
            self.announce_hole(id, (from, previous + 1), sessions, logs);
        }
        self.let_reached_go_live(id, (previous, sequence), sessions);
    }

    /// Announces a hole in a topic to its live subscribers. The others learn of it when they resume.
    pub(super) fn announce_hole(
        &mut self,
        id: TopicId,
        hole: (u64, u64),
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        let mut slots = self.slots_of_groups(id, sessions, logs);
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else {
            return debug_assert!(false, "only a topic that is known has a hole");
        };
        let members = topic.groups.iter().flat_map(|group| &group.members);
        slots.extend(members.filter(|member| !member.is_skipped()).map(|member| member.slot()));
        self.tally.units += slots.len();
        for slot in slots {
            topic.notices().lose(slot, hole, sessions, &mut self.tally);
        }
    }

    /// Makes sessions live that have all ticks before `sequence`. `previous`: a bound on the sequence before it. Visits no
    /// session that still waits.
    fn let_reached_go_live(
        &mut self,
        id: TopicId,
        (previous, sequence): (u64, u64),
        sessions: &mut Sessions,
    ) {
        while let Some(topic) = topic_mut(&mut self.topics, id, self.shards)
            && let Some((from, slot)) = topic.log.as_deref_mut().and_then(|log| log.pop_reached(sequence))
        {
            self.tally.units += 1;
            topic.notices().lose(slot, (from, previous + 1), sessions, &mut self.tally);
            topic.set_taking(slot, Taking::Live, sessions);
            self.share_again(id, slot, sessions);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_looks_only_at_the_sessions_that_it_reaches() {
        let mut log = LogTopic::new(0);
        for (from, slot) in [(80, 1), (70, 2), (90, 3), (75, 4)] {
            log.wait(from, SlotId(slot));
        }
        log.stop_waiting(75, SlotId(4));
        assert_eq!(log.pop_reached(69), None);
        let reached: Vec<_> = std::iter::from_fn(|| log.pop_reached(80)).collect();
        assert_eq!(reached, [(70, SlotId(2)), (80, SlotId(1))]);
        assert_eq!(log.waiting_len(), 1);
    }

    #[test]
    fn holes_are_remembered_apart_and_the_oldest_ones_as_one() {
        let gap = |from: u64, to: u64| Gap { from: Sequence(from), to: Sequence(to) };
        let mut log = LogTopic::new(0);
        let holes: Vec<Gap> =
            (0..LOG_HOLES_PER_TOPIC_MAX as u64 + 2).map(|at| gap(10 * at, 10 * at + 5)).collect();
        holes.iter().for_each(|&hole| log.note_hole(hole));
        assert_eq!(log.holes[0], gap(0, 25));
        assert_eq!(log.holes.range(1..).copied().collect::<Vec<_>>(), holes[3..]);
    }

    #[test]
    fn ticks_are_counted_as_far_as_they_are_remembered() {
        let (mut log, mut left) = (LogTopic::new(0), 4);
        for sequence in [10, 20, 21, 40] {
            log.note(sequence, &mut left);
        }
        assert_eq!(
            [(1, 10), (1, 11), (10, 41), (11, 21), (22, 40)].map(|(a, b)| log.ticks_in(a, b)),
            [0, 1, 4, 1, 0]
        );
        log.note(50, &mut left);
        assert_eq!((left, log.sequences_len(), log.ticks_in(1, 51)), (0, 4, 4), "the oldest has made room");
        let mut other = LogTopic::new(0);
        other.note(7, &mut left);
        assert_eq!((other.sequences_len(), other.linked_to), (0, 7), "others have all the room");
        let info = TopicInfo::new(TopicId(5), 1 << 52, "a");
        let notices = Notices { info: &info, log: Some(&other) };
        assert_eq!(notices.ticks_in(1, 1_000), 1, "a range has a tick");
        assert_eq!(Notices { log: None, ..notices }.ticks_in(1, 1_000), 999);
    }
}
