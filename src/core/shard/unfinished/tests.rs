use super::*;
use crate::{
    config::Limits,
    metrics::counters::Counter,
    session::InputState,
    shard::ListenerKind,
    testing::{Driver, masked, messages, upgrade_request},
};

const MS: u64 = 1_000_000;
const DEADLINE_MS: u64 = 5_000;

fn websocket(driver: &mut Driver, slot: u32) {
    driver.accept(slot, ListenerKind::Http, &upgrade_request("/ws", "tickcast.v1.json"));
    driver.take_sent(slot);
}

fn with_deadline() -> Driver {
    let mut driver = Driver::new(Limits { frame_deadline_ns: DEADLINE_MS * MS, ..Limits::default() });
    websocket(&mut driver, 0);
    driver
}

fn close_code(driver: &mut Driver, slot: u32) -> Option<u16> {
    let sent = driver.take_sent(slot);
    let (_, payload) = messages(&sent).into_iter().find(|(opcode, _)| *opcode == 8)?;
    Some(u16::from_be_bytes([payload[0], payload[1]]))
}

fn is_open(driver: &mut Driver, slot: u32) -> bool {
    driver.shard.sessions.open_mut(SlotId(slot)).is_some()
}

/// Sends frames that complete no message, one every 100 ms. Returns the milliseconds until the session ended.
fn drip(driver: &mut Driver, frames: &[Vec<u8>]) -> u64 {
    let start_ns = driver.now.monotonic_ns;
    let mut dripped = frames.iter().cycle();
    for _ in 0..200 {
        driver.pass(100 * MS);
        if !is_open(driver, 0) {
            return (driver.now.monotonic_ns - start_ns) / MS;
        }
        driver.receive(0, dripped.next().unwrap());
        driver.turn();
    }
    panic!("still open");
}

#[test]
fn empty_fragments_and_control_frames_do_not_renew_a_messages_deadline() {
    for frames in [
        vec![masked(0x00, b"")],
        vec![masked(0x89, b"ping"), masked(0x8a, b"")],
        vec![masked(0x00, b" "), masked(0x89, b""), masked(0x00, b"")],
    ] {
        let mut driver = with_deadline();
        driver.receive(0, &masked(0x01, b"{"));
        let after_ms = drip(&mut driver, &frames);
        assert!((DEADLINE_MS..DEADLINE_MS + 200).contains(&after_ms), "{after_ms}");
        assert_eq!(close_code(&mut driver, 0), Some(3010));
    }
}

#[test]
fn a_message_counts_from_the_first_byte_of_its_first_fragment() {
    let mut driver = with_deadline();
    let fragment = masked(0x01, b"{");
    driver.receive(0, &fragment[..3]);
    driver.pass(4_000 * MS);
    driver.receive(0, &fragment[3..]);
    let after_ms = drip(&mut driver, &[masked(0x00, b"")]);
    assert!((1_000..1_200).contains(&after_ms), "{after_ms}");
}

#[test]
fn each_message_has_a_deadline_of_its_own() {
    let mut driver = with_deadline();
    let [first, last] = [masked(0x01, br#"{"op":"ping","#), masked(0x80, br#""token":1}"#)];
    driver.receive(0, &first);
    for _ in 0..5 {
        driver.pass((DEADLINE_MS - 200) * MS);
        // The end of one message and the beginning of the next arrive together.
        driver.receive(0, &[&last[..], &first].concat());
        driver.turn();
        assert_eq!(messages(&driver.take_sent(0)).len(), 1, "a pong");
    }
    // A frame that is not fragmented counts from its own first byte.
    driver.pass((DEADLINE_MS - 200) * MS);
    driver.receive(0, &[&last[..], &masked(0x81, b"{}")[..3]].concat());
    driver.pass((DEADLINE_MS - 200) * MS);
    assert!(is_open(&mut driver, 0));
    driver.pass(300 * MS);
    assert_eq!(close_code(&mut driver, 0), Some(3010));
}

#[test]
fn a_pause_does_not_renew_a_messages_deadline() {
    let mut driver = with_deadline();
    driver.receive(0, &masked(0x01, b"{"));
    driver.pass(3_000 * MS);
    // The client does not read its pongs and is paused; then it reads them and is resumed.
    driver.full.insert(0);
    for _ in 0..700 {
        driver.receive(0, &masked(0x89, &[b'p'; 125]));
    }
    driver.turn();
    assert!(driver.shard.sessions.get(SlotId(0)).unwrap().is_paused());
    driver.pass(1_000 * MS);
    driver.open();
    driver.turn();
    let session = driver.shard.sessions.get(SlotId(0)).unwrap();
    assert_eq!(session.input_state, InputState::Partial);
    let after_ms = drip(&mut driver, &[masked(0x00, b"")]);
    assert!((1_000..1_200).contains(&after_ms), "{after_ms}");
}

#[test]
fn a_client_that_does_not_read_its_pongs_does_not_stop_the_deadline() {
    let mut driver = with_deadline();
    driver.receive(0, &masked(0x01, b"{"));
    driver.full.insert(0);
    for _ in 0..1_500 {
        driver.receive(0, &masked(0x89, &[b'p'; 125]));
    }
    driver.pass((DEADLINE_MS - 100) * MS);
    assert!(driver.shard.sessions.get(SlotId(0)).unwrap().is_paused() && is_open(&mut driver, 0));
    driver.pass(200 * MS);
    assert!(!is_open(&mut driver, 0));
}

/// A shard with the lowest frame limit, so that a few messages reach the bound.
fn small() -> Driver {
    let limits = Limits {
        frame_bytes_max: crate::limits::FRAME_BYTES_MAX_LOWEST,
        unfinished_bytes_max: 1,
        ..Limits::default()
    };
    Driver::new(limits)
}

#[test]
fn the_oldest_unfinished_message_goes_when_the_bound_is_met() {
    const PEERS: u32 = 12;
    let longest = small().shard.limits.message_bytes_max();
    let fragment = masked(0x01, &vec![b' '; longest - 1_000]);
    let partial = masked(0x81, &vec![b' '; longest - 1_000]);
    let partial = &partial[..partial.len() - 1];
    for unfinished in [&fragment[..], partial] {
        let mut driver = small();
        let bytes_max = driver.shard.unfinished_bytes_max();
        assert_eq!(bytes_max, UNFINISHED_MESSAGES_LOWEST * longest);
        (0..PEERS).for_each(|slot| websocket(&mut driver, slot));
        for slot in 0..PEERS {
            driver.receive(slot, unfinished);
            driver.turn();
            assert!(driver.shard.sessions.unfinished_bytes() <= bytes_max);
            driver.jump(MS);
        }
        let open: Vec<u32> = (0..PEERS).filter(|&slot| is_open(&mut driver, slot)).collect();
        assert!((3..=5).contains(&open.len()), "{open:?}");
        assert_eq!(open.last(), Some(&(PEERS - 1)));
        assert!(open.windows(2).all(|pair| pair[1] == pair[0] + 1), "the newest stay: {open:?}");
        // A remaining client can finish its message.
        let rest: &[u8] = if unfinished.len() == fragment.len() { &masked(0x80, b"") } else { b" " };
        driver.receive(PEERS - 1, rest);
        driver.turn();
        let sent = driver.take_sent(PEERS - 1);
        assert_eq!(messages(&sent).iter().map(|(opcode, _)| *opcode).collect::<Vec<_>>(), [1], "an error");
    }
}

#[test]
fn the_session_that_goes_learns_why_and_is_counted() {
    let mut driver = small();
    let longest = driver.shard.limits.message_bytes_max();
    (0..4).for_each(|slot| websocket(&mut driver, slot));
    for slot in 0..4 {
        driver.receive(slot, &masked(0x02, &vec![0; longest]));
        driver.jump(MS);
    }
    driver.turn();
    assert_eq!(close_code(&mut driver, 0), Some(3012));
    driver.pass(2_000 * MS);
    assert_eq!(driver.shard.counters().value(Counter::ClosedUnfinishedMemory), 1);
}

#[test]
fn a_session_that_has_begun_another_message_since_is_not_the_oldest() {
    let mut driver = small();
    let longest = driver.shard.limits.message_bytes_max();
    (0..5).for_each(|slot| websocket(&mut driver, slot));
    // Session 0 began first, but it has finished that message and begun another.
    driver.receive(0, &masked(0x01, b"{"));
    driver.jump(MS);
    for slot in 1..4 {
        driver.receive(slot, &masked(0x01, &vec![b' '; longest - 300]));
        driver.jump(MS);
    }
    driver.receive(0, &[masked(0x80, b"}"), masked(0x01, b"{")].concat());
    driver.receive(4, &masked(0x01, &vec![b' '; longest - 300]));
    driver.receive(0, &masked(0x00, &vec![b' '; 1_500]));
    driver.turn();
    let open: Vec<u32> = (0..5).filter(|&slot| is_open(&mut driver, slot)).collect();
    assert_eq!(open, [0, 2, 3, 4]);
}

#[test]
fn sessions_that_leave_within_a_message_leave_nothing_behind() {
    let mut driver = small();
    for round in 0..3 * UNFINISHED_GONE_MAX {
        driver.accept(0, ListenerKind::Http, b"GET /ws");
        driver.shard.handle_error(SlotId(0), 104, driver.now);
        driver.turn();
        assert_eq!(driver.shard.sessions.unfinished_bytes(), 0, "{round}");
    }
    assert!(driver.shard.unfinished.oldest.len() <= UNFINISHED_GONE_MAX + 1);
}
