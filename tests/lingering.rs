//! How long an ending session is kept: to read what is queued for it, and then to close its side.

use tickcast::{limits::LINGER_DEADLINE_MS, page::Page};
use tickcast_core::{
    config::Limits,
    ids::SlotId,
    shard::{Action, ListenerKind},
    testing::Driver,
};

const MS: u64 = 1_000_000;
const HANDSHAKE_MS: u64 = 10 * LINGER_DEADLINE_MS;

/// A shard with one client that has requested a path and whose socket may be full.
fn get(path: &str, is_full: bool) -> Driver {
    let mut driver = Driver::new(Limits { handshake_deadline_ns: HANDSHAKE_MS * MS, ..Limits::default() });
    driver.shard.set_static_files(&Page);
    driver.full.extend(is_full.then_some(0));
    driver.accept(0, ListenerKind::Http, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
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
