//! The egress side of topics: which sessions of this shard take which, and the logs they share.

use std::collections::HashMap;

use crate::{
    log::{EgressLog, Range},
    router::{self, PatternTrie},
    session::Membership,
    sessions::Sessions,
    tick::{ShardId, TickTimes, TopicId},
    wire::{
        Encoding,
        frame::{self, FLAG_PAYLOAD_JSON, Frame},
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
        let payload = tick.payload();
        let inline = tick.header.flags & FLAG_PAYLOAD_JSON != 0 || json::is_json(payload);
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        json::encode_tick(
            &mut body,
            json_prefix,
            tick.header.sequence,
            times.producer_time_ns,
            payload,
            inline,
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
    /// Slots of the sessions that hold it and have been acknowledged.
    members: Vec<u32>,
    /// Sessions to acknowledge once every home is ready: slot and request.
    waiters: Vec<(u32, u32)>,
    /// The topics it matches, of those this shard knows.
    topics: Vec<TopicId>,
    /// Homes that have not said they are ready.
    homes_pending: u16,
    /// Names this entry to the homes.
    request: u32,
}

/// What became of a request to subscribe.
#[derive(Debug, PartialEq, Eq)]
pub enum Subscribe {
    /// Live: it is to be acknowledged, then attached.
    Live(u32),
    /// Waits for other homes, which already know.
    Waits(u32),
    /// The first of its pattern here: the homes are to be asked with this request.
    Asks {
        /// The pattern's entry.
        entry: u32,
        /// Names the interest to the homes.
        request: u32,
        /// The one home, when the pattern is a topic's name.
        exact: bool,
    },
}

/// Patterns, topics and their members on one shard.
///
/// Invariant: a session is in a topic's members exactly once while at least one of its live patterns matches it.
/// Invariant: an entry's topics are exactly the known topics that its pattern matches.
#[derive(Debug)]
pub struct Fanout {
    shards: u16,
    patterns: PatternTrie<u32>,
    /// Bound: sessions x `subscriptions_per_session_max`.
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    by_request: HashMap<u32, u32>,
    next_request: u32,
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

    /// Enters a session's subscription. The session must not hold the pattern already.
    pub fn subscribe(&mut self, slot: u32, request: u32, pattern: &str) -> Subscribe {
        if let Some(index) = self.entry_of(pattern)
            && let Some(entry) = self.entries[index as usize].as_mut()
        {
            if entry.homes_pending == 0 {
                entry.members.push(slot);
                return Subscribe::Live(index);
            }
            entry.waiters.push((slot, request));
            return Subscribe::Waits(index);
        }
        let exact = router::is_exact(pattern);
        let topics = if exact {
            self.by_name.get(pattern).copied().into_iter().collect()
        } else {
            self.by_name
                .iter()
                .filter(|(name, _)| router::matches(pattern, name))
                .map(|(_, id)| *id)
                .collect()
        };
        let interest = self.next_request;
        self.next_request = self.next_request.wrapping_add(1).max(1);
        let entry = Entry {
            pattern: pattern.into(),
            members: Vec::new(),
            waiters: vec![(slot, request)],
            topics,
            homes_pending: if exact { 1 } else { self.shards },
            request: interest,
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        self.entries[index as usize] = Some(entry);
        self.patterns.at_or_insert(pattern, || index);
        self.by_request.insert(interest, index);
        Subscribe::Asks { entry: index, request: interest, exact }
    }

    /// A home has opened every topic that matches. Once all have, the waiters are live: returns the entry and who
    /// is to be acknowledged with which request.
    pub fn handle_ready(&mut self, request: u32) -> Option<(u32, Vec<(u32, u32)>)> {
        let index = *self.by_request.get(&request)?;
        let entry = self.entries[index as usize].as_mut()?;
        entry.homes_pending -= 1;
        if entry.homes_pending > 0 {
            return None;
        }
        let waiters = std::mem::take(&mut entry.waiters);
        entry.members.extend(waiters.iter().map(|(slot, _)| slot));
        Some((index, waiters))
    }

    /// The pattern of an entry.
    pub fn pattern(&self, entry: u32) -> &str {
        self.entries[entry as usize].as_ref().map_or("", |entry| &entry.pattern)
    }

    /// Makes a live subscription take effect: the session joins every matching topic, each announced to it first.
    pub fn attach(&mut self, entry: u32, slot: u32, sessions: &mut Sessions, logs: &mut Logs) {
        let Some(entry) = self.entries[entry as usize].as_ref() else { return };
        for &id in &entry.topics {
            if let Some(topic) = topic_mut(&mut self.topics, id, self.shards) {
                topic.join(slot, sessions, logs);
            }
        }
    }

    /// Takes a session's subscription out. Returns the pattern if it was the last of it: the homes are to be told.
    pub fn unsubscribe(&mut self, index: u32, slot: u32, sessions: &mut Sessions) -> Option<Box<str>> {
        let entry = self.entries[index as usize].as_mut()?;
        if let Some(at) = entry.members.iter().position(|&member| member == slot) {
            entry.members.swap_remove(at);
            for &id in &entry.topics {
                if let Some(topic) = topic_mut(&mut self.topics, id, self.shards) {
                    topic.leave(slot, sessions);
                }
            }
        } else {
            entry.waiters.retain(|&(waiter, _)| waiter != slot);
        }
        if !entry.members.is_empty() || !entry.waiters.is_empty() {
            return None;
        }
        let entry = self.entries[index as usize].take()?;
        self.free.push(index);
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
        let entries = &mut self.entries;
        self.patterns.matching(name, |&index| {
            if let Some(entry) = entries[index as usize].as_mut() {
                entry.topics.push(id);
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
        let entries = &mut self.entries;
        self.patterns.matching(&topic.name, |&index| {
            if let Some(entry) = entries[index as usize].as_mut() {
                entry.topics.retain(|&known| known != id);
            }
        });
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

    fn leave(&mut self, slot: u32, sessions: &mut Sessions) {
        let Some(session) = sessions.any_mut(slot) else { return };
        let Some(membership) = session.memberships.get_mut(&self.id) else { return };
        membership.references -= 1;
        if membership.references > 0 {
            return;
        }
        let position = membership.position;
        session.memberships.remove(&self.id);
        let members = &mut self.members[session.encoding as usize];
        members.swap_remove(position as usize);
        if let Some(&moved) = members.get(position as usize)
            && let Some(membership) =
                sessions.any_mut(moved).and_then(|moved| moved.memberships.get_mut(&self.id))
        {
            membership.position = position;
        }
    }
}
