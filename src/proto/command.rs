//! Requests from clients, independent of codec and framing.

use std::{borrow::Cow, collections::HashMap, fmt};

use crate::{
    DecodeError,
    features::Features,
    frame::{Frame, HelloParts, Kind, PublishParts},
    records::{self, Request, Resume, Subscribe, WireRecord},
    subscription::{Delivery, Moment, OptionError, Policy, Position, StartPosition, interval_us},
};

/// A client's token as received: neither its length nor its text is checked. Its debug output does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token<'a>(pub Cow<'a, [u8]>);

impl fmt::Debug for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({} bytes)", self.0.len())
    }
}

/// One request. Topic names and patterns are not validated yet: an invalid one fails the request, not the connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Opens a native session. On a WebSocket, only asks for WELCOME.
    Hello {
        /// Request id, repeated in the answer.
        request: u32,
        /// Identity, validated; empty: none. Used only when the HELLO opens a native session.
        client: Cow<'a, str>,
        /// Name of the client software.
        name: Cow<'a, str>,
        /// Features that the client asks for. `None`: it asked for none, and gets a WELCOME without features.
        features: Option<Features>,
        /// The client's token; never empty.
        token: Option<Token<'a>>,
    },
    /// Replaces the client's token.
    Refresh {
        /// Request id, repeated in the answer.
        request: u32,
        /// The new token.
        token: Token<'a>,
    },
    /// Adds subscriptions. Each pattern is acknowledged separately.
    Subscribe {
        /// Request id, repeated in the answers.
        request: u32,
        /// One pattern or several.
        patterns: Vec<Cow<'a, str>>,
        /// Policy and rate.
        delivery: Delivery,
        /// Start position.
        from: StartPosition,
    },
    /// Changes policy and rate of existing subscriptions. Each pattern is acknowledged separately.
    Update {
        /// Request id, repeated in the answers.
        request: u32,
        /// One pattern or several.
        patterns: Vec<Cow<'a, str>>,
        /// New policy and rate.
        delivery: Delivery,
    },
    /// Gives the client's position in a topic to the SUBSCRIBE that follows.
    Resume {
        /// The topic.
        topic: Cow<'a, str>,
        /// Last tick that the client has.
        position: Position,
    },
    /// A SUBSCRIBE or UPDATE frame with an invalid option. Fails with an error; the session stays open.
    InvalidOption {
        /// Request id, repeated in the error.
        request: u32,
        /// The invalid option, and what is wrong with it.
        error: OptionError,
    },
    /// Ends subscriptions.
    Unsubscribe {
        /// Request id, repeated in the answers.
        request: u32,
        /// One pattern or several.
        patterns: Vec<Cow<'a, str>>,
    },
    /// Publishes one tick.
    Publish(PublishCommand<'a>),
    /// Asks for a pong, which is sent after all earlier requests were handled.
    Ping {
        /// Repeated in the pong.
        token: u64,
    },
    /// Answers the server's ping. Any token counts as a sign of life.
    Pong,
}

/// A tick to publish.
#[derive(Debug, PartialEq, Eq)]
pub struct PublishCommand<'a> {
    /// Request id, repeated in the answer; 0: only an ERROR answers.
    pub request: u32,
    /// Topic name, not validated.
    pub topic: Cow<'a, [u8]>,
    /// Producer's timestamp, nanoseconds since 1970; 0: the server uses the time of receipt.
    pub producer_time_ns: u64,
    /// Payload type chosen by the producer; 0: none.
    pub schema: u32,
    /// Payload of the tick.
    pub payload: Cow<'a, [u8]>,
    /// Whether the payload is known to be one JSON value. `false` if it was not checked.
    pub payload_is_json: bool,
    /// The conflation key; 0: none.
    pub key: u64,
    /// Message id, not validated; empty: none.
    pub message_id: Cow<'a, [u8]>,
}

impl<'a> Command<'a> {
    /// Decodes the request in a native frame.
    ///
    /// # Errors
    /// A [`DecodeError`] for kinds that clients do not send, records that are too short, texts that are not UTF-8 and
    /// invalid identities.
    pub fn from_frame(frame: &Frame<'a>) -> Result<Command<'a>, DecodeError> {
        Ok(match frame.kind {
            Kind::Hello => {
                let HelloParts { request, client, name, features } = frame.hello()?;
                let features = (!features.is_empty()).then_some(features);
                let token = match frame.hello_token()? {
                    [] => None,
                    token => Some(Token(token.into())),
                };
                Command::Hello { request, client: client.into(), name: name.into(), features, token }
            }
            Kind::Subscribe | Kind::Update => {
                let record: Subscribe = frame.zero_extended_record(Request::STRIDE)?;
                let (request, patterns) = (record.request, vec![Cow::Borrowed(frame.text()?)]);
                let options = delivery(&record).and_then(|delivery| Ok((delivery, start_position(&record)?)));
                match (frame.kind, options) {
                    (_, Err(error)) => Command::InvalidOption { request, error },
                    (Kind::Update, Ok((delivery, _))) => Command::Update { request, patterns, delivery },
                    (_, Ok((delivery, from))) => Command::Subscribe { request, patterns, delivery, from },
                }
            }
            Kind::Resume => {
                let Resume { epoch, sequence } = frame.record()?;
                let position = Position { epoch, sequence };
                Command::Resume { topic: Cow::Borrowed(frame.text()?), position }
            }
            Kind::Refresh => Command::Refresh {
                request: frame.record::<Request>()?.request,
                token: Token(frame.payload().into()),
            },
            Kind::Unsubscribe => Command::Unsubscribe {
                request: frame.record::<Request>()?.request,
                patterns: vec![Cow::Borrowed(frame.text()?)],
            },
            Kind::Publish => {
                let PublishParts { record, topic, message_id, payload } = frame.publish()?;
                Command::Publish(PublishCommand {
                    request: record.request,
                    topic: Cow::Borrowed(topic),
                    producer_time_ns: record.producer_time_ns,
                    schema: frame.header.schema,
                    payload: Cow::Borrowed(payload),
                    // The client's flag is not trusted: the server validates the payload itself.
                    payload_is_json: false,
                    key: record.key,
                    message_id: Cow::Borrowed(message_id),
                })
            }
            Kind::Ping => Command::Ping { token: frame.record::<records::Token>()?.token },
            Kind::Pong => Command::Pong,
            _ => return Err(DecodeError::UnknownKind(frame.header.kind)),
        })
    }
}

fn delivery(record: &Subscribe) -> Result<Delivery, OptionError> {
    let policy = match record.policy {
        0 => None,
        1 => Some(Policy::Conflate),
        2 => Some(Policy::Drop),
        3 => Some(Policy::Disconnect),
        4 => Some(Policy::Keep),
        other => return Err(OptionError::Policy(other.to_string())),
    };
    let interval_us = match record.max_rate_millihertz {
        0 => 0,
        millihertz => interval_us(f64::from(millihertz) / 1e3)?,
    };
    Ok(Delivery { policy, interval_us })
}

fn start_position(record: &Subscribe) -> Result<StartPosition, OptionError> {
    Ok(match record.from {
        0 => StartPosition::Live,
        1 => StartPosition::Latest,
        2 => StartPosition::After(Position { epoch: record.epoch, sequence: record.sequence }),
        3 if record.sequence == 0 => StartPosition::Resume,
        3 => {
            let moment = Moment { epoch: record.epoch, since_us: record.sequence };
            StartPosition::Since(HashMap::new(), moment)
        }
        other => return Err(OptionError::From(other.to_string())),
    })
}

/// Appends a SUBSCRIBE (default options) or UNSUBSCRIBE frame. Clients and shards send these.
pub fn encode_request(out: &mut Vec<u8>, kind: Kind, request: u32, pattern: &str) {
    let record = Request { request, ..Request::default() };
    super::frame::encode(out, kind, super::frame::HeaderFields::default(), &record, &[pattern.as_bytes()]);
}
