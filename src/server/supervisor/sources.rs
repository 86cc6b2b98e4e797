//! Starts and stops the sources.

use super::{Event, Server, rings::SourceRings};
use crate::{
    clock,
    config::Config,
    error::StartupError,
    limits::SOURCES_STOP_MS_MAX,
    sources::{self, Running, SourceContext, StopFlag},
};

/// Interval at which a stopping server checks whether its sources and sinks have ended.
const POLL_NS: u64 = 1_000_000;

/// Stops sources or sinks, and waits for them at most [`SOURCES_STOP_MS_MAX`]. Says which have not ended by then.
pub(super) fn stop_all<S>(running: &mut Vec<Running<S>>, name: impl Fn(&S) -> String) {
    running.iter().for_each(Running::stop);
    let give_up_ns = clock::monotonic_ns() + SOURCES_STOP_MS_MAX * 1_000_000;
    while clock::monotonic_ns() < give_up_ns && !running.iter().all(Running::has_ended) {
        clock::sleep_ns(POLL_NS);
    }
    for one in running.drain(..) {
        match one.has_ended() {
            true => one.join(),
            false => ::log::warn!(
                "{} did not stop in time; it is abandoned and ends with the process",
                name(one.status())
            ),
        }
    }
}

impl Server {
    /// Stops the sources. One may be stuck in a system call, such as a read from a file system that has gone away.
    pub(super) fn stop_sources(&mut self) {
        stop_all(&mut self.sources, |source| format!("source {}", source.name()));
    }

    pub(super) fn start_sources(
        &mut self,
        config: &Config,
        rings: Vec<SourceRings>,
    ) -> Result<(), StartupError> {
        self.sources_started_ns = clock::monotonic_ns();
        for ((source, (lanes, demand)), status) in config.sources.iter().zip(rings).zip(&self.source_statuses)
        {
            let context =
                SourceContext::new(lanes, status.clone(), self.counters.clone(), StopFlag::default())
                    .with_demand(demand);
            let event_sender = self.event_sender.clone();
            let on_end = move |kind, result| drop(event_sender.send(Event::SourceEnded(kind, result)));
            let running = sources::start(source.build(), context, on_end);
            self.sources.push(running.map_err(|error| StartupError::Executor(error.to_string()))?);
        }
        Ok(())
    }
}
