//! `tickcast-c10k plot`: histograms of several runs in one picture.

use std::{fs, path::PathBuf};

use clap::Args;
use hdrhistogram::Histogram;

use crate::{
    hgrm,
    options::Plan,
    process,
    svg::{self, LINES_MAX, Line},
};

/// Bytes of a file that is read: a histogram has a few hundred lines.
const HGRM_BYTES_MAX: u64 = 1 << 20;

/// What was typed after `plot`.
#[derive(Debug, Args)]
pub struct PlotArgs {
    /// Picture to write
    #[arg(long, value_name = "FILE.svg")]
    out: PathBuf,
    /// Title of the picture
    #[arg(long, value_name = "TEXT", default_value = "Latency by percentile")]
    title: String,
    /// Text below the title, such as the load and its command; may be given several times, 3 lines are shown
    #[arg(long, value_name = "TEXT")]
    note: Vec<String>,
    /// Lines to draw, at most 8: the name in the legend, and what --hgrm wrote
    #[arg(value_name = "NAME=FILE.hgrm", required = true)]
    lines: Vec<String>,
}

/// Reads the files and writes the picture.
///
/// # Errors
/// One line for the operator.
pub fn run(typed: &PlotArgs) -> Result<(), String> {
    if typed.lines.len() > LINES_MAX {
        return Err(format!("{} lines to draw: at most {LINES_MAX} are told apart", typed.lines.len()));
    }
    let lines = typed.lines.iter().map(|line| read(line)).collect::<Result<Vec<_>, _>>()?;
    let notes: Vec<&str> = typed.note.iter().map(String::as_str).collect();
    write(&typed.out, &svg::render(&typed.title, &notes, &lines)).map_err(|error| format!("--out {error}"))
}

/// Reads one NAME=FILE.
fn read(typed: &str) -> Result<Line, String> {
    let named = typed.split_once('=').filter(|(name, path)| !name.is_empty() && !path.is_empty());
    let (name, path) = named.ok_or_else(|| format!("{typed:?}: NAME=FILE.hgrm"))?;
    let length = fs::metadata(path).map_err(|error| format!("{path}: {error}"))?.len();
    if length > HGRM_BYTES_MAX {
        return Err(format!("{path}: {length} bytes are no histogram: at most {HGRM_BYTES_MAX}"));
    }
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let points = hgrm::parse(&text).map_err(|error| format!("{path}: {error}"))?;
    Ok(Line { name: name.to_owned(), points })
}

/// The picture of one run: `uncorrected` where its ticks carry the time that it needs.
pub fn of_run(plan: &Plan, corrected: &Histogram<u64>, uncorrected: Option<&Histogram<u64>>) -> String {
    let title = format!(
        "Latency of {} deliveries to {} connections ({})",
        corrected.len(),
        plan.connections,
        plan.transport_name()
    );
    let mut lines = vec![Line {
        name: "corrected (from the intended send time)".into(),
        points: hgrm::points(corrected),
    }];
    lines.extend(uncorrected.map(|uncorrected| Line {
        name: "uncorrected (from the server's receipt)".into(),
        points: hgrm::points(uncorrected),
    }));
    svg::render(&title, &[&process::machine(), &process::command()], &lines)
}

/// Writes a file; the error names it.
///
/// # Errors
/// The file's name, and what the system says.
pub fn write(path: &std::path::Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_cannot_be_read_are_named() {
        for (typed, why) in [
            ("nothing", "NAME=FILE.hgrm"),
            ("=a.hgrm", "NAME=FILE.hgrm"),
            ("a=/nowhere/b.hgrm", "/nowhere/b.hgrm"),
            ("manifest=Cargo.toml", "Cargo.toml: line 1"),
        ] {
            let error = read(typed).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let lines = vec!["a=b".to_owned(); LINES_MAX + 1];
        let typed = PlotArgs { out: "o".into(), title: "t".into(), note: Vec::new(), lines };
        assert!(run(&typed).unwrap_err().contains("at most 8"));
    }
}
