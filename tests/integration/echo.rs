//! `/echo`: every message comes back byte-exact, through the same codec and data ring as the stream.

use crate::harness::{
    Server, beside_others,
    external::{External, Library},
    raw::{BINARY, CLOSE, Message, PING, PONG, Peer, TEXT, header, masked},
};

/// Message sizes around every change of header format and buffer size, up to the largest message.
const SIZES: [usize; 12] = [0, 1, 125, 126, 127, 4_095, 4_096, 65_535, 65_536, 100_000, 1 << 20, 16 << 20];

fn echoes_byte_exact(library: Library) {
    let _machine = beside_others();
    let server = Server::start(&["--debug-echo"]);
    let url = format!("ws://{}/echo", server.http);
    let sizes = SIZES.map(|size| size.to_string()).join(",");
    let printed = External::run(library, "echo", &[&url, &sizes]).finish();
    let mut expected = String::new();
    for size in SIZES {
        for kind in ["text", "binary"] {
            for fragments in [1, 3] {
                expected.push_str(&format!("{kind} {size} {fragments} same\n"));
            }
        }
    }
    assert_eq!(printed, expected + "closed 1000\nend\n");
    server.stop_cleanly();
}

#[test]
fn npm_ws_gets_every_message_back() {
    echoes_byte_exact(Library::Ws);
}

#[test]
fn python_websockets_gets_every_message_back() {
    echoes_byte_exact(Library::Websockets);
}

#[test]
fn echoes_keep_their_order_among_fragments_and_pings_up_to_the_largest_message() {
    let _machine = beside_others();
    let server = Server::start(&["--debug-echo"]);
    let mut peer = Peer::websocket(server.http, "/echo", "");
    let mut sent = Vec::new();
    for n in 0..500usize {
        sent.extend(masked(0x80 | BINARY, &vec![n as u8; n]));
        sent.extend(masked(TEXT, format!("half {n}").as_bytes()));
        sent.extend(masked(0x80 | PING, &n.to_be_bytes()));
        sent.extend(masked(0x80, " and half".as_bytes()));
    }
    // On a thread of its own: the server stops reading from a peer that does not read its echoes.
    let mut writer = peer.stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &sent).unwrap());
    for n in 0..500usize {
        let expected = [
            (BINARY, vec![n as u8; n]),
            (PONG, n.to_be_bytes().to_vec()),
            (TEXT, format!("half {n} and half").into_bytes()),
        ];
        for (opcode, payload) in expected {
            assert_eq!(peer.message().unwrap(), Message { opcode, payload }, "round {n}");
        }
    }
    writing.join().unwrap();
    // The header of a message one byte too long.
    peer.send(&[&header(0x82, 0x80, (16 << 20) + 1)[..], &[0; 4]].concat());
    let close = peer.message().unwrap();
    assert_eq!((close.opcode, close.close_code()), (CLOSE, 1009));
    assert_eq!(peer.message(), None);
    server.stop_cleanly();
}
