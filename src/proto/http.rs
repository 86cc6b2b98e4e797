//! HTTP: answers one request with a WebSocket upgrade or a short response (RFC 9110, RFC 6455).

use std::borrow::Cow;

use base64::{
    Engine,
    engine::{GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use percent_encoding::percent_decode_str;

use crate::{
    Step, WireFormat,
    codec::json,
    identity,
    limits::{HTTP_HEADERS_MAX, REFUSED_RETRY_AFTER_S},
    subscription::{Delivery, OptionError, StartPosition, interval_us},
};

/// Decodes `Sec-WebSocket-Key`. The bits of the last character beyond 16 bytes may have any value: RFC 6455 asks only for
/// 16 bytes.
const KEY_BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);
/// Bytes of a decoded `Sec-WebSocket-Key` (RFC 6455, section 4.1).
const KEY_BYTES: usize = 16;

/// What to do on a connection after a complete request head.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Send the response, then speak WebSocket.
    Upgrade {
        /// The 101 response.
        response: Vec<u8>,
        /// What the request target asks for.
        target: Target,
    },
    /// Send the response and close: each connection serves one request.
    Respond {
        /// The complete response.
        response: Vec<u8>,
        /// Its status, for logging.
        status: u16,
    },
}

/// What a WebSocket is used for.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    /// `/ws`: the protocol, with subscriptions to start immediately.
    Stream {
        /// Selected by the subprotocol; JSON if the client offers none.
        format: WireFormat,
        /// `?topics=a.b,c.>`, percent-decoded, not validated.
        patterns: Vec<String>,
        /// `?policy=conflate&max_rate=5`.
        delivery: Delivery,
        /// `?from=latest`.
        from: StartPosition,
        /// `?client=ID`, percent-decoded and validated; empty: none.
        client: String,
    },
    /// `/echo`: returns every message.
    Echo,
}

/// What the server serves over HTTP.
#[derive(Clone, Copy, Debug)]
pub struct HttpConfig<'a> {
    /// Largest request head, in bytes.
    pub head_bytes_max: usize,
    /// Whether `/echo` exists.
    pub debug_echo: bool,
    /// Static files, by path.
    pub files: &'a dyn StaticFiles,
}

/// Static files, served for GET and HEAD.
pub trait StaticFiles: std::fmt::Debug + Sync {
    /// Whether a file exists at this path.
    fn contains(&self, path: &str) -> bool;

    /// Status and bytes of the complete response, without a body for HEAD. `None` if no file exists at this path.
    fn respond(&self, path: &str, headers: &http::HeaderMap, is_head: bool) -> Option<(u16, Vec<u8>)>;
}

/// No static files.
#[derive(Clone, Copy, Debug)]
pub struct NoFiles;

impl StaticFiles for NoFiles {
    fn contains(&self, _path: &str) -> bool {
        false
    }

    fn respond(&self, _path: &str, _headers: &http::HeaderMap, _is_head: bool) -> Option<(u16, Vec<u8>)> {
        None
    }
}

/// An error response: status, and one line of text that says what is wrong.
struct ErrorResponse(StatusCode, String);

/// Decodes the request head at the start of `bytes`. Does not allocate while the head is incomplete.
pub fn step(bytes: &[u8], config: HttpConfig<'_>) -> Step<Answer> {
    let head = &bytes[..bytes.len().min(config.head_bytes_max)];
    let mut headers = [httparse::EMPTY_HEADER; HTTP_HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let error = match request.parse(head) {
        Ok(httparse::Status::Complete(used)) => match answer(&request, config) {
            Ok(answer) => return Step::Complete(used, answer),
            Err(error) => error,
        },
        Ok(httparse::Status::Partial) if bytes.len() < config.head_bytes_max => return Step::Partial,
        Ok(httparse::Status::Partial) => ErrorResponse(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            format!("the request head is longer than {} bytes", config.head_bytes_max),
        ),
        Err(httparse::Error::TooManyHeaders) => ErrorResponse(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            format!("the request has more than {HTTP_HEADERS_MAX} headers"),
        ),
        Err(error) => ErrorResponse(StatusCode::BAD_REQUEST, format!("malformed HTTP request: {error}")),
    };
    let mut answer = respond(error.0, &error.1);
    if request.method == Some("HEAD") {
        cut_body(&mut answer);
    }
    Step::Complete(bytes.len(), answer)
}

/// Removes the body, for the response to a HEAD (RFC 9110, section 9.3.2).
fn cut_body(answer: &mut Answer) {
    if let Answer::Respond { response, .. } = answer
        && let Some(at) = response.windows(4).position(|bytes| bytes == b"\r\n\r\n")
    {
        response.truncate(at + 4);
    }
}

fn answer(request: &httparse::Request<'_, '_>, config: HttpConfig<'_>) -> Result<Answer, ErrorResponse> {
    let fail = |status, text: &str| Err(ErrorResponse(status, text.to_owned()));
    let parts = convert(request)?;
    let headers = parts.headers();
    for single in
        [header::HOST, header::SEC_WEBSOCKET_KEY, header::SEC_WEBSOCKET_VERSION, header::CONTENT_LENGTH]
    {
        if headers.get_all(&single).iter().nth(1).is_some() {
            return Err(ErrorResponse(
                StatusCode::BAD_REQUEST,
                format!("header {single} is given more than once"),
            ));
        }
    }
    if !headers.contains_key(header::HOST) && parts.version() == http::Version::HTTP_11 {
        return fail(StatusCode::BAD_REQUEST, "header host is missing (RFC 9112, section 3.2)");
    }
    if headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0")
    {
        return fail(StatusCode::BAD_REQUEST, "a request body is not accepted here");
    }
    let is_head = parts.method() == Method::HEAD;
    if (is_head || parts.method() == Method::GET)
        && let Some((status, response)) = config.files.respond(parts.uri().path(), headers, is_head)
    {
        return Ok(Answer::Respond { response, status });
    }
    if parts.method() != Method::GET {
        let allowed = if config.files.contains(parts.uri().path()) { "GET, HEAD" } else { "GET" };
        return fail(StatusCode::METHOD_NOT_ALLOWED, &format!("{ONLY}{allowed}"));
    }
    let target = match parts.uri().path() {
        "/ws" => {
            let Query { patterns, client, delivery, from } = query(parts.uri().query())?;
            Target::Stream { format: WireFormat::WEBSOCKET_JSON, patterns, client, delivery, from }
        }
        "/echo" if config.debug_echo => Target::Echo,
        _ => return fail(StatusCode::NOT_FOUND, "not found; the page is at /, the WebSocket at /ws"),
    };
    let mut response = handshake(&parts)?;
    let target = match target {
        Target::Stream { patterns, client, delivery, from, .. } => {
            Target::Stream { format: negotiate(headers, &mut response)?, patterns, client, delivery, from }
        }
        echo => echo,
    };
    let mut bytes = Vec::with_capacity(256);
    tungstenite::handshake::server::write_response(&mut bytes, &response)
        .map_err(|error| ErrorResponse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(Answer::Upgrade { response: bytes, target })
}

/// Checks the client's handshake (RFC 6455, section 4.2.1) and returns the 101 response.
///
/// tungstenite's `create_response` reads only the first line of `Connection` and `Upgrade`, which a proxy may have split
/// into several, and knows no tab as white space.
fn handshake(parts: &http::Request<()>) -> Result<http::Response<()>, ErrorResponse> {
    let headers = parts.headers();
    let lists = |name: HeaderName, token: &str| {
        let lines = headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
        list_elements(lines).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
    };
    let fail = |status, text: &str| {
        Err(ErrorResponse(
            status,
            format!("this path is a WebSocket endpoint: {text} (RFC 6455, section 4.1)"),
        ))
    };
    if parts.version() < http::Version::HTTP_11 {
        return fail(StatusCode::UPGRADE_REQUIRED, "the request must be HTTP/1.1");
    }
    if !lists(header::UPGRADE, "websocket") {
        return fail(StatusCode::UPGRADE_REQUIRED, "header upgrade must list websocket");
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return fail(StatusCode::UPGRADE_REQUIRED, "header sec-websocket-version must be 13");
    }
    if !lists(header::CONNECTION, "upgrade") {
        return fail(StatusCode::BAD_REQUEST, "header connection must list upgrade");
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    if !KEY_BASE64.decode(key).is_ok_and(|key| key.len() == KEY_BYTES) {
        return fail(StatusCode::BAD_REQUEST, "header sec-websocket-key must be 16 bytes as base64");
    }
    http::Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, tungstenite::handshake::derive_accept_key(key))
        .body(())
        .map_err(|error| ErrorResponse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

/// Elements of a list header (RFC 9110, section 5.6.1): several lines are one list, white space around an element is
/// removed, and empty elements are skipped.
pub fn list_elements<'a>(lines: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    let elements = lines.flat_map(|line| line.split(|&byte| byte == b','));
    elements.map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// Converts to the `http` crate's request.
fn convert(request: &httparse::Request<'_, '_>) -> Result<http::Request<()>, ErrorResponse> {
    let bad = |error: http::Error| {
        ErrorResponse(StatusCode::BAD_REQUEST, format!("malformed HTTP request: {error}"))
    };
    // RFC 3986 requires %3E for the `>` of a pattern, but many WebSocket tools send it unescaped.
    let target = request.path.unwrap_or_default().replace('>', "%3E");
    let mut parts = http::Request::builder()
        .method(request.method.unwrap_or_default())
        .uri(target)
        .version(if request.version == Some(1) { http::Version::HTTP_11 } else { http::Version::HTTP_10 })
        .body(())
        .map_err(bad)?;
    for field in request.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|error| bad(error.into()))?;
        let value = HeaderValue::from_bytes(field.value).map_err(|error| bad(error.into()))?;
        parts.headers_mut().append(name, value);
    }
    Ok(parts)
}

/// Selects the first offered subprotocol that is supported (RFC 6455, section 4.2.2), for the response too.
fn negotiate(
    headers: &http::HeaderMap,
    response: &mut http::Response<()>,
) -> Result<WireFormat, ErrorResponse> {
    let lines = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter().map(HeaderValue::as_bytes);
    let mut offered = list_elements(lines).peekable();
    if offered.peek().is_none() {
        return Ok(WireFormat::WEBSOCKET_JSON);
    }
    let Some(format) = offered.find_map(|name| WireFormat::from_subprotocol(std::str::from_utf8(name).ok()?))
    else {
        let names: Vec<_> = WireFormat::subprotocols().collect();
        return Err(ErrorResponse(
            StatusCode::BAD_REQUEST,
            format!("unknown subprotocol; use {}", names.join(", ")),
        ));
    };
    if let Some(name) = format.subprotocol() {
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok(format)
}

/// The query parameters of `/ws`.
#[derive(Default)]
struct Query {
    patterns: Vec<String>,
    client: String,
    delivery: Delivery,
    from: StartPosition,
}

/// Parses `topics=a.b,c.>&client=ID&from=latest&policy=conflate&max_rate=5`. A comma within a name is escaped as `%2C`,
/// an `&` within an identity as `%26`.
fn query(text: Option<&str>) -> Result<Query, ErrorResponse> {
    let bad = |text: String| ErrorResponse(StatusCode::BAD_REQUEST, text);
    let mut query = Query::default();
    for pair in text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match name {
            "topics" => {
                for pattern in value.split(',').filter(|pattern| !pattern.is_empty()) {
                    let pattern = percent_decode_str(pattern)
                        .decode_utf8()
                        .map_err(|_| bad("parameter topics is not UTF-8".into()))?;
                    query.patterns.push(pattern.into_owned());
                }
            }
            "from" => query.from = json::start_from_word(value).map_err(|error| bad(error.to_string()))?,
            "policy" => {
                query.delivery.policy =
                    Some(value.parse().map_err(|error: OptionError| bad(error.to_string()))?);
            }
            "max_rate" => {
                let rate =
                    value.parse().map_err(|_| bad(OptionError::MaxRate(value.to_owned()).to_string()))?;
                query.delivery.interval_us = interval_us(rate).map_err(|error| bad(error.to_string()))?;
            }
            "client" if !query.client.is_empty() => {
                return Err(bad("parameter client is given more than once".into()));
            }
            "client" => {
                let value: Cow<'_, [u8]> = percent_decode_str(value).into();
                let identity =
                    identity::check(&value).map_err(|error| bad(format!("parameter client: {error}")))?;
                query.client = identity.to_owned();
            }
            _ => {
                return Err(bad(format!(
                    "unknown parameter {name:?}; use topics=a.b,c.>, client=ID, from=latest, policy=conflate or max_rate=5"
                )));
            }
        }
    }
    Ok(query)
}

/// Precedes the allowed methods in the text of a 405 response.
const ONLY: &str = "only ";

/// A complete response that closes the connection.
fn respond(status: StatusCode, text: &str) -> Answer {
    let header = match status {
        StatusCode::UPGRADE_REQUIRED => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n".into(),
        StatusCode::METHOD_NOT_ALLOWED => format!("Allow: {}\r\n", text.trim_start_matches(ONLY)),
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
            format!("Retry-After: {REFUSED_RETRY_AFTER_S}\r\n")
        }
        _ => String::new(),
    };
    let response = format!(
        "HTTP/1.1 {} {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\
         X-Content-Type-Options: nosniff\r\n{header}\r\n{text}\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default(),
        text.len() + 1,
    );
    Answer::Respond { response: response.into_bytes(), status: status.as_u16() }
}

/// The response to a client that did not complete its request in time.
pub fn timed_out() -> Vec<u8> {
    bytes(respond(StatusCode::REQUEST_TIMEOUT, "the request head did not arrive in time"))
}

/// The response to a client that is not admitted: `status` (503 or 429) and the reason.
pub fn refused(status: u16, text: &str) -> Vec<u8> {
    let code = StatusCode::from_u16(status);
    debug_assert!(code.is_ok(), "{status} is an HTTP status");
    bytes(respond(code.unwrap_or(StatusCode::SERVICE_UNAVAILABLE), text))
}

fn bytes(answer: Answer) -> Vec<u8> {
    match answer {
        Answer::Respond { response, .. } | Answer::Upgrade { response, .. } => response,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscription::Policy;

    const CONFIG: HttpConfig<'_> = HttpConfig { head_bytes_max: 1024, debug_echo: false, files: &NoFiles };
    /// The example in RFC 6455, section 1.3, with the path of the stream.
    const REQUEST: &str = "GET /ws?topics=a.b,c.%3E HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: \
                           keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: \
                           dGhlIHNhbXBsZSBub25jZQ==\r\n";

    fn status(request: &str) -> u16 {
        match step(request.as_bytes(), CONFIG) {
            Step::Complete(_, Answer::Respond { status, .. }) => status,
            Step::Complete(_, Answer::Upgrade { .. }) => 101,
            Step::Partial => 0,
        }
    }

    #[test]
    fn upgrade_request_selects_format_and_topics() {
        let request = format!("{REQUEST}Sec-WebSocket-Protocol: other, tickcast.v1.raw\r\n\r\nrest");
        let Step::Complete(used, Answer::Upgrade { response, target }) = step(request.as_bytes(), CONFIG)
        else {
            panic!("not an upgrade")
        };
        assert_eq!(used, request.len() - 4);
        let response = String::from_utf8(response).unwrap().to_lowercase();
        assert!(response.starts_with("http/1.1 101 switching protocols\r\n"));
        assert!(response.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"));
        assert!(response.contains("sec-websocket-protocol: tickcast.v1.raw\r\n"));
        assert_eq!(
            target,
            Target::Stream {
                format: WireFormat::WEBSOCKET_RAW,
                patterns: vec!["a.b".into(), "c.>".into()],
                delivery: Delivery::default(),
                from: StartPosition::Live,
                client: String::new(),
            }
        );
    }

    #[test]
    fn pattern_in_the_query_needs_no_escapes() {
        let request = format!("{}\r\n", REQUEST.replace("c.%3E", "c.>,*.d"));
        let Step::Complete(_, Answer::Upgrade { target, .. }) = step(request.as_bytes(), CONFIG) else {
            panic!("not an upgrade")
        };
        let patterns = vec!["a.b".into(), "c.>".into(), "*.d".into()];
        let client = String::new();
        let (format, delivery, from) = (WireFormat::WEBSOCKET_JSON, Delivery::default(), StartPosition::Live);
        assert_eq!(target, Target::Stream { format, patterns, client, delivery, from });
    }

    #[test]
    fn query_parameters_select_start_policy_and_rate() {
        let request = format!("{}\r\n", REQUEST.replace("c.%3E", "c&from=latest&policy=conflate&max_rate=5"));
        let Step::Complete(_, Answer::Upgrade { target, .. }) = step(request.as_bytes(), CONFIG) else {
            panic!("not an upgrade")
        };
        let client = String::new();
        let delivery = Delivery { policy: Some(Policy::Conflate), interval_us: 200_000 };
        let (format, patterns) = (WireFormat::WEBSOCKET_JSON, vec!["a.b".into(), "c".into()]);
        assert_eq!(
            target,
            Target::Stream { format, patterns, client, delivery, from: StartPosition::Latest }
        );
        for bad in ["from=1", "policy=x", "max_rate=0", "max_rate=NaN", "max_rate=x"] {
            let request = format!("{}\r\n", REQUEST.replace("topics=a.b,c.%3E", bad));
            assert_eq!(status(&request), 400, "{bad}");
        }
    }

    #[test]
    fn identity_in_the_query_is_decoded_and_validated() {
        let answer = |query: &str| {
            let request = format!("{}\r\n", REQUEST.replace("topics=a.b,c.%3E", query));
            match step(request.as_bytes(), CONFIG) {
                Step::Complete(_, Answer::Upgrade { target: Target::Stream { client, .. }, .. }) => {
                    Ok(client)
                }
                Step::Complete(_, Answer::Respond { response, status: 400 }) => {
                    Err(String::from_utf8(response).unwrap())
                }
                _ => panic!("{query}"),
            }
        };
        assert_eq!(answer("client=a%20%26+%C3%A4&topics=b").unwrap(), "a &+ä");
        assert_eq!(answer("topics=b").unwrap(), "");
        for bad in ["client=", "client", "client=%FF", "client=%0A", "client=a&client=a"] {
            assert!(answer(bad).unwrap_err().contains("client"), "{bad}");
        }
        assert!(answer(&format!("client={}", "x".repeat(256))).unwrap_err().contains("256 bytes"));
    }

    #[test]
    fn every_truncation_of_a_head_is_partial() {
        let request = format!("{REQUEST}\r\n");
        for len in 0..request.len() {
            assert_eq!(status(&request[..len]), 0, "{len}");
        }
        assert_eq!(status(&request), 101);
    }

    #[test]
    fn list_headers_are_merged_over_lines_and_trimmed() {
        let connection = |lines: &str| {
            status(&format!("{}\r\n", REQUEST.replace("Connection: keep-alive, Upgrade", lines)))
        };
        for lines in [
            "Connection: Upgrade",
            "Connection: keep-alive,\tUpgrade",
            "Connection: Upgrade\r\nConnection: keep-alive",
            "Connection: keep-alive\r\nConnection:\t upgrade ,, x",
            "Connection:\r\nConnection: UPGRADE",
            "Connection: x\u{e9}, Upgrade",
            "Connection: Upgrade\r\nUpgrade: h2c",
        ] {
            assert_eq!(connection(lines), 101, "{lines:?}");
        }
        for lines in
            ["Connection: keep-alive", "Connection: keep-alive Upgrade", "Connection: Upgraded", "X: y"]
        {
            assert_eq!(connection(lines), 400, "{lines:?}");
        }
        let upgrade = |lines: &str| status(&format!("{}\r\n", REQUEST.replace("Upgrade: websocket", lines)));
        assert_eq!(upgrade("Upgrade: h2c,\tWebSocket"), 101);
        assert_eq!(upgrade("Upgrade: h2c\r\nUpgrade: websocket"), 101);
        assert_eq!(upgrade("Upgrade: h2c"), 426);
    }

    #[test]
    fn empty_subprotocol_asks_for_json() {
        let chosen = |lines: &str| match step(format!("{REQUEST}{lines}\r\n").as_bytes(), CONFIG) {
            Step::Complete(_, Answer::Upgrade { response, target: Target::Stream { format, .. } }) => {
                let response = String::from_utf8(response).unwrap();
                Some((format, response.contains("sec-websocket-protocol")))
            }
            _ => None,
        };
        let name = "Sec-WebSocket-Protocol:";
        for lines in [
            "".to_owned(),
            format!("{name}\r\n"),
            format!("{name} \t\r\n"),
            format!("{name} ,\r\n{name}\r\n"),
        ] {
            assert_eq!(chosen(&lines), Some((WireFormat::WEBSOCKET_JSON, false)), "{lines:?}");
        }
        let named = chosen(&format!("{name}\r\n{name} , x,\ttickcast.v1.raw,\r\n"));
        assert_eq!(named, Some((WireFormat::WEBSOCKET_RAW, true)));
        assert_eq!(chosen(&format!("{name} null\r\n")), None);
    }

    #[test]
    fn key_is_any_base64_of_16_bytes() {
        let with = |key: &str| status(&format!("{}\r\n", REQUEST.replace("dGhlIHNhbXBsZSBub25jZQ==", key)));
        // The last character before the padding has four unused bits.
        for key in ["AAAAAAAAAAAAAAAAAAAAAA==", "dGhlIHNhbXBsZSBub25jZf==", "//////////////////////=="] {
            assert_eq!(with(key), 101, "{key}");
        }
        for key in [
            "",
            "dGhlIHNhbXBsZSBub25jZQ",
            "dGhlIHNhbXBsZSBub25jZSE=",
            "dGhlIHNhbXBsZSBub25j",
            "!GhlIHNhbXBsZSBub25jZQ==",
        ] {
            assert_eq!(with(key), 400, "{key}");
        }
    }

    #[test]
    fn invalid_requests_are_answered_with_their_status() {
        let with = |from: &str, to: &str| status(&format!("{}\r\n", REQUEST.replace(from, to)));
        assert_eq!(with("/ws", "/nope"), 404);
        assert_eq!(with("/ws", "/echo"), 404);
        assert_eq!(with("GET", "POST"), 405);
        assert_eq!(with("HTTP/1.1", "HTTP/1.0"), 426);
        assert_eq!(with("Upgrade: websocket\r\n", ""), 426);
        assert_eq!(with("Version: 13", "Version: 8"), 426);
        assert_eq!(with("dGhlIHNhbXBsZSBub25jZQ==", "short"), 400);
        assert_eq!(with("Host: x\r\n", ""), 400);
        assert_eq!(with("Host: x\r\n", "Host: x\r\nHost: y\r\n"), 400);
        assert_eq!(with("Host: x\r\n", "Host: x\r\n folded\r\n"), 400);
        assert_eq!(with("Host: x\r\n", "Host: x\r\nContent-Length: 5\r\n"), 400);
        assert_eq!(with("topics=", "topic="), 400);
        assert_eq!(with("%3E", "%FF"), 400);
        assert_eq!(with("Host: x\r\n", "Host: x\r\nSec-WebSocket-Protocol: soap\r\n"), 400);
        assert_eq!(status("\x16\x03\x01\x02\x00\x01\x00"), 400);
        assert_eq!(status("SSH-2.0-OpenSSH\r\n\r\n"), 400);
        assert_eq!(status(&"a: b\r\n".repeat(1000)), 400);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(300))), 431);
        assert_eq!(status(&format!("GET /{}", "a".repeat(2000))), 431);
        assert_eq!(status("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), 404);
    }
}
