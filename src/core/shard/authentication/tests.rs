//! Tests of authentication in the core: clients on every transport, and a verifier that reads tokens such as `alice`,
//! `alice/narrow@60` and `forged`.

use std::{collections::HashMap, sync::Arc};

use crate::{
    config::{AuthLimits, Limits},
    ids::{SlotId, SourceId},
    limits::{NEW_TOKENS_BURST, UNFINISHED_MESSAGES_LOWEST},
    metrics::counters::Counter,
    placement,
    principal::{AuthRefusal, ClientCertificate, Credentials, Permissions, Principal, Revocation, Rules},
    session::Proof,
    shard::{Action, DetachedSession, ListenerKind, Shard},
    testing::{Driver, START, frame, masked, messages},
};
use tickcast_proto::{
    Step,
    command::encode_request,
    features::Features,
    frame::{self as frames, HelloParts, Kind},
    ids::ShardId,
    limits::TOKEN_BYTES_MAX,
    records::{Closing, ErrorRecord, Expires, Publish, Removed, Request, Token},
};

mod expiry_tests;
mod filter_tests;
mod handover_tests;
mod listed_tests;
mod opening_tests;
mod permission_tests;

/// When simulated time begins, seconds since 1970.
const START_S: u64 = START.realtime_ns / 1_000_000_000;

/// How a client connects and where its token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    /// Native TCP.
    Native,
    /// JSON, `Authorization`.
    Header,
    /// JSON, subprotocol.
    Subprotocol,
    /// JSON, `?token=`.
    Query,
    /// JSON, hello after the upgrade.
    JsonHello,
    /// Native frames over WebSocket, HELLO after the upgrade.
    FramesHello,
    /// Raw, `Authorization`.
    Raw,
}

use Transport::*;

const TRANSPORTS: [Transport; 7] = [Native, Header, Subprotocol, Query, JsonHello, FramesHello, Raw];

impl Transport {
    fn listener(self) -> ListenerKind {
        if self == Native { ListenerKind::Native } else { ListenerKind::Http }
    }

    fn has_frames(self) -> bool {
        matches!(self, Native | FramesHello)
    }

    /// Whether the token is verified before the session opens.
    fn verifies_first(self) -> bool {
        !matches!(self, JsonHello | FramesHello)
    }

    /// The bytes with which a client opens its session.
    fn opening(self, token: Option<&str>, query: &str) -> Vec<u8> {
        let protocol = match self {
            FramesHello => "tickcast.v1.rkyv",
            Raw => "tickcast.v1.raw",
            _ => "tickcast.v1.json",
        };
        let (mut head, mut query) = (String::new(), query.to_owned());
        let mut protocols = protocol.to_owned();
        match (self, token) {
            (Native, _) => return hello(token.unwrap_or_default().as_bytes(), Features::TOKENS),
            (Header | Raw, Some(token)) => head = format!("Authorization: Bearer {token}\r\n"),
            (Subprotocol, Some(token)) => protocols += &format!(", bearer.{token}"),
            (Query, Some(token)) => query += &format!("&token={token}"),
            _ => {}
        }
        let mut bytes = format!(
            "GET /ws?{query} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {protocols}\r\n{head}\r\n"
        )
        .into_bytes();
        if let Some(token) = token.filter(|_| !self.verifies_first()) {
            bytes.extend(self.hello(token, "\"tokens\""));
        }
        bytes
    }

    /// A hello on an open session.
    fn hello(self, token: &str, features: &str) -> Vec<u8> {
        match self.has_frames() {
            true => self.message(hello(token.as_bytes(), Features::TOKENS)),
            false => json(&format!(r#"{{"op":"hello","id":1,"token":"{token}","features":[{features}]}}"#)),
        }
    }

    fn refresh(self, token: &str) -> Vec<u8> {
        match self.has_frames() {
            true => self.message(frame(
                Kind::Refresh,
                &Request { request: 9, ..Request::default() },
                token.as_bytes(),
            )),
            false => json(&format!(r#"{{"op":"refresh","id":9,"token":"{token}"}}"#)),
        }
    }

    fn subscribe(self, pattern: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_request(&mut bytes, Kind::Subscribe, 2, pattern);
        match self.has_frames() {
            true => self.message(bytes),
            false => json(&format!(r#"{{"op":"subscribe","id":2,"topics":["{pattern}"]}}"#)),
        }
    }

    fn publish(self, topic: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        frames::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), topic, b"1");
        match self.has_frames() {
            true => self.message(bytes),
            false => json(&format!(r#"{{"op":"publish","topic":"{topic}","data":1}}"#)),
        }
    }

    fn ping(self) -> Vec<u8> {
        match self.has_frames() {
            true => self.message(frame(Kind::Ping, &Token { token: 7 }, b"")),
            false => json(r#"{"op":"ping","token":7}"#),
        }
    }

    fn message(self, frames: Vec<u8>) -> Vec<u8> {
        if self == Native { frames } else { masked(0x82, &frames) }
    }
}

fn json(text: &str) -> Vec<u8> {
    masked(0x81, text.as_bytes())
}

fn hello(token: &[u8], features: Features) -> Vec<u8> {
    hello_as("", token, features)
}

fn hello_as(client: &str, token: &[u8], features: Features) -> Vec<u8> {
    let mut bytes = Vec::new();
    let hello = HelloParts { request: 1, client, name: "test", features };
    frames::encode_hello_with_token(&mut bytes, &hello, token);
    bytes
}

fn rules(allow: &[&str], deny: &[&str]) -> Rules {
    Rules::new(allow.iter().copied(), deny.iter().copied()).unwrap()
}

fn wide() -> Permissions {
    Permissions {
        subscribe: rules(&["t.>"], &["t.secret.>"]),
        publish: rules(&["t.*", "u.>"], &["t.secret"]),
    }
}

fn named(subject: &str, permissions: Permissions) -> Principal {
    Principal { subject: subject.into(), permissions: permissions.into(), ..Principal::default() }
}

/// A certificate that ends this many seconds after the start of the test.
fn certificate(name: &str, seconds: u64) -> ClientCertificate {
    ClientCertificate { name: name.into(), ends_s: START_S + seconds }
}

/// What a token says: `SUBJECT[/narrow][@SECONDS][^SECONDS]`, where `root` may do everything, when it expires and when it was
/// issued, both from the start of the test, or a refusal.
fn verdict(credentials: &Credentials) -> Result<Arc<Principal>, AuthRefusal> {
    let certificate = credentials.certificate.as_ref();
    let token = credentials.token.as_deref().or(certificate.map(|certificate| &*certificate.name)).unwrap();
    let (token, issued) = token.split_once('^').map_or((token, None), |(token, at)| (token, Some(at)));
    let issued_at_s = issued.map(|seconds| START_S + seconds.parse::<u64>().unwrap());
    let (token, seconds) = token.split_once('@').map_or((token, None), |(token, at)| (token, Some(at)));
    let expires_at_s = match (&credentials.token, certificate) {
        (None, Some(certificate)) => Some(certificate.ends_s),
        _ => seconds.map(|seconds| START_S + seconds.parse::<u64>().unwrap()),
    };
    let (subject, is_narrow) = token.split_once('/').map_or((token, false), |(subject, _)| (subject, true));
    let permissions = match is_narrow {
        true => Permissions { subscribe: rules(&["t.a", "t.b"], &[]), publish: Rules::NONE },
        false if subject == "root" || subject == "root2" => Permissions::all(),
        false => wide(),
    };
    match subject {
        "forged" => Err(AuthRefusal::Invalid("the signature is wrong".into())),
        "old" => Err(AuthRefusal::Expired),
        "early" => Err(AuthRefusal::NotYetValid),
        "revoked" => Err(AuthRefusal::Revoked),
        "busy" => Err(AuthRefusal::Busy),
        "unlisted" => Err(AuthRefusal::Missing),
        subject => Ok(Arc::new(Principal {
            token_id: Some(format!("id of {token}").into()),
            issued_at_s,
            expires_at_s,
            ..named(subject, permissions)
        })),
    }
}

fn with(auth: AuthLimits) -> Limits {
    let auth = Some(AuthLimits { query_token: true, ..auth });
    Limits { auth, ping_interval_ns: u64::MAX, ..Limits::default() }
}

/// One shard and a verifier.
struct Bench {
    driver: Driver,
    transports: HashMap<u32, Transport>,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(with(AuthLimits::default()))
    }

    fn with(limits: Limits) -> Bench {
        let mut driver = Driver::new(limits);
        driver.now.realtime_ns = START_S * 1_000_000_000;
        Bench { driver, transports: HashMap::new() }
    }

    /// Accepts a connection that has sent bytes, and nothing more.
    fn accept(&mut self, slot: u32, transport: Transport, bytes: &[u8]) {
        self.transports.insert(slot, transport);
        self.driver.accept(slot, transport.listener(), bytes);
    }

    /// Opens the session of a client, and returns what it was sent.
    fn open(&mut self, slot: u32, transport: Transport, token: Option<&str>) -> Vec<String> {
        self.accept(slot, transport, &transport.opening(token, ""));
        self.verify();
        self.take(slot)
    }

    /// Gives all waiting credentials their verdicts, and returns how many there were.
    fn verify(&mut self) -> usize {
        let mut verified = 0;
        while let Some((id, credentials)) = self.driver.shard.poll_credentials() {
            self.driver.shard.handle_verdict(id, verdict(&credentials), self.driver.now);
            self.turns();
            verified += 1;
        }
        self.turns();
        verified
    }

    fn turns(&mut self) {
        (0..4).for_each(|_| self.driver.turn());
    }

    /// Sends requests, and returns what the client was sent.
    fn request(&mut self, slot: u32, bytes: &[u8]) -> Vec<String> {
        self.driver.receive(slot, bytes);
        self.turns();
        self.verify();
        self.take(slot)
    }

    /// What a client was sent since the last call: `welcome`, `error 108`, `101`, `close 3500`. Ticks as their topic's sequence.
    fn take(&mut self, slot: u32) -> Vec<String> {
        let transport = self.transports[&slot];
        let sent = std::mem::take(&mut self.driver.sent);
        let (ours, others): (Vec<_>, Vec<_>) = sent.into_iter().partition(|(to, _)| *to == slot);
        self.driver.sent = others;
        let bytes: Vec<u8> = ours.into_iter().flat_map(|(_, bytes)| bytes).collect();
        if transport == Native {
            return events(&bytes);
        }
        let (mut events, mut rest) = (Vec::new(), &bytes[..]);
        if rest.starts_with(b"HTTP/1.1 ") {
            events.push(String::from_utf8_lossy(&rest[9..12]).into_owned());
            let end = rest.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
            let head = String::from_utf8_lossy(&rest[..end]).into_owned();
            assert!(!head.contains("bearer."), "the answer has no token: {head}");
            rest = if events[0] == "101" { &rest[end..] } else { &[] };
        }
        for (opcode, payload) in messages(rest) {
            match opcode {
                8 => events.push(format!("close {}", u16::from_be_bytes([payload[0], payload[1]]))),
                1 => events.push(text_event(&String::from_utf8(payload).unwrap())),
                _ if transport == Raw => events.push("tick".into()),
                _ => events.extend(self::events(&payload)),
            }
        }
        events.retain(|event| event != "topic");
        events
    }

    fn count(&self, counter: Counter) -> u64 {
        self.driver.shard.counters().value(counter)
    }

    /// Advances both clocks with a turn at each of the shard's deadlines.
    fn pass(&mut self, ms: u64) {
        let end_ns = self.driver.now.monotonic_ns + ms * 1_000_000;
        while let Some(when_ns) = self.driver.shard.next_deadline().filter(|&when_ns| when_ns < end_ns) {
            self.advance_to(when_ns);
        }
        self.advance_to(end_ns);
    }

    fn advance_to(&mut self, when_ns: u64) {
        let now = &mut self.driver.now;
        let passed_ns = when_ns.saturating_sub(now.monotonic_ns);
        now.monotonic_ns += passed_ns;
        now.realtime_ns += passed_ns;
        self.driver.turn();
    }

    /// Disconnects every client, and checks that nothing is left of them.
    fn end(mut self) {
        for slot in self.transports.keys().copied().collect::<Vec<_>>() {
            self.driver.shard.handle_error(SlotId(slot), 104, self.driver.now);
        }
        self.verify();
        let authentication = &self.driver.shard.authentication;
        assert!(authentication.permissions.is_empty() && authentication.expiries.is_empty());
        assert!(authentication.pending.is_empty() && authentication.refused.is_empty());
        assert!(authentication.certificates.is_empty() && authentication.new_tokens.is_empty());
        assert_eq!(self.driver.shard.sessions.unfinished_bytes(), 0);
        assert_eq!(self.driver.shard.sessions_len(), 0);
    }
}

fn events(mut bytes: &[u8]) -> Vec<String> {
    let mut events = Vec::new();
    while let Ok(Step::Complete(used, frame)) = frames::decode(bytes, usize::MAX) {
        bytes = &bytes[used..];
        events.push(match frame.kind {
            Kind::Welcome => "welcome".into(),
            Kind::Subscribed if frame.header.topic_id == 0 => "subscribed".into(),
            Kind::Subscribed => continue,
            Kind::Unsubscribed => match frame.record::<Removed>().unwrap().code {
                0 => "unsubscribed".into(),
                code => format!("unsubscribed {code} {}", frame.text().unwrap()),
            },
            Kind::Tick => "tick".into(),
            Kind::Pong => "pong".into(),
            Kind::Error => format!("error {}", frame.record::<ErrorRecord>().unwrap().code),
            Kind::Closing => format!("closing {}", frame.record::<Closing>().unwrap().code),
            Kind::Expires => {
                let Expires { request, expires_in_s } = frame.record().unwrap();
                format!("expires {request} {expires_in_s}")
            }
            kind => format!("{kind:?}"),
        });
    }
    assert!(bytes.is_empty(), "whole frames");
    events
}

fn text_event(text: &str) -> String {
    let field = |name: &str| {
        let (_, rest) = text.split_once(&format!("\"{name}\":"))?;
        Some(rest.split([',', '}']).next().unwrap_or_default().trim_matches('"').to_owned())
    };
    let Some(op) = field("op") else { return "tick".into() };
    match &*op {
        "error" | "closing" => format!("{op} {}", field("code").unwrap()),
        "expires" => format!("expires {} {}", field("id").unwrap(), field("expires_in").unwrap()),
        "subscribed" if text.contains("topic_id") => "topic".into(),
        "unsubscribed" => match field("code") {
            Some(code) => format!("unsubscribed {code} {}", field("pattern").unwrap()),
            None => op,
        },
        _ => op,
    }
}

/// What is sent to a client that opens its session with a token.
fn opened(transport: Transport) -> Vec<&'static str> {
    match transport {
        Native => vec!["welcome", "expires 1 0"],
        JsonHello | FramesHello => vec!["101", "welcome", "expires 1 0"],
        Header | Subprotocol | Query | Raw => vec!["101"],
    }
}

/// What is sent to a client whose token is refused with this code.
fn refused(transport: Transport, code: u16) -> Vec<String> {
    let (closing, close) = (format!("closing {code}"), format!("close {code}"));
    match transport {
        Native => vec![closing],
        Raw => vec!["101".into(), close],
        _ => vec!["101".into(), closing, close],
    }
}
