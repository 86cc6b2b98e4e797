//! Requests as bytes: native frames, or JSON text where the session speaks JSON.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

use crate::{
    limits::TOPIC_BYTES_MAX,
    tick::{Publish, Token, WireRecord},
    wire::{
        command::encode_request,
        frame::{self, Kind, Meta},
        json,
    },
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
    /// More than [`crate::client::OUTPUT_BYTES_MAX`] wait to be written: write first.
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
            RequestError::Backpressure => write!(f, "too many requests wait to be written"),
            RequestError::Ended => write!(f, "the session has ended"),
        }
    }
}

impl std::error::Error for RequestError {}

/// A request before it is encoded.
pub(super) enum Outgoing<'a> {
    Hello { request: u32, client: &'a str, name: &'a str },
    Subscribe { request: u32, pattern: &'a str },
    Unsubscribe { request: u32, pattern: &'a str },
    Publish { request: u32, publish: PublishRequest<'a> },
    Ping { token: u64 },
}

impl Outgoing<'_> {
    /// Refuses what no server could take, before it costs anything.
    pub(super) fn check(&self, frame_bytes_max: usize) -> Result<(), RequestError> {
        let name = match self {
            Outgoing::Subscribe { pattern, .. } | Outgoing::Unsubscribe { pattern, .. } => pattern,
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
            Outgoing::Subscribe { request, pattern } => {
                encode_request(out, Kind::Subscribe, request, pattern)
            }
            Outgoing::Unsubscribe { request, pattern } => {
                encode_request(out, Kind::Unsubscribe, request, pattern)
            }
            Outgoing::Publish { request, publish } => {
                let record =
                    Publish { request, producer_time_ns: publish.producer_time_ns, ..Publish::default() };
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
            Outgoing::Subscribe { request, pattern } => {
                format!("{{\"op\":\"subscribe\",\"id\":{request},\"topics\":[{}]}}", json::literal(pattern))
            }
            Outgoing::Unsubscribe { request, pattern } => {
                format!("{{\"op\":\"unsubscribe\",\"id\":{request},\"topics\":[{}]}}", json::literal(pattern))
            }
            Outgoing::Publish { request, publish } => {
                let PublishRequest { topic, payload, producer_time_ns, schema } = publish;
                let (encoding, data) = json_data(payload);
                format!(
                    "{{\"op\":\"publish\",\"id\":{request},\"topic\":{},\"ts\":{producer_time_ns},\
                     \"schema\":{schema},{encoding}\"data\":{data}}}",
                    json::literal(topic)
                )
            }
            Outgoing::Ping { token } => format!("{{\"op\":\"ping\",\"token\":{token}}}"),
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
    use super::*;
    use crate::wire::{
        Step,
        command::{Command, PublishCommand},
    };

    fn publish(payload: &[u8]) -> Outgoing<'_> {
        let publish = PublishRequest { topic: "a.\"b", payload, producer_time_ns: 5, schema: 6 };
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
                    ..
                }) = command
                else {
                    panic!("publish")
                };
                assert_eq!((request, &*topic, producer_time_ns, schema), (7, &b"a.\"b"[..], 5, 6));
                assert_eq!(&*got, payload, "{text}");
            }
        }
    }

    #[test]
    fn the_other_requests_read_back() {
        let json = |outgoing: Outgoing<'_>| outgoing.to_json();
        assert_eq!(
            json::decode(&json(Outgoing::Subscribe { request: 1, pattern: "a.>" })),
            Ok(Command::Subscribe {
                request: 1,
                patterns: vec!["a.>".into()],
                delivery: Default::default(),
                from: Default::default()
            })
        );
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
    fn what_no_server_takes_is_refused_here() {
        let long = "x".repeat(256);
        assert_eq!(
            Outgoing::Subscribe { request: 1, pattern: &long }.check(1 << 10),
            Err(RequestError::NameLength(256))
        );
        assert_eq!(
            Outgoing::Subscribe { request: 1, pattern: "" }.check(1 << 10),
            Err(RequestError::NameLength(0))
        );
        assert!(matches!(publish(&[0; 1000]).check(1 << 10), Err(RequestError::TooLarge { .. })));
        let fits = [0; (1 << 10) - 32 - 32 - "a.\"b".len()];
        assert_eq!(publish(&fits).check(1 << 10), Ok(()));
        assert!(publish(&[0; 1 << 10]).check(1 << 10).is_err());
    }
}
