//! The client side of the WebSocket handshake (RFC 6455, section 4.1), sans I/O.

use std::io::Write;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{ConnectOptions, ProtocolError};
use tickcast_proto::{
    Step, WireFormat, frame,
    http::list_elements,
    limits::{HTTP_HEAD_BYTES_MAX_DEFAULT, HTTP_HEADERS_MAX},
};

/// Bytes of a rejection's body to show to the user.
const REFUSAL_TEXT_BYTES_MAX: usize = 512;

/// A handshake that waits for the response.
#[derive(Debug)]
pub(super) struct Handshake {
    accept_key: String,
    encoding: WireFormat,
}

impl Handshake {
    /// Appends the upgrade request to `out`.
    pub(super) fn start(options: &ConnectOptions, out: &mut Vec<u8>) -> Handshake {
        let key = tungstenite::handshake::client::generate_key();
        // Writing to a Vec cannot fail.
        let _ = write!(
            out,
            "GET {}{} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: \
             13\r\nSec-WebSocket-Key: {key}\r\n",
            options.path,
            client_parameter(options),
            options.host
        );
        if let Some(subprotocol) = options.encoding.subprotocol() {
            let _ = write!(out, "Sec-WebSocket-Protocol: {subprotocol}\r\n");
        }
        if let Some(token) = &options.token {
            let _ = write!(out, "Authorization: Bearer {}\r\n", token.as_str());
        }
        out.extend_from_slice(b"\r\n");
        let accept_key = tungstenite::handshake::derive_accept_key(key.as_bytes());
        Handshake { accept_key, encoding: options.encoding }
    }

    /// Checks the response head at the start of `bytes`.
    pub(super) fn step(&self, bytes: &[u8]) -> Result<Step<()>, ProtocolError> {
        let reject = |text: String| Err(ProtocolError::Handshake(text));
        let head = &bytes[..bytes.len().min(HTTP_HEAD_BYTES_MAX_DEFAULT)];
        let mut headers = [httparse::EMPTY_HEADER; HTTP_HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let used = match response.parse(head) {
            Ok(httparse::Status::Complete(used)) => used,
            Ok(httparse::Status::Partial) if bytes.len() < HTTP_HEAD_BYTES_MAX_DEFAULT => {
                return Ok(Step::Partial);
            }
            Ok(httparse::Status::Partial) => {
                return reject(format!(
                    "the response head is longer than {HTTP_HEAD_BYTES_MAX_DEFAULT} bytes"
                ));
            }
            Err(_) if bytes.get(4..6) == Some(&frame::MAGIC.to_le_bytes()) => {
                return reject("this is the native port: use HOST:PORT, without ws://".into());
            }
            Err(error) => {
                return reject(format!(
                    "the response is not HTTP ({error}); check that this is the server's HTTP port"
                ));
            }
        };
        if response.code != Some(101) {
            return reject(rejection(&response, &bytes[used..]));
        }
        if !list(&response, "upgrade").any(|protocol| protocol.eq_ignore_ascii_case(b"websocket")) {
            return reject("the response does not upgrade to a WebSocket".into());
        }
        if !list(&response, "connection").any(|option| option.eq_ignore_ascii_case(b"upgrade")) {
            return reject("the response lacks `Connection: Upgrade`".into());
        }
        if header(&response, "sec-websocket-accept") != Some(self.accept_key.as_bytes()) {
            return reject(
                "Sec-WebSocket-Accept does not match this client's key; a cache may have answered".into(),
            );
        }
        if list(&response, "sec-websocket-extensions").next().is_some() {
            return reject("the server enabled an extension that was not requested".into());
        }
        if !list(&response, "sec-websocket-protocol").eq(self.encoding.subprotocol().map(str::as_bytes)) {
            let chosen: Vec<_> =
                list(&response, "sec-websocket-protocol").map(String::from_utf8_lossy).collect();
            let chosen = if chosen.is_empty() { "none".into() } else { chosen.join(", ") };
            return reject(format!("the server chose the subprotocol {chosen}, which was not requested"));
        }
        Ok(Step::Complete(used, ()))
    }
}

/// The status with which a server has refused the handshake, and the delay that it asks for, in milliseconds; 0: no delay given.
/// `None`: this is no HTTP response.
pub(super) fn refusal(response: &[u8]) -> Option<(u16, u32)> {
    let mut headers = [httparse::EMPTY_HEADER; HTTP_HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut headers);
    parsed.parse(response).ok()?;
    let seconds =
        header(&parsed, "retry-after").and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
    Some((parsed.code?, seconds.unwrap_or(0u32).saturating_mul(1_000)))
}

/// The query parameter that carries the identity; empty without one.
fn client_parameter(options: &ConnectOptions) -> String {
    if options.client.is_empty() {
        return String::new();
    }
    let joint = if options.path.contains('?') { '&' } else { '?' };
    format!("{joint}client={}", utf8_percent_encode(&options.client, NON_ALPHANUMERIC))
}

/// The value of a header that occurs exactly once; a repeated one is ambiguous and counts as absent.
fn header<'a>(response: &httparse::Response<'_, 'a>, name: &str) -> Option<&'a [u8]> {
    let mut found = response.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
    match (found.next(), found.next()) {
        (Some(field), None) => Some(field.value.trim_ascii()),
        _ => None,
    }
}

/// The elements of a list header, over all its lines.
fn list<'a>(response: &httparse::Response<'_, 'a>, name: &str) -> impl Iterator<Item = &'a [u8]> {
    let lines = response.headers.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
    list_elements(lines.map(|field| field.value))
}

/// Describes a response other than 101. Its body usually says what to do.
fn rejection(response: &httparse::Response<'_, '_>, body: &[u8]) -> String {
    let status = response.code.unwrap_or_default();
    let body = String::from_utf8_lossy(&body[..body.len().min(REFUSAL_TEXT_BYTES_MAX)]);
    match body.trim() {
        "" => format!("the server answered {status} {}", response.reason.unwrap_or_default()),
        text => format!("the server answered {status}: {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tickcast_proto::http;

    /// What the server's own HTTP code makes of a request.
    fn serve(request: &[u8]) -> Step<http::Answer> {
        http::Connection::default().step(request, &http::HttpConfig::WEBSOCKET)
    }

    /// A started handshake and the response of the server's own HTTP code.
    fn answered(encoding: WireFormat) -> (Handshake, String) {
        let mut request = Vec::new();
        let handshake = Handshake::start(&ConnectOptions::new(encoding), &mut request);
        let Step::Complete(used, http::Answer::Upgrade { response, .. }) = serve(&request) else {
            panic!("the server rejects this client")
        };
        assert_eq!(used, request.len());
        (handshake, String::from_utf8(response).unwrap())
    }

    #[test]
    fn server_response_is_accepted_and_each_truncation_is_partial() {
        for encoding in [WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON, WireFormat::WEBSOCKET_RAW]
        {
            let (handshake, response) = answered(encoding);
            for len in 0..response.len() {
                assert_eq!(handshake.step(&response.as_bytes()[..len]), Ok(Step::Partial), "{len}");
            }
            let more = [response.as_bytes(), b"\x82\x00"].concat();
            assert_eq!(handshake.step(&more), Ok(Step::Complete(response.len(), ())));
        }
    }

    #[test]
    fn identity_travels_in_the_query_and_decodes_unchanged() {
        for (path, client) in [("/ws", "a b&c=d/\u{e4}"), ("/ws?topics=a.%3E", "x"), ("/ws?topics=a.%3E", "")]
        {
            let options = ConnectOptions {
                path: path.into(),
                client: client.into(),
                ..ConnectOptions::new(WireFormat::WEBSOCKET_JSON)
            };
            let mut request = Vec::new();
            Handshake::start(&options, &mut request);
            let Step::Complete(_, http::Answer::Upgrade { target, .. }) = serve(&request) else {
                panic!("the server rejects this client")
            };
            assert!(matches!(target, http::Target::Stream { client: read, .. } if read == client));
        }
    }

    #[test]
    fn a_token_travels_in_a_header_and_not_in_the_query() {
        for encoding in [WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON, WireFormat::WEBSOCKET_RAW]
        {
            let options =
                ConnectOptions { token: crate::ClientToken::new("t0ken"), ..ConnectOptions::new(encoding) };
            let mut request = Vec::new();
            Handshake::start(&options, &mut request);
            let Step::Complete(_, http::Answer::Upgrade { target, .. }) = serve(&request) else {
                panic!("the server rejects this client")
            };
            let http::Target::Stream { token: Some(token), .. } = target else { panic!("no token") };
            assert_eq!(&*token.0, b"t0ken");
            let head = String::from_utf8(request).unwrap();
            assert!(!head.lines().next().unwrap().contains("t0ken"), "{head}");
        }
    }

    #[test]
    fn response_without_a_proof_of_the_handshake_is_rejected() {
        let (handshake, response) = answered(WireFormat::WEBSOCKET_JSON);
        let rejected = |from: &str, to: &str| {
            let changed = response.replacen(from, to, 1);
            assert_ne!(changed, response, "{from}");
            assert!(handshake.step(changed.as_bytes()).is_err(), "{from} -> {to}");
        };
        rejected("Sec-WebSocket-Accept: ", "Sec-WebSocket-Accept: x");
        rejected("Sec-WebSocket-Accept", "Sec-WebSocket-Other");
        rejected("Upgrade: websocket", "upgrade: h2c");
        rejected("Connection: Upgrade", "connection: close");
        rejected("tickcast.v1.json", "tickcast.v1.raw");
        rejected("\r\n\r\n", "\r\nsec-websocket-extensions: permessage-deflate\r\n\r\n");
        rejected("101 ", "200 ");
        rejected("HTTP/1.1", "SSH-2.0");
        assert!(handshake.step(&[b'a'; 9000]).is_err());
    }

    #[test]
    fn list_headers_of_a_response_are_merged_over_lines() {
        let (handshake, response) = answered(WireFormat::WEBSOCKET_JSON);
        let step = |from: &str, to: &str| {
            let changed = response.replacen(from, to, 1);
            assert_ne!(changed, response, "{from}");
            handshake.step(changed.as_bytes()).is_ok()
        };
        assert!(step("Connection: Upgrade", "connection: keep-alive,\tupgrade"));
        assert!(step("Connection: Upgrade", "connection: Upgrade\r\nconnection: keep-alive"));
        assert!(step("Upgrade: websocket", "upgrade: websocket\r\nupgrade:"));
        assert!(step("\r\n\r\n", "\r\nsec-websocket-extensions:\r\n\r\n"));
        assert!(step("\r\n\r\n", "\r\nsec-websocket-protocol: ,\r\n\r\n"));
        let extension = "\r\nsec-websocket-extensions: x";
        assert!(!step("\r\n\r\n", &format!("{extension}{extension}\r\n\r\n")));
        assert!(!step("\r\n\r\n", "\r\nsec-websocket-protocol: tickcast.v1.raw\r\n\r\n"));
    }

    #[test]
    fn native_port_is_named() {
        let (handshake, _) = answered(WireFormat::WEBSOCKET_NATIVE);
        let mut frame = vec![0, 0, 0, 0];
        frame.extend_from_slice(&frame::MAGIC.to_le_bytes());
        assert!(handshake.step(&frame).unwrap_err().to_string().contains("native port: use HOST:PORT"));
    }

    #[test]
    fn rejection_quotes_the_response_body() {
        let (handshake, _) = answered(WireFormat::WEBSOCKET_JSON);
        let error = handshake.step(b"HTTP/1.1 404 Not Found\r\n\r\nthe stream is at /ws\n").unwrap_err();
        assert_eq!(error, ProtocolError::Handshake("the server answered 404: the stream is at /ws".into()));
    }
}
