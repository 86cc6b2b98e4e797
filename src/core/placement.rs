//! Placement: which shard is the home of a topic, and which serves a client identity.

use tickcast_proto::ids::ShardId;

/// 64-bit FNV-1a of a name: the same in every process.
pub(crate) fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The shard that sequences `topic`. Depends only on the hash of its name, so that all shards and sources agree without a table.
pub fn home_shard(topic: &str, shards: u16) -> ShardId {
    let hash = name_hash(topic);
    // FNV-1a has poor low bits for short names, so fold in the high half.
    ShardId(((hash ^ hash >> 32) % u64::from(shards)) as u16)
}

/// The shard that serves a client identity, by the same hash as for topics.
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
