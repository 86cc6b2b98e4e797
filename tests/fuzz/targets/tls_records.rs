//! The record layer after a handshake: good records between any bytes, in pieces.

#![no_main]

use std::sync::{Arc, LazyLock};

use rustls::{ClientConfig, ServerConfig};
use tickcast_tls::{record::Outcome, testing};

static CONFIGS: LazyLock<(Arc<ServerConfig>, Arc<ClientConfig>)> = LazyLock::new(testing::configs);

libfuzzer_sys::fuzz_target!(|input: (u8, Vec<(bool, &[u8])>)| {
    let (cut, parts) = input;
    let [mut server, mut client] = testing::connect(&CONFIGS);
    let (mut sent, mut expected, mut is_good) = (Vec::new(), Vec::new(), true);
    for (is_sealed, bytes) in parts {
        if is_sealed {
            client.records.seal(bytes, &mut sent);
            if is_good {
                expected.extend_from_slice(bytes);
            }
        } else if !bytes.is_empty() {
            sent.extend_from_slice(bytes);
            is_good = false;
        }
    }
    let (mut waiting, mut opened) = (Vec::new(), Vec::new());
    for piece in sent.chunks(usize::from(cut).max(1)) {
        waiting.extend_from_slice(piece);
        let done = server.records.open(&mut waiting);
        assert!(done.plaintext <= done.used && done.used <= waiting.len());
        opened.extend_from_slice(&waiting[..done.plaintext]);
        if done.outcome != Outcome::Open {
            assert!(!is_good);
            break;
        }
        waiting.drain(..done.used);
    }
    assert_eq!(opened, expected, "what was sealed, and nothing that was not");
});
