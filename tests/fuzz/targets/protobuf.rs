//! Protobuf commands, and what the errors say about them.

#![no_main]

use tickcast_proto::{
    codec::{Codec, Message},
    command::Command,
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let message = Message::Binary(bytes.to_vec().into());
    let Ok(mut requests) = Codec::Protobuf.decode(&message, 1 << 16) else { panic!("binary") };
    while let Some(request) = requests.next() {
        match request {
            // As many as were sent, whatever is announced.
            Ok(Command::Subscribe { patterns, .. }) => assert!(2 * patterns.len() <= bytes.len()),
            Ok(Command::Publish(publish)) => assert!(publish.payload.len() <= bytes.len()),
            Ok(_) => {}
            // A client reads it: it must not repeat what was sent.
            Err(error) => assert!(format!("{error:?}").len() < 4_096),
        }
    }
});
