//! Load client: opens many connections that subscribe, and reports latency, loss and cost.
//!
//! ```text
//!  ramp        opens --ramp connections per second; each subscribes and must be acknowledged, then prints "subscribed N"
//!  warm-up     ticks flow, only gaps are counted; near its end the highest sequence of each topic is noted
//!  measured    deliveries, bytes, latency, CPU
//!  settle      the highest sequences are noted again; connections have --settle to reach them
//! ```
//!
//! # Latency
//!
//! Corrected latency runs from the intended send time to the return of the read that brought the tick. The intended send
//! time is the tick's producer time (CLOCK_REALTIME, same machine), so the delay of a stalled server or client is
//! included. Uncorrected latency is what a closed-loop measurement would report: it starts at the server's time of receipt,
//! which native and rkyv ticks carry, so anything that delayed the send is missing.
//!
//! Subscription latency runs from the write of a connection's last request (over a WebSocket, after the upgrade) to the
//! return of the read that brought its first tick, ramp included. It contains the wait for the feed's next tick, so the
//! feed must be faster than what is to be measured. It is also reported from the start of the connect: with `--spike`,
//! when all connections come at once, that is what a client waits.
//!
//! The skew of a tick is the time from the read that brought it to the first connection to the read that brought it to the
//! last one. It is measured on a sample of the ticks that all connections received.
//!
//! # Loss
//!
//! Loss is counted per connection and topic. `start` and `end` are the highest sequences that ANY connection had seen when
//! the window began and ended:
//!
//! - gap: sequences missing between two ticks, from the connection's first tick on, ramp and warm-up included; those that
//!   the server announced as conflated or dropped are counted separately;
//! - head: from `start` to the first tick, if there was none before the window;
//! - tail: from the last tick to `end`, after the time to settle; all of `start` to `end` if there was no tick.
//!
//! All connections subscribe to the same patterns and were acknowledged before `start`, so each could have received all of
//! these ticks. Without a warm-up, head is not counted, because a tick may have been under way before the last
//! acknowledgement. With `--expect-ticks` nothing is published before "subscribed N", so `start` is the lowest sequence
//! that any connection saw. A raw stream carries no sequences: only `--expect-ticks` reveals a loss there. With
//! `--subscribe-own` a connection is judged only by the topics that it knows, by a tick or by name.
//!
//! A stalled connection subscribes, is acknowledged, and never reads again, so the server must cope with a full socket. Its
//! loss is not counted. Only a reset shows that the server closed it: a FIN waits behind the unread data.
//!
//! With `--churn-rate`, connections are reset in turn and opened again. The loss of a connection that was reset is counted
//! up to its last tick. A reopened one has no head, and must reach `end` in the topics that it saw a tick of.
//!
//! # Peers
//!
//! The peers measured beside tickcast (`--transport nats`, `redis`, `nchan` and `websocket`) carry bare payloads. Time,
//! topic and number are read from the payload, which `tickcast-feed` writes in the simulator's format. Ticks that the feeder
//! could not hand to the server are not numbered, so every gap is the server's. For Redis, `>` in a pattern becomes `*`,
//! which matches any number of tokens there.
//!
//! `--transport sse`, `socketio` and `--encoding protobuf`, of tickcast or of a server with producers of its own, are read the same
//! way. Conflation and loss that tickcast announces there count as gaps.
//!
//! # Compression
//!
//! With `--deflate`, a compressed message is inflated once for all connections of a thread that receive the same bytes. What is
//! received counts as it is on the wire.
//!
//! # Cost
//!
//! A connection costs this process 1.3 KB, over a WebSocket 2.3 KB (measured with 10,000 on one topic), about 170 bytes for
//! each further topic, and up to 4 KB while a burst keeps its buffer large; the report has the actual figure. One core
//! receives 500,000 ticks of 100 bytes per second, 50 per read, in 10 % (native) to 24 % (JSON) of its time. Each thread
//! also has up to 1.5 MB of histograms, which short runs hardly touch.

mod clients;
// Every bench program uses a part of it.
#[allow(dead_code)]
#[path = "../common/mod.rs"]
mod common;
mod connection;
mod deflate;
mod feed;
mod hgrm;
mod options;
mod own_topics;
mod plan;
mod plot;
mod process;
mod progress;
mod report;
mod run;
mod skew;
mod svg;
mod tally;
mod worker;

use std::{fs::File, io::BufWriter, process::ExitCode};

use clap::{CommandFactory, FromArgMatches};
use tickcast::cli::{
    HELP_WIDTH,
    notes::{self, Notes},
    pages,
};

use crate::{
    options::{Command, Options},
    plan::Plan,
    report::Report,
};

/// Exit status if the load could not run; 1 means that it ran and missed a requirement.
const EXIT_NOT_RUN: u8 = 2;

const SIGNALS: &str = "\
SIGINT and SIGTERM end the run and report what was measured so far; a second signal ends the process at once.";

const NOTES: [Notes; 2] = [
    Notes {
        page: "tickcast-c10k",
        examples: &[
            (
                "tickcast-c10k --connections 10000 --duration 30s",
                "Measure 10,000 native subscribers of the simulator",
            ),
            ("tickcast-c10k --transport ws --max-p99 5ms", "Fail if 1 % of the ticks take longer than 5 ms"),
        ],
        exit_status: &[
            (0, "the load ran and met every requirement"),
            (1, "it missed one, or was interrupted"),
            (2, "it could not run"),
        ],
    },
    Notes {
        page: "tickcast-c10k-plot",
        examples: &[(
            "tickcast-c10k plot --out latency.svg tickcast=run.hgrm",
            "Plot a histogram that --hgrm has written",
        )],
        exit_status: &[(0, "success"), (2, "a file cannot be read or written")],
    },
];

fn main() -> ExitCode {
    let mut options =
        Options::from_arg_matches(&command().get_matches()).unwrap_or_else(|error| error.exit());
    let outcome = match options.command.take() {
        Some(Command::Plot(args)) => plot::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Man { out }) => pages::write(undocumented(), &NOTES, &out)
            .map(|()| ExitCode::SUCCESS)
            .map_err(|error| format!("--out {}: {error}", out.display())),
        None => load(options),
    };
    outcome.unwrap_or_else(|text| {
        eprintln!("tickcast-c10k: {text}");
        ExitCode::from(EXIT_NOT_RUN)
    })
}

/// The command line with its whole help.
fn command() -> clap::Command {
    notes::in_help(undocumented(), &NOTES)
}

/// The command line without its examples and exit statuses.
fn undocumented() -> clap::Command {
    Options::command().max_term_width(HELP_WIDTH).after_help(format!("{SIGNALS}\n\n{}", report::JSON_KEYS))
}

/// Runs a load and reports it.
fn load(options: Options) -> Result<ExitCode, String> {
    let plan = Plan::new(options)?;
    common::process::raise_descriptor_limit(plan.connections)?;
    let interrupted = common::process::stop_on_signal()?;
    let report = run::run(&plan, &interrupted)?;
    if plan.json {
        println!("{}", report.to_json(&plan));
        // The JSON may go to a file, where nobody would see it.
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

/// Writes the files that the options ask for.
fn write_files(plan: &Plan, report: &Report) -> Result<(), String> {
    let tally = &report.tally;
    if let Some(path) = &plan.hgrm {
        plot::write(path, &hgrm::text(&tally.latency_ns)).map_err(|error| format!("--hgrm {error}"))?;
    }
    if let Some(path) = &plan.svg {
        let plot = plot::of_run(plan, &tally.latency_ns, tally.uncorrected());
        plot::write(path, &plot).map_err(|error| format!("--svg {error}"))?;
    }
    if let Some(path) = &plan.clients {
        File::create(path)
            .and_then(|file| clients::write_ndjson(&report.clients, &mut BufWriter::new(file)))
            .map_err(|error| format!("--clients {}: {error}", path.display()))?;
    }
    Ok(())
}
