//! Topics of a connection's own: `--subscribe-own`.

use std::{fmt, str::FromStr};

use crate::{feed::Feed, tally::Cut};

/// Most topics of one connection: as many as tickcast takes of a session unless told otherwise.
const EACH_MAX: usize = 1_024;
/// Most topics of all: as many as tickcast takes unless told otherwise.
const OF_MAX: usize = 65_536;

/// Each connection has `each` topics of its own, of the simulator's first `of`; connections share topics where they
/// have more of them together than there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    pub each: usize,
    of: usize,
}

impl Own {
    /// What the `index`-th connection subscribes to.
    pub fn patterns(self, index: usize) -> Vec<String> {
        (0..self.each).map(|k| format!("sim.{}", (index * self.each + k) % self.of)).collect()
    }
}

impl FromStr for Own {
    type Err = String;

    fn from_str(typed: &str) -> Result<Own, String> {
        let numbers =
            typed.split_once('/').and_then(|(each, of)| Some((each.parse().ok()?, of.parse().ok()?)));
        let (each, of): (usize, usize) = numbers.ok_or("N/OF, as in 20/20000")?;
        if !(1..=EACH_MAX.min(of)).contains(&each) || of > OF_MAX {
            return Err(format!("1 to {EACH_MAX} topics each, of as many to {OF_MAX}"));
        }
        Ok(Own { each, of })
    }
}

impl fmt::Display for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} each of sim.0 to sim.{}", self.each, self.of - 1)
    }
}

/// The part of `cut` that is of a connection's own topics: those that it knows of, by a tick or by name.
pub fn known_part(cut: &Cut, session: &Feed) -> Cut {
    session.topics().filter_map(|(id, _)| cut.get(&id.0).map(|&highest| (id.0, highest))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_go_round_the_topics() {
        let own: Own = "3/7".parse().unwrap();
        assert_eq!(own.patterns(0), ["sim.0", "sim.1", "sim.2"]);
        assert_eq!(own.patterns(2), ["sim.6", "sim.0", "sim.1"]);
        assert_eq!(own.to_string(), "3 each of sim.0 to sim.6");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for bad in ["", "3", "0/7", "8/7", "-1/7", "1025/2000", "1/65537"] {
            assert!(bad.parse::<Own>().is_err(), "{bad}");
        }
    }
}
