//! A client's positions in its topics, from which it can resume.

use std::collections::HashMap;

use crate::CONNECTION_TOPICS_MAX;
use tickcast_proto::subscription::Position;

/// The position of each topic: its last tick that was received or announced as skipped.
///
/// Bound: [`CONNECTION_TOPICS_MAX`] topics of about 90 bytes each; further topics are counted, not stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    positions: HashMap<Box<str>, Position>,
    not_stored: u64,
}

impl Positions {
    /// An empty set.
    pub fn new() -> Positions {
        Positions::default()
    }

    /// The position in a topic; `None` if there is none.
    pub fn position(&self, topic: &str) -> Option<Position> {
        self.positions.get(topic).copied()
    }

    /// All topics and their positions, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Position)> {
        self.positions.iter().map(|(topic, &position)| (&**topic, position))
    }

    /// Number of topics with a position.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether no topic has a position.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Number of updates that did not fit the bound; their topics resume as new ones.
    pub fn not_stored(&self) -> u64 {
        self.not_stored
    }

    /// Moves a topic's position to a tick, or to the last tick of an announced range. Within an epoch the position never
    /// moves back, because a snapshot may contain older ticks of some keys. A new epoch replaces the position.
    pub fn advance(&mut self, topic: &str, to: Position) {
        let is_full = self.positions.len() >= CONNECTION_TOPICS_MAX;
        match self.positions.get_mut(topic) {
            Some(position) if position.epoch == to.epoch => {
                position.sequence = position.sequence.max(to.sequence)
            }
            Some(position) => *position = to,
            None if is_full => self.not_stored += 1,
            None => {
                self.positions.insert(topic.into(), to);
            }
        }
    }

    /// Applies the server's answer to a resume position; `now` is the topic's last tick at that time. `exists` is false
    /// for a topic that is gone. In a new epoch the position becomes sequence 0: the answer already reported the loss of
    /// the old epoch, and all ticks of the new one follow.
    pub fn handle_recovered(&mut self, topic: &str, exists: bool, now: Position, recovered: bool) {
        match self.positions.get_mut(topic) {
            None => {}
            Some(_) if recovered => {}
            Some(_) if !exists => {
                self.positions.remove(topic);
            }
            // The position may be ahead of the topic; 0 means that the server did not look.
            Some(position) if position.epoch == now.epoch && now.sequence > 0 => {
                position.sequence = position.sequence.min(now.sequence);
            }
            Some(position) if position.epoch == now.epoch => {}
            Some(position) => *position = Position { epoch: now.epoch, sequence: 0 },
        }
    }

    /// Removes the topics for which `is_kept` returns false.
    pub fn retain(&mut self, is_kept: impl Fn(&str) -> bool) {
        self.positions.retain(|topic, _| is_kept(topic));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(epoch: u64, sequence: u64) -> Position {
        Position { epoch, sequence }
    }

    fn positions_of_a(position: Position) -> Positions {
        let mut positions = Positions::new();
        positions.advance("a", position);
        positions
    }

    #[test]
    fn position_never_moves_back_within_an_epoch_and_a_new_epoch_replaces_it() {
        let mut positions = positions_of_a(at(1, 5));
        positions.advance("a", at(1, 9));
        positions.advance("a", at(1, 3));
        assert_eq!(positions.position("a"), Some(at(1, 9)));
        positions.advance("a", at(2, 1));
        assert_eq!(positions.position("a"), Some(at(2, 1)));
        assert_eq!((positions.position("b"), positions.len()), (None, 1));
    }

    #[test]
    fn position_that_could_not_be_recovered_is_not_requested_again() {
        let after = |exists, now, recovered| {
            let mut positions = positions_of_a(at(1, 5));
            positions.handle_recovered("a", exists, now, recovered);
            positions.handle_recovered("unknown", exists, now, recovered);
            positions.position("a")
        };
        assert_eq!(after(true, at(1, 9), true), Some(at(1, 5)));
        assert_eq!(after(true, at(1, 9), false), Some(at(1, 5)), "the snapshot will move it");
        assert_eq!(after(true, at(1, 3), false), Some(at(1, 3)), "ahead of the topic");
        assert_eq!(after(true, at(1, 0), false), Some(at(1, 5)), "the server did not look");
        assert_eq!(after(true, at(2, 9), false), Some(at(2, 0)));
        assert_eq!(after(false, at(2, 0), false), None);
    }
}
