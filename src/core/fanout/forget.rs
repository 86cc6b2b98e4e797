//! Topics that their homes have forgotten: members leave, and everything that they will not receive is announced.

use std::collections::HashSet;

use super::{EgressLogs, Fanout, conflation::HeldTopic, topic::Life, topic_mut, topic_ref};
use crate::{
    home::{Backfill, Home},
    ids::SlotId,
    limits::{FRAMES_PER_UNIT, TURN_TOPICS_DROPPED},
    session::{
        Verdict,
        membership::{Gap, Taking},
        table::Sessions,
    },
};
use tickcast_proto::{ids::TopicId, subscription::Position};

/// Forgotten topics without members whose waiting frames are being lost, session by session.
///
/// Bound: [`TURN_TOPICS_DROPPED`] topics.
#[derive(Debug, Default)]
pub(super) struct Dropping {
    topics: HashSet<u32, rustc_hash::FxBuildHasher>,
    /// The next slot whose frames are visited.
    next: u32,
}

impl Fanout {
    /// Notes that a home has forgotten a topic whose last sequence was `last`. Its name may be reused at once; its members
    /// leave in [`Fanout::leave_forgotten`], once the topic is open.
    pub fn handle_forget(&mut self, id: TopicId, last: u64) {
        if self.openings.is_empty() || !self.openings.end_when_open(id, last) {
            self.end_life(id, last);
        }
    }

    /// Ends the life of a topic that is open.
    pub(super) fn end_life(&mut self, id: TopicId, last: u64) {
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else {
            return debug_assert!(false, "a home forgets topics that it has opened");
        };
        debug_assert!(
            topic.last_sequence == last || topic.last_sequence == 0,
            "ticks arrive before the end of their topic"
        );
        topic.life = Life::Forgotten;
        // Without a live tick, a session that recovers would not know what it has lost.
        topic.last_sequence = last;
        self.by_key.remove(topic.key());
        self.forgotten_keys.insert(topic.key().into(), id);
        self.forgotten.push_back(id);
    }

    /// Whether members of forgotten topics must leave.
    pub fn has_forgotten(&self) -> bool {
        !self.forgotten.is_empty() || !self.memberless.is_empty() || !self.dropping.topics.is_empty()
    }

    /// Removes about `units` members of forgotten topics. Returns the units left, and the topics that are gone: the caller must
    /// tell their homes.
    pub fn leave_forgotten(
        &mut self,
        units: usize,
        home: &Home,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
        now_ns: u64,
    ) -> (usize, Vec<TopicId>) {
        let (mut left, mut gone) = (units, Vec::new());
        if self.dropping.topics.is_empty() {
            // One turn after the members left, so that sessions with room have received what was held for them.
            let topics = self.memberless.drain(..).map(|id| id.0).collect();
            self.dropping = Dropping { topics, next: 0 };
        }
        if !self.dropping.topics.is_empty() {
            left = left.saturating_sub(self.advance_dropping(left, &mut gone, sessions, logs));
        }
        gone.iter().for_each(|&id| self.close(id));
        while left > 0
            && self.memberless.len() < TURN_TOPICS_DROPPED
            && let Some(&id) = self.forgotten.front()
        {
            left -= 1;
            let topic = topic_mut(&mut self.topics, id, self.shards);
            match topic.and_then(|topic| topic.any_member()) {
                Some(slot) => {
                    let queued = self.tally.queued;
                    self.leave_topic(id, slot, Some(home), sessions, logs, now_ns);
                    left = left.saturating_sub((self.tally.queued - queued) as usize);
                    // Frames queued now must not overwrite frames that other sessions still wait for.
                    self.evict_overflowing(sessions, logs);
                }
                None => {
                    self.forgotten.pop_front();
                    self.memberless.push(id);
                }
            }
        }
        (left, gone)
    }

    /// Evicts the frames of topics that are dropped from more outboxes: see [`Fanout::lose_waiting_of`]. Once all have been visited,
    /// `gone` gets the topics. Returns the units used: one for [`FRAMES_PER_UNIT`] sessions and waiting frames. The frames of one
    /// session are visited at once.
    fn advance_dropping(
        &mut self,
        units: usize,
        gone: &mut Vec<TopicId>,
        sessions: &mut Sessions,
        logs: &EgressLogs,
    ) -> usize {
        let Dropping { topics, mut next } = std::mem::take(&mut self.dropping);
        let (mut looks, end) = (0, if sessions.waiting() > 0 { sessions.slots_len() } else { 0 });
        while next < end && looks / FRAMES_PER_UNIT < units {
            looks += 1 + self.lose_waiting_of(SlotId(next), &topics, sessions, logs);
            next += 1;
        }
        if next < end {
            self.dropping = Dropping { topics, next };
            return looks / FRAMES_PER_UNIT;
        }
        for id in topics.into_iter().map(TopicId) {
            match topic_ref(&self.topics, id, self.shards).is_some_and(|topic| topic.any_member().is_none()) {
                true => gone.push(id),
                // An eviction in between made a session a member again.
                false => self.forgotten.push_back(id),
            }
        }
        looks / FRAMES_PER_UNIT
    }

    /// Evicts the topics' frames from a session's outbox and announces them as lost. Otherwise the announcement of a topic's
    /// next life might overtake them, and once the topic is gone, they could be neither evicted nor named. Raw sessions keep
    /// theirs, because nothing can be announced to them. Returns the number of frames visited.
    pub(super) fn lose_waiting_of(
        &mut self,
        slot: SlotId,
        topics: &HashSet<u32, rustc_hash::FxBuildHasher>,
        sessions: &mut Sessions,
        logs: &EgressLogs,
    ) -> usize {
        let waits = sessions
            .open_mut(slot)
            .is_some_and(|session| session.frame_bytes() > 0 && session.format.codec.has_replies());
        if !waits {
            return 0;
        }
        let (mut frames, mut lost): (usize, Vec<(TopicId, Gap)>) = (0, Vec::new());
        sessions.with_outbox(slot, |session| {
            session.outbox.evict(logs.of(session.format), |content, _, _| {
                frames += 1;
                let (id, ticks) = (TopicId(content.topic()), content.ticks());
                if topics.contains(&id.0) {
                    match lost.iter_mut().find(|(lost, _)| *lost == id) {
                        Some((_, gap)) if gap.is_empty() => *gap = ticks,
                        Some((_, gap)) if !ticks.is_empty() => gap.to = ticks.to,
                        Some(_) => {}
                        None => lost.push((id, ticks)),
                    }
                }
                Verdict::Keep
            });
        });
        if lost.is_empty() {
            return frames;
        }
        self.scratch.clear();
        for (id, gap) in lost.into_iter().filter(|(_, gap)| !gap.is_empty()) {
            let (topic, session) = (topic_mut(&mut self.topics, id, self.shards), sessions.open_mut(slot));
            let Some((topic, session)) = topic.zip(session) else { continue };
            let (format, features) = (session.format, session.features);
            // Its announcement may be among the frames evicted.
            topic.info.encode(format, &mut self.scratch);
            let ticks = topic.notices().encode_gap((format, features), gap, &mut self.scratch);
            self.tally.dropped += ticks;
            sessions.count_dropped(slot, ticks);
        }
        let (notices, tally) = (&self.scratch, &mut self.tally);
        sessions.with_outbox(slot, |session| {
            // Before the frames are evicted: replies that follow them, such as the end of a subscription, must follow the
            // gap too.
            session.outbox.insert_before_frames(notices);
            session.outbox.evict(logs.of(session.format), |content, _, _| {
                match topics.contains(&content.topic()) {
                    true => {
                        tally.evicted += u64::from(content.is_tick());
                        Verdict::Evict
                    }
                    false => Verdict::Keep,
                }
            });
        });
        // Notices cannot be evicted again: a session that reads nothing must not collect them for ever.
        sessions.mark_if_announcements_pile_up(slot);
        frames
    }

    /// Ends a session's membership of a forgotten topic. Held ticks are sent if there is room, and announced as lost otherwise.
    pub(super) fn leave_topic(
        &mut self,
        id: TopicId,
        slot: SlotId,
        home: Option<&Home>,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
        now_ns: u64,
    ) {
        if let Some(session) = sessions.open_mut(slot) {
            // Frames queued here must not be evicted: their membership is about to end.
            session.yield_bytes = usize::MAX;
            self.flush_notices_of(&[id], slot, sessions);
            self.release_or_lose(id, slot, home, sessions, logs, now_ns);
            sessions.raise_yield_bytes(slot);
        }
        if sessions.get(slot).is_some_and(|session| session.memberships.contains(id))
            && let Some(topic) = topic_mut(&mut self.topics, id, self.shards)
        {
            topic.leave(slot, sessions);
        }
    }

    fn release_or_lose(
        &mut self,
        id: TopicId,
        slot: SlotId,
        home: Option<&Home>,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
        now_ns: u64,
    ) {
        let bytes_max = self.settings.behind_bytes;
        let Some(session) = sessions.open_mut(slot) else { return };
        let has_room = session.outbox_bytes() < bytes_max;
        let Some(membership) = session.memberships.get_mut(id) else { return };
        if membership.taking == Taking::Paced {
            membership.taking = Taking::Held;
        }
        if membership.taking == Taking::Held
            && has_room
            && let Some(home) = home
        {
            self.release_held(HeldTopic { id, slot, bytes_max }, home, sessions, logs, now_ns);
        }
        let Some(membership) = sessions.open_mut(slot).and_then(|session| session.memberships.get(id)) else {
            return;
        };
        let (taking, wanted, from) = (membership.taking, membership.wanted, membership.from);
        match taking {
            Taking::Live => {}
            // The position has not been answered, and the topic no longer exists.
            Taking::Recovering if wanted.is_position() => {
                self.answer_unknown(id, slot, sessions);
                self.lose_rest(id, slot, from, sessions);
            }
            // Which of its ticks are new to the client is not known any more.
            Taking::Recovering if wanted == Backfill::Since => self.lose_rest(id, slot, 1, sessions),
            // The log may bring the topic back before it reaches the position.
            Taking::Ahead => self.await_again(id, slot, from, sessions),
            _ => self.lose_rest(id, slot, from, sessions),
        }
    }

    /// Keeps the position of a session that is ahead of a forgotten topic, `from` being the first sequence that it lacks.
    fn await_again(&mut self, id: TopicId, slot: SlotId, from: u64, sessions: &mut Sessions) {
        let Some((session, topic)) = sessions.get(slot).zip(topic_ref(&self.topics, id, self.shards)) else {
            return debug_assert!(false, "a membership has a session and a topic");
        };
        let position = Position { epoch: topic.info.epoch, sequence: from.saturating_sub(1) };
        let key: Box<str> = topic.key().into();
        let mut entries = session.subscriptions.iter().map(|held| held.entry);
        let entry = entries.find(|&entry| self.entry_matches(entry, &key));
        if !entry.is_some_and(|entry| self.await_topic(&key, position, slot, entry)) {
            self.answer_unknown(id, slot, sessions);
        }
    }
}
