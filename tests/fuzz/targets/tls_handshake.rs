//! A server's TLS handshake: the client's bytes in pieces, after a good ClientHello or from the beginning.

#![no_main]

use std::sync::{Arc, LazyLock};

use rustls::{ClientConfig, ServerConfig};
use tickcast_tls::{
    handshake::{Progress, ServerHandshake},
    testing,
};

static CONFIGS: LazyLock<(Arc<ServerConfig>, Arc<ClientConfig>)> = LazyLock::new(testing::configs);

libfuzzer_sys::fuzz_target!(|input: (bool, u8, &[u8])| {
    let (has_hello, cut, bytes) = input;
    let (server, client) = &*CONFIGS;
    let mut sent = Vec::new();
    if has_hello {
        sent = testing::hello(client).1;
    }
    sent.extend_from_slice(bytes);
    let (mut handshake, mut out) = (ServerHandshake::default(), Vec::new());
    for piece in sent.chunks(usize::from(cut).max(1)) {
        handshake.push(piece);
        match handshake.advance(server, &mut out) {
            Ok(Progress::Waiting) => assert!(!handshake.can_advance()),
            Ok(Progress::Done(_)) => panic!("nobody knows the secrets"),
            Err(_) => return,
        }
        assert!(out.len() < 1 << 16, "what is answered has a bound");
    }
});
