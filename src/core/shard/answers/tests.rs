//! Tests of the answers to publishes, with two shards.

use crate::{
    config::Limits,
    ids::SlotId,
    limits::{REPLY_BYTES_MAX, answer_bytes_max},
    mesh::Mesh,
    placement,
    shard::{ListenerKind, Shard},
    testing::{START, TurnLoop, cluster, frame},
};
use tickcast_proto::{
    ErrorCode, Step, WireFormat,
    features::Features,
    frame::{self, HelloParts, Kind},
    ids::TopicId,
    records::{ErrorRecord, Publish, Published, Request, Token},
    reply::Reply,
};

const PUBLISHER: SlotId = SlotId(0);

/// Two shards; all sessions are on the first.
struct Pair {
    shards: Vec<Shard>,
    meshes: Vec<Mesh>,
    turns: TurnLoop,
    /// Bytes sent to the sessions, by slot.
    sent: Vec<Vec<u8>>,
}

impl Pair {
    fn new(limits: &Limits) -> Pair {
        let (shards, meshes, _) = cluster(2, limits, 64 << 10);
        let mut pair = Pair { shards, meshes, turns: TurnLoop::default(), sent: vec![Vec::new(); 2] };
        pair.accept(PUBLISHER, Features::PUBLISHED);
        pair
    }

    fn accept(&mut self, slot: SlotId, features: Features) {
        let mut hello = Vec::new();
        frame::encode_hello(&mut hello, &HelloParts { request: 1, client: "", name: "test", features });
        self.shards[0].handle_accept(slot, ListenerKind::Native, START);
        self.shards[0].handle_bytes(slot, &hello, START);
        self.turn(0);
        self.sent[slot.index()].clear();
    }

    fn turn(&mut self, shard: usize) {
        let (sent, mesh) = (&mut self.sent, &mut self.meshes[shard]);
        self.turns.turn(&mut self.shards[shard], Some(mesh), START, usize::MAX, |slot, bytes| {
            sent[slot.index()].extend_from_slice(bytes);
            false
        });
    }

    fn settle(&mut self) {
        for _ in 0..8 {
            (0..2).for_each(|shard| self.turn(shard));
        }
    }

    fn publish(&mut self, topic: &str, request: u32) {
        let mut bytes = Vec::new();
        let record = Publish { request, ..Publish::default() };
        frame::encode_publish(&mut bytes, 0, 0, 0, record, topic, b"1");
        self.shards[0].handle_bytes(PUBLISHER, &bytes, START);
    }

    /// Frames sent to a session since the last call.
    fn take(&mut self, slot: SlotId) -> Vec<Answer> {
        let bytes = std::mem::take(&mut self.sent[slot.index()]);
        let (mut answers, mut rest) = (Vec::new(), &bytes[..]);
        while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
            rest = &rest[used..];
            answers.push(match frame.kind {
                Kind::Published => {
                    let Published { epoch, request, is_duplicate } = frame.record().unwrap();
                    assert!(epoch > 0 && frame.header.topic_id > 0 && is_duplicate == 0);
                    Answer::Published(request, frame.text().unwrap().into(), frame.header.sequence)
                }
                Kind::Error => {
                    let ErrorRecord { request, code, .. } = frame.record().unwrap();
                    Answer::Error(request, code)
                }
                other => Answer::Other(other),
            });
        }
        answers
    }

    fn room_kept(&self) -> u32 {
        self.shards[0].sessions.get(PUBLISHER).map_or(0, |session| session.answers_bytes)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Published(u32, String, u64),
    Error(u32, u16),
    Other(Kind),
}

/// A topic whose home is this one of two shards.
fn topic_of(home: u16, number: u32) -> String {
    let mut names = (0..).map(|n| format!("t.{n}"));
    names.by_ref().filter(|name| placement::home_shard(name, 2).0 == home).nth(number as usize).unwrap()
}

#[test]
fn publish_with_an_id_is_acknowledged_by_its_home_with_the_sequence() {
    for home in 0..2 {
        let mut pair = Pair::new(&Limits::default());
        let topic = topic_of(home, 0);
        for request in [7, 0, 8] {
            pair.publish(&topic, request);
        }
        pair.settle();
        let expected = [Answer::Published(7, topic.clone(), 1), Answer::Published(8, topic.clone(), 3)];
        assert_eq!(pair.take(PUBLISHER), expected, "home {home}");
        assert_eq!(pair.room_kept(), 0);
    }
}

#[test]
fn publish_is_not_acknowledged_without_the_feature() {
    let mut pair = Pair::new(&Limits::default());
    pair.shards[0].handle_error(PUBLISHER, 104, START);
    while pair.shards[0].poll_action().is_some() {}
    pair.accept(PUBLISHER, Features::COUNTS);
    (0..2).for_each(|home| pair.publish(&topic_of(home, 0), 7));
    pair.settle();
    assert_eq!(pair.take(PUBLISHER), []);
}

#[test]
fn refusal_by_another_shard_answers_with_the_id_and_gives_the_room_back() {
    for home in 0..2 {
        let mut pair = Pair::new(&Limits { topics_max: 2, ..Limits::default() });
        pair.publish(&topic_of(home, 0), 6);
        pair.publish(&topic_of(home, 1), 7);
        pair.publish(&topic_of(home, 1), 0);
        pair.settle();
        let code = ErrorCode::TooManyTopics as u16;
        let expected =
            [Answer::Published(6, topic_of(home, 0), 1), Answer::Error(7, code), Answer::Error(0, code)];
        assert_eq!(pair.take(PUBLISHER), expected, "home {home}");
        assert_eq!(pair.room_kept(), 0);
    }
}

#[test]
fn publisher_waits_once_the_answers_owed_fill_its_room() {
    let mut pair = Pair::new(&Limits::default());
    let topic = topic_of(1, 0);
    let window = (REPLY_BYTES_MAX / answer_bytes_max(topic.len()) + 1) as u32;
    // The other shard does not run.
    let all = 3 * window;
    (1..=all).for_each(|request| pair.publish(&topic, request));
    (0..8).for_each(|_| pair.turn(0));
    assert_eq!(pair.room_kept(), window * answer_bytes_max(topic.len()) as u32);
    let session = pair.shards[0].sessions.get(PUBLISHER).unwrap();
    assert!(
        session.is_paused() && session.replies_have_room(),
        "it waits for another shard, not for its peer"
    );
    assert_eq!(pair.take(PUBLISHER), []);
    (0..10).for_each(|_| pair.settle());
    let expected: Vec<_> = (1..=all).map(|n| Answer::Published(n, topic.clone(), u64::from(n))).collect();
    assert_eq!(pair.take(PUBLISHER), expected, "each answer once, in order");
    assert_eq!(pair.room_kept(), 0);
}

#[test]
fn answer_to_a_session_that_has_gone_reaches_nobody() {
    let mut pair = Pair::new(&Limits::default());
    pair.publish(&topic_of(1, 0), 7);
    pair.turn(0);
    pair.shards[0].handle_error(PUBLISHER, 104, START);
    while pair.shards[0].poll_action().is_some() {}
    // By the time the answer arrives, its slot belongs to another session.
    pair.accept(PUBLISHER, Features::PUBLISHED);
    pair.settle();
    assert_eq!(pair.take(PUBLISHER), []);
    assert_eq!(pair.room_kept(), 0);
}

#[test]
fn half_closed_publisher_gets_its_answers() {
    let mut pair = Pair::new(&Limits::default());
    pair.publish(&topic_of(1, 0), 7);
    pair.shards[0].handle_eof(PUBLISHER, START);
    pair.turn(0);
    assert!(pair.shards[0].sessions.open_mut(PUBLISHER).is_some(), "its answer is on the way");
    pair.settle();
    assert_eq!(pair.take(PUBLISHER), [Answer::Published(7, topic_of(1, 0), 1)]);
    assert!(pair.shards[0].sessions.open_mut(PUBLISHER).is_none());
}

#[test]
fn tick_is_queued_before_its_acknowledgement_to_a_publisher_that_subscribes() {
    for home in 0..2 {
        let mut pair = Pair::new(&Limits::default());
        let topic = topic_of(home, 0);
        let request = frame(Kind::Subscribe, &Request::default(), topic.as_bytes());
        pair.shards[0].handle_bytes(PUBLISHER, &request, START);
        pair.settle();
        pair.take(PUBLISHER);
        pair.publish(&topic, 7);
        pair.settle();
        let expected =
            [Answer::Other(Kind::Subscribed), Answer::Other(Kind::Tick), Answer::Published(7, topic, 1)];
        assert_eq!(pair.take(PUBLISHER), expected);
    }
}

#[test]
fn pong_does_not_wait_for_the_answer_of_another_shard() {
    let mut pair = Pair::new(&Limits::default());
    pair.publish(&topic_of(1, 0), 7);
    pair.publish(&topic_of(0, 0), 8);
    pair.shards[0].handle_bytes(PUBLISHER, &frame(Kind::Ping, &Token { token: 1 }, b""), START);
    pair.settle();
    let expected = [
        Answer::Published(8, topic_of(0, 0), 1),
        Answer::Other(Kind::Pong),
        Answer::Published(7, topic_of(1, 0), 1),
    ];
    assert_eq!(pair.take(PUBLISHER), expected);
}

#[test]
fn room_for_an_answer_holds_it_in_every_format() {
    let sequence = (1 << 53) - 1;
    for len in [1, 100, 255] {
        let name = "\"".repeat(len);
        let published = Reply::Published {
            request: u32::MAX,
            topic: TopicId(u32::MAX),
            name: &name,
            epoch: sequence,
            sequence,
            is_duplicate: false,
        };
        let text = "the server has reached its limit of topics (--topics-max)";
        let refused = Reply::Error { request: u32::MAX, code: ErrorCode::TooManyTopics, text };
        for (format, reply) in
            WireFormat::ALL.iter().flat_map(|format| [(format, published), (format, refused)])
        {
            let mut bytes = Vec::new();
            reply.encode(*format, &mut bytes);
            assert!(bytes.len() <= answer_bytes_max(len), "{format:?}: {} bytes", bytes.len());
        }
    }
}
