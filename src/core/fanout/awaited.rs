//! Positions in log topics of which this node has not read a tick yet. They are answered once it has.
//!
//! A client that resumes at a node may know topics that the node has yet to read, because the node has just started or the
//! topics are quiet. If such a position were answered as one in a topic that does not exist, the client would receive ticks
//! again that it already has.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    Fanout,
    topic::{Backlog, EgressTopic},
    topic_ref,
};
use crate::{
    home::Backfill,
    ids::{SessionId, SlotId},
    limits::{AWAITED_POSITIONS_MAX, AWAITED_POSITIONS_PER_SESSION_MAX},
    session::{saved_positions::PositionsMemory, table::Sessions},
    topic_key,
};
use tickcast_proto::{ids::TopicId, logged::is_log_epoch, subscription::Position};

/// Bytes per position besides its topic's key: an entry in each of two trees, whose nodes may be half empty, and an allocation.
const POSITION_BYTES: usize = 160;
/// Units of delivery work to keep a position, or to take it out.
const POSITION_UNITS: usize = 4;

/// Decides which positions are kept.
#[derive(Clone, Debug, Default)]
pub struct AwaitedSettings {
    /// Whether logs feed this server's topics. If not, no awaited topic will ever appear. Fixed at the start.
    pub is_fed_by_logs: bool,
    /// Memory budget for the positions of the shard's sessions, which awaited positions count against.
    pub memory: PositionsMemory,
    /// Bound on that memory, bytes.
    pub memory_bytes_max: usize,
}

/// Positions in topics that do not exist yet, each with the subscription that named it. A position is forgotten with its
/// subscription.
///
/// Bound: [`AWAITED_POSITIONS_MAX`] positions, [`AWAITED_POSITIONS_PER_SESSION_MAX`] of one session, and the memory budget for
/// positions.
/// Invariant: each position is in both trees once, and counts once for its session.
#[derive(Debug, Default)]
pub(super) struct AwaitedPositions {
    settings: AwaitedSettings,
    /// By key and session: the entry of the subscription, and the position.
    by_key: BTreeMap<(Arc<str>, SlotId), (u32, Position)>,
    /// By session and entry.
    by_subscription: BTreeSet<(SlotId, u32, Arc<str>)>,
    /// Number of positions of each session that has any.
    of_session: HashMap<SlotId, usize>,
    /// Bytes taken from the memory budget for positions.
    bytes: usize,
}

impl AwaitedPositions {
    pub(super) fn new(settings: AwaitedSettings) -> AwaitedPositions {
        AwaitedPositions { settings, ..AwaitedPositions::default() }
    }

    /// Bytes of the positions.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn set_memory_bytes_max(&mut self, bytes: usize) {
        self.settings.memory_bytes_max = bytes;
    }

    /// Keeps a subscription's position. It replaces one of the same session in the same topic. Returns `false` if there is no
    /// room. O(log positions).
    fn insert(&mut self, slot: SlotId, entry: u32, key: &str, position: Position) -> bool {
        let key: Arc<str> = key.into();
        if let Some((known, at)) = self.by_key.get_mut(&(key.clone(), slot)) {
            self.by_subscription.remove(&(slot, *known, key.clone()));
            self.by_subscription.insert((slot, entry, key));
            (*known, *at) = (entry, position);
            return true;
        }
        let AwaitedSettings { memory, memory_bytes_max, .. } = &self.settings;
        let of_session = self.of_session.get(&slot).copied().unwrap_or(0);
        let has_room =
            self.by_key.len() < AWAITED_POSITIONS_MAX && of_session < AWAITED_POSITIONS_PER_SESSION_MAX;
        let bytes = POSITION_BYTES + key.len();
        if !has_room || !memory.take(bytes, *memory_bytes_max) {
            return false;
        }
        self.bytes += bytes;
        self.of_session.insert(slot, of_session + 1);
        self.by_subscription.insert((slot, entry, key.clone()));
        self.by_key.insert((key, slot), (entry, position));
        self.invariants();
        true
    }

    fn remove(&mut self, slot: SlotId, key: &Arc<str>) -> Option<Position> {
        let (entry, position) = self.by_key.remove(&(key.clone(), slot))?;
        self.by_subscription.remove(&(slot, entry, key.clone()));
        let bytes = POSITION_BYTES + key.len();
        self.bytes -= bytes;
        self.settings.memory.give_back(bytes);
        if let Some(count) = self.of_session.get_mut(&slot) {
            *count -= 1;
            if *count == 0 {
                self.of_session.remove(&slot);
            }
        }
        self.invariants();
        Some(position)
    }

    /// Takes out the positions in a topic, by session. O(positions in it * log positions).
    fn take(&mut self, key: &str) -> Vec<(SlotId, Position)> {
        if self.by_key.is_empty() {
            return Vec::new();
        }
        let key: Arc<str> = key.into();
        let in_topic = (key.clone(), SlotId(0))..=(key.clone(), SlotId(u32::MAX));
        let slots: Vec<SlotId> = self.by_key.range(in_topic).map(|((_, slot), _)| *slot).collect();
        slots.into_iter().filter_map(|slot| Some((slot, self.remove(slot, &key)?))).collect()
    }

    /// Removes one position of a session, of this subscription or of any. Returns `false` if there is none. O(log positions).
    fn remove_one(&mut self, slot: SlotId, entry: Option<u32>) -> bool {
        if !self.of_session.contains_key(&slot) {
            return false;
        }
        let (lowest, highest) = entry.map_or((0, u32::MAX), |entry| (entry, entry));
        let first = self.by_subscription.range((slot, lowest, Arc::default())..).next();
        let first = first.filter(|(of, entry, _)| *of == slot && *entry <= highest);
        first.map(|(.., key)| key.clone()).is_some_and(|key| self.remove(slot, &key).is_some())
    }

    fn invariants(&self) {
        debug_assert_eq!(self.by_key.len(), self.by_subscription.len(), "each place is once in either tree");
    }
}

impl EgressTopic {
    /// What a session with this position recovers.
    fn backlog(&self, position: Position) -> Backlog {
        match position.epoch == self.info.epoch {
            true => Backlog { backfill: Backfill::Position, from: position.sequence.saturating_add(1) },
            false => Backlog { backfill: Backfill::PositionLost, from: 1 },
        }
    }
}

impl Fanout {
    /// Keeps a subscription's position in a topic that does not exist, if a log may feed the topic later. Returns `false` if
    /// the position must be answered now.
    pub(super) fn await_topic(&mut self, key: &str, position: Position, slot: SlotId, entry: u32) -> bool {
        if !self.awaited.settings.is_fed_by_logs || !is_log_epoch(position.epoch) {
            return false;
        }
        self.tally.units += POSITION_UNITS;
        self.awaited.insert(slot, entry, key, position)
    }

    /// Takes out the positions in a topic that sessions await, with what each session recovers. O(positions in the topic).
    pub(super) fn take_awaited(&mut self, id: TopicId) -> Vec<(SlotId, Backlog)> {
        let topic = topic_ref(&self.topics, id, self.shards).filter(|topic| topic.log.is_some());
        let Some(topic) = topic else { return Vec::new() };
        let positions = self.awaited.take(topic.key());
        self.tally.units += POSITION_UNITS * positions.len();
        positions.into_iter().map(|(slot, position)| (slot, topic.backlog(position))).collect()
    }

    /// Takes out the position in a topic that one session awaits. O(log positions).
    pub(super) fn take_awaited_of(&mut self, id: TopicId, slot: SlotId) -> Option<Backlog> {
        let topic = topic_ref(&self.topics, id, self.shards).filter(|topic| topic.log.is_some())?;
        let position = self.awaited.remove(slot, &topic.key().into())?;
        self.tally.units += POSITION_UNITS;
        Some(topic.backlog(position))
    }

    /// Takes out the saved positions in a topic that has just been created, of sessions whose walk from saved positions is under
    /// way: the walk passes over the topic, so it would not find them. O([`JOINS_MAX`](crate::limits::JOINS_MAX)).
    pub(super) fn take_saved_positions(
        &mut self,
        topic: &EgressTopic,
        sessions: &mut Sessions,
    ) -> HashMap<SessionId, Backlog> {
        let mut backlogs = HashMap::new();
        for (slot, entry) in self.joining_from_saved_positions(topic.key(), sessions) {
            let filter = self.filter(entry, slot, sessions);
            if filter.is_some_and(|filter| !filter.subscribe.permits(topic_key::name(topic.key()))) {
                continue;
            }
            let Some(session) = sessions.open_mut(slot) else { continue };
            let position = session.lag.as_deref_mut().and_then(|lag| lag.take_position(topic.key()));
            backlogs.extend(position.map(|position| (session.id, topic.backlog(position))));
        }
        backlogs
    }

    /// Forgets the awaited positions of a subscription that ends. Returns their number, at most
    /// [`AWAITED_POSITIONS_PER_SESSION_MAX`].
    pub(super) fn forget_awaited(&mut self, slot: SlotId, entry: u32) -> usize {
        let mut count = 0;
        while self.awaited.remove_one(slot, Some(entry)) {
            count += 1;
        }
        count
    }

    /// Forgets one awaited position of a session that has ended. Returns `false` if it has none.
    pub(super) fn forget_one_awaited(&mut self, slot: SlotId) -> bool {
        self.awaited.remove_one(slot, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Position = Position { epoch: 1 << 52, sequence: 200 };

    fn places(memory_bytes_max: usize) -> AwaitedPositions {
        let memory = PositionsMemory::default();
        AwaitedPositions::new(AwaitedSettings { is_fed_by_logs: true, memory, memory_bytes_max })
    }

    #[test]
    fn a_full_table_takes_no_place_until_a_session_leaves_room() {
        let mut places = places(usize::MAX);
        let sessions = (AWAITED_POSITIONS_MAX / AWAITED_POSITIONS_PER_SESSION_MAX) as u32;
        for slot in 0..sessions {
            for at in 0..AWAITED_POSITIONS_PER_SESSION_MAX {
                assert!(places.insert(SlotId(slot), 1, &format!("t.{at}"), PLACE));
            }
            assert!(!places.insert(SlotId(slot), 1, "more", PLACE), "it has as many as a session may have");
            assert!(places.insert(SlotId(slot), 2, "t.0", PLACE), "in place of another");
        }
        assert!(!places.insert(SlotId(sessions), 1, "t.0", PLACE));
        assert!(places.remove_one(SlotId(0), None));
        assert!(places.insert(SlotId(sessions), 1, "t.0", PLACE));
        assert!(!places.insert(SlotId(sessions), 1, "t.1", PLACE));
    }

    #[test]
    fn places_count_against_the_memory_for_positions_however_they_go() {
        let (a, b) = (SlotId(1), SlotId(2));
        let mut places = places(4 * (POSITION_BYTES + 1));
        for (slot, entry, key) in [(a, 1, "a"), (a, 2, "b"), (a, 2, "c"), (b, 2, "a")] {
            assert!(places.insert(slot, entry, key, PLACE));
        }
        assert!(!places.insert(b, 2, "b", PLACE));
        assert_eq!(places.take("a"), [(a, PLACE), (b, PLACE)]);
        assert!(!places.remove_one(a, Some(1)), "its only place has been taken");
        assert!(places.remove_one(a, Some(2)) && places.remove_one(a, None));
        assert!(!places.remove_one(a, None) && !places.remove_one(b, None));
        assert_eq!((places.settings.memory.bytes(), places.bytes(), places.of_session.len()), (0, 0, 0));
    }
}
