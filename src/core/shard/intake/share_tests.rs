//! Tests of the shares that flat-out publishers get of a shard's intake: sessions, other shards and a source.

use std::collections::HashMap;

use crate::{
    config::Limits,
    ids::SlotId,
    mesh::{
        Mesh,
        lanes::Lanes,
        ring::{Doorbell, frame_ring},
    },
    placement,
    shard::{Action, ListenerKind, Shard},
    testing::{START, TurnLoop, cluster, frame, hello},
};
use tickcast_proto::{
    frame::{self, Kind},
    records::{Publish, Subscribe},
};

const SHARDS: u16 = 2;
/// Publishers of each shard, in the first slots.
const PUBLISHERS: u32 = 4;
/// Subscribers of each shard to everything, so that each tick costs more than to sequence it.
const SUBSCRIBERS: u32 = 10;
/// What a publisher sends in a turn, if the shard reads from it.
const SENT_BYTES: usize = 64 << 10;
const WARM_UP_TURNS: usize = 50;
const TURNS: usize = 300;
/// Turns within which each publisher has a tick taken: a second of the longest turns.
const WAIT_TURNS_MAX: usize = 100;

/// Flat-out publishers on both shards, and a source.
struct World {
    shards: Vec<Shard>,
    meshes: Vec<Mesh>,
    turns: TurnLoop,
    /// By shard and slot: whether the shard does not read from the publisher.
    paused: [[bool; PUBLISHERS as usize]; SHARDS as usize],
    source: Lanes,
}

impl World {
    fn new() -> World {
        let (mut shards, mut meshes, bells) = cluster(SHARDS, &Limits::default(), 1 << 20);
        for shard in &mut shards {
            for slot in 0..PUBLISHERS + SUBSCRIBERS {
                shard.handle_accept(SlotId(slot), ListenerKind::Native, START);
                shard.handle_bytes(SlotId(slot), &hello(), START);
                if slot >= PUBLISHERS {
                    let subscribe = frame(Kind::Subscribe, &Subscribe::default(), b">");
                    shard.handle_bytes(SlotId(slot), &subscribe, START);
                }
            }
        }
        let rings = meshes.iter_mut().map(|mesh| {
            let (producer, consumer) = frame_ring(1 << 20);
            mesh.add_source(consumer);
            (producer, std::sync::Arc::new(Doorbell::new(|| {})))
        });
        let source = Lanes::new(rings.collect::<Vec<_>>().into_iter());
        drop(bells);
        let paused = [[false; PUBLISHERS as usize]; SHARDS as usize];
        World { shards, meshes, turns: TurnLoop::default(), paused, source }
    }

    /// Whoever may publishes as much as it can; then each shard has a turn.
    fn turn(&mut self, topics: &HashMap<String, [String; SHARDS as usize]>) {
        for (shard, paused) in self.paused.iter().enumerate() {
            for (slot, _) in paused.iter().enumerate().filter(|(_, paused)| !**paused) {
                let mut bytes = Vec::new();
                let mut topics = topics[&publisher(shard, slot)].iter().cycle();
                while bytes.len() < SENT_BYTES {
                    let topic = topics.next().expect("a topic of each home");
                    frame::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), topic, b"1");
                }
                self.shards[shard].handle_bytes(SlotId(slot as u32), &bytes, START);
            }
        }
        for topic in &topics["source"] {
            while self.source.publish(topic, 0, 0, b"1").is_ok() {}
        }
        // What does not fit stays staged.
        let _ = self.source.flush();
        for index in 0..usize::from(SHARDS) {
            let mesh = Some(&mut self.meshes[index]);
            let actions = self.turns.turn(&mut self.shards[index], mesh, START, usize::MAX, |_, _| false);
            for action in actions {
                match action {
                    Action::PauseReceive(SlotId(slot)) => self.paused[index][slot as usize] = true,
                    Action::ResumeReceive(SlotId(slot)) => self.paused[index][slot as usize] = false,
                    _ => {}
                }
            }
        }
    }

    /// Ticks sequenced, by publisher.
    fn sequenced(&self) -> HashMap<String, u64> {
        let mut sequenced = HashMap::new();
        for shard in &self.shards {
            shard.visit_lives(|topic, _, sequence| {
                let (publisher, _) = topic.split_once('.').expect("topics begin with their publisher");
                *sequenced.entry(publisher.to_owned()).or_default() += sequence;
            });
        }
        sequenced
    }
}

fn publisher(shard: usize, slot: usize) -> String {
    format!("p{shard}-{slot}")
}

#[test]
fn flat_out_publishers_get_equal_shares_beside_the_mesh_and_a_source() {
    let mut world = World::new();
    let sessions: Vec<String> = (0..usize::from(SHARDS))
        .flat_map(|shard| (0..PUBLISHERS as usize).map(move |slot| publisher(shard, slot)))
        .collect();
    let all = sessions.iter().cloned().chain(["source".to_owned()]);
    let topics: HashMap<String, [String; SHARDS as usize]> = all
        .map(|name| {
            let topic_of = |home: u16| {
                let mut topics = (0..).map(|n| format!("{name}.{n}"));
                topics.find(|topic| placement::home_shard(topic, SHARDS).0 == home).expect("some topic")
            };
            let topics = std::array::from_fn(|home| topic_of(home as u16));
            (name, topics)
        })
        .collect();
    (0..WARM_UP_TURNS).for_each(|_| world.turn(&topics));
    let begin = world.sequenced();
    let (mut last, mut waited): (_, HashMap<String, usize>) = (begin.clone(), HashMap::new());
    let mut longest = 0;
    for _ in 0..TURNS {
        world.turn(&topics);
        let now = world.sequenced();
        for (name, ticks) in &now {
            let waited = waited.entry(name.clone()).or_default();
            *waited = if last.get(name) == Some(ticks) { *waited + 1 } else { 0 };
            longest = longest.max(*waited);
            assert!(*waited < WAIT_TURNS_MAX, "{name} has had no tick taken for {waited} turns");
        }
        last = now;
    }
    let share = |name: &String| last[name] - begin[name];
    let shares: Vec<u64> = sessions.iter().map(share).collect();
    let (least, most) = (shares.iter().min().copied().unwrap(), shares.iter().max().copied().unwrap());
    assert!(least > 0 && most <= 2 * least, "{shares:?}, at most {longest} turns without a tick");
    let of_source = share(&"source".to_owned());
    assert!(2 * of_source >= least, "the source has {of_source}, sessions {shares:?}");
}
