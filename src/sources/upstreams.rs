//! Decides what a source that subscribes on demand subscribes to at its engine, from what the shards' sessions ask for. Plain data:
//! time is an argument.
//!
//! ```text
//!  DemandChange of each shard -> wanted patterns, each until `linger` after its last holder -> subscriptions
//!
//!  a pattern within a subscription  needs none of its own
//!  a pattern beyond a bound         all of the prefix around it is subscribed to
//!  a subscription nobody wants      ends, once what is wanted within it has subscriptions of its own
//! ```
//!
//! Subscriptions may overlap: the engine then delivers a message once for each. It is taken from the oldest one that matches, and
//! only from that. So a topic gets its ticks from one subscription for as long as that lives; when it ends, the lives of its topics end
//! at their homes, because ticks may be lost before another one brings them. A client that subscribes to more than others have never
//! interrupts their topics: a subscription that is older than a wanted one it overlaps stays as long as that, wanted or not.
//!
//! Each message is compared with the wildcards that are older than its subscription, and each change with all of them. So of patterns
//! with wildcards, only [`SOURCE_WILDCARDS_MAX`] are wanted by themselves; what is beyond wants its whole prefix until it is given back.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::limits::{SOURCE_ENDING_MAX, SOURCE_SUBSCRIPTIONS_MAX, SOURCE_WILDCARDS_MAX};
use tickcast_core::{demand::DemandChange, ids::UpstreamId};
use tickcast_proto::pattern;

/// A subscription on demand of any source. A larger one is younger. From 1; 0: none. Never used again while the process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriptionId(u64);

/// The last number given to a subscription, by any source.
static NUMBERS: AtomicU64 = AtomicU64::new(0);

impl SubscriptionId {
    /// No subscription on demand.
    pub const NONE: SubscriptionId = SubscriptionId(0);

    fn next() -> SubscriptionId {
        SubscriptionId(NUMBERS.fetch_add(1, Relaxed) + 1)
    }

    /// Its number at the homes of its topics, where a tick has 32 bits for it: they repeat after 2^32 - 1 subscriptions. If both
    /// holders of a number live then, the end of one also ends the lives of the other's topics, which is announced like every end.
    /// A topic passes from one to the other only through such an end.
    pub fn upstream(self) -> UpstreamId {
        match self.0.checked_sub(1) {
            Some(before) => UpstreamId((before % u64::from(u32::MAX)) as u32 + 1),
            None => UpstreamId::NONE,
        }
    }
}

/// What the source has to do at its engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Subscribe to a pattern of topics.
    Subscribe {
        /// The number of the subscription.
        id: SubscriptionId,
        /// The pattern, within one of the source's prefixes.
        pattern: Box<str>,
        /// It is a whole prefix, because more patterns are wanted than a bound allows.
        is_whole: bool,
    },
    /// Unsubscribe, and call [`Upstreams::handle_settled`] once every message that came before has been taken.
    Unsubscribe(SubscriptionId, Box<str>),
    /// The subscription is over: end the lives of its topics.
    End(SubscriptionId),
}

/// A pattern that is wanted.
#[derive(Clone, Copy, Debug, Default)]
struct Wanted {
    /// Number of shards that want it.
    holders: u32,
    /// Without holders: when it is not wanted any more.
    until_ns: u64,
}

/// The subscriptions of a source.
///
/// Invariant: each wanted pattern is covered by a subscription, or is in `pending`, or its subscription was refused.
#[derive(Debug)]
pub struct Upstreams {
    /// Patterns of all its topics.
    prefixes: Vec<Box<str>>,
    linger_ns: u64,
    subscriptions_max: usize,
    wildcards_max: usize,
    /// Bound: what the shards report.
    wanted: HashMap<Box<str>, Wanted>,
    /// Those with wildcards. Bound: `wildcards_max`, and the prefixes.
    wanted_wildcards: HashSet<Box<str>>,
    /// By prefix, how many of its holders hold a pattern with wildcards that was beyond the bound.
    crowded: HashMap<Box<str>, u32>,
    /// When those without holders are not wanted any more.
    lingering: BTreeSet<(u64, Box<str>)>,
    /// Subscriptions, the oldest first. Bound: `subscriptions_max` and the prefixes.
    active: BTreeMap<SubscriptionId, Box<str>>,
    by_pattern: HashMap<Box<str>, SubscriptionId>,
    /// Those with wildcards. Bound: as of `wanted_wildcards`.
    wildcards: BTreeMap<SubscriptionId, Box<str>>,
    /// Subscriptions that end at the engine. Each is still the one that brings its topics: copies of its last messages may come by
    /// others. They are dropped, and with them what is new in this time. Bound: [`SOURCE_ENDING_MAX`].
    ending: VecDeque<(SubscriptionId, Box<str>)>,
    /// Patterns that may need a subscription.
    pending: VecDeque<Box<str>>,
    steps: VecDeque<Step>,
    /// Some subscription may not be needed any more.
    is_stale: bool,
    changes: u64,
}

impl Upstreams {
    /// Creates the state of a source whose topics match these patterns.
    pub fn new(prefixes: Vec<Box<str>>, linger_ns: u64) -> Upstreams {
        Upstreams {
            prefixes,
            linger_ns,
            subscriptions_max: SOURCE_SUBSCRIPTIONS_MAX,
            wildcards_max: SOURCE_WILDCARDS_MAX,
            wanted: HashMap::new(),
            wanted_wildcards: HashSet::new(),
            crowded: HashMap::new(),
            lingering: BTreeSet::new(),
            active: BTreeMap::new(),
            by_pattern: HashMap::new(),
            wildcards: BTreeMap::new(),
            ending: VecDeque::new(),
            pending: VecDeque::new(),
            steps: VecDeque::new(),
            is_stale: false,
            changes: 0,
        }
    }

    /// Handles what a shard reports.
    pub fn handle_change(&mut self, change: DemandChange, now_ns: u64) {
        let patterns = match change.pattern {
            Some(pattern) => vec![pattern],
            None => self.prefixes.clone(),
        };
        for pattern in patterns {
            match change.is_wanted {
                true => self.want(pattern),
                false => self.unwant(pattern, now_ns),
            }
        }
    }

    fn want(&mut self, pattern: Box<str>) {
        let is_crowded = !self.wanted.contains_key(&pattern)
            && !pattern::is_exact(&pattern)
            && self.wanted_wildcards.len() >= self.wildcards_max;
        let pattern = match is_crowded.then(|| self.prefix_around(&pattern)).flatten() {
            Some(prefix) => {
                *self.crowded.entry(prefix.clone()).or_default() += 1;
                prefix
            }
            None => pattern,
        };
        if let Some(wanted) = self.wanted.get_mut(&pattern) {
            wanted.holders += 1;
            if wanted.holders == 1 {
                self.lingering.remove(&(wanted.until_ns, pattern));
            }
            return;
        }
        if !pattern::is_exact(&pattern) {
            self.wanted_wildcards.insert(pattern.clone());
        }
        self.wanted.insert(pattern.clone(), Wanted { holders: 1, until_ns: 0 });
        self.pending.push_back(pattern);
    }

    /// The prefix that a pattern is part of; `None`: it is one itself.
    fn prefix_around(&self, pattern: &str) -> Option<Box<str>> {
        let prefix = self.prefixes.iter().find(|prefix| pattern::covers(prefix, pattern));
        debug_assert!(prefix.is_some(), "what is wanted lies within a prefix");
        prefix.filter(|prefix| ***prefix != *pattern).cloned()
    }

    fn unwant(&mut self, pattern: Box<str>, now_ns: u64) {
        let is_held = self.wanted.get(&pattern).is_some_and(|wanted| wanted.holders > 0);
        let pattern = match (!is_held).then(|| self.prefix_around(&pattern)).flatten() {
            Some(prefix) => {
                // It was beyond the bound. If the pattern is wanted by itself for another shard, holders are only counted elsewhere.
                match self.crowded.get_mut(&prefix) {
                    Some(1) => _ = self.crowded.remove(&prefix),
                    Some(crowded) => *crowded -= 1,
                    None => return debug_assert!(false, "a shard gives back only what it has asked for"),
                }
                prefix
            }
            None => pattern,
        };
        let Some(wanted) = self.wanted.get_mut(&pattern).filter(|wanted| wanted.holders > 0) else {
            return debug_assert!(false, "a shard gives back only what it has asked for");
        };
        wanted.holders -= 1;
        if wanted.holders == 0 {
            wanted.until_ns = now_ns.saturating_add(self.linger_ns);
            self.lingering.insert((wanted.until_ns, pattern));
        }
    }

    /// What to do next; `None`: nothing until [`Upstreams::due_ns`], or another change.
    pub fn next_step(&mut self, now_ns: u64) -> Option<Step> {
        while let Some((due_ns, _)) = self.lingering.first()
            && *due_ns <= now_ns
            && let Some((_, pattern)) = self.lingering.pop_first()
        {
            self.wanted.remove(&pattern);
            self.wanted_wildcards.remove(&pattern);
            self.is_stale = true;
        }
        if let Some(step) = self.steps.pop_front() {
            return Some(step);
        }
        while let Some(pattern) = self.pending.pop_front() {
            if self.wanted.contains_key(&pattern) && !self.is_covered(&pattern) {
                self.subscribe(pattern);
                return self.steps.pop_front();
            }
        }
        if self.is_stale {
            self.end_unneeded();
        }
        self.steps.pop_front()
    }

    /// Notes that every message that came before the end of a subscription, by whichever subscription, has been taken: it is over.
    pub fn handle_settled(&mut self, id: SubscriptionId) {
        if let Some(at) = self.ending.iter().position(|&(ending, _)| ending == id) {
            self.ending.remove(at);
            self.steps.push_back(Step::End(id));
        }
    }

    /// When [`Upstreams::next_step`] has something to do without a change.
    pub fn due_ns(&self) -> Option<u64> {
        self.lingering.first().map(|&(due_ns, _)| due_ns)
    }

    /// Whether a subscription covers a pattern.
    fn is_covered(&self, pattern: &str) -> bool {
        self.by_pattern.contains_key(pattern)
            || self.wildcards.values().any(|wildcard| pattern::covers(wildcard, pattern))
    }

    /// Adds a subscription to a pattern, or at the bound to all of its prefix.
    fn subscribe(&mut self, pattern: Box<str>) {
        let is_full = self.active.len() >= self.subscriptions_max
            || !pattern::is_exact(&pattern) && self.wildcards.len() >= self.wildcards_max;
        let (pattern, is_whole) = match is_full.then(|| self.prefix_around(&pattern)).flatten() {
            Some(prefix) => (prefix, true),
            None => {
                let is_whole = self.is_only_crowded(&pattern);
                (pattern, is_whole)
            }
        };
        let id = SubscriptionId::next();
        self.changes += 1;
        self.active.insert(id, pattern.clone());
        self.by_pattern.insert(pattern.clone(), id);
        if !pattern::is_exact(&pattern) {
            self.wildcards.insert(id, pattern.clone());
        }
        self.steps.push_back(Step::Subscribe { id, pattern, is_whole });
    }

    /// Ends subscriptions that nobody wants, as many as may end at a time.
    fn end_unneeded(&mut self) {
        let unwanted = self.active.iter().filter(|(_, pattern)| !self.wanted.contains_key(&***pattern));
        let unwanted: Vec<(SubscriptionId, Box<str>)> =
            unwanted.map(|(&id, pattern)| (id, pattern.clone())).collect();
        for (id, pattern) in unwanted {
            if self.ending.len() >= SOURCE_ENDING_MAX {
                return;
            }
            let Some(heirs) = self.heirs(id, &pattern) else { continue };
            self.active.remove(&id);
            self.by_pattern.remove(&pattern);
            self.wildcards.remove(&id);
            for heir in heirs {
                if !self.is_covered(&heir) {
                    self.subscribe(heir);
                }
            }
            self.changes += 1;
            self.ending.push_back((id, pattern.clone()));
            self.steps.push_back(Step::Unsubscribe(id, pattern));
        }
        self.is_stale = false;
    }

    /// The wanted patterns that get their ticks from a subscription and need others if it ends; `None`: it must not end.
    fn heirs(&self, id: SubscriptionId, pattern: &str) -> Option<Vec<Box<str>>> {
        let mut heirs: Vec<Box<str>> = Vec::new();
        let mut visit = |wanted: &str| {
            let by_older = || {
                self.by_pattern.get(wanted).is_some_and(|&other| other < id)
                    || self.wildcards.range(..id).any(|(_, older)| pattern::covers(older, wanted))
            };
            if !pattern::overlaps(pattern, wanted) || by_older() {
                return true;
            }
            heirs.push(wanted.into());
            // Another subscription wants the same topics, which it would have to take over.
            !self.by_pattern.contains_key(wanted)
        };
        let may_end = match pattern::is_exact(pattern) {
            true => self.wanted_wildcards.iter().all(|wanted| visit(wanted)),
            false => self.wanted.keys().all(|wanted| visit(wanted)),
        };
        // Some room is kept, so that it does not become too many again at once.
        let fits = |others: usize, heirs: usize, max: usize| heirs == 0 || others + heirs <= max - max / 8;
        let wildcards = heirs.iter().filter(|heir| !pattern::is_exact(heir)).count();
        let other_wildcards = self.wildcards.len() - usize::from(!pattern::is_exact(pattern));
        let fits = fits(self.active.len() - 1, heirs.len(), self.subscriptions_max)
            && fits(other_wildcards, wildcards, self.wildcards_max);
        (may_end && fits).then_some(heirs)
    }

    /// Begins anew with a connection that has no subscription: the caller subscribes to those of [`Upstreams::active`].
    pub fn handle_connection(&mut self) {
        // An attempt to connect may have failed before they were taken.
        self.steps.retain(|step| matches!(step, Step::End(_)));
        self.steps.extend(self.ending.drain(..).map(|(id, _)| Step::End(id)));
        self.pending = self.wanted.keys().cloned().collect();
        self.is_stale = true;
    }

    /// The subscriptions at the engine, the oldest first.
    pub fn active(&self) -> impl Iterator<Item = (SubscriptionId, &str)> {
        self.active.iter().map(|(&id, pattern)| (id, &**pattern))
    }

    /// Number of subscriptions at the engine.
    pub fn len(&self) -> usize {
        self.active.len()
    }

    /// Whether there is no subscription at the engine.
    pub fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    /// Number of prefixes that are subscribed to as a whole although nobody wants all of them.
    pub fn whole_len(&self) -> usize {
        let is_whole = |prefix: &&str| {
            self.by_pattern.contains_key(*prefix)
                && (!self.wanted.contains_key(*prefix) || self.is_only_crowded(prefix))
        };
        self.prefixes.iter().map(|prefix| &**prefix).filter(is_whole).count()
    }

    /// Whether a prefix is held only for patterns with wildcards that were beyond the bound.
    fn is_only_crowded(&self, prefix: &str) -> bool {
        let crowded = self.crowded.get(prefix);
        crowded
            .is_some_and(|&crowded| self.wanted.get(prefix).is_some_and(|wanted| wanted.holders == crowded))
    }

    /// Number of subscriptions made and ended so far.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Notes that the engine has refused a subscription. It is tried again with the next connection, or when the pattern is wanted
    /// anew.
    pub fn handle_refused(&mut self, id: SubscriptionId) {
        if let Some(pattern) = self.active.remove(&id) {
            self.by_pattern.remove(&pattern);
            self.wildcards.remove(&id);
            // It had covered them.
            let is_covered = |wanted: &str| *wanted != *pattern && pattern::covers(&pattern, wanted);
            let covered = self.wanted.keys().filter(|wanted| is_covered(wanted));
            self.pending.extend(covered.cloned());
        }
    }

    /// Whether a message of a topic that came by a subscription is to be taken: it is the oldest one that matches.
    pub fn takes(&self, id: SubscriptionId, topic: &str) -> bool {
        let is_older =
            |&(other, pattern): &(SubscriptionId, &str)| other < id && pattern::matches(pattern, topic);
        let mut ending = self.ending.iter().map(|(other, pattern)| (*other, &**pattern));
        let is_own = match self.active.get(&id) {
            // The glob of Redis may match more than the pattern.
            Some(pattern) => pattern::matches(pattern, topic),
            None => ending.clone().any(|(other, pattern)| other == id && pattern::matches(pattern, topic)),
        };
        is_own
            && self.by_pattern.get(topic).is_none_or(|&other| other >= id)
            && !self.wildcards.range(..id).any(|(_, pattern)| pattern::matches(pattern, topic))
            && !ending.any(|other| is_older(&other))
    }
}

#[cfg(test)]
mod tests;
