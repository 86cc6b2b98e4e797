//! The egress side of topics: which sessions of this shard take which, and the logs they share.

mod conflation;
mod egress_logs;
mod recovery;
mod topic;

use std::collections::{HashMap, VecDeque};

use self::topic::{EgressTopic, Group};
pub use self::{
    conflation::Pace,
    egress_logs::{EgressLogs, LogIndex},
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
struct Entry {
    pattern: Box<str>,
    /// Slots of the sessions for which it is live.
    members: Vec<SlotId>,
    /// Sessions to acknowledge: slot and request. First until every home is ready, then until their turn comes.
    waiters: VecDeque<(SlotId, u32)>,
    /// Homes that have not said they are ready.
    homes_pending: u16,
    /// Stands in `Fanout::attaching`.
    attaching: bool,
    /// Names this entry to the homes.
    request: u32,
}

/// Where a subscription begins, once it is live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Begin {
    /// With the next tick.
    #[default]
    Live,
    /// With the newest ticks.
    Latest,
    /// After a place.
    After(Position),
    /// After the places that the session has named, by topic; with what is kept where it named none.
    Places,
}

/// A pattern a session holds. 48 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Subscription {
    /// How its ticks are to come.
    pub delivery: Delivery,
    /// Where it begins.
    pub begin: Begin,
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

/// A session whose subscription goes live now: it is to be acknowledged, then attached.
#[derive(Clone, Copy, Debug)]
pub struct GoesLive {
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
/// Invariant: an entry whose homes are ready and that has waiters stands in `attaching`.
#[derive(Debug)]
pub struct Fanout {
    shards: u16,
    epoch: u64,
    settings: Settings,
    patterns: PatternTrie<u32>,
    /// Bound: sessions x `subscriptions_per_session_max`.
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    by_request: HashMap<u32, u32>,
    next_request: u32,
    /// Entries with sessions that can go live. Bound: the entries.
    attaching: VecDeque<u32>,
    /// By home and local index, so that a tick finds its topic without hashing. Bound: `topics_max`.
    topics: Vec<Vec<Option<Box<EgressTopic>>>>,
    by_name: HashMap<Box<str>, TopicId>,
    /// Sessions that ask for history. Bound: one entry a session.
    pulls: VecDeque<SlotId>,
    /// Ticks that are to come later. Bound: one entry a paced membership, until taken.
    paces: Vec<Pace>,
    tally: Tally,
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
pub struct Tally {
    /// Queued to subscribers.
    pub queued: u64,
    /// Taken out of outboxes again: counted once more as conflated, dropped, or queued anew.
    pub taken_out: u64,
    /// Told as conflated.
    pub conflated: u64,
    /// Told as lost.
    pub dropped: u64,
}

impl Fanout {
    /// Nothing known, nothing held.
    pub fn new(shards: u16, epoch: u64, settings: Settings) -> Fanout {
        Fanout {
            shards,
            epoch,
            settings,
            patterns: PatternTrie::default(),
            entries: Vec::new(),
            free: Vec::new(),
            by_request: HashMap::new(),
            next_request: 1,
            attaching: VecDeque::new(),
            topics: (0..shards).map(|_| Vec::new()).collect(),
            by_name: HashMap::new(),
            pulls: VecDeque::new(),
            paces: Vec::new(),
            tally: Tally::default(),
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
    pub fn take_tally(&mut self) -> Tally {
        std::mem::take(&mut self.tally)
    }

    /// Patterns held here.
    pub fn patterns_len(&self) -> usize {
        self.patterns.len()
    }

    /// Sessions that take a topic here.
    pub fn takers_len(&self, id: TopicId) -> usize {
        let topic = topic_ref(&self.topics, id, self.shards);
        topic.map_or(0, EgressTopic::members_len)
    }

    /// The entry of a pattern somebody here holds.
    pub fn entry_of(&mut self, pattern: &str) -> Option<u32> {
        self.patterns.at_mut(pattern).copied()
    }

    /// Enters a session's subscription; the session must not hold the pattern already. It goes live through
    /// [`Fanout::next_live`], once every home is ready. Returns what to ask of the homes if it is the first.
    pub fn subscribe(&mut self, slot: SlotId, request: u32, pattern: &str) -> (u32, Option<Interest>) {
        if let Some(index) = self.entry_of(pattern)
            && let Some(entry) = self.entries[index as usize].as_mut()
        {
            entry.waiters.push_back((slot, request));
            if entry.homes_pending == 0 && !std::mem::replace(&mut entry.attaching, true) {
                self.attaching.push_back(index);
            }
            return (index, None);
        }
        let exact = pattern::is_exact(pattern);
        let interest = Interest { request: self.next_request, exact };
        self.next_request = self.next_request.wrapping_add(1).max(1);
        let entry = Entry {
            pattern: pattern.into(),
            members: Vec::new(),
            waiters: VecDeque::from([(slot, request)]),
            homes_pending: if exact { 1 } else { self.shards },
            attaching: false,
            request: interest.request,
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        self.entries[index as usize] = Some(entry);
        self.patterns.at_or_insert(pattern, || index);
        self.by_request.insert(interest.request, index);
        (index, Some(interest))
    }

    /// A home has opened every topic that matches. Once all have, the waiters can go live.
    pub fn handle_ready(&mut self, request: u32) {
        let Some(&index) = self.by_request.get(&request) else { return };
        let Some(entry) = self.entries[index as usize].as_mut() else { return };
        entry.homes_pending -= 1;
        if entry.homes_pending == 0 && !std::mem::replace(&mut entry.attaching, true) {
            self.attaching.push_back(index);
        }
    }

    /// Whether [`Fanout::next_live`] has one.
    pub fn has_live(&self) -> bool {
        !self.attaching.is_empty()
    }

    /// The next session whose subscription goes live, in the order they can.
    pub fn next_live(&mut self) -> Option<GoesLive> {
        while let Some(&index) = self.attaching.front() {
            // An entry may have been given up, and even made anew, since it was queued.
            if let Some(entry) =
                self.entries[index as usize].as_mut().filter(|entry| entry.homes_pending == 0)
            {
                if let Some((slot, request)) = entry.waiters.pop_front() {
                    return Some(GoesLive { entry: index, slot, request });
                }
                entry.attaching = false;
            }
            self.attaching.pop_front();
        }
        None
    }

    /// The pattern of an entry.
    pub fn pattern(&self, entry: u32) -> &str {
        self.entries[entry as usize].as_ref().map_or("", |entry| &entry.pattern)
    }

    /// Makes a live subscription take effect: the session joins every matching topic, each announced to it first. A
    /// look at each topic known here for a wildcard, one look-up for a name. Returns the topics looked at.
    pub fn attach(&mut self, live: GoesLive, sessions: &mut Sessions, logs: &mut EgressLogs) -> usize {
        let Some(entry) = self.entries[live.entry as usize].as_mut() else { return 0 };
        let Some(session) = sessions.open_mut(live.slot) else { return 0 };
        let held = session.subscriptions.iter_mut().find(|held| held.entry == live.entry);
        let Some(held) = held else { return 0 };
        held.position = Some(entry.members.len() as u32);
        let Subscription { delivery, begin, .. } = *held;
        entry.members.push(live.slot);
        let pattern = entry.pattern.clone();
        let looked = if pattern::is_exact(&pattern) {
            if let Some(&id) = self.by_name.get(&pattern) {
                self.join(id, live.slot, delivery, begin, sessions, logs);
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
                    self.join(topic.info.id, live.slot, delivery, begin, sessions, logs);
                    self.relieve(sessions, logs);
                }
            }
            self.by_name.len()
        };
        self.tell_of_unknown_places(&pattern, begin, live.slot, sessions);
        self.queue_pull(live.slot, sessions);
        self.relieve(sessions, logs);
        looked
    }

    fn join(
        &mut self,
        id: TopicId,
        slot: SlotId,
        delivery: Delivery,
        begin: Begin,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        let wanted = self.wanted(id, slot, begin, sessions);
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else { return };
        if !topic.join(slot, delivery, wanted, sessions, logs) {
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
        let (taken, mut looked) = self.memberships_of(entry, slot, sessions);
        for &id in &taken {
            looked += self.merge_deliveries(id, slot, Some(delivery), sessions);
        }
        looked
    }

    /// The topics that a session takes and an entry's pattern matches, and how many were looked at: a wildcard goes over
    /// the session's memberships.
    fn memberships_of(&self, entry: u32, slot: SlotId, sessions: &Sessions) -> (Vec<TopicId>, usize) {
        let entry = self.entries[entry as usize].as_ref();
        let Some((entry, session)) = entry.zip(sessions.get(slot)) else { return (Vec::new(), 1) };
        if pattern::is_exact(&entry.pattern) {
            let taken = self.by_name.get(&entry.pattern).filter(|id| session.memberships.contains_key(id));
            return (taken.copied().into_iter().collect(), 1);
        }
        let of_pattern = |id: &&TopicId| {
            topic_ref(&self.topics, **id, self.shards)
                .is_some_and(|topic| pattern::matches(&entry.pattern, &topic.info.name))
        };
        let taken = session.memberships.keys().filter(of_pattern).copied().collect();
        (taken, session.memberships.len() + 1)
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
    pub fn unsubscribe(
        &mut self,
        held: Subscription,
        slot: SlotId,
        sessions: &mut Sessions,
    ) -> (Option<Box<str>>, usize) {
        let mut looked = 1;
        if held.position.is_some() {
            let taken;
            (taken, looked) = self.memberships_of(held.entry, slot, sessions);
            self.tell_of(&taken, slot, sessions);
            for id in taken {
                let topic = topic_mut(&mut self.topics, id, self.shards);
                if topic.is_some_and(|topic| topic.leave(slot, sessions)) {
                    looked += self.merge_deliveries(id, slot, None, sessions);
                }
            }
        }
        (self.give_up(held, slot, sessions), looked)
    }

    /// Takes a session out of everything it holds, as it ends. Returns the patterns it was the last of.
    pub fn detach(&mut self, slot: SlotId, sessions: &mut Sessions) -> Vec<Box<str>> {
        let Some(session) = sessions.any_mut(slot) else { return Vec::new() };
        let held = std::mem::take(&mut session.subscriptions);
        let taken: Vec<TopicId> = session.memberships.keys().copied().collect();
        for id in taken {
            if let Some(topic) = topic_mut(&mut self.topics, id, self.shards) {
                topic.leave_whole(slot, sessions);
            }
        }
        held.into_iter().filter_map(|held| self.give_up(held, slot, sessions)).collect()
    }

    /// Takes a session out of a pattern's entry, and the entry away with its last session.
    fn give_up(&mut self, held: Subscription, slot: SlotId, sessions: &mut Sessions) -> Option<Box<str>> {
        let entry = self.entries[held.entry as usize].as_mut()?;
        match held.position {
            None => entry.waiters.retain(|&(waiter, _)| waiter != slot),
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
        if !entry.members.is_empty() || !entry.waiters.is_empty() {
            return None;
        }
        let entry = self.entries[held.entry as usize].take()?;
        self.free.push(held.entry);
        self.by_request.remove(&entry.request);
        self.patterns.remove(&entry.pattern);
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
        let mut topic = EgressTopic::new(id, epoch, name, self.settings.policies.of(name));
        let entries = &self.entries;
        self.patterns.matching(name, |&index| {
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
        self.relieve(sessions, logs);
    }

    /// A home has stopped sending this topic's ticks, as this shard asked.
    pub fn handle_close(&mut self, id: TopicId) {
        let Some(local) = id.local_index(self.shards) else { return };
        let of_home = &mut self.topics[usize::from(id.home(self.shards).0)];
        let Some(topic) = of_home.get_mut(local as usize).and_then(Option::take) else { return };
        debug_assert!(topic.groups.is_empty(), "a topic is closed when nobody here takes it");
        topic.newest.give_back(&mut self.settings.keys);
        self.by_name.remove(&topic.info.name);
    }

    /// Appends a tick once for each wire format that its takers use, and queues it to the sessions that take it now.
    pub fn deliver(&mut self, tick: &Frame<'_>, sessions: &mut Sessions, logs: &mut EgressLogs, now_ns: u64) {
        let id = TopicId(tick.header.topic_id);
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else { return };
        let sequence = tick.header.sequence;
        topic.tracked_from = topic.tracked_from.min(sequence);
        topic.newest.put(sequence, tick.key(), &mut self.settings.keys, |out| {
            out.extend_from_slice(tick.bytes);
        });
        for Group { format, members, latest, .. } in &mut topic.groups {
            *latest = None;
            if members.iter().all(|member| member.is_skipped()) {
                continue;
            }
            let Some((log, range)) = logs.append_tick(*format, tick, &topic.info) else {
                // Longer than a whole log: none of them can have it, and a lost tick is never silent.
                members.iter().for_each(|member| sessions.mark_slow(member.slot()));
                continue;
            };
            *latest = Some(range);
            for member in members.iter_mut().filter(|member| !member.is_skipped()) {
                let slot = member.slot();
                if member.is_paced()
                    && !conflation::is_due(id, sequence, member, sessions, &mut self.paces, now_ns)
                {
                    continue;
                }
                match sessions.offer(slot, log, range) {
                    Offered::Gone => continue,
                    Offered::Behind if conflation::hold(id, sequence, member, sessions) => continue,
                    Offered::Behind => sessions.push_range(slot, log, range),
                    Offered::Queued => {}
                }
                self.tally.queued += 1;
            }
        }
        self.relieve(sessions, logs);
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
