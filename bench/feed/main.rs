//! The bundled feeder: publishes ticks at a constant rate to tickcast or to a peer, whatever becomes of them (open loop).
//!
//! Producer `p` of P at R ticks a second is offset by `p / P` of its interval, as in `tickcast serve`'s simulator: the
//! k-th tick of all is due at `k / (P x R)` seconds, belongs to topic `sim.(k mod topics)`, and carries the time it was
//! due and its number in that topic ([`tickcast::sources::payload`]).
//!
//! A topic's ticks go over one connection, so that they arrive in order. There is one for each producer, or for each
//! topic where those are fewer, unless `--connections` says otherwise. A write carries what is due on its connection and
//! nothing else: ticks leave together only when this process or the socket was late.
//!
//! A tick is *sent* when it was queued on its connection, *refused* when [`publisher::WAITING_BYTES_MAX`] waited there
//! already: the server does not take what is offered. What is refused gets no number, so the subscribers' losses are the
//! server's own. *Late* is the time from when a tick was due to just before the write that was to carry it.

mod options;
mod publisher;
mod report;
mod run;

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::Parser;
use tickcast::process::signals;

/// Exit status for a feed that could not be run; 1 is one that ran and could not send all that it offered.
const EXIT_NOT_RUN: u8 = 2;

fn main() -> ExitCode {
    let stop = Arc::new(AtomicBool::new(false));
    tickcast::clock::sleep_precisely();
    let outcome = options::Plan::new(options::Options::parse()).and_then(|plan| {
        let notify = Arc::clone(&stop);
        signals::block()
            .and_then(|()| {
                signals::watch(move |_| notify.store(true, Ordering::Release), || (), signals::HangUp::Stops)
            })
            .map_err(|error| format!("signals: {error}"))?;
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
    let said = report.behind_warning().into_iter().chain(failures.iter().cloned());
    said.for_each(|text| eprintln!("tickcast-feed: {text}"));
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
