//! Tests of publishes with message ids, with two shards. All sessions are on the first.

use std::sync::Arc;

use crate::{
    config::Limits,
    ids::{SlotId, SourceId},
    limits::MESSAGE_ID_ENTRY_BYTES,
    mesh::Mesh,
    metrics::counters::Counter,
    now::Now,
    placement,
    principal::{Permissions, Principal},
    session::Proof,
    shard::{ListenerKind, Shard},
    testing::{START, TurnLoop, cluster},
};
use tickcast_proto::{
    ErrorCode, Step,
    features::Features,
    frame::{self, HeaderFields, HelloParts, Kind},
    records::{ErrorRecord, Publish, Published},
};

const ANN: SlotId = SlotId(0);
const BOB: SlotId = SlotId(1);
const WITH_IDS: Features = Features::PUBLISHED.union(Features::MESSAGE_IDS);

struct Pair {
    shards: Vec<Shard>,
    meshes: Vec<Mesh>,
    turns: TurnLoop,
    now: Now,
    /// Bytes sent to the sessions, by slot.
    sent: Vec<Vec<u8>>,
}

/// An answer to a publish, by its request id.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// With the sequence.
    Published(u32, u64),
    /// A duplicate of the tick with this sequence.
    Duplicate(u32, u64),
    Error(u32, ErrorCode),
}

use Answer::{Duplicate, Published as First};

impl Pair {
    fn new(limits: &Limits) -> Pair {
        let (shards, meshes, _) = cluster(2, limits, 64 << 10);
        let sent = vec![Vec::new(); 2];
        let mut pair = Pair { shards, meshes, turns: TurnLoop::default(), now: START, sent };
        pair.accept(ANN, "", WITH_IDS);
        pair.accept(BOB, "", WITH_IDS);
        pair
    }

    fn accept(&mut self, slot: SlotId, client: &str, features: Features) {
        let mut hello = Vec::new();
        frame::encode_hello(&mut hello, &HelloParts { request: 1, client, name: "test", features });
        self.shards[0].handle_accept(slot, ListenerKind::Native, self.now);
        self.shards[0].handle_bytes(slot, &hello, self.now);
        self.settle();
        self.sent[slot.index()].clear();
    }

    fn settle(&mut self) {
        for at in (0..16).map(|turn| turn % 2) {
            let (sent, mesh) = (&mut self.sent, &mut self.meshes[at]);
            self.turns.turn(&mut self.shards[at], Some(mesh), self.now, usize::MAX, |slot, bytes| {
                sent[slot.index()].extend_from_slice(bytes);
                false
            });
        }
    }

    fn send(&mut self, slot: SlotId, topic: &str, id: &[u8], request: u32) {
        let mut bytes = Vec::new();
        let record = Publish { request, ..Publish::default() };
        frame::encode_publish_with(&mut bytes, HeaderFields::default(), record, topic, id, b"1");
        self.shards[0].handle_bytes(slot, &bytes, self.now);
    }

    fn publish(&mut self, slot: SlotId, topic: &str, id: &str, request: u32) -> Vec<Answer> {
        self.send(slot, topic, id.as_bytes(), request);
        self.answers(slot)
    }

    fn answers(&mut self, slot: SlotId) -> Vec<Answer> {
        self.settle();
        let bytes = std::mem::take(&mut self.sent[slot.index()]);
        let (mut answers, mut rest) = (Vec::new(), &bytes[..]);
        while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
            rest = &rest[used..];
            let sequence = frame.header.sequence;
            answers.push(match frame.kind {
                Kind::Published => {
                    let Published { request, epoch, is_duplicate } = frame.record().unwrap();
                    assert!(epoch > 0 && frame.header.topic_id > 0);
                    if is_duplicate != 0 { Duplicate(request, sequence) } else { First(request, sequence) }
                }
                _ => {
                    let ErrorRecord { request, code, .. } = frame.record().unwrap();
                    Answer::Error(request, ErrorCode::from_wire(code).unwrap())
                }
            });
        }
        answers
    }

    fn become_proven(&mut self, slot: SlotId, subject: &str) {
        let principal = Principal {
            subject: subject.into(),
            permissions: Arc::new(Permissions::all()),
            ..Principal::default()
        };
        let session = self.shards[0].sessions.open_mut(slot).unwrap();
        (session.principal, session.proof) = (Some(Arc::new(principal)), Proof::Credentials);
    }

    fn counted(&self, counter: Counter) -> u64 {
        self.shards.iter().map(|shard| shard.counters.value(counter)).sum()
    }
}

/// A topic whose home is this one of the two shards.
fn topic_of(home: u16) -> String {
    (0..).map(|n| format!("t.{n}")).find(|name| placement::home_shard(name, 2).0 == home).unwrap()
}

#[test]
fn a_tick_published_again_with_its_id_is_answered_with_its_position_and_not_sequenced() {
    for home in 0..2 {
        let (mut pair, topic) = (Pair::new(&Limits::default()), topic_of(home));
        assert_eq!(pair.publish(ANN, &topic, "m1", 7), [First(7, 1)]);
        assert_eq!(pair.publish(ANN, &topic, "", 8), [First(8, 2)]);
        assert_eq!(pair.publish(ANN, &topic, "m1", 9), [Duplicate(9, 1)], "home {home}");
        assert_eq!(pair.publish(ANN, &topic, "m1", 0), [], "only a failure is answered");
        assert_eq!(pair.publish(ANN, &topic, "m2", 10), [First(10, 3)]);
        assert_eq!(pair.counted(Counter::TicksDuplicate), 2);
    }
}

#[test]
fn two_publishes_in_flight_with_the_same_id_give_one_tick() {
    for home in 0..2 {
        let (mut pair, topic) = (Pair::new(&Limits::default()), topic_of(home));
        pair.send(ANN, &topic, b"m", 1);
        pair.send(BOB, &topic, b"m", 2);
        pair.send(ANN, &topic, b"m", 3);
        assert_eq!(pair.answers(ANN), [First(1, 1), Duplicate(3, 1)]);
        assert_eq!(pair.answers(BOB), [Duplicate(2, 1)], "both claim to be nobody");
        assert_eq!(pair.counted(Counter::TicksSequenced), 1);
    }
}

#[test]
fn nobody_suppresses_the_publish_of_a_proven_client_by_its_id() {
    let (mut pair, topic) = (Pair::new(&Limits::default()), topic_of(1));
    assert_eq!(pair.publish(BOB, &topic, "m", 1), [First(1, 1)], "of an anonymous client");
    pair.become_proven(ANN, "ann");
    assert_eq!(pair.publish(ANN, &topic, "m", 2), [First(2, 2)]);
    pair.become_proven(BOB, "bob");
    assert_eq!(pair.publish(BOB, &topic, "m", 3), [First(3, 3)]);
    // The same client over another connection.
    pair.become_proven(BOB, "ann");
    assert_eq!(pair.publish(BOB, &topic, "m", 4), [Duplicate(4, 2)]);
}

#[test]
fn clients_that_claim_different_identities_have_different_ids() {
    let mut pair = Pair::new(&Limits::default());
    let topic = topic_of(0);
    let served_here = |prefix: &str| {
        let mut names = (0..).map(|n| format!("{prefix}{n}"));
        names.find(|name| placement::serving_shard(name, 2).0 == 0).unwrap()
    };
    let slots = [SlotId(2), SlotId(3)];
    pair.sent.resize(4, Vec::new());
    for (slot, name) in slots.into_iter().zip([served_here("ann"), served_here("bob")]) {
        pair.accept(slot, &name, WITH_IDS);
    }
    assert_eq!(pair.publish(slots[0], &topic, "1", 1), [First(1, 1)]);
    assert_eq!(pair.publish(slots[1], &topic, "1", 2), [First(2, 2)]);
    assert_eq!(pair.publish(ANN, &topic, "1", 3), [First(3, 3)]);
    assert_eq!(pair.publish(slots[0], &topic, "1", 4), [Duplicate(4, 1)]);
}

#[test]
fn an_id_of_another_topic_is_another_id() {
    let mut pair = Pair::new(&Limits::default());
    for (request, home) in [(1, 0), (2, 1)] {
        assert_eq!(pair.publish(ANN, &topic_of(home), "m", request), [First(request, 1)]);
    }
}

#[test]
fn an_id_is_forgotten_after_the_window() {
    let window_ns = 1_000_000_000;
    let (mut pair, topic) =
        (Pair::new(&Limits { message_id_window_ns: window_ns, ..Limits::default() }), topic_of(1));
    assert_eq!(pair.publish(ANN, &topic, "m", 1), [First(1, 1)]);
    pair.now.monotonic_ns += window_ns - 1;
    assert_eq!(pair.publish(ANN, &topic, "m", 2), [Duplicate(2, 1)], "a duplicate does not renew it");
    pair.now.monotonic_ns += 1;
    assert_eq!(pair.publish(ANN, &topic, "m", 3), [First(3, 2)]);
    assert_eq!(pair.counted(Counter::MessageIdsForgotten), 0);
}

#[test]
fn a_tick_that_was_refused_is_published_when_it_is_sent_again() {
    let mut limits = Limits::default();
    limits.creation.per_session = 2;
    let mut pair = Pair::new(&limits);
    let names: Vec<String> = (0..)
        .map(|n| format!("t.{n}"))
        .filter(|name| placement::home_shard(name, 2).0 == 1)
        .take(2)
        .collect();
    assert_eq!(pair.publish(ANN, &names[0], "m0", 1), [First(1, 1)]);
    assert_eq!(pair.publish(ANN, &names[1], "m1", 2), [Answer::Error(2, ErrorCode::TooManyTopics)]);
    assert_eq!(pair.publish(BOB, &names[1], "m1", 3), [First(3, 1)], "no id is remembered before its tick");
}

#[test]
fn ids_are_refused_unless_the_server_has_granted_them() {
    let mut pair = Pair::new(&Limits::default());
    let (topic, slot) = (topic_of(1), SlotId(2));
    pair.sent.push(Vec::new());
    pair.accept(slot, "", Features::PUBLISHED);
    assert_eq!(pair.publish(slot, &topic, "m", 1), [Answer::Error(1, ErrorCode::BadRequest)]);
    let mut pair = Pair::new(&Limits { message_id_window_ns: 0, ..Limits::default() });
    assert_eq!(pair.publish(ANN, &topic, "m", 1), [Answer::Error(1, ErrorCode::BadRequest)]);
    assert_eq!(pair.publish(ANN, &topic, "", 2), [First(2, 1)]);
}

#[test]
fn an_id_that_is_too_long_or_no_text_fails_its_publish() {
    let (mut pair, topic) = (Pair::new(&Limits::default()), topic_of(0));
    pair.send(ANN, &topic, b"\xff", 1);
    assert_eq!(pair.answers(ANN), [Answer::Error(1, ErrorCode::BadRequest)]);
    assert_eq!(pair.publish(ANN, &topic, &"m".repeat(255), 2), [First(2, 1)]);
    let mut bytes = Vec::new();
    let record =
        Publish { request: 3, topic_len: topic.len() as u16, message_id_len: 256, ..Publish::default() };
    let parts = [topic.as_bytes(), &[b'm'; 256], b"1"];
    frame::encode(&mut bytes, Kind::Publish, HeaderFields::default(), &record, &parts);
    pair.shards[0].handle_bytes(ANN, &bytes, START);
    assert_eq!(pair.answers(ANN), [Answer::Error(3, ErrorCode::BadRequest)]);
}

#[test]
fn a_flood_of_ids_makes_no_other_client_lose_its_own() {
    let limits = Limits { message_ids_bytes_max: 2 * 100 * MESSAGE_ID_ENTRY_BYTES, ..Limits::default() };
    let (mut pair, topic) = (Pair::new(&limits), topic_of(1));
    for (slot, source) in [(ANN, 1), (BOB, 2)] {
        pair.shards[0].sessions.open_mut(slot).unwrap().source = SourceId(source);
    }
    assert_eq!(pair.publish(ANN, &topic, "mine", 1), [First(1, 1)]);
    for n in 0..500 {
        pair.publish(BOB, &topic, &n.to_string(), 0);
    }
    assert!(pair.counted(Counter::MessageIdsForgotten) > 400);
    assert_eq!(pair.publish(ANN, &topic, "mine", 2), [Duplicate(2, 1)]);
    assert_eq!(pair.publish(BOB, &topic, "499", 3), [Duplicate(3, 501)]);
}
