//! Tables: the text of each cell, and the choice of columns that fit.

use std::{borrow::Cow, ops::Range};

use ratatui::text::Span;

use super::{
    figures::{Figures, LatencyFigures, Percentiles},
    format::{self, UNKNOWN},
};

/// Space between two columns.
const SPACE: usize = 2;
/// A shard with at least this busy share is highlighted.
const BUSY_PERCENT: f64 = 85.0;
/// From this width on, session addresses have a column of their own.
const ADDRESS_WIDTH_MIN: usize = 110;

/// Below this width, the names of latencies are truncated so that two columns of them fit into 40.
const LATENCY_WIDTH_MIN: usize = 53;

/// How strongly a cell is highlighted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Not highlighted.
    Plain,
    /// Worth attention.
    Notable,
    /// Something was lost.
    Bad,
}

/// A cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Its text.
    pub text: String,
    /// Its highlighting.
    pub tone: Tone,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Cell {
        Cell { text: text.into(), tone: Tone::Plain }
    }
}

impl Cell {
    /// A cell with this tone if `is_toned`, else a plain one.
    pub fn toned(text: String, tone: Tone, is_toned: bool) -> Cell {
        Cell { text, tone: if is_toned { tone } else { Tone::Plain } }
    }
}

/// A column.
#[derive(Clone, Debug)]
struct Column {
    title: Cow<'static, str>,
    /// Wide enough for common values, so that the layout does not jump as they change.
    width_min: usize,
    /// Without enough room, columns with the highest value are dropped first; 0 is never dropped.
    drop_order: u8,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Right-aligned.
    Number,
    /// Left-aligned.
    Word,
    /// Left-aligned, may be truncated.
    Name,
}

const fn number(title: &'static str, width_min: usize, drop_order: u8) -> Column {
    Column { title: Cow::Borrowed(title), width_min, drop_order, kind: Kind::Number }
}

const fn word(title: &'static str, width_min: usize, drop_order: u8) -> Column {
    Column { title: Cow::Borrowed(title), width_min, drop_order, kind: Kind::Word }
}

const fn name(title: &'static str, width_min: usize, drop_order: u8) -> Column {
    Column { title: Cow::Borrowed(title), width_min, drop_order, kind: Kind::Name }
}

/// A table with column titles.
#[derive(Clone, Debug)]
pub struct Grid {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Grid {
    /// The shards in these rows.
    pub fn shards(figures: &Figures, rows: Range<usize>) -> Grid {
        let columns = vec![
            number("shard", 5, 0),
            number("core", 4, 3),
            number("sessions", 8, 1),
            number("waiting", 7, 9),
            number("ticks/s", 7, 10),
            number("deliveries/s", 12, 0),
            number("MB/s", 6, 2),
            number("sends/s", 7, 5),
            number("parked/s", 8, 8),
            number("busy", 6, 0),
            number("ring", 9, 7),
            number("dropped/s", 9, 4),
            number("conflated/s", 11, 6),
        ];
        let rows = slice(&figures.shards, rows).iter().map(|shard| {
            let rate = |of: fn(&super::figures::Rates) -> f64| {
                shard.rates.as_ref().map_or(UNKNOWN.into(), |rates| format::rate(of(rates)))
            };
            let busy =
                |percent: f64| Cell::toned(format!("{percent:.1}%"), Tone::Notable, percent >= BUSY_PERCENT);
            let has_dropped = shard.rates.is_some_and(|rates| rates.dropped > 0.0);
            vec![
                shard.shard.to_string().into(),
                shard.core.to_string().into(),
                format::count(shard.sessions).into(),
                shard.waiting.map_or(UNKNOWN.into(), format::count).into(),
                rate(|rates| rates.ticks).into(),
                rate(|rates| rates.deliveries).into(),
                shard.rates.map_or(UNKNOWN.into(), |rates| format::megabytes(rates.bytes)).into(),
                rate(|rates| rates.sends).into(),
                rate(|rates| rates.parked).into(),
                shard.busy_percent.map_or(UNKNOWN.into(), busy),
                shard.ring_bytes.map_or(UNKNOWN.into(), format::bytes).into(),
                Cell::toned(rate(|rates| rates.dropped), Tone::Bad, has_dropped),
                rate(|rates| rates.conflated).into(),
            ]
        });
        Grid { rows: rows.collect(), columns }
    }

    /// Both latencies. The first title names the time they cover; `seconds` is the interval.
    pub fn latency(figures: &LatencyFigures, seconds: Option<f64>, width: usize) -> Grid {
        let title = match (figures.is_of_interval, seconds) {
            (true, Some(seconds @ 10.0..)) => format!("latency, last {seconds:.0} s").into(),
            (true, Some(seconds)) => format!("latency, last {seconds:.1} s").into(),
            _ => "latency since start".into(),
        };
        let first = if width < LATENCY_WIDTH_MIN { name("", 19, 0) } else { word("", 23, 0) };
        let columns = vec![
            Column { title, ..first },
            number("p50", 8, 1),
            number("p90", 8, 4),
            number("p99", 8, 0),
            number("p99.9", 8, 3),
            number("max", 8, 2),
            number("samples", 9, 5),
        ];
        let row = |until: &str, percentiles: &Option<Percentiles>| {
            let us =
                |at: usize| percentiles.map_or(UNKNOWN.into(), |found| format::microseconds(found.us[at]));
            let samples = format::count(percentiles.map_or(0, |found| found.samples));
            let mut cells: Vec<Cell> = vec![until.into()];
            cells.extend((0..5).map(|at| Cell::from(us(at))));
            cells.push(samples.into());
            cells
        };
        let rows =
            vec![row("received to sequenced", &figures.sequenced), row("received to sent", &figures.sent)];
        Grid { rows, columns }
    }

    /// The topics in these rows; empty if the server sent none.
    pub fn topics(figures: &Figures, rows: Range<usize>) -> Grid {
        let columns = vec![
            name("topic", 12, 0),
            number("ticks/s", 9, 0),
            number("ticks", 11, 2),
            number("sessions", 8, 1),
            number("home", 4, 3),
            number("history", 7, 5),
            number("keys", 6, 6),
            number("memory", 9, 4),
        ];
        let topics = figures.topics.as_deref().unwrap_or_default();
        let rows = slice(topics, rows).iter().map(|figures| {
            let topic = &figures.topic;
            vec![
                format::name(&topic.topic).into(),
                figures.rate.map_or(UNKNOWN.into(), format::rate).into(),
                format::count(topic.sequence).into(),
                format::count(topic.sessions).into(),
                topic.home.to_string().into(),
                format::count(topic.history_ticks).into(),
                format::count(topic.keys).into(),
                format::bytes(topic.history_bytes).into(),
            ]
        });
        Grid { rows: rows.collect(), columns }
    }

    /// The sessions in these rows; empty if the server sent none.
    ///
    /// If `width` has no room for an address column, a session without an identity shows its address instead.
    pub fn sessions(figures: &Figures, rows: Range<usize>, width: usize) -> Grid {
        let has_addresses = width >= ADDRESS_WIDTH_MIN;
        let mut columns = vec![
            word("session", 7, 3),
            name("client", 15, 0),
            name("address", 15, 5),
            word("encoding", 8, 4),
            word("state", 5, 8),
            number("topics", 6, 7),
            number("outbox", 9, 0),
            number("lag", 7, 0),
            number("held", 4, 6),
            number("conflated", 9, 2),
            number("dropped", 7, 1),
            number("rtt", 7, 2),
        ];
        let mut cells: Vec<Vec<Cell>> = Vec::new();
        for session in slice(figures.sessions.as_deref().unwrap_or_default(), rows) {
            let address = session.address.as_deref().map_or(UNKNOWN.into(), format::word);
            let client = match &session.identity {
                Some(identity) => format::name(identity),
                None if has_addresses => UNKNOWN.into(),
                None => address.clone(),
            };
            cells.push(vec![
                format::word(&session.id).into(),
                client.into(),
                address.into(),
                format::word(&session.encoding).into(),
                format::word(&session.state).into(),
                format::count(session.topics).into(),
                format::bytes(session.outbox_bytes).into(),
                Cell::toned(format::milliseconds(session.lag_ms), Tone::Notable, session.lag_ms > 0),
                format::count(session.held_topics).into(),
                format::count(session.conflated).into(),
                Cell::toned(format::count(session.dropped), Tone::Bad, session.dropped > 0),
                session.rtt_us.map_or(UNKNOWN.into(), format::microseconds).into(),
            ]);
        }
        if !has_addresses {
            columns.remove(2);
            cells.iter_mut().for_each(|row| drop(row.remove(2)));
        }
        Grid { columns, rows: cells }
    }

    /// The number of rows, without the titles.
    pub fn rows_len(&self) -> usize {
        self.rows.len()
    }

    /// The titles, then each row, as cells padded to their columns.
    ///
    /// Fits each line into `width`: truncates names, then drops columns.
    pub fn lines(&self, width: usize) -> Vec<Vec<Cell>> {
        let widths = self.widths(width);
        let padded = |cell: &Cell, column: &Column, is_first: bool, width: usize| {
            let text = cut(&cell.text, width);
            let padding = " ".repeat(width.saturating_sub(width_of(&text)));
            let space = if is_first { "" } else { &" ".repeat(SPACE) };
            let text = match column.kind {
                Kind::Number => format!("{space}{padding}{text}"),
                Kind::Word | Kind::Name => format!("{space}{text}{padding}"),
            };
            Cell { text, tone: cell.tone }
        };
        let line = |row: &[Cell]| -> Vec<Cell> {
            let cells = widths
                .iter()
                .zip(0..)
                .map(|(&(column, width), at)| padded(&row[column], &self.columns[column], at == 0, width));
            cells.collect()
        };
        let titles: Vec<Cell> =
            self.columns.iter().map(|column| column.title.clone().into_owned().into()).collect();
        std::iter::once(&titles).chain(&self.rows).map(|row| line(row)).collect()
    }

    /// The index and width of each column to show.
    fn widths(&self, width: usize) -> Vec<(usize, usize)> {
        let content = |at: usize| {
            let cells = self.rows.iter().map(|row| width_of(&row[at].text));
            cells.max().unwrap_or(0).max(width_of(&self.columns[at].title))
        };
        let wanted: Vec<usize> =
            (0..self.columns.len()).map(|at| content(at).max(self.columns[at].width_min)).collect();
        let needed = |at: usize| match self.columns[at].kind {
            Kind::Name => self.columns[at].width_min,
            Kind::Number | Kind::Word => wanted[at],
        };
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        let taken = |shown: &[usize]| shown.iter().map(|&at| needed(at) + SPACE).sum::<usize>();
        debug_assert!(
            self.columns.iter().any(|column| column.drop_order == 0),
            "one column is never dropped"
        );
        while taken(&shown) > width + SPACE {
            let drop_order = |at: usize| self.columns[shown[at]].drop_order;
            let Some(first) = (0..shown.len()).rev().max_by_key(|&at| drop_order(at)) else { break };
            if drop_order(first) == 0 {
                break;
            }
            shown.remove(first);
        }
        let mut left = (width + SPACE).saturating_sub(taken(&shown));
        shown
            .into_iter()
            .map(|at| {
                let more = left.min(wanted[at].saturating_sub(needed(at)));
                left -= more;
                (at, needed(at) + more)
            })
            .collect()
    }
}

fn slice<T>(rows: &[T], range: Range<usize>) -> &[T] {
    let end = range.end.min(rows.len());
    &rows[range.start.min(end)..end]
}

/// Joins parts with commas, as many as fit into `width`. Parts with the highest number are dropped first, 0 never.
pub fn sentence(parts: Vec<(Cell, u8)>, width: usize) -> Vec<Cell> {
    joined(parts, ", ", width)
}

/// [`sentence`] with another separator of two columns.
pub fn joined(mut parts: Vec<(Cell, u8)>, separator: &'static str, width: usize) -> Vec<Cell> {
    let taken = |parts: &[(Cell, u8)]| parts.iter().map(|(cell, _)| width_of(&cell.text) + 2).sum::<usize>();
    while taken(&parts) > width + 2
        && let Some(first) = parts.iter().map(|(_, drop_order)| *drop_order).max().filter(|&first| first > 0)
    {
        parts.retain(|(_, drop_order)| *drop_order != first);
    }
    let separated = |(at, (cell, _)): (usize, (Cell, u8))| match at {
        0 => vec![cell],
        _ => vec![separator.into(), cell],
    };
    parts.into_iter().enumerate().flat_map(separated).collect()
}

/// The width of a text in terminal columns.
pub fn width_of(text: &str) -> usize {
    Span::raw(text).width()
}

/// Truncates a text to `width` columns, with an ellipsis.
pub fn cut(text: &str, width: usize) -> String {
    if width_of(text) <= width {
        return text.to_owned();
    }
    let mut buffer = [0; 4];
    let mut left = width.saturating_sub(1);
    let mut kept = String::new();
    for character in text.chars() {
        let Some(rest) = left.checked_sub(width_of(character.encode_utf8(&mut buffer))) else { break };
        left = rest;
        kept.push(character);
    }
    if width > 0 {
        kept.push('…');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::top::figures::tests::snapshot;

    fn figures() -> Figures {
        Figures::new(Some(&snapshot(10, 2, 5, 8)), &snapshot(12, 2, 5, 8))
    }

    fn texts(grid: &Grid, width: usize) -> Vec<String> {
        let line = |cells: Vec<Cell>| cells.into_iter().map(|cell| cell.text).collect::<String>();
        grid.lines(width).into_iter().map(line).collect()
    }

    #[test]
    fn every_line_fits_or_has_only_columns_that_are_never_dropped() {
        let figures = figures();
        for width in 0..200 {
            for grid in [
                Grid::shards(&figures, 0..9),
                Grid::topics(&figures, 0..9),
                Grid::sessions(&figures, 0..9, width),
                Grid::latency(figures.latency.as_ref().unwrap(), figures.seconds, 80),
            ] {
                let lines = texts(&grid, width);
                assert!(lines.iter().all(|line| width_of(line) <= width.max(56)), "{width}: {lines:#?}");
            }
        }
    }

    #[test]
    fn shards_have_all_columns_at_200_and_the_important_ones_at_80() {
        let lines = texts(&Grid::shards(&figures(), 0..2), 200);
        let words: Vec<&str> = lines[1].split_whitespace().collect();
        let expected =
            ["0", "2", "4", "0", "100", "5,000", "1.50", "400", "1.0", "25.0%", "2.0", "KiB", "2.0", "3.0"];
        assert_eq!(words, expected);
        let narrow = &texts(&Grid::shards(&figures(), 0..2), 80)[0];
        for title in ["shard", "sessions", "deliveries/s", "MB/s", "busy", "dropped/s"] {
            assert!(narrow.contains(title), "{narrow}");
        }
    }

    #[test]
    fn names_are_truncated_before_numbers_and_cannot_control_the_terminal() {
        let mut figures = figures();
        let topics = figures.topics.as_mut().unwrap();
        topics[0].topic.topic = format!("\x1b[2J{}", "漢".repeat(100));
        let wide = texts(&Grid::topics(&figures, 0..1), 10_000);
        assert!(wide[1].starts_with(r"\u{1b}[2J漢") && !wide[1].contains('…'));
        let narrow = texts(&Grid::topics(&figures, 0..1), 40);
        assert!(narrow[1].contains('…') && narrow[1].contains("5.0"), "{narrow:?}");
        assert!(width_of(&narrow[1]) <= 40 && !narrow[1].contains('\x1b'));
    }

    #[test]
    fn a_session_without_an_identity_shows_its_address() {
        let narrow = texts(&Grid::sessions(&figures(), 0..2, 80), 80);
        assert!(narrow[1].contains("desk 0") && narrow[2].contains("127.0.0.1:40"), "{narrow:#?}");
        let wide = texts(&Grid::sessions(&figures(), 0..2, 160), 160);
        assert!(wide[1].contains("desk 0") && wide[1].contains("127.0.0.1:40000"), "{wide:#?}");
        assert!(wide[2].contains(" -  ") && wide[2].contains("127.0.0.1:40001"), "{wide:#?}");
    }

    #[test]
    fn an_unknown_value_is_a_dash() {
        let figures = Figures::new(None, &snapshot(10, 1, 1, 1));
        let line = &texts(&Grid::shards(&figures, 0..1), 200)[1];
        assert_eq!(line.split_whitespace().filter(|&word| word == "-").count(), 8, "{line}");
    }

    #[test]
    fn a_sentence_drops_parts_by_their_order() {
        let parts = || vec![("one".into(), 0), ("two".into(), 1), ("three".into(), 2), ("four".into(), 0)];
        let text = |width| sentence(parts(), width).into_iter().map(|cell| cell.text).collect::<String>();
        assert_eq!(text(21), "one, two, three, four");
        assert_eq!(text(20), "one, two, four");
        assert_eq!((text(13), text(0)), ("one, four".into(), "one, four".into()));
    }

    #[test]
    fn a_truncated_text_fits_its_width() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "ab…");
        assert_eq!(cut("漢漢漢", 4), "漢…");
        assert_eq!((cut("abc", 1), cut("abc", 0)), ("…".into(), String::new()));
    }
}
