//! What a subscriber may ask for besides a pattern: where to begin, how fast, and what becomes of ticks that its
//! socket has no room for.

use std::{collections::HashMap, fmt, str::FromStr};

use crate::{
    limits::{MAX_RATE_HIGHEST, MAX_RATE_LOWEST},
    pattern,
};

/// What becomes of a subscriber's ticks while its session is behind.
///
/// In this order the more faithful one wins where several subscriptions of a session match a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Policy {
    /// Only the newest tick of each topic (and key) survives; a CONFLATED before it says which it stands for.
    Conflate = 1,
    /// The oldest go; a GAP before the next tick says which.
    Drop = 2,
    /// Nothing is left out: a session that falls too far behind is closed.
    #[default]
    Disconnect = 3,
}

impl Policy {
    /// Name in JSON, in options and in logs.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Conflate => "conflate",
            Policy::Drop => "drop",
            Policy::Disconnect => "disconnect",
        }
    }
}

impl FromStr for Policy {
    type Err = BadOption;

    fn from_str(text: &str) -> Result<Policy, BadOption> {
        [Policy::Conflate, Policy::Drop, Policy::Disconnect]
            .into_iter()
            .find(|policy| policy.name() == text)
            .ok_or_else(|| BadOption::Policy(text.chars().take(32).collect()))
    }
}

/// Where a subscription begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum From {
    /// With the next tick.
    #[default]
    Live,
    /// With the newest tick of every matching topic and key.
    Latest,
    /// After this position, in every matching topic.
    Position(Position),
    /// After these positions, by topic's name; a topic that is not among them from its first tick, if the epoch is
    /// the server's.
    Positions(u64, HashMap<Box<str>, u64>),
    /// After the positions that RESUME frames named before.
    Resume,
}

/// A place in a topic: the last tick a client has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The life of the sequencer that counted.
    pub epoch: u64,
    /// The last sequence received; 0 for none.
    pub sequence: u64,
}

/// How a subscription is to be delivered. What is not given is left to the topic's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// What becomes of its ticks while the session is behind.
    pub policy: Option<Policy>,
    /// Ticks of one topic come at least this far apart, the ones between conflated; 0: no bound. Microseconds, so that
    /// the slowest rate fits.
    pub interval_us: u32,
}

/// An option that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadOption {
    /// No such policy.
    Policy(String),
    /// Out of range, or not a number.
    MaxRate(String),
    /// No such beginning.
    From(String),
}

impl fmt::Display for BadOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadOption::Policy(text) => {
                write!(f, "policy: unknown {text:?}: conflate, drop or disconnect")
            }
            BadOption::MaxRate(text) => {
                write!(f, "max_rate: {text}: {MAX_RATE_LOWEST} to {MAX_RATE_HIGHEST} ticks a second")
            }
            BadOption::From(text) => {
                write!(f, "from: unknown {text}: live, latest, or a position: epoch and sequence")
            }
        }
    }
}

impl std::error::Error for BadOption {}

/// The interval of a rate in ticks a second.
///
/// # Errors
/// [`BadOption::MaxRate`] outside [`MAX_RATE_LOWEST`] to [`MAX_RATE_HIGHEST`], NaN included.
pub fn interval_us(max_rate: f64) -> Result<u32, BadOption> {
    if !(MAX_RATE_LOWEST..=MAX_RATE_HIGHEST).contains(&max_rate) {
        return Err(BadOption::MaxRate(max_rate.to_string()));
    }
    Ok((1e6 / max_rate).round() as u32)
}

/// A value for each topic: that of the first pattern which matches, else a default. Looked up once a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules<T> {
    /// Pattern and value, the first that matches wins. Bound: what the configuration lists.
    pub rules: Vec<(Box<str>, T)>,
    /// Where none matches.
    pub default: T,
}

impl<T: Copy> Rules<T> {
    /// The same for every topic.
    pub fn all(default: T) -> Rules<T> {
        Rules { rules: Vec::new(), default }
    }

    /// The value for a topic.
    pub fn of(&self, topic: &str) -> T {
        let rule = self.rules.iter().find(|(pattern, _)| pattern::matches(pattern, topic));
        rule.map_or(self.default, |&(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_outside_their_range_are_refused_by_name() {
        assert_eq!(interval_us(10.0), Ok(100_000));
        assert_eq!(interval_us(MAX_RATE_LOWEST), Ok(1_000_000_000));
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-9, 1e9] {
            assert!(interval_us(bad).unwrap_err().to_string().starts_with("max_rate"), "{bad}");
        }
    }

    #[test]
    fn the_first_rule_that_matches_wins() {
        let rules = Rules {
            rules: vec![("a.b".into(), Policy::Drop), ("a.>".into(), Policy::Conflate)],
            default: Policy::Disconnect,
        };
        assert_eq!(rules.of("a.b"), Policy::Drop);
        assert_eq!(rules.of("a.c"), Policy::Conflate);
        assert_eq!(rules.of("b"), Policy::Disconnect);
    }

    #[test]
    fn policies_read_back_from_their_names() {
        for policy in [Policy::Conflate, Policy::Drop, Policy::Disconnect] {
            assert_eq!(policy.name().parse(), Ok(policy));
        }
        assert!("Conflate".parse::<Policy>().unwrap_err().to_string().contains("conflate, drop"));
    }
}
