//! Third-party clients as child processes: npm `ws` and Python `websockets`.
//!
//! `scripts/test.sh` installs them. Their programs in `tests/clients/` print `ready`, then one line per tick (topic TAB
//! sequence TAB base64 of the payload as received), and finally `closed CODE`.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

use super::{Log, Server, collector::ByTopic, processes, wait_for_exit};

/// A client library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// npm `ws`.
    Ws,
    /// Python `websockets`.
    Websockets,
}

/// A client's process.
pub struct External {
    child: Child,
    out: Log,
    errors: Log,
    /// Its name in failure messages.
    pub name: String,
}

impl External {
    /// Runs the program `tests/clients/PROGRAM` for a library.
    pub fn run(library: Library, program: &str, arguments: &[&str]) -> External {
        External::run_trusting(library, program, arguments, "")
    }

    /// As [`External::run`], with a file of authorities that the library verifies servers by.
    pub fn run_trusting(library: Library, program: &str, arguments: &[&str], authorities: &str) -> External {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
        let (interpreter, installed, program) = match library {
            Library::Ws => {
                (PathBuf::from("node"), directory.join("node_modules/ws"), format!("{program}.mjs"))
            }
            Library::Websockets => {
                let python = directory.join(".venv/bin/python");
                (python.clone(), python, format!("{program}.py"))
            }
        };
        assert!(installed.exists(), "the test clients are not installed: run scripts/test.sh once");
        let mut child = Command::new(interpreter)
            .arg(directory.join(&program))
            .args(arguments)
            .envs(["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"].map(|name| (name, authorities)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (out, errors) =
            (Log::collect(child.stdout.take().unwrap()), Log::collect(child.stderr.take().unwrap()));
        External { child, out, errors, name: format!("{program} {}", arguments.join(" ")) }
    }

    /// Subscribes as `tickcast.v1.SUBPROTOCOL` until `count` ticks have arrived; 0: until the server closes.
    pub fn subscribe(
        library: Library,
        server: &Server,
        subprotocol: &str,
        pattern: &str,
        count: usize,
    ) -> External {
        let url = format!("ws://{}/ws", server.http);
        External::run(library, "subscribe", &[&url, subprotocol, pattern, &count.to_string()])
    }

    /// Waits until every pattern has been acknowledged.
    pub fn wait_until_ready(&self) {
        self.wait_for("ready");
    }

    /// Waits until it has printed a line with this ending.
    pub fn wait_for(&self, end: &str) {
        self.out.wait_for(&format!("{end}\n"));
    }

    /// Its output so far.
    pub fn printed(&self) -> String {
        self.out.text()
    }

    /// Waits for its successful end; returns its output.
    pub fn finish(mut self) -> String {
        let code = wait_for_exit(&mut self.child);
        assert_eq!(code, Some(0), "{}: {}", self.name, self.errors.text());
        let printed = self.out.whole();
        assert!(printed.ends_with("\nend\n"), "{}: {}", self.name, self.errors.text());
        printed
    }
}

impl Drop for External {
    fn drop(&mut self) {
        processes::end(&mut self.child);
        if std::thread::panicking() {
            eprintln!("{}: {}", self.name, self.errors.text());
        }
    }
}

/// The ticks in a subscriber's output.
pub fn ticks(printed: &str) -> ByTopic {
    let mut ticks = ByTopic::new();
    for line in printed.lines().filter(|line| line.contains('\t')) {
        let [topic, sequence, payload] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("not a tick: {line:?}");
        };
        let ticks = ticks.entry(topic.to_owned()).or_default();
        ticks.push((sequence.parse().unwrap(), BASE64.decode(payload).unwrap()));
    }
    ticks
}
