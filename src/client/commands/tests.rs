use std::{io::Write, os::fd::AsFd};

use super::*;
use crate::{client::script::serve, wire::frame::Kind};

fn sub(server: String, json: bool, count: Option<u64>) -> SubArgs {
    SubArgs { json, count, no_reconnect: true, ..SubArgs::new("a.>", &server) }
}

/// What `sub` does, prints and notes.
fn run_sub(args: &SubArgs) -> (Result<(), CommandError>, String, String) {
    let (mut out, mut notices) = (Vec::new(), Vec::new());
    let result = subscribe_to(args, &mut out, &mut notices);
    (result, String::from_utf8(out).unwrap(), String::from_utf8(notices).unwrap())
}

fn run_pub(server: String, data: &str, input: &[u8]) -> (Result<(), CommandError>, String) {
    let args = PubArgs { topic: "t".into(), data: data.into(), key: 0, server, client: None };
    let mut notices = Vec::new();
    let result = publish_from(&args, input, &mut notices);
    (result, String::from_utf8(notices).unwrap())
}

#[test]
fn sub_prints_a_line_a_tick_announces_gaps_and_ends_at_the_count() {
    for json in [false, true] {
        let (address, server) = serve(|peer| {
            peer.welcome();
            peer.subscribed();
            peer.tick(1, b"{\"p\":\n1.10}");
            peer.tick(4, b"\xff\x1b[2J\tx");
            peer.tick(5, b"after the count");
            while peer.next().is_some() {}
        });
        let (result, out, notices) = run_sub(&sub(address, json, Some(2)));
        result.unwrap();
        assert_eq!(notices, "gap: a.b [2, 4): 2 ticks lost\n");
        let expected = match json {
            true => {
                "{\"topic\":\"a.b\",\"seq\":1,\"ts\":70,\"data\":{\"p\": 1.10}}\n{\"topic\":\"a.b\",\"seq\":4,\
                 \"ts\":70,\"encoding\":\"base64\",\"data\":\"/xtbMkoJeA==\"}\n"
            }
            false => "a.b 1 {\"p\":\\n1.10}\na.b 4 \u{fffd}\\u{1b}[2J\tx\n",
        };
        assert_eq!(out, expected);
        server.join().unwrap();
    }
}

#[test]
fn sub_says_why_the_server_closed_or_refused() {
    let (address, server) = serve(|peer| {
        peer.welcome();
        peer.subscribed();
        peer.tick(1, b"x");
        peer.closing(3001, "the server stops");
    });
    let (result, out, _) = run_sub(&sub(address, false, None));
    assert!(result.unwrap_err().to_string().contains("the server stops"));
    assert_eq!(out, "a.b 1 x\n");
    server.join().unwrap();

    let (address, server) = serve(|peer| {
        peer.welcome();
        let (_, request, _) = peer.next().unwrap();
        peer.error(request, "bad pattern");
    });
    let (result, ..) = run_sub(&sub(address, false, None));
    assert_eq!(result.unwrap_err().to_string(), "the server refuses \"a.>\": bad pattern (code 101)");
    server.join().unwrap();
}

#[test]
fn a_reader_that_goes_away_ends_sub_quietly() {
    struct Gone;
    impl io::Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (address, server) = serve(|peer| {
        peer.welcome();
        peer.subscribed();
        peer.tick(1, b"x");
        while peer.next().is_some() {}
    });
    subscribe_to(&sub(address, false, None), &mut Gone, &mut Vec::new()).unwrap();
    server.join().unwrap();
}

#[test]
fn pub_sends_each_line_and_ends_after_the_barrier() {
    let (address, server) = serve(|peer| {
        peer.welcome();
        let mut lines = Vec::new();
        while let Some((kind, token, payload)) = peer.next() {
            match kind {
                Kind::Ping => peer.pong(token),
                _ => lines.push(String::from_utf8(payload).unwrap()),
            }
        }
        lines
    });
    let (result, notices) = run_pub(address, "-", b"one\n\n three \nlast");
    result.unwrap();
    assert_eq!(
        (server.join().unwrap(), notices.as_str()),
        (vec!["one".into(), "".into(), " three ".into(), "last".to_owned()], "")
    );
}

#[test]
fn pub_answers_the_server_while_it_waits_for_the_rest_of_a_line() {
    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(b"one").unwrap();
    let (address, server) = serve(move |peer| {
        peer.welcome();
        peer.ping(7);
        let answer = peer.next().unwrap();
        writer.write_all(b" line\n").unwrap();
        drop(writer);
        let line = peer.next().unwrap().2;
        let (_, token, _) = peer.next().unwrap();
        peer.pong(token);
        (answer, line)
    });
    let args = PubArgs { topic: "a.b".into(), data: "-".into(), key: 0, server: address, client: None };
    publish::publish_from_either(&args, &reader, Some(reader.as_fd()), &mut Vec::new()).unwrap();
    let ((kind, token, _), line) = server.join().unwrap();
    assert_eq!((kind, token, &line[..]), (Kind::Pong, 7, &b"one line"[..]));
}

#[test]
fn pub_names_the_lines_that_were_refused_and_sends_the_rest() {
    let (address, server) = serve(|peer| {
        peer.welcome();
        let mut taken = 0;
        while let Some((kind, token, payload)) = peer.next() {
            match (kind, &payload[..]) {
                (Kind::Ping, _) => peer.pong(token),
                (_, b"bad") => peer.error(token, "not this one"),
                _ => taken += 1,
            }
        }
        taken
    });
    let huge = "x".repeat(300 << 10);
    let (result, notices) = run_pub(address, "-", format!("ok\n{huge}\nbad\nok\n").as_bytes());
    assert!(matches!(result, Err(CommandError::LinesRefused { refused: 2, lines: 4 })), "{result:?}");
    assert!(notices.contains("line 2: a request of"), "{notices}");
    assert!(notices.contains("line 3: not this one (code 101)"), "{notices}");
    assert_eq!(server.join().unwrap(), 2);
}

#[test]
fn pub_fails_when_the_server_closes_before_it_took_everything() {
    let (address, server) = serve(|peer| {
        peer.welcome();
        let (kind, _, payload) = peer.next().unwrap();
        peer.next();
        peer.closing(3001, "the server stops");
        (kind, payload)
    });
    let (result, _) = run_pub(address, "data", b"");
    assert!(result.unwrap_err().to_string().contains("the server stops"));
    assert_eq!(server.join().unwrap(), (Kind::Publish, b"data".to_vec()));
}
