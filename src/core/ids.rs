//! Identifiers of the core, and those of the wire.

use std::fmt;

pub use tickcast_proto::ids::*;

/// Index of a connection in its shard's tables; reused after the connection is closed.
///
/// Bound: [`crate::limits::CLIENTS_MAX_HIGHEST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u32);

impl SlotId {
    /// As an index into a table by slot.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Identifies a session for the life of its shard: its slot, and how many sessions the shard had before. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

impl fmt::LowerHex for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

impl SessionId {
    /// The `generation`-th session of a shard, in `slot`.
    pub fn new(generation: u32, slot: SlotId) -> SessionId {
        SessionId(u64::from(generation) << 32 | u64::from(slot.0))
    }

    /// The session's slot; another session's, once this one has ended.
    pub fn slot(self) -> SlotId {
        SlotId(self.0 as u32)
    }

    /// How many sessions the shard had opened up to this one, modulo 2^32.
    pub fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}
