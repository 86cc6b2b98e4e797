//! Latency reports, and the totals at the end.

use super::{Event, Server};
use crate::{
    logging,
    operator::control::{Dispatch, ReplySender, ShardRequest},
    sources::SourceStatus,
};
use tickcast_core::{
    metrics::{
        counters::Counter,
        latency::{self, Latency},
    },
    shard::survey::ShardState,
};
use tickcast_proto::ids::ShardId;

impl Server {
    /// Requests the latencies of every shard.
    pub(super) fn request_report(&mut self) {
        let event_sender = self.event_sender.clone();
        let request = move |shard: ShardId| {
            let replies = event_sender.clone();
            ShardRequest::State(ReplySender::always_open(move |state: Box<ShardState>| {
                drop(replies.send(Event::Latency(shard, Box::new(state.latency))));
            }))
        };
        let full = self.control.send(Dispatch { to: None, request: Box::new(request) });
        if let Some(shard) = full.first() {
            ::log::warn!("SIGUSR1: no report, because shard {} has too many requests; try again", shard.0);
        }
    }

    /// Prints latencies to standard error, whatever the log level: the operator asked for them.
    pub(super) fn print_report(&self, latencies: &[Option<Box<Latency>>]) {
        let rows: Vec<_> = latencies
            .iter()
            .zip(&self.counters)
            .enumerate()
            .filter_map(|(shard, (latency, counters))| {
                latency.as_deref().map(|latency| (shard, latency::busy_percent(counters), latency))
            })
            .collect();
        logging::print(&latency::table(&rows));
    }

    pub(super) fn log_totals(&self) {
        for &counter in Counter::ALL {
            let sources = self.source_statuses.iter().map(SourceStatus::counters);
            let sources = sources.chain(self.sink_statuses.iter().map(|sink| sink.status().counters()));
            let all = self.counters.iter().map(|counters| &**counters).chain(sources);
            let total: u64 = all.map(|counters| counters.value(counter)).fold(0, u64::wrapping_add);
            if total > 0 {
                ::log::info!("total {} {total} {}", counter.label(), counter.unit());
            }
        }
    }
}
