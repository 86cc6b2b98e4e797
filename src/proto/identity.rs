//! Client identities and the rules they follow.
//!
//! An identity is a claim, not a credential. It decides only which shard serves the client and which earlier connection
//! belongs to the same client.

use std::fmt;

use crate::limits::IDENTITY_BYTES_MAX;

/// The rule that an identity violates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityError {
    /// Empty, or longer than 255 bytes. Contains the length.
    Length(usize),
    /// Not UTF-8.
    NotUtf8,
    /// Contains a control character.
    Control,
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IdentityError::Length(len) => {
                write!(f, "client identity is {len} bytes long; 1 to {IDENTITY_BYTES_MAX} are allowed")
            }
            IdentityError::NotUtf8 => write!(f, "client identity is not UTF-8"),
            IdentityError::Control => write!(f, "client identity contains a control character"),
        }
    }
}

impl std::error::Error for IdentityError {}

/// Checks an identity and returns it as text.
///
/// # Errors
/// The first rule violated.
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
    fn identity_is_short_utf8_without_control_characters() {
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
