//! The home side of topics: sequencing, last values, history, and which shards subscribe to which topics.

mod backfill;
pub mod creation;
pub mod history;
mod idle;
mod interest;
mod lapse;
pub mod last_value;
mod logged;
pub mod lookup;
mod message_ids;
mod shard_set;
mod stale;
mod tenancy;

use std::{collections::HashMap, sync::Arc};

pub use self::{
    backfill::{
        Backfill, CHUNK_AHEAD, CHUNK_EPOCH_PASSED, CHUNK_IN_LOG, CHUNK_LAST, CHUNK_NOT_RECOVERED,
        CHUNK_RECOVERED, CHUNK_VALUES_LOST, HistoryChunk, InLog, SINCE_UNKNOWN_NS,
    },
    creation::{CreationLimits, Creator, TopicLookup, TopicRefusal},
    interest::{NAME_BYTES, wildcard_bytes},
    logged::LoggedTopic,
    message_ids::{MessageIdBounds, TickPosition},
    shard_set::ShardSet,
    stale::StaleMark,
};
use crate::{
    home::{
        creation::Accounts,
        history::{History, HistoryBounds},
        idle::{Idle, LastSeen, Lives, PlaceState},
        interest::Interest,
        lapse::Lapses,
        last_value::{LastValues, LastValuesBudget},
        logged::UnkeptPositions,
        message_ids::MessageIds,
        stale::FeedMarks,
        tenancy::Tenancy,
    },
    ids::{FeedId, TenantId, UpstreamId},
    limits::{LAST_VALUES_LOOKS_MAX, TURN_TRIM_BYTES, TURN_TRIM_TOPICS},
    tenants::Tenants,
    topic_key,
};
use tickcast_proto::{
    frame::{self, Frame, Kind, TickParts},
    ids::{Places, Sequence, ShardId, TopicId},
    pattern,
    records::FrameHeader,
    subscription::Rules,
};

/// How much of each topic's past a home keeps.
#[derive(Clone, Debug)]
pub struct Retention {
    /// Bounds of histories, by topic.
    pub history: Rules<HistoryBounds>,
    /// Maximum bytes of the histories of all topics of the home.
    pub history_bytes_max: usize,
    /// Budget of the last values of all topics of the home.
    pub last_values: LastValuesBudget,
    /// Idle time after which a topic is forgotten, by topic, nanoseconds; 0: never.
    pub idle: Rules<u64>,
    /// Bounds of the message ids.
    pub message_ids: MessageIdBounds,
}

/// A topic at its home.
#[derive(Debug)]
pub struct HomeTopic {
    /// Key: tenant and name.
    pub key: Box<str>,
    /// Id on the wire.
    pub id: TopicId,
    /// The creator whose account it counts against.
    creator: Creator,
    /// Epoch of this life of the topic: see [`Home::find_or_create`].
    pub epoch: u64,
    /// Number of the source whose log feeds it; `None`: clients and other sources publish to it, and the home assigns sequences.
    fed_by: Option<u32>,
    /// The feed that published to it last; [`FeedId::NONE`]: only clients, and sources that mark no topics.
    feed: FeedId,
    /// The subscription of a source that subscribes on demand, from which its ticks come.
    upstream: UpstreamId,
    /// Whether it is marked as stale.
    pub mark: StaleMark,
    /// Sequence of the last tick; 0 before the first.
    pub sequence: Sequence,
    /// Last value of each key, as the frames sent to the shards.
    pub last_values: LastValues,
    history: History,
    bounds: HistoryBounds,
    /// Shards with a subscriber.
    pub interested: ShardSet,
    /// Whether the home knows of no earlier life since the server started.
    is_first_life: bool,
    place: PlaceState,
    last_seen: LastSeen,
}

impl HomeTopic {
    /// Its name, as clients see it.
    pub fn name(&self) -> &str {
        topic_key::name(&self.key)
    }

    /// The tenant that it belongs to.
    pub fn tenant(&self) -> TenantId {
        topic_key::split(&self.key).0
    }

    /// Whose work it is to open the topic on the shards: its creator's address or, if that has no limits, its creator. 0: a source
    /// of this process.
    pub fn owner(&self) -> u32 {
        self.creator.owner()
    }

    /// The topic's recent ticks.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Whether a log feeds it, so that its sequences are positions in the log.
    pub fn is_logged(&self) -> bool {
        self.fed_by.is_some()
    }

    /// Whether it accepts ticks. A forgotten topic does not.
    pub fn is_open(&self) -> bool {
        self.place == PlaceState::Open
    }
}

/// A tick that its home has just sequenced.
#[derive(Clone, Copy, Debug)]
pub struct Sequenced<'a> {
    /// The tick's frame, the same for every shard.
    pub tick: Frame<'a>,
    /// The shards that receive it.
    pub interested: ShardSet,
}

/// A message to a shard that registered interest in a pattern.
#[derive(Debug)]
pub enum InterestEvent<'a> {
    /// The shard receives this topic's ticks from now on.
    Open(ShardId, &'a HomeTopic),
    /// The shard no longer receives this topic's ticks.
    Close(ShardId, &'a HomeTopic),
    /// The home has forgotten this topic. The shard answers once it has forgotten it too: see [`Home::handle_forgotten`].
    Forget(ShardId, &'a HomeTopic),
    /// The topic's mark has changed.
    Mark(ShardId, &'a HomeTopic),
    /// Every topic that matched when the shard registered has been opened. Contains the request's number.
    Ready(ShardId, u32),
}

/// Cost of forgetting a topic, in units of the walk: frees its history, and sends a message to each shard that knows it.
const FORGET_UNITS: usize = 32;

/// Number of topics whose interest [`Home::invariants`] checks: all of them in most tests, and cheap with many topics.
const TOPICS_CHECKED: usize = 16;

/// All topics that one shard sequences.
///
/// Invariant: while [`Home::is_walking`] is `false`, a topic's `interested` are exactly the shards with a pattern that
/// matches it.
#[derive(Debug)]
pub struct Home {
    shard: ShardId,
    shards: u16,
    /// The largest epoch given to a topic.
    epoch_last: u64,
    topics_max: usize,
    places: Places,
    retention: Retention,
    /// Bytes by which the histories may still grow. Negative after the bound was lowered: bytes that they must free.
    history_left_bytes: isize,
    /// Next topic whose history must be trimmed to lowered bounds; `None` if no trim is pending.
    trim_next: Option<usize>,
    /// Index of the next topic whose last values are evicted to make room.
    evict_next: usize,
    /// Topics whose last values were evicted since the count was last taken.
    last_values_evicted: u64,
    /// Frame of a tick that its topic has no room to keep.
    unkept: Vec<u8>,
    topics: Vec<HomeTopic>,
    by_key: HashMap<Box<str>, u32>,
    interest: Interest,
    idle: Idle,
    lives: Lives,
    unkept_positions: UnkeptPositions,
    accounts: Accounts,
    tenancy: Tenancy,
    message_ids: MessageIds,
    marks: FeedMarks,
    lapses: Lapses,
}

impl Home {
    /// Creates an empty home that sequences at most `topics_max` topics. `server_epoch`: microseconds since 1970 when the server
    /// started. All names of topics and patterns passed to it are [keys](crate::topic_key).
    pub fn new(
        shard: ShardId,
        shards: u16,
        server_epoch: u64,
        topics_max: usize,
        limits: CreationLimits,
        retention: Retention,
        tenants: Arc<Tenants>,
    ) -> Home {
        Home {
            shard,
            shards,
            epoch_last: server_epoch,
            topics_max,
            places: Places::new(topics_max),
            history_left_bytes: signed(retention.history_bytes_max),
            idle: Idle::new(retention.idle.clone()),
            lives: Lives::default(),
            unkept_positions: UnkeptPositions::default(),
            accounts: Accounts::new(limits, shards),
            trim_next: None,
            message_ids: MessageIds::new(retention.message_ids),
            retention,
            evict_next: 0,
            last_values_evicted: 0,
            unkept: Vec::new(),
            topics: Vec::new(),
            by_key: HashMap::new(),
            interest: Interest::new(shards, tenants.exports().clone()),
            tenancy: Tenancy::new(shard, tenants),
            marks: FeedMarks::default(),
            lapses: Lapses::default(),
        }
    }

    /// Changes how much of the past is kept. Existing histories follow at their topic's next tick or when
    /// [`Home::trim`] reaches them. O(topics) if the rules changed.
    pub fn set_retention(
        &mut self,
        history: Rules<HistoryBounds>,
        history_bytes_max: usize,
        keys_max: usize,
    ) {
        let taken = signed(self.retention.history_bytes_max) - self.history_left_bytes;
        self.history_left_bytes = signed(history_bytes_max) - taken;
        self.trim_next = Some(0);
        if history != self.retention.history {
            for topic in &mut self.topics {
                topic.bounds = history.of(topic.name());
            }
        }
        self.retention.last_values.keys_max = keys_max;
        (self.retention.history, self.retention.history_bytes_max) = (history, history_bytes_max);
        self.invariants();
    }

    /// Changes the tenants' quotas. Existing usage remains; exports cannot change.
    pub fn set_tenants(&mut self, tenants: Arc<Tenants>) {
        self.tenancy.set_tenants(tenants);
    }

    /// Whether a trim is pending.
    pub fn is_trimming(&self) -> bool {
        self.trim_next.is_some()
    }

    /// Trims histories, including those of silent topics, to their bounds and to the common budget. Stops after
    /// [`TURN_TRIM_BYTES`] were copied or [`TURN_TRIM_TOPICS`] visited. Returns the number of topics visited.
    pub fn trim(&mut self, now_ns: u64) -> usize {
        let Some(first) = self.trim_next else { return 0 };
        let (mut next, mut copied) = (first, 0);
        while next < self.topics.len() && next - first < TURN_TRIM_TOPICS && copied < TURN_TRIM_BYTES {
            let HomeTopic { key, history, bounds, .. } = &mut self.topics[next];
            self.tenancy.with_budget(key, &mut self.history_left_bytes, |left| {
                copied += history.trim(*bounds, now_ns, left);
                false
            });
            next += 1;
        }
        // Each pass halves the histories, so a few passes suffice.
        self.trim_next = match next < self.topics.len() {
            true => Some(next),
            false => (self.history_left_bytes < 0 && next > 0).then_some(0),
        };
        self.invariants();
        next - first
    }

    /// The topic at an index that this home assigned.
    pub fn topic(&self, index: u32) -> &HomeTopic {
        &self.topics[index as usize]
    }

    /// The last values of a topic that this home sequences; `None` for a topic of another home.
    pub fn last_values(&self, id: TopicId) -> Option<&LastValues> {
        let at = self.index_of(id).filter(|_| id.home(self.shards) == self.shard)?;
        self.topics.get(at).filter(|topic| topic.id == id).map(|topic| &topic.last_values)
    }

    /// Assigns the next sequence to a tick and encodes it as the topic's last value, once for all shards. Once the buffers have
    /// grown to the topic's largest tick, only keys allocate.
    pub fn sequence(&mut self, index: u32, tick: &TickParts<'_>, now_ns: u64) -> Sequenced<'_> {
        let HomeTopic { id, sequence: Sequence(last), .. } = self.topics[index as usize];
        let (len, sequence) = (frame::tick_len(tick.key, tick.payload.len()), Sequence(last + 1));
        self.keep(index, sequence, (tick.key, len), now_ns, |out| frame::encode_tick(out, id, sequence, tick))
    }

    /// Keeps a tick with this sequence, key and frame length. `encode` appends the frame.
    #[inline(always)]
    fn keep(
        &mut self,
        index: u32,
        sequence: Sequence,
        (key, len): (u64, usize),
        now_ns: u64,
        encode: impl Fn(&mut Vec<u8>) -> FrameHeader,
    ) -> Sequenced<'_> {
        let wanted = self.topics[index as usize].last_values.bytes_wanted(key, len);
        if wanted > self.retention.last_values.bytes_left {
            self.evict_last_values(index, wanted);
        }
        let topic = &mut self.topics[index as usize];
        topic.sequence = sequence;
        let mut header = FrameHeader::default();
        let mut encode = |out: &mut Vec<u8>| header = encode(out);
        let budget = &mut self.retention.last_values;
        let bytes = match topic.last_values.store(sequence.0, key, len, budget, &mut encode) {
            true => topic.last_values.last_frame(),
            false => {
                self.last_values_evicted += 1;
                self.unkept.clear();
                encode(&mut self.unkept);
                &self.unkept
            }
        };
        let left = &mut self.history_left_bytes;
        let HomeTopic { key, history, bounds, .. } = topic;
        self.tenancy.with_budget(key, left, |left| history.push(sequence.0, bytes, *bounds, now_ns, left));
        let tick = Frame { header, kind: Kind::Tick, bytes };
        Sequenced { tick, interested: topic.interested }
    }

    /// Evicts last values of the topics updated longest ago, to make room for `wanted` bytes of the topic at `index`. Checks at
    /// most [`LAST_VALUES_LOOKS_MAX`] topics, and spares topics so small that evicting as many of them would not make room.
    #[cold]
    fn evict_last_values(&mut self, index: u32, wanted: usize) {
        let budget = &mut self.retention.last_values;
        for _ in 0..LAST_VALUES_LOOKS_MAX.min(self.topics.len()) {
            if wanted <= budget.bytes_left {
                return;
            }
            let at = self.evict_next % self.topics.len();
            self.evict_next = at + 1;
            let last_values = &mut self.topics[at].last_values;
            if at != index as usize
                && last_values.memory_bytes() * LAST_VALUES_LOOKS_MAX >= wanted
                && !last_values.take_recent()
            {
                last_values.evict(budget);
                self.last_values_evicted += 1;
            }
        }
    }

    /// Returns the number of topics whose last values were evicted since the last call.
    pub fn take_last_values_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.last_values_evicted)
    }

    /// Memory of the topics' histories and last values, of the accounts of their creators, and of message ids, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let kept = |topic: &HomeTopic| topic.history.memory_bytes() + topic.last_values.memory_bytes();
        self.topics.iter().map(kept).sum::<usize>()
            + self.accounts.memory_bytes()
            + self.message_ids.memory_bytes()
    }

    /// Number of topics.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Number of places for topics, from index 0. Some may be vacant.
    pub fn places(&self) -> usize {
        self.topics.len()
    }

    /// Index of a topic of this home.
    fn index_of(&self, id: TopicId) -> Option<usize> {
        Some(id.place(self.shards, self.places)? as usize)
    }

    /// Whether there is no topic.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Registers a shard's first subscriber of `pattern`. New topics are opened to the shard at once, existing ones as
    /// [`Home::advance_walk`] reaches them; then the shard gets `Ready`. A pattern without wildcards takes one look-up and is
    /// answered at once.
    pub fn add_interest(
        &mut self,
        shard: ShardId,
        pattern: &str,
        request: u32,
        notify: &mut dyn FnMut(InterestEvent<'_>) -> bool,
    ) {
        if !pattern::is_exact(pattern) {
            return self.interest.add_wildcard(shard, pattern, request, self.topics.len());
        }
        self.interest.add_exact(shard, pattern);
        if let Some(&index) = self.by_key.get(pattern) {
            let topic = &mut self.topics[index as usize];
            if !topic.interested.contains(shard) {
                topic.interested.insert(shard);
                notify(InterestEvent::Open(shard, topic));
            }
        }
        notify(InterestEvent::Ready(shard, request));
        self.invariants();
    }

    /// Removes a shard's interest after its last subscriber of `pattern` has left. The topics of a wildcard are closed as
    /// [`Home::advance_walk`] reaches them.
    pub fn remove_interest(
        &mut self,
        shard: ShardId,
        pattern: &str,
        notify: &mut dyn FnMut(InterestEvent<'_>) -> bool,
    ) {
        self.interest.remove(shard, pattern, self.topics.len());
        if pattern::is_exact(pattern)
            && let Some(&index) = self.by_key.get(pattern)
        {
            let topic = &mut self.topics[index as usize];
            if topic.interested.contains(shard) && !self.interest.of(&topic.key).contains(shard) {
                topic.interested.remove(shard);
                notify(InterestEvent::Close(shard, topic));
            }
        }
        self.invariants();
    }

    /// Returns whether existing topics still have to be updated to changed interest.
    pub fn is_walking(&self) -> bool {
        self.interest.has_work()
    }

    /// Updates existing topics to changed interest, for about `units` of [`limits::TURN_INTEREST_UNITS`]. `notify` receives the
    /// messages for the shards in order, and returns whether they accept more. Returns the units used.
    ///
    /// [`limits::TURN_INTEREST_UNITS`]: crate::limits::TURN_INTEREST_UNITS
    pub fn advance_walk(&mut self, units: usize, notify: &mut dyn FnMut(InterestEvent<'_>) -> bool) -> usize {
        let used = self.interest.advance(&mut self.topics, units, notify);
        if used > 0 {
            self.invariants();
        }
        used
    }

    /// Checks the tables against each other, and the interest of the first [`TOPICS_CHECKED`] topics.
    fn invariants(&self) {
        if cfg!(debug_assertions) {
            assert_eq!(
                self.topics.len() - self.idle.vacant.len() - self.idle.closing,
                self.by_key.len(),
                "every topic has its key in the table"
            );
            assert!(self.topics.len() <= self.topics_max, "topics are bounded");
            self.accounts.invariants(self.topics.len());
            self.mark_invariants(TOPICS_CHECKED);
            assert!(
                self.trim_next.is_none_or(|next| next <= self.topics.len()),
                "a trim stays within the topics"
            );
            assert!(
                self.history_left_bytes <= signed(self.retention.history_bytes_max),
                "histories return no more bytes than they took"
            );
            if !self.interest.is_settled() {
                return;
            }
            for topic in self.topics.iter().filter(|topic| topic.is_open()).take(TOPICS_CHECKED) {
                assert_eq!(
                    topic.interested,
                    self.interest.of(&topic.key),
                    "a shard gets the topics that its patterns match"
                );
            }
        }
    }
}

/// Converts a bound that may be `usize::MAX` to a signed budget.
fn signed(bytes: usize) -> isize {
    isize::try_from(bytes).unwrap_or(isize::MAX)
}

#[cfg(test)]
mod tests;
