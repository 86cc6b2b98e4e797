//! Runs a source of any kind on its own thread: start, stop, health, counters, and its end. Sinks share the thread's handle.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    thread::{self, JoinHandle},
};

use super::{Source, SourceContext, SourceError, StopFlag, health::Health, status::SourceStatus};
use tickcast_common::{
    fault::{self, Place},
    panics,
};

/// A source or a sink on its thread.
#[derive(Debug)]
pub struct Running<S> {
    status: S,
    stop: StopFlag,
    thread: JoinHandle<()>,
}

/// A source on its thread.
pub type RunningSource = Running<SourceStatus>;

impl<S> Running<S> {
    /// Starts a thread that ends after `stop`.
    pub(crate) fn start(
        thread_name: String,
        (status, stop): (S, StopFlag),
        run: impl FnOnce() + Send + 'static,
    ) -> io::Result<Running<S>> {
        let thread = thread::Builder::new().name(thread_name).spawn(run)?;
        Ok(Running { status, stop, thread })
    }

    /// Name, health and counters.
    pub fn status(&self) -> &S {
        &self.status
    }

    /// Tells it to stop, without waiting for it. A source then flushes only what fits into the rings. Before a sink is stopped,
    /// no shard may have anything left for it.
    pub fn stop(&self) {
        self.stop.set();
    }

    /// Whether the thread has ended.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the thread to end.
    pub fn join(self) {
        // A panic is caught on the thread, and reported as a failure.
        let _ = self.thread.join();
    }
}

/// Starts a source on its own thread. Calls `on_end` from that thread when the source has ended, failed or panicked.
///
/// # Errors
/// The thread cannot be started.
pub fn start(
    mut source: Box<dyn Source>,
    mut context: SourceContext,
    on_end: impl FnOnce(&'static str, Result<(), SourceError>) + Send + 'static,
) -> io::Result<RunningSource> {
    let (status, stop) = (context.status.clone(), context.stop.clone());
    let kind = status.kind();
    let name = status.name().to_owned();
    let shared = status.clone();
    let run = move || {
        shared.set_health(Health::Running);
        let ended = catch_unwind(AssertUnwindSafe(|| {
            fault::at(Place::Source);
            source.run(&mut context)
        }));
        let result = ended
            .unwrap_or_else(|panic| Err(format!("{name}: panicked: {}", panics::message(&*panic)).into()));
        shared.set_health(match &result {
            Ok(()) => Health::Ended,
            Err(error) => Health::Failed(error.to_string()),
        });
        on_end(kind, result);
    };
    Running::start(format!("source {}", status.name()), (status, stop), run)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::{
        Lanes,
        common::Common,
        health::Waiting,
        waits::{eventually, received},
    };

    struct Scripted<F>(F);

    impl<F: FnMut(&mut SourceContext) -> Result<(), SourceError> + Send> Source for Scripted<F> {
        fn run(&mut self, context: &mut SourceContext) -> Result<(), SourceError> {
            (self.0)(context)
        }
    }

    fn started(
        run: impl FnMut(&mut SourceContext) -> Result<(), SourceError> + Send + 'static,
    ) -> (RunningSource, Receiver<Result<(), String>>) {
        let source = Box::new(Scripted(run));
        let status = SourceStatus::new("scripted", Common::named("scripted"));
        assert_eq!(status.health(), Health::Waiting(Waiting::Shards));
        let context =
            SourceContext::new(Lanes::new(std::iter::empty()), status, Vec::new(), StopFlag::default());
        let (sender, ends) = channel();
        let on_end = move |kind, result: Result<(), SourceError>| {
            assert_eq!(kind, "scripted");
            sender.send(result.map_err(|error| error.to_string())).unwrap();
        };
        (start(source, context, on_end).unwrap(), ends)
    }

    #[test]
    fn a_source_runs_until_it_is_stopped() {
        let (running, ends) = started(|context| {
            context.count_dropped(3);
            while context.sleep_until(u64::MAX) {}
            Ok(())
        });
        running.stop();
        assert_eq!(received("the end", &ends), Ok(()));
        let status = running.status().clone();
        running.join();
        assert_eq!(status.health(), Health::Ended);
        assert_eq!(status.counters().value(tickcast_core::metrics::counters::Counter::SourceTicksDropped), 3);
    }

    #[test]
    fn a_source_that_fails_or_panics_reports_why() {
        let (failed, ends) = started(|_| Err("no such file; name another".into()));
        assert_eq!(received("the end", &ends), Err("no such file; name another".into()));
        let status = failed.status().clone();
        failed.join();
        assert_eq!(status.health().reason().unwrap(), "no such file; name another");
        let (panicked, ends) = started(|_| panic!("number {}", 7));
        assert_eq!(received("the end", &ends), Err("scripted: panicked: number 7".into()));
        panicked.join();
    }

    #[test]
    fn a_waiting_source_says_what_for() {
        let (running, ends) = started(|context| {
            context.wait_for_subscribers(5);
            Ok(())
        });
        eventually("a wait for subscribers", || {
            running.status().health() == Health::Waiting(Waiting::Subscribers(5))
        });
        running.stop();
        assert_eq!(received("the end", &ends), Ok(()));
        running.join();
    }
}
