//! The JSON codec: one object per message.
//!
//! A JSON payload is copied verbatim, never parsed into a tree and written again, so every digit of the producer's
//! numbers is preserved.

mod bounds;
pub mod diagnosis;
mod payload;
mod tick;

use std::{borrow::Cow, collections::HashMap, io::Write};

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

pub(super) use self::tick::{encode_frame, encode_frame_beside};
pub use self::{
    bounds::is_within_bounds,
    payload::base64,
    tick::{encode_tick, tick_prefix},
};
use crate::{
    ErrorCode,
    command::{self, Command, PublishCommand},
    features::Features,
    ids::TopicId,
    reply::{NotRecovered, Reply, SERVER, Skipped},
    subscription::{Delivery, Moment, OptionError, Position, StartPosition, interval_us},
};

/// Largest integer up to which a double, JavaScript's number type, represents every integer exactly: 2^53 - 1.
pub const NUMBER_HIGHEST: u64 = (1 << 53) - 1;

/// The operations of requests, for errors.
const OPERATIONS: &str = "hello, refresh, subscribe, update, unsubscribe, publish or ping";

/// The fields of all requests. Unknown fields are rejected, so that a misspelt option is not ignored.
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
    #[serde(default, borrow)]
    token: Option<Token<'a>>,
    #[serde(default, deserialize_with = "key")]
    key: u64,
    // Not parsed yet, so that an error can name the option and the request id.
    #[serde(default, borrow)]
    policy: Option<&'a RawValue>,
    #[serde(default, borrow)]
    max_rate: Option<&'a RawValue>,
    #[serde(default, borrow)]
    from: Option<&'a RawValue>,
    #[serde(default, borrow)]
    features: Option<Vec<Cow<'a, str>>>,
    #[serde(default, borrow)]
    message_id: Option<Cow<'a, str>>,
}

/// The value of `token`: a number in a ping, else a client's credentials.
enum Token<'a> {
    Number(u64),
    Text(Cow<'a, str>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Token<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Token<'a>, D::Error> {
        struct Form;
        impl<'de> serde::de::Visitor<'de> for Form {
            type Value = Token<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a whole number below 2^64, or a string")
            }
            fn visit_u64<E>(self, number: u64) -> Result<Token<'de>, E> {
                Ok(Token::Number(number))
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Token<'de>, E> {
                Ok(Token::Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Token<'de>, E> {
                Ok(Token::Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

impl<'a> Token<'a> {
    /// The client's credentials; `None` for a ping's number.
    fn into_credentials(self) -> Option<command::Token<'a>> {
        match self {
            Token::Number(_) => None,
            Token::Text(Cow::Borrowed(text)) => Some(command::Token(Cow::Borrowed(text.as_bytes()))),
            Token::Text(Cow::Owned(text)) => Some(command::Token(Cow::Owned(text.into_bytes()))),
        }
    }
}

/// The value of `from`.
#[derive(Deserialize)]
#[serde(untagged)]
enum FromOption {
    Word(String),
    Position(FromPosition),
}

/// A position in `from`: one for every topic, one sequence per topic, or one position per topic, perhaps with a moment for the others.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FromPosition {
    #[serde(default)]
    epoch: Option<u64>,
    #[serde(default)]
    sequence: Option<u64>,
    #[serde(default)]
    sequences: Option<HashMap<Box<str>, u64>>,
    #[serde(default)]
    positions: Option<HashMap<Box<str>, TopicPosition>>,
    #[serde(default)]
    since: Option<u64>,
}

/// A position in one topic.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TopicPosition {
    epoch: u64,
    sequence: u64,
}

impl Message<'_> {
    fn delivery(&self) -> Result<Delivery, OptionError> {
        let policy: Option<Cow<'_, str>> = option(self.policy, OptionError::Policy)?;
        let max_rate: Option<f64> = option(self.max_rate, OptionError::MaxRate)?;
        Ok(Delivery {
            policy: policy.as_deref().map(str::parse).transpose()?,
            interval_us: max_rate.map(interval_us).transpose()?.unwrap_or(0),
        })
    }

    fn start_position(&self) -> Result<StartPosition, OptionError> {
        let position = match option(self.from, OptionError::From)? {
            None => return Ok(StartPosition::Live),
            Some(FromOption::Word(word)) => return start_from_word(&word),
            Some(FromOption::Position(position)) => position,
        };
        let invalid = || OptionError::From(self.from.map_or_else(String::new, |given| cut(given.get())));
        match position {
            FromPosition {
                epoch: Some(epoch),
                sequence: Some(sequence),
                sequences: None,
                positions: None,
                since: None,
            } => Ok(StartPosition::After(Position { epoch, sequence })),
            FromPosition {
                epoch: Some(epoch),
                sequence: None,
                sequences: Some(sequences),
                positions: None,
                since: None,
            } => {
                let position = |(topic, sequence)| (topic, Position { epoch, sequence });
                Ok(StartPosition::AfterEach(sequences.into_iter().map(position).collect()))
            }
            FromPosition { epoch, sequence: None, sequences: None, positions: Some(positions), since } => {
                let position =
                    |(topic, TopicPosition { epoch, sequence })| (topic, Position { epoch, sequence });
                let positions = positions.into_iter().map(position).collect();
                match (epoch, since) {
                    (None, None) => Ok(StartPosition::AfterEach(positions)),
                    (Some(epoch), Some(since_us)) => {
                        Ok(StartPosition::Since(positions, Moment { epoch, since_us }))
                    }
                    _ => Err(invalid()),
                }
            }
            _ => Err(invalid()),
        }
    }
}

/// Parses an option, if given. The error shows the first 32 characters of a value of the wrong type.
fn option<'de, T: Deserialize<'de>>(
    given: Option<&'de RawValue>,
    bad: impl FnOnce(String) -> OptionError,
) -> Result<Option<T>, OptionError> {
    let Some(given) = given.map(RawValue::get) else { return Ok(None) };
    serde_json::from_str(given).map(Some).map_err(|_| bad(cut(given)))
}

/// The first 32 characters of a text.
fn cut(text: &str) -> String {
    text.chars().take(32).collect()
}

/// Parses a start position that is a word: `live` or `latest`.
///
/// # Errors
/// [`OptionError::From`] for any other word.
pub fn start_from_word(word: &str) -> Result<StartPosition, OptionError> {
    match word {
        "live" => Ok(StartPosition::Live),
        "latest" => Ok(StartPosition::Latest),
        other => Err(OptionError::From(format!("{:?}", cut(other)))),
    }
}

/// Deserializes a field that is present, even as `null`, which serde would treat as missing.
pub fn present<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Deserializes a key: a number, or a string of its digits, which JavaScript needs above 2^53 - 1.
///
/// # Errors
/// For anything else, and for numbers that do not fit 64 bits.
pub fn key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    struct Key;
    impl serde::de::Visitor<'_> for Key {
        type Value = u64;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a whole number below 2^64, or a string of its digits")
        }
        fn visit_u64<E>(self, number: u64) -> Result<u64, E> {
            Ok(number)
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<u64, E> {
            let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let number = if is_number { text.parse().ok() } else { None };
            number.ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
        }
    }
    deserializer.deserialize_any(Key)
}

/// The number in a JSON text that [`key`] accepts: a whole number below 2^64, or a string of its digits.
pub fn whole_number(text: &str) -> Option<u64> {
    key(&mut serde_json::Deserializer::from_str(text)).ok()
}

/// An invalid request, and the error that answers it. The session stays open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidRequest {
    /// Request id if it could be read, even if the rest is invalid; else 0.
    pub request: u32,
    /// What is wrong, and in which field.
    pub text: String,
}

/// Decodes one request.
///
/// # Errors
/// [`InvalidRequest`] if the text is not a JSON request of the protocol.
pub fn decode(text: &str) -> Result<Command<'_>, InvalidRequest> {
    // serde takes an array for a struct too.
    let is_object = text.trim_ascii_start().starts_with('{');
    let decoded = if is_object { serde_json::from_str(text).ok() } else { None };
    let mut message: Message<'_> = decoded.ok_or_else(|| diagnosis::diagnose(text))?;
    let request = message.id;
    let fail = |text: String| InvalidRequest { request, text };
    let op = std::mem::take(&mut message.op);
    match op.as_ref() {
        "hello" => {
            let name = message.name.unwrap_or_default();
            let features =
                message.features.map(|names| Features::from_names(names.iter().map(|name| &**name)));
            let token = match message.token.map(Token::into_credentials) {
                Some(None) => return Err(fail("hello: \"token\" must be a string".into())),
                Some(Some(token)) if token.0.is_empty() => None,
                token => token.flatten(),
            };
            Ok(Command::Hello { request, client: Cow::Borrowed(""), name, features, token })
        }
        "refresh" => match message.token.and_then(Token::into_credentials) {
            Some(token) => Ok(Command::Refresh { request, token }),
            None => Err(fail("refresh: \"token\" must be a string".into())),
        },
        op @ ("subscribe" | "unsubscribe" | "update") => {
            let delivery = message.delivery().map_err(|error| fail(format!("{op}: {error}")))?;
            let from = message.start_position().map_err(|error| fail(format!("{op}: {error}")))?;
            if op != "subscribe" && from != StartPosition::Live {
                return Err(fail(format!("{op}: \"from\" is only for subscribe")));
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
                    let bytes = base64(data).map_err(|text| fail(format!("publish: {text}")))?;
                    (Cow::Owned(bytes), false)
                }
                Some(other) => {
                    let other = cut(other);
                    return Err(fail(format!("publish: unknown \"encoding\" {other:?}; use json or base64")));
                }
            };
            if message.message_id.as_deref() == Some("") {
                return Err(fail("publish: \"message_id\" is empty".into()));
            }
            Ok(Command::Publish(PublishCommand {
                request,
                topic: into_bytes(topic),
                producer_time_ns: message.ts,
                schema: message.schema,
                payload,
                payload_is_json,
                key: message.key,
                message_id: message.message_id.map(into_bytes).unwrap_or_default(),
            }))
        }
        "ping" => match message.token {
            None | Some(Token::Number(0)) => Ok(Command::Ping { token: u64::from(request) }),
            Some(Token::Number(token)) => Ok(Command::Ping { token }),
            Some(Token::Text(_)) => {
                Err(fail(format!("ping: \"token\" must be a whole number from 0 to {}", u64::MAX)))
            }
        },
        other => Err(fail(format!("unknown op {:?}; use {OPERATIONS}", cut(other)))),
    }
}

fn into_bytes(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

/// Whether the payload can be inlined in a JSON message.
///
/// It must be one JSON text that [`is_within_bounds`]; white space may surround the value (RFC 8259, section 2). Three passes
/// over the payload; does not allocate.
pub fn is_json(payload: &[u8]) -> bool {
    // serde_json ignores strings without validating their UTF-8, and one invalid byte in a text message would make
    // every JSON subscriber close its connection.
    is_within_bounds(payload)
        && simdutf8::basic::from_utf8(payload)
            .is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
}

/// The text as a JSON string, with quotes.
pub fn literal(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Appends a reply.
pub(super) fn encode_reply(reply: &Reply<'_>, out: &mut Vec<u8>) {
    match *reply {
        Reply::Welcome { request, epoch, session, frame_bytes_max, features } => {
            let server = literal(SERVER);
            append(
                out,
                format_args!(
                    "{{\"op\":\"welcome\",\"id\":{request},\"server\":{server},\"epoch\":{epoch},\
                     \"session\":{session},\"frame_bytes_max\":{frame_bytes_max}"
                ),
            );
            if let Some(features) = features {
                append(out, format_args!(",\"features\":{features}"));
            }
            out.push(b'}');
        }
        Reply::Nodes { node, addresses } => {
            let (node, addresses) = (literal(node), serde_json::Value::from(addresses));
            append(out, format_args!("{{\"op\":\"nodes\",\"node\":{node},\"addresses\":{addresses}}}"));
        }
        Reply::Expires { request, expires_in_s } => {
            append(
                out,
                format_args!("{{\"op\":\"expires\",\"id\":{request},\"expires_in\":{expires_in_s}}}"),
            );
        }
        Reply::Subscribed { request, pattern, since_us: None, .. } => {
            encode_subscribed(out, request, pattern);
        }
        Reply::Subscribed { request, pattern, since_us: Some(since_us), .. } => {
            let pattern = literal(pattern);
            append(
                out,
                format_args!(
                    "{{\"op\":\"subscribed\",\"id\":{request},\"pattern\":{pattern},\"topics\":[],\"since\":{since_us}}}"
                ),
            );
        }
        Reply::Unsubscribed { request, pattern } => encode_unsubscribed(out, request, pattern),
        Reply::Recovered { name, epoch, sequence, recovered, reason, .. } => {
            encode_recovered(out, name, epoch, sequence, recovered, reason);
        }
        Reply::Conflated(skipped) => encode_skipped(out, "conflated", &skipped),
        Reply::Gap(skipped) => encode_skipped(out, "gap", &skipped),
        Reply::Removed { pattern, code, text } => {
            let (pattern, code, text) = (literal(pattern), code as u16, literal(text));
            append(
                out,
                format_args!(
                    "{{\"op\":\"unsubscribed\",\"pattern\":{pattern},\"code\":{code},\"text\":{text}}}"
                ),
            );
        }
        Reply::Published { request, name, epoch, sequence, is_duplicate, .. } => {
            let (topic, duplicate) = (literal(name), if is_duplicate { ",\"duplicate\":true" } else { "" });
            append(
                out,
                format_args!(
                    "{{\"op\":\"published\",\"id\":{request},\"topic\":{topic},\"epoch\":{epoch},\
                     \"sequence\":{sequence}{duplicate}}}"
                ),
            );
        }
        Reply::Source { name, state, since_ns } => {
            let (name, state) = (literal(name), state.name());
            append(
                out,
                format_args!(
                    "{{\"op\":\"source\",\"source\":{name},\"state\":\"{state}\",\"since\":{since_ns}}}"
                ),
            );
        }
        Reply::Stale { name, is_stale, since_ns, .. } => {
            let topic = literal(name);
            append(
                out,
                format_args!(
                    "{{\"op\":\"stale\",\"topic\":{topic},\"stale\":{is_stale},\"since\":{since_ns}}}"
                ),
            );
        }
        Reply::Pong { token } => encode_pong(out, token),
        Reply::Error { request, code, text } => encode_error(out, request, code, text),
        Reply::Closing { code, reason, reconnect_after_ms } => {
            encode_closing(out, code, reason, reconnect_after_ms);
        }
    }
}

/// Appends the acknowledgement of one pattern. Its topics are announced separately.
pub fn encode_subscribed(out: &mut Vec<u8>, request: u32, pattern: &str) {
    append(
        out,
        format_args!(
            "{{\"op\":\"subscribed\",\"id\":{request},\"pattern\":{},\"topics\":[]}}",
            literal(pattern)
        ),
    );
}

/// Appends the announcement of a topic. All of its subscribers share it.
pub fn encode_topic(out: &mut Vec<u8>, topic: TopicId, epoch: u64, name: &str) {
    append(
        out,
        format_args!(
            "{{\"op\":\"subscribed\",\"topics\":[{{\"topic\":{},\"topic_id\":{},\"epoch\":{epoch}}}]}}",
            literal(name),
            topic.0
        ),
    );
}

/// Appends the acknowledgement of an UNSUBSCRIBE.
pub fn encode_unsubscribed(out: &mut Vec<u8>, request: u32, pattern: &str) {
    append(
        out,
        format_args!("{{\"op\":\"unsubscribed\",\"id\":{request},\"pattern\":{}}}", literal(pattern)),
    );
}

/// Appends whether the ticks after a given position follow.
fn encode_recovered(
    out: &mut Vec<u8>,
    topic: &str,
    epoch: u64,
    sequence: u64,
    recovered: bool,
    reason: Option<NotRecovered>,
) {
    let topic = literal(topic);
    append(
        out,
        format_args!(
            "{{\"op\":\"recovered\",\"topic\":{topic},\"epoch\":{epoch},\"sequence\":{sequence},\
             \"recovered\":{recovered}"
        ),
    );
    if let Some(reason) = reason {
        append(out, format_args!(",\"reason\":\"{}\"", reason.name()));
    }
    out.push(b'}');
}

/// Appends a range of ticks that are not delivered. `op` is `conflated` or `gap`.
fn encode_skipped(out: &mut Vec<u8>, op: &str, skipped: &Skipped<'_>) {
    let Skipped { name, from, to, count, .. } = *skipped;
    let topic = literal(name);
    append(out, format_args!("{{\"op\":\"{op}\",\"topic\":{topic},\"from\":{from},\"to\":{to}"));
    if let Some(count) = count {
        append(out, format_args!(",\"count\":{count}"));
    }
    out.push(b'}');
}

/// Appends a pong.
pub fn encode_pong(out: &mut Vec<u8>, token: u64) {
    append(out, format_args!("{{\"op\":\"pong\",\"token\":{token}}}"));
}

/// Appends an error.
pub fn encode_error(out: &mut Vec<u8>, request: u32, code: ErrorCode, text: &str) {
    let code = code as u16;
    append(
        out,
        format_args!("{{\"op\":\"error\",\"id\":{request},\"code\":{code},\"text\":{}}}", literal(text)),
    );
}

/// Appends the last message before a close.
pub fn encode_closing(out: &mut Vec<u8>, code: u16, reason: &str, reconnect_after_ms: u32) {
    append(
        out,
        format_args!(
            "{{\"op\":\"closing\",\"code\":{code},\"reason\":{},\"reconnect_after_ms\":{reconnect_after_ms}}}",
            literal(reason)
        ),
    );
}

fn append(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let written = out.write_fmt(text);
    debug_assert!(written.is_ok(), "writing to a Vec does not fail");
}

#[cfg(test)]
mod tests;
