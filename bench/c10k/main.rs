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
//! return of the read that brought the tick: what a stalled server or client adds is in it.
//!
//! Subscription latency runs from the write that carried a connection's last request (over a WebSocket, what follows
//! the upgrade) to the return of the read that brought its first tick, ramp included: the wait for the feed's next tick
//! is in it, so it needs a feed that is faster than what is to be measured.
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

mod connection;
mod feed;
mod hgrm;
mod options;
mod own;
mod process;
mod report;
mod run;
mod tally;
mod worker;

use std::process::ExitCode;

use clap::Parser;

/// Exit status for a load that could not be run; 1 is a load that ran and failed what was asked of it.
const EXIT_NOT_RUN: u8 = 2;

fn main() -> ExitCode {
    let typed = options::Options::parse();
    let outcome = options::Plan::new(typed).and_then(|plan| {
        process::raise_descriptor_limit(plan.connections)?;
        run::run(&plan).map(|report| (plan, report))
    });
    let (plan, report) = match outcome {
        Ok(outcome) => outcome,
        Err(text) => {
            eprintln!("tickcast-c10k: {text}");
            return ExitCode::from(EXIT_NOT_RUN);
        }
    };
    if plan.json {
        println!("{}", report.to_json(&plan));
        // The operator sees it even where the numbers go to a file.
        report.bottleneck_warning().iter().for_each(|warning| eprintln!("tickcast-c10k: {warning}"));
    } else {
        print!("{}", report.to_text(&plan));
    }
    if let Some(path) = &plan.hgrm
        && let Err(error) = std::fs::write(path, hgrm::text(&report.tally.latency_ns))
    {
        eprintln!("tickcast-c10k: --hgrm {}: {error}", path.display());
        return ExitCode::from(EXIT_NOT_RUN);
    }
    let failures = report.failures(&plan);
    for failure in &failures {
        eprintln!("tickcast-c10k: {failure}");
    }
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
