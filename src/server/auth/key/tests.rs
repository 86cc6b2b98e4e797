use super::*;

macro_rules! data {
    ($name:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/auth/", $name))
    };
}

const ALL: [Algorithm; 4] = [Algorithm::Hs256, Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa];

fn refused(algorithm: Algorithm, content: &[u8]) -> String {
    VerifyingKey::from_file(algorithm, content).unwrap_err()
}

#[test]
fn a_key_from_openssl_is_read_for_its_algorithm_and_refused_for_all_others() {
    for (own, content) in [
        (Algorithm::Hs256, &data!("hs256.txt")[..]),
        (Algorithm::Rs256, data!("rsa.pub.pem")),
        (Algorithm::Rs256, data!("rsa-pkcs1.pub.pem")),
        (Algorithm::Es256, data!("p256.pub.pem")),
        (Algorithm::EdDsa, data!("ed25519.pub.pem")),
    ] {
        for algorithm in ALL {
            let key = VerifyingKey::from_file(algorithm, content);
            assert_eq!(key.is_ok(), algorithm == own, "{own} as {algorithm}: {key:?}");
        }
    }
}

#[test]
fn a_public_key_is_never_taken_for_a_secret() {
    for content in [&data!("rsa.pub.pem")[..], data!("ed25519.pub.pem"), data!("p256.pem")] {
        assert!(refused(Algorithm::Hs256, content).contains("PEM"));
        let behind_text = [&b"some text\n"[..], content].concat();
        assert!(refused(Algorithm::Hs256, &behind_text).contains("PEM"));
    }
}

#[test]
fn a_key_that_is_too_weak_or_of_the_wrong_kind_is_refused_with_what_to_do() {
    for (algorithm, content, part) in [
        (Algorithm::Hs256, &b"short"[..], "5 bytes: must be at least 32"),
        (Algorithm::Hs256, b"0123456789012345678901234567890\r\n", "31 bytes"),
        (Algorithm::Hs256, b"", "openssl rand"),
        (Algorithm::Rs256, data!("rsa1024.pub.pem"), "1024 bits"),
        (Algorithm::Rs256, data!("rsa.pem"), "private key"),
        (Algorithm::Es256, data!("p256-sec1.pem"), "private key"),
        (Algorithm::Es256, data!("p384.pub.pem"), "unknown kind"),
        (Algorithm::Es256, data!("ed25519.pub.pem"), "holds an Ed25519 key, but algorithm is ES256"),
        (Algorithm::EdDsa, b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----", "CERTIFICATE"),
        (Algorithm::EdDsa, b"not PEM", "no key in PEM"),
        (Algorithm::EdDsa, b"\xff\xfe", "no key in PEM"),
    ] {
        let text = refused(algorithm, content);
        assert!(text.contains(part), "{algorithm}: {text}");
    }
    assert!(VerifyingKey::from_file(Algorithm::Hs256, b"01234567890123456789012345678901\n").is_ok());
}

#[test]
fn truncated_and_changed_keys_are_refused_or_read_but_never_panic() {
    for (algorithm, content) in [
        (Algorithm::Rs256, &data!("rsa.pub.pem")[..]),
        (Algorithm::Es256, data!("p256.pub.pem")),
        (Algorithm::EdDsa, data!("ed25519.pub.pem")),
    ] {
        let (label, der) = pem(content).unwrap();
        for len in 0..der.len() {
            let whole =
                format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(&der[..len]));
            assert!(VerifyingKey::from_file(algorithm, whole.as_bytes()).is_err(), "{len}");
        }
        for at in 0..der.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut changed = der.clone();
                changed[at] ^= change;
                let _ = public_key(&changed).map(|(_, key)| rsa_components(&key).map(|_| ()));
                let _ = private_key_algorithm(&changed);
            }
        }
        for len in 0..content.len() {
            let _ = VerifyingKey::from_file(algorithm, &content[..len]);
        }
    }
}

#[test]
fn a_private_key_signs_with_its_algorithm() {
    for (algorithm, content) in [
        (Algorithm::Hs256, &data!("hs256.txt")[..]),
        (Algorithm::Rs256, data!("rsa.pem")),
        (Algorithm::Es256, data!("p256.pem")),
        (Algorithm::EdDsa, data!("ed25519.pem")),
    ] {
        assert_eq!(signing_key(None, content).map(|(found, _)| found), Ok(algorithm));
        assert!(signing_key(Some(algorithm), content).is_ok());
        for other in ALL.into_iter().filter(|other| *other != algorithm) {
            assert!(signing_key(Some(other), content).is_err(), "{algorithm} as {other}");
        }
    }
    let refused = |content: &[u8]| signing_key(None, content).map(|_| ()).unwrap_err();
    assert!(refused(data!("p256-sec1.pem")).contains("openssl pkcs8"));
    assert!(refused(data!("p256.pub.pem")).contains("private key"));
}
