//! Metrics of the sinks, one series for each: a server has few, and each has a name.

use super::{Scrape, Writer, series};
use crate::sources::health::Health;
use tickcast_core::metrics::counters::Counter;

/// The counters that sinks count, not shards.
const COUNTERS: [Counter; 5] = [
    Counter::SinkTicks,
    Counter::SinkTicksRefused,
    Counter::SinkTicksUnconfirmed,
    Counter::SinkTicksWaiting,
    Counter::SinkConnections,
];

/// Whether sinks count it, not shards.
pub(super) fn are_counted(counter: Counter) -> bool {
    COUNTERS.contains(&counter)
}

/// Appends the families of the sinks; none without sinks.
pub(super) fn sinks(scrape: &Scrape<'_>, writer: &mut Writer) {
    const NAME: &str = "tickcast_sink_state";
    if scrape.sinks.is_empty() {
        return;
    }
    writer.family(NAME, "gauge", "1 for the current state of the sink, 0 for the others.");
    for sink in scrape.sinks {
        let current = sink.status().health().state();
        for state in Health::STATES {
            writer.sample(NAME, &[("sink", &sink.name()), ("state", &state)], u8::from(state == current));
        }
    }
    for counter in COUNTERS {
        let series = series(counter);
        writer.family(&series.family, if counter.is_gauge() { "gauge" } else { "counter" }, &series.help);
        for sink in scrape.sinks {
            let value = sink.status().counters().value(counter);
            writer.sample(&series.family, &[("sink", &sink.name())], value);
        }
    }
}
