use std::thread::JoinHandle;

use super::*;
use crate::{
    ProtocolError, PublishRequest, RETRIED_BYTES_MAX,
    scripted_server::{Peer, serve, serve_each},
};
use tickcast_proto::{
    features::Features,
    reply::{Reply, Skipped},
    subscription::{Moment, Policy},
};

const LONG: Duration = Duration::from_secs(20);
const RESUME: &str = "Resume { topic: \"a.b\", position: Position { epoch: 3, sequence: 2 } }";

/// A client that reconnects without delay.
fn connect(address: &str) -> ReconnectingClient {
    let address = Address::parse(address).unwrap();
    let options = ReconnectOptions { reconnect: true, backoff: Backoff::with_bounds(1, 0, 0) };
    ReconnectingClient::connect_with(&address, &address.connect_options(), options).unwrap()
}

fn delivered(policy: Policy) -> SubscribeOptions {
    let delivery = Delivery { policy: Some(policy), interval_us: 0 };
    SubscribeOptions { delivery, from: StartPosition::Live }
}

/// The next event in short form.
fn next(client: &mut ReconnectingClient) -> String {
    match client.next_event(Some(LONG)) {
        Ok(Some(StreamEvent::Event(event))) => match event {
            Event::Tick(tick) => format!("tick {}:{} missed {}", tick.epoch, tick.sequence.0, tick.missed),
            Event::Subscribed { request, .. } => format!("subscribed {request}"),
            Event::Topic { .. } => "topic".into(),
            Event::Recovered { requested, epoch, recovered, .. } => {
                format!("recovered {}:{} {epoch} {recovered}", requested.epoch, requested.sequence)
            }
            Event::Conflated { from, to, .. } => format!("conflated {from}-{to}"),
            Event::Gap { from, to, .. } => format!("gap {from}-{to}"),
            Event::Closing { code, .. } => format!("closing {code}"),
            Event::Error { request, .. } => format!("refused {request}"),
            other => format!("{other:?}"),
        },
        Ok(Some(StreamEvent::Disconnected { code, .. })) => format!("disconnected {code}"),
        Ok(Some(StreamEvent::Reconnected)) => "reconnected".into(),
        Ok(None) => "nothing".into(),
        Err(ClientError::Protocol(error)) => format!("broken: {error}"),
        Err(ClientError::Closed { code, .. }) => format!("closed {code}"),
        Err(error) => format!("over: {error}"),
    }
}

fn expect(client: &mut ReconnectingClient, expected: &[&str]) {
    for (at, expected) in expected.iter().enumerate() {
        assert_eq!(next(client), *expected, "event {at}");
    }
}

/// The first connection: ticks 1 and 2 of `a.b` in epoch 3, then it is cut.
fn first(peer: &mut Peer) {
    peer.welcome_in(3);
    peer.subscribed();
    peer.tick(1, b"1");
    peer.tick(2, b"2");
}

const FIRST: [&str; 6] =
    ["subscribed 1", "topic", "tick 3:1 missed 0", "tick 3:2 missed 0", "disconnected 0", "reconnected"];

/// A client with a subscription to `a.>` whose first connection is lost; `scripts` serve the next ones.
fn reconnected(
    options: SubscribeOptions,
    mut scripts: Vec<fn(&mut Peer)>,
) -> (ReconnectingClient, JoinHandle<()>) {
    scripts.insert(0, first);
    let (address, server) = serve_each(scripts);
    let mut client = connect(&address);
    client.subscribe_with("a.>", options).unwrap();
    expect(&mut client, &FIRST);
    (client, server)
}

/// Acknowledges the next request, whatever it is.
fn acknowledge(peer: &mut Peer, epoch: u64) {
    let (_, request, _) = peer.next_frame().unwrap();
    peer.reply(Reply::Subscribed { request: request as u32, pattern: "a.>", epoch, since_us: None });
    peer.topic(epoch);
}

fn recovered(peer: &mut Peer, epoch: u64, sequence: u64, recovered: bool) {
    peer.reply(Reply::Recovered { topic_id: 5, name: "a.b", epoch, sequence, recovered, reason: None });
}

/// Stays until the client disconnects.
fn stay(peer: &mut Peer) {
    while peer.next_frame().is_some() {}
}

#[test]
fn lost_connection_resumes_after_the_last_tick() {
    let (mut client, server) = reconnected(
        SubscribeOptions::default(),
        vec![|peer| {
            peer.welcome_in(3);
            assert_eq!(peer.command(), RESUME);
            let subscribe = peer.command();
            assert!(subscribe.ends_with("from: Resume }") && subscribe.contains("a.>"), "{subscribe}");
            peer.topic(3);
            recovered(peer, 3, 4, true);
            peer.tick(3, b"3");
            peer.tick(4, b"4");
            stay(peer);
        }],
    );
    expect(&mut client, &["topic", "recovered 3:2 3 true", "tick 3:3 missed 0", "tick 3:4 missed 0"]);
    assert_eq!(client.positions().position("a.b"), Some(Position { epoch: 3, sequence: 4 }));
    client.close().unwrap();
    server.join().unwrap();
}

#[test]
fn duplicate_tick_is_a_final_error() {
    let (mut client, server) = reconnected(
        SubscribeOptions::default(),
        vec![|peer| {
            peer.welcome_in(3);
            peer.command();
            acknowledge(peer, 3);
            recovered(peer, 3, 4, true);
            peer.tick(2, b"2");
            stay(peer);
        }],
    );
    expect(&mut client, &["subscribed 1", "topic", "recovered 3:2 3 true"]);
    let error = ProtocolError::OutOfOrder { topic: "a.b".into(), previous: 2, sequence: 2 };
    assert_eq!(next(&mut client), format!("broken: {error}"));
    assert!(next(&mut client).starts_with("over"));
    server.join().unwrap();
}

#[test]
fn new_epoch_is_reported_and_its_positions_are_used_from_then_on() {
    let (mut client, server) = reconnected(
        SubscribeOptions::default(),
        vec![
            |peer| {
                peer.welcome_in(4);
                assert_eq!(peer.command(), RESUME);
                acknowledge(peer, 4);
                recovered(peer, 4, 7, false);
                peer.snapshot(7);
            },
            |peer| {
                peer.welcome_in(4);
                assert!(peer.command().contains("Position { epoch: 4, sequence: 7 }"));
                acknowledge(peer, 4);
                recovered(peer, 4, 8, true);
                peer.tick(8, b"8");
                stay(peer);
            },
        ],
    );
    expect(&mut client, &["subscribed 1", "topic", "recovered 3:2 4 false", "gap 1-7", "tick 4:7 missed 0"]);
    expect(&mut client, &["disconnected 0", "reconnected", "subscribed 1", "topic"]);
    expect(&mut client, &["recovered 4:7 4 true", "tick 4:8 missed 0"]);
    drop(client);
    server.join().unwrap();
}

#[test]
fn conflating_subscription_resumes_with_the_last_tick_and_reports_the_range() {
    let (mut client, server) = reconnected(
        delivered(Policy::Conflate),
        vec![|peer| {
            peer.welcome_in(3);
            let subscribe = peer.command();
            assert!(subscribe.contains("Conflate") && subscribe.contains("from: Latest"), "{subscribe}");
            peer.topic(3);
            peer.snapshot(9);
            peer.tick(10, b"10");
            stay(peer);
        }],
    );
    expect(&mut client, &["topic", "conflated 3-9", "tick 3:9 missed 0", "tick 3:10 missed 0"]);
    drop(client);
    server.join().unwrap();
}

#[test]
fn topic_of_a_conflating_and_a_complete_subscription_is_resumed() {
    let (address, server) = serve_each(vec![
        |peer| {
            peer.welcome_in(3);
            peer.subscribed();
            acknowledge(peer, 3);
            peer.tick(2, b"2");
        },
        |peer| {
            peer.welcome_in(3);
            assert_eq!(peer.command(), RESUME);
            assert!(peer.command().contains("patterns: [\"*.b\"]"));
            assert!(peer.command().contains("from: Latest"));
            stay(peer);
        },
    ]);
    let mut client = connect(&address);
    client.subscribe_with("a.>", delivered(Policy::Conflate)).unwrap();
    client.subscribe_with("*.b", delivered(Policy::Drop)).unwrap();
    expect(&mut client, &["subscribed 1", "topic", "subscribed 2", "topic", "tick 3:2 missed 0"]);
    expect(&mut client, &["disconnected 0", "reconnected"]);
    client.close().unwrap();
    server.join().unwrap();
}

#[test]
fn only_an_acknowledged_subscription_resumes_without_a_tick() {
    for acknowledged in [false, true] {
        let scripts: Vec<fn(&mut Peer)> = match acknowledged {
            false => vec![
                |peer| {
                    peer.welcome_in(3);
                    peer.next_frame();
                },
                |peer| {
                    peer.welcome_in(3);
                    let subscribe = peer.command();
                    assert!(subscribe.ends_with("from: Live }"), "{subscribe}");
                },
            ],
            true => vec![
                |peer| {
                    peer.welcome_in(3);
                    peer.subscribed();
                },
                |peer| {
                    peer.welcome_in(3);
                    let subscribe = peer.command();
                    assert!(subscribe.ends_with("from: Resume }"), "{subscribe}");
                },
            ],
        };
        let (address, server) = serve_each(scripts);
        let mut client = connect(&address);
        client.subscribe("a.>").unwrap();
        if acknowledged {
            expect(&mut client, &["subscribed 1", "topic"]);
        }
        expect(&mut client, &["disconnected 0", "reconnected", "disconnected 0"]);
        server.join().unwrap();
    }
}

#[test]
fn a_moment_is_kept_for_topics_without_a_position() {
    const SINCE: &str = "from: Since({}, Moment { epoch: 3, since_us: 70 }) }";
    let (address, server) = serve_each(vec![
        |peer| {
            peer.welcome_with(3, Some(Features::SINCE));
            assert!(peer.command().ends_with(SINCE));
            peer.reply(Reply::Subscribed { request: 2, pattern: "a.>", epoch: 3, since_us: Some(80) });
            peer.topic(3);
            peer.tick(1, b"1");
        },
        |peer| {
            peer.welcome_with(3, Some(Features::SINCE));
            assert!(peer.command().starts_with("Resume"));
            assert!(peer.command().ends_with(SINCE));
        },
        |peer| {
            peer.welcome_in(3);
            assert!(peer.command().starts_with("Resume"));
            assert!(peer.command().ends_with("from: Resume }"));
            stay(peer);
        },
    ]);
    let mut client = connect(&address);
    let from = StartPosition::Since(HashMap::new(), Moment { epoch: 3, since_us: 70 });
    client.subscribe_with("a.>", SubscribeOptions { from, ..SubscribeOptions::default() }).unwrap();
    let lost = ["disconnected 0", "reconnected"];
    expect(&mut client, &["subscribed 1", "topic", "tick 3:1 missed 0"]);
    expect(&mut client, &[lost, lost].concat());
    let from = StartPosition::Since(HashMap::new(), Moment::default());
    let refused = client.subscribe_with("b.>", SubscribeOptions { from, ..SubscribeOptions::default() });
    assert!(matches!(refused, Err(ClientError::Request(RequestError::SinceNotGranted))), "{refused:?}");
    drop(client);
    server.join().unwrap();
}

#[test]
fn saved_positions_are_resumed_at_once() {
    let (address, server) = serve_each(vec![|peer| {
        peer.welcome_in(3);
        assert_eq!(peer.command(), RESUME);
        acknowledge(peer, 3);
        recovered(peer, 3, 3, true);
        peer.tick(3, b"3");
        stay(peer);
    }]);
    let mut positions = Positions::new();
    positions.advance("a.b", Position { epoch: 3, sequence: 2 });
    positions.advance("other", Position { epoch: 3, sequence: 2 });
    let mut client = connect(&address).with_positions(positions);
    client.subscribe("a.>").unwrap();
    expect(&mut client, &["subscribed 1", "topic", "recovered 3:2 3 true", "tick 3:3 missed 0"]);
    drop(client);
    server.join().unwrap();
}

#[test]
fn announced_gap_is_not_requested_again() {
    let (address, server) = serve_each(vec![
        |peer| {
            first(peer);
            let (topic, name) = (tickcast_proto::ids::TopicId(5), "a.b");
            peer.reply(Reply::Gap(Skipped { topic, name, from: 3, to: 9, count: None }));
        },
        |peer| {
            peer.welcome_in(3);
            assert!(peer.command().contains("Position { epoch: 3, sequence: 8 }"));
        },
    ]);
    let mut client = connect(&address);
    client.subscribe("a.>").unwrap();
    expect(&mut client, &FIRST[..4]);
    expect(&mut client, &["gap 3-9", "disconnected 0", "reconnected", "disconnected 0"]);
    server.join().unwrap();
}

#[test]
fn final_close_code_ends_reconnecting() {
    let (address, server) = serve_each(vec![
        |peer| {
            peer.welcome_in(3);
            peer.closing(1001, "the server stops");
        },
        |peer| {
            peer.welcome_in(3);
            peer.closing(3501, "no");
        },
    ]);
    let mut client = connect(&address);
    expect(&mut client, &["closing 1001", "disconnected 1001", "reconnected"]);
    expect(&mut client, &["closing 3501", "closed 3501"]);
    assert!(next(&mut client).starts_with("over"));
    server.join().unwrap();
}

#[test]
fn attempts_continue_until_one_succeeds_and_a_rejected_pattern_is_dropped() {
    let (address, server) = serve_each(vec![
        |peer| {
            peer.welcome_in(3);
            let (_, request, _) = peer.next_frame().unwrap();
            peer.error(request, "bad pattern");
            peer.subscribed();
        },
        |_| {},
        |peer| {
            peer.next_frame();
        },
        |peer| {
            peer.welcome_in(3);
            assert!(peer.command().contains("patterns: [\"a.>\"]"), "the rejected pattern is not sent again");
        },
    ]);
    let mut client = connect(&address);
    client.subscribe("b").unwrap();
    client.subscribe("a.>").unwrap();
    let again = client.subscribe("a.>");
    assert!(matches!(again, Err(ClientError::Request(RequestError::AlreadySubscribed))));
    expect(&mut client, &["refused 1", "subscribed 2", "topic", "disconnected 0"]);
    expect(&mut client, &["disconnected 0", "disconnected 0", "reconnected", "disconnected 0"]);
    server.join().unwrap();
}

#[test]
fn requests_while_disconnected_are_sent_on_the_next_connection() {
    let (address, server) = serve_each(vec![
        |peer| {
            peer.welcome_in(3);
            peer.subscribed();
            peer.subscribed();
        },
        |peer| {
            peer.welcome_in(3);
            let (first, second) = (peer.command(), peer.command());
            assert!(first.contains("[\"a.>\"]") && first.contains("Drop"), "{first}");
            assert!(second.contains("[\"late\"]") && second.contains("Live"), "{second}");
            stay(peer);
        },
    ]);
    let mut client = connect(&address);
    client.subscribe("a.>").unwrap();
    client.subscribe("gone").unwrap();
    expect(&mut client, &["subscribed 1", "topic", "subscribed 2", "topic", "disconnected 0"]);
    client.update("a.>", Delivery { policy: Some(Policy::Drop), interval_us: 0 }).unwrap();
    client.unsubscribe("gone").unwrap();
    client.subscribe("late").unwrap();
    expect(&mut client, &["reconnected"]);
    client.close().unwrap();
    server.join().unwrap();
}

#[test]
fn next_event_times_out_while_disconnected() {
    let (address, server) = serve_each(vec![|peer| {
        peer.welcome_in(3);
        peer.reply(Reply::Error { request: 0, code: tickcast_proto::ErrorCode::BadRequest, text: "" });
    }]);
    let address = Address::parse(&address).unwrap();
    let backoff = Backoff::with_bounds(1, 1 << 40, 1 << 40);
    let options = ReconnectOptions { reconnect: true, backoff };
    let mut client = ReconnectingClient::connect_with(&address, &address.connect_options(), options).unwrap();
    expect(&mut client, &["refused 0", "disconnected 0"]);
    assert_eq!(client.next_event(Some(Duration::ZERO)).unwrap(), None);
    assert_eq!(client.next_event(Some(Duration::from_millis(20))).unwrap(), None);
    assert_eq!(client.server_epoch(), None);
    server.join().unwrap();

    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = ReconnectingClient::connect(&closed.to_string());
    assert!(matches!(refused, Err(ClientError::Connect { .. })), "the first attempt is not retried");
}

#[test]
fn failed_publish_is_not_counted_and_earlier_answers_come_before_the_loss() {
    let (address, server) = serve(|peer| {
        peer.welcome_with(3, Some(Features::PUBLISHED));
        let requests = [(); 2].map(|()| peer.next_frame().unwrap().1);
        peer.published(requests[1], 1);
        peer.closing(1001, "stopping");
    });
    let address = Address::parse(&address).unwrap();
    let connect_options = ConnectOptions { acknowledgements: true, ..address.connect_options() };
    let options = ReconnectOptions { reconnect: true, backoff: Backoff::with_bounds(1, 0, 0) };
    let mut client = ReconnectingClient::connect_with(&address, &connect_options, options).unwrap();
    let publish = PublishRequest { topic: "a.b", payload: b"1", ..PublishRequest::default() };
    assert_eq!(client.publish(publish).unwrap(), Some(1));
    assert_eq!(client.publish(publish).unwrap(), Some(2));
    server.join().unwrap();
    // The server has closed: how many ticks the socket takes until it knows is the kernel's affair.
    let mut sent = 2;
    while client.publish(publish).unwrap().is_some() {
        sent += 1;
    }
    assert_eq!(client.publish(publish).unwrap(), None);
    let answer = client.next_event(Some(LONG)).unwrap();
    assert!(matches!(answer, Some(StreamEvent::Event(Event::Published { request: 2, .. }))), "{answer:?}");
    expect(&mut client, &["closing 1001"]);
    let lost = client.next_event(Some(LONG)).unwrap();
    let unanswered = sent - 1;
    assert!(
        matches!(lost, Some(StreamEvent::Disconnected { code: 1001, unacknowledged, .. }) if unacknowledged == unanswered),
        "{lost:?}"
    );
}

const WITH_IDS: Option<Features> = Some(Features::PUBLISHED.union(Features::MESSAGE_IDS));

fn with_id<'a>(message_id: &'a str, payload: &'a [u8]) -> PublishRequest<'a> {
    PublishRequest { topic: "a.b", payload, message_id, ..PublishRequest::default() }
}

#[test]
fn a_publish_with_an_id_is_sent_again_to_the_same_server_until_it_is_answered() {
    let (address, server) = serve_each(vec![
        |peer| {
            peer.welcome_with(3, WITH_IDS);
            (0..3).for_each(|_| drop(peer.next_frame()));
        },
        |peer| {
            peer.welcome_with(3, WITH_IDS);
            let again = [(); 2].map(|()| peer.next_frame().unwrap());
            assert_eq!([&*again[0].2, &*again[1].2], [b"1", b"3"], "not the one without an id");
            peer.published(again[0].1, 7);
            peer.next_frame();
        },
        // It has restarted.
        |peer| {
            peer.welcome_with(4, WITH_IDS);
            peer.next_frame();
        },
    ]);
    let address = Address::parse(&address).unwrap();
    let connect_options = ConnectOptions { acknowledgements: true, ..address.connect_options() };
    let options = ReconnectOptions { reconnect: true, backoff: Backoff::with_bounds(1, 0, 0) };
    let mut client = ReconnectingClient::connect_with(&address, &connect_options, options).unwrap();
    for (number, id) in [(1, "m1"), (2, ""), (3, "m3")] {
        let payload = number.to_string();
        assert_eq!(client.publish(with_id(id, payload.as_bytes())).unwrap(), Some(number));
    }
    let mut told = Vec::new();
    while told.len() < 6 {
        match client.next_event(Some(LONG)).unwrap().expect("an event") {
            StreamEvent::Disconnected { unacknowledged, .. } => told.push(format!("lost {unacknowledged}")),
            StreamEvent::Reconnected => told.push("again".into()),
            StreamEvent::Event(Event::Published { request, sequence, .. }) => {
                told.push(format!("{request} is {sequence}"));
                // The server leaves before it answers the other one.
                client.publish(with_id("", b"4")).unwrap();
            }
            StreamEvent::Event(Event::Error { request, code, .. }) => told.push(format!("{request}: {code}")),
            StreamEvent::Event(_) => {}
        }
    }
    assert_eq!(told, ["lost 1", "again", "1 is 7", "lost 1", "again", "3: 112"]);
    assert_eq!(client.unacknowledged(), 0);
    drop(client);
    server.join().unwrap();
}

#[test]
fn kept_publishes_are_bounded() {
    let (address, server) = serve(|peer| {
        peer.welcome_with(3, WITH_IDS);
        while peer.next_frame().is_some() {}
    });
    let address = Address::parse(&address).unwrap();
    let connect_options = ConnectOptions { acknowledgements: true, ..address.connect_options() };
    let mut client =
        ReconnectingClient::connect_with(&address, &connect_options, ReconnectOptions::default()).unwrap();
    let payload = vec![0; 200 << 10];
    let refused = (0..1_000).find_map(|_| client.publish(with_id("m", &payload)).err());
    assert!(matches!(refused, Some(ClientError::Request(RequestError::Unacknowledged))), "{refused:?}");
    let kept = client.unacknowledged();
    assert!(
        (RETRIED_BYTES_MAX / payload.len() - 1..=RETRIED_BYTES_MAX / payload.len()).contains(&kept),
        "{kept}"
    );
    drop(client);
    server.join().unwrap();
}

#[test]
fn publishes_are_sent_again_while_a_server_that_reads_nothing_yet_sends_what_was_missed() {
    const COUNT: usize = 39;
    const TICKS: u64 = 160;
    let (address, server) = serve_each(vec![
        |peer| {
            peer.welcome_with(3, WITH_IDS);
            (0..COUNT).for_each(|_| drop(peer.next_frame()));
        },
        |peer| {
            peer.welcome_with(3, WITH_IDS);
            peer.topic(3);
            // More than the client keeps unread. The server reads nothing until the client has read that.
            (1..=TICKS).for_each(|sequence| peer.tick(sequence, &[b'x'; 200 << 10]));
            for sequence in 1..=COUNT as u64 + 2 {
                let (_, request, payload) = peer.next_frame().unwrap();
                assert_eq!(payload[0], sequence as u8, "in order");
                peer.published(request, sequence);
            }
            peer.next_frame();
        },
    ]);
    let address = Address::parse(&address).unwrap();
    let connect_options = ConnectOptions { acknowledgements: true, ..address.connect_options() };
    let options = ReconnectOptions { reconnect: true, backoff: Backoff::with_bounds(1, 0, 0) };
    let mut client = ReconnectingClient::connect_with(&address, &connect_options, options).unwrap();
    // A client that does not read while it writes would lose the connection.
    client.set_write_timeout(Some(Duration::from_secs(3)));
    let payload = |number: u8| vec![number; 200 << 10];
    for number in 1..=COUNT as u8 {
        client.publish(with_id(&format!("m{number}"), &payload(number))).unwrap();
    }
    let (mut ticks, mut published) = (0, Vec::new());
    while published.len() < COUNT + 2 {
        match client.next_event(Some(LONG)).unwrap().expect("an event") {
            StreamEvent::Event(Event::Tick(_)) => ticks += 1,
            StreamEvent::Event(Event::Published { request, .. }) => published.push(request),
            StreamEvent::Event(Event::Error { request, code, .. }) => panic!("{request}: {code}"),
            StreamEvent::Disconnected { .. } => assert_eq!(ticks, 0, "only the first connection is lost"),
            StreamEvent::Reconnected => {
                // Those that the application publishes meanwhile come after them, with or without an id.
                let number = COUNT as u8 + 1;
                assert!(client.publish(with_id("", &payload(number))).unwrap().is_some());
                assert!(client.publish(with_id("later", &[number + 1])).unwrap().is_some());
            }
            StreamEvent::Event(_) => {}
        }
    }
    assert_eq!((ticks, client.unacknowledged()), (TICKS, 0));
    assert_eq!(published, (1..=COUNT as u32 + 2).collect::<Vec<_>>());
    drop(client);
    server.join().unwrap();
}
