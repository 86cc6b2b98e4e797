//! Names of the lives of other engines' logs, the same on every node that reads or writes a log.
//!
//! ```text
//!  epoch = 2^52 | FNV-1a 64 of kind, name and life, each after its length (u64), folded to 52 bits
//! ```
//!
//! Bit 52 is set, so that no epoch equals one that this server has given (microseconds since 1970), and each is below 2^53, so that a
//! JavaScript number holds it.

/// Set in every epoch of a log.
const LOG: u64 = 1 << 52;

/// The epoch of one life of a log: its kind of engine, its name there, and what tells this life from others of that name.
pub fn log_epoch(kind: &str, name: &str, life: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for part in [kind.as_bytes(), name.as_bytes(), life] {
        let len = (part.len() as u64).to_le_bytes();
        for &byte in len.iter().chain(part) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    LOG | (hash ^ hash >> 52) & (LOG - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_and_names_have_epochs_of_their_own() {
        let epochs = [("a", "1"), ("a", "2"), ("b", "1"), ("a1", "")];
        let epochs = epochs.map(|(name, life)| log_epoch("jetstream", name, life.as_bytes()));
        for (at, epoch) in epochs.iter().enumerate() {
            assert!(*epoch >= LOG && *epoch < 1 << 53 && !epochs[..at].contains(epoch));
        }
        assert_eq!(epochs[0], log_epoch("jetstream", "a", b"1"), "the same on every node");
    }
}
