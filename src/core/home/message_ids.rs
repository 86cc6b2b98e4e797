//! The message ids that a home remembers, with the positions of their ticks.
//!
//! ```text
//!  index: digest -> entry        entries, linked twice:  by age, all of them      oldest <-> ... <-> newest
//!                                                        by age, of one account   oldest <-> ... <-> newest
//! ```
//!
//! An id is remembered once its tick is sequenced, for the window. If the memory is used up before that, the account with the most ids
//! forgets its oldest one. So nobody loses ids to an account that has more than its own, however many ids that one brings.

use std::collections::{BTreeSet, HashMap};

use super::Home;
use crate::{
    limits::{MESSAGE_ID_ACCOUNT_BYTES, MESSAGE_ID_ENTRY_BYTES, MESSAGE_IDS_EXPIRED_EACH, TURN_MESSAGE_IDS},
    message_id::{DIGEST_BYTES, MessageId},
};
use tickcast_proto::ids::TopicId;

/// How many message ids a home remembers.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessageIdBounds {
    /// Maximum age, nanoseconds; 0: none are remembered.
    pub window_ns: u64,
    /// Maximum bytes.
    pub bytes_max: usize,
}

/// A sequenced tick: its topic and its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TickPosition {
    /// The topic.
    pub topic: TopicId,
    /// The epoch of its life.
    pub epoch: u64,
    /// The tick's sequence.
    pub sequence: u64,
}

/// No entry.
const NONE: u32 = u32::MAX;

/// An entry's neighbours in a list.
#[derive(Clone, Copy, Debug)]
struct Links {
    older: u32,
    newer: u32,
}

/// A list of entries, by age.
#[derive(Clone, Copy, Debug)]
struct List {
    oldest: u32,
    newest: u32,
    len: u32,
}

impl Default for List {
    fn default() -> List {
        List { oldest: NONE, newest: NONE, len: 0 }
    }
}

/// The lists that an entry is in.
const ALL: usize = 0;
const OF_ACCOUNT: usize = 1;

#[derive(Clone, Copy, Debug)]
struct Entry {
    digest: [u8; DIGEST_BYTES],
    epoch: u64,
    sequence: u64,
    /// When its tick was sequenced, CLOCK_MONOTONIC nanoseconds.
    at_ns: u64,
    account: u64,
    topic: TopicId,
    links: [Links; 2],
}

const _: () = assert!(size_of::<Entry>() <= 72, "MESSAGE_ID_ENTRY_BYTES says how large it is");

/// The remembered ids.
///
/// Bound: [`MessageIdBounds`], with [`MESSAGE_ID_ENTRY_BYTES`] for each id and [`MESSAGE_ID_ACCOUNT_BYTES`] for each account that has ids.
/// Invariant: each entry is in the list of all, in that of its account, and in the index.
#[derive(Debug)]
pub(super) struct MessageIds {
    bounds: MessageIdBounds,
    entries: Vec<Entry>,
    /// Free places in `entries`.
    free: Vec<u32>,
    // Hashed with a key: peers can choose digests that are alike.
    index: HashMap<[u8; DIGEST_BYTES], u32>,
    all: List,
    accounts: HashMap<u64, List>,
    /// The accounts with their numbers of ids, to find the one with the most.
    by_len: BTreeSet<(u32, u64)>,
    /// Ids forgotten within the window, since the count was last taken.
    forgotten_early: u64,
}

impl MessageIds {
    pub(super) fn new(bounds: MessageIdBounds) -> MessageIds {
        MessageIds {
            bounds,
            entries: Vec::new(),
            free: Vec::new(),
            index: HashMap::new(),
            all: List::default(),
            accounts: HashMap::new(),
            by_len: BTreeSet::new(),
            forgotten_early: 0,
        }
    }

    /// The first tick with this id.
    fn find(&self, id: &MessageId, now_ns: u64) -> Option<TickPosition> {
        let Entry { topic, epoch, sequence, at_ns, .. } = self.entries[*self.index.get(&id.digest)? as usize];
        self.is_current(at_ns, now_ns).then_some(TickPosition { topic, epoch, sequence })
    }

    fn is_current(&self, at_ns: u64, now_ns: u64) -> bool {
        now_ns.saturating_sub(at_ns) < self.bounds.window_ns
    }

    /// Remembers the id of a tick that has just been sequenced, within the bound.
    fn remember(&mut self, id: &MessageId, tick: TickPosition, now_ns: u64) {
        self.expire(MESSAGE_IDS_EXPIRED_EACH, now_ns);
        if let Some(&expired) = self.index.get(&id.digest) {
            self.forget(expired);
        }
        while self.bytes() + self.bytes_of(id) > self.bounds.bytes_max {
            let Some(&(_, account)) = self.by_len.last() else { return self.forgotten_early += 1 };
            let oldest = self.accounts.get(&account).map_or(NONE, |list| list.oldest);
            let is_early = self.is_current(self.entries[oldest as usize].at_ns, now_ns);
            self.forgotten_early += u64::from(is_early);
            self.forget(oldest);
        }
        if self.entries.try_reserve(1).is_err() || self.index.try_reserve(1).is_err() {
            return self.forgotten_early += 1;
        }
        let TickPosition { topic, epoch, sequence } = tick;
        let MessageId { digest, account } = *id;
        let links = [Links { older: NONE, newer: NONE }; 2];
        let entry = Entry { digest, epoch, sequence, at_ns: now_ns, account, topic, links };
        let at = match self.free.pop() {
            Some(at) => {
                self.entries[at as usize] = entry;
                at
            }
            None => {
                self.entries.push(entry);
                self.entries.len() as u32 - 1
            }
        };
        self.index.insert(digest, at);
        self.change_account(account, |entries, list| append(entries, OF_ACCOUNT, list, at));
        append(&mut self.entries, ALL, &mut self.all, at);
        self.invariants();
    }

    /// Forgets at most `count` of the ids older than the window. Returns how many.
    fn expire(&mut self, count: usize, now_ns: u64) -> usize {
        for done in 0..count {
            match self.entries.get(self.all.oldest as usize) {
                Some(entry) if !self.is_current(entry.at_ns, now_ns) => self.forget(self.all.oldest),
                _ => return done,
            }
        }
        count
    }

    fn forget(&mut self, at: u32) {
        let Entry { digest, account, .. } = self.entries[at as usize];
        self.index.remove(&digest);
        self.change_account(account, |entries, list| remove(entries, OF_ACCOUNT, list, at));
        remove(&mut self.entries, ALL, &mut self.all, at);
        self.free.push(at);
    }

    /// Changes the list of an account, which exists as long as it has ids.
    fn change_account(&mut self, account: u64, change: impl FnOnce(&mut [Entry], &mut List)) {
        let list = self.accounts.entry(account).or_default();
        self.by_len.remove(&(list.len, account));
        change(&mut self.entries, list);
        if list.len > 0 {
            self.by_len.insert((list.len, account));
        } else {
            self.accounts.remove(&account);
        }
    }

    /// Bytes that count towards the bound.
    fn bytes(&self) -> usize {
        self.index.len() * MESSAGE_ID_ENTRY_BYTES + self.accounts.len() * MESSAGE_ID_ACCOUNT_BYTES
    }

    /// Bytes that another id would add.
    fn bytes_of(&self, id: &MessageId) -> usize {
        let is_new = !self.accounts.contains_key(&id.account);
        MESSAGE_ID_ENTRY_BYTES + if is_new { MESSAGE_ID_ACCOUNT_BYTES } else { 0 }
    }

    /// Bytes of memory.
    pub(super) fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
            + self.free.capacity() * size_of::<u32>()
            + self.index.capacity() * size_of::<([u8; DIGEST_BYTES], u32)>()
            + self.accounts.capacity() * size_of::<(u64, List)>()
            + self.by_len.len() * size_of::<(u32, u64)>()
    }

    fn invariants(&self) {
        debug_assert!(self.bytes() <= self.bounds.bytes_max, "ids fit their memory");
        debug_assert_eq!(self.all.len as usize, self.index.len(), "each entry is in the index");
        debug_assert_eq!(self.accounts.len(), self.by_len.len(), "each account has ids");
    }
}

/// Appends an entry to a list, as its newest.
fn append(entries: &mut [Entry], which: usize, list: &mut List, at: u32) {
    let older = std::mem::replace(&mut list.newest, at);
    entries[at as usize].links[which] = Links { older, newer: NONE };
    match entries.get_mut(older as usize) {
        Some(entry) => entry.links[which].newer = at,
        None => list.oldest = at,
    }
    list.len += 1;
}

/// Removes an entry from a list.
fn remove(entries: &mut [Entry], which: usize, list: &mut List, at: u32) {
    let Links { older, newer } = entries[at as usize].links[which];
    match entries.get_mut(older as usize) {
        Some(entry) => entry.links[which].newer = newer,
        None => list.oldest = newer,
    }
    match entries.get_mut(newer as usize) {
        Some(entry) => entry.links[which].older = older,
        None => list.newest = older,
    }
    list.len -= 1;
}

impl Home {
    /// The last tick of the topic at an index.
    pub fn last_tick(&self, index: u32) -> TickPosition {
        let topic = self.topic(index);
        TickPosition { topic: topic.id, epoch: topic.epoch, sequence: topic.sequence.0 }
    }

    /// The tick that this message id has been remembered for. Its topic may be forgotten by now.
    pub fn tick_of(&self, id: &MessageId, now_ns: u64) -> Option<TickPosition> {
        self.message_ids.find(id, now_ns)
    }

    /// Remembers the message id of a tick that has just been sequenced.
    pub fn remember(&mut self, id: &MessageId, tick: TickPosition, now_ns: u64) {
        self.message_ids.remember(id, tick, now_ns);
    }

    /// Forgets message ids older than the window, a bounded number per call. Returns how many.
    pub fn expire_message_ids(&mut self, now_ns: u64) -> usize {
        self.message_ids.expire(TURN_MESSAGE_IDS, now_ns)
    }

    /// Returns the number of message ids forgotten within the window since the last call.
    pub fn take_message_ids_forgotten(&mut self) -> u64 {
        std::mem::take(&mut self.message_ids.forgotten_early)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn remembering(window_ns: u64, bytes_max: usize) -> MessageIds {
        MessageIds::new(MessageIdBounds { window_ns, bytes_max })
    }

    fn id(account: u64, number: u64) -> MessageId {
        let mut digest = [0; DIGEST_BYTES];
        digest[..8].copy_from_slice(&number.to_le_bytes());
        digest[8..].copy_from_slice(&account.to_le_bytes());
        MessageId { digest, account }
    }

    fn tick(sequence: u64) -> TickPosition {
        TickPosition { topic: TopicId(1), epoch: 5, sequence }
    }

    /// Room for this many ids of this many accounts.
    fn room(ids: usize, accounts: usize) -> usize {
        ids * MESSAGE_ID_ENTRY_BYTES + accounts * MESSAGE_ID_ACCOUNT_BYTES
    }

    fn known(ids: &MessageIds, account: u64, numbers: std::ops::Range<u64>) -> Vec<u64> {
        numbers.filter(|&number| ids.find(&id(account, number), 0).is_some()).collect()
    }

    #[test]
    fn an_id_is_remembered_for_the_window_with_its_first_position() {
        let mut ids = remembering(10 * SECOND, room(10, 1));
        assert_eq!(ids.find(&id(1, 1), 0), None);
        ids.remember(&id(1, 1), tick(7), SECOND);
        assert_eq!(ids.find(&id(1, 1), 10 * SECOND), Some(tick(7)));
        assert_eq!(ids.find(&id(1, 1), 11 * SECOND), None, "older than the window");
        ids.remember(&id(1, 1), tick(8), 11 * SECOND);
        assert_eq!(ids.find(&id(1, 1), 20 * SECOND), Some(tick(8)));
        assert_eq!((ids.index.len(), ids.forgotten_early), (1, 0));
    }

    #[test]
    fn old_ids_leave_even_if_no_new_ones_come() {
        let mut ids = remembering(10 * SECOND, room(1000, 1000));
        (0..100).for_each(|n| ids.remember(&id(n % 3, n), tick(n), n * SECOND / 10));
        assert_eq!(ids.expire(1000, 15 * SECOND), 51);
        assert_eq!(ids.expire(1000, 100 * SECOND), 49);
        assert!(ids.accounts.is_empty() && ids.by_len.is_empty() && ids.index.is_empty());
        (0..100).for_each(|n| ids.remember(&id(0, n), tick(n), 100 * SECOND));
        assert_eq!(ids.entries.len(), 100, "places are used again");
    }

    #[test]
    fn an_account_that_brings_many_ids_takes_no_memory_from_one_that_has_fewer() {
        let mut ids = remembering(10 * SECOND, room(100, 3));
        (0..30).for_each(|n| ids.remember(&id(1, n), tick(n), 0));
        (0..1000).for_each(|n| ids.remember(&id(2, n), tick(n), 0));
        assert_eq!(known(&ids, 1, 0..30), (0..30).collect::<Vec<_>>());
        assert_eq!(known(&ids, 2, 0..1000), (930..1000).collect::<Vec<_>>(), "its oldest are gone");
        assert_eq!(ids.forgotten_early, 930);
        // Another comes late, and gets an equal share.
        (0..1000).for_each(|n| ids.remember(&id(3, n), tick(n), 0));
        assert_eq!(known(&ids, 1, 0..30).len(), 30);
        let (second, third) = (known(&ids, 2, 0..1000).len(), known(&ids, 3, 0..1000).len());
        assert!(second.abs_diff(third) <= 1 && second + third == 70, "{second}, {third}");
    }

    #[test]
    fn ids_of_any_number_of_accounts_stay_within_their_memory() {
        let bytes_max = room(1000, 100);
        let mut ids = remembering(10 * SECOND, bytes_max);
        for n in 0..20_000 {
            ids.remember(&id(n, n), tick(n), n);
            assert!(ids.bytes() <= bytes_max);
        }
        assert!(ids.memory_bytes() <= bytes_max, "{} of {bytes_max}", ids.memory_bytes());
        let mut none = remembering(10 * SECOND, MESSAGE_ID_ENTRY_BYTES);
        none.remember(&id(1, 1), tick(1), 0);
        assert_eq!((none.find(&id(1, 1), 0), none.forgotten_early), (None, 1));
    }

    #[test]
    fn lists_and_index_agree_whatever_happens() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut ids = remembering(50, room(40, 8));
        for now_ns in 0..5_000 {
            let id = id(rng.u64(0..10), rng.u64(0..40));
            match rng.u8(0..10) {
                0 => {
                    ids.expire(rng.usize(0..4), now_ns);
                }
                _ if ids.find(&id, now_ns).is_some() => {}
                _ => ids.remember(&id, tick(now_ns), now_ns),
            }
            let (mut at, mut listed, mut last_ns) = (ids.all.oldest, 0, 0);
            while at != NONE {
                let entry = &ids.entries[at as usize];
                assert!(entry.at_ns >= last_ns && ids.index[&entry.digest] == at);
                (at, listed, last_ns) = (entry.links[ALL].newer, listed + 1, entry.at_ns);
            }
            assert_eq!((listed, ids.entries.len() - ids.free.len()), (ids.index.len(), ids.index.len()));
            let accounts: u32 = ids.accounts.values().map(|list| list.len).sum();
            assert_eq!(accounts, ids.all.len);
        }
    }
}
