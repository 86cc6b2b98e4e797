//! The egress side of topics: which sessions of this shard take which, and the logs they share.

mod conflation;
mod egress_logs;
mod recovery;
mod topic;

use std::collections::{HashMap, VecDeque};

use self::topic::{EgressTopic, Group};
pub use self::{
    conflation::{CloseBudget, PaceTimer},
    egress_logs::{EgressLogs, LogIndex},
    recovery::HistoryRequest,
};
use crate::{
    home::last_value::KeysBudget,
    ids::SlotId,
    pattern_trie::PatternTrie,
    placement,
    session::table::{Offered, Sessions},
};
use tickcast_proto::{
    frame::Frame,
    ids::{ShardId, TopicId},
    pattern,
    subscription::{Delivery, Policy, Position, Rules},
};

/// A pattern that some session of this shard holds.
#[derive(Debug)]
struct PatternEntry {
    pattern: Box<str>,
    /// Slots of the sessions for which it is live.
    members: Vec<SlotId>,
    /// Sessions to acknowledge, once every home is ready and their turn comes.
    pending: VecDeque<PendingSubscriber>,
    /// Homes that have not said they are ready.
    homes_pending: u16,
    /// Stands in `Fanout::activating`.
    activating: bool,
    /// Names this entry to the homes.
    request: u32,
}

/// A session that waits for its subscription to go live.
#[derive(Clone, Copy, Debug)]
struct PendingSubscriber {
    slot: SlotId,
    /// The client's request, to acknowledge.
    request: u32,
}

/// Where a subscription begins, once it is live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartFrom {
    /// With the next tick.
    #[default]
    Live,
    /// With the newest ticks.
    Latest,
    /// After a position.
    After(Position),
    /// After the places that the session has named, by topic; with what is kept where it named none.
    SavedPositions,
}

/// A pattern a session holds. 48 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Subscription {
    /// How its ticks are to come.
    pub delivery: Delivery,
    /// Where it begins.
    pub start_from: StartFrom,
    /// The pattern's entry.
    pub entry: u32,
    /// Where the session stands in the entry's members; `None` until it is live.
    pub position: Option<u32>,
}

const _: () = assert!(size_of::<Subscription>() <= 48, "the docs of Subscription say how large it is");

/// What is to be asked of the homes for a pattern that is new here.
#[derive(Debug, PartialEq, Eq)]
pub struct Interest {
    /// Names the interest to the homes.
    pub request: u32,
    /// The pattern is a topic's name: only that topic's home is asked.
    pub exact: bool,
}

/// A subscription that [`Fanout::subscribe`] has entered.
#[derive(Debug, PartialEq, Eq)]
pub struct Registration {
    /// The pattern's entry.
    pub entry: u32,
    /// What to ask of the homes, if this is the first subscription to the pattern here.
    pub interest: Option<Interest>,
}

/// What [`Fanout::unsubscribe`] did.
#[derive(Debug, PartialEq, Eq)]
pub struct Unsubscribed {
    /// The pattern, if no session here holds it any more: the homes must forget it.
    pub pattern_gone: Option<Box<str>>,
    /// Topics and subscriptions visited.
    pub visited: usize,
}

/// The topics that a session takes and a pattern matches.
#[derive(Debug)]
struct Affected {
    topics: Vec<TopicId>,
    /// Memberships visited to find them.
    visited: usize,
}

/// A session whose subscription goes live now: it is to be acknowledged, then attached.
#[derive(Clone, Copy, Debug)]
pub struct Activation {
    /// The pattern's entry.
    pub entry: u32,
    /// The session.
    pub slot: SlotId,
    /// Its request.
    pub request: u32,
}

/// Patterns, topics and their members on one shard.
///
/// Invariant: a session is in a topic's members exactly once while at least one of its live patterns matches it, and
/// its membership counts these patterns.
/// Invariant: an entry whose homes are ready and that has pending subscribers is in `activating`.
#[derive(Debug)]
pub struct Fanout {
    shard: ShardId,
    shards: u16,
    epoch: u64,
    settings: Settings,
    patterns: PatternTrie<u32>,
    /// Bound: sessions x `subscriptions_per_session_max`.
    entries: Vec<Option<PatternEntry>>,
    free: Vec<u32>,
    by_request: HashMap<u32, u32>,
    next_request: u32,
    /// Entries with sessions that can go live. Bound: the entries.
    activating: VecDeque<u32>,
    /// By home and local index, so that a tick finds its topic without hashing. Bound: `topics_max`.
    topics: Vec<Vec<Option<Box<EgressTopic>>>>,
    by_name: HashMap<Box<str>, TopicId>,
    /// Sessions that ask for history. Bound: one entry a session.
    pulls: VecDeque<SlotId>,
    /// Ticks that are to come later. Bound: one entry a paced membership, until taken.
    pace_timers: Vec<PaceTimer>,
    tally: DeliveryCounts,
    scratch: Vec<u8>,
}

/// What an operator may set of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of a topic whose subscriber has not said.
    pub policies: Rules<Policy>,
    /// The newest ticks by key of all topics taken here.
    pub keys: KeysBudget,
    /// Bytes waiting for a session before what yields is taken out.
    pub behind_bytes: usize,
}

/// What became of ticks since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeliveryCounts {
    /// Queued to subscribers.
    pub queued: u64,
    /// Taken out of outboxes again: counted once more as conflated, dropped, or queued anew.
    pub evicted: u64,
    /// Told as conflated.
    pub conflated: u64,
    /// Told as lost.
    pub dropped: u64,
}

impl Fanout {
    /// Nothing known, nothing held.
    pub fn new(shard: ShardId, shards: u16, epoch: u64, settings: Settings) -> Fanout {
        Fanout {
            shard,
            shards,
            epoch,
            settings,
            patterns: PatternTrie::default(),
            entries: Vec::new(),
            free: Vec::new(),
            by_request: HashMap::new(),
            next_request: 1,
            activating: VecDeque::new(),
            topics: (0..shards).map(|_| Vec::new()).collect(),
            by_name: HashMap::new(),
            pulls: VecDeque::new(),
            pace_timers: Vec::new(),
            tally: DeliveryCounts::default(),
            scratch: Vec::new(),
        }
    }

    /// Sets what is to be done for subscribers that have not said, from their next subscription on, and the bounds. A pass
    /// over the topics where `policies` are others than before.
    pub fn set_policies(&mut self, policies: Rules<Policy>, behind_bytes: usize, keys_max: usize) {
        if policies != self.settings.policies {
            for topic in self.topics.iter_mut().flatten().flatten() {
                topic.policy = policies.of(&topic.info.name);
            }
        }
        (self.settings.policies, self.settings.behind_bytes) = (policies, behind_bytes);
        self.settings.keys.keys_max = keys_max;
    }

    /// Topics known here.
    pub fn topics_len(&self) -> usize {
        self.by_name.len()
    }

    /// What became of ticks since this was last asked.
    pub fn take_counts(&mut self) -> DeliveryCounts {
        std::mem::take(&mut self.tally)
    }

    /// Patterns held here.
    pub fn patterns_len(&self) -> usize {
        self.patterns.len()
    }

    /// Sessions that take a topic here.
    pub fn subscribers_len(&self, id: TopicId) -> usize {
        let topic = topic_ref(&self.topics, id, self.shards);
        topic.map_or(0, EgressTopic::members_len)
    }

    /// The entry of a pattern somebody here holds.
    pub fn entry_of(&mut self, pattern: &str) -> Option<u32> {
        self.patterns.get_mut(pattern).copied()
    }

    /// Enters a session's subscription; the session must not hold the pattern already. It goes live through
    /// [`Fanout::next_activation`], once every home is ready. Returns what to ask of the homes if it is the first.
    pub fn subscribe(&mut self, slot: SlotId, request: u32, pattern: &str) -> Registration {
        if let Some(index) = self.entry_of(pattern)
            && let Some(entry) = self.entries[index as usize].as_mut()
        {
            entry.pending.push_back(PendingSubscriber { slot, request });
            if entry.homes_pending == 0 && !std::mem::replace(&mut entry.activating, true) {
                self.activating.push_back(index);
            }
            self.invariants(Some(index));
            return Registration { entry: index, interest: None };
        }
        let exact = pattern::is_exact(pattern);
        let interest = Interest { request: self.next_request, exact };
        self.next_request = self.next_request.wrapping_add(1).max(1);
        let entry = PatternEntry {
            pattern: pattern.into(),
            members: Vec::new(),
            pending: VecDeque::from([PendingSubscriber { slot, request }]),
            homes_pending: if exact { 1 } else { self.shards },
            activating: false,
            request: interest.request,
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        self.entries[index as usize] = Some(entry);
        self.patterns.get_or_insert_with(pattern, || index);
        self.by_request.insert(interest.request, index);
        self.invariants(Some(index));
        Registration { entry: index, interest: Some(interest) }
    }

    /// A home has opened every topic that matches. Once all have, the waiters can go live.
    pub fn handle_ready(&mut self, request: u32) {
        let Some(&index) = self.by_request.get(&request) else { return };
        let Some(entry) = self.entries[index as usize].as_mut() else { return };
        entry.homes_pending -= 1;
        if entry.homes_pending == 0 && !std::mem::replace(&mut entry.activating, true) {
            self.activating.push_back(index);
        }
        self.invariants(Some(index));
    }

    /// Whether [`Fanout::next_activation`] has one.
    pub fn has_activations(&self) -> bool {
        !self.activating.is_empty()
    }

    /// The next session whose subscription goes live, in the order they can.
    pub fn next_activation(&mut self) -> Option<Activation> {
        while let Some(&index) = self.activating.front() {
            // An entry may have been given up, and even made anew, since it was queued.
            if let Some(entry) =
                self.entries[index as usize].as_mut().filter(|entry| entry.homes_pending == 0)
            {
                if let Some(PendingSubscriber { slot, request }) = entry.pending.pop_front() {
                    return Some(Activation { entry: index, slot, request });
                }
                entry.activating = false;
            }
            self.activating.pop_front();
        }
        None
    }

    /// The pattern of an entry.
    pub fn pattern(&self, entry: u32) -> &str {
        self.entries[entry as usize].as_ref().map_or("", |entry| &entry.pattern)
    }

    /// Makes a live subscription take effect: the session joins every matching topic, each announced to it first. A
    /// look at each topic known here for a wildcard, one look-up for a name. Returns the topics looked at.
    pub fn attach(&mut self, live: Activation, sessions: &mut Sessions, logs: &mut EgressLogs) -> usize {
        let Some(entry) = self.entries[live.entry as usize].as_mut() else { return 0 };
        let Some(session) = sessions.open_mut(live.slot) else { return 0 };
        let held = session.subscriptions.iter_mut().find(|held| held.entry == live.entry);
        let Some(held) = held else { return 0 };
        held.position = Some(entry.members.len() as u32);
        let Subscription { delivery, start_from, .. } = *held;
        entry.members.push(live.slot);
        let pattern = entry.pattern.clone();
        let looked = if pattern::is_exact(&pattern) {
            if let Some(&id) = self.by_name.get(&pattern) {
                self.join(id, live.slot, delivery, start_from, sessions, logs);
            }
            1
        } else {
            for home in 0..self.topics.len() {
                for local in 0..self.topics[home].len() {
                    let found = self.topics[home][local].as_ref();
                    let Some(topic) = found.filter(|topic| pattern::matches(&pattern, &topic.info.name))
                    else {
                        continue;
                    };
                    self.join(topic.info.id, live.slot, delivery, start_from, sessions, logs);
                    self.evict_overflowing(sessions, logs);
                }
            }
            self.by_name.len()
        };
        self.answer_unknown_positions(&pattern, start_from, live.slot, sessions);
        self.queue_pull(live.slot, sessions);
        self.evict_overflowing(sessions, logs);
        self.invariants(Some(live.entry));
        looked
    }

    fn join(
        &mut self,
        id: TopicId,
        slot: SlotId,
        delivery: Delivery,
        start_from: StartFrom,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        let backlog = self.backlog(id, slot, start_from, sessions);
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else { return };
        if !topic.join(slot, delivery, backlog, sessions, logs) {
            topic.release_paced(slot, sessions);
        }
    }

    /// Changes how a live subscription is delivered. Returns the topics and subscriptions looked at.
    pub fn update(&mut self, entry: u32, slot: SlotId, delivery: Delivery, sessions: &mut Sessions) -> usize {
        let Some(session) = sessions.open_mut(slot) else { return 1 };
        let Some(held) = session.subscriptions.iter_mut().find(|held| held.entry == entry) else { return 1 };
        held.delivery = delivery;
        if held.position.is_none() {
            // It takes nothing yet: what its topics come by another subscription stays as it is.
            return 1;
        }
        let Affected { topics, mut visited } = self.affected_by(entry, slot, sessions);
        for &id in &topics {
            visited += self.merge_deliveries(id, slot, Some(delivery), sessions);
        }
        visited
    }

    /// The topics that a session takes and an entry's pattern matches, and how many were looked at: a wildcard goes over
    /// the session's memberships.
    fn affected_by(&self, entry: u32, slot: SlotId, sessions: &Sessions) -> Affected {
        let entry = self.entries[entry as usize].as_ref();
        let Some((entry, session)) = entry.zip(sessions.get(slot)) else {
            return Affected { topics: Vec::new(), visited: 1 };
        };
        if pattern::is_exact(&entry.pattern) {
            let taken = self.by_name.get(&entry.pattern).filter(|id| session.memberships.contains_key(id));
            return Affected { topics: taken.copied().into_iter().collect(), visited: 1 };
        }
        let of_pattern = |id: &&TopicId| {
            topic_ref(&self.topics, **id, self.shards)
                .is_some_and(|topic| pattern::matches(&entry.pattern, &topic.info.name))
        };
        let topics = session.memberships.keys().filter(of_pattern).copied().collect();
        Affected { topics, visited: session.memberships.len() + 1 }
    }

    /// Brings a membership in line with the session's live subscriptions that match: with `alone` if it is the only one,
    /// else a look at each. Returns how many were looked at.
    fn merge_deliveries(
        &mut self,
        id: TopicId,
        slot: SlotId,
        alone: Option<Delivery>,
        sessions: &mut Sessions,
    ) -> usize {
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else { return 0 };
        let Some(session) = sessions.get(slot) else { return 0 };
        let Some(membership) = session.memberships.get(&id) else { return 0 };
        let (merged, looked) = match alone {
            Some(delivery) if membership.references == 1 => (delivery, 1),
            _ => {
                let matching = session.subscriptions.iter().filter(|held| {
                    let entry = self.entries[held.entry as usize].as_ref();
                    held.position.is_some()
                        && entry.is_some_and(|entry| pattern::matches(&entry.pattern, &topic.info.name))
                });
                (topic.merge(matching.map(|held| held.delivery)), session.subscriptions.len())
            }
        };
        topic.set_delivery(slot, merged, sessions);
        topic.release_paced(slot, sessions);
        looked
    }

    /// Takes a session's subscription out; it must no longer stand in the session's list. Returns the pattern if it was
    /// the last of it, for the homes to be told, and how many topics and subscriptions were looked at.
    pub fn unsubscribe(&mut self, held: Subscription, slot: SlotId, sessions: &mut Sessions) -> Unsubscribed {
        let mut visited = 1;
        if held.position.is_some() {
            let affected = self.affected_by(held.entry, slot, sessions);
            visited = affected.visited;
            self.flush_notices_of(&affected.topics, slot, sessions);
            for id in affected.topics {
                let topic = topic_mut(&mut self.topics, id, self.shards);
                if topic.is_some_and(|topic| topic.drop_reference(slot, sessions)) {
                    visited += self.merge_deliveries(id, slot, None, sessions);
                }
            }
        }
        Unsubscribed { pattern_gone: self.leave_pattern(held, slot, sessions), visited }
    }

    /// Takes a session out of everything it holds, as it ends. Returns the patterns it was the last of.
    pub fn detach(&mut self, slot: SlotId, sessions: &mut Sessions) -> Vec<Box<str>> {
        let Some(session) = sessions.any_mut(slot) else { return Vec::new() };
        let held = std::mem::take(&mut session.subscriptions);
        let taken: Vec<TopicId> = session.memberships.keys().copied().collect();
        for id in taken {
            if let Some(topic) = topic_mut(&mut self.topics, id, self.shards) {
                topic.leave(slot, sessions);
            }
        }
        held.into_iter().filter_map(|held| self.leave_pattern(held, slot, sessions)).collect()
    }

    /// Takes a session out of a pattern's entry, and the entry away with its last session.
    fn leave_pattern(
        &mut self,
        held: Subscription,
        slot: SlotId,
        sessions: &mut Sessions,
    ) -> Option<Box<str>> {
        let entry = self.entries[held.entry as usize].as_mut()?;
        match held.position {
            None => entry.pending.retain(|pending| pending.slot != slot),
            Some(position) => {
                entry.members.swap_remove(position as usize);
                if let Some(&moved) = entry.members.get(position as usize)
                    && let Some(moved) = sessions.any_mut(moved)
                    && let Some(moved) =
                        moved.subscriptions.iter_mut().find(|moved| moved.entry == held.entry)
                {
                    moved.position = Some(position);
                }
            }
        }
        if !entry.members.is_empty() || !entry.pending.is_empty() {
            self.invariants(Some(held.entry));
            return None;
        }
        let entry = self.entries[held.entry as usize].take()?;
        self.free.push(held.entry);
        self.by_request.remove(&entry.request);
        self.patterns.remove(&entry.pattern);
        self.invariants(None);
        Some(entry.pattern)
    }

    /// A home will send this topic's ticks from now on: the sessions whose live patterns match it join.
    pub fn handle_open(
        &mut self,
        id: TopicId,
        epoch: u64,
        name: &str,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        let Some(local) = id.local_index(self.shards) else { return };
        let of_home = &mut self.topics[usize::from(id.home(self.shards).0)];
        if of_home.len() <= local as usize {
            of_home.resize_with(local as usize + 1, || None);
        }
        debug_assert!(of_home[local as usize].is_none(), "a home opens a topic once");
        let is_homed_here = id.home(self.shards) == self.shard;
        let policy = self.settings.policies.of(name);
        let mut topic = EgressTopic::new(id, epoch, name, policy, is_homed_here);
        let entries = &self.entries;
        self.patterns.for_each_match(name, |&index| {
            let Some(entry) = entries[index as usize].as_ref() else { return };
            for &slot in &entry.members {
                let held = sessions.get(slot).map(|session| &session.subscriptions);
                let held = held.and_then(|held| held.iter().find(|held| held.entry == index));
                let delivery = held.map_or_else(Delivery::default, |held| held.delivery);
                topic.join(slot, delivery, None, sessions, logs);
            }
        });
        of_home[local as usize] = Some(Box::new(topic));
        self.by_name.insert(name.into(), id);
        self.evict_overflowing(sessions, logs);
        self.invariants(None);
    }

    /// A home has stopped sending this topic's ticks, as this shard asked.
    pub fn handle_close(&mut self, id: TopicId) {
        let Some(local) = id.local_index(self.shards) else { return };
        let of_home = &mut self.topics[usize::from(id.home(self.shards).0)];
        let Some(topic) = of_home.get_mut(local as usize).and_then(Option::take) else { return };
        debug_assert!(topic.groups.is_empty(), "a topic is closed when nobody here takes it");
        topic.last_values.release(&mut self.settings.keys);
        self.by_name.remove(&topic.info.name);
        self.invariants(None);
    }

    /// Appends a tick once for each wire format that its takers use, and queues it to the sessions that take it now.
    pub fn deliver(&mut self, tick: &Frame<'_>, sessions: &mut Sessions, logs: &mut EgressLogs, now_ns: u64) {
        let id = TopicId(tick.header.topic_id);
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else { return };
        let sequence = tick.header.sequence;
        topic.tracked_from = topic.tracked_from.min(sequence);
        topic.last_sequence = sequence;
        if !topic.is_homed_here {
            topic.last_values.store(sequence, tick.key(), &mut self.settings.keys, |out| {
                out.extend_from_slice(tick.bytes);
            });
        }
        for Group { format, members, latest, .. } in &mut topic.groups {
            *latest = None;
            if members.iter().all(|member| member.is_skipped()) {
                continue;
            }
            let Some((log, range)) = logs.append_tick(*format, tick, &topic.info) else {
                // Longer than a whole log: none of them can have it, and a lost tick is never silent.
                members.iter().for_each(|member| sessions.doom_slow(member.slot()));
                continue;
            };
            *latest = Some(range);
            for member in members.iter_mut().filter(|member| !member.is_skipped()) {
                let slot = member.slot();
                if member.is_paced()
                    && !conflation::pace_allows(id, sequence, member, sessions, &mut self.pace_timers, now_ns)
                {
                    continue;
                }
                match sessions.offer(slot, log, range) {
                    Offered::Gone => continue,
                    Offered::Behind if conflation::hold_if_conflating(id, sequence, member, sessions) => {
                        continue;
                    }
                    Offered::Behind => sessions.push_range(slot, log, range),
                    Offered::Queued => {}
                }
                self.tally.queued += 1;
            }
        }
        self.evict_overflowing(sessions, logs);
    }

    /// Checks the tables against each other, and the entry that has just changed. O(1), as it runs in every debug build.
    fn invariants(&self, changed: Option<u32>) {
        if cfg!(debug_assertions) {
            let used = self.entries.len() - self.free.len();
            assert_eq!(used, self.patterns.len(), "every entry in use is in the trie");
            assert_eq!(used, self.by_request.len(), "every entry in use has a request");
            let entry = changed.and_then(|index| self.entries[index as usize].as_ref());
            assert_eq!(entry.is_some(), changed.is_some(), "an entry that has just changed is in use");
            if let Some(entry) = entry {
                assert_eq!(
                    self.by_request.get(&entry.request).copied(),
                    changed,
                    "a request names its entry"
                );
                assert!(
                    entry.homes_pending > 0 || entry.pending.is_empty() || entry.activating,
                    "a ready entry with pending subscribers is in `activating`"
                );
                assert!(
                    entry.members.is_empty() || entry.homes_pending == 0,
                    "a subscription goes live only once every home is ready"
                );
            }
        }
    }
}

fn topic_mut(
    topics: &mut [Vec<Option<Box<EgressTopic>>>],
    id: TopicId,
    shards: u16,
) -> Option<&mut EgressTopic> {
    topics[usize::from(id.home(shards).0)].get_mut(id.local_index(shards)? as usize)?.as_deref_mut()
}

fn topic_ref(topics: &[Vec<Option<Box<EgressTopic>>>], id: TopicId, shards: u16) -> Option<&EgressTopic> {
    topics[usize::from(id.home(shards).0)].get(id.local_index(shards)? as usize)?.as_deref()
}

/// The home of a pattern that is a topic's name, or every shard.
pub fn homes(pattern: &str, exact: bool, shards: u16) -> std::ops::Range<u16> {
    match exact {
        true => {
            let ShardId(home) = placement::home_shard(pattern, shards);
            home..home + 1
        }
        false => 0..shards,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tickcast_proto::{
        frame::{self, Kind, TickParts},
        ids::Sequence,
    };

    const SHARDS: u16 = 2;
    const OWN: ShardId = ShardId(0);

    #[test]
    fn only_topics_of_other_homes_have_a_copy_of_their_last_values_here() {
        let settings = Settings {
            policies: Rules::all(Policy::default()),
            keys: KeysBudget { keys_max: 4, bytes_left: 1 << 20 },
            behind_bytes: 1 << 16,
        };
        let mut fanout = Fanout::new(OWN, SHARDS, 1, settings);
        let (mut sessions, mut logs) = (Sessions::new(1 << 20, 1 << 16), EgressLogs::new(1 << 20));
        for (home, copies) in [(OWN, 0), (ShardId(1), 3)] {
            let id = TopicId::new(0, home, SHARDS).unwrap();
            fanout.handle_open(id, 1, "a", &mut sessions, &mut logs);
            for sequence in 5..8 {
                let parts = TickParts { key: sequence, payload: b"x", ..TickParts::default() };
                let mut bytes = Vec::new();
                let header = frame::encode_tick(&mut bytes, id, Sequence(sequence), &parts);
                let tick = Frame { header, kind: Kind::Tick, bytes: &bytes };
                fanout.deliver(&tick, &mut sessions, &mut logs, 0);
            }
            let topic = topic_ref(&fanout.topics, id, SHARDS).unwrap();
            assert_eq!((topic.tracked_from, topic.last_sequence), (5, 7));
            assert_eq!(topic.last_values.keys_len(), copies);
            fanout.handle_close(id);
        }
        assert_eq!(fanout.settings.keys.bytes_left, 1 << 20);
    }
}
