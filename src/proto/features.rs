//! Features of the protocol that a client asks for in its hello and a server grants in its welcome.

use std::fmt;

/// A set of features, as bits.
/// The server sends a feature's kinds, operations and fields only to clients to which it has granted the feature, so that
/// every client understands what it receives. Both sides ignore unknown bits and names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(u16);

/// Every feature with its name in JSON. PROTOCOL.md describes them.
const NAMES: [(&str, Features); 12] = [
    ("published", Features::PUBLISHED),
    ("reasons", Features::REASONS),
    ("previous", Features::PREVIOUS),
    ("counts", Features::COUNTS),
    ("tokens", Features::TOKENS),
    ("sources", Features::SOURCES),
    ("nodes", Features::NODES),
    ("message_ids", Features::MESSAGE_IDS),
    ("string_keys", Features::STRING_KEYS),
    ("positions", Features::POSITIONS),
    ("batches", Features::BATCHES),
    ("since", Features::SINCE),
];

impl Features {
    /// None: a client of version 0.1.
    pub const NONE: Features = Features(0);
    /// PUBLISHED answers each PUBLISH that has a request id other than 0.
    pub const PUBLISHED: Features = Features(1);
    /// RECOVERED gives the reason if a position was not recovered, and UNSUBSCRIBED if the server ends a subscription.
    pub const REASONS: Features = Features(1 << 1);
    /// A TICK has an upper bound of the preceding sequence.
    pub const PREVIOUS: Features = Features(1 << 2);
    /// CONFLATED and GAP have the number of ticks in their range.
    pub const COUNTS: Features = Features(1 << 3);
    /// EXPIRES announces when the token expires; REFRESH replaces it.
    pub const TOKENS: Features = Features(1 << 4);
    /// SOURCE and STALE report the state of topics' sources.
    pub const SOURCES: Features = Features(1 << 5);
    /// NODES follows WELCOME.
    pub const NODES: Features = Features(1 << 6);
    /// A PUBLISH may have a message id, by which the topic's home recognises duplicates.
    pub const MESSAGE_IDS: Features = Features(1 << 7);
    /// In JSON, keys above 2^53 - 1 are strings. They always are; it remains for clients that ask.
    pub const STRING_KEYS: Features = Features(1 << 8);
    /// In JSON, each start position of a subscription may have its own epoch.
    pub const POSITIONS: Features = Features(1 << 9);
    /// Over WebSocket, frames that leave together are one message.
    pub const BATCHES: Features = Features(1 << 10);
    /// SUBSCRIBED says when a subscription became live, and a later one may start then in topics without a position.
    pub const SINCE: Features = Features(1 << 11);

    /// What this version of the server grants.
    pub const GRANTED: Features = Features::PUBLISHED
        .union(Features::REASONS)
        .union(Features::PREVIOUS)
        .union(Features::COUNTS)
        .union(Features::TOKENS)
        .union(Features::SOURCES)
        .union(Features::NODES)
        .union(Features::MESSAGE_IDS)
        .union(Features::STRING_KEYS)
        .union(Features::POSITIONS)
        .union(Features::BATCHES)
        .union(Features::SINCE);

    /// Reads the set from a frame. Bits beyond the sixteenth are ignored: no version uses them.
    pub fn from_wire(bits: u64) -> Features {
        Features(bits as u16)
    }

    /// The set as bits of a frame.
    pub fn to_wire(self) -> u64 {
        u64::from(self.0)
    }

    /// The features of these names. Unknown ones are ignored.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Features {
        let bits = names.into_iter().filter_map(|name| NAMES.iter().find(|(known, _)| *known == name));
        Features(bits.fold(0, |bits, (_, feature)| bits | feature.0))
    }

    /// The names of the features, in the order of their bits.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES.iter().filter(move |(_, feature)| self.contains(*feature)).map(|(name, _)| *name)
    }

    /// Whether all of `other` are in the set.
    pub const fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// The features in both sets.
    pub const fn intersection(self, other: Features) -> Features {
        Features(self.0 & other.0)
    }

    /// The features in either set.
    pub const fn union(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }

    /// The features that are not in `other`.
    pub const fn without(self, other: Features) -> Features {
        Features(self.0 & !other.0)
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// As a JSON array of names.
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (at, name) in self.names().enumerate() {
            write!(f, "{}\"{name}\"", if at == 0 { "" } else { "," })?;
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_has_a_bit_and_a_name_of_its_own() {
        for (at, (name, feature)) in NAMES.iter().enumerate() {
            assert_eq!(feature.to_wire(), 1 << at);
            assert_eq!(Features::from_names([*name, "unknown"]), *feature);
        }
        let all = Features::from_wire(u64::MAX);
        assert_eq!(all.names().count(), NAMES.len());
        assert_eq!(Features::from_names(all.names()).to_wire(), (1 << NAMES.len()) - 1);
    }

    #[test]
    fn a_set_is_written_as_an_array_of_names() {
        assert_eq!(Features::NONE.to_string(), "[]");
        assert_eq!(Features::from_wire(9).to_string(), r#"["published","counts"]"#);
    }
}
