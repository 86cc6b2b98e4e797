//! What a publisher and a subscriber of NATS have in common.

/// Longest line accepted from a server, in bytes: NATS limits INFO to 32 KiB. Other text protocols stay far below.
pub const LINE_BYTES_MAX: usize = 32 << 10;

/// Appends the CONNECT that opens a connection; the server sends nothing but INFO, messages, PING and errors.
pub fn write_connect(program: &str, output: &mut Vec<u8>) {
    let options = concat!(
        "\"verbose\":false,\"pedantic\":false,\"tls_required\":false,\"lang\":\"rust\",\"version\":\"",
        env!("CARGO_PKG_VERSION"),
        "\",\"protocol\":1"
    );
    for part in ["CONNECT {", options, ",\"name\":\"", program, "\"}\r\n"] {
        output.extend_from_slice(part.as_bytes());
    }
}
