//! The server as a service: notifications to the service manager, and sockets passed by it.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddr, UnixDatagram},
    },
    path::PathBuf,
    process::{Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use crate::{
    harness::{
        GUARD, Server, beside_others,
        collector::{Collector, barrier, connect, publish},
        frames::{self, Raw},
        raw::Peer,
        tickcast_after,
    },
    startup,
    stop::{ROOM_FOR_THE_STUCK, stuck},
};
use tickcast_proto::WireFormat;

/// A service manager's end of NOTIFY_SOCKET. It reads all the time: a full socket would delay the server.
struct Manager {
    path: PathBuf,
    messages: Receiver<String>,
}

impl Manager {
    fn new(name: &str) -> Manager {
        // Not below the target folder: a socket's path has at most 107 bytes.
        let path = std::env::temp_dir().join(format!("tickcast-{}-{name}", std::process::id()));
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).unwrap();
        let (read, messages) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len) = socket.recv(&mut buffer)
                && len > 0
            {
                let _ = read.send(String::from_utf8(buffer[..len].to_vec()).unwrap());
            }
        });
        Manager { path, messages }
    }

    /// The command under this service manager, with a watchdog period.
    fn command(&self, period: Duration) -> Command {
        let mut command = tickcast_after("export WATCHDOG_PID=$$; exec");
        command.env("NOTIFY_SOCKET", &self.path).env("WATCHDOG_USEC", period.as_micros().to_string());
        command
    }

    fn next(&self) -> String {
        self.messages.recv_timeout(GUARD).expect("a message")
    }

    /// The next message with this line; discards those before it.
    fn wait_for(&self, line: &str) -> String {
        loop {
            let message = self.next();
            if message.lines().any(|has| has == line) {
                return message;
            }
        }
    }

    /// Discards the messages so far.
    fn forget(&self) {
        self.messages.try_iter().for_each(drop);
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // An empty message ends the reader.
        let _ = UnixDatagram::unbound().unwrap().send_to(b"", &self.path);
        let _ = fs::remove_file(&self.path);
    }
}

/// Short, so that a test sees many notifications.
const PERIOD: Duration = Duration::from_millis(200);
/// A shard without CPU for three quarters of it is reported as hanging: longer than a busy machine delays a thread.
const PATIENT_PERIOD: Duration = Duration::from_secs(6);

#[test]
fn ready_is_sent_once_it_listens_and_stopping_when_it_drains() {
    let _machine = beside_others();
    let manager = Manager::new("ready");
    let options = ["--no-sim", "--shards", "2", "--drain-deadline", "60s"];
    let server = Server::start_command(&mut manager.command(PERIOD), &options);
    let first = manager.next();
    assert!(first.starts_with("READY=1\n"), "{first}");
    let expected = format!("STATUS=serving tcp={} http={} shards=2\n", server.tcp, server.http);
    assert!(first.contains(&expected), "{first}");
    for address in [server.tcp, server.http] {
        TcpStream::connect(address).unwrap();
    }
    server.terminate();
    let last = manager.wait_for("STOPPING=1");
    assert!(last.contains("EXTEND_TIMEOUT_USEC=63000000\n") && last.contains("STATUS=draining"), "{last}");
    server.wait().assert_clean();
}

#[test]
fn the_watchdog_is_fed_while_idle_under_load_and_in_a_long_drain() {
    let _machine = beside_others();
    let manager = Manager::new("watchdog");
    let options = [&["--no-sim", "--shards", "3", "--drain-deadline", "1h"][..], &ROOM_FOR_THE_STUCK[..]];
    let server = Server::start_command(&mut manager.command(PATIENT_PERIOD), &options.concat());
    let fed = || (0..4).for_each(|_| drop(manager.wait_for("WATCHDOG=1")));
    manager.wait_for("READY=1");
    fed();

    let subscriber = Collector::start(&server, WireFormat::TCP_NATIVE, &["load.>"]);
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    manager.forget();
    let mut published = 0;
    for _ in 0..4 {
        for tick in 0..5_000 {
            publish(&mut publisher, &format!("load.{}", tick % 7), &[b'x'; 100]);
        }
        barrier(&mut publisher);
        published += 5_000;
        manager.wait_for("WATCHDOG=1");
    }
    subscriber.wait_for(published);

    let stuck = stuck(&server, &mut publisher, WireFormat::TCP_NATIVE);
    server.terminate();
    manager.wait_for("STOPPING=1");
    fed();
    drop((stuck, publisher));
    subscriber.finish();
    let stopped = server.wait();
    assert_eq!(stopped.code, Some(0), "{}", stopped.log);
    assert!(!stopped.log.contains("is stuck"), "{}", stopped.log);
}

#[test]
fn a_lost_service_manager_does_not_end_the_server() {
    let _machine = beside_others();
    let manager = Manager::new("gone");
    let mut command = manager.command(PERIOD);
    drop(manager);
    let server = Server::start_command(&mut command, &["--no-sim"]);
    server.log.wait_for("cannot notify");
    TcpStream::connect(server.tcp).unwrap();
    server.stop_cleanly();
}

#[test]
fn an_abstract_socket_is_notified() {
    let _machine = beside_others();
    let name = format!("tickcast-test-{}", std::process::id());
    let manager = UnixDatagram::bind_addr(&UnixAddr::from_abstract_name(&name).unwrap()).unwrap();
    manager.set_read_timeout(Some(GUARD)).unwrap();
    let mut command = tickcast_after("exec");
    let server = Server::start_command(command.env("NOTIFY_SOCKET", format!("@{name}")), &["--no-sim"]);
    let mut buffer = [0; 4096];
    let len = manager.recv(&mut buffer).unwrap();
    assert!(buffer[..len].starts_with(b"READY=1\n"), "{:?}", String::from_utf8_lossy(&buffer[..len]));
    server.stop_cleanly();
}

#[test]
fn a_service_manager_that_cannot_be_notified_is_one_warning() {
    let _machine = beside_others();
    let mut command = tickcast_after("export WATCHDOG_PID=$$; exec");
    command.env("NOTIFY_SOCKET", "vsock:2:1234").env("WATCHDOG_USEC", PERIOD.as_micros().to_string());
    // It fails at least twice: ready and stopping.
    let stopped = Server::start_command(command.env("RUST_LOG", "info"), &["--no-sim"]).stop_cleanly();
    let warnings: Vec<&str> = stopped.log.lines().filter(|line| line.contains("cannot notify")).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("NOTIFY_SOCKET=vsock:2:1234: "), "{warnings:?}");
}

/// The command with standard input passed on as the sockets of these names.
fn passing(names: &str) -> Command {
    let count = names.split(':').count();
    let descriptors: String = (3..3 + count).map(|descriptor| format!("{descriptor}<&0 ")).collect();
    tickcast_after(&format!(
        "export LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES={names}; exec {descriptors} </dev/null"
    ))
}

fn input(listener: &TcpListener) -> Stdio {
    OwnedFd::from(listener.try_clone().unwrap()).into()
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[test]
fn a_passed_socket_is_served_and_queues_connections_between_two_servers() {
    let _machine = beside_others();
    let (passed, address) = listener();
    let server =
        Server::start_with_input(passing("tcp").env("RUST_LOG", "info"), input(&passed), &["--no-sim"]);
    assert_eq!(server.tcp, address);
    assert_ne!(server.http, address);
    drop(connect(&server, WireFormat::TCP_NATIVE));
    drop(connect(&server, WireFormat::WEBSOCKET_JSON));
    assert!(server.stop_cleanly().log.contains("a socket that the service manager passed"));

    let mut waiting = Peer::connect(address);
    waiting.send(&Raw::request(frames::HELLO, 1, b"early").bytes());
    let server =
        Server::start_with_input(passing("tcp").env("RUST_LOG", "info"), input(&passed), &["--no-sim"]);
    assert_eq!(waiting.frame().unwrap().kind, frames::WELCOME);
    drop(waiting);
    server.stop_cleanly();
}

#[test]
fn connections_of_a_passed_socket_are_spread_over_all_shards() {
    let _machine = beside_others();
    let (passed, address) = listener();
    // Each shard admits 10 at once, so 30 are admitted only if the connections are spread evenly.
    let options = ["--no-sim", "--shards", "3", "--accept-rate", "30"];
    let server = Server::start_with_input(&mut passing("http"), input(&passed), &options);
    assert_eq!(server.http, address);
    let mut clients: Vec<_> = (0..30).map(|_| connect(&server, WireFormat::WEBSOCKET_NATIVE)).collect();
    for client in &mut clients {
        publish(client, "dealt", b"1");
        barrier(client);
    }
    drop(clients);
    let stopped = server.stop_cleanly();
    assert_eq!(stopped.total("ticks_sequenced"), 30);
    assert_eq!(stopped.total("sessions_refused_rate"), 0);
}

#[test]
fn a_socket_passed_to_the_parent_is_served_with_or_without_a_name() {
    let _machine = beside_others();
    // As podman passes it to process 1 of a container, whose child is the server.
    let parent = std::process::id();
    for names in ["", "export LISTEN_FDNAMES=tcp;", "export LISTEN_FDNAMES=native;"] {
        let (passed, address) = listener();
        let mut command = tickcast_after(&format!(
            "export LISTEN_PID={parent} LISTEN_FDS=1; {names} exec 3<&0 </dev/null; exec"
        ));
        let server = Server::start_with_input(&mut command, input(&passed), &["--no-sim"]);
        assert_eq!(server.tcp, address, "{names}");
        server.stop_cleanly();
    }
}

#[test]
fn a_socket_whose_unit_gives_no_name_is_served_and_further_ones_are_further_listeners() {
    let _machine = beside_others();
    for (names, is_http, sockets) in [
        ("tickcast.socket", false, 1),
        ("tickcast-http.socket", true, 1),
        // As a unit with two ListenStream= for IPv4 and IPv6.
        ("http:http", true, 2),
        ("tickcast.socket:tickcast.socket", false, 2),
    ] {
        let (passed, address) = listener();
        let mut command = passing(names);
        let server = Server::start_with_input(command.env("RUST_LOG", "info"), input(&passed), &["--no-sim"]);
        assert_eq!(if is_http { server.http } else { server.tcp }, address, "{names}");
        let format = if is_http { WireFormat::WEBSOCKET_JSON } else { WireFormat::TCP_NATIVE };
        (0..4).for_each(|_| drop(connect(&server, format)));
        let log = server.stop_cleanly().log;
        assert_eq!(log.matches("a socket that the service manager passed").count(), sockets, "{log}");
    }
}

#[test]
fn what_a_parent_has_open_is_not_taken_for_its_listening_sockets() {
    let _machine = beside_others();
    let parent = std::process::id();
    for (opened, found) in [
        // The parent has kept its sockets, and only the variables are inherited.
        ("exec 3<&-", "it is not open"),
        ("exec 3</dev/null", "it is not a socket"),
        ("exec 3>&1", "it is not a socket"),
    ] {
        let mut command = tickcast_after(&format!("export LISTEN_PID={parent} LISTEN_FDS=1; {opened}; exec"));
        let log = Server::start_command(&mut command, &["--no-sim"]).stop_cleanly().log;
        assert!(log.contains("ignoring descriptor 3 ") && log.contains(found), "{opened}: {log}");
    }
    // The listening socket among others is served. Descriptor 5 is not open.
    let (passed, address) = listener();
    let mut command = tickcast_after(&format!(
        "export LISTEN_PID={parent} LISTEN_FDS=3 LISTEN_FDNAMES=http:tcp:admin; exec 4<&0 3</dev/null 5<&- </dev/null; exec"
    ));
    let server = Server::start_with_input(&mut command, input(&passed), &["--no-sim"]);
    assert_eq!(server.tcp, address);
    let log = server.stop_cleanly().log;
    assert!(log.contains("ignoring descriptor 3 (\"http\")") && log.contains("it is not a socket"), "{log}");
    assert!(log.contains("ignoring descriptor 5 (\"admin\")") && log.contains("it is not open"), "{log}");
    assert_eq!(log.matches("ignoring descriptor").count(), 2, "{log}");
}

#[test]
fn more_sockets_than_are_open_are_refused() {
    let (passed, _) = listener();
    let mut command = tickcast_after("export LISTEN_PID=$$ LISTEN_FDS=2; exec 3<&0 4<&- </dev/null; exec");
    let (code, text) = startup::run_with_input(command.arg("serve"), input(&passed));
    assert_eq!((code, text.lines().count()), (Some(1), 1), "{text}");
    assert!(text.contains("descriptor 4: ") && text.contains("LISTEN_FDS=2"), "{text}");
}

#[test]
fn a_socket_passed_to_another_process_is_ignored() {
    let _machine = beside_others();
    let (passed, address) = listener();
    // Above the kernel's largest pid, so it is neither the server nor its parent, which in a container may be process 1.
    let mut command = tickcast_after(
        "export LISTEN_PID=4194305 LISTEN_FDS=1 LISTEN_FDNAMES=tcp; exec 3<&0 </dev/null; exec",
    );
    let server = Server::start_with_input(&mut command, input(&passed), &["--no-sim"]);
    assert_ne!(server.tcp, address);
    // It is passed all the same: the server has it, and does not use it.
    let third = std::fs::read_link(format!("/proc/{}/fd/3", server.pid())).unwrap();
    assert!(third.to_string_lossy().starts_with("socket:"), "{third:?}");
    let stopped = server.stop_cleanly();
    assert!(stopped.log.contains("they are for process 4194305 (LISTEN_PID)"), "{}", stopped.log);
}

#[test]
fn an_unusable_passed_socket_is_refused_with_the_fix_for_its_unit() {
    let _machine = beside_others();
    let (passed, _) = listener();
    for (names, answer) in [
        ("admin:admin", "a single ListenStream="),
        ("ticks", "FileDescriptorName= of its unit must be one of: tcp, http, admin"),
    ] {
        let (code, text) = startup::run_with_input(passing(names).arg("serve"), input(&passed));
        assert_eq!((code, text.lines().count()), (Some(1), 1), "{names}: {text}");
        assert!(text.contains(answer), "{names}: {text}");
    }
    let unwanted = startup::run_with_input(passing("admin").args(["serve", "--no-admin"]), input(&passed));
    assert_eq!((unwanted.0, unwanted.1.lines().count()), (Some(1), 1), "{}", unwanted.1);
    assert!(
        unwanted.1.contains("\"admin\"") && unwanted.1.contains("leave out --no-admin"),
        "{}",
        unwanted.1
    );
    let (code, text) = startup::run_with_input(passing("tcp").arg("serve"), Stdio::null());
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("it is not a socket; ListenStream="), "{text}");
}

/// The highest exposure that `systemd-analyze security` may find in each unit, in tenths: 100 is the worst. The server cannot be
/// below 12, because it needs the network, io_uring and its CPUs; tuning needs root, /proc/sys and /sys.
const EXPOSURE_MAX: [(&str, u32); 2] = [("tickcast.service", 12), ("tickcast-tune.service", 66)];

#[test]
fn the_units_leave_no_more_exposed_than_they_need() {
    for (unit, tenths) in EXPOSURE_MAX {
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("systemd").join(unit);
        let mut command = Command::new("systemd-analyze");
        command.args(["security", "--offline=true", "--no-pager", &format!("--threshold={tenths}")]);
        let output = command.arg(&file).stdin(Stdio::null()).output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{unit} exceeds {tenths} tenths:\n{text}");
        assert!(text.contains("Overall exposure level"), "{text}");
    }
}
