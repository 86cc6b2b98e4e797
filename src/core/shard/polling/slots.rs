//! Slots of sessions without sockets.

use std::{collections::HashMap, net::IpAddr};

use crate::{
    admission::Sources,
    ids::{SessionId, SlotId, SourceId},
    limits::{POLLING_SESSIONS_MAX, POLLING_SESSIONS_PER_SOURCE_MAX},
};

/// Slots of sessions without sockets.
#[derive(Debug)]
pub(in crate::shard) struct PollingSlots {
    /// The first one: beyond all slots of the transport.
    from: u32,
    /// Slots that have been in use.
    used: u32,
    pub(super) free: Vec<u32>,
    /// Sessions of each address. Bound: one entry for each session.
    pub(super) by_source: HashMap<SourceId, u32>,
    /// Finds the sources of clients behind proxies.
    sources: Option<Sources>,
}

impl Default for PollingSlots {
    fn default() -> PollingSlots {
        PollingSlots { from: 1 << 16, used: 0, free: Vec::new(), by_source: HashMap::new(), sources: None }
    }
}

impl PollingSlots {
    pub(super) fn set_from(&mut self, slots: u32) {
        self.from = slots;
    }

    pub(super) fn set_sources(&mut self, sources: Sources) {
        self.sources = Some(sources);
    }

    /// The source of a client whose address a proxy has reported.
    pub(in crate::shard) fn source_of(&self, client: IpAddr) -> SourceId {
        let found = self.sources.as_ref().and_then(|sources| sources.find(client));
        found.map(|(_, source)| source).unwrap_or_default()
    }

    #[inline]
    pub(in crate::shard) fn contain(&self, slot: SlotId) -> bool {
        slot.0 >= self.from
    }

    /// A vacant slot for a session of this address; `None` if too many are in use.
    pub(super) fn take(&mut self, source: SourceId) -> Option<SlotId> {
        let of_source = self.by_source.get(&source).copied().unwrap_or_default();
        if source.is_limited() && of_source >= POLLING_SESSIONS_PER_SOURCE_MAX {
            return None;
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.used < POLLING_SESSIONS_MAX && SessionId::has_slot(self.from + self.used) => {
                self.used += 1;
                self.from + self.used - 1
            }
            None => return None,
        };
        self.by_source.insert(source, of_source + 1);
        Some(SlotId(slot))
    }

    pub(super) fn give_back(&mut self, slot: SlotId, source: SourceId) {
        self.free.push(slot.0);
        if let Some(count) = self.by_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.by_source.remove(&source);
            }
        }
    }
}
