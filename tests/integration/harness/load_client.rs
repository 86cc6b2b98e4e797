//! The load client as a child process.

use std::process::{Child, Command, Stdio};

use super::{Log, processes, wait_for_exit};

/// A running load client.
pub struct LoadClient {
    child: Child,
    report: Log,
    /// Standard error.
    pub log: Log,
}

impl LoadClient {
    /// Starts a client that fails if it loses a tick.
    pub fn start(arguments: &[&str]) -> LoadClient {
        // On a busy machine a tick may be seconds late; that is no loss.
        LoadClient::start_lossy(&[arguments, &["--max-loss", "0", "--settle", "60s"]].concat())
    }

    /// Starts a client that may lose ticks.
    pub fn start_lossy(arguments: &[&str]) -> LoadClient {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tickcast-c10k"))
            .args(arguments)
            .arg("--json")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (report, log) =
            (Log::collect(child.stdout.take().unwrap()), Log::collect(child.stderr.take().unwrap()));
        LoadClient { child, report, log }
    }

    /// Waits for the client to end successfully and returns its report.
    pub fn finish(mut self) -> serde_json::Value {
        let code = wait_for_exit(&mut self.child);
        assert_eq!(code, Some(0), "{}\n{}", self.log.text(), self.report.text());
        serde_json::from_str(&self.report.whole()).unwrap()
    }
}

impl Drop for LoadClient {
    fn drop(&mut self) {
        processes::end(&mut self.child);
    }
}
