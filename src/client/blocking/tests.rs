use std::io::Write;

use super::*;
use crate::{PUBLISHES_UNACKNOWLEDGED_MAX, RequestError, scripted_server::serve};
use tickcast_proto::{WireFormat, features::Features, frame::Kind};

const LONG: Duration = Duration::from_secs(20);

#[test]
fn addresses_are_parsed() {
    let parse = |text: &str| Address::parse(text).map(|a| (a.host, a.path, a.encoding)).ok();
    let native = |host: &str| Some((host.into(), String::new(), WireFormat::TCP_NATIVE));
    assert!(!Address::parse("ws://h:80").unwrap().is_tls);
    assert!(["tls://h:80", "wss://h:80"].iter().all(|text| Address::parse(text).unwrap().is_tls));
    let websocket = |host: &str, path: &str| Some((host.into(), path.into(), WireFormat::WEBSOCKET_NATIVE));
    assert_eq!(parse("127.0.0.1:9400"), native("127.0.0.1:9400"));
    assert_eq!(parse("tcp://[::1]:1"), native("[::1]:1"));
    assert_eq!(parse("tls://h:1"), native("h:1"));
    assert_eq!(parse("wss://h:1/x"), websocket("h:1", "/x"));
    assert_eq!(parse("unix:/run/a b.sock"), native("unix:/run/a b.sock"));
    assert_eq!(parse("ws://h:80"), websocket("h:80", "/ws"));
    assert_eq!(parse("ws://h:80/ws?topics=a"), websocket("h:80", "/ws?topics=a"));
    for bad in [
        "",
        "unix:",
        "host",
        "host:",
        ":1",
        "host:99999",
        "h:1/path",
        "https://h:1/ws",
        "tls://h:1/ws",
        "ws://h:1/ws\r\nX: y",
        "h h:1",
    ] {
        assert_eq!(parse(bad), None, "{bad:?}");
    }
}

#[test]
#[cfg(unix)]
fn a_unix_socket_whose_server_accepts_nobody_is_a_timeout() {
    use socket2::{Domain, SockAddr, Socket, Type};
    let path = std::env::temp_dir().join(format!("tickcast-full-{}.sock", std::process::id()));
    let address = SockAddr::unix(&path).unwrap();
    let stream = || Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    let listener = stream();
    listener.bind(&address).unwrap();
    listener.listen(0).unwrap();
    let waits = || {
        let socket = stream();
        socket.set_nonblocking(true).unwrap();
        socket.connect(&address).map(|()| socket)
    };
    let waiting: Vec<Socket> = std::iter::from_fn(|| waits().ok()).collect();
    assert!(!waiting.is_empty() && waits().unwrap_err().kind() == ErrorKind::WouldBlock);
    let path = path.to_str().unwrap();
    let refused = connect_unix(path, Duration::from_millis(1)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TimedOut);
    drop(listener.accept().unwrap());
    connect_unix(path, LONG).unwrap();
    std::fs::remove_file(path).unwrap();
}

#[test]
fn client_subscribes_receives_ticks_and_sees_the_end() {
    let (address, server) = serve(|peer| {
        peer.welcome();
        peer.subscribed();
        peer.tick(1, b"one");
        peer.closing(3001, "stopping");
    });
    let mut client = Client::connect(&address).unwrap();
    let request = client.subscribe("a.>").unwrap();
    let event = client.next_event(Some(LONG)).unwrap();
    assert_eq!(event, Some(Event::Subscribed { request, pattern: "a.>" }));
    assert!(matches!(client.next_event(Some(LONG)), Ok(Some(Event::Topic { name: "a.b", .. }))));
    let Ok(Some(Event::Tick(tick))) = client.next_event(Some(LONG)) else { panic!("tick") };
    assert_eq!((tick.topic, tick.sequence.0, tick.payload), ("a.b", 1, &b"one"[..]));
    assert!(matches!(client.next_event(Some(LONG)), Ok(Some(Event::Closing { code: 3001, .. }))));
    assert!(matches!(client.next_event(Some(LONG)), Ok(Some(Event::Closed))));
    assert!(matches!(client.next_event(Some(LONG)), Err(ClientError::Io(_))), "nothing can follow the end");
    server.join().unwrap();
}

#[test]
fn next_event_times_out() {
    let (address, server) = serve(|peer| {
        peer.welcome();
        assert_eq!(peer.next_frame(), None);
    });
    let mut client = Client::connect(&address).unwrap();
    assert_eq!(client.next_event(Some(Duration::ZERO)).unwrap(), None);
    assert_eq!(client.next_event(Some(Duration::from_millis(20))).unwrap(), None);
    client.close().unwrap();
    server.join().unwrap();
}

#[test]
fn barrier_waits_for_its_own_pong_and_passes_other_events_on() {
    let (address, server) = serve(|peer| {
        peer.welcome();
        let (kind, request, payload) = peer.next_frame().unwrap();
        assert_eq!((kind, payload), (Kind::Publish, b"x".to_vec()));
        let (kind, token, _) = peer.next_frame().unwrap();
        assert_eq!(kind, Kind::Ping);
        peer.error(request, "no");
        peer.pong(token + 1);
        peer.pong(token);
    });
    let mut client = Client::connect(&address).unwrap();
    client.publish(PublishRequest { topic: "t", payload: b"x", ..PublishRequest::default() }).unwrap();
    let mut others = 0;
    client.barrier(LONG, |_| others += 1).unwrap();
    assert_eq!(others, 2);
    server.join().unwrap();
}

/// A client that asks for acknowledgements.
fn connect_acknowledged(address: &str) -> Client {
    let address = Address::parse(address).unwrap();
    let options = ConnectOptions { acknowledgements: true, ..address.connect_options() };
    Client::connect_with(&address, &options).unwrap()
}

const TICK: PublishRequest<'_> =
    PublishRequest { topic: "a.b", payload: b"x", producer_time_ns: 0, schema: 0, key: 0, message_id: "" };

#[test]
fn barrier_waits_for_the_answer_to_each_publish_whatever_the_order() {
    let (address, server) = serve(|peer| {
        peer.welcome_with(3, Some(Features::PUBLISHED));
        let requests = [(); 3].map(|()| peer.next_frame().unwrap().1);
        let (_, token, _) = peer.next_frame().unwrap();
        peer.pong(token);
        peer.published(requests[2], 2);
        peer.error(requests[0], "no");
        peer.published(requests[1], 1);
        requests
    });
    let mut client = connect_acknowledged(&address);
    assert!(client.connection().acknowledges());
    for _ in 0..3 {
        client.publish(TICK).unwrap();
    }
    assert_eq!(client.connection().unacknowledged(), 3);
    let mut answers = Vec::new();
    client
        .barrier(LONG, |event| match event {
            Event::Published { request, topic: "a.b", epoch: 3, sequence, is_duplicate: false } => {
                answers.push((request, sequence))
            }
            Event::Error { request, .. } => answers.push((request, 0)),
            other => panic!("{other:?}"),
        })
        .unwrap();
    let requests = server.join().unwrap().map(|request| request as u32);
    assert_eq!(answers, [(requests[2], 2), (requests[0], 0), (requests[1], 1)]);
    assert_eq!(client.connection().unacknowledged(), 0);
}

#[test]
fn publish_acknowledged_returns_the_position_or_the_refusal() {
    let (address, server) = serve(|peer| {
        peer.welcome_with(3, Some(Features::PUBLISHED));
        let (_, request, _) = peer.next_frame().unwrap();
        peer.pong(7);
        peer.published(request, 9);
        let (_, request, _) = peer.next_frame().unwrap();
        peer.error(request, "no");
        peer.next_frame().unwrap();
        peer.closing(3001, "stopping");
    });
    let mut client = connect_acknowledged(&address);
    let mut others = 0;
    let position = client.publish_acknowledged(TICK, LONG, |_| others += 1).unwrap();
    assert_eq!((position, others), (Some(Position { epoch: 3, sequence: 9 }), 1));
    let refused = client.publish_acknowledged(TICK, LONG, |_| {});
    assert!(matches!(refused, Err(ClientError::Refused { code: 101, .. })), "{refused:?}");
    let closed = client.publish_acknowledged(TICK, LONG, |_| {});
    assert!(matches!(closed, Err(ClientError::Closed { code: 3001, .. })), "{closed:?}");
    server.join().unwrap();
}

#[test]
fn server_without_acknowledgements_answers_a_ping_instead() {
    let (address, server) = serve(|peer| {
        peer.welcome();
        peer.next_frame().unwrap();
        let (kind, token, _) = peer.next_frame().unwrap();
        peer.pong(token);
        kind
    });
    let mut client = connect_acknowledged(&address);
    assert!(!client.connection().acknowledges());
    assert_eq!(client.publish_acknowledged(TICK, LONG, |_| {}).unwrap(), None);
    assert_eq!((server.join().unwrap(), client.connection().unacknowledged()), (Kind::Ping, 0));
}

#[test]
fn publishes_beyond_the_window_are_rejected_until_one_is_answered() {
    let (address, server) = serve(|peer| {
        peer.welcome_with(3, Some(Features::PUBLISHED));
        let (_, first, _) = peer.next_frame().unwrap();
        (1..PUBLISHES_UNACKNOWLEDGED_MAX).for_each(|_| drop(peer.next_frame().unwrap()));
        peer.published(first, 1);
        peer.next_frame().unwrap();
    });
    let mut client = connect_acknowledged(&address);
    for _ in 0..PUBLISHES_UNACKNOWLEDGED_MAX {
        client.publish(TICK).unwrap();
    }
    let rejected = client.publish(TICK);
    assert!(matches!(rejected, Err(ClientError::Request(RequestError::Unacknowledged))), "{rejected:?}");
    assert!(matches!(client.next_event(Some(LONG)), Ok(Some(Event::Published { sequence: 1, .. }))));
    client.publish(TICK).unwrap();
    server.join().unwrap();
}

#[test]
fn replies_are_read_while_a_write_is_blocked() {
    const TICKS: usize = 3_000;
    let (address, server) = serve(|peer| {
        peer.welcome();
        // 3.8 MB before anything is read: more than a receive buffer, less than the client buffers.
        for _ in 0..80_000 {
            peer.error(1, "no");
        }
        let mut taken = 0;
        while let Some((kind, token, _)) = peer.next_frame() {
            match kind {
                Kind::Ping => peer.pong(token),
                _ => taken += 1,
            }
        }
        taken
    });
    let mut client = Client::connect(&address).unwrap();
    let payload = vec![b'x'; 4 << 10];
    for _ in 0..TICKS {
        let publish = PublishRequest { topic: "t", payload: &payload, ..PublishRequest::default() };
        client.publish_buffered(publish).unwrap();
        while let Some(event) = client.next_event(Some(Duration::ZERO)).unwrap() {
            assert!(matches!(event, Event::Error { .. }));
        }
    }
    client.barrier(LONG, |_| {}).unwrap();
    client.close().unwrap();
    assert_eq!(server.join().unwrap(), TICKS);
}

#[test]
fn a_client_that_closes_with_unread_input_loses_no_publish() {
    const PUBLISHES: usize = 200;
    let (address, server) = serve(|peer| {
        peer.welcome();
        // More than the client has read when it closes: without its last reads, the connection would be reset.
        for _ in 0..1_000 {
            peer.error(1, "no");
        }
        std::iter::from_fn(|| peer.next_frame()).filter(|(kind, ..)| *kind == Kind::Publish).count()
    });
    let mut client = Client::connect(&address).unwrap();
    client.next_event(Some(LONG)).unwrap();
    let payload = [b'x'; 4 << 10];
    for _ in 0..PUBLISHES {
        let publish = PublishRequest { topic: "t", payload: &payload, ..PublishRequest::default() };
        client.publish_buffered(publish).unwrap();
    }
    client.close().unwrap();
    assert_eq!(server.join().unwrap(), PUBLISHES);
}

#[test]
fn refused_connection_is_an_error_with_the_reason() {
    let (address, server) = serve(|peer| peer.closing(3001, "stopping"));
    let error = Client::connect(&address).unwrap_err();
    assert!(matches!(&error, ClientError::Closed { code: 3001, .. }), "{error:?}");
    assert!(error.to_string().contains("stopping"));
    server.join().unwrap();

    let (address, server) = serve(|peer| {
        peer.next_frame();
        peer.stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let error = Client::connect(&address).unwrap_err();
    assert!(matches!(&error, ClientError::Address(_)), "{error:?}");
    assert_eq!(error.to_string(), format!("{address} is an HTTP port: use ws://{address}/ws"));
    server.join().unwrap();

    // The alert unexpected_message.
    let (address, server) = serve(|peer| {
        peer.next_frame();
        peer.stream.write_all(&[21, 3, 3, 0, 2, 2, 10]).unwrap();
    });
    let error = Client::connect(&address).unwrap_err();
    assert_eq!(error.to_string(), format!("{address} speaks TLS: use tls://{address}"));
    server.join().unwrap();

    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(matches!(Client::connect(&closed.to_string()), Err(ClientError::Connect { .. })));
}

#[test]
fn publisher_fails_when_the_server_half_closes_and_stops_reading() {
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let (address, server) = serve(move |peer| {
        peer.welcome();
        // It does not read either, so its socket fills up.
        peer.stream.shutdown(Shutdown::Write).unwrap();
        let _ = is_done.recv();
    });
    let mut client = Client::connect(&address).unwrap();
    let payload = [b'x'; 64 << 10];
    let publish = PublishRequest { topic: "a", payload: &payload, ..PublishRequest::default() };
    // 130 MB: more than the buffers of two sockets hold.
    let failed = (0..2_000).find_map(|_| client.publish(publish).err());
    assert!(matches!(failed, Some(ClientError::Io(_))), "{failed:?}");
    drop(done);
    server.join().unwrap();
}

#[test]
fn publisher_with_unread_ticks_learns_that_the_server_is_gone() {
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let (address, server) = serve(move |peer| {
        peer.welcome();
        peer.subscribed();
        peer.tick(1, b"unread");
        peer.stream.shutdown(Shutdown::Both).unwrap();
        // Keep the socket, so that the client can still read what it has received.
        let _ = is_done.recv();
    });
    let mut client = Client::connect(&address).unwrap();
    client.subscribe("a.>").unwrap();
    assert!(matches!(client.next_event(Some(LONG)), Ok(Some(Event::Subscribed { .. }))));
    let publish = PublishRequest { topic: "a", payload: b"x", ..PublishRequest::default() };
    let failed = (0..100_000).find_map(|_| client.publish(publish).err());
    assert!(matches!(failed, Some(ClientError::Io(_))), "{failed:?}");
    drop(done);
    server.join().unwrap();
}

#[test]
fn answers_received_before_a_failed_write_are_returned_before_the_failure() {
    let (closed, is_closed) = std::sync::mpsc::channel();
    let (address, server) = serve(move |peer| {
        peer.welcome_with(3, Some(Features::PUBLISHED));
        let requests = [(); 3].map(|()| peer.next_frame().unwrap().1);
        peer.published(requests[0], 1);
        peer.error(requests[1], "no");
        peer.closing(3001, "stopping");
        peer.stream.shutdown(Shutdown::Both).unwrap();
        closed.send(()).unwrap();
    });
    let mut client = connect_acknowledged(&address);
    let requests = [(); 3].map(|()| client.publish(TICK).unwrap());
    is_closed.recv().unwrap();
    let failed = (0..100_000).find_map(|_| client.ping().err());
    assert!(matches!(failed, Some(ClientError::Io(_))), "{failed:?}");
    let published = client.next_event(Some(LONG)).unwrap();
    assert!(matches!(published, Some(Event::Published { request, .. }) if request == requests[0]));
    let refused = client.next_event(Some(LONG)).unwrap();
    assert!(matches!(refused, Some(Event::Error { request, .. }) if request == requests[1]));
    assert!(matches!(client.next_event(Some(LONG)), Ok(Some(Event::Closing { code: 3001, .. }))));
    assert!(matches!(client.next_event(Some(LONG)), Ok(Some(Event::Closed))));
    assert!(matches!(client.next_event(Some(LONG)), Err(ClientError::Io(_))));
    assert_eq!(client.connection().unacknowledged(), 1);
    server.join().unwrap();
}

#[test]
fn barrier_after_a_failed_write_says_why_the_server_closed() {
    let (closed, is_closed) = std::sync::mpsc::channel();
    let (address, server) = serve(move |peer| {
        peer.welcome_with(3, Some(Features::PUBLISHED));
        let request = peer.next_frame().unwrap().1;
        peer.published(request, 1);
        peer.closing(3001, "stopping");
        peer.stream.shutdown(Shutdown::Both).unwrap();
        closed.send(()).unwrap();
    });
    let mut client = connect_acknowledged(&address);
    client.publish(TICK).unwrap();
    is_closed.recv().unwrap();
    assert!((0..100_000).any(|_| client.ping().is_err()));
    let mut published = 0;
    let failed = client
        .barrier(LONG, |event| published += usize::from(matches!(event, Event::Published { .. })))
        .unwrap_err();
    assert!(matches!(failed, ClientError::Closed { code: 3001, .. }), "{failed:?}");
    assert_eq!(published, 1);
    server.join().unwrap();
}

/// A server that reads nothing after the welcome, until the sender is dropped.
fn serve_unread() -> (String, std::sync::mpsc::Sender<()>, std::thread::JoinHandle<()>) {
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let (address, server) = serve(move |peer| {
        peer.welcome_with(3, Some(Features::PUBLISHED));
        let _ = is_done.recv();
    });
    (address, done, server)
}

#[test]
fn timeout_of_an_acknowledged_publish_covers_the_write() {
    let (address, done, server) = serve_unread();
    let mut client = connect_acknowledged(&address);
    let payload = vec![b'x'; 200 << 10];
    let publish = PublishRequest { topic: "a", payload: &payload, ..PublishRequest::default() };
    // 100 MB: more than the buffers of two sockets hold.
    let is_full = (0..500).any(|_| match client.publish_acknowledged(publish, Duration::ZERO, |_| {}) {
        Err(ClientError::TimedOut { awaited, .. }) => awaited == ROOM_AWAITED,
        other => panic!("{other:?}"),
    });
    assert!(is_full);
    let failed = client.barrier(Duration::ZERO, |_| {}).unwrap_err();
    assert_eq!(failed.to_string(), "no room for a write within 0ns: the server does not read what is sent");
    drop(done);
    server.join().unwrap();
}

#[test]
fn write_timeout_ends_a_write_to_a_server_that_reads_nothing() {
    let (address, done, server) = serve_unread();
    let mut client = connect_acknowledged(&address);
    client.set_write_timeout(Some(Duration::from_millis(1)));
    let payload = vec![b'x'; 200 << 10];
    let publish = PublishRequest { topic: "a", payload: &payload, ..PublishRequest::default() };
    let failed = (0..500).find_map(|_| client.publish_buffered(publish).err());
    assert!(matches!(failed, Some(ClientError::TimedOut { awaited: ROOM_AWAITED, .. })), "{failed:?}");
    drop(done);
    server.join().unwrap();
}

#[test]
fn timed_out_barrier_names_what_is_missing() {
    let (timed_out, has_timed_out) = std::sync::mpsc::channel();
    let (address, server) = serve(move |peer| {
        peer.welcome_with(3, Some(Features::PUBLISHED));
        peer.next_frame().unwrap();
        let (_, token, _) = peer.next_frame().unwrap();
        has_timed_out.recv().unwrap();
        // The answer to the next ping, so that it is there when the client sends it.
        peer.pong(token + 1);
        while peer.next_frame().is_some() {}
    });
    let mut client = connect_acknowledged(&address);
    client.publish(TICK).unwrap();
    let failed = client.barrier(Duration::ZERO, |_| {}).unwrap_err();
    assert_eq!(failed.to_string(), "no answer to a ping within 0ns");
    timed_out.send(()).unwrap();
    assert!(client.await_event(Some(LONG)).unwrap());
    let failed = client.barrier(Duration::ZERO, |_| {}).unwrap_err();
    assert_eq!(failed.to_string(), "no acknowledgement of each publish within 0ns");
    drop(client);
    server.join().unwrap();
}
