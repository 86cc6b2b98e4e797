//! The state of a Socket.IO session beside what every session has.

use crate::limits::ENGINE_IO_HEARTBEAT_MS_MAX;
use tickcast_proto::framing::Decoder;

/// A session of `/socket.io/`.
#[derive(Debug)]
pub struct SocketIo {
    /// Decodes its WebSocket messages.
    pub decoder: Decoder,
    /// Whether its client has entered the namespace. Until then, it may do nothing else.
    pub is_connected: bool,
    /// Interval of pings that the client was told, milliseconds: it gives up if one is missing.
    pub ping_interval_ms: u32,
    /// When it was last pinged, or began: the low 32 bits of CLOCK_MONOTONIC milliseconds.
    pub pinged_ms: u32,
    /// An event whose attachment has not arrived. Bound:
    /// [`SOCKET_IO_BINARY_EVENT_BYTES_MAX`](tickcast_proto::limits::SOCKET_IO_BINARY_EVENT_BYTES_MAX).
    pub incomplete: Option<Box<str>>,
}

impl SocketIo {
    /// Begins a session at a time in milliseconds.
    pub fn new(decoder: Decoder, ping_interval_ns: u64, now_ms: u32) -> SocketIo {
        SocketIo {
            decoder,
            is_connected: false,
            ping_interval_ms: heartbeat_ms(ping_interval_ns),
            pinged_ms: now_ms,
            incomplete: None,
        }
    }

    /// Interval of its pings, nanoseconds.
    pub fn ping_interval_ns(&self) -> u64 {
        u64::from(self.ping_interval_ms) * 1_000_000
    }

    /// Bytes of heap memory.
    pub fn heap_bytes(&self) -> usize {
        size_of::<SocketIo>() + self.incomplete.as_deref().map_or(0, str::len)
    }
}

/// A time as clients are told it, milliseconds.
pub fn heartbeat_ms(ns: u64) -> u32 {
    (ns / 1_000_000).min(u64::from(ENGINE_IO_HEARTBEAT_MS_MAX)) as u32
}
