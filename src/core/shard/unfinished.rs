//! The memory of unfinished messages: the received parts of frames and messages whose rest has not arrived, and hellos and other
//! requests that wait for the verdict on a token.
//!
//! One bound applies to all of it. Beyond the bound, the session with the oldest unfinished message is closed, so that no
//! client can keep others from sending.

use std::collections::VecDeque;

use super::Shard;
use crate::{
    ids::{SessionId, SlotId},
    limits::{ECHO_BYTES_MAX, UNFINISHED_GONE_MAX, UNFINISHED_LOOKS_MAX, UNFINISHED_MESSAGES_LOWEST},
    now::Now,
    session::{CloseReason, table::Sessions},
};

/// Sessions listed for an unfinished message, roughly in the order in which the messages began. An outdated entry is
/// corrected when it reaches the front.
///
/// Bound: one entry per open session, and [`UNFINISHED_GONE_MAX`] of ended sessions.
#[derive(Debug, Default)]
pub(super) struct Unfinished {
    /// The session, and when the message it was listed for began, CLOCK_MONOTONIC nanoseconds.
    oldest: VecDeque<(SessionId, u64)>,
}

impl Unfinished {
    fn push(&mut self, id: SessionId, since_ns: u64, sessions: &Sessions) {
        if self.oldest.len() >= sessions.len() + UNFINISHED_GONE_MAX {
            let exists = |id: SessionId| sessions.get(id.slot()).is_some_and(|session| session.id == id);
            self.oldest.retain(|(id, _)| exists(*id));
        }
        self.oldest.push_back((id, since_ns));
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.oldest.capacity() * size_of::<(SessionId, u64)>()
    }
}

impl Shard {
    /// Counts a session's unfinished message after a change. Beyond the bound, ends the sessions with the oldest messages.
    pub(super) fn bound_unfinished(&mut self, slot: SlotId, now: Now) {
        self.sessions.count_unfinished(slot);
        let Some(session) = self.sessions.open_mut(slot) else { return };
        if session.unfinished_bytes == 0 {
            return;
        }
        if let Some(since_ns) = session.unfinished_since_ns()
            && !std::mem::replace(&mut session.is_unfinished_listed, true)
        {
            let id = session.id;
            self.unfinished.push(id, since_ns, &self.sessions);
        }
        let bytes_max = self.unfinished_bytes_max();
        for _ in 0..UNFINISHED_LOOKS_MAX {
            if self.sessions.unfinished_bytes() <= bytes_max {
                return;
            }
            self.end_oldest_unfinished(now);
        }
        // The entries checked were outdated, so this session ends instead. The next message that grows checks further entries.
        if self.sessions.unfinished_bytes() > bytes_max {
            self.end(slot, CloseReason::UnfinishedMemory, now);
        }
    }

    /// Ends the session with the oldest unfinished message, unless its entry is outdated.
    fn end_oldest_unfinished(&mut self, now: Now) {
        let Some((id, listed_ns)) = self.unfinished.oldest.pop_front() else { return };
        let Some(session) = self.sessions.open_mut(id.slot()).filter(|session| session.id == id) else {
            return;
        };
        session.is_unfinished_listed = false;
        match session.unfinished_since_ns() {
            Some(since_ns) if since_ns > listed_ns => {
                session.is_unfinished_listed = true;
                self.unfinished.oldest.push_back((id, since_ns));
            }
            Some(_) => self.end(id.slot(), CloseReason::UnfinishedMemory, now),
            None => {}
        }
    }

    /// This shard's share of the bound: at least [`UNFINISHED_MESSAGES_LOWEST`] of the longest messages.
    fn unfinished_bytes_max(&self) -> usize {
        let longest =
            self.limits.message_bytes_max().max(if self.limits.debug_echo { ECHO_BYTES_MAX } else { 0 });
        (self.limits.unfinished_bytes_max / usize::from(self.shards))
            .max(UNFINISHED_MESSAGES_LOWEST * longest)
    }
}

#[cfg(test)]
mod tests;
