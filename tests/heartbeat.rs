//! Heartbeats on simulated time: silent sessions are pinged, then closed, and a suspended server closes nobody for its own
//! silence.

use std::ops::{Deref, DerefMut};

use tickcast::limits::{PING_LOOKS_PER_INTERVAL, TIMER_GRANULE_NS};
use tickcast_core::{
    config::Limits,
    ids::SlotId,
    metrics::counters::Counter,
    shard::{Action, ListenerKind},
    testing::{Driver, frame, hello, upgrade_request},
};
use tickcast_proto::{
    Step,
    frame::{self, Kind},
    records::Token,
};

const MS: u64 = 1_000_000;
const INTERVAL_MS: u64 = 25_000;
const TIMEOUT_MS: u64 = 10_000;
/// Longest delay of a ping: sessions are checked in batches, and the timer wheel has a granularity.
const LATE_MS: u64 = INTERVAL_MS / PING_LOOKS_PER_INTERVAL + 2 * TIMER_GRANULE_NS / MS + 2;

/// A shard with sessions that are silent unless a test says otherwise.
struct Bench {
    driver: Driver,
    wakes: u32,
}

impl Deref for Bench {
    type Target = Driver;
    fn deref(&self) -> &Driver {
        &self.driver
    }
}

impl DerefMut for Bench {
    fn deref_mut(&mut self) -> &mut Driver {
        &mut self.driver
    }
}

impl Bench {
    fn new() -> Bench {
        Bench::with(Limits {
            ping_interval_ns: INTERVAL_MS * MS,
            ping_timeout_ns: TIMEOUT_MS * MS,
            ..Limits::default()
        })
    }

    fn with(limits: Limits) -> Bench {
        Bench { driver: Driver::new(limits), wakes: 0 }
    }

    fn native(&mut self, slot: u32) {
        self.accept(slot, ListenerKind::Native, &hello());
        self.sent.clear();
    }

    fn websocket(&mut self, slot: u32, subprotocol: &str) {
        self.accept(slot, ListenerKind::Http, &upgrade_request("/ws", subprotocol));
        self.sent.clear();
    }

    fn pass(&mut self, duration_ms: u64) {
        self.wakes += self.driver.pass(duration_ms * MS);
    }

    fn ping(&mut self, slot: u32) {
        self.receive(slot, &frame(Kind::Ping, &Token { token: 1 }, b""));
    }

    fn pong(&mut self, slot: u32) {
        self.receive(slot, &frame(Kind::Pong, &Token { token: 9 }, b""));
    }

    /// Takes the slots of the SENDs so far.
    fn pinged(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.sent).into_iter().map(|(slot, _)| slot).collect()
    }

    fn timed_out(&self) -> u64 {
        self.shard.counters().value(Counter::ClosedHeartbeatTimeout)
    }
}

fn kinds(mut bytes: &[u8]) -> Vec<Kind> {
    let mut kinds = Vec::new();
    while let Ok(Step::Complete(used, frame)) = frame::decode(bytes, 1 << 20) {
        kinds.push(frame.kind);
        bytes = &bytes[used..];
    }
    assert!(bytes.is_empty());
    kinds
}

#[test]
fn a_silent_session_is_pinged_after_the_interval_and_closed_after_the_timeout() {
    let mut bench = Bench::new();
    bench.native(0);
    bench.pass(INTERVAL_MS - 10);
    assert!(bench.take_sent(0).is_empty());
    bench.pass(LATE_MS + 10);
    assert_eq!(kinds(&bench.take_sent(0)), [Kind::Ping]);
    bench.pass(TIMEOUT_MS - LATE_MS - 10);
    assert!(bench.take_sent(0).is_empty());
    bench.pass(2 * LATE_MS);
    assert_eq!(kinds(&bench.take_sent(0)), [Kind::Closing]);
    let now = bench.now;
    bench.shard.handle_eof(SlotId(0), now);
    assert_eq!((bench.timed_out(), bench.shard.sessions_len()), (1, 0));
}

#[test]
fn every_websocket_is_pinged_as_rfc_6455_says() {
    let mut bench = Bench::new();
    let subprotocols = ["tickcast.v1.json", "tickcast.v1.rkyv", "tickcast.v1.raw"];
    for (slot, subprotocol) in subprotocols.iter().enumerate() {
        bench.websocket(slot as u32, subprotocol);
    }
    bench.pass(INTERVAL_MS + LATE_MS);
    let sent = std::mem::take(&mut bench.sent);
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|(_, bytes)| *bytes == [0x89, 0]));
    bench.pass(TIMEOUT_MS + LATE_MS);
    for slot in 0..3 {
        let mut bytes = bench.sent.iter().find(|(of, _)| *of == slot).unwrap().1.clone();
        let at = bytes.iter().rposition(|&byte| byte == 0x88).unwrap();
        let close = bytes.split_off(at);
        assert_eq!(u16::from_be_bytes([close[2], close[3]]), 3011);
    }
}

#[test]
fn an_idle_session_that_answers_stays_open_and_any_byte_counts_as_an_answer() {
    let mut bench = Bench::new();
    bench.native(0);
    bench.native(1);
    for round in 0..100u64 {
        bench.pass(INTERVAL_MS + LATE_MS);
        assert_eq!(kinds(&bench.take_sent(0)), [Kind::Ping], "round {round}");
        bench.pass(round % 10 * TIMEOUT_MS / 11);
        bench.pong(0);
        // Split at every byte in turn. A frame that is never finished would hit the frame deadline instead.
        let ping = frame(Kind::Ping, &Token { token: round }, b"");
        let at = round as usize % ping.len();
        if at == 0 {
            bench.receive(1, &ping);
        } else {
            bench.receive(1, &ping[..at]);
            bench.receive(1, &ping[at..]);
        }
        bench.turn();
        bench.sent.clear();
    }
    assert_eq!((bench.timed_out(), bench.shard.sessions_len()), (0, 2));
}

#[test]
fn a_timeout_longer_than_the_interval_does_not_delay_the_next_ping() {
    let mut bench = Bench::with(Limits {
        ping_interval_ns: 1_000 * MS,
        ping_timeout_ns: 60_000 * MS,
        ..Limits::default()
    });
    bench.native(0);
    for _ in 0..20 {
        bench.pass(1_100);
        assert_eq!(kinds(&bench.take_sent(0)), [Kind::Ping]);
        bench.pong(0);
    }
    bench.pass(1_100 + 59_000);
    assert_eq!((bench.timed_out(), kinds(&bench.take_sent(0))), (0, vec![Kind::Ping]));
    bench.pass(2_000);
    assert_eq!(kinds(&bench.take_sent(0)), [Kind::Closing]);
}

#[test]
fn an_active_session_is_never_pinged() {
    let mut bench = Bench::new();
    bench.native(0);
    for _ in 0..100 {
        bench.pass(INTERVAL_MS / 2);
        bench.pong(0);
    }
    assert_eq!((bench.shard.counters().value(Counter::Pings), bench.shard.sessions_len()), (0, 1));
}

#[test]
fn a_suspended_server_reads_late_answers_before_it_closes_anybody() {
    const SESSIONS: u32 = 10;
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..200 {
        let mut bench = Bench::new();
        (0..SESSIONS).for_each(|slot| bench.native(slot));
        // Suspended at any moment of a heartbeat, for any time, while its clients answer the pings they got.
        bench.pass(random.u64(0..INTERVAL_MS + TIMEOUT_MS / 2));
        let pinged = bench.pinged();
        bench.jump(random.u64(1..200_000) * MS);
        // Resumed, it takes several turns before it reads what waits in its sockets.
        (0..5).for_each(|_| bench.turn());
        bench.pass(50);
        pinged.into_iter().for_each(|slot| bench.pong(slot));
        bench.turn();
        // From here on every client answers immediately.
        for _ in 0..2_000 {
            bench.pass(50);
            bench.pinged().into_iter().for_each(|slot| bench.pong(slot));
        }
        assert_eq!(bench.shard.sessions_len(), SESSIONS as usize);
    }
}

#[test]
fn a_peer_with_a_full_socket_that_reads_nothing_is_reaped_and_one_that_reads_slowly_is_not() {
    let mut bench = Bench::new();
    bench.native(0);
    bench.native(1);
    bench.full.extend([0, 1]);
    // Both sockets have a parked SEND, and neither peer ever sends again.
    [0, 1].into_iter().for_each(|slot| bench.ping(slot));
    for _ in 0..100 {
        bench.pass(TIMEOUT_MS / 4);
        // The slow peer has taken its parked SEND, and the next is parked at once.
        let now = bench.now;
        bench.shard.handle_writable(SlotId(1), now);
    }
    let closed: Vec<_> = bench.actions.iter().filter(|action| matches!(action, Action::Close(_))).collect();
    assert_eq!(closed, [&Action::Close(SlotId(0))], "its CLOSING is given up after the linger deadline");
    assert_eq!((bench.timed_out(), bench.shard.sessions_len()), (1, 1));
}

#[test]
fn a_session_in_its_handshake_is_not_pinged() {
    let mut bench =
        Bench::with(Limits { ping_interval_ns: 100 * MS, ping_timeout_ns: 100 * MS, ..Limits::default() });
    bench.accept(0, ListenerKind::Native, b"");
    bench.accept(1, ListenerKind::Http, b"GET /ws");
    bench.pass(4_900);
    assert_eq!((bench.shard.counters().value(Counter::Pings), bench.shard.sessions_len()), (0, 2));
}

#[test]
fn without_an_interval_nobody_is_pinged_and_no_timer_is_left() {
    let mut bench = Bench::with(Limits { ping_interval_ns: u64::MAX, ..Limits::default() });
    bench.native(0);
    bench.pass(1_000_000);
    assert_eq!((bench.shard.counters().value(Counter::Pings), bench.shard.next_deadline()), (0, None));
}

#[test]
fn ten_thousand_idle_sessions_wake_the_shard_a_few_times_a_second() {
    const SESSIONS: u32 = 10_000;
    let mut bench = Bench::new();
    // Connected over a whole interval, so that their pings need not be due together.
    for slot in 0..SESSIONS {
        bench.now.monotonic_ns += INTERVAL_MS * MS / u64::from(SESSIONS);
        bench.native(slot);
    }
    let minutes = 5;
    bench.wakes = 0;
    for _ in 0..minutes * 600 {
        bench.pass(100);
        bench.pinged().into_iter().for_each(|slot| bench.pong(slot));
    }
    assert_eq!(bench.shard.sessions_len(), SESSIONS as usize);
    let wakes_per_s = u64::from(bench.wakes) / (minutes * 60);
    assert!(wakes_per_s < 40, "{wakes_per_s} wakes a second");
}

#[test]
fn a_draining_server_that_reads_no_more_times_nobody_out() {
    let mut bench = Bench::new();
    bench.native(0);
    bench.pass(INTERVAL_MS + LATE_MS);
    bench.shard.stop_input();
    bench.pass(10 * TIMEOUT_MS);
    assert_eq!((bench.timed_out(), bench.shard.sessions_len()), (0, 1));
}

#[test]
fn a_drain_spreads_the_reconnect_times() {
    let mut bench = Bench::with(Limits { reconnect_spread_ms: 1_000, ..Limits::default() });
    (0..100).for_each(|slot| bench.native(slot));
    let now = bench.now;
    bench.shard.begin_drain(now.monotonic_ns + 1_000 * MS, now);
    bench.turn();
    let mut times = Vec::new();
    for (_, bytes) in &bench.sent {
        let Ok(Step::Complete(_, frame)) = frame::decode(bytes, 1 << 20) else { panic!("a frame") };
        let closing: tickcast_proto::records::Closing = frame.record().unwrap();
        assert_eq!((frame.kind, closing.code), (Kind::Closing, 3001));
        times.push(closing.reconnect_after_ms);
    }
    assert_eq!(times.len(), 100);
    assert!(times.iter().all(|&after_ms| after_ms <= 1_000));
    times.sort_unstable();
    times.dedup();
    assert!(times.len() > 80, "{times:?}");
}
