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
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use tungstenite::{Message as WebSocketMessage, client::IntoClientRequest, protocol::WebSocketConfig};

use self::token::{Obtained, Token, TokenOptions};
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
/// Wait after a token could not be renewed, and between two looks at a renewal under way.
const RENEW_RETRY_NS: u64 = 5_000_000_000;
const RENEW_LOOK_NS: u64 = 20_000_000;
/// Messages after which deadlines are checked, and the rings pushed.
const MESSAGES_PER_TURN: usize = 256;
/// Headers that hold credentials.
const SECRET_HEADERS: [&str; 4] = ["authorization", "proxy-authorization", "cookie", "x-api-key"];
/// Bytes of a token that a URL escapes: all but those that mean themselves everywhere (RFC 3986, section 2.3).
const IN_URL: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
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
            Err(error) => {
                // What is before an @ may be a password, what follows a ? a token.
                let shown = url.rsplit_once('@').map_or(&*url, |(_, host)| host);
                let shown = shown.split_once('?').map_or(shown, |(path, _)| path);
                checks.refuse("url", format!("{shown:?}: {error}"));
            }
        }
        for (name, value) in &self.headers {
            let is_valid = name.parse::<HeaderName>().is_ok() && HeaderValue::from_str(value).is_ok();
            if !is_valid {
                checks.refuse("headers", format!("{name:?} is not a valid header"));
            }
            let is_secret = SECRET_HEADERS.iter().any(|secret| name.eq_ignore_ascii_case(secret));
            if is_secret && !value.contains(TOKEN) {
                let text = "its value would be printed with the options: write {token}, and name its file, command or url in `token`";
                checks.refuse("headers", format!("{name}: {text}"));
            }
        }
        checks.within("send", self.send.len(), 0, SOURCE_SUBJECTS_MAX);
        checks.within("renew", self.renew.len(), 0, SOURCE_SUBJECTS_MAX);
        checks.within("idle", self.idle, Time::from_ms(100), Time::from_ms(3_600_000));
        if self.ping_interval.ns > 0 {
            checks.within("ping_interval", self.ping_interval, Time::from_ms(100), Time::from_ms(3_600_000));
        }
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
        // The host of an IPv6 address has brackets.
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Target { host, port, is_tls })
    }
}

/// The address without path and query, which may hold a token.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
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
        let url = self.url.replace(TOKEN, &utf8_percent_encode(secret, IN_URL).to_string());
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

/// When and how the token is renewed.
#[derive(Default)]
struct Renewal {
    /// When a new token is due, CLOCK_MONOTONIC nanoseconds; `None`: never.
    due_ns: Option<u64>,
    /// The task that obtains it.
    running: Option<JoinHandle<Result<Obtained, EngineError>>>,
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
        renew_ns: Option<u64>,
        ingest: &mut Ingest<'_>,
        target: &Target,
    ) -> Result<Infallible, EngineError> {
        let failed = |error: &dyn fmt::Display| EngineError(format!("{target}: {error}"));
        for text in &self.send {
            send(socket, text.replace(TOKEN, secret)).await.map_err(|error| failed(&error))?;
        }
        ingest.connected(&target.to_string());
        let (mut heard_ns, mut pinged_ns) = (clock::monotonic_ns(), clock::monotonic_ns());
        let mut renewal = Renewal { due_ns: renew_ns, ..Renewal::default() };
        loop {
            // Before reading, because a busy feed always has something to read.
            let now_ns = clock::monotonic_ns();
            let ping_ns = (self.ping_interval_ns > 0)
                .then(|| heard_ns.max(pinged_ns).saturating_add(self.ping_interval_ns));
            let idle_ns = heard_ns.saturating_add(self.idle_ns);
            if now_ns >= idle_ns {
                return Err(failed(&format_args!("silent for {} s", self.idle_ns as f64 / 1e9)));
            }
            if ping_ns.is_some_and(|at_ns| now_ns >= at_ns) {
                pinged_ns = now_ns;
                let ping = WebSocketMessage::Ping(Default::default());
                let sent = timeout(SEND, socket.send(ping)).await;
                sent.map_err(|_| failed(&"a ping cannot be sent"))?.map_err(|error| failed(&error))?;
                continue;
            }
            if let Some(token) =
                self.renew(&mut renewal, now_ns, ingest).await.map_err(|error| failed(&error))?
            {
                for text in &self.renew {
                    send(socket, text.replace(TOKEN, &token)).await.map_err(|error| failed(&error))?;
                }
            }
            let renew_ns = match renewal.running {
                Some(_) => Some(now_ns.saturating_add(RENEW_LOOK_NS)),
                None => renewal.due_ns,
            };
            let wake_ns = [ping_ns, renew_ns].into_iter().flatten().fold(idle_ns, u64::min);
            let pause = pin!(sleep(Duration::from_nanos(wake_ns.saturating_sub(now_ns))));
            let Either::Left((message, _)) = ingest.waiting(select(socket.next(), pause)).await else {
                continue;
            };
            self.take(message, ingest).await.map_err(|error| failed(&error))?;
            for _ in 1..MESSAGES_PER_TURN {
                let Some(message) = socket.next().now_or_never() else { break };
                self.take(message, ingest).await.map_err(|error| failed(&error))?;
            }
            ingest.flush();
            // A wait for a ring is no silence of the feed.
            heard_ns = clock::monotonic_ns();
        }
    }

    /// Obtains a new token once it is due, beside the reading. Returns it once it is there. Tries again if that fails: the connection
    /// goes on with the token that it has, and ends when the server ends it.
    async fn renew(
        &self,
        renewal: &mut Renewal,
        now_ns: u64,
        ingest: &Ingest<'_>,
    ) -> Result<Option<String>, String> {
        let is_due = renewal.due_ns.is_some_and(|due_ns| now_ns >= due_ns);
        let Some(token) = self.token.as_ref().filter(|_| is_due) else { return Ok(None) };
        if self.renew.is_empty() {
            return Err("connecting again with a new token".into());
        }
        let running = renewal.running.get_or_insert_with(|| {
            let token = token.clone();
            tokio::spawn(async move { token.obtain().await })
        });
        if !running.is_finished() {
            return Ok(None);
        }
        let obtained = running.await.unwrap_or_else(|error| Err(EngineError::new("token", error)));
        renewal.running = None;
        match obtained {
            Ok(fresh) => {
                renewal.due_ns = fresh.renew_ns;
                Ok(Some(fresh.text))
            }
            Err(EngineError(failure)) => {
                ingest.warn(&format!("{failure}; the connection goes on with the token that it has"));
                renewal.due_ns = Some(now_ns.saturating_add(RENEW_RETRY_NS));
                Ok(None)
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::SourceBounds;

    #[test]
    fn an_address_may_be_ipv6_and_shows_no_secret() {
        for (url, host, shown) in [
            ("ws://[::1]:9000/", "::1", "[::1]:9000"),
            ("wss://feed.example.com/v2?key=secret", "feed.example.com", "feed.example.com:443"),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!((target.host.as_str(), target.to_string().as_str()), (host, shown));
        }
        assert!(Target::parse("wss://u:secret@h/").is_err());
    }

    #[test]
    fn what_would_be_printed_is_no_secret() {
        let refused = |text: &str| {
            let options: Options = toml::from_str(text).unwrap();
            let mut checks =
                OptionChecks::new(SourceBounds { payload_bytes_max: 64, topics_max: 10, reads_files: true });
            options.configure(&mut checks);
            let refused: Vec<String> =
                checks.into_refused().into_iter().map(|(key, text)| format!("{key}: {text}")).collect();
            refused.join("\n")
        };
        let map = "map = { topic = '{json:/s}' }";
        let text = refused(&format!("url = 'wss://u:secret@h/?key=secret'\n{map}"));
        assert!(text.contains("it holds credentials") && !text.contains("secret"), "{text}");
        for name in ["Authorization", "cookie", "X-API-Key"] {
            let text = refused(&format!("url = 'wss://h/'\nheaders = {{ {name} = 'x' }}\n{map}"));
            assert!(text.contains("write {token}"), "{name}: {text}");
        }
        assert!(
            refused(&format!("url = 'wss://h/'\nping_interval = '1us'\n{map}")).contains("ping_interval")
        );
    }
}
