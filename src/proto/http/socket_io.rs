//! `/socket.io/`: the requests of Engine.IO 4 that open a session, upgrade it, or are its long-polling. Errors have Engine.IO's codes, which its clients show.

use std::borrow::Cow;

use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;

use super::{
    Failure, HttpConfig, Outcome, Response, Resumed, Target, body::BodyLength, query, request::Request,
    response::Delivery, websocket,
};
use crate::{
    WireFormat,
    command::Token,
    framing::engine_io::Sid,
    identity,
    subscription::{Delivery as TickDelivery, StartPosition},
};

/// Methods of `/socket.io/`.
pub(super) const ALLOWED: &str = "GET, HEAD, POST";

/// Header lines of an answer to long-polling.
pub(super) const POLL_FIELDS: &str = "Content-Type: text/plain; charset=UTF-8\r\nCache-Control: no-store\r\n";

/// Whether a path is that of Socket.IO. Some clients leave out its last slash.
pub(super) fn is_at(path: &str) -> bool {
    path == "/socket.io/" || path == "/socket.io"
}

/// An error of Engine.IO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EngineError {
    UnknownTransport = 0,
    UnknownSession = 1,
    BadMethod = 2,
    BadRequest = 3,
    UnsupportedProtocol = 5,
}

impl EngineError {
    fn message(self) -> &'static str {
        match self {
            EngineError::UnknownTransport => "Transport unknown",
            EngineError::UnknownSession => "Session ID unknown",
            EngineError::BadMethod => "Bad handshake method",
            EngineError::BadRequest => "Bad request",
            EngineError::UnsupportedProtocol => "Unsupported protocol version",
        }
    }

    fn body(self) -> String {
        format!("{{\"code\":{},\"message\":\"{}\"}}", self as u8, self.message())
    }

    fn respond(self) -> Response {
        Response {
            status: StatusCode::BAD_REQUEST,
            fields: "Content-Type: application/json\r\n".to_owned(),
            body: Cow::Owned(self.body().into_bytes()),
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

/// A request of long-polling.
#[derive(Debug, PartialEq, Eq)]
pub enum Poll {
    /// Open a session of a client with this identity, if it claims one.
    Open {
        /// The identity; empty: none.
        client: Box<str>,
    },
    /// Answer with the packets for the client, as soon as there are any.
    Receive(Sid),
    /// Take packets from the client, separated by 0x1e.
    Send(Sid, Vec<u8>),
}

/// What `/socket.io/` is asked for.
pub(super) enum Resource {
    /// A WebSocket: a session of its own, or the transport to which a session is upgraded. Also an answer that needs no session.
    WebSocket(Outcome<'static>),
    /// Long-polling. The body of a POST has not been read yet.
    Poll { sid: Option<Sid>, client: Box<str>, token: Option<Token<'static>> },
}

/// Answers a request, or finds what it polls.
pub(super) fn find(request: &Request, config: &HttpConfig<'_>) -> Result<Resource, Failure> {
    let Parameters { version, transport, sid, client, token } =
        parameters(request.head.uri().query(), config.query_token)?;
    let respond = |error: EngineError| Ok(Resource::WebSocket(Outcome::Response(error.respond())));
    if version != "4" {
        return respond(EngineError::UnsupportedProtocol);
    }
    if transport != "polling" && transport != "websocket" {
        return respond(EngineError::UnknownTransport);
    }
    let sid = match sid {
        "" => None,
        text => match Sid::decode(text) {
            None => return respond(EngineError::UnknownSession),
            sid => sid,
        },
    };
    let method = request.head.method();
    if transport == "polling" {
        return match (method, sid) {
            (&Method::POST, None) => respond(EngineError::BadMethod),
            (&Method::GET | &Method::HEAD, _) if request.body != BodyLength::Bytes(0) => {
                respond(EngineError::BadRequest)
            }
            (&Method::GET | &Method::POST, sid) => {
                Ok(Resource::Poll { sid, client: client.into(), token: websocket::token(request, token)? })
            }
            // Neither opens a session nor takes its packets.
            (&Method::HEAD, _) => Ok(Resource::WebSocket(Outcome::Response(Response {
                status: StatusCode::OK,
                fields: POLL_FIELDS.to_owned(),
                body: Cow::Borrowed(&[]),
            }))),
            _ => Err(Failure::method_not_allowed(ALLOWED)),
        };
    }
    if method != Method::GET && method != Method::HEAD {
        return Err(Failure::method_not_allowed(ALLOWED));
    }
    let mut response = websocket::accept(request)?;
    response += "\r\n";
    let target = match sid {
        Some(sid) => Target::Carrier(sid),
        None => Target::Stream {
            format: WireFormat::SOCKET_IO,
            inflates: false,
            patterns: Vec::new(),
            delivery: TickDelivery::default(),
            from: StartPosition::Live,
            resumed: Resumed::Nothing,
            client,
            token: websocket::token(request, token)?,
        },
    };
    Ok(Resource::WebSocket(Outcome::Upgrade(response.into_bytes(), target)))
}

/// The request with its body.
pub(super) fn poll(request: &Request, sid: Option<Sid>, client: Box<str>, body: &[u8]) -> Poll {
    match (request.head.method(), sid) {
        (&Method::POST, Some(sid)) => Poll::Send(sid, body.to_vec()),
        (_, Some(sid)) => Poll::Receive(sid),
        (_, None) => Poll::Open { client },
    }
}

/// The response that refuses to upgrade a session, and ends the connection. `exists`: whether there is such a session.
pub fn refuse(exists: bool, cors: &str, realtime_ns: u64) -> Vec<u8> {
    let error = if exists { EngineError::BadRequest } else { EngineError::UnknownSession };
    let mut response = error.respond();
    response.fields += cors;
    response.encode(Delivery { is_head: false, keeps_alive: false, is_1_0: false, realtime_ns })
}

/// The body that says that a request belongs to no session.
pub fn unknown_session() -> String {
    EngineError::UnknownSession.body()
}

/// The body that says that a request does not fit the state of its session.
pub fn bad_request() -> String {
    EngineError::BadRequest.body()
}
