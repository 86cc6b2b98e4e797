//! The sinks on the screen: a line with what waits for each engine, and a notice for each that cannot reach its own.

use super::{
    figures::Figures,
    format,
    grid::{Cell, Tone, sentence},
    responses::SinkEntry,
};

/// Notices about single sinks; the rest is counted.
const NOTICES_MAX: usize = 3;

/// A line about all sinks, fitted into `width`; `None` without any.
pub fn line(figures: &Figures, width: usize) -> Option<Vec<Cell>> {
    let cell = |(at, sink): (usize, &SinkEntry)| {
        let start = if at == 0 { "sinks: " } else { "" };
        let name = format::name(&sink.name);
        let ticks = format::count(sink.ticks_waiting);
        let text = match sink.is_running() {
            true if sink.ticks_waiting == 0 => format!("{start}{name} {}", format::word(&sink.state)),
            true => format!("{start}{name} {ticks} unconfirmed"),
            false => format!("{start}{name} {}", format::word(&sink.state)),
        };
        // The last are left out first.
        (Cell::toned(text, Tone::Bad, !sink.is_running()), u8::try_from(at).unwrap_or(u8::MAX))
    };
    let cells: Vec<(Cell, u8)> = figures.sinks.iter().enumerate().map(cell).collect();
    (!cells.is_empty()).then(|| sentence(cells, width))
}

/// A notice for each sink that does not run: what clients publish to it is refused.
pub fn notices(figures: &Figures) -> Vec<String> {
    let away: Vec<&SinkEntry> = figures.sinks.iter().filter(|sink| !sink.is_running()).collect();
    let notice = |sink: &&SinkEntry| {
        let why = sink.reason.as_deref().map_or(String::new(), |why| format!(" {}", format::reason(why)));
        format!("sink {} is {}{why}", format::name(&sink.name), format::word(&sink.state))
    };
    let mut notices: Vec<String> = away.iter().take(NOTICES_MAX).map(notice).collect();
    if let Some(more) = away.len().checked_sub(NOTICES_MAX).filter(|&more| more > 0) {
        notices.push(format!("and {more} more sinks"));
    }
    notices
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::top::figures::tests::snapshot;

    fn sink(name: &str, state: &str, ticks_waiting: u64) -> SinkEntry {
        let reason = (state != "running").then(|| "for its engine: connection refused".to_owned());
        SinkEntry { name: name.into(), state: state.into(), reason, ticks_waiting }
    }

    fn figures(sinks: Vec<SinkEntry>) -> Figures {
        let mut snapshot = snapshot(100, 1, 1, 1);
        snapshot.server.sinks = sinks;
        Figures::new(None, &snapshot)
    }

    #[test]
    fn each_sink_has_its_state_and_what_waits_for_it() {
        let shown = figures(vec![
            sink("orders", "running", 0),
            sink("bets", "running", 5_000),
            sink("log", "waiting", 0),
        ]);
        let line = |width| -> String {
            super::line(&shown, width).unwrap().into_iter().map(|cell| cell.text).collect()
        };
        assert_eq!(line(100), "sinks: orders running, bets 5,000 unconfirmed, log waiting");
        assert_eq!(line(50), "sinks: orders running, bets 5,000 unconfirmed");
        assert!(super::line(&figures(Vec::new()), 80).is_none());
    }

    #[test]
    fn sinks_without_their_engine_are_named_with_the_reason() {
        let shown = figures((0..5).map(|n| sink(&format!("s{n}"), "waiting", 0)).collect());
        let notices = notices(&shown);
        assert_eq!(notices.len(), 4);
        assert_eq!(notices[0], "sink s0 is waiting for its engine: connection refused");
        assert_eq!(notices[3], "and 2 more sinks");
        assert!(super::notices(&figures(vec![sink("a", "running", 1)])).is_empty());
    }
}
