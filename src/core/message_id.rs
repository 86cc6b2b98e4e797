//! Message ids, by which the home of a topic recognises a tick that is published again.
//!
//! ```text
//!  tenant, publisher -> SHA-256 -> scope --+
//!  topic, the client's message id ---------+-> SHA-256 -> digest (128 bits)
//! ```
//!
//! The digest replaces the client's text from the session's shard on: it has one length, and nobody can find an id of another
//! publisher with the same digest. It is not keyed, so that an engine that recognises it does so from every node and after a restart.

use sha2::{Digest, Sha256};

use crate::ids::{SourceId, TenantId};

/// Who publishes. Message ids of different publishers never match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publisher<'a> {
    /// A client that has proven who it is.
    Proven(&'a str),
    /// A client that has proven nothing, with the identity that it claims; empty: none.
    Claimed(&'a str),
}

/// A message id, as homes remember it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageId {
    /// Of tenant, publisher, topic and the client's message id.
    pub digest: [u8; DIGEST_BYTES],
    /// Whose share of the memory it takes: a tenant's, a proven client's, or an address's.
    pub account: u64,
}

/// Bytes of a digest. Finding a text with a given digest takes 2^128 attempts.
pub const DIGEST_BYTES: usize = 16;

/// Bytes of a message id between shards.
pub const MESSAGE_ID_BYTES: usize = DIGEST_BYTES + size_of::<u64>();

/// Set in the account of an address, and of a tenant.
const SOURCE_ACCOUNT: u64 = 1 << 32;
const TENANT_ACCOUNT: u64 = 1 << 33;

impl MessageId {
    /// The id of a tick. `tenant`: the namespace of the topic, and its name, which is the same on every node.
    pub fn new(
        (tenant, tenant_name): (TenantId, &str),
        publisher: Publisher<'_>,
        source: SourceId,
        topic: &str,
        message_id: &[u8],
    ) -> MessageId {
        let (mark, name) = match publisher {
            Publisher::Claimed(name) => (0, name),
            Publisher::Proven(name) => (1, name),
        };
        let mut hash = Sha256::new();
        hash.update((tenant_name.len() as u64).to_le_bytes());
        hash.update(tenant_name);
        hash.update([mark]);
        hash.update(name);
        let scope = hash.finalize();
        let account = match publisher {
            _ if tenant != TenantId::DEFAULT => TENANT_ACCOUNT | u64::from(tenant.0),
            Publisher::Claimed(_) => SOURCE_ACCOUNT | u64::from(source.0),
            Publisher::Proven(_) => u64::from_le_bytes(first(&scope)),
        };
        let mut hash = Sha256::new();
        hash.update(scope);
        hash.update((topic.len() as u64).to_le_bytes());
        hash.update(topic);
        hash.update(message_id);
        MessageId { digest: first(&hash.finalize()), account }
    }

    /// Its bytes between shards.
    pub fn to_bytes(self) -> [u8; MESSAGE_ID_BYTES] {
        let mut bytes = [0; MESSAGE_ID_BYTES];
        bytes[..DIGEST_BYTES].copy_from_slice(&self.digest);
        bytes[DIGEST_BYTES..].copy_from_slice(&self.account.to_le_bytes());
        bytes
    }

    /// The id with these bytes. `None` if there is none: they are empty.
    pub fn from_bytes(bytes: &[u8]) -> Option<MessageId> {
        let (digest, account) = bytes.split_first_chunk()?;
        Some(MessageId { digest: *digest, account: u64::from_le_bytes(account.try_into().ok()?) })
    }
}

/// The first bytes of a hash.
fn first<const N: usize>(hash: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.iter_mut().zip(hash).for_each(|(byte, of_hash)| *byte = *of_hash);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: (TenantId, &str) = (TenantId::DEFAULT, "");

    fn id(tenant: (TenantId, &str), publisher: Publisher<'_>, topic: &str, text: &str) -> MessageId {
        MessageId::new(tenant, publisher, SourceId(7), topic, text.as_bytes())
    }

    #[test]
    fn ids_match_only_of_the_same_tenant_publisher_topic_and_text() {
        use Publisher::{Claimed, Proven};
        let same = id(DEFAULT, Proven("ann"), "a.b", "1");
        assert_eq!(id(DEFAULT, Proven("ann"), "a.b", "1"), same);
        let others = [
            id((TenantId(1), "t"), Proven("ann"), "a.b", "1"),
            id((TenantId(2), "tann"), Proven(""), "a.b", "1"),
            id(DEFAULT, Proven("bob"), "a.b", "1"),
            id(DEFAULT, Claimed("ann"), "a.b", "1"),
            id(DEFAULT, Claimed(""), "a.b", "1"),
            id(DEFAULT, Proven("ann"), "a", ".b1"),
            id(DEFAULT, Proven("ann"), "a.b1", ""),
            id(DEFAULT, Proven("ann"), "a.b", "2"),
        ];
        for (at, other) in others.iter().enumerate() {
            assert_ne!(other.digest, same.digest, "{at}");
            assert!(others[..at].iter().all(|before| before.digest != other.digest), "{at}");
        }
    }

    #[test]
    fn memory_is_shared_by_tenant_proven_client_or_address() {
        use Publisher::{Claimed, Proven};
        let account = |tenant, publisher| id(tenant, publisher, "a", "1").account;
        let tenant = (TenantId(3), "t");
        assert_eq!(account(tenant, Proven("ann")), account(tenant, Claimed("bob")));
        assert_eq!(account(DEFAULT, Claimed("ann")), account(DEFAULT, Claimed("bob")), "of one address");
        assert_ne!(account(DEFAULT, Proven("ann")), account(DEFAULT, Proven("bob")));
        assert_ne!(account(DEFAULT, Claimed("ann")), account(tenant, Claimed("ann")));
    }

    #[test]
    fn an_id_reads_back_from_its_bytes() {
        let id = id(DEFAULT, Publisher::Proven("ann"), "a.b", "1");
        assert_eq!(MessageId::from_bytes(&id.to_bytes()), Some(id));
        assert_eq!(MessageId::from_bytes(&[]), None);
    }

    #[test]
    fn digests_are_the_same_on_every_node() {
        let id = id((TenantId(9), "t"), Publisher::Proven("ann"), "a.b", "1");
        let hex: String = id.digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "1f1bda69221d364cde608c37af925c3d");
    }
}
