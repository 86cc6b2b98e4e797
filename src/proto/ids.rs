//! Identifiers that all crates share.

/// Wire id of one life of a topic, never 0: `(local_index + 1) * shards + home`. The index grows with each life in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicId(pub u32);

/// Number of a tick within its topic, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sequence(pub u64);

/// Index of a shard (one executor and everything it owns), from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

/// Number of topic slots at each home: a power of two, so that a tick finds its topic without a division.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    mask: u32,
}

impl Places {
    /// Slots for the most topics that a home may have.
    pub fn new(topics_max: usize) -> Places {
        let topics_max = u32::try_from(topics_max).unwrap_or(u32::MAX);
        Places { mask: topics_max.checked_next_power_of_two().map_or(u32::MAX, |places| places - 1) }
    }
}

impl TopicId {
    /// The id of topic `local_index` (from 0) of the shard `home`. `None` if it does not fit 32 bits.
    pub fn new(local_index: u32, home: ShardId, shards: u16) -> Option<TopicId> {
        let id = (u64::from(local_index) + 1) * u64::from(shards) + u64::from(home.0);
        u32::try_from(id).ok().map(TopicId)
    }

    /// The topic's home: the shard that sequences it.
    pub fn home(self, shards: u16) -> ShardId {
        ShardId((self.0 % u32::from(shards)) as u16)
    }

    /// Slot at its home, from 0, which several lives may share. `None` for ids that are never assigned.
    pub fn place(self, shards: u16, places: Places) -> Option<u32> {
        Some(self.local_index(shards)? & places.mask)
    }

    /// The id of the next topic in the same slot. After the last id that fits 32 bits, the slot's first comes again.
    pub fn next_life(self, home: ShardId, shards: u16, places: Places) -> TopicId {
        let local = self.local_index(shards).unwrap_or(0);
        let next = local.checked_add(places.mask).and_then(|local| local.checked_add(1));
        let fits = |local| TopicId::new(local, home, shards);
        next.and_then(fits).or_else(|| fits(local & places.mask)).unwrap_or(self)
    }

    /// Index among its home's ids, from 0. `None` for ids below `shards`, which are never assigned.
    pub fn local_index(self, shards: u16) -> Option<u32> {
        (self.0 / u32::from(shards)).checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_ids_are_unique_across_shards_and_never_zero() {
        let mut seen = std::collections::HashSet::new();
        for shards in [1u16, 4, 7] {
            seen.clear();
            for home in 0..shards {
                for local in 0..100 {
                    let id = TopicId::new(local, ShardId(home), shards).unwrap();
                    assert!(id.0 != 0 && seen.insert(id));
                    assert_eq!((id.home(shards), id.local_index(shards)), (ShardId(home), Some(local)));
                }
            }
        }
        assert_eq!(TopicId::new(u32::MAX, ShardId(0), 2), None);
        assert_eq!(TopicId(1).local_index(4), None);
    }
}
