//! What was looked at, as a person reads it.

use std::path::Path;

use super::{Item, State};

/// Between two columns.
const GAP: &str = "  ";
const HEAD: [&str; 7] = ["ITEM", "REQUIRED", "ENABLED", "SUPPORTED", "NOW", "WANTED", "REASON"];

/// A line an item, its columns under each other. The last one, the reason, is as long as it is.
pub fn table(items: &[Item]) -> String {
    let rows: Vec<[String; 7]> =
        std::iter::once(HEAD.map(str::to_owned)).chain(items.iter().map(row)).collect();
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join(GAP).trim_end());
        text.push('\n');
    }
    text
}

/// What follows from it, a line or two: of what this program knows by itself, and of what the tool says.
pub fn summary(own: &[Item], machine: &[Item], tool: Option<&Path>) -> String {
    let missing: Vec<&str> =
        own.iter().filter(|item| item.is_missing()).map(|item| item.name.as_str()).collect();
    let settable = machine.iter().filter(|item| item.state == State::Supported).count();
    let mut text = match missing.is_empty() {
        true => "all that tickcast serve requires is here\n".to_owned(),
        false => format!("tickcast serve cannot run here: {}\n", missing.join(", ")),
    };
    if let Some(tool) = tool.filter(|_| settable > 0) {
        text += &format!("{settable} could be set; what that changes: {} apply --dry-run\n", tool.display());
    }
    text
}

fn row(item: &Item) -> [String; 7] {
    let yes_no = |yes| if yes { "yes" } else { "no" };
    [
        item.name.as_str(),
        if item.required { "yes" } else { "-" },
        yes_no(item.state == State::Enabled),
        yes_no(item.state != State::Unsupported),
        item.now.as_deref().unwrap_or("-"),
        &item.wanted,
        &item.reason,
    ]
    .map(printable)
}

/// On one line, and nothing that a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
