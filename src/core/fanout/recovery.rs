//! Recovery of missed ticks: sessions request history from the topic's home in chunks, as their sockets have room. Chunks
//! and live ticks travel through the same ring in order, so they join without gaps.

use super::{EgressLogs, Fanout, Settings, StartFrom, from_log, topic::Backlog, topic_mut, topic_ref};
use crate::{
    egress_log::FrameInfo,
    fanout::overflow::EvictionCause,
    home::{
        Backfill, CHUNK_AHEAD, CHUNK_EPOCH_PASSED, CHUNK_IN_LOG, CHUNK_LAST, CHUNK_NOT_RECOVERED,
        CHUNK_RECOVERED, CHUNK_VALUES_LOST,
    },
    ids::{SessionId, SlotId},
    limits::{HISTORY_CHUNK_OUTBOX_BYTES, HISTORY_CHUNKS_IN_FLIGHT_MAX},
    principal::Permissions,
    session::{
        membership::{Lag, Taking},
        table::Sessions,
    },
    topic_key,
};
use tickcast_proto::{
    Step,
    features::Features,
    frame::{self, Frame},
    ids::TopicId,
    pattern,
    records::{History, Recover},
    reply::{NotRecovered, Reply},
    subscription::Position,
};

/// Topics that are opening over which the search for a session's next chunk passes. Once one of them is open, it goes on.
const DEFERRED_MAX: usize = 16;

/// A request for the next chunk of a topic's history.
#[derive(Clone, Copy, Debug)]
pub struct HistoryRequest {
    /// The topic.
    pub topic: TopicId,
    /// The first sequence wanted.
    pub from: u64,
    /// The session, and the part of the past that it requests.
    pub record: Recover,
}

impl Settings {
    /// Whether a session may request another chunk without risking eviction when it arrives.
    fn has_room(&self, waiting_bytes: usize, lag: &Lag) -> bool {
        let in_flight = lag.chunks_in_flight;
        let room = waiting_bytes + (in_flight as usize + 1) * HISTORY_CHUNK_OUTBOX_BYTES <= self.behind_bytes;
        in_flight < HISTORY_CHUNKS_IN_FLIGHT_MAX && (room || (waiting_bytes == 0 && in_flight == 0))
    }
}

impl Fanout {
    /// The part of a topic's past that a subscription starts with; `None` if it starts live.
    pub(super) fn backlog(
        &self,
        id: TopicId,
        slot: SlotId,
        start_from: StartFrom,
        sessions: &mut Sessions,
    ) -> Option<Backlog> {
        let position = match start_from {
            StartFrom::Live => return None,
            // Its home has forgotten its last value by the time when it may be asked, so the session gets the ticks that wait.
            StartFrom::Latest if self.openings.is_forgotten(id) => return None,
            StartFrom::Latest => return Some(Backlog { backfill: Backfill::LastValues, from: 1 }),
            StartFrom::After(position) => position,
            StartFrom::SavedPositions { since_ns } => {
                let key = topic_ref(&self.topics, id, self.shards)?.key();
                let session = sessions.open_mut(slot)?;
                match session.lag.as_deref_mut().and_then(|lag| lag.take_position(key)) {
                    Some(position) => position,
                    None if since_ns == 0 => return Some(Backlog { backfill: Backfill::Retained, from: 1 }),
                    None => return Some(Backlog { backfill: Backfill::Since, from: since_ns }),
                }
            }
        };
        let epoch = topic_ref(&self.topics, id, self.shards)?.info.epoch;
        let from = position.sequence.saturating_add(1);
        Some(match position.epoch {
            known if known == epoch => Backlog { backfill: Backfill::Position, from },
            // Everything kept, whichever life it belongs to.
            known if known == self.epoch && from == 1 => Backlog { backfill: Backfill::Position, from },
            known if known == self.epoch => Backlog { backfill: Backfill::ServerPosition, from },
            _ => Backlog { backfill: Backfill::PositionLost, from: 1 },
        })
    }

    /// Answers positions in topics that do not exist, because no home will. Topics hidden by a subscription's filter count as
    /// nonexistent. Positions in topics that a log may still bring are kept for the subscription.
    pub(super) fn answer_unknown_positions(
        &mut self,
        (entry, pattern): (u32, &str),
        start_from: StartFrom,
        filter: Option<&Permissions>,
        slot: SlotId,
        sessions: &mut Sessions,
    ) {
        let is_permitted =
            |key: &str| filter.is_none_or(|filter| filter.subscribe.permits(topic_key::name(key)));
        let unknown: Vec<(Box<str>, Position)> = match start_from {
            StartFrom::Live | StartFrom::Latest => return,
            StartFrom::After(position) => {
                match pattern::is_exact(pattern) && !self.by_key.contains_key(pattern) {
                    true => vec![(pattern.into(), position)],
                    false => return,
                }
            }
            StartFrom::SavedPositions { .. } => {
                let Some(lag) = sessions.open_mut(slot).and_then(|session| session.lag.as_deref_mut()) else {
                    return;
                };
                if pattern::is_exact(pattern) {
                    // If the topic exists, joining it took the position out.
                    match lag.take_position(pattern) {
                        Some(position) if !self.by_key.contains_key(pattern) => {
                            vec![(pattern.into(), position)]
                        }
                        _ => return,
                    }
                } else {
                    // Joining the matching topics that exist took their positions out.
                    let Some(saved) = lag.saved_positions.as_deref_mut() else { return };
                    let (exports, by_key) = (&self.settings.exports, &self.by_key);
                    let exists = |key: &str| by_key.contains_key(key) && is_permitted(key);
                    saved.take_if(|key| exports.matches(pattern, key) && !exists(key))
                }
            }
        };
        for (key, position) in unknown {
            // A hidden topic never appears.
            if is_permitted(&key) && self.await_topic(&key, position, slot, entry) {
                continue;
            }
            let name = topic_key::name(&key);
            let recovered = position == Position { epoch: self.epoch, sequence: 0 };
            let epoch = self.epoch;
            let knows =
                sessions.get(slot).is_some_and(|session| session.features.contains(Features::REASONS));
            let reason = (knows && !recovered).then_some(NotRecovered::UnknownTopic);
            let reply = Reply::Recovered { topic_id: 0, name, epoch, sequence: 0, recovered, reason };
            self.push_notice(slot, &reply, sessions);
        }
    }

    /// Answers a position in a topic that has since been forgotten. The answer precedes all waiting frames, where the loss of
    /// the topic's frames may be announced.
    pub(super) fn answer_unknown(&mut self, id: TopicId, slot: SlotId, sessions: &mut Sessions) {
        let Some(topic) = topic_ref(&self.topics, id, self.shards) else { return };
        let (name, epoch) = (topic.info.name.clone(), self.epoch);
        let knows = sessions.get(slot).is_some_and(|session| session.features.contains(Features::REASONS));
        let reason = knows.then_some(NotRecovered::UnknownTopic);
        let (topic_id, sequence, recovered) = (0, 0, false);
        let reply = Reply::Recovered { topic_id, name: &name, epoch, sequence, recovered, reason };
        let Some(format) = sessions.get(slot).map(|session| session.format) else { return };
        self.scratch.clear();
        reply.encode(format, &mut self.scratch);
        let notices = &self.scratch;
        sessions.with_outbox(slot, |session| session.outbox.insert_before_frames(notices));
    }

    fn push_notice(&mut self, slot: SlotId, reply: &Reply<'_>, sessions: &mut Sessions) {
        self.scratch.clear();
        let scratch = &mut self.scratch;
        sessions.with_outbox(slot, |session| {
            reply.encode(session.format, scratch);
            session.outbox.push_reply(|out| out.extend_from_slice(scratch));
        });
    }

    /// Queues a session to request history, if it has topics to recover and room for another chunk.
    pub fn queue_pull(&mut self, slot: SlotId, sessions: &mut Sessions) {
        let Some(session) = sessions.open_mut(slot) else { return };
        let waiting = session.outbox_bytes();
        let Some(lag) = session.lag.as_deref_mut() else { return };
        if !lag.pull_queued && !lag.recovering.is_empty() && self.settings.has_room(waiting, lag) {
            lag.pull_queued = true;
            self.pulls.push_back(slot);
        }
    }

    /// Whether any session may request a chunk.
    pub fn has_pulls(&self) -> bool {
        !self.pulls.is_empty()
    }

    /// The next chunk to request from a home.
    pub fn next_pull(&mut self, sessions: &mut Sessions) -> Option<HistoryRequest> {
        let mut deferred = 0;
        while let Some(&slot) = self.pulls.front() {
            if deferred < DEFERRED_MAX
                && let Some(session) = sessions.open_mut(slot)
                && let waiting = session.outbox_bytes()
                && let Some(lag) = session.lag.as_deref_mut()
                && self.settings.has_room(waiting, lag)
                && let Some(id) = lag.recovering.pop_front()
            {
                let Some(membership) = session.memberships.get(id) else { continue };
                if membership.taking != Taking::Recovering {
                    continue;
                }
                // A chunk must follow the ticks that wait for the topic to open.
                if !self.openings.is_empty() && self.openings.defer_pull(id, slot) {
                    lag.recovering.push_back(id);
                    deferred += 1;
                    continue;
                }
                lag.chunks_in_flight += 1;
                let record =
                    Recover { session: session.id.0, wanted: membership.wanted as u32, ..Recover::default() };
                return Some(HistoryRequest { topic: id, from: membership.from, record });
            }
            deferred = 0;
            self.pulls.pop_front();
            if let Some(lag) = sessions.any_mut(slot).and_then(|session| session.lag.as_deref_mut()) {
                lag.pull_queued = false;
            }
        }
        None
    }

    /// Handles a chunk of a topic's history for a session.
    pub fn handle_history(&mut self, chunk: &Frame<'_>, sessions: &mut Sessions, logs: &mut EgressLogs) {
        self.handle_chunk(chunk, None, sessions, logs);
    }

    /// Handles a chunk of a topic's history, from the topic's home, or from the log that feeds it: then `end` is the sequence up to which
    /// the log has been read.
    pub(super) fn handle_chunk(
        &mut self,
        chunk: &Frame<'_>,
        end: Option<u64>,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        let Ok(record) = chunk.record::<History>() else {
            return debug_assert!(false, "this process encoded the chunk");
        };
        debug_assert!(
            !self.openings.contains(TopicId(chunk.header.topic_id)),
            "history is requested once its topic is open"
        );
        let (id, session_id) = (TopicId(chunk.header.topic_id), SessionId(record.session));
        let slot = session_id.slot();
        let Some(session) = sessions.open_mut(slot).filter(|session| session.id == session_id) else {
            return;
        };
        if record.flags & CHUNK_IN_LOG != 0
            && session.memberships.get(id).is_some_and(|membership| membership.requested(&record))
        {
            return self.want_log(chunk, &record);
        }
        let lag = session.lag_mut();
        lag.chunks_in_flight = lag.chunks_in_flight.saturating_sub(1);
        // Requested history must not trigger eviction: the session would only request it again.
        session.yield_bytes = usize::MAX;
        self.apply_history_chunk(chunk, (record, end), id, slot, sessions, logs);
        sessions.raise_yield_bytes(slot);
        self.queue_pull(slot, sessions);
        self.evict_overflowing(sessions, logs);
    }

    fn apply_history_chunk(
        &mut self,
        chunk: &Frame<'_>,
        (record, end): (History, Option<u64>),
        id: TopicId,
        slot: SlotId,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        let History { from, start, flags, .. } = record;
        let Some(session) = sessions.open_mut(slot) else { return };
        let (format, features) = (session.format, session.features);
        let Some(membership) = session.memberships.get_mut(id) else { return };
        if membership.taking != Taking::Recovering {
            return;
        }
        if !membership.requested(&record) {
            // The chunk was requested before the session left the topic and joined it again.
            session.lag_mut().recovering.push_front(id);
            return;
        }
        let announced = membership.announced;
        let conflates = membership.wanted == Backfill::Conflated;
        let is_since = membership.wanted == Backfill::Since;
        let mut known = from_log::known_before(session.lag_mut(), id, &record, end);
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else {
            return debug_assert!(false, "a membership has a topic");
        };
        let (name, epoch, last) = (topic.info.name.clone(), topic.info.epoch, chunk.header.sequence);
        if !announced {
            // The topic's name must precede its frames.
            self.flush_notices_of(&[id], slot, sessions);
        }
        if flags & (CHUNK_RECOVERED | CHUNK_NOT_RECOVERED) != 0 {
            let recovered = flags & CHUNK_RECOVERED != 0;
            let reason = match (flags & CHUNK_EPOCH_PASSED != 0, from > last + 1) {
                _ if recovered => None,
                (true, _) => Some(NotRecovered::Epoch),
                (false, true) => Some(NotRecovered::Ahead),
                (false, false) => Some(NotRecovered::TooOld),
            };
            let reply = Reply::Recovered {
                topic_id: id.0,
                name: &name,
                epoch,
                sequence: last,
                recovered,
                reason: reason.filter(|_| features.contains(Features::REASONS)),
            };
            self.push_notice(slot, &reply, sessions);
        }
        let lost = if flags & CHUNK_VALUES_LOST != 0 {
            // A snapshot owes only the last value.
            last..last + 1
        } else if flags & CHUNK_EPOCH_PASSED != 0 {
            // All of this life is new to the client, or may be.
            1..start
        } else if is_since {
            // What precedes it is as old as the client's connection.
            start..start
        } else {
            from..start
        };
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else {
            return debug_assert!(false, "a membership has a topic");
        };
        topic.notices().lose(slot, (lost.start, lost.end), sessions, &mut self.tally);
        let mut next = if flags & CHUNK_VALUES_LOST != 0 { last + 1 } else { start };
        let mut rest = chunk.payload();
        while let Ok(Step::Complete(used, mut tick)) = frame::decode(rest, usize::MAX) {
            rest = &rest[used..];
            let sequence = tick.header.sequence;
            if let Some(known) = &mut known {
                if *known < tick.previous() {
                    tick = from_log::relinked(&tick, *known, &mut self.scratch);
                }
                *known = sequence;
            }
            if conflates {
                topic.notices().replace(slot, next, &tick, sessions, &mut self.tally);
            }
            let info = FrameInfo { topic: id.0, sequence };
            sessions.push_private(slot, info, |out| logs.encode_tick(format, &tick, &topic.info, out));
            next = sequence + 1;
            self.tally.queued += 1;
        }
        let Some(session) = sessions.open_mut(slot) else { return };
        from_log::note_known(
            session.lag_mut(),
            id,
            known.filter(|_| flags & (CHUNK_LAST | CHUNK_AHEAD) == 0),
        );
        let Some(membership) = session.memberships.get_mut(id) else {
            return debug_assert!(false, "queueing frames keeps the membership");
        };
        membership.from = end.unwrap_or(next);
        if flags & CHUNK_AHEAD != 0 {
            topic.set_taking(slot, Taking::Ahead, sessions);
        } else if flags & CHUNK_LAST != 0 {
            debug_assert!(topic.last_sequence <= last, "ticks after the chunk arrive after it");
            topic.set_taking(slot, Taking::Live, sessions);
            self.share_again(id, slot, sessions);
        } else {
            let is_recovered = membership.wanted.is_position() && flags & CHUNK_NOT_RECOVERED == 0;
            membership.wanted = match membership.wanted {
                Backfill::Position if is_recovered && topic.log.is_some() => Backfill::Logged,
                _ if is_recovered || flags & CHUNK_EPOCH_PASSED != 0 => Backfill::Retained,
                Backfill::Since => Backfill::Retained,
                kept @ (Backfill::Retained | Backfill::Conflated | Backfill::Logged) => kept,
                _ => Backfill::LastValues,
            };
            session.lag_mut().recovering.push_front(id);
        }
    }

    /// Evicts frames queued before a time, because the session's socket was full for too long.
    pub fn handle_stall(&mut self, slot: SlotId, before_ns: u64, sessions: &mut Sessions, logs: &EgressLogs) {
        if sessions.open_mut(slot).is_some_and(|session| session.yields()) {
            self.evict_frames(
                slot,
                EvictionCause::SocketStalled { queued_before_ns: before_ns },
                sessions,
                logs,
            );
        }
    }
}
