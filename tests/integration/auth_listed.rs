//! Principals that the configuration file lists: what a reload does to their open sessions, and a verification that fails.

use std::{fs, io::Write, process::Stdio};

use crate::{
    auth::{MACHINE_TOKEN, config, file, metric, native, server, token},
    harness::{
        Server, beside_others,
        frames::{self, Raw},
        tickcast,
    },
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

#[test]
fn a_reload_ends_or_narrows_the_open_sessions_of_what_it_lists_and_no_others() {
    let _machine = beside_others();
    let listed = |name: &str, token: &str, allow: &str| {
        let mut child = tickcast()
            .args(["token", "--hash"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.take().unwrap(), "{token}").unwrap();
        let hash = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        format!(
            "[[auth.token]]\nname = {name:?}\n{hash}permissions = {{ sub = {{ allow = [{allow:?}] }} }}\n"
        )
    };
    let (removed, narrowed) = ("removed-0123456789abcdef01234567", "narrowed-0123456789abcdef0123456");
    let anonymous = "[auth.anonymous]\npermissions = { sub = { allow = [\"public.>\"] } }\n";
    let before = [config(anonymous), listed("removed", removed, ">"), listed("narrowed", narrowed, ">")];
    let server = server("listed", &before.concat());
    let opened = |token: &str| {
        let (mut peer, welcome) = native(&server, token);
        assert_eq!(welcome.kind, frames::WELCOME);
        peer.send(&Raw::request(frames::SUBSCRIBE, 2, b"public.x").bytes());
        assert_eq!(peer.frame().unwrap().kind, frames::SUBSCRIBED);
        peer
    };
    let jwt = token(&["--sub", "bob", "--allow-sub", "public.>"]);
    let mut peers = [removed, narrowed, MACHINE_TOKEN, &jwt, ""].map(opened);
    fs::write(file("listed.toml"), [config(""), listed("narrowed", narrowed, "user.>")].concat()).unwrap();
    kill(Pid::from_raw(server.pid() as i32), Signal::SIGHUP).unwrap();
    let [removed, narrowed, machine, jwt, anonymous] = &mut peers;
    for peer in [removed, anonymous] {
        let closing = peer.frame().unwrap();
        assert_eq!((closing.kind, closing.code()), (frames::CLOSING, 3500));
    }
    let ended = narrowed.frame().unwrap();
    assert_eq!((ended.kind, ended.code()), (frames::ERROR, 108), "its subscription");
    for peer in [narrowed, machine, jwt] {
        peer.send(&Raw::ping(1).bytes());
        assert_eq!(peer.frame().unwrap().kind, frames::PONG);
    }
    drop(peers);
    server.stop_cleanly();
}

#[test]
fn a_verification_that_panics_refuses_its_token_and_the_server_goes_on() {
    let _machine = beside_others();
    let path = file("panics.toml");
    fs::write(&path, config("")).unwrap();
    let server = Server::start_command(
        tickcast().env("TICKCAST_FAULT", "verifier 0 panic"),
        &["--shards", "2", "--config", path.to_str().unwrap()],
    );
    for _ in 0..3 {
        let (_, first) = native(&server, MACHINE_TOKEN);
        assert_eq!((first.kind, first.code()), (frames::CLOSING, 3500));
    }
    assert_eq!(metric(&server, "tickcast_auth_panics_total"), 3.0);
    assert_eq!(metric(&server, "tickcast_auth_verifications_total{result=\"invalid\"}"), 3.0);
    server.log.wait_for("auth: the verification of a client's credentials panicked at ");
    let stopped = server.stop();
    assert!(!stopped.log.contains("injected fault"), "the message may quote the token: {}", stopped.log);
}
