//! A fixed walk through the state machines, for tools that count instructions: scripts/callgrind.sh.
//!
//! `walk SESSIONS TICKS TICKS_PER_TURN ENCODING`: each turn takes in so many ticks of 50 topics and gives every session
//! its SEND. Prints what was delivered; [`counted`] alone is to be counted.

mod load;

use std::process::ExitCode;

use clap::Parser;
use tickcast_proto::Encoding;

use self::load::{Load, Sent};

/// Topics that the ticks go round: the producers of the load in README.
const TOPICS: usize = 50;

/// Walks ticks through a shard, with no kernel and no clock
#[derive(Parser)]
struct Options {
    /// Sessions that take every tick
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    sessions: u32,
    /// Ticks
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    ticks: u64,
    /// Ticks that leave together
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    ticks_per_turn: u64,
    /// native, rkyv, json or raw
    #[arg(value_parser = encoding)]
    encoding: Encoding,
}

fn encoding(name: &str) -> Result<Encoding, String> {
    match name {
        "native" => Ok(Encoding::Native),
        "rkyv" => Ok(Encoding::WebSocketRkyv),
        "json" => Ok(Encoding::WebSocketJson),
        "raw" => Ok(Encoding::WebSocketRaw),
        _ => Err("native, rkyv, json or raw".into()),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut load = Load::new(options.encoding, options.sessions, TOPICS);
    // What grows as it is first used has grown.
    walked(&mut load, 2 * TOPICS as u64, options.ticks_per_turn);
    let Sent { sends, bytes } = counted(&mut load, options.ticks, options.ticks_per_turn);
    let deliveries = options.ticks * u64::from(options.sessions);
    println!("deliveries={deliveries} sends={sends} bytes={bytes}");
    ExitCode::SUCCESS
}

/// What is counted: the tool knows it by its name.
#[inline(never)]
fn counted(load: &mut Load, ticks: u64, ticks_per_turn: u64) -> Sent {
    walked(load, ticks, ticks_per_turn)
}

#[inline(never)]
fn walked(load: &mut Load, ticks: u64, ticks_per_turn: u64) -> Sent {
    let mut sent = Sent::default();
    let mut left = ticks;
    while left > 0 {
        let together = left.min(ticks_per_turn);
        (0..together).for_each(|_| load.publish());
        let Sent { sends, bytes } = load.turn();
        sent.sends += sends;
        sent.bytes += bytes;
        left -= together;
    }
    sent
}
