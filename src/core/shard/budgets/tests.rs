//! Tests of refused requests.

use std::sync::Arc;

use crate::{
    budgets::{BudgetLimits, PatternLimits, Rates},
    config::Limits,
    ids::{SlotId, SourceId},
    limits::{REFUSALS_RATE, THROTTLE_MS},
    metrics::counters::Counter,
    shard::{Action, ListenerKind},
    testing::{Driver, frame, hello},
};
use tickcast_proto::{
    ErrorCode, Step,
    frame::{self, Kind},
    records::{ErrorRecord, Publish, Request, Subscribe},
};

const ABUSER: u32 = 0;
const OTHER: u32 = 1;
const SECOND: u64 = 1_000_000_000;

fn with_rates(session: Rates, source: Rates) -> Limits {
    let budgets = BudgetLimits { session, source };
    Limits { budgets, subscriptions_per_session_max: 2, ..Limits::default() }
}

fn with_patterns(patterns: PatternLimits) -> Limits {
    Limits { patterns, ..Limits::default() }
}

/// A shard with two sessions of one source.
fn driver(limits: Limits) -> Driver {
    let mut driver = Driver::new(limits);
    for slot in [ABUSER, OTHER] {
        driver.accept(slot, ListenerKind::Native, &hello());
        driver.shard.set_source(SlotId(slot), SourceId(7));
        driver.take_sent(slot);
    }
    driver
}

fn publishes(count: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for request in 1..=count {
        let record = Publish { request, ..Publish::default() };
        frame::encode_publish(&mut bytes, 0, 0, 0, record, "t", payload);
    }
    bytes
}

fn subscribe(pattern: &str, from: u8) -> Vec<u8> {
    frame(Kind::Subscribe, &Subscribe { from, ..Subscribe::default() }, pattern.as_bytes())
}

fn unsubscribe(pattern: &str) -> Vec<u8> {
    frame(Kind::Unsubscribe, &Request::default(), pattern.as_bytes())
}

/// Sends bytes, and returns the codes of the errors that came back.
fn errors(driver: &mut Driver, slot: u32, bytes: &[u8]) -> Vec<u16> {
    driver.receive(slot, bytes);
    driver.turn();
    while driver.shard.is_busy() {
        driver.turn();
    }
    let (sent, mut errors) = (driver.take_sent(slot), Vec::new());
    let mut rest = &sent[..];
    while let Ok(Step::Complete(used, frame)) = frame::decode(rest, usize::MAX) {
        if frame.kind == Kind::Error {
            errors.push(frame.record::<ErrorRecord>().unwrap().code);
        }
        rest = &rest[used..];
    }
    errors
}

fn counted(driver: &Driver, counter: Counter) -> u64 {
    driver.shard.counters().value(counter)
}

const LIMITED: u16 = ErrorCode::RateLimited as u16;
const NONE: [u16; 0] = [];

#[test]
fn ticks_beyond_the_publish_rate_are_refused_with_an_error() {
    let mut driver = driver(with_rates(Rates { ticks: 2, ..Rates::default() }, Rates::default()));
    assert_eq!(errors(&mut driver, ABUSER, &publishes(4, b"1")), [LIMITED; 2]);
    driver.pass(SECOND / 2);
    assert_eq!(errors(&mut driver, ABUSER, &publishes(4, b"1")), [LIMITED; 3]);
    assert_eq!(errors(&mut driver, OTHER, &publishes(2, b"1")), NONE);
    assert_eq!(counted(&driver, Counter::TicksRefusedRate), 5);
    assert_eq!(counted(&driver, Counter::TicksSequenced), 5);
}

#[test]
fn bytes_published_have_a_limit_of_their_own_and_the_longest_tick_passes() {
    let rates = Rates { tick_bytes: 1_000, ..Rates::default() };
    let limits = Limits { frame_bytes_max: 8 << 10, ..with_rates(rates, Rates::default()) };
    let mut driver = driver(limits);
    assert_eq!(errors(&mut driver, ABUSER, &publishes(3, &[b'1'; 4_000])), [LIMITED]);
    driver.pass(SECOND);
    assert_eq!(errors(&mut driver, ABUSER, &publishes(2, &[b'1'; 999])), [LIMITED]);
    assert_eq!(counted(&driver, Counter::TicksRefusedBandwidth), 2);
}

#[test]
fn the_sessions_of_one_source_share_its_budget_and_others_have_their_own() {
    let mut driver =
        driver(with_rates(Rates::default(), Rates { ticks: 10, tick_bytes: 100, ..Rates::default() }));
    driver.accept(2, ListenerKind::Native, &hello());
    driver.accept(3, ListenerKind::Native, &hello());
    driver.shard.set_source(SlotId(3), SourceId(9));
    assert_eq!(errors(&mut driver, ABUSER, &publishes(12, b"1")), [LIMITED; 2]);
    assert_eq!(errors(&mut driver, OTHER, &publishes(1, b"1")), [LIMITED]);
    assert_eq!(errors(&mut driver, 3, &publishes(10, b"1")), NONE);
    // This session has no source, as behind a trusted proxy.
    assert_eq!(errors(&mut driver, 2, &publishes(100, b"1")), NONE);
    assert_eq!(counted(&driver, Counter::TicksRefusedSourceRate), 3);
    assert_eq!(counted(&driver, Counter::TicksSequenced), 120);
}

#[test]
fn a_session_that_subscribes_and_leaves_again_and_again_is_refused_as_a_whole_request() {
    let rates = Rates { subscriptions: 1, ..Rates::default() };
    let mut driver = driver(with_rates(rates, Rates::default()));
    let churn: Vec<u8> = (0..12).flat_map(|_| [subscribe(">", 0), unsubscribe(">")].concat()).collect();
    let not_held = ErrorCode::NotSubscribed as u16;
    // Two patterns, four times.
    assert_eq!(errors(&mut driver, ABUSER, &churn), [LIMITED, not_held].repeat(4));
    let update = frame(Kind::Update, &Subscribe::default(), b">");
    assert_eq!(errors(&mut driver, ABUSER, &update), [LIMITED]);
    driver.pass(SECOND);
    assert_eq!(errors(&mut driver, ABUSER, &subscribe(">", 0)), NONE);
    assert_eq!(errors(&mut driver, OTHER, &subscribe(">", 0)), NONE);
    assert_eq!(counted(&driver, Counter::SubscriptionsRefusedRate), 5);
}

#[test]
fn history_and_last_values_have_budgets_of_their_own() {
    let (latest, resume) = (1, 3);
    let rates = Rates { history: 1, last_values: 2, ..Rates::default() };
    let mut driver = driver(with_rates(rates, Rates::default()));
    for (from, counter) in [(latest, Counter::LastValuesRefusedRate), (resume, Counter::HistoryRefusedRate)] {
        let ask: Vec<u8> = (0..9).flat_map(|_| [subscribe("t", from), unsubscribe("t")].concat()).collect();
        let refused = errors(&mut driver, ABUSER, &ask);
        assert_eq!(refused, [LIMITED, ErrorCode::NotSubscribed as u16]);
        assert_eq!(counted(&driver, counter), 1);
    }
    assert_eq!(errors(&mut driver, ABUSER, &subscribe("t", 0)), NONE, "a subscription from now on");
}

#[test]
fn a_session_that_goes_on_beyond_its_budget_is_not_read_from_for_a_while() {
    let mut driver = driver(with_rates(Rates { ticks: 10, ..Rates::default() }, Rates::default()));
    let flood = publishes(5_000, b"1");
    let refused = errors(&mut driver, ABUSER, &flood).len();
    assert_eq!(refused as u32, REFUSALS_RATE);
    assert!(driver.actions.contains(&Action::PauseReceive(SlotId(ABUSER))));
    assert!(!driver.shard.is_busy(), "it costs nothing meanwhile");
    assert_eq!(counted(&driver, Counter::InputThrottled), 1);
    assert_eq!(errors(&mut driver, OTHER, &publishes(10, b"1")), NONE, "others are served");
    let mut all = refused;
    for _ in 0..10 {
        driver.pass(THROTTLE_MS * 1_000_000 + (1 << 23));
        all += errors(&mut driver, ABUSER, &[]).len();
    }
    assert!((1_900..2_300).contains(&all), "a thousand a second: {all}");
    for _ in 0..40 {
        driver.pass(THROTTLE_MS * 1_000_000 + (1 << 23));
        all += errors(&mut driver, ABUSER, &[]).len();
    }
    let sequenced = counted(&driver, Counter::TicksSequenced) as usize - 10;
    assert_eq!(all + sequenced, 5_000, "each is answered or accepted");
    assert!(driver.actions.contains(&Action::ResumeReceive(SlotId(ABUSER))));
    assert!(!driver.shard.sessions.get(SlotId(ABUSER)).unwrap().is_paused());
}

#[test]
fn requests_of_one_message_wait_too_once_the_session_is_throttled() {
    let mut driver = Driver::new(with_rates(Rates { ticks: 1, ..Rates::default() }, Rates::default()));
    let upgrade = crate::testing::upgrade_request("/ws", "tickcast.v1.rkyv");
    driver.accept(ABUSER, ListenerKind::Http, &upgrade);
    driver.take_sent(ABUSER);
    let message = crate::testing::masked(0x82, &publishes(3_000, b"1"));
    driver.receive(ABUSER, &message);
    // There is room for the answers to some hundred of them; then they are sent.
    while driver.shard.is_busy() {
        driver.turn();
    }
    assert_eq!(counted(&driver, Counter::TicksRefusedRate), u64::from(REFUSALS_RATE));
    for _ in 0..30 {
        driver.pass(THROTTLE_MS * 1_000_000 + (1 << 23));
    }
    let answered = counted(&driver, Counter::TicksRefusedRate) + counted(&driver, Counter::TicksSequenced);
    assert_eq!(answered, 3_000);
}

#[test]
fn a_pattern_with_too_many_wildcards_is_refused() {
    let patterns = PatternLimits { wildcards_max: 2, ..PatternLimits::default() };
    let mut driver = driver(with_patterns(patterns));
    for (pattern, refused) in [("*.*", false), ("a.*.b.*.>", false), ("*.a.*.*", true), ("a*.*.*b.*", false)]
    {
        let wanted: &[u16] = if refused { &[ErrorCode::BadPattern as u16] } else { &[] };
        assert_eq!(errors(&mut driver, ABUSER, &subscribe(pattern, 0)), wanted, "{pattern}");
    }
    assert_eq!(counted(&driver, Counter::PatternsRefusedWildcards), 1);
}

#[test]
fn the_text_of_a_sessions_patterns_is_bounded_and_what_it_gives_back_can_be_used_again() {
    let patterns = PatternLimits { session_bytes_max: 10, ..PatternLimits::default() };
    let mut driver = driver(with_patterns(patterns));
    let full = [ErrorCode::TooManySubscriptions as u16];
    for (slot, pattern, wanted) in [
        (ABUSER, "abcdef", &[][..]),
        (ABUSER, "abcde", &full),
        (ABUSER, "abcd", &[]),
        (ABUSER, "a", &full),
        (OTHER, "a", &[]),
    ] {
        assert_eq!(errors(&mut driver, slot, &subscribe(pattern, 0)), wanted, "{pattern}");
    }
    assert_eq!(errors(&mut driver, ABUSER, &unsubscribe("abcdef")), NONE);
    assert_eq!(errors(&mut driver, ABUSER, &subscribe("bcdefg", 0)), NONE);
    assert_eq!(errors(&mut driver, ABUSER, &unsubscribe("not.held")), [ErrorCode::NotSubscribed as u16]);
    assert_eq!(counted(&driver, Counter::PatternsRefusedSession), 2);
}

#[test]
fn a_source_pays_for_the_patterns_that_it_has_brought_until_nobody_holds_them() {
    let patterns = PatternLimits { source_bytes_max: 2_000, ..PatternLimits::default() };
    let mut driver = driver(with_patterns(patterns));
    driver.accept(2, ListenerKind::Native, &hello());
    driver.shard.set_source(SlotId(2), SourceId(9));
    let many: Vec<u8> = (0..100).flat_map(|n| subscribe(&format!("own.{n:03}"), 0)).collect();
    let refused = errors(&mut driver, ABUSER, &many);
    assert!(refused.len() > 80 && refused.iter().all(|code| *code == ErrorCode::TooManySubscriptions as u16));
    let brought = driver.shard.fanout.source_bytes(SourceId(7));
    assert!((2_000..2_300).contains(&brought), "{brought}");
    assert_eq!(errors(&mut driver, OTHER, &subscribe("another", 0)).len(), 1, "of the same source");
    assert_eq!(errors(&mut driver, 2, &subscribe("another", 0)).len(), 0, "of another");
    assert_eq!(errors(&mut driver, OTHER, &subscribe("another", 0)).len(), 0, "another pays for it");
    // Patterns that it brought count against its source while others hold them, and no longer.
    assert_eq!(errors(&mut driver, 2, &subscribe("own.000", 0)), NONE);
    driver.shard.handle_error(SlotId(ABUSER), 104, driver.now);
    assert_eq!(errors(&mut driver, OTHER, &[]), NONE);
    let left = driver.shard.fanout.source_bytes(SourceId(7));
    assert!(left > 0 && left < 300, "{left}");
    assert_eq!(errors(&mut driver, 2, &unsubscribe("own.000")), NONE);
    assert_eq!(driver.shard.fanout.source_bytes(SourceId(7)), 0);
    assert_eq!(counted(&driver, Counter::PatternsRefusedSource), refused.len() as u64 + 1);
}

#[test]
fn a_source_without_limits_brings_as_many_patterns_as_there_is_memory_for() {
    for (source, source_bytes_max) in [(0, 1), (7, 0)] {
        let mut driver =
            driver(with_patterns(PatternLimits { source_bytes_max, ..PatternLimits::default() }));
        driver.shard.set_source(SlotId(ABUSER), SourceId(source));
        let many: Vec<u8> = (0..100).flat_map(|n| subscribe(&format!("own.{n}"), 0)).collect();
        assert_eq!(errors(&mut driver, ABUSER, &many), NONE);
    }
}

#[test]
fn a_reload_changes_the_budgets_of_open_sessions() {
    let mut driver = driver(with_rates(Rates::default(), Rates::default()));
    assert_eq!(errors(&mut driver, ABUSER, &publishes(20, b"1")), NONE);
    let strict = with_rates(Rates::default(), Rates { ticks: 5, ..Rates::default() });
    driver.shard.reload(&Arc::new(strict), driver.now);
    assert_eq!(errors(&mut driver, ABUSER, &publishes(20, b"1")), [LIMITED; 15]);
    driver.shard.reload(&Arc::default(), driver.now);
    assert_eq!(errors(&mut driver, ABUSER, &publishes(20, b"1")), NONE);
}

#[test]
fn accounts_go_with_their_sessions() {
    let mut driver = driver(with_rates(Rates { ticks: 5, ..Rates::default() }, Rates::default()));
    errors(&mut driver, ABUSER, &publishes(5, b"1"));
    driver.shard.handle_error(SlotId(ABUSER), 104, driver.now);
    driver.turn();
    driver.accept(ABUSER, ListenerKind::Native, &hello());
    driver.take_sent(ABUSER);
    assert_eq!(errors(&mut driver, ABUSER, &publishes(6, b"1")), [LIMITED]);
}
