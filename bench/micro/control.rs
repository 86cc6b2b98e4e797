//! Control work, in the units of its budgets in `tickcast_core::limits`.
//!
//! - `match`: a topic of ten tokens compared with 1,024 patterns that all match it. An iteration is one node of the trie.
//! - `interest`: a home with 20,000 topics goes round because a wildcard was added or removed. An iteration is one unit.
//! - `join`, `leave`: a session subscribes to `>` on 20,000 topics, or unsubscribes. An iteration is one topic, with
//!   everything that its shard does for it, as its home too.
//! - `visit`: a session subscribes to a pattern that matches none of the 20,000 topics. An iteration is one topic.

use std::{hint::black_box, sync::Arc};

use criterion::Criterion;
use tickcast_core::{
    config::Limits,
    home::{CreationLimits, Creator, Home, MessageIdBounds, Retention, last_value::LastValuesBudget},
    ids::SlotId,
    limits::TURN_INTEREST_UNITS,
    now::Now,
    pattern_trie::PatternTrie,
};
use tickcast_proto::{WireFormat, ids::ShardId, subscription::Rules};

use crate::{
    load::Load,
    measure::{per_unit, timed},
};

/// Tokens of the topic that is compared. In the patterns, each is a word or `*`.
const TOKENS: u32 = 10;
const TOPICS: usize = 20_000;
const ECONNRESET: i32 = 104;

pub fn bench(criterion: &mut Criterion) {
    let mut trie = PatternTrie::default();
    for pattern in 0..1_u32 << TOKENS {
        let tokens = (0..TOKENS).map(|at| if pattern >> at & 1 == 0 { "word" } else { "*" });
        trie.get_or_insert_with(&tokens.collect::<Vec<_>>().join("."), || pattern);
    }
    let topic = ["word"; TOKENS as usize].join(".");
    let nodes = trie.for_each_match(&topic, |_| {});
    criterion.bench_function("match", |bencher| {
        per_unit(bencher, nodes as u64, || {
            timed(|| {
                trie.for_each_match(black_box(&topic), |pattern| {
                    black_box(pattern);
                });
            })
        });
    });

    let mut home = home();
    let mut is_added = false;
    // A round is as many units whether the wildcard is there or not, but for the node that it has in the trie.
    let mut toggle = || {
        is_added = !is_added;
        match is_added {
            true => home.add_interest(ShardId(1), "t.*", 1, &mut |_| true),
            false => home.remove_interest(ShardId(1), "t.*", &mut |_| true),
        }
        let mut units = 0;
        let ns = timed(|| {
            while home.is_walking() {
                units += home.advance_walk(TURN_INTEREST_UNITS, &mut |_| true);
            }
        });
        (ns, units as u64)
    };
    toggle();
    let (_, units) = toggle();
    criterion.bench_function("interest", |bencher| per_unit(bencher, units, || toggle().0));

    let mut load = Load::new(WireFormat::TCP_NATIVE, 0, TOPICS);
    for (name, pattern) in [("join", ">"), ("visit", "none.*")] {
        criterion.bench_function(name, |bencher| {
            per_unit(bencher, TOPICS as u64, || {
                let ns = timed(|| {
                    load.connect(0, WireFormat::TCP_NATIVE, pattern);
                    finish(&mut load);
                });
                disconnect(&mut load);
                ns
            });
        });
    }
    criterion.bench_function("leave", |bencher| {
        per_unit(bencher, TOPICS as u64, || {
            let mut client = load.connect(0, WireFormat::TCP_NATIVE, ">");
            finish(&mut load);
            let unsubscribed = client.unsubscribe(">");
            assert!(unsubscribed.is_ok(), "{unsubscribed:?}");
            let request = client.poll_transmit().to_vec();
            let ns = timed(|| {
                load.shard.handle_bytes(SlotId(0), &request, load.now);
                finish(&mut load);
            });
            disconnect(&mut load);
            ns
        });
    });
}

/// Runs turns until no work is left.
fn finish(load: &mut Load) {
    while load.shard.is_busy() {
        load.turn();
    }
}

/// Resets the session's connection, and waits until the shard has forgotten it.
fn disconnect(load: &mut Load) {
    load.shard.handle_error(SlotId(0), ECONNRESET, load.now);
    finish(load);
}

fn home() -> Home {
    let Limits { history, history_bytes_max, .. } = Limits::default();
    let last_values = LastValuesBudget { keys_max: 0, bytes_left: 0 };
    let mut home = Home::new(
        ShardId(0),
        2,
        1,
        TOPICS,
        CreationLimits::default(),
        Retention {
            history,
            history_bytes_max,
            last_values,
            idle: Rules::all(0),
            message_ids: MessageIdBounds::default(),
        },
        Arc::default(),
    );
    for topic in 0..TOPICS {
        let created = home.find_or_create(
            &format!("t.{topic}"),
            Creator::default(),
            Now { monotonic_ns: 0, realtime_ns: 0 },
        );
        assert!(created.is_ok(), "there is room for all");
    }
    home
}
