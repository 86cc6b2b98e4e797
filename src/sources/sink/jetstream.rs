//! Publishes to JetStream streams. Each tick is confirmed with its position: the sequence in the stream, and an epoch that
//! names the stream and its life.
//!
//! An acknowledgement does not say which life of the stream it is from. So the sink queries the stream at most once a second,
//! and at once when a sequence goes back.

use std::{
    collections::HashMap, convert::Infallible, error::Error, future::IntoFuture, pin::pin, sync::Arc,
    time::Duration,
};

use async_nats::{
    connection::State,
    jetstream::{
        self, Context,
        context::{PublishError, PublishErrorKind},
        message::PublishMessage,
        publish::PublishAck,
    },
};
use futures_util::{
    FutureExt, StreamExt,
    future::{AbortHandle, Either, abortable, select},
    stream::FuturesUnordered,
};
use serde::{Deserialize, Serialize};

use super::{
    Confirmed, Outlet, Publish, PublishId, Writer,
    kind::SinkOptions,
    nats::{ACCEPTED, Subjects},
};
use crate::{
    engine::EngineError,
    kind::OptionChecks,
    limits::{SINK_STREAMS_MAX, SINK_TAKEN_MAX},
    nats::connection::{Auth, Connection, Events},
    tls::Tls,
};
use tickcast_common::clock;
use tickcast_core::routes::Outcome;
use tickcast_proto::logged::log_epoch;

/// Acknowledgements that the client may wait for, including those of ticks that were given up. Beyond that, it blocks.
const ACKS_MAX: usize = 64 << 10;
const _: () = assert!(SINK_TAKEN_MAX < ACKS_MAX);
/// How long the client keeps waiting for an acknowledgement that was given up.
const ABANDONED: Duration = Duration::from_millis(100);
/// Longest time for which what is known about a stream's life is relied on, nanoseconds.
const LOOK_NS: u64 = 1_000_000_000;
/// Time until a stream is queried again after the server gave no answer about it, nanoseconds: each wait holds up the sink.
const LOOK_LATER_NS: u64 = 10_000_000_000;
/// Longest wait for an answer about a stream.
const ANSWER: Duration = Duration::from_secs(2);

/// A `[[sink]]` of kind `jetstream`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Addresses of one cluster: `nats://host:4222`, `tls://host:4222`.
    servers: Vec<String>,
    /// Template of the subject. A stream must capture it.
    subject: String,
    /// Whether messages have the tick's key and time as headers.
    headers: bool,
    auth: Auth,
    tls: Tls,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            servers: vec!["nats://127.0.0.1:4222".into()],
            subject: "{topic}".into(),
            headers: true,
            auth: Auth::default(),
            tls: Tls::default(),
        }
    }
}

impl SinkOptions for Options {
    const KIND: &'static str = "jetstream";
    type Writer = JetStream;

    fn takes_message_ids(&self) -> bool {
        true
    }

    fn configure(self, checks: &mut OptionChecks) -> Option<JetStream> {
        let subjects = Subjects::new(&self.subject, self.headers, checks);
        let connection = Connection::new(Self::KIND, self.servers, self.auth, self.tls, checks);
        Some(JetStream { connection: connection?, subjects: subjects? })
    }
}

/// A configured sink.
#[derive(Clone, Debug)]
pub struct JetStream {
    connection: Connection,
    subjects: Subjects,
}

/// A connection.
pub struct Connected {
    client: async_nats::Client,
    events: Arc<Events>,
}

/// An answer of the server, or the error in its place.
type Acknowledged = (PublishId, String, Result<PublishAck, PublishError>);

impl Writer for JetStream {
    type Connection = Connected;

    async fn connect(&mut self, _: Duration) -> Result<Connected, EngineError> {
        let events = Arc::new(Events::default());
        let client = self.connection.connect(&events).await?;
        Ok(Connected { client, events })
    }

    async fn write(&mut self, connected: Connected, outlet: &mut Outlet) -> Result<Infallible, EngineError> {
        let Connected { client, events } = connected;
        // The outlet bounds what waits, not the client, which would block.
        let context = jetstream::ContextBuilder::new()
            .timeout(outlet.ack_timeout())
            .max_ack_inflight(ACKS_MAX)
            .ack_timeout(ABANDONED)
            .build(client.clone());
        let (mut acks, mut lives) = (FuturesUnordered::new(), Lives::default());
        // For each waiting tick, its subject, and the handle that ends the wait.
        let mut waiting: HashMap<PublishId, (String, AbortHandle)> = HashMap::new();
        loop {
            while let Some(publish) = outlet.take() {
                if let Some((id, subject, ack)) = self.send(&context, publish, outlet).await? {
                    let (ack, end) = abortable(ack.into_future());
                    waiting.insert(id, (subject, end));
                    acks.push(async move { (id, ack.await) });
                }
            }
            outlet.flush();
            let mut acknowledged = match acks.is_empty() {
                true => {
                    outlet.ready().await;
                    None
                }
                false => match select(acks.next(), pin!(outlet.ready())).await {
                    Either::Left((acknowledged, _)) => Some(acknowledged),
                    Either::Right(_) => None,
                },
            };
            while let Some(Some((id, result))) = acknowledged {
                let subject = waiting.remove(&id).map(|(subject, _)| subject);
                if let (Some(subject), Ok(result)) = (subject, result) {
                    settle((id, subject, result), (&context, &events), &mut lives, outlet).await;
                }
                acknowledged = acks.next().now_or_never();
            }
            if client.connection_state() != State::Connected || events.connections() > 1 {
                let why = events.take_last();
                return Err(EngineError(why.unwrap_or_else(|| "the connection has ended".into())));
            }
            let denied = events.take_denied();
            if !denied.is_empty() {
                refuse_denied(&denied, &mut waiting, outlet);
            }
        }
    }
}

impl JetStream {
    /// Sends a tick. Its acknowledgement comes later; `None` if it is settled already.
    async fn send(
        &self,
        context: &Context,
        publish: Publish,
        outlet: &mut Outlet,
    ) -> Result<Option<(PublishId, String, jetstream::context::PublishAckFuture)>, EngineError> {
        let subject = match self.subjects.subject(&publish) {
            Ok(subject) => subject,
            Err(why) => {
                let why_not = format_args!("topic {:?}: {why}", publish.topic);
                outlet.fail_because(publish.id, why.outcome(), &why_not);
                return Ok(None);
            }
        };
        let mut message = PublishMessage::build();
        if let Some(headers) = self.subjects.headers(&publish) {
            message = message.headers(headers);
        }
        if let Some(message_id) = publish.message_id {
            // Kept by the stream for its `duplicate_window`.
            message = message.message_id(format!("{:032x}", u128::from_be_bytes(message_id)));
        }
        let id = publish.id;
        let message = message.payload(publish.payload.into());
        match tokio::time::timeout(ACCEPTED, context.send_publish(subject.clone(), message)).await {
            Ok(Ok(ack)) => Ok(Some((id, subject, ack))),
            Ok(Err(error)) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                outlet.fail_because(id, Outcome::Refused, &error);
                Ok(None)
            }
            Ok(Err(error)) => Err(EngineError::new("publish", error)),
            Err(_) => Err(EngineError("the server takes nothing".into())),
        }
    }
}

/// Settles the ticks of subjects that the server does not permit to publish on: they get no acknowledgement.
fn refuse_denied(
    denied: &[String],
    waiting: &mut HashMap<PublishId, (String, AbortHandle)>,
    outlet: &mut Outlet,
) {
    waiting.retain(|id, (subject, end)| {
        let is_denied = denied.contains(subject);
        if is_denied {
            end.abort();
            let why = format_args!("NATS does not permit to publish on {subject:?}");
            outlet.fail_because(*id, Outcome::Refused, &why);
        }
        !is_denied
    });
}

async fn settle(
    (id, subject, result): Acknowledged,
    engine: (&Context, &Events),
    lives: &mut Lives,
    outlet: &mut Outlet,
) {
    let error = match result {
        Ok(ack) => {
            let epoch = lives.epoch(engine, &ack).await;
            let sequence = if epoch == 0 { 0 } else { ack.sequence };
            outlet.confirm(id, Confirmed { epoch, sequence, is_duplicate: ack.duplicate });
            return;
        }
        Err(error) => error,
    };
    let cause = || error.source().map_or_else(|| error.to_string(), ToString::to_string);
    match outcome_of(&error) {
        Outcome::NoStream => {
            outlet.fail_because(id, Outcome::NoStream, &format_args!("no stream takes {subject:?}"));
        }
        Outcome::Refused => {
            outlet.fail_because(id, Outcome::Refused, &format_args!("{subject:?}: {}", cause()));
        }
        outcome => outlet.fail(id, outcome),
    }
}

/// What an error in place of an acknowledgement says about the tick. Only an error of JetStream itself says that it is not
/// stored: the client also gives one for an answer that it cannot read.
fn outcome_of(error: &PublishError) -> Outcome {
    match error.kind() {
        PublishErrorKind::StreamNotFound => Outcome::NoStream,
        _ if error.source().is_some_and(|cause| cause.is::<jetstream::Error>()) => Outcome::Refused,
        _ => Outcome::Unconfirmed,
    }
}

/// The lives of the streams that have acknowledged ticks. Bound: [`SINK_STREAMS_MAX`].
#[derive(Default)]
struct Lives(HashMap<String, Life>);

#[derive(Clone, Copy)]
struct Life {
    /// 0 if the server does not say.
    epoch: u64,
    /// The highest sequence acknowledged.
    sequence: u64,
    /// When the stream is to be checked again, a time of [`clock::monotonic_ns`].
    look_ns: u64,
}

impl Life {
    /// Whether an acknowledgement can be from this life, as far as it shows.
    fn has(&self, ack: &PublishAck) -> bool {
        self.epoch == 0 || ack.sequence > self.sequence || ack.duplicate
    }
}

impl Lives {
    /// The epoch of an acknowledgement; 0 if it is not known.
    async fn epoch(&mut self, (context, events): (&Context, &Events), ack: &PublishAck) -> u64 {
        if let Some(life) = self.0.get_mut(&ack.stream)
            && clock::monotonic_ns() < life.look_ns
            && life.has(ack)
        {
            life.sequence = life.sequence.max(ack.sequence);
            return life.epoch;
        }
        if self.0.len() >= SINK_STREAMS_MAX && !self.0.contains_key(&ack.stream) {
            return 0;
        }
        let asked = format!("$JS.API.STREAM.INFO.{}", ack.stream);
        let look = tokio::time::timeout(ANSWER, context.get_stream(&ack.stream));
        // A request that the server does not permit gets no answer.
        let (epoch, pause_ns) = match select(pin!(look), pin!(events.denied(&asked))).await {
            Either::Left((Ok(Ok(found)), _)) => {
                let info = found.cached_info();
                let created_ns = info.created.unix_timestamp_nanos();
                match epoch_of(ack, info.state.last_sequence, created_ns) {
                    Some(epoch) => (epoch, LOOK_NS),
                    None => return 0,
                }
            }
            // The stream is gone again, for example: the tick was stored, but its position cannot be named.
            Either::Left((Ok(Err(_)), _)) => (0, LOOK_NS),
            Either::Left((Err(_), _)) | Either::Right(_) => (0, LOOK_LATER_NS),
        };
        let look_ns = clock::monotonic_ns().saturating_add(pause_ns);
        self.0.insert(ack.stream.clone(), Life { epoch, sequence: ack.sequence, look_ns });
        epoch
    }
}

/// The epoch of a stream's life, unless the acknowledgement is older: the stream was recreated after it, and has not come as
/// far.
fn epoch_of(ack: &PublishAck, last_sequence: u64, created_ns: i128) -> Option<u64> {
    (ack.sequence <= last_sequence).then(|| log_epoch(Options::KIND, &ack.stream, &created_ns.to_le_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgement_of_a_life_that_is_over_does_not_get_the_epoch_of_the_next() {
        let ack = |sequence| PublishAck { stream: "ORDERS".into(), sequence, ..PublishAck::default() };
        let epoch = epoch_of(&ack(7), 7, 1_793_322_000_000_000_000);
        assert!(epoch.is_some_and(|epoch| epoch > 0));
        assert_eq!(epoch_of(&ack(3), 7, 1_793_322_000_000_000_000), epoch);
        assert_ne!(epoch_of(&ack(3), 7, 1_793_322_000_000_000_001), epoch, "made again");
        assert_eq!(epoch_of(&ack(8), 7, 1_793_322_000_000_000_001), None);
    }

    #[test]
    fn only_an_error_of_jetstream_itself_says_that_a_tick_is_not_stored() {
        let unreadable = serde_json::from_slice::<PublishAck>(b"{").unwrap_err();
        let full = r#"{"code":400,"err_code":10077,"description":"maximum messages exceeded"}"#;
        let full: jetstream::Error = serde_json::from_str(full).unwrap();
        for (error, outcome) in [
            (PublishError::with_source(PublishErrorKind::Other, unreadable), Outcome::Unconfirmed),
            (PublishError::with_source(PublishErrorKind::Other, full), Outcome::Refused),
            (PublishErrorKind::Other.into(), Outcome::Unconfirmed),
            (PublishErrorKind::TimedOut.into(), Outcome::Unconfirmed),
            (PublishErrorKind::BrokenPipe.into(), Outcome::Unconfirmed),
            (PublishErrorKind::StreamNotFound.into(), Outcome::NoStream),
        ] {
            assert_eq!(outcome_of(&error), outcome, "{error:?}");
        }
    }

    #[test]
    fn a_sequence_that_goes_back_may_be_of_another_life() {
        let ack = |sequence, duplicate| PublishAck { sequence, duplicate, ..PublishAck::default() };
        let known = Life { epoch: 9, sequence: 5, look_ns: 0 };
        assert!(known.has(&ack(6, false)) && known.has(&ack(2, true)));
        assert!(!known.has(&ack(5, false)) && !known.has(&ack(1, false)));
        assert!(Life { epoch: 0, ..known }.has(&ack(1, false)), "nothing to mistake");
    }
}
