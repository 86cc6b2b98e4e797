//! Topics whose source has fallen silent: their subscribers learn when that begins, when it ends, and when they subscribe
//! while it lasts.
//!
//! ```text
//!  mark changes ----> `changed`, each topic once ----> the topic's subscribers are listed ----> told, some in each turn
//!  wildcard subscribed while topics are stale ----> `newcomers` ----> told of those that match, some in each turn
//!  exact name subscribed ----> told with the topic's announcement
//! ```
//!
//! Only sessions with the feature `sources` get these messages. They are replies: nothing evicts them. A delivery costs nothing more.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    EgressLogs, Fanout, Topics,
    topic::{EgressTopic, Life},
    topic_mut, topic_ref,
    wildcard::{self, Matching},
};
use crate::{
    home::StaleMark,
    ids::{SessionId, SlotId},
    limits::{STALE_LOOKS_AT_ONCE, TURN_STALE_UNITS},
    session::{Session, table::Sessions},
};
use tickcast_proto::{features::Features, ids::TopicId, reply::Reply};

/// Sessions listed for one unit.
const LISTED_PER_UNIT: usize = 16;
/// Stale topics compared with a pattern for one unit.
const COMPARED_PER_UNIT: usize = 4;
/// Stale topics whose marks are checked after each turn in debug builds.
const CHECKED_MAX: usize = 64;

/// The stale part of a topic.
#[derive(Debug, Default)]
pub(super) struct StaleTopic {
    /// Its mark at its home.
    mark: StaleMark,
    /// What its subscribers have been told.
    told: StaleMark,
    /// Number of that telling.
    number: u64,
    /// Whether it is in the list of changed topics.
    is_changed: bool,
}

/// What a shard has to tell about stale topics.
///
/// Bound: the topics of the shard in `told` and `changed`, one list of sessions in `telling`, and the subscriptions of the shard's
/// sessions in `newcomers`.
/// Invariant: `order` lists each of `newcomers` once.
/// Invariant: the subscribers of each topic in `told` have been told that it is stale, and not yet that it is back.
#[derive(Debug, Default)]
pub(super) struct StaleTopics {
    told: BTreeSet<TopicId>,
    /// Topics whose mark has changed since their subscribers were told.
    changed: VecDeque<TopicId>,
    telling: Option<Telling>,
    /// Wildcards that went live while topics were stale, by session and entry.
    newcomers: BTreeMap<(SessionId, u32), Newcomer>,
    /// The order in which they get the message.
    order: VecDeque<(SessionId, u32)>,
    /// Number of the last telling.
    number: u64,
    /// Time of the last turn, nanoseconds since 1970.
    now_ns: u64,
}

/// A topic whose subscribers are being told.
#[derive(Debug)]
struct Telling {
    id: TopicId,
    mark: StaleMark,
    /// Those that have not been told.
    sessions: std::vec::IntoIter<SessionId>,
}

/// A subscription to a wildcard whose session is being told of stale topics.
#[derive(Clone, Copy, Debug)]
struct Newcomer {
    /// The next topic.
    next: TopicId,
    /// The last telling before the subscription went live. Later ones include it.
    number: u64,
}

impl StaleTopics {
    /// Forgets a topic that the shard drops.
    pub(super) fn forget(&mut self, id: TopicId) {
        self.told.remove(&id);
    }

    fn bytes(&self) -> usize {
        let told = size_of::<StaleTopic>() + 2 * size_of::<TopicId>();
        let telling = self.telling.as_ref().map_or(0, |telling| telling.sessions.as_slice().len());
        self.told.len() * told
            + self.changed.capacity() * size_of::<TopicId>()
            + telling * size_of::<SessionId>()
            + self.order.capacity() * size_of::<(SessionId, u32)>()
            + self.newcomers.len() * 2 * size_of::<((SessionId, u32), Newcomer)>()
    }

    /// Checks the lists against the topics while few are stale.
    fn invariants(&self, topics: &Topics, shards: u16) {
        if cfg!(debug_assertions) {
            assert_eq!(self.order.len(), self.newcomers.len(), "each newcomer is listed once");
            let is_told = |&id: &TopicId| {
                let stale = topic_ref(topics, id, shards).and_then(|topic| topic.stale.as_deref());
                stale.is_some_and(|stale| stale.told.is_stale)
            };
            assert!(
                self.told.iter().take(CHECKED_MAX).all(is_told),
                "every topic that was announced as stale is still marked as stale"
            );
        }
    }

    fn has_work(&self) -> bool {
        !self.changed.is_empty() || self.telling.is_some() || !self.order.is_empty()
    }
}

impl EgressTopic {
    /// What a new subscriber gets: the mark, while the topic is stale and its other subscribers know.
    fn mark_for_newcomers(&self, number: u64) -> Option<StaleMark> {
        let stale = self.stale.as_deref().filter(|_| self.life == Life::Current)?;
        (stale.told.is_stale && stale.mark.is_stale && stale.number <= number).then_some(stale.told)
    }

    /// Tells a session that has just joined that the topic is stale, if it is.
    fn tell_if_stale(&self, slot: SlotId, sessions: &mut Sessions) {
        if let Some(mark) = self.mark_for_newcomers(u64::MAX)
            && sessions.get(slot).is_some_and(is_told)
        {
            self.tell(mark, slot, false, sessions);
        }
    }

    /// Tells a session. `knows_topic`: whether the topic has been announced to all sessions that wildcard groups serve.
    fn tell(&self, mark: StaleMark, slot: SlotId, knows_topic: bool, sessions: &mut Sessions) {
        let StaleMark { is_stale, since_ns } = mark;
        let reply = Reply::Stale { topic: self.info.id, name: &self.info.name, is_stale, since_ns };
        sessions.with_outbox(slot, |session| {
            let membership = session.memberships.get(self.info.id);
            // Its announcement may be evicted while it waits.
            let knows_topic = membership.map_or(knows_topic, |membership| !membership.is_unannounced())
                && session.frame_bytes() == 0;
            let format = session.format;
            session.outbox.push_reply(|out| {
                if !knows_topic {
                    self.info.encode(format, out);
                }
                reply.encode(format, out);
            });
        });
        sessions.mark_if_announcements_pile_up(slot);
    }
}

/// Whether a session has asked for such messages.
fn is_told(session: &Session) -> bool {
    session.features.contains(Features::SOURCES) && session.ending.is_none()
}

impl Fanout {
    /// Handles the change of a topic's mark at its home. Its subscribers learn of it in [`Fanout::tell_stale`].
    pub fn handle_mark(&mut self, id: TopicId, mark: StaleMark) {
        if !self.openings.is_empty() && self.openings.keep_mark(id, mark) {
            return;
        }
        let Some(topic) = topic_mut(&mut self.topics, id, self.shards) else {
            return debug_assert!(false, "a home marks only topics that it has opened");
        };
        let stale = topic.stale.get_or_insert_default();
        stale.mark = mark;
        if !std::mem::replace(&mut stale.is_changed, true) {
            self.stale.changed.push_back(id);
        }
    }

    /// Bytes of the marks, and of what is to be told.
    pub fn stale_bytes(&self) -> usize {
        self.stale.bytes()
    }

    /// Whether sessions have to be told of stale topics.
    pub fn has_stale_to_tell(&self) -> bool {
        self.stale.has_work()
    }

    /// Tells sessions about topics that are stale or back, within the budget of a turn. `now_ns`: nanoseconds since 1970. Returns
    /// the number of messages.
    pub fn tell_stale(&mut self, sessions: &mut Sessions, logs: &mut EgressLogs, now_ns: u64) -> usize {
        self.stale.now_ns = now_ns;
        if !self.stale.has_work() {
            return 0;
        }
        let told = self.tell_newcomers(sessions) + self.tell_changed(sessions);
        self.evict_overflowing(sessions, logs);
        self.stale.invariants(&self.topics, self.shards);
        told
    }

    /// Clears the mark for a topic's next life: subscribers that got the mark of the last life get its end.
    pub(super) fn end_mark_of_last_life(&mut self, last: TopicId, id: TopicId) {
        let stale = topic_ref(&self.topics, last, self.shards).and_then(|topic| topic.stale.as_deref());
        let Some(told) = stale.map(|stale| stale.told).filter(|told| told.is_stale) else { return };
        let mark = StaleMark { is_stale: false, since_ns: self.stale.now_ns };
        if let Some(topic) = topic_mut(&mut self.topics, id, self.shards) {
            topic.stale = Some(StaleTopic { mark, told, number: self.stale.number, is_changed: true }.into());
            self.stale.changed.push_back(id);
        }
    }

    /// Notes a subscription that has just gone live: if it is a wildcard whose groups serve the session, the session learns later
    /// which topics are stale. Others learn it as they join each topic.
    pub(super) fn note_stale_newcomer(&mut self, index: u32, slot: SlotId, sessions: &Sessions) {
        if self.stale.told.is_empty() {
            return;
        }
        let Some(session) = sessions.get(slot).filter(|session| is_told(session)) else { return };
        let held = session.subscriptions.to(index);
        let entry = self.entries[index as usize].as_ref();
        if entry.zip(held).is_some_and(|(entry, held)| entry.shares(held.delivery)) {
            let (next, number) = (TopicId(0), self.stale.number);
            // One that has left the same wildcard meanwhile begins anew.
            let before = self.stale.newcomers.insert((session.id, index), Newcomer { next, number });
            if before.is_none() {
                self.stale.order.push_back((session.id, index));
            }
        }
    }

    /// Tells sessions that have subscribed to wildcards, one after the other.
    fn tell_newcomers(&mut self, sessions: &mut Sessions) -> usize {
        let (mut used, mut told) = (0, 0);
        while used < TURN_STALE_UNITS / 2
            && let Some(key) = self.stale.order.pop_front()
        {
            let (id, entry) = key;
            let session = sessions.get(id.slot()).filter(|session| session.id == id);
            let held = session.and_then(|session| session.subscriptions.to(entry));
            let is_live = held.is_some_and(|held| held.position.is_some());
            let Some(mut newcomer) = self.stale.newcomers.get(&key).copied().filter(|_| is_live) else {
                self.stale.newcomers.remove(&key);
                used += 1;
                continue;
            };
            let topics = self.stale.told.range(newcomer.next..).take(STALE_LOOKS_AT_ONCE);
            let topics: Vec<TopicId> = topics.copied().collect();
            used += 1 + topics.len() / COMPARED_PER_UNIT;
            for &topic in &topics {
                newcomer.next = TopicId(topic.0.saturating_add(1));
                let sent = self.tell_newcomer(key, newcomer, topic, sessions);
                (used, told) = (used + usize::from(sent), told + usize::from(sent));
            }
            if topics.len() == STALE_LOOKS_AT_ONCE {
                self.stale.newcomers.insert(key, newcomer);
                self.stale.order.push_back(key);
            } else {
                self.stale.newcomers.remove(&key);
            }
        }
        told
    }

    /// Tells a session about one stale topic, unless its wildcard does not deliver it, or another subscription has told it.
    fn tell_newcomer(
        &self,
        (session, entry): (SessionId, u32),
        newcomer: Newcomer,
        id: TopicId,
        sessions: &mut Sessions,
    ) -> bool {
        let slot = session.slot();
        let Some(topic) = topic_ref(&self.topics, id, self.shards) else { return false };
        let Some(mark) = topic.mark_for_newcomers(newcomer.number) else { return false };
        if !self.entry_matches(entry, topic.key()) {
            return false;
        }
        let is_first = match self.deliveries_of(topic, slot, sessions) {
            Some((shared, false)) => {
                shared == 1 || shared == 1 + self.untold_by(session, Some(entry), topic, sessions)
            }
            _ => false,
        };
        if is_first {
            topic.tell(mark, slot, self.wildcards.know(topic), sessions);
        }
        is_first
    }

    /// How many of a session's wildcards deliver a stale topic and have yet to tell the session of it, besides that of an entry.
    /// O(subscriptions of the session).
    fn untold_by(
        &self,
        session: SessionId,
        besides: Option<u32>,
        topic: &EgressTopic,
        sessions: &Sessions,
    ) -> u32 {
        let id = topic.info.id;
        let of_session = self.stale.newcomers.range((session, 0)..=(session, u32::MAX));
        let is_untold = |&(&(_, entry), newcomer): &(&(SessionId, u32), &Newcomer)| {
            let held = sessions.get(session.slot()).and_then(|session| session.subscriptions.to(entry));
            besides != Some(entry)
                && newcomer.next <= id
                && topic.mark_for_newcomers(newcomer.number).is_some()
                && held.is_some_and(|held| held.position.is_some())
                && self.entry_matches(entry, topic.key())
                && self.delivers(entry, id, session.slot(), sessions)
        };
        of_session.filter(is_untold).count() as u32
    }

    /// Tells a session that has just joined a topic that it is stale, if it is and the session does not know. `shared`: how many
    /// wildcard groups deliver the topic to it.
    pub(super) fn tell_joined(&self, id: TopicId, slot: SlotId, shared: u32, sessions: &mut Sessions) {
        let Some(topic) = topic_ref(&self.topics, id, self.shards).filter(|topic| topic.stale.is_some())
        else {
            return;
        };
        let Some(session) = sessions.get(slot).map(|session| session.id) else { return };
        if shared == 0 || shared == self.untold_by(session, None, topic, sessions) {
            topic.tell_if_stale(slot, sessions);
        }
    }

    /// How many wildcard groups deliver a topic to a session, and whether it has other subscriptions that do; `None`: it does not
    /// receive the topic.
    pub(super) fn deliveries_of(
        &self,
        topic: &EgressTopic,
        slot: SlotId,
        sessions: &Sessions,
    ) -> Option<(u32, bool)> {
        let session = sessions.get(slot)?;
        let matching = Matching::new(&self.patterns, self.tenant_highest, &self.settings.exports);
        let (subscriptions, principal) = (&session.subscriptions, session.principal.as_deref());
        let merged = wildcard::merged_of_all(matching, &self.entries, topic, subscriptions, principal)?;
        Some((merged.shared, !merged.is_shared))
    }

    /// Tells the subscribers of topics whose marks have changed.
    fn tell_changed(&mut self, sessions: &mut Sessions) -> usize {
        let (mut used, mut told) = (0, 0);
        // Topics that are still opening wait for a later turn.
        let mut looks = self.stale.changed.len();
        while used < TURN_STALE_UNITS {
            let Some(telling) = &mut self.stale.telling else {
                if looks == 0 {
                    break;
                }
                looks -= 1;
                used += 1 + self.begin_telling(sessions);
                continue;
            };
            let (id, mark) = (telling.id, telling.mark);
            let Some(session) = telling.sessions.next() else {
                self.stale.telling = None;
                continue;
            };
            used += 1;
            let slot = session.slot();
            // Since it was listed, the topic may have gone, and the session may have left it.
            let topic = topic_ref(&self.topics, id, self.shards).filter(|topic| topic.life == Life::Current);
            let is_session = sessions.get(slot).is_some_and(|open| open.id == session && is_told(open));
            if let Some(topic) = topic.filter(|_| is_session)
                && self.deliveries_of(topic, slot, sessions).is_some()
            {
                topic.tell(mark, slot, self.wildcards.know(topic), sessions);
                told += 1;
            }
        }
        told
    }

    /// Takes the next topic of the list of changed ones, and lists its subscribers. Returns the units used.
    fn begin_telling(&mut self, sessions: &Sessions) -> usize {
        let Some(id) = self.stale.changed.pop_front() else { return 0 };
        if self.openings.contains(id) {
            self.stale.changed.push_back(id);
            return 0;
        }
        let topic = topic_mut(&mut self.topics, id, self.shards).filter(|topic| topic.life == Life::Current);
        let Some(topic) = topic else { return 0 };
        let Some(stale) = topic.stale.as_deref_mut() else {
            debug_assert!(false, "only a topic with a mark is listed");
            return 0;
        };
        stale.is_changed = false;
        let (mark, is_known) = (stale.mark, stale.mark.is_stale == stale.told.is_stale);
        if !is_known {
            self.stale.number += 1;
            (stale.told, stale.number) = (mark, self.stale.number);
        }
        match mark.is_stale {
            true => self.stale.told.insert(id),
            false => {
                topic.stale = None;
                self.stale.told.remove(&id)
            }
        };
        if is_known {
            return 0;
        }
        let members = topic.groups.iter().flat_map(|group| &group.members);
        let mut slots: Vec<SlotId> = members.map(|member| member.slot()).collect();
        slots.extend(self.slots_served(id, sessions));
        let listed = slots.iter().filter_map(|&slot| sessions.get(slot));
        let listed: Vec<SessionId> =
            listed.filter(|session| is_told(session)).map(|session| session.id).collect();
        self.stale.telling = Some(Telling { id, mark, sessions: listed.into_iter() });
        slots.len() / LISTED_PER_UNIT
    }
}
