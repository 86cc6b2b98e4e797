//! Command line of the bare loop.

use std::net::SocketAddr;

use clap::Parser;
use tickcast::config::listener::tcp_address;
use tickcast::limits::{DATA_RING_ENTRIES, FRAME_BYTES_MAX_DEFAULT, SENDS_PER_SUBMIT};
use tickcast_proto::units::{
    NS_PER_S, format_size, parse_duration_ns, parse_microseconds_ns, parse_size_bytes,
};

use crate::common::checks::{duration_within, size_within, within};

/// Most bytes per SEND: far more than tickcast sends at once, to see what that would gain.
const SEND_BYTES_HIGHEST: u64 = 1 << 20;
/// Most bytes of a tick besides its payload: header, record, padding and WebSocket header.
const TICK_OVERHEAD_BYTES: u64 = 80;
/// Largest payload: clients accept no longer frame.
const SIZE_HIGHEST: u64 = FRAME_BYTES_MAX_DEFAULT as u64 - TICK_OVERHEAD_BYTES;
/// Longest interval.
const INTERVAL_NS_HIGHEST: u64 = 10 * NS_PER_S;
/// Most topics: their names reach a client before its first tick and must fit its socket's send buffer.
const TOPICS_HIGHEST: u64 = 1_000;
/// Most connections: the kernel's limit on registered files per ring.
const CONNECTIONS_HIGHEST: u64 = 1 << 20;

/// Sends the same bytes as tickcast without a broker, to measure what the kernel alone costs
#[derive(Debug, Parser)]
#[command(name = "tickcast-bare", version, max_term_width = tickcast::cli::HELP_WIDTH)]
#[command(after_help = "\
Prints \"listening tcp=ADDRESS\", sends once all connections have subscribed, and prints one JSON object at SIGINT or
SIGTERM, or when the last connection has ended. Its client is tickcast-c10k; the gaps it reports are rounds that skipped a
full socket.")]
pub struct Options {
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0", value_parser = tcp_address)]
    pub tcp: SocketAddr,
    /// Speak WebSocket with the subprotocol tickcast.v1.rkyv instead of native frames
    #[arg(long)]
    pub websocket: bool,
    /// Connections to wait for before sending
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    pub connections: usize,
    /// Topics that ticks are published to in turn
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub topics: u32,
    /// Size of a tick's payload
    #[arg(long = "size", value_name = "SIZE", default_value = "100B", value_parser = parse_size_bytes)]
    pub size_bytes: u64,
    /// Ticks per SEND
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub ticks_per_send: usize,
    /// Time between rounds; with 0, rounds follow as fast as sockets take them
    #[arg(long = "interval", value_name = "DURATION", default_value = "200us", value_parser = parse_duration_ns)]
    interval_ns: u64,
    /// Old spelling of --interval.
    #[arg(long = "interval-us", hide = true, value_parser = parse_microseconds_ns, conflicts_with = "interval_ns")]
    interval_ns_from_us: Option<u64>,
    /// SENDs per io_uring_enter
    #[arg(long, value_name = "COUNT", default_value_t = SENDS_PER_SUBMIT)]
    pub sends_per_submit: usize,
    /// Unsent bytes that a socket accepts (TCP_NOTSENT_LOWAT); 0 keeps the kernel's default
    #[arg(
        long = "notsent-lowat",
        alias = "notsent-lowat-bytes",
        value_name = "SIZE",
        default_value = "128KiB",
        value_parser = parse_size_bytes
    )]
    notsent_lowat_bytes: u64,
    /// Core to send from [default: not pinned]
    #[arg(long, value_name = "CORE")]
    pub core: Option<usize>,
}

impl Options {
    /// Checks the options.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn check(&self) -> Result<(), String> {
        within("--connections", self.connections as u64, 1, CONNECTIONS_HIGHEST)?;
        within("--topics", self.topics.into(), 1, TOPICS_HIGHEST)?;
        size_within("--size", self.size_bytes, 0, SIZE_HIGHEST)?;
        within("--ticks-per-send", self.ticks_per_send as u64, 1, SEND_BYTES_HIGHEST)?;
        duration_within("--interval", self.interval_ns(), 0, INTERVAL_NS_HIGHEST)?;
        within("--sends-per-submit", self.sends_per_submit as u64, 1, DATA_RING_ENTRIES.into())?;
        size_within("--notsent-lowat", self.notsent_lowat_bytes, 0, u32::MAX.into())?;
        let send_bytes = (self.size_bytes + TICK_OVERHEAD_BYTES).saturating_mul(self.ticks_per_send as u64);
        if send_bytes > SEND_BYTES_HIGHEST {
            return Err(format!(
                "--ticks-per-send {} with --size {}: {send_bytes} bytes per SEND with {TICK_OVERHEAD_BYTES} of overhead per \
                 tick; the limit is {}",
                self.ticks_per_send,
                format_size(self.size_bytes),
                format_size(SEND_BYTES_HIGHEST)
            ));
        }
        Ok(())
    }

    /// Time between rounds; 0 for as fast as sockets take them.
    pub fn interval_ns(&self) -> u64 {
        self.interval_ns_from_us.unwrap_or(self.interval_ns)
    }

    /// TCP_NOTSENT_LOWAT; 0 for the kernel's default.
    pub fn notsent_lowat_bytes(&self) -> u32 {
        // `check` has refused larger values.
        u32::try_from(self.notsent_lowat_bytes).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use tickcast::limits::NOTSENT_LOWAT_BYTES_DEFAULT;

    use super::*;

    fn parse(arguments: &str) -> Result<Options, String> {
        let words = std::iter::once("bare").chain(arguments.split_whitespace());
        let options = Options::try_parse_from(words).map_err(|error| error.to_string())?;
        options.check().map(|()| options)
    }

    #[test]
    fn durations_and_sizes_take_units_and_old_spellings_keep_theirs() {
        let default = parse("").unwrap();
        assert_eq!((default.interval_ns(), default.size_bytes), (200_000, 100));
        assert_eq!(default.notsent_lowat_bytes(), NOTSENT_LOWAT_BYTES_DEFAULT, "as tickcast serve has it");
        let with_units = parse("--interval 1.5ms --size 10kB --notsent-lowat 16KiB").unwrap();
        assert_eq!((with_units.interval_ns(), with_units.size_bytes), (1_500_000, 10_000));
        assert_eq!(with_units.notsent_lowat_bytes(), 16_384);
        let old = parse("--interval-us 2000 --notsent-lowat-bytes 16384").unwrap();
        assert_eq!((old.interval_ns(), old.notsent_lowat_bytes()), (2_000_000, 16_384));
        assert_eq!(parse("--interval 0").unwrap().interval_ns(), 0);
    }

    #[test]
    fn invalid_values_are_refused() {
        assert!(parse("--size 65488 --interval 0 --websocket").is_ok());
        for bad in [
            "--connections 0",
            "--topics 0",
            "--topics 1001",
            "--ticks-per-send 0",
            "--size 262100",
            "--size 10000 --ticks-per-send 1000",
            "--sends-per-submit 2000",
            "--interval 10000001us",
            "--interval 11s",
            "--interval 200",
            "--notsent-lowat 4GiB",
            "--tcp nowhere",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
