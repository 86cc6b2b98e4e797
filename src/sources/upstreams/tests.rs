//! Tests of what a source subscribes to.

use super::*;
use tickcast_core::limits::DEMAND_PATTERNS_MAX;

const S: u64 = 1_000_000_000;
/// Rounds in which everything that ends has ended.
const ROUNDS_MAX: usize = 100;

/// The subscriptions of a source, with the time.
struct Source {
    upstreams: Upstreams,
    now_ns: u64,
    /// Subscriptions whose last messages may still come.
    leaving: Vec<SubscriptionId>,
}

impl Source {
    fn new(prefixes: &[&str]) -> Source {
        let prefixes = prefixes.iter().map(|&prefix| prefix.into()).collect();
        Source { upstreams: Upstreams::new(prefixes, 30 * S), now_ns: S, leaving: Vec::new() }
    }

    fn change(&mut self, pattern: &str, is_wanted: bool) {
        let pattern = Some(pattern).filter(|pattern| *pattern != "all").map(Into::into);
        self.upstreams.handle_change(DemandChange { pattern, is_wanted }, self.now_ns);
    }

    /// The steps for these changes: `+` or `-`, and a pattern.
    fn after(&mut self, changes: &[&str]) -> Vec<String> {
        for change in changes {
            self.change(&change[1..], change.starts_with('+'));
        }
        self.steps()
    }

    fn steps(&mut self) -> Vec<String> {
        let steps: Vec<Step> = std::iter::from_fn(|| self.upstreams.next_step(self.now_ns)).collect();
        self.leaving.extend(steps.iter().filter_map(|step| match step {
            Step::Unsubscribe(id, _) => Some(*id),
            _ => None,
        }));
        let text = |step| match step {
            Step::Subscribe { pattern, is_whole: false, .. } => format!("+{pattern}"),
            Step::Subscribe { pattern, is_whole: true, .. } => format!("+all {pattern}"),
            Step::Unsubscribe(_, pattern) => format!("-{pattern}"),
            Step::End(_) => "end".into(),
        };
        steps.into_iter().map(text).collect()
    }

    /// Takes everything that came before the ends of subscriptions.
    fn settle(&mut self) {
        self.leaving.drain(..).for_each(|id| self.upstreams.handle_settled(id));
    }

    /// The steps once this time has passed.
    fn pass(&mut self, seconds: u64) -> Vec<String> {
        self.settle();
        self.now_ns += seconds * S;
        self.steps()
    }

    fn id(&self, pattern: &str) -> SubscriptionId {
        self.upstreams.active().find(|(_, active)| *active == pattern).unwrap().0
    }

    /// The patterns of the subscriptions from which a message of a topic is taken, the oldest first.
    fn takers(&self, topic: &str) -> Vec<&str> {
        let active = self.upstreams.active();
        active.filter(|&(id, _)| self.upstreams.takes(id, topic)).map(|(_, pattern)| pattern).collect()
    }
}

#[test]
fn a_subscription_begins_with_the_first_holder_and_ends_a_linger_after_the_last() {
    let mut source = Source::new(&["md.>"]);
    assert_eq!(source.after(&["+md.a", "+md.a", "+md.b"]), ["+md.a", "+md.b"], "two shards want md.a");
    assert!(source.after(&["-md.a"]).is_empty() && source.pass(60).is_empty());
    assert!(source.after(&["-md.a"]).is_empty());
    assert_eq!(source.upstreams.due_ns(), Some(source.now_ns + 30 * S));
    assert!(source.pass(29).is_empty());
    assert_eq!(source.pass(1), ["-md.a"]);
    assert_eq!(source.pass(1), ["end"]);
    assert_eq!((source.upstreams.len(), source.upstreams.due_ns()), (1, None));
    assert_eq!(source.upstreams.changes(), 3);
}

#[test]
fn who_comes_back_within_the_linger_finds_the_same_subscription() {
    let mut source = Source::new(&["md.>"]);
    source.after(&["+md.a", "-md.a"]);
    let id = source.id("md.a");
    source.pass(29);
    assert!(source.after(&["+md.a"]).is_empty() && source.pass(60).is_empty());
    source.after(&["-md.a"]);
    assert!(source.pass(29).is_empty(), "the linger begins anew");
    assert_eq!(source.id("md.a"), id);
}

#[test]
fn what_a_subscription_covers_needs_none_of_its_own() {
    let mut source = Source::new(&["md.>"]);
    assert_eq!(source.after(&["+md.>"]), ["+md.>"]);
    assert!(source.after(&["+md.a", "+md.*.b"]).is_empty());
    assert_eq!(source.takers("md.a"), ["md.>"]);
}

#[test]
fn a_message_is_taken_from_the_oldest_subscription_that_matches() {
    let mut source = Source::new(&["md.>"]);
    source.after(&["+md.a.x", "+md.*.x", "+md.b.*"]);
    source.after(&["+md.>"]);
    for (topic, taker) in [("md.a.x", "md.a.x"), ("md.b.x", "md.*.x"), ("md.b.y", "md.b.*"), ("md.c", "md.>")]
    {
        assert_eq!(source.takers(topic), [taker], "{topic}");
    }
}

#[test]
fn a_wide_subscription_that_nobody_wants_any_more_gives_way_to_those_within_it() {
    let mut source = Source::new(&["md.>"]);
    source.after(&["+md.a"]);
    assert_eq!(source.after(&["+md.>", "+md.b", "+md.c.*"]), ["+md.>"]);
    source.after(&["-md.>"]);
    let mut steps = source.pass(30);
    let end = steps.pop();
    steps.sort();
    assert_eq!((&steps[..], end.as_deref()), (&["+md.b".into(), "+md.c.*".into()][..], Some("-md.>")));
    // Copies of its last messages may still come.
    assert_eq!((source.takers("md.a"), source.takers("md.b")), (vec!["md.a"], vec![]));
    assert_eq!(source.pass(1), ["end"]);
    assert_eq!((source.takers("md.a"), source.takers("md.b")), (vec!["md.a"], vec!["md.b"]));
}

#[test]
fn an_ended_subscription_keeps_its_topics_until_what_came_before_its_end_is_taken() {
    let mut source = Source::new(&["md.>"]);
    source.after(&["+md.>", "+md.b", "-md.>"]);
    assert_eq!(source.pass(30), ["+md.b", "-md.>"]);
    // However long the source's thread was busy: copies of what came by `md.>` may still lie in the client.
    source.now_ns += 3_600 * S;
    assert!(source.steps().is_empty() && source.takers("md.b").is_empty());
    assert_eq!(source.upstreams.due_ns(), None);
    source.settle();
    assert_eq!(source.steps(), ["end"]);
    assert_eq!(source.takers("md.b"), ["md.b"]);
}

#[test]
fn a_subscription_stays_younger_than_others_when_the_numbers_of_homes_begin_anew() {
    NUMBERS.fetch_max(u64::from(u32::MAX) - 2, Relaxed);
    let mut source = Source::new(&["md.>"]);
    source.after(&["+md.a", "+md.b", "+md.c", "+md.*"]);
    for topic in ["md.a", "md.b", "md.c"] {
        assert_eq!(source.takers(topic), [topic], "by the oldest");
    }
    let numbers: HashSet<UpstreamId> = source.upstreams.active().map(|(id, _)| id.upstream()).collect();
    assert_eq!(numbers.len(), 4);
    assert!(!numbers.contains(&UpstreamId::NONE), "{numbers:?}");
    assert_eq!(SubscriptionId(u64::from(u32::MAX)).upstream(), UpstreamId(u32::MAX));
    assert_eq!(SubscriptionId(u64::from(u32::MAX) + 1).upstream(), UpstreamId(1));
}

#[test]
fn beyond_the_bound_of_wildcards_all_of_a_prefix_is_subscribed_to_until_those_beyond_have_left() {
    let mut source = Source::new(&["md.>", "status.>"]);
    let patterns: Vec<String> = (0..DEMAND_PATTERNS_MAX).map(|n| format!("md.{n}.*")).collect();
    let changes =
        |sign| -> Vec<String> { patterns.iter().map(|pattern| format!("{sign}{pattern}")).collect() };
    let (wanted, unwanted) = (changes('+'), changes('-'));
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let steps = source.after(&wanted);
    assert_eq!(steps.len(), SOURCE_WILDCARDS_MAX + 1);
    assert_eq!(steps.last().unwrap(), "+all md.>");
    assert_eq!(
        (source.upstreams.whole_len(), source.upstreams.wildcards.len()),
        (1, SOURCE_WILDCARDS_MAX + 1)
    );
    assert_eq!((source.takers("md.3.x"), source.takers("md.4000.x")), (vec!["md.3.*"], vec!["md.>"]));
    assert_eq!(source.after(&["+status.a", "+md.a"]), ["+status.a"], "exact names have room");
    // The first ones leave: all of the prefix is still wanted, and covers those who come.
    source.after(&unwanted[..SOURCE_WILDCARDS_MAX].iter().map(String::as_str).collect::<Vec<_>>());
    assert!(source.pass(60).is_empty(), "they are older than `md.>`, which is wanted");
    assert!(source.after(&["+md.x.*"]).is_empty());
    source.after(&unwanted[SOURCE_WILDCARDS_MAX..].iter().map(String::as_str).collect::<Vec<_>>());
    let steps = source.pass(30);
    assert_eq!(steps.len(), SOURCE_WILDCARDS_MAX + 1 + 2, "all end, and what is left has its own");
    assert_eq!(source.upstreams.whole_len(), 0);
    source.pass(1);
    assert_eq!((source.takers("md.x.y"), source.takers("md.a")), (vec!["md.x.*"], vec!["md.a"]));
}

#[test]
fn a_subscription_stays_while_a_younger_one_wants_its_topics() {
    let mut source = Source::new(&["md.>"]);
    source.after(&["+md.a", "+md.b"]);
    source.after(&["+md.>", "-md.a"]);
    assert!(source.pass(60).is_empty(), "who holds md.> would lose ticks of md.a");
    assert_eq!(source.takers("md.a"), ["md.a"]);
    source.after(&["-md.>"]);
    assert_eq!(source.pass(30), ["-md.a", "-md.>"]);
    assert_eq!(source.takers("md.b"), ["md.b"]);
}

#[test]
fn a_pattern_that_is_wanted_again_while_its_subscription_ends_gets_a_new_one() {
    let mut source = Source::new(&["md.>"]);
    source.after(&["+md.a", "-md.a"]);
    assert_eq!(source.pass(30), ["-md.a"]);
    assert_eq!(source.after(&["+md.a"]), ["+md.a"]);
    assert!(source.takers("md.a").is_empty());
    assert_eq!(source.pass(1), ["end"]);
    assert_eq!(source.takers("md.a"), ["md.a"]);
}

#[test]
fn beyond_the_bound_all_of_a_prefix_is_subscribed_to_until_there_is_room() {
    let mut source = Source::new(&["md.>", "status.>"]);
    source.upstreams.subscriptions_max = 16;
    let wanted: Vec<String> = (0..20).map(|n| format!("+md.{n}")).collect();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let steps = source.after(&wanted);
    assert_eq!((steps.len(), &*steps[16]), (17, "+all md.>"), "{steps:?}");
    assert_eq!(source.upstreams.whole_len(), 1);
    assert_eq!((source.takers("md.3"), source.takers("md.19")), (vec!["md.3"], vec!["md.>"]));
    for n in 0..4 {
        source.change(&format!("md.{n}"), false);
    }
    assert_eq!(source.pass(30), ["-md.0", "-md.1", "-md.2", "-md.3"], "16 of 16 are too many to go back");
    for n in 4..8 {
        source.change(&format!("md.{n}"), false);
    }
    assert_eq!(source.pass(30).len(), 4 + 4 + 4 + 1, "ends, 4 more, 4 subscriptions, and that of the prefix");
    assert_eq!((source.upstreams.len(), source.upstreams.whole_len()), (12, 0));
}

#[test]
fn a_shard_that_reports_no_single_patterns_wants_all_prefixes() {
    let mut source = Source::new(&["md.>", "status"]);
    assert_eq!(source.after(&["+all"]), ["+md.>", "+status"]);
    source.after(&["-all"]);
    assert_eq!(source.pass(30), ["-md.>", "-status"]);
}

#[test]
fn a_new_connection_begins_with_what_is_wanted() {
    let mut source = Source::new(&["md.>"]);
    source.after(&["+md.a", "+md.b", "-md.a"]);
    assert_eq!(source.pass(30), ["-md.a"]);
    source.change("md.c", true);
    source.upstreams.handle_connection();
    assert_eq!(source.upstreams.active().map(|(_, pattern)| pattern).collect::<Vec<_>>(), ["md.b"]);
    assert_eq!(source.steps(), ["end", "+md.c"], "what had ended is over at once");
}

#[test]
fn a_refused_subscription_brings_nothing_and_is_tried_again_with_the_next_connection() {
    let mut source = Source::new(&["md.>"]);
    source.after(&["+md.a"]);
    source.upstreams.handle_refused(source.id("md.a"));
    assert!(source.upstreams.is_empty() && source.steps().is_empty());
    source.upstreams.handle_connection();
    assert_eq!(source.steps(), ["+md.a"]);
}

#[test]
fn patterns_that_a_refused_subscription_covered_get_their_own() {
    let mut source = Source::new(&["md.>"]);
    source.after(&["+md.>", "+md.a"]);
    source.upstreams.handle_refused(source.id("md.>"));
    assert_eq!(source.steps(), ["+md.a"]);
}

#[test]
fn a_refused_whole_prefix_does_not_stand_in_again_and_the_pattern_waits_for_room() {
    let mut source = Source::new(&["md.>"]);
    source.upstreams.wildcards_max = 4;
    source.after(&["+md.eu.a.*", "+md.eu.*.b", "+md.1.*", "+md.2.*", "-md.eu.a.*"]);
    assert!(source.pass(30).is_empty(), "a younger one overlaps md.eu.a.*, so it stays: 3 wanted, 4 active");
    assert_eq!(source.after(&["+md.3.*"]), ["+all md.>"]);
    source.upstreams.handle_refused(source.id("md.>"));
    assert!(source.steps().is_empty());
    assert!(source.after(&["+md.eu.*.c"]).is_empty(), "nor for those who come later");
    source.after(&["-md.1.*"]);
    assert_eq!(source.pass(30), ["-md.1.*", "+md.3.*"]);
    source.after(&["-md.eu.*.b"]);
    let mut steps = source.pass(30);
    steps.retain(|step| step != "end");
    assert_eq!(steps, ["-md.eu.a.*", "-md.eu.*.b", "+md.eu.*.c"]);
    source.upstreams.handle_connection();
    source.upstreams.wildcards_max = 3;
    assert_eq!(source.after(&["+md.4.*"]).last().unwrap(), "+all md.>", "another connection may permit it");
}

#[test]
fn patterns_beyond_the_bound_of_wildcards_get_their_own_once_there_is_room_if_their_prefix_is_refused() {
    let mut source = Source::new(&["md.>"]);
    source.upstreams.wildcards_max = 2;
    let steps = source.after(&["+md.1.*", "+md.2.*", "+md.3.*", "+md.3.*", "+md.4.*"]);
    assert_eq!(steps, ["+md.1.*", "+md.2.*", "+all md.>"]);
    source.upstreams.handle_refused(source.id("md.>"));
    assert!(source.steps().is_empty());
    source.after(&["-md.1.*", "-md.3.*"]);
    assert_eq!(source.pass(30), ["-md.1.*", "+md.3.*"], "its other holder remains");
    source.after(&["-md.2.*", "-md.4.*"]);
    assert_eq!(source.pass(30), ["end", "-md.2.*"]);
    source.after(&["-md.3.*"]);
    assert_eq!(source.pass(30), ["end", "-md.3.*"]);
    let Upstreams { crowded, wanted, waiting, .. } = &source.upstreams;
    assert!(crowded.is_empty() && wanted.is_empty() && waiting.is_empty(), "{:?}", source.upstreams);
}

#[test]
fn exact_names_beyond_the_bound_wait_for_room_if_their_prefix_is_refused() {
    let mut source = Source::new(&["md.>"]);
    source.upstreams.subscriptions_max = 2;
    assert_eq!(source.after(&["+md.a", "+md.b", "+md.c"]), ["+md.a", "+md.b", "+all md.>"]);
    source.upstreams.handle_refused(source.id("md.>"));
    assert!(source.after(&["+md.d", "-md.d", "-md.a"]).is_empty());
    assert_eq!(source.pass(30), ["-md.a", "+md.c"]);
}

/// Clients come and go at random at an engine that permits everything but the whole prefix.
#[test]
fn whatever_clients_want_a_refused_prefix_is_tried_once_and_room_is_used() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut source = Source::new(&["md.>"]);
        (source.upstreams.subscriptions_max, source.upstreams.wildcards_max) = (4, random.usize(1..4));
        let patterns =
            ["md.a", "md.b", "md.c", "md.a.x", "md.b.x", "md.*", "md.*.x", "md.a.*", "md.>", "md.a.>"];
        let (mut held, mut tried) = ([0_u32; 10], 0);
        for _ in 0..300 {
            let at = random.usize(0..10);
            let is_wanted = held[at] == 0 || random.bool();
            held[at] = if is_wanted { held[at] + 1 } else { held[at] - 1 };
            source.change(patterns[at], is_wanted);
            source.now_ns += random.u64(0..20) * S;
            for _ in 0..ROUNDS_MAX {
                source.settle();
                let is_quiet = source.steps().is_empty();
                let refused = source.upstreams.active().find(|(_, pattern)| *pattern == "md.>");
                if let Some((id, _)) = refused {
                    tried += 1;
                    source.upstreams.handle_refused(id);
                } else if is_quiet && source.leaving.is_empty() {
                    break;
                }
            }
            let Upstreams { active, wildcards, waiting, wildcards_max, .. } = &source.upstreams;
            assert!(tried <= 1 && active.len() <= 4 && wildcards.len() <= *wildcards_max, "seed {seed}");
            let has_room = active.len() < 4 && wildcards.len() < *wildcards_max;
            assert!(waiting.is_empty() || !has_room, "seed {seed}: {:?}", source.upstreams);
        }
        for (pattern, held) in patterns.iter().zip(held) {
            (0..held).for_each(|_| source.change(pattern, false));
        }
        for _ in 0..5 {
            source.pass(30);
        }
        let Upstreams { active, crowded, wanted, waiting, .. } = &source.upstreams;
        let is_empty = active.is_empty() && crowded.is_empty() && wanted.is_empty() && waiting.is_empty();
        assert!(is_empty, "seed {seed}: {:?}", source.upstreams);
    }
}

#[test]
fn a_failed_attempt_to_connect_loses_no_end() {
    let mut source = Source::new(&["md.>"]);
    source.after(&["+md.a", "-md.a"]);
    assert_eq!(source.pass(30), ["-md.a"]);
    source.upstreams.handle_connection();
    source.upstreams.handle_connection();
    assert_eq!(source.steps(), ["end"]);
}

/// Clients come and go at random, and the engine delivers each message once for each subscription.
#[test]
fn whatever_clients_want_each_wanted_topic_is_taken_exactly_once() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut source = Source::new(&["md.>"]);
        (source.upstreams.subscriptions_max, source.upstreams.wildcards_max) = (5, random.usize(1..5));
        let patterns =
            ["md.a", "md.b", "md.c", "md.a.x", "md.b.x", "md.*", "md.*.x", "md.a.*", "md.>", "md.a.>"];
        let mut held = [0_u32; 10];
        for _ in 0..300 {
            let at = random.usize(0..10);
            let is_wanted = held[at] == 0 || random.bool();
            held[at] = if is_wanted { held[at] + 1 } else { held[at] - 1 };
            source.change(patterns[at], is_wanted);
            source.pass(random.u64(0..20));
            // Each round ends as many as may end at a time.
            for _ in 0..ROUNDS_MAX {
                source.settle();
                if source.steps().is_empty() && source.leaving.is_empty() {
                    break;
                }
            }
            assert!(source.upstreams.ending.is_empty(), "seed {seed}");
            for topic in ["md.a", "md.b", "md.c", "md.d", "md.a.x", "md.b.x", "md.a.y"] {
                let takers = source.takers(topic).len();
                let is_wanted = patterns
                    .iter()
                    .zip(held)
                    .any(|(pattern, held)| held > 0 && pattern::matches(pattern, topic));
                assert!(takers <= 1 && (takers == 1 || !is_wanted), "seed {seed}, {topic}: {takers}");
            }
            assert!(source.upstreams.len() <= 6, "the bound, and the prefix");
        }
        for (pattern, held) in patterns.iter().zip(held) {
            (0..held).for_each(|_| source.change(pattern, false));
        }
        for _ in 0..5 {
            source.pass(30);
        }
        assert!(source.upstreams.is_empty(), "seed {seed}: {:?}", source.upstreams);
    }
}

/// Nobody who keeps a pattern loses its subscription because of what others do, once it has one of its own.
#[test]
fn a_topic_keeps_its_subscription_whatever_others_ask_for() {
    for seed in 0..200 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut source = Source::new(&["md.>"]);
        source.after(&["+md.a.x"]);
        let id = source.id("md.a.x");
        let patterns = ["md.b", "md.*.x", "md.a.*", "md.>"];
        let mut held = [false; 4];
        for _ in 0..100 {
            let at = random.usize(0..4);
            held[at] = !held[at];
            source.change(patterns[at], held[at]);
            source.pass(random.u64(0..40));
            assert!(source.upstreams.takes(id, "md.a.x"), "seed {seed}");
        }
    }
}
