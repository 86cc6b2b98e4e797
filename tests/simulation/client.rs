//! One simulated client: what it asked for, what it got, and whether that is what it was promised.

use std::collections::{HashMap, HashSet, VecDeque};

use tickcast::{
    router,
    tick::{Closing, Subscribed, Token},
    wire::{
        Encoding, Step,
        command::encode_request,
        frame::{self, Kind, Meta},
        websocket::{Incoming, WebSocket},
    },
};
use tungstenite::Message;

/// How a client treats its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Reads whatever comes.
    Healthy,
    /// Reads a little now and then.
    Slow,
    /// Never reads.
    Stuck,
}

/// What it knows of one topic.
#[derive(Debug, Default)]
pub struct Seen {
    pub first: u64,
    pub last: u64,
}

/// A subscription, as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Asked,
    /// Acknowledged when so many ticks of each topic had been published.
    Live(HashMap<String, u64>),
    Leaving,
}

pub struct Client {
    pub name: u32,
    pub shard: usize,
    pub slot: u32,
    pub encoding: Encoding,
    pub manner: Manner,
    /// Client to server, not yet delivered.
    pub outgoing: VecDeque<u8>,
    /// Taken by the socket, not yet read by the client.
    pub socket: Vec<u8>,
    /// Kept by the transport: the rest of a SEND that the socket did not take.
    pub parked: Vec<u8>,
    /// What the socket holds at most.
    pub socket_bytes_max: usize,
    pub subscriptions: HashMap<String, State>,
    pub seen: HashMap<String, Seen>,
    /// Set by a CLOSING, with its code.
    pub closing: Option<u16>,
    /// The server has shut its write side: after what is on the way comes FIN.
    pub fin: bool,
    /// The server has closed.
    pub ended: bool,
    pub pongs: u64,
    /// Its shard has asked for the socket to be quieted, to hand it over.
    pub leaving: bool,
    input: Vec<u8>,
    websocket: Option<WebSocket>,
    upgraded: bool,
    names: HashMap<u32, String>,
}

impl Client {
    pub fn new(
        name: u32,
        shard: usize,
        slot: u32,
        encoding: Encoding,
        manner: Manner,
        socket_bytes_max: usize,
        identity: &str,
    ) -> Client {
        let mut client = Client {
            name,
            shard,
            slot,
            encoding,
            manner,
            outgoing: VecDeque::new(),
            socket: Vec::new(),
            parked: Vec::new(),
            socket_bytes_max,
            subscriptions: HashMap::new(),
            seen: HashMap::new(),
            closing: None,
            fin: false,
            ended: false,
            pongs: 0,
            leaving: false,
            input: Vec::new(),
            websocket: encoding.subprotocol().map(|_| WebSocket::client(1 << 20)),
            upgraded: false,
            names: HashMap::new(),
        };
        match encoding.subprotocol() {
            None => client.send_frame(|out| {
                frame::encode_hello(out, 0, identity, "simulated");
            }),
            Some(name) => client.outgoing.extend(
                format!(
                    "GET /ws{} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                     Sec-WebSocket-Protocol: {name}\r\n\r\n",
                    if identity.is_empty() { String::new() } else { format!("?client={identity}") }
                )
                .into_bytes(),
            ),
        }
        client
    }

    fn send_frame(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = Vec::new();
        write(&mut bytes);
        match &mut self.websocket {
            None => self.outgoing.extend(bytes),
            Some(socket) => {
                let mut masked = Vec::new();
                socket.write_masked(&mut masked, Message::binary(bytes));
                self.outgoing.extend(masked);
            }
        }
    }

    fn send_text(&mut self, text: String) {
        if let Some(socket) = &mut self.websocket {
            let mut masked = Vec::new();
            socket.write_masked(&mut masked, Message::text(text));
            self.outgoing.extend(masked);
        }
    }

    fn speaks_json(&self) -> bool {
        matches!(self.encoding, Encoding::WebSocketJson | Encoding::WebSocketRaw)
    }

    pub fn subscribe(&mut self, pattern: &str) {
        self.subscriptions.insert(pattern.into(), State::Asked);
        match self.speaks_json() {
            true => self.send_text(format!(r#"{{"op":"subscribe","topics":["{pattern}"]}}"#)),
            false => self.send_frame(|out| encode_request(out, Kind::Subscribe, 1, pattern)),
        }
    }

    pub fn unsubscribe(&mut self, pattern: &str) {
        self.subscriptions.insert(pattern.into(), State::Leaving);
        match self.speaks_json() {
            true => self.send_text(format!(r#"{{"op":"unsubscribe","topics":["{pattern}"]}}"#)),
            false => self.send_frame(|out| encode_request(out, Kind::Unsubscribe, 1, pattern)),
        }
    }

    pub fn ping(&mut self) {
        match self.speaks_json() {
            true => self.send_text(r#"{"op":"ping","token":5}"#.into()),
            false => self
                .send_frame(|out| frame::encode(out, Kind::Ping, Meta::default(), &Token { token: 5 }, &[])),
        }
    }

    pub fn publish(&mut self, topic: &str, payload: &str) {
        match self.speaks_json() {
            true => self.send_text(format!(r#"{{"op":"publish","topic":"{topic}","data":{payload}}}"#)),
            false => self.send_frame(|out| {
                frame::encode_publish(out, 0, 0, 0, Default::default(), topic, payload.as_bytes());
            }),
        }
    }

    /// Reads at most `len` bytes of what its socket holds. `published` is the truth by topic.
    pub fn read(&mut self, len: usize, published: &HashMap<String, Vec<String>>) {
        let len = len.min(self.socket.len());
        self.input.extend(self.socket.drain(..len));
        let input = std::mem::take(&mut self.input);
        let mut at = 0;
        if self.websocket.is_some() && !self.upgraded {
            let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") else {
                self.input = input;
                return;
            };
            assert!(input.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&input));
            (self.upgraded, at) = (true, end + 4);
        }
        loop {
            let used = match self.websocket.take() {
                None => self.read_frame(&input[at..], published),
                Some(mut socket) => {
                    let used = self.read_message(&mut socket, &input[at..], published);
                    self.websocket = Some(socket);
                    used
                }
            };
            if used == 0 {
                break;
            }
            at += used;
        }
        self.input = input[at..].to_vec();
    }

    fn read_message(
        &mut self,
        socket: &mut WebSocket,
        bytes: &[u8],
        published: &HashMap<String, Vec<String>>,
    ) -> usize {
        let mut replies = Vec::new();
        let Step::Complete(used, incoming) = socket.step(bytes, &mut replies).expect("well-formed frames")
        else {
            return 0;
        };
        self.outgoing.extend(replies);
        match incoming {
            Incoming::Text(text) => self.json(&text, published),
            Incoming::Binary(bytes) if self.encoding == Encoding::WebSocketRkyv => {
                let mut at = 0;
                while at < bytes.len() {
                    at += self.read_frame(&bytes[at..], published);
                }
            }
            Incoming::Binary(payload) => self.raw(&payload, published),
            Incoming::Close(code) => self.closing = Some(code),
            Incoming::Nothing => {}
        }
        used
    }

    fn read_frame(&mut self, bytes: &[u8], published: &HashMap<String, Vec<String>>) -> usize {
        let Step::Complete(used, frame) = frame::decode(bytes, 1 << 20).expect("well-formed frames") else {
            return 0;
        };
        let payload = String::from_utf8_lossy(frame.payload()).into_owned();
        match frame.kind {
            Kind::Tick => {
                let name =
                    self.names.get(&frame.header.topic_id).expect("announced before its first tick").clone();
                self.tick(&name, frame.header.sequence, &payload, published);
            }
            Kind::Subscribed if frame.header.topic_id != 0 => {
                assert!(frame.record::<Subscribed>().unwrap().epoch != 0);
                self.names.insert(frame.header.topic_id, payload);
            }
            Kind::Subscribed => self.acknowledged(&payload, published),
            Kind::Unsubscribed => self.left(&payload),
            Kind::Pong => self.pongs += 1,
            Kind::Ping => {
                let token = frame.record::<Token>().unwrap();
                self.send_frame(|out| frame::encode(out, Kind::Pong, Meta::default(), &token, &[]));
            }
            Kind::Closing => self.closing = Some(frame.record::<Closing>().unwrap().code),
            Kind::Welcome => {}
            other => panic!("unexpected {other:?}: {payload}"),
        }
        used
    }

    fn json(&mut self, text: &str, published: &HashMap<String, Vec<String>>) {
        let value: serde_json::Value = serde_json::from_str(text).expect("JSON");
        match value["op"].as_str() {
            None => {
                let (topic, sequence) = (value["topic"].as_str().unwrap(), value["seq"].as_u64().unwrap());
                self.tick(topic, sequence, &value["data"].to_string(), published);
            }
            Some("subscribed") if value["pattern"].is_string() => {
                self.acknowledged(value["pattern"].as_str().unwrap(), published);
            }
            Some("unsubscribed") => self.left(value["pattern"].as_str().unwrap()),
            Some("pong") => self.pongs += 1,
            Some("closing") => self.closing = Some(value["code"].as_u64().unwrap() as u16),
            Some("subscribed") => {}
            Some(_) => panic!("unexpected {text}"),
        }
    }

    /// A raw client sees payloads only: `"TOPIC N PAD"`, which name topic and sequence.
    fn raw(&mut self, payload: &[u8], published: &HashMap<String, Vec<String>>) {
        let text: String = serde_json::from_slice(payload).expect("a JSON string");
        let mut parts = text.split(' ');
        let (topic, sequence) = parts.next().zip(parts.next()).expect("topic and sequence");
        let payload = String::from_utf8_lossy(payload).into_owned();
        self.tick(topic, sequence.parse().unwrap(), &payload, published);
    }

    fn acknowledged(&mut self, pattern: &str, published: &HashMap<String, Vec<String>>) {
        let counts = published.iter().map(|(topic, ticks)| (topic.clone(), ticks.len() as u64)).collect();
        let before = self.subscriptions.insert(pattern.into(), State::Live(counts));
        assert!(matches!(before, Some(State::Asked | State::Leaving)), "{pattern} {before:?}");
    }

    fn left(&mut self, pattern: &str) {
        self.subscriptions.remove(pattern);
        // What another pattern that is live covers goes on; the rest starts anew if it is subscribed again.
        let live = |(pattern, state): (&String, &State)| (*state != State::Asked).then(|| pattern.clone());
        let live: Vec<String> = self.subscriptions.iter().filter_map(live).collect();
        self.seen.retain(|topic, _| live.iter().any(|pattern| router::matches(pattern, topic)));
    }

    /// Promise 1: strictly increasing, without a gap, and the very payload that was published.
    fn tick(&mut self, topic: &str, sequence: u64, payload: &str, published: &HashMap<String, Vec<String>>) {
        assert!(
            self.subscriptions.keys().any(|pattern| router::matches(pattern, topic)),
            "a tick of {topic}, which is not subscribed"
        );
        let truth = published.get(topic).and_then(|ticks| ticks.get(sequence as usize - 1));
        assert_eq!(truth.map(String::as_str), Some(payload), "{topic} {sequence}");
        let seen = self.seen.entry(topic.into()).or_insert(Seen { first: sequence, last: sequence - 1 });
        assert_eq!(sequence, seen.last + 1, "{topic}: no gap, no repeat, without an announcement");
        seen.last = sequence;
    }

    /// Whether everything published since its subscriptions went live has come.
    /// (Of a client that went, what it published last may not have arrived.)
    pub fn check_complete(&self, published: &HashMap<String, Vec<String>>, gone: &HashSet<String>) {
        for (topic, seen) in self.seen.iter().filter(|(topic, _)| !gone.contains(*topic)) {
            assert_eq!(seen.last, published[topic].len() as u64, "{topic}: the end is missing");
        }
        for (pattern, state) in &self.subscriptions {
            // A raw client gets no acknowledgement: since when it is subscribed it cannot know.
            if self.encoding == Encoding::WebSocketRaw {
                continue;
            }
            let State::Live(counts) = state else { panic!("{pattern} never went live: {state:?}") };
            let matching = |(topic, _): &(&String, &Vec<String>)| {
                router::matches(pattern, topic) && !gone.contains(*topic)
            };
            for (topic, ticks) in published.iter().filter(matching) {
                let (before, total) = (counts.get(topic).copied().unwrap_or(0), ticks.len() as u64);
                match self.seen.get(topic) {
                    Some(seen) => {
                        assert!(
                            seen.first <= before + 1 || self.overlaps(pattern, topic),
                            "{topic}: late start"
                        );
                        assert_eq!(seen.last, total, "{topic}: the end is missing");
                    }
                    None => assert_eq!(before, total, "{topic} {pattern}: nothing came"),
                }
            }
        }
    }

    /// Another of its patterns takes the topic too: when the stream began is then that one's affair.
    fn overlaps(&self, pattern: &str, topic: &str) -> bool {
        self.subscriptions.keys().any(|other| other != pattern && router::matches(other, topic))
    }
}
