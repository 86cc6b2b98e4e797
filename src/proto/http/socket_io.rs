//! `/socket.io/`: the requests of Engine.IO 4 that open a session. Errors have Engine.IO's codes, which its clients show.

use std::borrow::Cow;

use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;

use super::{Failure, HttpConfig, Outcome, Response, Target, query, request::Request, websocket};
use crate::{
    WireFormat, identity,
    subscription::{Delivery, StartPosition},
};

/// Methods of `/socket.io/`.
pub(super) const ALLOWED: &str = "GET";

/// Whether a path is that of Socket.IO. Some clients leave out its last slash.
pub(super) fn is_at(path: &str) -> bool {
    path == "/socket.io/" || path == "/socket.io"
}

/// An error of Engine.IO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EngineError {
    UnknownTransport = 0,
    UnknownSession = 1,
    UnsupportedProtocol = 5,
}

impl EngineError {
    fn message(self) -> &'static str {
        match self {
            EngineError::UnknownTransport => "Transport unknown",
            EngineError::UnknownSession => "Session ID unknown",
            EngineError::UnsupportedProtocol => "Unsupported protocol version",
        }
    }

    fn respond(self) -> Response {
        let body = format!("{{\"code\":{},\"message\":\"{}\"}}", self as u8, self.message());
        Response {
            status: StatusCode::BAD_REQUEST,
            fields: "Content-Type: application/json\r\n".to_owned(),
            body: Cow::Owned(body.into_bytes()),
        }
    }
}

/// The parameters of a request. Others belong to the application, or prevent caching.
#[derive(Default)]
struct Parameters<'a> {
    version: &'a str,
    transport: &'a str,
    sid: &'a str,
    client: String,
    token: Vec<u8>,
}

fn parameters<'a>(text: Option<&'a str>, takes_token: bool) -> Result<Parameters<'a>, Failure> {
    let mut parameters = Parameters::default();
    for (name, value) in query::pairs(text) {
        match name {
            "EIO" => parameters.version = value,
            "transport" => parameters.transport = value,
            "sid" => parameters.sid = value,
            "client" => {
                let value: Cow<'_, [u8]> = percent_decode_str(value).into();
                let identity = identity::check(&value);
                let identity =
                    identity.map_err(|error| Failure::bad_request(format!("parameter client: {error}")))?;
                parameters.client = identity.to_owned();
            }
            // An application's own, unless the operator accepts tokens here.
            "token" if takes_token => parameters.token = percent_decode_str(value).collect(),
            _ => {}
        }
    }
    Ok(parameters)
}

/// Answers a request for a session.
pub(super) fn open(request: &Request, config: &HttpConfig<'_>) -> Result<Outcome<'static>, Failure> {
    let Parameters { version, transport, sid, client, token } =
        parameters(request.head.uri().query(), config.query_token)?;
    let error = match (version, transport, sid) {
        ("4", "websocket", "") => None,
        ("4", "websocket", _) => Some(EngineError::UnknownSession),
        ("4", ..) => Some(EngineError::UnknownTransport),
        _ => Some(EngineError::UnsupportedProtocol),
    };
    if let Some(error) = error {
        return Ok(Outcome::Response(error.respond()));
    }
    if request.head.method() != Method::GET {
        return Err(Failure::method_not_allowed(ALLOWED));
    }
    let mut response = websocket::accept(request)?;
    response += "\r\n";
    let target = Target::Stream {
        format: WireFormat::SOCKET_IO,
        patterns: Vec::new(),
        delivery: Delivery::default(),
        from: StartPosition::Live,
        kept: None,
        client,
        token: websocket::token(request, token)?,
    };
    Ok(Outcome::Upgrade(response.into_bytes(), target))
}
