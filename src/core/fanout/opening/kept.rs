//! The ticks that wait for a topic to open.

use super::{Fanout, Opening, Openings, Stage};
use crate::{
    fanout::{EgressLogs, topic_mut, topic_ref},
    limits::{OPENING_BYTES_MAX, OPENINGS_BYTES_MAX},
    session::table::Sessions,
};
use tickcast_proto::{
    Step,
    frame::{self, Frame},
    ids::TopicId,
};

impl Openings {
    /// Whether a topic delivers what has waited for it.
    fn delivers(&self, id: TopicId) -> bool {
        self.by_topic.get(&id).is_some_and(|opening| matches!(opening.stage, Stage::Delivering))
    }

    /// Keeps a tick of a topic that is opening. Returns `false` if the topic is open.
    ///
    /// If there is no room, the topic loses its oldest ticks. An owner has room for as many bytes as are left for all others
    /// (dynamic thresholds: Choudhury and Hahne, 1998), so the next one always has some.
    fn keep(&mut self, tick: &Frame<'_>) -> bool {
        let Some(opening) = self.by_topic.get_mut(&TopicId(tick.header.topic_id)) else { return false };
        let (len, mut freed) = (tick.bytes.len(), 0);
        let (owner, total) = (self.owner_bytes.entry(opening.owner).or_default(), self.waiting_bytes);
        let has_room = |opening: &Opening, freed: usize| {
            opening.bytes() + len <= OPENING_BYTES_MAX
                && *owner + total + len <= OPENINGS_BYTES_MAX + 2 * freed
        };
        while !has_room(opening, freed) {
            self.lost += 1;
            match opening.lose_oldest() {
                Some(bytes) => freed += bytes,
                None => {
                    opening.lose(tick);
                    break;
                }
            }
        }
        let kept = match has_room(opening, freed) {
            true => {
                if opening.delivered > opening.waiting.len() / 2 {
                    opening.waiting.drain(..std::mem::take(&mut opening.delivered));
                }
                opening.waiting.extend_from_slice(tick.bytes);
                len
            }
            false => 0,
        };
        *owner = *owner + kept - freed;
        if *owner == 0 {
            self.owner_bytes.remove(&opening.owner);
        }
        self.waiting_bytes = self.waiting_bytes + kept - freed;
        true
    }
}

impl Fanout {
    /// Keeps a tick of a topic that is opening. If the topic delivers what waits, it first delivers its oldest tick: that costs what
    /// the new one would cost in an open topic. Otherwise that is charged by the members that it has, or those of its last life.
    pub(in crate::fanout) fn keep_tick(
        &mut self,
        tick: &Frame<'_>,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
        now_ns: u64,
    ) {
        let id = TopicId(tick.header.topic_id);
        let last = match self.openings.by_topic.get(&id).map(|opening| &opening.stage) {
            Some(Stage::Leaving { last } | Stage::Losing { last, .. }) => Some(*last),
            Some(Stage::Waiting(unopened)) => self.by_key.get(unopened.key()).copied(),
            _ => None,
        };
        if self.openings.delivers(id)
            && let Some(mut opening) = self.openings.remove(id)
        {
            self.deliver_oldest(id, &mut opening, sessions, logs, now_ns);
            self.openings.insert(id, opening);
        } else {
            let topics = [Some(id), last].into_iter().flatten();
            let topics = topics.filter_map(|id| topic_ref(&self.topics, id, self.shards));
            self.tally.units += topics.map(|topic| topic.members_len()).sum::<usize>();
        }
        let is_kept = self.openings.keep(tick);
        debug_assert!(is_kept, "the topic is opening");
    }

    /// Delivers the tick of a topic that has waited longest, after the announcement of those lost before it; the topic must not be
    /// among those that are opening. Returns `false` if nothing waits.
    pub(super) fn deliver_oldest(
        &mut self,
        id: TopicId,
        opening: &mut Opening,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
        now_ns: u64,
    ) -> bool {
        let lost = opening.lost.take();
        if let Some(lost) = lost {
            self.announce_lost(id, lost, sessions, logs);
        }
        let Ok(Step::Complete(len, tick)) = frame::decode(&opening.waiting[opening.delivered..], usize::MAX)
        else {
            debug_assert!(opening.bytes() == 0, "whole frames wait");
            return lost.is_some();
        };
        self.deliver(&tick, sessions, logs, now_ns);
        opening.delivered += len;
        true
    }

    /// Announces ticks that were lost while their topic opened to its live subscribers. The others recover them.
    fn announce_lost(
        &mut self,
        id: TopicId,
        (from, to): (u64, u64),
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else {
            return debug_assert!(false, "a topic stays while it opens");
        };
        let from = topic.log.as_deref_mut().map_or(from, |log| log.lose(from, to));
        topic.last_sequence = to - 1;
        // The last values kept here have a hole.
        topic.tracked_from = u64::MAX;
        self.announce_hole(id, (from, to), sessions, logs);
    }
}
