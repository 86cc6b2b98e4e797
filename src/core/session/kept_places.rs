//! Places of event streams that have ended, kept for clients that resume.

use std::collections::{HashMap, VecDeque};

use super::places::Places;
use crate::{ids::SessionId, limits::RESUME_WINDOW_MS};
use tickcast_proto::subscription::Position;

/// The places that no event id could hold, by session. Kept for [`RESUME_WINDOW_MS`]. Their memory counts towards the shard's
/// saved positions, which bounds their number.
///
/// Invariant: each session in `by_session` is in `expiries`.
#[derive(Debug, Default)]
pub struct KeptPlacesTable {
    by_session: HashMap<SessionId, Places>,
    /// When each expires, CLOCK_MONOTONIC nanoseconds, earliest first.
    expiries: VecDeque<(u64, SessionId)>,
    /// The time of the turn, CLOCK_MONOTONIC nanoseconds.
    now_ns: u64,
}

impl KeptPlacesTable {
    /// Keeps the places of a session that has ended.
    pub fn keep(&mut self, session: SessionId, places: Places) {
        self.expiries.push_back((self.now_ns.saturating_add(RESUME_WINDOW_MS * 1_000_000), session));
        self.by_session.insert(session, places);
    }

    /// The positions of an ended session after a SEND, by topic; `None` if they are not known.
    pub fn after_send(&self, session: SessionId, number: u64) -> Option<HashMap<Box<str>, Position>> {
        self.by_session.get(&session)?.after_send(number)
    }

    /// Sets the time of the turn, and drops expired places. O(places dropped).
    pub fn expire(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        while let Some((due_ns, session)) = self.expiries.front().copied()
            && due_ns <= now_ns
        {
            self.expiries.pop_front();
            self.by_session.remove(&session);
        }
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        let places: usize = self.by_session.values().map(Places::memory_bytes).sum();
        places + self.expiries.capacity() * size_of::<(u64, SessionId)>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::saved_positions::PositionsMemory;
    use tickcast_proto::{framing::event_stream::KeptPlaces, ids::TopicId};

    #[test]
    fn places_are_kept_for_the_resume_window() {
        let memory = PositionsMemory::default();
        let mut table = KeptPlacesTable::default();
        for session in 1..=2 {
            let mut places = Places::new(memory.clone());
            for topic in 0..400 {
                places.learn(
                    Some(TopicId(topic)),
                    &format!("a.topic.{topic}"),
                    Position { epoch: 7, sequence: session },
                    1 << 20,
                );
            }
            places.advance(TopicId(0), 9);
            places.end_send(KeptPlaces { shard: 0, key: 0, number: 0 }, &mut Vec::new());
            assert!(places.must_be_kept());
            table.expire(session * 1_000);
            table.keep(SessionId(session), places);
        }
        let window_ns = RESUME_WINDOW_MS * 1_000_000;
        table.expire(window_ns + 999);
        let found = table.after_send(SessionId(1), 1).unwrap();
        assert_eq!(found["a.topic.0"], Position { epoch: 7, sequence: 9 });
        assert_eq!((found.len(), found["a.topic.1"].sequence), (400, 1));
        assert_eq!(table.after_send(SessionId(3), 1), None);
        table.expire(window_ns + 1_000);
        assert!(table.after_send(SessionId(1), 1).is_none() && table.after_send(SessionId(2), 1).is_some());
        table.expire(window_ns + 2_000);
        assert_eq!(memory.bytes(), 0);
    }
}
