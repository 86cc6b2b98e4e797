//! The state of a Socket.IO session beside what every session has.

use super::Protocol;
use crate::{ids::SessionId, limits::ENGINE_IO_HEARTBEAT_MS_MAX};
use tickcast_proto::framing::Decoder;

/// A session of `/socket.io/`.
#[derive(Debug)]
pub struct SocketIo {
    /// Decodes its WebSocket messages, or what it sends by polling.
    pub decoder: Decoder,
    /// Whether its client has entered the namespace. Until then, it may do nothing else.
    pub is_connected: bool,
    /// Ping interval in the open packet, milliseconds. The client gives up if a ping is missing.
    pub ping_interval_ms: u32,
    /// When it was last pinged, or began: the low 32 bits of CLOCK_MONOTONIC milliseconds.
    pub pinged_ms: u32,
    /// An event whose attachment has not arrived. Bound:
    /// [`SOCKET_IO_BINARY_EVENT_BYTES_MAX`](tickcast_proto::limits::SOCKET_IO_BINARY_EVENT_BYTES_MAX).
    pub incomplete: Option<Box<str>>,
    /// What carries it, if not a socket of its own.
    pub carried: Option<Box<Carried>>,
}

/// What carries a session that began by polling.
#[derive(Debug, Default)]
pub struct Carried {
    /// The connection whose GET waits for packets.
    pub get: Option<SessionId>,
    /// The connection whose POST waits until its packets have been handled.
    pub post: Option<SessionId>,
    /// Open WebSockets that are being tried: a GET is then answered at once, so that the client can change over.
    pub probes: u32,
    /// The WebSocket to which it was upgraded. There is no polling after that.
    pub websocket: Option<SessionId>,
    /// The beginning of a message that did not fit into one SEND. Bound: the longest message and one SEND.
    pub partial: Vec<u8>,
}

/// A WebSocket that carries, or may come to carry, a session that began by polling.
#[derive(Debug)]
pub struct Carrier {
    /// Decodes its messages.
    pub decoder: Decoder,
    /// The session.
    pub session: SessionId,
    /// Whether its client has probed. Only then may the session be upgraded to it.
    pub has_probed: bool,
    /// Whether it carries the session. Until then, its client may only probe.
    pub is_upgraded: bool,
    /// Whether the session ends, so that what the client still sends is discarded.
    pub is_over: bool,
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
            carried: None,
        }
    }

    /// Interval of its pings, nanoseconds.
    pub fn ping_interval_ns(&self) -> u64 {
        u64::from(self.ping_interval_ms) * 1_000_000
    }

    /// Bytes of heap memory.
    pub fn heap_bytes(&self) -> usize {
        let carried = self.carried.as_deref();
        size_of::<SocketIo>()
            + self.incomplete.as_deref().map_or(0, str::len)
            + carried.map_or(0, |carried| size_of::<Carried>() + carried.partial.capacity())
    }
}

impl Protocol {
    /// What carries a session that began by polling.
    pub fn carried_mut(&mut self) -> Option<&mut Carried> {
        match self {
            Protocol::SocketIo(state) => state.carried.as_deref_mut(),
            _ => None,
        }
    }

    /// The session that this WebSocket carries.
    pub fn carries(&self) -> Option<SessionId> {
        match self {
            Protocol::Carrier(carrier) if carrier.is_upgraded => Some(carrier.session),
            _ => None,
        }
    }
}

/// A time for the open packet, milliseconds.
pub fn heartbeat_ms(ns: u64) -> u32 {
    (ns / 1_000_000).min(u64::from(ENGINE_IO_HEARTBEAT_MS_MAX)) as u32
}
