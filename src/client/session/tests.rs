//! Runs the transcripts of tests/transcripts, as the tests of the other SDKs do. See the README there for the format.

mod extension_tests;
mod refused_tests;
mod shown;
mod since_tests;
mod waiting_tests;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Map, Value, json};

use self::shown::{
    data, hex, script_positions, show_action, show_subscription_event, state_name, subscription_state_name,
    with_retry,
};
use super::*;
use crate::{BookView, KeyedView, Level};
use tickcast_proto::subscription::{Delivery, Policy, Position, StartPosition};

const MS_NS: u64 = 1_000_000;
const NUMBER_TOLERANCE: f64 = 0.001;
const INPUTS: [&str; 11] = [
    "call",
    "open",
    "server",
    "server_text",
    "server_frames",
    "closed",
    "token",
    "token_failed",
    "after_ms",
    "late_ms",
    "check",
];

/// The starts of the subscriptions sent since the last call.
fn starts(session: &mut Session) -> Vec<Value> {
    let sent = std::iter::from_fn(|| session.poll_action()).filter_map(|action| match action {
        Action::Send { message: Message::Text(text), .. } => {
            Some(serde_json::from_slice::<Value>(&text).unwrap())
        }
        _ => None,
    });
    sent.filter(|message| message["op"] == "subscribe").map(|message| message["from"].clone()).collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/transcripts")
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap())
        .unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

/// The transcripts with their file names.
fn transcripts() -> Vec<(String, Value)> {
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut scripts: Vec<(String, Value)> = files
        .filter(|path| path.extension().is_some_and(|has| has == "json") && !path.ends_with("features.json"))
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), read(&path)))
        .collect();
    scripts.sort_by(|a, b| a.0.cmp(&b.0));
    scripts
}

#[test]
fn every_transcript_passes() {
    let mut failures = Vec::new();
    for (name, script) in transcripts() {
        if let Err(panic) = std::panic::catch_unwind(|| Script::run(&script)) {
            let text = panic.downcast_ref::<String>().cloned();
            failures.push(format!("{name}: {}", text.unwrap_or_default()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn every_feature_has_a_transcript_and_every_transcript_a_feature() {
    let features = read(&folder().join("features.json"));
    let features: Vec<&String> = features.as_object().unwrap().keys().collect();
    let mut shown: Vec<String> =
        transcripts().iter().map(|(_, script)| script["feature"].as_str().unwrap().to_owned()).collect();
    shown.sort_unstable();
    shown.dedup();
    assert_eq!(features.len(), shown.len());
    assert!(features.iter().all(|feature| shown.contains(feature)), "{features:?}, {shown:?}");
}

/// Fails if an object has a field that this runner does not know.
fn known(fields: &Value, names: &[&str], what: &str) {
    for name in fields.as_object().into_iter().flat_map(Map::keys) {
        assert!(names.contains(&&**name), "this runner does not know {name} of {what}");
    }
}

/// A step as often as it says, with the number of each repetition in place of its marks.
fn repeated(step: &Value) -> Vec<Value> {
    fn filled(value: &Value, number: u64) -> Value {
        match value {
            Value::String(text) if text == "#" => number.to_string().into(),
            Value::String(text) => {
                match text.strip_prefix("#+").and_then(|added| added.parse::<u64>().ok()) {
                    Some(added) => (number + added).into(),
                    None => value.clone(),
                }
            }
            Value::Array(items) => items.iter().map(|item| filled(item, number)).collect(),
            Value::Object(fields) => Value::Object(
                fields.iter().map(|(name, value)| (name.clone(), filled(value, number))).collect(),
            ),
            _ => value.clone(),
        }
    }
    let mut once = step.clone();
    let repeat = once.as_object_mut().and_then(|fields| fields.remove("repeat"));
    let repeat = repeat.map_or(1, |repeat| repeat.as_u64().unwrap());
    (0..repeat).map(|number| filled(&once, number)).collect()
}

/// The bytes of a dump: hexadecimal digits and white space, and text in single quotes.
fn dump_bytes(lines: &Value) -> Vec<u8> {
    let dump: String = lines.as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    let mut bytes = Vec::new();
    for (at, part) in dump.split('\'').enumerate() {
        if at % 2 == 1 {
            bytes.extend_from_slice(part.as_bytes());
            continue;
        }
        let digits: Vec<char> = part.chars().filter(|c| !c.is_whitespace()).collect();
        bytes.extend(digits.chunks(2).map(|pair| {
            let pair: String = pair.iter().collect();
            u8::from_str_radix(&pair, 16).unwrap()
        }));
    }
    bytes
}

/// Whether two JSON values are equal; numbers within a tolerance.
fn is_equal(expected: &Value, actual: &Value) -> bool {
    match (expected, actual) {
        (Value::Number(a), Value::Number(b)) => {
            a == b || (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < NUMBER_TOLERANCE
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| is_equal(a, b)))
        }
        _ => expected == actual,
    }
}

fn position(value: &Value) -> Position {
    Position { epoch: value["epoch"].as_u64().unwrap(), sequence: value["sequence"].as_u64().unwrap() }
}

fn positions(value: &Value) -> HashMap<Box<str>, Position> {
    let topics = value.as_object().into_iter().flatten();
    topics.map(|(topic, value)| (Box::from(&**topic), position(value))).collect()
}

fn key_of(value: &Value) -> u64 {
    value.as_str().map_or_else(|| value.as_u64().unwrap(), |text| text.parse().unwrap())
}

enum View {
    Keyed(KeyedView),
    Book(BookView),
}

/// A transcript being run.
struct Script {
    session: Session,
    random: Arc<Mutex<VecDeque<f64>>>,
    now_ns: u64,
    wall_ns: u64,
    names: BTreeMap<PublishId, String>,
    views: Vec<(String, View)>,
    actions: Vec<Value>,
    events: Vec<Value>,
}

impl Script {
    fn run(script: &Value) {
        let fields = ["feature", "about", "options", "given", "random", "wall_ms", "steps"];
        known(script, &fields, "a transcript");
        let numbers =
            script["random"].as_array().into_iter().flatten().map(|number| number.as_f64().unwrap());
        let random = Arc::new(Mutex::new(numbers.collect::<VecDeque<f64>>()));
        let source = random.clone();
        let next = move || {
            let next = source.lock().unwrap().pop_front();
            next.expect("the client asks for more random numbers than the script gives")
        };
        let wall_ms = script["wall_ms"].as_u64().unwrap_or(1_700_000_000_000);
        let mut run = Script {
            session: Session::new(options(&script["options"]), Random::new(next)),
            random,
            now_ns: 1_000_000 * MS_NS,
            wall_ns: wall_ms * MS_NS,
            names: BTreeMap::new(),
            views: Vec::new(),
            actions: Vec::new(),
            events: Vec::new(),
        };
        for given in script["given"].as_array().into_iter().flatten() {
            let given = given.as_str().unwrap();
            let path = folder().join("given").join(format!("{given}.json"));
            run.run_steps(&read(&path)["steps"], given);
        }
        run.run_steps(&script["steps"], "steps");
        let left = run.random.lock().unwrap().len();
        assert_eq!(left, 0, "the client asked for fewer random numbers");
    }

    fn run_steps(&mut self, steps: &Value, name: &str) {
        for (at, step) in steps.as_array().unwrap().iter().flat_map(repeated).enumerate() {
            let step = &step;
            let fields = [&INPUTS[..], &["client", "events", "throws", "about"]].concat();
            known(step, &fields, "a step");
            let inputs: Vec<&str> = INPUTS.into_iter().filter(|input| step.get(input).is_some()).collect();
            let &[input] = &inputs[..] else { panic!("{name} {at}: one input, not {inputs:?}") };
            let what: String =
                format!("{name} {}, {input} {}", at + 1, step[input]).chars().take(300).collect();
            self.apply(input, step);
            let (actions, events) = (std::mem::take(&mut self.actions), std::mem::take(&mut self.events));
            let mut wanted = step.get("client").cloned().unwrap_or(json!([]));
            for action in wanted.as_array_mut().unwrap() {
                if let Some(frames) = action.get("send_frames") {
                    *action = json!({"send_frames": hex(&dump_bytes(frames))});
                }
            }
            let actions = Value::from(actions);
            assert!(is_equal(&wanted, &actions), "{what}:\nexpected {wanted}\n     got {actions}");
            let wanted = step["events"].as_array().cloned().unwrap_or_default();
            assert_eq!(wanted.len(), events.len(), "{what}:\nexpected {wanted:?}\n     got {events:?}");
            for (wanted, event) in wanted.iter().zip(&events) {
                for (field, value) in wanted.as_object().unwrap() {
                    let is_same = event.get(field).is_some_and(|actual| is_equal(value, actual));
                    assert!(is_same, "{what}:\n{field} of {wanted}\n got {event}");
                }
            }
        }
    }

    fn drain(&mut self) {
        while let Some(action) = self.session.poll_action() {
            self.actions.push(show_action(&action));
        }
        while let Some(event) = self.session.poll_event() {
            if let ClientEvent::Subscription { on, event } = &event {
                for (_, view) in self.views.iter_mut().filter(|(pattern, _)| **pattern == **on) {
                    match view {
                        View::Keyed(view) => view.handle(event),
                        View::Book(view) => view.handle(event),
                    }
                }
            }
            let shown = self.show_event(&event);
            self.events.push(shown);
        }
    }

    fn show_event(&self, event: &ClientEvent) -> Value {
        match event {
            ClientEvent::State(Change { state, code, reason, retry_in_ms }) => {
                let state = state_name(*state);
                with_retry(
                    json!({"type": "state", "state": state, "code": code, "reason": &**reason}),
                    *retry_in_ms,
                )
            }
            ClientEvent::Subscription { on, event } => {
                let mut shown = show_subscription_event(event);
                shown["on"] = (**on).into();
                shown
            }
            ClientEvent::Source { source, state, since_ns } => {
                json!({"type": "source", "source": source, "state": state.name(), "since_ns": since_ns})
            }
            ClientEvent::Expires { expires_in_s } => {
                json!({"type": "expires", "expires_in_s": expires_in_s})
            }
            ClientEvent::Latency { round_trip_ns, offset_ns } => json!({
                "type": "latency",
                "rtt_ms": *round_trip_ns as f64 / 1e6,
                "offset_ms": offset_ns.map(|offset_ns| offset_ns as f64 / 1e6),
            }),
            ClientEvent::Published { publish, published } => {
                let PublishedAt { topic, position: Position { epoch, sequence }, is_duplicate } = published;
                json!({
                    "type": "published", "name": self.names[publish], "topic": topic, "epoch": epoch,
                    "sequence": sequence, "duplicate": is_duplicate,
                })
            }
            ClientEvent::PublishFailed { publish, failure: PublishFailure { outcome, code, reason } } => {
                let outcome = match outcome {
                    PublishOutcome::Refused => "refused",
                    PublishOutcome::NotSent => "not_sent",
                    PublishOutcome::Unknown => "unknown",
                };
                json!({
                    "type": "publish_failed", "name": self.names[publish], "outcome": outcome, "code": code,
                    "reason": &**reason,
                })
            }
            ClientEvent::Error { code, reason } => {
                json!({"type": "error", "code": code, "reason": &**reason})
            }
        }
    }

    fn apply(&mut self, input: &str, step: &Value) {
        let value = &step[input];
        let text = || value.as_str().unwrap();
        let (now_ns, wall_ns) = (self.now_ns, self.wall_ns);
        match input {
            "call" => {
                let throws = step["throws"].as_bool().unwrap_or(false);
                let called = self.call(value.as_array().unwrap());
                assert_eq!(called.is_err(), throws, "{value}: {called:?}");
            }
            "open" => self.session.handle_open(Some(text()), now_ns),
            "server" => {
                let message = Message::Text(value.to_string().into());
                self.session.handle_message(&message, now_ns, wall_ns);
            }
            "server_text" => {
                let message = Message::Text(text().to_owned().into());
                self.session.handle_message(&message, now_ns, wall_ns);
            }
            "server_frames" => {
                let message = Message::Binary(dump_bytes(value).into());
                self.session.handle_message(&message, now_ns, wall_ns);
            }
            "closed" => {
                let (code, reason) = (value[0].as_u64().unwrap() as u16, value[1].as_str().unwrap());
                self.session.handle_closed(code, reason, 0, now_ns);
            }
            "token" => self.session.handle_token(ClientToken::new(text()).unwrap(), now_ns),
            "token_failed" => self.session.handle_token_failed(text(), now_ns),
            "after_ms" => {
                let end_ns = now_ns + value.as_u64().unwrap() * MS_NS;
                while let Some(at_ns) = self.session.poll_timeout().filter(|at_ns| *at_ns <= end_ns) {
                    self.pass_time(at_ns.max(self.now_ns));
                    self.session.handle_timeout(self.now_ns);
                    self.drain();
                }
                self.pass_time(end_ns);
            }
            "late_ms" => {
                self.pass_time(now_ns + value.as_u64().unwrap() * MS_NS);
                self.session.handle_timeout(self.now_ns);
            }
            "check" => self.check(value),
            other => panic!("this runner does not know the input {other}"),
        }
        self.drain();
    }

    fn pass_time(&mut self, to_ns: u64) {
        self.wall_ns += to_ns - self.now_ns;
        self.now_ns = to_ns;
    }

    fn call(&mut self, call: &[Value]) -> Result<(), RequestError> {
        let text = |at: usize| call[at].as_str().unwrap();
        let (session, now_ns) = (&mut self.session, self.now_ns);
        match (text(0), call.len()) {
            ("connect", 1) => session.connect(now_ns),
            ("disconnect", 1) => session.disconnect(now_ns),
            ("subscribe", 3) => {
                let options = &call[2];
                known(options, &["from", "policy", "max_rate"], "a subscription");
                let from = match &options["from"] {
                    Value::Null => StartPosition::Live,
                    Value::String(word) => match &**word {
                        "live" => StartPosition::Live,
                        "latest" => StartPosition::Latest,
                        "oldest" => StartPosition::AfterEach(HashMap::new()),
                        other => panic!("this runner does not know the start {other}"),
                    },
                    from => {
                        known(from, &["positions"], "from");
                        StartPosition::AfterEach(positions(&from["positions"]))
                    }
                };
                let delivery = Delivery {
                    policy: policy(&options["policy"]),
                    interval_us: interval_us(&options["max_rate"]),
                };
                session.subscribe(text(1), SubscribeOptions { delivery, from })?;
            }
            ("unsubscribe", 2) => session.unsubscribe(text(1))?,
            ("set_rate", 3) => {
                let delivery = session.delivery(text(1))?;
                session.update(text(1), Delivery { interval_us: interval_us(&call[2]), ..delivery })?;
            }
            ("set_policy", 3) => {
                let delivery = session.delivery(text(1))?;
                session.update(text(1), Delivery { policy: policy(&call[2]), ..delivery })?;
            }
            ("publish", 4) => {
                let options = &call[3];
                let fields = ["data", "data_base64", "key", "schema", "ts_ns", "message_id", "timeout_ms"];
                known(options, &fields, "a publish");
                let payload = match options.get("data") {
                    Some(data) => data.to_string().into_bytes(),
                    None => BASE64.decode(options["data_base64"].as_str().unwrap()).unwrap(),
                };
                let number = |name: &str| options.get(name).map_or(0, key_of);
                let publish = PublishRequest {
                    topic: text(2),
                    payload: &payload,
                    producer_time_ns: number("ts_ns"),
                    schema: number("schema") as u32,
                    key: number("key"),
                    message_id: options["message_id"].as_str().unwrap_or(""),
                };
                let timeout = Duration::from_millis(options["timeout_ms"].as_u64().unwrap_or(10_000));
                let id = session.publish(publish, timeout, now_ns)?;
                self.names.insert(id, text(1).to_owned());
            }
            ("keyed_view", 3) => {
                known(&call[2], &["entries_max"], "a keyed view");
                let entries_max = call[2]["entries_max"].as_u64();
                let view = entries_max.map_or_else(KeyedView::default, |most| KeyedView::new(most as usize));
                self.views.push((text(1).to_owned(), View::Keyed(view)));
            }
            ("book_view", 2) => {
                self.views.push((text(1).to_owned(), View::Book(BookView::new())));
            }
            ("set_token", 2) => session.set_token(ClientToken::new(text(1)).unwrap()),
            _ => panic!("this runner does not know the call {call:?}"),
        }
        Ok(())
    }

    fn keyed_view(&self, pattern: &str) -> &KeyedView {
        let view = self.views.iter().find_map(|(on, view)| match view {
            View::Keyed(view) if on == pattern => Some(view),
            _ => None,
        });
        view.unwrap()
    }

    fn check(&self, check: &Value) {
        known(check, &["state", "subscription", "positions", "keyed", "complete", "book"], "a check");
        if let Some(state) = check.get("state") {
            assert_eq!(state_name(self.session.state()), state.as_str().unwrap());
        }
        for (pattern, state) in check["subscription"].as_object().into_iter().flatten() {
            let actual = subscription_state_name(self.session.subscription_state(pattern));
            assert_eq!(actual, state.as_str().unwrap(), "{pattern}");
        }
        if let Some(positions) = check.get("positions") {
            let actual = script_positions(self.session.positions());
            assert!(is_equal(positions, &actual), "positions: {actual}, expected {positions}");
        }
        for (pattern, topics) in check["complete"].as_object().into_iter().flatten() {
            let view = self.keyed_view(pattern);
            for (topic, is_complete) in topics.as_object().unwrap() {
                let actual = view.is_complete(topic);
                assert_eq!(Some(actual), is_complete.as_bool(), "complete {pattern}: {topic}");
            }
        }
        for (pattern, topics) in check["keyed"].as_object().into_iter().flatten() {
            let view = self.keyed_view(pattern);
            let topic = |topic: &str| {
                let keys = view.topic(topic).map(|(key, tick)| (key.to_string(), data(tick)));
                Value::Object(keys.collect())
            };
            let actual = Value::Object(view.topics().map(|name| (name.to_owned(), topic(name))).collect());
            assert!(is_equal(topics, &actual), "keyed {pattern}: {actual}, expected {topics}");
        }
        for (pattern, topics) in check["book"].as_object().into_iter().flatten() {
            let view = self.views.iter().find_map(|(on, view)| match view {
                View::Book(view) if on == pattern => Some(view),
                _ => None,
            });
            let view = view.unwrap();
            let show = |Level { price, size }| json!([price, size]);
            let book = |topic: &str| {
                let book = view.book(topic).unwrap();
                let (bids, asks): (Vec<Value>, Vec<Value>) =
                    (book.bids().map(show).collect(), book.asks().map(show).collect());
                json!({"live": book.is_live(), "bids": bids, "asks": asks})
            };
            let actual = Value::Object(view.topics().map(|name| (name.to_owned(), book(name))).collect());
            assert!(is_equal(topics, &actual), "book {pattern}: {actual}, expected {topics}");
        }
    }
}

fn options(options: &Value) -> SessionOptions {
    let names = [
        "url",
        "codec",
        "name",
        "token",
        "get_token",
        "positions",
        "many_positions",
        "save_positions",
        "offline_queue_max",
    ];
    known(options, &names, "options");
    let encoding = match options["codec"].as_str() {
        None | Some("json") => WireFormat::WEBSOCKET_JSON,
        Some("native") => WireFormat::WEBSOCKET_NATIVE,
        Some(other) => panic!("this runner does not know the codec {other}"),
    };
    let mut saved = Positions::new();
    for (topic, position) in positions(&options["positions"]) {
        saved.advance(&topic, position);
    }
    if let Some(many) = options.get("many_positions") {
        known(many, &["count", "name_bytes", "epoch", "sequence"], "many_positions");
        let digits = many["name_bytes"].as_u64().unwrap() as usize - 2;
        for number in 0..many["count"].as_u64().unwrap() {
            saved.advance(&format!("a.{number:0digits$}"), position(many));
        }
    }
    let default = SessionOptions::new(options["url"].as_str().unwrap(), encoding);
    // The transcripts show what every SDK does.
    SessionOptions {
        extensions: Features::NONE,
        name: options["name"].as_str().unwrap_or("app").into(),
        token: options["token"].as_str().map(|token| ClientToken::new(token).unwrap()),
        asks_token: options["get_token"].as_bool().unwrap_or(false),
        positions: saved,
        saves_positions: options["save_positions"].as_bool().unwrap_or(false),
        offline_queue_max: options["offline_queue_max"].as_u64().unwrap_or(64) as usize,
        ..default
    }
}

fn policy(value: &Value) -> Option<Policy> {
    value.as_str().map(|name| name.parse().unwrap())
}

fn interval_us(value: &Value) -> u32 {
    value.as_f64().map_or(0, |rate| (1e6 / rate).round() as u32)
}
