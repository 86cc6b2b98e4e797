//! Draws a model into a buffer of any size, never past its edges.
//!
//! Colours are few, so that the screen is readable on light and dark backgrounds and without colours: the terminal's own for
//! normal values, bold for notable ones, red for losses.

use std::ops::Range;

use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::{Color, Modifier, Style},
    text::{Line, Span},
};

use super::{
    budgets,
    figures::Figures,
    format,
    grid::{Cell, Grid, Tone, cut, joined, sentence, width_of},
    keys::HELP,
    model::{Model, Panel, sort_name},
    sinks, sources, tenants,
};
use crate::limits::ADMIN_ROWS_MAX;
use tickcast_core::now::Now;

/// From this height on all three lists are shown; below, only the focused one.
const ROWS_FOR_ALL_PANELS: u16 = 12;
/// The least height of a list: title, column titles, one row, and the count of hidden rows.
const PANEL_ROWS_MIN: u16 = 4;
/// From this height on latencies are shown.
const ROWS_FOR_LATENCY: u16 = 10;

/// The colours of the terminal.
#[derive(Clone, Copy, Debug)]
pub struct Palette {
    /// Whether colours may be used; not with NO_COLOR.
    pub has_colours: bool,
}

impl Palette {
    fn style(self, tone: Tone) -> Style {
        match tone {
            Tone::Plain => Style::new(),
            Tone::Notable => Style::new().add_modifier(Modifier::BOLD),
            Tone::Bad if self.has_colours => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
            Tone::Bad => Style::new().add_modifier(Modifier::BOLD),
        }
    }
}

/// Draws a model at time `now` into an area of a buffer. Cost: proportional to the visible rows only.
pub fn draw(model: &Model, now: Now, palette: Palette, area: Rect, buffer: &mut Buffer) {
    let area = area.intersection(buffer.area);
    let mut canvas = Canvas { left: area, palette, buffer };
    let footer = canvas.take_last();
    for (line, at) in header(model, usize::from(area.width)).into_iter().zip(0..) {
        let style = if at == 0 { palette.style(Tone::Notable) } else { Style::new() };
        canvas.cells(line, style);
    }
    for (notice, tone) in notices(model, now, usize::from(area.width)) {
        canvas.put(notice, palette.style(tone).add_modifier(Modifier::REVERSED));
    }
    match &model.figures {
        Some(figures) => body(model, figures, area.height, &mut canvas),
        None => canvas.put("waiting for the first response".into(), Style::new()),
    }
    let keys = vec![
        ("q quit".into(), 0),
        ("Tab next list".into(), 3),
        (format!("s sort: {}", sort_name(model.sort)).into(), 4),
        (format!("p {}", if model.is_paused { "resume" } else { "pause" }).into(), 5),
        (format!("+/- interval: {}", format::milliseconds(model.interval_ms)).into(), 2),
        ("h help".into(), 1),
    ];
    let keys: String =
        joined(keys, "  ", usize::from(area.width)).into_iter().map(|cell: Cell| cell.text).collect();
    canvas.line(footer, keys.into(), Style::new().add_modifier(Modifier::DIM));
    if model.shows_help {
        help(area, buffer);
    }
}

/// An area that is filled line by line from the top.
struct Canvas<'a> {
    left: Rect,
    palette: Palette,
    buffer: &'a mut Buffer,
}

impl Canvas<'_> {
    fn take(&mut self) -> Rect {
        let height = self.left.height.min(1);
        let line = Rect { height, ..self.left };
        self.left = Rect { y: self.left.y + height, height: self.left.height - height, ..self.left };
        line
    }

    fn take_last(&mut self) -> Rect {
        let height = self.left.height.min(1);
        self.left.height -= height;
        Rect { y: self.left.y + self.left.height, height, ..self.left }
    }

    /// Writes the next line, truncated to the width. Does nothing if no line is left.
    fn put(&mut self, text: String, style: Style) {
        let area = self.take();
        self.line(area, cut(&text, usize::from(area.width)).into(), style);
    }

    fn cells(&mut self, cells: Vec<Cell>, style: Style) {
        let span = |cell: Cell| Span::styled(cell.text, self.palette.style(cell.tone));
        let line = Line::from(cells.into_iter().map(span).collect::<Vec<_>>());
        let area = self.take();
        self.line(area, line, style);
    }

    fn line(&mut self, area: Rect, line: Line<'_>, style: Style) {
        if area.is_empty() {
            return;
        }
        self.buffer.set_line(area.x, area.y, &line, area.width);
        self.buffer.set_style(area, style);
    }
}

/// Two lines about the server and the sum of its shards, fitted into `width` where possible.
pub fn header(model: &Model, width: usize) -> Vec<Vec<Cell>> {
    let Some(figures) = &model.figures else {
        return vec![vec![format!("tickcast at {}", model.address).into()]];
    };
    let server = format!(
        "tickcast {} at {}: {}",
        format::word(&figures.version),
        model.address,
        format::word(&figures.stage)
    );
    let up = format!("up {}", format::seconds(figures.uptime_seconds));
    let mut first: Vec<(Cell, u8)> = vec![(server.into(), 0), (up.into(), 2)];
    first
        .extend(figures.resident_bytes.map(|bytes| (format!("{} resident", format::bytes(bytes)).into(), 1)));
    first.extend(figures.descriptors.map(|open| (format!("{} descriptors", format::count(open)).into(), 3)));
    let sessions = format!("{} sessions", format::count(figures.sessions_open));
    let subscribed = format!("{} subscribed", format::count(figures.sessions_subscribed));
    let mut second: Vec<(Cell, u8)> = vec![(sessions.into(), 0), (subscribed.into(), 6)];
    match &figures.rates {
        Some(rates) => {
            let dropped = format!("{} dropped/s", format::rate(rates.dropped));
            let has_dropped = rates.dropped > 0.0;
            second.extend([
                (format!("{} ticks/s in", format::rate(rates.ticks)).into(), 4),
                (format!("{} deliveries/s", format::rate(rates.deliveries)).into(), 1),
                (format!("{} MB/s", format::megabytes(rates.bytes)).into(), 5),
                (Cell::toned(dropped, Tone::Bad, has_dropped), if has_dropped { 0 } else { 2 }),
                (format!("{} conflated/s", format::rate(rates.conflated)).into(), 3),
            ]);
        }
        None => second.push(("no rates yet".into(), 0)),
    }
    vec![sentence(first, width), sentence(second, width)]
}

/// Names of shards for a notice: `shard 1`, `shards 1, 2 and 3 more`; `None` without any.
fn shards_named(shards: &[u16]) -> Option<String> {
    let mut numbers = shards.iter().map(u16::to_string);
    let first: Vec<String> = numbers.by_ref().take(8).collect();
    let more = match numbers.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let noun = if shards.len() == 1 { "shard" } else { "shards" };
    (!first.is_empty()).then(|| format!("{noun} {}{more}", first.join(", ")))
}

/// A notice about shards that did not reply, if there are any.
pub fn unanswered_notice(figures: &Figures) -> Option<String> {
    shards_named(&figures.unanswered).map(|shards| format!("no response from {shards}"))
}

/// A notice about overloaded shards, if there are any.
fn overload_notice(figures: &Figures) -> Option<String> {
    shards_named(&figures.overloaded).map(|shards| format!("overloaded: {shards}; sessions lose ticks"))
}

/// A notice about ticks that are refused because there are too many topics, if there are any.
fn refusal_notice(figures: &Figures) -> Option<String> {
    let refused = figures.rates.as_ref()?.topics_refused;
    (refused > 0.0).then(|| format!("{} ticks/s refused: no further topic is allowed", format::rate(refused)))
}

/// Notices above the figures.
fn notices(model: &Model, now: Now, width: usize) -> Vec<(String, Tone)> {
    let mut notices = Vec::new();
    if let Some(outage) = &model.outage {
        let seconds = now.monotonic_ns.saturating_sub(outage.since.monotonic_ns) / 1_000_000_000;
        let text = format!(
            "no response for {} (since {}): {}",
            format::seconds(seconds),
            format::time_of_day(outage.since.realtime_ns),
            outage.reason
        );
        let retry = format!("retrying every {}", format::milliseconds(model.interval_ms));
        let cells = sentence(vec![(text.into(), 0), (retry.into(), 1)], width);
        notices.push((cells.into_iter().map(|cell| cell.text).collect(), Tone::Bad));
    }
    if model.is_paused {
        notices.push(("paused; press p to resume".into(), Tone::Notable));
    }
    for notice in [unanswered_notice, overload_notice, refusal_notice] {
        notices.extend(model.figures.as_ref().and_then(notice).map(|notice| (notice, Tone::Bad)));
    }
    let of =
        |figures| [sources::notices(figures), sinks::notices(figures), over_limits(figures, width)].concat();
    let unfit = model.figures.iter().flat_map(of);
    notices.extend(unfit.map(|notice| (notice, Tone::Bad)));
    notices
}

/// Notices about tenants over their quotas, and sessions and addresses over their budgets.
pub fn over_limits(figures: &Figures, width: usize) -> Vec<String> {
    [tenants::notices(figures, width), budgets::notices(figures, width)].concat()
}

fn body(model: &Model, figures: &Figures, rows: u16, canvas: &mut Canvas<'_>) {
    let width = usize::from(canvas.left.width);
    if rows >= ROWS_FOR_LATENCY {
        for line in
            [sources::line, sinks::line, tenants::line].into_iter().filter_map(|of| of(figures, width))
        {
            canvas.cells(line, Style::new());
        }
        match &figures.latency {
            Ok(latency) => {
                let mut lines = Grid::latency(latency, figures.seconds, width).lines(width).into_iter();
                if let Some(titles) = lines.next() {
                    canvas.cells(titles, Style::new().add_modifier(Modifier::DIM));
                }
                lines.for_each(|cells| canvas.cells(cells, Style::new()));
            }
            Err(reason) => canvas.put(format!("latency: {reason}"), Style::new()),
        }
    }
    if canvas.left.height < ROWS_FOR_ALL_PANELS {
        panel(model, figures, model.focus, canvas.left.height, canvas);
        return;
    }
    for (at, height) in heights(model, figures, canvas.left.height) {
        panel(model, figures, at, height, canvas);
    }
}

/// The height of each list: shards get what they need, up to a third of all rows; topics and sessions share the rest.
fn heights(model: &Model, figures: &Figures, rows: u16) -> [(Panel, u16); 3] {
    let needed = |panel: Panel| {
        let rows = model.rows(panel);
        let more = usize::from(more(figures, panel, rows).is_some());
        u16::try_from(2 + rows.max(1) + more).unwrap_or(u16::MAX).max(PANEL_ROWS_MIN)
    };
    let shards = needed(Panel::Shards).min((rows / 3).max(PANEL_ROWS_MIN));
    let left = rows - shards;
    // Rows that one of the two does not need go to the other.
    let sessions_least = needed(Panel::Sessions).min(left - left / 2);
    let topics = needed(Panel::Topics).min(left - sessions_least);
    [(Panel::Shards, shards), (Panel::Topics, topics), (Panel::Sessions, left - topics)]
}

/// A list's title.
pub fn title(model: &Model, figures: &Figures, panel: Panel) -> String {
    let total = format::count(total(figures, panel));
    match panel {
        Panel::Shards => format!("shards: {total}"),
        Panel::Topics if figures.topics.is_err() => "topics by rate".into(),
        Panel::Topics => {
            let name = if figures.seconds.is_some() { "topics by rate" } else { "topics by ticks" };
            let is_complete = model.rows(panel) < ADMIN_ROWS_MAX;
            let listed = format::count(ADMIN_ROWS_MAX as u64);
            let of = if is_complete { "" } else { &format!(", of the {listed} with the most ticks") };
            format!("{name}: {total}{of}")
        }
        Panel::Sessions if figures.sessions.is_err() => "sessions".into(),
        Panel::Sessions => format!("sessions by {}: {total}", sort_name(model.shown_sort())),
    }
}

/// The length of a list, including rows that the server did not send.
fn total(figures: &Figures, panel: Panel) -> u64 {
    match panel {
        Panel::Shards => figures.shards.len() as u64,
        Panel::Topics => figures.topics_total.max(figures.topics.as_ref().map_or(0, Vec::len) as u64),
        Panel::Sessions => figures.sessions_open.max(figures.sessions.as_ref().map_or(0, Vec::len) as u64),
    }
}

/// A line that counts the rows after the first `shown`.
pub fn more(figures: &Figures, panel: Panel, shown: usize) -> Option<String> {
    let more = total(figures, panel).saturating_sub(shown as u64);
    (more > 0).then(|| format!("and {} more", format::count(more)))
}

/// These rows of a list as a grid.
///
/// # Errors
/// Why the server sent no rows, or that there are none.
pub fn panel_grid(figures: &Figures, panel: Panel, rows: Range<usize>, width: usize) -> Result<Grid, String> {
    let (grid, none) = match panel {
        Panel::Shards => (Grid::shards(figures, rows), "no shards yet"),
        Panel::Topics => {
            figures.topics.as_ref().map_err(String::clone)?;
            (Grid::topics(figures, rows), "no topics yet")
        }
        Panel::Sessions => {
            figures.sessions.as_ref().map_err(String::clone)?;
            (Grid::sessions(figures, rows, width), "no sessions")
        }
    };
    if grid.rows_len() == 0 { Err(none.into()) } else { Ok(grid) }
}

fn panel(model: &Model, figures: &Figures, panel: Panel, height: u16, canvas: &mut Canvas<'_>) {
    let end = canvas.left.height.saturating_sub(height);
    let has_focus = model.focus == panel;
    let mark = if has_focus { Modifier::REVERSED } else { Modifier::UNDERLINED };
    let style = Style::new().add_modifier(Modifier::BOLD | mark);
    canvas.put(title(model, figures, panel), style);
    // In a small list the titles matter more than the count of hidden rows.
    let room = usize::from(height.saturating_sub(2));
    let is_cut = more(figures, panel, room).is_some();
    let room = if is_cut && room > 1 { room - 1 } else { room };
    let selected = model.selected(panel);
    let first = (selected + 1).saturating_sub(room);
    let width = usize::from(canvas.left.width);
    match panel_grid(figures, panel, first..first + room, width) {
        Ok(grid) => {
            let shown = grid.rows_len();
            let mut lines = grid.lines(width).into_iter();
            if let Some(titles) = lines.next() {
                canvas.cells(titles, Style::new().add_modifier(Modifier::DIM));
            }
            for (cells, row) in lines.zip(first..) {
                let is_selected = has_focus && row == selected;
                let style =
                    if is_selected { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
                canvas.cells(cells, style);
            }
            if let Some(more) = more(figures, panel, first + shown)
                && canvas.left.height > end
            {
                canvas.put(more, Style::new().add_modifier(Modifier::DIM));
            }
        }
        Err(reason) if canvas.left.height > end => canvas.put(reason, Style::new()),
        Err(_) => {}
    }
    // Leaves unused rows blank, so that the next list starts at its place.
    while canvas.left.height > end {
        canvas.take();
    }
}

/// Draws the help in the middle of the screen.
fn help(area: Rect, buffer: &mut Buffer) {
    let keys_width = HELP.iter().map(|(keys, _)| keys.len()).max().unwrap_or(0);
    let lines = HELP.iter().map(|(keys, effect)| format!(" {keys:keys_width$}  {effect} "));
    let lines: Vec<String> = std::iter::once(" keys".to_owned()).chain(lines).collect();
    let width = lines.iter().map(|line| width_of(line)).max().unwrap_or(0) as u16;
    let (width, height) = (width.min(area.width), (lines.len() as u16).min(area.height));
    let left = area.x + (area.width - width) / 2;
    let top = area.y + (area.height - height) / 2;
    for (line, y) in lines.iter().zip(top..top + height) {
        let row = Rect { x: left, y, width, height: 1 };
        for x in row.left()..row.right() {
            buffer[(x, y)].reset();
        }
        buffer.set_stringn(left, y, line, usize::from(width), Style::new());
        buffer.set_style(row, Style::new().add_modifier(Modifier::REVERSED));
    }
}

#[cfg(test)]
mod tests;
