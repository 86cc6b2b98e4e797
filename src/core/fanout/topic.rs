//! A topic on the egress side: its members on this shard, and its last values.

use crate::{
    egress_log::{EgressLog, Range},
    home::{Backfill, last_value::LastValues},
    ids::SlotId,
    session::{
        membership::{Membership, Taking},
        table::Sessions,
    },
    topic_key,
};
use tickcast_proto::{WireFormat, codec::TopicInfo, frame::Frame, ids::TopicId, subscription::Policy};

use super::{
    EgressLogs,
    logged::{LogTopic, Notices},
    stale::StaleTopic,
    wildcard::WildcardTopic,
};

/// Flag of a member that is not live: its ticks are held, paced or being recovered.
const SKIPPED: u32 = 1 << 31;
/// Flag of a member with a pace: the clock decides whether it receives a tick.
const PACED: u32 = 1 << 30;

const _: () = assert!(crate::limits::CLIENTS_MAX_HIGHEST <= PACED as usize, "slots and flags share a word");

/// A subscriber of a topic: the session's slot, and flags that decide whether it receives the next tick.
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

/// The members of a topic that share a wire format, and the topic's frames in that format's log. 80 bytes, plus 4 per member.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) format: WireFormat,
    pub(super) members: Vec<Member>,
    /// The topic's announcement, reused while it is fresh in the log.
    announced: Option<Range>,
    /// The last tick, reused for sessions that receive it later while it is fresh in the log.
    pub(super) latest: Option<Range>,
}

const _: () = assert!(size_of::<Group>() == 80, "the docs of Group say how large it is");

/// Stage in the life of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// Its home sends ticks.
    Current,
    /// Its home has forgotten it: its members leave, and nobody joins.
    Forgotten,
    /// The topic's next life has begun on this shard, and is announced once the members have left. Evictions make nobody a member
    /// again, because nothing of this life may follow the next one.
    Ended,
}

/// A topic that its home has opened to this shard.
///
/// Invariant: a member is skipped exactly while its membership is not live.
/// Invariant: groups are sorted by [`WireFormat::index`].
/// Invariant: `shared_len` counts the members whose membership is shared.
/// Invariant: nobody joins a topic that has ended.
#[derive(Debug)]
pub(super) struct EgressTopic {
    pub(super) info: TopicInfo,
    /// Its key; `None`: the same as its name.
    tenant_key: Option<Box<str>>,
    /// Policy of subscribers that do not choose one.
    pub(super) policy: Policy,
    /// Members by wire format.
    pub(super) groups: Vec<Group>,
    /// Members that wildcard groups will serve again.
    pub(super) shared_len: u32,
    /// Stage of its life.
    pub(super) life: Life,
    /// Its number, in the order in which this shard has opened topics, from 1.
    pub(super) opened: u64,
    /// The number of the last walk that has been compared with it, because it had a tick.
    pub(super) walks_seen: u64,
    /// Whether the wildcards that match it have counted it.
    pub(super) is_counted: bool,
    /// State for its delivery to wildcard groups.
    pub(super) wildcard: WildcardTopic,
    /// This shard is the topic's home: its last values are read from there, and `last_values` stays empty.
    pub(super) is_homed_here: bool,
    /// Last values, complete from `tracked_from` on; earlier ones must be recovered from the home.
    pub(super) last_values: LastValues,
    /// First sequence that arrived live; `u64::MAX` before the first.
    pub(super) tracked_from: u64,
    /// Last sequence that arrived live; 0 before the first.
    pub(super) last_sequence: u64,
    /// State of a topic that is stale, or was until its subscribers learn of the end.
    pub(super) stale: Option<Box<StaleTopic>>,
    /// State of a topic that a log feeds, whose sequences are not consecutive.
    pub(super) log: Option<Box<LogTopic>>,
}

/// The part of a topic's past that a new member recovers before it goes live.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backlog {
    pub(super) backfill: Backfill,
    /// The first sequence wanted.
    pub(super) from: u64,
}

/// How the session's subscriptions to a topic are delivered together: the shortest interval and the strictest policy win.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merged {
    pub(super) policy: Policy,
    pub(super) interval_us: u32,
    /// How many of the subscriptions are in wildcard groups.
    pub(super) shared: u32,
    /// Whether all of them are.
    pub(super) is_shared: bool,
}

impl Merged {
    pub(super) fn merge(self, other: Merged) -> Merged {
        Merged {
            policy: self.policy.max(other.policy),
            interval_us: self.interval_us.min(other.interval_us),
            shared: self.shared + other.shared,
            is_shared: self.is_shared && other.is_shared,
        }
    }
}

/// The group of a member's wire format. O(groups).
pub(super) fn group_of(groups: &mut [Group], format: WireFormat) -> Option<&mut Group> {
    let group = groups.iter_mut().find(|group| group.format == format);
    debug_assert!(group.is_some(), "a group exists as long as it has members");
    group
}

impl EgressTopic {
    pub(super) fn new(
        id: TopicId,
        epoch: u64,
        key: &str,
        policy: Policy,
        is_homed_here: bool,
    ) -> EgressTopic {
        EgressTopic {
            info: TopicInfo::new(id, epoch, topic_key::name(key)),
            tenant_key: topic_key::has_tenant(key).then(|| key.into()),
            policy,
            groups: Vec::new(),
            shared_len: 0,
            life: Life::Current,
            opened: 0,
            walks_seen: 0,
            is_counted: false,
            wildcard: WildcardTopic::default(),
            is_homed_here,
            last_values: LastValues::default(),
            tracked_from: u64::MAX,
            last_sequence: 0,
            stale: None,
            log: None,
        }
    }

    /// What is needed to announce skipped ticks.
    pub(super) fn notices(&self) -> Notices<'_> {
        Notices { info: &self.info, log: self.log.as_deref() }
    }

    /// Whether wildcards have yet to count it. Forgotten topics are not counted.
    pub(super) fn waits_to_be_counted(&self) -> bool {
        !self.is_counted && self.life == Life::Current
    }

    /// Its key, which contains tenant and name.
    pub(super) fn key(&self) -> &str {
        self.tenant_key.as_deref().unwrap_or(&self.info.name)
    }

    /// Any of its members.
    pub(super) fn any_member(&self) -> Option<SlotId> {
        self.groups.iter().find_map(|group| group.members.last()).map(|member| member.slot())
    }

    /// Number of members.
    pub(super) fn members_len(&self) -> usize {
        self.groups.iter().map(|group| group.members.len()).sum()
    }

    /// Whether the last values known here hold or replace all ticks from a sequence on. If not, ask the home.
    pub(super) fn has_last_values_from(&self, from: u64) -> bool {
        from >= self.tracked_from && (self.is_homed_here || self.last_values.intact_from(from) == from)
    }

    /// The group of a wire format.
    fn group_mut(&mut self, format: WireFormat) -> Option<&mut Group> {
        group_of(&mut self.groups, format)
    }

    /// The group of a wire format, created for its first member. Reserves one group: most topics need no second.
    fn group_or_insert(&mut self, format: WireFormat) -> &mut Group {
        let at = self.groups.partition_point(|group| group.format.index() < format.index());
        if self.groups.get(at).is_none_or(|group| group.format != format) {
            self.groups.reserve_exact(1);
            self.groups.insert(at, Group { format, members: Vec::new(), announced: None, latest: None });
        }
        &mut self.groups[at]
    }

    /// Sets whether ticks skip a member.
    pub(super) fn set_skipped(&mut self, format: WireFormat, position: u32, skipped: bool) {
        if let Some(group) = self.group_mut(format) {
            group.members[position as usize].set_skipped(skipped);
        }
    }

    /// The last tick in a wire format's log, if its range is known.
    pub(super) fn latest(&self, format: WireFormat) -> Option<Range> {
        self.groups.iter().find(|group| group.format == format)?.latest
    }

    /// The last tick in a wire format; appends it to the log unless it is there already. `None` if it is longer than the log.
    pub(super) fn latest_or_append<'a>(
        &mut self,
        format: WireFormat,
        tick: &Frame<'_>,
        logs: &'a mut EgressLogs,
    ) -> Option<(&'a EgressLog, Range)> {
        match self.group_or_insert(format).latest {
            Some(range) => Some((logs.of(format)?, range)),
            None => {
                let (log, range) = logs.append_tick(format, tick, &self.info)?;
                self.group_or_insert(format).latest = Some(range);
                Some((log, range))
            }
        }
    }

    /// Makes a session a member, which it must not be yet, and announces the topic to it. `backlog` is what it recovers before
    /// it goes live.
    pub(super) fn join(
        &mut self,
        slot: SlotId,
        merged: Merged,
        backlog: Option<Backlog>,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        if !sessions.takes_membership(slot) {
            return;
        }
        let Some(session) = sessions.open_mut(slot) else { return };
        let mut membership = merged.membership();
        if let Some(Backlog { backfill, from }) = backlog {
            (membership.taking, membership.from, membership.wanted) = (Taking::Recovering, from, backfill);
            session.lag_mut().recovering.push_back(self.info.id);
        }
        self.insert(slot, membership, sessions);
        self.announce(slot, sessions, logs);
    }

    /// Makes a session a member, and sets the membership's position.
    pub(super) fn insert(&mut self, slot: SlotId, membership: Membership, sessions: &mut Sessions) {
        let id = self.info.id;
        let Some(session) = sessions.open_mut(slot) else { return };
        let position = self.push_member(session.format, slot, &membership);
        let membership = Membership { position, ..membership };
        let changes = session.count_membership(None, Some(&membership));
        let before = session.memberships.insert(id, membership);
        debug_assert!(before.is_none(), "a session is a member once");
        if changes {
            sessions.set_yield_bytes(slot);
        }
        sessions.count_memberships(slot, 1);
        self.check_member(slot, sessions);
    }

    /// Adds to the list of members, for a membership that the caller adds to the session. Returns its position.
    pub(super) fn push_member(&mut self, format: WireFormat, slot: SlotId, membership: &Membership) -> u32 {
        debug_assert!(self.life != Life::Ended, "what is queued to a member would follow the next life");
        let mut member = Member(slot.0);
        member.set_skipped(membership.taking != Taking::Live);
        member.set_paced(membership.interval_us > 0);
        self.shared_len += u32::from(membership.is_shared);
        let members = &mut self.group_or_insert(format).members;
        members.push(member);
        let position = members.len() as u32 - 1;
        self.invariants();
        position
    }

    /// Queues the topic's announcement, shared while one is fresh in the log.
    pub(super) fn announce(&mut self, slot: SlotId, sessions: &mut Sessions, logs: &mut EgressLogs) {
        let Some(format) = sessions.get(slot).map(|session| session.format) else {
            debug_assert!(false, "only an existing session gets an announcement");
            return;
        };
        let at = self.groups.iter().position(|group| group.format == format);
        let known = at.and_then(|at| self.groups[at].announced);
        let announced =
            known.filter(|range| logs.of(format).is_some_and(|log| log.is_shareable(range.start)));
        let (log, range) = match (announced, logs.of(format)) {
            (Some(range), Some(log)) => (log, range),
            _ => match logs.append_topic(format, &self.info) {
                Some(appended) => appended,
                None => return,
            },
        };
        self.group_or_insert(format).announced = Some(range);
        sessions.push_range(slot, log, range);
    }

    /// Changes how a member's subscriptions are delivered. The caller must then call [`EgressTopic::release_paced`].
    pub(super) fn set_delivery(&mut self, slot: SlotId, merged: Merged, sessions: &mut Sessions) {
        let id = self.info.id;
        let Some(session) = sessions.any_mut(slot) else { return };
        let Some(&before) = session.memberships.get(id) else {
            debug_assert!(false, "only a member's delivery changes");
            return;
        };
        let Merged { policy, interval_us, is_shared, .. } = merged;
        let due_ns = if interval_us == before.interval_us { before.due_ns } else { 0 };
        let after = Membership { policy, interval_us, due_ns, is_shared, ..before };
        let changes = session.count_membership(Some(&before), Some(&after));
        session.memberships.insert(id, after);
        let format = session.format;
        self.shared_len += u32::from(is_shared);
        self.shared_len -= u32::from(before.is_shared);
        if let Some(group) = self.group_mut(format) {
            group.members[before.position as usize].set_paced(interval_us > 0);
        }
        if changes {
            sessions.set_yield_bytes(slot);
        }
        self.check_member(slot, sessions);
    }

    /// Turns a paced tick into a held one after the pace changed, so that it is sent as soon as there is room.
    pub(super) fn release_paced(&mut self, slot: SlotId, sessions: &mut Sessions) {
        let Some(session) = sessions.open_mut(slot) else { return };
        let Some(membership) = session.memberships.get(self.info.id) else { return };
        if membership.taking == Taking::Paced && membership.due_ns == 0 {
            session.lag_mut().held.push_back(self.info.id);
            self.set_taking(slot, Taking::Held, sessions);
            sessions.make_ready(slot);
        }
    }

    /// Removes a member, whatever its patterns.
    pub(super) fn leave(&mut self, slot: SlotId, sessions: &mut Sessions) {
        let Some(session) = sessions.any_mut(slot) else { return };
        let Some(membership) = session.memberships.remove(self.info.id) else {
            debug_assert!(false, "only a member leaves");
            return;
        };
        if membership.taking == Taking::Ahead
            && let Some(log) = self.log.as_deref_mut()
        {
            log.stop_waiting(membership.from, slot);
        }
        let changes = session.count_membership(Some(&membership), None);
        self.shared_len -= u32::from(membership.is_shared);
        if let Some(lag) = session.lag.as_deref_mut() {
            lag.forget_left_topics(&session.memberships);
        }
        let format = session.format;
        self.remove_member(format, membership.position, sessions);
        if changes {
            sessions.set_yield_bytes(slot);
        }
        sessions.discount_membership(slot);
    }

    fn remove_member(&mut self, format: WireFormat, position: u32, sessions: &mut Sessions) {
        let id = self.info.id;
        let Some(group) = self.group_mut(format) else {
            return debug_assert!(false, "a member is in the group of its format");
        };
        group.members.swap_remove(position as usize);
        if group.members.is_empty() {
            group.members = Vec::new();
        } else if let Some(&moved) = group.members.get(position as usize) {
            let moved = sessions.any_mut(moved.slot()).and_then(|moved| moved.memberships.get_mut(id));
            debug_assert!(moved.is_some(), "a member of a topic has a membership");
            if let Some(moved) = moved {
                moved.position = position;
            }
        }
        self.invariants();
    }

    /// Checks the groups; members change too often to check them all.
    fn invariants(&self) {
        if cfg!(debug_assertions) {
            assert!(self.groups.is_sorted_by_key(|group| group.format.index()), "groups are sorted");
            assert!(
                !self.is_homed_here || self.last_values.sequence() == 0,
                "a topic's home keeps its only copy of the last values"
            );
            let waiting = self.log.as_deref().map_or(0, LogTopic::waiting_len);
            assert!(waiting <= self.members_len(), "only members wait for a log");
        }
    }

    /// Sets a member's state in its membership and in the list of members.
    pub(super) fn set_taking(&mut self, slot: SlotId, taking: Taking, sessions: &mut Sessions) {
        let Some(session) = sessions.any_mut(slot) else { return };
        let Some(membership) = session.memberships.get_mut(self.info.id) else {
            debug_assert!(false, "only a member has a state");
            return;
        };
        let (before, from) = (std::mem::replace(&mut membership.taking, taking), membership.from);
        if let Some(log) = self.log.as_deref_mut() {
            match (before == Taking::Ahead, taking == Taking::Ahead) {
                (false, true) => log.wait(from, slot),
                (true, false) => log.stop_waiting(from, slot),
                _ => {}
            }
        }
        let (format, position) = (session.format, membership.position);
        self.set_skipped(format, position, taking != Taking::Live);
        self.check_member(slot, sessions);
    }

    /// Checks a member that has just changed against its membership.
    fn check_member(&self, slot: SlotId, sessions: &Sessions) {
        if cfg!(debug_assertions)
            && let Some(session) = sessions.get(slot)
            && let Some(membership) = session.memberships.get(self.info.id)
        {
            let group = self.groups.iter().find(|group| group.format == session.format);
            let member = group.and_then(|group| group.members.get(membership.position as usize)).copied();
            let Some(member) = member else { panic!("a membership names a member") };
            assert_eq!(member.slot(), slot, "a membership names its own session");
            assert_eq!(
                member.is_skipped(),
                membership.taking != Taking::Live,
                "a member not live is skipped"
            );
            assert_eq!(member.is_paced(), membership.interval_us > 0, "a member with a pace is marked");
        }
    }
}
