//! Reads the past of a stream whose sequences are the positions of topics.
//!
//! The whole stream is read, as by the source, so that a message that was deleted shows as a jump.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, Consumer, DeliverPolicy, pull},
    stream::Stream,
};
use futures_util::StreamExt;

use super::{BATCH_MESSAGES, INACTIVE, life_epoch};
use crate::{
    engine::EngineError,
    log_reader::{LIFE_GONE, LogAccess, Opened, ReadMessages},
    mapping::Message,
    nats::connection::{Connection, Events, Fields},
};
use tickcast_proto::pattern;

/// Longest wait for a batch, and for the next message of it: a stopped server gives none.
const ANSWER: Duration = Duration::from_secs(2);

/// Access to the past of a stream.
#[derive(Clone, Debug)]
pub(super) struct Past {
    pub(super) connection: Connection,
    pub(super) stream: String,
    /// Subjects of the source; empty: all.
    pub(super) subjects: Vec<String>,
    client: Option<jetstream::Context>,
    /// What the client reports.
    events: Arc<Events>,
    open: Option<Open>,
}

#[derive(Clone, Debug)]
struct Open {
    stream: Stream,
    consumer: Consumer<pull::Config>,
    /// The next sequence.
    next: u64,
    /// Messages received that have not been passed on.
    held: Vec<jetstream::Message>,
}

impl Past {
    pub(super) fn new(connection: Connection, stream: String, subjects: Vec<String>) -> Past {
        Past { connection, stream, subjects, client: None, events: Arc::default(), open: None }
    }

    /// Deletes the consumer, best effort. Otherwise the server keeps it until it has been inactive for a while.
    async fn end(&mut self) {
        if let Some(Open { stream, consumer, .. }) = self.open.take() {
            let _ = tokio::time::timeout(ANSWER, stream.delete_consumer(&consumer.cached_info().name)).await;
        }
    }
}

impl Open {
    /// Receives the next messages, if there are any.
    async fn receive(&mut self) -> Result<(), EngineError> {
        let late = |_| EngineError("read the stream: no answer".into());
        let fetch = self.consumer.fetch().max_messages(BATCH_MESSAGES).messages();
        let batch = tokio::time::timeout(ANSWER, fetch).await.map_err(late)?;
        let mut batch = batch.map_err(|error| EngineError::new("read the stream", error))?;
        while let Some(message) = tokio::time::timeout(2 * ANSWER, batch.next()).await.map_err(late)? {
            self.held.push(message.map_err(|error| EngineError::new("read the stream", error))?);
        }
        Ok(())
    }

    /// Sequence of the first message that has been received.
    fn first(&self) -> Option<u64> {
        self.held.first()?.info().ok().map(|info| info.stream_sequence)
    }
}

impl LogAccess for Past {
    async fn open(&mut self, epoch: u64, from: u64) -> Result<Opened, EngineError> {
        let opened = self.open_at(epoch, from).await;
        opened.map_err(|error| self.events.explain(error))
    }

    async fn read(&mut self, into: &mut ReadMessages<'_>) -> Result<Option<u64>, EngineError> {
        let read = self.pass_on(into).await;
        read.map_err(|error| self.events.explain(error))
    }

    async fn close(&mut self) {
        self.end().await;
        self.client = None;
    }
}

impl Past {
    async fn open_at(&mut self, epoch: u64, from: u64) -> Result<Opened, EngineError> {
        self.end().await;
        let context = match &self.client {
            Some(context) => context.clone(),
            None => {
                self.events = Arc::default();
                let client = self.connection.connect(&self.events).await?;
                self.client.insert(jetstream::new(client)).clone()
            }
        };
        let found = context.get_stream(&self.stream).await;
        let stream = found.map_err(|error| EngineError::new(&format!("stream {}", self.stream), error))?;
        let info = stream.cached_info();
        let is_same_life = life_epoch(&self.stream, info.created.unix_timestamp_nanos(), 0) == epoch;
        // A stream that was set back has other messages at the same sequences.
        if !is_same_life || from > info.state.last_sequence {
            return Ok(LIFE_GONE);
        }
        if from < info.state.first_sequence {
            return Ok(Opened::Gone { first: info.state.first_sequence });
        }
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
            ack_policy: AckPolicy::None,
            memory_storage: true,
            inactive_threshold: INACTIVE,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await;
        let consumer = consumer.map_err(|error| EngineError::new("create a consumer", error))?;
        let open = self.open.insert(Open { stream, consumer, next: from, held: Vec::new() });
        open.receive().await?;
        Ok(match open.first() {
            Some(first) if first == from => Opened::AtPosition,
            first => Opened::Gone { first: first.unwrap_or(u64::MAX) },
        })
    }

    async fn pass_on(&mut self, into: &mut ReadMessages<'_>) -> Result<Option<u64>, EngineError> {
        let Some(open) = &mut self.open else { return Ok(None) };
        if open.held.is_empty() {
            open.receive().await?;
        }
        let before = open.next;
        for message in open.held.drain(..) {
            let Ok(info) = message.info() else { continue };
            if info.stream_sequence != open.next {
                break;
            }
            open.next += 1;
            let subject = &*message.subject;
            let is_wanted = self.subjects.is_empty()
                || self.subjects.iter().any(|wanted| pattern::matches(wanted, subject));
            if !is_wanted {
                into.skip();
                continue;
            }
            let tick = Message {
                subject,
                key: None,
                headers: &Fields(message.headers.as_ref()),
                payload: &message.payload,
                time_ns: info.published.unix_timestamp_nanos().try_into().ok(),
            };
            into.take(info.stream_sequence, tick);
        }
        Ok((open.next > before).then_some(open.next))
    }
}
