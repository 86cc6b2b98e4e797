//! Subscriptions to patterns that are only partly allowed. A topic that the session's permissions do not name does not exist
//! for it: it is not announced, and none of its ticks, gaps, history or last values are delivered.
//!
//! ```text
//!  live, by a wildcard group     a group for each permission set, which is asked once for each topic: EgressTopic::is_permitted
//!  by a membership of its own    no membership of a topic that the session may not receive: Subscription::delivers
//! ```

use std::sync::Arc;

use super::{Begun, EgressLogs, Fanout, StartFrom, Subscription, topic::EgressTopic, topic_ref};
use crate::{
    ids::SlotId,
    principal::{Permissions, Principal},
    session::{Session, table::Sessions},
};
use tickcast_proto::ids::TopicId;

/// For how many permission sets a topic remembers whether they name it.
const PERMITTED_REMEMBERED_MAX: usize = 8;

/// Whether permission sets name a topic. It keeps the sets alive, so that no other set can take their address.
///
/// Bound: [`PERMITTED_REMEMBERED_MAX`].
#[derive(Debug, Default)]
pub(super) struct Permitted(Vec<(Arc<Permissions>, bool)>);

impl EgressTopic {
    /// Whether the topic is delivered to a group with this filter. Compares it with the filter's patterns only if the answer is
    /// not remembered.
    pub(super) fn is_permitted(&mut self, filter: &Arc<Permissions>) -> bool {
        let Permitted(known) = &mut **self.wildcard.permitted.get_or_insert_default();
        if let Some((_, permits)) = known.iter().find(|(known, _)| Arc::ptr_eq(known, filter)) {
            return *permits;
        }
        let permits = filter.subscribe.permits(&self.info.name);
        if known.len() == PERMITTED_REMEMBERED_MAX {
            known.clear();
        }
        known.push((filter.clone(), permits));
        permits
    }
}

impl Subscription {
    /// Whether the subscription delivers a topic that its pattern matches to a session of this principal.
    pub(super) fn delivers(&self, topic: &str, principal: Option<&Principal>) -> bool {
        !self.is_partial || principal.is_some_and(|principal| principal.permissions.subscribe.permits(topic))
    }
}

impl Session {
    /// Whether one of the session's subscriptions is only partly allowed.
    pub(super) fn has_partial(&self) -> bool {
        self.subscriptions.iter().any(|held| held.is_partial)
    }
}

impl Fanout {
    /// Whether a session may receive an open topic through its subscription to an entry's pattern, which matches.
    pub(super) fn delivers(&self, entry: u32, id: TopicId, slot: SlotId, sessions: &Sessions) -> bool {
        let Some(session) = sessions.get(slot) else { return false };
        let (held, topic) = (session.subscriptions.to(entry), topic_ref(&self.topics, id, self.shards));
        let principal = session.principal.as_deref();
        held.zip(topic).is_some_and(|(held, topic)| held.delivers(&topic.info.name, principal))
    }

    /// The filter of a session's subscription to an entry's pattern; `None` if the whole pattern is allowed.
    pub(super) fn filter(&self, entry: u32, slot: SlotId, sessions: &Sessions) -> Option<Arc<Permissions>> {
        let session = sessions.get(slot)?;
        let is_partial = session.subscriptions.to(entry).is_some_and(|held| held.is_partial);
        let permissions = session.principal.as_ref().map(|principal| principal.permissions.clone());
        is_partial.then(|| permissions.unwrap_or_default())
    }

    /// Whether a session must join a pattern's topics one by one, because its new permissions allow another part of them.
    pub fn rejoins(&self, index: u32, slot: SlotId, sessions: &Sessions) -> bool {
        let held = sessions.get(slot).and_then(|session| session.subscriptions.to(index));
        self.entries[index as usize]
            .as_ref()
            .zip(held)
            .is_some_and(|(entry, held)| !entry.is_exact && !entry.shares(held.delivery))
    }

    /// Begins to apply a session's new permissions, which allow all or part of a pattern, to its subscription; `few`: see
    /// [`Fanout::begin_join`]. `None` if the session does not hold the pattern.
    pub fn begin_refilter(
        &mut self,
        (index, is_partial): (u32, bool),
        few: Option<Vec<TopicId>>,
        slot: SlotId,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) -> Option<Begun> {
        let held = *sessions.open_mut(slot)?.subscriptions.to(index)?;
        let rejoins = self.rejoins(index, slot, sessions);
        self.leave_members(held, slot, sessions);
        let now = sessions.open_mut(slot)?.subscriptions.to_mut(index)?;
        if held.position.is_none() {
            now.is_partial = is_partial;
            return Some(Begun::Done(0));
        }
        *now = Subscription { is_partial, ..Subscription::new(index, held.delivery, StartFrom::Live) };
        self.enter_members(index, slot, sessions);
        Some(match rejoins {
            true => self.join_topics(index, few, slot, sessions, logs),
            false => self.begin_merge(index, slot, sessions),
        })
    }
}
