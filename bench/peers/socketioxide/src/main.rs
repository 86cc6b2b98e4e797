//! A Socket.IO server in Rust, of the crate `socketioxide` with its defaults, as a peer of tickcast in the benchmarks.
//!
//! Clients join a room by the event `subscribe`, and each tick is an event to the room. Producers are one task that publishes every
//! tick that is due. A client that has not taken 128 packets, the default, loses what comes then.
//!
//! On SIGINT or SIGTERM it prints one JSON object with the ticks it published, and the deliveries that it dropped.

use std::{
    error::Error,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::serve::ListenerExt;
use clap::Parser;
use serde::Serialize;
use socketioxide::{
    BroadcastError, SocketIo,
    extract::{AckSender, Data, SocketRef},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

const ROOM: &str = "ticks";
/// Interval of the producers, and of counting clients while they wait for them.
const TIMER: Duration = Duration::from_millis(1);

/// Options, as those of the other peers with producers of their own.
#[derive(Clone, Copy, Parser)]
struct Options {
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    #[arg(long, default_value_t = 50)]
    producers: u64,
    #[arg(long, default_value_t = 100)]
    rate: u64,
    #[arg(long, default_value_t = 100)]
    size: usize,
    #[arg(long, default_value_t = 0)]
    wait_clients: usize,
}

#[derive(Default)]
struct Counts {
    clients: AtomicUsize,
    published: AtomicU64,
    dropped: AtomicU64,
}

/// The payload that tickcast's simulator, publisher and load client share.
#[derive(Serialize)]
struct Payload<'a> {
    at: u64,
    topic: u64,
    n: u64,
    pad: &'a str,
}

/// Bytes of a payload without its numbers and its padding.
const FRAME_BYTES: usize = r#"{"at":,"topic":,"n":,"pad":""}"#.len();

/// Publishes tick number i of all producers together i / (producers * rate) seconds after the start, so that the schedule does not
/// depend on when the timer fires, and lateness is measured.
async fn produce(io: SocketIo, counts: Arc<Counts>, options: Options) -> Result<(), Box<dyn Error>> {
    let Options { producers, rate, size, wait_clients, .. } = options;
    let mut timer = tokio::time::interval(TIMER);
    while counts.clients.load(Relaxed) < wait_clients {
        timer.tick().await;
    }
    if producers * rate == 0 {
        return Ok(());
    }
    let padding = ".".repeat(size);
    let wall_ns = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let start = Instant::now();
    let mut i = 0;
    loop {
        let due_ns = (i as f64 * 1e9 / (producers * rate) as f64) as u64;
        if u128::from(due_ns) > start.elapsed().as_nanos() {
            timer.tick().await;
            continue;
        }
        let (at, topic, n) = (wall_ns + due_ns, i % producers, i / producers + 1);
        let digits: usize = [at, topic, n].map(|number| number.to_string().len()).iter().sum();
        let pad = &padding[..size.saturating_sub(FRAME_BYTES + digits)];
        let sent = io.to(ROOM).emit("tick", &Payload { at, topic, n, pad }).await;
        if let Err(BroadcastError::Socket(errors)) = sent {
            counts.dropped.fetch_add(errors.len() as u64, Relaxed);
        }
        i += 1;
        counts.published.store(i, Relaxed);
        // Emitting never waits: the sockets' tasks get their turn here.
        tokio::task::yield_now().await;
    }
}

// One thread, because the benchmark gives each server one core.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let counts = Arc::new(Counts::default());
    let (layer, io) = SocketIo::new_layer();
    let of_clients = counts.clone();
    io.ns("/", async move |socket: SocketRef| {
        let counts = of_clients.clone();
        socket.on("subscribe", async move |socket: SocketRef, Data(_pattern): Data<String>, ack: AckSender| {
            socket.join(ROOM);
            counts.clients.fetch_add(1, Relaxed);
            let _ = ack.send("subscribed");
        });
    });
    let listener = TcpListener::bind(options.listen).await?;
    println!("http={}", listener.local_addr()?);
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let producers = produce(io, counts.clone(), options);
    tokio::select! {
        served = async { axum::serve(listener, axum::Router::new().layer(layer)).await } => served?,
        failed = async { producers.await?; std::future::pending::<Result<(), Box<dyn Error>>>().await } => failed?,
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    println!("{{\"published\":{},\"dropped\":{}}}", counts.published.load(Relaxed), counts.dropped.load(Relaxed));
    Ok(())
}
