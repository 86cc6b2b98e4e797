//! What this session asks for beyond what the transcripts show.

use super::{super::*, MS_NS};
use tickcast_proto::{
    codec::TopicInfo,
    frame::TickParts,
    ids::{Sequence, TopicId},
    logged::encode_linked_tick,
    reply::Reply,
};

/// An epoch of a log.
const LOG: u64 = 1 << 52;

/// A session in its handshake, after the first dial.
fn opened(url: &str, encoding: WireFormat) -> Session {
    let mut session = Session::new(SessionOptions::new(url, encoding), Random::new(|| 0.0));
    session.connect(0);
    assert_eq!(dialed(&mut session), url);
    session.handle_open(encoding.subprotocol(), 0);
    session
}

/// The address of the next dial.
fn dialed(session: &mut Session) -> String {
    loop {
        if let Some(Action::Dial { url, .. }) = session.poll_action() {
            return url.to_string();
        }
    }
}

/// Loses the connection, and waits until the session dials again.
fn redialed(session: &mut Session) -> String {
    session.handle_closed(1006, "cut", 0, 0);
    while let Some(at_ns) = session.poll_timeout() {
        session.handle_timeout(at_ns);
        if let Some(Action::Dial { url, .. }) =
            std::iter::from_fn(|| session.poll_action()).find(|action| matches!(action, Action::Dial { .. }))
        {
            return url.to_string();
        }
    }
    panic!("it dials again");
}

fn receive(session: &mut Session, bytes: Vec<u8>, encoding: WireFormat) {
    let message = match encoding.codec {
        Codec::Json => Message::Text(bytes.into()),
        _ => Message::Binary(bytes.into()),
    };
    session.handle_message(&message, MS_NS, MS_NS);
}

fn welcome(session: &mut Session, features: Features, encoding: WireFormat) {
    let mut bytes = Vec::new();
    let features = Some(features);
    let reply = Reply::Welcome { request: 1, epoch: 3, session: 2, frame_bytes_max: 1 << 18, features };
    encoding.codec.encode_reply(&reply, &mut bytes);
    receive(session, bytes, encoding);
    assert_eq!(session.state(), ClientState::Connected);
}

#[test]
fn a_hello_asks_for_both_extensions_unless_the_options_say_otherwise() {
    for extensions in [EXTENSIONS, Features::NODES, Features::NONE] {
        let url = "ws://a:1/ws";
        let options = SessionOptions { extensions, ..SessionOptions::new(url, WireFormat::WEBSOCKET_JSON) };
        let mut session = Session::new(options, Random::new(|| 0.0));
        session.connect(0);
        dialed(&mut session);
        session.handle_open(Some("tickcast.v1.json"), 0);
        let Some(Action::Send { message: Message::Text(hello), .. }) = session.poll_action() else {
            panic!("a hello")
        };
        let hello = String::from_utf8(hello.to_vec()).unwrap();
        assert_eq!(hello.contains("\"nodes\""), extensions.contains(Features::NODES), "{hello}");
        assert_eq!(hello.contains("\"previous\""), extensions.contains(Features::PREVIOUS), "{hello}");
    }
}

/// The ticks missed before each of those with these sequences and bounds, in a topic that a log feeds.
fn missed(encoding: WireFormat, features: Features, ticks: &[(u64, u64)]) -> Vec<u64> {
    let mut session = opened("ws://a:1/ws", encoding);
    welcome(&mut session, features, encoding);
    session.subscribe("a.>", SubscribeOptions::default()).unwrap();
    let topic = TopicInfo::new(TopicId(5), LOG, "a.b");
    let codec = encoding.codec.with(features);
    let mut bytes = Vec::new();
    codec.encode_topic(&topic, &mut bytes);
    receive(&mut session, std::mem::take(&mut bytes), encoding);
    for &(sequence, previous) in ticks {
        let parts = TickParts {
            payload: b"1",
            flags: tickcast_proto::frame::FLAG_PAYLOAD_JSON,
            ..TickParts::default()
        };
        let mut frame = Vec::new();
        encode_linked_tick(&mut frame, topic.id, Sequence(sequence), previous, &parts);
        let Ok(tickcast_proto::Step::Complete(_, tick)) = tickcast_proto::frame::decode(&frame, usize::MAX)
        else {
            panic!("a whole frame")
        };
        let body = codec.encode_tick(&tick, &topic, &mut bytes).to_vec();
        receive(&mut session, body, encoding);
    }
    let mut missed = Vec::new();
    while let Some(event) = session.poll_event() {
        if let ClientEvent::Subscription { event: SubscriptionEvent::Tick(tick), .. } = event {
            missed.push(tick.missed);
        }
    }
    missed
}

#[test]
fn a_hole_in_a_log_is_where_previous_is_above_what_the_client_has() {
    // The first tick may follow any; a bound below what the client has, or equal to it, is no hole.
    let ticks = [(10, 9), (20, 10), (40, 35), (50, 7), (51, 50), (90, 52)];
    for encoding in [WireFormat::WEBSOCKET_JSON, WireFormat::WEBSOCKET_NATIVE] {
        assert_eq!(missed(encoding, Features::PREVIOUS, &ticks), [0, 0, 1, 0, 0, 1], "{encoding:?}");
        assert_eq!(missed(encoding, Features::NONE, &ticks), [0; 6], "{encoding:?}: nobody says");
    }
}

#[test]
fn each_attempt_dials_the_next_node_that_a_server_has_named() {
    for encoding in [WireFormat::WEBSOCKET_JSON, WireFormat::WEBSOCKET_NATIVE] {
        let mut session = opened("ws://a:1/ws?client=me", encoding);
        welcome(&mut session, Features::NODES, encoding);
        let mut bytes = Vec::new();
        let addresses = &["ws://a:1/ws", "ws://b:1/ws", "c:1", "wss://d:1/ws", "ws://e:1"];
        encoding.codec.encode_reply(&Reply::Nodes { node: "n1", addresses }, &mut bytes);
        receive(&mut session, bytes, encoding);
        let dialed: Vec<String> = (0..4).map(|_| redialed(&mut session)).collect();
        let (a, b, e) = ("ws://a:1/ws?client=me", "ws://b:1/ws?client=me", "ws://e:1/ws?client=me");
        assert_eq!(dialed, [b, e, a, b]);
    }
}

#[test]
fn nodes_that_were_not_asked_for_are_not_dialed() {
    let encoding = WireFormat::WEBSOCKET_JSON;
    let mut session = opened("ws://a:1/ws", encoding);
    welcome(&mut session, Features::PREVIOUS, encoding);
    let mut bytes = Vec::new();
    let addresses = &["ws://b:1/ws"];
    encoding.codec.encode_reply(&Reply::Nodes { node: "n1", addresses }, &mut bytes);
    receive(&mut session, bytes, encoding);
    assert_eq!(redialed(&mut session), "ws://a:1/ws");
}

#[test]
fn a_url_of_another_form_is_dialed_again_and_again() {
    let encoding = WireFormat::WEBSOCKET_JSON;
    let mut session = opened("my-transport:7", encoding);
    welcome(&mut session, Features::NODES, encoding);
    let mut bytes = Vec::new();
    let addresses = &["ws://b:1/ws"];
    encoding.codec.encode_reply(&Reply::Nodes { node: "n1", addresses }, &mut bytes);
    receive(&mut session, bytes, encoding);
    assert_eq!(redialed(&mut session), "my-transport:7");
}

#[test]
fn a_message_id_is_not_sent_to_a_server_that_would_not_recognise_it() {
    for encoding in [WireFormat::WEBSOCKET_JSON, WireFormat::WEBSOCKET_NATIVE] {
        let mut session = opened("ws://a:1/ws", encoding);
        welcome(&mut session, Features::PUBLISHED, encoding);
        while session.poll_action().is_some() {}
        let publish = PublishRequest { topic: "a.b", payload: b"1", message_id: "m1", ..Default::default() };
        session.publish(publish, Duration::from_secs(1), MS_NS).unwrap();
        assert!(session.poll_action().is_none(), "{encoding:?}");
        let failures = std::iter::from_fn(|| session.poll_event()).filter_map(|event| match event {
            ClientEvent::PublishFailed { failure, .. } => Some((failure.outcome, failure.code)),
            _ => None,
        });
        assert_eq!(failures.collect::<Vec<_>>(), [(PublishOutcome::NotSent, 100)], "{encoding:?}");
        let plain = PublishRequest { message_id: "", ..publish };
        session.publish(plain, Duration::from_secs(1), MS_NS).unwrap();
        assert!(session.poll_action().is_some(), "{encoding:?}");
    }
}
