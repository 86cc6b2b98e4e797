//! A few topics for each connection: `--subscribe-own`.

use std::{fmt, str::FromStr};

/// Most topics per connection: the server's default limit per session.
const EACH_MAX: usize = 1_024;
/// Most topics in all: the server's default limit.
const OF_MAX: usize = 65_536;

/// Topics per connection: the i-th gets `sim.((i * each + k) % of)` for k from 0 to `each - 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnTopics {
    pub each: usize,
    of: usize,
}

impl OwnTopics {
    /// Topics of the `index`-th connection.
    pub fn topics(self, index: usize) -> Vec<String> {
        (0..self.each).map(|k| format!("sim.{}", (index * self.each + k) % self.of)).collect()
    }
}

impl FromStr for OwnTopics {
    type Err = String;

    fn from_str(text: &str) -> Result<OwnTopics, String> {
        let numbers =
            text.split_once('/').and_then(|(each, of)| Some((each.parse().ok()?, of.parse().ok()?)));
        let (each, of): (usize, usize) = numbers.ok_or("expected N/OF, such as 20/20000")?;
        if !(1..=EACH_MAX.min(of)).contains(&each) || of > OF_MAX {
            return Err(format!("N must be between 1 and {EACH_MAX} and at most OF, OF at most {OF_MAX}"));
        }
        Ok(OwnTopics { each, of })
    }
}

impl fmt::Display for OwnTopics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} each of sim.0 to sim.{}", self.each, self.of - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_topics_in_turn() {
        let own: OwnTopics = "3/7".parse().unwrap();
        assert_eq!(own.topics(0), ["sim.0", "sim.1", "sim.2"]);
        assert_eq!(own.topics(2), ["sim.6", "sim.0", "sim.1"]);
        assert_eq!(own.to_string(), "3 each of sim.0 to sim.6");
    }

    #[test]
    fn invalid_values_are_refused() {
        for bad in ["", "3", "0/7", "8/7", "-1/7", "1025/2000", "1/65537"] {
            assert!(bad.parse::<OwnTopics>().is_err(), "{bad}");
        }
    }
}
