//! Places of event streams that have ended, kept for clients that resume.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
};

use super::places::{Owner, Places};
use crate::{ids::SessionId, limits::RESUME_WINDOW_MS};
use tickcast_proto::{framing::event_stream::KeptPlaces, ids::ShardId, subscription::Position};

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
    /// Keys the proofs in the names of places. Random in each run of the server, whose names other runs do not know.
    proofs: RandomState,
}

/// Expiries that are checked after each change in debug builds.
const CHECKED_MAX: usize = 16;

impl KeptPlacesTable {
    /// How the places of a session are named outside: by its id, and a proof that the server has given its client the name.
    pub fn kept_as(&self, shard: ShardId, session: SessionId) -> KeptPlaces {
        let key = u128::from(session.0) << u64::BITS | u128::from(self.proofs.hash_one(session));
        KeptPlaces { shard: shard.0, key, number: 0 }
    }

    /// The session that [`KeptPlacesTable::kept_as`] has named so; `None` if it has named none.
    pub fn session_of(&self, kept: KeptPlaces) -> Option<SessionId> {
        let session = SessionId((kept.key >> u64::BITS) as u64);
        (self.kept_as(ShardId(kept.shard), session).key == kept.key).then_some(session)
    }

    /// Keeps the places of a session that has ended.
    pub fn keep(&mut self, session: SessionId, places: Places) {
        self.expiries.push_back((self.now_ns.saturating_add(RESUME_WINDOW_MS * 1_000_000), session));
        self.by_session.insert(session, places);
        self.invariants();
    }

    /// The positions of an ended session after a SEND, by topic, and [`Places::since_us`]; `None` if they are not known, or are
    /// another client's.
    pub fn after_send(
        &self,
        session: SessionId,
        number: u64,
        client: &Owner,
    ) -> Option<(HashMap<Box<str>, Position>, u64)> {
        let places = self.by_session.get(&session)?;
        Some((places.after_send(number, client)?, places.since_us()))
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
        self.invariants();
    }

    fn invariants(&self) {
        debug_assert!(self.by_session.len() <= self.expiries.len(), "what is kept expires");
        let is_sorted = self.expiries.iter().take(CHECKED_MAX).is_sorted_by_key(|expiry| expiry.0);
        debug_assert!(is_sorted, "places expire in the order in which they were kept");
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
    use tickcast_proto::ids::TopicId;

    #[test]
    fn no_name_can_be_made_from_another_one_or_from_those_of_another_run() {
        let table = KeptPlacesTable::default();
        let kept = table.kept_as(ShardId(3), SessionId(7));
        assert_eq!(table.session_of(kept), Some(SessionId(7)));
        assert_eq!(table.session_of(KeptPlaces { key: kept.key ^ 1 << u64::BITS, ..kept }), None);
        assert_eq!(table.session_of(KeptPlaces { key: kept.key ^ 1, ..kept }), None);
        assert_eq!(KeptPlacesTable::default().session_of(kept), None);
    }

    #[test]
    fn places_are_kept_for_the_resume_window() {
        let memory = PositionsMemory::default();
        let mut table = KeptPlacesTable::default();
        for session in 1..=2 {
            let mut places = Places::new(Owner::default(), 5, memory.clone());
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
        let (found, since_us) = table.after_send(SessionId(1), 1, &Owner::default()).unwrap();
        assert_eq!(since_us, 5);
        assert_eq!(found["a.topic.0"], Position { epoch: 7, sequence: 9 });
        assert_eq!((found.len(), found["a.topic.1"].sequence), (400, 1));
        assert_eq!(table.after_send(SessionId(3), 1, &Owner::default()), None);
        table.expire(window_ns + 1_000);
        assert!(
            table.after_send(SessionId(1), 1, &Owner::default()).is_none()
                && table.after_send(SessionId(2), 1, &Owner::default()).is_some()
        );
        table.expire(window_ns + 2_000);
        assert_eq!(memory.bytes(), 0);
    }
}
