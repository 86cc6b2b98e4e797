//! What clients ask for, for sources that subscribe at their engine on demand.
//!
//! ```text
//!  first subscriber of a pattern on a shard, or the last one's end
//!      -> Demand of each source whose topics the pattern may match -> ring -> the source's thread, which adds up the shards
//! ```
//!
//! A shard reports each pattern once, however many of its sessions hold it, and only the part of it that lies within the
//! source's topics: `>` and `prices.>` are both `prices.>` to a source of `prices.>`. A pattern that comes and goes before
//! its report is in the ring is not reported at all, so what waits is bounded by the patterns, not by the changes.

use std::collections::{HashMap, VecDeque};

use crate::{
    ids::TenantId,
    limits::{DEMAND_PATTERNS_MAX, DEMAND_RING},
    mesh::{SinkWake, item_ring::ItemProducer},
    tenants::Exports,
    topic_key,
};
use tickcast_proto::pattern;

/// What shards know about a source that subscribes on demand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemandConfig {
    /// Number of the source.
    pub source: u32,
    /// The tenant of its topics.
    pub tenant: TenantId,
    /// Patterns of the topics that it subscribes to on demand.
    pub topics: Vec<Box<str>>,
}

/// A pattern that the sessions of a shard have begun or ceased to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemandChange {
    /// A pattern of names, which matches only topics of the source; `None`: all of them, because the shard holds more patterns
    /// than it reports.
    pub pattern: Option<Box<str>>,
    /// Whether a session holds it.
    pub is_wanted: bool,
}

/// A shard's end of the ring to a source that subscribes on demand.
#[derive(Debug)]
pub struct DemandLane {
    /// Number of the source.
    pub source: u32,
    /// The shard's changes.
    pub changes_out: ItemProducer<DemandChange>,
    /// Wakes the source's thread.
    pub wake: SinkWake,
}

/// A pattern that a source knows, or is about to.
#[derive(Debug, Default)]
struct Known {
    /// Patterns of the shard that are this one within the source's topics.
    holders: u32,
    /// Whether the source's thread was last told that it is wanted.
    is_reported: bool,
    /// Whether it is in the queue.
    is_queued: bool,
}

/// What the sessions of a shard ask of one source.
///
/// Invariant: the queue has each queued pattern once, and a pattern that is not queued is reported as it is.
#[derive(Debug)]
pub(crate) struct Demand {
    config: DemandConfig,
    /// Bound: [`DEMAND_PATTERNS_MAX`].
    known: HashMap<Box<str>, Known>,
    /// Patterns whose change is not staged yet.
    queue: VecDeque<Box<str>>,
    /// Patterns held that `known` had no room for. While there are any, all topics of the source are wanted.
    unlisted: usize,
    is_all_reported: bool,
    /// Changes that wait for room in the ring. Bound: [`DEMAND_RING`].
    staged: VecDeque<DemandChange>,
}

impl Demand {
    pub(crate) fn new(config: DemandConfig) -> Demand {
        Demand {
            config,
            known: HashMap::new(),
            queue: VecDeque::new(),
            unlisted: 0,
            is_all_reported: false,
            staged: VecDeque::new(),
        }
    }

    pub(crate) fn source(&self) -> u32 {
        self.config.source
    }

    /// Notes that the shard has its first subscriber of the pattern with this key, or that its last one has left.
    pub(crate) fn note(&mut self, key: &str, is_wanted: bool, exports: &Exports) {
        for pattern in self.within(key, exports) {
            match is_wanted {
                true => self.add(pattern),
                false => self.remove(&pattern),
            }
        }
    }

    /// The parts of a pattern that lie within the source's topics.
    fn within(&self, key: &str, exports: &Exports) -> Vec<Box<str>> {
        let (tenant, name) = topic_key::split(key);
        let DemandConfig { tenant: own, topics, .. } = &self.config;
        let mut parts: Vec<Box<str>> = Vec::new();
        let mut add = |name: &str| {
            let both = topics.iter().filter_map(|topics| pattern::intersection(name, topics));
            // No topic has such a name.
            let both = both.filter(|both| !pattern::is_exact(both) || !both.contains(['*', '>']));
            for part in both.map(String::into_boxed_str) {
                if !parts.contains(&part) {
                    parts.push(part);
                }
            }
        };
        if tenant == *own {
            add(name);
        } else if !exports.is_empty() && !pattern::is_exact(name) {
            // The key of an exact name has the tenant whose topic it is.
            let exported = exports.between(*own, tenant);
            exported.filter_map(|topics| pattern::intersection(name, topics)).for_each(|both| add(&both));
        }
        parts
    }

    fn add(&mut self, pattern: Box<str>) {
        let is_full = self.known.len() >= DEMAND_PATTERNS_MAX;
        if is_full && !self.known.contains_key(&pattern) {
            self.unlisted += 1;
            return;
        }
        let known = self.known.entry(pattern.clone()).or_default();
        known.holders += 1;
        if known.holders == 1 && !std::mem::replace(&mut known.is_queued, true) {
            self.queue.push_back(pattern);
        }
    }

    fn remove(&mut self, pattern: &str) {
        let Some(known) = self.known.get_mut(pattern).filter(|known| known.holders > 0) else {
            debug_assert!(self.unlisted > 0, "only what is held is given back");
            self.unlisted = self.unlisted.saturating_sub(1);
            return;
        };
        known.holders -= 1;
        if known.holders == 0 && !std::mem::replace(&mut known.is_queued, true) {
            self.queue.push_back(pattern.into());
        }
    }

    /// The next change that the source has to learn of, if any.
    fn next(&mut self) -> Option<DemandChange> {
        let all = self.unlisted > 0;
        if std::mem::replace(&mut self.is_all_reported, all) != all {
            return Some(DemandChange { pattern: None, is_wanted: all });
        }
        while let Some(pattern) = self.queue.pop_front() {
            let Some(known) = self.known.get_mut(&pattern) else {
                debug_assert!(false, "a queued pattern is known");
                continue;
            };
            known.is_queued = false;
            let is_wanted = known.holders > 0;
            let was_reported = std::mem::replace(&mut known.is_reported, is_wanted);
            if !is_wanted {
                self.known.remove(&pattern);
            }
            if is_wanted != was_reported {
                return Some(DemandChange { pattern: Some(pattern), is_wanted });
            }
        }
        if self.known.is_empty() && self.known.capacity() > DEMAND_RING {
            // Frees the memory.
            (self.known, self.queue) = (HashMap::new(), VecDeque::new());
        }
        None
    }

    /// The changes that wait for room in the ring.
    pub(crate) fn staged(&mut self) -> &mut VecDeque<DemandChange> {
        while self.staged.len() < DEMAND_RING
            && let Some(change) = self.next()
        {
            self.staged.push_back(change);
        }
        &mut self.staged
    }

    /// Bytes of the patterns.
    pub(crate) fn heap_bytes(&self) -> usize {
        let names: usize = self.known.keys().map(|pattern| pattern.len()).sum();
        2 * names
            + self.known.capacity() * size_of::<(Box<str>, Known)>()
            + self.queue.capacity() * size_of::<Box<str>>()
            + self.staged.capacity() * size_of::<DemandChange>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenants::{Export, Importers};

    const OWN: TenantId = TenantId(1);
    const OTHER: TenantId = TenantId(2);

    fn demand(topics: &[&str]) -> Demand {
        let topics = topics.iter().map(|&topics| topics.into()).collect();
        Demand::new(DemandConfig { source: 1, tenant: TenantId::DEFAULT, topics })
    }

    fn note(demand: &mut Demand, pattern: &str, is_wanted: bool) {
        demand.note(pattern, is_wanted, &Exports::default());
    }

    /// The changes since the last call: `+` for each pattern that is wanted now, `-` for each that is not any more.
    fn changes(demand: &mut Demand) -> Vec<String> {
        let changes = std::iter::from_fn(|| demand.next());
        let text = |change: DemandChange| {
            let sign = if change.is_wanted { '+' } else { '-' };
            format!("{sign}{}", change.pattern.as_deref().unwrap_or("all"))
        };
        changes.map(text).collect()
    }

    #[test]
    fn only_the_part_of_a_pattern_within_the_topics_of_the_source_is_wanted() {
        let mut demand = demand(&["prices.>", "status.*"]);
        for pattern in ["prices.eu", "rooms.1", "*.eu", "a*b"] {
            note(&mut demand, pattern, true);
        }
        assert_eq!(changes(&mut demand), ["+prices.eu", "+status.eu"], "`*.eu` asks for `prices.eu` too");
        note(&mut demand, "prices.eu", false);
        assert!(changes(&mut demand).is_empty());
        note(&mut demand, "*.eu", false);
        assert_eq!(changes(&mut demand), ["-prices.eu", "-status.eu"]);
        note(&mut demand, ">", true);
        note(&mut demand, "prices.>", true);
        assert_eq!(changes(&mut demand), ["+prices.>", "+status.*"], "each once");
        note(&mut demand, "prices.a*b", true);
        assert!(changes(&mut demand).is_empty(), "no topic has that name");
    }

    #[test]
    fn what_comes_and_goes_before_its_report_is_not_reported() {
        let mut demand = demand(&[">"]);
        for _ in 0..1_000 {
            note(&mut demand, "a", true);
            note(&mut demand, "a", false);
        }
        assert_eq!(demand.queue.len(), 1, "each pattern is queued once");
        assert!(changes(&mut demand).is_empty() && demand.known.is_empty());
        note(&mut demand, "a", true);
        assert_eq!(changes(&mut demand), ["+a"]);
        note(&mut demand, "a", false);
        note(&mut demand, "a", true);
        assert!(changes(&mut demand).is_empty(), "it was wanted all the time");
    }

    #[test]
    fn with_more_patterns_than_a_shard_reports_all_topics_are_wanted_until_the_others_have_gone() {
        let mut demand = demand(&[">"]);
        let names: Vec<String> = (0..DEMAND_PATTERNS_MAX).map(|n| format!("t.{n}")).collect();
        names.iter().for_each(|name| note(&mut demand, name, true));
        assert_eq!(changes(&mut demand).len(), DEMAND_PATTERNS_MAX);
        note(&mut demand, "one", true);
        note(&mut demand, "two", true);
        assert_eq!(changes(&mut demand), ["+all"]);
        note(&mut demand, "t.0", false);
        note(&mut demand, "one", false);
        assert_eq!(changes(&mut demand), ["-t.0"], "two is not listed");
        note(&mut demand, "two", false);
        assert_eq!(changes(&mut demand), ["-all"]);
        // Both have the same pattern, and only the second is listed.
        note(&mut demand, "t.0", true);
        note(&mut demand, "three", true);
        note(&mut demand, "t.1", false);
        assert_eq!(changes(&mut demand), ["+all", "+t.0", "-t.1"]);
        note(&mut demand, "three", true);
        note(&mut demand, "three", false);
        assert_eq!(changes(&mut demand), Vec::<String>::new(), "all are still wanted");
        note(&mut demand, "three", false);
        assert_eq!(changes(&mut demand), ["-all"]);
    }

    #[test]
    fn only_topics_that_the_tenant_of_the_source_exports_are_wanted_by_other_tenants() {
        let topics = vec!["prices.>".into()];
        let mut demand = Demand::new(DemandConfig { source: 1, tenant: OWN, topics });
        let export =
            |topics: &str| Export { owner: OWN, topics: topics.into(), to: Importers::Named(vec![OTHER]) };
        let exports = Exports::new(vec![export("*.public.>"), export("rooms.>")]).unwrap();
        let mut note = |tenant, pattern| {
            demand.note(&topic_key::of(tenant, pattern), true, &exports);
            changes(&mut demand)
        };
        assert!(note(TenantId::DEFAULT, ">").is_empty(), "nothing is exported to it");
        assert_eq!(note(OTHER, ">"), ["+prices.public.>"]);
        assert!(note(OTHER, "prices.eu").is_empty(), "a topic of its own");
        assert_eq!(note(OWN, ">"), ["+prices.>"]);
    }

    #[test]
    fn what_waits_for_room_in_the_ring_is_bounded() {
        let mut demand = demand(&[">"]);
        (0..DEMAND_RING + 10).for_each(|n| note(&mut demand, &format!("t.{n}"), true));
        assert_eq!(demand.staged().len(), DEMAND_RING);
        assert_eq!(demand.staged().len(), DEMAND_RING, "the ring has had no room");
        demand.staged().clear();
        assert_eq!(demand.staged().len(), 10);
    }
}
