//! The session that holds each client identity, if a second connection replaces the first.

use crate::ids::SlotId;
use std::{collections::HashMap, sync::Arc};

/// The sessions of a shard by identity. Empty unless a second connection replaces the first.
///
/// Invariant: each identity has one holder, and the two maps are inverses of each other. Bound: one entry per session.
#[derive(Debug, Default)]
pub struct Holders {
    by_identity: HashMap<Arc<str>, SlotId>,
    by_slot: HashMap<SlotId, Arc<str>>,
    bytes: usize,
}

impl Holders {
    /// Gives an identity to a slot that holds none. Returns the slot that held it before. Allocates once, unless the identity was
    /// held.
    pub fn enter(&mut self, slot: SlotId, identity: &str) -> Option<SlotId> {
        debug_assert!(!self.by_slot.contains_key(&slot), "a session names its identity once");
        let (identity, before) = match self.by_identity.get_key_value(identity) {
            Some((identity, &before)) => (identity.clone(), Some(before)),
            None => (Arc::from(identity), None),
        };
        match before {
            Some(before) => {
                let released = self.by_slot.remove(&before);
                debug_assert!(released.is_some(), "a holder is in both maps");
            }
            None => self.bytes += identity.len(),
        }
        self.by_identity.insert(identity.clone(), slot);
        self.by_slot.insert(slot, identity);
        self.invariants();
        before
    }

    /// Releases the identity of a slot, if it holds one.
    pub fn leave(&mut self, slot: SlotId) {
        if let Some(identity) = self.by_slot.remove(&slot) {
            let holder = self.by_identity.remove(&identity);
            debug_assert_eq!(holder, Some(slot), "a holder is in both maps");
            self.bytes -= identity.len();
        }
        self.invariants();
    }

    /// Whether no identity is held.
    pub fn is_empty(&self) -> bool {
        self.by_slot.is_empty()
    }

    /// Bytes of the identities and their map entries.
    pub fn bytes(&self) -> usize {
        self.bytes + self.by_slot.len() * 2 * (size_of::<Arc<str>>() + size_of::<SlotId>())
    }

    fn invariants(&self) {
        debug_assert_eq!(self.by_identity.len(), self.by_slot.len(), "each identity has one holder");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_holder_does_not_release_the_identity_when_it_ends() {
        let mut holders = Holders::default();
        assert_eq!(holders.enter(SlotId(1), "a"), None);
        assert_eq!(holders.enter(SlotId(2), "b"), None);
        assert_eq!(holders.enter(SlotId(3), "a"), Some(SlotId(1)));
        holders.leave(SlotId(1));
        assert_eq!(holders.enter(SlotId(4), "a"), Some(SlotId(3)), "the replaced session released nothing");
        holders.leave(SlotId(3));
        holders.leave(SlotId(4));
        holders.leave(SlotId(9));
        assert_eq!(holders.enter(SlotId(1), "a"), None);
        holders.leave(SlotId(1));
        holders.leave(SlotId(2));
        assert!(holders.is_empty());
        assert_eq!(holders.bytes(), 0);
    }
}
