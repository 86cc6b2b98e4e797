//! What the client of an event stream has received, for the id that ends each SEND.
//!
//! ```text
//!  SEND -> advance(topic, sequence) for each whole tick in it -> end_send() -> the id: when it began, and a place for each topic
//!                                                                  |
//!                                     too long for an id: the places stay here, and the id names them and the SEND
//! ```
//! A client that reconnects may not have received the last SENDs. An id that contains all places states what it has received. For
//! places kept here, a log of the latest changes restores them as of the SEND that the client names.
//!
//! A topic without a place has had no tick since the client's first stream began. The first SEND already has an id, with that time:
//! a client whose connection is cut before the first tick also gets what it has missed.

use std::collections::{HashMap, VecDeque};

use super::{Session, membership::TopicMap, saved_positions::PositionsMemory};
use crate::{ids::TenantId, limits::PLACE_CHANGES_MAX};
use tickcast_proto::{
    framing::event_stream::{self, KeptPlaces, SINCE_BYTES_MAX},
    ids::TopicId,
    limits::{LAST_EVENT_ID_BYTES_MAX, RESUME_POSITIONS_MAX},
    subscription::Position,
};

/// Maximum length of a sequence in digits, plus the separator before the next place.
const SEQUENCE_BYTES_MAX: usize = 21;
/// Memory of a place apart from its topic's name: entries in three tables that may be half empty, and two allocations.
const PLACE_BYTES: usize = 192;

/// The places of one event stream. Their memory counts towards the shard's saved positions.
///
/// Memory: 192 bytes plus twice the name for each topic. If they are kept here, 32 bytes more for each of the last
/// [`PLACE_CHANGES_MAX`] changes.
///
/// Invariant: `by_name` has an entry for each place; `by_topic` has one for each that has advanced in this connection.
#[derive(Debug)]
pub struct Places {
    owner: Owner,
    /// When the client's first stream began: CLOCK_REALTIME, microseconds; 0: unknown.
    since_us: u64,
    entries: Vec<Place>,
    by_topic: TopicMap<u32>,
    by_name: HashMap<Box<str>, u32>,
    /// Total bytes of the prefixes.
    prefix_bytes: usize,
    /// Ticks of topics without a place, in order; consecutive ticks of one topic count as one. Taken after each SEND. Bound:
    /// the ticks in a SEND.
    unknown: Vec<(TopicId, u64)>,
    /// Whether the next SEND ends with an id: the first does, and each that has brought something.
    has_advanced: bool,
    /// SENDs so far that ended with an id.
    number: u64,
    /// The latest changes; kept once an id cannot hold the places.
    changes: Option<VecDeque<Change>>,
    /// The first SEND that the changes reach back to.
    reaches_back_to: u64,
    /// Whether memory for more places ran out. The places are then gone, and a client cannot resume from them.
    is_lost: bool,
    memory: PositionsMemory,
    memory_bytes: usize,
}

/// Owner of places: nobody else resumes from them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    tenant: TenantId,
    /// The principal's subject, and its tenant by name; `None`: without authentication.
    principal: Option<(Box<str>, Box<str>)>,
}

impl Owner {
    /// The client of a session.
    pub fn of(session: &Session) -> Owner {
        let principal = session.principal.as_ref();
        let principal = principal.map(|principal| (principal.subject.clone(), principal.tenant.clone()));
        Owner { tenant: session.tenant, principal }
    }
}

#[derive(Debug)]
struct Place {
    /// `a.b=EPOCH.`: the part of an id before the sequence.
    prefix: Box<[u8]>,
    epoch: u64,
    sequence: u64,
}

/// A place before a SEND changed it.
#[derive(Clone, Copy, Debug)]
struct Change {
    number: u64,
    before: Position,
    index: u32,
}

/// The position in a topic before it has a place.
const NOWHERE: Position = Position { epoch: 0, sequence: 0 };

impl Places {
    /// Creates the empty places of a client whose stream begins at a time, CLOCK_REALTIME in microseconds. Later places count
    /// against this memory.
    pub fn new(owner: Owner, since_us: u64, memory: PositionsMemory) -> Places {
        Places {
            owner,
            since_us,
            entries: Vec::new(),
            by_topic: TopicMap::default(),
            by_name: HashMap::new(),
            prefix_bytes: 0,
            unknown: Vec::new(),
            has_advanced: true,
            number: 0,
            changes: None,
            reaches_back_to: 0,
            is_lost: false,
            memory,
            memory_bytes: 0,
        }
    }

    /// Records that the client has received a tick, or an announcement of ticks up to this one. Ticks of a topic arrive in order.
    #[inline]
    pub fn advance(&mut self, topic: TopicId, sequence: u64) {
        self.has_advanced = true;
        if self.is_lost {
            return;
        }
        match self.by_topic.get(&topic) {
            Some(&index) => self.set(index, None, sequence),
            None => match self.unknown.last_mut() {
                Some((last, known)) if *last == topic => *known = sequence,
                _ => self.unknown.push((topic, sequence)),
            },
        }
    }

    /// Makes room in the tables for another place. Returns `false` if there is no memory.
    fn try_reserve(&mut self) -> bool {
        self.entries.try_reserve(1).is_ok()
            && self.by_name.try_reserve(1).is_ok()
            && self.by_topic.try_reserve(1).is_ok()
    }

    fn set(&mut self, index: u32, epoch: Option<u64>, sequence: u64) {
        let Some(place) = self.entries.get_mut(index as usize) else {
            return debug_assert!(false, "the tables name places that are there");
        };
        let before = Position { epoch: place.epoch, sequence: place.sequence };
        place.sequence = sequence;
        place.epoch = epoch.unwrap_or(place.epoch);
        let Some(changes) = &mut self.changes else { return };
        let number = self.number + 1;
        // Several ticks in one SEND count as one change.
        if changes.back().is_some_and(|last| (last.number, last.index) == (number, index)) {
            return;
        }
        if changes.len() >= PLACE_CHANGES_MAX
            && let Some(forgotten) = changes.pop_front()
        {
            self.reaches_back_to = forgotten.number;
        }
        changes.push_back(Change { number, before, index });
    }

    /// Takes the topics that have advanced but have no place; [`Places::learn`] gives them one. Call it after each SEND.
    pub fn take_unknown(&mut self) -> Vec<(TopicId, u64)> {
        std::mem::take(&mut self.unknown)
    }

    /// Sets the place of a topic that is new to this connection, also under its id if that is known. `bytes_max`: the shard's
    /// memory for positions.
    pub fn learn(&mut self, topic: Option<TopicId>, name: &str, position: Position, bytes_max: usize) {
        if self.is_lost {
            return;
        }
        let Position { epoch, sequence } = position;
        let mut prefix = Vec::new();
        event_stream::encode_place_prefix(&mut prefix, name, epoch);
        let index = match self.by_name.get(name) {
            // A new life of the topic.
            Some(&index) => {
                if let Some(place) = self.entries.get_mut(index as usize)
                    && place.epoch != epoch
                {
                    self.prefix_bytes = self.prefix_bytes - place.prefix.len() + prefix.len();
                    place.prefix = prefix.into();
                    self.by_topic.retain(|_, known| *known != index);
                }
                index
            }
            None => {
                let bytes = PLACE_BYTES + 2 * name.len();
                if self.entries.len() >= RESUME_POSITIONS_MAX || !self.memory.take(bytes, bytes_max) {
                    return self.lose();
                }
                self.memory_bytes += bytes;
                if !self.try_reserve() {
                    return self.lose();
                }
                self.prefix_bytes += prefix.len();
                let index = self.entries.len() as u32;
                let Position { epoch, sequence } = NOWHERE;
                self.entries.push(Place { prefix: prefix.into(), epoch, sequence });
                self.by_name.insert(name.into(), index);
                index
            }
        };
        if let Some(topic) = topic {
            self.by_topic.insert(topic, index);
        }
        self.set(index, Some(epoch), sequence);
        if self.changes.is_none()
            && SINCE_BYTES_MAX + self.prefix_bytes + self.entries.len() * SEQUENCE_BYTES_MAX
                > LAST_EVENT_ID_BYTES_MAX
        {
            let bytes = PLACE_CHANGES_MAX * size_of::<Change>();
            if !self.memory.take(bytes, bytes_max) {
                return self.lose();
            }
            self.memory_bytes += bytes;
            // Earlier ids contain their places.
            self.reaches_back_to = self.number + 1;
            self.changes = Some(VecDeque::new());
        }
        self.invariants();
    }

    /// Checks the tables against each other. O(1), because a stream may have thousands of topics.
    fn invariants(&self) {
        debug_assert_eq!(self.by_name.len(), self.entries.len(), "each place has its name");
        debug_assert!(self.entries.len() <= RESUME_POSITIONS_MAX, "places are bounded");
        debug_assert!(self.changes.as_ref().is_none_or(|changes| changes.len() <= PLACE_CHANGES_MAX));
        debug_assert!(!self.is_lost || self.entries.is_empty(), "lost places are gone");
    }

    /// Forgets all places. A client that resumes from them learns that its position is lost.
    fn lose(&mut self) {
        self.memory.give_back(std::mem::take(&mut self.memory_bytes));
        let mut lost = Places::new(std::mem::take(&mut self.owner), self.since_us, self.memory.clone());
        (lost.is_lost, lost.number) = (true, self.number);
        *self = lost;
        self.invariants();
    }

    /// Ends a SEND that ends with a whole message. Appends the event with the client's id, unless the client has the same already.
    /// `kept_as`: the client's name for places kept here.
    pub fn end_send(&mut self, kept_as: KeptPlaces, out: &mut Vec<u8>) {
        if !std::mem::take(&mut self.has_advanced) {
            return;
        }
        self.number += 1;
        let number = self.number;
        event_stream::encode_place(out, |out| {
            if self.is_lost || self.changes.is_some() {
                return KeptPlaces { number, ..kept_as }.encode(out);
            }
            event_stream::encode_since(out, self.since_us);
            for place in &self.entries {
                event_stream::encode_place_of(out, &place.prefix, place.sequence);
            }
        });
    }

    /// Sets when the client's first stream began, which an earlier one has told.
    pub fn set_since_us(&mut self, since_us: u64) {
        self.since_us = since_us;
    }

    /// When the client's first stream began: CLOCK_REALTIME, microseconds; 0: unknown.
    pub fn since_us(&self) -> u64 {
        self.since_us
    }

    /// Number of topics with a place.
    #[cfg(test)]
    pub fn topics_len(&self) -> usize {
        self.entries.len()
    }

    /// Whether these places must be kept for a client to resume from, because no id has held them.
    pub fn must_be_kept(&self) -> bool {
        self.changes.is_some()
    }

    /// The positions after a SEND, by name; `None` if they are no longer known, or belong to another client.
    pub fn after_send(&self, number: u64, client: &Owner) -> Option<HashMap<Box<str>, Position>> {
        let changes = self.changes.as_ref().filter(|_| self.owner == *client)?;
        if number < self.reaches_back_to || number > self.number {
            return None;
        }
        // For each place, its earliest change since then: `collect` keeps the last one inserted.
        let since = changes.iter().rev().take_while(|change| change.number > number);
        let earlier: HashMap<u32, Position> = since.map(|change| (change.index, change.before)).collect();
        let positions = self.by_name.iter().filter_map(|(name, index)| {
            let place = self.entries.get(*index as usize)?;
            let now = Position { epoch: place.epoch, sequence: place.sequence };
            let position = earlier.get(index).copied().unwrap_or(now);
            (position != NOWHERE).then(|| (name.clone(), position))
        });
        Some(positions.collect())
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }
}

const _: () = assert!(size_of::<Change>() == 32, "the docs of Places say what a change takes");

impl Drop for Places {
    fn drop(&mut self) {
        self.memory.give_back(self.memory_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT_AS: KeptPlaces = KeptPlaces { shard: 1, key: 2, number: 0 };

    fn id(places: &mut Places) -> String {
        let mut out = Vec::new();
        places.end_send(KEPT_AS, &mut out);
        let text = String::from_utf8(out).unwrap();
        text.strip_prefix("event: place\nid: ").map_or("", |text| text.split('\n').next().unwrap()).to_owned()
    }

    fn learn_all(places: &mut Places, epoch: u64) {
        for (topic, sequence) in places.take_unknown() {
            places.learn(Some(topic), &format!("t.{}", topic.0), Position { epoch, sequence }, 1 << 20);
        }
    }

    #[test]
    fn an_id_holds_the_last_tick_of_each_topic_and_comes_first_and_after_ticks() {
        let memory = PositionsMemory::default();
        let mut places = Places::new(Owner::default(), 5, memory.clone());
        assert_eq!((id(&mut places), id(&mut places)), ("~5".into(), String::new()));
        for (topic, sequence) in [(1, 4), (1, 5), (2, 9), (1, 6)] {
            places.advance(TopicId(topic), sequence);
        }
        learn_all(&mut places, 7);
        assert_eq!(id(&mut places), "~5;t.1=7.6;t.2=7.9");
        assert_eq!(id(&mut places), "");
        places.advance(TopicId(2), 10);
        assert_eq!(id(&mut places), "~5;t.1=7.6;t.2=7.10");
        assert!(!places.must_be_kept() && memory.bytes() > 0);
        drop(places);
        assert_eq!(memory.bytes(), 0);
    }

    #[test]
    fn a_new_life_of_a_topic_takes_the_place_of_the_old_one() {
        let mut places = Places::new(Owner::default(), 5, PositionsMemory::default());
        places.learn(None, "t.1", Position { epoch: 3, sequence: 50 }, 1 << 20);
        places.advance(TopicId(1), 51);
        learn_all(&mut places, 3);
        assert_eq!(id(&mut places), "~5;t.1=3.51");
        places.advance(TopicId(9), 1);
        for (topic, sequence) in places.take_unknown() {
            places.learn(Some(topic), "t.1", Position { epoch: 4, sequence }, 1 << 20);
        }
        assert_eq!(id(&mut places), "~5;t.1=4.1");
    }

    #[test]
    fn many_places_are_kept_and_taken_back_to_any_send_that_a_client_may_name() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut places = Places::new(Owner::default(), 5, PositionsMemory::default());
        let (mut now, mut after) = (HashMap::new(), Vec::new());
        for number in 1..=3_000_u64 {
            for _ in 0..random.u8(1..4) {
                let topic = if number < 3 { random.u32(..300) } else { random.u32(..1_000) };
                let sequence = now.get(&topic).map_or(0, |position: &Position| position.sequence) + 1;
                now.insert(topic, Position { epoch: 7, sequence });
                places.advance(TopicId(topic), sequence);
            }
            learn_all(&mut places, 7);
            let id = id(&mut places);
            assert_eq!(id.starts_with('@'), places.must_be_kept());
            if let Some(name) = id.strip_prefix("@1.00000000000000000000000000000002.") {
                assert_eq!(name.parse(), Ok(number));
            }
            after.push(now.clone());
        }
        assert!(places.must_be_kept());
        let mut known = 0;
        for (at, expected) in after.iter().enumerate() {
            let Some(found) = places.after_send(at as u64 + 1, &Owner::default()) else { continue };
            let expected: HashMap<Box<str>, Position> =
                expected.iter().map(|(topic, at)| (format!("t.{topic}").into(), *at)).collect();
            assert_eq!(found, expected, "after SEND {}", at + 1);
            known += 1;
        }
        assert!(known > PLACE_CHANGES_MAX / 4 && known < 3_000, "{known}");
        assert_eq!(places.after_send(3_001, &Owner::default()), None);
    }

    #[test]
    fn without_memory_the_places_are_lost_and_the_id_says_so() {
        let memory = PositionsMemory::default();
        let mut places = Places::new(Owner::default(), 5, memory.clone());
        for topic in 0..10 {
            places.advance(TopicId(topic), 1);
        }
        for (topic, sequence) in places.take_unknown() {
            places.learn(Some(topic), &format!("t.{}", topic.0), Position { epoch: 7, sequence }, 1_000);
        }
        assert_eq!((id(&mut places).as_str(), memory.bytes()), ("@1.00000000000000000000000000000002.1", 0));
        assert_eq!(places.after_send(1, &Owner::default()), None);
        places.advance(TopicId(1), 2);
        assert_eq!(places.take_unknown(), [], "nothing more is done for them");
        assert_eq!(id(&mut places), "@1.00000000000000000000000000000002.2");
    }
}
