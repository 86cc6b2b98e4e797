//! Reads a home's topics for an HTTP request: their names, last values or history, one bounded piece at a time.

use super::{Home, HomeTopic};
use crate::{
    limits::{HISTORY_CHUNK_BYTES, TURN_SURVEYED},
    placement,
    tenants::Exports,
};
use tickcast_proto::{
    frame::{self, HeaderFields, Kind},
    ids::TopicId,
    pattern,
    records::Published,
};

/// Where a page of topics begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageStart {
    /// The topic's place.
    pub place: u32,
    /// The first sequence wanted of that topic.
    pub sequence: u64,
    /// Identifies the topic and its life. If its place holds another by now, all of that one is wanted. 0 while `sequence` is
    /// 0.
    pub life: u64,
}

/// What a request looks for, and where it continues.
#[derive(Clone, Copy, Debug)]
pub struct TopicsWanted<'a> {
    /// The [key](crate::topic_key) of a pattern.
    pub pattern: &'a str,
    /// Where to begin.
    pub from: PageStart,
    /// Maximum number of items: last values if they are wanted, else topics.
    pub limit: usize,
    /// Whether last values are wanted.
    pub wants_values: bool,
}

/// Progress of a search.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopicsFound {
    /// Where to continue; `None`: nothing is left.
    pub next: Option<PageStart>,
    /// Topics visited, and values copied.
    pub units: usize,
}

/// A piece of a topic's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TicksFound {
    /// The topic.
    pub id: TopicId,
    /// Its epoch.
    pub epoch: u64,
    /// Its last sequence.
    pub last: u64,
    /// The first wanted sequence that is kept; earlier ones are lost.
    pub start: u64,
    /// Whether ticks follow the last one found.
    pub has_more: bool,
}

impl HomeTopic {
    /// Identifies the topic and its life. The topics of one log share an epoch, so the key is part of it.
    fn life(&self) -> u64 {
        placement::name_hash(&self.key) ^ self.epoch
    }
}

impl Home {
    /// Appends topics: for each a PUBLISHED frame with its key, epoch and last sequence, then its last values as TICK frames if
    /// they are wanted. Stops after [`TURN_SURVEYED`] units or about [`HISTORY_CHUNK_BYTES`].
    pub fn find_topics(
        &self,
        wanted: &TopicsWanted<'_>,
        exports: &Exports,
        out: &mut Vec<u8>,
    ) -> TopicsFound {
        let TopicsWanted { pattern, from, mut limit, .. } = *wanted;
        let mut found = TopicsFound::default();
        let is_exact = pattern::is_exact(pattern);
        let end = match is_exact {
            true => self.by_key.get(pattern).map_or(0, |index| index + 1),
            false => self.topics.len() as u32,
        };
        let mut at = if is_exact { end.saturating_sub(1) } else { from.place };
        let PageStart { mut sequence, life, .. } = from;
        while at < end {
            let topic = &self.topics[at as usize];
            found.units += 1;
            if sequence > 0 && life != topic.life() {
                sequence = 0;
            }
            let page_start = |sequence: u64| PageStart {
                place: at,
                sequence,
                life: if sequence > 0 { topic.life() } else { 0 },
            };
            if topic.is_open() && (is_exact || exports.matches(pattern, &topic.key)) {
                if limit == 0 || out.len() >= HISTORY_CHUNK_BYTES {
                    found.next = Some(page_start(sequence));
                    break;
                }
                let fields = HeaderFields {
                    topic_id: topic.id.0,
                    sequence: topic.sequence.0,
                    ..HeaderFields::default()
                };
                let record = Published { epoch: topic.epoch, ..Published::default() };
                frame::encode(out, Kind::Published, fields, &record, &[topic.key.as_bytes()]);
                if !wanted.wants_values {
                    limit -= 1;
                } else {
                    for (sequence, tick) in topic.last_values.since(sequence) {
                        if limit == 0 || out.len() >= HISTORY_CHUNK_BYTES {
                            found.next = Some(page_start(sequence));
                            return found;
                        }
                        out.extend_from_slice(tick);
                        limit -= 1;
                        found.units += 1;
                    }
                }
            }
            at += 1;
            sequence = 0;
            if found.units >= TURN_SURVEYED && at < end {
                found.next = Some(PageStart { place: at, ..PageStart::default() });
                break;
            }
        }
        found
    }

    /// Appends ticks of a topic as TICK frames, from a sequence on: at most `limit`, and about [`HISTORY_CHUNK_BYTES`]. If
    /// `epoch` is not the topic's, from the oldest kept. `None` if there is no such topic.
    pub fn find_ticks(
        &mut self,
        key: &str,
        epoch: Option<u64>,
        from: u64,
        limit: usize,
        now_ns: u64,
        out: &mut Vec<u8>,
    ) -> Option<TicksFound> {
        let index = *self.by_key.get(key)?;
        let topic = &mut self.topics[index as usize];
        let (id, last) = (topic.id, topic.sequence.0);
        let from = if epoch.is_none_or(|epoch| epoch == topic.epoch) { from } else { 1 };
        let (oldest, kept_from) = topic.kept_from(now_ns);
        let last_frame = topic.last_values.last_frame();
        let start = from.max(kept_from);
        let (mut taken, mut has_more) = (0, false);
        let mut take = |tick: &[u8]| {
            let takes = taken < limit && (taken == 0 || out.len() + tick.len() <= HISTORY_CHUNK_BYTES);
            match takes {
                true => {
                    out.extend_from_slice(tick);
                    taken += 1;
                }
                false => has_more = true,
            }
            takes
        };
        if oldest.is_some() {
            let _ = topic.history.since(start).all(|(_, tick)| take(tick));
        } else if start <= last && !last_frame.is_empty() {
            take(last_frame);
        }
        Some(TicksFound { id, epoch: topic.epoch, last, start, has_more })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        home::{
            Creator,
            tests::{advance, home},
        },
        now::Now,
    };

    const NOW: Now = Now { monotonic_ns: 0, realtime_ns: 0 };

    #[test]
    fn a_page_goes_on_within_its_topic_but_not_within_another_that_has_come_in_its_place() {
        let mut home = home(1, 1);
        let publish = |home: &mut Home, topic: &str, key: u64| {
            let index = home.find_or_create(topic, Creator::default(), NOW).unwrap().index;
            advance(home, index, key, b"1");
        };
        (1..4).for_each(|key| publish(&mut home, "a", key));
        let page = |home: &Home, from: PageStart, limit: usize| {
            let mut out = Vec::new();
            let wanted = TopicsWanted { pattern: ">", from, limit, wants_values: true };
            let found = home.find_topics(&wanted, &Exports::default(), &mut out);
            // Each topic visited is a unit too.
            (found.units - 1, found.next)
        };
        let (values, next) = page(&home, PageStart::default(), 2);
        let next = next.unwrap();
        assert_eq!((values, next.place, next.sequence), (2, 0, 3));
        assert_eq!(page(&home, next, 10), (1, None));
        home.end_life(0, 0, &mut |_| true);
        publish(&mut home, "b", 1);
        assert_eq!(page(&home, next, 10), (1, None), "its only value comes before the third of the other");
    }
}
