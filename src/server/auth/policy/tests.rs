use std::fs;

use serde_json::json;

use super::*;
use crate::{
    auth::{
        key::{self, Algorithm},
        key_set::Request,
        permissions::RulesTable,
        sign,
        tests::{NOW_S, SIGNERS, data, ed25519_keys, signed, verdict_at, with_token},
    },
    cli::values::Time,
    config::auth::{AnonymousTable, CertificateTable, TokenTable},
};
use tickcast_core::principal::{ClientCertificate, Revocation};

const MACHINE_TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn allowed(pattern: &str) -> PermissionsTable {
    let sub = RulesTable { allow: vec![pattern.into()], deny: Vec::new() };
    PermissionsTable { sub, ..Default::default() }
}

fn key_table(algorithm: Algorithm, file: &str) -> KeyTable {
    KeyTable {
        algorithm: Some(algorithm),
        file: Some(data(file)),
        permissions: allowed("user.{sub}.>"),
        ..Default::default()
    }
}

/// One key of each algorithm. None may pass for another.
fn tables() -> AuthTables {
    AuthTables {
        keys: vec![
            key_table(Algorithm::Hs256, "hs256.txt"),
            key_table(Algorithm::Rs256, "rsa.pub.pem"),
            key_table(Algorithm::Es256, "p256.pub.pem"),
            key_table(Algorithm::EdDsa, "ed25519.pub.pem"),
        ],
        tokens: vec![TokenTable {
            name: "collector".into(),
            sha256: token_hash(MACHINE_TOKEN),
            tenant: String::new(),
            permissions: allowed(">"),
        }],
        certificates: vec![CertificateTable {
            name: "feed.example".into(),
            tenant: String::new(),
            permissions: allowed("feed.>"),
        }],
        ..Default::default()
    }
}

fn claims() -> Value {
    json!({"sub": "alice", "exp": NOW_S + 60})
}

fn verdict(policy: &Policy, token: &str) -> Result<Arc<Principal>, AuthRefusal> {
    verdict_at(policy, &with_token(token), NOW_S)
}

/// The refusal's text, which must not contain any part of the token.
fn invalid_text(policy: &Policy, token: &str) -> String {
    match verdict(policy, token) {
        Err(AuthRefusal::Invalid(text)) => {
            let parts = token.split('.').filter(|part| part.len() > 3);
            parts.for_each(|part| assert!(!text.contains(part), "{text}"));
            text.into()
        }
        other => panic!("{token}: {other:?}"),
    }
}

fn encoded(json: &str) -> String {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    URL_SAFE_NO_PAD.encode(json)
}

#[test]
fn a_token_of_each_algorithm_is_valid() {
    let policy = Builder::build(&tables(), true).unwrap();
    for (algorithm, _) in SIGNERS {
        let principal = verdict(&policy, &signed(algorithm, None, &claims())).unwrap();
        assert_eq!(&*principal.subject, "alice", "{algorithm}");
        assert!(principal.permissions.subscribe.permits("user.alice.x"));
        assert!(!principal.permissions.subscribe.permits("user.bob.x"));
    }
}

#[test]
fn every_changed_byte_of_a_token_makes_it_invalid() {
    let policy = Builder::build(&tables(), true).unwrap();
    for (algorithm, _) in SIGNERS {
        let token = signed(algorithm, None, &claims());
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(verdict(&policy, &changed).is_err(), "{algorithm} {at}: {changed}");
            assert!(verdict(&policy, &token[..at]).is_err(), "{algorithm} {at}");
        }
    }
}

#[test]
fn an_unsigned_token_is_refused() {
    let policy = Builder::build(&tables(), true).unwrap();
    let payload = encoded(&claims().to_string());
    for alg in ["none", "None", "NONE", "nOnE", "", "HS384", "ES384", "PS256", "hs256"] {
        let header = encoded(&json!({"alg": alg, "typ": "JWT"}).to_string());
        for signature in ["", "AA"] {
            invalid_text(&policy, &format!("{header}.{payload}.{signature}"));
        }
    }
    for header in [json!({}), json!({"alg": null}), json!({"alg": ["HS256"]}), json!([]), json!("HS256")] {
        invalid_text(&policy, &format!("{}.{payload}.AA", encoded(&header.to_string())));
    }
}

#[test]
fn an_hmac_with_a_public_key_as_its_secret_is_refused() {
    // The attack: the header says HS256, and the secret is the text of the server's RS256 public key.
    let mut tables = tables();
    tables.keys.remove(0);
    for policy in [Builder::build(&tables, true).unwrap(), Builder::build(&self::tables(), true).unwrap()] {
        for file in ["rsa.pub.pem", "rsa-pkcs1.pub.pem", "p256.pub.pem", "ed25519.pub.pem"] {
            let text = fs::read(data(file)).unwrap();
            for secret in [&text[..], text.trim_ascii_end()] {
                let key = jsonwebtoken::EncodingKey::from_secret(secret);
                let token = sign(Algorithm::Hs256, &key, None, claims().as_object().unwrap()).unwrap();
                invalid_text(&policy, &token);
            }
        }
    }
}

#[test]
fn tokens_that_are_huge_nested_or_malformed_are_refused_with_a_reason() {
    let policy = Builder::build(&tables(), true).unwrap();
    let of = |claims: &str| {
        let (_, key) = key::signing_key(None, &fs::read(data("hs256.txt")).unwrap()).unwrap();
        let message = format!("{}.{}", encoded(r#"{"alg":"HS256"}"#), encoded(claims));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, jsonwebtoken::Algorithm::HS256);
        format!("{message}.{}", signature.unwrap())
    };
    provider::install();
    assert!(verdict(&policy, &of(&claims().to_string())).is_ok());
    let nested = format!("{{\"sub\":\"alice\",\"x\":{}1{}}}", "[".repeat(2_000), "]".repeat(2_000));
    for (token, part) in [
        (of(&nested), "well-formed"),
        (of("[]"), "well-formed"),
        (of("{\"sub\":\"alice\",\"exp\":"), "well-formed"),
        (of("{\"sub\":\"a\",\"sub\":\"b\"}"), ""),
        (
            of(&json!({"sub": "alice", "exp": NOW_S + 1, "x": "y".repeat(8_192)}).to_string()),
            "longer than 8192",
        ),
        (String::new(), "neither"),
        ("..".into(), "header"),
        (".".into(), "neither"),
        ("a.b.c.d.e".into(), "neither"),
        ("not a token at all".into(), "neither"),
        ("\u{0}.\u{1}.\u{2}".into(), "header"),
        (format!("{}.e30.AA", encoded(r#"{"alg":"HS256","crit":["exp"],"exp":1}"#)), "critical"),
        (format!("{}.e30.AA=", encoded(r#"{"alg":"HS256"}"#)), "well-formed"),
        (
            format!("{}.e30.AA", encoded(&format!("{{\"alg\":\"HS256\",\"x\":{}", "[".repeat(3_000)))),
            "header",
        ),
    ] {
        let text = invalid_text(&policy, &token);
        assert!(text.contains(part), "{token:?}: {text}");
    }
}

#[test]
fn expired_early_and_revoked_tokens_are_told_apart() {
    let policy = Builder::build(&tables(), true).unwrap();
    let of = |claims: &Value| verdict(&policy, &signed(Algorithm::EdDsa, None, claims));
    assert_eq!(of(&json!({"sub": "alice", "exp": NOW_S - 3_600})), Err(AuthRefusal::Expired));
    let early = json!({"sub": "alice", "exp": NOW_S + 3_600, "nbf": NOW_S + 600});
    assert_eq!(of(&early), Err(AuthRefusal::NotYetValid));
    let revocations = Revocations::default();
    let alice = Revocation::Subject { tenant: "".into(), subject: "alice".into() };
    revocations.add(&alice, NOW_S, NOW_S + 60).unwrap();
    let credentials = with_token(&signed(Algorithm::EdDsa, None, &claims()));
    let outcome = policy.verify(&credentials, NOW_S, &revocations);
    assert!(matches!(outcome, Outcome::Verdict(Err(AuthRefusal::Revoked))), "{outcome:?}");
    let collector = Revocation::Subject { tenant: "".into(), subject: "collector".into() };
    revocations.add(&collector, NOW_S, NOW_S + 60).unwrap();
    let outcome = policy.verify(&with_token(MACHINE_TOKEN), NOW_S, &revocations);
    assert!(matches!(outcome, Outcome::Verdict(Err(AuthRefusal::Revoked))), "{outcome:?}");
}

#[test]
fn a_revocation_closes_sessions_whose_issuer_has_a_clock_that_is_ahead() {
    let mut tables = tables();
    tables.common.leeway = Time::from_ms(10_000);
    let policy = Builder::build(&tables, true).unwrap();
    let alice = Revocation::Subject { tenant: "".into(), subject: "alice".into() };
    let token = |iat_s: u64| {
        let claims = json!({"sub": "alice", "exp": NOW_S + 60, "iat": iat_s});
        with_token(&signed(Algorithm::EdDsa, None, &claims))
    };
    let before = verdict_at(&policy, &token(NOW_S + 5), NOW_S).unwrap();
    assert!(alice.revokes(&before, NOW_S + 2));
    // A login after the revocation is valid at once.
    let after = verdict_at(&policy, &token(NOW_S + 8), NOW_S + 3).unwrap();
    assert!(!alice.revokes(&after, NOW_S + 2));
}

#[test]
fn a_key_with_an_id_verifies_only_tokens_with_that_id_or_none() {
    let mut tables = tables();
    tables.keys.truncate(1);
    tables.keys[0].kid = Some("2033".into());
    let policy = Builder::build(&tables, true).unwrap();
    for (kid, is_valid) in [(Some("2033"), true), (None, true), (Some("2032"), false), (Some(""), false)] {
        let token = signed(Algorithm::Hs256, kid, &claims());
        assert_eq!(verdict(&policy, &token).is_ok(), is_valid, "{kid:?}");
    }
}

#[test]
fn a_key_vouches_only_for_its_own_issuer() {
    let mut tables = tables();
    tables.keys = ["https://a.example", "https://b.example"]
        .map(|issuer| KeyTable {
            issuer: Some(issuer.into()),
            permissions: allowed(&format!("{}.>", &issuer[8..9])),
            ..key_table(Algorithm::EdDsa, "ed25519.pub.pem")
        })
        .to_vec();
    let policy = Builder::build(&tables, true).unwrap();
    let of = |issuer: &str| {
        verdict(
            &policy,
            &signed(Algorithm::EdDsa, None, &json!({"sub": "x", "exp": NOW_S + 1, "iss": issuer})),
        )
    };
    assert!(of("https://b.example").unwrap().permissions.subscribe.permits("b.x"));
    assert!(of("https://a.example").unwrap().permissions.subscribe.permits("a.x"));
    assert!(of("https://c.example").is_err());
}

#[test]
fn machines_certificates_and_anonymous_clients_have_the_permissions_of_the_file() {
    let mut tables = tables();
    let policy = Builder::build(&tables, true).unwrap();
    let of = |policy: &Policy, token: Option<&str>, name: Option<&str>| {
        let certificate = name.map(|name| ClientCertificate { name: name.into(), ends_s: NOW_S });
        let credentials = Credentials { token: token.map(Into::into), certificate };
        verdict_at(policy, &credentials, NOW_S).map(|principal| principal.subject.to_string())
    };
    assert_eq!(of(&policy, Some(MACHINE_TOKEN), None), Ok("collector".into()));
    assert!(of(&policy, Some(&MACHINE_TOKEN[1..]), None).is_err());
    assert!(of(&policy, Some(&token_hash(MACHINE_TOKEN)), None).is_err(), "the hash is no token");
    assert_eq!(of(&policy, None, Some("feed.example")), Ok("feed.example".into()));
    assert_eq!(of(&policy, None, Some("other")), Err(AuthRefusal::Missing), "as without a certificate");
    assert_eq!(of(&policy, Some(MACHINE_TOKEN), Some("other")), Ok("collector".into()));
    assert!(of(&policy, Some("wrong"), Some("feed.example")).is_err(), "a wrong token is not ignored");
    assert_eq!(of(&policy, None, None), Err(AuthRefusal::Missing));
    tables.anonymous = Some(AnonymousTable { permissions: allowed("public.>") });
    let policy = Builder::build(&tables, true).unwrap();
    assert_eq!(&*policy.anonymous().unwrap().subject, "anonymous");
    // The shard admits anonymous clients. Nothing has been proven, so no verdict says who they are.
    assert_eq!(of(&policy, None, None), Err(AuthRefusal::Missing));
    assert_eq!(of(&policy, None, Some("other")), Err(AuthRefusal::Missing));
    assert!(of(&policy, Some("wrong"), None).is_err());
}

#[test]
fn the_principal_of_a_certificate_expires_with_it() {
    let policy = Builder::build(&tables(), true).unwrap();
    let until = |ends_s| {
        let certificate = Some(ClientCertificate { name: "feed.example".into(), ends_s });
        verdict_at(&policy, &Credentials { token: None, certificate }, NOW_S)
    };
    assert_eq!(until(NOW_S + 7).unwrap().expires_at_s, Some(NOW_S + 7));
    assert!(until(NOW_S).is_ok(), "its last second");
    assert_eq!(until(NOW_S - 1), Err(AuthRefusal::CertificateExpired));
}

#[test]
fn with_ttl_max_a_revocation_may_be_forgotten_when_its_tokens_have_expired() {
    let mut tables = tables();
    (tables.common.ttl_max, tables.common.leeway) = (Time::from_ms(3_600_000), Time::from_ms(10_000));
    let policy = Builder::build(&tables, true).unwrap();
    // `ttl_max`, and twice `leeway`: once in `exp`, and once after it.
    let (alice, until_s) =
        (Revocation::Subject { tenant: "".into(), subject: "alice".into() }, NOW_S + 3_620);
    let revocations = Revocations::default();
    revocations.add(&alice, NOW_S, until_s).unwrap();
    // The last token that is accepted, at the last moment at which it is valid.
    let late = signed(Algorithm::EdDsa, None, &json!({"sub": "alice", "exp": NOW_S + 3_610, "iat": NOW_S}));
    for at_s in [NOW_S + 1, until_s - 1] {
        let outcome = policy.verify(&with_token(&late), at_s, &revocations);
        assert!(matches!(outcome, Outcome::Verdict(Err(AuthRefusal::Revoked))), "{outcome:?}");
    }
    assert_eq!(verdict_at(&policy, &with_token(&late), until_s), Err(AuthRefusal::Expired));
}

#[test]
fn the_token_of_rfc_7515_is_verified() {
    // Appendix A.3: the key as a JWK, and a token that expired in 2011.
    let jwks = json!({"keys": [{"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]});
    let token = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0\
                 cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    let keys = Keys::parse(Algorithm::Es256, jwks.to_string().as_bytes()).unwrap();
    provider::install();
    let Ok(claims) = verified(token, keys.with_id(None).next().unwrap()) else {
        panic!("the signature is right")
    };
    assert_eq!(claims.0["iss"], "joe");
}

fn set_tables(issuers: &[&str]) -> AuthTables {
    let key = |issuer: &&str| KeyTable {
        algorithm: Some(Algorithm::EdDsa),
        jwks: Some(format!("{issuer}/jwks")),
        issuer: Some((*issuer).into()),
        ..Default::default()
    };
    AuthTables { keys: issuers.iter().map(key).collect(), ..Default::default() }
}

#[test]
fn an_unknown_key_id_asks_only_the_issuer_that_the_token_names() {
    let policy = Builder::build(&set_tables(&["https://a.example", "https://b.example"]), true).unwrap();
    let of = |issuer: &str, kid: Option<&str>| {
        let token = signed(Algorithm::EdDsa, kid, &json!({"sub": "x", "exp": NOW_S + 1, "iss": issuer}));
        policy.verify(&with_token(&token), NOW_S, &Revocations::default())
    };
    match of("https://b.example", Some("1")) {
        Outcome::UnknownKey(set, _) => assert_eq!(set.issuer(), "https://b.example"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(of("https://c.example", Some("1")), Outcome::Verdict(Err(AuthRefusal::Invalid(_)))));
}

#[test]
fn a_reload_keeps_the_keys_that_were_fetched() {
    let first = Builder::build(&set_tables(&["https://a.example"]), true).unwrap();
    let set = first.key_sets().next().unwrap();
    set.begin(7);
    set.finish(Some(ed25519_keys(&["1"])), 7);
    let second = Builder::build(&set_tables(&["https://b.example", "https://a.example"]), true).unwrap();
    let second = second.inheriting(&first);
    let known =
        |id: &str| -> Vec<_> { second.key_sets().map(|set| set.keys().with_id(Some(id)).count()).collect() };
    assert_eq!(known("1"), [0, 1]);
    assert_eq!(second.key_sets().last().unwrap().request(8), Request::Unknown, "and is not fetched again");
    // A fetch that began before the reload still counts after it.
    set.begin(9);
    set.finish(Some(ed25519_keys(&["2"])), 9);
    assert_eq!(known("2"), [0, 1]);
}

#[test]
fn a_key_set_with_another_interval_keeps_its_keys_and_is_fetched_by_the_new_one() {
    let with_refresh = |ms: u64| {
        let mut tables = set_tables(&["https://a.example"]);
        tables.keys[0].refresh = Time::from_ms(ms);
        Builder::build(&tables, true).unwrap()
    };
    let first = with_refresh(JWKS_REFRESH_MS_HIGHEST);
    let set = first.key_sets().next().unwrap();
    set.begin(7);
    set.finish(Some(ed25519_keys(&["1"])), 7);
    for (refresh_ms, due_ms) in
        [(JWKS_REFRESH_MS_LOWEST, JWKS_REFRESH_MS_LOWEST), (JWKS_REFRESH_MS_HIGHEST, JWKS_REFRESH_MS_HIGHEST)]
    {
        let second = with_refresh(refresh_ms).inheriting(&first);
        let set = second.key_sets().next().unwrap();
        assert_eq!(set.keys().with_id(Some("1")).count(), 1);
        assert_eq!(set.due_ns(), 7 + due_ms * 1_000_000);
    }
}

fn jwks_table(url: &str) -> KeyTable {
    KeyTable {
        algorithm: Some(Algorithm::EdDsa),
        jwks: Some(url.into()),
        issuer: Some("i".into()),
        ..Default::default()
    }
}

#[test]
fn everything_that_is_wrong_is_reported_at_once_with_its_place() {
    let http = "http://id.example/jwks";
    let tables = AuthTables {
        keys: vec![
            KeyTable::default(),
            KeyTable { algorithm: Some(Algorithm::Rs256), ..Default::default() },
            KeyTable { file: Some("/nowhere".into()), ..key_table(Algorithm::Rs256, "x") },
            KeyTable { jwks: Some(http.into()), ..key_table(Algorithm::Rs256, "rsa.pub.pem") },
            KeyTable { algorithm: Some(Algorithm::Rs256), jwks: Some(http.into()), ..Default::default() },
            KeyTable {
                algorithm: Some(Algorithm::Hs256),
                jwks: Some("https://id.example/jwks".into()),
                kid: Some("1".into()),
                issuer: Some("i".into()),
                ..Default::default()
            },
            KeyTable { permissions: allowed("a.{x}"), ..key_table(Algorithm::EdDsa, "ed25519.pub.pem") },
            KeyTable { ca: Some("/nowhere".into()), ..key_table(Algorithm::EdDsa, "ed25519.pub.pem") },
            KeyTable { ca: Some("/nowhere".into()), ..jwks_table("https://id.example/jwks") },
            KeyTable { ca: Some(data("ed25519.pub.pem")), ..jwks_table("https://id.example/jwks") },
            KeyTable { ca: Some("/nowhere".into()), ..jwks_table("http://localhost/jwks") },
        ],
        tokens: vec![
            TokenTable { name: "a".into(), sha256: MACHINE_TOKEN.into(), ..Default::default() },
            TokenTable { sha256: token_hash("x"), ..Default::default() },
            TokenTable { name: "b".into(), ..Default::default() },
            TokenTable { name: "c".into(), sha256: token_hash("y"), ..Default::default() },
            TokenTable { name: "d".into(), sha256: token_hash("y"), ..Default::default() },
        ],
        certificates: vec![CertificateTable {
            name: "a.b".into(),
            permissions: allowed("{sub}.>"),
            ..Default::default()
        }],
        anonymous: Some(AnonymousTable { permissions: allowed("user.{sub}") }),
        ..Default::default()
    };
    let problems = Builder::build(&tables, true).unwrap_err();
    for (path, part) in [
        ("auth.key[0]", "algorithm is missing"),
        ("auth.key[1]", "file is missing"),
        ("auth.key[2].file", "No such file"),
        ("auth.key[3].jwks", "remove one"),
        ("auth.key[4].jwks", "issuer is missing"),
        ("auth.key[4].jwks", "must be https"),
        ("auth.key[5].algorithm", "HS256"),
        ("auth.key[5].kid", "remove it"),
        ("auth.key[6].permissions", "unknown template"),
        ("auth.key[7].ca", "remove it"),
        ("auth.key[8].ca", "No such file"),
        ("auth.key[9].ca", "no certificate in it"),
        ("auth.key[10].ca", "https:// only"),
        ("auth.token[0].sha256", "64 hexadecimal digits"),
        ("auth.token[1]", "name is missing"),
        ("auth.token[2]", "sha256 is missing"),
        ("auth.token[4].sha256", "another"),
        ("auth.certificate[0].permissions", "literal token"),
        ("auth.anonymous.permissions", "no name"),
    ] {
        let found = problems.iter().any(|(at, text)| at == path && text.contains(part));
        assert!(found, "{path}: {part} in {problems:#?}");
    }
    assert_eq!(problems.len(), 19, "{problems:#?}");
    let present = Builder::build(&tables, false).unwrap_err();
    assert!(present.len() < problems.len() && !present.iter().any(|(_, text)| text.contains("missing")));
    assert!(
        Builder::build(&AuthTables::default(), true).unwrap_err()[0].1.contains("no client could connect")
    );
}

#[test]
fn keys_are_fetched_by_https_or_from_this_machine() {
    for good in ["https://id.example/jwks", "http://127.0.0.1:8080/k", "http://[::1]/k", "http://localhost/k"]
    {
        assert_eq!(check_url(good), Ok(()), "{good}");
    }
    for bad in [
        "http://id.example/jwks",
        "http://127.0.0.1.example/k",
        "http://localhost.example/k",
        "http://10.0.0.1/k",
        "ftp://id.example/k",
        "file:///etc/keys",
        "id.example/jwks",
        "",
    ] {
        assert!(check_url(bad).is_err(), "{bad}");
    }
}
