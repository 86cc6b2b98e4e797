//! What a client asks for, in whichever encoding it asked.

use std::borrow::Cow;

use crate::{
    tick::{Request, Token},
    wire::{
        DecodeError,
        frame::{Frame, Kind},
    },
};

/// One request. Names and patterns are not yet checked against their rules: that failure is the request's, not the
/// connection's.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Opens a native session; on a WebSocket it only asks for `welcome`.
    Hello {
        /// Named by the answer.
        request: u32,
        /// Who the client says it is, checked; empty: nobody. Only what opens a native session places it.
        client: Cow<'a, str>,
        /// The client's name for itself.
        name: Cow<'a, str>,
    },
    /// Adds subscriptions; each is answered by itself.
    Subscribe {
        /// Named by the answers.
        request: u32,
        /// One pattern or several.
        patterns: Vec<Cow<'a, str>>,
    },
    /// Ends subscriptions.
    Unsubscribe {
        /// Named by the answers.
        request: u32,
        /// One pattern or several.
        patterns: Vec<Cow<'a, str>>,
    },
    /// Publishes one tick.
    Publish(PublishCommand<'a>),
    /// Asks for a pong, which comes after everything asked before it was handled.
    Ping {
        /// Returned as it came.
        token: u64,
    },
}

/// One tick to publish.
#[derive(Debug, PartialEq, Eq)]
pub struct PublishCommand<'a> {
    /// Named by the error, if there is one.
    pub request: u32,
    /// The topic's name, unchecked.
    pub topic: Cow<'a, [u8]>,
    /// Nanoseconds since 1970; 0: the server's time of receipt.
    pub producer_time_ns: u64,
    /// The producer's mark.
    pub schema: u32,
    /// The tick's payload.
    pub payload: Cow<'a, [u8]>,
    /// Whether the payload is known to be one JSON value.
    pub payload_is_json: bool,
}

impl<'a> Command<'a> {
    /// The command of a native frame.
    ///
    /// # Errors
    /// A [`DecodeError`] for kinds that only a server sends, short records, text that is not UTF-8, and identities that
    /// break a rule.
    pub fn from_frame(frame: &Frame<'a>) -> Result<Command<'a>, DecodeError> {
        Ok(match frame.kind {
            Kind::Hello => {
                let (request, client, name) = frame.hello()?;
                Command::Hello { request, client: Cow::Borrowed(client), name: Cow::Borrowed(name) }
            }
            Kind::Subscribe => Command::Subscribe {
                request: frame.record::<Request>()?.request,
                patterns: vec![Cow::Borrowed(frame.text()?)],
            },
            Kind::Unsubscribe => Command::Unsubscribe {
                request: frame.record::<Request>()?.request,
                patterns: vec![Cow::Borrowed(frame.text()?)],
            },
            Kind::Publish => {
                let (record, topic, payload) = frame.publish()?;
                Command::Publish(PublishCommand {
                    request: record.request,
                    topic: Cow::Borrowed(topic),
                    producer_time_ns: record.producer_time_ns,
                    schema: frame.header.schema,
                    payload: Cow::Borrowed(payload),
                    // The peer's flag is a claim; only the server's own check sets it.
                    payload_is_json: false,
                })
            }
            Kind::Ping => Command::Ping { token: frame.record::<Token>()?.token },
            _ => return Err(DecodeError::UnknownKind(frame.header.kind)),
        })
    }
}

/// Appends a SUBSCRIBE or UNSUBSCRIBE frame, as clients and shards send them.
pub fn encode_request(out: &mut Vec<u8>, kind: Kind, request: u32, pattern: &str) {
    let record = Request { request, ..Request::default() };
    super::frame::encode(out, kind, super::frame::Meta::default(), &record, &[pattern.as_bytes()]);
}
