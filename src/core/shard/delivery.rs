//! The path of a tick: from the session's shard to the topic's home, which assigns its sequence, and on to every interested
//! shard. Interest travels the same way to the homes, and history comes back from them.

use super::{ORIGIN_SOURCE, Shard, Unsequenced, stages::Stages};
use crate::{
    fanout::{self, EgressLogs, Fanout, HistoryRequest},
    home::{
        Backfill, CHUNK_IN_LOG, Creator, HistoryChunk, Home, InLog, InterestEvent, Sequenced, StaleMark,
        TopicLookup,
    },
    ids::{SessionId, SourceId, UpstreamId},
    limits::{
        HISTORY_BYTES_PER_UNIT, NEW_TOPIC_UNITS, PATTERN_REQUEST_UNITS, TURN_FORGET_UNITS,
        TURN_HISTORY_CHUNKS, TURN_HISTORY_UNITS, TURN_IDLE_UNITS,
    },
    message_id::MessageId,
    metrics::counters::Counter,
    now::Now,
    placement,
    session::table::Sessions,
};
use tickcast_proto::{
    command::encode_request,
    frame::{self, FLAG_ANSWERED, FLAG_PAYLOAD_JSON, Frame, HeaderFields, Kind, PublishParts, TickParts},
    ids::{Sequence, ShardId, TopicId},
    logged::{self, LogPosition},
    pattern,
    records::{Condition, FrameHeader, History, Publish, Recover, Request, Subscribed, TickTimes},
};

impl Shard {
    /// Publishes a session's tick: here if this shard is the topic's home, otherwise through the mesh.
    pub(super) fn publish(&mut self, tick: &Unsequenced<'_>, now: Now) {
        let home = placement::home_shard(tick.key, self.shards);
        if home == self.id {
            return self.sequence(Some(self.id), tick, now);
        }
        let Unsequenced { origin, source, flags, schema, record, key, payload, message_id, .. } = *tick;
        if flags & FLAG_ANSWERED != 0 {
            self.keep_room_for_answer(origin, key);
        }
        let fields = HeaderFields { flags, sequence: origin, topic_id: source.0, schema };
        let id = message_id.map(MessageId::to_bytes);
        let id = id.as_ref().map_or(&[][..], |bytes| &bytes[..]);
        let write = |out: &mut Vec<u8>| frame::encode_publish_with(out, fields, record, key, id, payload);
        // A publish that awaits an answer skips the latency budget, here and at the home.
        match flags & FLAG_ANSWERED != 0 {
            true => self.stages.push_request(home, write),
            false => self.stages.push_publish(home, write),
        }
    }

    /// Executes a request to this shard as a home: from another shard, or a PUBLISH from a source (`from` is then `None`).
    /// Call only while [`Shard::takes_requests`].
    pub fn handle_request(&mut self, from: Option<ShardId>, frame: &Frame<'_>, now: Now) {
        match (frame.kind, from) {
            (Kind::Publish, _) => {
                let Ok(PublishParts { record, topic, message_id, payload }) = frame.publish() else {
                    return debug_assert!(false, "this process encoded the frame");
                };
                let Ok(topic) = std::str::from_utf8(topic) else {
                    return debug_assert!(false, "topics are checked where they come in");
                };
                let FrameHeader { sequence: origin, topic_id, flags, schema, .. } = frame.header;
                // The ticks of a source have the number of its subscription there.
                let (source, upstream) = match from {
                    Some(_) => (SourceId(topic_id), UpstreamId::NONE),
                    None => (SourceId::default(), UpstreamId(topic_id)),
                };
                let message_id = MessageId::from_bytes(message_id);
                let tick = Unsequenced {
                    origin,
                    source,
                    upstream,
                    flags,
                    schema,
                    record,
                    key: topic,
                    payload,
                    message_id,
                };
                self.sequence(from, &tick, now);
            }
            (Kind::Append, None) => self.append(frame, now),
            (Kind::Recover, Some(from)) => {
                let Ok(record) = frame.record::<Recover>() else {
                    return debug_assert!(false, "this process encoded the frame");
                };
                let id = TopicId(frame.header.topic_id);
                self.send_history(from, id, frame.header.sequence, record, now);
            }
            (Kind::Forget, None) => self.home.lapse(UpstreamId(frame.header.topic_id)),
            (Kind::Lookup, Some(from)) => self.handle_lookup(from, frame, now),
            (Kind::Forget, Some(from)) => {
                self.home.handle_forgotten(from, TopicId(frame.header.topic_id), now.monotonic_ns);
            }
            (Kind::Subscribe, Some(from)) => {
                let (Ok(record), Ok(pattern)) = (frame.record::<Request>(), frame.text()) else {
                    return debug_assert!(false, "this process encoded the frame");
                };
                self.charge(PATTERN_REQUEST_UNITS);
                self.with_home(|home, notify| home.add_interest(from, pattern, record.request, notify));
            }
            (Kind::Unsubscribe, Some(from)) => {
                let Ok(pattern) = frame.text() else {
                    return debug_assert!(false, "this process encoded the frame");
                };
                self.charge(PATTERN_REQUEST_UNITS);
                self.with_home(|home, notify| home.remove_interest(from, pattern, notify));
            }
            _ => debug_assert!(false, "no other request crosses the mesh"),
        }
        self.apply_deferred(now);
    }

    /// Sequences a tick as its home, and passes it to every interested shard, this one included.
    pub(super) fn sequence(&mut self, from: Option<ShardId>, tick: &Unsequenced<'_>, now: Now) {
        let Unsequenced {
            origin,
            source,
            upstream,
            flags,
            schema,
            record,
            key: topic_key,
            payload,
            message_id,
        } = *tick;
        if let Some(id) = &message_id
            && let Some(first) = self.home.tick_of(id, now.monotonic_ns)
        {
            return self.drop_duplicate(from, tick, first);
        }
        let session = from.filter(|_| origin != ORIGIN_SOURCE).map(|from| (from, SessionId(origin)));
        let mut found = self.home.find_or_create(topic_key, Creator { session, source }, now);
        if upstream != UpstreamId::NONE
            && let Ok(other) = found
            && self.home.upstream(other.index) != upstream
        {
            found = self.change_upstream(other, topic_key, upstream, now);
        }
        let TopicLookup { index, is_new } = match found {
            Ok(found) => found,
            Err(refusal) => return self.refuse(session, tick, refusal, now),
        };
        if is_new {
            self.charge(NEW_TOPIC_UNITS);
            self.announce_topic(index);
        }
        if from.is_none() {
            self.note_feed(index, record.request, now);
        }
        self.distribute(index, None, flags, schema, record, payload, now);
        if let Some(id) = &message_id {
            self.home.remember(id, self.home.last_tick(index), now.monotonic_ns);
        }
        if flags & FLAG_ANSWERED != 0
            && let Some(from) = from
        {
            self.acknowledge(from, tick, self.home.last_tick(index), false);
        }
    }

    /// Sequences a tick of the topic at an index, at a position of its log if one feeds it, and passes it to every interested shard.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "what a tick consists of")]
    pub(super) fn distribute(
        &mut self,
        index: u32,
        at: Option<&LogPosition>,
        flags: u8,
        schema: u32,
        record: Publish,
        payload: &[u8],
        now: Now,
    ) {
        let Publish { producer_time_ns, ingest_time_ns, key, .. } = record;
        let times = TickTimes { producer_time_ns, ingest_time_ns };
        let parts = TickParts { flags: flags & FLAG_PAYLOAD_JSON, schema, times, key, payload };
        let Sequenced { tick, interested } = match at {
            None => self.home.sequence(index, &parts, now.monotonic_ns),
            Some(at) => self.home.sequence_logged(index, at, &parts, now.monotonic_ns),
        };
        self.counters.add(Counter::TicksSequenced, 1);
        self.latency.sequenced(ingest_time_ns, now.realtime_ns);
        for shard in interested.iter().filter(|&shard| shard != self.id) {
            self.stages.push_tick(shard, |out| out.extend_from_slice(tick.bytes));
        }
        if interested.contains(self.id) {
            self.latency.sample(ingest_time_ns);
            self.fanout.deliver(&tick, &mut self.sessions, &mut self.logs, now.monotonic_ns);
            // Count each tick at once: whether the turn takes another depends on it.
            self.count_ticks();
        }
    }

    /// Announces a new topic to the shards with matching patterns, before its first tick.
    pub(super) fn announce_topic(&mut self, index: u32) {
        self.with_home(|home, notify| {
            let topic = home.topic(index);
            for shard in topic.interested.iter() {
                notify(InterestEvent::Open(shard, topic));
            }
        });
    }

    /// Processes a delivery from a home. Call only while [`Shard::takes_deliveries`]. A turn always takes some: they add only to
    /// the sessions' outboxes, which are bounded.
    pub fn handle_delivery(&mut self, frame: &Frame<'_>, now: Now) {
        std::mem::swap(&mut self.mesh_units_left, &mut self.intake_units_left);
        self.process_delivery(frame, now);
        std::mem::swap(&mut self.mesh_units_left, &mut self.intake_units_left);
    }

    fn process_delivery(&mut self, frame: &Frame<'_>, now: Now) {
        let id = TopicId(frame.header.topic_id);
        match frame.kind {
            Kind::Tick => {
                if self.latency.wants_sample()
                    && let Ok(times) = frame.record::<TickTimes>()
                {
                    self.latency.sample(times.ingest_time_ns);
                }
                self.fanout.deliver(frame, &mut self.sessions, &mut self.logs, now.monotonic_ns);
            }
            Kind::History => self.fanout.handle_history(frame, &mut self.sessions, &mut self.logs),
            Kind::Subscribed if id.0 != 0 => {
                let (Ok(record), Ok(name)) = (frame.record::<Subscribed>(), frame.text()) else {
                    return debug_assert!(false, "this process encoded the frame");
                };
                self.charge(NEW_TOPIC_UNITS);
                let FrameHeader { sequence: last, schema: owner, .. } = frame.header;
                let Shard { fanout, sessions, logs, .. } = self;
                fanout.handle_open((id, owner), record.epoch, last, name, sessions, logs);
            }
            Kind::Subscribed => {
                let Ok(record) = frame.record::<Subscribed>() else {
                    return debug_assert!(false, "this process encoded the frame");
                };
                self.fanout.handle_ready(record.request);
            }
            Kind::Unsubscribed => {
                self.charge(NEW_TOPIC_UNITS);
                self.fanout.handle_close(id, &mut self.sessions);
            }
            Kind::Forget => {
                self.charge(NEW_TOPIC_UNITS);
                let last = frame.header.sequence;
                self.fanout.handle_forget(id, last);
            }
            Kind::Stale => {
                let Ok(Condition { state, since_ns, .. }) = frame.record::<Condition>() else {
                    return debug_assert!(false, "this process encoded the frame");
                };
                self.fanout.handle_mark(id, StaleMark { is_stale: state != 0, since_ns });
            }
            Kind::Acknowledge => self.handle_acknowledge(frame),
            Kind::Found => self.handle_found(frame),
            Kind::Error => self.handle_refusal(frame, now),
            _ => debug_assert!(false, "no other delivery crosses the mesh"),
        }
        self.apply_deferred(now);
    }

    /// Tells the homes, and sources that subscribe on demand, about a pattern that is new on this shard.
    pub(super) fn add_interest(&mut self, pattern: &str, exact: bool, request: u32) {
        self.note_demand(pattern, true);
        for home in fanout::homes(pattern, exact, self.shards).map(ShardId) {
            if home == self.id {
                self.with_home(|own, notify| own.add_interest(home, pattern, request, notify));
            } else {
                self.stages.push_request(home, |out| encode_request(out, Kind::Subscribe, request, pattern));
            }
        }
    }

    /// Tells the homes, and sources that subscribe on demand, that no session of this shard holds a pattern any more.
    pub(super) fn remove_interest(&mut self, pattern: &str) {
        self.note_demand(pattern, false);
        for home in fanout::homes(pattern, pattern::is_exact(pattern), self.shards).map(ShardId) {
            if home == self.id {
                self.with_home(|own, notify| own.remove_interest(home, pattern, notify));
            } else {
                self.stages.push_request(home, |out| encode_request(out, Kind::Unsubscribe, 0, pattern));
            }
        }
    }

    /// Changes the home and passes its messages on to the shards. Each message adds at most one frame to a stage. After
    /// each, the home learns whether the stages have room for more: half of the room is kept for ticks.
    pub(super) fn with_home<R>(
        &mut self,
        act: impl FnOnce(&mut Home, &mut dyn FnMut(InterestEvent<'_>) -> bool) -> R,
    ) -> R {
        let own = self.id;
        let Shard { home, fanout, sessions, logs, stages, .. } = self;
        act(home, &mut |notice| {
            Self::pass_on(notice, own, fanout, sessions, logs, stages);
            stages.deliveries_are_half_empty()
        })
    }

    fn pass_on(
        notice: InterestEvent<'_>,
        own: ShardId,
        fanout: &mut Fanout,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
        stages: &mut Stages,
    ) {
        match notice {
            InterestEvent::Open(shard, topic) if shard == own => {
                let id = (topic.id, topic.owner());
                fanout.handle_open(id, topic.epoch, topic.sequence.0, &topic.key, sessions, logs);
                if topic.mark.is_stale {
                    fanout.handle_mark(topic.id, topic.mark);
                }
            }
            InterestEvent::Open(shard, topic) => {
                stages.push_delivery(shard, |out| {
                    let id = (topic.id, topic.owner());
                    logged::encode_open(out, id, topic.epoch, topic.sequence, &topic.key);
                    if topic.mark.is_stale {
                        encode_mark(out, topic.id, topic.mark);
                    }
                });
            }
            InterestEvent::Close(shard, topic) if shard == own => {
                fanout.handle_close(topic.id, sessions);
            }
            InterestEvent::Close(shard, topic) => {
                let meta = HeaderFields { topic_id: topic.id.0, ..HeaderFields::default() };
                stages.push_delivery(shard, |out| {
                    frame::encode(out, Kind::Unsubscribed, meta, &Request::default(), &[]);
                });
            }
            InterestEvent::Forget(shard, topic) if shard == own => {
                fanout.handle_forget(topic.id, topic.sequence.0);
            }
            InterestEvent::Forget(shard, topic) => {
                stages.push_delivery(shard, |out| encode_forget(out, topic.id, topic.sequence));
            }
            InterestEvent::Mark(shard, topic) if shard == own => fanout.handle_mark(topic.id, topic.mark),
            InterestEvent::Mark(shard, topic) => {
                stages.push_delivery(shard, |out| encode_mark(out, topic.id, topic.mark));
            }
            InterestEvent::Ready(shard, request) if shard == own => fanout.handle_ready(request),
            InterestEvent::Ready(shard, request) => {
                let record = Subscribed { request, ..Subscribed::default() };
                stages.push_delivery(shard, |out| {
                    frame::encode(out, Kind::Subscribed, HeaderFields::default(), &record, &[]);
                });
            }
        }
    }

    /// Forgets idle topics as their home, and leaves topics that their homes have forgotten. Returns whether there were any.
    pub(super) fn forget_topics(&mut self, now: Now) -> bool {
        let mut used = 0;
        if self.idle_walk_due_ns().is_some() {
            let before = self.home.forgotten();
            let now_ns = now.monotonic_ns;
            used = self.with_home(|home, notify| home.advance_idle_walk(TURN_IDLE_UNITS, now_ns, notify));
            self.counters.add(Counter::TopicsForgotten, self.home.forgotten() - before);
        }
        if !self.fanout.has_forgotten() || !self.stages.requests_have_room() {
            return used > 0;
        }
        let Shard { fanout, home, sessions, logs, .. } = self;
        let (left, gone) = fanout.leave_forgotten(TURN_FORGET_UNITS, home, sessions, logs, now.monotonic_ns);
        self.counters.add(Counter::ForgettingUnits, (TURN_FORGET_UNITS - left) as u64);
        used += TURN_FORGET_UNITS - left;
        self.cancel_forgotten_log_reads();
        for id in gone {
            match id.home(self.shards) {
                home if home == self.id => self.home.handle_forgotten(home, id, now.monotonic_ns),
                home => self.stages.push_request(home, |out| encode_forget(out, id, Sequence(0))),
            }
        }
        used > 0
    }

    /// When the walk for idle topics is next due, CLOCK_MONOTONIC nanoseconds; 0: at once. `None` while nothing may be
    /// forgotten: the server drains, or messages for the shards wait for room.
    pub(super) fn idle_walk_due_ns(&self) -> Option<u64> {
        let walks = self.draining.is_none() && self.stages.deliveries_are_half_empty();
        self.home.idle_due_ns().filter(|_| walks)
    }

    /// Returns whether a chunk of history can be requested.
    pub(super) fn may_request_history(&self) -> bool {
        !self.input_stopped
            && self.fanout.has_pulls()
            && self.takes_requests()
            && self.stages.requests_have_room()
    }

    /// Requests chunks of history from the topics' homes for sessions that have room: at most [`TURN_HISTORY_CHUNKS`], and as many
    /// of its own as [`TURN_HISTORY_UNITS`] allow, a budget apart from that of requests. Returns whether there were any.
    pub(super) fn request_history(&mut self, now: Now) -> bool {
        let mut requested = 0;
        let requests_left = std::mem::replace(&mut self.intake_units_left, TURN_HISTORY_UNITS);
        while requested < TURN_HISTORY_CHUNKS && self.intake_units_left > 0 && self.may_request_history() {
            let Some(request) = self.fanout.next_pull(&mut self.sessions) else { break };
            let HistoryRequest { topic: id, from, record } = request;
            requested += 1;
            let home = id.home(self.shards);
            if home == self.id {
                self.send_history(home, id, from, record, now);
                self.count_ticks();
            } else {
                let meta = HeaderFields { topic_id: id.0, sequence: from, ..HeaderFields::default() };
                self.stages.push_request(home, |out| {
                    frame::encode(out, Kind::Recover, meta, &record, &[]);
                });
            }
        }
        self.intake_units_left = requests_left;
        requested > 0
    }

    /// Sends the next chunk of a topic's history, as its home.
    pub(super) fn send_history(&mut self, shard: ShardId, id: TopicId, from: u64, record: Recover, now: Now) {
        let Some(wanted) = Backfill::from_wire(record.wanted) else {
            return debug_assert!(false, "a shard of this process made the request");
        };
        let mut frames = std::mem::take(&mut self.chunk_frames);
        frames.clear();
        let in_log = self.home.in_log(id, wanted, from, now.monotonic_ns);
        let HistoryChunk { last, start, flags } = match in_log {
            Some(InLog { source, last, until }) if self.log_reads.has_reader(source) => {
                frames.extend(source.to_le_bytes());
                HistoryChunk { last, start: until, flags: CHUNK_IN_LOG }
            }
            _ => self.home.history_chunk(id, wanted, from, now.monotonic_ns, &mut frames),
        };
        self.charge(1 + frames.len() / HISTORY_BYTES_PER_UNIT);
        let meta = HeaderFields { topic_id: id.0, sequence: last, ..HeaderFields::default() };
        let record = History { session: record.session, from, start, flags, wanted: record.wanted };
        if shard != self.id {
            self.stages.push_delivery(shard, |out| {
                frame::encode(out, Kind::History, meta, &record, &[&frames]);
            });
        } else {
            let mut own = std::mem::take(&mut self.scratch);
            own.clear();
            let header = frame::encode(&mut own, Kind::History, meta, &record, &[&frames]);
            let chunk = Frame { header, kind: Kind::History, bytes: &own };
            self.fanout.handle_history(&chunk, &mut self.sessions, &mut self.logs);
            self.scratch = own;
        }
        self.chunk_frames = frames;
    }
}

/// Appends a FORGET: a home has forgotten a topic with this last sequence, or a shard confirms that it has too.
fn encode_forget(out: &mut Vec<u8>, id: TopicId, last: Sequence) {
    let meta = HeaderFields { topic_id: id.0, sequence: last.0, ..HeaderFields::default() };
    frame::encode(out, Kind::Forget, meta, &Request::default(), &[]);
}

/// Appends a STALE: a home has marked a topic, or removed its mark.
fn encode_mark(out: &mut Vec<u8>, id: TopicId, mark: StaleMark) {
    let meta = HeaderFields { topic_id: id.0, ..HeaderFields::default() };
    let record = Condition { since_ns: mark.since_ns, state: mark.is_stale.into(), reserved: 0 };
    frame::encode(out, Kind::Stale, meta, &record, &[]);
}

#[cfg(test)]
mod budget_tests;
#[cfg(test)]
mod forgotten_opening_tests;
#[cfg(test)]
mod opening_flood_tests;
#[cfg(test)]
mod opening_tests;
#[cfg(test)]
mod tests;
