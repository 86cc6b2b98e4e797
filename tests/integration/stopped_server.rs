//! A server that is suspended takes nothing and answers nothing: its command-line clients say so and end, instead of waiting
//! for ever, and what they say they published has been published.

use std::{
    io::Write,
    process::{Child, Stdio},
    thread,
};

use crate::harness::{
    Log, Server, beside_others, data,
    frames::{self, Options, Raw},
    processes::{end, resume, suspend},
    raw::Peer,
    tickcast, wait_for_exit,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A running client, killed on drop.
struct Client {
    child: Child,
    out: Log,
    errors: Log,
}

impl Client {
    fn start(words: &[&str], server: &Server) -> Client {
        let mut command = tickcast();
        command.args(words).args(["--server", &server.tcp.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = Log::collect(child.stdout.take().unwrap());
        let errors = Log::collect(child.stderr.take().unwrap());
        Client { child, out, errors }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// The payload of the next tick that a subscriber receives.
fn next_tick(peer: &mut Peer) -> Vec<u8> {
    loop {
        let frame = peer.frame().unwrap();
        if frame.kind == frames::TICK {
            return frame.payload;
        }
    }
}

#[test]
fn pub_ends_with_an_error_when_its_server_is_suspended_whether_it_writes_or_waits_for_answers() {
    let _machine = beside_others();
    let server = Server::start(&["--shards", "2", "--ping-interval", "0"]);
    let mut subscriber = Peer::native(server.tcp);
    subscriber.send(&Raw::with_options(frames::SUBSCRIBE, 1, "pub.>", Options::default()).bytes());
    assert_eq!(subscriber.frame().unwrap().kind, frames::SUBSCRIBED);
    // Of short lines, 1,024 wait for an answer at most. Long ones fill the sockets long before.
    let cases = [("pub.short", 16, "no acknowledgement within"), ("pub.long", 200_000, "does not read")];
    let mut clients = Vec::new();
    for (topic, ..) in cases {
        let mut client = Client::start(&["pub", topic, "-"], &server);
        let mut input = client.child.stdin.take().unwrap();
        input.write_all(b"first\n").unwrap();
        assert_eq!(next_tick(&mut subscriber), b"first");
        clients.push((client, input));
    }
    suspend(server.pid());
    let mut running = Vec::new();
    for ((client, mut input), (_, len, _)) in clients.into_iter().zip(cases) {
        let line = [vec![b'x'; len], vec![b'\n']].concat();
        // Ends with the client: it reads no more than it can send.
        let writer = thread::spawn(move || (0..200_000).all(|_| input.write_all(&line).is_ok()));
        running.push((client, writer));
    }
    for ((mut client, writer), (topic, _, part)) in running.into_iter().zip(cases) {
        let (code, errors) = (wait_for_exit(&mut client.child), client.errors.whole());
        assert_eq!(code, Some(1), "{topic}: {errors}");
        assert!(errors.contains(part) && errors.contains("not acknowledged"), "{topic}: {errors}");
        assert!(!writer.join().unwrap(), "{topic}: not all lines were read");
    }
    resume(server.pid());
    drop(subscriber);
    server.stop_cleanly();
}

#[test]
fn process_can_be_stopped_while_its_server_is_suspended() {
    let _machine = beside_others();
    let record = data("ecg/made.hea");
    let server = Server::start(&["--shards", "2", "--ecg", record.to_str().unwrap()]);
    let mut client = Client::start(&["process", "ecg"], &server);
    client.out.wait_for("beat: ");
    suspend(server.pid());
    kill(Pid::from_raw(client.child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(wait_for_exit(&mut client.child), Some(0), "{}", client.errors.text());
    resume(server.pid());
    server.stop_cleanly();
}
