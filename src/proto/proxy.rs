//! The PROXY protocol: a proxy gives the client's address in a header before the client's first byte.
//!
//! ```text
//!  1:  "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"              one line of at most 107 bytes
//!
//!  2:  0        12             13              14        16
//!      +--------+--------------+---------------+---------+-------------------+------+
//!      | magic  | version:4    | family:4      | length  | source, target    | TLVs |
//!      |        | command:4    | protocol:4    | u16     | address and ports |      |
//!      +--------+--------------+---------------+---------+-------------------+------+
//! ```
//!
//! Numbers are big-endian. Source: The PROXY protocol, versions 1 and 2 (haproxy.org, doc/proxy-protocol.txt).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::Step;

/// Longest header accepted, in bytes. Everything up to the IP addresses takes at most 52 bytes; the rest is room for Unix
/// paths and extensions (TLVs), which are skipped.
pub const PROXY_HEADER_BYTES_MAX: usize = 2 << 10;
/// Longest line of version 1, with its line break.
const LINE_BYTES_MAX: usize = 107;
const LINE_START: &[u8] = b"PROXY ";
const MAGIC: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

// Offsets in a header of version 2.
const COMMAND: usize = 12;
const FAMILY: usize = 13;
const LENGTH: usize = 14;
const ADDRESSES: usize = 16;

/// Why a header is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyError {
    /// The connection does not begin with a header.
    Missing,
    /// It violates the format.
    Malformed,
    /// It is longer than [`PROXY_HEADER_BYTES_MAX`].
    TooLong,
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProxyError::Missing => {
                "the proxy sent no PROXY protocol header (send-proxy, proxy_protocol on), which this listener requires of it"
            }
            ProxyError::Malformed => "the proxy sent a malformed PROXY protocol header",
            ProxyError::TooLong => "the proxy sent a PROXY protocol header that is too long",
        })
    }
}

/// Decodes the header at the front of `bytes`, which may be incomplete. Returns the client's address, or `None` if the proxy
/// connects on its own behalf, such as for a health check, or does not know the address.
///
/// # Errors
/// [`ProxyError`] if these bytes cannot become a valid header, whatever follows.
pub fn step(bytes: &[u8]) -> Result<Step<Option<SocketAddr>>, ProxyError> {
    let begins = |start: &[u8]| {
        let len = start.len().min(bytes.len());
        bytes[..len] == start[..len]
    };
    match (begins(MAGIC), begins(LINE_START)) {
        (true, _) => binary(bytes),
        (_, true) => line(bytes),
        _ => Err(ProxyError::Missing),
    }
}

fn line(bytes: &[u8]) -> Result<Step<Option<SocketAddr>>, ProxyError> {
    let Some(end) = bytes.iter().take(LINE_BYTES_MAX).position(|&byte| byte == b'\n') else {
        return if bytes.len() < LINE_BYTES_MAX { Ok(Step::Partial) } else { Err(ProxyError::TooLong) };
    };
    let line = bytes[..end].strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok());
    let line = line.ok_or(ProxyError::Malformed)?;
    let words: Vec<&str> = line.split(' ').skip(1).collect();
    let source = match *words {
        ["UNKNOWN", ..] => None,
        ["TCP4", source, target, source_port, target_port] => {
            parse::<Ipv4Addr>(target)?;
            port(target_port)?;
            Some((IpAddr::V4(parse(source)?), port(source_port)?).into())
        }
        ["TCP6", source, target, source_port, target_port] => {
            parse::<Ipv6Addr>(target)?;
            port(target_port)?;
            Some((IpAddr::V6(parse(source)?), port(source_port)?).into())
        }
        _ => return Err(ProxyError::Malformed),
    };
    Ok(Step::Complete(end + 1, source))
}

fn parse<T: std::str::FromStr>(text: &str) -> Result<T, ProxyError> {
    text.parse().map_err(|_| ProxyError::Malformed)
}

fn port(text: &str) -> Result<u16, ProxyError> {
    let is_canonical =
        text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if is_canonical { parse(text) } else { Err(ProxyError::Malformed) }
}

fn binary(bytes: &[u8]) -> Result<Step<Option<SocketAddr>>, ProxyError> {
    let Some(head) = bytes.get(..ADDRESSES) else { return Ok(Step::Partial) };
    let len = usize::from(u16::from_be_bytes([head[LENGTH], head[LENGTH + 1]]));
    let whole = ADDRESSES + len;
    if whole > PROXY_HEADER_BYTES_MAX {
        return Err(ProxyError::TooLong);
    }
    let is_local = match head[COMMAND] {
        0x20 => true,
        0x21 => false,
        _ => return Err(ProxyError::Malformed),
    };
    let Some(addresses) = bytes.get(ADDRESSES..whole) else { return Ok(Step::Partial) };
    let source = match (is_local, head[FAMILY]) {
        (true, _) => None,
        (false, 0x11) => match addresses.first_chunk::<12>() {
            Some(&[a, b, c, d, _, _, _, _, high, low, _, _]) => {
                Some((IpAddr::V4(Ipv4Addr::new(a, b, c, d)), u16::from_be_bytes([high, low])).into())
            }
            None => return Err(ProxyError::Malformed),
        },
        (false, 0x21) => match (addresses.first_chunk::<16>(), addresses.get(32..36)) {
            (Some(source), Some(&[high, low, _, _])) => {
                Some((IpAddr::V6(Ipv6Addr::from(*source)), u16::from_be_bytes([high, low])).into())
            }
            _ => return Err(ProxyError::Malformed),
        },
        // Unix sockets, datagrams, unspecified, and families to come.
        (false, _) => None,
    };
    Ok(Step::Complete(whole, source))
}

const _: () = assert!(LINE_BYTES_MAX < PROXY_HEADER_BYTES_MAX && PROXY_HEADER_BYTES_MAX > ADDRESSES + 216);

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of version 2.
    fn version_2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        [MAGIC, &[command, family], &(rest.len() as u16).to_be_bytes(), rest].concat()
    }

    fn source(bytes: &[u8]) -> Option<String> {
        for len in 0..bytes.len() {
            assert_eq!(step(&bytes[..len]), Ok(Step::Partial), "{len}");
        }
        let Ok(Step::Complete(used, source)) = step(&[bytes, b"GET /"].concat()) else { panic!("{bytes:?}") };
        assert_eq!(used, bytes.len());
        source.map(|source| source.to_string())
    }

    #[test]
    fn headers_of_both_versions_give_the_clients_address() {
        let line = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n";
        assert_eq!(source(line).unwrap(), "192.0.2.1:56324");
        let line = b"PROXY TCP6 2001:db8::1 2001:db8::2 65535 0\r\n";
        assert_eq!(source(line).unwrap(), "[2001:db8::1]:65535");
        let v4 = [192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 4, 1, 0xbb];
        assert_eq!(source(&version_2(0x21, 0x11, &v4)).unwrap(), "192.0.2.1:56324");
        let with_extensions = [&v4[..], &[4, 0, 2, 7, 7]].concat();
        assert_eq!(source(&version_2(0x21, 0x11, &with_extensions)).unwrap(), "192.0.2.1:56324");
        let mut v6 = [0; 36];
        (v6[..4]).copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
        (v6[15], v6[33]) = (1, 80);
        assert_eq!(source(&version_2(0x21, 0x21, &v6)).unwrap(), "[2001:db8::1]:80");
    }

    #[test]
    fn a_proxy_that_connects_on_its_own_account_has_no_client() {
        let unknown: [&[u8]; 2] = [b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ffff:f...f:ffff 65535 65535\r\n"];
        for header in unknown {
            assert_eq!(source(header), None);
        }
        assert_eq!(source(&version_2(0x20, 0, &[])), None);
        assert_eq!(source(&version_2(0x20, 0x11, &[9; 12])), None, "LOCAL: the addresses are to be ignored");
        assert_eq!(source(&version_2(0x21, 0, &[])), None);
        assert_eq!(source(&version_2(0x21, 0x31, &[b'x'; 216])), None);
    }

    #[test]
    fn what_is_no_header_is_told_from_one_that_is_broken() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"tctc", b"PROXYX", b"\r\n\r\n\r\n", b"\x16\x03\x01"] {
            assert_eq!(step(bytes), Err(ProxyError::Missing), "{bytes:?}");
        }
        for line in [
            "PROXY",
            "PROXY ",
            "PROXY TCP4",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3",
            "PROXY TCP4 1.2.3.4  1.2.3.4 1 2",
            "PROXY TCP4 1.2.3 1.2.3.4 1 2",
            "PROXY TCP4 ::1 ::1 1 2",
            "PROXY TCP6 1.2.3.4 1.2.3.4 1 2",
            "PROXY TCP4 1.2.3.4 1.2.3.4 01 2",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 65536",
            "PROXY UDP4 1.2.3.4 1.2.3.4 1 2",
            "PROXY tcp4 1.2.3.4 1.2.3.4 1 2",
        ] {
            let expected = if line == "PROXY" { ProxyError::Missing } else { ProxyError::Malformed };
            assert_eq!(step(format!("{line}\r\n").as_bytes()), Err(expected), "{line}");
        }
        assert_eq!(step(b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n"), Err(ProxyError::Malformed));
        assert_eq!(step(format!("PROXY UNKNOWN {}", "x".repeat(93)).as_bytes()), Err(ProxyError::TooLong));
        for bytes in [
            version_2(0x11, 0x11, &[0; 12]),
            version_2(0x22, 0x11, &[0; 12]),
            version_2(0x21, 0x11, &[0; 11]),
            version_2(0x21, 0x21, &[0; 35]),
        ] {
            assert_eq!(step(&bytes), Err(ProxyError::Malformed), "{bytes:?}");
        }
        assert_eq!(
            step(&version_2(0x21, 0x11, &[0; 4096])[..16]),
            Err(ProxyError::TooLong),
            "before it has arrived"
        );
    }
}
