//! Reads Redis Streams whose ids are the sequences of the topics.
//!
//! ```text
//!  position = (milliseconds since 2025-01-01) * 2^13 + number within the millisecond       below 2^53 until 2059
//!  epoch    = the stream's key, and what `{KEY}:gen` holds: the generation of the stream
//! ```
//!
//! Before entries are published, the stream is checked. With another generation, they belong to another life; entries that
//! retention deleted unread leave a hole before them.

use std::convert::Infallible;

use redis::{Value, aio::MultiplexedConnection, cmd};

use super::{Cursor, Info, LOOK_NS, Options, RedisStreams, Start, entry_of, failed, info, streams_of};
use crate::{
    engine::{EngineError, Ingest},
    kind::SourceOptions,
    redis::{Id, NUMBER_BITS, generation_key},
};
use tickcast_common::clock;
use tickcast_proto::logged::{LogPosition, log_epoch};

/// A stream's life, and how much of it has been read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Life {
    /// Value of the key beside the stream; empty: there is none.
    generation: Vec<u8>,
    /// How often the stream was found recreated or set back without another generation.
    set_back: u64,
    /// Everything from this position on has been read; 0: everything from the next entry on.
    complete_from: u64,
    /// Whether an entry has been read since it began. What is gone by then was never this reader's to read.
    has_read: bool,
}

impl Life {
    fn epoch(&self, key: &str) -> u64 {
        life_epoch(key, &self.generation, self.set_back)
    }

    /// Begins at a cursor of the stream that `info` describes.
    fn begin(&mut self, cursor: Cursor, info: Info) {
        let is_untrimmed = info.added == info.length || (info.length > 0 && info.first <= cursor.last);
        let is_at_end = info.last <= cursor.last;
        self.complete_from = match is_untrimmed || is_at_end {
            true => cursor.last.highest_position() + 1,
            false => 0,
        };
        self.has_read = false;
    }
}

/// The epoch of a stream's life with this generation, that was found recreated or set back so many times without another one.
pub(super) fn life_epoch(key: &str, generation: &[u8], set_back: u64) -> u64 {
    let mut life = generation.to_vec();
    if set_back > 0 {
        life.extend(set_back.to_le_bytes());
    }
    log_epoch(Options::KIND, key, &life)
}

/// Whether entries between a cursor and those just read, with these ids, may have been deleted unread. `info`: the stream's
/// state after the read.
fn has_hole(cursor: Cursor, read: &[Id], info: Info) -> bool {
    if info.length > 0 && info.first <= cursor.last {
        return false;
    }
    // All remaining entries are newer than the cursor.
    let Some(passed) = cursor.passed else { return info.added != info.length };
    let left_and_read = read.iter().filter(|&&id| info.length > 0 && id >= info.first).count() as u64;
    let known = read.len() as u64 + info.length.saturating_sub(left_and_read);
    info.added.saturating_sub(passed) > known
}

impl RedisStreams {
    /// Reads the streams until an error, and publishes their entries at their positions.
    pub(super) async fn read_logged(
        &mut self,
        redis: &mut MultiplexedConnection,
        ingest: &mut Ingest<'_>,
    ) -> Result<Infallible, EngineError> {
        let mut look_ns = 0;
        loop {
            if clock::monotonic_ns() >= look_ns {
                look_ns = clock::monotonic_ns().saturating_add(LOOK_NS);
                for at in 0..self.streams.len() {
                    self.look_at(at, redis, ingest).await?;
                }
            }
            let (reply, most) = ingest.waiting(self.xread(redis)).await?;
            ingest.connected(&self.server.to_string());
            let (mut has_more, mut lag) = (false, 0_u64);
            for (key, entries) in streams_of(reply) {
                let Some(at) = self.streams.iter().position(|(known, _)| *known == key) else { continue };
                has_more |= entries.len() >= most;
                let (info, is_same) = self.look_at(at, redis, ingest).await?;
                if is_same {
                    self.publish(at, &entries, info, ingest).await?;
                    lag = lag.saturating_add(self.streams[at].1.map_or(0, |cursor| cursor.left(info)));
                } else {
                    // The entries read may belong to either life.
                    has_more = true;
                }
            }
            ingest.flush();
            ingest.set_lag(lag);
            if !has_more {
                ingest.caught_up();
            }
        }
    }

    async fn publish(
        &mut self,
        at: usize,
        entries: &[Value],
        info: Info,
        ingest: &mut Ingest<'_>,
    ) -> Result<(), EngineError> {
        let ids: Vec<Id> = entries.iter().filter_map(|entry| entry_of(entry).map(|(id, _)| id)).collect();
        let (key, cursor) = &self.streams[at];
        let (cursor, epoch) = (cursor.unwrap_or_default(), self.lives[at].epoch(key));
        let is_hole = has_hole(cursor, &ids, info);
        if is_hole {
            if self.lives[at].has_read {
                ingest.count_hole(1, &format!("stream {key} was trimmed before they were read"));
            }
            self.lives[at].complete_from = 0;
        }
        self.lives[at].has_read |= !entries.is_empty();
        for entry in entries {
            let Some((id, _)) = entry_of(entry) else {
                return Err(EngineError("an entry is not what XREAD gives".into()));
            };
            let Some(position) = id.position() else {
                let key = &self.streams[at].0;
                return ingest
                    .stop(&format!(
                        "stream {key}: entry {id} has no position: ids must be of 2025 or later, with less than {} entries \
                         in a millisecond. Read it with position = \"local\"",
                        1 << NUMBER_BITS
                    ))
                    .await;
            };
            let life = &mut self.lives[at];
            if life.complete_from == 0 {
                life.complete_from = position;
            }
            let complete_from = life.complete_from;
            let place = LogPosition { source: 0, epoch, position, complete_from };
            self.take(at, entry, Some(place), ingest).await?;
        }
        let Some(cursor) = &mut self.streams[at].1 else { return Ok(()) };
        let is_last_there = info.length > 0 && info.first <= cursor.last;
        if is_hole && !is_last_there {
            // It may be among the entries after those read instead.
            self.lives[at].complete_from = 0;
        }
        // How many entries remain after the last one read, if that is certain.
        let behind = match is_last_there {
            false => Some(info.length),
            true => (info.last <= cursor.last).then_some(0),
        };
        cursor.passed = behind.map(|behind| info.added.saturating_sub(behind)).or(cursor.passed);
        Ok(())
    }

    /// Checks a stream, and starts over if it is in another life. Returns its state, and whether it is in the same life.
    async fn look_at(
        &mut self,
        at: usize,
        redis: &mut MultiplexedConnection,
        ingest: &Ingest<'_>,
    ) -> Result<(Info, bool), EngineError> {
        let (key, cursor) = &mut self.streams[at];
        let life = &mut self.lives[at];
        let generation = cmd("GET").arg(generation_key(key)).query_async::<Option<Vec<u8>>>(redis).await;
        let generation = generation.map_err(|error| failed(&self.server, &error))?.unwrap_or_default();
        let info = info(redis, &self.server, key).await?;
        let begin = match cursor {
            None => Cursor::at_start(self.start, info, clock::realtime_ns() / 1_000_000),
            Some(known) if generation != life.generation || known.is_outlived(info) => {
                ingest.warn(&format!(
                    "stream {key} was made again, or set back: reading it from its beginning"
                ));
                life.set_back += u64::from(generation == life.generation);
                Cursor::at_start(Start::All, info, 0)
            }
            Some(_) => return Ok((info, true)),
        };
        if generation != life.generation {
            life.set_back = 0;
        }
        life.generation = generation;
        life.begin(begin, info);
        *cursor = Some(begin);
        Ok((info, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::BASE_MS;

    const fn id(ms: u64, n: u64) -> Id {
        Id { ms: BASE_MS + ms, n }
    }

    #[test]
    fn what_was_deleted_before_it_was_read_is_a_hole() {
        let info = |first, last, added, length| Info { first, last, added, length };
        let cursor = Cursor { last: id(5, 0), passed: Some(100) };
        let read = [id(6, 0), id(7, 0)];
        assert!(!has_hole(cursor, &read, info(id(3, 0), id(7, 0), 102, 50)), "its last entry is still there");
        assert!(!has_hole(cursor, &read, info(id(6, 0), id(7, 0), 102, 2)));
        assert!(!has_hole(cursor, &read, info(id(7, 0), id(8, 0), 103, 2)), "one that was read is gone");
        assert!(has_hole(cursor, &read, info(id(6, 0), id(7, 0), 105, 2)), "three are gone");
        assert!(has_hole(cursor, &read, info(id(9, 0), id(9, 0), 105, 1)), "behind those read");
        let unknown = Cursor { passed: None, ..cursor };
        assert!(has_hole(unknown, &read, info(id(6, 0), id(7, 0), 102, 2)), "nobody knows");
        assert!(!has_hole(unknown, &read, info(id(6, 0), id(7, 0), 2, 2)), "nothing was ever trimmed");
        assert!(!has_hole(unknown, &read, info(id(5, 0), id(7, 0), 102, 2)));
    }

    #[test]
    fn a_life_has_an_epoch_of_its_own() {
        let life = |generation: &[u8], set_back| {
            Life { generation: generation.to_vec(), set_back, ..Life::default() }.epoch("prices")
        };
        let epochs = [life(b"", 0), life(b"", 1), life(b"g1", 0), life(b"g2", 0)];
        for (at, epoch) in epochs.iter().enumerate() {
            assert!(!epochs[..at].contains(epoch));
        }
        assert_eq!(life(b"g1", 0), log_epoch("redis-stream", "prices", b"g1"), "alike on every node");
    }
}
