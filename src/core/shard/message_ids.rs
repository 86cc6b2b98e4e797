//! Publishes with message ids: the digest by which a topic's home, or an engine, recognises a tick that is published again.
//!
//! An id counts for its publisher only, so that nobody can make the server drop another client's tick by guessing its id. Who has not
//! proven who it is publishes under the identity that it claims, which others may claim too: such a client needs ids that nobody can
//! guess.

use super::{Shard, Unsequenced};
use crate::{
    home::TickPosition,
    ids::SlotId,
    limits::ANSWER_UNITS,
    message_id::{MessageId, Publisher},
    metrics::counters::Counter,
    now::Now,
    session::Proof,
};
use tickcast_proto::{
    command::PublishCommand, features::Features, frame::FLAG_ANSWERED, ids::ShardId,
    limits::MESSAGE_ID_BYTES_MAX,
};

impl Shard {
    /// Returns whether homes remember message ids.
    pub(super) fn remembers_message_ids(&self) -> bool {
        self.limits.message_id_window_ns > 0
    }

    /// The message id of a publish to a valid topic; `None`: it has none.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn message_id(
        &self,
        slot: SlotId,
        publish: &PublishCommand<'_>,
        topic: &str,
    ) -> Result<Option<MessageId>, String> {
        let text = &*publish.message_id;
        let Some(session) = self.sessions.get(slot).filter(|_| !text.is_empty()) else { return Ok(None) };
        // HTTP has no features: the header or field asks for it.
        let is_granted = match session.protocol.has_call() {
            true => self.remembers_message_ids(),
            false => session.features.contains(Features::MESSAGE_IDS),
        };
        if !is_granted {
            return Err("message id: the server has not granted this session the feature message_ids".into());
        }
        if text.len() > MESSAGE_ID_BYTES_MAX {
            let len = text.len();
            return Err(format!("message id: {len} bytes, at most {MESSAGE_ID_BYTES_MAX} are allowed"));
        }
        if std::str::from_utf8(text).is_err() {
            return Err("message id: not UTF-8".into());
        }
        let identity;
        let publisher = match (session.proof, &session.principal) {
            (Proof::Credentials, Some(principal)) => {
                identity = principal.identity();
                Publisher::Proven(&identity)
            }
            _ => Publisher::Claimed(self.identities.get(&slot).map_or("", |identity| identity)),
        };
        let tenant = session.tenant;
        let name = self.limits.tenants.name(tenant);
        Ok(Some(MessageId::new((tenant, name), publisher, session.source, topic, text)))
    }

    /// Answers a publish whose message id this home remembers, without sequencing it again.
    pub(super) fn drop_duplicate(
        &mut self,
        from: Option<ShardId>,
        tick: &Unsequenced<'_>,
        first: TickPosition,
    ) {
        self.counters.add(Counter::TicksDuplicate, 1);
        match from.filter(|_| tick.flags & FLAG_ANSWERED != 0) {
            Some(from) => self.acknowledge(from, tick, first, true),
            None => self.charge(ANSWER_UNITS),
        }
    }

    /// Forgets message ids older than the window. Returns whether there were any.
    pub(super) fn forget_message_ids(&mut self, now: Now) -> bool {
        let expired = self.home.expire_message_ids(now.monotonic_ns);
        self.counters.add(Counter::MessageIdsForgotten, self.home.take_message_ids_forgotten());
        expired > 0
    }
}

#[cfg(test)]
mod tests;
