//! Starting, watching and stopping the server.

pub mod account;
pub mod certificates;
pub mod collector;
pub mod engines;
pub mod external;
pub mod frames;
pub mod http;
pub mod idp;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod load_client;
mod machine;
pub mod processes;
pub mod raw;
pub mod terminal;
pub mod tunnel;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

pub use machine::{alone, beside_others, forget, register, while_waiting};
pub use processes::wait_for_exit;

/// Options that bind free ports.
pub const FREE_PORTS: [&str; 6] = ["--tcp", "127.0.0.1:0", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
/// Options with room for everything that a test publishes, so that no client is closed for being slow, however long a busy
/// machine keeps it from reading.
pub const LOSSLESS: [&str; 6] =
    ["--outbox-max", "64MiB", "--egress-log", "128MiB", "--stall-deadline", "10m"];
/// Longest wait for anything before the test fails as hung.
pub const GUARD: Duration = Duration::from_secs(180);
/// Polling interval for conditions without an event to wait for.
pub const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Polls until `done`, at most [`GUARD`] long.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < GUARD, "timed out waiting for: {what}");
        thread::sleep(LOOK_AGAIN);
    }
}

/// Writes a line to standard error. Not eprintln: the test runner captures its output when a test passes.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A file of `tests/data`.
pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// The synthetic market capture: 4,000 ticks of 28 topics.
pub fn market_capture() -> PathBuf {
    data("market.ndjson")
}

/// A process's output, collected as it arrives.
#[derive(Clone, Default)]
pub struct Log(Arc<(Mutex<Written>, Condvar)>);

#[derive(Default)]
struct Written {
    text: String,
    ended: bool,
}

impl Log {
    /// Collects from a pipe until its end, on a thread of its own.
    pub fn collect(pipe: impl std::io::Read + Send + 'static) -> Log {
        let log = Log::default();
        let (shared, mut reader) = (log.clone(), BufReader::new(pipe));
        thread::spawn(move || {
            let mut line = Vec::new();
            loop {
                line.clear();
                let ended = !reader.read_until(b'\n', &mut line).is_ok_and(|len| len > 0);
                let (written, grown) = &*shared.0;
                let mut written = written.lock().unwrap();
                written.text.push_str(&String::from_utf8_lossy(&line));
                written.ended = ended;
                grown.notify_all();
                if ended {
                    return;
                }
            }
        });
        log
    }

    /// The text so far.
    pub fn text(&self) -> String {
        self.0.0.lock().unwrap().text.clone()
    }

    /// Waits for the end of the process and returns the whole text.
    pub fn whole(&self) -> String {
        self.wait_until("the end", |written| written.ended);
        self.text()
    }

    /// Waits until the text contains `part`.
    pub fn wait_for(&self, part: &str) {
        self.wait_until(&format!("{part:?}"), |written| written.text.contains(part));
    }

    fn wait_until(&self, what: &str, done: impl Fn(&Written) -> bool) {
        let (written, grown) = &*self.0;
        let guard = written.lock().unwrap();
        let (written, _) =
            grown.wait_timeout_while(guard, GUARD, |written| !done(written) && !written.ended).unwrap();
        assert!(done(&written), "{what} did not arrive:\n{}", written.text);
    }
}

/// A running `tickcast serve`, killed on drop.
pub struct Server {
    child: Child,
    /// Native address.
    pub tcp: SocketAddr,
    /// HTTP address.
    pub http: SocketAddr,
    /// Address of the admin listener, if there is one.
    pub admin: Option<SocketAddr>,
    /// Its standard error.
    pub log: Log,
}

/// How a server ended.
pub struct Stopped {
    /// Exit code.
    pub code: Option<i32>,
    /// All it logged.
    pub log: String,
}

impl Stopped {
    /// A logged total; 0 if it was not logged.
    pub fn total(&self, counter: &str) -> u64 {
        let before = format!("total {counter} ");
        let line = self.log.lines().find_map(|line| line.split_once(&before).map(|(_, rest)| rest));
        line.map_or(0, |rest| rest.split(' ').next().unwrap().parse().unwrap())
    }

    /// Asserts exit code 0 and no session left.
    pub fn assert_clean(&self) {
        assert_eq!(self.code, Some(0), "exit code; log:\n{}", self.log);
        assert_eq!(self.total("sessions_open"), 0, "sessions left; log:\n{}", self.log);
        assert!(!self.log.contains("panicked"), "log:\n{}", self.log);
    }
}

/// The command, without settings from the environment.
pub fn tickcast() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tickcast"));
    for name in ENVIRONMENT {
        command.env_remove(name);
    }
    command
}

/// The command as a user without privileges, if the tests run as root. `through`: a program that starts it, with arguments.
pub fn tickcast_without_privileges(user: u32, through: &[&str], program: &File) -> Command {
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let user = format!("--reuid={user}");
    let setpriv = ["setpriv", &user, "--clear-groups"].into_iter().filter(|_| is_root);
    // Through an open file, because the user may not be allowed to enter the program's folder.
    let words: Vec<&str> = setpriv.chain(through.iter().copied()).chain(["/proc/self/fd/0"]).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::from(program.try_clone().unwrap()));
    for name in ENVIRONMENT {
        command.env_remove(name);
    }
    command
}

/// Environment variables that the command reads: its options, and those of a service manager.
pub const ENVIRONMENT: [&str; 18] = [
    "TICKCAST_CORES",
    "TICKCAST_TCP",
    "TICKCAST_HTTP",
    "TICKCAST_ADMIN",
    "TICKCAST_CONFIG",
    "TICKCAST_MAX_CLIENTS",
    "TICKCAST_SERVER",
    "TICKCAST_TOKEN",
    "TICKCAST_TUNE",
    "TICKCAST_FAULT",
    "RUST_LOG",
    "JOURNAL_STREAM",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
];

/// The command, started by a shell that runs `first` and then execs it, so that `$$` is its pid.
pub fn tickcast_after(first: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{first} \"$@\""), "sh", env!("CARGO_BIN_EXE_tickcast")]);
    for name in ENVIRONMENT {
        command.env_remove(name);
    }
    command
}

impl Server {
    /// Starts it on free ports without the simulator, and waits until it listens.
    pub fn start(options: &[&str]) -> Server {
        Server::start_logging("info", &[&["--no-sim"], options].concat())
    }

    /// Starts it on free ports at a log level, with exactly these options.
    pub fn start_logging(level: &str, options: &[&str]) -> Server {
        Server::start_command(tickcast().env("RUST_LOG", level), options)
    }

    /// Starts a prepared command on free ports with exactly these options.
    pub fn start_command(command: &mut Command, options: &[&str]) -> Server {
        Server::start_on("127.0.0.1:0", command, Stdio::null(), options)
    }

    /// [`Server::start_command`] with a standard input.
    pub fn start_with_input(command: &mut Command, input: Stdio, options: &[&str]) -> Server {
        Server::start_on("127.0.0.1:0", command, input, options)
    }

    /// [`Server::start_with_input`] on a given HTTP address, so that clients of a previous server find this one.
    pub fn start_on(http: &str, command: &mut Command, input: Stdio, options: &[&str]) -> Server {
        const DEADLINE: &str = "--handshake-deadline";
        // On a busy machine an interpreter takes seconds between its connection and its request.
        let patient = if options.contains(&DEADLINE) { &[][..] } else { &[DEADLINE, "10m"] };
        let mut child = command
            .args(["serve", "--tcp", "127.0.0.1:0", "--http", http, "--admin", "127.0.0.1:0"])
            .args(patient)
            .args(options)
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        machine::register(child.id());
        let log = Log::collect(child.stderr.take().unwrap());
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        // Drained, so that the server never writes into a closed pipe.
        thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        let word = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name));
        let admin = word("admin=").map(|word| word.parse().unwrap());
        let mut address = |name: &str| {
            let Some(word) = word(name) else {
                let code = wait_for_exit(&mut child);
                panic!("no address {name} in {line:?}, exit {code:?}; log:\n{}", log.text());
            };
            word.parse().unwrap()
        };
        let (tcp, http) = (address("tcp="), address("http="));
        assert!(line.starts_with("listening "), "{line:?}");
        Server { child, tcp, http, admin, log }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
    }

    /// Waits until it has exited.
    pub fn wait(mut self) -> Stopped {
        machine::forget(self.pid());
        let code = wait_for_exit(&mut self.child);
        Stopped { code, log: self.log.whole() }
    }

    /// Sends SIGTERM and waits.
    pub fn stop(self) -> Stopped {
        self.terminate();
        self.wait()
    }

    /// Sends SIGTERM, waits and asserts a clean exit.
    pub fn stop_cleanly(self) -> Stopped {
        let stopped = self.stop();
        stopped.assert_clean();
        stopped
    }

    /// Open descriptors. Clients' sockets are registered files of a ring and not counted: see [`Server::connections`].
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Resident memory.
    pub fn rss_bytes(&self) -> u64 {
        processes::rss_bytes(self.pid())
    }

    /// Sockets on its two ports that the server has not finished with: connected, or waiting for the client's close.
    pub fn connections(&self) -> usize {
        let ports = [self.tcp, self.http].map(|address| format!(":{:04X}", address.port()));
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let is_ours = |line: &&str| {
            let mut fields = line.split_whitespace();
            let (local, state) = (fields.nth(1).unwrap_or_default(), fields.nth(1).unwrap_or_default());
            // include/net/tcp_states.h: all but TIME_WAIT, SYN_RECV (not accepted yet) and LISTEN.
            ports.iter().any(|port| local.ends_with(port)) && !["06", "0A", "03", "0C"].contains(&state)
        };
        table.lines().skip(1).filter(is_ours).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        machine::forget(self.pid());
        processes::end(&mut self.child);
        if thread::panicking() {
            eprintln!("the server's log:\n{}", self.log.text());
        }
    }
}
