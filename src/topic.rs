//! The home side of topics: assigns sequences, keeps the latest tick, knows which shards take which topic.

use std::collections::{HashMap, VecDeque};

use crate::{
    limits::TURN_SCAN_TOPICS,
    router::{self, PatternTrie},
    tick::{Sequence, ShardId, TopicId},
    wire::frame::{self, TickParts},
};

/// A set of shards, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardSet(u128);

impl ShardSet {
    /// Whether the shard is in it.
    pub fn contains(self, shard: ShardId) -> bool {
        self.0 >> shard.0 & 1 == 1
    }
    fn insert(&mut self, shard: ShardId) {
        self.0 |= 1 << shard.0;
    }
    fn remove(&mut self, shard: ShardId) {
        self.0 &= !(1 << shard.0);
    }
    fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// The shards in it, ascending.
    pub fn iter(self) -> impl Iterator<Item = ShardId> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let shard = (rest != 0).then(|| ShardId(rest.trailing_zeros() as u16))?;
            rest &= rest - 1;
            Some(shard)
        })
    }
}

/// A topic at its home.
#[derive(Debug)]
pub struct HomeTopic {
    /// Its name.
    pub name: Box<str>,
    /// Its id on the wire.
    pub id: TopicId,
    /// Sequence of the last tick; 0 before the first.
    pub sequence: Sequence,
    /// The last tick, as the frame that was sent. Empty before the first.
    pub latest: Vec<u8>,
    /// Shards that have a subscriber of it.
    pub interested: ShardSet,
}

impl HomeTopic {
    /// Gives a tick the next sequence and encodes it as the latest, once for all shards. No allocation once the
    /// buffer has grown to the topic's largest tick.
    pub fn advance(&mut self, tick: &TickParts<'_>) -> &[u8] {
        self.sequence.0 += 1;
        self.latest.clear();
        frame::encode_tick(&mut self.latest, self.id, self.sequence, tick);
        &self.latest
    }
}

/// What a shard that asked for a pattern is to be told.
#[derive(Debug)]
pub enum Notice<'a> {
    /// The shard now gets this topic's ticks.
    Open(ShardId, &'a HomeTopic),
    /// The shard no longer gets this topic's ticks.
    Close(ShardId, &'a HomeTopic),
    /// Every topic that matched when the shard asked has been opened. Names the request.
    Ready(ShardId, u32),
}

/// A walk over the topics for one shard's change of mind, done in pieces of [`TURN_SCAN_TOPICS`].
#[derive(Debug)]
struct Scan {
    shard: ShardId,
    pattern: Box<str>,
    /// The request to answer when opening; `None` when closing.
    request: Option<u32>,
    next: u32,
}

/// All topics whose home this shard is.
///
/// Invariant: a shard outside `interested` of a topic holds no pattern that matches it, once no scan is pending.
/// Invariant: scans run in the order they were asked for, so a close never overtakes the open after it.
#[derive(Debug)]
pub struct Home {
    shard: ShardId,
    shards: u16,
    topics_max: usize,
    topics: Vec<HomeTopic>,
    by_name: HashMap<Box<str>, u32>,
    /// Pattern -> shards that hold it.
    interest: PatternTrie<ShardSet>,
    /// Bound: [`crate::limits::SCANS_MAX`], and what the sessions that end add.
    scans: VecDeque<Scan>,
}

/// The home has as many topics as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyTopics;

impl Home {
    /// An empty home that sequences at most `topics_max` topics.
    pub fn new(shard: ShardId, shards: u16, topics_max: usize) -> Home {
        Home {
            shard,
            shards,
            topics_max,
            topics: Vec::new(),
            by_name: HashMap::new(),
            interest: PatternTrie::default(),
            scans: VecDeque::new(),
        }
    }

    /// The topic at an index that this home gave out.
    pub fn topic(&self, index: u32) -> &HomeTopic {
        &self.topics[index as usize]
    }

    /// The same, to advance it.
    pub fn topic_mut(&mut self, index: u32) -> &mut HomeTopic {
        &mut self.topics[index as usize]
    }

    /// Topics it has.
    pub fn len(&self) -> usize {
        self.topics.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    /// The topic of this name, made at its first tick. The flag says whether it is new: its interested shards are
    /// then to be told before the tick goes out.
    ///
    /// # Errors
    /// [`TooManyTopics`].
    pub fn find_or_create(&mut self, name: &str) -> Result<(u32, bool), TooManyTopics> {
        if let Some(&index) = self.by_name.get(name) {
            return Ok((index, false));
        }
        let index = self.topics.len() as u32;
        if self.topics.len() >= self.topics_max {
            return Err(TooManyTopics);
        }
        let id = TopicId::new(index, self.shard, self.shards).ok_or(TooManyTopics)?;
        let mut interested = ShardSet::default();
        self.interest.matching(name, |shards| interested.0 |= shards.0);
        self.by_name.insert(name.into(), index);
        self.topics.push(HomeTopic {
            name: name.into(),
            id,
            sequence: Sequence(0),
            latest: Vec::new(),
            interested,
        });
        Ok((index, true))
    }

    /// A shard has its first subscriber of `pattern`: topics that appear from now on are opened to it at once, those
    /// that exist as [`Home::scan`] comes to them, and then it is told that it is ready. A pattern that is a topic's
    /// name takes one look-up and is answered at once: it does not wait behind anybody's walk.
    pub fn add_interest(
        &mut self,
        shard: ShardId,
        pattern: &str,
        request: u32,
        mut notify: impl FnMut(Notice<'_>),
    ) {
        self.interest.at_or_insert(pattern, ShardSet::default).insert(shard);
        if !router::is_exact(pattern) {
            self.scans.push_back(Scan { shard, pattern: pattern.into(), request: Some(request), next: 0 });
            return;
        }
        if let Some(&index) = self.by_name.get(pattern) {
            let topic = &mut self.topics[index as usize];
            if !topic.interested.contains(shard) {
                topic.interested.insert(shard);
                notify(Notice::Open(shard, topic));
            }
        }
        notify(Notice::Ready(shard, request));
    }

    /// A shard has lost its last subscriber of `pattern`.
    pub fn remove_interest(&mut self, shard: ShardId, pattern: &str, mut notify: impl FnMut(Notice<'_>)) {
        let Some(shards) = self.interest.at_mut(pattern) else { return };
        shards.remove(shard);
        if shards.is_empty() {
            self.interest.remove(pattern);
        }
        if !router::is_exact(pattern) {
            self.scans.push_back(Scan { shard, pattern: pattern.into(), request: None, next: 0 });
        } else if let Some(&index) = self.by_name.get(pattern) {
            Self::close_if_unwanted(&self.interest, &mut self.topics[index as usize], shard, &mut notify);
        }
    }

    /// Walks that wait. Requests are to be held back while there are [`crate::limits::SCANS_MAX`].
    pub fn scans_len(&self) -> usize {
        self.scans.len()
    }

    /// Does a bounded piece of the pending walks, a look at each topic; `notify` gets what the shards are to be told, in
    /// order. Returns the topics looked at.
    pub fn scan(&mut self, mut notify: impl FnMut(Notice<'_>)) -> usize {
        let mut looked = 0;
        while looked < TURN_SCAN_TOPICS
            && let Some(scan) = self.scans.front_mut()
        {
            looked += 1;
            let Some(topic) = self.topics.get_mut(scan.next as usize) else {
                if let Some(Scan { shard, request: Some(request), .. }) = self.scans.pop_front() {
                    notify(Notice::Ready(shard, request));
                }
                continue;
            };
            scan.next += 1;
            let shard = scan.shard;
            let taken = topic.interested.contains(shard);
            if taken == scan.request.is_some() || !router::matches(&scan.pattern, &topic.name) {
                continue;
            }
            if taken {
                Self::close_if_unwanted(&self.interest, topic, shard, &mut notify);
            } else if self.interest.at_mut(&scan.pattern).is_some_and(|shards| shards.contains(shard)) {
                topic.interested.insert(shard);
                notify(Notice::Open(shard, topic));
            }
        }
        looked
    }

    /// Closes a topic to a shard unless another of its patterns takes it.
    fn close_if_unwanted(
        interest: &PatternTrie<ShardSet>,
        topic: &mut HomeTopic,
        shard: ShardId,
        notify: &mut impl FnMut(Notice<'_>),
    ) {
        if topic.interested.contains(shard)
            && !interest.matching_any(&topic.name, |shards| shards.contains(shard))
        {
            topic.interested.remove(shard);
            notify(Notice::Close(shard, topic));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ShardId = ShardId(0);
    const B: ShardId = ShardId(1);

    fn text(notice: Notice<'_>) -> String {
        match notice {
            Notice::Open(shard, topic) => format!("open {} {}", shard.0, topic.name),
            Notice::Close(shard, topic) => format!("close {} {}", shard.0, topic.name),
            Notice::Ready(shard, request) => format!("ready {} {request}", shard.0),
        }
    }

    fn notices(home: &mut Home) -> Vec<String> {
        let mut notices = Vec::new();
        while home.scans_len() > 0 {
            home.scan(|notice| notices.push(text(notice)));
        }
        notices
    }

    fn add(home: &mut Home, pattern: &str, request: u32) -> Vec<String> {
        let mut notices = Vec::new();
        home.add_interest(B, pattern, request, |notice| notices.push(text(notice)));
        notices
    }

    fn remove(home: &mut Home, pattern: &str) -> Vec<String> {
        let mut notices = Vec::new();
        home.remove_interest(B, pattern, |notice| notices.push(text(notice)));
        notices
    }

    #[test]
    fn interest_opens_existing_topics_then_says_ready() {
        let mut home = Home::new(A, 2, 10);
        for name in ["a.x", "b.x", "a.y"] {
            home.find_or_create(name).unwrap();
        }
        assert!(add(&mut home, "a.*", 7).is_empty());
        assert_eq!(notices(&mut home), ["open 1 a.x", "open 1 a.y", "ready 1 7"]);
        let (index, new) = home.find_or_create("a.z").unwrap();
        assert!(new && home.topic(index).interested.contains(B) && !home.topic(index).interested.contains(A));
    }

    #[test]
    fn interest_in_one_topic_does_not_wait_behind_walks() {
        let mut home = Home::new(A, 2, 10);
        home.find_or_create("a.x").unwrap();
        add(&mut home, ">", 1);
        assert_eq!(add(&mut home, "a.x", 2), ["open 1 a.x", "ready 1 2"]);
        assert_eq!(notices(&mut home), ["ready 1 1"], "it is open already");
        assert!(remove(&mut home, "a.x").is_empty(), "the other pattern still takes it");
    }

    #[test]
    fn interest_that_overlaps_outlives_the_other_pattern() {
        let mut home = Home::new(A, 2, 10);
        home.find_or_create("a.x").unwrap();
        home.find_or_create("a.y").unwrap();
        add(&mut home, ">", 1);
        add(&mut home, "a.x", 2);
        notices(&mut home);
        remove(&mut home, ">");
        assert_eq!(notices(&mut home), ["close 1 a.y"]);
        assert_eq!(remove(&mut home, "a.x"), ["close 1 a.x"]);
    }

    #[test]
    fn interest_that_comes_back_before_its_walk_keeps_its_topics() {
        let mut home = Home::new(A, 2, 10);
        home.find_or_create("a.x").unwrap();
        add(&mut home, "a.*", 1);
        notices(&mut home);
        remove(&mut home, "a.*");
        add(&mut home, "a.*", 2);
        assert_eq!(notices(&mut home), ["ready 1 2"]);
    }

    #[test]
    fn topics_are_bounded() {
        let mut home = Home::new(A, 1, 1);
        assert!(home.find_or_create("a").is_ok());
        assert_eq!(home.find_or_create("b"), Err(TooManyTopics));
        assert_eq!(home.find_or_create("a"), Ok((0, false)));
    }

    #[test]
    fn the_latest_tick_is_kept() {
        let mut home = Home::new(A, 1, 1);
        let (index, _) = home.find_or_create("a").unwrap();
        for n in 1..4u8 {
            home.topic_mut(index).advance(&TickParts { payload: &[n], ..TickParts::default() });
        }
        let topic = home.topic(index);
        let Ok(crate::wire::Step::Complete(_, frame)) = frame::decode(&topic.latest, 1024) else {
            panic!("frame")
        };
        assert_eq!((topic.sequence, frame.header.sequence, frame.payload()), (Sequence(3), 3, &[3u8][..]));
    }
}
