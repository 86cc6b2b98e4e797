//! A trie of patterns, to find all that match a topic without trying each.

use std::collections::HashMap;

use crate::limits::NAME_TOKENS_MAX;

/// Index of the root.
const ROOT: u32 = 0;
/// Index of no child, and number of no token.
const NONE: u32 = 0;

/// A trie of patterns by token, each with a value.
///
/// Nodes lie in one slab, and an edge names its token by number, so that a token's text is stored once. A node takes 24
/// bytes and its value, an edge about 16. A match looks up the topic's tokens once, and then visits a node in about
/// 5 ns (bench/micro/control.rs): at most two for each node of the level above. 1,024 patterns that all match a topic take
/// 10 us.
///
/// Invariant: every node but the root is reachable by exactly one path, and holds a value or a child. The root has index 0
/// and is nobody's child.
/// Invariant: a token's `uses` counts the edges that name it.
#[derive(Debug)]
pub struct PatternTrie<V> {
    nodes: Vec<Node<V>>,
    free_nodes: Vec<u32>,
    /// Children by their parent and the number of their token, wildcards excepted. The hash may be weak: no client
    /// chooses these numbers.
    edges: HashMap<(u32, u32), u32, rustc_hash::FxBuildHasher>,
    tokens: HashMap<Box<str>, Token>,
    free_tokens: Vec<u32>,
    token_bytes: usize,
    len: usize,
}

#[derive(Debug)]
struct Node<V> {
    value: Option<V>,
    /// The child for `*`.
    any: u32,
    /// The child for `>`.
    rest: u32,
    /// Children of all kinds.
    children: u32,
}

#[derive(Clone, Copy, Debug)]
struct Token {
    number: u32,
    uses: u32,
}

impl<V> Node<V> {
    const EMPTY: Node<V> = Node { value: None, any: NONE, rest: NONE, children: 0 };
}

impl<V> Default for PatternTrie<V> {
    fn default() -> Self {
        PatternTrie {
            nodes: vec![Node::EMPTY],
            free_nodes: Vec::new(),
            edges: HashMap::default(),
            tokens: HashMap::new(),
            free_tokens: Vec::new(),
            token_bytes: 0,
            len: 0,
        }
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

    /// Bytes it holds.
    pub fn heap_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node<V>>()
            + self.edges.capacity() * (size_of::<((u32, u32), u32)>() + 1)
            + self.tokens.capacity() * (size_of::<(Box<str>, Token)>() + 1)
            + self.token_bytes
    }

    /// The value at exactly this pattern.
    pub fn get_mut(&mut self, pattern: &str) -> Option<&mut V> {
        let mut node = ROOT;
        for token in pattern.split('.') {
            node = self.child(node, token).filter(|&child| child != NONE)?;
        }
        self.nodes[node as usize].value.as_mut()
    }

    fn child(&self, node: u32, token: &str) -> Option<u32> {
        match token {
            "*" => Some(self.nodes[node as usize].any),
            ">" => Some(self.nodes[node as usize].rest),
            _ => self.edges.get(&(node, self.tokens.get(token)?.number)).copied(),
        }
    }

    /// The value at exactly this pattern, inserted by `make` if absent.
    pub fn get_or_insert_with(&mut self, pattern: &str, make: impl FnOnce() -> V) -> &mut V {
        let mut node = ROOT;
        for token in pattern.split('.') {
            node = match self.child(node, token) {
                Some(child) if child != NONE => child,
                _ => self.insert_child(node, token),
            };
        }
        let value = &mut self.nodes[node as usize].value;
        self.len += usize::from(value.is_none());
        value.get_or_insert_with(make)
    }

    fn insert_child(&mut self, parent: u32, token: &str) -> u32 {
        let child = self.free_nodes.pop().unwrap_or_else(|| {
            self.nodes.push(Node::EMPTY);
            self.nodes.len() as u32 - 1
        });
        self.nodes[parent as usize].children += 1;
        match token {
            "*" => self.nodes[parent as usize].any = child,
            ">" => self.nodes[parent as usize].rest = child,
            _ => {
                let number = self.use_token(token);
                self.edges.insert((parent, number), child);
            }
        }
        child
    }

    /// Counts one more edge with a token, and returns the token's number.
    fn use_token(&mut self, token: &str) -> u32 {
        if let Some(known) = self.tokens.get_mut(token) {
            known.uses += 1;
            return known.number;
        }
        let number = self.free_tokens.pop().unwrap_or(self.tokens.len() as u32 + 1);
        self.token_bytes += token.len();
        self.tokens.insert(token.into(), Token { number, uses: 1 });
        number
    }

    /// Removes a pattern, and the nodes that only it needed.
    pub fn remove(&mut self, pattern: &str) -> Option<V> {
        let mut path = Vec::with_capacity(8);
        let mut node = ROOT;
        for token in pattern.split('.') {
            path.push((node, token));
            node = self.child(node, token).filter(|&child| child != NONE)?;
        }
        let removed = self.nodes[node as usize].value.take()?;
        self.len -= 1;
        for (parent, token) in path.into_iter().rev() {
            let Node { value, children, .. } = &self.nodes[node as usize];
            if value.is_some() || *children > 0 {
                break;
            }
            self.remove_child(parent, token, node);
            node = parent;
        }
        if self.len == 0 {
            // Gives the memory back.
            *self = PatternTrie::default();
        }
        Some(removed)
    }

    fn remove_child(&mut self, parent: u32, token: &str, child: u32) {
        self.nodes[parent as usize].children -= 1;
        match token {
            "*" => self.nodes[parent as usize].any = NONE,
            ">" => self.nodes[parent as usize].rest = NONE,
            _ => {
                let Some(known) = self.tokens.get_mut(token) else {
                    return debug_assert!(false, "an edge's token is known");
                };
                known.uses -= 1;
                let Token { number, uses } = *known;
                self.edges.remove(&(parent, number));
                if uses == 0 {
                    self.tokens.remove(token);
                    self.token_bytes -= token.len();
                    self.free_tokens.push(number);
                }
            }
        }
        self.nodes[child as usize] = Node::EMPTY;
        self.free_nodes.push(child);
    }

    /// Calls `found` with the value of every pattern that matches `topic`. Returns the number of nodes visited.
    pub fn for_each_match(&self, topic: &str, mut found: impl FnMut(&V)) -> usize {
        if self.len == 0 {
            return 1;
        }
        let (mut numbers, mut len) = ([NONE; NAME_TOKENS_MAX], 0);
        for token in topic.split('.') {
            let Some(number) = numbers.get_mut(len) else {
                debug_assert!(false, "a name is at most 255 bytes long");
                return 1;
            };
            *number = self.tokens.get(token).map_or(NONE, |token| token.number);
            len += 1;
        }
        self.visit(ROOT, &numbers[..len], &mut found)
    }

    fn visit(&self, node: u32, tokens: &[u32], found: &mut impl FnMut(&V)) -> usize {
        let Node { value, any, rest, .. } = &self.nodes[node as usize];
        let Some((&token, tokens)) = tokens.split_first() else {
            value.iter().for_each(found);
            return 1;
        };
        if *rest != NONE {
            self.nodes[*rest as usize].value.iter().for_each(&mut *found);
        }
        let mut visited = 1;
        if token != NONE
            && let Some(&child) = self.edges.get(&(node, token))
        {
            visited += self.visit(child, tokens, found);
        }
        if *any != NONE {
            visited += self.visit(*any, tokens, found);
        }
        visited
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tickcast_proto::pattern::matches;

    /// Number of distinct beginnings of the patterns, by token.
    fn prefixes(patterns: &std::collections::HashSet<String>) -> usize {
        let of = |pattern: &String| {
            let ends: Vec<usize> =
                pattern.match_indices('.').map(|(at, _)| at).chain([pattern.len()]).collect();
            ends.into_iter().map(|end| pattern[..end].to_owned()).collect::<Vec<_>>()
        };
        patterns.iter().flat_map(of).collect::<std::collections::HashSet<_>>().len()
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
            let mut expected: Vec<&str> = patterns.iter().flat_map(|pattern| pattern.split('.')).collect();
            expected.retain(|token| !matches!(*token, "*" | ">"));
            expected.sort_unstable();
            expected.dedup();
            assert_eq!(trie.tokens.len(), expected.len(), "unused tokens are forgotten");
            assert_eq!(trie.nodes.len() - trie.free_nodes.len(), 1 + prefixes(&patterns), "and unused nodes");
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
