//! Subscriptions to patterns: registration with the homes, going live, changes and removal.

use std::collections::VecDeque;

use super::{EgressLogs, Fanout, topic_mut, topic_ref};
use crate::{ids::SlotId, session::table::Sessions};
use tickcast_proto::{
    ids::TopicId,
    pattern,
    subscription::{Delivery, Position},
};

/// A pattern that at least one session of this shard subscribes to.
#[derive(Debug)]
pub(super) struct PatternEntry {
    pub(super) pattern: Box<str>,
    /// Sessions whose subscription is live.
    pub(super) members: Vec<SlotId>,
    /// Sessions to acknowledge once every home is ready, in order of subscription.
    pub(super) pending: VecDeque<PendingSubscriber>,
    /// Homes that have not answered READY yet.
    pub(super) homes_pending: u16,
    /// The entry is in `Fanout::activating`.
    pub(super) activating: bool,
    /// Identifies this entry in messages to the homes.
    pub(super) request: u32,
}

/// A session that waits for its subscription to go live.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingSubscriber {
    slot: SlotId,
    /// The client's request number, for the acknowledgement.
    request: u32,
}

/// Where a subscription starts once it is live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartFrom {
    /// At the next tick.
    #[default]
    Live,
    /// At the last values, then live.
    Latest,
    /// Just after a position.
    After(Position),
    /// Just after the position that the session saved for each topic; topics without one start at the oldest tick kept.
    SavedPositions,
}

/// A session's subscription to one pattern. 48 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Subscription {
    /// Policy and pace.
    pub delivery: Delivery,
    /// Where it starts.
    pub start_from: StartFrom,
    /// The pattern's entry.
    pub entry: u32,
    /// Index of the session in the entry's members; `None` until it is live.
    pub position: Option<u32>,
}

const _: () = assert!(size_of::<Subscription>() <= 48, "the docs of Subscription say how large it is");

/// A new pattern to register with the homes.
#[derive(Debug, PartialEq, Eq)]
pub struct Interest {
    /// Identifies the pattern in the homes' answers.
    pub request: u32,
    /// The pattern has no wildcard: only that topic's home needs to know.
    pub exact: bool,
}

/// A subscription registered by [`Fanout::subscribe`].
#[derive(Debug, PartialEq, Eq)]
pub struct Registration {
    /// The pattern's entry.
    pub entry: u32,
    /// What to register with the homes if this is the shard's first subscription to the pattern.
    pub interest: Option<Interest>,
}

/// The result of [`Fanout::unsubscribe`].
#[derive(Debug, PartialEq, Eq)]
pub struct Unsubscribed {
    /// The pattern, if this was its last subscription on the shard: the caller must deregister it from the homes.
    pub pattern_gone: Option<Box<str>>,
    /// Topics and subscriptions visited.
    pub visited: usize,
}

/// The topics of a session that match a pattern.
#[derive(Debug)]
struct Affected {
    topics: Vec<TopicId>,
    /// Memberships visited to find them.
    visited: usize,
}

/// A subscription ready to go live: the caller acknowledges it, then calls [`Fanout::attach`].
#[derive(Clone, Copy, Debug)]
pub struct Activation {
    /// The pattern's entry.
    pub entry: u32,
    /// The session.
    pub slot: SlotId,
    /// The client's request number.
    pub request: u32,
}

impl Fanout {
    /// The entry of a pattern, if any session of this shard subscribes to it.
    pub fn entry_of(&mut self, pattern: &str) -> Option<u32> {
        self.patterns.get_mut(pattern).copied()
    }

    /// Registers a subscription; the session must not hold the pattern already. It goes live through
    /// [`Fanout::next_activation`] once every home is ready.
    pub fn subscribe(&mut self, slot: SlotId, request: u32, pattern: &str) -> Registration {
        if let Some(index) = self.entry_of(pattern)
            && let Some(entry) = self.entries[index as usize].as_mut()
        {
            entry.pending.push_back(PendingSubscriber { slot, request });
            if entry.homes_pending == 0 && !std::mem::replace(&mut entry.activating, true) {
                self.activating.push_back(index);
            }
            self.invariants(Some(index));
            return Registration { entry: index, interest: None };
        }
        let exact = pattern::is_exact(pattern);
        let interest = Interest { request: self.next_request, exact };
        self.next_request = self.next_request.wrapping_add(1).max(1);
        let entry = PatternEntry {
            pattern: pattern.into(),
            members: Vec::new(),
            pending: VecDeque::from([PendingSubscriber { slot, request }]),
            homes_pending: if exact { 1 } else { self.shards },
            activating: false,
            request: interest.request,
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        self.entries[index as usize] = Some(entry);
        self.patterns.get_or_insert_with(pattern, || index);
        self.by_request.insert(interest.request, index);
        self.invariants(Some(index));
        Registration { entry: index, interest: Some(interest) }
    }

    /// Notes that a home has opened every matching topic. Once all homes have, the pending subscriptions can go live.
    pub fn handle_ready(&mut self, request: u32) {
        // The last subscriber may have left before the home answered.
        let Some(&index) = self.by_request.get(&request) else { return };
        let Some(entry) = self.entries[index as usize].as_mut() else {
            return debug_assert!(false, "a request names an entry in use");
        };
        entry.homes_pending -= 1;
        if entry.homes_pending == 0 && !std::mem::replace(&mut entry.activating, true) {
            self.activating.push_back(index);
        }
        self.invariants(Some(index));
    }

    /// Whether subscriptions may be ready to go live.
    pub fn has_activations(&self) -> bool {
        !self.activating.is_empty()
    }

    /// The next subscription to go live, in the order they became ready.
    pub fn next_activation(&mut self) -> Option<Activation> {
        while let Some(&index) = self.activating.front() {
            // The entry may have been removed, and its index reused, since it was queued.
            if let Some(entry) =
                self.entries[index as usize].as_mut().filter(|entry| entry.homes_pending == 0)
            {
                if let Some(PendingSubscriber { slot, request }) = entry.pending.pop_front() {
                    return Some(Activation { entry: index, slot, request });
                }
                entry.activating = false;
            }
            self.activating.pop_front();
        }
        None
    }

    /// The pattern of an entry.
    pub fn pattern(&self, entry: u32) -> &str {
        self.entries[entry as usize].as_ref().map_or("", |entry| &entry.pattern)
    }

    /// Makes a subscription live: the session joins every matching topic, each announced to it first. O(topics) for a
    /// wildcard, else one look-up. Returns the number of topics visited.
    pub fn attach(&mut self, live: Activation, sessions: &mut Sessions, logs: &mut EgressLogs) -> usize {
        let Some(entry) = self.entries[live.entry as usize].as_mut() else {
            debug_assert!(false, "an entry stays while it has pending subscribers");
            return 0;
        };
        // A closing session no longer joins topics.
        let Some(session) = sessions.open_mut(live.slot) else { return 0 };
        let held = session.subscriptions.iter_mut().find(|held| held.entry == live.entry);
        let Some(held) = held else {
            debug_assert!(false, "a pending subscriber has the subscription");
            return 0;
        };
        held.position = Some(entry.members.len() as u32);
        let Subscription { delivery, start_from, .. } = *held;
        entry.members.push(live.slot);
        let pattern = entry.pattern.clone();
        let visited = if pattern::is_exact(&pattern) {
            if let Some(&id) = self.by_name.get(&pattern) {
                self.join(id, live.slot, delivery, start_from, sessions, logs);
            }
            1
        } else {
            for home in 0..self.topics.len() {
                for local in 0..self.topics[home].len() {
                    let found = self.topics[home][local].as_ref();
                    let Some(topic) = found.filter(|topic| pattern::matches(&pattern, &topic.info.name))
                    else {
                        continue;
                    };
                    self.join(topic.info.id, live.slot, delivery, start_from, sessions, logs);
                    self.evict_overflowing(sessions, logs);
                }
            }
            self.by_name.len()
        };
        self.answer_unknown_positions(&pattern, start_from, live.slot, sessions);
        self.queue_pull(live.slot, sessions);
        self.evict_overflowing(sessions, logs);
        self.invariants(Some(live.entry));
        visited
    }

    fn join(
        &mut self,
        id: TopicId,
        slot: SlotId,
        delivery: Delivery,
        start_from: StartFrom,
        sessions: &mut Sessions,
        logs: &mut EgressLogs,
    ) {
        let backlog = self.backlog(id, slot, start_from, sessions);
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else {
            return debug_assert!(false, "only open topics are joined");
        };
        if !topic.join(slot, delivery, backlog, sessions, logs) {
            topic.release_paced(slot, sessions);
        }
    }

    /// Changes the policy and pace of a subscription. Returns the number of topics and subscriptions visited.
    pub fn update(&mut self, entry: u32, slot: SlotId, delivery: Delivery, sessions: &mut Sessions) -> usize {
        let Some(session) = sessions.open_mut(slot) else { return 1 };
        let Some(held) = session.subscriptions.iter_mut().find(|held| held.entry == entry) else {
            debug_assert!(false, "a session updates only its own subscriptions");
            return 1;
        };
        held.delivery = delivery;
        if held.position.is_none() {
            // Not live yet: its topics may be delivered by another subscription, whose settings stay.
            return 1;
        }
        let Affected { topics, mut visited } = self.affected_by(entry, slot, sessions);
        for &id in &topics {
            visited += self.merge_deliveries(id, slot, Some(delivery), sessions);
        }
        visited
    }

    /// Finds the topics of a session that match an entry's pattern. O(memberships) for a wildcard, else one look-up.
    fn affected_by(&self, entry: u32, slot: SlotId, sessions: &Sessions) -> Affected {
        let entry = self.entries[entry as usize].as_ref();
        let Some((entry, session)) = entry.zip(sessions.get(slot)) else {
            debug_assert!(false, "a live subscription has an entry and a session");
            return Affected { topics: Vec::new(), visited: 1 };
        };
        if pattern::is_exact(&entry.pattern) {
            let topics = self.by_name.get(&entry.pattern).filter(|id| session.memberships.contains_key(id));
            return Affected { topics: topics.copied().into_iter().collect(), visited: 1 };
        }
        let of_pattern = |id: &&TopicId| {
            topic_ref(&self.topics, **id, self.shards)
                .is_some_and(|topic| pattern::matches(&entry.pattern, &topic.info.name))
        };
        let topics = session.memberships.keys().filter(of_pattern).copied().collect();
        Affected { topics, visited: session.memberships.len() + 1 }
    }

    /// Recomputes a membership's delivery from the session's live subscriptions that match its topic. If only one does,
    /// `alone` is its delivery. Returns the number of subscriptions visited.
    fn merge_deliveries(
        &mut self,
        id: TopicId,
        slot: SlotId,
        alone: Option<Delivery>,
        sessions: &mut Sessions,
    ) -> usize {
        let topic = topic_mut(&mut self.topics, id, self.shards);
        let session = sessions.get(slot);
        let membership = session.and_then(|session| session.memberships.get(&id));
        let (Some(topic), Some(session), Some(membership)) = (topic, session, membership) else {
            debug_assert!(false, "a membership has a topic and a session");
            return 0;
        };
        let (merged, visited) = match alone {
            Some(delivery) if membership.references == 1 => (delivery, 1),
            _ => {
                let matching = session.subscriptions.iter().filter(|held| {
                    let entry = self.entries[held.entry as usize].as_ref();
                    held.position.is_some()
                        && entry.is_some_and(|entry| pattern::matches(&entry.pattern, &topic.info.name))
                });
                (topic.merge(matching.map(|held| held.delivery)), session.subscriptions.len())
            }
        };
        topic.set_delivery(slot, merged, sessions);
        topic.release_paced(slot, sessions);
        visited
    }

    /// Removes a subscription that the caller has already taken out of the session's list.
    pub fn unsubscribe(&mut self, held: Subscription, slot: SlotId, sessions: &mut Sessions) -> Unsubscribed {
        let mut visited = 1;
        if held.position.is_some() {
            let affected = self.affected_by(held.entry, slot, sessions);
            visited = affected.visited;
            self.flush_notices_of(&affected.topics, slot, sessions);
            for id in affected.topics {
                let topic = topic_mut(&mut self.topics, id, self.shards);
                if topic.is_some_and(|topic| topic.drop_reference(slot, sessions)) {
                    visited += self.merge_deliveries(id, slot, None, sessions);
                }
            }
        }
        Unsubscribed { pattern_gone: self.leave_pattern(held, slot, sessions), visited }
    }

    /// Removes all subscriptions of a session as it ends. Returns the patterns that nobody on this shard holds any
    /// more.
    pub fn detach(&mut self, slot: SlotId, sessions: &mut Sessions) -> Vec<Box<str>> {
        let Some(session) = sessions.any_mut(slot) else { return Vec::new() };
        let held = std::mem::take(&mut session.subscriptions);
        let topics: Vec<TopicId> = session.memberships.keys().copied().collect();
        for id in topics {
            if let Some(topic) = topic_mut(&mut self.topics, id, self.shards) {
                topic.leave(slot, sessions);
            }
        }
        held.into_iter().filter_map(|held| self.leave_pattern(held, slot, sessions)).collect()
    }

    /// Removes a session from a pattern's entry, and the entry after its last session. Returns the pattern if it is
    /// gone.
    fn leave_pattern(
        &mut self,
        held: Subscription,
        slot: SlotId,
        sessions: &mut Sessions,
    ) -> Option<Box<str>> {
        let Some(entry) = self.entries[held.entry as usize].as_mut() else {
            debug_assert!(false, "an entry stays while a session holds its pattern");
            return None;
        };
        match held.position {
            None => entry.pending.retain(|pending| pending.slot != slot),
            Some(position) => {
                entry.members.swap_remove(position as usize);
                if let Some(&moved) = entry.members.get(position as usize)
                    && let Some(moved) = sessions.any_mut(moved)
                    && let Some(moved) =
                        moved.subscriptions.iter_mut().find(|moved| moved.entry == held.entry)
                {
                    moved.position = Some(position);
                }
            }
        }
        if !entry.members.is_empty() || !entry.pending.is_empty() {
            self.invariants(Some(held.entry));
            return None;
        }
        let entry = self.entries[held.entry as usize].take()?;
        self.free.push(held.entry);
        self.by_request.remove(&entry.request);
        self.patterns.remove(&entry.pattern);
        self.invariants(None);
        Some(entry.pattern)
    }
}
