//! The policies that the topics of a wildcard may have.

use crate::session::Yielding;
use tickcast_proto::{
    pattern,
    subscription::{Policy, Rules},
};

/// Which policies a subscription's topics may have, as bits: one that yields, one that conflates, one that keeps every tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PossiblePolicies(u8);

impl PossiblePolicies {
    const YIELDS: u8 = 1;
    const CONFLATES: u8 = 2;
    const KEEPS: u8 = 4;

    /// The policies of the topics that `pattern` can match.
    pub(super) fn of(pattern: &str, policy: Option<Policy>, defaults: &Rules<Policy>) -> PossiblePolicies {
        let bits = |policy| match policy {
            Policy::Conflate => Self::YIELDS | Self::CONFLATES,
            Policy::Drop => Self::YIELDS,
            Policy::Keep | Policy::Disconnect => Self::KEEPS,
        };
        if let Some(policy) = policy {
            return PossiblePolicies(bits(policy));
        }
        let mut possible = 0;
        for (rule, policy) in &defaults.rules {
            if pattern::overlaps(rule, pattern) {
                possible |= bits(*policy);
            }
            if pattern::covers(rule, pattern) {
                return PossiblePolicies(possible);
            }
        }
        PossiblePolicies(possible | bits(defaults.default))
    }

    /// What a subscription with these policies adds to its session's count.
    pub fn count(self) -> Yielding {
        let has = |bit| u32::from(self.0 & bit != 0);
        Yielding {
            memberships: has(Self::YIELDS),
            conflating: has(Self::CONFLATES),
            keeping: has(Self::KEEPS),
        }
    }
}
