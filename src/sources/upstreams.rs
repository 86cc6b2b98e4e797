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
//!
//! An engine may permit single patterns and refuse the whole prefix. Then nothing stands in for what is beyond a bound: it waits for room.

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

/// What wants a prefix only because it was beyond the bound of wildcards.
#[derive(Debug, Default)]
struct Crowded {
    /// Holders of all the patterns.
    holders: u32,
    /// The patterns, with their holders. Bound: what the shards report.
    patterns: BTreeMap<Box<str>, u32>,
}

/// The subscriptions of a source.
///
/// Invariant: each wanted pattern is covered by a subscription, or is in `pending` or `waiting`, or its subscription was refused.
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
    /// By prefix, those of its holders that hold a pattern with wildcards that was beyond the bound.
    crowded: HashMap<Box<str>, Crowded>,
    /// Prefixes that the engine has refused on this connection.
    refused: BTreeSet<Box<str>>,
    /// Wanted patterns that are beyond a bound while their prefix is refused. Bound: as of `wanted`.
    waiting: BTreeSet<Box<str>>,
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
            refused: BTreeSet::new(),
            waiting: BTreeSet::new(),
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
            && !self.has_room_for_wildcard();
        let pattern = match is_crowded.then(|| self.prefix_around(&pattern)).flatten() {
            Some(prefix) => {
                let crowded = self.crowded.entry(prefix.clone()).or_default();
                crowded.holders += 1;
                *crowded.patterns.entry(pattern).or_default() += 1;
                prefix
            }
            None => pattern,
        };
        self.hold(pattern, 1);
    }

    /// Adds holders to a pattern.
    fn hold(&mut self, pattern: Box<str>, holders: u32) {
        if let Some(wanted) = self.wanted.get_mut(&pattern) {
            if wanted.holders == 0 {
                self.lingering.remove(&(wanted.until_ns, pattern));
            }
            wanted.holders += holders;
            return;
        }
        if !pattern::is_exact(&pattern) {
            self.wanted_wildcards.insert(pattern.clone());
        }
        self.wanted.insert(pattern.clone(), Wanted { holders, until_ns: 0 });
        self.pending.push_back(pattern);
    }

    /// Whether one more pattern with wildcards may be wanted by itself. Refused prefixes take no room: no message is compared with them.
    fn has_room_for_wildcard(&self) -> bool {
        let refused = self.refused.iter().filter(|prefix| self.wanted_wildcards.contains(*prefix)).count();
        self.wanted_wildcards.len() - refused < self.wildcards_max
    }

    /// Lets patterns that want a refused prefix be wanted by themselves, as far as there is room.
    fn promote_crowded(&mut self) {
        while let Some((prefix, pattern, holders)) = self.next_crowded() {
            if let Some(wanted) = self.wanted.get_mut(&prefix) {
                debug_assert!(wanted.holders >= holders, "each of the crowded holds the prefix");
                wanted.holders -= holders;
                // It has no subscription that could linger.
                if wanted.holders == 0 {
                    self.forget(&prefix);
                }
            }
            self.hold(pattern, holders);
        }
    }

    /// Takes the first pattern that wants a refused prefix, if there is room for it: the prefix, the pattern and its holders.
    fn next_crowded(&mut self) -> Option<(Box<str>, Box<str>, u32)> {
        let prefix = self.refused.iter().find(|prefix| self.crowded.contains_key(*prefix))?.clone();
        let (pattern, _) = self.crowded.get(&prefix)?.patterns.first_key_value()?;
        if !self.wanted.contains_key(pattern) && !self.has_room_for_wildcard() {
            return None;
        }
        let crowded = self.crowded.get_mut(&prefix)?;
        let (pattern, holders) = crowded.patterns.pop_first()?;
        crowded.holders -= holders;
        if crowded.holders == 0 {
            self.crowded.remove(&prefix);
        }
        Some((prefix, pattern, holders))
    }

    /// Notes that a pattern is not wanted any more.
    fn forget(&mut self, pattern: &str) {
        self.wanted.remove(pattern);
        self.wanted_wildcards.remove(pattern);
        self.waiting.remove(pattern);
        self.is_stale = true;
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
                if !self.leave_crowd(&prefix, &pattern) {
                    return debug_assert!(false, "a shard gives back only what it has asked for");
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

    /// Takes one holder from a pattern that was beyond the bound of wildcards. Returns whether there was one.
    fn leave_crowd(&mut self, prefix: &str, pattern: &str) -> bool {
        let Some(crowded) = self.crowded.get_mut(prefix) else { return false };
        let Some(holders) = crowded.patterns.get_mut(pattern) else { return false };
        *holders -= 1;
        if *holders == 0 {
            crowded.patterns.remove(pattern);
        }
        crowded.holders -= 1;
        if crowded.holders == 0 {
            self.crowded.remove(prefix);
        }
        true
    }

    /// What to do next; `None`: nothing until [`Upstreams::due_ns`], or another change.
    pub fn next_step(&mut self, now_ns: u64) -> Option<Step> {
        while let Some((due_ns, _)) = self.lingering.first()
            && *due_ns <= now_ns
            && let Some((_, pattern)) = self.lingering.pop_first()
        {
            self.forget(&pattern);
        }
        self.promote_crowded();
        if let Some(step) = self.steps.pop_front() {
            return Some(step);
        }
        while let Some(pattern) = self.pending.pop_front() {
            if self.wanted.contains_key(&pattern) && !self.is_covered(&pattern) {
                self.subscribe(pattern);
                if let Some(step) = self.steps.pop_front() {
                    return Some(step);
                }
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

    /// Adds a subscription to a pattern, or at the bound to all of its prefix. If that is refused, the pattern waits.
    fn subscribe(&mut self, pattern: Box<str>) {
        if self.refused.contains(&pattern) {
            return;
        }
        let is_full = self.active.len() >= self.subscriptions_max
            || !pattern::is_exact(&pattern) && self.wildcards.len() >= self.wildcards_max;
        let (pattern, is_whole) = match is_full.then(|| self.prefix_around(&pattern)).flatten() {
            Some(prefix) if self.refused.contains(&prefix) => {
                self.waiting.insert(pattern);
                return;
            }
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
            self.pending.extend(std::mem::take(&mut self.waiting));
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
            // What waits for room, or has a refused prefix, is not served by what it merely overlaps: that may end, and make the room.
            let is_unserved = || {
                (self.waiting.contains(wanted) || self.refused.contains(wanted))
                    && !pattern::covers(pattern, wanted)
            };
            if !pattern::overlaps(pattern, wanted) || by_older() || is_unserved() {
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
        self.refused.clear();
        self.waiting.clear();
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
        let holders = self.crowded.get(prefix).map(|crowded| crowded.holders);
        holders.is_some() && self.wanted.get(prefix).map(|wanted| wanted.holders) == holders
    }

    /// Number of subscriptions made and ended so far.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Notes that the engine has refused a subscription. It is tried again with the next connection, or when the pattern is wanted
    /// anew; a whole prefix only with the next connection, because it would stand in for each pattern beyond a bound again.
    pub fn handle_refused(&mut self, id: SubscriptionId) {
        if let Some(pattern) = self.active.remove(&id) {
            self.by_pattern.remove(&pattern);
            self.wildcards.remove(&id);
            // It had covered them.
            let is_covered = |wanted: &str| *wanted != *pattern && pattern::covers(&pattern, wanted);
            let covered = self.wanted.keys().filter(|wanted| is_covered(wanted));
            self.pending.extend(covered.cloned());
            self.pending.extend(std::mem::take(&mut self.waiting));
            if self.prefixes.contains(&pattern) {
                self.refused.insert(pattern);
            }
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
