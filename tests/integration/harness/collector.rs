//! Subscribers over the client library, each on a thread, that keep everything they receive.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tickcast_client::{Address, Client, Event, PublishRequest};
use tickcast_proto::WireFormat;

use super::{GUARD, Server};

/// Payloads by topic, in order of arrival, with their sequences.
pub type ByTopic = BTreeMap<String, Vec<(u64, Vec<u8>)>>;

/// How often a collector checks whether to stop.
const LOOK: Duration = Duration::from_millis(50);

/// Everything that one subscriber received.
#[derive(Clone, Debug, Default)]
pub struct Got {
    /// The ticks. Those of a raw subscriber have topic "" and sequences counted here.
    pub ticks: ByTopic,
    /// Number of ticks.
    pub count: usize,
    /// Topics announced, in order.
    pub topics: Vec<String>,
    /// Code and text of the CLOSING.
    pub closing: Option<(u16, String)>,
    /// Whether the connection has ended, and the error if it failed.
    pub ended: Option<Result<(), String>>,
}

/// One subscriber.
pub struct Collector {
    shared: Arc<(Mutex<Got>, Condvar)>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Its name in failure messages.
    pub name: String,
}

/// The server's address in an encoding.
pub fn address(server: &Server, encoding: WireFormat) -> Address {
    match encoding {
        WireFormat::TCP_NATIVE => {
            Address { host: server.tcp.to_string(), path: String::new(), encoding, is_tls: false }
        }
        _ => Address { host: server.http.to_string(), path: "/ws".into(), encoding, is_tls: false },
    }
}

/// A client of the server in an encoding.
pub fn connect(server: &Server, encoding: WireFormat) -> Client {
    Client::connect_to(&address(server, encoding)).unwrap()
}

/// Publishes one tick with producer time 7 ns.
pub fn publish(client: &mut Client, topic: &str, payload: &[u8]) {
    client
        .publish_buffered(PublishRequest { topic, payload, producer_time_ns: 7, ..Default::default() })
        .unwrap();
}

/// Waits until the server has accepted everything that was published.
pub fn barrier(client: &mut Client) {
    client.barrier(GUARD, |event| assert!(!matches!(event, Event::Error { .. }), "{event:?}")).unwrap();
}

impl Collector {
    /// Subscribes, and waits until every pattern is acknowledged, except for raw, which gets no answers.
    pub fn start(server: &Server, encoding: WireFormat, patterns: &[&str]) -> Collector {
        let address = address(server, encoding);
        let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.into()).collect();
        let shared: Arc<(Mutex<Got>, Condvar)> = Arc::default();
        let stop: Arc<AtomicBool> = Arc::default();
        let (ready, subscribed) = mpsc::channel();
        let (thread_shared, thread_stop) = (shared.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let mut client = Client::connect_to(&address).unwrap();
            for pattern in &patterns {
                client.subscribe(pattern).unwrap();
            }
            let mut waiting = if encoding == WireFormat::WEBSOCKET_RAW { 0 } else { patterns.len() };
            if waiting == 0 {
                ready.send(()).unwrap();
            }
            while !thread_stop.load(Relaxed) {
                let event = client.next_event(Some(LOOK));
                let (got, grown) = &*thread_shared;
                let mut got = got.lock().unwrap();
                match event {
                    Ok(None) => continue,
                    Ok(Some(Event::Subscribed { .. })) => {
                        waiting -= 1;
                        if waiting == 0 {
                            ready.send(()).unwrap();
                        }
                    }
                    Ok(Some(event)) => got.take(event),
                    Err(error) => got.ended = Some(Err(error.to_string())),
                }
                grown.notify_all();
                if got.ended.is_some() {
                    return;
                }
            }
        });
        subscribed.recv_timeout(GUARD).unwrap();
        Collector { shared, stop, thread: Some(thread), name: encoding.name().into() }
    }

    /// Waits until `done` holds.
    pub fn wait_until(&self, what: &str, done: impl Fn(&Got) -> bool) {
        let (got, grown) = &*self.shared;
        let guard = got.lock().unwrap();
        let (got, timeout) =
            grown.wait_timeout_while(guard, GUARD, |got| !done(got) && got.ended.is_none()).unwrap();
        assert!(
            done(&got),
            "{}: no {what}{}: {} ticks, closing {:?}, ended {:?}",
            self.name,
            if timeout.timed_out() { " in time" } else { "" },
            got.count,
            got.closing,
            got.ended
        );
    }

    /// Waits for a number of ticks.
    pub fn wait_for(&self, count: usize) {
        self.wait_until(&format!("{count} ticks"), |got| got.count >= count);
    }

    /// Waits for the end of the connection.
    pub fn wait_for_end(&self) {
        self.wait_until("the end", |got| got.ended.is_some());
    }

    /// What has been received so far.
    pub fn so_far(&self) -> Got {
        self.shared.0.lock().unwrap().clone()
    }

    /// Ends it and returns everything it received.
    pub fn finish(mut self) -> Got {
        self.stop.store(true, Relaxed);
        self.thread.take().unwrap().join().unwrap();
        std::mem::take(&mut self.shared.0.lock().unwrap())
    }
}

impl Got {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Tick(tick) => {
                self.count += 1;
                let ticks = self.ticks.entry(tick.topic.to_owned()).or_default();
                ticks.push((tick.sequence.0, tick.payload.to_owned()));
            }
            Event::Payload(payload) => {
                self.count += 1;
                let ticks = self.ticks.entry(String::new()).or_default();
                ticks.push((ticks.len() as u64 + 1, payload.to_owned()));
            }
            Event::Topic { name, .. } => self.topics.push(name.to_owned()),
            Event::Closing { code, text, .. } => self.closing = Some((code, text.to_owned())),
            Event::Closed => self.ended = Some(Ok(())),
            Event::Error { code, text, .. } => panic!("error {code}: {text}"),
            _ => {}
        }
    }

    /// Asserts that every topic's sequences are 1, 2, 3 and so on.
    pub fn assert_no_gap(&self, name: &str) {
        for (topic, ticks) in &self.ticks {
            for (index, (sequence, _)) in ticks.iter().enumerate() {
                assert_eq!(*sequence, index as u64 + 1, "{name}: {topic}: tick {index} of {}", ticks.len());
            }
        }
    }
}

/// Fails with the first difference instead of a megabyte of ticks.
pub fn assert_same(name: &str, got: &ByTopic, expected: &ByTopic) {
    let topics = |ticks: &ByTopic| ticks.keys().cloned().collect::<Vec<_>>();
    assert_eq!(topics(got), topics(expected), "{name}: topics");
    for (topic, expected) in expected {
        let got = &got[topic];
        for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
            assert_eq!(got.0, expected.0, "{name}: {topic}: sequence of tick {index}");
            assert!(
                got.1 == expected.1,
                "{name}: {topic}: tick {index}: {:?} instead of {:?}",
                String::from_utf8_lossy(&got.1),
                String::from_utf8_lossy(&expected.1)
            );
        }
        assert_eq!(got.len(), expected.len(), "{name}: {topic}: ticks");
    }
}
