//! Packets of Engine.IO and Socket.IO, by WebSocket and by polling, and the requests in them.

#![no_main]

use tickcast_proto::{
    Step,
    codec::{Message, socket_io},
    framing::{Incoming, engine_io},
};

fn read(text: &str) {
    let Ok(engine_io::Packet::Message(packet)) = engine_io::decode(text) else { return };
    match socket_io::decode(packet) {
        Ok(socket_io::Packet::Event(event)) => {
            let Ok(json) = socket_io::request_json(&event) else { return };
            assert!(json.len() < packet.len() + 100, "no longer than what the client has sent");
            for attachment in [None, Some(&b"\x00\xff"[..])] {
                let _ = socket_io::decode_request(&json, event.request, attachment);
            }
        }
        Ok(socket_io::Packet::Connect { auth, .. }) => drop(socket_io::decode_auth(auth)),
        Ok(socket_io::Packet::Disconnect) | Err(_) => {}
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Ok(Step::Complete(used, Incoming::Message(message))) = engine_io::step(rest) {
        rest = &rest[used..];
        if let Message::Text(text) = message {
            read(&text);
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        read(text);
        let _ = engine_io::Sid::decode(text);
    }
});
