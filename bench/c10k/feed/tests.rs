//! The peers' protocols on scripted bytes.

use tickcast::sources::payload::Mark;
use tickcast_client::Event;

use super::{lines::LINE_BYTES_MAX, *};

fn payload(topic: u32, n: u64) -> String {
    let mut payload = Vec::new();
    Mark { at_ns: 1_700_000_000_000_000_000 + n, topic, n }.write(&mut payload, 100);
    String::from_utf8(payload).unwrap()
}

fn nats() -> Feed {
    Feed::Nats(Peer::open(|output| Nats::open(&["sim.>".into(), "a".into()], output)))
}

fn redis() -> Feed {
    Feed::Redis(Peer::open(|output| Redis::open(&["sim.>".into(), "a[b".into()], output)))
}

/// A WebSocket and the response that upgrades it.
fn websocket() -> (Feed, String) {
    let feed = Feed::WebSocket(Peer::open(|output| WebSocket::open("h:1", "/sub?id=a", None, output)));
    let request = String::from_utf8(feed.output().to_vec()).unwrap();
    assert!(request.starts_with("GET /sub?id=a HTTP/1.1\r\nHost: h:1\r\n"), "{request}");
    let key = request.split("Sec-WebSocket-Key: ").nth(1).unwrap().split("\r\n").next().unwrap();
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: \
         {accept}\r\n\r\n"
    );
    (feed, answer)
}

fn opened_websocket() -> Feed {
    let (mut feed, answer) = websocket();
    let written = feed.output().len();
    feed.output_written(written);
    assert_eq!(drain(&mut feed, answer.as_bytes()), Ok(vec![]));
    feed
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..=125 => frame.push(len as u8),
        len => {
            frame.push(126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

/// A short form of an event, for comparison.
fn short(event: &Event<'_>) -> String {
    match event {
        Event::Tick(tick) => {
            assert_eq!(tick.producer_time_ns, 1_700_000_000_000_000_000 + tick.sequence.0);
            format!("{}:{}+{} {}", tick.topic_id.0, tick.sequence.0, tick.missed, tick.payload.len())
        }
        Event::Pong { .. } => "acknowledged".into(),
        Event::Closed => "closed".into(),
        other => panic!("{other:?}"),
    }
}

fn drain(feed: &mut Feed, bytes: &[u8]) -> Result<Vec<String>, FeedError> {
    feed.handle_bytes(bytes);
    let mut events = Vec::new();
    while let Some(event) = feed.poll_event()? {
        events.push(short(&event));
    }
    Ok(events)
}

/// The events of `bytes`, which must not depend on where the stream is split.
fn events_at_every_split(open: fn() -> Feed, bytes: &[u8]) -> Vec<String> {
    let whole = drain(&mut open(), bytes).unwrap();
    for split in 0..=bytes.len() {
        let mut feed = open();
        let mut events = drain(&mut feed, &bytes[..split]).unwrap();
        events.extend(drain(&mut feed, &bytes[split..]).unwrap());
        assert_eq!(events, whole, "split at {split}");
    }
    let mut feed = open();
    let single: Vec<_> = bytes.iter().flat_map(|byte| drain(&mut feed, &[*byte]).unwrap()).collect();
    assert_eq!(single, whole);
    whole
}

/// The stream may end only between two messages.
fn assert_ends_are_reported(open: fn() -> Feed, message: &[u8]) {
    for len in 0..=message.len() {
        let mut feed = open();
        drain(&mut feed, &message[..len]).unwrap();
        feed.handle_end();
        let end = drain(&mut feed, b"");
        if len == 0 || len == message.len() {
            assert_eq!(end, Ok(vec!["closed".to_owned()]), "{len}");
            assert_eq!(drain(&mut feed, message), Ok(vec![]), "no event follows the end");
        } else {
            assert_eq!(end, Err(FeedError::Truncated), "{len}");
        }
    }
}

fn refused(open: fn() -> Feed, bytes: &[u8]) -> FeedError {
    let mut feed = open();
    let error = drain(&mut feed, bytes).expect_err(&String::from_utf8_lossy(&bytes[..bytes.len().min(80)]));
    assert_eq!(drain(&mut feed, b"+OK\r\n"), Ok(vec![]), "nothing is parsed after an error");
    error
}

fn nats_message(topic: u32, n: u64) -> String {
    let payload = payload(topic, n);
    format!("MSG sim.{topic} 1 {}\r\n{payload}\r\n", payload.len())
}

#[test]
fn nats_messages_become_ticks_at_every_split() {
    let reply = payload(4, 9);
    let stream = format!(
        "INFO {{\"max_payload\":1}}\r\nPONG\r\n{}{}+OK\r\nPING\r\n{}MSG sim.4 2 in.box {}\r\n{reply}\r\n",
        nats_message(3, 1),
        nats_message(3, 2),
        nats_message(3, 7),
        reply.len()
    );
    let events = events_at_every_split(nats, stream.as_bytes());
    assert_eq!(events, ["acknowledged", "3:1+0 100", "3:2+0 100", "3:7+4 100", "4:9+0 100"]);
    assert_ends_are_reported(nats, nats_message(3, 1).as_bytes());
}

#[test]
fn nats_gets_the_subscriptions_and_answers_to_its_pings() {
    let mut feed = nats();
    let opening = String::from_utf8(feed.output().to_vec()).unwrap();
    assert!(opening.starts_with("CONNECT {") && opening.contains("\"verbose\":false"), "{opening}");
    assert!(opening.ends_with("}\r\nSUB sim.> 1\r\nSUB a 2\r\nPING\r\n"), "{opening}");
    feed.output_written(opening.len());
    drain(&mut feed, b"PING\r\n").unwrap();
    assert_eq!(feed.output(), b"PONG\r\n");
    assert_eq!(
        refused(nats, b"-ERR 'Authorization Violation'\r\n"),
        FeedError::Refused("'Authorization Violation'".into())
    );
}

#[test]
fn a_server_that_pings_and_never_reads_is_dropped() {
    let pings = "PING\r\n".repeat(ANSWER_BYTES_MAX / 6);
    let mut feed = nats();
    assert!(drain(&mut feed, pings.as_bytes()).is_ok());
    assert_eq!(drain(&mut feed, b"PING\r\n"), Err(FeedError::Unread));
    let mut feed = nats();
    for _ in 0..3 {
        assert!(drain(&mut feed, pings.as_bytes()).is_ok());
        feed.output_written(feed.output().len());
    }
}

#[test]
fn invalid_nats_messages_are_errors() {
    for garbage in [
        "HTTP/1.1 400 Bad Request\r\n",
        "PONG\n",
        "\r\n",
        "MSG sim.1 1 x\r\n",
        "MSG sim.1 1 -1\r\n",
        "MSG sim.1 1 \r\n",
        "MSG 1 5\r\n",
        "MSG a b c d 5\r\n",
        "MSG sim.1 1 3\r\nabcdef",
    ] {
        assert!(matches!(refused(nats, garbage.as_bytes()), FeedError::Protocol(_)), "{garbage}");
    }
    assert_eq!(refused(nats, &[b'I'; LINE_BYTES_MAX]), FeedError::LongLine);
    assert!(drain(&mut nats(), &[b'I'; LINE_BYTES_MAX - 1]).is_ok());
    assert_eq!(refused(nats, b"MSG sim.1 1 16777217\r\n"), FeedError::LongPayload(16_777_217));
    assert_eq!(refused(nats, b"MSG sim.1 1 2\r\n{}\r\n"), FeedError::Unmarked);
}

fn redis_message(topic: u32, n: u64) -> String {
    let payload = payload(topic, n);
    format!("*3\r\n$7\r\nmessage\r\n$5\r\nsim.{topic}\r\n${}\r\n{payload}\r\n", payload.len())
}

#[test]
fn redis_messages_become_ticks_at_every_split() {
    let of_pattern = payload(4, 5);
    let stream = format!(
        "*3\r\n$10\r\npsubscribe\r\n$5\r\nsim.*\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:2\r\n{}{}*4\r\n$8\r\npmessage\r\n\
         $5\r\nsim.*\r\n$5\r\nsim.4\r\n$100\r\n{of_pattern}\r\n",
        redis_message(3, 1),
        redis_message(3, 3)
    );
    let events = events_at_every_split(redis, stream.as_bytes());
    assert_eq!(events, ["acknowledged", "acknowledged", "3:1+0 100", "3:3+1 100", "4:5+0 100"]);
    assert_ends_are_reported(redis, redis_message(3, 1).as_bytes());
}

#[test]
fn redis_gets_patterns_and_channels() {
    let opening = String::from_utf8(redis().output().to_vec()).unwrap();
    assert_eq!(opening, "*2\r\n$10\r\nPSUBSCRIBE\r\n$5\r\nsim.*\r\n*2\r\n$9\r\nSUBSCRIBE\r\n$3\r\na[b\r\n");
    let escaped = Peer::open(|output| Redis::open(&["a?[b]\\.*".into()], output));
    assert!(escaped.output().ends_with(b"$12\r\na\\?\\[b\\]\\\\.*\r\n"));
    assert_eq!(
        refused(redis, b"-ERR max number of clients reached\r\n"),
        FeedError::Refused("ERR max number of clients reached".into())
    );
}

#[test]
fn invalid_redis_messages_are_errors() {
    let nested = "*1\r\n".repeat(100_000);
    for garbage in [
        "INFO {}\r\n",
        "*0\r\n",
        "*5\r\n",
        "*-1\r\n",
        "*99999999999\r\n",
        "*3\r\n$-1\r\n",
        "*3\r\n$\r\n",
        "*3\r\n+OK\r\n",
        "*1\r\n$4\r\nabcdef\r\n",
        "*2\r\n$7\r\nmessage\r\n$1\r\na\r\n",
        "*1\r\n$4\r\nkeys\r\n",
        &nested,
    ] {
        assert!(matches!(refused(redis, garbage.as_bytes()), FeedError::Protocol(_)), "{garbage:.40}");
    }
    assert_eq!(refused(redis, &[b"*".as_slice(), &[b'1'; LINE_BYTES_MAX]].concat()), FeedError::LongLine);
    assert_eq!(refused(redis, &[b"-".as_slice(), &[b'E'; LINE_BYTES_MAX]].concat()), FeedError::LongLine);
    assert_eq!(refused(redis, b"*3\r\n$7\r\nmessage\r\n$16777217\r\n"), FeedError::LongPayload(16_777_217));
}

#[test]
fn websocket_messages_become_ticks_at_every_split() {
    let stream = [
        frame(0x8a, b""),
        frame(0x81, payload(3, 1).as_bytes()),
        frame(0x89, b"p"),
        frame(0x82, payload(3, 4).as_bytes()),
    ]
    .concat();
    let events = events_at_every_split(opened_websocket, &stream);
    assert_eq!(events, ["acknowledged", "3:1+0 100", "3:4+2 100"]);
    assert_ends_are_reported(opened_websocket, &frame(0x82, payload(3, 1).as_bytes()));
}

#[test]
fn the_upgrade_is_parsed_at_every_split_and_followed_by_a_ping() {
    let (_, answer) = websocket();
    for split in 0..=answer.len() {
        let (mut feed, answer) = websocket();
        let asked = feed.output().len();
        feed.output_written(asked);
        for part in [&answer[..split], &answer[split..]] {
            assert_eq!(drain(&mut feed, part.as_bytes()), Ok(vec![]));
        }
        assert_eq!((feed.output().len(), feed.output()[0], feed.output()[1]), (6, 0x89, 0x80), "{split}");
    }
}

#[test]
fn an_upgrade_that_is_refused_or_lacks_the_accept_key_is_an_error() {
    let refused = |answer: &str| drain(&mut websocket().0, answer.as_bytes()).unwrap_err();
    assert_eq!(
        refused("HTTP/1.1 404 Not Found\r\n\r\nno such channel\n"),
        FeedError::Refused("404 Not Found no such channel".into())
    );
    for answer in ["HTTP/1.1 101 Switching Protocols\r\n\r\n", "+PONG\r\n"] {
        assert!(matches!(refused(answer), FeedError::Protocol(_)), "{answer}");
    }
    let endless = format!("HTTP/1.1 101 Switching Protocols\r\nX: {}", "a".repeat(9_000));
    assert_eq!(refused(&endless), FeedError::LongLine);
}

#[test]
fn invalid_websocket_frames_are_errors() {
    let masked = [&[0x82, 0x81, 1, 2, 3, 4, b'x'][..]].concat();
    for garbage in
        [masked, frame(0x01, b"frag"), frame(0xc2, b"x"), frame(0x83, b"x"), frame(0x89, &[0; 126])]
    {
        assert!(matches!(refused(opened_websocket, &garbage), FeedError::Protocol(_)), "{garbage:?}");
    }
    let announced = [0x82, 127, 0, 0, 0, 1, 0, 0, 0, 0];
    assert_eq!(refused(opened_websocket, &announced), FeedError::LongPayload(1 << 32));
    assert_eq!(refused(opened_websocket, &frame(0x81, b"{\"at\":1}")), FeedError::Unmarked);
    let closed = refused(opened_websocket, &frame(0x88, &1001u16.to_be_bytes()));
    assert_eq!(closed, FeedError::Refused("it closed the WebSocket with code 1001".into()));
}

/// A feed after the upgrade that its request asks for, and what it has sent since, unmasked.
fn upgraded(mut feed: Feed) -> (Feed, Vec<Vec<u8>>) {
    let request = String::from_utf8(feed.output().to_vec()).unwrap();
    feed.output_written(request.len());
    let key = request.split("Sec-WebSocket-Key: ").nth(1).unwrap().split("\r\n").next().unwrap();
    let accept = tungstenite::handshake::derive_accept_key(key.as_bytes());
    let answer = format!("HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {accept}\r\n\r\n");
    assert_eq!(drain(&mut feed, answer.as_bytes()), Ok(vec![]));
    let sent = sent(&mut feed);
    (feed, sent)
}

/// The payloads of the short masked frames in the output.
fn sent(feed: &mut Feed) -> Vec<Vec<u8>> {
    let (mut bytes, mut payloads) = (feed.output().to_vec(), Vec::new());
    feed.output_written(bytes.len());
    while let [_, len, rest @ ..] = &bytes[..] {
        let (mask, rest) = rest.split_at(4);
        let (payload, rest) = rest.split_at(usize::from(len & 0x7f));
        payloads.push(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect());
        bytes = rest.to_vec();
    }
    payloads
}

fn socket_io() -> Feed {
    let patterns = ["sim.>".into(), "a\"b".into()];
    let feed = Peer::open(|output| SocketIo::open("h:1", "/socket.io/?EIO=4", &patterns, output));
    upgraded(Feed::SocketIo(feed)).0
}

fn text(text: &str) -> Vec<u8> {
    frame(0x81, text.as_bytes())
}

#[test]
fn socket_io_connects_subscribes_and_answers_pings() {
    let mut feed = socket_io();
    let mut answers = |packet: &str| {
        drain(&mut feed, &text(packet)).unwrap();
        let sent = sent(&mut feed);
        sent.into_iter().map(|payload| String::from_utf8(payload).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(answers("0{\"sid\":\"1\",\"pingInterval\":25000}"), ["40"]);
    let subscribes = ["420[\"subscribe\",\"sim.>\"]", "421[\"subscribe\",\"a\\\"b\"]"];
    assert_eq!(answers("40{\"sid\":\"2\"}"), subscribes);
    assert_eq!(answers("2"), ["3"]);
    assert_eq!(answers("40{\"sid\":\"2\"}"), [""; 0], "it subscribes once");
}

#[test]
fn socket_io_ticks_of_tickcast_and_of_peers_are_read_at_every_split() {
    let stream = [
        frame(0x8a, b""),
        text("430[{\"op\":\"subscribed\",\"id\":0,\"pattern\":\"sim.>\",\"topics\":[]}]"),
        text("431[]"),
        text(&format!("42[\"tick\",{{\"topic\":\"sim.3\",\"seq\":1,\"ts\":1,\"data\":{}}}]", payload(3, 1))),
        text("42[\"gap\",{\"op\":\"gap\"}]"),
        text("6"),
        text(&format!("42[\"tick\",{}]", payload(3, 4))),
    ]
    .concat();
    let events = events_at_every_split(socket_io, &stream);
    assert_eq!(events, ["acknowledged", "acknowledged", "3:1+0 100", "3:4+2 100"]);
}

#[test]
fn refusals_and_other_packets_end_a_socket_io_connection() {
    for refusal in
        ["44{\"message\":\"no\"}", "41", "1", "430[{\"op\":\"error\",\"id\":0}]", "42[\"closing\",{}]"]
    {
        assert!(matches!(refused(socket_io, &text(refusal)), FeedError::Refused(_)), "{refusal}");
    }
    for garbage in ["", "x", "42[\"tick\",1]", "42[\"tick\",", "42[\"tick\",{\"a\":1,\"data\":"] {
        assert!(matches!(refused(socket_io, &text(garbage)), FeedError::Protocol(_)), "{garbage}");
    }
    assert_eq!(refused(socket_io, &text("42[\"tick\",{\"a\":1,\"data\":{}}]")), FeedError::Unmarked);
}

fn protobuf() -> Feed {
    let patterns = ["sim.>".into()];
    upgraded(Feed::Protobuf(Peer::open(|output| Protobuf::open("h:1", &patterns, true, output)))).0
}

#[test]
fn protobuf_messages_become_ticks_at_every_split() {
    use prost::Message;
    use tickcast_proto::codec::protobuf::messages::{Error, Event, Events, Subscribed, Tick, Topic, event};
    let tick = |n| {
        event::Event::Tick(Tick {
            topic: "sim.3".into(),
            sequence: 1 << 40,
            producer_time_ns: 1,
            payload: payload(3, n).into_bytes(),
            ingest_time_ns: 2,
            previous: Some(n),
            ..Tick::default()
        })
    };
    let message = |events: Vec<event::Event>| {
        let events = events.into_iter().map(|event| Event { event: Some(event) }).collect();
        frame(0x82, &Events { events }.encode_to_vec())
    };
    let subscribed = event::Event::Subscribed(Subscribed { id: 2, pattern: "sim.>".into() });
    let topic = event::Event::Topic(Topic { name: "sim.3".into(), ..Topic::default() });
    let stream = [
        frame(0x8a, b""),
        message(vec![subscribed]),
        message(vec![topic, tick(1), tick(2)]),
        message(vec![tick(4)]),
    ]
    .concat();
    let events = events_at_every_split(protobuf, &stream);
    assert_eq!(events, ["acknowledged", "3:1+0 100", "3:2+0 100", "3:4+1 100"]);
    let error = event::Event::Error(Error { text: "no".into(), ..Error::default() });
    assert_eq!(refused(protobuf, &message(vec![error])), FeedError::Refused("no".into()));
    for garbage in [&b"\x0a\x7f"[..], b"\x12\x00", b"\x0a", b"\x0a\x02\x0a\x05", b"\x0a\x04\x0a\x02\x22\x09"]
    {
        assert!(matches!(refused(protobuf, &frame(0x82, garbage)), FeedError::Protocol(_)), "{garbage:?}");
    }
}

#[test]
fn protobuf_asks_for_batches_unless_they_are_not_wanted() {
    use prost::Message;
    use tickcast_proto::codec::protobuf::messages::{Request, request::Command};
    for batches in [true, false] {
        let patterns = ["sim.>".into(), "a".into()];
        let feed = Feed::Protobuf(Peer::open(|output| Protobuf::open("h:1", &patterns, batches, output)));
        let request = String::from_utf8(feed.output().to_vec()).unwrap();
        assert!(request.contains("\r\nSec-WebSocket-Protocol: tickcast.v1.protobuf\r\n"), "{request}");
        let (_, sent) = upgraded(feed);
        assert_eq!(sent[0], b"", "the ping of every WebSocket");
        let commands: Vec<_> =
            sent[1..].iter().map(|bytes| Request::decode(&bytes[..]).unwrap().command.unwrap()).collect();
        let [Command::Hello(hello), Command::Subscribe(subscribe)] = &commands[..] else {
            panic!("{commands:?}")
        };
        assert_eq!(hello.features.contains(&"batches".to_owned()), batches);
        assert_eq!(subscribe.patterns, patterns);
    }
}
