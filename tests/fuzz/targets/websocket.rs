//! WebSocket messages in pieces: however they are cut, the messages are the same.

#![no_main]

use tickcast_proto::{
    Step,
    framing::websocket::{Incoming, WebSocket},
};

fn messages(bytes: &[u8], cut: usize) -> (Vec<Incoming>, Vec<u8>, bool) {
    let (mut decoder, mut messages, mut replies) = (WebSocket::server(1 << 16), Vec::new(), Vec::new());
    decoder.inflates = true;
    let (mut at, mut shown) = (0, cut);
    loop {
        match decoder.step(&bytes[at..shown.min(bytes.len())], &mut replies) {
            Err(_) => return (messages, replies, true),
            Ok(Step::Partial) if shown >= bytes.len() => return (messages, replies, false),
            Ok(Step::Partial) => shown += cut,
            Ok(Step::Complete(used, message)) => {
                at += used;
                let is_last = matches!(message, Incoming::Close(_));
                messages.push(message);
                if is_last {
                    return (messages, replies, false);
                }
            }
        }
    }
}

libfuzzer_sys::fuzz_target!(|input: (u8, &[u8])| {
    let (cut, bytes) = input;
    let whole = messages(bytes, bytes.len().max(1));
    let cut = messages(bytes, usize::from(cut).max(1));
    assert_eq!(format!("{:?} {}", cut.0, cut.2), format!("{:?} {}", whole.0, whole.2));
});
