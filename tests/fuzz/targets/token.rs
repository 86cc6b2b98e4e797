//! Tokens: any text, claims of any form that are signed with the right key, and key sets.

#![no_main]

use std::sync::{Arc, LazyLock};

use tickcast::{
    auth::{
        Policy,
        key::{Algorithm, signing_key},
        key_set::Keys,
        policy::Outcome,
        revocations::Revocations,
        sign,
    },
    config::{Config, settings::Settings},
};
use tickcast_core::principal::Credentials;

const SECRET: &[u8] = b"a secret of 32 bytes, or somewhat more";
/// Seconds since 1970: in 2030.
const NOW_S: u64 = 1_900_000_000;

static POLICY: LazyLock<Arc<Policy>> = LazyLock::new(|| {
    let directory = std::env::temp_dir().join(format!("tickcast-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (secret, file) = (directory.join("secret"), directory.join("tickcast.toml"));
    std::fs::write(&secret, SECRET).unwrap();
    let permissions = "permissions = { sub = { allow = [\"user.{sub}.>\"] } }";
    std::fs::write(&file, format!("[[auth.key]]\nalgorithm = \"HS256\"\nfile = {secret:?}\n{permissions}\n"))
        .unwrap();
    let words = ["tickcast", "serve", "--config", file.to_str().unwrap()].map(Into::into);
    let config = Config::new(&Settings::read(&words).unwrap(), None).unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    config.auth.unwrap().policy
});

libfuzzer_sys::fuzz_target!(|input: (u8, &str)| {
    let (kind, text) = input;
    let token = match kind % 3 {
        0 => text.to_owned(),
        1 => {
            let Ok(claims) = serde_json::from_str(text) else { return };
            let (_, key) = signing_key(Some(Algorithm::Hs256), SECRET).unwrap();
            sign(Algorithm::Hs256, &key, None, &claims).unwrap()
        }
        _ => {
            let _ = Keys::parse(Algorithm::Es256, text.as_bytes());
            return;
        }
    };
    if token.is_empty() {
        return;
    }
    let credentials = Credentials { token: Some(token.clone().into()), certificate: None };
    match POLICY.verify(&credentials, NOW_S, &Revocations::default()) {
        Outcome::Verdict(Ok(principal)) => {
            assert_eq!(kind % 3, 1, "only what is signed is valid");
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
