//! `/v1` requests over HTTP. A publish is handled like any other, and the topic's home answers it. Reads fetch from the topics'
//! homes, one bounded piece after another:
//!
//! ```text
//!  request -> enter (credentials, tenant, quota) -> publishes, which count their answers   -> the answer
//!                                                -> LOOKUP to a home, FOUND back, again   -> the answer
//! ```
//! Each connection has one request at a time: its input waits until it has been answered.

use std::{borrow::Cow, collections::VecDeque};

use super::{
    Shard,
    authentication::{Allowed, Entry},
    ingress::quoted,
};
use crate::{
    budgets::Expense,
    home::lookup::{PageStart, TicksFound, TopicsFound, TopicsWanted},
    ids::{SessionId, SlotId},
    limits::{CALL_PATTERNS_MAX, CALL_UNITS, TURN_CALL_PIECES, TURN_SURVEYED},
    metrics::counters::Counter,
    now::Now,
    placement,
    principal::AuthRefusal,
    session::{CloseReason, PendingCall, Protocol, Publishes, Read, Readable, Summary, Work},
};
use tickcast_proto::{
    ErrorCode, Step,
    command::{PublishCommand, Token},
    frame::{self, Frame, HeaderFields, Kind},
    http::api::{Call, Cursor, Exchange, Refused, Tick, error_json},
    ids::{ShardId, TopicId},
    pattern,
    records::{Found, Lookup},
};

/// The requests of a shard's connections.
#[derive(Debug, Default)]
pub(super) struct CallQueues {
    /// Reads whose next piece has not been requested yet. Entries of ended sessions stay until their turn. Bound:
    /// [`CallQueues::reads_max`].
    reads: VecDeque<SessionId>,
    /// Requests whose answer is known. Bound: one entry per session.
    done: Vec<SlotId>,
}

impl CallQueues {
    /// Length of `reads` at which entries of ended sessions are dropped. They make up at least half of it, so the amortized
    /// cost is O(1) per entry.
    fn reads_max(sessions: usize) -> usize {
        2 * sessions
    }
}

/// What a LOOKUP requests.
const WANTS_TOPICS: u16 = 0;
const WANTS_VALUES: u16 = 1;
const WANTS_TICKS: u16 = 2;
/// Like [`WANTS_TICKS`], but of the epoch in the record.
const WANTS_TICKS_OF_EPOCH: u16 = 3;

/// Flags of FOUND: more follows; the topic exists.
const FOUND_MORE: u32 = 1;
const FOUND_TOPIC: u32 = 2;

impl Shard {
    /// Begins a `/v1` request. Returns `Partial` if it waits for the verdict on its credentials.
    pub(super) fn begin_call(
        &mut self,
        slot: SlotId,
        call: Call,
        exchange: Exchange,
        host: &str,
        token: Option<&Token<'_>>,
        now: Now,
    ) -> Step<()> {
        match self.enter_caller(slot, host, token, false, now) {
            Entry::Waits => return Step::Partial,
            Entry::Refused(refusal) => self.refuse_call(slot, &exchange, &refusal, now),
            Entry::Admitted if !self.enter_quota(slot, now) => {}
            Entry::Admitted => self.carry_out(slot, call, exchange, now),
        }
        Step::Complete(0, ())
    }

    /// Refuses a request's credentials, and closes the connection, so that each further attempt costs a connection.
    pub(super) fn refuse_call(&mut self, slot: SlotId, exchange: &Exchange, refusal: &AuthRefusal, now: Now) {
        let status = refusal.status();
        let mut exchange = exchange.clone();
        exchange.closes = true;
        let text = refusal.to_string();
        let session = self.sessions.open_mut(slot);
        let summary = session.and_then(|session| match &mut session.protocol {
            Protocol::Http(http) => http.calls.as_deref_mut()?.summary.take(),
            _ => None,
        });
        let (status, json) = match summary {
            // Not 503, because a client that retried would publish the beginning twice.
            Some(summary) => {
                summary.answer(Some(Refused { status: if status == 503 { 504 } else { status }, text }))
            }
            None => (status, format!("{{\"error\":{}}}", error_json(ErrorCode::NotAllowed, &text))),
        };
        self.counters.add(Counter::HttpResponses, 1);
        self.push_bytes(slot, &exchange.answer(status, json, now.realtime_ns));
        self.end(slot, CloseReason::Http(status), now);
    }

    fn carry_out(&mut self, slot: SlotId, call: Call, exchange: Exchange, now: Now) {
        let closes = exchange.closes;
        let (work, ticks) = match call {
            Call::Publish { ticks, is_single } => {
                (Work::Publish(Publishes::new(ticks.len(), is_single)), ticks)
            }
            Call::PublishLines { ticks, is_last, refused } => {
                (Work::Publish(Publishes::part(ticks.len(), is_last, refused)), ticks)
            }
            Call::Latest { patterns, page } => {
                (self.reads(slot, Readable::Latest, &patterns, page.after, page.limit), Vec::new())
            }
            Call::Topics { pattern, page } => {
                (self.reads(slot, Readable::Topics, &[pattern], page.after, page.limit), Vec::new())
            }
            Call::History { topic, epoch, from, limit } => {
                let at = Cursor { sequence: from, ..Cursor::default() };
                (self.reads(slot, Readable::History { epoch }, &[topic], at, limit), Vec::new())
            }
        };
        let Some(session) = self.sessions.open_mut(slot) else { return };
        let Protocol::Http(http) = &mut session.protocol else { return };
        http.is_kept = true;
        let call = PendingCall { exchange, work };
        if call.is_done() {
            self.calls.done.push(slot);
        }
        http.calls.get_or_insert_default().pending = Some(call);
        if !closes {
            self.keep_alive(slot, now);
        }
        for (at, tick) in ticks.into_iter().enumerate() {
            let Tick { topic, payload, is_json, producer_time_ns, schema, key, message_id } = tick;
            let publish = PublishCommand {
                request: at as u32 + 1,
                topic: Cow::Owned(topic.into_bytes()),
                producer_time_ns,
                schema,
                payload: Cow::Owned(payload),
                payload_is_json: is_json,
                key,
                message_id: Cow::Owned(message_id.into_bytes()),
            };
            self.publish_command(slot, &publish, now);
        }
        self.begin_read(slot, now);
    }

    /// The work of a request that reads topics.
    fn reads(&self, slot: SlotId, what: Readable, patterns: &[String], at: Cursor, limit: usize) -> Work {
        let keys = patterns.iter().map(|pattern| self.pattern_key(slot, pattern).into()).collect();
        Work::Read(Box::new(Read::new(what, keys, at, limit)))
    }

    /// Checks the permissions and budgets of a request that reads, and queues it.
    fn begin_read(&mut self, slot: SlotId, now: Now) {
        let Some(session) = self.sessions.open_mut(slot) else { return };
        let (id, permissions) =
            (session.id, session.principal.as_ref().map(|principal| principal.permissions.clone()));
        let Some(PendingCall { work: Work::Read(read), .. }) = session.protocol.call_mut() else { return };
        // Without authentication, there are none to apply.
        read.permissions = permissions.filter(|_| self.limits.auth.is_some());
        let expense = match read.what {
            Readable::History { .. } => Expense::History,
            Readable::Latest | Readable::Topics => Expense::LastValues,
        };
        let patterns = read.patterns.clone();
        let wildcards_max = self.limits.patterns.wildcards_max;
        let names = || patterns.iter().map(|pattern| crate::topic_key::name(pattern));
        let patterns_max = self.limits.subscriptions_per_session_max.min(CALL_PATTERNS_MAX);
        let refusal = if patterns.len() > patterns_max {
            let text = format!("a request may have {patterns_max} patterns");
            Some((413, ErrorCode::TooManySubscriptions, text))
        } else if let Some(name) = names().find(|name| pattern::wildcards(name) > wildcards_max) {
            let text = format!("pattern {}: more than {wildcards_max} *", quoted(name.as_bytes()));
            Some((400, ErrorCode::BadPattern, text))
        } else {
            let refused = names().find(|name| self.allowed(slot, name) == Allowed::Nothing);
            refused.map(|name| (403, ErrorCode::NotAllowed, self.refuse_pattern(name)))
        };
        if let Some((status, code, text)) = refusal {
            return self.fail_read(slot, status, code, text);
        }
        if self.pay(slot, 0, &[(expense, patterns.len() as u64)], now) {
            self.queue_read(id);
        }
    }

    fn queue_read(&mut self, id: SessionId) {
        if self.calls.reads.len() >= CallQueues::reads_max(self.sessions.len()) {
            let sessions = &self.sessions;
            self.calls.reads.retain(|id| sessions.get(id.slot()).is_some_and(|session| session.id == *id));
        }
        self.calls.reads.push_back(id);
    }

    fn fail_read(&mut self, slot: SlotId, status: u16, code: ErrorCode, text: String) {
        let call = self.sessions.open_mut(slot).and_then(|session| session.protocol.call_mut());
        if let Some(PendingCall { work: Work::Read(read), .. }) = call {
            read.fail(status, code, text);
            self.calls.done.push(slot);
        }
    }

    /// Returns whether a piece can be requested.
    pub(super) fn may_read(&self) -> bool {
        !self.input_stopped
            && !self.calls.reads.is_empty()
            && self.takes_requests()
            && self.stages.requests_have_room()
    }

    /// Requests the next pieces of reads, at most [`TURN_CALL_PIECES`], one connection after another. Returns whether there
    /// were any.
    pub(super) fn advance_reads(&mut self, now: Now) -> bool {
        let mut pieces = 0;
        while pieces < TURN_CALL_PIECES
            && self.may_read()
            && let Some(id) = self.calls.reads.pop_front()
        {
            pieces += 1;
            self.request_piece(id, now);
        }
        pieces > 0
    }

    fn request_piece(&mut self, id: SessionId, now: Now) {
        let shards = self.shards;
        let Some(read) = self.read_of(id) else { return };
        let Some(key) = read.pattern().filter(|_| read.at.home < shards) else {
            let text = "parameter after is not the \"next\" of an earlier answer to this request".into();
            return self.fail_read(id.slot(), 400, ErrorCode::BadRequest, text);
        };
        let home = match pattern::is_exact(key) {
            true => placement::home_shard(key, shards),
            false => ShardId(read.at.home.min(shards - 1)),
        };
        let Cursor { place, sequence, life, .. } = read.at;
        let (wants, epoch) = match read.what {
            Readable::Topics => (WANTS_TOPICS, life),
            Readable::Latest => (WANTS_VALUES, life),
            Readable::History { epoch: None } => (WANTS_TICKS, 0),
            Readable::History { epoch: Some(epoch) } => (WANTS_TICKS_OF_EPOCH, epoch),
        };
        let record = Lookup { session: id.0, epoch, sequence, place, limit: read.left as u16, wants };
        let key: Box<str> = key.into();
        read.is_waiting = true;
        if home != self.id {
            return self.stages.push_request(home, |out| {
                frame::encode(out, Kind::Lookup, HeaderFields::default(), &record, &[key.as_bytes()]);
            });
        }
        let mut frames = std::mem::take(&mut self.chunk_frames);
        frames.clear();
        let (fields, found) = self.look_up(record, &key, now, &mut frames);
        self.take_piece(fields.topic_id, fields.sequence, found, &frames);
        self.chunk_frames = frames;
    }

    fn read_of(&mut self, id: SessionId) -> Option<&mut Read> {
        let session = self.sessions.open_mut(id.slot()).filter(|session| session.id == id)?;
        match session.protocol.call_mut() {
            Some(PendingCall { work: Work::Read(read), .. }) => Some(read),
            _ => None,
        }
    }

    /// Finds a piece, as the home of its topics.
    fn look_up(&mut self, wanted: Lookup, key: &str, now: Now, out: &mut Vec<u8>) -> (HeaderFields, Found) {
        let Lookup { session, epoch, sequence, place, limit, wants } = wanted;
        let limit = usize::from(limit);
        self.charge(CALL_UNITS);
        let (mut fields, mut found) = (HeaderFields::default(), Found { session, ..Found::default() });
        if wants == WANTS_TOPICS || wants == WANTS_VALUES {
            let wants_values = wants == WANTS_VALUES;
            let from = PageStart { place, sequence, life: epoch };
            let wanted = TopicsWanted { pattern: key, from, limit, wants_values };
            let TopicsFound { next, .. } = self.home.find_topics(&wanted, self.limits.tenants.exports(), out);
            if let Some(PageStart { place, sequence, life }) = next {
                found = Found { flags: FOUND_MORE, place, sequence, epoch: life, ..found };
            }
            return (fields, found);
        }
        let epoch = (wants == WANTS_TICKS_OF_EPOCH).then_some(epoch);
        if let Some(TicksFound { id, epoch, last, start, has_more }) =
            self.home.find_ticks(key, epoch, sequence, limit, now.monotonic_ns, out)
        {
            (fields.topic_id, fields.sequence) = (id.0, last);
            let flags = FOUND_TOPIC | if has_more { FOUND_MORE } else { 0 };
            found = Found { flags, epoch, sequence: start, ..found };
        }
        (fields, found)
    }

    /// Answers a LOOKUP of another shard.
    pub(super) fn handle_lookup(&mut self, from: ShardId, frame: &Frame<'_>, now: Now) {
        let (Ok(record), Ok(key)) = (frame.record::<Lookup>(), frame.text()) else {
            return debug_assert!(false, "this process encoded the frame");
        };
        let mut frames = std::mem::take(&mut self.chunk_frames);
        frames.clear();
        let (fields, found) = self.look_up(record, key, now, &mut frames);
        self.stages.push_delivery(from, |out| {
            frame::encode(out, Kind::Found, fields, &found, &[&frames]);
        });
        self.chunk_frames = frames;
    }

    /// Handles the answer to a LOOKUP.
    pub(super) fn handle_found(&mut self, frame: &Frame<'_>) {
        let Ok(found) = frame.record::<Found>() else {
            return debug_assert!(false, "this process encoded the frame");
        };
        self.charge(CALL_UNITS);
        self.take_piece(frame.header.topic_id, frame.header.sequence, found, frame.payload());
    }

    fn take_piece(&mut self, topic: u32, last: u64, found: Found, frames: &[u8]) {
        let Found { session, epoch, sequence, place, flags } = found;
        let (id, shards, tenants) = (SessionId(session), self.shards, self.limits.tenants.clone());
        let Some(read) = self.read_of(id).filter(|read| read.is_waiting) else { return };
        read.is_waiting = false;
        let has_more = flags & FOUND_MORE != 0;
        if let Readable::History { .. } = read.what {
            let found = (flags & FOUND_TOPIC != 0).then_some((epoch, last, sequence));
            read.take_ticks(TopicId(topic), found, has_more, frames);
        } else {
            let is_exact = read.pattern().is_some_and(pattern::is_exact);
            let homes = 0..if is_exact { 1 } else { shards };
            let exports = tenants.exports();
            let matches = |pattern: &str, topic: &str| match pattern::is_exact(pattern) {
                true => pattern == topic,
                false => exports.matches(pattern, topic),
            };
            let next = PageStart { place, sequence, life: epoch };
            read.take_topics(frames, has_more.then_some(next), homes, matches);
        }
        // Charged like topics visited.
        let units = std::mem::take(&mut read.compared) * CALL_UNITS / TURN_SURVEYED;
        self.charge(units);
        match self.sessions.open_mut(id.slot()).and_then(|session| session.protocol.call_mut()) {
            Some(call) if call.is_done() => self.calls.done.push(id.slot()),
            _ => self.queue_read(id),
        }
    }

    /// Notes that the answer to a request may be known.
    pub(super) fn note_call_done(&mut self, slot: SlotId) {
        self.calls.done.push(slot);
    }

    /// Takes the answer to a publish request of a session that ends before all its publishes are answered, or before it has sent
    /// all of them, and its status; `None`: there is no such request. Never 503, because a client that retried would publish twice.
    pub(in crate::shard) fn take_unconfirmed(
        &mut self,
        slot: SlotId,
        reason: &CloseReason,
        now: Now,
    ) -> Option<(u16, Vec<u8>)> {
        let Protocol::Http(http) = &mut self.sessions.any_mut(slot)?.protocol else { return None };
        let calls = http.calls.as_deref_mut()?;
        let call = calls.pending.take_if(|call| matches!(call.work, Work::Publish(_)));
        let call = call.map(|mut call| {
            call.end_unconfirmed(&format!("{reason}: it may be published"));
            call
        });
        let (mut exchange, (status, json)) = match (call, calls.summary.take()) {
            (Some(PendingCall { exchange, work: Work::Publish(part) }), summary) if part.is_part() => {
                let mut summary = summary.unwrap_or_else(|| Summary::new(exchange.clone()).into());
                let answer = summary.add(part);
                (exchange, answer.unwrap_or_else(|| summary.answer(Some(not_read(reason)))))
            }
            (Some(call), _) => (call.exchange.clone(), call.answer()),
            (None, Some(summary)) => (summary.exchange().clone(), summary.answer(Some(not_read(reason)))),
            (None, None) => return None,
        };
        exchange.closes = true;
        self.counters.add(Counter::HttpResponses, 1);
        Some((status, exchange.answer(status, json, now.realtime_ns)))
    }

    /// Answers requests whose answer is known.
    pub(super) fn answer_calls(&mut self, now: Now) {
        for slot in std::mem::take(&mut self.calls.done) {
            let Some(session) = self.sessions.open_mut(slot) else { continue };
            let Protocol::Http(http) = &mut session.protocol else { continue };
            let Some(calls) = http.calls.as_deref_mut() else { continue };
            let Some(call) = calls.pending.take_if(|call| call.is_done()) else { continue };
            let exchange = call.exchange.clone();
            let (status, json) = match call.work {
                Work::Publish(part) if part.is_part() => {
                    let summary = calls.summary.get_or_insert_with(|| Summary::new(exchange.clone()).into());
                    let Some(answer) = summary.add(part) else {
                        // The rest of the request follows.
                        self.keep_alive(slot, now);
                        continue;
                    };
                    calls.summary = None;
                    answer
                }
                work => PendingCall { work, ..call }.answer(),
            };
            self.counters.add(Counter::HttpResponses, 1);
            self.push_bytes(slot, &exchange.answer(status, json, now.realtime_ns));
            match exchange.closes {
                true => self.end(slot, CloseReason::Http(status), now),
                false => self.keep_alive(slot, now),
            }
        }
    }
}

/// Why a request is answered before it has been read to its end. Not 503, because a client that retried would publish the beginning
/// twice.
fn not_read(reason: &CloseReason) -> Refused {
    let text = format!("{reason}: the rest of the request has not been read");
    Refused { status: 504, text }
}

#[cfg(test)]
mod lines_tests;
#[cfg(test)]
mod tests;
