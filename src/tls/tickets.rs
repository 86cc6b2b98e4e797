//! Session tickets under keys that are plain data, so that all shards, and a restarted server, accept each other's tickets.
//!
//! ```text
//! ticket:  | name of its key, 16 | nonce, 12 | sealed: | seconds since 1970, 8 | state of the session | | tag, 16 |
//! ```
//!
//! A resumed session does not present its client certificate again, and the authorities are not checked. So each context, such as
//! a listener with its authorities, derives its own keys from the server's, and a ticket of one context is invalid in another.
//! rustls does not check a ticket's age, so we reject those older than [`TICKET_LIFETIME_S`], however long the key lives.

use std::sync::{Arc, PoisonError, RwLock};

use ring::{
    aead::{self, Aad, LessSafeKey, Nonce, UnboundKey},
    hkdf,
    rand::{SecureRandom, SystemRandom},
};
use rustls::server::ProducesTickets;
use zeroize::Zeroizing;

/// Length of a ticket key in bytes: a name and an AEAD key.
pub const TICKET_KEY_BYTES: usize = NAME_BYTES + 32;
/// Maximum keys in use: the first seals new tickets; all of them open tickets.
pub const TICKET_KEYS_MAX: usize = 4;
/// How long a ticket is accepted. Rotate the keys at the same interval.
pub const TICKET_LIFETIME_S: u32 = 12 * 3_600;
/// How far the clock of another server with the same keys may be ahead of ours.
const CLOCK_SKEW_S: u64 = 60;
const NAME_BYTES: usize = 16;
const NONCE_BYTES: usize = 12;
/// Length of the time of issue, in bytes.
const TIME_BYTES: usize = 8;

/// The caller's clock: returns seconds since 1970.
pub type ClockS = fn() -> u64;

/// A ticket key, cleared when dropped.
pub type TicketKey = Zeroizing<[u8; TICKET_KEY_BYTES]>;

struct Key {
    name: [u8; NAME_BYTES],
    sealing: LessSafeKey,
}

struct KeyLength;

impl hkdf::KeyType for KeyLength {
    fn len(&self) -> usize {
        TICKET_KEY_BYTES
    }
}

impl Key {
    /// Derives a context's key from a server's key (RFC 5869).
    fn derived(key: &TicketKey, context: &[u8]) -> Option<Key> {
        let mut bytes = Zeroizing::new([0; TICKET_KEY_BYTES]);
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, b"tickcast session tickets").extract(&**key);
        secret.expand(&[context], KeyLength).ok()?.fill(&mut *bytes).ok()?;
        let (name, sealing) = bytes.split_first_chunk()?;
        let sealing = UnboundKey::new(&aead::CHACHA20_POLY1305, sealing).ok()?;
        Some(Key { name: *name, sealing: LessSafeKey::new(sealing) })
    }
}

/// The ticket keys of a server, shared by the handshakes of all threads.
#[derive(Clone)]
pub struct TicketKeys {
    keys: Arc<RwLock<Vec<TicketKey>>>,
    now_s: ClockS,
}

impl std::fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TicketKeys")
    }
}

impl TicketKeys {
    /// Uses existing keys, newest first: at most [`TICKET_KEYS_MAX`]; further ones are ignored.
    pub fn new(keys: &[TicketKey], now_s: ClockS) -> TicketKeys {
        let tickets = TicketKeys { keys: Arc::default(), now_s };
        tickets.replace(keys);
        tickets
    }

    /// Creates a random key for this process.
    ///
    /// # Errors
    /// The system cannot provide random numbers.
    pub fn random(now_s: ClockS) -> Result<TicketKeys, ring::error::Unspecified> {
        Ok(TicketKeys::new(&[random_key()?], now_s))
    }

    /// Reads keys from a file's bytes: [`TICKET_KEY_BYTES`] each, newest first. `None` if it is empty, has too many, or ends
    /// within a key.
    pub fn read(bytes: &[u8]) -> Option<Vec<TicketKey>> {
        let (keys, rest) = bytes.as_chunks::<TICKET_KEY_BYTES>();
        let is_whole = rest.is_empty() && (1..=TICKET_KEYS_MAX).contains(&keys.len());
        is_whole.then(|| keys.iter().map(|key| Zeroizing::new(*key)).collect())
    }

    /// Replaces all keys. Tickets under other keys are no longer accepted.
    pub fn replace(&self, keys: &[TicketKey]) {
        let keys = keys.iter().take(TICKET_KEYS_MAX).cloned().collect();
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// Creates a random key that seals new tickets, and drops the key before the previous one.
    ///
    /// # Errors
    /// The system cannot provide random numbers. The old key remains.
    pub fn rotate(&self) -> Result<(), ring::error::Unspecified> {
        let key = random_key()?;
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        keys.insert(0, key);
        keys.truncate(2);
        Ok(())
    }

    /// Creates the tickets of a context, which are invalid in any other.
    pub fn for_context(&self, context: &[u8]) -> Tickets {
        Tickets { keys: self.clone(), context: context.into() }
    }
}

/// Issues and accepts the tickets of one context. Each takes a lock and derives a key: 2 us in addition to the 80 us of a
/// handshake.
#[derive(Clone, Debug)]
pub struct Tickets {
    keys: TicketKeys,
    context: Arc<[u8]>,
}

impl Tickets {
    fn derived(&self, find: impl Fn(&Key) -> bool) -> Option<Key> {
        let keys = self.keys.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.iter().filter_map(|key| Key::derived(key, &self.context)).find(find)
    }

    fn seal(&self, state: &[u8]) -> Option<Vec<u8>> {
        let key = self.derived(|_| true)?;
        let mut nonce = [0; NONCE_BYTES];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let issued_s = (self.keys.now_s)().to_be_bytes();
        let mut ticket = [&key.name[..], &nonce, &issued_s, state].concat();
        let (aad, nonce) = (Aad::from(key.name), Nonce::assume_unique_for_key(nonce));
        let sealed = &mut ticket[NAME_BYTES + NONCE_BYTES..];
        let tag = key.sealing.seal_in_place_separate_tag(nonce, aad, sealed).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn open(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME_BYTES>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>()?;
        let key = self.derived(|key| key.name == *name)?;
        let (aad, nonce) = (Aad::from(key.name), Nonce::assume_unique_for_key(*nonce));
        let mut sealed = sealed.to_vec();
        let opened = key.sealing.open_in_place(nonce, aad, &mut sealed).ok()?;
        let (issued_s, state) = opened.split_first_chunk::<TIME_BYTES>()?;
        let (issued_s, now_s) = (u64::from_be_bytes(*issued_s), (self.keys.now_s)());
        let is_current = issued_s <= now_s.saturating_add(CLOCK_SKEW_S)
            && now_s.saturating_sub(issued_s) <= u64::from(TICKET_LIFETIME_S);
        is_current.then(|| state.to_vec())
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        TICKET_LIFETIME_S
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.open(cipher)
    }
}

fn random_key() -> Result<TicketKey, ring::error::Unspecified> {
    let mut key = Zeroizing::new([0; TICKET_KEY_BYTES]);
    SystemRandom::new().fill(&mut *key)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn key(byte: u8) -> TicketKey {
        Zeroizing::new([byte; TICKET_KEY_BYTES])
    }

    fn tickets(keys: &[TicketKey]) -> Tickets {
        TicketKeys::new(keys, now_s).for_context(b"listener")
    }

    thread_local! {
        static NOW_S: Cell<u64> = const { Cell::new(1_900_000_000) };
    }

    fn now_s() -> u64 {
        NOW_S.get()
    }

    #[test]
    fn a_ticket_is_opened_by_whoever_has_its_key_and_by_nobody_else() {
        let ours = tickets(&[key(1)]);
        let ticket = ours.seal(b"state").unwrap();
        assert_eq!(tickets(&[key(2), key(1)]).open(&ticket).unwrap(), b"state");
        assert_eq!(tickets(&[key(2)]).open(&ticket), None);
        assert_eq!(ours.keys.for_context(b"another listener").open(&ticket), None);
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(ours.open(&changed), None, "byte {at}");
            assert_eq!(ours.open(&ticket[..at]), None, "{at} bytes");
        }
        assert_ne!(ours.seal(b"state"), Some(ticket), "each has a nonce of its own");
    }

    #[test]
    fn a_ticket_is_accepted_for_its_lifetime_and_not_from_the_future() {
        let tickets = tickets(&[key(1)]);
        let ticket = tickets.seal(b"state").unwrap();
        let issued_s = now_s();
        let is_accepted_at = |at_s| {
            NOW_S.set(at_s);
            tickets.open(&ticket).is_some()
        };
        let lifetime_s = u64::from(TICKET_LIFETIME_S);
        assert!(is_accepted_at(issued_s) && is_accepted_at(issued_s + lifetime_s));
        assert!(!is_accepted_at(issued_s + lifetime_s + 1) && !is_accepted_at(u64::MAX));
        // The clock of the issuing server may be slightly ahead.
        assert!(is_accepted_at(issued_s - CLOCK_SKEW_S));
        assert!(!is_accepted_at(issued_s - CLOCK_SKEW_S - 1) && !is_accepted_at(0));
    }

    #[test]
    fn a_ticket_outlives_one_rotation_and_not_two() {
        let keys = TicketKeys::random(now_s).unwrap();
        let tickets = keys.for_context(b"");
        let ticket = tickets.seal(b"state").unwrap();
        keys.rotate().unwrap();
        assert_eq!(tickets.open(&ticket).unwrap(), b"state");
        keys.rotate().unwrap();
        assert_eq!(tickets.open(&ticket), None);
    }

    #[test]
    fn a_file_of_keys_has_whole_keys_and_not_too_many() {
        for (len, keys) in
            [(0, None), (47, None), (48, Some(1)), (96, Some(2)), (100, None), (192, Some(4)), (240, None)]
        {
            assert_eq!(TicketKeys::read(&vec![7; len]).map(|keys| keys.len()), keys, "{len} bytes");
        }
    }
}
