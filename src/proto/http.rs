//! HTTP: answers one request with a WebSocket upgrade or a short response (RFC 9110, RFC 6455).

use std::borrow::Cow;

use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use percent_encoding::percent_decode_str;

use crate::{
    Step, WireFormat,
    codec::json,
    identity,
    limits::{HTTP_HEADERS_MAX, REFUSED_RETRY_AFTER_S},
    subscription::{Delivery, OptionError, StartPosition, interval_us},
};

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
    let mut response = tungstenite::handshake::server::create_response(&parts).map_err(|error| {
        let status = match headers.get(header::UPGRADE) {
            Some(_)
                if parts.version() >= http::Version::HTTP_11
                    && headers.get(header::SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13") =>
            {
                StatusCode::BAD_REQUEST
            }
            _ => StatusCode::UPGRADE_REQUIRED,
        };
        ErrorResponse(status, format!("this path is a WebSocket endpoint: {error}"))
    })?;
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

/// Converts to the `http` crate's request, which tungstenite's handshake requires.
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
    let mut offered = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .peekable();
    if offered.peek().is_none() {
        return Ok(WireFormat::WEBSOCKET_JSON);
    }
    let Some(format) = offered.find_map(WireFormat::from_subprotocol) else {
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
