//! Heap memory of sessions that do nothing but hold subscriptions, counted by an allocator of this test's own.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use tickcast_core::{
    budgets::PatternLimits,
    config::Limits,
    shard::ListenerKind,
    testing::{Driver, frame, hello, masked, upgrade_request},
};
use tickcast_proto::{
    frame::{self, Kind},
    records::{Publish, Subscribe},
};

const MS: u64 = 1_000_000;
/// Sessions that are there before: tables have their first entries, and scratch buffers their size.
const WARM: u32 = 24;
/// Sessions in all. A power of two, so that tables that double have no spare room.
const SESSIONS: u32 = 1 << 10;

thread_local! {
    /// Bytes that the thread has allocated and not freed.
    static ALLOCATED: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, with a count of what it hands out.
struct Counting;

/// What malloc(3) takes for an allocation in glibc: eight bytes more, in units of 16, at least 32.
fn taken(layout: Layout) -> isize {
    (layout.size() + 8).next_multiple_of(16).max(32) as isize
}

fn count(bytes: isize) {
    // The thread's count is gone only while the thread ends.
    let _ = ALLOCATED.try_with(|allocated| allocated.set(allocated.get() + bytes));
}

// SAFETY: every call goes to the system's allocator unchanged. `realloc` and `alloc_zeroed` are made of these two by default.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(taken(layout));
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-taken(layout));
        // SAFETY: the caller's promises are the same, and `alloc` got the pointer from the same allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Opens a session and subscribes it to one pattern.
fn open(driver: &mut Driver, slot: u32, listener: ListenerKind, pattern: &str) {
    let subscribe = match listener {
        ListenerKind::Native => {
            driver.accept(slot, listener, &hello());
            frame(Kind::Subscribe, &Subscribe { request: 1, ..Subscribe::default() }, pattern.as_bytes())
        }
        ListenerKind::Http => {
            driver.accept(slot, listener, &upgrade_request("/ws", "tickcast.v1.json"));
            masked(0x81, format!(r#"{{"op":"subscribe","id":1,"topics":["{pattern}"]}}"#).as_bytes())
        }
    };
    driver.receive(slot, &subscribe);
    driver.turn();
    let replies = String::from_utf8_lossy(&driver.take_sent(slot)).into_owned();
    assert!(
        replies.contains(if listener == ListenerKind::Http { "subscribed" } else { pattern }),
        "{replies}"
    );
    (driver.sent, driver.actions) = (Vec::new(), Vec::new());
}

/// Bytes that each session takes with a subscription to one pattern, once its handshake's deadline has passed. `ticks`: ticks of a
/// topic that the pattern matches, before the sessions come.
fn bytes_per_session(listener: ListenerKind, pattern: &str, ticks: u32) -> isize {
    let mut driver = Driver::new(Limits::default());
    driver.accept(0, ListenerKind::Native, &hello());
    for _ in 0..ticks {
        let mut publish = Vec::new();
        frame::encode_publish(&mut publish, 0, 0, 0, Publish::default(), "sim.0", b"1");
        driver.receive(0, &publish);
        driver.turn();
    }
    (1..WARM).for_each(|slot| open(&mut driver, slot, listener, pattern));
    let before = ALLOCATED.get();
    (WARM..SESSIONS).for_each(|slot| open(&mut driver, slot, listener, pattern));
    driver.pass(6_000 * MS);
    (driver.sent, driver.actions) = (Vec::new(), Vec::new());
    (ALLOCATED.get() - before) / (SESSIONS - WARM) as isize
}

#[test]
fn an_idle_websocket_takes_at_most_320_bytes_of_the_core() {
    let bytes = bytes_per_session(ListenerKind::Http, "sim.0", 0);
    assert!((250..=320).contains(&bytes), "{bytes}");
}

#[test]
fn an_idle_native_session_takes_no_more_than_a_websocket() {
    let bytes = bytes_per_session(ListenerKind::Native, "sim.0", 0);
    assert!(bytes <= bytes_per_session(ListenerKind::Http, "sim.0", 0), "{bytes}");
}

#[test]
fn a_topic_that_has_ticks_takes_at_most_70_bytes_more_of_each_session() {
    let bytes = bytes_per_session(ListenerKind::Http, "sim.0", 1);
    assert!(bytes <= bytes_per_session(ListenerKind::Http, "sim.0", 0) + 70, "{bytes}");
}

#[test]
fn an_idle_session_with_a_wildcard_takes_at_most_20_bytes_more() {
    let bytes = bytes_per_session(ListenerKind::Http, "sim.>", 1);
    assert!(bytes <= bytes_per_session(ListenerKind::Http, "sim.0", 0) + 20, "{bytes}");
}

/// Patterns that a session may hold by default.
const PATTERNS: u32 = 1 << 10;

/// KiB that each session takes with as many subscriptions as it may have, to patterns that no other has. One shard is home of all of
/// them.
fn kib_with_patterns_of_its_own(pattern: impl Fn(u32, u32) -> String) -> isize {
    // Patterns longer than the default expects of a session: half of the longest, on average.
    let patterns = PatternLimits { session_bytes_max: usize::MAX, ..PatternLimits::default() };
    let mut driver = Driver::new(Limits { patterns, ..Limits::default() });
    let open = |driver: &mut Driver, slot: u32| {
        driver.accept(slot, ListenerKind::Native, &hello());
        for n in 0..PATTERNS {
            let pattern = pattern(slot, n);
            assert_eq!(pattern.len(), 255);
            driver.receive(slot, &frame(Kind::Subscribe, &Subscribe::default(), pattern.as_bytes()));
            driver.turn();
        }
        (driver.sent, driver.actions) = (Vec::new(), Vec::new());
    };
    // The first sessions take the room that the homes have for long wildcards.
    (0..2).for_each(|slot| open(&mut driver, slot));
    let before = ALLOCATED.get();
    // So few that tables that double have room for three in four at most.
    (2..6).for_each(|slot| open(&mut driver, slot));
    // The first long wildcards beyond the homes' bound are covered by another pattern.
    assert!(driver.shard.subscriptions_len().0 >= 6 * PATTERNS as usize);
    (ALLOCATED.get() - before) / 4 / 1_024
}

#[test]
fn a_session_with_1024_names_of_255_bytes_takes_at_most_600_kib() {
    let kib = kib_with_patterns_of_its_own(|slot, n| format!("{slot}.{n:x<253}"));
    assert!((400..=600).contains(&kib), "{kib}");
}

#[test]
fn a_session_with_1024_wildcards_of_255_bytes_takes_at_most_600_kib() {
    let kib = kib_with_patterns_of_its_own(|slot, n| format!("{slot}.{n:x<251}.*"));
    assert!((400..=600).contains(&kib), "{kib}");
}
