//! Authentication: who a client is, from its token or certificate.
//!
//! ```text
//!  shard: Credentials --> bounded queue --> verifier threads --> Verdict --> shard, woken by its doorbell
//!                                             |        ^
//!                                             v        |
//!                                          Policy   Key sets, fetched by a thread of their own
//! ```
//!
//! A [`policy::Policy`] is what `[auth]` of the configuration file says about clients, [`operators::Operators`] what it says about the
//! admin listener. Neither reads a clock or a socket.

pub mod authority;
pub mod claims;
mod fetcher;
pub mod key;
pub mod key_set;
pub mod operators;
pub mod permissions;
pub mod policy;
mod provider;
pub mod revocations;
#[cfg(test)]
pub(crate) mod tests;
pub mod verifiers;

use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Map, Value};

pub use self::{authority::Authority, operators::Operators, policy::Policy};

/// Signs claims: a JSON Web Token.
///
/// # Errors
/// The key cannot sign, and why.
pub fn sign(
    algorithm: key::Algorithm,
    key: &EncodingKey,
    kid: Option<String>,
    claims: &Map<String, Value>,
) -> Result<String, String> {
    provider::install();
    let header = Header { kid, ..Header::new(algorithm.in_header()) };
    jsonwebtoken::encode(&header, claims, key).map_err(|error| format!("the key cannot sign: {error}"))
}
