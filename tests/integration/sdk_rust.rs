//! The Rust clients on a session: its transcripts are unit tests of the crate; here with the binary under test.

#[path = "../../src/client/examples/service.rs"]
#[allow(dead_code, reason = "its main function starts it by hand")]
mod service;

use std::{
    fs, io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use crate::harness::{
    Server, beside_others,
    collector::{barrier, connect, publish},
};
use tickcast_client::{
    AsyncClient, AsyncOptions, Change, ClientEvent, Event, SessionClient, SessionClientOptions,
    SubscribeOptions, SubscriptionEvent,
};
use tickcast_proto::WireFormat;

const LONG: Duration = Duration::from_secs(60);

/// A way to a server that can be cut.
struct Relay {
    address: SocketAddr,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    fn to(server: SocketAddr) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, open) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let kept = open.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(server).unwrap());
                let both = [&client, &server].map(|side| side.try_clone().unwrap());
                kept.lock().unwrap().extend(both);
                for (mut from, mut to) in
                    [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
                {
                    thread::spawn(move || {
                        // A cut ends both.
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Relay { address, open }
    }

    fn cut(&self) {
        for side in self.open.lock().unwrap().drain(..) {
            let _ = side.shutdown(Shutdown::Both);
        }
    }
}

/// An event of a subscription in short form.
fn show(event: &SubscriptionEvent) -> String {
    match event {
        SubscriptionEvent::State(Change { state, code, .. }) => format!("{state:?} {code}"),
        SubscriptionEvent::Tick(tick) => {
            format!("tick {} {}", tick.sequence, String::from_utf8_lossy(&tick.payload))
        }
        SubscriptionEvent::Recovered { failure, .. } => format!("recovered {}", failure.is_none()),
        other => format!("{other:?}"),
    }
}

/// What a subscriber sees over a cut during which three ticks are published. The first is published once it is subscribed, the
/// cut is made at the third.
const EXPECTED: [&str; 11] = [
    "Subscribing 0",
    "Subscribed 0",
    "tick 1 1",
    "tick 2 2",
    "tick 3 3",
    "Subscribing 1006",
    "Subscribed 0",
    "recovered true",
    "tick 4 4",
    "tick 5 5",
    "tick 6 6",
];

/// Calls `next` for the expected events, and does what makes them happen.
fn check(server: &Server, relay: &Relay, mut next: impl FnMut() -> String) {
    let mut publisher = connect(server, WireFormat::TCP_NATIVE);
    let mut publish_three = |first: u8| {
        for number in first..first + 3 {
            publish(&mut publisher, "a.x", &[b'0' + number]);
        }
        barrier(&mut publisher);
    };
    let mut seen = Vec::new();
    while seen.len() < EXPECTED.len() {
        seen.push(next());
        match seen.len() {
            2 => publish_three(1),
            5 => {
                relay.cut();
                publish_three(4);
            }
            _ => {}
        }
    }
    // The acknowledgement and the answer to the position may come in either order.
    if seen[6] == EXPECTED[7] {
        seen.swap(6, 7);
    }
    assert_eq!(seen, EXPECTED);
}

/// The encodings, each with an address of the relay to a server's port of it.
fn ways(server: &Server) -> Vec<(WireFormat, Relay, String)> {
    let http = [WireFormat::WEBSOCKET_NATIVE, WireFormat::WEBSOCKET_JSON].map(|encoding| {
        let relay = Relay::to(server.http);
        let address = format!("ws://{}/ws", relay.address);
        (encoding, relay, address)
    });
    let relay = Relay::to(server.tcp);
    let address = relay.address.to_string();
    let mut ways = vec![(WireFormat::TCP_NATIVE, relay, address)];
    ways.extend(http);
    ways
}

#[test]
fn the_asynchronous_client_loses_nothing_over_a_cut() {
    let _machine = beside_others();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    for at in 0..3 {
        let server = Server::start(&[]);
        let (encoding, relay, address) = ways(&server).swap_remove(at);
        let mut options = AsyncOptions::new(&address).unwrap();
        options.connect.encoding = encoding;
        let client = AsyncClient::start(options).unwrap();
        let mut subscription = client.subscribe("a.>").unwrap();
        check(&server, &relay, || show(&runtime.block_on(subscription.next()).unwrap()));
        runtime.block_on(client.close());
        server.stop_cleanly();
    }
}

#[test]
fn the_blocking_client_on_a_session_loses_nothing_over_a_cut() {
    let _machine = beside_others();
    for at in 0..3 {
        let server = Server::start(&[]);
        let (encoding, relay, address) = ways(&server).swap_remove(at);
        let mut options = SessionClientOptions::new(&address).unwrap();
        options.connect.encoding = encoding;
        let mut client = SessionClient::start(options).unwrap();
        client.subscribe("a.>", SubscribeOptions::default()).unwrap();
        check(&server, &relay, || {
            loop {
                match client.next_event(Some(LONG)) {
                    Some(ClientEvent::Subscription { event, .. }) => return show(&event),
                    Some(_) => {}
                    None => panic!("no event of the subscription"),
                }
            }
        });
        client.close();
        server.stop_cleanly();
    }
}

#[test]
fn the_example_service_handles_each_quote_once_over_a_restart() {
    let _machine = beside_others();
    let server = Server::start(&[]);
    let folder = std::env::temp_dir().join(format!("tickcast-service-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file: PathBuf = folder.join("positions.txt");
    let mut publisher = connect(&server, WireFormat::TCP_NATIVE);
    let mut middles = connect(&server, WireFormat::TCP_NATIVE);
    middles.subscribe("middles.>").unwrap();
    barrier(&mut middles);
    let mut next_middle = || {
        loop {
            match middles.next_event(Some(LONG)).unwrap() {
                Some(Event::Tick(tick)) => {
                    return format!("{} {}", tick.topic, String::from_utf8_lossy(tick.payload));
                }
                Some(_) => {}
                None => panic!("no tick"),
            }
        }
    };
    for (bid, ask, middle) in [(1.0, 1.5, 1.25), (2.0, 3.0, 2.5)] {
        let quote = format!("{{\"bid\":{bid:?},\"ask\":{ask:?}}}");
        // The second time while the service does not run.
        publish(&mut publisher, "quotes.a", quote.as_bytes());
        barrier(&mut publisher);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (address, file) = (format!("ws://{}/ws", server.http), file.clone());
        let service = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let stopped = async {
                // The sender is dropped.
                let _ = stopped.await;
            };
            runtime.block_on(service::run(&address, file, stopped)).unwrap();
        });
        assert_eq!(next_middle(), format!("middles.a {{\"middle\":{middle}}}"));
        drop(stop);
        service.join().unwrap();
    }
    fs::remove_dir_all(folder).unwrap();
    server.stop_cleanly();
}
