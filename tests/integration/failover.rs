//! Failover groups: two servers of another engine with the same messages, of which one falls silent or ends.

use serde_json::Value;
use tickcast_proto::WireFormat;

use crate::{
    harness::{
        Server, beside_others,
        collector::Collector,
        engines::Nats,
        eventually,
        http::{get, request},
    },
    sources::{FORMATS, numbers, payloads, serve},
};

fn config(primary: &Nats, fallback: &Nats, keys: &str) -> String {
    let source = |name: &str, nats: &Nats| {
        format!(
            "[[source]]\nkind = 'nats'\nname = '{name}'\ngroup = 'feed'\nsubjects = ['t.>']\n{}\n{keys}\n",
            nats.servers()
        )
    };
    source("primary", primary) + &source("fallback", fallback)
}

/// What the admin listener says of a source.
fn source(server: &Server, name: &str) -> Value {
    let sources = get(server.admin.unwrap(), "/v1/sources").json();
    let found = sources["sources"].as_array().unwrap().iter().find(|source| source["name"] == name);
    found.unwrap().clone()
}

fn wait_until_both_run(server: &Server, engines: [&Nats; 2]) {
    for name in ["primary", "fallback"] {
        eventually(name, || source(server, name)["state"] == "running");
    }
    engines.iter().for_each(|nats| nats.wait_for_subscriber("t.a"));
}

#[test]
fn a_silent_primary_is_replaced_and_returns_with_every_message_once_and_no_client_lost() {
    let _machine = beside_others();
    let (primary, fallback) = (Nats::start("failover-primary", &[]), Nats::start("failover-fallback", &[]));
    let keys =
        "stale_after = '1s'\nreturn_after = '1s'\nstatus_topic = 'status.feed'\nmap = { id = '{json:}' }";
    let server = serve("failover-silent", &config(&primary, &fallback, keys));
    wait_until_both_run(&server, [&primary, &fallback]);
    let collectors = FORMATS.map(|format| Collector::start(&server, format, &["t.>"]));
    let status = Collector::start(&server, WireFormat::WEBSOCKET_JSON, &["status.>"]);
    let mut next = 0_u32;
    let mut publish = |feeds: &[&Nats]| {
        feeds.iter().for_each(|nats| nats.publish("t.a", std::iter::once(next.to_string())));
        next += 1;
    };
    (0..50).for_each(|_| publish(&[&primary, &fallback]));
    let ticks = || ["primary", "fallback"].map(|name| source(&server, name)["ticks"].as_u64().unwrap());
    // On a slow machine the primary may have been silent for a second already.
    eventually("each message of either once", || ticks().iter().sum::<u64>() >= 50);
    eventually("the fallback takes over", || {
        publish(&[&fallback]);
        source(&server, "fallback")["active"] == true
    });
    assert_eq!(source(&server, "primary")["unfit"], "stale");
    eventually("the primary returns", || {
        publish(&[&primary, &fallback]);
        source(&server, "primary")["active"] == true
    });
    (0..50).for_each(|_| publish(&[&primary, &fallback]));
    let expected: Vec<u32> = (0..next).collect();
    for collector in collectors {
        collector.wait_for(expected.len());
        let got = collector.finish();
        assert!(got.ended.is_none(), "{:?}", got.ended);
        let mut ids = payloads(&got, "t.a");
        // The two sources have rings of their own: at a switch their ticks may pass each other.
        ids.sort_unstable();
        assert_eq!(ids, expected, "{} ticks", got.count);
    }
    status.wait_for(2);
    let told = status.finish().ticks.remove("status.feed").unwrap();
    let told = told.iter().map(|(_, payload)| serde_json::from_slice::<Value>(payload).unwrap());
    let publishing: Vec<Value> = told.map(|told| told["source"].clone()).collect();
    assert!(publishing.ends_with(&["fallback".into(), "primary".into()]), "{publishing:?}");
    for name in ["primary", "fallback"] {
        assert!(source(&server, name)["activations"].as_u64() >= Some(1), "{name}");
    }
    let stopped = server.stop_cleanly();
    for part in [
        "group feed: fallback publishes instead of primary, which is stale",
        "group feed: primary publishes again instead of fallback",
    ] {
        assert!(stopped.log.contains(part), "{part}: {}", stopped.log);
    }
}

#[test]
fn a_primary_that_ends_is_replaced_at_once_and_readiness_depends_on_the_group() {
    let _machine = beside_others();
    let (mut primary, mut fallback) =
        (Nats::start("failover-down-primary", &[]), Nats::start("failover-down-fallback", &[]));
    // Without ids: what the standby reads is dropped.
    let keys = "stale_after = '1h'\nreturn_after = '1h'\nrequired = true";
    let server = serve("failover-down", &config(&primary, &fallback, keys));
    wait_until_both_run(&server, [&primary, &fallback]);
    let admin = server.admin.unwrap();
    let readiness = || request(admin, "GET", "/readyz").status;
    let collector = Collector::start(&server, WireFormat::WEBSOCKET_JSON, &["t.>"]);
    primary.publish("t.a", ["1".to_owned()].into_iter());
    fallback.publish("t.a", ["1".to_owned()].into_iter());
    eventually("dropped", || source(&server, "fallback")["messages_standby"] == 1);
    primary.kill();
    eventually("the fallback takes over", || source(&server, "fallback")["active"] == true);
    assert_eq!(readiness(), 200);
    fallback.publish("t.a", ["2".to_owned()].into_iter());
    collector.wait_for(2);
    fallback.kill();
    eventually("not ready", || readiness() == 503);
    primary.restart();
    eventually("the primary takes over, without its hour", || source(&server, "primary")["active"] == true);
    eventually("ready", || readiness() == 200);
    primary.wait_for_subscriber("t.a");
    primary.publish("t.a", ["3".to_owned()].into_iter());
    collector.wait_for(3);
    assert_eq!(payloads(&collector.finish(), "t.a"), [1, 2, 3]);
    server.stop_cleanly();
}

#[test]
fn what_a_standby_holds_is_published_when_it_takes_over_without_another_message() {
    let _machine = beside_others();
    let (mut primary, fallback) =
        (Nats::start("failover-held-primary", &[]), Nats::start("failover-held-fallback", &[]));
    let keys = "stale_after = '1h'\nreturn_after = '1s'\nmap = { id = '{json:}' }";
    let server = serve("failover-held", &config(&primary, &fallback, keys));
    wait_until_both_run(&server, [&primary, &fallback]);
    eventually("the primary publishes", || source(&server, "primary")["active"] == true);
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["t.>"]);
    fallback.publish("t.a", numbers(0..10));
    eventually("held", || source(&server, "fallback")["messages_standby"] == 10);
    primary.kill();
    collector.wait_for(10);
    assert_eq!(payloads(&collector.finish(), "t.a"), (0..10).collect::<Vec<_>>());
    server.stop_cleanly();
}
