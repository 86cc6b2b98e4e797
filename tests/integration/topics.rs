//! The life of topics: who may create how many, and when they are forgotten.

use crate::{
    admin::sum,
    harness::{
        Server, beside_others, eventually,
        frames::{self, Raw, Received},
        http::get_of_all_shards,
        raw::Peer,
    },
};

/// Publishes on topics and returns the errors.
fn publish(peer: &mut Peer, topics: impl Iterator<Item = String>) -> Vec<Received> {
    let mut bytes: Vec<u8> =
        topics.flat_map(|topic| Raw::publish(7, topic.as_bytes(), b"1").bytes()).collect();
    bytes.extend(Raw::ping(9).bytes());
    peer.send(&bytes);
    let mut errors = Vec::new();
    loop {
        let frame = peer.frame().expect("the session stays open");
        match frame.kind {
            frames::ERROR => errors.push(frame),
            frames::PONG => return errors,
            kind => panic!("kind {kind}"),
        }
    }
}

fn names(prefix: &str, count: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |n| format!("{prefix}.{n}"))
}

#[track_caller]
fn assert_refused(errors: &[Received], count: usize, code: u16, option: &str) {
    assert_eq!(errors.len(), count, "{errors:?}");
    for error in errors {
        assert!(error.code() == code && error.request() == 7, "{error:?}");
        assert!(error.text().contains(option), "{}", error.text());
    }
}

#[test]
fn no_session_or_address_creates_more_topics_than_it_may_and_others_still_do() {
    let _machine = beside_others();
    let server = Server::start(&[
        "--shards",
        "1",
        "--unlimited-sources",
        "none",
        "--topics-per-session-max",
        "10",
        "--topics-per-source-max",
        "15",
    ]);
    let [mut first, mut second] = [(); 2].map(|()| Peer::native(server.tcp));
    assert_refused(&publish(&mut first, names("a", 12)), 2, 104, "--topics-per-session-max");
    assert_refused(&publish(&mut second, names("b", 8)), 3, 104, "--topics-per-source-max");
    drop(first);
    // Its topics stay, and take ticks from anyone.
    let mut third = Peer::native(server.tcp);
    assert_refused(&publish(&mut third, names("a", 10)), 0, 0, "");
    assert_refused(&publish(&mut third, names("c", 1)), 1, 104, "--topics-per-source-max");
    let stopped = server.stop_cleanly();
    assert_eq!(stopped.total("topics_refused"), 6);
}

#[test]
fn as_many_topics_as_a_session_may_have_may_come_at_once() {
    let _machine = beside_others();
    let server =
        Server::start(&["--shards", "1", "--topics-per-session-max", "10", "--new-topics-rate", "1"]);
    let mut peer = Peer::native(server.tcp);
    // Topics within their number are never too fast.
    assert_refused(&publish(&mut peer, names("a", 10)), 0, 0, "");
    assert_refused(&publish(&mut peer, names("b", 1)), 1, 104, "--topics-per-session-max");
    server.stop_cleanly();
}

#[test]
fn a_topic_that_nobody_uses_is_forgotten_and_its_next_life_is_announced_with_a_new_id_and_epoch() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "2", "--topic-idle", "100ms", "--topic-idle", "kept=0"]);
    let mut reader = Peer::native(server.tcp);
    reader.send(&Raw::request(frames::SUBSCRIBE, 1, b">").bytes());
    assert_eq!(reader.frame().map(|frame| frame.kind), Some(frames::SUBSCRIBED));
    let mut publisher = Peer::native(server.tcp);
    let announced = |reader: &mut Peer| {
        loop {
            let frame = reader.frame().expect("the session stays open");
            if frame.kind == frames::SUBSCRIBED {
                return (frame.text().to_owned(), frame.topic_id, frame.u64_at(0));
            }
        }
    };
    assert_refused(&publish(&mut publisher, ["kept".to_owned(), "idle".to_owned()].into_iter()), 0, 0, "");
    let [one, two] = [(); 2].map(|()| announced(&mut reader));
    let (_, id, epoch) = if one.0 == "idle" { one } else { two };
    let admin = server.admin.expect("there is an admin listener");
    eventually("the topic is forgotten", || {
        let metrics = get_of_all_shards(admin, "/metrics").body;
        sum(&metrics, "tickcast_topics_forgotten_total") == 1.0
    });
    assert_refused(&publish(&mut publisher, ["idle".to_owned()].into_iter()), 0, 0, "");
    let (name, next_id, next_epoch) = announced(&mut reader);
    assert_eq!(name, "idle", "the other topic is kept");
    assert!(next_id != id && next_epoch > epoch, "{next_id} {next_epoch}");
    server.stop_cleanly();
}
