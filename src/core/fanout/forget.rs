//! Topics that their homes have forgotten: their members leave, with everything announced that they will not receive.

use super::{EgressLogs, Fanout, topic_mut};
use crate::{
    home::Home,
    ids::SlotId,
    session::{membership::Taking, table::Sessions},
};
use tickcast_proto::ids::TopicId;

impl Fanout {
    /// Notes that a home has forgotten a topic. Its name is free for another life at once; its members leave in
    /// [`Fanout::leave_forgotten`].
    pub fn handle_forget(&mut self, id: TopicId) {
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else {
            return debug_assert!(false, "a home forgets topics that it has opened");
        };
        topic.is_forgotten = true;
        self.by_name.remove(&topic.info.name);
        self.forgotten.push_back(id);
    }

    /// Whether members of forgotten topics must leave.
    pub fn has_forgotten(&self) -> bool {
        !self.forgotten.is_empty()
    }

    /// Lets about `units` members of the first forgotten topic leave. Returns the units left, and the topic if it is gone: its
    /// home must be told.
    pub fn leave_forgotten(
        &mut self,
        units: usize,
        home: &Home,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
        now_ns: u64,
    ) -> (usize, Option<TopicId>) {
        let Some(&id) = self.forgotten.front() else { return (units, None) };
        let mut left = units;
        while left > 0 {
            left -= 1;
            let topic = topic_mut(&mut self.topics, id, self.shards);
            let Some(slot) = topic.and_then(|topic| topic.any_member()) else {
                self.forgotten.pop_front();
                self.handle_close(id);
                return (left, Some(id));
            };
            self.leave_topic(id, slot, home, sessions, logs, now_ns);
        }
        self.evict_overflowing(sessions, logs);
        (left, None)
    }

    /// Ends a session's membership of a forgotten topic. What it holds is sent if there is room, and announced as lost otherwise.
    fn leave_topic(
        &mut self,
        id: TopicId,
        slot: SlotId,
        home: &Home,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
        now_ns: u64,
    ) {
        if let Some(session) = sessions.open_mut(slot) {
            // What is queued here must not be evicted: its membership is about to end.
            session.yield_bytes = usize::MAX;
            self.flush_notices_of(&[id], slot, sessions);
            self.release_or_lose(id, slot, home, sessions, logs, now_ns);
            sessions.raise_yield_bytes(slot);
        }
        if sessions.get(slot).is_some_and(|session| session.memberships.contains_key(&id))
            && let Some(topic) = topic_mut(&mut self.topics, id, self.shards)
        {
            topic.leave(slot, sessions);
        }
    }

    fn release_or_lose(
        &mut self,
        id: TopicId,
        slot: SlotId,
        home: &Home,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
        now_ns: u64,
    ) {
        let bytes_max = self.settings.behind_bytes;
        let Some(session) = sessions.open_mut(slot) else { return };
        let has_room = session.outbox_bytes() < bytes_max;
        let Some(membership) = session.memberships.get_mut(&id) else { return };
        if membership.taking == Taking::Paced {
            membership.taking = Taking::Held;
        }
        if membership.taking == Taking::Held && has_room {
            self.release_all(id, slot, bytes_max, home, sessions, logs, now_ns);
        }
        let Some(membership) = sessions.open_mut(slot).and_then(|session| session.memberships.get(&id)) else {
            return;
        };
        if membership.taking != Taking::Live {
            self.lose_rest(id, slot, membership.from, sessions);
        }
    }
}
