use clap::Parser;
use tickcast_core::principal::Credentials;

use super::*;
use crate::{
    auth::{
        policy::Builder,
        tests::{NOW_S, data, verdict_at},
    },
    cli::{Cli, Command},
    config::auth::{AuthTables, KeyTable},
};

fn args(key: &str, words: &[&str]) -> TokenArgs {
    let file = data(key);
    let first = ["tickcast", "token", "--key", file.to_str().unwrap()];
    match Cli::try_parse_from(first.iter().chain(words)).unwrap().command {
        Command::Token(args) => *args,
        _ => panic!("not tickcast token"),
    }
}

#[test]
fn a_token_that_it_makes_is_one_that_the_server_takes() {
    for (algorithm, private, public) in [
        (Algorithm::Hs256, "hs256.txt", "hs256.txt"),
        (Algorithm::Rs256, "rsa.pem", "rsa.pub.pem"),
        (Algorithm::Es256, "p256.pem", "p256.pub.pem"),
        (Algorithm::EdDsa, "ed25519.pem", "ed25519.pub.pem"),
    ] {
        let words = "--sub alice --tenant acme --jti 7 --kid k --iss https://id.example --aud ticks --ttl 15m \
                     --allow-sub {tenant}.> --deny-sub {tenant}.secret.> --allow-pub {tenant}.{sub}";
        let made = made(&args(private, &words.split_whitespace().collect::<Vec<_>>()), NOW_S).unwrap();
        let key = KeyTable {
            algorithm: Some(algorithm),
            file: Some(data(public)),
            kid: Some("k".into()),
            issuer: Some("https://id.example".into()),
            audience: Some("ticks".into()),
            ..Default::default()
        };
        let policy = Builder::build(&AuthTables { keys: vec![key], ..Default::default() }, true).unwrap();
        let credentials = Credentials { token: Some(made.into()), certificate: None };
        let at = |now_s| verdict_at(&policy, &credentials, now_s);
        let principal = at(NOW_S).unwrap();
        assert_eq!((&*principal.subject, &*principal.tenant), ("alice", "acme"), "{algorithm}");
        assert_eq!(principal.token_id.as_deref(), Some("7"));
        let permissions = &principal.permissions;
        assert!(permissions.subscribe.permits("acme.x") && !permissions.subscribe.permits("acme.secret.x"));
        assert!(permissions.publish.permits("acme.alice") && !permissions.publish.permits("acme.bob"));
        assert!(at(NOW_S + 899).is_ok() && at(NOW_S + 900 + 10).is_err());
    }
}

#[test]
fn invalid_options_are_refused_with_their_names() {
    for (key, words, part) in [
        ("p256-sec1.pem", &["--sub", "a"][..], "openssl pkcs8"),
        ("rsa.pem", &["--sub", "a", "--alg", "ES256"], "ES256"),
        ("missing.pem", &["--sub", "a"], "--key"),
        ("rsa.pem", &["--sub", ""], "--sub"),
        ("rsa.pem", &["--sub", "a", "--tenant", "\n"], "--tenant"),
        ("rsa.pem", &["--sub", "a", "--allow-sub", "a..b"], "a..b"),
        ("rsa.pem", &["--sub", "a", "--allow-pub", ">", "--deny-pub", "{user}"], "template"),
    ] {
        let text = made(&args(key, words), NOW_S).unwrap_err();
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_token_that_would_only_deny_is_refused_because_it_would_allow_nothing() {
    for (deny, allow) in [("--deny-sub", "--allow-sub"), ("--deny-pub", "--allow-pub")] {
        let words = ["tickcast", "token", "--key", "k", "--sub", "a", deny, "a.>"];
        let refused = Cli::try_parse_from(words).unwrap_err().to_string();
        assert!(refused.contains(allow), "{refused}");
        assert!(Cli::try_parse_from(words.iter().chain(&[allow, ">"])).is_ok());
    }
}

#[test]
fn a_static_token_is_hashed_without_its_newline() {
    let token = "0123456789abcdef0123456789abcdef";
    let line = |input: &str| hash_line(input.as_bytes()).map_err(|error| error.to_string());
    // printf %s TOKEN | sha256sum
    let hash = "3eb1bd439947eb762998e566ccc2e099c791118b2f40579cc4f7da2b5061b7f9";
    let printed = line(token).unwrap();
    assert_eq!(printed, format!("sha256 = \"{hash}\""));
    for ending in ["\n", "\r\n", "\nmore\n"] {
        assert_eq!(line(&format!("{token}{ending}")).unwrap(), printed);
    }
    assert!(line("short\n").unwrap_err().contains("5 bytes"));
    assert!(line("").is_err() && line(&"x".repeat(10_000)).is_err());
}
