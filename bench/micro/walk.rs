//! A fixed walk through the state machines, for scripts/callgrind.sh, which counts its instructions.
//!
//! `walk SESSIONS TICKS TICKS_PER_TURN ENCODING`: each turn publishes TICKS_PER_TURN ticks of 50 topics and completes a SEND
//! for every session. It prints what was delivered. Only [`counted`] is counted.

mod load;

use std::process::ExitCode;

use clap::Parser;
use tickcast_proto::WireFormat;

use self::load::{Load, Sent};

/// Topics that ticks are published to in turn.
const TOPICS: usize = 50;

/// Takes ticks through a shard without a kernel or a clock
#[derive(Parser)]
struct Options {
    /// Sessions, each subscribed to every tick
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    sessions: u32,
    /// Ticks to publish
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    ticks: u64,
    /// Ticks per turn
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    ticks_per_turn: u64,
    /// Encoding of the sessions: native, rkyv, json or raw
    #[arg(value_parser = encoding)]
    encoding: WireFormat,
}

fn encoding(name: &str) -> Result<WireFormat, String> {
    match name {
        "native" => Ok(WireFormat::TCP_NATIVE),
        "rkyv" => Ok(WireFormat::WEBSOCKET_NATIVE),
        "json" => Ok(WireFormat::WEBSOCKET_JSON),
        "raw" => Ok(WireFormat::WEBSOCKET_RAW),
        _ => Err("expected native, rkyv, json or raw".into()),
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut load = Load::new(options.encoding, options.sessions, TOPICS);
    // Warms up: buffers grow on their first use.
    walked(&mut load, 2 * TOPICS as u64, options.ticks_per_turn);
    let Sent { sends, bytes } = counted(&mut load, options.ticks, options.ticks_per_turn);
    let deliveries = options.ticks * u64::from(options.sessions);
    println!("deliveries={deliveries} sends={sends} bytes={bytes}");
    ExitCode::SUCCESS
}

/// The part that is counted; scripts/callgrind.sh selects it by name.
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
