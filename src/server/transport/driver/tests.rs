use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
};

use rustls::{ClientConfig, ServerConfig};
use tickcast_tls::{
    handshake::{Established, Progress},
    record::Outcome,
    testing,
};

use super::*;
use crate::{
    operator::control::control_channels,
    transport::{
        admission::ConnectionCounts,
        handover::handover_lanes,
        tls::{ParkedSend, Then},
        uring::data_ring::{Settings, eventfd},
    },
};
use tickcast_core::{
    config::Limits, ids::TenantId, mesh::mesh, metrics::counters::Counters, networks::Networks, placement,
    testing::hello_as,
};
use tickcast_proto::{Step, frame, ids::ShardId, records::Publish};

/// Maximum turns in which a test's condition must become true.
const TURNS_MAX: usize = 1_000_000;

/// The first of two shards, with one listener for native clients over TLS, and a connected client.
struct Bench {
    driver: Driver,
    /// The lanes of the other shard.
    other: HandoverLanes,
    slot: u32,
    socket: TcpStream,
    client: Box<Established>,
}

/// The first of two shards, with one listener of this kind, and the lanes of the other.
fn driver(kind: ListenerKind, tls: Option<Arc<ServerConfig>>) -> (Driver, HandoverLanes) {
    let bells: Vec<_> = (0..2).map(|_| Arc::new(Doorbell::new(|| {}))).collect();
    let shard = Shard::new(ShardId(0), 2, 1, Limits::default(), Arc::new(Counters::default()));
    let settings = Settings { slots: 8, receive_buffers: 8, receive_buffer_bytes: 4096 };
    let counts = ConnectionCounts::new(8, 0, Networks::default(), Networks::default());
    let mut lanes: Vec<HandoverLanes> = handover_lanes(&bells);
    let (other, own) = (lanes.pop().unwrap(), lanes.pop().unwrap());
    let mut driver = Driver::new(
        shard,
        DataRing::new(settings, eventfd().unwrap()).unwrap(),
        (mesh(&bells, 1 << 16).swap_remove(0), own),
        bells[0].clone(),
        Arc::new(Stop::new(bells.clone())),
        Admission::new(counts, 0, 2),
        ControlQueue::new(control_channels(&bells).1.swap_remove(0)),
    );
    driver.listeners = vec![ClientListener::new(kind, ClientAddress::Peer, false, false, TenantId::DEFAULT)];
    driver.tls.set_configs(vec![tls]);
    (driver, other)
}

/// A connection that the driver has just accepted.
fn accepted(driver: &mut Driver) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    driver.accepted(ListenerId(0), listener.accept().unwrap().0.into(), clock::now());
    socket
}

impl Bench {
    /// Accepts a connection and performs the handshake up to the client's Finished. Also returns the Finished, which has not been
    /// sent.
    fn connect() -> (Bench, Vec<u8>) {
        let (server, config): (_, Arc<ClientConfig>) = testing::configs();
        let (mut driver, other) = driver(ListenerKind::Native, Some(server));
        let mut socket = accepted(&mut driver);
        socket.set_nonblocking(true).unwrap();
        let (mut handshake, hello) = testing::hello(&config);
        socket.write_all(&hello).unwrap();
        let mut finished = Vec::new();
        for _ in 0..TURNS_MAX {
            driver.turn().unwrap();
            let flight = received(&mut socket);
            if let Progress::Done(client) = handshake.advance(&flight, &mut finished).unwrap() {
                return (Bench { driver, other, slot: 0, socket, client }, finished);
            }
        }
        panic!("the server's flight has not come");
    }

    /// Runs turns until the condition holds.
    fn turns_until(&mut self, what: &str, mut holds: impl FnMut(&mut Bench) -> bool) {
        for _ in 0..TURNS_MAX {
            self.driver.turn().unwrap();
            if holds(self) {
                return;
            }
        }
        panic!("{what}");
    }

    /// Reads from the server until it closes its side.
    fn read_to_close(&mut self) -> Vec<u8> {
        let (mut sealed, mut read) = (Vec::new(), Vec::new());
        self.turns_until("the server closes its side", |bench| {
            sealed.extend(received(&mut bench.socket));
            let opened = bench.client.records.open(&mut sealed);
            read.extend_from_slice(&sealed[..opened.plaintext]);
            sealed.drain(..opened.used);
            opened.outcome == Outcome::Closed
        });
        read
    }

    fn seal(&mut self, plaintext: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::new();
        self.client.records.seal(plaintext, &mut sealed);
        sealed
    }

    fn counter(&self, counter: Counter) -> u64 {
        self.driver.shard.counters().value(counter)
    }
}

/// Bytes that have arrived.
fn received(socket: &mut TcpStream) -> Vec<u8> {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        match socket.read(&mut chunk) {
            Ok(0) => return bytes,
            Ok(len) => bytes.extend_from_slice(&chunk[..len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return bytes,
            Err(error) => panic!("{error}"),
        }
    }
}

fn kinds(mut bytes: &[u8]) -> Vec<frame::Kind> {
    let mut kinds = Vec::new();
    while let Ok(Step::Complete(used, frame)) = frame::decode(bytes, 1 << 20) {
        kinds.push(frame.kind);
        bytes = &bytes[used..];
    }
    kinds
}

#[test]
fn an_overloaded_shard_refuses_new_connections_only_if_the_operator_wants_that() {
    for (kind, answer) in
        [(ListenerKind::Native, &3504u16.to_le_bytes()[..]), (ListenerKind::Http, b"HTTP/1.1 503 ")]
    {
        let (mut driver, _other) = driver(kind, None);
        let refused = |driver: &Driver| driver.shard.counters().value(Counter::SessionsRefusedOverload);
        driver.overload_refuses = true;
        let _before = accepted(&mut driver);
        assert_eq!((driver.shard.sessions_len(), refused(&driver)), (1, 0), "{kind:?}: not overloaded");
        driver.shard.counters().set(Counter::Overloaded, 1);
        let mut socket = accepted(&mut driver);
        assert_eq!((driver.shard.sessions_len(), refused(&driver)), (1, 1), "{kind:?}");
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("the server is overloaded (--overload-refuse)"), "{kind:?}: {text}");
        assert!(bytes.windows(answer.len()).any(|part| part == answer), "{kind:?}: {text}");
        driver.overload_refuses = false;
        let _served = accepted(&mut driver);
        assert_eq!((driver.shard.sessions_len(), refused(&driver)), (2, 1), "{kind:?}: served");
    }
}

/// A HELLO from a client that the other shard must serve.
fn hello_elsewhere() -> Vec<u8> {
    let names = (0..).map(|n| format!("client-{n}"));
    hello_as(&names.into_iter().find(|name| placement::serving_shard(name, 2) == ShardId(1)).unwrap())
}

#[test]
fn what_waits_for_the_turn_of_a_handshake_is_handled_before_the_fin_behind_it() {
    let (mut bench, finished) = Bench::connect();
    let mut frames = hello_as("");
    let topics = (0..).map(|n| format!("t{n}"));
    let topic = topics.into_iter().find(|topic| placement::home_shard(topic, 2) == ShardId(0)).unwrap();
    frame::encode_publish(&mut frames, 0, 0, 0, Publish::default(), &topic, b"1");
    // Everything, including FIN, arrives before the server looks.
    let sent = [finished, bench.seal(&frames)].concat();
    bench.socket.write_all(&sent).unwrap();
    bench.socket.shutdown(Shutdown::Write).unwrap();
    bench.turns_until("the session ends", |bench| bench.driver.shard.sessions_len() == 0);
    assert_eq!(bench.counter(Counter::TicksSequenced), 1, "nothing is lost");
    assert_eq!(bench.counter(Counter::ClosedByPeer), 1);
    assert_eq!(kinds(&bench.read_to_close())[0], frame::Kind::Welcome);
}

#[test]
fn a_connection_that_is_to_move_is_not_received_from_any_more_although_it_still_sends() {
    let (mut bench, finished) = Bench::connect();
    let hello = hello_elsewhere();
    let sent = [finished, bench.seal(&hello)].concat();
    // As if an alert or a ticket were waiting for room in the socket.
    bench.driver.tls.get_mut(bench.slot).unwrap().parked = ParkedSend::Own;
    bench.socket.write_all(&sent).unwrap();
    let slot = bench.slot;
    bench.turns_until("the handover begins", |bench| {
        bench.driver.tls.get_mut(slot).unwrap().then == Then::Detach
    });
    let more = bench.seal(&[0; 4_000]);
    bench.socket.write_all(&more).unwrap();
    for _ in 0..100 {
        bench.driver.turn().unwrap();
    }
    bench.driver.writable(slot, clock::now()).unwrap();
    let mut handover = None;
    bench.turns_until("the connection moves", |bench| {
        if let Some(Transfer::Admitted(taken)) = bench.other.take() {
            handover = Some(taken);
        }
        handover.is_some()
    });
    let handover = handover.unwrap();
    assert_eq!(handover.departure.bytes, hello, "the rest waits in the socket");
    let mut socket = TcpStream::from(handover.socket);
    let mut rest = vec![0; more.len()];
    socket.read_exact(&mut rest).unwrap();
    assert_eq!(rest, more);
}

#[test]
fn a_session_that_ends_before_it_moves_stays_and_sees_the_fin_of_its_peer() {
    let (mut bench, finished) = Bench::connect();
    let sent = [finished, bench.seal(&hello_elsewhere())].concat();
    bench.driver.tls.get_mut(bench.slot).unwrap().parked = ParkedSend::Own;
    bench.socket.write_all(&sent).unwrap();
    let slot = bench.slot;
    bench.turns_until("the handover begins", |bench| {
        bench.driver.tls.get_mut(slot).unwrap().then == Then::Detach
    });
    bench.driver.shard.begin_drain(u64::MAX, clock::now());
    bench.driver.turn().unwrap();
    bench.driver.writable(slot, clock::now()).unwrap();
    assert_eq!(kinds(&bench.read_to_close()), [frame::Kind::Closing]);
    bench.socket.shutdown(Shutdown::Write).unwrap();
    bench.turns_until("the session ends", |bench| bench.driver.shard.sessions_len() == 0);
    assert!(bench.other.take().is_none());
}
