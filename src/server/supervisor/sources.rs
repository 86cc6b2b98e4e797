//! Starts and stops the sources.

use super::{Event, Server};
use crate::{
    clock,
    config::Config,
    error::StartupError,
    limits::SOURCES_STOP_MS_MAX,
    sources::{self, Lanes, RunningSource, SourceContext, StopFlag},
};

/// Interval at which a stopping server checks whether its sources have ended.
const SOURCES_POLL_NS: u64 = 1_000_000;

impl Server {
    /// Stops the sources, and waits for them at most [`SOURCES_STOP_MS_MAX`]: one may be stuck in a system call, such as a
    /// read from a file system that has gone away.
    pub(super) fn stop_sources(&mut self) {
        self.sources.iter().for_each(RunningSource::stop);
        let give_up_ns = clock::monotonic_ns() + SOURCES_STOP_MS_MAX * 1_000_000;
        while clock::monotonic_ns() < give_up_ns && !self.sources.iter().all(RunningSource::has_ended) {
            clock::sleep_ns(SOURCES_POLL_NS);
        }
        for source in self.sources.drain(..) {
            match source.has_ended() {
                true => source.join(),
                false => {
                    ::log::warn!("source {} does not end: it ends with the process", source.status().name())
                }
            }
        }
    }

    pub(super) fn start_sources(&mut self, config: &Config, lanes: Vec<Lanes>) -> Result<(), StartupError> {
        self.sources_started_ns = clock::monotonic_ns();
        for ((source, lanes), status) in config.sources.iter().zip(lanes).zip(&self.source_statuses) {
            let context =
                SourceContext::new(lanes, status.clone(), self.counters.clone(), StopFlag::default());
            let event_sender = self.event_sender.clone();
            let on_end = move |kind, result| drop(event_sender.send(Event::SourceEnded(kind, result)));
            let running = sources::start(source.build(), context, on_end);
            self.sources.push(running.map_err(|error| StartupError::Executor(error.to_string()))?);
        }
        Ok(())
    }
}
