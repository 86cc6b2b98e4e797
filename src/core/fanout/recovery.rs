//! Clients that come back: what they missed is asked of the topic's home in pieces, as their sockets take them, and
//! joins the live ticks without a hole: pieces and ticks come through the same ring, in order.

use super::{Begin, EgressLogs, Fanout, Settings, topic_mut};
use crate::{
    egress_log::FrameInfo,
    fanout::conflation::{Pressure, skipped},
    home::{PIECE_DONE, PIECE_NOT_RECOVERED, PIECE_RECOVERED, Wanted},
    ids::{SessionId, SlotId},
    limits::{HISTORY_PIECE_BYTES, PIECES_IN_FLIGHT_MAX},
    session::{
        membership::{Lag, Taking},
        table::Sessions,
    },
};
use tickcast_proto::{
    Step,
    frame::{self, Frame},
    ids::TopicId,
    pattern,
    records::{History, Recover},
    reply::Reply,
    subscription::Position,
};

/// What a piece takes in an outbox: in JSON it is longer than as frames.
const PIECE_OUTBOX_BYTES: usize = HISTORY_PIECE_BYTES / 2 * 3;

impl Settings {
    /// Whether another piece may be asked for, so that those that come do not make their session yield.
    fn has_room(&self, waiting_bytes: usize, lag: &Lag) -> bool {
        let in_flight = lag.pieces_in_flight;
        let room = waiting_bytes + (in_flight as usize + 1) * PIECE_OUTBOX_BYTES <= self.behind_bytes;
        in_flight < PIECES_IN_FLIGHT_MAX && (room || (waiting_bytes == 0 && in_flight == 0))
    }
}

impl Fanout {
    /// What a session wants of a topic's past, and from where on.
    pub(super) fn wanted(
        &self,
        id: TopicId,
        slot: SlotId,
        begin: Begin,
        sessions: &mut Sessions,
    ) -> Option<(Wanted, u64)> {
        let place = match begin {
            Begin::Live => return None,
            Begin::Latest => return Some((Wanted::Latest, 1)),
            Begin::After(position) => position,
            Begin::Places => {
                let name = &super::topic_ref(&self.topics, id, self.shards)?.info.name;
                let session = sessions.open_mut(slot)?;
                match session.lag.as_deref_mut().and_then(|lag| lag.take_place(name)) {
                    Some(position) => position,
                    None => return Some((Wanted::Kept, 1)),
                }
            }
        };
        Some(match place {
            Position { epoch, .. } if epoch != self.epoch => (Wanted::Lost, 1),
            Position { sequence, .. } => (Wanted::Place, sequence.saturating_add(1)),
        })
    }

    /// Answers for places in topics that do not exist: nothing else would.
    pub(super) fn tell_of_unknown_places(
        &mut self,
        pattern: &str,
        begin: Begin,
        slot: SlotId,
        sessions: &mut Sessions,
    ) {
        let unknown: Vec<(Box<str>, Position)> = match begin {
            Begin::Live | Begin::Latest => return,
            Begin::After(position) => {
                match pattern::is_exact(pattern) && !self.by_name.contains_key(pattern) {
                    true => vec![(pattern.into(), position)],
                    false => return,
                }
            }
            Begin::Places => {
                let Some(lag) = sessions.open_mut(slot).and_then(|session| session.lag.as_deref_mut()) else {
                    return;
                };
                if pattern::is_exact(pattern) {
                    // It was taken out as its topic was joined, if that exists.
                    match lag.take_place(pattern) {
                        Some(place) if !self.by_name.contains_key(pattern) => vec![(pattern.into(), place)],
                        _ => return,
                    }
                } else {
                    // Those of topics that exist and match have been taken out as they were joined.
                    let unknown: Vec<_> = lag
                        .places
                        .extract_if(|name, _| {
                            pattern::matches(pattern, name) && !self.by_name.contains_key(name)
                        })
                        .collect();
                    lag.places_bytes -= unknown.iter().map(|(name, _)| name.len()).sum::<usize>();
                    unknown
                }
            }
        };
        for (name, position) in unknown {
            let recovered = position == Position { epoch: self.epoch, sequence: 0 };
            let reply =
                Reply::Recovered { topic_id: 0, name: &name, epoch: self.epoch, sequence: 0, recovered };
            self.push_notice(slot, &reply, sessions);
        }
    }

    fn push_notice(&mut self, slot: SlotId, reply: &Reply<'_>, sessions: &mut Sessions) {
        self.scratch.clear();
        let scratch = &mut self.scratch;
        sessions.with_outbox(slot, |session| {
            reply.encode(session.format, scratch);
            session.outbox.push_reply(|out| out.extend_from_slice(scratch));
        });
    }

    /// Lets a session ask for its next pieces, if it has topics to recover and room for what comes.
    pub fn queue_pull(&mut self, slot: SlotId, sessions: &mut Sessions) {
        let Some(session) = sessions.open_mut(slot) else { return };
        let waiting = session.outbox_bytes();
        let Some(lag) = session.lag.as_deref_mut() else { return };
        if !lag.pull_queued && !lag.recovering.is_empty() && self.settings.has_room(waiting, lag) {
            lag.pull_queued = true;
            self.pulls.push_back(slot);
        }
    }

    /// Whether a session asks for a piece.
    pub fn has_pulls(&self) -> bool {
        !self.pulls.is_empty()
    }

    /// The next piece to ask for: the topic, the first sequence wanted, and for whom.
    pub fn next_pull(&mut self, sessions: &mut Sessions) -> Option<(TopicId, u64, Recover)> {
        while let Some(&slot) = self.pulls.front() {
            if let Some(session) = sessions.open_mut(slot)
                && let waiting = session.outbox_bytes()
                && let Some(lag) = session.lag.as_deref_mut()
                && self.settings.has_room(waiting, lag)
                && let Some(id) = lag.recovering.pop_front()
            {
                let Some(membership) = session.memberships.get(&id) else { continue };
                if membership.taking != Taking::Recovering {
                    continue;
                }
                lag.pieces_in_flight += 1;
                let record =
                    Recover { session: session.id.0, wanted: membership.wanted as u32, ..Recover::default() };
                return Some((id, membership.from, record));
            }
            self.pulls.pop_front();
            if let Some(lag) = sessions.any_mut(slot).and_then(|session| session.lag.as_deref_mut()) {
                lag.pull_queued = false;
            }
        }
        None
    }

    /// A piece of a topic's history has come for a session.
    pub fn handle_history(&mut self, piece: &Frame<'_>, sessions: &mut Sessions, logs: &mut EgressLogs) {
        let Ok(record) = piece.record::<History>() else { return };
        let (id, session_id) = (TopicId(piece.header.topic_id), SessionId(record.session));
        let slot = session_id.slot();
        let Some(session) = sessions.open_mut(slot).filter(|session| session.id == session_id) else {
            return;
        };
        let lag = session.lag_mut();
        lag.pieces_in_flight = lag.pieces_in_flight.saturating_sub(1);
        // What it asked for must not be what makes it yield: it would ask for the same again.
        session.yield_bytes = usize::MAX;
        self.take_piece(piece, record, id, slot, sessions, logs);
        sessions.raise_yield_bytes(slot);
        self.queue_pull(slot, sessions);
        self.relieve(sessions, logs);
    }

    fn take_piece(
        &mut self,
        piece: &Frame<'_>,
        record: History,
        id: TopicId,
        slot: SlotId,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        let History { from, start, flags, .. } = record;
        let Some(session) = sessions.open_mut(slot) else { return };
        let format = session.format;
        let Some(membership) = session.memberships.get_mut(&id) else { return };
        if membership.taking != Taking::Recovering {
            return;
        }
        if (membership.from, membership.wanted as u32) != (from, record.wanted) {
            // It was asked for before the session left the topic and took it again.
            session.lag_mut().recovering.push_front(id);
            return;
        }
        let announced = membership.announced;
        let conflates = membership.wanted == Wanted::Newest;
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else { return };
        let (name, last) = (topic.info.name.clone(), piece.header.sequence);
        if !announced {
            // Before what came of it already.
            self.tell_of(&[id], slot, sessions);
        }
        if flags & (PIECE_RECOVERED | PIECE_NOT_RECOVERED) != 0 {
            let recovered = flags & PIECE_RECOVERED != 0;
            let reply = Reply::Recovered {
                topic_id: id.0,
                name: &name,
                epoch: self.epoch,
                sequence: last,
                recovered,
            };
            self.push_notice(slot, &reply, sessions);
        }
        if start > from {
            self.tally.dropped += start - from;
            sessions.count_dropped(slot, start - from);
            let notice = Reply::Gap { topic: id, name: &name, from, to: start };
            sessions.push_private(slot, skipped(id, from, start), |out| notice.encode(format, out));
        }
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else { return };
        let mut next = start;
        let mut rest = piece.payload();
        while let Ok(Step::Complete(used, tick)) = frame::decode(rest, usize::MAX) {
            rest = &rest[used..];
            let sequence = tick.header.sequence;
            if conflates && sequence > next {
                self.tally.conflated += sequence - next;
                sessions.count_conflated(slot, sequence - next);
                let notice = Reply::Conflated { topic: id, name: &name, from: next, to: sequence };
                sessions.push_private(slot, skipped(id, next, sequence), |out| notice.encode(format, out));
            }
            let mark = FrameInfo { topic: id.0, sequence, skipped: 0 };
            sessions.push_private(slot, mark, |out| logs.encode_tick(format, &tick, &topic.info, out));
            next = sequence + 1;
            self.tally.queued += 1;
        }
        let Some(session) = sessions.open_mut(slot) else { return };
        let Some(membership) = session.memberships.get_mut(&id) else { return };
        membership.from = next;
        if flags & PIECE_DONE != 0 {
            debug_assert!(topic.newest.sequence() <= last, "ticks after the piece come after it");
            topic.set_taking(slot, Taking::Live, sessions);
        } else {
            membership.wanted = match membership.wanted {
                Wanted::Place if flags & PIECE_NOT_RECOVERED == 0 => Wanted::Kept,
                kept @ (Wanted::Kept | Wanted::Newest) => kept,
                _ => Wanted::Latest,
            };
            session.lag_mut().recovering.push_front(id);
        }
    }

    /// The socket of a session was full for too long.
    pub fn stalled(&mut self, slot: SlotId, before_ns: u64, sessions: &mut Sessions, logs: &EgressLogs) {
        if sessions.open_mut(slot).is_some_and(|session| session.yields()) {
            self.yield_frames(slot, Pressure::Time(before_ns), sessions, logs);
        }
    }
}
