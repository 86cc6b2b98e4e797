//! A topic on the egress side: its members on this shard, and its newest tick.

use crate::{
    egress_log::Range,
    home::{Wanted, last_value::Newest},
    session::{
        membership::{Membership, Taking},
        table::Sessions,
    },
};
use tickcast_proto::{
    Encoding,
    codec::json,
    frame,
    framing::websocket::DataType,
    ids::TopicId,
    subscription::{Delivery, Policy},
};

use super::Logs;

/// A member that gets nothing just now: its ticks are held, paced, or still to be recovered.
const SKIPPED: u32 = 1 << 31;
/// A member with a pace: whether it gets a tick is a question of time.
const PACED: u32 = 1 << 30;

const _: () = assert!(crate::limits::CLIENTS_MAX_HIGHEST <= PACED as usize, "slots and flags share a word");

/// A session that takes a topic: its slot, and what decides at a glance whether it gets the next tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member(u32);

impl Member {
    pub(super) fn slot(self) -> u32 {
        self.0 & !(SKIPPED | PACED)
    }
    pub(super) fn is_skipped(self) -> bool {
        self.0 & SKIPPED != 0
    }
    pub(super) fn is_paced(self) -> bool {
        self.0 & PACED != 0
    }
    pub(super) fn set_skipped(&mut self, skipped: bool) {
        self.0 = if skipped { self.0 | SKIPPED } else { self.0 & !SKIPPED };
    }
    pub(super) fn set_paced(&mut self, paced: bool) {
        self.0 = if paced { self.0 | PACED } else { self.0 & !PACED };
    }
}

/// A topic that some session of this shard may take.
///
/// Invariant: a member is skipped exactly while its membership is not live.
#[derive(Debug)]
pub(super) struct EgressTopic {
    pub(super) id: TopicId,
    pub(super) name: Box<str>,
    epoch: u64,
    pub(super) json_prefix: Vec<u8>,
    /// What becomes of its ticks where a subscriber has not said.
    pub(super) policy: Policy,
    /// The sessions that take it, by encoding.
    pub(super) members: [Vec<Member>; Encoding::COUNT],
    /// Its announcement, to be queued again while it is fresh in the log.
    announced: [Option<Range>; Encoding::COUNT],
    /// Its newest ticks, complete from `tracked_from` on: what came before this shard took the topic is the home's.
    pub(super) newest: Newest,
    /// The first sequence that came live; the largest there is before it.
    pub(super) tracked_from: u64,
    /// The last of them in the logs, to be queued again while it is fresh.
    pub(super) latest: [Option<Range>; Encoding::COUNT],
}

impl EgressTopic {
    pub(super) fn new(id: TopicId, epoch: u64, name: &str, policy: Policy) -> EgressTopic {
        EgressTopic {
            id,
            name: name.into(),
            epoch,
            json_prefix: json::tick_prefix(name),
            policy,
            members: Default::default(),
            announced: Default::default(),
            newest: Newest::default(),
            tracked_from: u64::MAX,
            latest: Default::default(),
        }
    }

    /// Appends its announcement as a message of the encoding, without the WebSocket header; raw has none.
    pub(super) fn encode_announcement(&self, encoding: Encoding, out: &mut Vec<u8>) -> Option<DataType> {
        match encoding {
            Encoding::WebSocketRaw => None,
            Encoding::WebSocketJson => {
                json::encode_topic(out, self.id, self.epoch, &self.name);
                Some(DataType::Text)
            }
            Encoding::Native => {
                frame::encode_topic(out, self.id, self.epoch, &self.name);
                None
            }
            Encoding::WebSocketRkyv => {
                frame::encode_topic(out, self.id, self.epoch, &self.name);
                Some(DataType::Binary)
            }
        }
    }

    /// Makes the session a member, and announces the topic to it. `wanted`: what it wants of before, and from where on.
    /// Returns `false` when it is one already.
    pub(super) fn join(
        &mut self,
        slot: u32,
        delivery: Delivery,
        wanted: Option<(Wanted, u64)>,
        sessions: &mut Sessions,
        logs: &mut Logs,
    ) -> bool {
        let Some(session) = sessions.open_mut(slot) else { return true };
        if let Some(&membership) = session.memberships.get(&self.id) {
            let Membership { policy, interval_us, references, .. } = membership;
            let both = [Delivery { policy: Some(policy), interval_us }, delivery];
            let merged = self.merge(both.into_iter());
            if (merged.policy, merged.interval_us) != (Some(policy), interval_us) {
                self.set_delivery(slot, merged, sessions);
            }
            if let Some(membership) =
                sessions.any_mut(slot).and_then(|session| session.memberships.get_mut(&self.id))
            {
                membership.references = references + 1;
            }
            return false;
        }
        let members = &mut self.members[session.encoding as usize];
        let mut member = Member(slot);
        member.set_skipped(wanted.is_some());
        member.set_paced(delivery.interval_us > 0);
        let (taking, (wanted, from)) = match wanted {
            None => (Taking::Live, (Wanted::Latest, 0)),
            Some(wanted) => (Taking::Recovering, wanted),
        };
        let membership = Membership {
            from,
            due_ns: 0,
            gap: (0, 0),
            position: members.len() as u32,
            references: 1,
            interval_us: delivery.interval_us,
            policy: delivery.policy.unwrap_or(self.policy),
            taking,
            wanted,
            announced: true,
        };
        members.push(member);
        if taking == Taking::Recovering {
            session.lag_mut().recovering.push_back(self.id);
        }
        let changes = session.count_yielding(None, Some(&membership));
        session.memberships.insert(self.id, membership);
        if changes {
            sessions.set_yield_bytes(slot);
        }
        self.announce(slot, sessions, logs);
        true
    }

    /// Queues the announcement: shared while one is fresh in the log.
    pub(super) fn announce(&mut self, slot: u32, sessions: &mut Sessions, logs: &mut Logs) {
        let Some(encoding) = sessions.get(slot).map(|session| session.encoding) else { return };
        let announced = self.announced[encoding as usize]
            .filter(|range| logs.of(encoding).is_some_and(|log| log.is_shareable(range.start)));
        let (log, range) = match (announced, logs.of(encoding)) {
            (Some(range), Some(log)) => (log, range),
            _ => match logs.append_topic(encoding, self) {
                Some(appended) => appended,
                None => return,
            },
        };
        self.announced[encoding as usize] = Some(range);
        sessions.push_range(slot, log, range);
    }

    /// Changes how the session takes the topic. A tick that waits for its time is to be released by the caller.
    pub(super) fn set_delivery(&mut self, slot: u32, delivery: Delivery, sessions: &mut Sessions) {
        let Some(session) = sessions.any_mut(slot) else { return };
        let Some(&before) = session.memberships.get(&self.id) else { return };
        let after = Membership {
            policy: delivery.policy.unwrap_or(self.policy),
            interval_us: delivery.interval_us,
            due_ns: if delivery.interval_us == before.interval_us { before.due_ns } else { 0 },
            ..before
        };
        let changes = session.count_yielding(Some(&before), Some(&after));
        session.memberships.insert(self.id, after);
        let member = &mut self.members[session.encoding as usize][before.position as usize];
        member.set_paced(delivery.interval_us > 0);
        if changes {
            sessions.set_yield_bytes(slot);
        }
    }

    /// After a change: a tick that waited for its time comes as soon as there is room, as the time may have been long.
    pub(super) fn release_paced(&mut self, slot: u32, sessions: &mut Sessions) {
        let Some(session) = sessions.open_mut(slot) else { return };
        let Some(membership) = session.memberships.get(&self.id) else { return };
        if membership.taking == Taking::Paced && membership.due_ns == 0 {
            session.lag_mut().held.push_back(self.id);
            self.set_taking(slot, Taking::Held, sessions);
            sessions.make_ready(slot);
        }
    }

    /// What several subscriptions come to: the highest rate, the more faithful policy.
    pub(super) fn merge(&self, deliveries: impl Iterator<Item = Delivery>) -> Delivery {
        let mut merged: Option<Delivery> = None;
        for Delivery { policy, interval_us } in deliveries {
            let policy = policy.unwrap_or(self.policy);
            merged = Some(match merged {
                None => Delivery { policy: Some(policy), interval_us },
                Some(before) => Delivery {
                    policy: before.policy.max(Some(policy)),
                    interval_us: before.interval_us.min(interval_us),
                },
            });
        }
        merged.unwrap_or_default()
    }

    /// One of the session's patterns that match goes. Returns whether others still do.
    pub(super) fn leave(&mut self, slot: u32, sessions: &mut Sessions) -> bool {
        let Some(session) = sessions.any_mut(slot) else { return false };
        let Some(membership) = session.memberships.get_mut(&self.id) else { return false };
        membership.references -= 1;
        let stays = membership.references > 0;
        if !stays {
            self.leave_whole(slot, sessions);
        }
        stays
    }

    /// The session goes, whatever its patterns.
    pub(super) fn leave_whole(&mut self, slot: u32, sessions: &mut Sessions) {
        let Some(session) = sessions.any_mut(slot) else { return };
        let Some(membership) = session.memberships.remove(&self.id) else { return };
        let changes = session.count_yielding(Some(&membership), None);
        if let Some(lag) = session.lag.as_deref_mut() {
            lag.forget_strangers(&session.memberships);
        }
        let members = &mut self.members[session.encoding as usize];
        members.swap_remove(membership.position as usize);
        if let Some(&moved) = members.get(membership.position as usize)
            && let Some(moved) =
                sessions.any_mut(moved.slot()).and_then(|moved| moved.memberships.get_mut(&self.id))
        {
            moved.position = membership.position;
        }
        if changes {
            sessions.set_yield_bytes(slot);
        }
    }

    /// Sets what the session gets, in its membership and in the list of members.
    pub(super) fn set_taking(&mut self, slot: u32, taking: Taking, sessions: &mut Sessions) {
        let Some(session) = sessions.any_mut(slot) else { return };
        let Some(membership) = session.memberships.get_mut(&self.id) else { return };
        membership.taking = taking;
        let member = &mut self.members[session.encoding as usize][membership.position as usize];
        member.set_skipped(taking != Taking::Live);
    }
}
