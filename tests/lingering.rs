//! How long a session that ends is waited for: to take what it is still to have, and then to close its side.

mod driver;

use driver::Driver;
use tickcast::{limits::LINGER_DEADLINE_MS, page::Page};
use tickcast_core::{
    config::Limits,
    shard::{Action, Door},
};

const MS: u64 = 1_000_000;
const HANDSHAKE_MS: u64 = 10 * LINGER_DEADLINE_MS;

/// A shard with one client, which has asked for a path and whose socket may be full.
fn get(path: &str, is_full: bool) -> Driver {
    let mut driver = Driver::new(Limits { handshake_deadline_ns: HANDSHAKE_MS * MS, ..Limits::default() });
    driver.shard.set_static_files(&Page);
    driver.full.extend(is_full.then_some(0));
    driver.accept(0, Door::Http, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    driver
}

/// What was done after so long.
fn after(driver: &mut Driver, ms: u64) -> Vec<Action> {
    driver.jump(ms * MS);
    driver.turn();
    std::mem::take(&mut driver.actions)
}

#[test]
fn a_file_of_the_page_may_be_taken_slowly_and_a_line_of_text_may_not() {
    let mut page = get("/page/main.js", true);
    assert_eq!(after(&mut page, HANDSHAKE_MS - 10), []);
    assert_eq!(after(&mut page, 20), [Action::Close(0)], "as long as its request might have taken");

    let mut nothing = get("/nothing", true);
    assert_eq!(after(&mut nothing, LINGER_DEADLINE_MS - 10), []);
    assert_eq!(after(&mut nothing, 20), [Action::Close(0)]);
}

#[test]
fn who_has_the_page_and_does_not_close_is_waited_for_as_short_as_any() {
    for path in ["/page/main.js", "/nothing"] {
        let mut bench = get(path, false);
        assert_eq!(after(&mut bench, 0), [Action::ShutdownWrite(0)], "{path}");
        assert_eq!(after(&mut bench, LINGER_DEADLINE_MS - 10), [], "{path}");
        assert_eq!(after(&mut bench, 20), [Action::Close(0)], "{path}");
    }

    let mut slow = get("/page/main.js", true);
    assert_eq!(after(&mut slow, 3 * LINGER_DEADLINE_MS), []);
    slow.open();
    assert_eq!(after(&mut slow, 0), [Action::ShutdownWrite(0)], "all of it has been taken");
    assert_eq!(after(&mut slow, LINGER_DEADLINE_MS - 10), []);
    assert_eq!(after(&mut slow, 20), [Action::Close(0)]);

    // At the last moment: what is left of the time that a file has.
    let mut late = get("/page/main.js", true);
    assert_eq!(after(&mut late, HANDSHAKE_MS - 100), []);
    late.open();
    assert_eq!(after(&mut late, 0), [Action::ShutdownWrite(0)]);
    assert_eq!(after(&mut late, 90), []);
    assert_eq!(after(&mut late, 20), [Action::Close(0)]);
}

#[test]
fn a_drain_does_not_wait_longer_for_who_was_about_to_end_already() {
    let mut page = get("/page/main.js", true);
    let deadline_ns = page.now.monotonic_ns + 500 * MS;
    page.shard.begin_drain(deadline_ns, page.now);
    assert_eq!(after(&mut page, 490), []);
    assert_eq!(after(&mut page, 20), [Action::Close(0)], "the drain's deadline is everybody's");
}
