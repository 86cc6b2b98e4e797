//! Bare loop: measures what the kernel alone costs.
//!
//! It SENDs the same bytes in the same sizes as `tickcast serve` to as many sockets, through an io_uring set up in the same
//! way, but without a broker: no topics, no logs, no sessions, no reads. tickcast's figures are reported as ratios to it.
//!
//! ```text
//!  accept   N connections, one after the other; each gets WELCOME (or the WebSocket's 101), SUBSCRIBED and every topic's
//!           name, and is not read from again
//!  send     one round per --interval: the same --ticks-per-send ticks, in one SEND, to every socket
//!  report   one JSON object at SIGINT or SIGTERM, or when the last connection has ended
//! ```
//!
//! The client is `tickcast-c10k`, as for tickcast itself; with `--websocket` it needs `--transport ws --encoding rkyv`. Each
//! tick is then a message of its own, as tickcast sends it. A client must send its subscriptions in one write.
//!
//! ```text
//! tickcast-bare --tcp 127.0.0.1:0 --connections 100 --size 100B --interval 200us --core 0
//! taskset -c 1 tickcast-c10k --server ADDR --connections 100 --server-pid PID
//! ```
//!
//! # Sending
//!
//! A SEND has `MSG_DONTWAIT | MSG_WAITALL | MSG_NOSIGNAL`, uses a registered file, and leaves no completion when it
//! succeeds; [`tickcast::limits::SENDS_PER_SUBMIT`] of them go into one `io_uring_enter`. The bytes that a full socket does not
//! accept are parked as one SEND that waits in the kernel. It points directly at the round's bytes, which are not overwritten
//! before it completes, so nothing is copied. Rounds skip the socket in the meantime.
//!
//! Rounds are an open loop: the n-th is due n intervals after the first, that time is its ticks' producer time, and a late
//! one goes out at once. Unlike tickcast's SENDs, rounds do not grow when they are late; `--ticks-per-send` sets their
//! size. With an interval of 0, a round begins as soon as any socket can take one and goes to those that can, so every
//! socket is kept full.
//!
//! # Loss at the client
//!
//! Sequences count the ticks of all rounds. The client reports rounds that skipped its full socket as lost ("gap"); nothing
//! else can be missing. With an interval of 0 this only means that sockets took turns, and the figure to read is bytes per
//! second. With any other interval it means that the kernel cannot carry the load.
//!
//! # The report
//!
//! | name | meaning |
//! |---|---|
//! | `sends` | SENDs of a round to a socket; the parked rest of one belongs to it |
//! | `bytes`, `bytes_per_send` | bytes that the kernel accepted |
//! | `short_sends` | SENDs that did not fit into their socket's buffer |
//! | `skipped_sends` | SENDs that were not made because the socket had a parked one |
//! | `rounds`, `late_rounds` | late: begun at least one interval after they were due |
//! | `connections_ended` | connections that failed or that the client closed |
//! | `elapsed_ns` | from the first round to the end |
//! | `cpu_ns`, `cpu_ns_per_send` | user and system time of the sending thread in that time |

// Every bench program uses a part of it.
#[allow(dead_code)]
#[path = "../common/mod.rs"]
mod common;
mod handshake;
mod options;
mod report;
mod rounds;
mod sender;

use std::{io::Write, net::TcpListener, process::ExitCode};

use clap::Parser;
use tickcast::{config::SocketBounds, transport::listener};

use self::{
    common::process::{pin_thread, raise_descriptor_limit, stop_on_signal},
    options::Options,
    rounds::Rounds,
    sender::Sender,
};

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

/// Listens, accepts, sends, and returns the report as JSON.
fn run(options: &Options) -> Result<String, String> {
    options.check()?;
    let stop = stop_on_signal()?;
    // After the signal thread was started, which need not run on that core.
    if let Some(core) = options.core {
        pin_thread("--core", core)?;
    }
    raise_descriptor_limit(options.connections)?;
    // The same socket buffers as tickcast's.
    let bounds = SocketBounds { send_bytes: None, notsent_lowat_bytes: options.notsent_lowat_bytes() };
    let (address, listeners) =
        listener::listen("--tcp", options.tcp, 1, bounds).map_err(|error| error.to_string())?;
    println!("listening tcp={address}");
    let _ = std::io::stdout().flush();
    let mut sockets = Vec::with_capacity(options.connections);
    for listener in listeners.into_iter().map(TcpListener::from) {
        handshake::accept_all(&listener, options, &stop, &mut sockets)
            .map_err(|error| format!("connection {}: {error}", sockets.len() + 1))?;
    }
    let rounds = Rounds::new(options, sockets.len());
    let failed = |error| format!("io_uring: {error}");
    let mut sender = Sender::new(options, rounds, sockets).map_err(failed)?;
    let report = sender.run(&stop).map_err(failed)?;
    Ok(report.to_json())
}
