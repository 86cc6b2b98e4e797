//! Feeder: publishes ticks to tickcast or a peer at a constant rate, in an open loop.
//!
//! Producer `p` of P at R ticks per second is offset by `p / P` of its interval, as in the simulator of `tickcast serve`. The
//! k-th tick of all is due at `k / (P x R)` seconds, belongs to topic `sim.(k mod topics)`, and carries the time it was
//! due and its number in that topic ([`tickcast::sources::payload`]).
//!
//! All ticks of a topic go over one connection, so they arrive in order. By default there is one connection per producer,
//! or per topic if there are fewer. A write carries what is due on its connection and nothing else: ticks leave together
//! only if this process or the socket was late.
//!
//! A tick is *sent* once it is queued on its connection. It is *refused* if [`publisher::UNWRITTEN_BYTES_MAX`] are already
//! queued there, because the server does not keep up. A refused tick gets no number, so every gap that a subscriber sees is
//! the server's. *Late* is the time from when a tick was due to just before the write that carries it.

// Every bench program uses a part of it.
#[allow(dead_code)]
#[path = "../common/mod.rs"]
mod common;
mod options;
mod publisher;
mod report;
mod run;

use std::process::ExitCode;

use clap::Parser;

/// Exit status if the feed could not run; 1 means that it ran and could not send every tick.
const EXIT_NOT_RUN: u8 = 2;

fn main() -> ExitCode {
    tickcast::clock::sleep_precisely();
    let outcome = options::Plan::new(options::Options::parse()).and_then(|plan| {
        common::process::raise_descriptor_limit(plan.connections)?;
        let stop = common::process::stop_on_signal()?;
        run::run(&plan, &stop).map(|report| (plan, report))
    });
    let (plan, report) = match outcome {
        Ok(outcome) => outcome,
        Err(why) => {
            eprintln!("tickcast-feed: {why}");
            return ExitCode::from(EXIT_NOT_RUN);
        }
    };
    println!("{}", report.to_json(&plan));
    let failures = report.failures();
    let lines = report.behind_warning().into_iter().chain(failures.iter().cloned());
    lines.for_each(|line| eprintln!("tickcast-feed: {line}"));
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
