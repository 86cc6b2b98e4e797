//! The home side of topics: assigns sequences, keeps the latest tick, knows which shards take which topic.

use std::collections::{HashMap, VecDeque};

use crate::{
    limits::TURN_SCAN_TOPICS,
    router::{self, PatternTrie},
    tick::{Sequence, ShardId, TickTimes, TopicId},
    wire::frame,
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
    pub fn advance(&mut self, flags: u8, schema: u32, times: TickTimes, payload: &[u8]) -> &[u8] {
        self.sequence.0 += 1;
        self.latest.clear();
        frame::encode_tick(&mut self.latest, self.id, self.sequence, flags, schema, times, payload);
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
    /// Bound: one of each kind for a (shard, pattern) pair, and a shard holds at most its sessions' subscriptions.
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

    /// A shard has its first subscriber of `pattern`: topics that appear from now on are opened to it at once,
    /// those that exist as [`Home::scan`] comes to them, and then it is told that it is ready.
    pub fn add_interest(&mut self, shard: ShardId, pattern: &str, request: u32) {
        self.interest.at_or_insert(pattern, ShardSet::default).insert(shard);
        self.scans.push_back(Scan { shard, pattern: pattern.into(), request: Some(request), next: 0 });
    }

    /// A shard has lost its last subscriber of `pattern`.
    pub fn remove_interest(&mut self, shard: ShardId, pattern: &str) {
        let Some(shards) = self.interest.at_mut(pattern) else { return };
        shards.remove(shard);
        if shards.is_empty() {
            self.interest.remove(pattern);
        }
        self.scans.push_back(Scan { shard, pattern: pattern.into(), request: None, next: 0 });
    }

    /// Whether [`Home::scan`] has work.
    pub fn is_scanning(&self) -> bool {
        !self.scans.is_empty()
    }

    /// Does a bounded piece of the pending scans; `notify` gets what the shards are to be told, in order. Exact
    /// patterns cost one look-up, others a look at each topic. Returns the topics looked at.
    pub fn scan(&mut self, mut notify: impl FnMut(Notice<'_>)) -> usize {
        let mut looked = 0;
        while looked < TURN_SCAN_TOPICS
            && let Some(scan) = self.scans.front_mut()
        {
            looked += 1;
            let exact = router::is_exact(&scan.pattern);
            let index = if !exact {
                (scan.next < self.topics.len() as u32).then_some(scan.next)
            } else if scan.next == 0 {
                self.by_name.get(&scan.pattern).copied()
            } else {
                None
            };
            scan.next += 1;
            let Some(index) = index else {
                let scan = self.scans.pop_front();
                if let Some(Scan { shard, request: Some(request), .. }) = scan {
                    notify(Notice::Ready(shard, request));
                }
                continue;
            };
            let topic = &mut self.topics[index as usize];
            if !exact && !router::matches(&scan.pattern, &topic.name) {
                continue;
            }
            let mut wanted = false;
            self.interest.matching(&topic.name, |shards| wanted |= shards.contains(scan.shard));
            match (wanted, topic.interested.contains(scan.shard)) {
                (true, false) => {
                    topic.interested.insert(scan.shard);
                    notify(Notice::Open(scan.shard, topic));
                }
                (false, true) => {
                    topic.interested.remove(scan.shard);
                    notify(Notice::Close(scan.shard, topic));
                }
                _ => {}
            }
        }
        looked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ShardId = ShardId(0);
    const B: ShardId = ShardId(1);

    fn notices(home: &mut Home) -> Vec<String> {
        let mut notices = Vec::new();
        while home.is_scanning() {
            home.scan(|notice| {
                notices.push(match notice {
                    Notice::Open(shard, topic) => format!("open {} {}", shard.0, topic.name),
                    Notice::Close(shard, topic) => format!("close {} {}", shard.0, topic.name),
                    Notice::Ready(shard, request) => format!("ready {} {request}", shard.0),
                });
            });
        }
        notices
    }

    #[test]
    fn interest_opens_existing_topics_then_says_ready() {
        let mut home = Home::new(A, 2, 10);
        for name in ["a.x", "b.x", "a.y"] {
            home.find_or_create(name).unwrap();
        }
        home.add_interest(B, "a.*", 7);
        assert_eq!(notices(&mut home), ["open 1 a.x", "open 1 a.y", "ready 1 7"]);
        let (index, new) = home.find_or_create("a.z").unwrap();
        assert!(new && home.topic(index).interested.contains(B) && !home.topic(index).interested.contains(A));
    }

    #[test]
    fn interest_that_overlaps_outlives_the_other_pattern() {
        let mut home = Home::new(A, 2, 10);
        home.find_or_create("a.x").unwrap();
        home.find_or_create("a.y").unwrap();
        home.add_interest(B, ">", 1);
        home.add_interest(B, "a.x", 2);
        notices(&mut home);
        home.remove_interest(B, ">");
        assert_eq!(notices(&mut home), ["close 1 a.y"]);
        home.remove_interest(B, "a.x");
        home.add_interest(B, "a.x", 3);
        assert_eq!(notices(&mut home), ["ready 1 3"], "asked for again before the close was due");
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
            home.topic_mut(index).advance(0, 0, TickTimes::default(), &[n]);
        }
        let topic = home.topic(index);
        let Ok(crate::wire::Step::Complete(_, frame)) = frame::decode(&topic.latest, 1024) else {
            panic!("frame")
        };
        assert_eq!((topic.sequence, frame.header.sequence, frame.payload()), (Sequence(3), 3, &[3u8][..]));
    }
}
