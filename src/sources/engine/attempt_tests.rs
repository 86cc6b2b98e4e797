//! What an attempt to read an engine leaves behind: its panics, its waits and its end.

use std::{collections::VecDeque, pin::Pin, sync::Arc, thread};

use super::*;
use crate::{
    Lanes, SourceStatus,
    common::Common,
    kind::{OptionChecks, SourceBounds},
    mapping::{Headers, MapOptions},
    waits::{eventually, joined},
};
use tickcast_core::mesh::ring::{Doorbell, FrameConsumer, frame_ring};

fn message() -> Message<'static> {
    Message { subject: "t", key: Some("1"), headers: &(), payload: b"1", time_ns: None }
}

fn mapping(id: &str) -> Mapping {
    let bounds = SourceBounds { payload_bytes_max: 64, topics_max: 10, reads_files: true };
    let options = MapOptions { id: id.into(), ..MapOptions::default() };
    Mapping::new(&options, &mut OptionChecks::new(bounds)).unwrap()
}

/// Runs attempts with these functions, one after another, on a thread until the last one is stopped. Returns its status and
/// what stops it.
fn run_attempts(
    ring_bytes: usize,
    reads_back: bool,
    attempts: Vec<Attempt>,
) -> (SourceStatus, FrameConsumer, impl FnOnce()) {
    let (producer, consumer): (_, FrameConsumer) = frame_ring(ring_bytes);
    let lanes = Lanes::new([(producer, Arc::new(Doorbell::new(|| {})))].into_iter());
    let status = SourceStatus::new("nats", Common::named("a"));
    status.set_reading_back(reads_back);
    let stop = StopFlag::default();
    let mut context = SourceContext::new(lanes, status.clone(), Vec::new(), stop.clone());
    let mut reader = Scripted(attempts.into());
    let source = thread::spawn(move || run(&mut context, mapping("{key}"), &mut reader).unwrap());
    let end = move || {
        stop.set();
        joined("the source", source);
    };
    (status, consumer, end)
}

type Attempt = Box<dyn for<'a> FnMut(&'a mut Ingest<'_>) -> Pin<Box<dyn Future<Output = ()> + 'a>> + Send>;

fn scripted(
    attempt: impl for<'a> FnMut(&'a mut Ingest<'_>) -> Pin<Box<dyn Future<Output = ()> + 'a>> + Send + 'static,
) -> Attempt {
    Box::new(attempt)
}

struct Scripted(VecDeque<Attempt>);

impl Reader for Scripted {
    async fn read(&mut self, ingest: &mut Ingest<'_>) -> Result<Infallible, EngineError> {
        match self.0.pop_front() {
            Some(mut attempt) => attempt(ingest).await,
            None => pending().await,
        }
        Err(EngineError("the connection has ended".into()))
    }
}

#[test]
fn a_panic_of_a_client_ends_the_attempt_and_not_the_source() {
    let (status, _consumer, end) = run_attempts(
        1 << 16,
        false,
        vec![
            scripted(|ingest| {
                Box::pin(async move {
                    ingest.connected("an engine");
                    ingest.take(message()).await;
                    panic!("a header that cannot be");
                })
            }),
            scripted(|ingest| {
                Box::pin(async move {
                    ingest.take(message()).await;
                    pending().await
                })
            }),
        ],
    );
    eventually("the ticks of both attempts", || status.counters().value(Counter::SourceTicks) == 2);
    let error = status.last_error().unwrap().text;
    assert!(error.contains("panicked: a header that cannot be"), "{error}");
    assert_eq!(status.counters().value(Counter::SourceMessagesLost), 0, "none was in hand");
    assert!(matches!(status.health(), Health::Waiting(Waiting::Engine(_))));
    end();
    let mut was_read = false;
    let mut blocking = Panics(&mut was_read);
    let (producer, _consumer) = frame_ring(1 << 16);
    let lanes = Lanes::new([(producer, Arc::new(Doorbell::new(|| {})))].into_iter());
    let status = SourceStatus::new("kafka", Common::named("a"));
    let mut context = SourceContext::new(lanes, status.clone(), Vec::new(), StopFlag::default());
    run_blocking(&mut context, mapping("{header:H}"), &mut blocking);
    assert_eq!(status.counters().value(Counter::SourceMessagesLost), 1, "one was in hand");
}

/// Panics with a message in hand, then ends.
struct Panics<'a>(&'a mut bool);

impl BlockingReader for Panics<'_> {
    fn read(&mut self, ingest: &mut Ingest<'_>) -> Result<Stopped, EngineError> {
        if std::mem::replace(self.0, true) {
            return Ok(Stopped);
        }
        struct Bad;
        impl Headers for Bad {
            fn value(&self, _: &str) -> Option<&str> {
                panic!("a header that cannot be")
            }
        }
        let message = Message { headers: &Bad, ..message() };
        ingest.take_blocking(message).map(|()| Stopped).map_err(|_| EngineError("stopped".into()))
    }
}

#[test]
fn a_wait_for_a_ring_is_no_lag_and_no_silence_and_brings_no_lost_engine_back() {
    let lost = Health::Waiting(Waiting::Engine("the connection has ended".into()));
    let before = lost.clone();
    let (status, mut consumer, end) = run_attempts(
        1 << 12,
        false,
        vec![scripted(move |ingest| {
            let before = before.clone();
            Box::pin(async move {
                ingest.context.set_health(before);
                loop {
                    let (time_ns, from_ns) = (clock::realtime_ns(), clock::monotonic_ns());
                    ingest.take(Message { time_ns: Some(time_ns), payload: &[0; 64], ..message() }).await;
                    let waited_ns = ingest.context.status.counters().value(Counter::SourceWaitNs);
                    if waited_ns > 0 {
                        let heard_ns = ingest.context.status.heard_ns().unwrap();
                        assert!(heard_ns >= from_ns + waited_ns, "the feed was not silent");
                        ingest.flush();
                        let age_ns = clock::realtime_ns() - time_ns;
                        let lag_ns = ingest.context.status.lag_ns().unwrap();
                        // The two clocks may differ a little.
                        assert!(lag_ns <= age_ns.saturating_sub(waited_ns) + 100_000, "{lag_ns} {age_ns}");
                        ingest.context.status.set_last_error("checked");
                        return pending().await;
                    }
                }
            })
        })],
    );
    eventually("a wait for room", || matches!(status.health(), Health::Waiting(Waiting::Room(_))));
    clock::sleep_ns(5_000_000);
    eventually("the check of the attempt", || {
        consumer.drain(1 << 16, |_| true);
        status.last_error().is_some()
    });
    assert_eq!(status.last_error().unwrap().text, "checked");
    assert_eq!(status.health(), lost);
    end();
}

#[test]
fn a_batch_is_pushed_whole() {
    let (status, mut consumer, end) = run_attempts(
        1 << 20,
        false,
        vec![scripted(|ingest| {
            Box::pin(async move {
                for _ in 0..BATCH_MESSAGES {
                    ingest.take(message()).await;
                }
                ingest.flush();
                pending().await
            })
        })],
    );
    eventually("a batch", || status.counters().value(Counter::SourceTicks) == u64::from(BATCH_MESSAGES));
    end();
    let mut ticks = 0;
    consumer.drain(1 << 20, |_| {
        ticks += 1;
        true
    });
    assert_eq!(ticks, BATCH_MESSAGES);
}

#[test]
fn a_source_that_stops_for_good_does_not_keep_the_server_from_being_ready() {
    let (status, _consumer, end) = run_attempts(
        1 << 16,
        true,
        vec![scripted(|ingest| Box::pin(async move { ingest.stop("an id does not fit").await }))],
    );
    eventually("the end for good", || matches!(status.health(), Health::Failed(_)));
    assert!(!status.is_reading_back());
    end();
}
