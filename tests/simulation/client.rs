//! One simulated client: its requests, what it has received, and the checks of the promises made to it.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::{
    permissions,
    publishes::Publishes,
    request::{Begin, Request},
    sink::RoutedPublishes,
};
use prost::Message as _;
use tickcast_core::testing::{EPOCH, upgrade_request};
use tickcast_proto::{
    ErrorCode, Step, WireFormat,
    codec::protobuf::messages::{self, event::Event, request::Command},
    command::encode_request,
    features::Features,
    frame::{self, FLAG_SNAPSHOT, HeaderFields, HelloParts, Kind},
    framing::websocket::{Incoming, WebSocket},
    pattern,
    records::{
        Closing, CountedRange, ErrorRecord, Publish, Published as PublishedRecord, Recovered,
        Request as RequestRecord, Resume, SkippedRange, Subscribed, Token, WireRecord,
    },
    subscription::Policy,
};
use tungstenite::Message;

/// How a client treats its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Reads whatever arrives.
    Healthy,
    /// Reads a little now and then.
    Slow,
    /// Never reads.
    Stuck,
}

/// Every tick that the source's rings and the clients took, and the lives that the homes gave the topics.
///
/// A tick's number is its place among all ticks of its topic, from 1. In each life of the topic, it is the sequence plus an offset:
/// so what holds for sequences within a life must hold for numbers across lives.
#[derive(Debug, Default)]
pub struct Published {
    /// Payloads by topic, in order.
    pub ticks: HashMap<String, Vec<String>>,
    /// The offset of each life, by topic and epoch.
    pub lives: HashMap<(String, u64), u64>,
    /// Topics are forgotten in this run.
    pub forgets: bool,
}

impl Published {
    fn offset(&self, topic: &str, epoch: u64) -> u64 {
        *self.lives.get(&(topic.to_owned(), epoch)).expect("an epoch is that of a life of the topic")
    }
}

/// What a client has seen of one topic. Ticks by number: see [`Published`].
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The first sequence accounted for.
    pub first: u64,
    /// The next sequence to account for.
    pub next: u64,
    /// Ranges announced since the last tick.
    pub announced: Vec<(u64, u64)>,
    /// The last tick of each key.
    pub keys: HashMap<u64, u64>,
    /// A range was lost, and with it perhaps keys.
    pub lost: bool,
    /// The life that the last tick belongs to, and its offset.
    pub life: (u64, u64),
    /// The epoch of the last tick or announced range in this connection.
    pub epoch: u64,
}

impl Seen {
    /// Accounts for the announced ranges, which must reach `to` without a hole or an overlap.
    fn settle(&mut self, to: u64, topic: &str) {
        self.announced.sort_unstable();
        for (from, end) in std::mem::take(&mut self.announced) {
            assert_eq!(from, self.next, "{topic}: the announced ranges have a hole or an overlap");
            self.next = end;
        }
        assert_eq!(self.next, to, "{topic}: neither delivered nor announced");
    }
}

/// A subscription, as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Requested,
    /// Acknowledged, with the number of ticks of each topic published by then.
    Live(HashMap<String, u64>),
    Leaving,
}

pub struct Client {
    /// The latest request, by pattern.
    pub requested: HashMap<String, Request>,
    was_faithful: bool,
    /// The other patterns that there were at the latest request, by pattern.
    others: HashMap<String, Vec<String>>,
    /// Its socket takes everything at once.
    pub takes_all: bool,
    /// Its socket has been full.
    pub socket_filled: bool,
    /// Ticks announced as conflated and as lost.
    pub conflated: u64,
    pub lost: u64,
    pub recovered: u64,
    pub not_recovered: u64,
    pub snapshots: u64,
    /// Messages with several frames.
    pub batches: u64,
    /// Has asked for several frames in one message.
    is_batched: bool,
    pub identity: String,
    /// Index of its tenant.
    pub tenant: usize,
    pub name: u32,
    pub shard: usize,
    pub slot: u32,
    pub encoding: WireFormat,
    pub manner: Manner,
    /// Client to server, not yet delivered.
    pub outgoing: VecDeque<u8>,
    /// In the socket, not yet read by the client.
    pub socket: Vec<u8>,
    /// Held by the transport: the rest of a SEND that the socket did not take.
    pub parked: Vec<u8>,
    /// Capacity of the socket.
    pub socket_bytes_max: usize,
    pub subscriptions: HashMap<String, State>,
    pub seen: HashMap<String, Seen>,
    /// Set by a CLOSING, with its code.
    pub closing: Option<u16>,
    /// The server has shut its write side: FIN follows what is on the way.
    pub fin: bool,
    /// It has done so before it closed.
    pub shut: bool,
    /// The last SEND was as long as one may be, and may end within a frame.
    pub was_cut: bool,
    /// The server has closed.
    pub ended: bool,
    pub pongs: u64,
    /// Its shard has asked to detach the socket, to hand it over.
    pub leaving: bool,
    input: Vec<u8>,
    websocket: Option<WebSocket>,
    upgraded: bool,
    /// Name and epoch of each topic announced, by id.
    names: HashMap<u32, (String, u64)>,
    /// The epoch announced last, by name.
    epochs: HashMap<String, u64>,
    /// New lives of topics that it knew.
    pub lives: u64,
    /// It has asked for answers to its publishes.
    pub is_answered: bool,
    /// Budgets are set for what it publishes.
    pub is_limited: bool,
    pub publishes: Publishes,
    /// What it has published to the sink.
    pub routed: RoutedPublishes,
    /// Without authentication, it has none.
    pub token: Option<String>,
    /// A pattern that is only partly allowed is delivered in part, not refused.
    pub filters: bool,
    /// Times that it has sent its token again.
    pub refreshes: u32,
    /// Subscriptions refused because its token does not allow them.
    pub denied: u64,
}

impl Client {
    #[expect(clippy::too_many_arguments, reason = "what makes a client, drawn by the world")]
    pub fn new(
        name: u32,
        shard: usize,
        slot: u32,
        encoding: WireFormat,
        manner: Manner,
        socket_bytes_max: usize,
        identity: &str,
        token: Option<String>,
    ) -> Client {
        let mut client = Client {
            requested: HashMap::new(),
            was_faithful: false,
            others: HashMap::new(),
            takes_all: false,
            socket_filled: false,
            conflated: 0,
            lost: 0,
            recovered: 0,
            not_recovered: 0,
            snapshots: 0,
            batches: 0,
            is_batched: false,
            identity: identity.into(),
            tenant: 0,
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
            shut: false,
            was_cut: false,
            ended: false,
            pongs: 0,
            leaving: false,
            input: Vec::new(),
            websocket: encoding.subprotocol().map(|_| WebSocket::client(1 << 20)),
            upgraded: false,
            names: HashMap::new(),
            epochs: HashMap::new(),
            lives: 0,
            is_answered: encoding != WireFormat::WEBSOCKET_RAW && !name.is_multiple_of(4),
            is_limited: false,
            publishes: Publishes::default(),
            routed: RoutedPublishes::default(),
            token,
            filters: false,
            refreshes: 0,
            denied: 0,
        };
        let answers = if client.is_answered { Features::PUBLISHED } else { Features::NONE };
        let token = client.token.clone().unwrap_or_default();
        let Some(subprotocol) = encoding.subprotocol() else {
            client.send_hello(identity, answers.union(Features::COUNTS), &token);
            return client;
        };
        client.is_batched = client.is_answered && name % 2 == 1;
        let answers = if client.is_batched { answers.union(Features::BATCHES) } else { answers };
        let query = if identity.is_empty() { String::new() } else { format!("?client={identity}") };
        // Some have their token verified before the upgrade, others after it.
        let (in_upgrade, in_hello) = match answers.is_empty() || name.is_multiple_of(2) {
            _ if token.is_empty() => (String::new(), token),
            true => (format!(", bearer.{token}"), String::new()),
            false => (String::new(), token),
        };
        let request = upgrade_request(&format!("/ws{query}"), &format!("{subprotocol}{in_upgrade}"));
        client.outgoing.extend(match name % 3 {
            0 => request,
            _ => {
                let head = request.len() - 2;
                let offer = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";
                [&request[..head], offer].concat()
            }
        });
        match encoding {
            _ if answers.is_empty() => {}
            WireFormat::WEBSOCKET_JSON => {
                client.send_text(format!(r#"{{"op":"hello","features":{answers},"token":"{in_hello}"}}"#))
            }
            WireFormat::WEBSOCKET_PROTOBUF => {
                let features = answers.names().map(str::to_owned).collect();
                let hello = messages::Hello { features, token: in_hello, ..Default::default() };
                client.send_request(0, Command::Hello(hello));
            }
            _ => client.send_hello("", answers, &in_hello),
        }
        client
    }

    fn send_hello(&mut self, client: &str, features: Features, token: &str) {
        self.send_frame(|out| {
            let hello = HelloParts { request: 0, client, name: "simulated", features };
            frame::encode_hello_with_token(out, &hello, token.as_bytes());
        });
    }

    /// Sends its token again. It has not asked for an answer.
    pub fn refresh(&mut self) {
        let token = self.token.clone().unwrap_or_default();
        self.refreshes += 1;
        if self.speaks_protobuf() {
            return self.send_request(0, Command::Refresh(messages::Refresh { token }));
        }
        match self.speaks_json() {
            true => self.send_text(format!(r#"{{"op":"refresh","token":"{token}"}}"#)),
            false => self.send_frame(|out| {
                let request = RequestRecord::default();
                frame::encode(out, Kind::Refresh, HeaderFields::default(), &request, &[token.as_bytes()]);
            }),
        }
    }

    /// Returns whether it may subscribe to a pattern.
    pub fn may_subscribe(&self, pattern: &str) -> bool {
        self.token.as_deref().is_none_or(|token| {
            let rules = permissions::of(token).subscribe;
            rules.covers(pattern) || self.filters && rules.overlaps(pattern)
        })
    }

    /// Returns whether its token lets it know of a topic.
    pub fn permits(&self, topic: &str) -> bool {
        self.token.as_deref().is_none_or(|token| permissions::of(token).subscribe.permits(topic))
    }

    /// Checks an ERROR that refuses a subscription.
    fn denied(&mut self, text: &str) {
        let pattern = text.split('"').nth(1).expect("the error names the pattern");
        trace(self, pattern, format_args!("denied"));
        assert!(!self.may_subscribe(pattern), "{text}");
        assert_eq!(self.subscriptions.remove(pattern), Some(State::Requested), "{text}");
        self.requested.remove(pattern);
        // What it knew from an earlier connection ends here, unless another pattern continues it.
        let patterns = &self.subscriptions;
        self.seen.retain(|topic, _| patterns.keys().any(|pattern| pattern::matches(pattern, topic)));
        self.denied += 1;
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

    fn send_request(&mut self, id: u32, command: Command) {
        self.send_frame(|out| {
            let request = messages::Request { id, command: Some(command) };
            out.extend(request.encode_to_vec());
        });
    }

    fn speaks_protobuf(&self) -> bool {
        self.encoding == WireFormat::WEBSOCKET_PROTOBUF
    }

    fn speaks_json(&self) -> bool {
        matches!(self.encoding, WireFormat::WEBSOCKET_JSON | WireFormat::WEBSOCKET_RAW)
    }

    pub fn subscribe(&mut self, pattern: &str, request: Request) {
        // A topic covered by another subscription continues as it is, wherever this one starts.
        self.others.insert(pattern.into(), self.subscriptions.keys().cloned().collect());
        self.subscriptions.insert(pattern.into(), State::Requested);
        self.requested.insert(pattern.into(), request);
        self.was_faithful |= !matches!(request.policy, Some(Policy::Conflate | Policy::Drop));
        let positions: Vec<(String, u64, u64)> = match request.begin {
            Begin::Resume => {
                let of_pattern = |(topic, _): &(&String, &Seen)| pattern::matches(pattern, topic);
                let seen = self.seen.iter().filter(of_pattern);
                seen.map(|(topic, seen)| (topic.clone(), seen.life.0, seen.next - 1 - seen.life.1)).collect()
            }
            _ => Vec::new(),
        };
        if self.speaks_json() {
            let from = match request.begin {
                Begin::Live => String::new(),
                Begin::Latest => r#","from":"latest""#.into(),
                Begin::After(epoch, sequence) => {
                    format!(r#","from":{{"epoch":{epoch},"sequence":{sequence}}}"#)
                }
                Begin::Resume => {
                    let positions: Vec<_> = positions
                        .iter()
                        .map(|(topic, epoch, sequence)| {
                            format!(r#""{topic}":{{"epoch":{epoch},"sequence":{sequence}}}"#)
                        })
                        .collect();
                    format!(r#","from":{{"positions":{{{}}}}}"#, positions.join(","))
                }
            };
            let options = request.options_json();
            return self.send_text(format!(r#"{{"op":"subscribe","topics":["{pattern}"]{options}{from}}}"#));
        }
        if self.speaks_protobuf() {
            let subscribe = request.subscribe_message(pattern, positions);
            return self.send_request(0, Command::Subscribe(subscribe));
        }
        for (topic, epoch, sequence) in positions {
            self.send_frame(|out| {
                let record = Resume { epoch, sequence };
                frame::encode(out, Kind::Resume, HeaderFields::default(), &record, &[topic.as_bytes()]);
            });
        }
        self.send_frame(|out| {
            frame::encode(
                out,
                Kind::Subscribe,
                HeaderFields::default(),
                &request.record(),
                &[pattern.as_bytes()],
            );
        });
    }

    /// Changes how a live subscription is delivered.
    pub fn update(&mut self, pattern: &str, request: Request) {
        let begin = self.requested.get(pattern).map_or(Begin::Live, |before| before.begin);
        self.requested.insert(pattern.into(), Request { begin, ..request });
        self.was_faithful |= !matches!(request.policy, Some(Policy::Conflate | Policy::Drop));
        if self.speaks_protobuf() {
            let messages::Subscribe { patterns, policy, max_rate, .. } =
                request.subscribe_message(pattern, Vec::new());
            let update = messages::Update { patterns, policy, max_rate };
            return self.send_request(0, Command::Update(update));
        }
        let options = request.options_json();
        match self.speaks_json() {
            true => self.send_text(format!(r#"{{"op":"update","topics":["{pattern}"]{options}}}"#)),
            false => self.send_frame(|out| {
                frame::encode(
                    out,
                    Kind::Update,
                    HeaderFields::default(),
                    &request.record(),
                    &[pattern.as_bytes()],
                );
            }),
        }
    }

    /// Returns whether it must get every tick.
    fn is_faithful(&self) -> bool {
        self.requested
            .values()
            .all(|request| request.policy == Some(Policy::Disconnect) && request.interval_ms == 0)
    }

    /// Returns whether all its subscriptions have always allowed conflation or loss.
    pub fn always_yields(&self) -> bool {
        !self.was_faithful
    }

    pub fn unsubscribe(&mut self, pattern: &str) {
        self.subscriptions.insert(pattern.into(), State::Leaving);
        if self.speaks_protobuf() {
            let patterns = vec![pattern.into()];
            return self.send_request(1, Command::Unsubscribe(messages::Unsubscribe { patterns }));
        }
        match self.speaks_json() {
            true => self.send_text(format!(r#"{{"op":"unsubscribe","topics":["{pattern}"]}}"#)),
            false => self.send_frame(|out| encode_request(out, Kind::Unsubscribe, 1, pattern)),
        }
    }

    pub fn ping(&mut self) {
        if self.speaks_protobuf() {
            return self.send_request(0, Command::Ping(messages::Ping { token: 5 }));
        }
        match self.speaks_json() {
            true => self.send_text(r#"{"op":"ping","token":5}"#.into()),
            false => self.send_frame(|out| {
                frame::encode(out, Kind::Ping, HeaderFields::default(), &Token { token: 5 }, &[]);
            }),
        }
    }

    /// Publishes a tick. `id`: see [`Publishes::begin`].
    pub fn publish(&mut self, id: u32, topic: &str, key: u64, payload: &str) {
        if self.speaks_protobuf() {
            let (topic, payload) = (topic.into(), payload.as_bytes().into());
            let publish = messages::Publish { topic, payload, key, ..Default::default() };
            return self.send_request(id, Command::Publish(publish));
        }
        match self.speaks_json() {
            true => self.send_text(format!(
                r#"{{"op":"publish","id":{id},"topic":"{topic}","key":{key},"data":{payload}}}"#
            )),
            false => self.send_frame(|out| {
                let record = Publish { key, request: id, ..Publish::default() };
                frame::encode_publish(out, 0, 0, 0, record, topic, payload.as_bytes());
            }),
        }
    }

    /// Checks a PUBLISHED: this client alone publishes to its topic.
    fn published(&mut self, id: u32, topic: &str, epoch: u64, sequence: u64, published: &Published) {
        assert!(self.is_answered, "it has not asked for answers");
        if RoutedPublishes::is_routed(id) {
            assert_eq!(topic, format!("r.{}", self.name));
            return self.routed.handle_published(id, epoch, sequence);
        }
        assert_eq!(topic, format!("c.{}", self.name));
        self.publishes.handle_published(id, sequence + published.offset(topic, epoch));
    }

    /// Checks an ERROR that answers a publish.
    fn publish_failed(&mut self, id: u32, code: u64) {
        match RoutedPublishes::is_routed(id) {
            true => self.routed.handle_error(id, code),
            false => self.publishes.handle_error(id, code, self.is_limited),
        }
    }

    /// Publishes to the topic that the sink takes from this client.
    pub fn publish_routed(&mut self) {
        let (id, payload) = self.routed.begin(self.name);
        let topic = format!("r.{}", self.name);
        self.publish(id, &topic, 0, &payload);
    }

    /// Reads at most `len` bytes from its socket. `published` has every tick, by topic.
    pub fn read(&mut self, len: usize, published: &Published) {
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
            if let Some(socket) = &mut self.websocket {
                let head = String::from_utf8_lossy(&input[..end]);
                socket.inflates = head.contains("\r\nSec-WebSocket-Extensions: permessage-deflate; ");
            }
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

    fn read_message(&mut self, socket: &mut WebSocket, bytes: &[u8], published: &Published) -> usize {
        let mut replies = Vec::new();
        let Step::Complete(used, incoming) = socket.step(bytes, &mut replies).expect("well-formed frames")
        else {
            return 0;
        };
        self.outgoing.extend(replies);
        match incoming {
            Incoming::Text(text) => match serde_json::from_str(&text).expect("JSON") {
                serde_json::Value::Array(values) => {
                    assert!(self.is_batched);
                    values.iter().for_each(|value| self.json(value, published));
                    self.note_batch(values.len());
                }
                value => self.json(&value, published),
            },
            Incoming::Binary(bytes) if self.encoding == WireFormat::WEBSOCKET_NATIVE => {
                let (mut at, mut frames) = (0, 0);
                while at < bytes.len() {
                    at += self.read_frame(&bytes[at..], published);
                    frames += 1;
                }
                self.note_batch(frames);
            }
            Incoming::Binary(bytes) if self.speaks_protobuf() => {
                let messages::Events { events } = messages::Events::decode(bytes).expect("a message");
                self.note_batch(events.len());
                events.into_iter().for_each(|event| {
                    self.event(event.event.expect("an event that is known"), published);
                });
            }
            Incoming::Binary(payload) => self.raw(&payload, published),
            Incoming::Close(code) => self.closing = Some(code),
            Incoming::Nothing => {}
        }
        used
    }

    fn read_frame(&mut self, bytes: &[u8], published: &Published) -> usize {
        let Step::Complete(used, frame) = frame::decode(bytes, 1 << 20).expect("well-formed frames") else {
            return 0;
        };
        let payload = String::from_utf8_lossy(frame.payload()).into_owned();
        match frame.kind {
            Kind::Tick => {
                let (name, epoch) =
                    self.names.get(&frame.header.topic_id).expect("announced before its first tick").clone();
                let snapshot = frame.header.flags & FLAG_SNAPSHOT != 0;
                let life = (epoch, published.offset(&name, epoch));
                self.tick(&name, life, frame.header.sequence, frame.key(), snapshot, &payload, published);
            }
            kind @ (Kind::Conflated | Kind::Gap) => {
                // With the feature that its HELLO asked for; clients on a WebSocket have sent none.
                let CountedRange { from, to, count } =
                    frame.zero_extended_record(SkippedRange::STRIDE).unwrap();
                let has_counts = self.encoding == WireFormat::TCP_NATIVE;
                assert_eq!(count, if has_counts { to - from } else { 0 });
                let (name, epoch) = self.names.get(&frame.header.topic_id).expect("announced before").clone();
                let life = (epoch, published.offset(&name, epoch));
                self.announced(&name, life, kind == Kind::Gap, from, to);
            }
            Kind::Recovered => {
                let record: Recovered = frame.record().unwrap();
                let exists = frame.header.topic_id != 0;
                let life = exists.then(|| (record.epoch, published.offset(&payload, record.epoch)));
                self.recovery(&payload, life, record.sequence, record.recovered == 1, published);
            }
            Kind::Subscribed if frame.header.topic_id != 0 => {
                let epoch = frame.record::<Subscribed>().unwrap().epoch;
                self.names.insert(frame.header.topic_id, (payload.clone(), epoch));
                self.topic(&payload, epoch, published);
            }
            Kind::Subscribed => self.acknowledged(&payload, published),
            Kind::Unsubscribed => self.left(&payload),
            Kind::Pong => self.pongs += 1,
            Kind::Ping => {
                let token = frame.record::<Token>().unwrap();
                self.send_frame(|out| {
                    frame::encode(out, Kind::Pong, HeaderFields::default(), &token, &[]);
                });
            }
            Kind::Closing => self.closing = Some(frame.record::<Closing>().unwrap().code),
            Kind::Welcome => {}
            Kind::Published => {
                let PublishedRecord { epoch, request, is_duplicate } = frame.record().unwrap();
                assert_eq!(is_duplicate, 0);
                self.published(request, &payload, epoch, frame.header.sequence, published);
            }
            Kind::Error => {
                let record = frame.record::<ErrorRecord>().unwrap();
                if record.code == ErrorCode::NotAllowed as u16 {
                    self.denied(&payload);
                    return used;
                }
                self.publish_failed(record.request, u64::from(record.code));
            }
            other => panic!("unexpected {other:?}: {payload}"),
        }
        used
    }

    fn event(&mut self, event: Event, published: &Published) {
        match event {
            Event::Tick(tick) => {
                let messages::Tick { topic, sequence, key, snapshot, payload, .. } = tick;
                assert!(tick.payload_is_json && tick.previous.is_none());
                let epoch = *self.epochs.get(&topic).expect("announced before its first tick");
                let life = (epoch, published.offset(&topic, epoch));
                let payload = String::from_utf8(payload).expect("JSON");
                self.tick(&topic, life, sequence, key, snapshot, &payload, published);
            }
            Event::Conflated(ref range) | Event::Gap(ref range) => {
                let messages::Skipped { topic, from_sequence, to_sequence, count } = range;
                assert_eq!(*count, 0, "it has not asked for counts");
                let epoch = *self.epochs.get(topic).expect("announced before");
                let life = (epoch, published.offset(topic, epoch));
                let is_lost = matches!(event, Event::Gap(_));
                self.announced(topic, life, is_lost, *from_sequence, *to_sequence);
            }
            Event::Recovered(messages::Recovered { topic, epoch, sequence, recovered, reason }) => {
                assert_eq!(reason, 0, "it has not asked for reasons");
                let life = (epoch != EPOCH).then(|| (epoch, published.offset(&topic, epoch)));
                self.recovery(&topic, life, sequence, recovered, published);
            }
            Event::Subscribed(messages::Subscribed { pattern, .. }) => self.acknowledged(&pattern, published),
            Event::Unsubscribed(messages::Unsubscribed { pattern, .. }) => self.left(&pattern),
            Event::Topic(messages::Topic { name, epoch, .. }) => self.topic(&name, epoch, published),
            Event::Pong(_) => self.pongs += 1,
            Event::Welcome(_) => {}
            Event::Published(messages::Published { id, topic, epoch, sequence, duplicate }) => {
                assert!(!duplicate);
                self.published(id, &topic, epoch, sequence, published);
            }
            Event::Error(messages::Error { id, code, text }) => match code == ErrorCode::NotAllowed as u32 {
                true => self.denied(&text),
                false => self.publish_failed(id, code.into()),
            },
            Event::Closing(messages::Closing { code, .. }) => self.closing = Some(code as u16),
            other => panic!("unexpected {other:?}"),
        }
    }

    fn note_batch(&mut self, frames: usize) {
        assert!(frames == 1 || self.is_batched, "a client that has not asked gets one frame a message");
        self.batches += u64::from(frames > 1);
    }

    fn json(&mut self, value: &serde_json::Value, published: &Published) {
        match value["op"].as_str() {
            None => {
                let (topic, sequence) = (value["topic"].as_str().unwrap(), value["seq"].as_u64().unwrap());
                let (key, snapshot) =
                    (value["key"].as_u64().unwrap_or(0), value["snapshot"].as_bool().unwrap_or(false));
                let epoch = *self.epochs.get(topic).expect("announced before its first tick");
                let life = (epoch, published.offset(topic, epoch));
                self.tick(topic, life, sequence, key, snapshot, &value["data"].to_string(), published);
            }
            Some(op @ ("conflated" | "gap")) => {
                let number = |field: &str| value[field].as_u64().unwrap();
                let topic = value["topic"].as_str().unwrap();
                let epoch = *self.epochs.get(topic).expect("announced before");
                let life = (epoch, published.offset(topic, epoch));
                self.announced(topic, life, op == "gap", number("from"), number("to"));
            }
            Some("recovered") => {
                let recovered = value["recovered"].as_bool().unwrap();
                let (topic, epoch) = (value["topic"].as_str().unwrap(), value["epoch"].as_u64().unwrap());
                let life = (epoch != EPOCH).then(|| (epoch, published.offset(topic, epoch)));
                self.recovery(topic, life, value["sequence"].as_u64().unwrap(), recovered, published);
            }
            Some("subscribed") if value["pattern"].is_string() => {
                self.acknowledged(value["pattern"].as_str().unwrap(), published);
            }
            Some("unsubscribed") => self.left(value["pattern"].as_str().unwrap()),
            Some("pong") => self.pongs += 1,
            Some("welcome") => {}
            Some("published") => {
                let number = |field: &str| value[field].as_u64().unwrap();
                let topic = value["topic"].as_str().unwrap();
                self.published(number("id") as u32, topic, number("epoch"), number("sequence"), published);
            }
            Some("error") if value["code"] == ErrorCode::NotAllowed as u16 => {
                self.denied(value["text"].as_str().unwrap());
            }
            Some("error") => {
                let number = |field: &str| value[field].as_u64().unwrap();
                self.publish_failed(number("id") as u32, number("code"));
            }
            Some("closing") => self.closing = Some(value["code"].as_u64().unwrap() as u16),
            Some("subscribed") => {
                for topic in value["topics"].as_array().unwrap() {
                    self.topic(topic["topic"].as_str().unwrap(), topic["epoch"].as_u64().unwrap(), published);
                }
            }
            Some(_) => panic!("unexpected {value}"),
        }
    }

    /// A raw client sees payloads only. `"TOPIC N PAD"` names topic and sequence.
    fn raw(&mut self, payload: &[u8], published: &Published) {
        let text: String = serde_json::from_slice(payload).expect("a JSON string");
        let mut parts = text.split(' ');
        let (topic, sequence) = parts.next().zip(parts.next()).expect("topic and sequence");
        let payload = String::from_utf8_lossy(payload).into_owned();
        self.tick(topic, (0, 0), sequence.parse().unwrap(), 0, false, &payload, published);
    }

    fn acknowledged(&mut self, pattern: &str, published: &Published) {
        let counts =
            published.ticks.iter().map(|(topic, ticks)| (topic.clone(), ticks.len() as u64)).collect();
        trace(self, pattern, format_args!("live: {:?}", self.requested[pattern]));
        assert!(self.may_subscribe(pattern), "{pattern} is not allowed");
        let before = self.subscriptions.get(pattern).cloned();
        // Updates are acknowledged too.
        if !matches!(before, Some(State::Live(_))) {
            self.subscriptions.insert(pattern.into(), State::Live(counts));
            assert!(matches!(before, Some(State::Requested | State::Leaving)), "{pattern} {before:?}");
        }
    }

    /// `subscribed` means that the next tick published arrives, or is announced as skipped: a topic does not start later.
    fn check_start(&self, topic: &str, first: u64) {
        let mut matching = self.subscriptions.iter().filter(|(pattern, _)| pattern::matches(pattern, topic));
        if !self.seen.contains_key(topic)
            && let (Some((pattern, State::Live(counts))), None) = (matching.next(), matching.next())
            && self.requested.get(pattern).is_some_and(|request| request.begin == Begin::Live)
        {
            let before = counts.get(topic).copied().unwrap_or(0);
            assert!(
                first <= before + 1,
                "{topic} starts with {first}, {before} ticks before {pattern} was live"
            );
        }
    }

    fn left(&mut self, pattern: &str) {
        trace(self, pattern, format_args!("left"));
        self.subscriptions.remove(pattern);
        // Topics covered by another live pattern continue; the rest start again with the next subscription.
        let live =
            |(pattern, state): (&String, &State)| (*state != State::Requested).then(|| pattern.clone());
        let live: Vec<String> = self.subscriptions.iter().filter_map(live).collect();
        self.seen.retain(|topic, _| live.iter().any(|pattern| pattern::matches(pattern, topic)));
    }

    /// Promise 1: sequences strictly increase, ranges between them are announced, and payloads are as published.
    #[expect(clippy::too_many_arguments, reason = "what a tick consists of, and the truth")]
    fn tick(
        &mut self,
        topic: &str,
        life: (u64, u64),
        sequence: u64,
        key: u64,
        snapshot: bool,
        payload: &str,
        published: &Published,
    ) {
        assert!(
            self.subscriptions.keys().any(|pattern| pattern::matches(pattern, topic)),
            "a tick of {topic} without a subscription"
        );
        assert!(self.permits(topic), "a tick of {topic}, which is not allowed");
        let sequence = sequence + life.1;
        let truth = published.ticks.get(topic).and_then(|ticks| ticks.get(sequence as usize - 1));
        assert_eq!(truth.map(String::as_str), Some(payload), "{topic} {sequence}");
        trace(self, topic, format_args!("tick {sequence} key {key} snapshot {snapshot}"));
        let raw = self.encoding == WireFormat::WEBSOCKET_RAW;
        self.check_start(topic, sequence);
        let seen = self.seen.entry(topic.into()).or_insert_with(|| Seen {
            first: sequence,
            next: sequence,
            ..Seen::default()
        });
        assert!(sequence >= seen.next, "{topic}: {sequence} after {}", seen.next - 1);
        if snapshot {
            assert!(seen.announced.is_empty(), "{topic}: a snapshot precedes announced ranges");
            self.snapshots += 1;
        } else if !raw {
            // A raw client gets no announcements; it only sees that sequences increase.
            seen.settle(sequence, topic);
        }
        seen.next = sequence + 1;
        (seen.life, seen.epoch) = (life, life.0);
        seen.keys.insert(key, sequence);
    }

    /// A topic is announced, most often again.
    fn topic(&mut self, name: &str, epoch: u64, published: &Published) {
        assert!(self.permits(name), "the announcement of {name}, which is not allowed");
        published.offset(name, epoch);
        let before = self.epochs.insert(name.into(), epoch);
        assert!(before <= Some(epoch), "{name}: epochs increase");
        self.lives += u64::from(before.is_some_and(|before| before != epoch));
    }

    fn announced(&mut self, topic: &str, life: (u64, u64), lost: bool, from: u64, to: u64) {
        let (from, to) = (from + life.1, to + life.1);
        trace(self, topic, format_args!("lost {lost} [{from}, {to})"));
        assert!(self.permits(topic), "a gap of {topic}, which is not allowed");
        assert!(from < to, "{topic}: [{from}, {to})");
        self.check_start(topic, from);
        let seen = self.seen.entry(topic.into()).or_insert_with(|| Seen {
            first: from,
            next: from,
            life,
            ..Seen::default()
        });
        seen.announced.push((from, to));
        seen.epoch = life.0;
        seen.lost |= lost;
        *(if lost { &mut self.lost } else { &mut self.conflated }) += to - from;
    }

    /// The answer to a position. `life`: that of the topic, if there is one.
    fn recovery(
        &mut self,
        topic: &str,
        life: Option<(u64, u64)>,
        last: u64,
        recovered: bool,
        published: &Published,
    ) {
        trace(self, topic, format_args!("recovered {recovered}, last {last}"));
        match life {
            Some((_, offset)) => {
                assert!(self.permits(topic), "{topic} is not allowed, so it does not exist");
                let total = published.ticks[topic].len() as u64;
                assert!(offset + last <= total, "{topic}: the last tick, {last}, is one that was published");
            }
            // Of a topic that does not exist, nothing is missing after sequence 0.
            None => {
                let from_0 =
                    |request: &Request| matches!(request.begin, Begin::After(EPOCH, 0) | Begin::Resume);
                assert!(
                    last == 0 && (!recovered || self.requested.values().any(from_0)),
                    "{topic}: there is no such topic"
                );
            }
        }
        *(if recovered { &mut self.recovered } else { &mut self.not_recovered }) += 1;
        if !recovered {
            // That a topic has been forgotten does not end the stream that other patterns received of it.
            let goes_on = |seen: &Seen| life.is_none() && self.epochs.get(topic) == Some(&seen.epoch);
            if !self.seen.get(topic).is_some_and(goes_on) {
                self.seen.remove(topic);
            }
            return;
        }
        // The position was valid: the stream continues from there, even if nothing was missed. If it named several, the
        // answer does not say which one applied.
        let mut positions = self.requested.iter().filter_map(|(pattern, request)| match request.begin {
            Begin::After(EPOCH, position) if pattern::matches(pattern, topic) => Some(position),
            _ => None,
        });
        if let Some(position) = positions.next()
            && positions.all(|other| other == position)
            && !self.seen.contains_key(topic)
            && last > 0
            && let Some(life) = life
        {
            let next = position + 1 + life.1;
            self.seen.insert(topic.into(), Seen { first: next, next, life, ..Seen::default() });
        }
    }

    /// Asserts that everything published since its subscriptions went live has arrived. Topics of clients that are gone are
    /// left out: their last ticks may not have reached the server.
    pub fn check_complete(&self, published: &Published, gone: &HashSet<String>) {
        if self.is_answered {
            self.publishes.check_answered();
            self.routed.check_answered();
        }
        for (topic, seen) in self.seen.iter().filter(|(topic, _)| !gone.contains(*topic)) {
            let mut seen = seen.clone();
            if self.encoding == WireFormat::WEBSOCKET_RAW && !self.is_faithful() {
                continue;
            }
            seen.settle(published.ticks[topic].len() as u64 + 1, topic);
            // The last tick of each key has arrived, whatever was conflated.
            if !seen.lost && self.encoding != WireFormat::WEBSOCKET_RAW && topic.starts_with("c.") {
                for (index, _) in
                    published.ticks[topic].iter().enumerate().skip(seen.first as usize - 1).rev()
                {
                    let (key, sequence) = (key_of(index), index as u64 + 1);
                    let is_last_of_key =
                        (index..published.ticks[topic].len()).filter(|&other| key_of(other) == key).count()
                            == 1;
                    assert!(
                        !is_last_of_key || seen.keys.get(&key) == Some(&sequence),
                        "{topic}: key {key} at {sequence}"
                    );
                }
            }
        }
        for (pattern, state) in &self.subscriptions {
            // A raw client gets no acknowledgement, so it cannot know when its subscription went live.
            if self.encoding == WireFormat::WEBSOCKET_RAW {
                continue;
            }
            let State::Live(counts) = state else { panic!("{pattern} never went live: {state:?}") };
            let matching = |(topic, _): &(&String, &Vec<String>)| {
                pattern::matches(pattern, topic) && !gone.contains(*topic) && self.permits(topic)
            };
            let begin = self.requested.get(pattern).map_or(Begin::Live, |request| request.begin);
            for (topic, ticks) in published.ticks.iter().filter(matching) {
                let total = ticks.len() as u64;
                // A tick that was on its way then may have been refused since.
                let before = counts.get(topic).copied().unwrap_or(0).min(total);
                match (self.seen.get(topic), begin) {
                    (Some(seen), Begin::Live) => assert!(
                        seen.first <= before + 1 || self.overlaps(pattern, topic),
                        "{topic}: late start"
                    ),
                    (None, Begin::Live) => assert_eq!(before, total, "{topic} {pattern}: nothing came"),
                    (Some(_), _) => {}
                    // Not even the last value, as from a topic that has been forgotten, or that another pattern covered already.
                    (None, _) => assert!(
                        before == total
                            && (total == 0 || published.forgets || self.was_covered(pattern, topic)),
                        "{topic} {pattern} {begin:?}: nothing came"
                    ),
                }
            }
        }
    }

    /// Returns whether it had another pattern that covers the topic when it requested this one.
    fn was_covered(&self, pattern: &str, topic: &str) -> bool {
        self.others[pattern].iter().any(|other| pattern::matches(other, topic))
    }

    /// Returns whether another of its patterns covers the topic too, and may have started the stream.
    fn overlaps(&self, pattern: &str, topic: &str) -> bool {
        self.subscriptions.keys().any(|other| other != pattern && pattern::matches(other, topic))
    }
}

/// Prints what clients see of a topic, with `TICKCAST_TRACE=TOPIC`; for runs of one seed.
fn trace(client: &Client, topic: &str, what: std::fmt::Arguments<'_>) {
    static TOPIC: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let traced = TOPIC.get_or_init(|| std::env::var("TICKCAST_TRACE").ok());
    if traced.as_deref().is_some_and(|traced| traced == topic || pattern::matches(topic, traced)) {
        eprintln!("client {} {:?} {topic}: {what}", client.name, client.encoding);
    }
}

/// The key of a tick of a client's own topic, by index.
pub fn key_of(index: usize) -> u64 {
    if index < 3 { 0 } else { index as u64 % 4 }
}
