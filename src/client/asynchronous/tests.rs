use std::{
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use super::*;
use crate::{
    RecoveryFailure, SkippedTicks,
    scripted_server::{Peer, serve, serve_each},
};
use tickcast_proto::{
    WireFormat,
    features::Features,
    frame::{self, Kind, TickParts},
    ids::{Sequence, TopicId},
    reply::Reply,
    subscription::Position,
};

/// Runs a future on a runtime of this thread.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Welcomes the client with acknowledgements, and reads the ping that follows.
fn welcome(peer: &mut Peer) {
    peer.welcome_with(3, Some(Features::PUBLISHED.union(Features::TOKENS)));
    assert_eq!(peer.next_frame().unwrap().0, Kind::Ping);
}

/// Stays until the client disconnects.
fn stay(peer: &mut Peer) {
    while peer.next_frame().is_some() {}
}

/// Joins a server without blocking the runtime.
async fn join<T: Send + 'static>(server: JoinHandle<T>) -> T {
    tokio::task::spawn_blocking(move || server.join().unwrap()).await.unwrap()
}

fn show(event: Option<SubscriptionEvent>) -> String {
    match event {
        None => "end".into(),
        Some(SubscriptionEvent::State(Change { state, code, .. })) => format!("{state:?} {code}"),
        Some(SubscriptionEvent::Tick(tick)) => {
            format!("tick {}:{} {}", tick.epoch, tick.sequence, String::from_utf8_lossy(&tick.payload))
        }
        Some(SubscriptionEvent::Gap(SkippedTicks { from, to, .. })) => format!("gap {from}-{to}"),
        Some(SubscriptionEvent::Recovered { epoch, failure, .. }) => {
            format!("recovered {epoch} {}", failure.map_or("yes", RecoveryFailure::name))
        }
        Some(other) => format!("{other:?}"),
    }
}

async fn expect(subscription: &mut Subscription, expected: &[&str]) {
    for expected in expected {
        assert_eq!(show(subscription.next().await), *expected);
    }
}

#[test]
fn publishes_of_several_tasks_share_a_connection_and_each_gets_its_answer() {
    let (address, server) = serve(|peer| {
        welcome(peer);
        let requests = [(); 2].map(|()| peer.next_frame().unwrap());
        for (kind, request, payload) in requests {
            assert_eq!(kind, Kind::Publish);
            match &payload[..] {
                b"1" => peer.published(request, 7),
                _ => peer.error(request, "bad topic"),
            }
        }
        stay(peer);
    });
    block_on(async {
        let client = AsyncClient::connect(&address).unwrap();
        client.connected().await.unwrap();
        let publish = |payload: &'static [u8]| {
            let client = client.clone();
            let publish = PublishRequest { topic: "a.b", payload, ..PublishRequest::default() };
            tokio::spawn(async move { client.publish(publish).await })
        };
        let (first, second) = (publish(b"1"), publish(b"2"));
        let published = first.await.unwrap().unwrap();
        assert_eq!((&*published.topic, published.position), ("a.b", Position { epoch: 3, sequence: 7 }));
        let Err(PublishError::Failed(failure)) = second.await.unwrap() else { panic!("it was refused") };
        assert_eq!((failure.outcome, failure.code), (PublishOutcome::Refused, 101));
        client.close().await;
        join(server).await;
    });
}

#[test]
fn a_lost_connection_resumes_after_the_last_tick_and_the_stream_goes_on() {
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
            let (topic, name, reason) = (TopicId(5), "a.b", None);
            peer.reply(Reply::Recovered {
                topic_id: topic.0,
                name,
                epoch: 3,
                sequence: 3,
                recovered: true,
                reason,
            });
            peer.tick(3, b"3");
            stay(peer);
        },
    ]);
    block_on(async {
        let saved = Arc::new(Mutex::new(Vec::new()));
        let saves = saved.clone();
        let options = AsyncOptions {
            save_positions: Some(Box::new(move |positions: Positions| {
                saves.lock().unwrap().push(positions.position("a.b"));
            })),
            ..AsyncOptions::new(&address).unwrap()
        };
        let client = AsyncClient::start(options).unwrap();
        let mut events = client.events();
        let mut subscription = client.subscribe("a.>").unwrap();
        subscription.ready().await.unwrap();
        expect(&mut subscription, &["Subscribing 0", "Subscribed 0", "tick 3:2 2", "Subscribing 3001"]).await;
        expect(&mut subscription, &["Subscribed 0", "recovered 3 yes", "tick 3:3 3"]).await;
        let mut codes = Vec::new();
        while codes.len() < 3 {
            if let Some(ClientEvent::State(change)) = events.next().await {
                codes.push((change.state, change.code));
            }
        }
        let (connected, connecting) = (ClientState::Connected, ClientState::Connecting);
        assert_eq!(codes, [(connected, 0), (connecting, 3001), (connected, 0)]);
        let sequence = || client.positions().position("a.b").map(|position| position.sequence);
        assert_eq!(sequence(), Some(2), "the application may still work on the tick");
        subscription.finish();
        assert_eq!(sequence(), Some(3));
        client.close().await;
        assert_eq!(saved.lock().unwrap().last(), Some(&Some(Position { epoch: 3, sequence: 3 })));
        assert_eq!(show(subscription.next().await), "Subscribing 1000");
        assert_eq!(show(subscription.next().await), "end");
        join(server).await;
    });
}

#[test]
fn a_dropped_subscription_is_ended_on_the_server() {
    let (address, server) = serve(|peer| {
        welcome(peer);
        peer.subscribed();
        let (kind, _, pattern) = peer.next_frame().unwrap();
        assert_eq!((kind, &pattern[..]), (Kind::Unsubscribe, &b"a.>"[..]));
        stay(peer);
    });
    block_on(async {
        let client = AsyncClient::connect(&address).unwrap();
        let subscription = client.subscribe("a.>").unwrap();
        assert_eq!(client.subscribe("a.>").unwrap_err(), RequestError::AlreadySubscribed);
        subscription.ready().await.unwrap();
        drop(subscription);
        client.close().await;
        join(server).await;
    });
}

#[test]
fn a_final_close_code_ends_streams_and_waits_and_the_application_may_connect_again() {
    let (address, server) = serve_each(vec![
        |peer| {
            welcome(peer);
            peer.next_frame();
            peer.closing(3500, "a token is missing");
        },
        |peer| {
            welcome(peer);
            peer.subscribed();
            stay(peer);
        },
    ]);
    block_on(async {
        let client = AsyncClient::connect(&address).unwrap();
        let mut subscription = client.subscribe("a.>").unwrap();
        let refused = subscription.ready().await.unwrap_err();
        assert_eq!((refused.code, &*refused.reason), (3500, "a token is missing"));
        expect(&mut subscription, &["Subscribing 0", "Subscribing 3500", "end"]).await;
        assert_eq!(client.connected().await.unwrap_err().code, 3500);
        let publish = PublishRequest { topic: "a.b", payload: b"1", ..PublishRequest::default() };
        let Err(PublishError::Failed(failure)) = client.publish(publish).await else {
            panic!("no connection")
        };
        assert_eq!(failure.outcome, PublishOutcome::NotSent);
        client.reconnect();
        client.connected().await.unwrap();
        subscription.ready().await.unwrap();
        expect(&mut subscription, &["Subscribed 0"]).await;
        // The last handle closes the connection.
        drop((client, subscription));
        join(server).await;
    });
}

#[test]
fn a_slow_application_stops_reading_but_not_while_it_awaits_an_answer() {
    const TICKS: u64 = 40;
    let (address, server) = serve(|peer| {
        welcome(peer);
        peer.subscribed();
        for sequence in 1..=TICKS {
            peer.tick(sequence, b"1");
        }
        let (_, request, _) = peer.next_frame().unwrap();
        peer.published(request, 1);
        stay(peer);
    });
    block_on(async {
        let client = AsyncClient::connect(&address).unwrap();
        let mut subscription = client.subscribe_with("a.>", SubscribeOptions::default(), 4).unwrap();
        subscription.ready().await.unwrap();
        let publish = PublishRequest { topic: "x", payload: b"1", ..PublishRequest::default() };
        // The answer comes behind all ticks.
        client.publish(publish).await.unwrap();
        let (mut ticks, mut lost) = (0, 0);
        while ticks + lost < TICKS {
            match subscription.next().await.unwrap() {
                SubscriptionEvent::Tick(_) => ticks += 1,
                SubscriptionEvent::Gap(gap) => lost += gap.count,
                SubscriptionEvent::State(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((subscription.dropped_ticks(), subscription.unread()), (lost, 0));
        assert!(lost >= TICKS - 8, "the queue holds 8 events: {lost} of {TICKS} ticks were dropped");
        client.close().await;
        join(server).await;
    });
}

#[test]
fn tokens_come_from_the_application_and_a_failure_is_an_event() {
    let (address, server) = serve(|peer| {
        let hello = peer.command();
        assert!(hello.contains("Token"), "{hello}");
        peer.reply(Reply::Welcome {
            request: 1,
            epoch: 3,
            session: 2,
            frame_bytes_max: 1 << 18,
            features: None,
        });
        stay(peer);
    });
    block_on(async {
        let mut asked = 0;
        let get_token: GetToken = Box::new(move |purpose| {
            assert_eq!(purpose, TokenPurpose::Connect);
            asked += 1;
            let token = if asked == 1 { Err("not yet".into()) } else { Ok(ClientToken::new("t1").unwrap()) };
            Box::pin(async move { token })
        });
        let options = AsyncOptions { get_token: Some(get_token), ..AsyncOptions::new(&address).unwrap() };
        let client = AsyncClient::start(options).unwrap();
        let mut events = client.events();
        let Some(ClientEvent::Error { reason, .. }) = events.next().await else { panic!("no error") };
        assert_eq!(&*reason, "not yet");
        client.connected().await.unwrap();
        client.close().await;
        join(server).await;
    });
}

#[test]
fn outside_of_a_runtime_and_with_an_encoding_it_cannot_read_no_client_starts() {
    assert!(matches!(AsyncClient::connect("127.0.0.1:1"), Err(ClientError::Io(_))));
    block_on(async {
        let mut options = AsyncOptions::new("ws://127.0.0.1:1/ws").unwrap();
        options.connect.encoding = WireFormat::WEBSOCKET_RAW;
        assert!(matches!(AsyncClient::start(options), Err(ClientError::Address(_))));
        let mut options = AsyncOptions::new("ws://127.0.0.1:1/ws").unwrap();
        options.connect.encoding = WireFormat::WEBSOCKET_PROTOBUF;
        assert!(matches!(AsyncClient::start(options), Err(ClientError::Address(_))));
    });
}

#[test]
fn a_client_whose_server_is_gone_connects_to_another_node_that_it_has_named() {
    let (second, second_server) = serve(|peer| {
        welcome(peer);
        stay(peer);
    });
    let named = second.clone();
    let (first, first_server) = serve(move |peer| {
        peer.welcome_with(3, Some(Features::NODES));
        assert_eq!(peer.next_frame().unwrap().0, Kind::Ping);
        peer.reply(Reply::Nodes { node: "first", addresses: &[&named] });
        peer.closing(3001, "the server stops");
    });
    block_on(async {
        let client = AsyncClient::connect(&first).unwrap();
        let mut events = client.events();
        let mut connected = 0;
        while connected < 2 {
            if let Some(ClientEvent::State(Change { state: ClientState::Connected, .. })) =
                events.next().await
            {
                connected += 1;
            }
        }
        client.close().await;
        join(first_server).await;
        join(second_server).await;
    });
}

#[test]
fn a_queue_never_holds_more_than_its_bound_and_nothing_is_lost_by_it() {
    const TICKS: u64 = 500;
    let (address, server) = serve(|peer| {
        welcome(peer);
        peer.subscribed();
        // One write, which the client reads at once.
        let mut ticks = Vec::new();
        for sequence in 1..=TICKS {
            let parts = TickParts { payload: b"1", ..TickParts::default() };
            frame::encode_tick(&mut ticks, TopicId(5), Sequence(sequence), &parts);
        }
        std::io::Write::write_all(&mut peer.stream, &ticks).unwrap();
        stay(peer);
    });
    block_on(async {
        let client = AsyncClient::connect(&address).unwrap();
        let mut subscription = client.subscribe_with("a.>", SubscribeOptions::default(), 3).unwrap();
        let mut ticks = 0;
        while ticks < TICKS {
            assert!(subscription.unread() <= 3, "{}", subscription.unread());
            if let SubscriptionEvent::Tick(tick) = subscription.next().await.unwrap() {
                ticks += 1;
                assert_eq!(tick.sequence, ticks);
                let finished = client.positions().position("a.b").map_or(0, |position| position.sequence);
                assert_eq!(finished, ticks - 1, "the rest is unread, wherever it waits");
            }
            assert!(subscription.unread() <= 3, "{}", subscription.unread());
            // The client's task takes what it can.
            tokio::task::yield_now().await;
        }
        assert_eq!(subscription.dropped_ticks(), 0);
        client.close().await;
        join(server).await;
    });
}

/// Events that wait for room, by pattern.
fn held(client: &AsyncClient) -> Vec<String> {
    client.handle.shared.lock().held.iter().map(|(on, _)| on.to_string()).collect()
}

/// Ends a pattern without reading what its subscription has.
fn end(client: &AsyncClient, pattern: &str) {
    client.handle.call(|session| session.unsubscribe(pattern)).unwrap();
}

#[test]
fn the_end_of_a_dropped_subscription_does_not_end_the_next_one_to_its_pattern() {
    let (address, server) = serve(|peer| {
        welcome(peer);
        peer.subscribed();
        assert_eq!(peer.next_frame().unwrap().0, Kind::Subscribe);
        assert_eq!(peer.next_frame().unwrap().0, Kind::Unsubscribe);
        assert_eq!(peer.next_frame().unwrap().0, Kind::Unsubscribe);
        peer.subscribed();
        peer.tick(1, b"1");
        stay(peer);
    });
    block_on(async {
        let client = AsyncClient::connect(&address).unwrap();
        client.connected().await.unwrap();
        let first = client.subscribe("a.>").unwrap();
        first.ready().await.unwrap();
        let mut unread = client.subscribe_with("b.>", SubscribeOptions::default(), 1).unwrap();
        end(&client, "b.>");
        assert_eq!(held(&client), ["b.>"], "its queue is full");
        drop(first);
        assert_eq!(held(&client), ["b.>"], "nobody reads the end of the other one");
        let mut second = client.subscribe("a.>").unwrap();
        expect(&mut unread, &["Subscribing 0", "Unsubscribed 0", "end"]).await;
        expect(&mut second, &["Subscribing 0", "Subscribed 0", "tick 3:1 1"]).await;
        client.close().await;
        join(server).await;
    });
}

#[test]
fn the_end_of_an_unread_subscription_does_not_end_the_next_one_to_its_pattern() {
    let (address, server) = serve(|peer| {
        welcome(peer);
        assert_eq!(peer.next_frame().unwrap().0, Kind::Subscribe);
        assert_eq!(peer.next_frame().unwrap().0, Kind::Unsubscribe);
        peer.subscribed();
        peer.tick(1, b"1");
        stay(peer);
    });
    block_on(async {
        let client = AsyncClient::connect(&address).unwrap();
        client.connected().await.unwrap();
        let mut first = client.subscribe_with("a.>", SubscribeOptions::default(), 1).unwrap();
        end(&client, "a.>");
        assert_eq!(held(&client), ["a.>"], "its queue is full");
        let mut second = client.subscribe("a.>").unwrap();
        assert!(held(&client).is_empty());
        expect(&mut first, &["Subscribing 0", "Unsubscribed 0", "end"]).await;
        drop(first);
        expect(&mut second, &["Subscribing 0", "Subscribed 0", "tick 3:1 1"]).await;
        client.close().await;
        join(server).await;
    });
}
