//! Tests of tenants in the core: what names a session's tenant, and that nothing of one tenant reaches another.

use std::sync::Arc;

use crate::{
    config::{AuthLimits, Limits},
    ids::{SlotId, TenantId},
    metrics::counters::Counter,
    now::Now,
    principal::{Permissions, Principal},
    session::Proof,
    shard::{ListenerKind, ORIGIN_SOURCE},
    tenants::{Export, Exports, Importers, TenantConfig, Tenants},
    testing::{Driver, hello, hello_as, messages, upgrade_request},
    topic_key,
};
use tickcast_proto::{
    Step,
    command::encode_request,
    features::Features,
    frame::{self as frames, HelloParts, Kind},
    records::{Closing, ErrorRecord, Publish},
};

const A: TenantId = TenantId(1);
const B: TenantId = TenantId(2);

fn tenants(exports: Exports) -> Arc<Tenants> {
    let config = |name: &str| TenantConfig {
        name: name.into(),
        hosts: vec![format!("{name}.example").into()],
        ..TenantConfig::default()
    };
    Tenants::new(["a", "b", "c"].map(config).into(), exports, 1).unwrap().into()
}

fn limits(exports: Exports) -> Limits {
    Limits { tenants: tenants(exports), ..Limits::default() }
}

/// Connects a native client to a tenant's listener.
fn connect(driver: &mut Driver, slot: u32, tenant: TenantId) {
    driver.shard.handle_accept(SlotId(slot), ListenerKind::Native, driver.now);
    driver.shard.set_tenant(SlotId(slot), tenant);
    driver.receive(slot, &hello());
    driver.turn();
}

fn request(driver: &mut Driver, slot: u32, kind: Kind, pattern: &str) {
    let mut bytes = Vec::new();
    encode_request(&mut bytes, kind, 7, pattern);
    driver.receive(slot, &bytes);
    (0..3).for_each(|_| driver.turn());
}

fn publish(driver: &mut Driver, slot: u32, topic: &str, payload: &str) {
    let mut bytes = Vec::new();
    let record = Publish { request: 9, ..Publish::default() };
    frames::encode_publish(&mut bytes, 0, 0, 0, record, topic, payload.as_bytes());
    driver.receive(slot, &bytes);
    (0..3).for_each(|_| driver.turn());
}

/// Kinds and texts of what a client was sent, except for the answers to its handshake.
fn received(sent: &[u8]) -> Vec<(Kind, String)> {
    let (mut rest, mut received) = (sent, Vec::new());
    while let Ok(Step::Complete(used, frame)) = frames::decode(rest, 1 << 20) {
        received.push((frame.kind, String::from_utf8_lossy(frame.payload()).into_owned()));
        rest = &rest[used..];
    }
    received.retain(|(kind, _)| *kind != Kind::Welcome);
    received
}

fn take(driver: &mut Driver, slots: &[u32]) -> Vec<Vec<(Kind, String)>> {
    let sent = std::mem::take(&mut driver.sent);
    let of = |slot: &u32| -> Vec<u8> {
        sent.iter().filter(|(to, _)| to == slot).flat_map(|(_, bytes)| bytes.clone()).collect()
    };
    slots.iter().map(|slot| received(&of(slot))).collect()
}

fn ticks(driver: &mut Driver, slots: &[u32]) -> Vec<Vec<String>> {
    let of_tick = |(kind, text): (Kind, String)| (kind == Kind::Tick).then_some(text);
    take(driver, slots).into_iter().map(|all| all.into_iter().filter_map(of_tick).collect()).collect()
}

#[test]
fn clients_of_three_tenants_use_the_same_names_and_see_nothing_of_each_other() {
    let mut driver = Driver::new(limits(Exports::default()));
    for (slot, tenant) in [(0, TenantId::DEFAULT), (1, A), (2, B), (3, TenantId::DEFAULT), (4, A)] {
        connect(&mut driver, slot, tenant);
    }
    for (slot, pattern) in [(0, ">"), (1, ">"), (2, "*.x"), (3, "t.x"), (4, "t.x")] {
        request(&mut driver, slot, Kind::Subscribe, pattern);
    }
    let slots = [0, 1, 2, 3, 4];
    let acknowledged = take(&mut driver, &slots);
    assert_eq!(acknowledged[1], [(Kind::Subscribed, ">".into())], "the pattern as the client wrote it");
    for (slot, payload) in [(3, "default"), (4, "a"), (2, "b")] {
        publish(&mut driver, slot, "t.x", payload);
    }
    let received = ticks(&mut driver, &slots);
    assert_eq!(received, [["default"], ["a"], ["b"], ["default"], ["a"]]);
    request(&mut driver, 4, Kind::Unsubscribe, "t.x");
    assert_eq!(take(&mut driver, &[4])[0], [(Kind::Unsubscribed, "t.x".into())]);
    publish(&mut driver, 1, "t.x", "again");
    assert_eq!(ticks(&mut driver, &slots), [vec![], vec!["again".to_owned()], vec![], vec![], vec![]]);
}

#[test]
fn importers_receive_what_is_exported_to_them_by_name_and_by_wildcard_and_cannot_publish_it() {
    let export = Export { owner: A, topics: "prices.>".into(), to: Importers::Named(vec![B]) };
    let mut driver = Driver::new(limits(Exports::new(vec![export]).unwrap()));
    let c = TenantId(3);
    for (slot, tenant) in [(0, A), (1, B), (2, B), (3, B), (4, c)] {
        connect(&mut driver, slot, tenant);
    }
    publish(&mut driver, 0, "prices.before", "1");
    for (slot, pattern) in [(0, "prices.x"), (1, "prices.x"), (2, ">"), (3, "prices.before"), (4, ">")] {
        request(&mut driver, slot, Kind::Subscribe, pattern);
    }
    request(&mut driver, 2, Kind::Subscribe, "prices.*");
    let slots = [0, 1, 2, 3, 4];
    take(&mut driver, &slots);
    publish(&mut driver, 0, "prices.x", "x");
    publish(&mut driver, 0, "prices.before", "2");
    publish(&mut driver, 0, "orders.x", "not exported");
    publish(&mut driver, 1, "orders.x", "of b");
    let received = ticks(&mut driver, &slots);
    assert_eq!(received[0], ["x"]);
    assert_eq!(received[1], ["x"]);
    assert_eq!(received[2], ["x", "2", "of b"], "once, whatever the number of patterns");
    assert_eq!(received[3], ["2"]);
    assert!(received[4].is_empty());
    publish(&mut driver, 1, "prices.x", "forged");
    let refused = take(&mut driver, &slots);
    assert!(refused[1].iter().any(|(kind, text)| *kind == Kind::Error && text.contains("exports")));
    assert!(refused[0].is_empty() && refused[2].is_empty());
    request(&mut driver, 1, Kind::Unsubscribe, "prices.x");
    assert_eq!(take(&mut driver, &[1])[0], [(Kind::Unsubscribed, "prices.x".into())]);
}

#[test]
fn a_source_of_an_importer_cannot_publish_what_is_exported_to_it() {
    let export = Export { owner: A, topics: "prices.>".into(), to: Importers::All };
    let mut driver = Driver::new(limits(Exports::new(vec![export]).unwrap()));
    connect(&mut driver, 0, B);
    request(&mut driver, 0, Kind::Subscribe, ">");
    take(&mut driver, &[]);
    for (tenant, topic) in [(B, "prices.x"), (B, "orders.x"), (A, "prices.x")] {
        let (key, mut bytes) = (topic_key::of(tenant, topic), Vec::new());
        frames::encode_publish(&mut bytes, ORIGIN_SOURCE, 0, 0, Publish::default(), &key, topic.as_bytes());
        let Ok(Step::Complete(_, frame)) = frames::decode(&bytes, 1 << 20) else { panic!("{bytes:?}") };
        driver.shard.handle_request(None, &frame, driver.now);
        driver.turn();
    }
    assert_eq!(ticks(&mut driver, &[0]), [["orders.x", "prices.x"]]);
    assert_eq!(driver.shard.counters().value(Counter::TopicsRefused), 1);
}

#[test]
fn a_host_names_the_tenant_and_does_not_lead_out_of_that_of_the_listener() {
    for (listener, host, expected) in [
        (TenantId::DEFAULT, "a.example", Some(A)),
        (TenantId::DEFAULT, "A.example:8080", Some(A)),
        (TenantId::DEFAULT, "x.example", Some(TenantId::DEFAULT)),
        (A, "a.example", Some(A)),
        (A, "x.example", Some(A)),
        (A, "b.example", None),
    ] {
        let mut driver = Driver::new(limits(Exports::default()));
        driver.shard.handle_accept(SlotId(0), ListenerKind::Http, driver.now);
        driver.shard.set_tenant(SlotId(0), listener);
        let upgrade = String::from_utf8(upgrade_request("/ws", "tickcast.v1.json")).unwrap();
        let upgrade = upgrade.replace("Host: x", &format!("Host: {host}"));
        driver.receive(0, upgrade.as_bytes());
        driver.turn();
        let tenant = driver.shard.sessions.open_mut(SlotId(0)).map(|session| session.tenant);
        assert_eq!(tenant, expected, "{host}");
        if expected.is_none() {
            let sent = driver.take_sent(0);
            let end = sent.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
            let (_, closing) = messages(&sent[end..]).remove(0);
            let closing = String::from_utf8(closing).unwrap();
            assert!(closing.contains("3500") && closing.contains("another tenant"), "{closing}");
            assert_eq!(driver.shard.counters().value(Counter::CredentialsRefused), 0);
        }
    }
}

#[test]
fn the_server_name_of_a_tls_handshake_names_the_tenant() {
    let mut driver = Driver::new(limits(Exports::default()));
    for (slot, name, expected) in [(0, "b.example", B), (1, "other", TenantId::DEFAULT)] {
        driver.shard.handle_accept(SlotId(slot), ListenerKind::Native, driver.now);
        driver.shard.set_server_name(SlotId(slot), name, driver.now);
        driver.receive(slot, &hello());
        assert_eq!(driver.shard.sessions.get(SlotId(slot)).unwrap().tenant, expected);
    }
    driver.shard.handle_accept(SlotId(2), ListenerKind::Native, driver.now);
    driver.shard.set_tenant(SlotId(2), A);
    driver.shard.set_server_name(SlotId(2), "b.example", driver.now);
    assert!(driver.shard.sessions.open_mut(SlotId(2)).is_none());
}

fn principal(tenant: &str) -> Arc<Principal> {
    Arc::new(Principal {
        subject: "s".into(),
        tenant: tenant.into(),
        permissions: Permissions::all().into(),
        ..Principal::default()
    })
}

/// Connects with a token that claims a tenant. Returns the session's tenant, or the code it was closed with.
fn claim(driver: &mut Driver, listener: TenantId, tenant: &str) -> Result<TenantId, u16> {
    driver.shard.handle_accept(SlotId(0), ListenerKind::Native, driver.now);
    driver.shard.set_tenant(SlotId(0), listener);
    let mut bytes = Vec::new();
    let hello = HelloParts { request: 1, client: "", name: "test", features: Features::NONE };
    frames::encode_hello_with_token(&mut bytes, &hello, b"token");
    driver.receive(0, &bytes);
    driver.turn();
    let (session, _) = driver.shard.poll_credentials().unwrap();
    driver.shard.handle_verdict(session, Ok(principal(tenant)), driver.now);
    driver.turn();
    let sent = driver.take_sent(0);
    let open = driver.shard.sessions.open_mut(SlotId(0)).map(|session| {
        assert_eq!(session.proof, Proof::Credentials);
        session.tenant
    });
    let closed = || {
        let Ok(Step::Complete(_, frame)) = frames::decode(&sent, 1 << 20) else { panic!("{sent:?}") };
        frame.record::<Closing>().unwrap().code
    };
    let outcome = open.ok_or_else(closed);
    driver.shard.handle_error(SlotId(0), 104, driver.now);
    outcome
}

#[test]
fn a_token_names_the_tenant_and_is_refused_where_another_is_named() {
    let auth = Some(AuthLimits::default());
    let mut driver = Driver::new(Limits { auth: auth.clone(), ..limits(Exports::default()) });
    for (listener, tenant, expected) in [
        (TenantId::DEFAULT, "a", Ok(A)),
        (TenantId::DEFAULT, "", Ok(TenantId::DEFAULT)),
        (TenantId::DEFAULT, "unknown", Err(3500)),
        (B, "b", Ok(B)),
        (B, "", Ok(B)),
        (B, "a", Err(3500)),
    ] {
        assert_eq!(claim(&mut driver, listener, tenant), expected, "{listener:?} {tenant}");
    }
    let mut without = Driver::new(Limits { auth, ..Limits::default() });
    assert_eq!(
        claim(&mut without, TenantId::DEFAULT, "a"),
        Ok(TenantId::DEFAULT),
        "one namespace, as before"
    );
}

#[test]
fn a_token_that_comes_later_moves_a_session_only_before_it_has_subscribed() {
    let auth = AuthLimits { anonymous: Some(principal("")), ..AuthLimits::default() };
    for (subscribes, is_open) in [(false, true), (true, false)] {
        let mut driver = Driver::new(Limits { auth: Some(auth.clone()), ..limits(Exports::default()) });
        connect(&mut driver, 0, TenantId::DEFAULT);
        if subscribes {
            request(&mut driver, 0, Kind::Subscribe, "t.x");
        }
        let mut bytes = Vec::new();
        let hello = HelloParts { request: 1, client: "", name: "test", features: Features::NONE };
        frames::encode_hello_with_token(&mut bytes, &hello, b"token");
        driver.receive(0, &bytes);
        let (session, _) = driver.shard.poll_credentials().unwrap();
        driver.shard.handle_verdict(session, Ok(principal("a")), driver.now);
        let tenant = driver.shard.sessions.open_mut(SlotId(0)).map(|session| session.tenant);
        assert_eq!(tenant, is_open.then_some(A));
    }
}

#[test]
fn a_reload_ends_the_sessions_of_a_tenant_that_is_gone_and_takes_those_of_a_new_one() {
    let before = limits(Exports::default());
    let mut driver = Driver::new(before.clone());
    connect(&mut driver, 0, A);
    connect(&mut driver, 1, B);
    connect(&mut driver, 2, B);
    request(&mut driver, 2, Kind::Subscribe, "t.x");
    publish(&mut driver, 2, "t.x", "1");
    let config = |name: &str| TenantConfig { name: name.into(), ..TenantConfig::default() };
    let new = |names: &[&str]| {
        let tenants = Tenants::new(names.iter().map(|name| config(name)).collect(), Exports::default(), 1);
        Limits { tenants: tenants.unwrap().into(), ..Limits::default() }
    };
    let now: Now = driver.now;
    let after = before.with_reloadable_from(&new(&["b", "d"]));
    driver.shard.reload(&Arc::new(after.clone()), now);
    let is_open = |driver: &mut Driver, slot| driver.shard.sessions.open_mut(SlotId(slot)).is_some();
    assert_eq!([0, 1].map(|slot| is_open(&mut driver, slot)), [false, true]);
    connect(&mut driver, 3, A);
    assert!(!is_open(&mut driver, 3), "its listener is still there");
    connect(&mut driver, 4, TenantId(4));
    take(&mut driver, &[]);
    publish(&mut driver, 4, "t.x", "of d");
    publish(&mut driver, 1, "t.x", "of b");
    assert_eq!(ticks(&mut driver, &[2, 4]), [vec!["of b".to_owned()], vec![]]);
    assert!(Limits::default().with_reloadable_from(&before).tenants.is_empty(), "the first needs a restart");
}

#[test]
fn the_same_identity_in_two_tenants_is_two_clients() {
    let mut driver = Driver::new(Limits { identity_replaces: true, ..limits(Exports::default()) });
    for (slot, tenant) in [(0, A), (1, B), (2, B)] {
        driver.shard.handle_accept(SlotId(slot), ListenerKind::Native, driver.now);
        driver.shard.set_tenant(SlotId(slot), tenant);
        driver.receive(slot, &hello_as("one"));
        driver.turn();
    }
    let is_open =
        |slot| driver.shard.sessions.get(SlotId(slot)).is_some_and(|session| session.ending.is_none());
    assert_eq!([0, 1, 2].map(is_open), [true, false, true]);
}

#[test]
fn history_and_positions_are_those_of_the_tenant() {
    let mut driver = Driver::new(limits(Exports::default()));
    connect(&mut driver, 0, A);
    connect(&mut driver, 1, B);
    publish(&mut driver, 0, "t.x", "of a");
    publish(&mut driver, 1, "t.x", "of b 1");
    publish(&mut driver, 1, "t.x", "of b 2");
    let subscribe = tickcast_proto::records::Subscribe { from: 1, ..Default::default() };
    let bytes = crate::testing::frame(Kind::Subscribe, &subscribe, b"t.*");
    for slot in [0, 1] {
        driver.receive(slot, &bytes);
        (0..3).for_each(|_| driver.turn());
    }
    assert_eq!(ticks(&mut driver, &[0, 1]), [["of a"], ["of b 2"]]);
    let positions = tickcast_proto::records::Resume { epoch: crate::testing::EPOCH, sequence: 1 };
    connect(&mut driver, 2, B);
    driver.receive(2, &crate::testing::frame(Kind::Resume, &positions, b"t.x"));
    let resume = tickcast_proto::records::Subscribe { from: 3, ..Default::default() };
    driver.receive(2, &crate::testing::frame(Kind::Subscribe, &resume, b"t.x"));
    (0..3).for_each(|_| driver.turn());
    assert_eq!(ticks(&mut driver, &[2]), [["of b 2"]]);
}

#[test]
fn an_error_names_the_pattern_as_the_client_wrote_it() {
    let mut driver = Driver::new(limits(Exports::default()));
    connect(&mut driver, 0, A);
    take(&mut driver, &[]);
    request(&mut driver, 0, Kind::Unsubscribe, "t.x");
    let sent = driver.take_sent(0);
    let Ok(Step::Complete(_, frame)) = frames::decode(&sent, 1 << 20) else { panic!("{sent:?}") };
    assert_eq!(frame.record::<ErrorRecord>().unwrap().request, 7);
    assert_eq!(String::from_utf8_lossy(frame.payload()), "not subscribed to \"t.x\"");
}
