//! Native frames: the header and every record behind it.

#![no_main]

use tickcast_proto::{
    Step,
    codec::{Codec, Message},
    frame,
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Ok(Step::Complete(used, frame)) = frame::decode(rest, 1 << 16) {
        assert!(used > 0 && used <= rest.len());
        rest = &rest[used..];
        // A frame is decoded, or refused, for whichever kind it has; a binary message may have several.
        if let Ok(mut requests) = Codec::Native.decode(&Message::Frame(frame), 1 << 16) {
            while requests.next().is_some() {}
        }
    }
    if let Ok(mut requests) = Codec::Native.decode(&Message::Binary(bytes.to_vec().into()), 1 << 16) {
        for _ in 0..bytes.len() {
            if requests.next().is_none() {
                return;
            }
        }
        assert!(requests.next().is_none(), "each request takes bytes");
    }
});
