//! Names, patterns and which match: topic to home shard, topic to the patterns that take it.
//!
//! The matching rules are NATS's: `*` as a whole token takes one token, `>` as the last token takes one or more.

use std::{collections::HashMap, fmt};

use crate::{limits::TOPIC_BYTES_MAX, tick::ShardId};

/// The rule of names that a topic or pattern breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// No bytes, or more than 255.
    Length(usize),
    /// Not UTF-8.
    NotUtf8,
    /// A blank or a control character.
    BlankOrControl,
    /// Two dots in a row, or a dot at an end.
    EmptyToken,
    /// `*` or `>` in a topic that is published to.
    Wildcard,
    /// `>` as a token that is not the last.
    RestNotLast,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameError::Length(len) => write!(f, "{len} bytes long, 1 to {TOPIC_BYTES_MAX} allowed"),
            NameError::NotUtf8 => write!(f, "not UTF-8"),
            NameError::BlankOrControl => write!(f, "holds a blank or a control character"),
            NameError::EmptyToken => write!(f, "holds an empty token: two dots in a row, or a dot at an end"),
            NameError::Wildcard => write!(f, "holds a wildcard: `*` and `>` are for subscriptions"),
            NameError::RestNotLast => write!(f, "holds `>` before the last token"),
        }
    }
}

/// Checks a name that is published to.
///
/// # Errors
/// The first [`NameError`] found.
pub fn check_topic(name: &[u8]) -> Result<&str, NameError> {
    let name = check_tokens(name)?;
    if name.contains(['*', '>']) {
        return Err(NameError::Wildcard);
    }
    Ok(name)
}

/// Checks a subscription's pattern.
///
/// # Errors
/// The first [`NameError`] found.
pub fn check_pattern(pattern: &[u8]) -> Result<&str, NameError> {
    let pattern = check_tokens(pattern)?;
    match pattern.split('.').position(|token| token == ">") {
        Some(at) if at + 1 != pattern.split('.').count() => Err(NameError::RestNotLast),
        _ => Ok(pattern),
    }
}

fn check_tokens(name: &[u8]) -> Result<&str, NameError> {
    if name.is_empty() || name.len() > TOPIC_BYTES_MAX {
        return Err(NameError::Length(name.len()));
    }
    let name = simdutf8::basic::from_utf8(name).map_err(|_| NameError::NotUtf8)?;
    if name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(NameError::BlankOrControl);
    }
    if name.split('.').any(str::is_empty) {
        return Err(NameError::EmptyToken);
    }
    Ok(name)
}

/// Whether the pattern names exactly one topic.
pub fn is_exact(pattern: &str) -> bool {
    !pattern.split('.').any(|token| token == "*" || token == ">")
}

/// Whether `pattern` takes `topic`. No allocation.
pub fn matches(pattern: &str, topic: &str) -> bool {
    let mut topic = topic.split('.');
    for token in pattern.split('.') {
        match (token, topic.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (token, Some(name)) if token == name => {}
            _ => return false,
        }
    }
    topic.next().is_none()
}

/// The shard that sequences `topic`: FNV-1a over the name, so that every shard and every ingest agree without a
/// table. (Fowler, Noll, Vo; 64-bit offset basis and prime.)
pub fn home(topic: &str, shards: u16) -> ShardId {
    let hash = topic.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // The low bits of FNV-1a of short names are poor; the high half is folded in.
    ShardId(((hash ^ hash >> 32) % u64::from(shards)) as u16)
}

/// Patterns by token, to find those that take a topic without trying each.
///
/// Invariant: every node but the root is reachable by exactly one path, and holds a value or a child.
#[derive(Debug)]
pub struct PatternTrie<V> {
    root: Node<V>,
    len: usize,
}

#[derive(Debug)]
struct Node<V> {
    value: Option<V>,
    children: HashMap<Box<str>, Node<V>>,
}

impl<V> Default for Node<V> {
    fn default() -> Self {
        Node { value: None, children: HashMap::new() }
    }
}

impl<V> Default for PatternTrie<V> {
    fn default() -> Self {
        PatternTrie { root: Node::default(), len: 0 }
    }
}

impl<V> PatternTrie<V> {
    /// Patterns held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value at exactly this pattern.
    pub fn at_mut(&mut self, pattern: &str) -> Option<&mut V> {
        let mut node = &mut self.root;
        for token in pattern.split('.') {
            node = node.children.get_mut(token)?;
        }
        node.value.as_mut()
    }

    /// The value at exactly this pattern, made by `make` if there is none.
    pub fn at_or_insert(&mut self, pattern: &str, make: impl FnOnce() -> V) -> &mut V {
        let mut node = &mut self.root;
        for token in pattern.split('.') {
            node = node.children.entry(token.into()).or_default();
        }
        if node.value.is_none() {
            self.len += 1;
        }
        node.value.get_or_insert_with(make)
    }

    /// Takes a pattern out, and the nodes that only it needed.
    pub fn remove(&mut self, pattern: &str) -> Option<V> {
        let removed = Self::remove_below(&mut self.root, pattern);
        self.len -= usize::from(removed.is_some());
        removed
    }

    fn remove_below(node: &mut Node<V>, rest: &str) -> Option<V> {
        let (token, rest) = match rest.split_once('.') {
            Some((token, rest)) => (token, Some(rest)),
            None => (rest, None),
        };
        let child = node.children.get_mut(token)?;
        let removed = match rest {
            Some(rest) => Self::remove_below(child, rest),
            None => child.value.take(),
        };
        if child.value.is_none() && child.children.is_empty() {
            node.children.remove(token);
        }
        removed
    }

    /// Calls `found` with the value of every pattern that takes `topic`. At most two branches a token, 128 tokens.
    pub fn matching(&self, topic: &str, mut found: impl FnMut(&V)) {
        Self::matching_below(&self.root, topic, &mut found);
    }

    /// Whether the value of any pattern that takes `topic` satisfies `wanted`.
    pub fn matching_any(&self, topic: &str, mut wanted: impl FnMut(&V) -> bool) -> bool {
        let mut found = false;
        self.matching(topic, |value| found = found || wanted(value));
        found
    }

    fn matching_below(node: &Node<V>, rest: &str, found: &mut impl FnMut(&V)) {
        if node.children.is_empty() {
            return;
        }
        if let Some(value) = node.children.get(">").and_then(|child| child.value.as_ref()) {
            found(value);
        }
        let (token, rest) = match rest.split_once('.') {
            Some((token, rest)) => (token, Some(rest)),
            None => (rest, None),
        };
        for child in [node.children.get(token), node.children.get("*")].into_iter().flatten() {
            match rest {
                Some(rest) => Self::matching_below(child, rest, found),
                None => child.value.iter().for_each(&mut *found),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules() {
        assert_eq!(check_topic(b"a.b-c.D_1"), Ok("a.b-c.D_1"));
        assert_eq!(check_topic("kurs.größe".as_bytes()), Ok("kurs.größe"));
        assert_eq!(check_topic(b""), Err(NameError::Length(0)));
        assert_eq!(check_topic(&[b'a'; 256]), Err(NameError::Length(256)));
        assert!(check_topic(&[b'a'; 255]).is_ok());
        assert_eq!(check_topic(b"a\xff"), Err(NameError::NotUtf8));
        for name in ["a b", "a\tb", "a\u{7f}", "a\u{a0}b", "a\0"] {
            assert_eq!(check_topic(name.as_bytes()), Err(NameError::BlankOrControl), "{name:?}");
        }
        for name in [".", ".a", "a.", "a..b"] {
            assert_eq!(check_topic(name.as_bytes()), Err(NameError::EmptyToken), "{name:?}");
        }
        for name in ["*", ">", "a.*", "a.b>"] {
            assert_eq!(check_topic(name.as_bytes()), Err(NameError::Wildcard), "{name:?}");
        }
        assert!(check_pattern(b"*.b.>").is_ok() && check_pattern(b"a*.>b").is_ok());
        for pattern in [">.a", "a.>.b"] {
            assert_eq!(check_pattern(pattern.as_bytes()), Err(NameError::RestNotLast), "{pattern:?}");
        }
    }

    /// The examples of the NATS documentation on subject-based messaging, and its corner cases.
    #[test]
    fn patterns_match_as_in_nats() {
        for (pattern, topic, expected) in [
            ("time.us.east", "time.us.east", true),
            ("time.us", "time.us.east", false),
            ("time.*.east", "time.us.east", true),
            ("time.*.east", "time.us.east.atlanta", false),
            ("time.*", "time", false),
            ("time.us.>", "time.us.east.atlanta", true),
            ("time.us.>", "time.us", false),
            (">", "time", true),
            ("*.*", "a.b", true),
            ("*", "a.b", false),
            ("*.>", "a", false),
            ("*.>", "a.b.c", true),
            ("a*", "ab", false),
        ] {
            assert_eq!(matches(pattern, topic), expected, "{pattern} {topic}");
            let mut trie = PatternTrie::default();
            *trie.at_or_insert(pattern, || 0) += 1;
            let mut found = 0;
            trie.matching(topic, |_| found += 1);
            assert_eq!(found, usize::from(expected), "trie: {pattern} {topic}");
        }
    }

    #[test]
    fn the_trie_agrees_with_matching_one_by_one() {
        let mut random = fastrand::Rng::with_seed(7);
        let tokens = ["a", "b", "c", "*"];
        for _ in 0..200 {
            let mut trie = PatternTrie::default();
            let mut patterns = std::collections::HashSet::new();
            for _ in 0..20 {
                let mut pattern: Vec<_> =
                    (0..random.usize(1..4)).map(|_| tokens[random.usize(..4)]).collect();
                if random.bool() {
                    pattern.push(">");
                }
                let pattern = pattern.join(".");
                trie.at_or_insert(&pattern, || pattern.clone());
                patterns.insert(pattern);
            }
            for pattern in patterns.clone() {
                if random.bool() {
                    assert_eq!(trie.remove(&pattern), Some(pattern.clone()));
                    patterns.remove(&pattern);
                }
            }
            assert_eq!(trie.len(), patterns.len());
            for _ in 0..20 {
                let topic: Vec<_> = (0..random.usize(1..5)).map(|_| tokens[random.usize(..3)]).collect();
                let topic = topic.join(".");
                let mut found = Vec::new();
                trie.matching(&topic, |pattern| found.push(pattern.clone()));
                found.sort();
                let mut expected: Vec<_> = patterns.iter().filter(|p| matches(p, &topic)).cloned().collect();
                expected.sort();
                assert_eq!(found, expected, "{topic}");
            }
        }
    }

    #[test]
    fn homes_spread_over_the_shards() {
        let mut counts = [0; 4];
        for index in 0..4000 {
            counts[usize::from(home(&format!("sim.{index}"), 4).0)] += 1;
        }
        assert!(counts.iter().all(|&count| (800..1200).contains(&count)), "{counts:?}");
    }
}
