//! `tickcast-c10k plot`: histograms of several runs in one plot.

use std::{fs, path::Path};

use hdrhistogram::Histogram;

use crate::{
    hgrm,
    options::PlotArgs,
    plan::Plan,
    process,
    svg::{self, LINES_MAX, Line},
};

/// Largest file accepted; a histogram has a few hundred lines.
const HGRM_BYTES_MAX: u64 = 1 << 20;

/// Reads the histograms and writes the plot.
///
/// # Errors
/// One line for the operator.
pub fn run(args: &PlotArgs) -> Result<(), String> {
    if args.lines.len() > LINES_MAX {
        return Err(format!(
            "{} histograms are too many for one plot: at most {LINES_MAX}",
            args.lines.len()
        ));
    }
    let lines = args.lines.iter().map(|line| read(line)).collect::<Result<Vec<_>, _>>()?;
    let notes: Vec<&str> = args.note.iter().map(String::as_str).collect();
    write(&args.out, &svg::render(&args.title, &notes, &lines)).map_err(|error| format!("--out {error}"))
}

/// Reads the histogram of one NAME=FILE argument.
fn read(argument: &str) -> Result<Line, String> {
    let named = argument.split_once('=').filter(|(name, path)| !name.is_empty() && !path.is_empty());
    let (name, path) = named.ok_or_else(|| format!("{argument:?}: expected NAME=FILE.hgrm"))?;
    let length = fs::metadata(path).map_err(|error| format!("{path}: {error}"))?.len();
    if length > HGRM_BYTES_MAX {
        return Err(format!(
            "{path}: {length} bytes is too large for a histogram; the limit is {HGRM_BYTES_MAX}"
        ));
    }
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let points = hgrm::parse(&text).map_err(|error| format!("{path}: {error}"))?;
    Ok(Line { name: name.to_owned(), points })
}

/// Plots one run; `uncorrected` is `None` if its ticks do not carry the server's time of receipt.
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

/// Writes a file.
///
/// # Errors
/// The file and the system's reason.
pub fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_cannot_be_read_are_named() {
        for (argument, why) in [
            ("nothing", "NAME=FILE.hgrm"),
            ("=a.hgrm", "NAME=FILE.hgrm"),
            ("a=/nowhere/b.hgrm", "/nowhere/b.hgrm"),
            ("manifest=Cargo.toml", "Cargo.toml: line 1"),
        ] {
            let error = read(argument).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let lines = vec!["a=b".to_owned(); LINES_MAX + 1];
        let args = PlotArgs { out: "o".into(), title: "t".into(), note: Vec::new(), lines };
        assert!(run(&args).unwrap_err().contains("at most 8"));
    }
}
