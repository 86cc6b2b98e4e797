//! Socket.IO 5 packets (socket.io/docs/v4/socket-io-protocol): ticks and replies as events, requests as events with acknowledgements.
//!
//! ```text
//!  TYPE [ATTACHMENTS-] [NAMESPACE,] [ID] [JSON]     0 connect  1 disconnect  2 event  3 ack  4 refused  5 binary event  6 binary ack
//!
//!  2["tick",{"topic":"a.b","seq":7,"ts":1,"data":1}]                                a tick
//!  51-["tick",{...,"data":{"_placeholder":true,"num":0}}]                           an opaque payload is an attachment
//!  2["gap",{"op":"gap","topic":"a.b","from":8,"to":9,"count":1}]                    an announcement
//!  20["subscribe","a.>",{"from":"latest"}]  ->  30[{"op":"subscribed","id":0,...}]  a request and its answer
//! ```
//! The objects are those of [`super::json`]; the name of an event is that of the event of `/sse`.
//!
//! **Why no crate parses the packets.** `socketioxide-parser-common` keeps half-received events behind a mutex in a state of its own,
//! accepts up to `usize::MAX` attachments, and leaves arguments to a deserializer of its own; around it come `engineioxide-core` with
//! `http-body`, `futures` and `rand`. `rust_socketio` is a client with a runtime. A packet is a digit, three optional parts and
//! JSON, which serde_json reads: what is left to write is shorter than adapters would be, and has this server's bounds.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::json::{self, InvalidRequest};
use crate::{
    DecodeError,
    command::{Command, PublishCommand, Token},
    frame::{FLAG_PAYLOAD_JSON, Frame},
    framing::{engine_io::SEPARATOR, event_stream},
    limits::SOCKET_IO_NAMESPACE_BYTES_MAX,
    reply::Reply,
};

/// Stands for an attachment in JSON.
const PLACEHOLDER: &[u8] = br#"{"_placeholder":true,"num":0}"#;
/// Most arguments of an event after its name.
const ARGUMENTS_MAX: usize = 3;
/// The events of clients, for errors.
const EVENTS: &str = "subscribe, update, unsubscribe, publish or refresh";
/// The only namespace.
const MAIN: &str = "/";

/// A packet from a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// The client enters a namespace.
    Connect {
        /// `/` is the only one that exists.
        namespace: &'a str,
        /// JSON with its credentials; empty: none.
        auth: &'a str,
    },
    /// The client leaves a namespace.
    Disconnect,
    /// An event.
    Event(Event<'a>),
}

/// An event, whose arguments are not decoded yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Id of the request: one more than that of its acknowledgement; 0: the client wants none.
    pub request: u32,
    /// JSON: an array of the event's name and its arguments.
    pub arguments: &'a str,
    /// Whether a binary message with its attachment follows.
    pub has_attachment: bool,
}

/// Decodes a packet.
///
/// # Errors
/// [`DecodeError::SocketIo`] if it is not a packet that a client may send.
pub fn decode(text: &str) -> Result<Packet<'_>, DecodeError> {
    let bad = |text| Err(DecodeError::SocketIo(text));
    let mut characters = text.chars();
    let packet_type = characters.next();
    let rest = characters.as_str();
    let (has_attachment, rest) = match packet_type {
        Some('0' | '1' | '2') => (false, rest),
        Some('5') => match rest.split_once('-') {
            Some(("0", rest)) => (false, rest),
            Some(("1", rest)) => (true, rest),
            Some((count, _)) if !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit()) => {
                return bad("an event has at most one attachment");
            }
            _ => return bad("a binary event lacks the number of its attachments"),
        },
        Some('3' | '6') => return bad("the server has asked for no acknowledgement"),
        Some('4') => return bad("only the server refuses a connection"),
        Some(_) => return bad("unknown type of packet"),
        None => return bad("a packet is empty"),
    };
    let (namespace, rest) = match rest.starts_with('/') {
        true => rest.split_once(',').unwrap_or((rest, "")),
        false => (MAIN, rest),
    };
    if namespace.len() > SOCKET_IO_NAMESPACE_BYTES_MAX {
        return bad("the name of a namespace is too long");
    }
    match packet_type {
        Some('0') => Ok(Packet::Connect { namespace, auth: rest }),
        _ if namespace != MAIN => bad("the client is not connected to this namespace"),
        Some('1') => Ok(Packet::Disconnect),
        _ => {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (id, arguments) = rest.split_at(digits);
            let request = match id {
                "" => 0,
                id => match id.parse::<u32>().ok().and_then(|id| id.checked_add(1)) {
                    Some(request) => request,
                    None => return bad("the id of an acknowledgement is above 4294967294"),
                },
            };
            Ok(Packet::Event(Event { request, arguments, has_attachment }))
        }
    }
}

/// Whether a namespace exists.
pub fn is_main(namespace: &str) -> bool {
    namespace == MAIN
}

/// Decodes the client's token in the JSON of its [`Packet::Connect`]. Other fields are the application's.
///
/// # Errors
/// The JSON is not an object, or the token in it not a string.
pub fn decode_auth(auth: &str) -> Result<Option<Token<'_>>, &'static str> {
    #[derive(Deserialize)]
    struct Auth<'a> {
        #[serde(default, borrow)]
        token: Option<Cow<'a, str>>,
    }
    if auth.trim_ascii().is_empty() {
        return Ok(None);
    }
    // serde takes an array for a struct too.
    let is_object = auth.trim_ascii_start().starts_with('{');
    match serde_json::from_str::<Auth<'_>>(auth) {
        Ok(Auth { token }) if is_object => Ok(token.filter(|token| !token.is_empty()).map(|token| {
            Token(match token {
                Cow::Borrowed(token) => Cow::Borrowed(token.as_bytes()),
                Cow::Owned(token) => Cow::Owned(token.into_bytes()),
            })
        })),
        _ => Err("auth must be an object whose token, if any, is a string"),
    }
}

/// The request of an event, as the JSON message that [`decode_request`] decodes.
///
/// # Errors
/// [`InvalidRequest`] if there is no such request, or its arguments are not those of one.
pub fn request_json(event: &Event<'_>) -> Result<String, InvalidRequest> {
    let request = event.request;
    let fail = |text: String| InvalidRequest { request, text };
    let arguments: Arguments<'_> = serde_json::from_str(event.arguments).map_err(|_| {
        fail(format!("an event is an array of its name and at most {ARGUMENTS_MAX} arguments"))
    })?;
    let Arguments { name, given } = arguments;
    // What the arguments are called in a message; the last one may be an object of options.
    let names: &[&str] = match &*name {
        "subscribe" | "update" | "unsubscribe" => &["topic"],
        "publish" => &["topic", "data"],
        "refresh" => &["token"],
        other => {
            let cut: String = other.chars().take(32).collect();
            return Err(fail(format!("unknown event {cut:?}; use {EVENTS}")));
        }
    };
    let mut json = format!("{{\"op\":\"{name}\",\"id\":{request}");
    let mut given = given.into_iter().flatten().map(RawValue::get).peekable();
    // The only argument may be an object of all fields.
    let is_whole = given.peek().is_some_and(|first| first.starts_with('{'));
    for field in names.iter().take(if is_whole { 0 } else { names.len() }) {
        let value = given.next().ok_or_else(|| fail(format!("{name}: argument {field} is missing")))?;
        json += &format!(",\"{field}\":{value}");
    }
    if let Some(options) = given.next().filter(|options| *options != "null") {
        let fields = options.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        let fields = fields.ok_or_else(|| fail(format!("{name}: options must be an object")))?;
        if !fields.trim_ascii().is_empty() {
            json.push(',');
            json += fields;
        }
    }
    if given.next().is_some() {
        return Err(fail(format!("{name}: too many arguments")));
    }
    json.push('}');
    Ok(json)
}

/// Decodes a request from [`request_json`]. `attachment`: the event's, which must be the payload of a tick.
///
/// # Errors
/// [`InvalidRequest`] if the fields are not those of the request.
pub fn decode_request<'a>(
    json: &'a str,
    request: u32,
    attachment: Option<&'a [u8]>,
) -> Result<Command<'a>, InvalidRequest> {
    let fail = |text: &str| Err(InvalidRequest { request, text: text.to_owned() });
    // Another id would have been a duplicate field.
    let command = json::decode(json).map_err(|error| InvalidRequest { request, ..error })?;
    match (command, attachment) {
        // Each event has one answer.
        (
            Command::Subscribe { patterns, .. }
            | Command::Update { patterns, .. }
            | Command::Unsubscribe { patterns, .. },
            _,
        ) if patterns.len() != 1 => fail("an event has one topic: emit one for each"),
        (Command::Publish(publish), Some(attachment)) if is_placeholder(&publish.payload) => {
            Ok(Command::Publish(PublishCommand {
                payload: Cow::Borrowed(attachment),
                payload_is_json: false,
                ..publish
            }))
        }
        (_, Some(_)) => fail("binary data must be the whole payload of a publish"),
        (command, None) => Ok(command),
    }
}

fn is_placeholder(payload: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Placeholder {
        _placeholder: bool,
        num: u32,
    }
    serde_json::from_slice::<Placeholder>(payload).is_ok_and(|found| found._placeholder && found.num == 0)
}

/// The elements of an event's array. Reads no more than there may be.
struct Arguments<'a> {
    name: Cow<'a, str>,
    given: [Option<&'a RawValue>; ARGUMENTS_MAX],
}

impl<'de: 'a, 'a> Deserialize<'de> for Arguments<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Arguments<'a>, D::Error> {
        struct Elements;
        impl<'de> Visitor<'de> for Elements {
            type Value = Arguments<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of a name and its arguments")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Arguments<'de>, A::Error> {
                let missing = || serde::de::Error::custom("no name");
                let name = elements.next_element::<Text<'de>>()?.ok_or_else(missing)?.0;
                let mut given = [None; ARGUMENTS_MAX];
                for place in &mut given {
                    *place = elements.next_element()?;
                }
                // One element more is an error of the deserializer.
                Ok(Arguments { name, given })
            }
        }
        deserializer.deserialize_seq(Elements)
    }
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Appends the tick in a TICK frame as an event. A payload that is not JSON is its attachment.
pub(super) fn encode_frame(out: &mut Vec<u8>, prefix: &[u8], tick: &Frame<'_>) {
    let is_json = tick.header.flags & FLAG_PAYLOAD_JSON != 0;
    out.extend_from_slice(if is_json { b"2[\"tick\"," } else { b"51-[\"tick\"," });
    json::encode_frame_beside(out, prefix, tick, PLACEHOLDER);
    out.push(b']');
    if !is_json {
        out.push(SEPARATOR);
        out.extend_from_slice(tick.payload());
    }
}

/// Appends a JSON message as an event with the name of its operation.
pub(super) fn encode_event(out: &mut Vec<u8>, write_message: impl FnOnce(&mut Vec<u8>)) {
    let mut message = Vec::with_capacity(128);
    write_message(&mut message);
    out.extend_from_slice(b"2[\"");
    out.extend_from_slice(event_stream::event_name(&message));
    out.extend_from_slice(b"\",");
    out.extend_from_slice(&message);
    out.push(b']');
}

/// Appends a reply: the acknowledgement of the request that it answers, if its client wants one, else an event. Its `id` is that
/// of the acknowledgement.
pub(super) fn encode_reply(reply: &Reply<'_>, out: &mut Vec<u8>) {
    let mut reply = *reply;
    let acknowledged = reply.request_mut().and_then(|request| {
        *request = request.checked_sub(1)?;
        Some(*request)
    });
    match acknowledged {
        None => encode_event(out, |message| json::encode_reply(&reply, message)),
        Some(id) => {
            out.push(b'3');
            out.extend_from_slice(itoa::Buffer::new().format(id).as_bytes());
            out.push(b'[');
            json::encode_reply(&reply, out);
            out.push(b']');
        }
    }
}

/// Appends the packet that lets a client into the main namespace. `id`: the client's name, which others may see.
pub fn encode_connected(out: &mut Vec<u8>, id: &str) {
    out.extend_from_slice(format!("0{{\"sid\":{}}}", json::literal(id)).as_bytes());
}

/// Appends the packet that does not let a client into a namespace. `code`: the code with which the connection closes, if it does.
pub fn encode_refused(out: &mut Vec<u8>, namespace: &str, reason: &str, code: Option<u16>) {
    out.push(b'4');
    if !is_main(namespace) {
        out.extend_from_slice(namespace.as_bytes());
        out.push(b',');
    }
    out.extend_from_slice(format!("{{\"message\":{}", json::literal(reason)).as_bytes());
    if let Some(code) = code {
        out.extend_from_slice(format!(",\"data\":{{\"code\":{code}}}").as_bytes());
    }
    out.push(b'}');
}

/// Appends the packet that ends a client's stay in the main namespace. A client does not reconnect by itself after it.
pub fn encode_disconnect(out: &mut Vec<u8>) {
    out.push(b'1');
}

#[cfg(test)]
mod tests;
