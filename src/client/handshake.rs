//! The client's half of the WebSocket handshake (RFC 6455, section 4.1), as bytes.

use std::io::Write;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{SessionError, SessionOptions};
use tickcast_proto::{
    Encoding, Step,
    limits::{HTTP_HEAD_BYTES_MAX_DEFAULT, HTTP_HEADERS_MAX},
};

/// Bytes of a refusal's body shown to the user.
const REFUSAL_TEXT_BYTES_MAX: usize = 512;

/// A handshake that was sent and waits for its answer.
#[derive(Debug)]
pub(super) struct Handshake {
    accept_key: String,
    encoding: Encoding,
}

impl Handshake {
    /// Appends the upgrade request to `out`.
    pub(super) fn start(options: &SessionOptions, out: &mut Vec<u8>) -> Handshake {
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
        out.extend_from_slice(b"\r\n");
        let accept_key = tungstenite::handshake::derive_accept_key(key.as_bytes());
        Handshake { accept_key, encoding: options.encoding }
    }

    /// Reads the response head that `bytes` begin with.
    pub(super) fn step(&self, bytes: &[u8]) -> Result<Step<()>, SessionError> {
        let refuse = |text: String| Err(SessionError::Handshake(text));
        let head = &bytes[..bytes.len().min(HTTP_HEAD_BYTES_MAX_DEFAULT)];
        let mut headers = [httparse::EMPTY_HEADER; HTTP_HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let used = match response.parse(head) {
            Ok(httparse::Status::Complete(used)) => used,
            Ok(httparse::Status::Partial) if bytes.len() < HTTP_HEAD_BYTES_MAX_DEFAULT => {
                return Ok(Step::Partial);
            }
            Ok(httparse::Status::Partial) => {
                return refuse(format!(
                    "the response head is longer than {HTTP_HEAD_BYTES_MAX_DEFAULT} bytes"
                ));
            }
            Err(error) => return refuse(format!("not HTTP ({error}): is this the server's HTTP port?")),
        };
        if response.code != Some(101) {
            return refuse(refusal(&response, &bytes[used..]));
        }
        if !header(&response, "upgrade").is_some_and(|value| value.eq_ignore_ascii_case(b"websocket")) {
            return refuse("the response does not upgrade to a WebSocket".into());
        }
        let connection = header(&response, "connection").unwrap_or_default();
        if !connection
            .split(|&byte| byte == b',')
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
        {
            return refuse("the response does not say `Connection: Upgrade`".into());
        }
        if header(&response, "sec-websocket-accept") != Some(self.accept_key.as_bytes()) {
            return refuse("Sec-WebSocket-Accept does not answer this client's key: a cache between?".into());
        }
        if header(&response, "sec-websocket-extensions").is_some() {
            return refuse("the server turned on an extension that was not asked for".into());
        }
        let subprotocol = header(&response, "sec-websocket-protocol");
        if subprotocol != self.encoding.subprotocol().map(str::as_bytes) {
            let chosen = String::from_utf8_lossy(subprotocol.unwrap_or(b"none")).into_owned();
            return refuse(format!("the server chose the subprotocol {chosen}: not the one asked for"));
        }
        Ok(Step::Complete(used, ()))
    }
}

/// What the path gets for the identity: nothing for none.
fn client_parameter(options: &SessionOptions) -> String {
    if options.client.is_empty() {
        return String::new();
    }
    let joint = if options.path.contains('?') { '&' } else { '?' };
    format!("{joint}client={}", utf8_percent_encode(&options.client, NON_ALPHANUMERIC))
}

/// A header that is there once; one that is there twice says nothing that can be relied on.
fn header<'a>(response: &httparse::Response<'_, 'a>, name: &str) -> Option<&'a [u8]> {
    let mut found = response.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
    match (found.next(), found.next()) {
        (Some(field), None) => Some(field.value.trim_ascii()),
        _ => None,
    }
}

/// What the server answered instead: its own words say what to do.
fn refusal(response: &httparse::Response<'_, '_>, body: &[u8]) -> String {
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

    const OFFER: http::Offer<'_> =
        http::Offer { head_bytes_max: 8 << 10, debug_echo: false, files: &http::NoFiles };

    /// A started handshake and what the server's own HTTP code answers it.
    fn answered(encoding: Encoding) -> (Handshake, String) {
        let mut request = Vec::new();
        let handshake = Handshake::start(&SessionOptions::new(encoding), &mut request);
        let Step::Complete(used, http::Answer::Upgrade { response, .. }) = http::step(&request, OFFER) else {
            panic!("the server refuses this client")
        };
        assert_eq!(used, request.len());
        (handshake, String::from_utf8(response).unwrap())
    }

    #[test]
    fn the_servers_answer_is_accepted_and_every_truncation_of_it_is_partial() {
        for encoding in [Encoding::WebSocketRkyv, Encoding::WebSocketJson, Encoding::WebSocketRaw] {
            let (handshake, response) = answered(encoding);
            for len in 0..response.len() {
                assert_eq!(handshake.step(&response.as_bytes()[..len]), Ok(Step::Partial), "{len}");
            }
            let more = [response.as_bytes(), b"\x82\x00"].concat();
            assert_eq!(handshake.step(&more), Ok(Step::Complete(response.len(), ())));
        }
    }

    #[test]
    fn the_identity_goes_into_the_path_and_the_server_reads_it_back() {
        for (path, client) in [("/ws", "a b&c=d/\u{e4}"), ("/ws?topics=a.%3E", "x"), ("/ws?topics=a.%3E", "")]
        {
            let options = SessionOptions {
                path: path.into(),
                client: client.into(),
                ..SessionOptions::new(Encoding::WebSocketJson)
            };
            let mut request = Vec::new();
            Handshake::start(&options, &mut request);
            let Step::Complete(_, http::Answer::Upgrade { target, .. }) = http::step(&request, OFFER) else {
                panic!("the server refuses this client")
            };
            assert!(matches!(target, http::Target::Stream { client: read, .. } if read == client));
        }
    }

    #[test]
    fn an_answer_that_proves_nothing_is_refused() {
        let (handshake, response) = answered(Encoding::WebSocketJson);
        let refused = |from: &str, to: &str| {
            let changed = response.replacen(from, to, 1);
            assert_ne!(changed, response, "{from}");
            assert!(handshake.step(changed.as_bytes()).is_err(), "{from} -> {to}");
        };
        refused("sec-websocket-accept: ", "sec-websocket-accept: x");
        refused("sec-websocket-accept", "sec-websocket-other");
        refused("upgrade: websocket", "upgrade: h2c");
        refused("connection: Upgrade", "connection: close");
        refused("tickcast.v1.json", "tickcast.v1.raw");
        refused("\r\n\r\n", "\r\nsec-websocket-extensions: permessage-deflate\r\n\r\n");
        refused("101 ", "200 ");
        refused("HTTP/1.1", "SSH-2.0");
        assert!(handshake.step(&[b'a'; 9000]).is_err());
    }

    #[test]
    fn a_refusal_repeats_the_servers_words() {
        let (handshake, _) = answered(Encoding::WebSocketJson);
        let error = handshake.step(b"HTTP/1.1 404 Not Found\r\n\r\nthe stream is at /ws\n").unwrap_err();
        assert_eq!(error, SessionError::Handshake("the server answered 404: the stream is at /ws".into()));
    }
}
