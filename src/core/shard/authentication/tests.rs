//! Tests of authentication in the core, with a verifier that reads tokens such as `alice`, `alice/narrow@60` and `forged`.

use std::{collections::HashMap, sync::Arc};

use crate::{
    config::{AuthLimits, Limits},
    ids::{SlotId, SourceId},
    metrics::counters::Counter,
    placement,
    principal::{AuthRefusal, Credentials, Permissions, Principal, Revocation, Rules},
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

mod expiry;
mod handover;
mod permissions;

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
    Principal {
        subject: subject.into(),
        tenant: "".into(),
        token_id: None,
        expires_at_s: None,
        permissions: permissions.into(),
    }
}

/// What a token says: `SUBJECT[/narrow][@SECONDS]`, the time until it expires from the start of the test, or a refusal.
fn verdict(credentials: &Credentials) -> Result<Arc<Principal>, AuthRefusal> {
    let token = credentials.token.as_deref().or(credentials.certificate_name.as_deref()).unwrap();
    let (token, seconds) = token.split_once('@').map_or((token, None), |(token, at)| (token, Some(at)));
    let expires_at_s = seconds.map(|seconds| START_S + seconds.parse::<u64>().unwrap());
    let (subject, is_narrow) = token.split_once('/').map_or((token, false), |(subject, _)| (subject, true));
    let permissions = match is_narrow {
        true => Permissions { subscribe: rules(&["t.a", "t.b"], &[]), publish: Rules::NONE },
        false => wide(),
    };
    match subject {
        "forged" => Err(AuthRefusal::Invalid("the signature is wrong".into())),
        "old" => Err(AuthRefusal::Expired),
        "early" => Err(AuthRefusal::NotYetValid),
        "revoked" => Err(AuthRefusal::Revoked),
        "busy" => Err(AuthRefusal::Busy),
        subject => Ok(Arc::new(Principal {
            token_id: Some(format!("id of {token}").into()),
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

    /// Gives each credentials their verdict, and returns how many there were.
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
        assert!(authentication.certificate_names.is_empty());
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

/// What a client is sent that opens its session with a token.
fn opened(transport: Transport) -> Vec<&'static str> {
    match transport {
        Native => vec!["welcome", "expires 1 0"],
        JsonHello | FramesHello => vec!["101", "welcome", "expires 1 0"],
        Header | Subprotocol | Query | Raw => vec!["101"],
    }
}

/// What a client is sent whose token is refused with a code.
fn refused(transport: Transport, code: u16) -> Vec<String> {
    let (closing, close) = (format!("closing {code}"), format!("close {code}"));
    match transport {
        Native => vec![closing],
        Raw => vec!["101".into(), close],
        _ => vec!["101".into(), closing, close],
    }
}

#[test]
fn a_valid_token_opens_a_session_on_every_transport() {
    for transport in TRANSPORTS {
        let mut bench = Bench::new();
        assert_eq!(bench.open(0, transport, Some("alice")), opened(transport), "{transport:?}");
        let session = bench.driver.shard.sessions.get(SlotId(0)).unwrap();
        assert_eq!(session.proof, Proof::Credentials);
        assert_eq!(&*session.principal.as_ref().unwrap().subject, "alice");
        assert_eq!(bench.count(Counter::CredentialsAccepted), 1);
        bench.end();
    }
}

#[test]
fn a_refused_token_closes_its_session_with_the_code_on_every_transport() {
    for transport in TRANSPORTS {
        for (token, code, counter) in [
            ("forged", 3500, Counter::ClosedUnauthorized),
            ("revoked", 3500, Counter::ClosedRevoked),
            ("old", 3005, Counter::ClosedTokenExpired),
            ("early", 3005, Counter::ClosedTokenExpired),
        ] {
            let mut bench = Bench::new();
            bench.accept(0, transport, &transport.opening(Some(token), ""));
            bench.driver.receive(0, &transport.subscribe("t.a"));
            bench.verify();
            assert_eq!(bench.take(0), refused(transport, code), "{transport:?} {token}");
            bench.driver.shard.handle_eof(SlotId(0), bench.driver.now);
            assert_eq!((bench.count(counter), bench.count(Counter::CredentialsRefused)), (1, 1));
            bench.end();
        }
    }
}

#[test]
fn nothing_is_answered_before_the_verdict_and_everything_in_order_after_it() {
    for transport in TRANSPORTS {
        for piece in [1, 7, usize::MAX] {
            let mut bench = Bench::new();
            let requests = [transport.subscribe("t.a"), transport.ping()].concat();
            let bytes = [transport.opening(Some("alice"), ""), requests].concat();
            bench.accept(0, transport, b"");
            bytes.chunks(piece.min(bytes.len())).for_each(|bytes| bench.driver.receive(0, bytes));
            bench.turns();
            let before = if transport.verifies_first() { vec![] } else { vec!["101".to_owned()] };
            assert_eq!(bench.take(0), before, "{transport:?} {piece}");
            assert!(bench.driver.actions.contains(&Action::PauseReceive(SlotId(0))));
            assert!(!bench.driver.shard.is_busy(), "a session that waits for its verdict costs no turns");
            assert_eq!(bench.verify(), 1, "verified once");
            let mut expected: Vec<&str> = opened(transport);
            if transport != Raw {
                expected.extend(["pong", "subscribed"]);
            }
            let mut events = [before, bench.take(0)].concat();
            let answered = events.len().min(opened(transport).len());
            // A subscription is acknowledged when its homes have confirmed it.
            events[answered..].sort_unstable();
            assert_eq!(events, expected, "{transport:?} {piece}");
            assert!(bench.driver.actions.contains(&Action::ResumeReceive(SlotId(0))));
            bench.end();
        }
    }
}

#[test]
fn a_client_without_a_token_is_anonymous_or_refused() {
    let read_only = Permissions { subscribe: rules(&["t.a"], &[]), publish: Rules::NONE };
    let anonymous = Arc::new(named("anonymous", read_only));
    for transport in TRANSPORTS {
        let mut bench =
            Bench::with(with(AuthLimits { anonymous: Some(anonymous.clone()), ..AuthLimits::default() }));
        let opened = bench.open(0, transport, None);
        assert_eq!(opened, [if transport == Native { "welcome" } else { "101" }], "{transport:?}");
        if transport != Raw {
            assert_eq!(bench.request(0, &transport.subscribe("t.a")), ["subscribed"]);
            assert_eq!(bench.request(0, &transport.subscribe("t.b")), ["error 108"]);
            assert_eq!(bench.request(0, &transport.publish("t.a")), ["error 108"]);
        }
        bench.end();

        let mut bench = Bench::new();
        let opened = bench.open(0, transport, None);
        if transport == Native {
            assert_eq!(opened, refused(transport, 3500));
        } else {
            assert_eq!(opened, ["101"], "its hello may bring one");
            assert_eq!(bench.request(0, &transport.subscribe("t.a")), refused(transport, 3500)[1..]);
        }
        assert_eq!(bench.count(Counter::CredentialsRefused), 1);
        bench.end();
    }
}

#[test]
fn a_websocket_that_subscribes_in_its_target_needs_its_token_there() {
    for (token, expected) in
        [(None, refused(Header, 3500)), (Some("alice"), vec!["101".into(), "subscribed".into()])]
    {
        let mut bench = Bench::new();
        bench.accept(0, Header, &Header.opening(token, "topics=t.a"));
        bench.verify();
        assert_eq!(bench.take(0), expected);
        bench.end();
    }
}

#[test]
fn a_websocket_without_a_token_has_as_long_for_it_as_for_a_handshake() {
    for transport in [JsonHello, FramesHello] {
        let mut bench = Bench::new();
        bench.accept(0, transport, &transport.opening(None, ""));
        assert_eq!(bench.request(0, &transport.ping()), ["101", "pong"], "a ping needs no token");
        bench.pass(4_900);
        assert_eq!(bench.take(0), [] as [&str; 0]);
        bench.pass(200);
        assert_eq!(bench.take(0), ["closing 3009", "close 3009"]);
        bench.end();

        let mut bench = Bench::new();
        bench.accept(0, transport, &transport.opening(Some("alice"), ""));
        bench.verify();
        bench.pass(20_000);
        assert_eq!(bench.take(0), opened(transport), "a session with a token stays");
        bench.end();
    }
}

#[test]
fn credentials_whose_verdict_does_not_come_end_their_session() {
    for transport in TRANSPORTS {
        let mut bench = Bench::new();
        bench.accept(0, transport, &transport.opening(Some("alice"), ""));
        let (id, credentials) = bench.driver.shard.poll_credentials().unwrap();
        bench.take(0);
        bench.pass(5_100);
        let expected = match transport {
            Native => vec!["closing 3504"],
            JsonHello | FramesHello => vec!["closing 3504", "close 3504"],
            _ => vec!["503"],
        };
        assert_eq!(bench.take(0), expected, "{transport:?}");
        bench.driver.shard.handle_verdict(id, verdict(&credentials), bench.driver.now);
        bench.turns();
        assert_eq!(bench.take(0), [] as [&str; 0], "it comes too late");
        bench.end();
    }
}

#[test]
fn credentials_that_wait_are_bounded_and_those_beyond_are_told_to_come_back() {
    for transport in TRANSPORTS {
        let mut bench = Bench::with(with(AuthLimits { waiting_max: 2, ..AuthLimits::default() }));
        for slot in 0..3 {
            bench.accept(slot, transport, &transport.opening(Some("alice"), ""));
        }
        let expected = match transport {
            Native => vec!["closing 3504"],
            JsonHello | FramesHello => vec!["101", "closing 3504", "close 3504"],
            _ => vec!["503"],
        };
        assert_eq!(bench.take(2), expected, "{transport:?}");
        // Credentials of a session that has gone wait no longer, unless the driver has them.
        let first = bench.driver.shard.poll_credentials().unwrap();
        for slot in 0..2 {
            bench.driver.shard.handle_error(SlotId(slot), 104, bench.driver.now);
        }
        assert_eq!(bench.driver.shard.poll_credentials(), None);
        assert_eq!(bench.driver.shard.authentication.pending.len(), 1);
        bench.driver.shard.handle_verdict(first.0, verdict(&first.1), bench.driver.now);
        assert_eq!(bench.open(3, transport, Some("alice")), opened(transport));
        bench.end();
    }
}

#[test]
fn a_certificate_stands_for_a_token() {
    for transport in TRANSPORTS {
        let mut bench = Bench::new();
        bench.accept(0, transport, b"");
        bench.driver.shard.set_certificate_name(SlotId(0), "alice");
        bench.driver.receive(0, &transport.opening(None, ""));
        bench.verify();
        let first = if transport == Native { "welcome" } else { "101" };
        assert_eq!(bench.take(0)[0], first, "{transport:?}");
        let session = bench.driver.shard.sessions.get(SlotId(0)).unwrap();
        assert_eq!(&*session.principal.as_ref().unwrap().subject, "alice");
        bench.end();
    }
}

#[test]
fn two_different_tokens_and_a_token_as_the_only_subprotocol_are_bad_requests() {
    let request = |lines: &str, query: &str| {
        let request = String::from_utf8(Header.opening(None, query)).unwrap();
        request.replace("Sec-WebSocket-Protocol: tickcast.v1.json\r\n", lines).into_bytes()
    };
    for (lines, query, expected) in [
        (
            "Sec-WebSocket-Protocol: tickcast.v1.json, bearer.alice\r\nAuthorization: bearer alice\r\n",
            "",
            "101",
        ),
        (
            "Sec-WebSocket-Protocol: tickcast.v1.json, bearer.alice\r\nAuthorization: Bearer bob\r\n",
            "",
            "400",
        ),
        ("Sec-WebSocket-Protocol: tickcast.v1.json, bearer.alice, bearer.bob\r\n", "", "400"),
        ("Authorization: Bearer alice\r\n", "token=bob", "400"),
        ("Authorization: Bearer alice\r\n", "token=%61lice", "101"),
        ("Authorization: Bearer alice\r\nAuthorization: Bearer alice\r\n", "", "400"),
        ("Sec-WebSocket-Protocol: bearer.alice\r\n", "", "400"),
        ("Authorization: Basic YTpi\r\n", "token=alice", "101"),
        ("", "token=alice&token=alice", "400"),
    ] {
        let mut bench = Bench::new();
        bench.accept(0, Header, &request(lines, query));
        bench.verify();
        assert_eq!(bench.take(0)[0], expected, "{lines} {query}");
        bench.end();
    }
    let mut bench = Bench::with(Limits { auth: Some(AuthLimits::default()), ..Limits::default() });
    bench.accept(0, Query, &request("", "token=alice"));
    assert_eq!(bench.take(0), ["400"], "a token in the target needs the operator's leave");
    bench.end();
}

#[test]
fn without_authentication_tokens_are_ignored_and_never_expire() {
    for transport in [Native, Header, Subprotocol, JsonHello, FramesHello] {
        let mut bench = Bench::with(Limits::default());
        assert_eq!(bench.open(0, transport, Some("forged")), opened(transport), "{transport:?}");
        if matches!(transport, Native | JsonHello | FramesHello) {
            assert_eq!(bench.request(0, &transport.refresh("old")), ["expires 9 0"]);
        }
        assert_eq!(bench.request(0, &transport.subscribe(">")), ["subscribed"]);
        assert_eq!(bench.driver.shard.poll_credentials(), None);
        bench.end();
    }
}

#[test]
fn tokens_beyond_their_bounds_are_refused_and_never_verified() {
    let longest = "x".repeat(TOKEN_BYTES_MAX);
    let too_long = "x".repeat(TOKEN_BYTES_MAX + 1);
    for transport in [Native, JsonHello, FramesHello] {
        let mut bench = Bench::new();
        assert_eq!(bench.open(0, transport, Some(&longest)), opened(transport), "{transport:?}");
        assert_eq!(bench.open(1, transport, Some(&too_long)), refused(transport, 3500));
        assert_eq!(bench.request(0, &transport.refresh(&too_long))[0], "closing 3500");
        assert_eq!(bench.count(Counter::CredentialsAccepted), 1);
        bench.end();
    }
    let mut bench = Bench::new();
    bench.accept(0, Native, &hello(b"\xff", Features::NONE));
    assert_eq!((bench.take(0), bench.verify()), (vec!["closing 3500".to_owned()], 0));
    assert_eq!(bench.open(1, JsonHello, None), ["101"]);
    assert_eq!(bench.request(1, &JsonHello.refresh("")), refused(JsonHello, 3500)[1..]);
    bench.end();
}

#[test]
fn a_kept_http_connection_becomes_a_websocket_when_its_token_is_verified() {
    for (token, expected) in [("alice", vec!["101".to_owned()]), ("forged", refused(Header, 3500))] {
        let mut bench = Bench::new();
        let get = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n";
        bench.accept(0, Header, &[get, &get[..]].concat());
        bench.turns();
        assert_eq!(bench.take(0), ["404"], "static resources need no token");
        bench.driver.receive(0, &Header.opening(Some(token), ""));
        bench.turns();
        assert_eq!(bench.take(0), [] as [&str; 0]);
        bench.verify();
        assert_eq!(bench.take(0), expected, "{token}");
        bench.end();
    }
}

/// Neither a truncated nor a changed opening panics, hangs or opens a session without a verdict.
#[test]
fn truncated_and_mutated_openings_end_or_wait() {
    let mut random = fastrand::Rng::with_seed(7);
    for transport in TRANSPORTS {
        let whole = [transport.opening(Some("alice"), ""), transport.subscribe("t.a")].concat();
        for round in 0..whole.len() + 600 {
            let mut bytes = whole.clone();
            match round.checked_sub(whole.len()) {
                None => bytes.truncate(round),
                Some(_) => {
                    for _ in 0..random.usize(1..4) {
                        let at = random.usize(..bytes.len());
                        bytes[at] = random.u8(..);
                    }
                }
            }
            let mut bench = Bench::new();
            bench.accept(0, transport, b"");
            for bytes in bytes.chunks(random.usize(1..bytes.len().max(2))) {
                bench.driver.receive(0, bytes);
                bench.driver.turn();
            }
            while let Some((id, credentials)) = bench.driver.shard.poll_credentials() {
                let token = credentials.token.as_deref().unwrap();
                let verdict = match token {
                    "alice" => verdict(&credentials),
                    _ => Err(AuthRefusal::Invalid("unknown".into())),
                };
                bench.driver.shard.handle_verdict(id, verdict, bench.driver.now);
                bench.turns();
            }
            if let Some(session) = bench.driver.shard.sessions.get(SlotId(0)) {
                let subject = session.principal.as_ref().map(|principal| &*principal.subject);
                assert!(matches!(subject, None | Some("alice")));
                assert!(subject.is_some() || session.subscriptions.is_empty());
            }
            // Whatever it waits for has a deadline.
            bench.pass(40_000);
            bench.driver.sent.clear();
            bench.end();
        }
    }
}
