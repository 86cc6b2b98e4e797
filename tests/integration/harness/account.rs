//! A subscriber's record of each topic, checked against PROTOCOL.md as messages arrive: sequences strictly increase, and the
//! ranges between ticks are announced exactly.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    frames::{self, Options, Raw, Received},
    raw::{CLOSE, PING, PONG, Peer, TEXT, masked, take_message},
};

/// What was received of one topic.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// The next sequence; 0: any.
    pub next: u64,
    /// Ticks received.
    pub delivered: u64,
    /// Ticks announced by CONFLATED.
    pub conflated: u64,
    /// Ticks announced by GAP.
    pub dropped: u64,
    /// Ticks marked as snapshot: sequence and key.
    pub snapshot: Vec<(u64, u64)>,
    /// The first tick not marked as snapshot.
    pub first_live: u64,
    /// The payload of the last tick.
    pub payload: Vec<u8>,
    /// After a CONFLATED: the tick that must follow it.
    owed: Option<u64>,
}

/// The answer to a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    pub topic: String,
    pub epoch: u64,
    pub sequence: u64,
    pub recovered: bool,
}

/// Everything that one subscriber received.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// By topic.
    pub topics: BTreeMap<String, Taken>,
    /// Answers to positions, in order.
    pub recovered: Vec<Recovered>,
    /// Patterns acknowledged.
    pub acknowledged: usize,
    /// Code of the CLOSING.
    pub closing: Option<u16>,
    /// Errors: request and text.
    pub errors: Vec<(u32, String)>,
    /// Tokens of pongs.
    pub pongs: Vec<u64>,
    /// The epoch of the last topic announced.
    pub epoch: u64,
    /// The epoch of each topic announced.
    pub epochs: BTreeMap<String, u64>,
    /// Whether it subscribed before anything was published: then every topic starts with 1.
    from_start: bool,
    names: HashMap<u32, String>,
}

/// The fields of the server's JSON messages that matter here.
#[derive(Deserialize)]
struct Message<'a> {
    op: Option<String>,
    topic: Option<String>,
    #[serde(default)]
    seq: u64,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    key: u64,
    #[serde(default)]
    snapshot: bool,
    #[serde(default)]
    from: u64,
    #[serde(default)]
    to: u64,
    #[serde(default)]
    id: u32,
    #[serde(default)]
    code: u16,
    text: Option<String>,
    pattern: Option<String>,
    #[serde(default)]
    topics: Vec<Announced>,
    #[serde(default)]
    epoch: u64,
    #[serde(default)]
    sequence: u64,
    #[serde(default)]
    recovered: bool,
    #[serde(default)]
    token: u64,
}

#[derive(Deserialize)]
struct Announced {
    topic: String,
    epoch: u64,
}

impl Account {
    /// For a subscriber that was there before anything was published.
    pub fn from_start() -> Account {
        Account { from_start: true, ..Account::default() }
    }

    /// The record of a topic.
    pub fn topic(&mut self, name: &str) -> &mut Taken {
        if !self.topics.contains_key(name) {
            let next = u64::from(self.from_start);
            self.topics.insert(name.to_owned(), Taken { next, ..Taken::default() });
        }
        self.topics.get_mut(name).unwrap()
    }

    /// Notes that it has this tick of the topic from an earlier connection.
    pub fn has(&mut self, name: &str, sequence: u64) {
        self.topic(name).next = sequence + 1;
    }

    /// Takes a tick.
    pub fn tick(&mut self, name: &str, sequence: u64, key: u64, snapshot: bool, payload: &[u8]) {
        let taken = self.topic(name);
        if let Some(owed) = taken.owed.take() {
            assert_eq!(sequence, owed, "{name}: CONFLATED precedes the tick that replaces its range");
        }
        if snapshot {
            // A snapshot may start anywhere after what was received; it goes back only after a failed recovery.
            assert!(sequence >= taken.next, "{name}: snapshot tick {sequence} after {}", taken.next);
            taken.snapshot.push((sequence, key));
        } else {
            let next = if taken.next == 0 { sequence } else { taken.next };
            assert_eq!(sequence, next, "{name}: a gap or a duplicate: {taken:?}");
            if taken.first_live == 0 {
                taken.first_live = sequence;
            }
        }
        taken.next = sequence + 1;
        taken.delivered += 1;
        taken.payload.clear();
        taken.payload.extend_from_slice(payload);
    }

    /// Takes a CONFLATED.
    pub fn conflated(&mut self, name: &str, from: u64, to: u64) {
        let taken = self.topic(name);
        assert!(from < to && (taken.next == 0 || from == taken.next), "{name}: {from} to {to}: {taken:?}");
        assert_eq!(taken.owed, None, "{name}: two CONFLATED in a row");
        (taken.next, taken.owed) = (to, Some(to));
        taken.conflated += to - from;
    }

    /// Takes a GAP.
    pub fn gap(&mut self, name: &str, from: u64, to: u64) {
        let taken = self.topic(name);
        assert!(from < to && (taken.next == 0 || from == taken.next), "{name}: {from} to {to}: {taken:?}");
        assert_eq!(taken.owed, None, "{name}: a GAP between CONFLATED and its tick");
        taken.next = to;
        taken.dropped += to - from;
    }

    /// Takes the answer to a position. A topic that was not recovered starts again with a snapshot.
    pub fn recovery(&mut self, topic: &str, epoch: u64, sequence: u64, recovered: bool) {
        if !recovered {
            self.topic(topic).next = 0;
        }
        self.recovered.push(Recovered { topic: topic.to_owned(), epoch, sequence, recovered });
    }

    /// Takes a native frame.
    pub fn frame(&mut self, frame: &Received) {
        let name = self.names.get(&frame.topic_id).cloned().unwrap_or_default();
        match frame.kind {
            frames::WELCOME => self.epoch = frame.u64_at(0),
            frames::SUBSCRIBED if frame.topic_id == 0 => self.acknowledged += 1,
            frames::SUBSCRIBED => {
                self.epoch = frame.u64_at(0);
                self.epochs.insert(frame.text().to_owned(), self.epoch);
                self.names.insert(frame.topic_id, frame.text().to_owned());
            }
            frames::TICK => {
                assert!(!name.is_empty(), "a tick of a topic without a name: {frame:?}");
                let key = if frame.record.len() >= 24 { frame.u64_at(16) } else { 0 };
                self.tick(&name, frame.sequence, key, frame.flags & 2 != 0, &frame.payload);
            }
            frames::CONFLATED | frames::GAP => {
                assert!(!name.is_empty(), "a notice for a topic without a name: {frame:?}");
                let (from, to) = frame.skipped();
                match frame.kind {
                    frames::CONFLATED => self.conflated(&name, from, to),
                    _ => self.gap(&name, from, to),
                }
            }
            frames::RECOVERED => {
                let recovered = u32::from_le_bytes(frame.record[16..20].try_into().unwrap()) == 1;
                self.recovery(frame.text(), frame.u64_at(0), frame.u64_at(8), recovered);
            }
            frames::CLOSING => self.closing = Some(frame.code()),
            frames::ERROR => self.errors.push((frame.request(), frame.text().to_owned())),
            frames::PONG => self.pongs.push(frame.token()),
            frames::UNSUBSCRIBED => {}
            kind => panic!("a frame of kind {kind}: {frame:?}"),
        }
    }

    /// Takes a JSON message: an object, or an array of them.
    pub fn json(&mut self, text: &str) {
        if text.starts_with('[') {
            let objects: Vec<&RawValue> = serde_json::from_str(text).unwrap();
            return objects.into_iter().for_each(|object| self.json(object.get()));
        }
        let message: Message<'_> = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
        let Message { epoch, sequence, from, to, recovered, .. } = message;
        let topic = message.topic.as_deref().unwrap_or_default();
        match message.op.as_deref() {
            None => {
                let data = message.data.unwrap().get().as_bytes();
                self.tick(topic, message.seq, message.key, message.snapshot, data);
            }
            Some("subscribed") if message.pattern.is_some() => self.acknowledged += 1,
            Some("subscribed") => {
                self.epoch = message.topics.last().unwrap().epoch;
                self.epochs.extend(message.topics.iter().map(|topic| (topic.topic.clone(), topic.epoch)));
            }
            Some("conflated") => self.conflated(topic, from, to),
            Some("gap") => self.gap(topic, from, to),
            Some("recovered") => self.recovery(topic, epoch, sequence, recovered),
            Some("closing") => self.closing = Some(message.code),
            Some("error") => self.errors.push((message.id, message.text.unwrap())),
            Some("pong") => self.pongs.push(message.token),
            Some("welcome") => self.epoch = epoch,
            Some("unsubscribed") => {}
            Some(_) => panic!("a message of another kind: {text}"),
        }
    }

    /// Ticks received, of all topics.
    pub fn delivered(&self) -> u64 {
        self.topics.values().map(|taken| taken.delivered).sum()
    }

    /// Ticks announced by CONFLATED.
    pub fn conflated_ticks(&self) -> u64 {
        self.topics.values().map(|taken| taken.conflated).sum()
    }

    /// Ticks announced by GAP.
    pub fn dropped_ticks(&self) -> u64 {
        self.topics.values().map(|taken| taken.dropped).sum()
    }

    /// Ticks accounted for, of a subscriber from the start.
    pub fn reached(&self) -> u64 {
        self.topics.values().map(|taken| taken.next - 1).sum()
    }

    /// Asserts that every tick of the topic, 1 to `published`, was received or announced.
    pub fn assert_whole(&self, name: &str, published: u64) {
        let taken = &self.topics[name];
        assert_eq!(taken.next, published + 1, "{name}: the last tick: {taken:?}");
        assert_eq!(taken.owed, None, "{name}");
        assert_eq!(taken.delivered + taken.conflated + taken.dropped, published, "{name}: {taken:?}");
    }
}

/// A raw connection with its account: native, or a JSON WebSocket.
pub struct Subscriber {
    pub peer: Peer,
    pub account: Account,
    native: bool,
}

impl Subscriber {
    /// A native session after HELLO and WELCOME.
    pub fn native(mut peer: Peer, account: Account) -> Subscriber {
        peer.send(&Raw::request(frames::HELLO, 1, b"raw").bytes());
        let mut subscriber = Subscriber { peer, account, native: true };
        subscriber.read_until("WELCOME", |account| account.epoch != 0);
        subscriber
    }

    /// A JSON WebSocket.
    pub fn json(mut peer: Peer, account: Account) -> Subscriber {
        peer.upgrade("/ws", "tickcast.v1.json");
        Subscriber { peer, account, native: false }
    }

    /// Whether it speaks native frames.
    pub fn is_native(&self) -> bool {
        self.native
    }

    /// Subscribes to one pattern with options, and waits for the acknowledgement.
    pub fn subscribe(&mut self, pattern: &str, options: Options) {
        self.ask(frames::SUBSCRIBE, 2, pattern, options);
        let before = self.account.acknowledged;
        self.read_until("the acknowledgement", |account| account.acknowledged > before);
    }

    /// Changes how a subscription is delivered, and waits for the acknowledgement.
    pub fn update(&mut self, pattern: &str, options: Options) {
        self.ask(frames::UPDATE, 3, pattern, options);
        let before = self.account.acknowledged;
        self.read_until("the acknowledgement", |account| account.acknowledged > before);
    }

    /// Sends a SUBSCRIBE or UPDATE.
    pub fn ask(&mut self, kind: u16, request: u32, pattern: &str, options: Options) {
        if self.native {
            return self.peer.send(&Raw::with_options(kind, request, pattern, options).bytes());
        }
        let op = if kind == frames::SUBSCRIBE { "subscribe" } else { "update" };
        let mut text = format!(r#"{{"op":"{op}","id":{request},"topics":["{pattern}"]"#);
        let Options { from, policy, epoch, sequence, max_rate_millihertz } = options;
        if policy > 0 {
            text += &format!(r#","policy":"{}""#, ["conflate", "drop", "disconnect"][policy as usize - 1]);
        }
        if max_rate_millihertz > 0 {
            text += &format!(r#","max_rate":{}"#, f64::from(max_rate_millihertz) / 1e3);
        }
        text += &match from {
            frames::FROM_LATEST => r#","from":"latest""#.to_owned(),
            frames::FROM_PLACE => format!(r#","from":{{"epoch":{epoch},"sequence":{sequence}}}"#),
            _ => String::new(),
        };
        self.peer.send_text(&(text + "}"));
    }

    /// Waits until the server has handled all that was sent.
    pub fn barrier(&mut self, token: u64) {
        match self.native {
            true => self.peer.send(&Raw::ping(token).bytes()),
            false => self.peer.send_text(&format!(r#"{{"op":"ping","token":{token}}}"#)),
        }
        self.read_until("the pong", |account| account.pongs.last() == Some(&token));
    }

    /// Takes one message if a whole one has been read; answers pings.
    pub fn take(&mut self) -> bool {
        if self.native {
            let Some(frame) = Received::take(&mut self.peer.buffer) else { return false };
            if frame.kind == frames::PING {
                self.peer.send(&Raw::new(frames::PONG, &frame.record, b"").bytes());
            } else {
                self.account.frame(&frame);
            }
            return true;
        }
        let Some(message) = take_message(&mut self.peer.buffer) else { return false };
        match message.opcode {
            TEXT => self.account.json(message.text()),
            PING => self.peer.send(&masked(0x80 | PONG, &message.payload)),
            CLOSE => self.account.closing = Some(message.close_code()),
            other => panic!("a message of type {other}"),
        }
        true
    }

    /// Reads message by message until `done` holds.
    pub fn read_until(&mut self, what: &str, done: impl Fn(&Account) -> bool) {
        while !done(&self.account) {
            if !self.take() && !self.peer.more() {
                panic!("the connection ended before {what}: {:?}", self.account);
            }
        }
    }
}
