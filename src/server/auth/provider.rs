//! Signs and verifies with ring, which TLS uses too. `jsonwebtoken` calls it as its crypto provider.
//!
//! ring compares HMACs in constant time, and checks the form of every public key and signature.

use std::sync::Once;

use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind, EncodingKey,
    crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
    errors::{Error, ErrorKind},
    signature::{self as traits, Signer, Verifier},
};
use ring::{
    hmac,
    rand::SystemRandom,
    signature::{self, EcdsaKeyPair, Ed25519KeyPair, RsaKeyPair, RsaPublicKeyComponents, UnparsedPublicKey},
};

/// The provider that `jsonwebtoken` calls. Its key utilities, which create JSON Web Keys, are not used.
static RING: CryptoProvider = CryptoProvider {
    signer_factory: signer,
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes ring the crypto provider of this process. Without a provider, `jsonwebtoken` panics when first used.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let installed = RING.install_default();
        debug_assert!(installed.is_ok(), "nothing else installs a provider");
    });
}

/// A key pair for signing.
enum Signing {
    Hmac(hmac::Key),
    Rsa(Box<RsaKeyPair>),
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// A key for verifying.
enum Verifying {
    Hmac(hmac::Key),
    Rsa(RsaPublicKeyComponents<Vec<u8>>),
    Other(UnparsedPublicKey<Vec<u8>>),
}

/// A key with the only algorithm that it is used with.
struct WithAlgorithm<K>(Algorithm, K);

fn signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>, Error> {
    if algorithm.family() != key.family() {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    let bytes = key.as_bytes();
    let key = match algorithm {
        Algorithm::HS256 => Signing::Hmac(hmac::Key::new(hmac::HMAC_SHA256, bytes)),
        Algorithm::RS256 => {
            let pair = RsaKeyPair::from_pkcs8(bytes);
            Signing::Rsa(Box::new(pair.map_err(|error| ErrorKind::InvalidRsaKey(error.to_string()))?))
        }
        Algorithm::ES256 => {
            let signing = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
            let pair = EcdsaKeyPair::from_pkcs8(signing, bytes, &SystemRandom::new());
            Signing::Ecdsa(pair.map_err(|_| ErrorKind::InvalidEcdsaKey)?)
        }
        // OpenSSL writes such keys without the public half; ring then computes it.
        Algorithm::EdDSA => Signing::Ed25519(
            Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes).map_err(|_| ErrorKind::InvalidEddsaKey)?,
        ),
        _ => return Err(ErrorKind::UnsupportedAlgorithm.into()),
    };
    Ok(Box::new(WithAlgorithm(*algorithm, key)))
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    // A public key is never an HMAC secret, whatever the header says.
    if algorithm.family() != key.family() {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    let key = match (algorithm, key.kind()) {
        (Algorithm::HS256, DecodingKeyKind::SecretOrDer(secret)) => {
            Verifying::Hmac(hmac::Key::new(hmac::HMAC_SHA256, secret))
        }
        (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
            Verifying::Rsa(RsaPublicKeyComponents { n: n.clone(), e: e.clone() })
        }
        (Algorithm::ES256, DecodingKeyKind::SecretOrDer(point)) => {
            Verifying::Other(UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point.clone()))
        }
        (Algorithm::EdDSA, DecodingKeyKind::SecretOrDer(key)) => {
            Verifying::Other(UnparsedPublicKey::new(&signature::ED25519, key.clone()))
        }
        _ => return Err(ErrorKind::UnsupportedAlgorithm.into()),
    };
    Ok(Box::new(WithAlgorithm(*algorithm, key)))
}

impl Signer<Vec<u8>> for WithAlgorithm<Signing> {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, traits::Error> {
        let random = SystemRandom::new();
        match &self.1 {
            Signing::Hmac(key) => Ok(hmac::sign(key, message).as_ref().to_vec()),
            Signing::Rsa(pair) => {
                let mut signed = vec![0; pair.public().modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA256, &random, message, &mut signed)
                    .map_err(|_| traits::Error::new())?;
                Ok(signed)
            }
            Signing::Ecdsa(pair) => {
                let signed = pair.sign(&random, message).map_err(|_| traits::Error::new())?;
                Ok(signed.as_ref().to_vec())
            }
            Signing::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
        }
    }
}

impl JwtSigner for WithAlgorithm<Signing> {
    fn algorithm(&self) -> Algorithm {
        self.0
    }
}

impl Verifier<Vec<u8>> for WithAlgorithm<Verifying> {
    fn verify(&self, message: &[u8], signed: &Vec<u8>) -> Result<(), traits::Error> {
        let verified = match &self.1 {
            Verifying::Hmac(key) => hmac::verify(key, message, signed),
            Verifying::Rsa(key) => key.verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signed),
            Verifying::Other(key) => key.verify(message, signed),
        };
        verified.map_err(|_| traits::Error::new())
    }
}

impl JwtVerifier for WithAlgorithm<Verifying> {
    fn algorithm(&self) -> Algorithm {
        self.0
    }
}
