//! Maps topics to their home shard, and client identities to the shard that serves them.

use tickcast_proto::ids::ShardId;

/// The shard that sequences `topic`: FNV-1a of the name, so that all shards and sources agree without a table.
/// (Fowler, Noll, Vo; 64-bit offset basis and prime.)
pub fn home_shard(topic: &str, shards: u16) -> ShardId {
    let hash = topic.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // The low bits of FNV-1a of short names are poor; the high half is folded in.
    ShardId(((hash ^ hash >> 32) % u64::from(shards)) as u16)
}

/// The shard that serves an identity, by the same hash as for topics.
pub fn serving_shard(identity: &str, shards: u16) -> ShardId {
    home_shard(identity, shards)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_spread_over_the_shards() {
        let mut counts = [0; 4];
        for index in 0..4000 {
            counts[usize::from(home_shard(&format!("sim.{index}"), 4).0)] += 1;
        }
        assert!(counts.iter().all(|&count| (800..1200).contains(&count)), "{counts:?}");
    }

    #[test]
    fn identities_spread_over_the_shards() {
        let mut counts = [0; 4];
        (0..4_000).for_each(|n| counts[usize::from(serving_shard(&format!("client-{n}"), 4).0)] += 1);
        assert!(counts.iter().all(|&count| (800..1_200).contains(&count)), "{counts:?}");
    }
}
