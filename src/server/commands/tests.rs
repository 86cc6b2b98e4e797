use std::{io::Write, os::fd::AsFd};

use super::{append::tests::Scratch, *};
use tickcast_client::scripted_server::{Peer, serve, serve_each};
use tickcast_proto::{
    features::Features,
    frame::Kind,
    ids::TopicId,
    reply::{Reply, Skipped},
};

fn sub(server: String, json: bool, count: Option<u64>) -> SubArgs {
    SubArgs { json, count, no_reconnect: true, ..SubArgs::new("a.>", &server) }
}

/// Runs `sub`; returns its result, output and notices.
fn run_sub(args: &SubArgs) -> (Result<(), CommandError>, String, String) {
    let (mut out, mut notices) = (Vec::new(), Vec::new());
    let result = subscribe_to(args, &mut out, &mut notices);
    (result, String::from_utf8(out).unwrap(), String::from_utf8(notices).unwrap())
}

fn run_pub(server: String, data: &str, input: &[u8]) -> (Result<(), CommandError>, String) {
    let args = PubArgs {
        topic: "t".into(),
        data: data.into(),
        key: 0,
        message_id: None,
        server: ServerArgs::new(&server),
    };
    let mut notices = Vec::new();
    let result = publish_from(&args, input, &mut notices);
    (result, String::from_utf8(notices).unwrap())
}

/// Sends ticks, and announces those it skips.
fn send_all(peer: &mut Peer) {
    peer.welcome();
    peer.subscribed();
    peer.tick(1, b"{\"p\":\n1.10}");
    peer.reply(Reply::Gap(Skipped { topic: TopicId(5), name: "a.b", from: 2, to: 3, count: None }));
    peer.tick(4, b"\xff\x1b[2J\tx");
    peer.reply(Reply::Conflated(Skipped { topic: TopicId(5), name: "a.b", from: 5, to: 6, count: None }));
    peer.snapshot(6);
    peer.tick(7, b"after the count");
    while peer.next_frame().is_some() {}
}

#[test]
fn sub_prints_a_line_per_tick_reports_skipped_ranges_and_exits_at_the_count() {
    let (address, server) = serve(send_all);
    let (result, out, notices) = run_sub(&sub(address, false, Some(3)));
    result.unwrap();
    assert_eq!(out, "a.b 1 {\"p\":\\n1.10}\na.b 4 \u{fffd}\\u{1b}[2J\tx\na.b 6 7\n");
    assert_eq!(
        notices,
        "gap: a.b [2, 3): 1 tick lost\nmissed: a.b [3, 4): 1 tick neither delivered nor announced as lost\n\
         conflated: a.b [5, 6): 1 tick replaced by the next one\n"
    );
    server.join().unwrap();
}

/// Standard error that tells when something is written to it.
struct Noticed(std::sync::mpsc::Sender<String>);

impl Write for Noticed {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let _ = self.0.send(String::from_utf8(text.to_vec()).unwrap());
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn sub_says_once_that_nothing_arrives_and_goes_on() {
    let (sender, notices) = std::sync::mpsc::channel();
    let (address, server) = serve(move |peer| {
        peer.welcome();
        peer.subscribed();
        // The tick comes only after the notice.
        let text = notices.recv().unwrap();
        peer.tick(1, b"1");
        while peer.next_frame().is_some() {}
        notices.try_iter().fold(text, |text, more: String| text + &more)
    });
    let mut out = Vec::new();
    let args = sub(address, true, Some(1));
    let quiet_after = Some(std::time::Duration::from_millis(1));
    super::subscribe::subscribe_until(&args, &mut out, &mut Noticed(sender), quiet_after).unwrap();
    assert!(String::from_utf8(out).unwrap().contains("\"seq\":1"));
    let notice = server.join().unwrap();
    assert_eq!(notice, "no tick yet: no topic matches a.>, or nothing is published on it\n");
}

#[test]
fn sub_json_prints_everything_in_order_on_standard_output() {
    let (address, server) = serve(send_all);
    let (result, out, notices) = run_sub(&sub(address, true, Some(3)));
    result.unwrap();
    let expected = [
        "{\"topic\":\"a.b\",\"seq\":1,\"ts\":70,\"data\":{\"p\": 1.10}}",
        "{\"op\":\"gap\",\"topic\":\"a.b\",\"epoch\":3,\"from\":2,\"to\":3}",
        "{\"op\":\"missed\",\"topic\":\"a.b\",\"epoch\":3,\"from\":3,\"to\":4}",
        "{\"topic\":\"a.b\",\"seq\":4,\"ts\":70,\"encoding\":\"base64\",\"data\":\"/xtbMkoJeA==\"}",
        "{\"op\":\"conflated\",\"topic\":\"a.b\",\"epoch\":3,\"from\":5,\"to\":6}",
        "{\"topic\":\"a.b\",\"seq\":6,\"ts\":0,\"snapshot\":true,\"data\":7}",
    ];
    assert_eq!(out.lines().collect::<Vec<_>>(), expected);
    assert_eq!(notices, "");
    server.join().unwrap();
}

#[test]
fn sub_reconnects_and_resumes_after_its_last_tick() {
    let (address, server) = serve_each(vec![
        |peer| {
            peer.welcome_in(3);
            peer.subscribed();
            peer.tick(1, b"1");
        },
        |peer| {
            peer.welcome_in(3);
            assert!(peer.command().contains("Position { epoch: 3, sequence: 1 }"));
            peer.subscribed();
            let reply = Reply::Recovered {
                topic_id: 5,
                name: "a.b",
                epoch: 3,
                sequence: 2,
                recovered: true,
                reason: None,
            };
            peer.reply(reply);
            peer.tick(2, b"2");
            while peer.next_frame().is_some() {}
        },
    ]);
    let args = SubArgs { no_reconnect: false, ..sub(address, false, Some(2)) };
    let (result, out, notices) = run_sub(&args);
    result.unwrap();
    assert_eq!(out, "a.b 1 1\na.b 2 2\n");
    assert!(notices.starts_with("disconnected: ") && notices.ends_with("reconnected\n"), "{notices}");
    server.join().unwrap();
}

#[test]
fn sub_append_resumes_where_its_file_ends() {
    let scratch = Scratch::new("sub", "");
    let append = |address, count| SubArgs {
        append: Some(scratch.0.clone()),
        from: StartFrom::Beginning,
        ..sub(address, false, Some(count))
    };
    let (address, server) = serve_each(vec![
        |peer| {
            peer.welcome_in(3);
            let subscribe = peer.command();
            assert!(subscribe.contains("After(Position { epoch: 3, sequence: 0 })"), "{subscribe}");
            peer.topic(3);
            peer.reply(Reply::Gap(Skipped { topic: TopicId(5), name: "a.b", from: 1, to: 6, count: None }));
            peer.tick(6, b"6");
            peer.tick(7, b"7");
            while peer.next_frame().is_some() {}
        },
        |peer| {
            peer.welcome_in(3);
            assert!(peer.command().contains("Position { epoch: 3, sequence: 7 }"));
            assert!(peer.command().contains("from: Resume"));
            peer.topic(3);
            let answer = |sequence, recovered| Reply::Recovered {
                topic_id: 5,
                name: "a.b",
                epoch: 3,
                sequence,
                recovered,
                reason: None,
            };
            peer.reply(answer(10, false));
            peer.snapshot(10);
            while peer.next_frame().is_some() {}
        },
    ]);
    let (result, out, _) = run_sub(&append(address.clone(), 2));
    result.unwrap();
    // As if killed in the middle of a line.
    std::fs::write(&scratch.0, scratch.text() + "{\"topic\":\"a.b\",\"epoch\":3,\"se").unwrap();
    run_sub(&append(address, 1)).0.unwrap();
    let expected = [
        "{\"op\":\"gap\",\"topic\":\"a.b\",\"epoch\":3,\"from\":1,\"to\":6}",
        "{\"topic\":\"a.b\",\"epoch\":3,\"seq\":6,\"ts\":70,\"data\":6}",
        "{\"topic\":\"a.b\",\"epoch\":3,\"seq\":7,\"ts\":70,\"data\":7}",
        "{\"op\":\"recovered\",\"topic\":\"a.b\",\"exists\":true,\"epoch\":3,\"sequence\":10,\"recovered\":false,\
         \"from_epoch\":3,\"from_sequence\":7}",
        "{\"op\":\"gap\",\"topic\":\"a.b\",\"epoch\":3,\"from\":8,\"to\":10}",
        "{\"topic\":\"a.b\",\"epoch\":3,\"seq\":10,\"ts\":0,\"snapshot\":true,\"data\":7}",
    ];
    assert_eq!(scratch.text().lines().collect::<Vec<_>>(), expected);
    assert_eq!(out, "", "the file has all of it");
    server.join().unwrap();
}

#[test]
fn sub_reports_why_the_server_closed_or_rejected() {
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
        let (_, request, _) = peer.next_frame().unwrap();
        peer.error(request, "bad pattern");
    });
    let (result, ..) = run_sub(&sub(address, false, None));
    assert_eq!(result.unwrap_err().to_string(), "the server rejected \"a.>\": bad pattern (code 101)");
    server.join().unwrap();
}

#[test]
fn sub_succeeds_when_the_reader_of_its_output_exits() {
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
        while peer.next_frame().is_some() {}
    });
    subscribe_to(&sub(address, false, None), &mut Gone, &mut Vec::new()).unwrap();
    server.join().unwrap();
}

#[test]
fn pub_sends_each_line_and_exits_after_the_barrier() {
    let (address, server) = serve(|peer| {
        peer.welcome();
        let mut lines = Vec::new();
        while let Some((kind, token, payload)) = peer.next_frame() {
            match kind {
                Kind::Ping => peer.pong(token),
                _ => lines.push(String::from_utf8(payload).unwrap()),
            }
        }
        lines
    });
    let (result, notices) = run_pub(address, "-", b"\xef\xbb\xbfone\r\n\n three \n\xef\xbb\xbf\r\r\nlast");
    result.unwrap();
    assert_eq!(
        (server.join().unwrap(), notices.as_str()),
        (["one", "", " three ", "\u{feff}\r", "last"].map(str::to_owned).to_vec(), "")
    );
}

#[test]
fn pub_refuses_utf_16_before_it_publishes_anything() {
    for input in [&b"\xff\xfeo\0n\0e\0\n\0"[..], b"\xfe\xff\0o\0n\0e\0\n", b"\xff\xfe"] {
        let (address, server) = serve(|peer| {
            peer.welcome();
            peer.next_frame()
        });
        let (result, notices) = run_pub(address, "-", input);
        let error = result.unwrap_err().to_string();
        assert!(error.contains("UTF-16") && error.contains("iconv -f UTF-16 -t UTF-8"), "{error}");
        assert_eq!(notices, "");
        assert!(server.join().unwrap().is_none(), "nothing was published");
    }
}

#[test]
fn pub_answers_pings_while_it_waits_for_the_rest_of_a_line() {
    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(b"one").unwrap();
    let (address, server) = serve(move |peer| {
        peer.welcome();
        peer.ping(7);
        let answer = peer.next_frame().unwrap();
        writer.write_all(b" line\n").unwrap();
        drop(writer);
        let line = peer.next_frame().unwrap().2;
        let (_, token, _) = peer.next_frame().unwrap();
        peer.pong(token);
        (answer, line)
    });
    let server_args = ServerArgs::new(&address);
    let args =
        PubArgs { topic: "a.b".into(), data: "-".into(), key: 0, message_id: None, server: server_args };
    publish::publish_from_either(&args, &reader, Some(reader.as_fd()), &mut Vec::new()).unwrap();
    let ((kind, token, _), line) = server.join().unwrap();
    assert_eq!((kind, token, &line[..]), (Kind::Pong, 7, &b"one line"[..]));
}

#[test]
fn pub_reports_rejected_lines_and_sends_the_rest() {
    let (address, server) = serve(|peer| {
        peer.welcome();
        let mut taken = 0;
        while let Some((kind, token, payload)) = peer.next_frame() {
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
    assert!(notices.contains("line 2: the request is"), "{notices}");
    assert!(notices.contains("line 3: not this one (code 101)"), "{notices}");
    assert_eq!(server.join().unwrap(), 2);
}

/// Answers each publish: `ok` is acknowledged, anything else refused. A ping is answered at once, as by a server whose other
/// shards have not answered yet. Returns the numbers of publishes and pings.
fn acknowledge(peer: &mut Peer) -> (u64, u64) {
    peer.welcome_with(3, Some(Features::PUBLISHED));
    let (mut publishes, mut pings) = (0, 0);
    while let Some((kind, token, payload)) = peer.next_frame() {
        match (kind, &payload[..]) {
            (Kind::Ping, _) => {
                pings += 1;
                peer.pong(token);
            }
            (_, b"ok") => {
                publishes += 1;
                peer.published(token, publishes);
            }
            _ => {
                publishes += 1;
                peer.error(token, "not this one");
            }
        }
    }
    (publishes, pings)
}

#[test]
fn pub_waits_for_the_answer_to_each_tick() {
    let (address, server) = serve(acknowledge);
    let lines = "ok\n".repeat(5_000);
    run_pub(address, "-", lines.as_bytes()).0.unwrap();
    assert_eq!(server.join().unwrap(), (5_000, 0), "several windows, and no ping");

    let (address, server) = serve(acknowledge);
    let (result, notices) = run_pub(address, "-", b"ok\nbad\nok\n");
    assert!(matches!(result, Err(CommandError::LinesRefused { refused: 1, lines: 3 })), "{result:?}");
    assert_eq!(notices, "line 2: not this one (code 101)\n");
    assert_eq!(server.join().unwrap().0, 3);
}

#[test]
fn pub_tells_how_many_ticks_have_no_answer_when_the_server_closes() {
    let (address, server) = serve(|peer| {
        peer.welcome_with(3, Some(Features::PUBLISHED));
        let requests = [(); 3].map(|()| peer.next_frame().unwrap().1);
        peer.published(requests[1], 1);
        peer.closing(3001, "the server stops");
    });
    let (result, notices) = run_pub(address, "-", b"1\n2\n3\n");
    assert!(result.unwrap_err().to_string().contains("the server stops"));
    assert_eq!(notices, "2 ticks not acknowledged: they may or may not have been published\n");
    server.join().unwrap();
}

#[test]
fn pub_fails_when_the_server_closes_before_processing_everything() {
    let (address, server) = serve(|peer| {
        peer.welcome();
        let (kind, _, payload) = peer.next_frame().unwrap();
        peer.next_frame();
        peer.closing(3001, "the server stops");
        (kind, payload)
    });
    let (result, _) = run_pub(address, "data", b"");
    assert!(result.unwrap_err().to_string().contains("the server stops"));
    assert_eq!(server.join().unwrap(), (Kind::Publish, b"data".to_vec()));
}

#[test]
fn a_token_in_the_clear_is_only_for_this_machine() {
    for (host, expected) in [
        ("127.0.0.1:9400", true),
        ("127.8.0.1:9400", true),
        ("[::1]:9400", true),
        ("localhost:9400", true),
        ("unix:/run/tickcast.sock", true),
        ("192.0.2.1:9400", false),
        ("[2001:db8::1]:9400", false),
        ("localhost.example.com:9400", false),
    ] {
        let address = Address::parse(host).unwrap();
        assert_eq!(is_local(&address.host), expected, "{host}");
    }
}
