//! NATS handshake and limits, for publishers and subscribers.

/// Longest line accepted from a server, in bytes.
///
/// NATS limits INFO to 32 KiB; lines of the other text protocols are far shorter.
pub const LINE_BYTES_MAX: usize = 32 << 10;

/// Appends a CONNECT without `verbose`, so the server does not acknowledge each command with +OK.
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
