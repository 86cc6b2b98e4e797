//! What sources lose while NATS does not let them read, and what they say about it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use async_nats::jetstream::{self, stream};
use tickcast_proto::WireFormat;

use crate::{
    harness::{Server, beside_others, collector::Collector, engines::Nats, eventually},
    sources::{numbers, payloads, serve, source, wait_for_state},
};

/// A file of a test below the build's directory.
fn file(name: &str, text: &str) -> PathBuf {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&file, text).unwrap();
    file
}

/// A server at which the user `feed` has these permissions, and everybody else all.
struct Guarded {
    nats: Nats,
    password: PathBuf,
}

impl Guarded {
    fn start(name: &str, permissions: &str) -> Guarded {
        let users = format!(
            "authorization {{ users = [ {{ user: others, password: x }}, {{ user: feed, password: correct-horse, permissions: {{ {permissions} }} }} ] }}\nno_auth_user: others\n"
        );
        let users = file(&format!("{name}.conf"), &users);
        let nats = Nats::start(name, &["-c", users.to_str().unwrap()]);
        let password = file(&format!("{name}-password"), "correct-horse\n");
        Guarded { nats, password }
    }

    /// The lines of a `[[source]]` that reach it as `feed`.
    fn source(&self) -> String {
        let password = self.password.display();
        format!("{}\nauth = {{ user = 'feed', password_file = '{password}' }}\n", self.nats.servers())
    }

    /// Restarts the server, and lets nobody in as `feed` until [`Guarded::admit`].
    fn shut_out(&mut self, server: &Server) {
        self.nats.kill();
        wait_for_state(server, "waiting");
        fs::write(&self.password, "battery-staple\n").unwrap();
        self.nats.restart();
    }

    fn admit(&self, server: &Server) {
        fs::write(&self.password, "correct-horse\n").unwrap();
        wait_for_state(server, "running");
    }
}

fn purge(nats: &Nats) {
    nats.with(async |client| {
        jetstream::new(client).get_stream("TICKS").await.unwrap().purge().await.unwrap();
    });
}

#[test]
fn messages_that_a_stream_no_longer_has_are_counted_as_lost() {
    let _machine = beside_others();
    let mut guarded = Guarded::start("js-purged", "");
    guarded.nats.make_stream("TICKS", "t.>");
    let server = serve(
        "js-purged",
        &format!("[[source]]\nkind = 'jetstream'\nstream = 'TICKS'\n{}", guarded.source()),
    );
    wait_for_state(&server, "running");
    let collector = Collector::start(&server, WireFormat::WEBSOCKET_NATIVE, &["t.>"]);
    guarded.nats.store("t.a", numbers(0..10));
    collector.wait_for(10);
    guarded.shut_out(&server);
    guarded.nats.store("t.a", numbers(10..27));
    purge(&guarded.nats);
    guarded.nats.store("t.a", numbers(27..30));
    guarded.admit(&server);
    collector.wait_for(13);
    assert_eq!(source(&server)["messages_lost"], 17);
    assert_eq!(payloads(&collector.finish(), "t.a"), (0..10).chain(27..30).collect::<Vec<_>>());
    server.stop_cleanly();
}

#[test]
fn messages_of_other_subjects_that_retention_deletes_are_not_counted_as_lost() {
    let _machine = beside_others();
    let mut nats = Nats::start("js-filtered", &[]);
    let config = stream::Config {
        name: "TICKS".into(),
        subjects: vec!["t.>".into()],
        max_messages: 1_000,
        ..Default::default()
    };
    nats.with(async |client| {
        jetstream::new(client).create_stream(config).await.unwrap();
    });
    let server = serve(
        "js-filtered",
        &format!(
            "[[source]]\nkind = 'jetstream'\nstream = 'TICKS'\nsubjects = ['t.a']\n{}\n",
            nats.servers()
        ),
    );
    wait_for_state(&server, "running");
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["t.>"]);
    nats.store("t.a", numbers(0..1));
    collector.wait_for(1);
    nats.store("t.b", numbers(0..5_000));
    nats.kill();
    wait_for_state(&server, "waiting");
    nats.restart();
    wait_for_state(&server, "running");
    nats.store("t.a", numbers(1..2));
    collector.wait_for(2);
    // One, unless the source had seen the last of the others: nobody knows of what subject those after it were.
    assert!(source(&server)["messages_lost"].as_u64() <= Some(1), "{}", source(&server));
    server.stop_cleanly();
}

#[test]
fn a_window_is_not_moved_by_an_interruption_before_its_first_message() {
    let _machine = beside_others();
    for (name, subjects) in [("js-window", ""), ("js-window-filtered", "subjects = ['t.a']")] {
        let mut guarded = Guarded::start(name, "");
        guarded.nats.make_stream("TICKS", "t.>");
        let server = serve(
            name,
            &format!(
                "[[source]]\nkind = 'jetstream'\nstream = 'TICKS'\nstart = '1s'\n{subjects}\n{}",
                guarded.source()
            ),
        );
        wait_for_state(&server, "running");
        let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["t.>"]);
        guarded.shut_out(&server);
        guarded.nats.store("t.a", numbers(0..10));
        // Longer than the window.
        std::thread::sleep(std::time::Duration::from_millis(1_500));
        guarded.admit(&server);
        guarded.nats.store("t.a", numbers(10..11));
        eventually("the newest", || source(&server)["ticks"].as_u64() >= Some(1));
        collector.wait_for(11);
        assert_eq!(payloads(&collector.finish(), "t.a"), (0..11).collect::<Vec<_>>());
        assert_eq!(source(&server)["messages_lost"], 0);
        server.stop_cleanly();
    }
}

#[test]
fn a_source_that_may_not_read_is_waiting_and_says_what_is_not_permitted() {
    let _machine = beside_others();
    for (name, permissions, source_kind, named) in [
        ("nats-denied", "subscribe: { deny: \"md.>\" }", "kind = 'nats'\nsubjects = ['md.>']", "\"md.>\""),
        (
            "js-denied",
            "publish: { deny: \"$JS.API.STREAM.INFO.*\" }",
            "kind = 'jetstream'\nstream = 'TICKS'",
            "\"$JS.API.STREAM.INFO.TICKS\"",
        ),
        (
            "js-denied-inbox",
            "subscribe: { deny: \"_INBOX.>\" }",
            "kind = 'jetstream'\nstream = 'TICKS'",
            "\"_INBOX.",
        ),
    ] {
        let guarded = Guarded::start(name, permissions);
        guarded.nats.make_stream("TICKS", "t.>");
        let server =
            serve(name, &format!("[[source]]\nrequired = true\n{source_kind}\n{}", guarded.source()));
        eventually(name, || {
            let source = source(&server);
            let reason = source["reason"].as_str().unwrap_or_default().to_lowercase();
            let is_named = reason.contains("permissions violation") && reason.contains(&named.to_lowercase());
            assert!(source["connections"] == 0, "{source}");
            source["state"] == "waiting" && is_named
        });
        server.stop_cleanly();
    }
}

#[test]
fn a_queue_gets_each_message_once_although_two_of_its_subjects_match() {
    let _machine = beside_others();
    let nats = Nats::start("nats-queue", &[]);
    let server = serve(
        "nats-queue",
        &format!("[[source]]\nkind = 'nats'\nqueue = 'q'\nsubjects = ['t.>', 't.a']\n{}\n", nats.servers()),
    );
    wait_for_state(&server, "running");
    let collector = Collector::start(&server, WireFormat::TCP_NATIVE, &["t.>"]);
    nats.wait_for_subscriber("t.a");
    nats.publish("t.a", numbers(0..100));
    nats.publish("t.b", numbers(0..1));
    collector.wait_for(101);
    eventually("all", || source(&server)["ticks"] == 101);
    let mut got = payloads(&collector.finish(), "t.a");
    // Two subscriptions have no common order.
    got.sort_unstable();
    assert_eq!(got, (0..100).collect::<Vec<_>>());
    server.stop_cleanly();
}
