//! One-way streams over HTTP: Server-Sent Events (WHATWG HTML, section 9.2) and lines of JSON.
//!
//! ```text
//!  event: tick\ndata: {"topic":"a.b","seq":7,...}\n\n       an event: the name of the message, and the message
//!  event: place\nid: ~1759999999000000;a.b=1760000000000000.7\ndata: {}\n\n
//!                                                       what the client has after this SEND: its next Last-Event-ID
//!  :\n\n                                                    heartbeat: a comment
//!
//!  {"topic":"a.b","seq":7,...}\n                            as lines
//!  \n                                                       heartbeat: an empty line
//! ```
//! A message is one line: line breaks within JSON, where they are only white space, become spaces.

use std::{collections::HashMap, io::Write as _};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};

use super::Incoming;
use crate::{
    DecodeError, Step,
    limits::{LAST_EVENT_ID_BYTES_MAX, TOPIC_BYTES_MAX},
    subscription::Position,
};

/// Bytes of a topic's name that an event id escapes: all that separate its parts, and all that are not ASCII, because Node.js
/// does not send such an id back.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-');

/// How the message of an operation begins in JSON.
const OPERATION: &[u8] = b"{\"op\":\"";

/// Appends a JSON message as one event.
pub fn encode_event(out: &mut Vec<u8>, body: &[u8]) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(event_name(body));
    out.extend_from_slice(b"\ndata: ");
    append_as_line(out, body);
    out.push(b'\n');
}

/// Appends a JSON message as one line.
pub fn encode_line(out: &mut Vec<u8>, body: &[u8]) {
    append_as_line(out, body);
}

fn append_as_line(out: &mut Vec<u8>, body: &[u8]) {
    let start = out.len();
    out.extend_from_slice(body);
    if body.contains(&b'\n') || body.contains(&b'\r') {
        for byte in out[start..].iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')) {
            *byte = b' ';
        }
    }
    out.push(b'\n');
}

/// The name of a message's event: its operation, or `tick`. An operation `error` is an event `failed`, because an EventSource has
/// `error` events of its own.
pub(crate) fn event_name(body: &[u8]) -> &[u8] {
    let operation = body.strip_prefix(OPERATION).and_then(|rest| {
        let end = rest.iter().position(|&byte| byte == b'"')?;
        rest.get(..end)
    });
    match operation.unwrap_or(b"tick") {
        b"error" => b"failed",
        name => name,
    }
}

/// Appends the time after which a client reconnects.
pub fn encode_retry(out: &mut Vec<u8>, retry_ms: u32) {
    append(out, format_args!("retry: {retry_ms}\n\n"));
}

/// Appends how a topic's place in an event id begins: `a.b=EPOCH.`; its sequence follows.
pub fn encode_place_prefix(out: &mut Vec<u8>, topic: &str, epoch: u64) {
    append(out, format_args!("{}={epoch}.", utf8_percent_encode(topic, ESCAPED)));
}

/// Appends how an event id begins: when the first stream of this client began. Topics follow, each with its place.
pub fn encode_since(out: &mut Vec<u8>, since_us: u64) {
    append(out, format_args!("{SINCE}{since_us}"));
}

/// Appends a topic's place to an event id, after its beginning.
#[inline]
pub fn encode_place_of(out: &mut Vec<u8>, prefix: &[u8], sequence: u64) {
    out.push(b';');
    out.extend_from_slice(prefix);
    out.extend_from_slice(itoa::Buffer::new().format(sequence).as_bytes());
}

/// Appends an event that has an id and nothing else to say. An id alone would do for browsers, but some clients take over only
/// the ids of events with data.
pub fn encode_place(out: &mut Vec<u8>, write_id: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(b"event: place\nid: ");
    write_id(out);
    out.extend_from_slice(b"\ndata: {}\n\n");
}

/// Marks the time in an event id. No topic's name begins so, because names are escaped.
const SINCE: char = '~';

/// Maximum bytes of what [`encode_since`] appends.
pub const SINCE_BYTES_MAX: usize = 21;

/// Bytes of an event from [`encode_place`] besides its id.
pub const PLACE_EVENT_BYTES: usize = "event: place\nid: \ndata: {}\n\n".len();

/// What a client has received, as the server told it in the id of the last event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LastEventId {
    /// A position in each topic. Of all other topics, the client has received what has come since a time: CLOCK_REALTIME,
    /// microseconds; 0: unknown.
    Places(HashMap<Box<str>, Position>, u64),
    /// Positions that a shard keeps, because they are too long for an id: `@SHARD.KEY.SENDS`.
    Kept(KeptPlaces),
}

/// Names positions that a shard keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptPlaces {
    /// The shard.
    pub shard: u16,
    /// Names the stream, and has bits that nobody can guess.
    pub key: u128,
    /// Number of the last SEND whose id the client has received.
    pub number: u64,
}

impl KeptPlaces {
    /// Appends the id of these positions.
    pub fn encode(self, out: &mut Vec<u8>) {
        let KeptPlaces { shard, key, number } = self;
        append(out, format_args!("@{shard}.{key:032x}.{number}"));
    }
}

/// Decodes the value of `Last-Event-ID`.
///
/// # Errors
/// What is wrong, if no event of this protocol has such an id.
pub fn decode_id(id: &[u8]) -> Result<LastEventId, &'static str> {
    if id.len() > LAST_EVENT_ID_BYTES_MAX {
        return Err("it is too long");
    }
    let malformed = "it is not the id of an event from this server";
    let text = std::str::from_utf8(id).map_err(|_| malformed)?;
    if let Some(kept) = text.strip_prefix('@') {
        let mut parts = kept.split('.');
        let parsed = (|| {
            let shard = parts.next()?.parse().ok()?;
            let key = u128::from_str_radix(parts.next()?, 16).ok()?;
            let number = parts.next()?.parse().ok()?;
            parts.next().is_none().then_some(KeptPlaces { shard, key, number })
        })();
        return parsed.map(LastEventId::Kept).ok_or(malformed);
    }
    let (since_us, places_text) = match text.strip_prefix(SINCE) {
        Some(rest) => {
            let (since, places) =
                rest.split_once(';').map_or((rest, None), |(since, places)| (since, Some(places)));
            (since.parse().map_err(|_| malformed)?, places)
        }
        // As in version 0.1.
        None => (0, Some(text)),
    };
    let mut places = HashMap::new();
    for place in places_text.into_iter().flat_map(|places| places.split(';')) {
        let (topic, position) = place.split_once('=').ok_or(malformed)?;
        let (epoch, sequence) = position.split_once('.').ok_or(malformed)?;
        let (Ok(epoch), Ok(sequence)) = (epoch.parse(), sequence.parse()) else { return Err(malformed) };
        let topic = percent_decode(topic.as_bytes()).decode_utf8().map_err(|_| malformed)?;
        if topic.is_empty() || topic.len() > TOPIC_BYTES_MAX {
            return Err(malformed);
        }
        places.insert(topic.into(), Position { epoch, sequence });
    }
    Ok(LastEventId::Places(places, since_us))
}

/// Decodes what a client sends on a stream that it only reads: nothing, or the line breaks that some send after a request.
///
/// # Errors
/// [`DecodeError::OneWay`] for anything else.
pub fn step<'a>(bytes: &[u8]) -> Result<Step<Incoming<'a>>, DecodeError> {
    let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    match (blank, bytes.is_empty()) {
        (_, true) => Ok(Step::Partial),
        (0, false) => Err(DecodeError::OneWay),
        _ => Ok(Step::Complete(blank, Incoming::Nothing)),
    }
}

fn append(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let written = out.write_fmt(text);
    debug_assert!(written.is_ok(), "writing to a Vec does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(body: &str) -> String {
        let mut out = Vec::new();
        encode_event(&mut out, body.as_bytes());
        String::from_utf8(out).unwrap()
    }

    fn decoded(id: &str) -> Option<LastEventId> {
        decode_id(id.as_bytes()).ok()
    }

    #[test]
    fn an_event_has_the_name_of_its_operation_and_is_one_line_of_data() {
        assert_eq!(event(r#"{"topic":"a","seq":1}"#), "event: tick\ndata: {\"topic\":\"a\",\"seq\":1}\n\n");
        assert_eq!(
            event(r#"{"op":"gap","topic":"a"}"#),
            "event: gap\ndata: {\"op\":\"gap\",\"topic\":\"a\"}\n\n"
        );
        assert!(event(r#"{"op":"error","id":0}"#).starts_with("event: failed\n"));
        assert_eq!(event("{\"data\":{\r\n\"x\":1}}"), "event: tick\ndata: {\"data\":{  \"x\":1}}\n\n");
        let mut line = Vec::new();
        encode_line(&mut line, b"{\"data\":[\n1]}");
        assert_eq!(line, b"{\"data\":[ 1]}\n");
    }

    #[test]
    fn an_id_reads_back_whatever_the_names_of_its_topics_are() {
        let positions = [("a.b", 7, 3), ("x=1;y", 8, 0), ("\u{20ac} %", u64::MAX, u64::MAX)];
        let mut out = Vec::new();
        encode_place(&mut out, |out| {
            encode_since(out, u64::MAX);
            for (topic, epoch, sequence) in positions {
                let mut prefix = Vec::new();
                encode_place_prefix(&mut prefix, topic, epoch);
                encode_place_of(out, &prefix, sequence);
            }
        });
        let text = String::from_utf8(out).unwrap();
        assert!(text.is_ascii(), "{text}");
        let id = text.strip_prefix("event: place\nid: ").and_then(|rest| rest.strip_suffix("\ndata: {}\n\n"));
        assert_eq!(text.len() - id.unwrap().len(), PLACE_EVENT_BYTES);
        let place = |(topic, epoch, sequence): (&str, u64, u64)| (topic.into(), Position { epoch, sequence });
        assert_eq!(decoded(id.unwrap()), Some(LastEventId::Places(positions.map(place).into(), u64::MAX)));
        assert!(
            id.unwrap().starts_with(&format!("~{}", u64::MAX))
                && SINCE_BYTES_MAX == 1 + u64::MAX.to_string().len()
        );
    }

    #[test]
    fn an_id_may_have_a_time_and_no_place_or_places_and_no_time() {
        let position = Position { epoch: 1, sequence: 2 };
        assert_eq!(decoded("~17"), Some(LastEventId::Places(HashMap::new(), 17)));
        assert_eq!(decoded("a=1.2"), Some(LastEventId::Places([("a".into(), position)].into(), 0)));
    }

    #[test]
    fn a_handle_reads_back() {
        let kept = KeptPlaces { shard: 3, key: 0xfe, number: 12 };
        let mut out = Vec::new();
        kept.encode(&mut out);
        assert_eq!(out, b"@3.000000000000000000000000000000fe.12");
        assert_eq!(decode_id(&out), Ok(LastEventId::Kept(kept)));
    }

    #[test]
    fn what_no_server_has_sent_is_refused() {
        for id in [
            "", "a", "a=", "a=1", "a=1.x", "=1.2", "a=1.2;", "a=1.2.3", "%ff=1.2", "@1", "@1.2", "@1.2.3.4",
            "~", "~x", "~1;",
        ] {
            assert_eq!(decoded(id), None, "{id:?}");
        }
        let long = format!("{}=1.2", "a".repeat(LAST_EVENT_ID_BYTES_MAX));
        assert_eq!(decoded(&long), None);
        assert_eq!(decode_id(b"\xff=1.2"), Err("it is not the id of an event from this server"));
    }

    #[test]
    fn a_client_may_send_line_breaks_and_nothing_else() {
        assert!(matches!(step(b""), Ok(Step::Partial)));
        assert!(matches!(step(b"\r\n"), Ok(Step::Complete(2, Incoming::Nothing))));
        assert!(matches!(step(b"GET /"), Err(DecodeError::OneWay)));
    }
}
