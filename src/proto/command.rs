//! What a client asks for, in whichever encoding it asked.

use std::borrow::Cow;

use crate::{
    DecodeError,
    frame::{Frame, Kind},
    records::{Request, Resume, Subscribe, Token, WireRecord},
    subscription::{BadOption, Delivery, From, Policy, Position, interval_us},
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
        /// How they are delivered.
        delivery: Delivery,
        /// Where they begin.
        from: From,
    },
    /// Changes how live subscriptions are delivered; each is answered by itself.
    Update {
        /// Named by the answers.
        request: u32,
        /// One pattern or several.
        patterns: Vec<Cow<'a, str>>,
        /// From now on.
        delivery: Delivery,
    },
    /// Names the client's place in a topic, for the subscribe that follows.
    Resume {
        /// The topic.
        topic: Cow<'a, str>,
        /// The last tick the client has of it.
        position: Position,
    },
    /// A request that could be read but asks for what is not to be had.
    Refused {
        /// The request.
        request: u32,
        /// What is wrong.
        error: BadOption,
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
    /// Answers a ping of the server's: a sign of life, whatever its token.
    Pong,
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
    /// The conflation key; 0: none.
    pub key: u64,
}

impl<'a> Command<'a> {
    /// The command of a native frame.
    ///
    /// # Errors
    /// A [`DecodeError`] for kinds that only a server sends (PONG goes both ways), short records, text that is not UTF-8,
    /// and identities that break a rule.
    pub fn from_frame(frame: &Frame<'a>) -> Result<Command<'a>, DecodeError> {
        Ok(match frame.kind {
            Kind::Hello => {
                let (request, client, name) = frame.hello()?;
                Command::Hello { request, client: Cow::Borrowed(client), name: Cow::Borrowed(name) }
            }
            Kind::Subscribe | Kind::Update => {
                let record: Subscribe = frame.grown_record(Request::STRIDE)?;
                let (request, patterns) = (record.request, vec![Cow::Borrowed(frame.text()?)]);
                let options = delivery(&record).and_then(|delivery| Ok((delivery, from(&record)?)));
                match (frame.kind, options) {
                    (_, Err(error)) => Command::Refused { request, error },
                    (Kind::Update, Ok((delivery, _))) => Command::Update { request, patterns, delivery },
                    (_, Ok((delivery, from))) => Command::Subscribe { request, patterns, delivery, from },
                }
            }
            Kind::Resume => {
                let Resume { epoch, sequence } = frame.record()?;
                let position = Position { epoch, sequence };
                Command::Resume { topic: Cow::Borrowed(frame.text()?), position }
            }
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
                    key: record.key,
                })
            }
            Kind::Ping => Command::Ping { token: frame.record::<Token>()?.token },
            Kind::Pong => Command::Pong,
            _ => return Err(DecodeError::UnknownKind(frame.header.kind)),
        })
    }
}

fn delivery(record: &Subscribe) -> Result<Delivery, BadOption> {
    let policy = match record.policy {
        0 => None,
        1 => Some(Policy::Conflate),
        2 => Some(Policy::Drop),
        3 => Some(Policy::Disconnect),
        other => return Err(BadOption::Policy(other.to_string())),
    };
    let interval_us = match record.max_rate_millihertz {
        0 => 0,
        millihertz => interval_us(f64::from(millihertz) / 1e3)?,
    };
    Ok(Delivery { policy, interval_us })
}

fn from(record: &Subscribe) -> Result<From, BadOption> {
    Ok(match record.from {
        0 => From::Live,
        1 => From::Latest,
        2 => From::Position(Position { epoch: record.epoch, sequence: record.sequence }),
        3 => From::Resume,
        other => return Err(BadOption::From(other.to_string())),
    })
}

/// Appends a SUBSCRIBE or UNSUBSCRIBE frame without options, as clients and shards send them.
pub fn encode_request(out: &mut Vec<u8>, kind: Kind, request: u32, pattern: &str) {
    let record = Request { request, ..Request::default() };
    super::frame::encode(out, kind, super::frame::Meta::default(), &record, &[pattern.as_bytes()]);
}
