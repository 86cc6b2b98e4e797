//! Reads a feed from a WebSocket server: one connection for all clients of this server. What the feed sends during an
//! interruption is lost; each interruption counts as one loss.
//!
//! ```text
//!  token (file, command, URL) --+
//!                               v
//!  url, headers, subprotocol -> upgrade -> `send` -> messages -> `items` of each -> Mapping
//!                                             ^
//!                                    `renew` before the token expires, or a new connection
//! ```

mod token;

use std::{collections::BTreeMap, convert::Infallible, fmt, pin::pin, time::Duration};

use futures_util::{
    FutureExt, SinkExt, StreamExt,
    future::{Either, select},
};
use http::{HeaderName, HeaderValue, Request, Uri, header};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use tungstenite::{Message as WebSocketMessage, client::IntoClientRequest, protocol::WebSocketConfig};

use self::token::{Token, TokenOptions};
use super::{
    Source, SourceContext, SourceError,
    engine::{self, EngineError, Ingest, Reader},
    kind::{Configured, OptionChecks, SourceOptions},
    mapping::{MapOptions, Mapping, Message, json_pointer::JsonPointer},
    tls::Tls,
};
use crate::limits::{SOURCE_MESSAGE_BYTES_MAX, SOURCE_SUBJECTS_MAX};
use tickcast_client::{TlsOptions, server_name};
use tickcast_common::{clock, values::Time};

/// Timeout for a connection, its handshakes and the upgrade.
const CONNECT: Duration = Duration::from_secs(10);
/// Timeout for the closing handshake.
const CLOSE: Duration = Duration::from_secs(1);
/// Timeout for sending one message.
const SEND: Duration = Duration::from_secs(5);
/// Placeholder for the token in texts.
const TOKEN: &str = "{token}";

/// A `[[source]]` of kind `websocket`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// `wss://host/path` or `ws://host/path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    /// Headers of the upgrade. No secrets: they are printed with the options.
    headers: BTreeMap<String, String>,
    /// The subprotocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    subprotocol: Option<String>,
    /// Texts to send once connected.
    send: Vec<String>,
    /// Texts to send with a renewed token, instead of connecting again.
    renew: Vec<String>,
    /// JSON pointer to the array in a message whose items are the ticks; empty: the message is one tick.
    items: String,
    /// Silence after which the server is pinged; 0: never.
    ping_interval: Time,
    /// Silence after which the connection is given up.
    idle: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<TokenOptions>,
    tls: Tls,
    map: MapOptions,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            url: None,
            headers: BTreeMap::new(),
            subprotocol: None,
            send: Vec::new(),
            renew: Vec::new(),
            items: String::new(),
            ping_interval: Time::from_ms(15_000),
            idle: Time::from_ms(60_000),
            token: None,
            tls: Tls::default(),
            map: MapOptions::default(),
        }
    }
}

impl SourceOptions for Options {
    const KIND: &'static str = "websocket";
    const REQUIRED: &'static [&'static str] = &["url"];

    fn configure(self, checks: &mut OptionChecks) -> Option<Configured> {
        let url = self.url.unwrap_or_default();
        match Target::parse(&url.replace(TOKEN, "x")) {
            Ok(target) => self.tls.check_address(target.is_tls, "wss://host/path", checks),
            Err(error) => checks.refuse("url", format!("{url:?}: {error}")),
        }
        for (name, value) in &self.headers {
            let is_valid = name.parse::<HeaderName>().is_ok() && HeaderValue::from_str(value).is_ok();
            if !is_valid {
                checks.refuse("headers", format!("{name:?} is not a valid header"));
            }
        }
        checks.within("send", self.send.len(), 0, SOURCE_SUBJECTS_MAX);
        checks.within("renew", self.renew.len(), 0, SOURCE_SUBJECTS_MAX);
        checks.within("idle", self.idle, Time::from_ms(100), Time::from_ms(3_600_000));
        let items = match &*self.items {
            "" => None,
            pointer => JsonPointer::parse(pointer).or_else(|| {
                checks.refuse("items", format!("{pointer:?} is not a JSON pointer such as /data"));
                None
            }),
        };
        if self.map.topic == MapOptions::default().topic {
            checks.refuse(
                "map",
                "set topic: a message has no subject; name a part of it, such as {json:/symbol}",
            );
        }
        let texts = self.send.iter().chain(&self.renew).chain(self.headers.values());
        let uses_token = url.contains(TOKEN) || texts.into_iter().any(|text| text.contains(TOKEN));
        if self.token.is_none() && uses_token {
            checks.refuse("token", "{token} is used: name its file, command or url");
        }
        let token = self.token.map(|token| Token::new(token, checks));
        self.tls.check(checks);
        let tls = TlsOptions { ca: self.tls.ca, cert: self.tls.cert, key: self.tls.key, insecure: false };
        let mapping = Mapping::new(&self.map, checks)?;
        let pattern = mapping.pattern();
        let source = WebSocket {
            url,
            headers: self.headers,
            subprotocol: self.subprotocol,
            send: self.send,
            renew: self.renew,
            items,
            ping_interval_ns: self.ping_interval.ns,
            idle_ns: self.idle.ns,
            token: token.map_or(Some(None), |token| token.map(Some))?,
            tls,
            mapping,
            was_read: false,
        };
        Some(Configured::new(pattern, source))
    }
}

/// Where to connect.
struct Target {
    host: String,
    port: u16,
    is_tls: bool,
}

impl Target {
    fn parse(url: &str) -> Result<Target, &'static str> {
        const USE: &str = "use wss://host/path or ws://host/path";
        let uri: Uri = url.parse().map_err(|_| USE)?;
        let is_tls = match uri.scheme_str() {
            Some("wss") => true,
            Some("ws") => false,
            _ => return Err(USE),
        };
        let authority = uri.authority().ok_or(USE)?;
        if authority.as_str().contains('@') {
            return Err("it holds credentials: use a header or a message with {token}");
        }
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        Ok(Target { host: authority.host().to_owned(), port, is_tls })
    }
}

/// The address without path and query, which may hold a token.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A configured source.
#[derive(Clone, Debug)]
struct WebSocket {
    url: String,
    headers: BTreeMap<String, String>,
    subprotocol: Option<String>,
    send: Vec<String>,
    renew: Vec<String>,
    items: Option<JsonPointer>,
    /// 0: never.
    ping_interval_ns: u64,
    idle_ns: u64,
    token: Option<Token>,
    tls: TlsOptions,
    mapping: Mapping,
    /// Whether an earlier attempt has read: messages sent since then are lost.
    was_read: bool,
}

impl Source for WebSocket {
    fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
        engine::run(context, self.mapping.clone(), self)
    }
}

impl Reader for WebSocket {
    async fn read(&mut self, ingest: &mut Ingest<'_>) -> Result<Infallible, EngineError> {
        let token = match &self.token {
            Some(token) => Some(ingest.waiting(token.obtain()).await?),
            None => None,
        };
        let secret = token.as_ref().map_or("", |token| &token.text);
        let url = self.url.replace(TOKEN, secret);
        let target = Target::parse(&url).map_err(|error| EngineError(error.into()))?;
        let request = self.request(&url, secret)?;
        let opened = ingest.waiting(timeout(CONNECT, open(&target, &self.tls, request))).await;
        let failed = |error: &dyn fmt::Display| EngineError(format!("{target}: {error}"));
        let mut socket =
            opened.map_err(|_| failed(&"no answer to the upgrade"))?.map_err(|error| failed(&error))?;
        if std::mem::replace(&mut self.was_read, true) {
            ingest.count_hole(1, "what was sent while nobody read");
        }
        let renew_ns = token.as_ref().and_then(|token| token.renew_ns);
        let result = self.listen(&mut socket, secret, renew_ns, ingest, &target).await;
        // A close is answered; a server that is gone does not hold up the next attempt.
        let _ = timeout(CLOSE, socket.close(None)).await;
        result
    }
}

/// A connection, plain or TLS.
trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}
type Socket = WebSocketStream<Box<dyn Stream>>;

async fn open(target: &Target, tls: &TlsOptions, request: Request<()>) -> Result<Socket, String> {
    let tcp = TcpStream::connect((&*target.host, target.port)).await.map_err(|error| error.to_string())?;
    // The kernel acknowledges at once; only pings and requests are sent.
    let _ = tcp.set_nodelay(true);
    let stream: Box<dyn Stream> = match target.is_tls {
        false => Box::new(tcp),
        true => {
            let config = tls.read(&[b"http/1.1"], false).map_err(|error| error.to_string())?;
            let name = server_name(&target.host).map_err(|error| error.to_string())?;
            let shaken = TlsConnector::from(config).connect(name, tcp).await;
            Box::new(shaken.map_err(|error| error.to_string())?)
        }
    };
    let config = WebSocketConfig::default()
        .max_message_size(Some(SOURCE_MESSAGE_BYTES_MAX))
        .max_frame_size(Some(SOURCE_MESSAGE_BYTES_MAX));
    match client_async_with_config(request, stream, Some(config)).await {
        Ok((socket, _)) => Ok(socket),
        // Its text holds no header, so no token either.
        Err(tungstenite::Error::Http(response)) => Err(format!("the upgrade got {}", response.status())),
        Err(error) => Err(error.to_string()),
    }
}

impl WebSocket {
    fn request(&self, url: &str, secret: &str) -> Result<Request<()>, EngineError> {
        let invalid = |what: &str| EngineError(format!("{what} with the token is not valid"));
        let mut request = url.into_client_request().map_err(|_| invalid("the url"))?;
        for (name, value) in &self.headers {
            let name: HeaderName = name.parse().map_err(|_| invalid("a header"))?;
            let value =
                HeaderValue::from_str(&value.replace(TOKEN, secret)).map_err(|_| invalid("a header"))?;
            request.headers_mut().insert(name, value);
        }
        if let Some(subprotocol) = &self.subprotocol {
            let value = HeaderValue::from_str(&subprotocol.replace(TOKEN, secret));
            let value = value.map_err(|_| invalid("the subprotocol"))?;
            request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, value);
        }
        Ok(request)
    }

    /// Sends the configured texts, and reads until the connection ends, is silent for too long, or the token must be renewed.
    async fn listen(
        &self,
        socket: &mut Socket,
        secret: &str,
        mut renew_ns: Option<u64>,
        ingest: &mut Ingest<'_>,
        target: &Target,
    ) -> Result<Infallible, EngineError> {
        let failed = |error: &dyn fmt::Display| EngineError(format!("{target}: {error}"));
        for text in &self.send {
            send(socket, text.replace(TOKEN, secret)).await.map_err(|error| failed(&error))?;
        }
        ingest.connected(&target.to_string());
        let (mut heard_ns, mut pinged_ns) = (clock::monotonic_ns(), clock::monotonic_ns());
        loop {
            let ping_ns = (self.ping_interval_ns > 0)
                .then(|| heard_ns.max(pinged_ns).saturating_add(self.ping_interval_ns));
            let idle_ns = heard_ns.saturating_add(self.idle_ns);
            let wake_ns = [ping_ns, renew_ns].into_iter().flatten().fold(idle_ns, u64::min);
            let wait_ns = wake_ns.saturating_sub(clock::monotonic_ns());
            let pause = pin!(sleep(Duration::from_nanos(wait_ns)));
            match ingest.waiting(select(socket.next(), pause)).await {
                Either::Left((message, _)) => {
                    heard_ns = clock::monotonic_ns();
                    let mut next = Some(message);
                    while let Some(message) = next {
                        self.take(message, ingest).await.map_err(|error| failed(&error))?;
                        next = socket.next().now_or_never();
                    }
                    ingest.flush();
                }
                Either::Right(_) => {
                    let now_ns = clock::monotonic_ns();
                    if now_ns >= idle_ns {
                        return Err(failed(&format_args!("silent for {} s", self.idle_ns as f64 / 1e9)));
                    }
                    if ping_ns.is_some_and(|at_ns| now_ns >= at_ns) {
                        pinged_ns = now_ns;
                        let ping = WebSocketMessage::Ping(Default::default());
                        let sent = timeout(SEND, socket.send(ping)).await;
                        sent.map_err(|_| failed(&"a ping cannot be sent"))?
                            .map_err(|error| failed(&error))?;
                    }
                    if renew_ns.is_some_and(|at_ns| now_ns >= at_ns) {
                        renew_ns = self.renew(socket).await.map_err(|error| failed(&error))?;
                    }
                }
            }
        }
    }

    /// Sends a new token. Returns when the next one is due.
    async fn renew(&self, socket: &mut Socket) -> Result<Option<u64>, String> {
        let Some(token) = &self.token else { return Ok(None) };
        if self.renew.is_empty() {
            return Err("connecting again with a new token".into());
        }
        let fresh = token.obtain().await.map_err(|EngineError(text)| text)?;
        for text in &self.renew {
            send(socket, text.replace(TOKEN, &fresh.text)).await?;
        }
        Ok(fresh.renew_ns)
    }

    /// Publishes the ticks of a message; never returns once the server stops.
    async fn take(
        &self,
        message: Option<Result<WebSocketMessage, tungstenite::Error>>,
        ingest: &mut Ingest<'_>,
    ) -> Result<(), String> {
        let payload = match message {
            Some(Ok(WebSocketMessage::Text(text))) => text.into(),
            Some(Ok(WebSocketMessage::Binary(bytes))) => bytes,
            Some(Ok(WebSocketMessage::Close(frame))) => {
                return Err(frame.map_or_else(
                    || "closed".into(),
                    |frame| format!("closed with {}: {}", u16::from(frame.code), frame.reason),
                ));
            }
            Some(Ok(_)) => return Ok(()),
            Some(Err(error)) => return Err(error.to_string()),
            None => return Err("the connection has ended".into()),
        };
        let Some(pointer) = &self.items else {
            publish(&payload, ingest).await;
            return Ok(());
        };
        // An answer to a request has no items.
        let Some(value) = pointer.value(&payload) else { return Ok(()) };
        match serde_json::from_str::<Vec<&RawValue>>(value.get()) {
            Ok(items) => {
                for item in items {
                    publish(item.get().as_bytes(), ingest).await;
                }
            }
            // One item may stand alone.
            Err(_) => publish(value.get().as_bytes(), ingest).await,
        }
        Ok(())
    }
}

async fn publish(payload: &[u8], ingest: &mut Ingest<'_>) {
    ingest.take(Message { subject: "", key: None, headers: &(), payload, time_ns: None }).await;
}

async fn send(socket: &mut Socket, text: String) -> Result<(), String> {
    let sent = timeout(SEND, socket.send(WebSocketMessage::text(text))).await;
    sent.map_err(|_| "a message cannot be sent".to_owned())?.map_err(|error| error.to_string())
}
