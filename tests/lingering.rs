//! How long an ending session is kept: to read what is queued for it, and then to close its side.

use tickcast::{
    limits::{HTTP_IDLE_MS_DEFAULT, LINGER_DEADLINE_MS},
    page::Page,
};
use tickcast_core::{
    config::Limits,
    ids::SlotId,
    shard::{Action, ListenerKind},
    testing::{Driver, hello},
};
use tickcast_proto::{command::encode_request, frame};

const MS: u64 = 1_000_000;
const HANDSHAKE_MS: u64 = 10 * LINGER_DEADLINE_MS;

fn request(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")
}

/// A shard with one client that has requested a path and whose socket may be full.
fn get(path: &str, is_full: bool) -> Driver {
    let mut driver = Driver::new(Limits { handshake_deadline_ns: HANDSHAKE_MS * MS, ..Limits::default() });
    driver.shard.set_static_files(&Page);
    driver.full.extend(is_full.then_some(0));
    driver.accept(0, ListenerKind::Http, request(path, "Connection: close\r\n").as_bytes());
    driver
}

/// Advances the time; returns the actions of the next turn.
fn after(driver: &mut Driver, ms: u64) -> Vec<Action> {
    driver.jump(ms * MS);
    driver.turn();
    std::mem::take(&mut driver.actions)
}

#[test]
fn a_page_file_may_be_read_slowly_and_an_error_line_may_not() {
    let mut page = get("/page/main.js", true);
    assert_eq!(after(&mut page, HANDSHAKE_MS - 10), []);
    assert_eq!(after(&mut page, 20), [Action::Close(SlotId(0))], "after as long as a request may take");

    let mut nothing = get("/nothing", true);
    assert_eq!(after(&mut nothing, LINGER_DEADLINE_MS - 10), []);
    assert_eq!(after(&mut nothing, 20), [Action::Close(SlotId(0))]);
}

#[test]
fn a_client_that_has_the_page_and_does_not_close_gets_the_usual_linger() {
    for path in ["/page/main.js", "/nothing"] {
        let mut bench = get(path, false);
        assert_eq!(after(&mut bench, 0), [Action::ShutdownWrite(SlotId(0))], "{path}");
        assert_eq!(after(&mut bench, LINGER_DEADLINE_MS - 10), [], "{path}");
        assert_eq!(after(&mut bench, 20), [Action::Close(SlotId(0))], "{path}");
    }

    let mut slow = get("/page/main.js", true);
    assert_eq!(after(&mut slow, 3 * LINGER_DEADLINE_MS), []);
    slow.open();
    assert_eq!(after(&mut slow, 0), [Action::ShutdownWrite(SlotId(0))], "the whole file has been read");
    assert_eq!(after(&mut slow, LINGER_DEADLINE_MS - 10), []);
    assert_eq!(after(&mut slow, 20), [Action::Close(SlotId(0))]);

    // Read at the last moment: only the rest of the file's deadline remains.
    let mut late = get("/page/main.js", true);
    assert_eq!(after(&mut late, HANDSHAKE_MS - 100), []);
    late.open();
    assert_eq!(after(&mut late, 0), [Action::ShutdownWrite(SlotId(0))]);
    assert_eq!(after(&mut late, 90), []);
    assert_eq!(after(&mut late, 20), [Action::Close(SlotId(0))]);
}

#[test]
fn a_drain_does_not_extend_the_linger_of_an_ending_session() {
    let mut page = get("/page/main.js", true);
    let deadline_ns = page.now.monotonic_ns + 500 * MS;
    page.shard.begin_drain(deadline_ns, page.now);
    assert_eq!(after(&mut page, 490), []);
    assert_eq!(
        after(&mut page, 20),
        [Action::Close(SlotId(0))],
        "the drain deadline applies to every session"
    );
}

const CLOSED: [Action; 1] = [Action::Close(SlotId(0))];

/// The actions of a shard whose client has sent these bytes and FIN, and what it has sent to the client by then.
fn half_close(listener: ListenerKind, bytes: &[u8], is_full: bool) -> (Driver, Vec<Action>, Vec<u8>) {
    let mut driver = Driver::new(Limits::default());
    driver.shard.set_static_files(&Page);
    driver.full.extend(is_full.then_some(0));
    driver.shard.handle_accept(SlotId(0), listener, driver.now);
    driver.receive(0, bytes);
    driver.shard.handle_eof(SlotId(0), driver.now);
    for _ in 0..3 {
        driver.turn();
    }
    let sent = driver.take_sent(0);
    let actions = std::mem::take(&mut driver.actions);
    (driver, actions, sent)
}

#[test]
fn a_request_followed_by_a_half_close_gets_its_whole_answer() {
    for fields in ["", "Connection: close\r\n"] {
        let page = request("/page/main.js", fields);
        let (_, actions, sent) = half_close(ListenerKind::Http, page.as_bytes(), false);
        assert!(actions.ends_with(&CLOSED), "{actions:?}");
        let text = String::from_utf8(sent).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
    }
    let two = request("/", "").repeat(2);
    let mut driver = Driver::new(Limits::default());
    driver.accept(0, ListenerKind::Http, two.as_bytes());
    driver.turn();
    assert!(driver.actions.contains(&Action::ResumeReceive(SlotId(0))), "{:?}", driver.actions);
    driver.shard.handle_eof(SlotId(0), driver.now);
    driver.turn();
    driver.turn();
    assert_eq!(String::from_utf8(driver.take_sent(0)).unwrap().matches("HTTP/1.1 404 ").count(), 2);
    assert!(driver.actions.ends_with(&CLOSED));
}

#[test]
fn native_requests_followed_by_a_half_close_are_answered() {
    let mut bytes = hello();
    encode_request(&mut bytes, frame::Kind::Subscribe, 2, "a.b");
    let (driver, actions, sent) = half_close(ListenerKind::Native, &bytes, false);
    assert!(actions.ends_with(&CLOSED), "{actions:?}");
    let kinds = kinds(&sent);
    assert_eq!(kinds, [frame::Kind::Welcome, frame::Kind::Subscribed]);
    assert_eq!(driver.shard.sessions_len(), 0);
}

fn kinds(mut bytes: &[u8]) -> Vec<frame::Kind> {
    let mut kinds = Vec::new();
    while let Ok(tickcast_proto::Step::Complete(used, frame)) = frame::decode(bytes, 1 << 20) {
        kinds.push(frame.kind);
        bytes = &bytes[used..];
    }
    assert!(bytes.is_empty());
    kinds
}

#[test]
fn a_half_closed_client_that_does_not_read_is_gone_in_time() {
    for bytes in [hello(), request("/page/main.js", "").into_bytes()] {
        let listener = if bytes[0] == b'G' { ListenerKind::Http } else { ListenerKind::Native };
        let (mut driver, actions, _) = half_close(listener, &bytes, true);
        assert!(!actions.contains(&CLOSED[0]), "{actions:?}");
        assert_eq!(after(&mut driver, LINGER_DEADLINE_MS - 10), []);
        after(&mut driver, 20);
        assert!(after(&mut driver, LINGER_DEADLINE_MS + 10).ends_with(&CLOSED));
    }
    let (_, actions, sent) = half_close(ListenerKind::Http, b"", false);
    assert_eq!((actions, sent.len()), (CLOSED.to_vec(), 0), "a probe");
    let (_, actions, sent) = half_close(ListenerKind::Http, b"GET / HT", false);
    assert_eq!((actions, sent.len()), (CLOSED.to_vec(), 0), "half a request");
}

#[test]
fn an_idle_http_connection_is_closed_and_a_busy_one_is_not() {
    let mut driver = Driver::new(Limits::default());
    driver.shard.set_static_files(&Page);
    driver.accept(0, ListenerKind::Http, request("/nothing", "").as_bytes());
    for _ in 0..3 {
        assert_eq!(after(&mut driver, HTTP_IDLE_MS_DEFAULT - 1_000), []);
        driver.receive(0, request("/nothing", "").as_bytes());
    }
    assert!(String::from_utf8(driver.take_sent(0)).unwrap().contains("HTTP/1.1 404 "));
    driver.pass((HTTP_IDLE_MS_DEFAULT + 1_000) * MS);
    let actions = std::mem::take(&mut driver.actions);
    assert_eq!(actions, [Action::ShutdownWrite(SlotId(0))]);
    assert_eq!(after(&mut driver, 2 * LINGER_DEADLINE_MS), CLOSED);

    // Half of a later request has the deadline of the first.
    let limits = Limits { handshake_deadline_ns: HANDSHAKE_MS * MS, ..Limits::default() };
    let mut driver = Driver::new(limits);
    driver.accept(0, ListenerKind::Http, request("/nothing", "").as_bytes());
    after(&mut driver, HANDSHAKE_MS);
    driver.take_sent(0);
    driver.receive(0, b"GET / HTTP/1.1\r\n");
    assert_eq!(after(&mut driver, HANDSHAKE_MS - 10), []);
    driver.receive(0, b"X: y\r\n");
    assert_eq!(after(&mut driver, 20), [Action::ShutdownWrite(SlotId(0))]);
    assert!(driver.take_sent(0).starts_with(b"HTTP/1.1 408 "));
}
