//! Sets of shards.

use tickcast_proto::ids::ShardId;

/// A set of shards, one bit each. Aligned to 8 bytes, so that a pattern's node has no padding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(Rust, packed(8))]
pub struct ShardSet(pub(super) u128);

impl ShardSet {
    /// Whether the set contains the shard.
    pub fn contains(self, shard: ShardId) -> bool {
        self.0 >> shard.0 & 1 == 1
    }

    pub(super) fn insert(&mut self, shard: ShardId) {
        self.0 |= 1 << shard.0;
    }

    pub(super) fn remove(&mut self, shard: ShardId) {
        self.0 &= !(1 << shard.0);
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The shards of the set, ascending.
    pub fn iter(self) -> impl Iterator<Item = ShardId> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let shard = (rest != 0).then(|| ShardId(rest.trailing_zeros() as u16))?;
            rest &= rest - 1;
            Some(shard)
        })
    }
}
