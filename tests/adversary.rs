//! A seeded adversary: tens of sessions send random commands over thousands of topics and vanish at any time, while time passes
//! and idle topics are forgotten. Whatever they do, each turn stays within its budgets, every request is served, and a healthy
//! publisher and subscriber notice nothing.
//!
//! A failing run prints its seed; `TICKCAST_SEED` repeats it.

use std::{env, panic, sync::Arc, thread};

use tickcast_core::{
    config::Limits,
    ids::SlotId,
    limits::{
        CONTROL_QUANTUM_UNITS, DELIVERIES_PER_OPENING_UNIT, NEW_TOPIC_UNITS,
        SUBSCRIPTIONS_PER_SESSION_MAX_DEFAULT, TURN_CONTROL_UNITS, TURN_DELIVERY_UNITS,
        TURN_DELIVERY_UNITS_PREFERRED, TURN_DEPARTURE_UNITS, TURN_FORGET_UNITS, TURN_HISTORY_UNITS,
        TURN_INTEREST_UNITS, TURN_OPENING_UNITS,
    },
    mesh::{Mesh, ring::Doorbell},
    metrics::counters::Counter,
    now::Now,
    placement,
    shard::{Action, ListenerKind, Shard},
    testing::{self, START, TurnLoop, frame, hello, masked, upgrade_request},
};
use tickcast_proto::{
    Step,
    command::encode_request,
    frame::{self, Kind},
    records::{Publish, Subscribe, Token},
    subscription::{Policy, Rules},
};

const SEEDS: u64 = 1_000;
const SHARDS: u16 = 2;
/// Hostile sessions of each shard; slot 0 belongs to the healthy pair.
const HOSTILE: u32 = 12;
/// The hostile sessions from this slot on are JSON WebSockets.
const FIRST_JSON: u32 = 9;
/// Time after which an idle topic is forgotten, and time of a turn.
const IDLE_NS: u64 = 100_000_000;
const TURN_NS: u64 = 5_000_000;
/// Time of a turn once the adversary is silent: the whole must not take so long that silent sessions are closed.
const SETTLE_TURN_NS: u64 = 1_000_000;
const STEPS: usize = 12;
/// One seed in this many has a long run, with thousands of topics.
const LONG_RUN_EVERY: u64 = 50;
const LONG_STEPS: usize = 100;
/// Turns within which a healthy tick must have arrived: shards run alternately, and each passes it on once.
const TICK_TURNS: usize = 3;
/// Turns after which nothing may be left to do once the adversary is silent. Each change of a session takes a round trip to the
/// homes, and a session has some dozens waiting.
const SETTLE_TURNS: usize = 20_000;

/// One shard and what the test knows of its sessions.
struct World {
    shards: Vec<Shard>,
    meshes: Vec<Mesh>,
    _bells: Vec<Arc<Doorbell>>,
    turns: TurnLoop,
    now: Now,
    /// By shard and slot.
    sessions: Vec<Vec<Session>>,
    /// Ticks that the healthy subscriber has received.
    received: u64,
    subscriber: (u16, Vec<u8>),
}

#[derive(Clone, Debug, Default)]
struct Session {
    open: bool,
    paused: bool,
    /// Its socket is full and stays so.
    stuck: bool,
    /// The last PONG it was sent.
    pong: u64,
    out: Vec<u8>,
}

impl World {
    fn new() -> World {
        let limits = Limits { topic_idle: Rules::all(IDLE_NS), ..Limits::default() };
        let (shards, meshes, bells) = testing::cluster(SHARDS, &limits, 1 << 16);
        let sessions = vec![vec![Session::default(); HOSTILE as usize + 1]; usize::from(SHARDS)];
        let subscriber = (1, Vec::new());
        let (turns, now) = (TurnLoop::default(), START);
        World { shards, meshes, _bells: bells, turns, now, sessions, received: 0, subscriber }
    }

    fn connect(&mut self, shard: usize, slot: u32) {
        let (listener, opening) = match slot >= FIRST_JSON {
            true => (ListenerKind::Http, upgrade_request("/ws", "tickcast.v1.json")),
            false => (ListenerKind::Native, hello()),
        };
        self.shards[shard].handle_accept(SlotId(slot), listener, self.now);
        self.shards[shard].handle_bytes(SlotId(slot), &opening, self.now);
        self.sessions[shard][slot as usize] = Session { open: true, ..Session::default() };
    }

    fn send(&mut self, shard: usize, slot: u32, bytes: &[u8]) {
        let session = &self.sessions[shard][slot as usize];
        if session.open && !session.paused {
            self.shards[shard].handle_bytes(SlotId(slot), bytes, self.now);
        }
    }

    /// One turn of each shard.
    fn turn(&mut self) {
        self.turn_of(TURN_NS);
    }

    /// One turn of each shard, which takes this time.
    fn turn_of(&mut self, duration_ns: u64) {
        self.now.monotonic_ns += duration_ns;
        let now = self.now;
        for index in 0..usize::from(SHARDS) {
            let units = |shard: &Shard| {
                [
                    Counter::ControlUnits,
                    Counter::DepartureUnits,
                    Counter::InterestUnits,
                    Counter::OpeningUnits,
                    Counter::ForgettingUnits,
                    Counter::DeliveryUnits,
                ]
                .map(|counter| shard.counters().value(counter))
            };
            let before = units(&self.shards[index]);
            let sessions = &mut self.sessions[index];
            let actions = self.turns.turn(
                &mut self.shards[index],
                Some(&mut self.meshes[index]),
                now,
                usize::MAX,
                |SlotId(slot), bytes| {
                    sessions[slot as usize].out.extend_from_slice(bytes);
                    sessions[slot as usize].stuck
                },
            );
            let after = units(&self.shards[index]);
            let used: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
            // Input may use what the turn before left of its budget; one step goes beyond it, which merges the
            // deliveries of a session's subscriptions at most.
            let step = u64::from(CONTROL_QUANTUM_UNITS) + SUBSCRIPTIONS_PER_SESSION_MAX_DEFAULT as u64;
            // Each new topic may use its cost for its members, whatever the turn has used.
            let new_topics = 2 * TURN_DELIVERY_UNITS + TURN_DELIVERY_UNITS_PREFERRED;
            let opening = TURN_OPENING_UNITS + new_topics + NEW_TOPIC_UNITS;
            let delivery = new_topics + TURN_HISTORY_UNITS + DELIVERIES_PER_OPENING_UNIT * TURN_OPENING_UNITS;
            let bounds = [
                2 * TURN_CONTROL_UNITS as u64 + step,
                2 * TURN_DEPARTURE_UNITS as u64 + step,
                TURN_INTEREST_UNITS as u64 + step,
                opening as u64 + step,
                TURN_FORGET_UNITS as u64 + step,
                delivery as u64 + step,
            ];
            assert!(used.iter().zip(bounds).all(|(&used, bound)| used <= bound), "{used:?} units in a turn");
            for action in actions {
                match action {
                    Action::PauseReceive(slot) => self.sessions[index][slot.index()].paused = true,
                    Action::ResumeReceive(slot) => self.sessions[index][slot.index()].paused = false,
                    Action::Close(slot) => self.sessions[index][slot.index()].open = false,
                    Action::ShutdownWrite(slot) => {
                        // The peer answers with FIN.
                        self.shards[index].handle_eof(slot, now);
                    }
                    Action::HandshakeDone(_) | Action::HandOver(_) | Action::Admit(..) => {}
                }
            }
            while let Some(action) = self.shards[index].poll_action() {
                if let Action::Close(slot) = action {
                    self.sessions[index][slot.index()].open = false;
                }
            }
            self.read(index);
        }
    }

    /// Whether any shard has work, or frames for another are on their way.
    fn is_busy(&mut self) -> bool {
        let mut shards = self.shards.iter().zip(&mut self.meshes);
        shards.any(|(shard, mesh)| {
            shard.is_busy()
                || mesh.has_input(shard)
                || !shard.requests_flushed()
                || !shard.deliveries_flushed()
        })
    }

    /// Decodes what the sessions of a shard were sent.
    fn read(&mut self, shard: usize) {
        for slot in 0..self.sessions[shard].len() {
            let session = &mut self.sessions[shard][slot];
            let is_subscriber = shard == usize::from(self.subscriber.0) && slot == 0;
            let mut input = std::mem::take(&mut session.out);
            if is_subscriber {
                self.subscriber.1.append(&mut input);
                input = std::mem::take(&mut self.subscriber.1);
            }
            if slot as u32 >= FIRST_JSON {
                // Pongs, whole or not, among messages that nobody needs.
                const PONG: &[u8] = br#""op":"pong","token":"#;
                let found = input.windows(PONG.len()).rposition(|window| window == PONG);
                let digits = found.map_or(&[][..], |at| &input[at + PONG.len()..]);
                let len = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
                session.pong = std::str::from_utf8(&digits[..len]).unwrap().parse().unwrap_or(session.pong);
                session.out = Vec::new();
                continue;
            }
            let mut rest = &input[..];
            while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
                rest = &rest[used..];
                match frame.kind {
                    Kind::Tick if is_subscriber => self.received += 1,
                    Kind::Pong => session.pong = frame.record::<Token>().unwrap().token,
                    _ => {}
                }
            }
            match is_subscriber {
                true => self.subscriber.1 = rest.to_vec(),
                false => session.out = rest.to_vec(),
            }
        }
    }
}

fn pattern(random: &mut fastrand::Rng) -> String {
    let tokens: Vec<&str> =
        (0..random.usize(1..5)).map(|_| ["a", "b", "c", "*"][random.usize(..4)]).collect();
    let rest = if random.bool() { ".>" } else { "" };
    match random.u8(..8) {
        0 => ">".to_owned(),
        _ => tokens.join(".") + rest,
    }
}

fn topic(random: &mut fastrand::Rng) -> String {
    let tokens: Vec<&str> = (0..random.usize(1..4)).map(|_| ["a", "b", "c"][random.usize(..3)]).collect();
    format!("{}.{}", tokens.join("."), random.u16(..2_000))
}

/// What a hostile session sends at once.
fn commands(random: &mut fastrand::Rng, out: &mut Vec<u8>) {
    let held: Vec<String> = (0..random.usize(1..20)).map(|_| pattern(random)).collect();
    for _ in 0..random.usize(1..60) {
        let name = &held[random.usize(..held.len())];
        match random.u8(..6) {
            0 | 1 => {
                let record = Subscribe {
                    request: random.u32(..),
                    from: random.u8(..2),
                    policy: random.u8(..4),
                    max_rate_millihertz: [0, 0, 500][random.usize(..3)],
                    ..Subscribe::default()
                };
                out.extend(frame(Kind::Subscribe, &record, name.as_bytes()));
            }
            2 => {
                let record = Subscribe { policy: Policy::Drop as u8, ..Subscribe::default() };
                out.extend(frame(Kind::Update, &record, name.as_bytes()));
            }
            3 => encode_request(out, Kind::Unsubscribe, 7, name),
            _ => {
                for _ in 0..random.usize(1..20) {
                    let topic = topic(random);
                    frame::encode_publish(out, 0, 0, 0, Publish::default(), &topic, b"1");
                }
            }
        }
    }
}

/// What a hostile JSON WebSocket sends at once.
fn json_commands(random: &mut fastrand::Rng, out: &mut Vec<u8>) {
    let held: Vec<String> = (0..random.usize(1..10)).map(|_| pattern(random)).collect();
    for _ in 0..random.usize(1..30) {
        let name = &held[random.usize(..held.len())];
        let text = match random.u8(..6) {
            0 | 1 => {
                let options = [r#","max_rate":0.5"#, r#","from":"latest""#, r#","policy":"conflate""#, ""];
                let options = options[random.usize(..4)];
                format!(r#"{{"op":"subscribe","id":7,"topics":["{name}"]{options}}}"#)
            }
            2 => format!(r#"{{"op":"update","id":7,"topics":["{name}"],"max_rate":{}}}"#, random.u8(1..9)),
            3 => format!(r#"{{"op":"unsubscribe","id":7,"topics":["{name}"]}}"#),
            _ => format!(r#"{{"op":"publish","topic":"{}","data":1}}"#, topic(random)),
        };
        out.extend(masked(0x81, text.as_bytes()));
    }
}

fn run(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut world = World::new();
    let topics: Vec<String> = (0..SHARDS)
        .map(|home| {
            let mut names = (0..).map(|n| format!("healthy.{n}"));
            names.find(|name| placement::home_shard(name, SHARDS).0 == home).expect("some name")
        })
        .collect();
    world.connect(0, 0);
    world.connect(1, 0);
    world.send(1, 0, &frame(Kind::Subscribe, &Subscribe::default(), b"healthy.*"));
    (0..10).for_each(|_| world.turn());
    let mut published = 0;
    let steps = if seed.is_multiple_of(LONG_RUN_EVERY) { LONG_STEPS } else { STEPS };
    for _ in 0..steps {
        for _ in 0..random.usize(1..6) {
            let (shard, slot) = (random.usize(..usize::from(SHARDS)), random.u32(1..=HOSTILE));
            if !world.sessions[shard][slot as usize].open {
                if world.shards[shard].sessions_len() <= HOSTILE as usize {
                    world.connect(shard, slot);
                    world.sessions[shard][slot as usize].stuck = random.u8(..4) == 0;
                }
                continue;
            }
            if random.u8(..10) == 0 {
                world.shards[shard].handle_error(SlotId(slot), 104, world.now);
                continue;
            }
            let mut bytes = Vec::new();
            match slot >= FIRST_JSON {
                true => json_commands(&mut random, &mut bytes),
                false => commands(&mut random, &mut bytes),
            }
            world.send(shard, slot, &bytes);
        }
        for topic in &topics {
            let mut bytes = Vec::new();
            frame::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), topic, b"1");
            world.send(0, 0, &bytes);
            published += 1;
        }
        (0..TICK_TURNS).for_each(|_| world.turn());
        assert!(!world.sessions[0][0].paused, "the healthy publisher is read");
        assert_eq!(world.received, published, "each healthy tick has arrived");
    }
    let mut turns = 0;
    while world.is_busy() {
        world.turn_of(SETTLE_TURN_NS);
        turns += 1;
        assert!(turns < SETTLE_TURNS, "work is left when nobody asks for any");
    }
    // Sessions whose requests were refused too often are read again after 100 ms.
    for _ in 0..25 {
        if world.sessions.iter().flatten().any(|session| session.open && session.paused && !session.stuck) {
            world.turn();
        }
    }
    let paused = world.sessions.iter().flatten().filter(|session| session.open && session.paused);
    assert!(
        paused.clone().all(|session| session.stuck),
        "only a full socket keeps a session from being read"
    );
    for shard in 0..usize::from(SHARDS) {
        for slot in 0..=HOSTILE {
            let ping = match slot >= FIRST_JSON {
                true => masked(0x81, format!(r#"{{"op":"ping","token":{}}}"#, seed + 1).as_bytes()),
                false => frame(Kind::Ping, &Token { token: seed + 1 }, b""),
            };
            world.send(shard, slot, &ping);
        }
    }
    (0..TICK_TURNS).for_each(|_| world.turn());
    for (slot, session) in world.sessions.iter().flat_map(|of_shard| of_shard.iter().enumerate()) {
        let served = session.pong == seed + 1;
        assert!(!session.open || session.stuck || served, "session {slot} is served: {session:?}");
    }
}

#[test]
fn no_session_takes_anything_from_another_whatever_it_does() {
    if let Ok(seed) = env::var("TICKCAST_SEED") {
        return run(seed.parse().expect("TICKCAST_SEED is a number"));
    }
    let threads = thread::available_parallelism().map_or(1, usize::from) as u64;
    thread::scope(|scope| {
        for first in 0..threads {
            scope.spawn(move || {
                for seed in (first..SEEDS).step_by(threads as usize) {
                    if let Err(panic) = panic::catch_unwind(|| run(seed)) {
                        eprintln!("repeat it with: TICKCAST_SEED={seed} cargo test --test adversary");
                        panic::resume_unwind(panic);
                    }
                }
            });
        }
    });
}
