//! Requests as bytes: native frames, or JSON text where the session speaks JSON.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

use tickcast_proto::{
    codec::json,
    command::encode_request,
    frame::{self, Kind, Meta},
    limits::{MAX_RATE_HIGHEST, MAX_RATE_LOWEST, RESUME_POSITIONS_MAX, TOPIC_BYTES_MAX},
    records::{Publish, Resume, Subscribe, Token, WireRecord},
    subscription::{BadOption, Delivery, Policy, Position},
};

/// One tick to publish.
#[derive(Clone, Copy, Debug, Default)]
pub struct PublishRequest<'a> {
    /// The topic: 1 to 255 bytes.
    pub topic: &'a str,
    /// Any bytes; the frame around them must stay within the server's `frame_bytes_max`.
    pub payload: &'a [u8],
    /// Producer's time, nanoseconds since 1970; 0: the server's time of receipt.
    pub producer_time_ns: u64,
    /// The producer's mark of what the payload is; 0: unmarked.
    pub schema: u32,
    /// What the tick is about within its topic, a price level say: of each key the newest survives conflation. 0: none.
    pub key: u64,
}

/// A request that was not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// A topic or pattern of no bytes or too many.
    NameLength(usize),
    /// A payload that does not fit the server's largest frame, or as base64 its largest message.
    TooLarge {
        /// Bytes the request would take.
        bytes: usize,
        /// Bytes the server accepts.
        bytes_max: usize,
    },
    /// An option that makes no sense.
    Option(BadOption),
    /// More than [`RESUME_POSITIONS_MAX`] places for one subscription, or subscriptions with one.
    TooManyPlaces,
    /// The pattern is subscribed already.
    AlreadySubscribed,
    /// More than [`crate::REMEMBERED_SUBSCRIPTIONS_MAX`] subscriptions to remember.
    TooManySubscriptions,
    /// More than [`crate::OUTPUT_BYTES_MAX`] wait to be written: write first.
    Backpressure,
    /// The session has ended or is closing.
    Ended,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestError::NameLength(len) => {
                write!(f, "a topic or pattern of {len} bytes: 1 to {TOPIC_BYTES_MAX} are allowed")
            }
            RequestError::TooLarge { bytes, bytes_max } => {
                write!(f, "a request of {bytes} bytes: the server takes {bytes_max} (its frame_bytes_max)")
            }
            RequestError::Option(error) => write!(f, "{error}"),
            RequestError::TooManyPlaces => {
                write!(f, "more than {RESUME_POSITIONS_MAX} places to resume from")
            }
            RequestError::AlreadySubscribed => write!(f, "the pattern is subscribed already"),
            RequestError::TooManySubscriptions => write!(f, "too many subscriptions to remember"),
            RequestError::Backpressure => write!(f, "too many requests wait to be written"),
            RequestError::Ended => write!(f, "the session has ended"),
        }
    }
}

impl std::error::Error for RequestError {}

/// Where a subscription begins, as it is said on the wire.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start<'a> {
    Live,
    Latest,
    After(Position),
    /// After these; other topics from their first tick if this is the server's epoch.
    Places(u64, &'a [(Box<str>, Position)]),
}

/// A request before it is encoded.
pub(super) enum Outgoing<'a> {
    Hello { request: u32, client: &'a str, name: &'a str },
    Subscribe { request: u32, pattern: &'a str, delivery: Delivery, start: Start<'a> },
    Update { request: u32, pattern: &'a str, delivery: Delivery },
    Unsubscribe { request: u32, pattern: &'a str },
    Publish { request: u32, publish: PublishRequest<'a> },
    Ping { token: u64 },
}

impl Outgoing<'_> {
    /// Refuses what no server could take, before it costs anything.
    pub(super) fn check(&self, frame_bytes_max: usize) -> Result<(), RequestError> {
        let name = match self {
            Outgoing::Subscribe { pattern, delivery, .. } | Outgoing::Update { pattern, delivery, .. } => {
                check_delivery(delivery)?;
                pattern
            }
            Outgoing::Unsubscribe { pattern, .. } => pattern,
            Outgoing::Publish { publish, .. } => publish.topic,
            Outgoing::Hello { .. } | Outgoing::Ping { .. } => return Ok(()),
        };
        if name.is_empty() || name.len() > TOPIC_BYTES_MAX {
            return Err(RequestError::NameLength(name.len()));
        }
        if let Outgoing::Publish { publish, .. } = self {
            let bytes = frame::encoded_len(Publish::STRIDE, name.len() + publish.payload.len());
            if bytes > frame_bytes_max {
                return Err(RequestError::TooLarge { bytes, bytes_max: frame_bytes_max });
            }
        }
        Ok(())
    }

    /// Appends the native frame.
    pub(super) fn encode_frame(&self, out: &mut Vec<u8>) {
        match *self {
            Outgoing::Hello { request, client, name } => frame::encode_hello(out, request, client, name),
            Outgoing::Subscribe { request, pattern, delivery, start } => {
                if let Start::Places(_, places) = start {
                    for (topic, Position { epoch, sequence }) in places {
                        let record = Resume { epoch: *epoch, sequence: *sequence };
                        frame::encode(out, Kind::Resume, Meta::default(), &record, &[topic.as_bytes()]);
                    }
                }
                let record = subscribe_record(request, delivery, start);
                frame::encode(out, Kind::Subscribe, Meta::default(), &record, &[pattern.as_bytes()]);
            }
            Outgoing::Update { request, pattern, delivery } => {
                let record = subscribe_record(request, delivery, Start::Live);
                frame::encode(out, Kind::Update, Meta::default(), &record, &[pattern.as_bytes()]);
            }
            Outgoing::Unsubscribe { request, pattern } => {
                encode_request(out, Kind::Unsubscribe, request, pattern)
            }
            Outgoing::Publish { request, publish } => {
                let PublishRequest { producer_time_ns, key, .. } = publish;
                let record = Publish { request, producer_time_ns, key, ..Publish::default() };
                frame::encode_publish(out, 0, 0, publish.schema, record, publish.topic, publish.payload);
            }
            Outgoing::Ping { token } => {
                frame::encode(out, Kind::Ping, Meta::default(), &Token { token }, &[]);
            }
        }
    }

    /// The JSON text.
    pub(super) fn to_json(&self) -> String {
        match *self {
            Outgoing::Hello { request, name, .. } => {
                format!("{{\"op\":\"hello\",\"id\":{request},\"name\":{}}}", json::literal(name))
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
                let PublishRequest { topic, payload, producer_time_ns, schema, key } = publish;
                let (encoding, data) = json_data(payload);
                let key = if key == 0 { String::new() } else { format!("\"key\":{key},") };
                format!(
                    "{{\"op\":\"publish\",\"id\":{request},\"topic\":{},\"ts\":{producer_time_ns},\
                     \"schema\":{schema},{key}{encoding}\"data\":{data}}}",
                    json::literal(topic)
                )
            }
            Outgoing::Ping { token } => format!("{{\"op\":\"ping\",\"token\":{token}}}"),
        }
    }
}

/// Refuses an interval that no rate has.
fn check_delivery(delivery: &Delivery) -> Result<(), RequestError> {
    let rate = 1e6 / f64::from(delivery.interval_us);
    if delivery.interval_us != 0 && !(MAX_RATE_LOWEST..=MAX_RATE_HIGHEST).contains(&rate) {
        return Err(RequestError::Option(BadOption::MaxRate(rate.to_string())));
    }
    Ok(())
}

fn subscribe_record(request: u32, delivery: Delivery, start: Start<'_>) -> Subscribe {
    let (from, Position { epoch, sequence }) = match start {
        Start::Live => (0, Position::default()),
        Start::Latest => (1, Position::default()),
        Start::After(position) => (2, position),
        Start::Places(epoch, _) => (3, Position { epoch, sequence: 0 }),
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

/// JSON names one epoch for all places; those of another are not said, as nothing of them can be recovered.
fn json_start(start: Start<'_>) -> String {
    match start {
        Start::Live => String::new(),
        Start::Latest => ",\"from\":\"latest\"".into(),
        Start::After(Position { epoch, sequence }) => {
            format!(",\"from\":{{\"epoch\":{epoch},\"sequence\":{sequence}}}")
        }
        Start::Places(epoch, places) => {
            let mut text = format!(",\"from\":{{\"epoch\":{epoch},\"sequences\":{{");
            let said = places.iter().filter(|(_, position)| position.epoch == epoch);
            for (at, (topic, position)) in said.enumerate() {
                let comma = if at == 0 { "" } else { "," };
                text.push_str(&format!("{comma}{}:{}", json::literal(topic), position.sequence));
            }
            text.push_str("}}");
            text
        }
    }
}

/// A payload inline where that keeps every byte of it, else as base64.
fn json_data(payload: &[u8]) -> (&'static str, String) {
    match std::str::from_utf8(payload) {
        Ok(text) if json::is_json(payload) => ("", text.to_owned()),
        _ => ("\"encoding\":\"base64\",", format!("\"{}\"", BASE64.encode(payload))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use tickcast_proto::{
        Step,
        command::{Command, PublishCommand},
        subscription::From,
    };

    fn publish(payload: &[u8]) -> Outgoing<'_> {
        let publish = PublishRequest { topic: "a.\"b", payload, producer_time_ns: 5, schema: 6, key: 8 };
        Outgoing::Publish { request: 7, publish }
    }

    #[test]
    fn the_server_reads_the_same_request_from_a_frame_and_from_json() {
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
                    ..
                }) = command
                else {
                    panic!("publish")
                };
                assert_eq!((request, &*topic, producer_time_ns, schema, key), (7, &b"a.\"b"[..], 5, 6, 8));
                assert_eq!(&*got, payload, "{text}");
            }
        }
    }

    #[test]
    fn the_other_requests_read_back() {
        let json = |outgoing: Outgoing<'_>| outgoing.to_json();
        assert_eq!(
            json::decode(&json(Outgoing::Unsubscribe { request: 2, pattern: "\"" })),
            Ok(Command::Unsubscribe { request: 2, patterns: vec!["\"".into()] })
        );
        assert_eq!(
            json::decode(&json(Outgoing::Hello { request: 3, client: "", name: "n\n" })),
            Ok(Command::Hello { request: 3, client: "".into(), name: "n\n".into() })
        );
        assert_eq!(
            json::decode(&json(Outgoing::Ping { token: u64::MAX })),
            Ok(Command::Ping { token: u64::MAX })
        );
    }

    #[test]
    fn the_server_reads_the_same_subscription_from_frames_and_from_json() {
        let delivery = Delivery { policy: Some(Policy::Drop), interval_us: 250_000 };
        let position = Position { epoch: 4, sequence: 17 };
        let places = [("d.\"x".into(), position), ("d.y".into(), Position { epoch: 4, sequence: 2 })];
        for (start, from) in [
            (Start::Live, From::Live),
            (Start::Latest, From::Latest),
            (Start::After(position), From::Position(position)),
            (
                Start::Places(4, &places),
                From::Positions(4, HashMap::from([("d.\"x".into(), 17), ("d.y".into(), 2)])),
            ),
        ] {
            let subscribe = Outgoing::Subscribe { request: 1, pattern: "d.*", delivery, start };
            assert_eq!(subscribe.check(1 << 10), Ok(()));
            let expected = Command::Subscribe { request: 1, patterns: vec!["d.*".into()], delivery, from };
            assert_eq!(json::decode(&subscribe.to_json()), Ok(expected));
        }
        let mut bytes = Vec::new();
        Outgoing::Subscribe { request: 1, pattern: "d.*", delivery, start: Start::Places(4, &places) }
            .encode_frame(&mut bytes);
        let mut commands = Vec::new();
        let mut rest = &bytes[..];
        while let Ok(Step::Complete(used, frame)) = frame::decode(rest, 1 << 10) {
            commands.push(Command::from_frame(&frame).unwrap());
            rest = &rest[used..];
        }
        assert_eq!(commands.len(), 3);
        assert_eq!(commands[0], Command::Resume { topic: "d.\"x".into(), position });
        let patterns = vec!["d.*".into()];
        assert_eq!(commands[2], Command::Subscribe { request: 1, patterns, delivery, from: From::Resume });
        let update = Outgoing::Update { request: 3, pattern: "c", delivery };
        let patterns = vec!["c".into()];
        assert_eq!(json::decode(&update.to_json()), Ok(Command::Update { request: 3, patterns, delivery }));
    }

    #[test]
    fn an_interval_that_no_rate_has_is_refused_before_it_is_sent() {
        let update = |interval_us| {
            let delivery = Delivery { policy: None, interval_us };
            Outgoing::Update { request: 1, pattern: "c", delivery }.check(1 << 10)
        };
        assert!(matches!(update(5), Err(RequestError::Option(BadOption::MaxRate(_)))));
        assert_eq!((update(0), update(1_000), update(1_000_000_000)), (Ok(()), Ok(()), Ok(())));
    }

    #[test]
    fn what_no_server_takes_is_refused_here() {
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
        let fits = [0; (1 << 10) - 32 - 32 - "a.\"b".len()];
        assert_eq!(publish(&fits).check(1 << 10), Ok(()));
        assert!(publish(&[0; 1 << 10]).check(1 << 10).is_err());
    }
}
