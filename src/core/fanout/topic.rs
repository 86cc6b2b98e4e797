//! A topic on the egress side: its members on this shard, and its newest tick.

use crate::{
    egress_log::Range,
    home::{Wanted, last_value::Newest},
    ids::SlotId,
    session::{
        membership::{Gap, Membership, Taking},
        table::Sessions,
    },
};
use tickcast_proto::{
    WireFormat,
    codec::TopicInfo,
    ids::TopicId,
    subscription::{Delivery, Policy},
};

use super::EgressLogs;

/// A member that gets nothing just now: its ticks are held, paced, or still to be recovered.
const SKIPPED: u32 = 1 << 31;
/// A member with a pace: whether it gets a tick is a question of time.
const PACED: u32 = 1 << 30;

const _: () = assert!(crate::limits::CLIENTS_MAX_HIGHEST <= PACED as usize, "slots and flags share a word");

/// A session that takes a topic: its slot, and what decides at a glance whether it gets the next tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member(u32);

impl Member {
    pub(super) fn slot(self) -> SlotId {
        SlotId(self.0 & !(SKIPPED | PACED))
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

/// The members of a topic that share a wire format, and what the format's log has of the topic. 80 bytes, and 4 for
/// each member.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) format: WireFormat,
    pub(super) members: Vec<Member>,
    /// The topic's announcement, queued again while it is fresh in the log.
    announced: Option<Range>,
    /// The last tick, queued to sessions that get it later while it is fresh in the log.
    pub(super) latest: Option<Range>,
}

const _: () = assert!(size_of::<Group>() == 80, "the docs of Group say how large it is");

/// A topic that some session of this shard may take.
///
/// Invariant: a member is skipped exactly while its membership is not live.
/// Invariant: every group has a member; groups are sorted by [`WireFormat::index`].
#[derive(Debug)]
pub(super) struct EgressTopic {
    pub(super) info: TopicInfo,
    /// What becomes of its ticks where a subscriber has not said.
    pub(super) policy: Policy,
    /// The sessions that take it.
    pub(super) groups: Vec<Group>,
    /// Its newest ticks, complete from `tracked_from` on: what came before this shard took the topic is the home's.
    pub(super) newest: Newest,
    /// The first sequence that came live; the largest there is before it.
    pub(super) tracked_from: u64,
}

/// The group of a member's wire format. A look at each group before it.
pub(super) fn group_of(groups: &mut [Group], format: WireFormat) -> Option<&mut Group> {
    let group = groups.iter_mut().find(|group| group.format == format);
    debug_assert!(group.is_some(), "a group is there as long as its members");
    group
}

impl EgressTopic {
    pub(super) fn new(id: TopicId, epoch: u64, name: &str, policy: Policy) -> EgressTopic {
        EgressTopic {
            info: TopicInfo::new(id, epoch, name),
            policy,
            groups: Vec::new(),
            newest: Newest::default(),
            tracked_from: u64::MAX,
        }
    }

    /// How many sessions take it.
    pub(super) fn members_len(&self) -> usize {
        self.groups.iter().map(|group| group.members.len()).sum()
    }

    /// The members of a wire format.
    fn group_mut(&mut self, format: WireFormat) -> Option<&mut Group> {
        group_of(&mut self.groups, format)
    }

    /// The members of a wire format, none yet if this is the first. One allocation for a topic whose takers agree.
    fn group_or_insert(&mut self, format: WireFormat) -> &mut Group {
        let at = self.groups.partition_point(|group| group.format.index() < format.index());
        if self.groups.get(at).is_none_or(|group| group.format != format) {
            self.groups.reserve_exact(1);
            self.groups.insert(at, Group { format, members: Vec::new(), announced: None, latest: None });
        }
        &mut self.groups[at]
    }

    /// Leaves out a member from the next tick on, or no longer.
    pub(super) fn set_skipped(&mut self, format: WireFormat, position: u32, skipped: bool) {
        if let Some(group) = self.group_mut(format) {
            group.members[position as usize].set_skipped(skipped);
        }
    }

    /// Makes the session a member, and announces the topic to it. `wanted`: what it wants of before, and from where on.
    /// Returns `false` when it is one already.
    pub(super) fn join(
        &mut self,
        slot: SlotId,
        delivery: Delivery,
        wanted: Option<(Wanted, u64)>,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) -> bool {
        let Some(session) = sessions.open_mut(slot) else { return true };
        if let Some(&membership) = session.memberships.get(&self.info.id) {
            let Membership { policy, interval_us, references, .. } = membership;
            let both = [Delivery { policy: Some(policy), interval_us }, delivery];
            let merged = self.merge(both.into_iter());
            if (merged.policy, merged.interval_us) != (Some(policy), interval_us) {
                self.set_delivery(slot, merged, sessions);
            }
            if let Some(membership) =
                sessions.any_mut(slot).and_then(|session| session.memberships.get_mut(&self.info.id))
            {
                membership.references = references + 1;
            }
            return false;
        }
        let default_policy = self.policy;
        let members = &mut self.group_or_insert(session.format).members;
        let mut member = Member(slot.0);
        member.set_skipped(wanted.is_some());
        member.set_paced(delivery.interval_us > 0);
        let (taking, (wanted, from)) = match wanted {
            None => (Taking::Live, (Wanted::Latest, 0)),
            Some(wanted) => (Taking::Recovering, wanted),
        };
        let membership = Membership {
            from,
            due_ns: 0,
            gap: Gap::NONE,
            position: members.len() as u32,
            references: 1,
            interval_us: delivery.interval_us,
            policy: delivery.policy.unwrap_or(default_policy),
            taking,
            wanted,
            announced: true,
        };
        members.push(member);
        self.invariants();
        if taking == Taking::Recovering {
            session.lag_mut().recovering.push_back(self.info.id);
        }
        let changes = session.count_yielding(None, Some(&membership));
        session.memberships.insert(self.info.id, membership);
        if changes {
            sessions.set_yield_bytes(slot);
        }
        self.announce(slot, sessions, logs);
        true
    }

    /// Queues the announcement: shared while one is fresh in the log.
    pub(super) fn announce(&mut self, slot: SlotId, sessions: &mut Sessions, logs: &mut EgressLogs) {
        let Some(format) = sessions.get(slot).map(|session| session.format) else {
            debug_assert!(false, "a member of a topic is a session");
            return;
        };
        let Some(group) = group_of(&mut self.groups, format) else { return };
        let announced =
            group.announced.filter(|range| logs.of(format).is_some_and(|log| log.is_shareable(range.start)));
        let (log, range) = match (announced, logs.of(format)) {
            (Some(range), Some(log)) => (log, range),
            _ => match logs.append_topic(format, &self.info) {
                Some(appended) => appended,
                None => return,
            },
        };
        group.announced = Some(range);
        sessions.push_range(slot, log, range);
    }

    /// Changes how the session takes the topic. A tick that waits for its time is to be released by the caller.
    pub(super) fn set_delivery(&mut self, slot: SlotId, delivery: Delivery, sessions: &mut Sessions) {
        let id = self.info.id;
        let Some(session) = sessions.any_mut(slot) else { return };
        let Some(&before) = session.memberships.get(&id) else {
            debug_assert!(false, "only what is delivered is delivered in another way");
            return;
        };
        let after = Membership {
            policy: delivery.policy.unwrap_or(self.policy),
            interval_us: delivery.interval_us,
            due_ns: if delivery.interval_us == before.interval_us { before.due_ns } else { 0 },
            ..before
        };
        let changes = session.count_yielding(Some(&before), Some(&after));
        session.memberships.insert(id, after);
        if let Some(group) = self.group_mut(session.format) {
            group.members[before.position as usize].set_paced(delivery.interval_us > 0);
        }
        if changes {
            sessions.set_yield_bytes(slot);
        }
    }

    /// After a change: a tick that waited for its time comes as soon as there is room, as the time may have been long.
    pub(super) fn release_paced(&mut self, slot: SlotId, sessions: &mut Sessions) {
        let Some(session) = sessions.open_mut(slot) else { return };
        let Some(membership) = session.memberships.get(&self.info.id) else { return };
        if membership.taking == Taking::Paced && membership.due_ns == 0 {
            session.lag_mut().held.push_back(self.info.id);
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
    pub(super) fn leave(&mut self, slot: SlotId, sessions: &mut Sessions) -> bool {
        let Some(session) = sessions.any_mut(slot) else { return false };
        let Some(membership) = session.memberships.get_mut(&self.info.id) else {
            debug_assert!(false, "only a member leaves");
            return false;
        };
        membership.references -= 1;
        let stays = membership.references > 0;
        if !stays {
            self.leave_whole(slot, sessions);
        }
        stays
    }

    /// The session goes, whatever its patterns.
    pub(super) fn leave_whole(&mut self, slot: SlotId, sessions: &mut Sessions) {
        let Some(session) = sessions.any_mut(slot) else { return };
        let Some(membership) = session.memberships.remove(&self.info.id) else {
            debug_assert!(false, "only a member leaves");
            return;
        };
        let changes = session.count_yielding(Some(&membership), None);
        if let Some(lag) = session.lag.as_deref_mut() {
            lag.forget_strangers(&session.memberships);
        }
        let format = session.format;
        self.remove_member(format, membership.position, sessions);
        if changes {
            sessions.set_yield_bytes(slot);
        }
    }

    fn remove_member(&mut self, format: WireFormat, position: u32, sessions: &mut Sessions) {
        let id = self.info.id;
        let Some(group) = self.group_mut(format) else { return };
        group.members.swap_remove(position as usize);
        if group.members.is_empty() {
            self.groups.retain(|group| group.format != format);
        } else if let Some(&moved) = group.members.get(position as usize) {
            let moved = sessions.any_mut(moved.slot()).and_then(|moved| moved.memberships.get_mut(&id));
            debug_assert!(moved.is_some(), "a member of a topic has a membership");
            if let Some(moved) = moved {
                moved.position = position;
            }
        }
        self.invariants();
    }

    fn invariants(&self) {
        if cfg!(debug_assertions) {
            assert!(self.groups.iter().all(|group| !group.members.is_empty()), "every group has a member");
            assert!(self.groups.is_sorted_by_key(|group| group.format.index()), "groups are sorted");
        }
    }

    /// Sets what the session gets, in its membership and in the list of members.
    pub(super) fn set_taking(&mut self, slot: SlotId, taking: Taking, sessions: &mut Sessions) {
        let Some(session) = sessions.any_mut(slot) else { return };
        let Some(membership) = session.memberships.get_mut(&self.info.id) else {
            debug_assert!(false, "only a member takes anything");
            return;
        };
        membership.taking = taking;
        let (format, position) = (session.format, membership.position);
        self.set_skipped(format, position, taking != Taking::Live);
    }
}
