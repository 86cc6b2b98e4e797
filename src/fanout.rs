//! The egress side of topics: which sessions of this shard take which, and the logs they share.

use std::collections::{HashMap, VecDeque};

use crate::{
    log::{EgressLog, Range},
    router::{self, PatternTrie},
    session::Membership,
    sessions::Sessions,
    tick::{ShardId, TickTimes, TopicId},
    wire::{
        Encoding,
        frame::{self, Frame, TickParts},
        json,
        websocket::{self, DataType},
    },
};

/// One egress log for each encoding in use; made at the first frame in it.
#[derive(Debug)]
pub struct Logs {
    logs: [Option<EgressLog>; Encoding::COUNT],
    log_bytes: usize,
    header: Vec<u8>,
    body: Vec<u8>,
}

impl Logs {
    /// No log yet; each will hold `log_bytes`.
    pub fn new(log_bytes: usize) -> Logs {
        Logs { logs: Default::default(), log_bytes, header: Vec::new(), body: Vec::new() }
    }

    /// The log of an encoding, if it was ever used.
    pub fn of(&self, encoding: Encoding) -> Option<&EgressLog> {
        self.logs[encoding as usize].as_ref()
    }

    /// Every session has taken everything: the logs start over in their warm pages.
    pub fn rewind(&mut self) {
        self.logs.iter_mut().flatten().for_each(EgressLog::rewind);
    }

    /// Bytes held by the logs in use.
    pub fn bytes(&self) -> usize {
        self.logs.iter().flatten().map(EgressLog::capacity).sum()
    }

    /// Encodes a tick once for all its takers in this encoding. Copies only, but for a payload that needs base64.
    fn append_tick(
        &mut self,
        encoding: Encoding,
        tick: &Frame<'_>,
        json_prefix: &[u8],
    ) -> Option<(&EgressLog, Range)> {
        match encoding {
            Encoding::Native => return self.append(encoding, None, tick.bytes),
            Encoding::WebSocketRkyv => return self.append(encoding, Some(DataType::Binary), tick.bytes),
            Encoding::WebSocketRaw => return self.append(encoding, Some(DataType::Binary), tick.payload()),
            Encoding::WebSocketJson => {}
        }
        let times = tick.record::<TickTimes>().ok()?;
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        json::encode_tick(
            &mut body,
            json_prefix,
            tick.header.sequence,
            &TickParts {
                flags: tick.header.flags,
                schema: 0,
                times,
                key: tick.key(),
                payload: tick.payload(),
            },
        );
        self.body = body;
        self.append_body(encoding, DataType::Text)
    }

    /// Encodes a topic's announcement; the raw encoding has none.
    fn append_topic(&mut self, encoding: Encoding, topic: &EgressTopic) -> Option<(&EgressLog, Range)> {
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        match encoding {
            Encoding::WebSocketRaw => {}
            Encoding::WebSocketJson => json::encode_topic(&mut body, topic.id, topic.epoch, &topic.name),
            Encoding::Native | Encoding::WebSocketRkyv => {
                frame::encode_topic(&mut body, topic.id, topic.epoch, &topic.name);
            }
        }
        self.body = body;
        match encoding {
            Encoding::WebSocketRaw => None,
            Encoding::WebSocketJson => self.append_body(encoding, DataType::Text),
            Encoding::WebSocketRkyv => self.append_body(encoding, DataType::Binary),
            Encoding::Native => {
                let body = std::mem::take(&mut self.body);
                let range = self.log(encoding).append(&body);
                self.body = body;
                self.found(encoding, range)
            }
        }
    }

    fn append_body(&mut self, encoding: Encoding, data_type: DataType) -> Option<(&EgressLog, Range)> {
        let body = std::mem::take(&mut self.body);
        self.header.clear();
        websocket::encode_header(&mut self.header, data_type, body.len());
        let header = std::mem::take(&mut self.header);
        let range = self.log(encoding).append_parts(&header, &body);
        (self.header, self.body) = (header, body);
        self.found(encoding, range)
    }

    fn append(
        &mut self,
        encoding: Encoding,
        data_type: Option<DataType>,
        body: &[u8],
    ) -> Option<(&EgressLog, Range)> {
        let mut header = std::mem::take(&mut self.header);
        header.clear();
        if let Some(data_type) = data_type {
            websocket::encode_header(&mut header, data_type, body.len());
        }
        let range = self.log(encoding).append_parts(&header, body);
        self.header = header;
        self.found(encoding, range)
    }

    fn log(&mut self, encoding: Encoding) -> &mut EgressLog {
        let log_bytes = self.log_bytes;
        self.logs[encoding as usize].get_or_insert_with(|| EgressLog::new(log_bytes))
    }

    fn found(&self, encoding: Encoding, range: Option<Range>) -> Option<(&EgressLog, Range)> {
        Some((self.of(encoding)?, range?))
    }
}

/// A topic that some session of this shard may take.
#[derive(Debug)]
struct EgressTopic {
    id: TopicId,
    name: Box<str>,
    epoch: u64,
    json_prefix: Vec<u8>,
    /// Slots of the sessions that take it, by encoding.
    members: [Vec<u32>; Encoding::COUNT],
    /// Its announcement, to be queued again while it is fresh in the log.
    announced: [Option<Range>; Encoding::COUNT],
}

/// A pattern that some session of this shard holds.
#[derive(Debug)]
struct Entry {
    pattern: Box<str>,
    /// Slots of the sessions for which it is live.
    members: Vec<u32>,
    /// Sessions to acknowledge: slot and request. First until every home is ready, then until their turn comes.
    waiters: VecDeque<(u32, u32)>,
    /// Homes that have not said they are ready.
    homes_pending: u16,
    /// Stands in `Fanout::attaching`.
    attaching: bool,
    /// Names this entry to the homes.
    request: u32,
}

/// A pattern a session holds.
#[derive(Clone, Copy, Debug)]
pub struct Subscription {
    /// The pattern's entry.
    pub entry: u32,
    /// Where the session stands in the entry's members; `None` until it is live.
    pub position: Option<u32>,
}

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
    pub slot: u32,
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
}

impl Fanout {
    /// Nothing known, nothing held.
    pub fn new(shards: u16) -> Fanout {
        Fanout {
            shards,
            patterns: PatternTrie::default(),
            entries: Vec::new(),
            free: Vec::new(),
            by_request: HashMap::new(),
            next_request: 1,
            attaching: VecDeque::new(),
            topics: (0..shards).map(|_| Vec::new()).collect(),
            by_name: HashMap::new(),
        }
    }

    /// Topics known here.
    pub fn topics_len(&self) -> usize {
        self.by_name.len()
    }

    /// Patterns held here.
    pub fn patterns_len(&self) -> usize {
        self.patterns.len()
    }

    /// The entry of a pattern somebody here holds.
    pub fn entry_of(&mut self, pattern: &str) -> Option<u32> {
        self.patterns.at_mut(pattern).copied()
    }

    /// Enters a session's subscription; the session must not hold the pattern already. It goes live through
    /// [`Fanout::next_live`], once every home is ready. Returns what to ask of the homes if it is the first.
    pub fn subscribe(&mut self, slot: u32, request: u32, pattern: &str) -> (u32, Option<Interest>) {
        if let Some(index) = self.entry_of(pattern)
            && let Some(entry) = self.entries[index as usize].as_mut()
        {
            entry.waiters.push_back((slot, request));
            if entry.homes_pending == 0 && !std::mem::replace(&mut entry.attaching, true) {
                self.attaching.push_back(index);
            }
            return (index, None);
        }
        let exact = router::is_exact(pattern);
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
    pub fn attach(&mut self, live: GoesLive, sessions: &mut Sessions, logs: &mut Logs) -> usize {
        let Some(entry) = self.entries[live.entry as usize].as_mut() else { return 0 };
        let Some(session) = sessions.open_mut(live.slot) else { return 0 };
        let held = session.subscriptions.iter_mut().find(|held| held.entry == live.entry);
        let Some(held) = held else { return 0 };
        held.position = Some(entry.members.len() as u32);
        entry.members.push(live.slot);
        if router::is_exact(&entry.pattern) {
            if let Some(topic) =
                self.by_name.get(&entry.pattern).and_then(|&id| topic_mut(&mut self.topics, id, self.shards))
            {
                topic.join(live.slot, sessions, logs);
            }
            return 1;
        }
        for topic in self.topics.iter_mut().flatten().flatten() {
            if router::matches(&entry.pattern, &topic.name) {
                topic.join(live.slot, sessions, logs);
            }
        }
        self.by_name.len()
    }

    /// Takes a session's subscription out; it must no longer stand in the session's list. Returns the pattern if it was
    /// the last of it: the homes are to be told.
    pub fn unsubscribe(
        &mut self,
        held: Subscription,
        slot: u32,
        sessions: &mut Sessions,
    ) -> Option<Box<str>> {
        if held.position.is_some()
            && let Some(entry) = self.entries[held.entry as usize].as_ref()
            && let Some(session) = sessions.any_mut(slot)
        {
            let of_pattern = |id: &&TopicId| {
                topic_ref(&self.topics, **id, self.shards)
                    .is_some_and(|topic| router::matches(&entry.pattern, &topic.name))
            };
            let left: Vec<TopicId> = session.memberships.keys().filter(of_pattern).copied().collect();
            for id in left {
                if let Some(topic) = topic_mut(&mut self.topics, id, self.shards) {
                    topic.leave(slot, sessions);
                }
            }
        }
        self.give_up(held, slot, sessions)
    }

    /// Takes a session out of everything it holds, as it ends. Returns the patterns it was the last of.
    pub fn detach(&mut self, slot: u32, sessions: &mut Sessions) -> Vec<Box<str>> {
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
    fn give_up(&mut self, held: Subscription, slot: u32, sessions: &mut Sessions) -> Option<Box<str>> {
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
        logs: &mut Logs,
    ) {
        let Some(local) = id.local_index(self.shards) else { return };
        let of_home = &mut self.topics[usize::from(id.home(self.shards).0)];
        if of_home.len() <= local as usize {
            of_home.resize_with(local as usize + 1, || None);
        }
        debug_assert!(of_home[local as usize].is_none(), "a home opens a topic once");
        let mut topic = EgressTopic {
            id,
            name: name.into(),
            epoch,
            json_prefix: json::tick_prefix(name),
            members: Default::default(),
            announced: Default::default(),
        };
        let entries = &self.entries;
        self.patterns.matching(name, |&index| {
            if let Some(entry) = entries[index as usize].as_ref() {
                for &slot in &entry.members {
                    topic.join(slot, sessions, logs);
                }
            }
        });
        of_home[local as usize] = Some(Box::new(topic));
        self.by_name.insert(name.into(), id);
    }

    /// A home has stopped sending this topic's ticks, as this shard asked.
    pub fn handle_close(&mut self, id: TopicId) {
        let Some(local) = id.local_index(self.shards) else { return };
        let of_home = &mut self.topics[usize::from(id.home(self.shards).0)];
        let Some(topic) = of_home.get_mut(local as usize).and_then(Option::take) else { return };
        debug_assert!(topic.members.iter().all(Vec::is_empty), "a topic is closed when nobody here takes it");
        self.by_name.remove(&topic.name);
    }

    /// Appends a tick once for each encoding in use and queues it to the sessions that take it. Returns how many.
    pub fn deliver(&mut self, tick: &Frame<'_>, sessions: &mut Sessions, logs: &mut Logs) -> usize {
        let Some(topic) = topic_mut(&mut self.topics, TopicId(tick.header.topic_id), self.shards) else {
            return 0;
        };
        let mut delivered = 0;
        for encoding in Encoding::ALL {
            let members = &topic.members[encoding as usize];
            if members.is_empty() {
                continue;
            }
            let Some((log, range)) = logs.append_tick(encoding, tick, &topic.json_prefix) else {
                // Longer than a whole log: none of them can have it, and a lost tick is never silent.
                members.iter().for_each(|&slot| sessions.doom_slow(slot));
                continue;
            };
            for &slot in members {
                sessions.push_range(slot, log, range);
            }
            delivered += members.len();
        }
        delivered
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
            let ShardId(home) = router::home(pattern, shards);
            home..home + 1
        }
        false => 0..shards,
    }
}

impl EgressTopic {
    fn join(&mut self, slot: u32, sessions: &mut Sessions, logs: &mut Logs) {
        let Some(session) = sessions.open_mut(slot) else { return };
        if let Some(membership) = session.memberships.get_mut(&self.id) {
            membership.references += 1;
            return;
        }
        let encoding = session.encoding;
        let members = &mut self.members[encoding as usize];
        session.memberships.insert(self.id, Membership { position: members.len() as u32, references: 1 });
        members.push(slot);
        let announced = self.announced[encoding as usize]
            .filter(|range| logs.of(encoding).is_some_and(|log| log.is_fresh(range.start)));
        let (log, range) = match (announced, logs.of(encoding)) {
            (Some(range), Some(log)) => (log, range),
            _ => match logs.append_topic(encoding, self) {
                Some(appended) => appended,
                None => return,
            },
        };
        self.announced[encoding as usize] = Some(range);
        sessions.push_range(slot, log, range);
    }

    /// One of the session's patterns that match goes.
    fn leave(&mut self, slot: u32, sessions: &mut Sessions) {
        let Some(session) = sessions.any_mut(slot) else { return };
        let Some(membership) = session.memberships.get_mut(&self.id) else { return };
        membership.references -= 1;
        if membership.references == 0 {
            self.leave_whole(slot, sessions);
        }
    }

    /// The session goes, whatever its patterns.
    fn leave_whole(&mut self, slot: u32, sessions: &mut Sessions) {
        let Some(session) = sessions.any_mut(slot) else { return };
        let Some(membership) = session.memberships.remove(&self.id) else { return };
        let members = &mut self.members[session.encoding as usize];
        members.swap_remove(membership.position as usize);
        if let Some(&moved) = members.get(membership.position as usize)
            && let Some(moved) = sessions.any_mut(moved).and_then(|moved| moved.memberships.get_mut(&self.id))
        {
            moved.position = membership.position;
        }
    }
}
