//! The egress side of topics: the subscriptions of this shard's sessions, and delivery to them through shared logs.

mod awaited;
mod conflation;
mod egress_logs;
mod forget;
mod from_log;
mod logged;
mod match_counts;
mod opening;
mod overflow;
mod partial;
mod possible_policies;
mod recovery;
mod search;
mod stale;
mod subscriptions;
mod topic;
mod walks;
mod wildcard;

use std::collections::{BTreeMap, HashMap, VecDeque};

use self::{
    awaited::AwaitedPositions,
    forget::Dropping,
    logged::LogTopic,
    match_counts::MatchCounts,
    opening::{Opening, Openings},
    search::RecentTopics,
    stale::StaleTopics,
    subscriptions::{PatternEntry, PendingEntry},
    topic::{EgressTopic, Group, Life},
    walks::Joining,
    wildcard::Wildcards,
};
pub use self::{
    awaited::AwaitedSettings,
    conflation::{CloseBudget, PaceTimer},
    egress_logs::{EgressLogs, LogIndex},
    from_log::LogWant,
    opening::OpeningUnits,
    recovery::HistoryRequest,
    search::{Found, Search},
    subscriptions::{Interest, Registration, StartFrom, Subscription, cover_of},
    walks::{Begun, Departure, MembershipWalk},
};
use crate::{
    home::last_value::LastValuesBudget,
    ids::{SlotId, SourceId, TenantId},
    limits::LOG_SEQUENCES_MAX,
    pattern_trie::PatternTrie,
    placement,
    session::table::{Offered, Sessions},
    tenants::Exports,
    topic_key,
};
use tickcast_proto::{
    frame::Frame,
    ids::{Places, ShardId, TopicId},
    logged::is_log_epoch,
    subscription::{Policy, Rules},
};

/// The subscriptions of one shard: patterns, topics and their members. Both are named by their [keys](crate::topic_key), except
/// in messages to clients.
///
/// Invariant: a session receives a topic exactly once while any of its live patterns matches the topic: through a membership, or
/// through the wildcard groups of those patterns.
/// Invariant: a session goes live with at most one subscription at a time.
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
    /// Patterns whose homes are not ready yet, by request.
    pending: HashMap<u32, PendingEntry>,
    /// Bytes of this shard's patterns outside the trie and the entries: copies at the homes, and boxed wildcard state.
    patterns_other_bytes: usize,
    /// Pattern bytes per source, here and at the homes. Bounded, because each source listed has at least one pattern.
    source_bytes: HashMap<SourceId, usize>,
    /// Bytes of the long wildcards stored at the homes. Bound: [`crate::limits::LONG_WILDCARDS_BYTES`].
    long_wildcards_bytes: usize,
    next_request: u32,
    /// The highest tenant that has had a pattern.
    tenant_highest: TenantId,
    /// Sessions whose awaited pattern is now ready at its homes. Bound: the subscriptions of the shard's sessions.
    woken: VecDeque<SlotId>,
    wildcards: Wildcards,
    /// Subscriptions that walk over topics to go live, in the order of their numbers. Bound: [`crate::limits::JOINS_MAX`].
    joining: Vec<Joining>,
    /// Number of walks begun so far.
    walks_begun: u64,
    topics: Topics,
    /// In the order of their keys, so that a pattern need not be compared with topics whose names begin otherwise.
    by_key: BTreeMap<Box<str>, TopicId>,
    recent: RecentTopics,
    /// Sessions with room for another chunk of history. At most one entry per session.
    pulls: VecDeque<SlotId>,
    /// Ticks to read from logs, until taken. Bound: the chunks of history that a turn handles.
    log_wants: Vec<LogWant>,
    match_counts: MatchCounts,
    openings: Openings,
    /// Topics forgotten by their homes, whose members must leave. Bound: `topics_max`.
    forgotten: VecDeque<TopicId>,
    /// The forgotten topics by key, until they are dropped or revived. Bound: `topics_max`.
    forgotten_keys: HashMap<Box<str>, TopicId>,
    /// Forgotten topics whose members have left. Bound: [`crate::limits::TURN_TOPICS_DROPPED`].
    memberless: Vec<TopicId>,
    dropping: Dropping,
    /// Timers to set for paced ticks. At most one entry per paced membership, until taken.
    pace_timers: Vec<PaceTimer>,
    awaited: AwaitedPositions,
    stale: StaleTopics,
    /// How many more log sequences topics may store.
    log_sequences_left: usize,
    tally: DeliveryCounts,
    scratch: Vec<u8>,
}

/// Fan-out settings that an operator may change.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Default policy by topic.
    pub policies: Rules<Policy>,
    /// Budget for copies of the last values of topics whose home is another shard.
    pub last_values: LastValuesBudget,
    /// Bytes that may wait for a session before frames are evicted from its outbox.
    pub behind_bytes: usize,
    /// Maximum topics per home. Fixed at the start.
    pub home_topics_max: usize,
    /// Exports between tenants. Fixed at the start.
    pub exports: Exports,
    /// Whether ticks may be compressed, by topic. Fixed at the start.
    pub deflate: Rules<bool>,
}

/// Delivery counts since they were last taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeliveryCounts {
    /// Ticks queued to subscribers.
    pub queued: u64,
    /// Queued ticks evicted from outboxes; each is counted again when it is conflated, dropped or requeued.
    pub evicted: u64,
    /// Ticks announced as conflated.
    pub conflated: u64,
    /// Ticks announced as lost.
    pub dropped: u64,
    /// Holes in logs.
    pub holes: u64,
    /// Units of opening topics: see [`crate::limits::TURN_OPENING_UNITS`].
    pub opening_units: u64,
    /// Ticks lost because too many waited for their topic to open.
    pub opening_lost: u64,
    /// Units of delivery work that queued nothing: patterns looked up, and wildcard sessions visited.
    pub units: usize,
}

impl DeliveryCounts {
    /// Units of delivery work.
    pub fn work(&self) -> usize {
        (self.queued + self.evicted) as usize + self.units
    }
}

impl Fanout {
    /// Creates a fan-out without subscriptions or topics.
    pub fn new(
        shard: ShardId,
        shards: u16,
        epoch: u64,
        settings: Settings,
        awaited: AwaitedSettings,
    ) -> Fanout {
        let (policies, places) = (settings.policies.clone(), Places::new(settings.home_topics_max));
        Fanout {
            shard,
            shards,
            epoch,
            settings,
            patterns: PatternTrie::default(),
            entries: Vec::new(),
            free: Vec::new(),
            pending: HashMap::new(),
            patterns_other_bytes: 0,
            source_bytes: HashMap::new(),
            long_wildcards_bytes: 0,
            next_request: 1,
            tenant_highest: TenantId::DEFAULT,
            woken: VecDeque::new(),
            wildcards: Wildcards::new(policies),
            joining: Vec::new(),
            walks_begun: 0,
            topics: Topics { homes: (0..shards).map(|_| Vec::new()).collect(), places },
            by_key: BTreeMap::new(),
            recent: RecentTopics::default(),
            pulls: VecDeque::new(),
            log_wants: Vec::new(),
            match_counts: MatchCounts::default(),
            openings: Openings::default(),
            forgotten: VecDeque::new(),
            forgotten_keys: HashMap::new(),
            memberless: Vec::new(),
            dropping: Dropping::default(),
            pace_timers: Vec::new(),
            awaited: AwaitedPositions::new(awaited),
            stale: StaleTopics::default(),
            log_sequences_left: LOG_SEQUENCES_MAX,
            tally: DeliveryCounts::default(),
            scratch: Vec::new(),
        }
    }

    /// Replaces the default policies and the bounds. New policies apply to new subscriptions. O(topics) if they
    /// changed.
    pub fn set_policies(&mut self, policies: Rules<Policy>, behind_bytes: usize, keys_max: usize) {
        if policies != self.settings.policies {
            for topic in self.topics.homes.iter_mut().flatten().flatten() {
                topic.policy = policies.of(&topic.info.name);
            }
            self.wildcards.set_policies(&policies);
        }
        (self.settings.policies, self.settings.behind_bytes) = (policies, behind_bytes);
        self.settings.last_values.keys_max = keys_max;
    }

    /// Replaces the bound on the memory for positions in topics that do not exist yet.
    pub fn set_awaited_bytes_max(&mut self, bytes: usize) {
        self.awaited.set_memory_bytes_max(bytes);
    }

    /// Number of topics open on this shard.
    pub fn topics_len(&self) -> usize {
        self.by_key.len()
    }

    /// The name of a topic as clients see it, and its epoch. `None` if the topic is not open on this shard.
    pub fn name_and_epoch(&self, id: TopicId) -> Option<(&str, u64)> {
        topic_ref(&self.topics, id, self.shards).map(|topic| (&*topic.info.name, topic.info.epoch))
    }

    /// Returns the counts since the last call.
    pub fn take_counts(&mut self) -> DeliveryCounts {
        self.tally.opening_lost = self.openings.take_lost();
        std::mem::take(&mut self.tally)
    }

    /// Bytes of the patterns subscribed to on this shard, here and at the homes. The tables grow by doubling, so they may take
    /// up to twice as much.
    pub fn patterns_bytes(&self) -> usize {
        let entries = self.patterns.len() * size_of::<Option<PatternEntry>>();
        self.patterns.used_bytes() + entries + self.patterns_other_bytes
    }

    /// Number of distinct patterns subscribed to on this shard.
    pub fn patterns_len(&self) -> usize {
        self.patterns.len()
    }

    /// Bytes of the positions in topics that do not exist yet, and of the log sequences stored by topics.
    pub fn logged_bytes(&self) -> usize {
        self.awaited.bytes() + (LOG_SEQUENCES_MAX - self.log_sequences_left) * size_of::<u64>()
    }

    /// Bytes of the wildcard groups.
    pub fn groups_bytes(&self) -> usize {
        self.entries.iter().flatten().map(PatternEntry::groups_bytes).sum()
    }

    /// Opens the topic with this key. From now on its home sends the ticks after the sequence `last`; 0: all ticks. Sessions
    /// whose subscription needs a membership join it, in later turns if they are many. `owner`: whose work that is, see
    /// [`HomeTopic::owner`](crate::home::HomeTopic::owner).
    pub fn handle_open(
        &mut self,
        (id, owner): (TopicId, u32),
        epoch: u64,
        last: u64,
        key: &str,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        if !self.openings.is_empty()
            && let Some(&last_life) = self.by_key.get(key)
            && self.openings.is_forgotten(last_life)
        {
            return self.openings.wait_for(last_life, (id, owner), (epoch, last), key);
        }
        self.open((id, owner), (epoch, last), key, None, sessions, logs);
    }

    /// Opens a topic. `waiting`: what has waited for its last life to open.
    fn open(
        &mut self,
        (id, owner): (TopicId, u32),
        (epoch, last): (u64, u64),
        key: &str,
        waiting: Option<Opening>,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        let Some((home, place)) = self.topics.place(id, self.shards) else {
            return debug_assert!(false, "a home opens topics with ids of its own");
        };
        let last_life = match self.forgotten_keys.is_empty() {
            true => None,
            false => self.forgotten_keys.remove(key),
        };
        let of_home = &mut self.topics.homes[usize::from(home)];
        if of_home.len() <= place as usize {
            of_home.resize_with(place as usize + 1, || None);
        }
        debug_assert!(of_home[place as usize].is_none(), "a home opens a topic once");
        let is_homed_here = id.home(self.shards) == self.shard;
        let policy = self.settings.policies.of(topic_key::name(key));
        let mut topic = EgressTopic::new(id, epoch, key, policy, is_homed_here);
        topic.info.compresses = self.settings.deflate.of(topic_key::name(key));
        topic.log = is_log_epoch(epoch).then(|| LogTopic::new(last).into());
        let backlogs = self.take_saved_positions(&topic, sessions);
        self.topics.homes[usize::from(home)][place as usize] = Some(Box::new(topic));
        let (topics, shards) = (&self.topics, self.shards);
        let is_uncounted = |id| topic_ref(topics, id, shards).is_some_and(EgressTopic::waits_to_be_counted);
        self.match_counts.new_topic(id, self.by_key.len(), is_uncounted);
        self.by_key.insert(key.into(), id);
        self.recent.push(id);
        if let Some(topic) = topic_mut(&mut self.topics, id, self.shards) {
            (topic.opened, topic.walks_seen) = (self.recent.opened(), self.walks_begun);
        }
        if let Some(last) = last_life {
            self.end_mark_of_last_life(last, id);
        }
        self.begin_opening((id, owner), last_life, backlogs, waiting, sessions, logs);
        self.invariants(None);
    }

    /// Closes a topic after its home has stopped sending ticks, at this shard's request.
    pub fn handle_close(&mut self, id: TopicId, sessions: &mut Sessions) {
        if self.openings.is_empty() || !self.abandon_opening(id, sessions) {
            self.close(id);
        }
    }

    /// Drops a topic without members.
    fn close(&mut self, id: TopicId) {
        let Some((home, place)) = self.topics.place(id, self.shards) else {
            return debug_assert!(false, "a home opens topics with ids of its own");
        };
        let of_home = &mut self.topics.homes[usize::from(home)];
        let Some(topic) = of_home.get_mut(place as usize).and_then(Option::take) else {
            return debug_assert!(false, "a home closes only topics that it opened");
        };
        debug_assert!(topic.info.id == id, "a place is used again only after its topic is gone");
        debug_assert!(topic.members_len() == 0, "a topic closes only after its last member left");
        topic.last_values.release(&mut self.settings.last_values);
        self.stale.forget(id);
        self.log_sequences_left += topic.log.as_deref().map_or(0, LogTopic::sequences_len);
        match topic.life {
            Life::Current => drop(self.by_key.remove(topic.key())),
            _ if self.forgotten_keys.get(topic.key()) == Some(&id) => {
                self.forgotten_keys.remove(topic.key());
            }
            Life::Forgotten | Life::Ended => {}
        }
        if topic.is_counted {
            self.count_topic(id, topic.key(), false);
        }
        self.invariants(None);
    }

    /// Appends a tick once per wire format used by its members, and queues it to every live member.
    pub fn deliver(&mut self, tick: &Frame<'_>, sessions: &mut Sessions, logs: &mut EgressLogs, now_ns: u64) {
        let id = TopicId(tick.header.topic_id);
        if !self.openings.is_empty() && self.openings.contains(id) {
            return self.keep_tick(tick, sessions, logs, now_ns);
        }
        if !self.joining.is_empty() {
            self.join_early(id, sessions, logs);
        }
        let Some(mut topic) = topic_mut(&mut self.topics, id, self.shards) else {
            return debug_assert!(false, "a home sends ticks only of topics that it opened");
        };
        if topic.log.is_some() {
            self.begin_logged(tick, sessions, logs);
            let Some(still) = topic_mut(&mut self.topics, id, self.shards) else { return };
            topic = still;
        }
        debug_assert!(tick.header.sequence > topic.last_sequence, "sequences increase");
        let sequence = tick.header.sequence;
        topic.tracked_from = topic.tracked_from.min(sequence);
        topic.last_sequence = sequence;
        if !topic.is_homed_here {
            let (budget, len) = (&mut self.settings.last_values, tick.bytes.len());
            let write = |out: &mut Vec<u8>| out.extend_from_slice(tick.bytes);
            // If there is no room for the copy, sessions that need it ask the home.
            let _ = topic.last_values.store(sequence, tick.key(), len, budget, write);
        }
        for Group { format, members, latest, .. } in &mut topic.groups {
            *latest = None;
            if members.iter().all(|member| member.is_skipped()) {
                continue;
            }
            let Some((log, range)) = logs.append_tick(*format, tick, &topic.info) else {
                // The tick is longer than the log, so no member can receive it. Close them, so that the loss is not silent.
                members.iter().for_each(|member| sessions.mark_too_far_behind(member.slot()));
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
        if !self.wildcards.is_empty() {
            self.deliver_to_groups(tick, sessions, logs);
        }
        self.evict_overflowing(sessions, logs);
    }

    /// Checks the tables against each other, and the entry that has just changed. O(1), because it runs in every debug build.
    fn invariants(&self, changed: Option<u32>) {
        if cfg!(debug_assertions) {
            let used = self.entries.len() - self.free.len();
            assert_eq!(used, self.patterns.len(), "every entry in use is in the trie");
            let entry = changed.and_then(|index| self.entries[index as usize].as_ref());
            assert_eq!(entry.is_some(), changed.is_some(), "an entry that has just changed is in use");
            if let Some(entry) = entry {
                assert!(
                    (entry.members.is_empty() && entry.groups().is_empty()) || entry.is_registered(),
                    "a subscription goes live only once every home is ready"
                );
            }
        }
    }
}

/// The topics open on a shard, by home and place, so that a tick finds its topic without hashing. Bound: `topics_max`.
#[derive(Debug)]
struct Topics {
    homes: Vec<Vec<Option<Box<EgressTopic>>>>,
    places: Places,
}

impl Topics {
    /// The index of a topic's home, and its place there.
    fn place(&self, id: TopicId, shards: u16) -> Option<(u16, u32)> {
        Some((id.home(shards).0, id.place(shards, self.places)?))
    }

    /// The topic in a place of a home.
    fn at(&self, (home, place): (u16, u32)) -> Option<&EgressTopic> {
        self.homes[usize::from(home)].get(place as usize)?.as_deref()
    }
}

fn topic_mut(topics: &mut Topics, id: TopicId, shards: u16) -> Option<&mut EgressTopic> {
    let (home, place) = topics.place(id, shards)?;
    let topic = topics.homes[usize::from(home)].get_mut(place as usize)?.as_deref_mut()?;
    (topic.info.id == id).then_some(topic)
}

fn topic_ref(topics: &Topics, id: TopicId, shards: u16) -> Option<&EgressTopic> {
    topics.at(topics.place(id, shards)?).filter(|topic| topic.info.id == id)
}

/// The homes of the topics that a pattern may match: one for an exact name, otherwise all.
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
            last_values: LastValuesBudget { keys_max: 4, bytes_left: 1 << 20 },
            behind_bytes: 1 << 16,
            home_topics_max: 16,
            exports: Exports::default(),
            deflate: Rules::all(false),
        };
        let mut fanout = Fanout::new(OWN, SHARDS, 1, settings, AwaitedSettings::default());
        let (mut sessions, mut logs) = (Sessions::new(1 << 20, 1 << 16), EgressLogs::new(1 << 20, 128));
        for (home, copies) in [(OWN, 0), (ShardId(1), 3)] {
            let id = TopicId::new(0, home, SHARDS).unwrap();
            fanout.handle_open((id, 0), 1, 0, "a", &mut sessions, &mut logs);
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
            fanout.handle_close(id, &mut sessions);
        }
        assert_eq!(fanout.settings.last_values.bytes_left, 1 << 20);
    }
}
