//! What was typed.

use std::net::SocketAddr;

use clap::Parser;
use tickcast::limits::{
    DATA_RING_ENTRIES, FRAME_BYTES_MAX_DEFAULT, NOTSENT_LOWAT_BYTES_DEFAULT, SENDS_PER_SUBMIT,
};

/// Bytes of one SEND: far past what tickcast sends at once, for those who want to see what that would bring.
const SEND_BYTES_HIGHEST: usize = 1 << 20;
/// A tick's bytes besides its payload, at most: header, record, padding and the WebSocket's header.
const TICK_OVERHEAD_BYTES: usize = 80;
/// Longest payload: a client takes no longer frame.
const SIZE_HIGHEST: usize = FRAME_BYTES_MAX_DEFAULT - TICK_OVERHEAD_BYTES;
/// Longest interval, microseconds: it is also how late a signal may be noticed.
const INTERVAL_US_HIGHEST: u64 = 10_000_000;
/// Most topics: their names must reach a client before its first tick, and fit what a socket takes at once.
const TOPICS_HIGHEST: u32 = 1_000;
/// Most connections: the kernel's bound on a ring's registered files.
const CONNECTIONS_HIGHEST: usize = 1 << 20;

/// The bare loop: sends what tickcast would send, with no broker, to tell what the kernel alone costs
///
/// Prints "listening tcp=ADDRESS", sends once all connections have subscribed, and prints one JSON object at SIGINT or
/// SIGTERM, or when the last connection has gone. tickcast-c10k is its client. Ticks that the client reports as lost are
/// of rounds that a full socket was left out of.
#[derive(Debug, Parser)]
#[command(name = "tickcast-bare", version)]
pub struct Options {
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub tcp: SocketAddr,
    /// Speak WebSocket with the subprotocol tickcast.v1.rkyv instead of native frames
    #[arg(long)]
    pub websocket: bool,
    /// Connections to wait for; sending begins when all have subscribed
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub connections: usize,
    /// Topics that the ticks go round
    #[arg(long, value_name = "T", default_value_t = 1)]
    pub topics: u32,
    /// Bytes of a tick's payload
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    pub size: usize,
    /// Ticks that leave in one SEND
    #[arg(long, value_name = "K", default_value_t = 1)]
    pub ticks_per_send: usize,
    /// Time between rounds in microseconds; 0: as fast as sockets take them
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 200)]
    pub interval_us: u64,
    /// SENDs for one io_uring_enter
    #[arg(long, value_name = "N", default_value_t = SENDS_PER_SUBMIT)]
    pub sends_per_submit: usize,
    /// Bytes not yet on the wire that a socket takes (TCP_NOTSENT_LOWAT); 0: the kernel's default
    #[arg(long, value_name = "BYTES", default_value_t = NOTSENT_LOWAT_BYTES_DEFAULT)]
    pub notsent_lowat_bytes: u32,
    /// Core to send from
    #[arg(long, value_name = "CORE")]
    pub core: Option<usize>,
}

impl Options {
    /// Checks what was typed.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn check(&self) -> Result<(), String> {
        within("--connections", self.connections, 1, CONNECTIONS_HIGHEST)?;
        within("--topics", self.topics as usize, 1, TOPICS_HIGHEST as usize)?;
        within("--size", self.size, 0, SIZE_HIGHEST)?;
        within("--ticks-per-send", self.ticks_per_send, 1, SEND_BYTES_HIGHEST)?;
        within("--interval-us", self.interval_us as usize, 0, INTERVAL_US_HIGHEST as usize)?;
        within("--sends-per-submit", self.sends_per_submit, 1, DATA_RING_ENTRIES as usize)?;
        let send_bytes = (self.size + TICK_OVERHEAD_BYTES).saturating_mul(self.ticks_per_send);
        if send_bytes > SEND_BYTES_HIGHEST {
            return Err(format!(
                "--size {} with {TICK_OVERHEAD_BYTES} more, times --ticks-per-send {}: {send_bytes} bytes in one SEND, at \
                 most {SEND_BYTES_HIGHEST}",
                self.size, self.ticks_per_send
            ));
        }
        Ok(())
    }
}

fn within(name: &str, value: usize, lowest: usize, highest: usize) -> Result<(), String> {
    if (lowest..=highest).contains(&value) {
        return Ok(());
    }
    Err(format!("{name} {value}: {lowest} to {highest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let check = |arguments: &str| {
            let typed = std::iter::once("bare").chain(arguments.split_whitespace());
            Options::try_parse_from(typed).map_err(|error| error.to_string()).and_then(|typed| typed.check())
        };
        assert_eq!(check("--size 65488 --interval-us 0 --websocket"), Ok(()));
        for bad in [
            "--connections 0",
            "--topics 0",
            "--topics 1001",
            "--ticks-per-send 0",
            "--size 262100",
            "--size 10000 --ticks-per-send 1000",
            "--sends-per-submit 2000",
            "--interval-us 10000001",
            "--tcp nowhere",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
