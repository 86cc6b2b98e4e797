//! What the client commands do for the person or program at the other end of their pipes and addresses.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    harness::{
        Server, beside_others, eventually,
        http::get_of_all_shards,
        processes::{FullPipe, Guarded},
        tickcast, wait_for_exit,
    },
    startup,
};

/// A client command for a server.
fn client(words: &[&str], server: &str) -> Command {
    let mut command = tickcast();
    command.args(words).args(["--server", server]).stdin(Stdio::null());
    command
}

#[test]
fn a_client_ends_with_the_reader_of_its_output_while_its_topics_are_quiet() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    for words in [&["sub", "quiet"][..], &["sub", "--json", "quiet"], &["process", "ecg"]] {
        let mut command = client(words, &server.tcp.to_string());
        let mut child = Guarded(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        // It does not end before, for another reason.
        eventually("it has subscribed", || {
            let shards = get_of_all_shards(server.admin.unwrap(), "/v1/shards").json();
            let subscribed = |shard: &Value| shard["counters"]["sessions_subscribed"].as_u64().unwrap();
            shards["shards"].as_array().unwrap().iter().map(subscribed).sum::<u64>() == 1
        });
        assert!(child.try_wait().unwrap().is_none());
        drop(child.stdout.take());
        assert_eq!(wait_for_exit(&mut child), Some(0), "{words:?}");
        eventually("the server has noticed", || server.connections() == 0);
    }
    server.stop_cleanly();
}

#[test]
fn sub_and_pub_reach_a_server_over_a_unix_socket() {
    let _machine = beside_others();
    let path = std::env::temp_dir().join(format!("tickcast-{} client.sock", std::process::id()));
    let config = path.with_extension("toml");
    let listeners = [("native", format!("unix:{}", path.display())), ("admin", "127.0.0.1:0".to_owned())];
    let listeners = listeners
        .map(|(kind, address)| format!("[[listener]]\nkind = \"{kind}\"\naddress = \"{address}\"\n"));
    std::fs::write(&config, listeners.concat()).unwrap();
    let mut command = tickcast();
    command.args(["serve", "--no-sim", "--config"]).arg(&config).stdin(Stdio::null());
    let mut server = Guarded(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("listening "), "{line}");

    let address = format!("unix:{}", path.display());
    let publish = |data: &str| {
        let (code, text) = startup::run(&mut client(&["pub", "t", data], &address));
        assert_eq!((code, &*text), (Some(0), ""));
    };
    publish("{\"n\":1}");
    let mut command = client(&["sub", "t", "--from", "latest", "--count", "2"], &address);
    let mut sub = Guarded(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(sub.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "t 1 {\"n\":1}");
    publish("{\"n\":2}");
    assert_eq!(lines.next().unwrap(), "t 2 {\"n\":2}");
    assert_eq!(wait_for_exit(&mut sub), Some(0));

    let (code, text) = startup::run(&mut client(&["sub", "t"], "unix:/no/such.sock"));
    assert_eq!(code, Some(1));
    assert!(text.contains("cannot connect to unix:/no/such.sock: No such file"), "{text}");
    kill(Pid::from_raw(server.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(wait_for_exit(&mut server), Some(0));
    std::fs::remove_file(config).unwrap();
}

#[test]
fn a_client_on_the_wrong_port_learns_the_right_address() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    let (http, native) = (server.http, server.tcp);
    for words in [&["sub", "t"][..], &["pub", "t", "1"]] {
        let (code, text) = startup::run(&mut client(words, &http.to_string()));
        assert_eq!(code, Some(1));
        assert!(text.contains(&format!("{http} is an HTTP port: use ws://{http}/ws")), "{text}");
        let (code, text) = startup::run(&mut client(words, &format!("ws://{native}")));
        assert_eq!(code, Some(1));
        assert!(text.contains("this is the native port: use HOST:PORT, without ws://"), "{text}");
    }
    server.stop_cleanly();
}

#[test]
fn a_command_whose_output_nobody_reads_still_ends_at_sigterm() {
    let _machine = beside_others();
    let server = Server::start(&["--ecg", "synthetic"]);
    let output = FullPipe::new("unread");
    let mut command = client(&["process", "ecg"], &server.tcp.to_string());
    let mut child = Guarded(command.stdout(output.writer()).stderr(Stdio::null()).spawn().unwrap());
    output.wait_for_a_blocked_writer(child.id());
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(wait_for_exit(&mut child), Some(128 + Signal::SIGTERM as i32));
    server.stop_cleanly();
}
