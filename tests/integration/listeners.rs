//! Any number of listeners, on TCP ports and Unix sockets, all with the same topics.

use std::{
    fs,
    net::TcpStream,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tickcast_proto::WireFormat;

use crate::{
    harness::{
        GUARD, Log, Server, beside_others,
        collector::{barrier, connect, publish},
        forget,
        frames::{self, Raw},
        processes,
        raw::Peer,
        register, tickcast, wait_for_exit,
    },
    startup,
};

/// A path for a socket of this test.
fn socket(name: &str) -> PathBuf {
    // Not below the target folder: a socket's path has 107 bytes.
    std::env::temp_dir().join(format!("tickcast-{}-{name}.sock", std::process::id()))
}

/// Connects to a Unix socket. The peer only reads and writes, which works on any stream.
fn unix(path: &Path) -> Peer {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    stream.set_write_timeout(Some(GUARD)).unwrap();
    Peer { stream: TcpStream::from(OwnedFd::from(stream)), buffer: Vec::new() }
}

/// A native session over a Unix socket that has been welcomed.
fn native(path: &Path) -> Peer {
    let mut peer = unix(path);
    peer.send(&Raw::request(frames::HELLO, 1, b"raw").bytes());
    assert_eq!(peer.frame().unwrap().kind, frames::WELCOME);
    peer
}

/// The answer to a GET over a Unix socket.
fn get(path: &Path, target: &str) -> String {
    let mut peer = unix(path);
    peer.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes());
    String::from_utf8(peer.read_to_end()).unwrap()
}

/// A server with exactly these options. Ended when dropped.
struct Own {
    child: Child,
    out: Log,
    err: Log,
}

impl Own {
    fn start(options: &[&str]) -> Own {
        let mut command = tickcast();
        command.args(["serve", "--no-sim", "--shards", "1"]).args(options);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        register(child.id());
        let (out, err) =
            (Log::collect(child.stdout.take().unwrap()), Log::collect(child.stderr.take().unwrap()));
        out.wait_for("listening ");
        Own { child, out, err }
    }

    fn stop(mut self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
        assert_eq!(wait_for_exit(&mut self.child), Some(0), "{}", self.err.text());
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        forget(self.child.id());
        processes::end(&mut self.child);
    }
}

#[test]
fn clients_of_every_listener_get_the_same_ticks_and_unix_sockets_have_no_limit_per_source() {
    let _machine = beside_others();
    let (native_path, http_path) = (socket("native"), socket("http"));
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("listeners.toml");
    let text = format!(
        "source = []\n\
         [[listener]]\nkind = \"native\"\naddress = \"127.0.0.1:0\"\n\
         [[listener]]\nkind = \"http\"\naddress = \"127.0.0.1:0\"\n\
         [[listener]]\nkind = \"native\"\naddress = \"unix:{}\"\nmode = \"0600\"\n\
         [[listener]]\nkind = \"http\"\naddress = \"unix:{}\"\n\
         [limits]\nmax_clients_per_source = 1\nunlimited_sources = \"none\"\n",
        native_path.display(),
        http_path.display(),
    );
    fs::write(&file, text).unwrap();
    let options = ["--shards", "3", "--config", file.to_str().unwrap()];
    let server = Server::start_command(&mut tickcast(), &options);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&native_path), mode(&http_path)), (0o600, 0o660));

    // One shard accepts and distributes them: all three have some.
    let mut natives: Vec<Peer> = (0..6).map(|_| native(&native_path)).collect();
    for peer in &mut natives {
        peer.send(&Raw::request(frames::SUBSCRIBE, 2, b"a").bytes());
        assert_eq!(peer.frame().unwrap().kind, frames::SUBSCRIBED);
    }
    let mut websocket = unix(&http_path);
    websocket.upgrade("/ws?topics=a", "tickcast.v1.json");
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    publish(&mut publisher, "a", b"[7]");
    barrier(&mut publisher);
    for peer in &mut natives {
        let mut tick = peer.frame().unwrap();
        while tick.kind == frames::SUBSCRIBED {
            // The announcement of the topic, which comes before its first tick.
            tick = peer.frame().unwrap();
        }
        assert_eq!((tick.kind, tick.payload.as_slice()), (frames::TICK, &b"[7]"[..]));
    }
    let mut message = websocket.message().unwrap();
    while !message.text().contains("[7]") {
        message = websocket.message().unwrap();
    }
    let page = get(&http_path, "/");
    assert!(page.starts_with("HTTP/1.1 200 ") && page.contains("<html"), "{page}");
    drop((natives, websocket, publisher));
    server.stop_cleanly();
    assert!(!native_path.exists() && !http_path.exists(), "a server that stops removes its sockets");
    fs::remove_file(&file).unwrap();
}

#[test]
fn every_listener_is_printed_and_the_admin_listener_may_be_a_unix_socket() {
    let _machine = beside_others();
    let (native_path, admin_path) = (socket("first"), socket("admin"));
    let (tcp, admin) = (format!("unix:{}", native_path.display()), format!("unix:{}", admin_path.display()));
    let server = Own::start(&["--tcp", &tcp, "--http", "127.0.0.1:0", "--admin", &admin]);
    let text = server.out.text();
    let line = text.lines().next().unwrap();
    assert!(line.starts_with("listening http=127.0.0.1:"), "{line}");
    assert!(line.ends_with(&format!(" admin={admin} shards=1 native={tcp}")), "{line}");
    drop(native(&native_path));
    assert!(get(&admin_path, "/readyz").starts_with("HTTP/1.1 200 "));
    assert!(get(&admin_path, "/metrics").contains("tickcast_sessions_open"));
    server.stop();
    assert!(!admin_path.exists());
}

#[test]
fn a_socket_that_a_killed_server_left_is_taken_over_and_one_in_use_is_not() {
    let _machine = beside_others();
    let path = socket("killed");
    let address = format!("unix:{}", path.display());
    let options = ["--tcp", &address, "--http", "127.0.0.1:0", "--no-admin"];
    let mut killed = Own::start(&options);
    let mut command = tickcast();
    command.args(["serve", "--no-sim"]).args(options);
    let (code, text) = startup::run_with_input(&mut command, Stdio::null());
    assert_eq!((code, text.lines().count()), (Some(1), 1), "{text}");
    assert!(text.contains(&address) && text.contains("in use") && text.contains("--tcp"), "{text}");
    killed.child.kill().unwrap();
    wait_for_exit(&mut killed.child);
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());
    let server = Own::start(&options);
    drop(native(&path));
    server.stop();

    fs::write(&path, "precious").unwrap();
    let (code, text) = startup::run_with_input(&mut command, Stdio::null());
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("not a socket"), "{text}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();
}

#[test]
fn every_error_of_a_file_is_one_line_with_the_files_name_and_the_lines_number() {
    let _machine = beside_others();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("wrong.toml");
    fs::write(&file, "outbox_bytes_max = 1048576\n[limits]\ntopics_mx = 1\nframe_max = \"10B\"\n").unwrap();
    for check in ["--check-config", "--print-config"] {
        let mut command = tickcast();
        command.args(["serve", check, "--config"]).arg(&file);
        let (code, text) = startup::run_with_input(&mut command, Stdio::null());
        assert_eq!(code, Some(2), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        for (line, parts) in lines.iter().zip([
            ["WARN", "line 1", "outbox_bytes_max is now limits.outbox_max"],
            ["ERROR", "line 3", "did you mean topics_max?"],
            ["ERROR", "line 4", "limits.frame_max: 10B"],
        ]) {
            assert!(parts.iter().all(|part| line.contains(part)) && line.contains("wrong.toml"), "{line}");
        }
    }
    fs::remove_file(&file).unwrap();
}
