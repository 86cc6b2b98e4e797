//! One-way streams over HTTP: how `/sse` begins, resumes where an earlier stream has ended, and tells its client what it has
//! received.

use std::{borrow::Cow, collections::HashMap};

use super::{Action, Shard, authentication::Allowed};
use crate::{
    ids::SlotId,
    metrics::counters::Counter,
    now::Now,
    pattern_trie::PatternTrie,
    principal::AuthRefusal,
    session::{CloseReason, Protocol, SendSource, Session, places::Owner},
};
use tickcast_proto::{
    DecodeError, WireFormat,
    command::Command,
    framing::event_stream::KeptPlaces,
    http::{self, Resumed, Target},
    ids::ShardId,
    subscription::{Position, StartPosition},
};

/// A position that no topic has, for clients whose own is lost: for each topic, they learn this and receive everything kept.
const LOST: Position = Position { epoch: 0, sequence: 0 };

impl Shard {
    /// Begins a stream, unless its client may not receive a pattern at all: then the answer is 403. `to`: the
    /// `cors` and `is_head` of [`http::Answer::Upgrade`].
    pub(super) fn begin_stream(
        &mut self,
        slot: SlotId,
        response: &[u8],
        target: Target,
        to: (&str, bool),
        now: Now,
    ) -> Result<(), DecodeError> {
        let Target::Stream { patterns, .. } = &target else { return Ok(()) };
        if let Some(refused) = patterns.iter().find(|pattern| self.allowed(slot, pattern) == Allowed::Nothing)
        {
            let text = self.refuse_pattern(refused);
            self.refuse_with(slot, 403, &text, to, now);
            return Ok(());
        }
        if let (_, true) = to {
            self.counters.add(Counter::HttpResponses, 1);
            self.push_bytes(slot, response);
            self.end(slot, CloseReason::Http(200), now);
            return Ok(());
        }
        self.begin_messages(slot, response, &target, now);
        let Target::Stream { patterns, delivery, from, resumed, .. } = target else { return Ok(()) };
        let (from, since_us) = match resumed {
            Resumed::Nothing => (from, None),
            Resumed::Since { since_us } => (from, Some(since_us)),
            Resumed::Kept(kept) => match self.kept_positions(slot, kept, &patterns) {
                Some((positions, since_us)) => (StartPosition::AfterEach(positions), Some(since_us)),
                None => (StartPosition::After(LOST), None),
            },
            Resumed::Lost => (StartPosition::After(LOST), None),
        };
        if let (StartPosition::AfterEach(positions), Some(since_us)) = (&from, since_us) {
            self.seed_places(slot, positions, since_us, now);
        }
        let patterns = patterns.into_iter().map(Cow::Owned).collect();
        self.execute(slot, Command::Subscribe { request: 0, patterns, delivery, from }, now)?;
        self.end_if_nothing_follows(slot, now);
        Ok(())
    }

    /// Ends a stream that has no subscription. The errors have been sent, and nothing would follow them.
    pub(super) fn end_if_nothing_follows(&mut self, slot: SlotId, now: Now) {
        let session = self.sessions.open_mut(slot);
        if session.is_some_and(|session| session.protocol.is_streaming() && session.subscriptions.is_empty())
        {
            self.end(slot, CloseReason::BadRequest("none of the topics could be subscribed to".into()), now);
        }
    }

    /// Refuses the credentials of a client that has requested a stream, before the stream begins. If the server is too busy to
    /// verify them, the client gets a stream that ends at once, because an EventSource does not reconnect after an error
    /// response.
    /// `to`: as in [`Shard::begin_stream`].
    pub(super) fn refuse_stream(
        &mut self,
        slot: SlotId,
        response: &[u8],
        target: &Target,
        refusal: AuthRefusal,
        to: (&str, bool),
        now: Now,
    ) {
        let is_event_stream = matches!(target, Target::Stream { format: WireFormat::EVENTS_JSON, .. });
        if is_event_stream && refusal == AuthRefusal::Busy && !to.1 {
            self.begin_messages(slot, response, target, now);
            return self.end(slot, CloseReason::Unauthorized(refusal), now);
        }
        self.refuse_with(slot, refusal.status(), &refusal.to_string(), to, now);
    }

    /// Answers a request for a stream with an error, and closes its connection.
    fn refuse_with(&mut self, slot: SlotId, status: u16, text: &str, to: (&str, bool), now: Now) {
        self.counters.add(Counter::HttpResponses, 1);
        self.push_bytes(slot, &http::refused_to_page(status, text, to, now.realtime_ns));
        self.end(slot, CloseReason::Http(status), now);
    }

    /// Hands a connection over to the shard that keeps its client's places. Returns whether the handover has begun. A client
    /// whose shard is chosen by its identity stays.
    pub(super) fn hand_over_stream(&mut self, slot: SlotId, client: &str, kept: KeptPlaces) -> bool {
        let is_elsewhere = kept.shard != self.id.0 && kept.shard < self.shards;
        if !is_elsewhere || !client.is_empty() || self.limits.identity_replaces {
            return false;
        }
        let Some(session) = self.sessions.open_mut(slot) else { return false };
        session.protocol.leave(ShardId(kept.shard));
        self.actions.push_back(Action::HandOver(slot));
        true
    }

    /// The positions kept under an id, and when the client's first stream began. The stream that kept them has ended, or this
    /// shard has yet to notice that it did. A position is returned only to the client that it belongs to, and only if its topic
    /// matches one of these patterns and the client is still allowed to receive it.
    fn kept_positions(
        &mut self,
        slot: SlotId,
        kept: KeptPlaces,
        patterns: &[String],
    ) -> Option<(HashMap<Box<str>, Position>, u64)> {
        if kept.shard != self.id.0 {
            return None;
        }
        let id = self.kept_places.session_of(kept)?;
        let session = self.sessions.get(slot)?;
        let client = Owner::of(session);
        let permissions = session.principal.as_ref().map(|principal| principal.permissions.clone());
        let (mut positions, since_us) =
            match self.sessions.any_mut(id.slot()).filter(|session| session.id == id) {
                Some(session) => {
                    let places = session.protocol.places_mut()?;
                    (places.after_send(kept.number, &client)?, places.since_us())
                }
                None => self.kept_places.after_send(id, kept.number, &client)?,
            };
        let mut wanted = PatternTrie::default();
        for pattern in patterns {
            wanted.get_or_insert_with(pattern, || ());
        }
        positions.retain(|topic, _| {
            let mut is_wanted = false;
            wanted.for_each_match(topic, |()| is_wanted = true);
            is_wanted && permissions.as_ref().is_none_or(|permissions| permissions.subscribe.permits(topic))
        });
        Some((positions, since_us))
    }

    /// Sets the places of a client that resumes from these positions, and what it recovers of other topics. Its own id may name places
    /// that are soon forgotten, so the first SEND has a new one even if this stream has nothing new for a long time.
    fn seed_places(
        &mut self,
        slot: SlotId,
        positions: &HashMap<Box<str>, Position>,
        since_us: u64,
        now: Now,
    ) {
        let bytes_max = self.limits.positions_bytes_max / usize::from(self.shards);
        self.set_saved_since(slot, since_us, now);
        let session = self.sessions.open_mut(slot);
        let Some(places) = session.and_then(|session| session.protocol.places_mut()) else { return };
        for (topic, position) in positions {
            places.learn(None, topic, *position, bytes_max);
        }
        places.set_since_us(since_us);
    }

    /// Ends an event stream's SEND with the id of what its client then has, unless the SEND ends within an event.
    pub(super) fn append_place(&mut self, slot: SlotId, source: &mut SendSource, gather: &mut Vec<u8>) {
        let SendSource::Gathered { start, len } = source else {
            return debug_assert!(false, "the SENDs of event streams are gathered");
        };
        let Some(session) = self.sessions.any_mut(slot) else { return };
        let (kept_as, is_mid_frame) =
            (self.kept_places.kept_as(self.id, session.id), session.outbox.is_mid_frame());
        let Some(places) = session.protocol.places_mut() else { return };
        let bytes_max = self.limits.positions_bytes_max / usize::from(self.shards);
        for (id, sequence) in places.take_unknown() {
            // A topic that is gone has no more ticks: its next life has an epoch of its own.
            if let Some((name, epoch)) = self.fanout.name_and_epoch(id) {
                places.learn(Some(id), name, Position { epoch, sequence }, bytes_max);
            }
        }
        if !is_mid_frame {
            places.end_send(kept_as, gather);
            *len = gather.len() - *start;
        }
    }

    /// Keeps the places of a session that is gone, if its client may resume from them.
    pub(super) fn keep_places(&mut self, session: &mut Session) {
        if let Protocol::Streaming(stream) = &mut session.protocol
            && let Some(places) = stream.places.take_if(|places| places.must_be_kept())
        {
            self.kept_places.keep(session.id, places);
        }
    }
}

#[cfg(test)]
mod tests;
