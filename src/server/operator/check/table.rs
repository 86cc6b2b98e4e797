//! The result of a check as text for people.

use std::path::Path;

use super::item::{CheckItem, ItemState};
use crate::cli::HELP_WIDTH;

/// Space between two columns.
const GAP: &str = "  ";
/// Space before a reason.
const INDENT: &str = "    ";
/// Widest first column and widest current value; longer ones are wrapped.
const ITEM_WIDTH_MAX: usize = 36;
const NOW_WIDTH_MAX: usize = 24;

/// The required items, then the others: four aligned columns, and below them the reason. Fits [`HELP_WIDTH`].
pub fn table(items: &[CheckItem]) -> String {
    let rows: Vec<[String; 4]> = items.iter().map(row).collect();
    let heads = ["REQUIRED", "RECOMMENDED"].map(|title| [title, "STATE", "NOW", "WANTED"].map(str::to_owned));
    let widest = |column: usize| {
        let cells = heads.iter().chain(&rows).map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let mut widths = [widest(0).min(ITEM_WIDTH_MAX), widest(1), widest(2).min(NOW_WIDTH_MAX), 0];
    widths[3] = HELP_WIDTH - widths.iter().map(|width| width + GAP.len()).sum::<usize>() + GAP.len();
    let mut text = String::new();
    for (head, required) in heads.iter().zip([true, false]) {
        let mut section = items.iter().zip(&rows).filter(|(item, _)| item.required == required).peekable();
        if section.peek().is_some() {
            text.push_str(&lines(head, widths));
        }
        for (item, row) in section {
            text.push_str(&lines(row, widths));
            for line in wrapped(&printable(&item.reason), HELP_WIDTH - INDENT.len()) {
                text += &format!("{INDENT}{line}\n");
            }
        }
    }
    text
}

/// The lines of a row whose cells are wrapped.
fn lines(row: &[String; 4], widths: [usize; 4]) -> String {
    let mut text = String::new();
    let mut cells = [0, 1, 2, 3].map(|column| wrapped(&row[column], widths[column]).into_iter());
    loop {
        let line = cells.each_mut().map(Iterator::next);
        if line.iter().all(Option::is_none) {
            return text;
        }
        let padded = line.iter().zip(widths).map(|(cell, width)| {
            let cell = cell.as_deref().unwrap_or_default();
            format!("{cell:<width$}")
        });
        text += padded.collect::<Vec<_>>().join(GAP).trim_end();
        text.push('\n');
    }
}

/// Breaks a text into lines of at most `width` characters, between words where possible.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => {
                let letters: Vec<char> = word.chars().collect();
                lines.extend(letters.chunks(width).map(|piece| piece.iter().collect::<String>()));
            }
        }
    }
    lines
}

/// A line that says whether the server can run, and one that points to `tool` if settings are worth changing.
pub fn summary(own: &[CheckItem], tuning: &[CheckItem], tool: Option<&Path>) -> String {
    let missing: Vec<&str> =
        own.iter().filter(|item| item.is_missing()).map(|item| item.name.as_str()).collect();
    let settable = tuning.iter().filter(|item| item.state == ItemState::Supported).count();
    let mut text = match missing.is_empty() {
        true => "this machine meets all requirements of tickcast serve\n".to_owned(),
        false => format!("tickcast serve cannot run on this machine; missing: {}\n", missing.join(", ")),
    };
    if let Some(tool) = tool.filter(|_| settable > 0) {
        let settings = if settable == 1 { "1 setting is" } else { &format!("{settable} settings are") };
        text += &format!("{settings} worth changing; to preview: {} apply --dry-run\n", tool.display());
    }
    text
}

/// A line that says how much of a configuration should be changed.
pub fn security(items: &[CheckItem], file: &Path) -> String {
    let file = file.display();
    match items.iter().filter(|item| item.state != ItemState::Enabled).count() {
        0 => format!("{file} is safe as far as this can tell\n"),
        1 => format!("1 item of {file} should be changed\n"),
        count => format!("{count} items of {file} should be changed\n"),
    }
}

fn row(item: &CheckItem) -> [String; 4] {
    let state = match item.state {
        ItemState::Enabled => "enabled",
        ItemState::Supported => "supported",
        ItemState::Unsupported => "unsupported",
    };
    [item.name.as_str(), state, item.now.as_deref().unwrap_or("-"), &item.wanted].map(printable)
}

/// Replaces line breaks and other control characters, which a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
