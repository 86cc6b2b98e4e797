//! The result of a check as text for people.

use std::path::Path;

use super::item::{CheckItem, ItemState};

/// Space between two columns.
const GAP: &str = "  ";
const HEAD: [&str; 7] = ["ITEM", "REQUIRED", "ENABLED", "SUPPORTED", "NOW", "WANTED", "REASON"];

/// One line per item in aligned columns. The last column, the reason, is not wrapped.
pub fn table(items: &[CheckItem]) -> String {
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

fn row(item: &CheckItem) -> [String; 7] {
    let yes_no = |yes| if yes { "yes" } else { "no" };
    [
        item.name.as_str(),
        if item.required { "yes" } else { "-" },
        yes_no(item.state == ItemState::Enabled),
        yes_no(item.state != ItemState::Unsupported),
        item.now.as_deref().unwrap_or("-"),
        &item.wanted,
        &item.reason,
    ]
    .map(printable)
}

/// Replaces line breaks and other control characters, which a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
