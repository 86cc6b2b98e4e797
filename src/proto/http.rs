//! HTTP/1.1 server, sans I/O: whole requests in, one answer to each, in order (RFC 9110, RFC 9112, RFC 6455).
//!
//! ```text
//!  bytes -> Connection::step -> request (head) -> route -> Response, or the upgrade to a WebSocket (websocket)
//!                   |                                          |
//!                   '-> body: where the request ends           '-> response: the bytes to send
//! ```
//! A request stays in the connection's input until it is complete, so its body is one slice, and a connection can move to
//! another shard before it is answered. The caller is responsible for bytes, deadlines and order: it asks for the next answer
//! once it has sent the last one.

pub mod access;
pub mod api;
mod body;
pub mod host;
mod idempotency;
mod lines;
mod query;
mod request;
mod response;
pub mod socket_io;
mod stream;
#[cfg(test)]
mod tests;
mod websocket;

use std::{borrow::Cow, net::IpAddr};

use http::{Method, StatusCode};

use self::{
    access::{Access, Sender},
    api::{Call, Exchange},
    body::{Body, BodyLength},
    lines::Lines,
    request::Request,
    response::Delivery,
    socket_io::Poll,
};
use crate::{
    Step, WireFormat,
    command::Token,
    framing::{engine_io::Sid, event_stream::KeptPlaces, websocket::deflate::Agreement},
    limits::{HTTP_HEAD_BYTES_MAX_DEFAULT, REFUSED_RETRY_AFTER_S},
    subscription::{Delivery as TickDelivery, StartPosition},
};

pub use self::response::Response;

/// Asks a waiting client to send the body of its request (RFC 9110, section 10.1.1).
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// Path for the probes of load balancers.
const HEALTH: &str = "/healthz";
/// How the text about a method that is not supported begins.
const ONLY: &str = "only ";
/// Methods that every page and file supports.
const ALLOWED: &str = "GET, HEAD";

/// What to do on a connection after [`Connection::step`].
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Send these bytes, if any; the answer follows later.
    Interim(&'static [u8]),
    /// Send the response.
    Respond {
        /// The complete response.
        response: Vec<u8>,
        /// Its status, for logging.
        status: u16,
        /// Whether the connection closes after it. If not, the next request may follow.
        closes: bool,
    },
    /// Carry out a request of `/v1`, then answer it.
    Call {
        /// The request.
        call: Call,
        /// How it is answered.
        exchange: Exchange,
        /// As in [`Answer::Upgrade`].
        host: Box<str>,
        /// As in [`Answer::Upgrade`].
        forwarded_for: Vec<IpAddr>,
        /// The client's token: in `Authorization: Bearer` or in `?token=`. Never empty.
        token: Option<Token<'static>>,
    },
    /// Serve a request of Engine.IO's long-polling, then answer it.
    Poll {
        /// The request.
        poll: Poll,
        /// How it is answered.
        exchange: Exchange,
        /// As in [`Answer::Upgrade`].
        host: Box<str>,
        /// As in [`Answer::Upgrade`].
        forwarded_for: Vec<IpAddr>,
        /// As in [`Answer::Call`].
        token: Option<Token<'static>>,
    },
    /// Send the response, then speak WebSocket, or send a stream.
    Upgrade {
        /// The 101 response, or the beginning of the stream.
        response: Vec<u8>,
        /// The requested target.
        target: Target,
        /// The host that the request is for, without a port; empty if an HTTP/1.0 request has none.
        host: Box<str>,
        /// The addresses in `X-Forwarded-For`, from the last proxy backwards, as far as they are valid.
        forwarded_for: Vec<IpAddr>,
        /// Header lines for browsers, which an answer that refuses the request must have too: see [`refused_to_page`].
        cors: String,
        /// The request was HEAD, for a stream: the response is the beginning alone, and ends the connection.
        is_head: bool,
    },
}

/// What a request for a stream says about an earlier stream of the same client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resumed {
    /// Nothing.
    #[default]
    Nothing,
    /// The client has the positions in `from`, and of other topics what has come since the first stream began.
    Since {
        /// When it began: CLOCK_REALTIME, microseconds; 0: unknown.
        since_us: u64,
    },
    /// A shard keeps the client's positions, which replace `from`.
    Kept(KeptPlaces),
    /// The client has an event id that is not from this server.
    Lost,
}

/// The use of a WebSocket or a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    /// `/ws`: the protocol, with subscriptions to start immediately. `/sse`: what these subscriptions receive. `/socket.io/`: an
    /// Engine.IO session, without subscriptions.
    Stream {
        /// Selected by the subprotocol, JSON if the client offers none, and by `Sec-WebSocket-Extensions`; on `/sse` by `Accept`; on
        /// `/socket.io/` always the same.
        format: WireFormat,
        /// Whether the client may compress its messages.
        inflates: bool,
        /// `?topics=a.b,c.>`, percent-decoded, not validated.
        patterns: Vec<String>,
        /// `?policy=conflate&max_rate=5`.
        delivery: TickDelivery,
        /// `?from=latest`.
        from: StartPosition,
        /// What the client has of an earlier stream.
        resumed: Resumed,
        /// `?client=ID`, percent-decoded and validated; empty: none.
        client: String,
        /// The client's token: in `Authorization: Bearer`, as the subprotocol `bearer.TOKEN`, or in `?token=`. Never empty.
        token: Option<Token<'static>>,
    },
    /// `/socket.io/` with a session's name: the WebSocket to which that session is upgraded.
    Carrier(Sid),
    /// `/echo`: returns every message.
    Echo {
        /// What client and server have agreed on about compression.
        extension: Option<Agreement>,
    },
}

impl Target {
    /// Whether the client only reads.
    pub fn is_one_way(&self) -> bool {
        matches!(self, Target::Stream { format, .. } if format.framing.is_one_way())
    }
}

/// Configuration of the HTTP server: its resources, and who may use them.
#[derive(Clone, Copy, Debug)]
pub struct HttpConfig<'a> {
    /// Largest request head, in bytes.
    pub head_bytes_max: usize,
    /// Whether connections stay open after a response.
    pub keeps_alive: bool,
    /// Whether `/healthz` exists.
    pub health: bool,
    /// Whether `/echo` exists.
    pub debug_echo: bool,
    /// Whether messages of WebSockets may be compressed.
    pub deflate: bool,
    /// Whether `?token=` is accepted.
    pub query_token: bool,
    /// Whether a publish may have a message id, in `Idempotency-Key` for example.
    pub message_ids: bool,
    /// Static files, by path.
    pub files: &'a dyn StaticFiles,
    /// Web pages and host names that are allowed.
    pub access: &'a Access,
    /// Who sends the connection's requests.
    pub sender: Sender,
    /// The time, CLOCK_REALTIME nanoseconds.
    pub realtime_ns: u64,
}

impl HttpConfig<'_> {
    /// Serves `/ws` alone, to everyone.
    pub const WEBSOCKET: HttpConfig<'static> = HttpConfig {
        head_bytes_max: HTTP_HEAD_BYTES_MAX_DEFAULT,
        keeps_alive: true,
        health: false,
        debug_echo: false,
        deflate: false,
        query_token: false,
        message_ids: true,
        files: &NoFiles,
        access: &Access { origins: Vec::new(), hosts: Vec::new(), tenant_hosts: Vec::new(), is_local: false },
        sender: Sender::Anyone,
        realtime_ns: 0,
    };
}

/// Static files, served for GET and HEAD.
pub trait StaticFiles: std::fmt::Debug + Sync {
    /// Whether a file exists at this path.
    fn contains(&self, path: &str) -> bool;

    /// The response to a GET. `None` if no file exists at this path.
    fn respond(&self, path: &str, headers: &http::HeaderMap) -> Option<Response>;
}

/// No static files.
#[derive(Clone, Copy, Debug)]
pub struct NoFiles;

impl StaticFiles for NoFiles {
    fn contains(&self, _path: &str) -> bool {
        false
    }

    fn respond(&self, _path: &str, _headers: &http::HeaderMap) -> Option<Response> {
        None
    }
}

/// Why a request is refused: status, and one line of text that says what is wrong.
#[derive(Debug)]
struct Failure(StatusCode, String);

impl Failure {
    fn bad_request(text: impl Into<String>) -> Failure {
        Failure(StatusCode::BAD_REQUEST, text.into())
    }

    /// The resource supports only these methods, which the header Allow repeats.
    fn method_not_allowed(allowed: &str) -> Failure {
        Failure(StatusCode::METHOD_NOT_ALLOWED, format!("{ONLY}{allowed}"))
    }
}

/// One connection.
#[derive(Debug, Default)]
pub struct Connection {
    /// The request whose head has arrived and whose body has not.
    pending: Option<Box<Pending>>,
}

/// A request whose body is arriving.
#[derive(Debug)]
enum Pending {
    /// It stays in the input until it is complete.
    Body(Body),
    /// Its lines are published while they arrive.
    Lines(Box<Lines>),
}

/// The answer to a request.
enum Outcome<'a> {
    Response(Response),
    /// A request of `/v1` and its token. To be parsed once its body has arrived.
    Call(api::Resource<'a>, Option<Token<'static>>),
    /// A request of `/v1` and its token, whose lines are published while they arrive.
    Lines(Option<Token<'static>>),
    /// The same for long-polling.
    Poll {
        sid: Option<Sid>,
        client: Box<str>,
        token: Option<Token<'static>>,
    },
    Upgrade(Vec<u8>, Target),
}

impl Connection {
    /// Decodes and answers the request at the front of `bytes`, which start where the last complete step ended. Does not allocate
    /// while the head is incomplete.
    /// An invalid request is answered as soon as its head has arrived. If its body is incomplete or has no known end, the
    /// connection closes after the answer.
    pub fn step(&mut self, bytes: &[u8], config: &HttpConfig<'_>) -> Step<Answer> {
        match self.pending.as_deref_mut() {
            Some(Pending::Lines(lines)) if !lines.is_over() => return lines.step(bytes, config),
            Some(Pending::Lines(_)) => self.pending = None,
            Some(Pending::Body(body)) => {
                if let Ok(Step::Partial) = body.advance(bytes) {
                    return Step::Partial;
                }
            }
            None => {}
        }
        // Some clients send a line break after a body (RFC 9112, section 2.2).
        let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        if blank > 0 && self.pending.is_none() {
            return Step::Complete(blank, Answer::Interim(b""));
        }
        let (head_bytes, request) = match request::parse(bytes, config.head_bytes_max) {
            Ok(Step::Partial) => return Step::Partial,
            Ok(Step::Complete(head_bytes, request)) => (head_bytes, request),
            Err((failure, is_head)) => return end(bytes, failure, is_head, "", config),
        };
        let mut body = match self.pending.take().map(|pending| *pending) {
            Some(Pending::Body(body)) => body,
            Some(Pending::Lines(_)) | None => Body::new(head_bytes, request.body),
        };
        let (outcome, cors) = respond(&request, config);
        let keeps_alive = request.keeps_alive && config.keeps_alive;
        if let Ok(Outcome::Lines(token)) = outcome {
            let exchange = Exchange::new(&request, keeps_alive, cors.clone());
            return match Lines::new(&request, exchange, host_of(&request), token) {
                Ok(mut lines) if request.body == BodyLength::Bytes(0) => match lines.step(b"", config) {
                    Step::Complete(_, answer) => Step::Complete(head_bytes, answer),
                    Step::Partial => Step::Complete(head_bytes, Answer::Interim(b"")),
                },
                Ok(lines) => {
                    self.pending = Some(Box::new(Pending::Lines(Box::new(lines))));
                    let interim = if request.expects_continue { CONTINUE } else { b"" };
                    Step::Complete(head_bytes, Answer::Interim(interim))
                }
                Err(failure) => end(bytes, failure, false, &cors, config),
            };
        }
        match body.advance(bytes) {
            Err(Failure(status @ StatusCode::PAYLOAD_TOO_LARGE, text))
                if matches!(outcome, Ok(Outcome::Call(api::Resource::Publish, _))) =>
            {
                let text =
                    format!("{text}; lines of ticks may be of any length at /v1/publish?answer=summary");
                end(bytes, Failure(status, text), request.is_head(), &cors, config)
            }
            Err(failure) => end(bytes, failure, request.is_head(), &cors, config),
            Ok(Step::Complete(used, ())) => {
                let answer = match outcome {
                    Ok(Outcome::Call(resource, token)) => {
                        let content = body::content(&bytes[head_bytes..used], request.body);
                        let exchange = Exchange::new(&request, keeps_alive, cors);
                        api::call(resource, &request, &content, exchange, token, config)
                    }
                    Ok(Outcome::Poll { sid, client, token }) => {
                        let content = body::content(&bytes[head_bytes..used], request.body);
                        let exchange = Exchange::new(&request, keeps_alive, cors);
                        let poll = socket_io::poll(&request, sid, client, &content);
                        let host = host_of(&request);
                        let forwarded_for = request.forwarded_for();
                        Answer::Poll { poll, exchange, host, forwarded_for, token }
                    }
                    outcome => deliver(outcome, cors, &request, keeps_alive, config),
                };
                Step::Complete(used, answer)
            }
            Ok(Step::Partial) if outcome.is_err() => {
                Step::Complete(bytes.len(), deliver(outcome, cors, &request, false, config))
            }
            Ok(Step::Partial) => {
                self.pending = Some(Box::new(Pending::Body(body)));
                if request.expects_continue {
                    Step::Complete(0, Answer::Interim(CONTINUE))
                } else {
                    Step::Partial
                }
            }
        }
    }

    /// Whether a request's lines are being published while they arrive.
    pub fn takes_lines(&self) -> bool {
        matches!(self.pending.as_deref(), Some(Pending::Lines(lines)) if !lines.is_over())
    }

    /// Takes back the last step, if it has taken lines: they have to wait, and stay in the input.
    pub fn unread_lines(&mut self) {
        if let Some(Pending::Lines(lines)) = self.pending.as_deref_mut() {
            lines.unread();
        }
    }
}

/// The host that a request is for, without a port; empty if an HTTP/1.0 request has none.
fn host_of(request: &Request) -> Box<str> {
    request.authority.as_ref().map_or_else(Box::default, |authority| authority.host().into())
}

/// Answers a request that cannot be read, and ends the connection.
fn end(bytes: &[u8], failure: Failure, is_head: bool, cors: &str, config: &HttpConfig<'_>) -> Step<Answer> {
    let delivery = Delivery { is_head, keeps_alive: false, is_1_0: false, realtime_ns: config.realtime_ns };
    let mut response = Response::from(failure);
    response.fields += cors;
    Step::Complete(bytes.len(), respond_with(response, delivery))
}

fn deliver(
    outcome: Result<Outcome<'_>, Failure>,
    cors: String,
    request: &Request,
    keeps_alive: bool,
    config: &HttpConfig<'_>,
) -> Answer {
    let mut response = match outcome {
        Ok(Outcome::Upgrade(response, target)) => {
            let host = host_of(request);
            let forwarded_for = request.forwarded_for();
            let is_head = request.is_head();
            return Answer::Upgrade { response, target, host, forwarded_for, cors, is_head };
        }
        Ok(Outcome::Response(response)) => response,
        Ok(Outcome::Call(..) | Outcome::Lines(_) | Outcome::Poll { .. }) => {
            debug_assert!(false, "the core answers it");
            Response::text(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
        }
        Err(failure) => failure.into(),
    };
    response.fields += &cors;
    // After such a request, nobody knows where the next one starts.
    let keeps_alive = keeps_alive && response.status != StatusCode::BAD_REQUEST;
    let is_1_0 = request.head.version() < http::Version::HTTP_11;
    let realtime_ns = config.realtime_ns;
    respond_with(response, Delivery { is_head: request.is_head(), keeps_alive, is_1_0, realtime_ns })
}

fn respond_with(response: Response, delivery: Delivery) -> Answer {
    Answer::Respond {
        status: response.status.as_u16(),
        response: response.encode(delivery),
        closes: !delivery.keeps_alive,
    }
}

/// Finds the resource of a request. Returns its outcome, and the header lines that let a page of another origin read the answer,
/// whatever that is: without them, a page cannot tell a refusal from a network error.
fn respond<'a>(request: &'a Request, config: &HttpConfig<'_>) -> (Result<Outcome<'a>, Failure>, String) {
    let path = request.head.uri().path();
    // Load balancers probe by any name, and a page learns nothing from the answer.
    if path != HEALTH
        && let Err(failure) = config.access.check_host(request, config.sender, config.files.contains(path))
    {
        return (Err(failure), String::new());
    }
    let resource = api::Resource::at(path);
    let is_socket_io = socket_io::is_at(path);
    if resource.is_none() && path != "/sse" && !is_socket_io {
        return (respond_to_own(request, config), String::new());
    }
    let cors = match access::cors(config.access, request) {
        Ok(cors) => cors,
        Err(failure) => return (Err(failure), String::new()),
    };
    let allowed = match resource {
        Some(resource) => resource.allowed(),
        None if is_socket_io => socket_io::ALLOWED,
        None => stream::ALLOWED,
    };
    let outcome = match (request.head.method(), resource) {
        (&Method::OPTIONS, _) => Ok(Outcome::Response(preflight(allowed))),
        (method, Some(resource)) if !resource.allows(method) => Err(Failure::method_not_allowed(allowed)),
        (_, Some(resource)) => api::check(request, config).and_then(|token| {
            let is_summarised = api::is_summarised(resource, request)?;
            Ok(if is_summarised { Outcome::Lines(token) } else { Outcome::Call(resource, token) })
        }),
        (_, None) if is_socket_io => socket_io::find(request, config).map(|found| match found {
            socket_io::Resource::WebSocket(outcome) => outcome,
            socket_io::Resource::Poll { sid, client, token } => Outcome::Poll { sid, client, token },
        }),
        (_, None) => stream::open(request, &cors, config),
    };
    (outcome, cors)
}

/// Finds a resource that only pages of the server's own origin use.
fn respond_to_own(request: &Request, config: &HttpConfig<'_>) -> Result<Outcome<'static>, Failure> {
    let (method, path) = (request.head.method(), request.head.uri().path());
    let is_health = config.health && path == HEALTH;
    let is_websocket = path == "/ws" || config.debug_echo && path == "/echo";
    if !is_health && !is_websocket && !config.files.contains(path) {
        return Err(Failure(
            StatusCode::NOT_FOUND,
            "not found; the page is at /, the WebSocket at /ws, the stream at /sse, Socket.IO at /socket.io/, requests at /v1"
                .to_owned(),
        ));
    }
    if method != Method::GET && method != Method::HEAD {
        return Err(Failure::method_not_allowed(ALLOWED));
    }
    if is_websocket {
        return websocket::upgrade(request, config);
    }
    let response = match config.files.respond(path, request.head.headers()) {
        Some(file) => file,
        None => Response::text(StatusCode::OK, "ok"),
    };
    Ok(Outcome::Response(response))
}

/// Tells a browser what a page of another origin may send (Fetch, section 3.2.2).
fn preflight(allowed: &str) -> Response {
    let fields = format!(
        "Access-Control-Allow-Methods: {allowed}\r\n\
         Access-Control-Allow-Headers: Authorization, Cache-Control, Content-Type, Idempotency-Key, Last-Event-ID\r\n\
         Access-Control-Max-Age: 600\r\n"
    );
    Response { status: StatusCode::NO_CONTENT, fields, body: Cow::Borrowed(&[]) }
}

impl From<Failure> for Response {
    fn from(Failure(status, text): Failure) -> Response {
        let mut response = Response::text(status, &text);
        match status {
            StatusCode::UPGRADE_REQUIRED => {
                response.fields += "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                response.fields += &format!("Allow: {}\r\n", text.strip_prefix(ONLY).unwrap_or(ALLOWED));
            }
            // RFC 6750, section 3.
            StatusCode::UNAUTHORIZED => response.fields += "WWW-Authenticate: Bearer\r\n",
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                response.fields += &format!("Retry-After: {REFUSED_RETRY_AFTER_S}\r\n");
            }
            _ => {}
        }
        response
    }
}

/// The response that ends a connection before its request has been read: status and reason.
pub fn refused(status: u16, text: &str, realtime_ns: u64) -> Vec<u8> {
    refused_to_page(status, text, ("", false), realtime_ns)
}

/// As [`refused`], after the request has been read. `cors` and `is_head`: those of [`Answer::Upgrade`].
pub fn refused_to_page(status: u16, text: &str, (cors, is_head): (&str, bool), realtime_ns: u64) -> Vec<u8> {
    let code = StatusCode::from_u16(status);
    debug_assert!(code.is_ok(), "{status} is an HTTP status");
    let delivery = Delivery { is_head, keeps_alive: false, is_1_0: false, realtime_ns };
    let failure = Failure(code.unwrap_or(StatusCode::SERVICE_UNAVAILABLE), text.to_owned());
    let mut response = Response::from(failure);
    response.fields += cors;
    response.encode(delivery)
}

/// Elements of a list header (RFC 9110, section 5.6.1): several lines are one list, white space around an element is
/// removed, and empty elements are skipped.
pub fn list_elements<'a>(lines: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    let elements = lines.flat_map(|line| line.split(|&byte| byte == b','));
    elements.map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}
