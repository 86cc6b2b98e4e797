//! How long a session that ends is waited for: to take what it is still to have, and then to close its side.

use std::sync::Arc;

use tickcast::limits::LINGER_DEADLINE_MS;
use tickcast_core::{
    config::Limits,
    metrics::counters::Counters,
    now::Now,
    shard::{Action, Door, Shard},
};
use tickcast_proto::ids::ShardId;

const MS: u64 = 1_000_000;
const HANDSHAKE_MS: u64 = 10 * LINGER_DEADLINE_MS;

/// A shard with one client, whose socket may be full.
struct Bench {
    shard: Shard,
    now: Now,
    is_full: bool,
    actions: Vec<Action>,
}

impl Bench {
    fn get(path: &str, is_full: bool) -> Bench {
        let limits = Limits { handshake_deadline_ns: HANDSHAKE_MS * MS, ..Limits::default() };
        let mut shard = Shard::new(ShardId(0), 1, 1, limits, Arc::new(Counters::default()));
        shard.set_static_files(&tickcast::page::Page);
        let now = Now { monotonic_ns: 1 << 41, realtime_ns: 1 << 60 };
        let mut bench = Bench { shard, now, is_full, actions: Vec::new() };
        bench.shard.handle_accept(0, Door::Http, bench.now);
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        bench.shard.handle_bytes(0, request.as_bytes(), bench.now);
        bench.turn();
        bench
    }

    fn turn(&mut self) {
        self.shard.turn(self.now);
        let mut gather = Vec::new();
        self.shard.prepare_sends(self.now);
        while let Some(send) = self.shard.poll_send(&mut gather, self.now) {
            let len = self.shard.send_bytes(&send, &gather).len();
            self.shard.handle_sent(send.slot, len, self.is_full, self.now);
        }
        self.actions.extend(std::iter::from_fn(|| self.shard.poll_action()));
        self.shard.end_turn();
    }

    /// The socket takes what was parked, and what else there is.
    fn open(&mut self) {
        self.is_full = false;
        self.shard.handle_writable(0, self.now);
        self.turn();
    }

    /// What was done after so long.
    fn after(&mut self, ms: u64) -> Vec<Action> {
        self.now.monotonic_ns += ms * MS;
        self.turn();
        std::mem::take(&mut self.actions)
    }
}

#[test]
fn a_file_of_the_page_may_be_taken_slowly_and_a_line_of_text_may_not() {
    let mut page = Bench::get("/page/main.js", true);
    assert_eq!(page.after(HANDSHAKE_MS - 10), []);
    assert_eq!(page.after(20), [Action::Close(0)], "as long as its request might have taken");

    let mut nothing = Bench::get("/nothing", true);
    assert_eq!(nothing.after(LINGER_DEADLINE_MS - 10), []);
    assert_eq!(nothing.after(20), [Action::Close(0)]);
}

#[test]
fn who_has_the_page_and_does_not_close_is_waited_for_as_short_as_any() {
    for path in ["/page/main.js", "/nothing"] {
        let mut bench = Bench::get(path, false);
        assert_eq!(bench.after(0), [Action::ShutdownWrite(0)], "{path}");
        assert_eq!(bench.after(LINGER_DEADLINE_MS - 10), [], "{path}");
        assert_eq!(bench.after(20), [Action::Close(0)], "{path}");
    }

    let mut slow = Bench::get("/page/main.js", true);
    assert_eq!(slow.after(3 * LINGER_DEADLINE_MS), []);
    slow.open();
    assert_eq!(slow.after(0), [Action::ShutdownWrite(0)], "all of it has been taken");
    assert_eq!(slow.after(LINGER_DEADLINE_MS - 10), []);
    assert_eq!(slow.after(20), [Action::Close(0)]);

    // At the last moment: what is left of the time that a file has.
    let mut late = Bench::get("/page/main.js", true);
    assert_eq!(late.after(HANDSHAKE_MS - 100), []);
    late.open();
    assert_eq!(late.after(0), [Action::ShutdownWrite(0)]);
    assert_eq!(late.after(90), []);
    assert_eq!(late.after(20), [Action::Close(0)]);
}

#[test]
fn a_drain_does_not_wait_longer_for_who_was_about_to_end_already() {
    let mut page = Bench::get("/page/main.js", true);
    let deadline_ns = page.now.monotonic_ns + 500 * MS;
    page.shard.begin_drain(deadline_ns, page.now);
    assert_eq!(page.after(490), []);
    assert_eq!(page.after(20), [Action::Close(0)], "the drain's deadline is everybody's");
}
