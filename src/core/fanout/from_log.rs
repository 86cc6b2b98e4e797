//! Recovery from the log that feeds a topic, of ticks that are older than the topic's history.
//!
//! ```text
//!  home: not kept, but the log may have it --> LogWant --> the log's reader
//!  session: recovering, as between two chunks      <-- chunk of ticks, or why there is none
//!           requests the next chunk from the home, until the home's history reaches back to it
//! ```

use super::{EgressLogs, Fanout};
use crate::{
    home::{Backfill, CHUNK_NOT_RECOVERED, CHUNK_RECOVERED},
    ids::SessionId,
    session::{
        membership::{Lag, Taking},
        table::Sessions,
    },
    topic_key,
};
use tickcast_proto::{
    frame::{self, Frame, HeaderFields, Kind},
    ids::TopicId,
    logged,
    records::History,
};

/// Ticks that a session wants, that no home keeps, and that the log that feeds the topic may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogWant {
    /// The session.
    pub session: SessionId,
    /// The topic.
    pub topic: TopicId,
    /// Its name.
    pub name: Box<str>,
    /// Its epoch, which names the log.
    pub epoch: u64,
    /// The first sequence wanted.
    pub from: u64,
    /// The first sequence that the topic's home keeps.
    pub until: u64,
    /// The topic's last sequence.
    pub last: u64,
    /// The part of the past that the session has requested.
    pub wanted: Backfill,
    /// Number of the source that reads the log.
    pub source: u32,
}

impl Fanout {
    /// Notes that the log must be read for a session. Its chunk stays in flight.
    pub(super) fn want_log(&mut self, chunk: &Frame<'_>, record: &History) {
        let id = TopicId(chunk.header.topic_id);
        let topic = super::topic_ref(&self.topics, id, self.shards);
        let source = chunk.payload().first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let (Some(topic), Some(source), Some(wanted)) = (topic, source, Backfill::from_wire(record.wanted))
        else {
            return debug_assert!(false, "a membership has a topic, and the home has said which source");
        };
        self.log_wants.push(LogWant {
            session: SessionId(record.session),
            topic: id,
            name: topic_key::name(topic.key()).into(),
            epoch: topic.info.epoch,
            from: record.from,
            until: record.start,
            last: chunk.header.sequence,
            wanted,
            source,
        });
    }

    /// Whether there are ticks to read from logs.
    #[inline]
    pub fn has_log_wants(&self) -> bool {
        !self.log_wants.is_empty()
    }

    /// Takes the ticks to read from logs since the last call.
    pub fn take_log_wants(&mut self) -> Vec<LogWant> {
        std::mem::take(&mut self.log_wants)
    }

    /// Queues what a log's reader has read for a session: whole TICK frames of every tick of the topic from the first one wanted
    /// up to `end`.
    pub fn handle_read(
        &mut self,
        want: &LogWant,
        end: u64,
        ticks: &[u8],
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        let meta = HeaderFields { topic_id: want.topic.0, sequence: want.last, ..HeaderFields::default() };
        let flags = if want.wanted.is_position() { CHUNK_RECOVERED } else { 0 };
        let LogWant { session, from, wanted, .. } = *want;
        let record = History { session: session.0, from, start: from, flags, wanted: wanted as u32 };
        let mut bytes = Vec::new();
        let header = frame::encode(&mut bytes, Kind::History, meta, &record, &[ticks]);
        let chunk = Frame { header, kind: Kind::History, bytes: &bytes };
        self.handle_chunk(&chunk, Some(end), sessions, logs);
    }

    /// Lets a session go on without the log: its position is not recovered, or a gap is announced for what it lacks.
    pub fn handle_unread(&mut self, want: &LogWant, sessions: &mut Sessions) {
        let slot = want.session.slot();
        let Some(session) = sessions.open_mut(slot).filter(|session| session.id == want.session) else {
            return;
        };
        let mut is_recovering = false;
        if let Some(membership) = session.memberships.get_mut(want.topic) {
            is_recovering = membership.taking == Taking::Recovering;
            if (membership.from, membership.wanted) == (want.from, want.wanted) {
                membership.wanted = membership.wanted.without_log();
            }
        }
        let lag = session.lag_mut();
        lag.chunks_in_flight = lag.chunks_in_flight.saturating_sub(1);
        if is_recovering {
            lag.recovering.push_front(want.topic);
        }
        self.queue_pull(slot, sessions);
    }
}

/// What a session has of a topic before a chunk, if it recovers from the topic's log: the last sequence that it has received, or
/// knows to be lost. `end`: the chunk is from the log.
pub(super) fn known_before(lag: &mut Lag, id: TopicId, chunk: &History, end: Option<u64>) -> Option<u64> {
    if chunk.flags & CHUNK_NOT_RECOVERED != 0 {
        return None;
    }
    let known = match (lag.last_from_log(id), end) {
        // One of an earlier membership in the topic would be too low for a position that the client has given since.
        (_, Some(_)) if chunk.flags & CHUNK_RECOVERED != 0 => chunk.from.saturating_sub(1),
        (Some(known), _) => *known,
        (None, Some(_)) => chunk.from.saturating_sub(1),
        (None, None) => return None,
    };
    // A gap announces what is lost.
    Some(if chunk.start > chunk.from { known.max(chunk.start - 1) } else { known })
}

/// Notes what a session has of a topic after a chunk; `None`: it does not recover from the topic's log any more.
pub(super) fn note_known(lag: &mut Lag, id: TopicId, known: Option<u64>) {
    match (lag.last_from_log(id), known) {
        (Some(last), Some(known)) => *last = known,
        (None, Some(known)) => lag.from_log.push((id, known)),
        (Some(_), None) => lag.from_log.retain(|(topic, _)| *topic != id),
        (None, None) => {}
    }
}

/// The same tick, after the last sequence that the session has: the home may know only that its source has read everything from
/// some later position on.
pub(super) fn relinked<'a>(tick: &Frame<'_>, previous: u64, out: &'a mut Vec<u8>) -> Frame<'a> {
    out.clear();
    let header = logged::encode_relinked(out, tick, previous);
    Frame { header, kind: Kind::Tick, bytes: out }
}
