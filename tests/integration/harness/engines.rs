//! NATS and Redis servers that a test starts, with the clients of other people.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use async_nats::jetstream;
use futures_util::StreamExt;
use tokio::runtime::Runtime;

use super::{Log, eventually, http::get, machine, processes};

/// A server of another engine, killed on drop.
pub struct Engine {
    child: Child,
    log: Log,
}

impl Engine {
    fn start(command: &mut Command) -> Engine {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        machine::register(child.id());
        let log = Log::collect(child.stdout.take().unwrap());
        Engine { child, log }
    }

    /// Stops it in its tracks: its connections stay open and silent.
    pub fn stop(&self) {
        processes::suspend(self.child.id());
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        processes::resume(self.child.id());
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        machine::forget(self.child.id());
        processes::end(&mut self.child);
    }
}

/// A new directory below the build's.
fn directory(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// A NATS server with JetStream.
pub struct Nats {
    engine: Option<Engine>,
    directory: PathBuf,
    options: Vec<String>,
    /// Its port, the same after a restart.
    pub port: u16,
    runtime: Runtime,
}

impl Nats {
    /// Starts it on a free port.
    pub fn start(name: &str, options: &[&str]) -> Nats {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let mut nats = Nats { engine: None, directory: directory(name), options, port: 0, runtime };
        nats.run("-1");
        nats.port = nats.port_of("nats");
        nats
    }

    /// The port of one of its listeners. A killed server leaves its file behind: only that of this process counts.
    fn port_of(&self, listener: &str) -> u16 {
        let own = format!("_{}.ports", self.engine().child.id());
        let ports = || {
            let written = fs::read_dir(&self.directory).unwrap().flatten();
            written.map(|file| file.path()).find(|path| path.to_string_lossy().ends_with(&own))
        };
        let mut port = None;
        eventually("the port of nats-server", || {
            let text = ports().and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
            let ports = serde_json::from_str::<serde_json::Value>(&text).unwrap_or_default();
            port = ports[listener][0].as_str().and_then(|url| url.rsplit_once(':')?.1.parse().ok());
            port.is_some()
        });
        port.unwrap()
    }

    /// Waits until somebody has subscribed to a subject. A source is running once it has sent its subscriptions: a busy server may not
    /// have read them yet, and keeps nothing that is published before.
    pub fn wait_for_subscriber(&self, subject: &str) {
        let path = format!("/subsz?subs=1&test={subject}");
        eventually("a subscriber", || {
            self.monitored(&path)["subscriptions_list"].as_array().is_some_and(|list| !list.is_empty())
        });
    }

    /// What its monitor says.
    pub fn monitored(&self, path: &str) -> serde_json::Value {
        get(([127, 0, 0, 1], self.port_of("monitoring")).into(), path).json()
    }

    fn run(&mut self, port: &str) {
        let mut command = Command::new("nats-server");
        command
            .args(["-js", "-a", "127.0.0.1", "-m", "-1", "-p", port, "-sd"])
            .arg(self.directory.join("store"));
        command.arg("--ports_file_dir").arg(&self.directory).args(&self.options);
        self.engine = Some(Engine::start(&mut command));
    }

    /// The server's process.
    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.engine = None;
    }

    /// Starts it again, with its store.
    pub fn restart(&mut self) {
        self.run(&self.port.to_string());
    }

    /// The lines of a `[[source]]` that reach it.
    pub fn servers(&self) -> String {
        format!("servers = [\"nats://127.0.0.1:{}\"]", self.port)
    }

    /// Runs something with a client of it.
    pub fn with<T, F: Future<Output = T>>(&self, run: impl FnOnce(async_nats::Client) -> F) -> T {
        self.runtime.block_on(async {
            let options = async_nats::ConnectOptions::new().retry_on_initial_connect();
            let client = options.connect(format!("127.0.0.1:{}", self.port)).await.unwrap();
            client.flush().await.unwrap();
            run(client).await
        })
    }

    /// Publishes without acknowledgement, and waits until the server has taken everything.
    pub fn publish(&self, subject: &str, payloads: impl Iterator<Item = String>) {
        self.with(async |client| {
            // A flush waits for the socket only. What comes back through an inbox has gone through the server, after the rest.
            let inbox = client.new_inbox();
            let mut marker = client.subscribe(inbox.clone()).await.unwrap();
            for payload in payloads {
                client.publish(subject.to_owned(), payload.into()).await.unwrap();
            }
            client.publish(inbox, "".into()).await.unwrap();
            marker.next().await.unwrap();
        });
    }

    /// Makes a stream.
    pub fn make_stream(&self, name: &str, subjects: &str) {
        let config = jetstream::stream::Config {
            name: name.into(),
            subjects: vec![subjects.into()],
            ..Default::default()
        };
        self.with(async |client| {
            jetstream::new(client).create_stream(config).await.unwrap();
        });
    }

    /// Publishes to a stream, and waits until all is stored.
    pub fn store(&self, subject: &str, payloads: impl Iterator<Item = String>) {
        self.with(async |client| {
            let context = jetstream::new(client);
            let mut stored = Vec::new();
            for payload in payloads {
                stored.push(context.publish(subject.to_owned(), payload.into()).await.unwrap());
                if stored.len() >= 1_000 {
                    for stored in stored.drain(..) {
                        stored.await.unwrap();
                    }
                }
            }
            for stored in stored {
                stored.await.unwrap();
            }
        });
    }
}

/// A Redis server on a socket of its own.
pub struct Redis {
    engine: Option<Engine>,
    directory: PathBuf,
    options: Vec<String>,
}

impl Redis {
    /// Starts it. It stores what it is told at once.
    pub fn start(name: &str, options: &[&str]) -> Redis {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let mut redis = Redis { engine: None, directory: directory(name), options };
        redis.restart();
        redis
    }

    /// Starts it again, with its store.
    pub fn restart(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--appendonly", "yes", "--appendfsync", "always", "--save", ""]);
        command.arg("--unixsocket").arg(self.socket()).arg("--dir").arg(&self.directory).args(&self.options);
        self.engine = Some(Engine::start(&mut command));
        self.engine().log.wait_for("ready to accept connections at");
    }

    /// The server's process.
    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.engine = None;
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    /// The lines of a `[[source]]` that reach it.
    pub fn server(&self) -> String {
        format!("server = \"unix:{}\"", self.socket().display())
    }

    /// A connection, with the password if it needs one.
    pub fn connect(&self) -> redis::Connection {
        let client = redis::Client::open(format!("unix:{}", self.socket().display())).unwrap();
        client.get_connection_with_timeout(Duration::from_secs(60)).unwrap()
    }

    /// Adds entries with a field `data` to a stream.
    pub fn add(&self, stream: &str, payloads: impl Iterator<Item = String>) {
        let (mut connection, mut pipe) = (self.connect(), redis::pipe());
        payloads
            .for_each(|payload| _ = pipe.cmd("XADD").arg(stream).arg("*").arg("data").arg(payload).ignore());
        pipe.exec(&mut connection).unwrap();
    }
}
