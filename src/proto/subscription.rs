//! Options of a subscription: start position, rate limit, and policy while the session is behind.

use std::{cmp::Ordering, collections::HashMap, fmt, str::FromStr};

use crate::{
    limits::{MAX_RATE_HIGHEST, MAX_RATE_LOWEST},
    pattern,
};

/// What to do with a subscription's ticks while its session is behind.
///
/// Ordered by strictness: if several subscriptions of a session match a topic, the greatest policy applies. The discriminants
/// are the values on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Policy {
    /// Keep only the last tick of each topic and key; announce the ones it replaces with CONFLATED.
    Conflate = 1,
    /// Drop the oldest ticks and announce them with GAP before the next tick.
    Drop = 2,
    /// Keep every tick; close a session that falls too far behind, whatever the cause.
    Disconnect = 3,
    /// Keep every tick; close a session that falls too far behind because its client is slow. If the server is overloaded, drop
    /// the oldest ticks and announce them with GAP.
    #[default]
    Keep = 4,
}

impl Ord for Policy {
    fn cmp(&self, other: &Policy) -> Ordering {
        let strictness = |policy: &Policy| match policy {
            Policy::Conflate => 0,
            Policy::Drop => 1,
            Policy::Keep => 2,
            Policy::Disconnect => 3,
        };
        strictness(self).cmp(&strictness(other))
    }
}

impl PartialOrd for Policy {
    fn partial_cmp(&self, other: &Policy) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Policy {
    /// Name in JSON, options and logs.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Conflate => "conflate",
            Policy::Drop => "drop",
            Policy::Disconnect => "disconnect",
            Policy::Keep => "keep",
        }
    }
}

impl FromStr for Policy {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Policy, OptionError> {
        [Policy::Conflate, Policy::Drop, Policy::Keep, Policy::Disconnect]
            .into_iter()
            .find(|policy| policy.name() == text)
            .ok_or_else(|| OptionError::Policy(text.chars().take(32).collect()))
    }
}

/// Where a subscription starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StartPosition {
    /// At the next tick.
    #[default]
    Live,
    /// At the last tick of each matching topic and key, sent as a snapshot.
    Latest,
    /// After this position in every matching topic.
    After(Position),
    /// After one position per topic. Matching topics without one start at their oldest tick kept.
    AfterEach(HashMap<Box<str>, Position>),
    /// Like `AfterEach`, with the positions from preceding RESUME frames.
    Resume,
    /// Like both, but matching topics without a position start at their first tick since a moment.
    Since(HashMap<Box<str>, Position>, Moment),
}

/// When a subscription became live, as the server that acknowledged it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Epoch of that server.
    pub epoch: u64,
    /// Microseconds since 1970, by its clock at its start and then by one that is never set.
    pub since_us: u64,
}

/// A client's position in a topic: the last tick it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Epoch of the topic's life, within which sequences increase.
    pub epoch: u64,
    /// Last sequence received; 0: none.
    pub sequence: u64,
}

/// Policy and rate of a subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// What to do while the session is behind; `None`: the topic's default.
    pub policy: Option<Policy>,
    /// Shortest interval between ticks of a topic, in microseconds; 0: none. Ticks in between are conflated.
    pub interval_us: u32,
}

/// An invalid subscription option, with the value given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionError {
    /// Unknown policy.
    Policy(String),
    /// Not a number, or out of range.
    MaxRate(String),
    /// Unknown start position.
    From(String),
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OptionError::Policy(text) => {
                write!(f, "policy: unknown value {text:?}; use conflate, drop, keep or disconnect")
            }
            OptionError::MaxRate(text) => {
                write!(
                    f,
                    "max_rate: {text} is not a rate from {MAX_RATE_LOWEST} to {MAX_RATE_HIGHEST} ticks per second"
                )
            }
            OptionError::From(text) => {
                write!(
                    f,
                    "from: {text} is not a start position; use live, latest, positions, or epoch with sequence or sequences"
                )
            }
        }
    }
}

impl std::error::Error for OptionError {}

/// Converts a rate in ticks per second to an interval in microseconds.
///
/// # Errors
/// [`OptionError::MaxRate`] if it is not within [`MAX_RATE_LOWEST`] to [`MAX_RATE_HIGHEST`].
pub fn interval_us(max_rate: f64) -> Result<u32, OptionError> {
    if !(MAX_RATE_LOWEST..=MAX_RATE_HIGHEST).contains(&max_rate) {
        return Err(OptionError::MaxRate(max_rate.to_string()));
    }
    Ok((1e6 / max_rate).round() as u32)
}

/// A setting by topic: the value of the first pattern that matches, else the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules<T> {
    /// Patterns and their values. The first match wins. Bound: the rules in the configuration.
    pub rules: Vec<(Box<str>, T)>,
    /// Value of topics that no pattern matches.
    pub default: T,
}

impl<T: Copy> Rules<T> {
    /// The same value for every topic.
    pub fn all(default: T) -> Rules<T> {
        Rules { rules: Vec::new(), default }
    }

    /// The value for a topic. A match against each rule.
    pub fn of(&self, topic: &str) -> T {
        let rule = self.rules.iter().find(|(pattern, _)| pattern::matches(pattern, topic));
        rule.map_or(self.default, |&(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_out_of_range_is_rejected_with_the_option_name() {
        assert_eq!(interval_us(10.0), Ok(100_000));
        assert_eq!(interval_us(MAX_RATE_LOWEST), Ok(1_000_000_000));
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-9, 1e9] {
            assert!(interval_us(bad).unwrap_err().to_string().starts_with("max_rate"), "{bad}");
        }
    }

    #[test]
    fn first_matching_rule_wins() {
        let rules = Rules {
            rules: vec![("a.b".into(), Policy::Drop), ("a.>".into(), Policy::Conflate)],
            default: Policy::Disconnect,
        };
        assert_eq!(rules.of("a.b"), Policy::Drop);
        assert_eq!(rules.of("a.c"), Policy::Conflate);
        assert_eq!(rules.of("b"), Policy::Disconnect);
    }

    #[test]
    fn policies_parse_from_their_names() {
        let by_strictness = [Policy::Conflate, Policy::Drop, Policy::Keep, Policy::Disconnect];
        assert!(by_strictness.is_sorted());
        for policy in by_strictness {
            assert_eq!(policy.name().parse(), Ok(policy));
        }
        assert!("Conflate".parse::<Policy>().unwrap_err().to_string().contains("conflate, drop"));
    }
}
