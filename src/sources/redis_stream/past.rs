//! Reads the past of streams whose ids are the positions of topics.
//!
//! ```text
//!  MULTI: GET {KEY}:gen, XINFO STREAM, XRANGE       one look: the life of the stream, whether entries were deleted, and the entries
//! ```
//!
//! Ids are not consecutive, so a missing entry does not show. Everything from a position on is there only if the stream was never
//! trimmed, or still has an entry before the position, and no entry was deleted from the position on.

use std::collections::HashMap;

use redis::{Value, aio::MultiplexedConnection, pipe};

use super::{
    BatchSize, Fields, bytes_in, entry_of, failed, info_of, logged::life_epoch, message_of, text_of,
};
use crate::{
    engine::EngineError,
    log_reader::{LIFE_GONE, LogAccess, Opened, ReadMessages},
    redis::{ANSWER, Id, Server, generation_key},
};

/// Access to the past of streams.
#[derive(Clone)]
pub(super) struct Past {
    server: Server,
    /// Keys.
    streams: Vec<String>,
    field: String,
    connection: Option<MultiplexedConnection>,
    batch: BatchSize,
    open: Option<Open>,
}

#[derive(Clone, Debug)]
struct Open {
    /// Index of the stream.
    at: usize,
    epoch: u64,
    /// The next position.
    next: u64,
    held: Option<Batch>,
}

/// What one look at a stream shows.
#[derive(Clone, Debug)]
struct Batch {
    entries: Vec<Value>,
    /// The position after the last one that the look covers.
    end: u64,
}

/// What one look at a stream says about entries from a position on.
#[derive(Clone, Debug)]
enum Look {
    /// All of them are there.
    Complete(Batch),
    /// Some may have been deleted. The first position that is certain to be followed by all entries, if there is any.
    Holed { first: u64 },
    /// It is another life of the stream, or there is none.
    Gone,
}

/// Whether a stream in this state has had an entry deleted at an id or after it.
fn may_lack(from: Id, before: Id, info: super::Info, last_deleted: Id) -> bool {
    let was_trimmed = info.added != info.length && !(info.length > 0 && info.first <= before);
    was_trimmed || last_deleted >= from
}

impl Past {
    pub(super) fn new(server: Server, streams: Vec<String>, field: String) -> Past {
        Past { server, streams, field, connection: None, batch: BatchSize::default(), open: None }
    }

    async fn connection(&mut self) -> Result<MultiplexedConnection, EngineError> {
        Ok(match &self.connection {
            Some(connection) => connection.clone(),
            None => self.connection.insert(self.server.connect(ANSWER).await?).clone(),
        })
    }

    /// The stream whose life has this epoch.
    async fn stream_of(&mut self, epoch: u64) -> Result<Option<usize>, EngineError> {
        let mut redis = self.connection().await?;
        let mut gets = pipe();
        for key in &self.streams {
            gets.cmd("GET").arg(generation_key(key));
        }
        let generations = gets.query_async::<Vec<Option<Vec<u8>>>>(&mut redis).await;
        let generations = generations.map_err(|error| failed(&self.server, &error))?;
        let mut lives = self.streams.iter().zip(generations);
        Ok(lives.position(|(key, life)| life_epoch(key, &life.unwrap_or_default(), 0) == epoch))
    }

    /// Looks at a stream, and reads the entries from a position on.
    async fn look(&mut self, at: usize, epoch: u64, from: u64) -> Result<Look, EngineError> {
        let mut redis = self.connection().await?;
        let (key, id, BatchSize(most)) = (&self.streams[at], Id::at(from), self.batch);
        let mut look = pipe();
        look.atomic().cmd("GET").arg(generation_key(key)).cmd("XINFO").arg("STREAM").arg(key);
        look.cmd("XRANGE").arg(key).arg(id.to_string()).arg("+").arg("COUNT").arg(most);
        let looked =
            look.query_async::<(Option<Vec<u8>>, HashMap<String, Value>, Vec<Value>)>(&mut redis).await;
        let (generation, fields, entries) = match looked {
            Ok(looked) => looked,
            Err(error) if error.to_string().contains("no such key") => return Ok(Look::Gone),
            Err(error) => {
                self.batch.halve();
                return Err(failed(&self.server, &error));
            }
        };
        self.batch.note(entries.iter().map(bytes_in).sum());
        let old = || EngineError(format!("{}: XINFO STREAM has no entries-added", self.server));
        let info = info_of(&fields).ok_or_else(old)?;
        let last_deleted = fields.get("max-deleted-entry-id").and_then(text_of);
        let last_deleted = last_deleted.and_then(|id| id.parse().ok()).unwrap_or_default();
        // A stream that was set back has other entries at the same ids.
        if life_epoch(key, &generation.unwrap_or_default(), 0) != epoch || info.last < id {
            return Ok(Look::Gone);
        }
        if may_lack(id, Id::at(from - 1), info, last_deleted) {
            let first = info.first.max(last_deleted).highest_position().saturating_add(1);
            return Ok(Look::Holed { first });
        }
        let end = match entries.len() < most {
            true => info.last.position(),
            false => entries.last().and_then(entry_of).and_then(|(id, _)| id.position()),
        };
        let Some(end) = end else {
            return Err(EngineError(format!("stream {key}: an entry has no position")));
        };
        Ok(Look::Complete(Batch { entries, end: end + 1 }))
    }
}

impl LogAccess for Past {
    async fn open(&mut self, epoch: u64, from: u64) -> Result<Opened, EngineError> {
        self.open = None;
        let Some(at) = self.stream_of(epoch).await? else { return Ok(LIFE_GONE) };
        Ok(match self.look(at, epoch, from).await? {
            Look::Complete(batch) => {
                self.open = Some(Open { at, epoch, next: from, held: Some(batch) });
                Opened::AtPosition
            }
            Look::Holed { first } => Opened::Gone { first },
            Look::Gone => LIFE_GONE,
        })
    }

    async fn read(&mut self, into: &mut ReadMessages<'_>) -> Result<Option<u64>, EngineError> {
        let Some(open) = &mut self.open else { return Ok(None) };
        let (at, epoch, next) = (open.at, open.epoch, open.next);
        let batch = match open.held.take() {
            Some(batch) => batch,
            None => match self.look(at, epoch, next).await? {
                Look::Complete(batch) => batch,
                Look::Holed { .. } | Look::Gone => return Ok(None),
            },
        };
        let key = &self.streams[at];
        for entry in &batch.entries {
            let Some((id, fields)) = entry_of(entry) else {
                return Err(EngineError(format!("stream {key}: an entry is not what XRANGE gives")));
            };
            let Some(position) = id.position() else {
                return Err(EngineError(format!("stream {key}: entry {id} has no position")));
            };
            let fields = Fields(fields);
            match message_of(key, id, &fields, &self.field) {
                Some(message) => into.take(position, message),
                None => into.skip(),
            }
        }
        if let Some(open) = &mut self.open {
            open.next = batch.end;
        }
        Ok((batch.end > next).then_some(batch.end))
    }

    async fn close(&mut self) {
        (self.open, self.connection) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{redis::BASE_MS, redis_stream::Info};

    const fn id(ms: u64, n: u64) -> Id {
        Id { ms: BASE_MS + ms, n }
    }

    #[test]
    fn entries_are_complete_only_if_one_before_them_is_still_there_and_none_was_deleted() {
        let info = |first, added, length| Info { first, last: id(9, 0), added, length };
        let lacks = |info, last_deleted| may_lack(id(5, 1), id(5, 0), info, last_deleted);
        assert!(!lacks(info(id(7, 0), 3, 3), Id::default()), "never trimmed");
        assert!(!lacks(info(id(5, 0), 100, 3), Id::default()), "the entry before is there");
        assert!(lacks(info(id(5, 1), 100, 3), Id::default()), "there may have been one between");
        assert!(lacks(info(Id::default(), 100, 0), Id::default()), "all are gone");
        assert!(lacks(info(id(4, 0), 100, 3), id(6, 0)), "one was deleted");
        assert!(!lacks(info(id(4, 0), 100, 3), id(4, 5)), "one before was deleted");
    }
}
