//! A model as a screen: into a buffer of any size, and no further.
//!
//! Colours are few: the terminal's own for all that is well, bold for what is worth a look, red for what is lost. So it can
//! be read on light and dark ground, and without colours.

use std::ops::Range;

use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::{Color, Modifier, Style},
    text::{Line, Span},
};

use super::{
    figures::Figures,
    format,
    grid::{Cell, Grid, Tone, cut, sentence, toned, width_of},
    keys::HELP,
    model::{Model, Panel, sort_name},
};
use crate::limits::ADMIN_ROWS_MAX;
use tickcast_core::now::Now;

/// Rows from which all three lists are shown; with fewer, the one that the keys move in.
const ROWS_FOR_ALL_PANELS: u16 = 12;
/// Rows of a list that has anything: title, columns, one of its rows, and how many more there are.
const PANEL_ROWS_MIN: u16 = 4;
/// Rows from which latencies are shown.
const ROWS_FOR_LATENCY: u16 = 10;

/// What the terminal may show.
#[derive(Clone, Copy, Debug)]
pub struct Palette {
    /// Whether there are colours: not with NO_COLOR.
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

/// Draws a model as it is at `now` into an area of a buffer. Cost: the rows that are seen, whatever there is.
pub fn draw(model: &Model, now: Now, palette: Palette, area: Rect, buffer: &mut Buffer) {
    let area = area.intersection(buffer.area);
    let mut sheet = Sheet { left: area, palette, buffer };
    let footer = sheet.take_last();
    for (line, at) in header(model, usize::from(area.width)).into_iter().zip(0..) {
        let style = if at == 0 { palette.style(Tone::Notable) } else { Style::new() };
        sheet.cells(line, style);
    }
    for (notice, tone) in notices(model, now, usize::from(area.width)) {
        sheet.put(notice, palette.style(tone).add_modifier(Modifier::REVERSED));
    }
    match &model.figures {
        Some(figures) => body(model, figures, area.height, &mut sheet),
        None => sheet.put("no answer yet".into(), Style::new()),
    }
    let keys = format!(
        "q end  Tab list  s sort by {}  p {}  +/- every {}  h keys",
        sort_name(model.sort),
        if model.is_paused { "look again" } else { "pause" },
        format::milliseconds(model.interval_ms)
    );
    sheet.line(footer, keys.into(), Style::new().add_modifier(Modifier::DIM));
    if model.shows_help {
        help(area, buffer);
    }
}

/// What is left of an area, from the top down.
struct Sheet<'a> {
    left: Rect,
    palette: Palette,
    buffer: &'a mut Buffer,
}

impl Sheet<'_> {
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

    /// The next line, cut to its width; nothing if there is no room for it.
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

/// The server, and what all shards do together, in lines of this width where that can be.
pub fn header(model: &Model, width: usize) -> Vec<Vec<Cell>> {
    let Some(figures) = &model.figures else {
        return vec![vec![format!("tickcast at {}", model.address).into()]];
    };
    let server = format!(
        "tickcast {} at {}: {} for {}",
        format::word(&figures.version),
        model.address,
        format::word(&figures.stage),
        format::seconds(figures.uptime_seconds)
    );
    let mut first: Vec<(Cell, u8)> = vec![(server.into(), 0)];
    first
        .extend(figures.resident_bytes.map(|bytes| (format!("{} resident", format::bytes(bytes)).into(), 0)));
    first.extend(figures.descriptors.map(|open| (format!("{} descriptors", format::count(open)).into(), 1)));
    let sessions = format!("{} sessions", format::count(figures.sessions_open));
    let subscribed = format!("{} subscribed", format::count(figures.sessions_subscribed));
    let mut second: Vec<(Cell, u8)> = vec![(sessions.into(), 0), (subscribed.into(), 3)];
    match &figures.rates {
        Some(rates) => {
            let dropped = if rates.dropped > 0.0 { Tone::Bad } else { Tone::Plain };
            second.extend([
                (format!("{} ticks/s in", format::rate(rates.ticks)).into(), 1),
                (format!("{} deliveries/s", format::rate(rates.deliveries)).into(), 0),
                (format!("{} MB/s", format::megabytes(rates.bytes)).into(), 2),
                (toned(format!("{} dropped/s", format::rate(rates.dropped)), dropped), 0),
                (format!("{} conflated/s", format::rate(rates.conflated)).into(), 0),
            ]);
        }
        None => second.push(("no rates yet".into(), 0)),
    }
    vec![sentence(first, width), sentence(second, width)]
}

/// Shards that did not answer, if there are any.
pub fn trouble(figures: &Figures) -> Option<String> {
    let mut unanswered = figures.unanswered.iter().map(u16::to_string);
    let first: Vec<String> = unanswered.by_ref().take(8).collect();
    let more = match unanswered.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let shards = if figures.unanswered.len() == 1 { "shard" } else { "shards" };
    (!first.is_empty()).then(|| format!("no answer from {shards} {}{more}", first.join(", ")))
}

/// What an operator should know before the figures.
fn notices(model: &Model, now: Now, width: usize) -> Vec<(String, Tone)> {
    let mut notices = Vec::new();
    if let Some(silence) = &model.silence {
        let seconds = now.monotonic_ns.saturating_sub(silence.since.monotonic_ns) / 1_000_000_000;
        let silent = format!(
            "no answer since {} ({}): {}",
            format::time_of_day(silence.since.realtime_ns),
            format::seconds(seconds),
            silence.reason
        );
        let asked = format!("asked every {}", format::milliseconds(model.interval_ms));
        let cells = sentence(vec![(silent.into(), 0), (asked.into(), 1)], width);
        notices.push((cells.into_iter().map(|cell| cell.text).collect(), Tone::Bad));
    }
    if model.is_paused {
        notices.push(("paused: p looks again".into(), Tone::Notable));
    }
    notices.extend(model.figures.as_ref().and_then(trouble).map(|trouble| (trouble, Tone::Bad)));
    notices
}

fn body(model: &Model, figures: &Figures, rows: u16, sheet: &mut Sheet<'_>) {
    let width = usize::from(sheet.left.width);
    if rows >= ROWS_FOR_LATENCY {
        match &figures.latency {
            Ok(latency) => {
                let mut lines = Grid::latency(latency, figures.seconds).lines(width).into_iter();
                if let Some(titles) = lines.next() {
                    sheet.cells(titles, Style::new().add_modifier(Modifier::DIM));
                }
                lines.for_each(|cells| sheet.cells(cells, Style::new()));
            }
            Err(reason) => sheet.put(format!("latency: {reason}"), Style::new()),
        }
    }
    if sheet.left.height < ROWS_FOR_ALL_PANELS {
        panel(model, figures, model.focus, sheet.left.height, sheet);
        return;
    }
    for (at, height) in heights(model, figures, sheet.left.height) {
        panel(model, figures, at, height, sheet);
    }
}

/// Rows for each list: as many as it wants, as long as the ones below have a third or a half of what is left.
fn heights(model: &Model, figures: &Figures, rows: u16) -> [(Panel, u16); 3] {
    let wanted = |panel: Panel| {
        let rows = model.rows(panel);
        let more = usize::from(more(figures, panel, rows).is_some());
        u16::try_from(2 + rows.max(1) + more).unwrap_or(u16::MAX).max(PANEL_ROWS_MIN)
    };
    let shards = wanted(Panel::Shards).min((rows / 3).max(PANEL_ROWS_MIN));
    let left = rows - shards;
    // What one of the two does not want is the other's.
    let sessions_least = wanted(Panel::Sessions).min(left - left / 2);
    let topics = wanted(Panel::Topics).min(left - sessions_least);
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
            let all = model.rows(panel) < ADMIN_ROWS_MAX;
            let known = format::count(ADMIN_ROWS_MAX as u64);
            let of = if all { String::new() } else { format!(", of the {known} with the most ticks") };
            format!("{name}: {total}{of}")
        }
        Panel::Sessions if figures.sessions.is_err() => "sessions".into(),
        Panel::Sessions => format!("sessions by {}: {total}", sort_name(model.shown_sort())),
    }
}

/// How many there are of a list, those that the server did not send among them.
fn total(figures: &Figures, panel: Panel) -> u64 {
    match panel {
        Panel::Shards => figures.shards.len() as u64,
        Panel::Topics => figures.topics_total.max(figures.topics.as_ref().map_or(0, Vec::len) as u64),
        Panel::Sessions => figures.sessions_open.max(figures.sessions.as_ref().map_or(0, Vec::len) as u64),
    }
}

/// How many of a list are not among its first `shown`.
pub fn more(figures: &Figures, panel: Panel, shown: usize) -> Option<String> {
    let more = total(figures, panel).saturating_sub(shown as u64);
    (more > 0).then(|| format!("and {} more", format::count(more)))
}

/// Some rows of a list.
///
/// # Errors
/// Why the server gives none, or that there is none.
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

fn panel(model: &Model, figures: &Figures, panel: Panel, height: u16, sheet: &mut Sheet<'_>) {
    let end = sheet.left.height.saturating_sub(height);
    let has_focus = model.focus == panel;
    let mark = if has_focus { Modifier::REVERSED } else { Modifier::UNDERLINED };
    let style = Style::new().add_modifier(Modifier::BOLD | mark);
    sheet.put(title(model, figures, panel), style);
    // Without its titles a small one is not understood; without its last line it only is not all.
    let room = usize::from(height.saturating_sub(2));
    let is_cut = more(figures, panel, room).is_some();
    let room = if is_cut && room > 1 { room - 1 } else { room };
    let selected = model.selected(panel);
    let first = (selected + 1).saturating_sub(room);
    let width = usize::from(sheet.left.width);
    match panel_grid(figures, panel, first..first + room, width) {
        Ok(grid) => {
            let shown = grid.rows_len();
            let mut lines = grid.lines(width).into_iter();
            if let Some(titles) = lines.next() {
                sheet.cells(titles, Style::new().add_modifier(Modifier::DIM));
            }
            for (cells, row) in lines.zip(first..) {
                let is_selected = has_focus && row == selected;
                let style =
                    if is_selected { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
                sheet.cells(cells, style);
            }
            if let Some(more) = more(figures, panel, first + shown)
                && sheet.left.height > end
            {
                sheet.put(more, Style::new().add_modifier(Modifier::DIM));
            }
        }
        Err(reason) if sheet.left.height > end => sheet.put(reason, Style::new()),
        Err(_) => {}
    }
    // The next one begins where it should, whatever this one had.
    while sheet.left.height > end {
        sheet.take();
    }
}

/// The keys, in the middle.
fn help(area: Rect, buffer: &mut Buffer) {
    let keys_width = HELP.iter().map(|(keys, _)| keys.len()).max().unwrap_or(0);
    let lines = HELP.iter().map(|(keys, what)| format!(" {keys:keys_width$}  {what} "));
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
