//! Which session holds an identity, where a second connection replaces the first.

use crate::ids::SlotId;
use std::{collections::HashMap, sync::Arc};

/// Who holds an identity on its shard. Kept only where a second connection replaces the first.
///
/// Invariant: each identity has one holder, and each of the two maps is the other turned around. Bound: one entry a
/// session.
#[derive(Debug, Default)]
pub struct Holders {
    by_identity: HashMap<Arc<str>, SlotId>,
    by_slot: HashMap<SlotId, Arc<str>>,
    bytes: usize,
}

impl Holders {
    /// Gives an identity to a slot that holds none. Returns the slot that had it. One allocation, none where the
    /// identity was held.
    pub fn enter(&mut self, slot: SlotId, identity: &str) -> Option<SlotId> {
        debug_assert!(!self.by_slot.contains_key(&slot), "a session says once who it is");
        let (identity, before) = match self.by_identity.get_key_value(identity) {
            Some((identity, &before)) => (identity.clone(), Some(before)),
            None => (Arc::from(identity), None),
        };
        match before {
            Some(before) => drop(self.by_slot.remove(&before)),
            None => self.bytes += identity.len(),
        }
        self.by_identity.insert(identity.clone(), slot);
        self.by_slot.insert(slot, identity);
        self.invariants();
        before
    }

    /// A slot's session ends, whether it held an identity or not.
    pub fn leave(&mut self, slot: SlotId) {
        if let Some(identity) = self.by_slot.remove(&slot) {
            self.by_identity.remove(&identity);
            self.bytes -= identity.len();
        }
        self.invariants();
    }

    /// Whether nobody holds any.
    pub fn is_empty(&self) -> bool {
        self.by_slot.is_empty()
    }

    /// Bytes of the identities and their entries.
    pub fn bytes(&self) -> usize {
        self.bytes + self.by_slot.len() * 2 * (size_of::<Arc<str>>() + size_of::<SlotId>())
    }

    fn invariants(&self) {
        debug_assert_eq!(self.by_identity.len(), self.by_slot.len(), "one holder each");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_holder_has_the_identity_and_the_older_one_does_not_take_it_along() {
        let mut holders = Holders::default();
        assert_eq!(holders.enter(SlotId(1), "a"), None);
        assert_eq!(holders.enter(SlotId(2), "b"), None);
        assert_eq!(holders.enter(SlotId(3), "a"), Some(SlotId(1)));
        holders.leave(SlotId(1));
        assert_eq!(
            holders.enter(SlotId(4), "a"),
            Some(SlotId(3)),
            "the end of the first leaves the second its identity"
        );
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
