//! The JSON encoding: one object a message.
//!
//! Payloads travel as they came: a JSON payload is neither parsed into a tree nor written anew, so every digit of
//! the producer's numbers survives.

use std::{borrow::Cow, collections::HashMap, io::Write};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::{
    ErrorCode,
    command::{Command, PublishCommand},
    frame::{FLAG_PAYLOAD_JSON, FLAG_SNAPSHOT, Frame, TickParts},
    ids::TopicId,
    records::TickTimes,
    reply::{Reply, SERVER},
    subscription::{BadOption, Delivery, From, Position, interval_us},
};

/// Every field any request has. Unknown ones are refused, so that a misspelt option is not silently ignored.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message<'a> {
    #[serde(borrow)]
    op: Cow<'a, str>,
    #[serde(default)]
    id: u32,
    #[serde(default, borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(default)]
    topics: Option<Vec<String>>,
    #[serde(default, borrow)]
    topic: Option<Cow<'a, str>>,
    #[serde(default, borrow, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(default, borrow)]
    encoding: Option<Cow<'a, str>>,
    #[serde(default)]
    ts: u64,
    #[serde(default)]
    schema: u32,
    #[serde(default)]
    token: u64,
    #[serde(default)]
    key: u64,
    // As they came: what is wrong with one of these is said by its name, and the request's id is known.
    #[serde(default, borrow)]
    policy: Option<&'a RawValue>,
    #[serde(default, borrow)]
    max_rate: Option<&'a RawValue>,
    #[serde(default, borrow)]
    from: Option<&'a RawValue>,
}

/// Where to begin: a word, or a place.
#[derive(Deserialize)]
#[serde(untagged)]
enum Beginning {
    Word(String),
    Place(Place),
}

/// One sequence for every topic, or one for each.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    epoch: u64,
    #[serde(default)]
    sequence: Option<u64>,
    #[serde(default)]
    sequences: Option<HashMap<Box<str>, u64>>,
}

impl Message<'_> {
    fn delivery(&self) -> Result<Delivery, BadOption> {
        let policy: Option<Cow<'_, str>> = option(self.policy, BadOption::Policy)?;
        let max_rate: Option<f64> = option(self.max_rate, BadOption::MaxRate)?;
        Ok(Delivery {
            policy: policy.as_deref().map(str::parse).transpose()?,
            interval_us: max_rate.map(interval_us).transpose()?.unwrap_or(0),
        })
    }

    fn beginning(&self) -> Result<From, BadOption> {
        match option(self.from, BadOption::From)? {
            None => Ok(From::Live),
            Some(Beginning::Word(word)) => from_word(&word),
            Some(Beginning::Place(Place { epoch, sequence: Some(sequence), sequences: None })) => {
                Ok(From::Position(Position { epoch, sequence }))
            }
            Some(Beginning::Place(Place { epoch, sequence: None, sequences: Some(sequences) })) => {
                Ok(From::Positions(epoch, sequences))
            }
            Some(Beginning::Place(_)) => {
                Err(BadOption::From("place: either \"sequence\" or \"sequences\"".into()))
            }
        }
    }
}

/// Reads an option that was given; of one of another type, its first 32 characters are shown.
fn option<'de, T: Deserialize<'de>>(
    given: Option<&'de RawValue>,
    bad: impl FnOnce(String) -> BadOption,
) -> Result<Option<T>, BadOption> {
    let Some(given) = given.map(RawValue::get) else { return Ok(None) };
    serde_json::from_str(given).map(Some).map_err(|_| bad(given.chars().take(32).collect()))
}

/// The beginnings that are words: `live`, `latest`.
///
/// # Errors
/// [`BadOption::From`].
pub fn from_word(word: &str) -> Result<From, BadOption> {
    match word {
        "live" => Ok(From::Live),
        "latest" => Ok(From::Latest),
        other => Err(BadOption::From(format!("{:?}", other.chars().take(32).collect::<String>()))),
    }
}

/// Reads a field that is there, `null` included: serde would take that for a missing one.
pub fn present<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// A request that could not be read: what to answer. The session lives on.
#[derive(Debug, PartialEq, Eq)]
pub struct RequestError {
    /// The request's id where it could be read, else 0.
    pub request: u32,
    /// What is wrong and with which field.
    pub text: String,
}

/// Reads one request.
///
/// # Errors
/// [`RequestError`] for text that is not a JSON object of the protocol.
pub fn decode(text: &str) -> Result<Command<'_>, RequestError> {
    let mut message: Message<'_> = serde_json::from_str(text)
        .map_err(|error| RequestError { request: 0, text: format!("not a request: {error}") })?;
    let request = message.id;
    let fail = |text: String| RequestError { request, text };
    let op = std::mem::take(&mut message.op);
    match op.as_ref() {
        "hello" => {
            Ok(Command::Hello { request, client: Cow::Borrowed(""), name: message.name.unwrap_or_default() })
        }
        op @ ("subscribe" | "unsubscribe" | "update") => {
            let delivery = message.delivery().map_err(|error| fail(format!("{op}: {error}")))?;
            let from = message.beginning().map_err(|error| fail(format!("{op}: {error}")))?;
            if op != "subscribe" && from != From::Live {
                return Err(fail(format!("{op}: \"from\" is for subscribe")));
            }
            let mut patterns: Vec<Cow<'_, str>> =
                message.topics.unwrap_or_default().into_iter().map(Cow::Owned).collect();
            patterns.extend(message.topic);
            if patterns.is_empty() {
                return Err(fail(format!("{op}: \"topics\" is missing or empty")));
            }
            Ok(match op {
                "subscribe" => Command::Subscribe { request, patterns, delivery, from },
                "update" => Command::Update { request, patterns, delivery },
                _ => Command::Unsubscribe { request, patterns },
            })
        }
        "publish" => {
            let topic = message.topic.ok_or_else(|| fail("publish: \"topic\" is missing".into()))?;
            let data = message.data.ok_or_else(|| fail("publish: \"data\" is missing".into()))?;
            let (payload, payload_is_json) = match message.encoding.as_deref() {
                None | Some("json") => (Cow::Borrowed(data.get().as_bytes()), true),
                Some("base64") => {
                    let text: Cow<'_, str> = serde_json::from_str(data.get())
                        .map_err(|_| fail("publish: base64 \"data\" must be a string".into()))?;
                    let bytes = BASE64
                        .decode(text.as_bytes())
                        .map_err(|error| fail(format!("publish: \"data\": {error}")))?;
                    (Cow::Owned(bytes), false)
                }
                Some(other) => {
                    return Err(fail(format!("publish: unknown \"encoding\" {other:?}: json or base64")));
                }
            };
            Ok(Command::Publish(PublishCommand {
                request,
                topic: match topic {
                    Cow::Borrowed(topic) => Cow::Borrowed(topic.as_bytes()),
                    Cow::Owned(topic) => Cow::Owned(topic.into_bytes()),
                },
                producer_time_ns: message.ts,
                schema: message.schema,
                payload,
                payload_is_json,
                key: message.key,
            }))
        }
        "ping" => {
            Ok(Command::Ping { token: if message.token != 0 { message.token } else { u64::from(request) } })
        }
        other => {
            Err(fail(format!("unknown op {other:?}: hello, subscribe, update, unsubscribe, publish or ping")))
        }
    }
}

/// Whether the payload is one JSON value, so that it may stand inline. Blanks around it would be lost to whoever
/// reads it there, so a payload that has some is none. Two passes, no allocation.
pub fn is_json(payload: &[u8]) -> bool {
    // serde_json skips strings without a look at their UTF-8, and one bad byte in a text frame would have every JSON
    // subscriber close.
    payload.trim_ascii().len() == payload.len()
        && simdutf8::basic::from_utf8(payload)
            .is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
}

/// A string as a JSON literal, quotes included.
pub fn literal(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The part of a tick that is the same for all ticks of a topic: `{"topic":"NAME","seq":`.
pub fn tick_prefix(topic: &str) -> Vec<u8> {
    format!("{{\"topic\":{},\"seq\":", literal(topic)).into_bytes()
}

/// Appends the tick that a home has encoded; `prefix` is the topic's [`tick_prefix`].
pub(super) fn encode_frame(out: &mut Vec<u8>, prefix: &[u8], tick: &Frame<'_>) {
    let times = tick.record::<TickTimes>();
    debug_assert!(times.is_ok(), "a home's ticks have times");
    let times = times.unwrap_or_default();
    let parts =
        TickParts { flags: tick.header.flags, schema: 0, times, key: tick.key(), payload: tick.payload() };
    encode_tick(out, prefix, tick.header.sequence, &parts);
}

/// Appends a tick; `prefix` is the topic's [`tick_prefix`]. No allocation once `out` has grown.
pub fn encode_tick(out: &mut Vec<u8>, prefix: &[u8], sequence: u64, tick: &TickParts<'_>) {
    let TickParts { flags, times, key, payload, .. } = *tick;
    let mut digits = itoa::Buffer::new();
    out.extend_from_slice(prefix);
    out.extend_from_slice(digits.format(sequence).as_bytes());
    out.extend_from_slice(b",\"ts\":");
    out.extend_from_slice(digits.format(times.producer_time_ns).as_bytes());
    if key != 0 {
        out.extend_from_slice(b",\"key\":");
        out.extend_from_slice(digits.format(key).as_bytes());
    }
    if flags & FLAG_SNAPSHOT != 0 {
        out.extend_from_slice(b",\"snapshot\":true");
    }
    if flags & FLAG_PAYLOAD_JSON != 0 {
        out.extend_from_slice(b",\"data\":");
        out.extend_from_slice(payload);
        out.push(b'}');
    } else {
        out.extend_from_slice(b",\"encoding\":\"base64\",\"data\":\"");
        append_base64(out, payload);
        out.extend_from_slice(b"\"}");
    }
}

fn append_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    let (start, len) = (out.len(), bytes.len().div_ceil(3) * 4);
    out.resize(start + len, 0);
    let written = BASE64.encode_slice(bytes, &mut out[start..]);
    debug_assert_eq!(written, Ok(len), "base64 has 4 characters for 3 bytes, padded");
}

/// Appends a reply.
pub(super) fn encode_reply(reply: &Reply<'_>, out: &mut Vec<u8>) {
    match *reply {
        Reply::Welcome { request, epoch, session, frame_bytes_max } => {
            encode_welcome(out, request, SERVER, epoch, session, frame_bytes_max);
        }
        Reply::Subscribed { request, pattern, .. } => encode_subscribed(out, request, pattern),
        Reply::Unsubscribed { request, pattern } => encode_unsubscribed(out, request, pattern),
        Reply::Recovered { name, epoch, sequence, recovered, .. } => {
            encode_recovered(out, name, epoch, sequence, recovered);
        }
        Reply::Conflated { name, from, to, .. } => encode_skipped(out, "conflated", name, from, to),
        Reply::Gap { name, from, to, .. } => encode_skipped(out, "gap", name, from, to),
        Reply::Pong { token } => encode_pong(out, token),
        Reply::Error { request, code, text } => encode_error(out, request, code, text),
        Reply::Closing { code, reason, reconnect_after_ms } => {
            encode_closing(out, code, reason, reconnect_after_ms);
        }
    }
}

/// Appends `{"op":"welcome",...}`.
pub fn encode_welcome(
    out: &mut Vec<u8>,
    request: u32,
    server: &str,
    epoch: u64,
    session: u64,
    frame_bytes_max: usize,
) {
    let server = literal(server);
    line(
        out,
        format_args!(
            "{{\"op\":\"welcome\",\"id\":{request},\"server\":{server},\"epoch\":{epoch},\"session\":{session},\
             \"frame_bytes_max\":{frame_bytes_max}}}"
        ),
    );
}

/// Appends the acknowledgement of one pattern. Topics follow in announcements of their own.
pub fn encode_subscribed(out: &mut Vec<u8>, request: u32, pattern: &str) {
    line(
        out,
        format_args!(
            "{{\"op\":\"subscribed\",\"id\":{request},\"pattern\":{},\"topics\":[]}}",
            literal(pattern)
        ),
    );
}

/// Appends the announcement of a topic: shared by every session that takes it.
pub fn encode_topic(out: &mut Vec<u8>, topic: TopicId, epoch: u64, name: &str) {
    line(
        out,
        format_args!(
            "{{\"op\":\"subscribed\",\"topics\":[{{\"topic\":{},\"topic_id\":{},\"epoch\":{epoch}}}]}}",
            literal(name),
            topic.0
        ),
    );
}

/// Appends the acknowledgement of an unsubscribe.
pub fn encode_unsubscribed(out: &mut Vec<u8>, request: u32, pattern: &str) {
    line(out, format_args!("{{\"op\":\"unsubscribed\",\"id\":{request},\"pattern\":{}}}", literal(pattern)));
}

/// Appends what became of a place that was named.
pub fn encode_recovered(out: &mut Vec<u8>, topic: &str, epoch: u64, sequence: u64, recovered: bool) {
    let topic = literal(topic);
    line(
        out,
        format_args!(
            "{{\"op\":\"recovered\",\"topic\":{topic},\"epoch\":{epoch},\"sequence\":{sequence},\
             \"recovered\":{recovered}}}"
        ),
    );
}

/// Appends that ticks do not come: `op` is `conflated` or `gap`.
pub fn encode_skipped(out: &mut Vec<u8>, op: &str, topic: &str, from: u64, to: u64) {
    let topic = literal(topic);
    line(out, format_args!("{{\"op\":\"{op}\",\"topic\":{topic},\"from\":{from},\"to\":{to}}}"));
}

/// Appends a pong.
pub fn encode_pong(out: &mut Vec<u8>, token: u64) {
    line(out, format_args!("{{\"op\":\"pong\",\"token\":{token}}}"));
}

/// Appends an error.
pub fn encode_error(out: &mut Vec<u8>, request: u32, code: ErrorCode, text: &str) {
    let code = code as u16;
    line(
        out,
        format_args!("{{\"op\":\"error\",\"id\":{request},\"code\":{code},\"text\":{}}}", literal(text)),
    );
}

/// Appends the last message before a close.
pub fn encode_closing(out: &mut Vec<u8>, code: u16, reason: &str, reconnect_after_ms: u32) {
    line(
        out,
        format_args!(
            "{{\"op\":\"closing\",\"code\":{code},\"reason\":{},\"reconnect_after_ms\":{reconnect_after_ms}}}",
            literal(reason)
        ),
    );
}

fn line(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to a Vec cannot fail.
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subscription::Policy;

    #[test]
    fn a_json_payload_survives_to_the_byte() {
        let text = r#"{"op":"publish","topic":"t","data":{"a": 1.10, "b":[ 1e400 ]},"ts":5}"#;
        let Ok(Command::Publish(publish)) = decode(text) else { panic!("publish") };
        assert_eq!(publish.payload.as_ref(), br#"{"a": 1.10, "b":[ 1e400 ]}"#);
        let mut out = Vec::new();
        let times = TickTimes { producer_time_ns: publish.producer_time_ns, ingest_time_ns: 0 };
        let parts =
            TickParts { flags: FLAG_PAYLOAD_JSON, times, payload: &publish.payload, ..Default::default() };
        encode_tick(&mut out, &tick_prefix("t\"x"), 7, &parts);
        assert_eq!(out, br#"{"topic":"t\"x","seq":7,"ts":5,"data":{"a": 1.10, "b":[ 1e400 ]}}"#);
    }

    #[test]
    fn only_what_survives_inline_is_json() {
        for inline in [&b"1"[..], b"null", b"{\"a\": [ 1 ]}", b"\" \""] {
            assert!(is_json(inline));
        }
        for other in [&b""[..], b" 1", b"1\n", b"1 2", b"{", b"\xff", b"\"\xff\""] {
            assert!(!is_json(other));
        }
    }

    #[test]
    fn subscribe_takes_options_and_refuses_bad_ones_by_name() {
        let with = |options: &str| {
            decode(&format!(r#"{{"op":"subscribe","id":3,"topics":["a"]{options}}}"#)).map(|command| {
                match command {
                    Command::Subscribe { delivery, from, .. } => (delivery, from),
                    other => panic!("{other:?}"),
                }
            })
        };
        assert_eq!(with("").unwrap(), (Delivery::default(), From::Live));
        assert_eq!(
            with(r#","policy":"drop","max_rate":4,"from":"latest""#).unwrap(),
            (Delivery { policy: Some(Policy::Drop), interval_us: 250_000 }, From::Latest)
        );
        let position = Position { epoch: 5, sequence: 6 };
        assert_eq!(with(r#","from":{"epoch":5,"sequence":6}"#).unwrap().1, From::Position(position));
        let positions = From::Positions(5, HashMap::from([("a".into(), 7)]));
        assert_eq!(with(r#","from":{"epoch":5,"sequences":{"a":7}}"#).unwrap().1, positions);
        for (options, field) in [
            (r#","policy":"fast""#, "policy"),
            (r#","max_rate":0"#, "max_rate"),
            (r#","max_rate":1e99"#, "max_rate"),
            (r#","from":"yesterday""#, "from"),
            (r#","from":{"epoch":5}"#, "from"),
            (r#","from":{"epoch":5,"sequence":1,"sequences":{}}"#, "from"),
            (r#","policy":5"#, "policy"),
            (r#","max_rate":"5""#, "max_rate"),
            (r#","max_rate":1e999"#, "max_rate"),
            (r#","from":[]"#, "from"),
            (r#","from":{"epoch":-1,"sequence":1}"#, "from"),
            (r#","from":{"epoch":1,"sequences":{"a":"1"}}"#, "from"),
            (r#","from":{"epoch":1,"sequence":1,"more":1}"#, "from"),
        ] {
            let error = with(options).unwrap_err();
            assert!(error.text.contains(field) && error.request == 3, "{options}: {error:?}");
        }
        let none = with(r#","max_rate":null,"policy":null,"from":null"#).unwrap();
        assert_eq!(none, (Delivery::default(), From::Live));
        // A NaN is no JSON.
        assert!(with(r#","max_rate":NaN"#).is_err());
    }

    #[test]
    fn null_is_a_payload() {
        let Ok(Command::Publish(publish)) = decode(r#"{"op":"publish","topic":"t","data":null}"#) else {
            panic!("publish")
        };
        assert_eq!((publish.payload.as_ref(), publish.payload_is_json), (&b"null"[..], true));
    }

    #[test]
    fn a_binary_payload_goes_through_base64_both_ways() {
        let text = r#"{"op":"publish","topic":"t","encoding":"base64","data":"AP8="}"#;
        let Ok(Command::Publish(publish)) = decode(text) else { panic!("publish") };
        assert_eq!((publish.payload.as_ref(), publish.payload_is_json), (&[0u8, 255][..], false));
        let mut out = Vec::new();
        let times = TickTimes { producer_time_ns: 2, ingest_time_ns: 0 };
        let parts = TickParts { times, payload: &publish.payload, ..Default::default() };
        encode_tick(&mut out, &tick_prefix("t"), 1, &parts);
        assert_eq!(out, br#"{"topic":"t","seq":1,"ts":2,"encoding":"base64","data":"AP8="}"#);
    }

    #[test]
    fn a_binary_tick_needs_no_memory_beyond_its_message() {
        let payload: Vec<u8> = (0..=255).collect();
        for len in [0, 1, 2, 3, 100, 256] {
            let parts = TickParts { payload: &payload[..len], ..Default::default() };
            let mut out = Vec::new();
            encode_tick(&mut out, b"{", 1, &parts);
            let (again, capacity) = (out.clone(), out.capacity());
            out.clear();
            encode_tick(&mut out, b"{", 1, &parts);
            assert_eq!((&out, out.capacity()), (&again, capacity), "{len} bytes into a warm buffer");
            let text = &out[out.iter().rposition(|&byte| byte == b':').unwrap() + 2..out.len() - 2];
            assert_eq!(BASE64.decode(text).unwrap(), payload[..len]);
        }
    }

    #[test]
    fn bad_requests_name_what_is_wrong() {
        for (text, part) in [
            ("{", "not a request"),
            ("[]", "not a request"),
            (r#"{"op":"subscribe","topcs":["a"]}"#, "topcs"),
            (r#"{"op":"subscribe"}"#, "topics"),
            (r#"{"op":"publish","topic":"a"}"#, "data"),
            (r#"{"op":"publish","data":1}"#, "topic"),
            (r#"{"op":"publish","topic":"a","data":1,"encoding":"hex"}"#, "hex"),
            (r#"{"op":"fly"}"#, "fly"),
        ] {
            let error = decode(text).unwrap_err();
            assert!(error.text.contains(part), "{text}: {}", error.text);
        }
    }
}
