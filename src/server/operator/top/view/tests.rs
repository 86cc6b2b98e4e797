use ratatui::{Terminal, backend::TestBackend};

use super::*;
use crate::operator::top::{
    figures::tests::snapshot,
    keys::Action,
    responses::{Snapshot, TenantEntry, TenantFigures, TenantQuota},
};

const PLAIN: Palette = Palette { has_colours: false };
const COLOURED: Palette = Palette { has_colours: true };

fn at(seconds: u64) -> Now {
    Now { monotonic_ns: seconds * 1_000_000_000, realtime_ns: seconds * 1_000_000_000 }
}

fn model(polls: impl IntoIterator<Item = Snapshot>) -> Model {
    let mut model = Model::new("127.0.0.1:9490".into(), 1_000);
    for snapshot in polls {
        let now = Now { monotonic_ns: snapshot.received_ns, realtime_ns: snapshot.received_ns };
        model.handle_poll(Ok(snapshot), now);
    }
    model
}

fn buffer(model: &Model, now: Now, palette: Palette, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(model, now, palette, frame.area(), frame.buffer_mut())).unwrap();
    terminal.backend().buffer().clone()
}

fn lines(model: &Model, now: Now, width: u16, height: u16) -> Vec<String> {
    let buffer = buffer(model, now, PLAIN, width, height);
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..height).map(|y| line(y).trim_end().to_owned()).collect()
}

fn has(lines: &[String], part: &str) -> bool {
    lines.iter().any(|line| line.contains(part))
}

#[test]
fn a_screen_of_80_by_24_has_every_part() {
    let model = model([snapshot(100, 2, 30, 50), snapshot(101, 2, 30, 50)]);
    let lines = lines(&model, at(101), 80, 24);
    assert!(lines[0].starts_with("tickcast 0.1.0 at 127.0.0.1:9490: serving, up 1 min 41 s, 12.0 MiB"));
    assert_eq!(lines[1], "50 sessions, 200 ticks/s in, 10,000 deliveries/s, 4.0 dropped/s, 6.0 conflated/s");
    assert!(lines[2].starts_with("latency, last 1.0 s") && lines[2].ends_with("max"), "{lines:#?}");
    assert!(lines[3].starts_with("received to sequenced") && lines[4].starts_with("received to sent"));
    assert_eq!(lines[5], "shards: 2");
    assert!(lines[6].contains("shard") && lines[6].contains("deliveries/s") && lines[6].contains("busy"));
    assert!(lines[7].contains("5,000") && lines[7].contains("25.0%"));
    assert_eq!(lines[9], "topics by rate: 30");
    assert!(lines[11].starts_with("market.29"));
    assert!(has(&lines, "sessions by outbox: 50") && has(&lines, "desk 0"), "{lines:#?}");
    assert!(
        lines[23].starts_with("q quit  Tab next list  s sort: outbox  p pause  +/- interval: 1.0 s  h help")
    );
    let more: Vec<&String> = lines.iter().filter(|line| line.starts_with("and ")).collect();
    assert_eq!(more.len(), 2, "{lines:#?}");
}

#[test]
fn a_wide_screen_has_every_column_and_names_the_interval_of_latencies() {
    let model = model([snapshot(100, 2, 30, 50), snapshot(102, 2, 30, 50)]);
    let lines = lines(&model, at(102), 160, 50);
    assert!(lines[2].starts_with("latency, last 2.0 s") && lines[2].ends_with("samples"), "{}", lines[2]);
    for title in ["waiting", "ticks/s", "sends/s", "parked/s", "ring", "conflated/s"] {
        assert!(lines[6].contains(title), "{title}: {}", lines[6]);
    }
    for title in ["client", "address", "encoding", "state", "held", "rtt"] {
        assert!(has(&lines, title), "{title}: {lines:#?}");
    }
    assert!(has(&lines, "127.0.0.1:40000"));
}

#[test]
fn a_tiny_screen_has_the_focused_list() {
    let model = model([snapshot(100, 2, 30, 50), snapshot(101, 2, 30, 50)]);
    let lines = lines(&model, at(101), 20, 5);
    assert_eq!(lines[0], "tickcast 0.1.0 at 12");
    assert_eq!(lines[2], "sessions by outbox:…");
    assert!(lines[4].starts_with("q quit"), "{lines:#?}");
}

#[test]
fn a_screen_of_40_columns_loses_no_unit() {
    let mut model = model([snapshot(100, 2, 30, 50), snapshot(101, 2, 30, 50)]);
    let screen = lines(&model, at(101), 40, 24);
    assert_eq!(screen[0], "tickcast 0.1.0 at 127.0.0.1:9490: servin");
    assert_eq!(screen[1], "50 sessions, 4.0 dropped/s");
    let percentiles: Vec<&str> = screen[2].split_whitespace().rev().take(2).collect();
    assert!(screen[2].starts_with("latency, last 1.0 s "), "{}", screen[2]);
    assert_eq!(percentiles, ["p99", "p50"], "{}", screen[2]);
    assert!(screen[3].starts_with("received to sequenc… ") && screen[3].ends_with(" us"), "{}", screen[3]);
    assert!(screen[4].starts_with("received to sent ") && screen[4].ends_with(" us"), "{}", screen[4]);
    assert!(screen[6].ends_with("busy") && screen[7].ends_with('%'), "{}", screen[7]);
    assert_eq!(screen[23], "q quit  +/- interval: 1.0 s  h help");
    model.handle_poll(Err("Connection refused".into()), at(3_600));
    let screen = lines(&model, at(3_725), 40, 24);
    assert_eq!(screen[2], "no response for 2 min 5 s (since 01:00:…", "{screen:#?}");
}

#[test]
fn overload_and_refused_topics_are_shown_above_the_figures() {
    let mut now = snapshot(101, 2, 30, 50);
    now.server.shards[1].counters.overloaded = 1;
    now.server.shards[0].counters.topics_refused = 7;
    let screen = lines(&model([snapshot(100, 2, 30, 50), now]), at(101), 80, 24);
    assert_eq!(screen[2], "overloaded: shard 1; sessions lose ticks");
    assert_eq!(screen[3], "7.0 ticks/s refused: no further topic is allowed");
}

#[test]
fn tenants_and_budgets_are_shown_at_100_and_at_40_columns_and_not_at_all_without_any() {
    let tenant = |name: &str, topics, publishes_refused| TenantEntry {
        tenant: name.into(),
        state: "open".into(),
        quota: TenantQuota { topics: 200, ..TenantQuota::default() },
        figures: TenantFigures { topics, publishes_refused, ..TenantFigures::default() },
    };
    let [mut before, mut now] = [snapshot(100, 2, 30, 50), snapshot(101, 2, 30, 50)];
    before.tenants = vec![tenant("acme", 10, 0), tenant("beta", 190, 0)];
    now.tenants = vec![tenant("acme", 10, 1_500), tenant("beta", 190, 0)];
    now.server.shards[0].counters.ticks_refused_rate = 2_500;
    now.server.shards[1].counters.subscriptions_refused_source_rate = 70;
    let shown = model([before, now]);
    let screen = lines(&shown, at(101), 100, 30);
    assert_eq!(screen[2], "tenant acme over quota: 1,500 ticks/s");
    assert_eq!(screen[3], "sessions over budget: 2,500 ticks/s");
    assert_eq!(screen[4], "addresses over budget: 70 patterns/s");
    assert_eq!(screen[5], "tenants: acme 5% of topics, beta 95% of topics");
    let screen = lines(&shown, at(101), 40, 30);
    assert_eq!(screen[2], "tenant acme over quota: 1,500 ticks/s");
    assert_eq!(screen[3], "sessions over budget: 2,500 ticks/s");
    assert_eq!(screen[4], "addresses over budget: 70 patterns/s");
    assert_eq!(screen[5], "tenants: acme 5% of topics");
    for width in [40, 100] {
        let none = lines(&model([snapshot(100, 2, 30, 50), snapshot(101, 2, 30, 50)]), at(101), width, 30);
        assert!(!has(&none, "tenant") && !has(&none, "budget") && !has(&none, "quota"), "{none:#?}");
    }
}

#[test]
fn no_size_or_state_panics() {
    let mut unreachable = model([snapshot(100, 2, 30, 50)]);
    unreachable.handle_poll(Err("refused".into()), at(101));
    let mut helped = model([snapshot(100, 200, 5_000, 100_000), snapshot(101, 200, 5_000, 100_000)]);
    helped.handle_action(Action::Help);
    helped.handle_action(Action::Last);
    let mut starting = snapshot(1, 1, 1, 1);
    starting.topics = Err("starting".into());
    starting.sessions = Err("starting".into());
    starting.latency = Err("starting".into());
    let models =
        [Model::new("a".into(), 1), model([snapshot(1, 1, 0, 0)]), model([starting]), unreachable, helped];
    for model in &models {
        for (width, height) in (0..30).flat_map(|height| [0, 1, 2, 7, 20, 79, 80, 300].map(|w| (w, height))) {
            for focus in Panel::ALL {
                let mut model = model.clone();
                model.focus = focus;
                let area = Rect::new(0, 0, width, height);
                draw(&model, at(200), COLOURED, area, &mut Buffer::empty(area));
            }
        }
    }
    // A terminal that shrank after its size was read.
    let small = Rect::new(0, 0, 10, 3);
    draw(&models[4], at(200), PLAIN, Rect::new(0, 0, 80, 24), &mut Buffer::empty(small));
}

#[test]
fn before_the_first_response_the_screen_says_so() {
    let lines = lines(&Model::new("127.0.0.1:9".into(), 500), at(1), 80, 24);
    assert_eq!(lines[..2], ["tickcast at 127.0.0.1:9", "waiting for the first response"]);
    assert!(lines[23].contains("interval: 500 ms"));
}

#[test]
fn an_outage_is_shown_with_time_and_reason_above_the_last_figures() {
    let mut model = model([snapshot(100, 2, 30, 50), snapshot(101, 2, 30, 50)]);
    model.handle_poll(Err("Connection refused".into()), at(3_600));
    model.handle_poll(Err("Connection refused".into()), at(3_601));
    let lines = lines(&model, at(3_725), 90, 24);
    assert_eq!(
        lines[2],
        "no response for 2 min 5 s (since 01:00:00 UTC): Connection refused, retrying every 1.0 s"
    );
    assert!(has(&lines, "market.29") && has(&lines, "10,000 deliveries/s"));
    let lines = super::tests::lines(&model, at(3_725), 80, 24);
    assert_eq!(lines[2], "no response for 2 min 5 s (since 01:00:00 UTC): Connection refused");
    let lines = super::tests::lines(&model, at(3_725), 50, 24);
    assert_eq!(lines[2], "no response for 2 min 5 s (since 01:00:00 UTC): C…");
}

#[test]
fn a_pause_and_unanswered_shards_are_shown() {
    let mut of_many = snapshot(101, 20, 30, 50);
    of_many.server.unanswered = (3..13).collect();
    let mut model = model([of_many]);
    model.handle_action(Action::Pause);
    let lines = lines(&model, at(101), 80, 24);
    assert!(lines[2].starts_with("paused"));
    assert_eq!(lines[3], "no response from shards 3, 4, 5, 6, 7, 8, 9, 10 and 2 more");
}

#[test]
fn rows_beyond_the_screen_are_counted() {
    let mut model = model([snapshot(100, 500, 50_000, 100_000), snapshot(101, 500, 50_000, 100_000)]);
    let lines = lines(&model, at(101), 80, 40);
    let counted: Vec<&String> = lines.iter().filter(|line| line.starts_with("and ")).collect();
    assert_eq!(counted.len(), 3, "{lines:#?}");
    assert!(has(&lines, "topics by rate: 50,000, of the 1,000 with the most ticks"), "{lines:#?}");
    let number = |line: &str| line.split(' ').nth(1).unwrap().replace(',', "").parse::<usize>().unwrap();
    let rows = |title: &str| {
        let from = lines.iter().position(|line| line.starts_with(title)).unwrap();
        lines[from + 2..].iter().position(|line| line.starts_with("and ")).unwrap()
    };
    let (shards, sessions) = (rows("shards:"), rows("sessions by"));
    assert_eq!(number(counted[0]), 500 - shards);
    assert_eq!(number(counted[2]), 100_000 - sessions);
    // At the end of the list, rows that the server did not send are still counted.
    model.focus = Panel::Sessions;
    model.handle_action(Action::Last);
    let lines = super::tests::lines(&model, at(101), 80, 40);
    assert!(has(&lines, "and 99,900 more"), "{lines:#?}");
}

#[test]
fn the_selected_row_is_always_visible() {
    let mut model = model([snapshot(100, 2, 300, 50)]);
    model.focus = Panel::Topics;
    for rows in [0, 5, 100, 299] {
        model.handle_action(Action::First);
        model.handle_action(Action::Move(rows));
        let name = &model.figures.as_ref().unwrap().topics.as_ref().unwrap()[rows as usize].topic.topic;
        for (width, height) in [(80, 24), (160, 50), (40, 9)] {
            let screen = buffer(&model, at(100), PLAIN, width, height);
            let found = (0..height).find(|&y| {
                let line: String = (0..width).map(|x| screen[(x, y)].symbol()).collect();
                line.split(' ').next() == Some(name)
            });
            let y = found.unwrap_or_else(|| panic!("{name} at {width}x{height}"));
            assert!(screen[(0, y)].modifier.contains(Modifier::REVERSED));
        }
    }
}

#[test]
fn only_losses_are_coloured_and_only_if_colours_are_allowed() {
    let model = model([snapshot(100, 2, 30, 50), snapshot(101, 2, 30, 50)]);
    let colours = |palette| {
        let screen = buffer(&model, at(101), palette, 160, 50);
        let mut colours: Vec<Color> = screen.content().iter().flat_map(|cell| [cell.fg, cell.bg]).collect();
        colours.sort_by_key(|colour| format!("{colour:?}"));
        colours.dedup();
        colours
    };
    assert_eq!(colours(PLAIN), [Color::Reset]);
    assert_eq!(colours(COLOURED), [Color::Red, Color::Reset]);
}

#[test]
fn the_help_covers_the_figures() {
    let mut model = model([snapshot(100, 2, 30, 50)]);
    model.handle_action(Action::Help);
    let lines = lines(&model, at(100), 80, 24);
    for (keys, effect) in HELP {
        assert!(lines.iter().any(|line| line.contains(keys) && line.contains(effect)), "{keys}: {lines:#?}");
    }
    assert!(lines[0].starts_with("tickcast") && lines[23].starts_with("q quit"));
}

#[test]
fn names_chosen_by_peers_cannot_control_the_terminal() {
    let mut snapshot = snapshot(100, 1, 1, 1);
    snapshot.topics.as_mut().unwrap().topics[0].topic = "\x1b]0;title\x07".into();
    snapshot.sessions.as_mut().unwrap().sessions[0].identity = Some("a\r\n\u{202e}b".into());
    snapshot.server.stage = "\x1b[31m".into();
    let lines = lines(&model([snapshot]), at(100), 200, 24);
    for shown in [r"\u{1b}]0;title\u{7}", r"a\r\n\u{202e}b", r"\u{1b}[31m"] {
        assert!(has(&lines, shown), "{shown}: {lines:#?}");
    }
}
