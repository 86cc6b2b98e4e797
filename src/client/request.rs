//! Requests and their encoding: native frames, or JSON text on JSON connections.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

use tickcast_proto::{
    codec::json,
    command::encode_request,
    frame::{self, HeaderFields, HelloParts, Kind},
    limits::{
        MAX_RATE_HIGHEST, MAX_RATE_LOWEST, MESSAGE_ID_BYTES_MAX, RESUME_POSITIONS_MAX, TOPIC_BYTES_MAX,
    },
    records::{Publish, Resume, Subscribe, Token, WireRecord},
    subscription::{Delivery, Moment, OptionError, Policy, Position},
};

/// One tick to publish.
#[derive(Clone, Copy, Debug, Default)]
pub struct PublishRequest<'a> {
    /// The topic: 1 to 255 bytes.
    pub topic: &'a str,
    /// Any bytes. The frame around them must stay within the server's `frame_bytes_max`.
    pub payload: &'a [u8],
    /// Producer's timestamp, nanoseconds since 1970; 0: the server fills in its time of receipt.
    pub producer_time_ns: u64,
    /// Application-defined schema number, carried unchanged; 0: none.
    pub schema: u32,
    /// Key within the topic, such as a price level: conflation keeps the last tick of each key. 0: none.
    pub key: u64,
    /// Message id, 1 to 255 bytes; empty: none. The server drops a tick whose id it remembers, and answers with the position of the
    /// first tick with it. So a publish without an answer can be sent again, with the same id, on any connection of this client. Needs
    /// [`Connection::recognises_message_ids`](crate::Connection). If the client has no token or certificate, its ids should be hard to
    /// guess.
    pub message_id: &'a str,
}

/// A [`PublishRequest`] that owns its parts, to be sent later or again.
#[derive(Debug)]
pub(crate) struct OwnedPublish {
    topic: Box<str>,
    payload: Box<[u8]>,
    producer_time_ns: u64,
    schema: u32,
    key: u64,
    message_id: Box<str>,
}

impl OwnedPublish {
    pub(crate) fn new(publish: &PublishRequest<'_>) -> OwnedPublish {
        let PublishRequest { topic, payload, producer_time_ns, schema, key, message_id } = *publish;
        let (topic, payload, message_id) = (topic.into(), payload.into(), message_id.into());
        OwnedPublish { topic, payload, producer_time_ns, schema, key, message_id }
    }

    pub(crate) fn request(&self) -> PublishRequest<'_> {
        let OwnedPublish { topic, payload, message_id, producer_time_ns, schema, key } = self;
        let (producer_time_ns, schema, key) = (*producer_time_ns, *schema, *key);
        PublishRequest { topic, payload, producer_time_ns, schema, key, message_id }
    }
}

/// Why a request was not sent. Nothing was queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// The topic or pattern is empty or too long. Contains its length in bytes.
    NameLength(usize),
    /// The message id is too long. Contains its length in bytes.
    MessageIdLength(usize),
    /// The publish has a message id, and the server has not granted the connection that it recognises message ids.
    MessageIdsNotGranted,
    /// The start is a moment, and the server has not granted the connection that it knows those. Before its welcome, it has not.
    SinceNotGranted,
    /// The request is larger than the server accepts, as a frame or as JSON (where binary payloads are base64). Publish
    /// a smaller payload, or raise `frame_bytes_max` of the server.
    TooLarge {
        /// Bytes of the request.
        bytes: usize,
        /// Bytes the server accepts.
        bytes_max: usize,
    },
    /// A delivery option is out of range.
    Option(OptionError),
    /// More than [`RESUME_POSITIONS_MAX`] resume positions for one subscription, or as many subscriptions with a
    /// position.
    TooManyPositions,
    /// The pattern is already subscribed. Use an update to change its delivery.
    AlreadySubscribed,
    /// The pattern is not subscribed.
    NotSubscribed,
    /// More than [`crate::REQUESTS_UNANSWERED_MAX`] requests other than publishes wait for their answers. Try again later.
    Unanswered,
    /// More than [`crate::REMEMBERED_SUBSCRIPTIONS_MAX`] subscriptions on a reconnecting client.
    TooManySubscriptions,
    /// More than [`crate::OUTPUT_BYTES_MAX`] are waiting to be written. Write to the socket, then try again.
    Backpressure,
    /// [`crate::PUBLISHES_UNACKNOWLEDGED_MAX`] publishes wait for their answer. Read events, then try again.
    Unacknowledged,
    /// The connection has ended or is closing.
    Ended,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestError::NameLength(len) => {
                write!(f, "the topic or pattern is {len} bytes long; 1 to {TOPIC_BYTES_MAX} are allowed")
            }
            RequestError::MessageIdLength(len) => {
                write!(f, "the message id is {len} bytes long; {MESSAGE_ID_BYTES_MAX} are allowed")
            }
            RequestError::MessageIdsNotGranted => {
                write!(f, "this connection has no message ids: a tick sent again would be published again")
            }
            RequestError::SinceNotGranted => {
                write!(f, "this connection cannot start at a moment: the server has not granted `since`")
            }
            RequestError::TooLarge { bytes, bytes_max } => {
                write!(
                    f,
                    "the request is {bytes} bytes long; the server accepts {bytes_max} (frame_bytes_max)"
                )
            }
            RequestError::Option(error) => write!(f, "{error}"),
            RequestError::TooManyPositions => {
                write!(f, "more than {RESUME_POSITIONS_MAX} positions to resume from")
            }
            RequestError::AlreadySubscribed => write!(f, "the pattern is already subscribed"),
            RequestError::NotSubscribed => write!(f, "the pattern is not subscribed"),
            RequestError::Unanswered => {
                write!(
                    f,
                    "{} requests wait for their answers; try again later",
                    crate::REQUESTS_UNANSWERED_MAX
                )
            }
            RequestError::TooManySubscriptions => write!(
                f,
                "more than {} subscriptions on a reconnecting client",
                crate::REMEMBERED_SUBSCRIPTIONS_MAX
            ),
            RequestError::Backpressure => {
                write!(f, "too many requests are waiting to be written; write to the socket, then try again")
            }
            RequestError::Unacknowledged => write!(
                f,
                "{} publishes wait for their acknowledgement; read events, then try again",
                crate::PUBLISHES_UNACKNOWLEDGED_MAX
            ),
            RequestError::Ended => write!(f, "the connection has ended"),
        }
    }
}

impl std::error::Error for RequestError {}

/// The number of every REFRESH. It is none of those of [`RequestNumbers`], in which callers count, until these have wrapped around.
pub(super) const REFRESH_REQUEST: u32 = u32::MAX;

/// Numbers requests from 1. After `u32::MAX` comes 1 again: 0 stands for "no request".
#[derive(Debug, Default)]
pub(super) struct RequestNumbers {
    last: u32,
}

impl RequestNumbers {
    pub(super) fn next(&mut self) -> u32 {
        self.last = self.peek();
        self.last
    }

    /// What [`RequestNumbers::next`] will return.
    pub(super) fn peek(&self) -> u32 {
        self.last.checked_add(1).unwrap_or(1)
    }
}

/// Where a subscription starts, as the wire expresses it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start<'a> {
    Live,
    Latest,
    After(Position),
    /// After these positions. Other topics start with their first retained tick.
    Positions(&'a [(Box<str>, Position)]),
    /// The same, except that other topics start with their first tick since a moment.
    Since(&'a [(Box<str>, Position)], Moment),
    /// Like `Positions`, in JSON for a server of version 0.1: only those of this epoch.
    PositionsOf(u64, &'a [(Box<str>, Position)]),
}

/// A request that is not encoded yet.
pub(super) enum Outgoing<'a> {
    /// With a token; empty: none.
    Hello(HelloParts<'a>, &'a str),
    Subscribe {
        request: u32,
        pattern: &'a str,
        delivery: Delivery,
        start: Start<'a>,
    },
    Update {
        request: u32,
        pattern: &'a str,
        delivery: Delivery,
    },
    Unsubscribe {
        request: u32,
        pattern: &'a str,
    },
    Publish {
        request: u32,
        publish: PublishRequest<'a>,
    },
    Ping {
        token: u64,
    },
    /// Native only: WebSockets answer pings themselves.
    Pong {
        token: u64,
    },
    Refresh {
        request: u32,
        token: &'a str,
    },
}

impl Outgoing<'_> {
    /// Rejects requests that no server accepts, before encoding.
    pub(super) fn check(&self, frame_bytes_max: usize) -> Result<(), RequestError> {
        let name = match self {
            Outgoing::Subscribe { pattern, delivery, .. } | Outgoing::Update { pattern, delivery, .. } => {
                check_delivery(delivery)?;
                pattern
            }
            Outgoing::Unsubscribe { pattern, .. } => pattern,
            Outgoing::Publish { publish, .. } => publish.topic,
            Outgoing::Hello(..)
            | Outgoing::Ping { .. }
            | Outgoing::Pong { .. }
            | Outgoing::Refresh { .. } => return Ok(()),
        };
        if name.is_empty() || name.len() > TOPIC_BYTES_MAX {
            return Err(RequestError::NameLength(name.len()));
        }
        if let Outgoing::Publish { publish, .. } = self {
            if publish.message_id.len() > MESSAGE_ID_BYTES_MAX {
                return Err(RequestError::MessageIdLength(publish.message_id.len()));
            }
            let payload_len = name.len() + publish.message_id.len() + publish.payload.len();
            let bytes = frame::encoded_len(Publish::STRIDE, payload_len);
            if bytes > frame_bytes_max {
                return Err(RequestError::TooLarge { bytes, bytes_max: frame_bytes_max });
            }
        }
        Ok(())
    }

    /// Appends the native frame.
    pub(super) fn encode_frame(&self, out: &mut Vec<u8>) {
        match *self {
            Outgoing::Hello(hello, token) => frame::encode_hello_with_token(out, &hello, token.as_bytes()),
            Outgoing::Subscribe { request, pattern, delivery, start } => {
                if let Start::Positions(positions) | Start::Since(positions, _) = start {
                    for (topic, Position { epoch, sequence }) in positions {
                        let record = Resume { epoch: *epoch, sequence: *sequence };
                        frame::encode(
                            out,
                            Kind::Resume,
                            HeaderFields::default(),
                            &record,
                            &[topic.as_bytes()],
                        );
                    }
                }
                let record = subscribe_record(request, delivery, start);
                frame::encode(out, Kind::Subscribe, HeaderFields::default(), &record, &[pattern.as_bytes()]);
            }
            Outgoing::Update { request, pattern, delivery } => {
                let record = subscribe_record(request, delivery, Start::Live);
                frame::encode(out, Kind::Update, HeaderFields::default(), &record, &[pattern.as_bytes()]);
            }
            Outgoing::Unsubscribe { request, pattern } => {
                encode_request(out, Kind::Unsubscribe, request, pattern)
            }
            Outgoing::Publish { request, publish } => {
                let PublishRequest { topic, payload, producer_time_ns, schema, key, message_id } = publish;
                let record = Publish { request, producer_time_ns, key, ..Publish::default() };
                let fields = HeaderFields { schema, ..HeaderFields::default() };
                frame::encode_publish_with(out, fields, record, topic, message_id.as_bytes(), payload);
            }
            Outgoing::Ping { token } => {
                frame::encode(out, Kind::Ping, HeaderFields::default(), &Token { token }, &[]);
            }
            Outgoing::Pong { token } => {
                frame::encode(out, Kind::Pong, HeaderFields::default(), &Token { token }, &[]);
            }
            Outgoing::Refresh { request, token } => encode_request(out, Kind::Refresh, request, token),
        }
    }

    /// The JSON text.
    pub(super) fn to_json(&self) -> String {
        match *self {
            Outgoing::Hello(HelloParts { request, name, features, .. }, token) => {
                let name = json::literal(name);
                let token = match token {
                    "" => String::new(),
                    token => format!(",\"token\":{}", json::literal(token)),
                };
                // A server of version 0.1 refuses a hello with a field that it does not know.
                let features = match features.is_empty() {
                    true => String::new(),
                    false => format!(",\"features\":{features}"),
                };
                format!("{{\"op\":\"hello\",\"id\":{request},\"name\":{name}{features}{token}}}")
            }
            Outgoing::Subscribe { request, pattern, delivery, start } => {
                let (options, from) = (json_delivery(delivery), json_start(start));
                let pattern = json::literal(pattern);
                format!("{{\"op\":\"subscribe\",\"id\":{request},\"topics\":[{pattern}]{options}{from}}}")
            }
            Outgoing::Update { request, pattern, delivery } => {
                let (options, pattern) = (json_delivery(delivery), json::literal(pattern));
                format!("{{\"op\":\"update\",\"id\":{request},\"topics\":[{pattern}]{options}}}")
            }
            Outgoing::Unsubscribe { request, pattern } => {
                format!("{{\"op\":\"unsubscribe\",\"id\":{request},\"topics\":[{}]}}", json::literal(pattern))
            }
            Outgoing::Publish { request, publish } => {
                let PublishRequest { topic, payload, producer_time_ns, schema, key, message_id } = publish;
                let (encoding, data) = json_data(payload);
                // What has its default is left out. `id` comes before `data`: the server reads no further if that is invalid.
                let number = |name: &str, value: u64| match value {
                    0 => String::new(),
                    value => format!(",\"{name}\":{value}"),
                };
                let (ts, schema) = (number("ts", producer_time_ns), number("schema", schema.into()));
                // A larger number loses digits in readers whose numbers are doubles.
                let key = match key {
                    0..=json::NUMBER_HIGHEST => number("key", key),
                    key => format!(",\"key\":\"{key}\""),
                };
                let message_id = match message_id {
                    "" => String::new(),
                    id => format!(",\"message_id\":{}", json::literal(id)),
                };
                format!(
                    "{{\"op\":\"publish\",\"id\":{request},\"topic\":{}{ts}{schema}{key}{message_id}{encoding},\"data\":{data}}}",
                    json::literal(topic)
                )
            }
            Outgoing::Ping { token } => format!("{{\"op\":\"ping\",\"token\":{token}}}"),
            Outgoing::Pong { token } => format!("{{\"op\":\"pong\",\"token\":{token}}}"),
            Outgoing::Refresh { request, token } => {
                let token = json::literal(token);
                format!("{{\"op\":\"refresh\",\"id\":{request},\"token\":{token}}}")
            }
        }
    }
}

/// Rejects intervals outside the range of rates.
fn check_delivery(delivery: &Delivery) -> Result<(), RequestError> {
    let rate = 1e6 / f64::from(delivery.interval_us);
    if delivery.interval_us != 0 && !(MAX_RATE_LOWEST..=MAX_RATE_HIGHEST).contains(&rate) {
        return Err(RequestError::Option(OptionError::MaxRate(rate.to_string())));
    }
    Ok(())
}

fn subscribe_record(request: u32, delivery: Delivery, start: Start<'_>) -> Subscribe {
    let (from, Position { epoch, sequence }) = match start {
        Start::Live => (0, Position::default()),
        Start::Latest => (1, Position::default()),
        Start::After(position) => (2, position),
        Start::Positions(_) | Start::PositionsOf(..) => (3, Position::default()),
        Start::Since(_, Moment { epoch, since_us }) => (3, Position { epoch, sequence: since_us }),
    };
    let max_rate_millihertz = match delivery.interval_us {
        0 => 0,
        interval_us => (1e9 / f64::from(interval_us)).round() as u32,
    };
    let policy = delivery.policy.map_or(0, |policy| policy as u8);
    Subscribe { request, from, policy, epoch, sequence, max_rate_millihertz, ..Subscribe::default() }
}

fn json_delivery(delivery: Delivery) -> String {
    let mut options = delivery
        .policy
        .map_or_else(String::new, |policy: Policy| format!(",\"policy\":\"{}\"", policy.name()));
    if delivery.interval_us != 0 {
        options.push_str(&format!(",\"max_rate\":{}", 1e6 / f64::from(delivery.interval_us)));
    }
    options
}

/// The `from` field.
fn json_start(start: Start<'_>) -> String {
    match start {
        Start::Live => String::new(),
        Start::Latest => ",\"from\":\"latest\"".into(),
        Start::After(Position { epoch, sequence }) => {
            format!(",\"from\":{{\"epoch\":{epoch},\"sequence\":{sequence}}}")
        }
        Start::Positions(positions) => format!(",\"from\":{{{}}}", json_positions(positions)),
        Start::Since(positions, Moment { epoch, since_us }) => {
            let positions = json_positions(positions);
            format!(",\"from\":{{{positions},\"epoch\":{epoch},\"since\":{since_us}}}")
        }
        Start::PositionsOf(epoch, positions) => {
            let mut text = format!(",\"from\":{{\"epoch\":{epoch},\"sequences\":{{");
            let sent = positions.iter().filter(|(_, position)| position.epoch == epoch);
            for (at, (topic, position)) in sent.enumerate() {
                let comma = if at == 0 { "" } else { "," };
                text.push_str(&format!("{comma}{}:{}", json::literal(topic), position.sequence));
            }
            text.push_str("}}");
            text
        }
    }
}

fn json_positions(positions: &[(Box<str>, Position)]) -> String {
    let mut text = String::from("\"positions\":{");
    for (at, (topic, Position { epoch, sequence })) in positions.iter().enumerate() {
        let (comma, topic) = (if at == 0 { "" } else { "," }, json::literal(topic));
        text.push_str(&format!("{comma}{topic}:{{\"epoch\":{epoch},\"sequence\":{sequence}}}"));
    }
    text.push('}');
    text
}

/// The payload: inline if JSON preserves each of its bytes, else as base64. White space around a value would be lost.
fn json_data(payload: &[u8]) -> (&'static str, String) {
    match std::str::from_utf8(payload) {
        Ok(text) if payload.trim_ascii().len() == payload.len() && json::is_json(payload) => {
            ("", text.to_owned())
        }
        _ => (",\"encoding\":\"base64\"", format!("\"{}\"", BASE64.encode(payload))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use tickcast_proto::{
        Step,
        command::{Command, PublishCommand},
        features::Features,
        subscription::StartPosition,
    };

    fn publish(payload: &[u8]) -> Outgoing<'_> {
        let (topic, message_id) = ("a.\"b", "m\"1");
        let publish = PublishRequest { topic, payload, producer_time_ns: 5, schema: 6, key: 8, message_id };
        Outgoing::Publish { request: 7, publish }
    }

    #[test]
    fn publish_decodes_to_the_same_command_from_frame_and_json() {
        for payload in [&b"{\"p\": 1.10}"[..], b" 1", b"1\n", b"", b"\xff\x00", b"not json", b"null"] {
            let mut bytes = Vec::new();
            publish(payload).encode_frame(&mut bytes);
            let Ok(Step::Complete(_, frame)) = frame::decode(&bytes, 1 << 10) else { panic!("frame") };
            let native = Command::from_frame(&frame).unwrap();
            let text = publish(payload).to_json();
            let from_json = json::decode(&text).unwrap();
            for command in [native, from_json] {
                let Command::Publish(PublishCommand {
                    request,
                    topic,
                    producer_time_ns,
                    schema,
                    payload: got,
                    key,
                    message_id,
                    ..
                }) = command
                else {
                    panic!("publish")
                };
                assert_eq!((request, &*topic, producer_time_ns, schema, key), (7, &b"a.\"b"[..], 5, 6, 8));
                assert_eq!((&*got, &*message_id), (payload, &b"m\"1"[..]), "{text}");
            }
        }
    }

    #[test]
    fn unsubscribe_hello_and_ping_survive_json() {
        let json = |outgoing: Outgoing<'_>| outgoing.to_json();
        let hello = HelloParts { request: 3, client: "", name: "n\n", features: Features::NONE };
        assert_eq!(
            json::decode(&json(Outgoing::Unsubscribe { request: 2, pattern: "\"" })),
            Ok(Command::Unsubscribe { request: 2, patterns: vec!["\"".into()] })
        );
        assert_eq!(
            json::decode(&json(Outgoing::Hello(hello, ""))),
            Ok(Command::Hello {
                request: 3,
                client: "".into(),
                name: "n\n".into(),
                features: None,
                token: None
            })
        );
        let hello = HelloParts { features: Features::COUNTS, ..hello };
        let Ok(Command::Hello { features, .. }) = json::decode(&json(Outgoing::Hello(hello, ""))) else {
            panic!("hello")
        };
        assert_eq!(features, Some(Features::COUNTS));
        assert_eq!(
            json::decode(&json(Outgoing::Ping { token: u64::MAX })),
            Ok(Command::Ping { token: u64::MAX })
        );
    }

    #[test]
    fn subscribe_decodes_to_the_same_command_from_frame_and_json() {
        let delivery = Delivery { policy: Some(Policy::Drop), interval_us: 250_000 };
        let position = Position { epoch: 4, sequence: 17 };
        let positions = [("d.\"x".into(), position), ("d.y".into(), Position { epoch: 5, sequence: 2 })];
        let moment = Moment { epoch: 6, since_us: 7 };
        for (start, from) in [
            (Start::Live, StartPosition::Live),
            (Start::Latest, StartPosition::Latest),
            (Start::After(position), StartPosition::After(position)),
            (Start::Positions(&positions), StartPosition::AfterEach(HashMap::from(positions.clone()))),
            (
                Start::Since(&positions, moment),
                StartPosition::Since(HashMap::from(positions.clone()), moment),
            ),
            (
                Start::PositionsOf(4, &positions),
                StartPosition::AfterEach(HashMap::from([("d.\"x".into(), position)])),
            ),
        ] {
            let subscribe = Outgoing::Subscribe { request: 1, pattern: "d.*", delivery, start };
            assert_eq!(subscribe.check(1 << 10), Ok(()));
            let expected = Command::Subscribe { request: 1, patterns: vec!["d.*".into()], delivery, from };
            assert_eq!(json::decode(&subscribe.to_json()), Ok(expected));
        }
        let mut bytes = Vec::new();
        for start in [Start::Positions(&positions), Start::Since(&[], moment)] {
            Outgoing::Subscribe { request: 1, pattern: "d.*", delivery, start }.encode_frame(&mut bytes);
        }
        let mut commands = Vec::new();
        let mut rest = &bytes[..];
        while let Ok(Step::Complete(used, frame)) = frame::decode(rest, 1 << 10) {
            commands.push(Command::from_frame(&frame).unwrap());
            rest = &rest[used..];
        }
        assert_eq!(commands.len(), 4);
        assert_eq!(commands[0], Command::Resume { topic: "d.\"x".into(), position });
        let patterns = vec!["d.*".into()];
        assert_eq!(
            commands[2],
            Command::Subscribe { request: 1, patterns, delivery, from: StartPosition::Resume }
        );
        let (patterns, from) = (vec!["d.*".into()], StartPosition::Since(HashMap::new(), moment));
        assert_eq!(commands[3], Command::Subscribe { request: 1, patterns, delivery, from });
        let update = Outgoing::Update { request: 3, pattern: "c", delivery };
        let patterns = vec!["c".into()];
        assert_eq!(json::decode(&update.to_json()), Ok(Command::Update { request: 3, patterns, delivery }));
    }

    #[test]
    fn out_of_range_interval_is_rejected_before_sending() {
        let update = |interval_us| {
            let delivery = Delivery { policy: None, interval_us };
            Outgoing::Update { request: 1, pattern: "c", delivery }.check(1 << 10)
        };
        assert!(matches!(update(5), Err(RequestError::Option(OptionError::MaxRate(_)))));
        assert_eq!((update(0), update(1_000), update(1_000_000_000)), (Ok(()), Ok(()), Ok(())));
    }

    #[test]
    fn bad_names_and_oversized_payloads_are_rejected_before_sending() {
        let long = "x".repeat(256);
        assert_eq!(
            Outgoing::Unsubscribe { request: 1, pattern: &long }.check(1 << 10),
            Err(RequestError::NameLength(256))
        );
        assert_eq!(
            Outgoing::Unsubscribe { request: 1, pattern: "" }.check(1 << 10),
            Err(RequestError::NameLength(0))
        );
        assert!(matches!(publish(&[0; 1000]).check(1 << 10), Err(RequestError::TooLarge { .. })));
        let fits = [0; (1 << 10) - 32 - 32 - "a.\"bm\"1".len()];
        assert_eq!(publish(&fits).check(1 << 10), Ok(()));
        assert!(publish(&[0; 1 << 10]).check(1 << 10).is_err());
    }
}
