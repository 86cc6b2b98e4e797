//! The bundled load client: N connections that subscribe, take ticks, and report latency, loss and cost.
//!
//! ```text
//!  ramp        connections open at --ramp a second; each subscribes and must be acknowledged: "subscribed N"
//!  warm-up     ticks flow, nothing is counted but gaps; near its end the highest sequence of each topic is noted
//!  measured    deliveries, bytes, latency, CPU
//!  settle      the highest sequences are noted again; up to 2 s for every connection to reach them
//! ```
//!
//! Latency runs from the INTENDED send time, which is the tick's producer time (CLOCK_REALTIME, same machine), to the
//! return of the read that brought the tick: what a stalled server or client adds is in it. The uncorrected latency is
//! what a closed measurement would say: from the server's time of receipt, which native and rkyv ticks carry. What
//! kept a tick from being sent in time is not in that one.
//!
//! Subscription latency runs from the write that carried a connection's last request (over a WebSocket, what follows
//! the upgrade) to the return of the read that brought its first tick, ramp included: the wait for the feed's next tick
//! is in it, so it needs a feed that is faster than what is to be measured. It is reported from the start of the
//! connection's connect, too: with `--spike`, where all connections come at once, that is what a client waits.
//!
//! The skew of a tick is the time from the read that brought it to the first connection to the read that brought it to
//! the last one, of a sample of the ticks that all connections had.
//!
//! What counts as lost, on each connection and topic, with `start` and `end` the highest sequences that ANY
//! connection had seen when the window began and when it ended:
//!
//! - gap: sequences skipped between two ticks seen, from the connection's first tick on, ramp and warm-up included;
//!   those that the server announced as conflated or dropped are counted apart;
//! - head: from `start` to the first tick seen, where none had been seen before;
//! - tail: from the last tick seen to `end`, after 2 s to settle; all of `start` to `end` when none was seen.
//!
//! All connections subscribe to the same patterns, and were acknowledged before `start`, so each could have seen all
//! of these. Head is not counted without a warm-up: a tick could have been under way before the last
//! acknowledgement. With `--expect-ticks` nothing is published before "subscribed N", so `start` is the lowest
//! sequence that any connection saw. A raw stream carries no sequences: only `--expect-ticks` shows a loss there.
//! With `--subscribe-own` a connection is judged by its own topics, those that it knows of by a tick or by name.
//!
//! A stalled connection subscribes, is acknowledged, and never reads again: the server has to do without its socket. It
//! counts for no loss. That the server closed it shows only where the end can overtake what it has not read: a reset
//! does, a FIN waits behind the data.
//!
//! With --churn-per-s connections are reset in turn and opened again. The loss of one that left is counted up to the
//! last tick it saw; one that came back has no head, and is to reach `end` in the topics it saw a tick of.
//!
//! The peers measured beside tickcast (`--transport nats`, `redis`, `nchan` and `websocket`) carry bare payloads: time,
//! topic and number are read from the payload, which `tickcast-feed` writes as the simulator does. What it could not hand
//! to the server is not numbered, so a gap is what the server left out.
//!
//! A connection costs this process 1.3 KB, over a WebSocket 2.3 KB (measured with 10,000 on one topic), about 170 bytes
//! for each further topic, and up to 4 KB while a burst keeps its buffer grown; the report says what it was.
//! One core takes 500,000 ticks of 100 bytes a second, 50 to a read, with 10 % of its time (native) to 24 % (JSON).
//! Besides that a thread has up to 1.5 MB of tables of times, which short runs hardly touch.

mod clients;
mod connection;
mod feed;
mod hgrm;
mod options;
mod own;
mod plot;
mod process;
mod progress;
mod report;
mod run;
mod skew;
mod svg;
mod tally;
mod worker;

use std::{
    fs::File,
    io::BufWriter,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    options::{Command, Options, Plan},
    report::Report,
};
use clap::{CommandFactory, Parser};
use tickcast::{cli::pages, process::signals};

/// Exit status for a load that could not be run; 1 is a load that ran and failed what was asked of it.
const EXIT_NOT_RUN: u8 = 2;

fn main() -> ExitCode {
    let mut typed = Options::parse();
    let outcome = match typed.command.take() {
        Some(Command::Plot(plot)) => plot::run(&plot).map(|()| ExitCode::SUCCESS),
        Some(Command::Man { out }) => pages::write(Options::command(), &out)
            .map(|()| ExitCode::SUCCESS)
            .map_err(|error| format!("--out {}: {error}", out.display())),
        None => load(typed),
    };
    outcome.unwrap_or_else(|text| {
        eprintln!("tickcast-c10k: {text}");
        ExitCode::from(EXIT_NOT_RUN)
    })
}

/// Runs a load and reports it; the exit status of one that ran.
fn load(typed: Options) -> Result<ExitCode, String> {
    let plan = Plan::new(typed)?;
    process::raise_descriptor_limit(plan.connections)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let to_raise = Arc::clone(&interrupted);
    signals::block()
        .and_then(|()| {
            signals::watch(move |_| to_raise.store(true, Ordering::Release), || {}, signals::HangUp::Stops)
        })
        .map_err(|error| format!("signals: {error}"))?;
    let report = run::run(&plan, &interrupted)?;
    if plan.json {
        println!("{}", report.to_json(&plan));
        // The operator sees it even where the numbers go to a file.
        report.bottleneck_warning().iter().for_each(|warning| eprintln!("tickcast-c10k: {warning}"));
    } else {
        print!("{}", report.to_text(&plan));
    }
    write_files(&plan, &report)?;
    let failures = report.failures(&plan);
    for failure in &failures {
        eprintln!("tickcast-c10k: {failure}");
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes the files that were asked for.
fn write_files(plan: &Plan, report: &Report) -> Result<(), String> {
    let tally = &report.tally;
    if let Some(path) = &plan.hgrm {
        plot::write(path, &hgrm::text(&tally.latency_ns)).map_err(|error| format!("--hgrm {error}"))?;
    }
    if let Some(path) = &plan.svg {
        let picture = plot::of_run(plan, &tally.latency_ns, tally.uncorrected());
        plot::write(path, &picture).map_err(|error| format!("--svg {error}"))?;
    }
    if let Some(path) = &plan.clients {
        File::create(path)
            .and_then(|file| clients::write_ndjson(&report.clients, &mut BufWriter::new(file)))
            .map_err(|error| format!("--clients {}: {error}", path.display()))?;
    }
    Ok(())
}
