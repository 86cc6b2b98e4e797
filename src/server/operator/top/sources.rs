//! The sources on the screen: a line with each one's rate, lag and subscriptions on demand, and a notice for each that cannot be relied on.

use super::{
    figures::Figures,
    format,
    grid::{Cell, Tone, sentence},
    responses::SourceEntry,
};

/// Notices about single sources; the rest is counted.
const NOTICES_MAX: usize = 3;

/// A line about all sources, fitted into `width`; `None` without any.
pub fn line(figures: &Figures, width: usize) -> Option<Vec<Cell>> {
    let cell = |(at, source): (usize, &SourceEntry)| {
        let start = if at == 0 { "sources: " } else { "" };
        let text = format!("{start}{}", words(source));
        // The last are left out first.
        (Cell::toned(text, Tone::Bad, source.unfit.is_some()), u8::try_from(at).unwrap_or(u8::MAX))
    };
    let cells: Vec<(Cell, u8)> = figures.sources.iter().enumerate().map(cell).collect();
    (!cells.is_empty()).then(|| sentence(cells, width))
}

fn words(source: &SourceEntry) -> String {
    let name = format::name(&source.name);
    let how = match &source.unfit {
        Some(unfit) => format::word(unfit),
        None if !source.active => "standby".into(),
        None => format!("{}/s", format::rate(source.ticks_per_second)),
    };
    let behind = source.lag_messages.unwrap_or(0);
    let figures =
        [(behind, "behind"), (source.subscriptions, "subscribed"), (source.prefixes_whole, "whole")];
    let figures = figures.into_iter().filter(|&(count, _)| count > 0);
    let figures: Vec<String> = figures.map(|(count, of)| format!("{} {of}", format::count(count))).collect();
    match figures.is_empty() {
        true => format!("{name} {how}"),
        false => format!("{name} {how} ({})", figures.join(", ")),
    }
}

/// A notice for each source that cannot be relied on.
pub fn notices(figures: &Figures) -> Vec<String> {
    let unfit: Vec<&SourceEntry> = figures.sources.iter().filter(|source| source.unfit.is_some()).collect();
    let notice = |source: &&SourceEntry| {
        let unfit = source.unfit.as_deref().map_or(String::new(), format::word);
        let reason =
            source.reason.as_deref().map_or(String::new(), |why| format!(": {}", format::reason(why)));
        format!("source {} is {unfit}{reason}", format::name(&source.name))
    };
    let mut notices: Vec<String> = unfit.iter().take(NOTICES_MAX).map(notice).collect();
    if let Some(more) = unfit.len().checked_sub(NOTICES_MAX).filter(|&more| more > 0) {
        notices.push(format!("and {more} more sources"));
    }
    notices
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::top::figures::tests::snapshot;

    fn source(name: &str, unfit: Option<&str>) -> SourceEntry {
        SourceEntry {
            name: name.into(),
            reason: unfit.map(|_| "for its engine: refused".into()),
            unfit: unfit.map(str::to_owned),
            active: true,
            ticks_per_second: 1_234.0,
            lag_messages: None,
            subscriptions: 0,
            prefixes_whole: 0,
        }
    }

    fn figures(sources: Vec<SourceEntry>) -> Figures {
        let mut snapshot = snapshot(100, 1, 1, 1);
        snapshot.server.sources = sources;
        Figures::new(None, &snapshot)
    }

    fn text(cells: Vec<Cell>) -> String {
        cells.into_iter().map(|cell| cell.text).collect()
    }

    #[test]
    fn each_source_has_its_rate_and_what_it_is_behind_with() {
        let behind = SourceEntry { lag_messages: Some(5_000), ..source("kafka", None) };
        let standby = SourceEntry { active: false, ..source("nats-2", None) };
        let shown = figures(vec![source("nats", None), behind, standby, source("ecg", Some("stale"))]);
        let line = |width| text(line(&shown, width).unwrap());
        assert_eq!(
            line(100),
            "sources: nats 1,234/s, kafka 1,234/s (5,000 behind), nats-2 standby, ecg stale"
        );
        assert_eq!(line(60), "sources: nats 1,234/s, kafka 1,234/s (5,000 behind)");
        assert!(super::line(&figures(Vec::new()), 80).is_none());
    }

    #[test]
    fn a_source_on_demand_shows_how_many_subscriptions_it_has() {
        let some = SourceEntry { subscriptions: 1_200, ..source("nats", None) };
        let whole =
            SourceEntry { lag_messages: Some(7), subscriptions: 65, prefixes_whole: 1, ..source("md", None) };
        let line = text(line(&figures(vec![some, whole]), 120).unwrap());
        assert_eq!(
            line,
            "sources: nats 1,234/s (1,200 subscribed), md 1,234/s (7 behind, 65 subscribed, 1 whole)"
        );
    }

    #[test]
    fn sources_that_cannot_be_relied_on_are_named_with_the_reason() {
        let shown = figures((0..5).map(|n| source(&format!("s{n}"), Some("down"))).collect());
        let notices = notices(&shown);
        assert_eq!(notices.len(), 4);
        assert_eq!(notices[0], "source s0 is down: for its engine: refused");
        assert_eq!(notices[3], "and 2 more sources");
        assert!(super::notices(&figures(vec![source("a", None)])).is_empty());
    }
}
