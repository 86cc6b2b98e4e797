//! The queues in which the sessions of a shard wait for a SEND.

use std::collections::VecDeque;

use crate::{
    egress_log::{EgressLog, Range},
    ids::{SlotId, TenantId},
    session::{SendState, Session},
};

/// When the queues for SENDs exceed two entries per session by this many, ticks are no longer held for the latency budget.
pub(super) const QUEUE_SPARE: usize = 64;

/// The queues of a shard's sessions with work in their outboxes.
#[derive(Debug, Default)]
pub(super) struct Queues {
    /// Number of sessions with bytes in their outbox.
    pub(super) waiting: usize,
    /// Sessions with more bytes waiting than their `yield_bytes`. At most one entry per session.
    pub(super) over: Vec<SlotId>,
    /// Sessions queued for a SEND. At most one entry per session, one for each that has ended since it was queued, and one for
    /// each SEND out of turn while ticks are held: as many as there are sessions, plus [`QUEUE_SPARE`].
    pub(super) ready: VecDeque<SlotId>,
    /// Sessions to refill before their next SEND. Same bound as `ready`.
    pub(super) lagging: VecDeque<SlotId>,
    /// Whether ticks are held for the latency budget. Only the sessions in `urgent` are served then.
    pub(super) is_holding: bool,
    /// While ticks are held: queued sessions with a reply in their outbox. Those that had nothing else are in no other queue. At
    /// most one entry per session, plus one for each that has ended since it was queued: a session is added with its first reply.
    pub(super) urgent: VecDeque<SlotId>,
    /// Sessions at the front of `lagging` that are urgent.
    pub(super) urgent_lagging: usize,
    /// Tenants that have used up their egress quotas. At most one entry per tenant.
    pub(super) throttled: Vec<TenantId>,
    /// Sessions that have started to wait for their tenant's quota, until they are taken. At most one entry per session.
    pub(super) newly_throttled: Vec<SlotId>,
}

impl Queues {
    /// Whether a session's SEND must wait because its tenant has used up its egress quota. A session that is ending need not
    /// wait.
    #[inline]
    pub(super) fn throttles(&self, session: &Session) -> bool {
        !self.throttled.is_empty() && self.throttled.contains(&session.tenant) && session.ending.is_none()
    }

    /// Queues shared frames to a session, and the session for a SEND. Always inlined: a call would take 14 of 117 instructions
    /// per delivery.
    #[inline(always)]
    pub(super) fn push_range(&mut self, session: &mut Session, slot: SlotId, log: &EgressLog, range: Range) {
        self.waiting += usize::from(session.outbox_bytes() == 0);
        if !session.push_range(log, range) {
            self.note_over(session, slot);
        }
        if matches!(session.send_state, SendState::Idle) {
            self.push(session, slot);
        }
    }

    /// Queues a session that exceeds its bounds, at most once.
    #[cold]
    pub(super) fn note_over(&mut self, session: &mut Session, slot: SlotId) {
        if !std::mem::replace(&mut session.is_over_queued, true) {
            self.over.push(slot);
        }
    }

    /// Queues a session that is idle and has work.
    #[inline]
    pub(super) fn push(&mut self, session: &mut Session, slot: SlotId) {
        let (state, queue) = match session.lag {
            None => (SendState::Ready, &mut self.ready),
            Some(_) => (SendState::Lagging, &mut self.lagging),
        };
        session.send_state = state;
        queue.push_back(slot);
    }

    /// Queues a session if it is idle and has work.
    pub(super) fn make_ready(&mut self, session: &mut Session, slot: SlotId) {
        if !matches!(session.send_state, SendState::Idle) || !session.has_work() {
            return;
        }
        if self.is_holding && session.lag.is_none() && session.outbox.reply_bytes() > 0 {
            session.send_state = SendState::Ready;
            self.urgent.push_back(slot);
        } else {
            self.push(session, slot);
            self.note_urgent(session, slot);
        }
    }

    /// Lists a queued session that has a reply to send while ticks are held.
    pub(super) fn note_urgent(&mut self, session: &Session, slot: SlotId) {
        if self.is_holding && session.outbox.reply_bytes() > 0 {
            self.urgent.push_back(slot);
        }
    }

    /// Moves an urgent session to the front of the refill queue.
    pub(super) fn refill_urgent(&mut self, slot: SlotId) {
        self.lagging.push_front(slot);
        self.urgent_lagging += 1;
    }
}
