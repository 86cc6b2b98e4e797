//! The output of `tickcast top --once`: the same figures as text of any width, nothing truncated.

use std::fmt::Write;

use super::{
    grid::{Cell, Grid},
    model::{Model, Panel},
    sinks, sources, tenants, view,
};
use crate::limits::TOP_ROWS_ONCE;

/// Wider than any line.
const ANY_WIDTH: usize = 1 << 20;

/// Formats all figures: every shard, and the first [`TOP_ROWS_ONCE`] topics and sessions.
pub fn text(model: &Model) -> String {
    let mut text = String::new();
    debug_assert!(model.figures.is_some(), "called after a successful poll");
    let Some(figures) = &model.figures else { return text };
    for cells in view::header(model, ANY_WIDTH) {
        line(&mut text, cells);
    }
    let lines = [sources::line, sinks::line, tenants::line];
    for cells in lines.into_iter().filter_map(|of| of(figures, ANY_WIDTH)) {
        line(&mut text, cells);
    }
    let unanswered = view::unanswered_notice(figures).into_iter();
    let over = view::over_limits(figures, ANY_WIDTH);
    for notice in unanswered.chain(sources::notices(figures)).chain(sinks::notices(figures)).chain(over) {
        let _ = writeln!(text, "{notice}");
    }
    text.push('\n');
    match &figures.latency {
        Ok(latency) => grid(&mut text, &Grid::latency(latency, figures.seconds, usize::MAX)),
        Err(reason) => drop(writeln!(text, "latency: {reason}")),
    }
    for panel in Panel::ALL {
        let rows = match panel {
            Panel::Shards => model.rows(panel),
            Panel::Topics | Panel::Sessions => model.rows(panel).min(TOP_ROWS_ONCE),
        };
        let _ = writeln!(text, "\n{}", view::title(model, figures, panel));
        match view::panel_grid(figures, panel, 0..rows, ANY_WIDTH) {
            Ok(found) => {
                grid(&mut text, &found);
                if let Some(more) = view::more(figures, panel, rows) {
                    let _ = writeln!(text, "{more}");
                }
            }
            Err(reason) => drop(writeln!(text, "{reason}")),
        }
    }
    text
}

fn grid(text: &mut String, grid: &Grid) {
    grid.lines(ANY_WIDTH).into_iter().for_each(|cells| line(text, cells));
}

fn line(text: &mut String, cells: Vec<Cell>) {
    let line: String = cells.into_iter().map(|cell| cell.text).collect();
    let _ = writeln!(text, "{}", line.trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::top::{figures::tests::snapshot, responses::Snapshot};
    use tickcast_core::now::Now;

    fn once(first: Snapshot, second: Snapshot) -> String {
        let mut model = Model::new("127.0.0.1:9490".into(), 1_000);
        for snapshot in [first, second] {
            model.handle_poll(Ok(snapshot), Now { monotonic_ns: 1, realtime_ns: 1 });
        }
        text(&model)
    }

    #[test]
    fn the_text_names_every_figure() {
        let text = once(snapshot(3_600, 2, 30, 50), snapshot(3_601, 2, 30, 50));
        let mut lines = text.lines();
        assert_eq!(
            lines.next(),
            Some(
                "tickcast 0.1.0 at 127.0.0.1:9490: serving, up 1 h 0 min, 12.0 MiB resident, 99 descriptors"
            )
        );
        assert_eq!(
            lines.next(),
            Some(
                "50 sessions, 50 subscribed, 200 ticks/s in, 10,000 deliveries/s, 3.00 MB/s, 4.0 dropped/s, 6.0 conflated/s"
            )
        );
        for line in [
            "latency, last 1.0 s           p50       p90       p99     p99.9       max    samples",
            "received to sent            20 us     20 us     20 us     20 us     20 us        100",
            "topics by rate: 30",
            "market.29            30      108,030         7     0       16       0    4.0 KiB",
            "and 10 more",
            "sessions by outbox: 50",
            "and 30 more",
        ] {
            assert!(text.lines().any(|has| has == line), "{line}\n{text}");
        }
        assert!(!text.contains('\x1b') && text.ends_with('\n'));
    }

    #[test]
    fn a_starting_server_has_the_reason_in_place_of_rows() {
        let starting = |seconds| {
            let mut snapshot = snapshot(seconds, 1, 1, 1);
            snapshot.server.stage = "starting".into();
            snapshot.topics = Err("starting".into());
            snapshot.sessions = Err("starting".into());
            snapshot.latency = Err("starting".into());
            snapshot
        };
        let text = once(starting(1), starting(2));
        assert!(text.contains(": starting, up 2 s"), "{text}");
        assert!(text.contains("\nlatency: starting\n"), "{text}");
        assert!(text.contains("\ntopics by rate\nstarting\n"), "{text}");
    }
}
