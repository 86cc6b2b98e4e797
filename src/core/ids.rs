//! Identifiers of slots and sessions, and the wire's identifiers re-exported.

use std::fmt;

pub use tickcast_proto::ids::*;

/// Index of a connection in its shard's tables; reused after the connection is closed.
///
/// Bound: [`crate::limits::CLIENTS_MAX_HIGHEST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u32);

impl SlotId {
    /// Returns the index into tables by slot.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A session's address for the purpose of limits: a hash of its [`Origin`](crate::admission::Origin), keyed per process so that
/// nobody can choose an address with the same hash. 0: a source without limits, such as a proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SourceId(pub u32);

impl SourceId {
    /// Whether limits apply to it.
    pub fn is_limited(self) -> bool {
        self.0 != 0
    }
}

/// A feed: a source, or a failover group of sources, that marks its topics as stale when it falls silent. From 1; 0: none. The same
/// on every shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FeedId(pub u32);

impl FeedId {
    /// The feed of topics that no source marks.
    pub const NONE: FeedId = FeedId(0);

    /// Returns the index into tables by feed; `None`: no feed.
    pub fn index(self) -> Option<usize> {
        (self.0 as usize).checked_sub(1)
    }
}

/// A subscription of a source that subscribes at its engine on demand. From 1; 0: none. The numbers begin anew after 2^32 - 1
/// subscriptions. If both holders of a number live then, the end of one also ends the lives of the other's topics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamId(pub u32);

impl UpstreamId {
    /// No subscription: ticks of clients, and of other sources.
    pub const NONE: UpstreamId = UpstreamId(0);
}

/// A tenant: a namespace of topics. The index of its entry in [`Tenants`](crate::tenants::Tenants), the same on every shard, and
/// never used for another tenant while the server runs.
///
/// Bound: [`crate::limits::TENANTS_MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(pub u16);

impl TenantId {
    /// The tenant of sessions and sources that belong to no other. It has no name.
    pub const DEFAULT: TenantId = TenantId(0);

    /// Returns the index into tables by tenant.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Bits of a slot in a session's id, which fits into a JavaScript number.
const SLOT_BITS: u32 = 20;

const _: () = assert!(crate::limits::CLIENTS_MAX_HIGHEST <= 1 << SLOT_BITS && SLOT_BITS + u32::BITS < 53);

/// Identifies a session for the life of its shard: its slot and the shard's count of sessions. Never reused. Below 2^53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

impl fmt::LowerHex for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

impl SessionId {
    /// Returns the id of the shard's `generation`-th session, which is in `slot`.
    pub fn new(generation: u32, slot: SlotId) -> SessionId {
        SessionId(u64::from(generation) << SLOT_BITS | u64::from(slot.0))
    }

    /// Returns whether sessions may be in a slot.
    pub fn has_slot(slot: u32) -> bool {
        slot < 1 << SLOT_BITS
    }

    /// Returns the session's slot, which may belong to another session once this one has ended.
    pub fn slot(self) -> SlotId {
        SlotId((self.0 & ((1 << SLOT_BITS) - 1)) as u32)
    }

    /// Returns the number of sessions that the shard had opened, including this one, modulo 2^32.
    pub fn generation(self) -> u32 {
        (self.0 >> SLOT_BITS) as u32
    }
}
