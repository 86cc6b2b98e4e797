//! The machine's settings, as `tickcast-tune check --json` reports them.

mod child;
mod locate;

use std::process::Command;

use serde::Deserialize;

pub use self::locate::locate;
use self::{
    child::Output,
    locate::{NAME, TuneTool},
};
use super::item::{CheckItem, ItemState};

/// How long the tool may run. It takes 250 ms on two cores with one NIC, plus one call of ethtool per further NIC.
const RUN_NS_MAX: u64 = 20_000_000_000;

/// A line of the tool's output.
#[derive(Debug, Deserialize)]
struct Line {
    name: String,
    state: ItemState,
    now: Option<String>,
    wanted: String,
    reason: String,
}

/// Runs the tool and returns its items; if it cannot run, one item that says why.
pub fn check(tool: &TuneTool) -> Vec<CheckItem> {
    let reason = match tool {
        TuneTool::Trusted(path) => {
            let output = child::run(Command::new(path).args(["check", "--json"]), RUN_NS_MAX);
            match output.and_then(parse) {
                Ok(items) => return items,
                Err(reason) => format!("{}: {reason}", path.display()),
            }
        }
        TuneTool::Untrusted(path) => format!(
            "{} was not run because other users may write to it: pass --tune PATH to run it anyway (the file and the folders \
             it shares with this program must belong to root or to you, writable by the owner only)",
            path.display()
        ),
        TuneTool::Missing => format!(
            "not found: the package and scripts/install.sh install it in lib/tickcast/tuning; or pass --tune PATH ({NAME} \
             is in tuning/ of the source tree)"
        ),
    };
    let wanted = "reports which settings are worth changing".to_owned();
    let state = ItemState::Unsupported;
    vec![CheckItem { name: NAME.to_owned(), required: false, state, now: None, wanted, reason }]
}

/// Parses the output of a run.
///
/// # Errors
/// How the run failed, or which line is invalid.
fn parse(output: Output) -> Result<Vec<CheckItem>, String> {
    // 1: some settings are worth changing.
    if !matches!(output.code, Some(0 | 1)) {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let first = stderr.lines().next().unwrap_or("no message on standard error").to_owned();
        return Err(match output.code {
            Some(code) => format!("failed with exit status {code}: {first}"),
            None => format!("was killed by a signal: {first}"),
        });
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let item = |(at, line): (usize, &str)| {
        let Line { name, state, now, wanted, reason } = serde_json::from_str(line)
            .map_err(|error| format!("line {} of its output is invalid: {error}", at + 1))?;
        Ok(CheckItem { name, required: false, state, now, wanted, reason })
    };
    text.lines().enumerate().map(item).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn output(stdout: &str, code: Option<i32>) -> Output {
        Output { stdout: stdout.into(), stderr: b"first\nsecond\n".to_vec(), code }
    }

    #[test]
    fn lines_become_optional_items() {
        let items = parse(output(
            "{\"name\":\"a\",\"state\":\"supported\",\"now\":\"1\",\"wanted\":\"2\",\"reason\":\"why \\\"so\\\"\"}\n\
             {\"name\":\"b\",\"state\":\"unsupported\",\"now\":null,\"wanted\":\"x\",\"reason\":\"\",\"new\":7}\n",
            Some(1),
        ))
        .unwrap();
        assert_eq!(
            (items.len(), items[0].state, items[1].state),
            (2, ItemState::Supported, ItemState::Unsupported)
        );
        assert_eq!((items[0].now.as_deref(), items[1].now.as_deref()), (Some("1"), None));
        assert_eq!(items[0].reason, "why \"so\"");
        assert!(items.iter().all(|item| !item.required));
        assert!(parse(output("", Some(0))).unwrap().is_empty());
    }

    #[test]
    fn invalid_output_and_failed_runs_are_reported() {
        for (output, part) in [
            (
                output(
                    "{\"name\":\"a\",\"state\":\"odd\",\"now\":null,\"wanted\":\"\",\"reason\":\"\"}",
                    Some(0),
                ),
                "line 1",
            ),
            (output("enabled kernel\n", Some(1)), "line 1"),
            (output("", Some(2)), "exit status 2: first"),
            (output("", None), "a signal: first"),
        ] {
            let error = parse(output).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_tool_that_cannot_run_is_one_unsupported_item() {
        let tool = |path: &str| PathBuf::from(path);
        for (tool, part) in [
            (TuneTool::Trusted(tool("/nowhere/tickcast-tune")), "/nowhere/"),
            (TuneTool::Untrusted(tool("/open/tickcast-tune")), "/open/tickcast-tune was not run"),
            (TuneTool::Missing, "not found"),
        ] {
            let [item] = &check(&tool)[..] else { panic!("one item") };
            assert!(!item.required && item.state == ItemState::Unsupported, "{item:?}");
            assert!(item.reason.contains(part), "{item:?}");
        }
    }
}
