//! A trie of patterns, to find all that match a topic without trying each.

use std::collections::HashMap;

/// A trie of patterns by token, each with a value.
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
    /// Number of patterns.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no pattern.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value at exactly this pattern.
    pub fn get_mut(&mut self, pattern: &str) -> Option<&mut V> {
        let mut node = &mut self.root;
        for token in pattern.split('.') {
            node = node.children.get_mut(token)?;
        }
        node.value.as_mut()
    }

    /// The value at exactly this pattern, inserted by `make` if absent.
    pub fn get_or_insert_with(&mut self, pattern: &str, make: impl FnOnce() -> V) -> &mut V {
        let mut node = &mut self.root;
        for token in pattern.split('.') {
            node = node.children.entry(token.into()).or_default();
        }
        if node.value.is_none() {
            self.len += 1;
        }
        node.value.get_or_insert_with(make)
    }

    /// Removes a pattern, and the nodes that only it needed.
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

    /// Calls `found` with the value of every pattern that matches `topic`. At most two branches per token, 128 tokens.
    /// Returns the number of nodes visited.
    pub fn for_each_match(&self, topic: &str, mut found: impl FnMut(&V)) -> usize {
        Self::matching_below(&self.root, topic, &mut found)
    }

    fn matching_below(node: &Node<V>, rest: &str, found: &mut impl FnMut(&V)) -> usize {
        if node.children.is_empty() {
            return 1;
        }
        let mut visited = 1;
        if let Some(value) = node.children.get(">").and_then(|child| child.value.as_ref()) {
            found(value);
        }
        let (token, rest) = match rest.split_once('.') {
            Some((token, rest)) => (token, Some(rest)),
            None => (rest, None),
        };
        for child in [node.children.get(token), node.children.get("*")].into_iter().flatten() {
            match rest {
                Some(rest) => visited += Self::matching_below(child, rest, found),
                None => child.value.iter().for_each(&mut *found),
            }
        }
        visited
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tickcast_proto::pattern::matches;

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
                trie.get_or_insert_with(&pattern, || pattern.clone());
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
                trie.for_each_match(&topic, |pattern| found.push(pattern.clone()));
                found.sort();
                let mut expected: Vec<_> = patterns.iter().filter(|p| matches(p, &topic)).cloned().collect();
                expected.sort();
                assert_eq!(found, expected, "{topic}");
            }
        }
    }
}
