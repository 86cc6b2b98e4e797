//! Who a client says it is: the rule of identities, the shard that serves one, and who holds one now.
//!
//! An identity is a client's own word, not a proof: it decides where a client is served and which connection is taken
//! for an older one of the same client, nothing else.

use std::{collections::HashMap, fmt, sync::Arc};

use crate::{limits::IDENTITY_BYTES_MAX, router, tick::ShardId};

/// The rule that an identity breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityError {
    /// No bytes, or more than 255.
    Length(usize),
    /// Not UTF-8.
    NotUtf8,
    /// A control character.
    Control,
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IdentityError::Length(len) => {
                write!(f, "client identity: {len} bytes long, 1 to {IDENTITY_BYTES_MAX} allowed")
            }
            IdentityError::NotUtf8 => write!(f, "client identity: not UTF-8"),
            IdentityError::Control => write!(f, "client identity: holds a control character"),
        }
    }
}

impl std::error::Error for IdentityError {}

/// Checks an identity.
///
/// # Errors
/// The first [`IdentityError`] found.
pub fn check(identity: &[u8]) -> Result<&str, IdentityError> {
    if identity.is_empty() || identity.len() > IDENTITY_BYTES_MAX {
        return Err(IdentityError::Length(identity.len()));
    }
    let identity = simdutf8::basic::from_utf8(identity).map_err(|_| IdentityError::NotUtf8)?;
    if identity.contains(char::is_control) {
        return Err(IdentityError::Control);
    }
    Ok(identity)
}

/// The shard that serves an identity: the same hash as for topics, so that every shard agrees without a table.
pub fn shard(identity: &str, shards: u16) -> ShardId {
    router::home(identity, shards)
}

/// Who holds an identity on its shard. Kept only where a second connection replaces the first.
///
/// Invariant: each identity has one holder, and each of the two maps is the other turned around. Bound: one entry a
/// session.
#[derive(Debug, Default)]
pub struct Holders {
    by_identity: HashMap<Arc<str>, u32>,
    by_slot: HashMap<u32, Arc<str>>,
    bytes: usize,
}

impl Holders {
    /// Gives an identity to a slot that holds none. Returns the slot that had it. One allocation, none where the
    /// identity was held.
    pub fn enter(&mut self, slot: u32, identity: &str) -> Option<u32> {
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
    pub fn leave(&mut self, slot: u32) {
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
        self.bytes + self.by_slot.len() * 2 * (size_of::<Arc<str>>() + size_of::<u32>())
    }

    fn invariants(&self) {
        debug_assert_eq!(self.by_identity.len(), self.by_slot.len(), "one holder each");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_short_text_without_control_characters() {
        for good in ["a", "app 7", "käse/\u{1f600}", &"x".repeat(255)] {
            assert_eq!(check(good.as_bytes()), Ok(good));
        }
        assert_eq!(check(b""), Err(IdentityError::Length(0)));
        assert_eq!(check(&[b'x'; 256]), Err(IdentityError::Length(256)));
        assert_eq!(check(b"\xff"), Err(IdentityError::NotUtf8));
        for control in ["a\n", "\0", "\u{7f}", "\u{85}"] {
            assert_eq!(check(control.as_bytes()), Err(IdentityError::Control), "{control:?}");
        }
    }

    #[test]
    fn the_newest_holder_has_the_identity_and_the_older_one_does_not_take_it_along() {
        let mut holders = Holders::default();
        assert_eq!(holders.enter(1, "a"), None);
        assert_eq!(holders.enter(2, "b"), None);
        assert_eq!(holders.enter(3, "a"), Some(1));
        holders.leave(1);
        assert_eq!(holders.enter(4, "a"), Some(3), "the end of the first leaves the second its identity");
        holders.leave(3);
        holders.leave(4);
        holders.leave(9);
        assert_eq!(holders.enter(1, "a"), None);
        holders.leave(1);
        holders.leave(2);
        assert!(holders.is_empty());
        assert_eq!(holders.bytes(), 0);
    }

    #[test]
    fn identities_spread_over_the_shards() {
        let mut counts = [0; 4];
        (0..4_000).for_each(|n| counts[usize::from(shard(&format!("client-{n}"), 4).0)] += 1);
        assert!(counts.iter().all(|&count| (800..1_200).contains(&count)), "{counts:?}");
    }
}
