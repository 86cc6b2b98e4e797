//! Tests of tenants' quotas in the core: each refusal has its code, is counted, and affects that tenant alone.

use std::sync::Arc;

use crate::{
    config::Limits,
    home::history::HistoryBounds,
    ids::{SlotId, TenantId},
    metrics::counters::Counter,
    session::SendState,
    shard::ListenerKind,
    tenants::{Exports, Figure, Quota, TenantConfig, Tenants},
    testing::{Driver, hello},
};
use tickcast_proto::{
    ErrorCode, Step,
    command::encode_request,
    frame::{self as frames, Kind},
    records::{Closing, ErrorRecord, Publish},
    subscription::{Policy, Rules},
};

const A: TenantId = TenantId(1);
const B: TenantId = TenantId(2);

fn tenants(quota: Quota) -> Tenants {
    let config = |name: &str, quota| TenantConfig { name: name.into(), quota, ..TenantConfig::default() };
    Tenants::new(vec![config("a", quota), config("b", Quota::default())], Exports::default(), 1).unwrap()
}

fn driver(quota: Quota) -> Driver {
    Driver::new(Limits { tenants: tenants(quota).into(), ..Limits::default() })
}

fn connect(driver: &mut Driver, slot: u32, tenant: TenantId) -> bool {
    driver.shard.handle_accept(SlotId(slot), ListenerKind::Native, driver.now);
    driver.shard.set_tenant(SlotId(slot), tenant);
    driver.receive(slot, &hello());
    driver.turn();
    driver.shard.sessions.open_mut(SlotId(slot)).is_some()
}

fn subscribe(driver: &mut Driver, slot: u32, pattern: &str) {
    let mut bytes = Vec::new();
    encode_request(&mut bytes, Kind::Subscribe, 7, pattern);
    driver.receive(slot, &bytes);
    (0..3).for_each(|_| driver.turn());
}

fn publish(driver: &mut Driver, slot: u32, topic: &str, len: usize) {
    let mut bytes = Vec::new();
    frames::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), topic, &vec![b'1'; len]);
    driver.receive(slot, &bytes);
}

/// Codes of the errors that a client received since the last call.
fn errors(driver: &mut Driver, slot: u32) -> Vec<u16> {
    driver.turn();
    let (sent, mut codes) = (driver.take_sent(slot), Vec::new());
    let mut rest = &sent[..];
    while let Ok(Step::Complete(used, frame)) = frames::decode(rest, 1 << 20) {
        codes.extend((frame.kind == Kind::Error).then(|| frame.record::<ErrorRecord>().unwrap().code));
        rest = &rest[used..];
    }
    codes
}

fn figure(driver: &Driver, tenant: TenantId, figure: Figure) -> u64 {
    driver.shard.limits.tenants.get(tenant).unwrap().account.total(figure)
}

#[test]
fn connections_beyond_the_quota_are_refused_until_others_have_left() {
    let mut driver = driver(Quota { connections: 3, ..Quota::default() });
    let open = (0..5).filter(|slot| connect(&mut driver, *slot, A)).count();
    assert_eq!(open, 3);
    let sent = driver.take_sent(4);
    let Ok(Step::Complete(_, frame)) = frames::decode(&sent, 1 << 20) else { panic!("{sent:?}") };
    assert_eq!(frame.record::<Closing>().unwrap().code, 3504);
    assert_eq!(figure(&driver, A, Figure::ConnectionsRefused), 2);
    driver.pass(5_000_000_000);
    assert_eq!(driver.shard.counters().value(Counter::SessionsRefusedTenant), 2);
    assert!((10..20).all(|slot| connect(&mut driver, slot, B)), "another tenant has no quota");
    driver.shard.handle_error(SlotId(0), 104, driver.now);
    assert!(connect(&mut driver, 20, A) && !connect(&mut driver, 21, A));
    assert_eq!((figure(&driver, A, Figure::Connections), figure(&driver, B, Figure::Connections)), (3, 10));
}

#[test]
fn subscriptions_beyond_the_quota_are_refused_until_others_have_ended() {
    let mut driver = driver(Quota { subscriptions: 4, ..Quota::default() });
    connect(&mut driver, 0, A);
    connect(&mut driver, 1, A);
    connect(&mut driver, 2, B);
    (0..3).for_each(|n| subscribe(&mut driver, 0, &format!("t.{n}")));
    (0..3).for_each(|n| subscribe(&mut driver, 1, &format!("t.{n}")));
    (0..9).for_each(|n| subscribe(&mut driver, 2, &format!("t.{n}")));
    assert_eq!(errors(&mut driver, 1), [ErrorCode::TooManySubscriptions as u16; 2]);
    let refused = driver.shard.counters().value(Counter::SubscriptionsRefusedTenant);
    assert_eq!((refused, figure(&driver, A, Figure::SubscriptionsRefused)), (2, 2));
    subscribe(&mut driver, 1, "t.9");
    assert_eq!(errors(&mut driver, 1), [ErrorCode::TooManySubscriptions as u16]);
    driver.shard.handle_error(SlotId(0), 104, driver.now);
    (0..4).for_each(|n| subscribe(&mut driver, 1, &format!("u.{n}")));
    assert_eq!(errors(&mut driver, 1), [ErrorCode::TooManySubscriptions as u16]);
    let mut bytes = Vec::new();
    encode_request(&mut bytes, Kind::Unsubscribe, 1, "u.0");
    driver.receive(1, &bytes);
    subscribe(&mut driver, 1, "u.9");
    assert_eq!((errors(&mut driver, 1), figure(&driver, A, Figure::Subscriptions)), (vec![], 4));
}

#[test]
fn topics_beyond_the_quota_are_refused_and_those_of_others_are_not() {
    let mut driver = driver(Quota { topics: 3, ..Quota::default() });
    connect(&mut driver, 0, A);
    connect(&mut driver, 1, B);
    (0..5).for_each(|n| publish(&mut driver, 0, &format!("t.{n}"), 1));
    assert_eq!(errors(&mut driver, 0), [ErrorCode::TooManyTopics as u16; 2]);
    (0..9).for_each(|n| publish(&mut driver, 1, &format!("t.{n}"), 1));
    publish(&mut driver, 0, "t.0", 1);
    assert!(errors(&mut driver, 1).is_empty());
    assert_eq!(driver.shard.counters().value(Counter::TopicsRefused), 2);
    let of =
        |tenant| (figure(&driver, tenant, Figure::Topics), figure(&driver, tenant, Figure::TopicsRefused));
    assert_eq!((of(A), of(B)), ((3, 2), (9, 0)));
}

#[test]
fn forgotten_topics_make_room_for_others() {
    let tenants = tenants(Quota { topics: 3, ..Quota::default() }).into();
    let mut driver =
        Driver::new(Limits { tenants, topic_idle: Rules::all(1_000_000_000), ..Limits::default() });
    connect(&mut driver, 0, A);
    (0..5).for_each(|n| publish(&mut driver, 0, &format!("t.{n}"), 1));
    assert_eq!(errors(&mut driver, 0).len(), 2);
    driver.pass(3_000_000_000);
    assert_eq!((figure(&driver, A, Figure::Topics), figure(&driver, A, Figure::HistoryBytes)), (0, 0));
    (5..10).for_each(|n| publish(&mut driver, 0, &format!("t.{n}"), 1));
    assert_eq!(errors(&mut driver, 0).len(), 2);
}

#[test]
fn publishes_beyond_the_rate_are_refused_and_another_tenants_are_not() {
    let mut driver = driver(Quota { publish_rate: 10, ..Quota::default() });
    for (slot, tenant) in [(0, A), (1, A), (2, B)] {
        connect(&mut driver, slot, tenant);
    }
    for n in 0..10 {
        (0..3).for_each(|slot| publish(&mut driver, slot, &format!("t.{n}"), 1));
    }
    let refused = [errors(&mut driver, 0).len(), 0];
    assert_eq!(refused[0], 5, "both sessions share a second's worth");
    let counted = driver.shard.counters().value(Counter::TicksRefusedTenant);
    assert_eq!((counted, figure(&driver, A, Figure::PublishesRefused)), (10, 10));
    assert_eq!((figure(&driver, A, Figure::Published), figure(&driver, B, Figure::Published)), (10, 10));
    driver.pass(500_000_000);
    (0..9).for_each(|n| publish(&mut driver, 0, &format!("t.{n}"), 1));
    assert_eq!(errors(&mut driver, 0), [ErrorCode::RateLimited as u16; 4]);
}

#[test]
fn a_tenant_keeps_no_more_history_than_its_quota_and_others_keep_theirs() {
    let bounds = HistoryBounds { ticks: 1_000, bytes: 1 << 20, age_ns: 0 };
    let tenants = tenants(Quota { history_bytes: 64 << 10, ..Quota::default() }).into();
    let mut driver = Driver::new(Limits { tenants, history: Rules::all(bounds), ..Limits::default() });
    connect(&mut driver, 0, A);
    connect(&mut driver, 1, B);
    for _ in 0..200 {
        (0..4).for_each(|n| publish(&mut driver, 0, &format!("t.{n}"), 1_000));
        publish(&mut driver, 1, "t.0", 1_000);
        driver.turn();
    }
    let (of_a, of_b) = (figure(&driver, A, Figure::HistoryBytes), figure(&driver, B, Figure::HistoryBytes));
    assert!((16 << 10..=64 << 10).contains(&of_a), "{of_a}");
    assert!(of_b >= 200_000, "{of_b}");
    assert!(figure(&driver, A, Figure::HistoryFull) > 0 && figure(&driver, B, Figure::HistoryFull) == 0);
}

/// A publisher and a reader of each tenant, with this default policy.
fn egress(policy: Policy) -> Driver {
    let tenants = tenants(Quota { egress_rate: 100_000, ..Quota::default() }).into();
    let policies = Rules::all(policy);
    let mut driver = Driver::new(Limits {
        tenants,
        policies,
        behind_bytes: 64 << 10,
        outbox_bytes_max: 1 << 20,
        ..Limits::default()
    });
    for (slot, tenant) in [(0, A), (1, A), (2, B), (3, B)] {
        connect(&mut driver, slot, tenant);
    }
    subscribe(&mut driver, 1, "t.x");
    subscribe(&mut driver, 3, "t.x");
    driver.sent.clear();
    driver
}

/// Each tenant publishes 1 MB/s for a time. Returns the bytes sent to the readers of A and of B.
fn flow(driver: &mut Driver, ms: u64) -> (usize, usize) {
    let (mut of_a, mut of_b) = (0, 0);
    for _ in 0..ms {
        publish(driver, 0, "t.x", 1_000);
        publish(driver, 2, "t.x", 1_000);
        driver.pass(1_000_000);
        for (slot, bytes) in std::mem::take(&mut driver.sent) {
            match slot {
                1 => of_a += bytes.len(),
                3 => of_b += bytes.len(),
                _ => {}
            }
        }
    }
    (of_a, of_b)
}

#[test]
fn a_tenant_over_its_egress_quota_gets_its_rate_and_conflates_while_another_gets_everything() {
    let mut driver = egress(Policy::Conflate);
    let (of_a, of_b) = flow(&mut driver, 2_000);
    assert!((150_000..300_000).contains(&of_a), "{of_a} bytes in two seconds");
    assert!(of_b >= 2_000_000, "{of_b}");
    assert!(driver.shard.counters().value(Counter::TicksConflated) > 500);
    assert!(driver.shard.counters().value(Counter::SendsThrottled) > 0);
    assert!(figure(&driver, A, Figure::EgressWaits) > 0 && figure(&driver, B, Figure::EgressWaits) == 0);
    assert_eq!(driver.shard.counters().value(Counter::Overloads), 0, "the server is not overloaded");
    // Its socket took everything, so once it publishes less it is served again.
    driver.pass(10_000_000_000);
    let session = driver.shard.sessions.get(SlotId(1)).unwrap();
    assert_eq!((session.send_state, session.outbox_bytes()), (SendState::Idle, 0));
}

#[test]
fn a_session_that_allows_no_loss_is_closed_as_slow_over_the_egress_quota() {
    let mut driver = egress(Policy::Disconnect);
    flow(&mut driver, 3_000);
    let is_open = |driver: &mut Driver, slot| driver.shard.sessions.open_mut(SlotId(slot)).is_some();
    assert!(!is_open(&mut driver, 1) && is_open(&mut driver, 3));
    driver.pass(5_000_000_000);
    let of = |counter| driver.shard.counters().value(counter);
    assert_eq!((of(Counter::ClosedSlowConsumer), of(Counter::ClosedOverloaded)), (1, 0));
}

#[test]
fn a_session_that_ends_over_the_egress_quota_says_goodbye_at_once() {
    let mut driver = egress(Policy::Keep);
    flow(&mut driver, 500);
    let session = driver.shard.sessions.get(SlotId(1)).unwrap();
    assert_eq!(session.send_state, SendState::Throttled);
    let id = session.id;
    assert!(driver.shard.close(id, driver.now));
    driver.turn();
    let sent = driver.take_sent(1);
    let closing = sent.windows(b"closed by the operator".len()).any(|text| text == b"closed by the operator");
    assert!(closing);
}

#[test]
fn a_reload_changes_quotas_of_what_comes_next() {
    let mut driver = driver(Quota { connections: 2, egress_rate: 1_000, ..Quota::default() });
    assert_eq!((0..3).filter(|slot| connect(&mut driver, *slot, A)).count(), 2);
    let reload = |driver: &mut Driver, quota| {
        let new = Limits { tenants: tenants(quota).into(), ..Limits::default() };
        let limits = driver.shard.limits.with_reloadable_from(&new);
        driver.shard.reload(&Arc::new(limits), driver.now);
    };
    reload(&mut driver, Quota { connections: 4, ..Quota::default() });
    assert_eq!((10..15).filter(|slot| connect(&mut driver, *slot, A)).count(), 2);
    reload(&mut driver, Quota { connections: 1, ..Quota::default() });
    assert!(!connect(&mut driver, 20, A));
    assert_eq!(figure(&driver, A, Figure::Connections), 4, "those who are there stay");
    reload(&mut driver, Quota::default());
    assert!(connect(&mut driver, 21, A));
}
