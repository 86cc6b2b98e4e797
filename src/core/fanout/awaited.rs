//! Places in topics of logs that this node has not read a tick of: they are answered once it has.
//!
//! A client that resumes at a node may know topics that the node has yet to read: it has just started, or they are quiet. If the
//! place were answered as one in a topic that does not exist, the client would get ticks again that it has.

use std::collections::HashMap;

use super::{
    Fanout,
    topic::{Backlog, EgressTopic},
};
use crate::{
    home::Backfill,
    ids::{SessionId, SlotId},
    limits::AWAITED_PLACES_MAX,
    session::table::Sessions,
};
use tickcast_proto::{logged::is_log_epoch, subscription::Position};

/// Places in topics that do not exist yet, by key, with the sessions that gave them.
///
/// Bound: [`AWAITED_PLACES_MAX`] places. Those of sessions that have ended stay until their topic comes, or the room is needed.
#[derive(Debug, Default)]
pub(super) struct AwaitedPlaces {
    by_key: HashMap<Box<str>, Vec<(SessionId, Position)>>,
    len: usize,
}

impl AwaitedPlaces {
    fn retain(&mut self, is_kept: impl Fn(SessionId) -> bool) {
        self.by_key.retain(|_, places| {
            places.retain(|&(session, _)| is_kept(session));
            !places.is_empty()
        });
        self.len = self.by_key.values().map(Vec::len).sum();
    }
}

impl Fanout {
    /// Keeps a session's place in a topic that does not exist, if a log may feed it. Returns `false` if it must be answered now.
    pub(super) fn await_topic(
        &mut self,
        key: &str,
        position: Position,
        slot: SlotId,
        sessions: &Sessions,
    ) -> bool {
        let Some(session) = sessions.get(slot).filter(|_| is_log_epoch(position.epoch)) else { return false };
        if self.awaited.len >= AWAITED_PLACES_MAX {
            let is_open = |id: SessionId| sessions.get(id.slot()).is_some_and(|open| open.id == id);
            self.awaited.retain(is_open);
            self.tally.units += AWAITED_PLACES_MAX / 64;
        }
        if self.awaited.len >= AWAITED_PLACES_MAX {
            return false;
        }
        let places = self.awaited.by_key.entry(key.into()).or_default();
        match places.iter_mut().find(|(other, _)| *other == session.id) {
            Some((_, known)) => *known = position,
            None => {
                places.push((session.id, position));
                self.awaited.len += 1;
            }
        }
        true
    }

    /// What sessions wait for of a topic that has come, by slot: they recover from their places.
    pub(super) fn take_awaited(
        &mut self,
        topic: &EgressTopic,
        sessions: &Sessions,
    ) -> HashMap<SlotId, Backlog> {
        let Some(places) = self.awaited.by_key.remove(topic.key()) else { return HashMap::new() };
        self.awaited.len -= places.len();
        let open = places.into_iter().filter(|&(id, _)| {
            sessions.get(id.slot()).is_some_and(|session| session.id == id && session.ending.is_none())
        });
        let backlog = |position: Position| match position.epoch == topic.info.epoch {
            true => Backlog { backfill: Backfill::Position, from: position.sequence.saturating_add(1) },
            false => Backlog { backfill: Backfill::PositionLost, from: 1 },
        };
        open.map(|(id, position)| (id.slot(), backlog(position))).collect()
    }
}
