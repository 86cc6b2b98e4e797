use super::*;
use crate::{
    Change, PublishOutcome, SubscriptionEvent,
    scripted_server::{Peer, serve, serve_each},
};
use tickcast_proto::{features::Features, frame::Kind, reply::Reply, subscription::Position};

const LONG: Option<Duration> = Some(Duration::from_secs(20));

/// Welcomes the client with acknowledgements, and reads the ping that follows.
fn welcome(peer: &mut Peer) {
    peer.welcome_with(3, Some(Features::PUBLISHED));
    assert_eq!(peer.next_frame().unwrap().0, Kind::Ping);
}

/// The next event that is none about latency, in short form.
fn next(client: &mut SessionClient) -> String {
    loop {
        return match client.next_event(LONG) {
            Some(ClientEvent::Latency { .. }) => continue,
            Some(ClientEvent::State(Change { state, code, .. })) => format!("{state:?} {code}"),
            Some(ClientEvent::Subscription { event, .. }) => match event {
                SubscriptionEvent::State(Change { state, code, .. }) => format!("{state:?} {code}"),
                SubscriptionEvent::Tick(tick) => format!("tick {}", tick.sequence),
                other => format!("{other:?}"),
            },
            other => format!("{other:?}"),
        };
    }
}

fn expect(client: &mut SessionClient, expected: &[&str]) {
    for expected in expected {
        assert_eq!(next(client), *expected);
    }
}

#[test]
fn a_blocking_client_resumes_and_publishes_with_answers() {
    let (address, server) = serve_each(vec![
        |peer| {
            welcome(peer);
            peer.subscribed();
            peer.tick(2, b"2");
            peer.closing(3001, "the server stops");
        },
        |peer| {
            welcome(peer);
            assert!(peer.command().contains("Position { epoch: 3, sequence: 2 }"));
            peer.subscribed();
            let (_, request, _) = peer.next_frame().unwrap();
            peer.tick(3, b"3");
            peer.published(request, 4);
            while peer.next_frame().is_some() {}
        },
    ]);
    let mut client = SessionClient::connect(&address).unwrap();
    client.subscribe("a.>", SubscribeOptions::default()).unwrap();
    expect(&mut client, &["Connecting 0", "Subscribing 0", "Connected 0", "Subscribed 0", "tick 2"]);
    expect(&mut client, &["Connecting 3001", "Subscribing 3001", "Connected 0", "Subscribed 0"]);
    let publish = PublishRequest { topic: "a.b", payload: b"1", ..PublishRequest::default() };
    let mut others = Vec::new();
    let published = client.publish_acknowledged(publish, LONG.unwrap(), |event| others.push(event)).unwrap();
    assert_eq!(published.position, Position { epoch: 3, sequence: 4 });
    assert!(matches!(&others[..], [ClientEvent::Subscription { event: SubscriptionEvent::Tick(_), .. }]));
    assert_eq!(client.positions().position("a.b"), Some(Position { epoch: 3, sequence: 3 }));
    assert_eq!(client.next_event(Some(Duration::ZERO)), None);
    client.close();
    server.join().unwrap();
}

#[test]
fn a_disconnected_client_returns_instead_of_waiting_for_ever() {
    let (address, server) = serve_each(vec![|peer| {
        welcome(peer);
        peer.closing(3500, "no");
    }]);
    let mut client = SessionClient::connect(&address).unwrap();
    expect(&mut client, &["Connecting 0", "Connected 0", "Disconnected 3500"]);
    assert_eq!(client.next_event(None), None);
    let publish = PublishRequest { topic: "a.b", payload: b"1", ..PublishRequest::default() };
    let failed = client.publish_acknowledged(publish, LONG.unwrap(), |_| {}).unwrap_err();
    let PublishError::Failed(failure) = failed else { panic!("{failed}") };
    assert_eq!(failure.outcome, PublishOutcome::NotSent);
    client.close();
    server.join().unwrap();
}

#[test]
fn a_client_whose_server_is_gone_connects_to_another_node_that_it_has_named() {
    let (second, second_server) = serve(|peer| {
        welcome(peer);
        while peer.next_frame().is_some() {}
    });
    let named = second.clone();
    let (first, first_server) = serve(move |peer| {
        peer.welcome_with(3, Some(Features::NODES));
        assert_eq!(peer.next_frame().unwrap().0, Kind::Ping);
        peer.reply(Reply::Nodes { node: "first", addresses: &[&named] });
        peer.closing(3001, "the server stops");
    });
    let mut client = SessionClient::connect(&first).unwrap();
    expect(&mut client, &["Connecting 0", "Connected 0", "Connecting 3001", "Connected 0"]);
    client.close();
    first_server.join().unwrap();
    second_server.join().unwrap();
}
