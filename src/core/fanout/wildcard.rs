//! Wildcard groups: the sessions that receive the topics of a wildcard as their ticks come.
//!
//! Most subscribers of a wildcard need no state per topic: they receive every tick live. Such a session is one entry in the
//! pattern's list, however many topics there are. A tick is matched against the patterns and goes to the sessions in their
//! lists. A session has its own membership only of a topic that needs state, because it is held, has a gap to announce or
//! recovers history. That membership takes precedence over the groups, and ends when the session is live again.

mod merged;

pub(super) use self::merged::{Matching, merged, merged_of_all};

use std::sync::Arc;

use super::{
    EgressLogs, Fanout, Subscription, match_counts::MatchCount, partial::Permitted,
    possible_policies::PossiblePolicies, subscriptions::PatternEntry, topic::EgressTopic, topic::Merged,
    topic_mut, topic_ref,
};
use crate::{
    egress_log::FrameInfo,
    ids::SlotId,
    principal::Permissions,
    session::{
        Session, Yielding,
        membership::{Gap, Membership, Taking},
        table::{Offered, Sessions},
    },
    topic_key,
};
use tickcast_proto::{
    WireFormat,
    frame::Frame,
    ids::TopicId,
    subscription::{Delivery, Policy, Rules},
};

/// Matching patterns that a topic remembers. Topics with more look them up for each tick, so that memory grows with topics plus
/// patterns, not with their product.
const MATCHING_REMEMBERED_MAX: usize = 8;

/// Members of a group that a tick visits for one unit of delivery.
const MEMBERS_PER_UNIT: usize = 4;
/// Up to this many subscriptions are compared with a topic one by one. Beyond that, the matching ones are looked up.
const COMPARED_MAX: usize = 8;
/// Newcomers are few if a group has more than this many members for each of them.
const NEWCOMERS_FEW: usize = 8;

/// State that only wildcards have. 48 bytes.
#[derive(Debug)]
pub(super) struct WildcardEntry {
    /// The sessions that receive its topics as their ticks come. No group is empty.
    groups: Vec<WildcardGroup>,
    /// The number of the last subscription that entered a group.
    joined_last: u64,
    /// How many topics it matches.
    pub(super) matches: MatchCount,
}

impl WildcardEntry {
    /// Creates a wildcard without sessions.
    pub(super) fn new(matches: MatchCount) -> WildcardEntry {
        WildcardEntry { groups: Vec::new(), joined_last: 0, matches }
    }

    /// The group with this wire format, policy generation and filter.
    fn group(&self, format: WireFormat, generation: u16, filter: Option<&Arc<Permissions>>) -> Option<usize> {
        self.groups.iter().position(|group| {
            let is_same = match (&group.filter, filter) {
                (Some(one), Some(other)) => Arc::ptr_eq(one, other),
                (one, other) => one.is_none() && other.is_none(),
            };
            is_same && group.format == format && group.generation == generation
        })
    }

    /// The default policies of a generation that some group still uses.
    fn policies(&self, generation: u16) -> Option<&Rules<Policy>> {
        self.groups.iter().find(|group| group.generation == generation).map(|group| &*group.policies)
    }
}

/// The sessions of one wildcard that share a wire format and the default policies in force when they subscribed.
///
/// If the pattern is wholly allowed, sessions with different permissions share a group, because each may receive every topic
/// that matches. If it is only partly allowed, there is one group per permission set, which is checked once per topic. So
/// delivery itself checks nothing.
#[derive(Debug)]
pub(super) struct WildcardGroup {
    format: WireFormat,
    /// Generation of the default policies.
    generation: u16,
    policies: Arc<Rules<Policy>>,
    /// What its members may receive, if that is only a part of the pattern's topics.
    pub(super) filter: Option<Arc<Permissions>>,
    members: Vec<WildcardMember>,
}

/// A session in a wildcard group. 16 bytes.
#[derive(Clone, Copy, Debug)]
struct WildcardMember {
    slot: SlotId,
    /// Number of its subscription, in the order in which they went live.
    joined: u64,
}

/// The groups of a shard, and what their delivery needs from tick to tick.
#[derive(Debug)]
pub(super) struct Wildcards {
    /// Default policies for subscriptions that go live.
    policies: Arc<Rules<Policy>>,
    /// Generation of these policies. It may wrap: sessions from 65,536 reloads ago then share a group with new ones.
    generation: u16,
    /// Members of all groups.
    members_len: usize,
    /// Number of wildcard subscriptions that are in no group, because they have a pace.
    paced_len: usize,
    /// Number of the last subscription that went live.
    joined_last: u64,
    /// Changes when a pattern gets its first member or loses its last. Never 0.
    patterns_generation: u64,
    /// Number of the last tick that several patterns matched; sessions remember it.
    tick_last: u32,
    /// Scratch: patterns that match a tick's topic, sessions that are behind, sessions that do not know the topic.
    matching: Vec<u32>,
    behind: Vec<SlotId>,
    newcomers: Vec<SlotId>,
}

/// A topic's part of the state: which patterns match it, and who knows its name.
#[derive(Debug, Default)]
pub(super) struct WildcardTopic {
    /// Patterns with members that match the topic, if there are at most [`MATCHING_REMEMBERED_MAX`].
    matching: Vec<u32>,
    /// Generation of the patterns when `matching` was found; 0: unknown.
    generation: u64,
    /// The topic has been announced to all members of its patterns up to this number.
    announced_to: u64,
    /// Which groups with a filter receive the topic; `None`: not checked yet.
    pub(super) permitted: Option<Box<Permitted>>,
}

impl Wildcards {
    pub(super) fn new(policies: Rules<Policy>) -> Wildcards {
        Wildcards {
            policies: Arc::new(policies),
            generation: 0,
            members_len: 0,
            paced_len: 0,
            joined_last: 0,
            patterns_generation: 1,
            tick_last: 0,
            matching: Vec::new(),
            behind: Vec::new(),
            newcomers: Vec::new(),
        }
    }

    /// Sets the default policies for subscriptions that go live from now on.
    pub(super) fn set_policies(&mut self, policies: &Rules<Policy>) {
        self.policies = Arc::new(policies.clone());
        self.generation = self.generation.wrapping_add(1);
    }

    /// Whether no session is in a group.
    pub(super) fn is_empty(&self) -> bool {
        self.members_len == 0
    }

    /// Whether any session must be a member of each topic that a wildcard matches.
    pub(super) fn has_members(&self) -> bool {
        self.paced_len > 0
    }

    /// Whether a topic has been announced to all sessions that groups serve with it.
    pub(super) fn know(&self, topic: &EgressTopic) -> bool {
        topic.wildcard.announced_to == self.joined_last
    }

    /// A number for a tick that several patterns match, different from that of every tick that a session remembers.
    fn next_tick(&mut self, sessions: &mut Sessions) -> u32 {
        self.tick_last = self.tick_last.wrapping_add(1);
        if self.tick_last == 0 {
            sessions.forget_ticks();
            self.tick_last = 1;
        }
        self.tick_last
    }
}

impl PatternEntry {
    /// Whether a subscription with this delivery joins a group: a wildcard without a pace.
    pub(super) fn shares(&self, delivery: Delivery) -> bool {
        !self.is_exact && delivery.interval_us == 0
    }

    /// The groups of a wildcard; none for an exact name.
    #[inline]
    pub(super) fn groups(&self) -> &[WildcardGroup] {
        self.wildcard.as_deref().map_or(&[], |wildcard| &wildcard.groups)
    }

    /// Number of sessions in its groups.
    fn group_members_len(&self) -> usize {
        self.groups().iter().map(|group| group.members.len()).sum()
    }

    /// The groups that receive a topic that the pattern matches. Compares it with the patterns of each filter.
    fn groups_of<'a>(&'a self, topic: &'a str) -> impl Iterator<Item = &'a WildcardGroup> {
        let permits = |filter: &Arc<Permissions>| filter.subscribe.permits(topic);
        self.groups().iter().filter(move |group| group.filter.as_ref().is_none_or(permits))
    }

    /// Bytes of its groups.
    pub(super) fn groups_bytes(&self) -> usize {
        let Some(wildcard) = self.wildcard.as_deref() else { return 0 };
        let members: usize = wildcard.groups.iter().map(|group| group.members.capacity()).sum();
        members * size_of::<WildcardMember>() + wildcard.groups.capacity() * size_of::<WildcardGroup>()
    }
}

impl Fanout {
    /// Adds a session to the list of an entry where its subscription belongs: the group of its wire format, or the members that
    /// join each topic.
    pub(super) fn enter_members(&mut self, index: u32, slot: SlotId, sessions: &mut Sessions) {
        let Some(entry) = self.entries[index as usize].as_mut() else {
            return debug_assert!(false, "an entry stays while a session holds its pattern");
        };
        let Some(session) = sessions.open_mut(slot) else { return };
        let format = session.format;
        let permissions = session.principal.as_ref().map(|principal| principal.permissions.clone());
        let Some(held) = session.subscriptions.to_mut(index) else {
            return debug_assert!(false, "a session makes only its own subscriptions live");
        };
        let filter = held.is_partial.then(|| permissions.unwrap_or_default());
        let shares = entry.shares(held.delivery);
        let Some(wildcard) = entry.wildcard.as_deref_mut().filter(|_| shares) else {
            held.position = Some(entry.members.len() as u32);
            entry.members.push(slot);
            self.wildcards.paced_len += usize::from(!entry.is_exact);
            return;
        };
        let wildcards = &mut self.wildcards;
        let generation = wildcards.generation;
        let group = wildcard.group(format, generation, filter.as_ref()).unwrap_or_else(|| {
            if wildcard.groups.is_empty() {
                wildcards.patterns_generation += 1;
            }
            let policies = wildcards.policies.clone();
            // Most wildcards have one group, and many of them one member.
            wildcard.groups.reserve_exact(1);
            wildcard.groups.push(WildcardGroup { format, generation, policies, filter, members: Vec::new() });
            wildcard.groups.len() - 1
        });
        wildcards.joined_last += 1;
        wildcards.members_len += 1;
        wildcard.joined_last = wildcards.joined_last;
        let members = &mut wildcard.groups[group].members;
        held.possible = self.patterns.with_pattern(entry.node, |pattern| {
            PossiblePolicies::of(topic_key::name(pattern), held.delivery.policy, &wildcards.policies)
        });
        held.generation = generation;
        held.position = Some(members.len() as u32);
        if members.is_empty() {
            members.reserve_exact(1);
        }
        members.push(WildcardMember { slot, joined: wildcards.joined_last });
        let counts = held.possible.count();
        sessions.count_yielding(slot, counts, Yielding::default());
    }

    /// Removes a session from an entry's lists, so that it receives no more of its topics through them.
    pub(super) fn leave_members(&mut self, held: Subscription, slot: SlotId, sessions: &mut Sessions) {
        let Some(entry) = self.entries[held.entry as usize].as_mut() else {
            return debug_assert!(false, "an entry stays while a session holds its pattern");
        };
        let Some(position) = held.position else { return };
        let moved = match entry.shares(held.delivery) {
            false => {
                let left = entry.members.swap_remove(position as usize);
                debug_assert_eq!(left, slot, "a subscription knows its position among the members");
                self.wildcards.paced_len -= usize::from(!entry.is_exact);
                entry.members.get(position as usize).copied()
            }
            true => {
                // Its permissions may have changed since, so find the group in which the session has this position.
                let is_in = |group: &WildcardGroup| {
                    group.members.get(position as usize).is_some_and(|member| member.slot == slot)
                };
                let found = entry.wildcard.as_deref_mut().and_then(|wildcard| {
                    let at = wildcard.groups.iter().position(is_in)?;
                    Some((wildcard, at))
                });
                let Some((wildcard, at)) = found else {
                    return debug_assert!(false, "a group stays while it has members");
                };
                let group = &mut wildcard.groups[at];
                let left = group.members.swap_remove(position as usize);
                debug_assert_eq!(left.slot, slot, "a subscription knows its position in the group");
                let moved = group.members.get(position as usize).map(|member| member.slot);
                if group.members.is_empty() {
                    wildcard.groups.swap_remove(at);
                    if wildcard.groups.is_empty() {
                        self.wildcards.patterns_generation += 1;
                    }
                }
                self.wildcards.members_len -= 1;
                sessions.count_yielding(slot, Yielding::default(), held.possible.count());
                moved
            }
        };
        let Some(moved) = moved.and_then(|moved| sessions.any_mut(moved)) else { return };
        let moved = moved.subscriptions.to_mut(held.entry);
        debug_assert!(moved.is_some(), "a member of an entry has the subscription");
        if let Some(moved) = moved {
            moved.position = Some(position);
        }
    }

    /// Takes the patterns with groups that match a topic; the caller must give them back.
    fn take_matching(&mut self, id: TopicId) -> Vec<u32> {
        let mut matching = std::mem::take(&mut self.wildcards.matching);
        matching.clear();
        let generation = self.wildcards.patterns_generation;
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else { return matching };
        if topic.wildcard.generation == generation {
            matching.extend_from_slice(&topic.wildcard.matching);
            return matching;
        }
        let entries = &self.entries;
        let (exports, highest) = (&self.settings.exports, self.tenant_highest);
        self.tally.units += exports.for_each_match(&self.patterns, highest, topic.key(), |&index| {
            if entries[index as usize].as_ref().is_some_and(|entry| !entry.groups().is_empty()) {
                matching.push(index);
            }
        });
        if matching.len() <= MATCHING_REMEMBERED_MAX {
            topic.wildcard.matching.clear();
            topic.wildcard.matching.extend_from_slice(&matching);
            topic.wildcard.generation = generation;
        } else {
            topic.wildcard.matching = Vec::new();
            topic.wildcard.generation = 0;
        }
        matching
    }

    /// Queues a tick to the members of the groups that match its topic: once to each, however many of its patterns match, and
    /// not to those with a membership of their own.
    #[inline(never)]
    pub(super) fn deliver_to_groups(
        &mut self,
        tick: &Frame<'_>,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        let id = TopicId(tick.header.topic_id);
        let matching = self.take_matching(id);
        self.announce_to_newcomers(&matching, id, sessions, logs);
        let number = (matching.len() > 1).then(|| self.wildcards.next_tick(sessions));
        if let Some(topic) = topic_mut(&mut self.topics, id, self.shards) {
            for &index in &matching {
                let Some(entry) = self.entries[index as usize].as_ref() else {
                    debug_assert!(false, "a pattern that matches has an entry");
                    continue;
                };
                for WildcardGroup { format, filter, members, .. } in entry.groups() {
                    self.tally.units += members.len() / MEMBERS_PER_UNIT;
                    if let Some(filter) = filter {
                        self.tally.units += 1;
                        if !topic.is_permitted(filter) {
                            continue;
                        }
                    }
                    // Usually the first one is.
                    if !members.iter().any(|member| sessions.is_served_by_groups(member.slot, id)) {
                        continue;
                    }
                    let Some((log, range)) = topic.latest_or_append(*format, tick, logs) else {
                        // The tick is longer than the log, so no member can receive it. Close them, so that the loss is not
                        // silent.
                        members.iter().for_each(|member| sessions.mark_too_far_behind(member.slot));
                        continue;
                    };
                    let mut queued = 0;
                    for member in members {
                        match sessions.offer_to_group(member.slot, id, number, log, range) {
                            Offered::Queued => queued += 1,
                            Offered::Behind => self.wildcards.behind.push(member.slot),
                            Offered::Gone => {}
                        }
                    }
                    self.tally.queued += queued;
                }
            }
        }
        self.hold_behind(&matching, id, tick.header.sequence, sessions, logs);
        self.wildcards.matching = matching;
    }

    /// The sessions that wildcard groups serve with a topic, each once, after announcing the topic to those who do not know it.
    pub(super) fn slots_of_groups(
        &mut self,
        id: TopicId,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) -> Vec<SlotId> {
        if self.wildcards.is_empty() {
            return Vec::new();
        }
        let matching = self.take_matching(id);
        self.announce_to_newcomers(&matching, id, sessions, logs);
        self.wildcards.matching = matching;
        self.slots_served(id, sessions)
    }

    /// The sessions that wildcard groups serve with a topic, each once. Some may not know the topic yet.
    pub(super) fn slots_served(&mut self, id: TopicId, sessions: &Sessions) -> Vec<SlotId> {
        if self.wildcards.is_empty() {
            return Vec::new();
        }
        let matching = self.take_matching(id);
        let mut slots = Vec::new();
        if let Some(topic) = topic_mut(&mut self.topics, id, self.shards) {
            let entries = matching.iter().filter_map(|&index| self.entries[index as usize].as_ref());
            for group in entries.flat_map(|entry| entry.groups()) {
                if group.filter.as_ref().is_none_or(|filter| topic.is_permitted(filter)) {
                    slots.extend(group.members.iter().map(|member| member.slot));
                }
            }
        }
        self.wildcards.matching = matching;
        slots.sort_unstable();
        slots.dedup();
        slots.retain(|&slot| sessions.is_served_by_groups(slot, id));
        slots
    }

    /// Announces a topic to the members of its groups that have joined since it was last announced.
    fn announce_to_newcomers(
        &mut self,
        matching: &[u32],
        id: TopicId,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else { return };
        let announced_to = topic.wildcard.announced_to;
        let newcomers = &mut self.wildcards.newcomers;
        newcomers.clear();
        let mut members_len = 0;
        for entry in matching.iter().filter_map(|&index| self.entries[index as usize].as_ref()) {
            let Some(wildcard) = entry.wildcard.as_deref().filter(|of| of.joined_last > announced_to) else {
                continue;
            };
            members_len += entry.group_members_len();
            let permits = |group: &&WildcardGroup| {
                group.filter.as_ref().is_none_or(|filter| topic.is_permitted(filter))
            };
            let members = wildcard.groups.iter().filter(permits).flat_map(|group| &group.members);
            newcomers.extend(members.filter(|member| member.joined > announced_to).map(|member| member.slot));
        }
        if newcomers.is_empty() {
            return;
        }
        topic.wildcard.announced_to = self.wildcards.joined_last;
        // A session may have joined several of the patterns.
        newcomers.sort_unstable();
        newcomers.dedup();
        // An announcement in the log separates two ticks of all other members, who then need gathered SENDs. A few newcomers
        // get private copies instead.
        let are_few = newcomers.len() * NEWCOMERS_FEW < members_len;
        for slot in newcomers.drain(..) {
            let Some(session) = sessions.get(slot) else { continue };
            let format = session.format;
            if session.memberships.contains(id) {
                continue;
            }
            if are_few {
                let info = FrameInfo { topic: id.0, sequence: 0 };
                sessions.push_private(slot, info, |out| logs.encode_topic(format, &topic.info, out));
            } else {
                topic.announce(slot, sessions, logs);
            }
        }
    }

    /// Holds a topic for the sessions that are behind and conflate it; queues its last tick to the others.
    fn hold_behind(
        &mut self,
        matching: &[u32],
        id: TopicId,
        sequence: u64,
        sessions: &mut Sessions,
        logs: &EgressLogs,
    ) {
        let mut behind = std::mem::take(&mut self.wildcards.behind);
        let all = Matching::new(&self.patterns, self.tenant_highest, &self.settings.exports);
        for slot in behind.drain(..) {
            let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else { continue };
            let Some(session) = sessions.open_mut(slot) else { continue };
            let format = session.format;
            // Exact names and paced subscriptions that match would have a membership.
            let held = matching.iter().filter_map(|&index| session.subscriptions.to(index));
            let principal = session.principal.as_deref();
            let Some(merged) = merged(all, &self.entries, topic, held, principal) else {
                // Its new permissions may not name the topic, and its subscription has not been reviewed yet.
                debug_assert!(session.has_partial(), "a member of a group has a subscription that matches");
                continue;
            };
            let membership = Membership { taking: Taking::Held, from: sequence, ..merged.membership() };
            if membership.conflates() {
                if !sessions.takes_membership(slot) {
                    continue;
                }
                let Some(session) = sessions.open_mut(slot) else { continue };
                session.lag_mut().held.push_back(id);
                topic.insert(slot, membership, sessions);
                sessions.make_ready(slot);
            } else if let Some((range, log)) = topic.latest(format).zip(logs.of(format)) {
                sessions.push_range(slot, log, range);
                self.tally.queued += 1;
            }
        }
        self.wildcards.behind = behind;
    }

    /// Ends a session's own membership of a topic if its groups can serve it again: it is live, and has nothing to announce.
    pub(super) fn share_again(&mut self, id: TopicId, slot: SlotId, sessions: &mut Sessions) {
        let Some(session) = sessions.get(slot) else { return };
        let Some(membership) = session.memberships.get(id) else { return };
        if membership.is_shared
            && membership.taking == Taking::Live
            && !membership.is_unannounced()
            && let Some(topic) = topic_mut(&mut self.topics, id, self.shards)
        {
            topic.leave(slot, sessions);
        }
    }

    /// Number of this shard's sessions subscribed to a topic. Visits each of them if several wildcards match it.
    pub fn subscribers_len(&self, id: TopicId) -> usize {
        let Some(topic) = topic_ref(&self.topics, id, self.shards) else { return 0 };
        let mut groups = Vec::new();
        let (exports, highest) = (&self.settings.exports, self.tenant_highest);
        exports.for_each_match(&self.patterns, highest, topic.key(), |&index| {
            let entry = self.entries[index as usize].as_ref();
            groups.extend(entry.filter(|entry| !entry.groups().is_empty()));
        });
        let of_groups = match &groups[..] {
            [entry] => entry.groups_of(&topic.info.name).map(|group| group.members.len()).sum(),
            several => {
                let groups = several.iter().flat_map(|entry| entry.groups_of(&topic.info.name));
                let members = groups.flat_map(|group| &group.members);
                let mut slots: Vec<SlotId> = members.map(|member| member.slot).collect();
                slots.sort_unstable();
                slots.dedup();
                slots.len()
            }
        };
        of_groups + topic.members_len() - topic.shared_len as usize
    }

    /// Number of topics that a session is subscribed to. A topic that several of its wildcards match counts once for each; a
    /// partly allowed wildcard counts all its topics.
    pub fn topics_of(&self, session: &Session) -> usize {
        let own = session.memberships.len() - session.shared_memberships as usize;
        let shared = session.subscriptions.iter().map(|held| {
            let entry = self.entries[held.entry as usize].as_ref();
            let entry = entry.filter(|entry| held.position.is_some() && entry.shares(held.delivery));
            entry.and_then(|entry| entry.wildcard.as_deref()).map_or(0, |wildcard| wildcard.matches.topics())
        });
        own + shared.sum::<usize>()
    }
}

impl Merged {
    /// A live membership of a topic that has been announced.
    pub(super) fn membership(self) -> Membership {
        Membership {
            from: 0,
            due_ns: 0,
            gap: Gap::NONE,
            position: 0,
            interval_us: self.interval_us,
            policy: self.policy,
            taking: Taking::Live,
            wanted: crate::home::Backfill::LastValues,
            announced: true,
            is_shared: self.is_shared,
        }
    }
}
