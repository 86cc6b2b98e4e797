//! The places a client has in its topics: what to resume after.

use std::collections::HashMap;

use crate::SESSION_TOPICS_MAX;
use tickcast_proto::subscription::Position;

/// The last tick that was taken, or told as left out, of each topic.
///
/// Bound: [`SESSION_TOPICS_MAX`] topics; further ones are not remembered, and counted. About 90 bytes each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    places: HashMap<Box<str>, Position>,
    not_remembered: u64,
}

impl Positions {
    /// None yet.
    pub fn new() -> Positions {
        Positions::default()
    }

    /// The place in a topic.
    pub fn position(&self, topic: &str) -> Option<Position> {
        self.places.get(topic).copied()
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Position)> {
        self.places.iter().map(|(topic, &position)| (&**topic, position))
    }

    /// Topics with a place.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Times that a topic had no room: it will be resumed as one that is new.
    pub fn not_remembered(&self) -> u64 {
        self.not_remembered
    }

    /// Takes a tick, or the last of a range that was told as left out. Within an epoch the place never goes back: a
    /// snapshot may bring older ticks of some keys. Another epoch counts anew.
    pub fn advance(&mut self, topic: &str, to: Position) {
        let is_full = self.places.len() >= SESSION_TOPICS_MAX;
        match self.places.get_mut(topic) {
            Some(place) if place.epoch == to.epoch => place.sequence = place.sequence.max(to.sequence),
            Some(place) => *place = to,
            None if is_full => self.not_remembered += 1,
            None => {
                self.places.insert(topic.into(), to);
            }
        }
    }

    /// Takes what the server said of a place, by its topic's last sequence. What was lost with another epoch has been
    /// told with it, so that of the new one everything is still to come.
    pub fn recovered(&mut self, topic: &str, exists: bool, now: Position, recovered: bool) {
        match self.places.get_mut(topic) {
            None => {}
            Some(_) if recovered => {}
            Some(_) if !exists => {
                self.places.remove(topic);
            }
            // Ahead of the topic; 0 says that nobody looked.
            Some(place) if place.epoch == now.epoch && now.sequence > 0 => {
                place.sequence = place.sequence.min(now.sequence);
            }
            Some(place) if place.epoch == now.epoch => {}
            Some(place) => *place = Position { epoch: now.epoch, sequence: 0 },
        }
    }

    /// Forgets the topics that `is_kept` refuses.
    pub fn retain(&mut self, is_kept: impl Fn(&str) -> bool) {
        self.places.retain(|topic, _| is_kept(topic));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(epoch: u64, sequence: u64) -> Position {
        Position { epoch, sequence }
    }

    fn at(epoch: u64, sequence: u64) -> Positions {
        let mut positions = Positions::new();
        positions.advance("a", place(epoch, sequence));
        positions
    }

    #[test]
    fn a_place_goes_on_within_its_epoch_and_anew_in_another() {
        let mut positions = at(1, 5);
        positions.advance("a", place(1, 9));
        positions.advance("a", place(1, 3));
        assert_eq!(positions.position("a"), Some(place(1, 9)));
        positions.advance("a", place(2, 1));
        assert_eq!(positions.position("a"), Some(place(2, 1)));
        assert_eq!((positions.position("b"), positions.len()), (None, 1));
    }

    #[test]
    fn what_could_not_be_recovered_is_not_asked_for_again() {
        let after = |exists, now, recovered| {
            let mut positions = at(1, 5);
            positions.recovered("a", exists, now, recovered);
            positions.recovered("unknown", exists, now, recovered);
            positions.position("a")
        };
        assert_eq!(after(true, place(1, 9), true), Some(place(1, 5)));
        assert_eq!(after(true, place(1, 9), false), Some(place(1, 5)), "the snapshot moves it");
        assert_eq!(after(true, place(1, 3), false), Some(place(1, 3)), "ahead of the topic");
        assert_eq!(after(true, place(1, 0), false), Some(place(1, 5)), "nobody looked");
        assert_eq!(after(true, place(2, 9), false), Some(place(2, 0)));
        assert_eq!(after(false, place(2, 0), false), None);
    }
}
