//! The upgrade to a WebSocket (RFC 6455, section 4.2).

use base64::{
    Engine,
    engine::{GeneralPurpose, GeneralPurposeConfig},
};
use http::{
    HeaderValue, Method, StatusCode, Version,
    header::{self, SEC_WEBSOCKET_EXTENSIONS},
};

use super::{
    Failure, HttpConfig, Outcome, Resumed, Target,
    body::BodyLength,
    query::{self, StreamPath, StreamQuery},
    request::Request,
};
use crate::{
    WireFormat,
    command::Token,
    framing::websocket::deflate::{self, Agreement},
};

/// Prefix of a token among the subprotocols, the only handshake header that a browser can set.
const TOKEN_PREFIX: &[u8] = b"bearer.";

/// Decodes `Sec-WebSocket-Key`. The bits of the last character beyond 16 bytes may have any value: RFC 6455 asks only for
/// 16 bytes.
const KEY_BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);
/// Bytes of a decoded `Sec-WebSocket-Key` (RFC 6455, section 4.1).
const KEY_BYTES: usize = 16;

/// Answers a request for a WebSocket: on `/ws` the protocol, elsewhere the echo.
pub(super) fn upgrade(request: &Request, config: &HttpConfig<'_>) -> Result<Outcome<'static>, Failure> {
    let uri = request.head.uri();
    let query = match uri.path() {
        "/ws" => Some(query::parse(uri.query(), StreamPath::WebSocket, config.query_token)?),
        _ => None,
    };
    let accept = handshake(request)?;
    if let Some(host) = &request.authority {
        config.access.check_origin(request.head.headers().get(header::ORIGIN), host)?;
    }
    let mut response = accept_with(request, &accept)?;
    let extension =
        config.deflate.then(|| deflate::negotiate(request.list(SEC_WEBSOCKET_EXTENSIONS))).flatten();
    if let Some(extension) = extension {
        response += &format!("Sec-WebSocket-Extensions: {}\r\n", extension.response());
    }
    let target = match query {
        None => Target::Echo { extension },
        Some(StreamQuery { patterns, client, delivery, from, token: in_query, .. }) => {
            let token = token(request, in_query)?;
            let (format, subprotocol) = negotiate(request)?;
            if let Some(name) = subprotocol {
                response += &format!("Sec-WebSocket-Protocol: {name}\r\n");
            }
            let format = match extension {
                Some(Agreement { compresses: true, .. }) => format.deflated(),
                _ => format,
            };
            let inflates = extension.is_some();
            Target::Stream {
                format,
                inflates,
                patterns,
                client,
                delivery,
                from,
                resumed: Resumed::Nothing,
                token,
            }
        }
    };
    response += "\r\n";
    Ok(Outcome::Upgrade(response.into_bytes(), target))
}

/// Checks the client's handshake, and returns the lines of the response that opens the WebSocket. The caller has checked the origin.
pub(super) fn accept(request: &Request) -> Result<String, Failure> {
    let accept = handshake(request)?;
    accept_with(request, &accept)
}

fn accept_with(request: &Request, accept: &str) -> Result<String, Failure> {
    if request.body != BodyLength::Bytes(0) {
        return Err(Failure::bad_request("a request for a WebSocket has no body"));
    }
    Ok(format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n"
    ))
}

/// Checks the client's handshake (RFC 6455, section 4.2.1) and returns the value of `Sec-WebSocket-Accept`.
/// tungstenite's `create_response` reads only the first line of `Connection` and `Upgrade`, which a proxy may have split
/// into several, and does not accept tabs as white space.
fn handshake(request: &Request) -> Result<String, Failure> {
    let fail = |status, text: &str| {
        Err(Failure(status, format!("this path is a WebSocket endpoint: {text} (RFC 6455, section 4.1)")))
    };
    if request.head.method() != Method::GET {
        return fail(StatusCode::UPGRADE_REQUIRED, "the method must be GET");
    }
    if request.head.version() < Version::HTTP_11 {
        return fail(StatusCode::UPGRADE_REQUIRED, "the request must be HTTP/1.1");
    }
    if !request.lists(header::UPGRADE, "websocket") {
        return fail(StatusCode::UPGRADE_REQUIRED, "header upgrade must list websocket");
    }
    if !request.lists(header::SEC_WEBSOCKET_VERSION, "13") {
        return fail(StatusCode::UPGRADE_REQUIRED, "header sec-websocket-version must be 13");
    }
    if !request.lists(header::CONNECTION, "upgrade") {
        return fail(StatusCode::BAD_REQUEST, "header connection must list upgrade");
    }
    let key = request.head.headers().get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    let key = key.unwrap_or_default().trim_ascii();
    if !KEY_BASE64.decode(key).is_ok_and(|key| key.len() == KEY_BYTES) {
        return fail(StatusCode::BAD_REQUEST, "header sec-websocket-key must be 16 bytes as base64");
    }
    Ok(tungstenite::handshake::derive_accept_key(key))
}

/// The client's token, from any of its places in a request. Several places may have the same token.
///
/// # Errors
/// Two different tokens: a proxy may have added either.
pub(super) fn token(request: &Request, in_query: Vec<u8>) -> Result<Option<Token<'static>>, Failure> {
    let authorization = request.head.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let (scheme, in_header) = authorization.unwrap_or_default().split_at_checked(7).unwrap_or_default();
    // Credentials of another scheme are for a proxy.
    let in_header = if scheme.eq_ignore_ascii_case(b"bearer ") { in_header.trim_ascii() } else { b"" };
    let subprotocols = request.list(header::SEC_WEBSOCKET_PROTOCOL);
    let as_subprotocols = subprotocols.filter_map(|name| name.strip_prefix(TOKEN_PREFIX));
    let mut given = as_subprotocols.chain([in_header, &in_query]).filter(|token| !token.is_empty());
    let Some(token) = given.next() else { return Ok(None) };
    match given.all(|other| other == token) {
        true => Ok(Some(Token(token.to_vec().into()))),
        false => Err(Failure::bad_request("the request has two different tokens")),
    }
}

/// Selects the first offered subprotocol that is supported (RFC 6455, section 4.2.2), and its name for the response.
fn negotiate(request: &Request) -> Result<(WireFormat, Option<&'static str>), Failure> {
    let mut offered = request.list(header::SEC_WEBSOCKET_PROTOCOL).peekable();
    if offered.peek().is_none() {
        return Ok((WireFormat::WEBSOCKET_JSON, None));
    }
    let supported = |name| WireFormat::from_subprotocol(std::str::from_utf8(name).ok()?);
    match offered.find_map(supported) {
        Some(format) => Ok((format, format.subprotocol())),
        None => {
            let names: Vec<_> = WireFormat::subprotocols().collect();
            // Browsers close a WebSocket if the server selects none of their subprotocols, so a token alone is not enough.
            Err(Failure::bad_request(format!("unknown subprotocol; use {}", names.join(", "))))
        }
    }
}
