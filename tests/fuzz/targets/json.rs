//! JSON commands, and what the errors say about them.

#![no_main]

use tickcast_proto::codec::{Codec, Message};

libfuzzer_sys::fuzz_target!(|text: &str| {
    for codec in [Codec::Json, Codec::JsonLinked] {
        if let Ok(mut requests) = codec.decode(&Message::Text(text.into()), 1 << 16) {
            while let Some(request) = requests.next() {
                // A client reads it: it must not repeat what was sent at length.
                assert!(format!("{request:?}").len() < 4 * text.len() + 4_096);
            }
        }
    }
});
