//! Clients with an identity: one shard serves them whichever accepted them, and a newer connection can replace the older.

use std::{collections::HashSet, thread};

use crate::harness::{
    Server, beside_others,
    collector::{address, barrier, connect, publish},
    eventually,
    external::{External, Library, ticks},
    frames::{self, Raw},
    raw::{CLOSE, Peer, upgrade_request},
};
use tickcast_client::{Client, ConnectOptions};
use tickcast_proto::WireFormat;

/// With time for every handshake on a busy machine.
const SHARDS: [&str; 4] = ["--shards", "4", "--handshake-deadline", "10m"];

fn hello(identity: &[u8]) -> Vec<u8> {
    let record = [&1u32.to_le_bytes()[..], &(identity.len() as u16).to_le_bytes(), &[0; 2]].concat();
    Raw::new(frames::HELLO, &record, &[identity, b"raw"].concat()).bytes()
}

/// A native session with an identity, after WELCOME.
fn native(server: &Server, identity: &str) -> Peer {
    let mut peer = Peer::connect(server.tcp);
    peer.send(&hello(identity.as_bytes()));
    assert_eq!(peer.frame().unwrap().kind, frames::WELCOME);
    peer
}

fn assert_answers(peer: &mut Peer, token: u64) {
    peer.send(&Raw::ping(token).bytes());
    assert_eq!(peer.frame().unwrap().token(), token);
}

#[test]
fn connections_of_one_identity_share_a_shard_and_keep_their_early_requests() {
    let _machine = beside_others();
    let server = Server::start(&SHARDS);
    drop(native(&server, "first"));
    eventually("the first is gone", || server.connections() == 0);
    let baseline = server.descriptors();
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);

    const EACH: usize = 60;
    let subscribe = Raw::request(frames::SUBSCRIBE, 2, b"t").bytes();
    let opening = [hello("käse & co".as_bytes()), subscribe, Raw::ping(9).bytes()].concat();
    let mut natives: Vec<Peer> = (0..EACH).map(|_| Peer::connect(server.tcp)).collect();
    let mut websockets: Vec<Peer> = (0..EACH).map(|_| Peer::connect(server.http)).collect();
    let path = "/ws?client=k%C3%A4se%20%26%20co&topics=t";
    for (native, websocket) in natives.iter_mut().zip(&mut websockets) {
        native.send(&opening);
        // A ping follows the handshake in the same write.
        let ping = [0x89, 0x80, 0, 0, 0, 0];
        websocket.send(&[upgrade_request(path, "tickcast.v1.json").as_bytes(), &ping].concat());
    }
    // A session id contains a per-shard count: unique within a shard, repeated on others.
    let mut sessions = HashSet::new();
    for peer in &mut natives {
        let welcome = peer.frame().unwrap();
        assert_eq!(welcome.kind, frames::WELCOME);
        sessions.insert(u64::from_le_bytes(welcome.record[8..16].try_into().unwrap()) >> 20);
        // SUBSCRIBED and PONG may come in either order.
        let kinds = [peer.frame().unwrap().kind, peer.frame().unwrap().kind];
        assert!(kinds.contains(&frames::SUBSCRIBED) && kinds.contains(&frames::PONG), "{kinds:?}");
    }
    assert_eq!(sessions.len(), EACH, "all on one shard");
    for peer in &mut websockets {
        assert!(peer.http_head().starts_with("HTTP/1.1 101 "));
        let messages = [peer.message().unwrap(), peer.message().unwrap()];
        assert!(messages.iter().any(|message| message.opcode == crate::harness::raw::PONG), "{messages:?}");
        assert!(messages.iter().any(|message| message.payload.starts_with(b"{\"op\":\"subscribed\"")));
    }
    publish(&mut publisher, "t", b"1");
    barrier(&mut publisher);
    for peer in &mut natives {
        assert_eq!(peer.frame().unwrap().kind, frames::SUBSCRIBED, "the topic is announced");
        let tick = peer.frame().unwrap();
        assert_eq!((tick.kind, tick.sequence, tick.payload), (frames::TICK, 1, b"1".to_vec()));
    }
    for peer in &mut websockets {
        assert!(peer.text().contains("\"topic_id\""));
        assert!(peer.text().starts_with("{\"topic\":\"t\",\"seq\":1,"));
    }
    drop((natives, websockets, publisher));
    eventually("everybody is gone", || server.connections() == 0);
    eventually("descriptors are back at the baseline", || server.descriptors() == baseline);
    let stopped = server.stop_cleanly();
    let everybody = 2 * EACH as u64 + 2;
    assert_eq!(stopped.total("sessions_accepted"), everybody, "no session is counted twice");
    assert_eq!(stopped.total("closed_by_peer") + stopped.total("closed_transport"), everybody);
    assert!((1..everybody).contains(&stopped.total("sessions_handed_over")));
}

#[test]
fn served_clients_hold_no_descriptor_of_the_process() {
    let _machine = beside_others();
    let server = Server::start(&SHARDS);
    drop(native(&server, "first"));
    eventually("the first is gone", || server.connections() == 0);
    let baseline = server.descriptors();
    let peers: Vec<Peer> = (0..20).map(|n| native(&server, &format!("client-{n}"))).collect();
    eventually("only registered files are left", || server.descriptors() == baseline);
    drop(peers);
    server.stop_cleanly();
}

#[test]
fn an_opening_that_comes_byte_by_byte_is_handed_over_whole() {
    let _machine = beside_others();
    let server = Server::start(&SHARDS);
    let clients: Vec<_> = (0..12)
        .map(|n| {
            let (tcp, http) = (server.tcp, server.http);
            thread::spawn(move || {
                let identity = format!("client-{n}");
                if n % 2 == 0 {
                    let mut peer = Peer::connect(tcp);
                    let opening = [hello(identity.as_bytes()), Raw::ping(n).bytes()].concat();
                    opening.chunks(1).for_each(|byte| peer.send(byte));
                    assert_eq!(peer.frame().unwrap().kind, frames::WELCOME);
                    assert_eq!(peer.frame().unwrap().token(), n);
                } else {
                    let mut peer = Peer::connect(http);
                    let opening = upgrade_request(&format!("/ws?client={identity}&topics=t"), "");
                    opening.as_bytes().chunks(1).for_each(|byte| peer.send(byte));
                    assert!(peer.http_head().starts_with("HTTP/1.1 101 "));
                    assert!(peer.text().contains("subscribed"));
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert!(server.stop_cleanly().total("sessions_handed_over") > 0);
}

#[test]
fn bytes_that_arrive_during_a_handover_stay_in_order() {
    let _machine = beside_others();
    let server = Server::start(&SHARDS);
    let clients: Vec<_> = (0..8)
        .map(|n| {
            let tcp = server.tcp;
            thread::spawn(move || {
                let mut peer = Peer::connect(tcp);
                peer.send(&hello(format!("client-{n}").as_bytes()));
                // Many writes follow the first while the connection is read, placed and moved.
                (0..2_000).for_each(|token| peer.send(&Raw::ping(token).bytes()));
                assert_eq!(peer.frame().unwrap().kind, frames::WELCOME);
                (0..2_000).for_each(|token| assert_eq!(peer.frame().unwrap().token(), token));
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert!(server.stop_cleanly().total("sessions_handed_over") > 0);
}

#[test]
fn third_party_clients_and_the_client_library_are_placed_by_identity() {
    let _machine = beside_others();
    let server = Server::start(&SHARDS);
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    let externals: Vec<External> = [Library::Ws, Library::Websockets]
        .into_iter()
        .flat_map(|library| (0..4).map(move |n| (library, n)))
        .map(|(library, n)| {
            let encoding = ["json", "rkyv"][n % 2];
            let url = format!("ws://{}/ws?client=external-{n}", server.http);
            External::run(library, "subscribe", &[&url, encoding, "t", "1"])
        })
        .collect();
    let mut clients: Vec<Client> = (0..8)
        .map(|n| {
            let address = address(&server, [WireFormat::TCP_NATIVE, WireFormat::WEBSOCKET_NATIVE][n % 2]);
            let options = ConnectOptions { client: format!("lib & {n}"), ..address.connect_options() };
            let mut client = Client::connect_with(&address, &options).unwrap();
            client.subscribe("t").unwrap();
            barrier(&mut client);
            client
        })
        .collect();
    externals.iter().for_each(External::wait_until_ready);
    publish(&mut publisher, "t", b"1");
    barrier(&mut publisher);
    for external in externals {
        let name = external.name.clone();
        assert_eq!(ticks(&external.finish())["t"], [(1, b"1".to_vec())], "{name}");
    }
    clients.iter_mut().for_each(barrier);
    drop((clients, publisher));
    assert!(server.stop_cleanly().total("sessions_handed_over") > 0);
}

#[test]
fn a_newer_connection_replaces_the_older_one_whichever_listener_and_shard_accepted_it() {
    let _machine = beside_others();
    let server = Server::start(&[&SHARDS[..], &["--identity-conflict", "replace"]].concat());
    let mut bystander = native(&server, "somebody else");
    let mut nobody = Peer::native(server.tcp);
    const ROUNDS: usize = 24;
    let mut before: Option<(Peer, bool)> = None;
    for round in 0..ROUNDS {
        let is_native = round % 3 != 0;
        let peer = match is_native {
            true => native(&server, "me"),
            false => Peer::websocket(server.http, "/ws?client=me", "tickcast.v1.json"),
        };
        match before.replace((peer, is_native)) {
            Some((mut older, true)) => {
                let closing = older.frame().unwrap();
                assert_eq!((closing.kind, closing.code()), (frames::CLOSING, 3502), "{closing:?}");
                assert_eq!(older.frame(), None);
            }
            Some((mut older, false)) => {
                assert!(older.text().starts_with("{\"op\":\"closing\",\"code\":3502,"));
                let close = older.message().unwrap();
                assert_eq!((close.opcode, close.close_code()), (CLOSE, 3502));
            }
            None => {}
        }
    }
    let (mut last, _) = before.unwrap();
    assert_answers(&mut last, 1);
    assert_answers(&mut bystander, 2);
    assert_answers(&mut nobody, 3);
    drop((last, bystander, nobody));
    assert_eq!(server.stop_cleanly().total("closed_replaced"), ROUNDS as u64 - 1);
}

#[test]
fn several_connections_of_one_identity_are_served_by_default() {
    let _machine = beside_others();
    let server = Server::start(&SHARDS);
    let mut peers: Vec<Peer> = (0..10).map(|_| native(&server, "me")).collect();
    (0..).zip(&mut peers).for_each(|(token, peer)| assert_answers(peer, token));
    drop(peers);
    assert_eq!(server.stop_cleanly().total("closed_replaced"), 0);
}

#[test]
fn identities_that_break_a_rule_are_refused_by_name() {
    let _machine = beside_others();
    let server = Server::start(&SHARDS);
    let long = "x".repeat(256);
    for query in ["client=", "client=%0A", "client=%FF", "client=a&client=b", &format!("client={long}")] {
        let mut peer = Peer::connect(server.http);
        peer.send(upgrade_request(&format!("/ws?{query}"), "").as_bytes());
        let response = String::from_utf8(peer.read_to_end()).unwrap();
        assert!(response.starts_with("HTTP/1.1 400 ") && response.contains("client"), "{query}: {response}");
    }
    let beyond = Raw::new(frames::HELLO, &[1, 0, 0, 0, 9, 0, 0, 0], b"8 bytes!").bytes();
    for opening in [hello(long.as_bytes()), hello(b"a\n"), hello(b"\xff"), beyond] {
        let mut peer = Peer::connect(server.tcp);
        peer.send(&opening);
        let closing = peer.frame().unwrap();
        assert_eq!((closing.kind, closing.code()), (frames::CLOSING, 1002), "{closing:?}");
    }
    // The longest identity is accepted.
    let mut peer = native(&server, &long[..255]);
    assert_answers(&mut peer, 7);
    drop(peer);
    server.stop_cleanly();
}

#[test]
fn more_connections_at_once_than_a_ring_holds_all_come_through() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "2", "--handshake-deadline", "10m"]);
    // All are connected before any sends HELLO.
    let mut peers: Vec<Peer> = (0..600).map(|_| Peer::connect(server.tcp)).collect();
    eventually("all are accepted", || server.connections() == peers.len());
    peers.iter_mut().for_each(|peer| peer.send(&hello(b"one and the same")));
    for peer in &mut peers {
        assert_eq!(peer.frame().unwrap().kind, frames::WELCOME);
    }
    drop(peers);
    assert!(server.stop_cleanly().total("sessions_handed_over") > 64);
}

#[test]
fn a_stop_during_handovers_leaves_no_connection_behind() {
    let _machine = beside_others();
    let server = Server::start(&SHARDS);
    let clients: Vec<_> = (0..6)
        .map(|thread| {
            let tcp = server.tcp;
            thread::spawn(move || {
                for n in 0.. {
                    let Ok(stream) = std::net::TcpStream::connect(tcp) else { return };
                    let mut peer = Peer { stream, buffer: Vec::new() };
                    peer.send_as_far_as_it_goes(&hello(format!("{thread}.{n}").as_bytes()));
                    // Every third leaves without waiting for an answer.
                    if n % 3 != 0 && peer.frame().is_none_or(|frame| frame.kind == frames::CLOSING) {
                        return;
                    }
                }
            })
        })
        .collect();
    let mut witness = native(&server, "witness");
    (0..200).for_each(|token| assert_answers(&mut witness, token));
    let stopped = server.stop();
    clients.into_iter().for_each(|client| client.join().unwrap());
    stopped.assert_clean();
    assert!(stopped.total("sessions_handed_over") > 0);
    assert_eq!(witness.frame().unwrap().code(), 3001);
}
