//! A trie of patterns, to find all that match a topic without trying each.

use std::{collections::HashMap, sync::Arc};

use crate::limits::NAME_TOKENS_MAX;

/// Index of the root.
const ROOT: u32 = 0;
/// Index of no child, and number of no token.
const NONE: u32 = 0;
/// Numbers of the wildcards `*` and `>`.
const ANY: u32 = u32::MAX;
const REST: u32 = u32::MAX - 1;
/// Tokens of a run that are compared for one unit of work.
const RUN_TOKENS_PER_UNIT: usize = 8;

/// A trie of patterns by token, each with a value.
///
/// Nodes lie in one slab. An edge names its token by number, so that a token's text is stored once; the tokens after it that
/// do not branch are the node's run, stored as text. So a pattern takes at most two nodes, of 48 bytes each, and its text, however
/// many tokens it has. A match looks up the topic's tokens once, and then visits a node in about 5 ns
/// (bench/micro/control.rs): at most two for each node of the level above. 1,024 patterns that all match a topic take 10 us.
///
/// Invariant: every node but the root is reachable by exactly one path, and holds a value or at least two children. The root
/// has index 0, no run, and is nobody's child.
/// Invariant: a token's `uses` counts the edges that name it.
#[derive(Debug)]
pub struct PatternTrie<V> {
    nodes: Vec<Node<V>>,
    free_nodes: Vec<u32>,
    /// Children by their parent and the number of their token, wildcards excepted. The hash may be weak: no client
    /// chooses these numbers.
    edges: HashMap<(u32, u32), u32, rustc_hash::FxBuildHasher>,
    tokens: HashMap<Arc<str>, Token>,
    /// The tokens by number.
    names: Vec<Option<Arc<str>>>,
    free_tokens: Vec<u32>,
    /// Bytes of the tokens and runs.
    text_bytes: usize,
    len: usize,
}

#[derive(Debug)]
struct Node<V> {
    /// The tokens between the edge that leads here and this node, joined by dots. May contain wildcards.
    run: Box<str>,
    value: Option<V>,
    /// The number of the token on the edge that leads here.
    token: u32,
    /// The child for `*`.
    any: u32,
    /// The child for `>`.
    rest: u32,
    /// Children of all kinds.
    children: u32,
    /// All children's indices, combined by exclusive or: with one child, its index.
    children_xor: u32,
}

#[derive(Clone, Copy, Debug)]
struct Token {
    number: u32,
    uses: u32,
}

/// The tokens of a topic: where each begins, and its number.
struct TopicTokens<'a> {
    topic: &'a str,
    starts: [u16; NAME_TOKENS_MAX],
    numbers: [u32; NAME_TOKENS_MAX],
    len: usize,
}

impl TopicTokens<'_> {
    /// The text of a token; `None` after the last.
    fn text(&self, at: usize) -> Option<&str> {
        let start = *self.starts[..self.len].get(at)?;
        let rest = &self.topic[usize::from(start)..];
        Some(split_first(rest).0)
    }
}

/// A node, its parent, and the parent's.
struct Path {
    node: u32,
    parent: u32,
    above: u32,
}

impl<V> Node<V> {
    fn new(run: &str, token: u32) -> Node<V> {
        Node { run: run.into(), value: None, token, any: NONE, rest: NONE, children: 0, children_xor: 0 }
    }
}

impl<V> Default for PatternTrie<V> {
    fn default() -> Self {
        PatternTrie {
            nodes: vec![Node::new("", NONE)],
            free_nodes: Vec::new(),
            edges: HashMap::default(),
            tokens: HashMap::new(),
            names: Vec::new(),
            free_tokens: Vec::new(),
            text_bytes: 0,
            len: 0,
        }
    }
}

/// Splits the first token off a run or pattern: the token, and what follows it.
fn split_first(run: &str) -> (&str, &str) {
    run.split_once('.').unwrap_or((run, ""))
}

/// Joins tokens by dots; either side may be empty.
fn join(first: &str, second: &str) -> String {
    let dot = if first.is_empty() || second.is_empty() { "" } else { "." };
    format!("{first}{dot}{second}")
}

/// Length of the longest common beginning of whole tokens, in bytes, without a dot after it.
fn common_len(run: &str, pattern: &str) -> usize {
    let mut common = 0;
    for (token, other) in run.split('.').zip(pattern.split('.')) {
        if token != other || token.is_empty() {
            break;
        }
        common += token.len() + usize::from(common > 0);
    }
    common
}

/// What follows the first `len` bytes and a dot.
fn after(text: &str, len: usize) -> &str {
    let rest = &text[len..];
    rest.strip_prefix('.').unwrap_or(rest)
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

    /// Bytes that its patterns take. The tables grow by doubling, and may hold twice as much.
    pub fn used_bytes(&self) -> usize {
        (self.nodes.len() - self.free_nodes.len()) * size_of::<Node<V>>()
            + self.edges.len() * (size_of::<((u32, u32), u32)>() + 1)
            + self.tokens.len() * (size_of::<(Arc<str>, Token)>() + size_of::<Option<Arc<str>>>() + 1)
            + self.text_bytes
    }

    /// Bytes it holds.
    pub fn heap_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node<V>>()
            + self.edges.capacity() * (size_of::<((u32, u32), u32)>() + 1)
            + self.tokens.capacity() * (size_of::<(Arc<str>, Token)>() + 1)
            + self.names.capacity() * size_of::<Option<Arc<str>>>()
            + self.text_bytes
    }

    /// The value at exactly this pattern.
    pub fn get_mut(&mut self, pattern: &str) -> Option<&mut V> {
        let Path { node, .. } = self.find(pattern)?;
        self.nodes[node as usize].value.as_mut()
    }

    /// The node that ends exactly at this pattern, and those above it.
    fn find(&self, pattern: &str) -> Option<Path> {
        let mut path = Path { node: ROOT, parent: ROOT, above: ROOT };
        let mut left = pattern;
        while !left.is_empty() {
            let (token, rest) = split_first(left);
            let node = self.child(path.node, token)?;
            path = Path { node, parent: path.node, above: path.parent };
            let run = &*self.nodes[node as usize].run;
            if common_len(run, rest) != run.len() {
                return None;
            }
            left = after(rest, run.len());
        }
        Some(path)
    }

    fn child(&self, node: u32, token: &str) -> Option<u32> {
        let child = match token {
            "*" => self.nodes[node as usize].any,
            ">" => self.nodes[node as usize].rest,
            _ => return self.edges.get(&(node, self.tokens.get(token)?.number)).copied(),
        };
        (child != NONE).then_some(child)
    }

    /// The value at exactly this pattern, inserted by `make` if absent.
    pub fn get_or_insert_with(&mut self, pattern: &str, make: impl FnOnce() -> V) -> &mut V {
        let (mut node, mut left) = (ROOT, pattern);
        while !left.is_empty() {
            let (token, rest) = split_first(left);
            let Some(child) = self.child(node, token) else {
                let number = self.use_token(token);
                let leaf = self.insert_node(rest, number);
                self.link(node, leaf);
                node = leaf;
                break;
            };
            let common = common_len(&self.nodes[child as usize].run, rest);
            node = match common < self.nodes[child as usize].run.len() {
                true => self.split(node, child, common),
                false => child,
            };
            left = after(rest, common);
        }
        let value = &mut self.nodes[node as usize].value;
        self.len += usize::from(value.is_none());
        value.get_or_insert_with(make)
    }

    fn insert_node(&mut self, run: &str, token: u32) -> u32 {
        self.text_bytes += run.len();
        let node = Node::new(run, token);
        match self.free_nodes.pop() {
            Some(free) => {
                self.nodes[free as usize] = node;
                free
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        }
    }

    fn free_node(&mut self, node: u32) {
        let freed = std::mem::replace(&mut self.nodes[node as usize], Node::new("", NONE));
        self.text_bytes -= freed.run.len();
        self.free_nodes.push(node);
    }

    fn set_run(&mut self, node: u32, run: &str) {
        let run_len = self.nodes[node as usize].run.len();
        self.text_bytes = self.text_bytes - run_len + run.len();
        self.nodes[node as usize].run = run.into();
    }

    /// Makes a node a child of another, by its token.
    fn link(&mut self, parent: u32, child: u32) {
        let token = self.nodes[child as usize].token;
        let node = &mut self.nodes[parent as usize];
        node.children += 1;
        node.children_xor ^= child;
        match token {
            ANY => node.any = child,
            REST => node.rest = child,
            _ => drop(self.edges.insert((parent, token), child)),
        }
    }

    fn unlink(&mut self, parent: u32, child: u32) {
        let token = self.nodes[child as usize].token;
        let node = &mut self.nodes[parent as usize];
        node.children -= 1;
        node.children_xor ^= child;
        match token {
            ANY => node.any = NONE,
            REST => node.rest = NONE,
            _ => drop(self.edges.remove(&(parent, token))),
        }
    }

    /// Puts a node between a child and its parent, after the first `len` bytes of the child's run. The child keeps its index,
    /// and so its own edges.
    fn split(&mut self, parent: u32, child: u32, len: usize) -> u32 {
        self.unlink(parent, child);
        let run = std::mem::take(&mut self.nodes[child as usize].run);
        self.text_bytes -= run.len();
        let (token, rest) = split_first(after(&run, len));
        let upper = self.insert_node(&run[..len], self.nodes[child as usize].token);
        self.nodes[child as usize].token = self.use_token(token);
        self.set_run(child, rest);
        self.link(parent, upper);
        self.link(upper, child);
        upper
    }

    /// Joins a node without a value to its only child, which takes its place.
    fn join_to_child(&mut self, parent: u32, node: u32) {
        let child = self.nodes[node as usize].children_xor;
        let token = self.nodes[child as usize].token;
        let name = match token {
            ANY => "*",
            REST => ">",
            number => self.names[number as usize - 1].as_deref().unwrap_or_default(),
        };
        let run = join(&join(&self.nodes[node as usize].run, name), &self.nodes[child as usize].run);
        self.unlink(parent, node);
        self.unlink(node, child);
        self.release_token(token);
        self.nodes[child as usize].token = self.nodes[node as usize].token;
        self.set_run(child, &run);
        self.link(parent, child);
        self.free_node(node);
    }

    /// Counts one more edge with a token, and returns the token's number.
    fn use_token(&mut self, token: &str) -> u32 {
        match token {
            "*" => return ANY,
            ">" => return REST,
            _ => {}
        }
        if let Some(known) = self.tokens.get_mut(token) {
            known.uses += 1;
            return known.number;
        }
        let name: Arc<str> = token.into();
        let number = self.free_tokens.pop().unwrap_or_else(|| {
            self.names.push(None);
            self.names.len() as u32
        });
        self.names[number as usize - 1] = Some(name.clone());
        self.text_bytes += token.len();
        self.tokens.insert(name, Token { number, uses: 1 });
        number
    }

    /// Counts one edge less with a token.
    fn release_token(&mut self, number: u32) {
        if matches!(number, ANY | REST) {
            return;
        }
        let name = self.names[number as usize - 1].clone();
        let known = name.as_ref().and_then(|name| self.tokens.get_mut(name));
        let (Some(name), Some(known)) = (&name, known) else {
            return debug_assert!(false, "an edge's token is known");
        };
        known.uses -= 1;
        if known.uses == 0 {
            self.tokens.remove(name);
            self.names[number as usize - 1] = None;
            self.text_bytes -= name.len();
            self.free_tokens.push(number);
        }
    }

    /// Removes a pattern, and the nodes that only it needed.
    pub fn remove(&mut self, pattern: &str) -> Option<V> {
        let Path { node, parent, above } = self.find(pattern)?;
        let removed = self.nodes[node as usize].value.take()?;
        self.len -= 1;
        if self.len == 0 {
            // Gives the memory back.
            *self = PatternTrie::default();
            return Some(removed);
        }
        match self.nodes[node as usize].children {
            0 => {
                self.unlink(parent, node);
                self.release_token(self.nodes[node as usize].token);
                self.free_node(node);
                let Node { value, children, .. } = &self.nodes[parent as usize];
                if parent != ROOT && value.is_none() && *children == 1 {
                    self.join_to_child(above, parent);
                }
            }
            1 => self.join_to_child(parent, node),
            _ => {}
        }
        Some(removed)
    }

    /// Calls `found` with the value of every pattern that matches `topic`. Returns the work done: one unit for each node
    /// visited, and one for every eight tokens compared in its run.
    pub fn for_each_match(&self, topic: &str, mut found: impl FnMut(&V)) -> usize {
        if self.len == 0 {
            return 1;
        }
        let (starts, numbers) = ([0; NAME_TOKENS_MAX], [NONE; NAME_TOKENS_MAX]);
        let mut tokens = TopicTokens { topic, starts, numbers, len: 0 };
        let mut start = 0;
        for token in topic.split('.') {
            if tokens.len == NAME_TOKENS_MAX {
                debug_assert!(false, "a name is at most 255 bytes long");
                return 1;
            }
            tokens.starts[tokens.len] = start as u16;
            start += token.len() + 1;
            tokens.numbers[tokens.len] = self.tokens.get(token).map_or(NONE, |token| token.number);
            tokens.len += 1;
        }
        self.visit(ROOT, &tokens, 0, &mut found)
    }

    /// Visits a node whose edge has matched the topic up to its token `at`.
    fn visit(&self, node: u32, tokens: &TopicTokens<'_>, mut at: usize, found: &mut impl FnMut(&V)) -> usize {
        let Node { run, value, any, rest, .. } = &self.nodes[node as usize];
        let begin = at;
        if !run.is_empty() {
            for token in run.split('.') {
                let Some(topic) = tokens.text(at) else { return 1 };
                match token {
                    ">" => {
                        value.iter().for_each(found);
                        return 1;
                    }
                    "*" => {}
                    _ if token == topic => {}
                    _ => return 1 + (at - begin) / RUN_TOKENS_PER_UNIT,
                }
                at += 1;
            }
        }
        let mut visited = 1 + (at - begin) / RUN_TOKENS_PER_UNIT;
        if at == tokens.len {
            value.iter().for_each(found);
            return visited;
        }
        if *rest != NONE {
            self.nodes[*rest as usize].value.iter().for_each(&mut *found);
        }
        let token = tokens.numbers[at];
        if token != NONE
            && let Some(&child) = self.edges.get(&(node, token))
        {
            visited += self.visit(child, tokens, at + 1, found);
        }
        if *any != NONE {
            visited += self.visit(*any, tokens, at + 1, found);
        }
        visited
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tickcast_proto::pattern::matches;

    impl<V> PatternTrie<V> {
        /// Checks the invariants, by a walk from the root.
        fn check(&self) {
            let (mut reached, mut text, mut uses) = (0, 0, HashMap::<u32, u32>::new());
            let mut open = vec![ROOT];
            while let Some(at) = open.pop() {
                let node = &self.nodes[at as usize];
                reached += 1;
                text += node.run.len();
                let mut children: Vec<u32> =
                    [node.any, node.rest].into_iter().filter(|&child| child != NONE).collect();
                children.extend(
                    self.edges.iter().filter(|((parent, _), _)| *parent == at).map(|(_, child)| *child),
                );
                assert_eq!(children.len(), node.children as usize);
                assert_eq!(children.iter().fold(0, |xor, child| xor ^ child), node.children_xor);
                assert!(
                    at == ROOT || node.value.is_some() || node.children > 1,
                    "no node that could be joined"
                );
                for &child in &children {
                    *uses.entry(self.nodes[child as usize].token).or_default() += 1;
                }
                open.extend(children);
            }
            assert_eq!(reached, self.nodes.len() - self.free_nodes.len(), "unused nodes are forgotten");
            uses.retain(|token, _| !matches!(*token, ANY | REST));
            assert_eq!(uses.len(), self.tokens.len(), "unused tokens are forgotten");
            for (name, Token { number, uses: counted }) in &self.tokens {
                assert_eq!(uses.get(number), Some(counted), "{name}");
                assert_eq!(self.names[*number as usize - 1].as_ref(), Some(name));
                text += name.len();
            }
            assert_eq!(text, self.text_bytes);
        }
    }

    #[test]
    fn the_trie_agrees_with_matching_one_by_one() {
        let mut random = fastrand::Rng::with_seed(7);
        let tokens = ["a", "b", "c", "*"];
        for _ in 0..2_000 {
            let mut trie = PatternTrie::default();
            let mut patterns = std::collections::HashSet::new();
            for _ in 0..20 {
                let mut pattern: Vec<_> =
                    (0..random.usize(1..6)).map(|_| tokens[random.usize(..4)]).collect();
                if random.bool() {
                    pattern.push(">");
                }
                let pattern = pattern.join(".");
                trie.get_or_insert_with(&pattern, || pattern.clone());
                trie.check();
                patterns.insert(pattern);
            }
            for pattern in patterns.clone() {
                if random.bool() {
                    assert_eq!(trie.remove(&pattern), Some(pattern.clone()));
                    patterns.remove(&pattern);
                }
            }
            assert_eq!(trie.len(), patterns.len());
            trie.check();
            for pattern in &patterns {
                assert_eq!(trie.get_mut(pattern), Some(&mut pattern.clone()));
            }
            for _ in 0..20 {
                let topic: Vec<_> = (0..random.usize(1..8)).map(|_| tokens[random.usize(..3)]).collect();
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

    #[test]
    fn a_pattern_takes_little_more_than_its_text() {
        let mut trie = PatternTrie::default();
        // Pairs that differ only at their end, and alternate words and wildcards.
        for pair in 0..512 {
            for end in ["x", "y"] {
                let mut pattern = format!("{pair:x}");
                while pattern.len() < 250 {
                    pattern.push_str(".*.a");
                }
                trie.get_or_insert_with(&format!("{pattern}.{end}"), || 0u32);
            }
        }
        trie.check();
        let each = trie.heap_bytes() / trie.len();
        assert!(each < 450, "{each} bytes for a pattern of 252");
    }
}
