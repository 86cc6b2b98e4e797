//! Who a client says it is: the rule of identities, the shard that serves one, and who holds one now.
//!
//! An identity is a client's own word, not a proof: it decides where a client is served and which connection is taken
//! for an older one of the same client, nothing else.

use std::fmt;

use crate::limits::IDENTITY_BYTES_MAX;

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
}
