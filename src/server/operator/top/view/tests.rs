use ratatui::{Terminal, backend::TestBackend};

use super::*;
use crate::operator::top::{answers::Answers, figures::tests::answers, keys::Action};

const PLAIN: Palette = Palette { has_colours: false };
const COLOURED: Palette = Palette { has_colours: true };

fn at(seconds: u64) -> Now {
    Now { monotonic_ns: seconds * 1_000_000_000, realtime_ns: seconds * 1_000_000_000 }
}

fn model(looks: impl IntoIterator<Item = Answers>) -> Model {
    let mut model = Model::new("127.0.0.1:9490".into(), 1_000);
    for answers in looks {
        let now = Now { monotonic_ns: answers.received_ns, realtime_ns: answers.received_ns };
        model.handle_look(Ok(answers), now);
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
fn a_screen_of_80_by_24_has_each_part() {
    let model = model([answers(100, 2, 30, 50), answers(101, 2, 30, 50)]);
    let lines = lines(&model, at(101), 80, 24);
    assert!(lines[0].starts_with("tickcast 0.1.0 at 127.0.0.1:9490: serving for 1 min 41 s, 12.0 MiB"));
    assert_eq!(lines[1], "50 sessions, 200 ticks/s in, 10,000 deliveries/s, 4.0 dropped/s, 6.0 conflated/s");
    assert!(lines[2].starts_with("latency, last 1.0 s") && lines[2].ends_with("max"), "{lines:#?}");
    assert!(lines[3].starts_with("received to sequenced") && lines[4].starts_with("received to sent"));
    assert_eq!(lines[5], "shards: 2");
    assert!(lines[6].contains("shard") && lines[6].contains("deliveries/s") && lines[6].contains("busy"));
    assert!(lines[7].contains("5,000") && lines[7].contains("25.0%"));
    assert_eq!(lines[9], "topics by rate: 30");
    assert!(lines[11].starts_with("market.29"));
    assert!(has(&lines, "sessions by outbox: 50") && has(&lines, "desk 0"), "{lines:#?}");
    assert!(lines[23].starts_with("q end  Tab list  s sort by outbox  p pause  +/- every 1.0 s  h keys"));
    let more: Vec<&String> = lines.iter().filter(|line| line.starts_with("and ")).collect();
    assert_eq!(more.len(), 2, "{lines:#?}");
}

#[test]
fn a_wide_screen_has_every_column_and_says_what_latencies_are_of() {
    let model = model([answers(100, 2, 30, 50), answers(102, 2, 30, 50)]);
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
fn a_tiny_screen_has_the_list_that_the_keys_move_in() {
    let model = model([answers(100, 2, 30, 50), answers(101, 2, 30, 50)]);
    let lines = lines(&model, at(101), 20, 5);
    assert_eq!(lines[0], "tickcast 0.1.0 at 12");
    assert_eq!(lines[2], "sessions by outbox:…");
    assert!(lines[4].starts_with("q end"), "{lines:#?}");
}

#[test]
fn no_size_and_no_state_panics() {
    let mut silent = model([answers(100, 2, 30, 50)]);
    silent.handle_look(Err("refused".into()), at(101));
    let mut helped = model([answers(100, 200, 5_000, 100_000), answers(101, 200, 5_000, 100_000)]);
    helped.handle_action(Action::Help);
    helped.handle_action(Action::Last);
    let mut starting = answers(1, 1, 1, 1);
    starting.topics = Err("starting".into());
    starting.sessions = Err("starting".into());
    starting.latency = Err("starting".into());
    let models = [Model::new("a".into(), 1), model([answers(1, 1, 0, 0)]), model([starting]), silent, helped];
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
    // A terminal that shrinks between its size and the drawing.
    let small = Rect::new(0, 0, 10, 3);
    draw(&models[4], at(200), PLAIN, Rect::new(0, 0, 80, 24), &mut Buffer::empty(small));
}

#[test]
fn before_the_first_answer_there_is_a_word_for_it() {
    let lines = lines(&Model::new("127.0.0.1:9".into(), 500), at(1), 80, 24);
    assert_eq!(lines[..2], ["tickcast at 127.0.0.1:9", "no answer yet"]);
    assert!(lines[23].contains("every 500 ms"));
}

#[test]
fn a_server_that_is_gone_is_told_with_when_and_why_above_its_last_figures() {
    let mut model = model([answers(100, 2, 30, 50), answers(101, 2, 30, 50)]);
    model.handle_look(Err("Connection refused".into()), at(3_600));
    model.handle_look(Err("Connection refused".into()), at(3_601));
    let lines = lines(&model, at(3_725), 80, 24);
    assert_eq!(lines[2], "no answer since 01:00:00 UTC (2 min 5 s): Connection refused, asked every 1.0 s");
    assert!(has(&lines, "market.29") && has(&lines, "10,000 deliveries/s"));
    let lines = super::tests::lines(&model, at(3_725), 75, 24);
    assert_eq!(lines[2], "no answer since 01:00:00 UTC (2 min 5 s): Connection refused");
    let lines = super::tests::lines(&model, at(3_725), 50, 24);
    assert_eq!(lines[2], "no answer since 01:00:00 UTC (2 min 5 s): Connect…");
}

#[test]
fn a_pause_and_shards_that_do_not_answer_are_told() {
    let mut of_many = answers(101, 20, 30, 50);
    of_many.server.unanswered = (3..13).collect();
    let mut model = model([of_many]);
    model.handle_action(Action::Pause);
    let lines = lines(&model, at(101), 80, 24);
    assert!(lines[2].starts_with("paused"));
    assert_eq!(lines[3], "no answer from shards 3, 4, 5, 6, 7, 8, 9, 10 and 2 more");
}

#[test]
fn thousands_are_cut_to_what_is_seen_and_the_rest_is_counted() {
    let mut model = model([answers(100, 500, 50_000, 100_000), answers(101, 500, 50_000, 100_000)]);
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
    // At the end of the list, what the server did not send is still counted.
    model.focus = Panel::Sessions;
    model.handle_action(Action::Last);
    let lines = super::tests::lines(&model, at(101), 80, 40);
    assert!(has(&lines, "and 99,900 more"), "{lines:#?}");
}

#[test]
fn the_selected_row_is_always_seen() {
    let mut model = model([answers(100, 2, 300, 50)]);
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
fn without_colours_there_are_none_and_with_them_only_red_for_what_is_lost() {
    let model = model([answers(100, 2, 30, 50), answers(101, 2, 30, 50)]);
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
fn the_help_lies_above_the_figures() {
    let mut model = model([answers(100, 2, 30, 50)]);
    model.handle_action(Action::Help);
    let lines = lines(&model, at(100), 80, 24);
    for (keys, what) in HELP {
        assert!(lines.iter().any(|line| line.contains(keys) && line.contains(what)), "{keys}: {lines:#?}");
    }
    assert!(lines[0].starts_with("tickcast") && lines[23].starts_with("q end"));
}

#[test]
fn what_peers_name_cannot_steer_the_terminal() {
    let mut answers = answers(100, 1, 1, 1);
    answers.topics.as_mut().unwrap().topics[0].topic = "\x1b]0;title\x07".into();
    answers.sessions.as_mut().unwrap().sessions[0].identity = Some("a\r\n\u{202e}b".into());
    answers.server.stage = "\x1b[31m".into();
    let lines = lines(&model([answers]), at(100), 200, 24);
    for shown in [r"\u{1b}]0;title\u{7}", r"a\r\n\u{202e}b", r"\u{1b}[31m"] {
        assert!(has(&lines, shown), "{shown}: {lines:#?}");
    }
}
