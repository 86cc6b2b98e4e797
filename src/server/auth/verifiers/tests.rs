use serde_json::json;

use super::*;
use crate::{
    auth::{
        authority::RESULTS,
        key::Algorithm,
        policy::Builder,
        tests::{Issuer, key_set, signed, with_token},
    },
    config::auth::{AuthTables, KeyTable},
};

/// Maximum wait for a verdict before the test fails as hung.
const GUARD_NS: u64 = 60_000_000_000;

fn token(kid: &str) -> Credentials {
    let expires_s = clock::realtime_ns() / 1_000_000_000 + 600;
    let claims = json!({"sub": "alice", "exp": expires_s, "iss": "https://id.example"});
    with_token(&signed(Algorithm::EdDsa, Some(kid), &claims))
}

fn authority(issuer: &Issuer) -> Arc<Authority> {
    let key = KeyTable {
        algorithm: Some(Algorithm::EdDsa),
        jwks: Some(issuer.url()),
        issuer: Some("https://id.example".into()),
        ..Default::default()
    };
    let tables = AuthTables { keys: vec![key], ..Default::default() };
    Arc::new(Authority::new(Arc::new(Builder::build(&tables, true).unwrap())))
}

fn bells(count: usize) -> Vec<Arc<Doorbell>> {
    (0..count).map(|_| Arc::new(Doorbell::new(|| {}))).collect()
}

fn started(authority: &Arc<Authority>, shards: usize) -> Vec<VerifierLane> {
    start(authority, &bells(shards), 16, &[], |reason| panic!("a verifier has ended: {reason}")).unwrap()
}

fn next(lane: &mut VerifierLane) -> (SessionId, Verdict) {
    let give_up_ns = clock::monotonic_ns() + GUARD_NS;
    loop {
        if let Some(verdict) = lane.take() {
            return verdict;
        }
        assert!(clock::monotonic_ns() < give_up_ns, "no verdict");
        clock::sleep_ns(1_000_000);
    }
}

fn count(authority: &Authority, result: &str) -> u64 {
    assert!(RESULTS.contains(&result));
    authority.results().find(|(name, _)| *name == result).unwrap().1
}

#[test]
fn a_verdict_returns_to_the_shard_of_its_session() {
    let issuer = Issuer::start(key_set("1"));
    let authority = authority(&issuer);
    let mut lanes = started(&authority, 3);
    for (at, lane) in lanes.iter_mut().enumerate() {
        lane.submit(SessionId(at as u64), token("1")).unwrap();
    }
    for (at, lane) in lanes.iter_mut().enumerate() {
        let (session, verdict) = next(lane);
        assert_eq!((session, &*verdict.unwrap().subject), (SessionId(at as u64), "alice"));
        assert!(!lane.has_verdicts());
    }
    assert_eq!((count(&authority, "valid"), authority.waiting()), (3, 0));
}

#[test]
fn tokens_wait_for_the_first_fetch_and_unknown_keys_cause_no_second_one() {
    let issuer = Issuer::start(key_set("1"));
    let authority = authority(&issuer);
    let mut lanes = started(&authority, 1);
    let lane = &mut lanes[0];
    lane.submit(SessionId(0), token("1")).unwrap();
    assert!(next(lane).1.is_ok());
    for at in 0..16 {
        lane.submit(SessionId(at), token(&format!("forged-{at}"))).unwrap();
    }
    for _ in 0..16 {
        assert!(matches!(next(lane).1, Err(AuthRefusal::Invalid(_))));
    }
    assert_eq!((issuer.requests(), count(&authority, "invalid")), (1, 16));
}

#[test]
fn tokens_of_an_issuer_that_fails_are_refused_as_busy_so_that_their_clients_come_back() {
    let issuer = Issuer::start(Some(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_vec()));
    let authority = authority(&issuer);
    let mut lanes = started(&authority, 1);
    for _ in 0..2 {
        lanes[0].submit(SessionId(0), token("1")).unwrap();
        assert_eq!(next(&mut lanes[0]).1, Err(AuthRefusal::Busy));
    }
    assert_eq!(issuer.requests(), 1);
}

#[test]
fn a_reload_takes_effect_for_the_next_token_and_answers_those_that_wait() {
    let issuer = Issuer::start(None);
    let authority = authority(&issuer);
    let mut lanes = started(&authority, 1);
    lanes[0].submit(SessionId(0), token("1")).unwrap();
    // The fetch hangs, so the token waits until the fetch times out or the policy changes.
    let good = Issuer::start(key_set("1"));
    authority.replace(&self::authority(&good).policy());
    assert!(next(&mut lanes[0]).1.is_ok());
}

#[test]
fn a_reload_that_changes_no_key_set_keeps_it_with_its_keys_and_the_fetch_under_way() {
    let issuer = Issuer::start(key_set("1"));
    let authority = authority(&issuer);
    let mut lanes = started(&authority, 1);
    lanes[0].submit(SessionId(0), token("1")).unwrap();
    assert!(next(&mut lanes[0]).1.is_ok());
    issuer.set(None);
    for _ in 0..3 {
        authority.replace(&self::authority(&issuer).policy());
        lanes[0].submit(SessionId(0), token("1")).unwrap();
        assert!(next(&mut lanes[0]).1.is_ok());
    }
    assert_eq!(issuer.requests(), 1);
}

#[test]
fn a_verification_that_panics_refuses_its_credentials_and_no_others() {
    let authority = authority(&Issuer::start(key_set("1")));
    let (_, jobs) = sync_channel(1);
    let shared = Shared { authority: authority.clone(), jobs: Mutex::new(jobs), parked: Mutex::default() };
    let outcome = shared.guarded(|| panic!("the token is x.y.z"));
    match outcome {
        Outcome::Verdict(Err(AuthRefusal::Invalid(text))) => assert!(!text.contains("x.y.z"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(authority.panics(), 1);
    let outcome = shared.guarded(|| Outcome::Verdict(Err(AuthRefusal::Expired)));
    assert!(matches!(outcome, Outcome::Verdict(Err(AuthRefusal::Expired))));
}

#[test]
fn credentials_beyond_the_bound_are_refused_as_busy() {
    let authority = authority(&Issuer::start(key_set("1")));
    let (jobs, receiver) = sync_channel(1);
    let lane = VerifierLane { shard: 0, jobs, verdicts: Vec::new(), authority: authority.clone() };
    lane.submit(SessionId(0), token("1")).unwrap();
    assert_eq!(lane.submit(SessionId(1), token("1")), Err(AuthRefusal::Busy));
    assert_eq!((authority.waiting(), count(&authority, "busy")), (1, 1));
    drop(receiver);
}
