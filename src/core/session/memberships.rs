//! The memberships of one session, by topic.

use super::membership::{Membership, TopicMap};
use tickcast_proto::ids::TopicId;

/// A session's memberships. 8 bytes, plus 64 for the first; with several, 57 to 114 for each. Frees its memory when the last one
/// is removed.
#[derive(Debug, Default)]
pub struct Memberships(Option<Box<Inner>>);

#[derive(Debug)]
enum Inner {
    /// Most sessions have one membership, for which a map would take 260 bytes.
    One(TopicId, Membership),
    Many(TopicMap<Membership>),
}

const _: () = assert!(size_of::<Inner>() == 56, "the docs of Memberships say how large it is");

impl Memberships {
    /// Number of memberships.
    pub fn len(&self) -> usize {
        match self.0.as_deref() {
            None => 0,
            Some(Inner::One(..)) => 1,
            Some(Inner::Many(many)) => many.len(),
        }
    }

    /// Whether there are no memberships.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The membership of a topic.
    #[inline]
    pub fn get(&self, id: TopicId) -> Option<&Membership> {
        match self.0.as_deref()? {
            Inner::One(of, membership) => (*of == id).then_some(membership),
            Inner::Many(many) => many.get(&id),
        }
    }

    /// The mutable membership of a topic.
    #[inline]
    pub fn get_mut(&mut self, id: TopicId) -> Option<&mut Membership> {
        match self.0.as_deref_mut()? {
            Inner::One(of, membership) => (*of == id).then_some(membership),
            Inner::Many(many) => many.get_mut(&id),
        }
    }

    /// Whether a topic has a membership.
    #[inline]
    pub fn contains(&self, id: TopicId) -> bool {
        self.get(id).is_some()
    }

    /// Makes room in the table for another membership. Returns `false` if there is no memory.
    pub fn try_reserve(&mut self) -> bool {
        match self.0.as_deref_mut() {
            None | Some(Inner::One(..)) => true,
            Some(Inner::Many(many)) => many.try_reserve(1).is_ok(),
        }
    }

    /// Adds a membership, replacing any in the same topic. Returns the replaced one.
    pub fn insert(&mut self, id: TopicId, membership: Membership) -> Option<Membership> {
        match self.0.as_deref_mut() {
            None => {
                self.0 = Some(Box::new(Inner::One(id, membership)));
                None
            }
            Some(Inner::One(of, one)) if *of == id => Some(std::mem::replace(one, membership)),
            Some(inner @ &mut Inner::One(of, one)) => {
                *inner = Inner::Many([(of, one), (id, membership)].into_iter().collect());
                None
            }
            Some(Inner::Many(many)) => many.insert(id, membership),
        }
    }

    /// Removes the membership of a topic.
    pub fn remove(&mut self, id: TopicId) -> Option<Membership> {
        let (removed, is_last) = match self.0.as_deref_mut()? {
            Inner::One(of, one) => ((*of == id).then_some(*one), *of == id),
            Inner::Many(many) => (many.remove(&id), many.is_empty()),
        };
        if is_last {
            self.0 = None;
        }
        removed
    }

    /// All memberships with their topics, in arbitrary order.
    pub fn iter(&self) -> impl Iterator<Item = (TopicId, &Membership)> {
        let (one, many) = match self.0.as_deref() {
            None => (None, None),
            Some(Inner::One(id, one)) => (Some((*id, one)), None),
            Some(Inner::Many(many)) => (None, Some(many.iter().map(|(id, membership)| (*id, membership)))),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    /// The topics, in arbitrary order.
    pub fn topics(&self) -> impl Iterator<Item = TopicId> {
        self.iter().map(|(id, _)| id)
    }

    /// Bytes of heap memory.
    pub fn heap_bytes(&self) -> usize {
        let map = match self.0.as_deref() {
            None => return 0,
            Some(Inner::One(..)) => 0,
            // An eighth of the buckets stay empty. Each has a control byte.
            Some(Inner::Many(many)) => many.capacity() * 8 / 7 * (size_of::<(TopicId, Membership)>() + 1),
        };
        size_of::<Inner>() + map
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::{
        home::Backfill,
        session::membership::{Gap, Taking},
    };
    use tickcast_proto::subscription::Policy;

    fn membership(from: u64) -> Membership {
        Membership {
            from,
            due_ns: 0,
            gap: Gap::NONE,
            position: 0,
            interval_us: 0,
            policy: Policy::Keep,
            taking: Taking::Live,
            wanted: Backfill::LastValues,
            announced: true,
            is_shared: false,
        }
    }

    #[test]
    fn one_and_many_memberships_agree_with_a_map_and_the_last_gives_the_memory_back() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..200 {
            let (mut memberships, mut map) = (Memberships::default(), HashMap::new());
            let topics = random.u32(1..12);
            for step in 0..60 {
                let id = TopicId(random.u32(..topics));
                match random.u8(..3) {
                    0 => {
                        let before = memberships.remove(id).map(|before| before.from);
                        assert_eq!(before, map.remove(&id));
                    }
                    _ => {
                        let before = memberships.insert(id, membership(step)).map(|before| before.from);
                        assert_eq!(before, map.insert(id, step));
                    }
                }
                let mut listed: Vec<_> = memberships.iter().map(|(id, of)| (id, of.from)).collect();
                listed.sort_unstable();
                let mut expected: Vec<_> = map.iter().map(|(&id, &from)| (id, from)).collect();
                expected.sort_unstable();
                assert_eq!(listed, expected);
                assert_eq!(memberships.len(), map.len());
                assert_eq!(memberships.get_mut(id).map(|of| of.from), map.get(&id).copied());
                assert_eq!(memberships.is_empty(), memberships.heap_bytes() == 0);
            }
        }
    }
}
