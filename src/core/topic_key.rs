//! Keys of topics and patterns: a tenant and a name in one text.
//!
//! ```text
//!  default tenant    prices.eu
//!  tenant 3          ^A U+0103 . prices.eu
//! ```
//!
//! Two tenants may use the same names, so every table that finds a topic needs both. One text carries both everywhere: the hash
//! that finds the home, the tables of topics, the pattern tries (where the tenant is the first step), positions, and the frames
//! between shards. So nothing there knows about tenants, no table can forget to compare them, and the default tenant, whose keys
//! are the names themselves, costs nothing. Clients only ever see the name.
//!
//! No client can write another tenant's key: names and patterns from clients contain no control characters
//! ([`pattern::check_topic`]). No wildcard reaches into another tenant: a tenant's patterns begin with the tenant, and the
//! default tenant's patterns match no token that begins with the mark ([`crate::pattern_trie`], [`matches()`]).

use std::borrow::Cow;

use crate::{
    ids::TenantId,
    limits::{TENANTS_MAX, TOPIC_BYTES_MAX},
};
use tickcast_proto::pattern;

/// First byte of a topic's key, except the default tenant's.
const MARK: u8 = 1;

/// The character of tenant 0. Every tenant's character takes two bytes, and none is a control character or whitespace.
const TENANT_FIRST: u32 = 0x100;

const _: () = assert!(TENANT_FIRST as usize + TENANTS_MAX <= 0x800, "a tenant's character takes two bytes");

/// Bytes before the name, except for the default tenant.
pub const PREFIX_BYTES: usize = 4;

/// Maximum length of a key, in bytes.
pub const KEY_BYTES_MAX: usize = PREFIX_BYTES + TOPIC_BYTES_MAX;

/// Returns the key of a topic or pattern. Allocates unless the tenant is the default.
pub fn of(tenant: TenantId, name: &str) -> Cow<'_, str> {
    if tenant == TenantId::DEFAULT {
        return Cow::Borrowed(name);
    }
    let mut key = String::with_capacity(PREFIX_BYTES + name.len());
    push(&mut key, tenant, name);
    Cow::Owned(key)
}

/// Stack space for the key of one topic, so that publishing a tick does not allocate.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeyBuffer(Option<[u8; KEY_BYTES_MAX]>);

impl KeyBuffer {
    /// Returns the key of a topic, whose name must be valid. Copies the name unless the tenant is the default.
    pub fn key<'a>(&'a mut self, tenant: TenantId, name: &'a str) -> &'a str {
        if tenant == TenantId::DEFAULT {
            return name;
        }
        let len = PREFIX_BYTES + name.len();
        debug_assert!(len <= KEY_BYTES_MAX, "names are checked where they come in");
        let Some(key) = self.0.insert([0; KEY_BYTES_MAX]).get_mut(..len) else { return name };
        let (prefix, rest) = key.split_at_mut(PREFIX_BYTES);
        prefix.copy_from_slice(&prefix_of(tenant));
        rest.copy_from_slice(name.as_bytes());
        std::str::from_utf8(key).unwrap_or_else(|_| unreachable!("a prefix and a name, both UTF-8"))
    }
}

/// The prefix before the name.
fn prefix_of(TenantId(tenant): TenantId) -> [u8; PREFIX_BYTES] {
    let character = TENANT_FIRST as u16 + tenant;
    [MARK, 0xc0 | (character >> 6) as u8, 0x80 | (character & 0x3f) as u8, b'.']
}

/// Appends the key of a topic or pattern.
pub fn push(out: &mut String, tenant: TenantId, name: &str) {
    if tenant != TenantId::DEFAULT {
        let prefix = prefix_of(tenant);
        let prefix = std::str::from_utf8(&prefix);
        out.push_str(prefix.unwrap_or_else(|_| unreachable!("two bytes of one character, and ASCII")));
    }
    out.push_str(name);
}

/// Whether a key, or its first token, belongs to a tenant other than the default.
#[inline]
pub fn has_tenant(key: &str) -> bool {
    key.as_bytes().first() == Some(&MARK)
}

/// Returns the tenant and the name of a key.
#[inline]
pub fn split(key: &str) -> (TenantId, &str) {
    match key.as_bytes() {
        [MARK, first, second, b'.', ..] => {
            let tenant = (u32::from(first & 0x1f) << 6 | u32::from(second & 0x3f)).wrapping_sub(TENANT_FIRST);
            (TenantId(tenant as u16), key.get(PREFIX_BYTES..).unwrap_or_default())
        }
        _ => (TenantId::DEFAULT, key),
    }
}

/// Returns the name of a key: what clients and operators see.
#[inline]
pub fn name(key: &str) -> &str {
    split(key).1
}

/// Whether a pattern matches a topic of its own tenant, both as keys. Does not allocate.
pub fn matches(pattern: &str, topic: &str) -> bool {
    let ((of_pattern, pattern), (of_topic, topic)) = (split(pattern), split(topic));
    of_pattern == of_topic && pattern::matches(pattern, topic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tickcast_proto::pattern::{check_pattern, check_topic};

    #[test]
    fn a_key_has_exactly_one_tenant_and_name() {
        for tenant in (0..TENANTS_MAX as u16).map(TenantId) {
            for name in ["a", "prices.eu", "é.*.>", "\u{100}.a"] {
                let key = of(tenant, name);
                assert_eq!(KeyBuffer::default().key(tenant, name), key);
                assert_eq!(split(&key), (tenant, name));
                assert_eq!(key.len(), name.len() + if tenant.0 == 0 { 0 } else { PREFIX_BYTES });
                assert_eq!(has_tenant(&key), tenant.0 != 0);
            }
        }
    }

    #[test]
    fn no_client_can_write_the_key_of_another_tenant() {
        for tenant in (1..TENANTS_MAX as u16).map(TenantId) {
            let key = of(tenant, "a");
            assert!(check_topic(key.as_bytes()).is_err() && check_pattern(key.as_bytes()).is_err());
        }
    }

    #[test]
    fn no_pattern_matches_a_topic_of_another_tenant() {
        let tenants = [0, 1, 2, 1_023].map(TenantId);
        for (a, b) in tenants.iter().flat_map(|a| tenants.map(|b| (*a, b))) {
            for pattern in [">", "*", "*.>", "*.*", "*.a", "a.b", "a.*", "a.>"] {
                assert_eq!(
                    matches(&of(a, pattern), &of(b, "a.b")),
                    a == b && pattern::matches(pattern, "a.b"),
                    "{pattern} of {a:?}, topic of {b:?}"
                );
            }
        }
    }
}
