//! The bare loop: what the kernel alone costs. It SENDs the same bytes in the same sizes as `tickcast serve` to as many
//! sockets, through an io_uring set up the same way, with no broker at all: no topics, no logs, no sessions, nothing
//! read. Every figure of tickcast stands as a ratio to it.
//!
//! ```text
//!  greet    N connections are accepted, one after the other; each gets WELCOME (or the WebSocket's 101), SUBSCRIBED and
//!           every topic's name, and is not read from again
//!  send     every --interval-us one round: the same --ticks-per-send ticks, in one SEND, to every socket
//!  report   at SIGINT or SIGTERM, or when the last connection has gone: one JSON object
//! ```
//!
//! So `tickcast-c10k` is the client, as it is for tickcast (with `--transport ws --encoding rkyv` where this has
//! `--websocket`, each tick in a message of its own, as tickcast sends them). It must send its subscriptions in one
//! write, which it does.
//!
//! ```text
//! tickcast-bare --tcp 127.0.0.1:0 --connections 100 --size 100 --interval-us 200 --core 0
//! taskset -c 1 tickcast-c10k --server ADDR --connections 100 --server-pid PID
//! ```
//!
//! # Sending
//!
//! `SEND` with `MSG_DONTWAIT | MSG_WAITALL | MSG_NOSIGNAL` on registered files, without a completion when it succeeds,
//! [`tickcast::limits::SENDS_PER_SUBMIT`] to an `io_uring_enter`. What a full socket did not take is parked as one SEND
//! that waits in the kernel, straight from the round's bytes: they are not written again before it is done, so nothing is
//! copied here. While it is under way the socket is left out of the rounds.
//!
//! Rounds are an open loop: the n-th is due n intervals after the first, that is its ticks' producer time, and one that is
//! late goes at once. They do not grow when they are late, as tickcast's SENDs do; `--ticks-per-send` sets that. With
//! an interval of 0 a round begins as soon as any socket can take one, and goes to those that can: every socket is kept
//! full.
//!
//! # What the client's loss means
//!
//! Sequences count the ticks of all rounds. The client reports those of the rounds that a socket was left out of, being
//! full, as lost ("gap"): nothing else can be missing. At interval 0 they say only that sockets took turns, and the
//! measure is bytes a second; at another they say that the kernel cannot carry the load.
//!
//! # The report
//!
//! | name | |
//! |---|---|
//! | `sends` | SENDs of a round to a socket; what a full one takes later is a part of the same |
//! | `bytes`, `bytes_per_send` | what the kernel took |
//! | `short_sends` | SENDs that found their socket full, in part or at all |
//! | `skipped_sends` | SENDs that were not made, because the socket still had one to finish |
//! | `rounds`, `late_rounds` | late: begun a whole interval or more after they were due |
//! | `connections_ended` | connections that failed, or were closed by their client |
//! | `elapsed_ns` | from the first round to the end |
//! | `cpu_ns`, `cpu_ns_per_send` | user and system time of the thread that sends, meanwhile |

mod greeting;
mod options;
mod report;
mod rounds;
mod sender;

use std::{
    io::Write,
    net::TcpListener,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::Parser;
use tickcast::{config::SocketBounds, process::signals, transport::listener};

use self::{options::Options, rounds::Rounds, sender::Sender};

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("tickcast-bare: {text}");
            ExitCode::FAILURE
        }
    }
}

/// Listens, greets, sends, and says what it cost, as JSON.
fn run(options: &Options) -> Result<String, String> {
    options.check()?;
    signals::block().map_err(|error| format!("signals: {error}"))?;
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    signals::watch(move |_| asked.store(true, Ordering::Relaxed), || {}, signals::HangUp::Stops)
        .map_err(|error| format!("signals: {error}"))?;
    // Not before the thread above was made: it need not be on that core.
    if let Some(core) = options.core
        && !core_affinity::set_for_current(core_affinity::CoreId { id: core })
    {
        return Err(format!("--core: core {core} is not allowed to this process"));
    }
    report::raise_descriptor_limit(options.connections)?;
    // The kernel holds as much for a socket as it does for tickcast.
    let bounds = SocketBounds { send_bytes: None, notsent_lowat_bytes: options.notsent_lowat_bytes };
    let (address, listeners) =
        listener::listen("--tcp", options.tcp, 1, bounds).map_err(|error| error.to_string())?;
    println!("listening tcp={address}");
    let _ = std::io::stdout().flush();
    let mut sockets = Vec::with_capacity(options.connections);
    for listener in listeners.into_iter().map(TcpListener::from) {
        greeting::greet_all(&listener, options, &stop, &mut sockets)
            .map_err(|error| format!("connection {}: {error}", sockets.len() + 1))?;
    }
    let rounds = Rounds::new(options, sockets.len());
    let failed = |error| format!("io_uring: {error}");
    let mut sender = Sender::new(options, rounds, sockets).map_err(failed)?;
    let report = sender.run(&stop).map_err(failed)?;
    Ok(report.to_json())
}
