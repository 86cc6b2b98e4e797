//! Topics fed by durable logs: the log gives the epoch and the sequences, which are its positions.
//!
//! A topic has one log at a time. A tick of another log of the same source means that the log was created anew: it ends the
//! topic's life and begins the next one. A topic belongs to the source that fed it first, until it is forgotten. Ticks of
//! another source are refused; otherwise two sources that map to the same topic would end each other's lives in turn, or take
//! each other's ticks for repeated ones.

use std::collections::VecDeque;

use super::{Home, InterestEvent, Sequenced, TopicRefusal};
use crate::{limits::LOGS_UNKEPT_MAX, now::Now};
use tickcast_proto::{
    frame::{self, TickParts},
    ids::Sequence,
    logged::{self, LogPosition},
};

/// How a log's tick relates to the home's topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoggedTopic {
    /// The tick is the next one of the topic at this index.
    Next(u32),
    /// There is no such topic: create it.
    Absent,
    /// The topic at this index is in another life: end it, then create the topic.
    Ends(u32),
    /// The topic already has the tick: its source has read it again.
    Repeated,
    /// Another source feeds the topic.
    Foreign,
}

/// Up to which position of each log a home was given ticks that it did not keep, because their topics were forgotten or
/// refused. A topic created later must not claim that it had no ticks before.
///
/// Bound: [`LOGS_UNKEPT_MAX`] logs, the one noted last at the end. The first one makes room, because it is most likely gone.
#[derive(Debug, Default)]
pub(super) struct UnkeptPositions {
    logs: VecDeque<(u64, u64)>,
    /// Some log has made room, so any log that is missing here may be that one.
    has_evicted: bool,
}

impl UnkeptPositions {
    /// Notes that a tick of the log with this epoch is not kept.
    pub(super) fn note(&mut self, epoch: u64, position: u64) {
        let known = self.logs.iter().position(|&(known, _)| known == epoch);
        let last = known.and_then(|at| self.logs.remove(at)).map_or(0, |(_, last)| last);
        if self.logs.len() >= LOGS_UNKEPT_MAX {
            self.logs.pop_front();
            self.has_evicted = true;
        }
        self.logs.push_back((epoch, position.max(last)));
    }

    /// The last position known not to be kept, below a position that is; 0: none.
    fn last_before(&self, epoch: u64, position: u64) -> u64 {
        let known = self.logs.iter().find(|&&(known, _)| known == epoch).map(|&(_, last)| last);
        let forgotten = if self.has_evicted { u64::MAX } else { 0 };
        known.unwrap_or(forgotten).min(position - 1)
    }
}

impl Home {
    /// Checks whether the topic at an index accepts publishes of clients and of sources without positions. No other code
    /// decides it: publishes that a route sends to a log never come here.
    ///
    /// # Errors
    /// [`TopicRefusal::FedByLog`].
    pub(super) fn takes_publishes(&self, index: u32) -> Result<(), TopicRefusal> {
        match self.topics[index as usize].is_logged() {
            false => Ok(()),
            true => Err(TopicRefusal::FedByLog),
        }
    }

    /// Finds the topic of a log's tick.
    pub fn find_logged(&self, key: &str, at: &LogPosition) -> LoggedTopic {
        let Some(&index) = self.by_key.get(key) else { return LoggedTopic::Absent };
        let topic = &self.topics[index as usize];
        match topic.fed_by {
            Some(source) if source != at.source => LoggedTopic::Foreign,
            Some(_) if topic.epoch != at.epoch => LoggedTopic::Ends(index),
            Some(_) if at.position <= topic.sequence.0 => LoggedTopic::Repeated,
            Some(_) => LoggedTopic::Next(index),
            None => LoggedTopic::Ends(index),
        }
    }

    /// Ends the life of the topic at an index, which frees its name. `notify` receives the messages for the shards.
    pub fn end_life(&mut self, index: u32, now_ns: u64, notify: &mut dyn FnMut(InterestEvent<'_>) -> bool) {
        self.forget(index as usize, now_ns, notify);
        self.invariants();
    }

    /// Creates a topic that a log feeds. The caller must open it to the interested shards before its first tick goes out.
    ///
    /// # Errors
    /// The limit that it would exceed. The home notes that the tick is not kept.
    pub fn create_logged(&mut self, key: &str, at: &LogPosition, now: Now) -> Result<u32, TopicRefusal> {
        match self.create_fed(key, at, now) {
            Ok(index) => {
                let unkept = self.unkept_positions.last_before(at.epoch, at.position);
                self.topics[index as usize].sequence = Sequence(unkept);
                Ok(index)
            }
            Err(refusal) => {
                self.unkept_positions.note(at.epoch, at.position);
                Err(refusal)
            }
        }
    }

    /// Like [`Home::sequence`], for a tick of the log that feeds the topic: its sequence is its position, which must be above
    /// the topic's last. If the log's reader has a hole before the tick, the history starts over, so that it never contains one.
    pub fn sequence_logged(
        &mut self,
        index: u32,
        at: &LogPosition,
        tick: &TickParts<'_>,
        now_ns: u64,
    ) -> Sequenced<'_> {
        let topic = &mut self.topics[index as usize];
        let (id, sequence, last) = (topic.id, Sequence(at.position), topic.sequence.0);
        debug_assert!(topic.epoch == at.epoch && at.position > last, "the caller has looked");
        let previous = at.complete_from.saturating_sub(1).clamp(last, at.position - 1);
        if previous > last {
            topic.history.clear();
        }
        if previous + 1 == at.position {
            let len = frame::tick_len(tick.key, tick.payload.len());
            let encode = |out: &mut Vec<u8>| frame::encode_tick(out, id, sequence, tick);
            return self.keep(index, sequence, (tick.key, len), now_ns, encode);
        }
        let len = logged::linked_tick_len(tick.payload.len());
        let encode = |out: &mut Vec<u8>| logged::encode_linked_tick(out, id, sequence, previous, tick);
        self.keep(index, sequence, (tick.key, len), now_ns, encode)
    }
}

#[cfg(test)]
mod tests {
    use tickcast_proto::{
        ids::TopicId,
        logged::{is_log_epoch, log_epoch},
    };

    use super::*;
    use crate::home::{
        Backfill, CHUNK_AHEAD, CHUNK_EPOCH_PASSED, CHUNK_LAST, CHUNK_NOT_RECOVERED, CHUNK_RECOVERED, Creator,
        tests::{chunk, home},
    };

    const NOW: Now = Now { monotonic_ns: 0, realtime_ns: 0 };

    fn at(position: u64, complete_from: u64) -> LogPosition {
        LogPosition { source: 1, epoch: log_epoch("test", "log", b"1"), position, complete_from }
    }

    /// Handles a tick as a shard does. Returns the topic's id, the tick's sequence, and the bound of the sequence before it.
    fn append(home: &mut Home, key: &str, at: LogPosition) -> Result<(TopicId, u64, u64), LoggedTopic> {
        let found = home.find_logged(key, &at);
        let index = match found {
            LoggedTopic::Next(index) => index,
            LoggedTopic::Absent => home.create_logged(key, &at, NOW).unwrap(),
            LoggedTopic::Ends(index) => {
                home.end_life(index, 0, &mut |_| true);
                home.create_logged(key, &at, NOW).unwrap()
            }
            LoggedTopic::Repeated | LoggedTopic::Foreign => return Err(found),
        };
        assert_eq!(home.topic(index).epoch, at.epoch);
        let Sequenced { tick, .. } = home.sequence_logged(index, &at, &TickParts::default(), 0);
        Ok((TopicId(tick.header.topic_id), tick.header.sequence, tick.previous()))
    }

    fn appended(home: &mut Home, ticks: &[(u64, u64)]) -> TopicId {
        ticks.iter().map(|&(position, from)| append(home, "a", at(position, from)).unwrap().0).last().unwrap()
    }

    #[test]
    fn a_tick_follows_the_one_before_it_or_the_beginning_of_what_its_source_has_read() {
        let mut home = home(1, 4);
        let mut previous = |key: &str, position, from| append(&mut home, key, at(position, from)).unwrap().2;
        assert_eq!(previous("a", 50, 41), 40, "the first tick: the beginning of the window");
        assert_eq!(previous("b", 51, 41), 40);
        assert_eq!(previous("a", 52, 41), 50);
        assert_eq!(previous("a", 53, 41), 52);
        assert_eq!(previous("a", 90, 80), 79, "retention has passed the source");
        assert_eq!(previous("a", 95, 80), 90);
        assert_eq!(previous("b", 96, 80), 79);
    }

    #[test]
    fn ticks_that_come_again_and_ticks_of_another_source_are_not_taken() {
        let mut home = home(1, 4);
        append(&mut home, "a", at(50, 41)).unwrap();
        assert_eq!(append(&mut home, "a", at(50, 41)), Err(LoggedTopic::Repeated));
        assert_eq!(append(&mut home, "a", at(42, 41)), Err(LoggedTopic::Repeated));
        for epoch in [log_epoch("test", "other", b"1"), at(1, 1).epoch] {
            let other = LogPosition { source: 2, epoch, ..at(60, 41) };
            assert_eq!(append(&mut home, "a", other), Err(LoggedTopic::Foreign));
        }
        assert!(append(&mut home, "a", at(51, 41)).is_ok(), "it goes on");
        let refused = home.find_or_create("a", Creator::default(), NOW);
        assert_eq!(refused, Err(TopicRefusal::FedByLog), "and clients publish nothing to it");
    }

    #[test]
    fn another_life_of_the_log_begins_another_life_of_the_topic() {
        let mut home = home(1, 4);
        let local = home.find_or_create("a", Creator::default(), NOW).unwrap().index;
        let (first, ..) = append(&mut home, "a", at(50, 41)).unwrap();
        assert_ne!(
            first,
            home.topic(local).id,
            "a topic that a client has made ends with the first tick of the log"
        );
        let again = LogPosition { epoch: log_epoch("test", "log", b"2"), ..at(3, 1) };
        let (second, sequence, previous) = append(&mut home, "a", again).unwrap();
        assert!(second != first && is_log_epoch(again.epoch));
        assert_eq!((sequence, previous), (3, 0), "positions of the other life mean nothing");
    }

    #[test]
    fn a_place_is_recovered_unless_it_is_before_what_the_node_has_read() {
        let mut home = home(1, 4);
        let id = appended(&mut home, &[(50, 41), (60, 41), (75, 41)]);
        let recovered = CHUNK_RECOVERED | CHUNK_LAST;
        let all = vec![(50, false), (60, false), (75, false)];
        for (from, ticks) in [(41, &all[..]), (50, &all), (51, &all[1..]), (61, &all[2..]), (76, &[])] {
            let (start, flags, sent) = chunk(&mut home, id, Backfill::Position, from);
            assert_eq!((start, flags, &sent[..]), (from, recovered, ticks), "{from}");
        }
        let (_, flags, sent) = chunk(&mut home, id, Backfill::Position, 40);
        assert_eq!((flags, sent), (CHUNK_NOT_RECOVERED | CHUNK_LAST, vec![(75, true)]));
        // Another node had read further.
        let (start, flags, sent) = chunk(&mut home, id, Backfill::Position, 200);
        assert_eq!((start, flags, sent), (200, recovered | CHUNK_AHEAD, vec![]));
        let (start, flags, sent) = chunk(&mut home, id, Backfill::PositionLost, 1);
        assert_eq!((start, flags), (41, CHUNK_NOT_RECOVERED | CHUNK_EPOCH_PASSED | CHUNK_LAST));
        assert_eq!(sent, all);
        // The server's epoch is never a log's.
        let (_, flags, _) = chunk(&mut home, id, Backfill::ServerPosition, 51);
        assert_eq!(flags, CHUNK_NOT_RECOVERED | CHUNK_EPOCH_PASSED | CHUNK_LAST);
    }

    #[test]
    fn no_place_before_a_hole_is_recovered() {
        let mut home = home(1, 4);
        let id = appended(&mut home, &[(50, 41), (60, 41), (100, 90), (110, 90)]);
        let (_, flags, _) = chunk(&mut home, id, Backfill::Position, 55);
        assert_eq!(flags, CHUNK_NOT_RECOVERED | CHUNK_LAST);
        let (_, flags, sent) = chunk(&mut home, id, Backfill::Position, 90);
        assert_eq!((flags, sent), (CHUNK_RECOVERED | CHUNK_LAST, vec![(100, false), (110, false)]));
        // A session that was recovering learns of the hole.
        let (start, flags, sent) = chunk(&mut home, id, Backfill::Retained, 55);
        assert_eq!((start, flags, sent.len()), (90, CHUNK_LAST, 2));
    }

    #[test]
    fn a_topic_that_was_forgotten_does_not_claim_what_it_had() {
        let mut home = home(1, 4);
        append(&mut home, "a", at(50, 41)).unwrap();
        append(&mut home, "b", at(60, 41)).unwrap();
        home.end_life(0, 0, &mut |_| true);
        assert_eq!(append(&mut home, "a", at(70, 41)).unwrap().2, 50);
        assert_eq!(append(&mut home, "c", at(45, 41)).unwrap().2, 44, "of a source that is behind");
        let mut full = super::super::tests::home(1, 1);
        append(&mut full, "a", at(50, 41)).unwrap();
        assert_eq!(full.create_logged("b", &at(51, 41), NOW), Err(TopicRefusal::Table));
        full.end_life(0, 0, &mut |_| true);
        assert_eq!(append(&mut full, "b", at(60, 41)).unwrap().2, 51, "what was refused is not there");
    }

    #[test]
    fn a_log_that_has_made_room_is_taken_for_one_without_any_tick_kept() {
        let mut unkept = UnkeptPositions::default();
        assert_eq!(unkept.last_before(1, 60), 0, "no log has made room");
        unkept.note(1, 50);
        (2..=LOGS_UNKEPT_MAX as u64).for_each(|epoch| unkept.note(epoch, 10));
        unkept.note(1, 40);
        unkept.note(1_000, 10);
        assert_eq!(unkept.last_before(1, 60), 50, "the log noted last is kept");
        assert_eq!(unkept.last_before(1, 45), 44);
        assert_eq!(unkept.last_before(2, 60), 59, "the log noted first has made room");
    }
}
