//! Tokens: any text, claims of any form that are signed with the right key of each kind, static tokens, and key sets.

#![no_main]

use std::sync::{Arc, LazyLock};

use tickcast::{
    auth::{
        Policy,
        key::{Algorithm, signing_key},
        key_set::Keys,
        policy::{Outcome, token_hash},
        revocations::Revocations,
        sign,
    },
    config::{Config, settings::Settings},
};
use tickcast_core::principal::Credentials;

const SECRET: &[u8] = b"a secret of 32 bytes, or somewhat more";
const P256: &[u8] = include_bytes!("../../data/auth/p256.pem");
const ED25519: &[u8] = include_bytes!("../../data/auth/ed25519.pem");
/// A token of the static table.
const STATIC: &str = "0123456789abcdef0123456789abcdef";
/// Seconds since 1970: in 2030.
const NOW_S: u64 = 1_900_000_000;

static POLICY: LazyLock<Arc<Policy>> = LazyLock::new(|| {
    let directory = std::env::temp_dir().join(format!("tickcast-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (secret, file) = (directory.join("secret"), directory.join("tickcast.toml"));
    std::fs::write(&secret, SECRET).unwrap();
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/auth");
    let permissions = "permissions = { sub = { allow = [\"user.{sub}.>\"] } }";
    let key = |algorithm: &str, file: String| {
        format!("[[auth.key]]\nalgorithm = {algorithm:?}\nfile = {file:?}\n{permissions}\n")
    };
    let tables = [
        key("HS256", secret.to_str().unwrap().into()),
        key("ES256", format!("{data}/p256.pub.pem")),
        key("EdDSA", format!("{data}/ed25519.pub.pem")),
        format!("[[auth.token]]\nname = \"machine\"\nsha256 = {:?}\n{permissions}\n", token_hash(STATIC)),
    ];
    std::fs::write(&file, tables.concat()).unwrap();
    let words = ["tickcast", "serve", "--config", file.to_str().unwrap()].map(Into::into);
    let config = Config::new(&Settings::read(&words).unwrap(), None).unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    config.auth.unwrap().policy
});

libfuzzer_sys::fuzz_target!(|input: (u8, &str)| {
    let (kind, text) = input;
    let signed = |algorithm: Algorithm, key: &[u8]| {
        let claims = serde_json::from_str(text).ok()?;
        let (_, key) = signing_key(Some(algorithm), key).unwrap();
        Some(sign(algorithm, &key, None, &claims).unwrap())
    };
    let token = match kind % 6 {
        0 => Some(text.to_owned()),
        1 => signed(Algorithm::Hs256, SECRET),
        2 => {
            let _ = Keys::parse(Algorithm::Es256, text.as_bytes());
            return;
        }
        3 => signed(Algorithm::Es256, P256),
        4 => signed(Algorithm::EdDsa, ED25519),
        _ => Some(format!("{STATIC}{text}")),
    };
    let Some(token) = token.filter(|token| !token.is_empty()) else { return };
    let credentials = Credentials { token: Some(token.clone().into()), certificate: None };
    match POLICY.verify(&credentials, NOW_S, &Revocations::default()) {
        Outcome::Verdict(Ok(principal)) => {
            assert!(token == STATIC || [1, 3, 4].contains(&(kind % 6)), "only what is signed or listed is valid");
            let subject = &principal.subject;
            assert!(!subject.is_empty() && !subject.contains(['.', '*', '>', ' ']), "{subject}");
        }
        Outcome::Verdict(Err(refusal)) => {
            let text = format!("{refusal} {refusal:?}");
            assert!(token.len() < 16 || !text.contains(&token), "the token is a secret");
        }
        Outcome::UnknownKey(..) => panic!("there is no key set"),
    }
});
