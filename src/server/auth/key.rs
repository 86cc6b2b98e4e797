//! Keys of JSON Web Tokens, from files and from JSON Web Key Sets.
//!
//! A key is bound to one algorithm: a token whose header names another is not even tried with it. So an RS256 public key can
//! never serve as an HS256 secret, and the algorithm `none` does not exist.

use std::fmt;

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use clap::ValueEnum;
use jsonwebtoken::{DecodingKey, EncodingKey};
use serde::{Deserialize, Serialize};

use crate::limits::{KEY_FILE_BYTES_MAX, SECRET_BYTES_LOWEST};

/// Minimum modulus of an RSA key, in bits (RFC 7518, section 3.3).
const RSA_BITS_LOWEST: usize = 2_048;
/// Maximum modulus of an RSA key, in bits: the largest that ring verifies.
const RSA_BITS_HIGHEST: usize = 8_192;
/// Length of an uncompressed P-256 point, in bytes (SEC 1, section 2.3.3).
const P256_POINT_BYTES: usize = 65;
/// Length of a P-256 coordinate, and of an Ed25519 public key, in bytes.
const COORDINATE_BYTES: usize = 32;

/// 1.2.840.113549.1.1.1, rsaEncryption (RFC 8017, appendix C).
const OID_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
/// 1.2.840.10045.2.1, id-ecPublicKey (RFC 5480, section 2.1.1).
const OID_EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// 1.2.840.10045.3.1.7, secp256r1 (RFC 5480, section 2.1.1.1).
const OID_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// 1.3.101.112, id-Ed25519 (RFC 8410, section 3).
const OID_ED25519: &[u8] = &[0x2b, 0x65, 0x70];

const DER_INTEGER: u8 = 0x02;
const DER_BIT_STRING: u8 = 0x03;
const DER_OCTET_STRING: u8 = 0x04;
const DER_OID: u8 = 0x06;
const DER_SEQUENCE: u8 = 0x30;

/// How a token is signed (RFC 7518, section 3.1; RFC 8037, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
pub enum Algorithm {
    /// HMAC with SHA-256. Issuer and server share a secret.
    #[value(name = "HS256")]
    #[serde(rename = "HS256")]
    Hs256,
    /// RSA PKCS#1 v1.5 with SHA-256.
    #[value(name = "RS256")]
    #[serde(rename = "RS256")]
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    #[value(name = "ES256")]
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519.
    #[value(name = "EdDSA")]
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl Algorithm {
    /// The algorithm named by a token's header; `None` if no key can have it.
    pub fn of_header(named: jsonwebtoken::Algorithm) -> Option<Algorithm> {
        match named {
            jsonwebtoken::Algorithm::HS256 => Some(Algorithm::Hs256),
            jsonwebtoken::Algorithm::RS256 => Some(Algorithm::Rs256),
            jsonwebtoken::Algorithm::ES256 => Some(Algorithm::Es256),
            jsonwebtoken::Algorithm::EdDSA => Some(Algorithm::EdDsa),
            _ => None,
        }
    }

    /// The algorithm's value in a token's header.
    pub fn in_header(self) -> jsonwebtoken::Algorithm {
        match self {
            Algorithm::Hs256 => jsonwebtoken::Algorithm::HS256,
            Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
            Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
            Algorithm::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }

    /// The algorithm's name, as in `alg`.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Hs256 => "HS256",
            Algorithm::Rs256 => "RS256",
            Algorithm::Es256 => "ES256",
            Algorithm::EdDsa => "EdDSA",
        }
    }

    /// The kind of key that the algorithm uses.
    fn key_name(self) -> &'static str {
        match self {
            Algorithm::Hs256 => "a secret",
            Algorithm::Rs256 => "an RSA key",
            Algorithm::Es256 => "a P-256 key",
            Algorithm::EdDsa => "an Ed25519 key",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A key that verifies tokens of one algorithm.
#[derive(Clone)]
pub struct VerifyingKey {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl fmt::Debug for VerifyingKey {
    /// Shows no key material.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyingKey").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl VerifyingKey {
    /// Reads the contents of a key file: a secret for HS256, otherwise a public key in PEM.
    ///
    /// # Errors
    /// Says what is wrong with the key and what to do.
    pub fn from_file(algorithm: Algorithm, content: &[u8]) -> Result<VerifyingKey, String> {
        if algorithm == Algorithm::Hs256 {
            let secret = secret(content)?;
            return Ok(VerifyingKey { algorithm, key: DecodingKey::from_secret(secret) });
        }
        let Some((label, der)) = pem(content) else {
            return Err(format!(
                "holds no key in PEM; {algorithm} takes a public key: openssl pkey -in PRIVATE -pubout"
            ));
        };
        if label.ends_with("PRIVATE KEY") {
            return Err(
                "holds a private key; the server needs only the public one: openssl pkey -in FILE -pubout"
                    .into(),
            );
        }
        let found = match label.as_str() {
            "PUBLIC KEY" => public_key(&der),
            "RSA PUBLIC KEY" => Some((Algorithm::Rs256, der)),
            _ => {
                return Err(format!(
                    "holds a {label}, not a public key: openssl x509 -pubkey or openssl pkey -pubout"
                ));
            }
        };
        let Some((found, key)) = found else {
            return Err("holds a public key of an unknown kind; RSA, P-256 and Ed25519 are known".into());
        };
        if found != algorithm {
            return Err(format!("holds {}, but algorithm is {algorithm}; use {found}", found.key_name()));
        }
        let key = match algorithm {
            Algorithm::Rs256 => {
                let (modulus, exponent) = rsa_components(&key).ok_or("holds a malformed RSA key")?;
                return VerifyingKey::rsa(modulus, exponent);
            }
            Algorithm::Es256 => DecodingKey::from_ec_der(&key),
            Algorithm::EdDsa | Algorithm::Hs256 => DecodingKey::from_ed_der(&key),
        };
        Ok(VerifyingKey { algorithm, key })
    }

    /// Reads a JSON Web Key (RFC 7517) for the algorithm. `None` if it has another type, curve, algorithm or use, or is
    /// malformed. Never reads a secret: issuers do not publish those.
    pub fn from_jwk(algorithm: Algorithm, jwk: &Jwk) -> Option<VerifyingKey> {
        let is_for_signatures = jwk.usage.as_deref().is_none_or(|usage| usage == "sig");
        if !is_for_signatures || jwk.algorithm.as_deref().is_some_and(|named| named != algorithm.name()) {
            return None;
        }
        let bytes = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
        let coordinate = |text| bytes(text).filter(|bytes| bytes.len() == COORDINATE_BYTES);
        let curve = jwk.curve.as_deref().unwrap_or_default();
        match (algorithm, jwk.kind.as_str(), curve) {
            (Algorithm::Rs256, "RSA", _) => VerifyingKey::rsa(&bytes(&jwk.n)?, &bytes(&jwk.e)?).ok(),
            (Algorithm::Es256, "EC", "P-256") => {
                let point = [vec![4], coordinate(&jwk.x)?, coordinate(&jwk.y)?].concat();
                Some(VerifyingKey { algorithm, key: DecodingKey::from_ec_der(&point) })
            }
            (Algorithm::EdDsa, "OKP", "Ed25519") => {
                Some(VerifyingKey { algorithm, key: DecodingKey::from_ed_der(&coordinate(&jwk.x)?) })
            }
            _ => None,
        }
    }

    fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<VerifyingKey, String> {
        let (modulus, exponent) = (unsigned(modulus), unsigned(exponent));
        let bits = 8 * modulus.len() - modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
        if !(RSA_BITS_LOWEST..=RSA_BITS_HIGHEST).contains(&bits) {
            return Err(format!(
                "holds an RSA key of {bits} bits: must be {RSA_BITS_LOWEST} to {RSA_BITS_HIGHEST}"
            ));
        }
        let key = DecodingKey::from_rsa_raw_components(modulus, exponent);
        Ok(VerifyingKey { algorithm: Algorithm::Rs256, key })
    }

    /// The only algorithm that the key is used with.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The key in `jsonwebtoken`'s form.
    pub fn decoding(&self) -> &DecodingKey {
        &self.key
    }
}

/// One key of a JSON Web Key Set. Contains only the members that we use.
#[derive(Debug, Deserialize)]
pub struct Jwk {
    /// Key type.
    #[serde(rename = "kty")]
    pub kind: String,
    /// Key id.
    pub kid: Option<String>,
    /// Intended use: `sig` or `enc`.
    #[serde(rename = "use")]
    pub usage: Option<String>,
    /// Intended algorithm.
    #[serde(rename = "alg")]
    pub algorithm: Option<String>,
    /// Curve.
    #[serde(rename = "crv")]
    pub curve: Option<String>,
    /// RSA modulus.
    pub n: Option<String>,
    /// RSA exponent.
    pub e: Option<String>,
    /// The x coordinate.
    pub x: Option<String>,
    /// The y coordinate.
    pub y: Option<String>,
}

/// Reads a signing key for `tickcast token`, and determines its algorithm.
///
/// # Errors
/// Says what is wrong with the file's contents and what to do.
pub fn signing_key(wanted: Option<Algorithm>, content: &[u8]) -> Result<(Algorithm, EncodingKey), String> {
    let Some((label, der)) = pem(content).filter(|_| wanted != Some(Algorithm::Hs256)) else {
        return match wanted {
            None | Some(Algorithm::Hs256) => {
                Ok((Algorithm::Hs256, EncodingKey::from_secret(secret(content)?)))
            }
            Some(other) => Err(format!("holds no private key in PEM, which {other} needs")),
        };
    };
    let found = match label.as_str() {
        "PRIVATE KEY" => private_key_algorithm(&der),
        "RSA PRIVATE KEY" | "EC PRIVATE KEY" => {
            return Err(format!("holds a {label}; convert it: openssl pkcs8 -topk8 -nocrypt -in FILE"));
        }
        _ => return Err(format!("holds a {label}; a token is signed with a private key")),
    };
    let found = found.ok_or("holds a private key of an unknown kind; RSA, P-256 and Ed25519 are known")?;
    if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
        return Err(format!("holds {}, which {wanted} cannot use", found.key_name()));
    }
    let key = match found {
        Algorithm::Rs256 => EncodingKey::from_rsa_der(&der),
        Algorithm::Es256 => EncodingKey::from_ec_der(&der),
        Algorithm::EdDsa | Algorithm::Hs256 => EncodingKey::from_ed_der(&der),
    };
    Ok((found, key))
}

/// A secret without its trailing newline.
fn secret(content: &[u8]) -> Result<&[u8], String> {
    let secret = content.strip_suffix(b"\n").unwrap_or(content);
    let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
    if content.windows(b"-----BEGIN ".len()).any(|part| part == b"-----BEGIN ") {
        return Err("holds a key in PEM, but HS256 takes a secret; a public key must never be one".into());
    }
    if secret.len() < SECRET_BYTES_LOWEST {
        return Err(format!(
            "holds a secret of {} bytes: must be at least {SECRET_BYTES_LOWEST}, such as from openssl rand -hex 32",
            secret.len()
        ));
    }
    Ok(secret)
}

/// Label and contents of the first PEM block (RFC 7468); `None` if there is none or it is malformed.
fn pem(content: &[u8]) -> Option<(String, Vec<u8>)> {
    let text = std::str::from_utf8(content).ok().filter(|text| text.len() <= KEY_FILE_BYTES_MAX)?;
    let (_, block) = text.split_once("-----BEGIN ")?;
    let (label, block) = block.split_once("-----")?;
    let (body, _) = block.split_once(&format!("-----END {label}-----"))?;
    let body: String = body.split_ascii_whitespace().collect();
    Some((label.to_owned(), STANDARD.decode(body).ok()?))
}

/// Algorithm and key of a SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7), in the form that ring expects.
fn public_key(der: &[u8]) -> Option<(Algorithm, Vec<u8>)> {
    let (info, []) = element(der, DER_SEQUENCE)? else { return None };
    let (identifier, rest) = element(info, DER_SEQUENCE)?;
    let (key, []) = element(rest, DER_BIT_STRING)? else { return None };
    // The first byte is the number of unused bits.
    let key = key.strip_prefix(&[0])?;
    let algorithm = algorithm_of(identifier)?;
    let is_sound = match algorithm {
        Algorithm::Es256 => key.len() == P256_POINT_BYTES && key[0] == 4,
        Algorithm::EdDsa => key.len() == COORDINATE_BYTES,
        _ => true,
    };
    is_sound.then(|| (algorithm, key.to_vec()))
}

/// The algorithm of a PrivateKeyInfo (RFC 5958, section 2).
fn private_key_algorithm(der: &[u8]) -> Option<Algorithm> {
    let (info, _) = element(der, DER_SEQUENCE)?;
    let (_version, rest) = element(info, DER_INTEGER)?;
    let (identifier, rest) = element(rest, DER_SEQUENCE)?;
    element(rest, DER_OCTET_STRING)?;
    algorithm_of(identifier)
}

/// The algorithm in the contents of an AlgorithmIdentifier.
fn algorithm_of(identifier: &[u8]) -> Option<Algorithm> {
    let (oid, parameters) = element(identifier, DER_OID)?;
    match oid {
        OID_RSA => Some(Algorithm::Rs256),
        OID_ED25519 => Some(Algorithm::EdDsa),
        OID_EC if element(parameters, DER_OID)?.0 == OID_P256 => Some(Algorithm::Es256),
        _ => None,
    }
}

/// The modulus and exponent of an RSAPublicKey (RFC 8017, appendix A.1.1), without leading zeros.
fn rsa_components(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (key, []) = element(der, DER_SEQUENCE)? else { return None };
    let (modulus, rest) = element(key, DER_INTEGER)?;
    let (exponent, []) = element(rest, DER_INTEGER)? else { return None };
    Some((unsigned(modulus), unsigned(exponent)))
}

fn unsigned(integer: &[u8]) -> &[u8] {
    &integer[integer.iter().take_while(|byte| **byte == 0).count()..]
}

/// Contents of the leading DER element, if it has this tag, and the bytes after it (X.690, section 8.1). Supports lengths up to
/// 64 KiB.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])), &rest[2..]),
        _ => return None,
    };
    (found == tag && len <= rest.len()).then(|| rest.split_at(len))
}

#[cfg(test)]
mod tests;
