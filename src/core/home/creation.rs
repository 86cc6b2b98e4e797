//! Creates topics within the limits of the session and the address that publish to them first.
//! A topic counts against the session and the source (the address) of its first tick until its slot is free again, even after
//! they have left. Otherwise a client could fill the table by reconnecting. Each session and source has an account with a count
//! and a token bucket.

use std::collections::{HashMap, hash_map::Entry};

use super::{Home, HomeTopic, LastSeen, PlaceState, StaleMark, history::History, last_value::LastValues};
use crate::{
    ids::{FeedId, SessionId, SourceId, UpstreamId},
    now::Now,
    token_bucket::{Bucket, Pace},
    topic_key,
};
use tickcast_proto::{
    ErrorCode,
    ids::{Sequence, ShardId, TopicId},
    logged::LogPosition,
};

/// The first publisher of a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Creator {
    /// The session and the shard that serves it; `None` for a source of this process, which has no limit.
    pub session: Option<(ShardId, SessionId)>,
    /// Where the session comes from.
    pub source: SourceId,
}

impl Creator {
    /// A number for the source or, if that has no limits, for the session. Two may share one; 0: a source of this process.
    pub(super) fn owner(self) -> u32 {
        match (self.source.is_limited(), self.session) {
            (true, _) => self.source.0,
            (false, Some((ShardId(shard), session))) => (u32::from(shard) << 20 | session.slot().0) + 1,
            (false, None) => 0,
        }
    }
}

/// How many topics clients may create, on the whole server. 0 is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CreationLimits {
    /// Live topics that one session has created.
    pub per_session: u32,
    /// Live topics that the sessions of one source have created.
    pub per_source: u32,
    /// Topics that one session, or the sessions of one source, may create per second. The burst is the limit on live topics.
    pub per_second: u32,
}

/// Why a topic is not created, or does not accept a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum TopicRefusal {
    /// The home has reached its limit of topics.
    Table = 0,
    /// The session has reached its limit of topics.
    Session = 1,
    /// The source has reached its limit of topics.
    Source = 2,
    /// The session or the source creates topics too fast.
    Rate = 3,
    /// The tenant has reached its quota of topics.
    Tenant = 4,
    /// Another tenant exports topics of this name to this tenant, which publishes none of its own.
    Imported = 5,
    /// A log feeds the topic, so only the log may add ticks.
    FedByLog = 6,
}

impl TopicRefusal {
    /// The refusal with this number; [`TopicRefusal::Table`] if it is unknown.
    pub fn from_number(number: u16) -> TopicRefusal {
        use TopicRefusal::*;
        [Session, Source, Rate, Tenant, Imported, FedByLog]
            .into_iter()
            .find(|known| *known as u16 == number)
            .unwrap_or(Table)
    }

    /// The code for the publisher.
    pub fn code(self) -> ErrorCode {
        match self {
            TopicRefusal::Table | TopicRefusal::Session | TopicRefusal::Source | TopicRefusal::Tenant => {
                ErrorCode::TooManyTopics
            }
            TopicRefusal::Rate => ErrorCode::RateLimited,
            TopicRefusal::Imported => ErrorCode::NotAllowed,
            TopicRefusal::FedByLog => ErrorCode::FedByLog,
        }
    }

    /// The text for the publisher.
    pub fn text(self) -> &'static str {
        match self {
            TopicRefusal::Table => "the server has reached its limit of topics (--topics-max)",
            TopicRefusal::Session => {
                "this session has created as many topics as one may (--topics-per-session-max)"
            }
            TopicRefusal::Source => {
                "clients of this address have created as many topics as they may (--topics-per-source-max)"
            }
            TopicRefusal::Tenant => "the tenant has as many topics as it may have (quota of its [[tenant]])",
            TopicRefusal::Imported => "another tenant exports the topic, and publishes it",
            TopicRefusal::FedByLog => {
                "a log feeds the topic, and the server has no way to publish to the log"
            }
            TopicRefusal::Rate => "topics are created faster than the server allows (--new-topics-rate)",
        }
    }
}

/// The accounts of a home. Bound: each has at least one topic.
#[derive(Debug)]
pub(super) struct Accounts {
    per_session: Terms,
    per_source: Terms,
    sessions: HashMap<(ShardId, SessionId), Account>,
    sources: HashMap<SourceId, Account>,
}

/// The limits on an account, as one home applies them.
#[derive(Clone, Copy, Debug)]
struct Terms {
    topics_max: u32,
    pace: Option<Pace>,
}

#[derive(Debug, Default)]
struct Account {
    topics: u32,
    bucket: Bucket,
}

impl Terms {
    fn new(topics_max: u32, per_second: u32, shards: u16) -> Terms {
        let topics_max = match topics_max {
            0 => u32::MAX,
            whole => whole.div_ceil(u32::from(shards)),
        };
        Terms { topics_max, pace: Pace::new(per_second, shards) }
    }

    /// Checks whether the account may have one more topic.
    fn admits(self, account: Option<&Account>, now_ns: u64, full: TopicRefusal) -> Result<(), TopicRefusal> {
        let Some(account) = account else { return Ok(()) };
        if account.topics >= self.topics_max {
            return Err(full);
        }
        let has_token = |pace| account.bucket.has_token(pace, self.topics_max, now_ns);
        self.pace.is_none_or(has_token).then_some(()).ok_or(TopicRefusal::Rate)
    }

    fn add(self, account: &mut Account, now_ns: u64) {
        account.topics += 1;
        if let Some(pace) = self.pace {
            account.bucket.spend(pace, now_ns);
        }
    }
}

impl Accounts {
    pub(super) fn new(limits: CreationLimits, shards: u16) -> Accounts {
        let CreationLimits { per_session, per_source, per_second } = limits;
        Accounts {
            per_session: Terms::new(per_session, per_second, shards),
            per_source: Terms::new(per_source, per_second, shards),
            sessions: HashMap::new(),
            sources: HashMap::new(),
        }
    }

    /// Changes the limits from now on. Existing topics stay.
    pub(super) fn set_limits(&mut self, limits: CreationLimits, shards: u16) {
        let Accounts { per_session, per_source, .. } = Accounts::new(limits, shards);
        (self.per_session, self.per_source) = (per_session, per_source);
    }

    fn admits(&self, creator: Creator, now_ns: u64) -> Result<(), TopicRefusal> {
        let Some(session) = creator.session else { return Ok(()) };
        self.per_session.admits(self.sessions.get(&session), now_ns, TopicRefusal::Session)?;
        let source = creator.source.is_limited().then(|| self.sources.get(&creator.source)).flatten();
        self.per_source.admits(source, now_ns, TopicRefusal::Source)
    }

    fn add(&mut self, creator: Creator, now_ns: u64) {
        let Some(session) = creator.session else { return };
        self.per_session.add(self.sessions.entry(session).or_default(), now_ns);
        if creator.source.is_limited() {
            self.per_source.add(self.sources.entry(creator.source).or_default(), now_ns);
        }
    }

    /// Subtracts a topic from its creator's accounts.
    pub(super) fn remove(&mut self, creator: Creator) {
        if let Some(session) = creator.session {
            take_one(self.sessions.entry(session));
            if creator.source.is_limited() {
                take_one(self.sources.entry(creator.source));
            }
        }
    }

    /// Bytes of the accounts.
    pub(super) fn memory_bytes(&self) -> usize {
        self.sessions.capacity() * size_of::<((ShardId, SessionId), Account)>()
            + self.sources.capacity() * size_of::<(SourceId, Account)>()
    }

    pub(super) fn invariants(&self, topics: usize) {
        assert!(self.sessions.len() <= topics && self.sources.len() <= topics, "each account has a topic");
    }
}

fn take_one<K>(entry: Entry<'_, K, Account>) {
    let Entry::Occupied(mut entry) = entry else {
        return debug_assert!(false, "a topic counts for its creator");
    };
    entry.get_mut().topics -= 1;
    if entry.get().topics == 0 {
        entry.remove();
    }
}

/// A topic that [`Home::find_or_create`] found or created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicLookup {
    /// Its index in the home.
    pub index: u32,
    /// Whether the topic is new: the caller must then open it to the interested shards before its first tick goes out.
    pub is_new: bool,
}

impl Home {
    /// Changes how many topics clients may create.
    pub fn set_creation(&mut self, limits: CreationLimits) {
        self.accounts.set_limits(limits, self.shards);
    }

    /// Finds the topic with this key for a publish, or creates it. A new topic's epoch is the time in microseconds since 1970,
    /// or one more than the last epoch if the clock stood still or went back. So epochs strictly increase, and a restarted
    /// server does not repeat them. They stay below 2^53 until the year 2255.
    ///
    /// # Errors
    /// The limit that the new topic would exceed, or why the topic takes no publishes.
    pub fn find_or_create(
        &mut self,
        key: &str,
        creator: Creator,
        now: Now,
    ) -> Result<TopicLookup, TopicRefusal> {
        if let Some(&index) = self.by_key.get(key) {
            self.takes_publishes(index)?;
            return Ok(TopicLookup { index, is_new: false });
        }
        self.accounts.admits(creator, now.monotonic_ns)?;
        let index = self.create_of_tenant(key, creator, None, now)?;
        Ok(TopicLookup { index, is_new: true })
    }

    /// Creates the topic with this key, which a log feeds from now on. The epoch is the log's.
    ///
    /// # Errors
    /// The limit that the new topic would exceed.
    pub(super) fn create_fed(&mut self, key: &str, at: &LogPosition, now: Now) -> Result<u32, TopicRefusal> {
        self.create_of_tenant(key, Creator::default(), Some(at), now)
    }

    /// Creates a topic if its tenant's imports and quota allow it.
    fn create_of_tenant(
        &mut self,
        key: &str,
        creator: Creator,
        log: Option<&LogPosition>,
        now: Now,
    ) -> Result<u32, TopicRefusal> {
        if self.tenancy.is_imported(key) {
            return Err(TopicRefusal::Imported);
        }
        if !self.tenancy.take_topic(key) {
            return Err(TopicRefusal::Tenant);
        }
        let created = self.create(key, creator, log, now);
        if created.is_err() {
            self.tenancy.give_back_topic(key);
        }
        created
    }

    fn create(
        &mut self,
        key: &str,
        creator: Creator,
        log: Option<&LogPosition>,
        now: Now,
    ) -> Result<u32, TopicRefusal> {
        // Places are reused as late as possible, and so are ids: with 65,536 places on all shards, the ids of a place repeat
        // after 65,536 lives.
        let is_full = self.topics.len() >= self.topics_max;
        let reused = if is_full { self.idle.vacant.pop_front() } else { None };
        let (index, id) = match reused {
            None if is_full || self.topics.try_reserve(1).is_err() => return Err(TopicRefusal::Table),
            None => {
                let index = self.topics.len() as u32;
                (index, TopicId::new(index, self.shard, self.shards).ok_or(TopicRefusal::Table)?)
            }
            Some(index) => {
                let before = self.topics[index as usize].id;
                (index, before.next_life(self.shard, self.shards, self.places))
            }
        };
        self.accounts.add(creator, now.monotonic_ns);
        let interested = self.interest.of(key);
        let epoch = match log {
            Some(log) => log.epoch,
            None => {
                self.epoch_last = (now.realtime_ns / 1_000).max(self.epoch_last + 1);
                self.epoch_last
            }
        };
        self.by_key.insert(key.into(), index);
        let name = topic_key::name(key);
        // The server's epoch never stands for that of a log.
        let is_first_life = log.is_none() && self.lives.is_first(key);
        let topic = HomeTopic {
            key: key.into(),
            id,
            creator,
            epoch,
            fed_by: log.map(|log| log.source),
            feed: FeedId::NONE,
            upstream: UpstreamId::NONE,
            mark: StaleMark::default(),
            sequence: Sequence(0),
            last_values: LastValues::default(),
            // What came before this life is not known here.
            history: if is_first_life { History::default() } else { History::after(now.monotonic_ns) },
            bounds: self.retention.history.of(name),
            interested,
            is_first_life,
            place: PlaceState::Open,
            last_seen: LastSeen { idle_ns: self.idle.rules.of(name), ..LastSeen::default() },
        };
        match self.topics.get_mut(index as usize) {
            Some(place) => *place = topic,
            None => {
                self.topics.push(topic);
                self.marks.note_new_topic();
                self.lapses.note_new_topic();
            }
        }
        self.invariants();
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::limited_home, *};
    use crate::ids::SlotId;

    const SECOND: u64 = 1_000_000_000;

    fn session(n: u32, source: u32) -> Creator {
        let session = Some((ShardId(0), SessionId::new(n, SlotId(0))));
        Creator { session, source: SourceId(source) }
    }

    /// Publishes to new topics until one is refused. Returns how many were created, at most 100.
    fn create(home: &mut Home, creator: Creator, at_ns: u64) -> (usize, Option<TopicRefusal>) {
        let now = Now { monotonic_ns: at_ns, realtime_ns: at_ns };
        for count in 0..100 {
            let name = format!("t.{}", home.epoch_last);
            if let Err(refusal) = home.find_or_create(&name, creator, now) {
                return (count, Some(refusal));
            }
        }
        (100, None)
    }

    #[test]
    fn a_session_and_a_source_may_create_so_many_topics_and_others_still_may() {
        let limits = CreationLimits { per_session: 10, per_source: 15, per_second: 0 };
        let mut home = limited_home(limits, 60);
        assert_eq!(create(&mut home, session(1, 7), 0), (10, Some(TopicRefusal::Session)));
        assert_eq!(
            create(&mut home, session(2, 7), 0),
            (5, Some(TopicRefusal::Source)),
            "of the same source"
        );
        assert_eq!(create(&mut home, session(3, 8), 0), (10, Some(TopicRefusal::Session)), "of another");
        // Sources behind a proxy or on this machine.
        for n in 4..6 {
            assert_eq!(create(&mut home, session(n, 0), 0).0, 10);
        }
        assert_eq!(create(&mut home, Creator::default(), 0), (15, Some(TopicRefusal::Table)));
        let now = Now { monotonic_ns: 0, realtime_ns: 0 };
        let name = home.topic(0).key.clone();
        assert!(home.find_or_create(&name, session(1, 7), now).is_ok(), "topics that exist take ticks");
    }

    #[test]
    fn topics_count_until_they_are_forgotten() {
        let limits = CreationLimits { per_session: 10, per_source: 10, per_second: 0 };
        let mut home = limited_home(limits, 60);
        assert_eq!(create(&mut home, session(1, 7), 0).0, 10);
        // The session has left, and another one comes.
        assert_eq!(create(&mut home, session(2, 7), 0), (0, Some(TopicRefusal::Source)));
        for at_ns in [SECOND, 3 * SECOND] {
            home.advance_idle_walk(usize::MAX, at_ns, &mut |_| true);
        }
        assert!(home.is_empty() && home.accounts.sessions.is_empty() && home.accounts.sources.is_empty());
        assert_eq!(create(&mut home, session(2, 7), 0), (10, Some(TopicRefusal::Session)));
    }

    #[test]
    fn new_topics_come_at_a_rate_once_as_many_as_one_may_have_have_come_at_once() {
        let limits = CreationLimits { per_session: 20, per_source: 0, per_second: 2 };
        let mut home = limited_home(limits, 200);
        assert_eq!(create(&mut home, session(1, 0), 0).0, 20);
        // All but one, which keeps the account, are forgotten.
        for at_ns in [SECOND, 3 * SECOND] {
            let now = Now { monotonic_ns: at_ns, realtime_ns: at_ns };
            let TopicLookup { index, .. } = home.find_or_create("t.5", session(1, 0), now).unwrap();
            super::super::tests::advance(&mut home, index, 0, b"1");
            home.advance_idle_walk(usize::MAX, at_ns, &mut |_| true);
        }
        assert_eq!(home.len(), 1);
        assert_eq!(create(&mut home, session(1, 0), 3 * SECOND), (6, Some(TopicRefusal::Rate)));
        assert_eq!(create(&mut home, session(1, 0), 4 * SECOND), (2, Some(TopicRefusal::Rate)));
    }

    #[test]
    fn limits_are_divided_among_the_homes_and_0_is_none() {
        let limits = CreationLimits { per_session: 10, per_source: 0, per_second: 0 };
        assert_eq!(Terms::new(limits.per_session, 0, 4).topics_max, 3);
        let mut home = limited_home(CreationLimits::default(), 300);
        assert_eq!(create(&mut home, session(1, 7), 0), (100, None));
    }
}
