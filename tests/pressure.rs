//! Behaviour under pressure: shards do not deadlock, sent bytes are freed, one client's work does not delay another's, and
//! every session ends.

use std::sync::Arc;

use tickcast::{limits::TIMERS_GONE_MAX, sources::Lanes};
use tickcast_core::{
    budgets::{BudgetLimits, Rates},
    config::Limits,
    ids::SlotId,
    mesh::{
        Mesh,
        ring::{Doorbell, frame_ring},
    },
    metrics::counters::Counter,
    now::Now,
    placement,
    shard::{Action, ListenerKind, Shard},
    testing::{self, START as NOW, TurnLoop, frame, hello},
};
use tickcast_proto::{
    command::encode_request,
    frame::{self, Kind},
    records::{Publish, Token},
};

/// Size of a receive buffer.
const CHUNK: usize = 4096;

fn shards(count: u16) -> (Vec<Shard>, Vec<Mesh>, Vec<Arc<Doorbell>>) {
    testing::cluster(count, &Limits::default(), 1 << 20)
}

fn connect(shard: &mut Shard, slot: u32) {
    shard.handle_accept(SlotId(slot), ListenerKind::Native, NOW);
    shard.handle_bytes(SlotId(slot), &hello(), NOW);
    assert_eq!(shard.poll_action(), Some(Action::HandshakeDone(SlotId(slot))));
}

fn publishes(topic: &str, payload: &[u8], bytes: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while out.len() < bytes {
        frame::encode_publish(&mut out, 0, 0, 0, Publish::default(), topic, payload);
    }
    out
}

fn pings(count: u64) -> Vec<u8> {
    (0..count).flat_map(|token| frame(Kind::Ping, &Token { token }, b"")).collect()
}

fn topic_at(home: u16, shards: u16) -> String {
    (0..)
        .map(|n| format!("t.{n}"))
        .find(|topic| placement::home_shard(topic, shards).0 == home)
        .expect("some topic")
}

/// One turn with sockets that take everything. Returns the actions.
fn turn(shard: &mut Shard, mesh: &mut Mesh) -> Vec<Action> {
    TurnLoop::default().turn(shard, Some(mesh), NOW, usize::MAX, |_, _| false)
}

#[test]
fn clients_that_come_and_go_leave_no_timers_behind() {
    let (mut shards, _, _) = shards(1);
    let shard = &mut shards[0];
    connect(shard, 0);
    let before = shard.memory_bytes();
    for _ in 0..100_000 {
        // No time passes, so not even the first handshake's timer is due.
        shard.handle_accept(SlotId(1), ListenerKind::Native, NOW);
        shard.handle_error(SlotId(1), 104, NOW);
        while shard.poll_action().is_some() {}
    }
    assert_eq!(shard.sessions_len(), 1);
    let (gone, bound) = (shard.memory_bytes() - before, 32 * (TIMERS_GONE_MAX + 16));
    assert!(gone <= bound, "{gone} bytes left, bound {bound}");
}

#[test]
fn two_shards_that_flood_each_other_make_progress() {
    const PUBLISHERS: usize = 40;
    for seed in 0..5 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut shards, mut meshes, _) = shards(2);
        let mut paused = [[false; PUBLISHERS]; 2];
        let mut next = [0; 2];
        for shard in &mut shards {
            (0..PUBLISHERS as u32).for_each(|slot| connect(shard, slot));
        }
        let floods: Vec<_> =
            (0..2).map(|id| publishes(&topic_at(1 - id, 2), &[b'x'; 1000], 128 << 10)).collect();
        let mut sequenced = 0;
        // Bursts of turns of one shard while the other does not run, as on a busy machine.
        for burst in 0..400 {
            let id = burst % 2;
            for _ in 0..random.usize(1..10) {
                for _ in 0..8 {
                    let slot = next[id];
                    next[id] = (slot + 1) % PUBLISHERS;
                    if !paused[id][slot] {
                        floods[id]
                            .chunks(CHUNK)
                            .for_each(|chunk| shards[id].handle_bytes(SlotId(slot as u32), chunk, NOW));
                    }
                }
                for action in turn(&mut shards[id], &mut meshes[id]) {
                    match action {
                        Action::PauseReceive(slot) => paused[id][slot.index()] = true,
                        Action::ResumeReceive(slot) => paused[id][slot.index()] = false,
                        _ => {}
                    }
                }
            }
            if burst % 20 == 19 {
                let now: u64 =
                    shards.iter().map(|shard| shard.counters().value(Counter::TicksSequenced)).sum();
                assert!(now > sequenced, "seed {seed}: nothing moved in the 20 bursts before {burst}");
                sequenced = now;
            }
        }
    }
}

#[test]
fn unread_replies_do_not_pile_up() {
    let (mut shards, _, _) = shards(1);
    let shard = &mut shards[0];
    connect(shard, 0);
    let (pings, mut sent, mut paused) = (pings(100), 0, false);
    for _ in 0..4_000 {
        // The socket is slow: each SEND is parked and completes a turn later.
        shard.handle_writable(SlotId(0), NOW);
        shard.turn(NOW);
        for _ in 0..40 {
            while let Some(action) = shard.poll_action() {
                paused = match action {
                    Action::PauseReceive(_) => true,
                    Action::ResumeReceive(_) => false,
                    _ => paused,
                };
            }
            if !paused {
                shard.handle_bytes(SlotId(0), &pings, NOW);
            }
        }
        TurnLoop::default().flush(shard, NOW, usize::MAX, |_, bytes| {
            sent += bytes.len();
            true
        });
    }
    assert!(sent > 64 << 20, "{sent} bytes were sent");
    assert!(shard.memory_bytes() < 1 << 20, "{} bytes are held", shard.memory_bytes());
}

#[test]
fn a_client_that_churns_patterns_does_not_delay_the_subscription_of_another() {
    // What protects the other is the turns, not a budget.
    let budgets = BudgetLimits { session: Rates::default(), source: Rates::default() };
    let limits = Limits { budgets, ..Limits::default() };
    let (mut shards, mut meshes, _) = testing::cluster(1, &limits, 1 << 20);
    let (shard, mesh) = (&mut shards[0], &mut meshes[0]);
    connect(shard, 0);
    connect(shard, 1);
    let mut topics = Vec::new();
    for n in 0..20_000 {
        frame::encode_publish(&mut topics, 0, 0, 0, Publish::default(), &format!("market.topic.{n}"), b"1");
    }
    shard.handle_bytes(SlotId(0), &topics, NOW);
    let mut churn = Vec::new();
    for n in 0..50_000 {
        encode_request(&mut churn, Kind::Subscribe, n, &format!("*.q{n}"));
        encode_request(&mut churn, Kind::Unsubscribe, n, &format!("*.q{n}"));
    }
    // The churn is held back by not reading from its socket.
    let mut held = churn.chunks(CHUNK);
    let mut paused = false;
    let mut turns = 0;
    let mut feed = |shard: &mut Shard, mesh: &mut Mesh| {
        if !paused && let Some(chunk) = held.next() {
            shard.handle_bytes(SlotId(0), chunk, NOW);
        }
        for action in turn(shard, mesh) {
            paused = match action {
                Action::PauseReceive(SlotId(0)) => true,
                Action::ResumeReceive(SlotId(0)) => false,
                _ => paused,
            };
        }
    };
    for _ in 0..200 {
        feed(shard, mesh);
    }
    let mut request = Vec::new();
    encode_request(&mut request, Kind::Subscribe, 7, "market.topic.1");
    shard.handle_bytes(SlotId(1), &request, NOW);
    while shard.counters().value(Counter::SessionsSubscribed) == 0 {
        feed(shard, mesh);
        turns += 1;
        assert!(turns < 20_000, "the exact subscription of the other client never went live");
    }
    assert!(turns < 2_000, "{turns} turns");
}

#[test]
fn a_session_that_ends_while_paused_resumes_receiving() {
    let (mut shards, mut meshes, _) = shards(1);
    connect(&mut shards[0], 0);
    shards[0].handle_bytes(SlotId(0), &pings(5_000), NOW);
    assert_eq!(shards[0].poll_action(), Some(Action::PauseReceive(SlotId(0))));
    shards[0].begin_drain(NOW.monotonic_ns + 1, NOW);
    let actions: Vec<_> = (0..20).flat_map(|_| turn(&mut shards[0], &mut meshes[0])).collect();
    assert_eq!(
        actions,
        [Action::ResumeReceive(SlotId(0)), Action::ShutdownWrite(SlotId(0))],
        "its FIN is waited for"
    );
}

#[test]
fn ticks_published_before_a_fin_are_sequenced_under_pressure() {
    let (mut shards, mut meshes, _) = shards(2);
    connect(&mut shards[0], 0);
    let ticks = publishes(&topic_at(1, 2), &[b'x'; 1000], 800 << 10);
    let count = (ticks.len() / publishes("t.0", &[b'x'; 1000], 1).len()) as u64;
    // Receives and FIN arrive in one poll.
    ticks.chunks(CHUNK).for_each(|chunk| shards[0].handle_bytes(SlotId(0), chunk, NOW));
    shards[0].handle_eof(SlotId(0), NOW);
    for _ in 0..100 {
        for id in 0..2 {
            for action in turn(&mut shards[id], &mut meshes[id]) {
                if action == Action::ResumeReceive(SlotId(0)) {
                    // The transport resumes receiving and finds the FIN.
                    shards[id].handle_eof(SlotId(0), NOW);
                }
            }
        }
    }
    assert_eq!(shards[1].counters().value(Counter::TicksSequenced), count);
    assert_eq!(shards[0].sessions_len(), 0);
}

#[test]
fn half_a_frame_left_by_a_source_does_not_keep_the_shard_awake() {
    let (mut shards, mut meshes, bells) = shards(1);
    let (producer, consumer) = frame_ring(1 << 20);
    meshes[0].add_source(consumer);
    let mut lanes = Lanes::new([(producer, bells[0].clone())].into_iter());
    // Until the ring is full: it takes what fits, which ends within a frame. The rest is lost with the source.
    loop {
        while lanes.publish("sim.1", 1, 1, &[b'1'; 100]).is_ok() {}
        if lanes.flush().is_err() {
            break;
        }
    }
    drop(lanes);
    for _ in 0..1_000 {
        turn(&mut shards[0], &mut meshes[0]);
    }
    assert!(meshes[0].requests_are_empty() && !meshes[0].has_input(&shards[0]));
}

#[test]
fn half_a_frame_ends_its_session_at_the_deadline_and_a_slow_stream_of_frames_does_not() {
    // Long compared with the timer wheel's granularity; the whole test is short compared with the linger deadline.
    const UNIT_NS: u64 = 50_000;
    let limits = Limits { frame_deadline_ns: 1_000 * UNIT_NS, ..Limits::default() };
    let (mut shards, _, _) = testing::cluster(1, &limits, 1 << 20);
    let mut shard = shards.remove(0);
    connect(&mut shard, 0);
    connect(&mut shard, 1);
    let stream = pings(20);
    let half = stream.len() / 40;
    let at = |after: u64| Now { monotonic_ns: NOW.monotonic_ns + after * UNIT_NS, ..NOW };
    shard.handle_bytes(SlotId(0), &stream[..half], at(0));
    shard.handle_bytes(SlotId(1), &stream[..half], at(0));
    // Each piece completes a frame and starts the next, so there is always half a frame, and always progress.
    for (n, piece) in stream[half..].chunks(2 * half).enumerate() {
        let now = at(600 * (n as u64 + 1));
        shard.handle_bytes(SlotId(1), piece, now);
        shard.turn(now);
    }
    assert_eq!(shard.counters().value(Counter::RequestErrors), 0);
    let mut gather = Vec::new();
    let goodbye =
        std::iter::from_fn(|| shard.poll_send(&mut gather, at(20_000))).find(|send| send.slot == SlotId(0));
    assert!(goodbye.is_some(), "the server sends the reason");
    shard.handle_sent(SlotId(0), 0, false, at(20_000));
    shard.handle_eof(SlotId(0), at(20_000));
    assert_eq!((shard.counters().value(Counter::ClosedFrameDeadline), shard.sessions_len()), (1, 1));
}
