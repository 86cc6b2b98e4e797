//! What a shard counts: one enum with label, unit and help; one writer a shard; read from any thread.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::turn_times::TurnTimes;

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $name:ident = $label:literal, $unit:literal;)+) => {
        /// One thing that is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Counter { $($(#[doc = $help])+ $name),+ }

        impl Counter {
            /// All of them, in index order.
            pub const ALL: &[Counter] = &[$(Counter::$name),+];

            /// Name for metrics and logs.
            pub fn label(self) -> &'static str {
                match self { $(Counter::$name => $label),+ }
            }
            /// What one count is.
            pub fn unit(self) -> &'static str {
                match self { $(Counter::$name => $unit),+ }
            }
            /// One sentence for the operator.
            pub fn help(self) -> &'static str {
                match self { $(Counter::$name => concat!($($help),+)),+ }
            }
        }
    };
}

counters! {
    /// Connections taken in.
    SessionsAccepted = "sessions_accepted", "sessions";
    /// Connections open now.
    SessionsOpen = "sessions_open", "sessions";
    /// Connections open now that have had a subscription go live.
    SessionsSubscribed = "sessions_subscribed", "sessions";
    /// Connections refused because the server serves as many as it may.
    SessionsRefused = "sessions_refused", "sessions";
    /// Connections refused because their address has as many as it may.
    SessionsRefusedSource = "sessions_refused_source", "sessions";
    /// Connections refused because more came than may in a second.
    SessionsRefusedRate = "sessions_refused_rate", "sessions";
    /// Connections refused because the server was stopping.
    SessionsRefusedDraining = "sessions_refused_draining", "sessions";
    /// Connections that the ring did not take, for want of memory; ended without a word.
    SessionsRefusedFailed = "sessions_refused_failed", "sessions";
    /// Times accepting failed, for want of descriptors or memory; tried again after a pause.
    AcceptsFailed = "accepts_failed", "times";
    /// Connections handed to the shard that serves their identity.
    SessionsHandedOver = "sessions_handed_over", "sessions";
    /// Ticks taken in and sequenced by this shard as their home.
    TicksSequenced = "ticks_sequenced", "ticks";
    /// Ticks refused: a bad name, too many topics, too large.
    TicksRefused = "ticks_refused", "ticks";
    /// Ticks refused because their session publishes faster than it may.
    TicksRefusedRate = "ticks_refused_rate", "ticks";
    /// Ticks dropped by a source of the server, because a ring was full or the process had been stopped.
    SourceTicksDropped = "source_ticks_dropped", "ticks";
    /// Times a source of the server waited, because the ring to a shard was full.
    SourceWaits = "source_waits", "times";
    /// Ticks queued to subscribers.
    TicksDelivered = "ticks_delivered", "ticks";
    /// Ticks taken out of outboxes again, to be conflated, dropped or sent anew.
    TicksTakenOut = "ticks_taken_out", "ticks";
    /// Ticks that subscribers were told a newer one stands for.
    TicksConflated = "ticks_conflated", "ticks";
    /// Ticks that subscribers were told are lost to them.
    TicksDropped = "ticks_dropped", "ticks";
    /// Bytes received from peers.
    BytesReceived = "bytes_received", "bytes";
    /// Bytes handed to the transport.
    BytesSent = "bytes_sent", "bytes";
    /// SENDs submitted.
    Sends = "sends", "operations";
    /// SENDs that the socket did not take whole, the rest was parked: short ones, and those that found it full.
    SendsParked = "sends_parked", "operations";
    /// Of the parked SENDs, those that found the socket full: it took nothing. The others were short: it took a part.
    SendsFull = "sends_full", "operations";
    /// Times a ring to another shard became full, and what was for it waited.
    MeshRingFull = "mesh_ring_full", "times";
    /// Silent sessions that were pinged.
    Pings = "pings", "pings";
    /// Times a session's input waited for room in the mesh or in its replies.
    InputPaused = "input_paused", "times";
    /// Requests answered with an error.
    RequestErrors = "request_errors", "requests";
    /// Sessions ended by their peer.
    ClosedByPeer = "closed_by_peer", "sessions";
    /// Sessions ended for broken protocol.
    ClosedProtocol = "closed_protocol", "sessions";
    /// Sessions ended because the handshake took too long.
    ClosedHandshakeDeadline = "closed_handshake_deadline", "sessions";
    /// Sessions ended because a frame that had begun did not arrive whole in time.
    ClosedFrameDeadline = "closed_frame_deadline", "sessions";
    /// Sessions ended because they did not answer a ping in time.
    ClosedHeartbeatTimeout = "closed_heartbeat_timeout", "sessions";
    /// Sessions ended as slow consumers.
    ClosedSlowConsumer = "closed_slow_consumer", "sessions";
    /// Sessions ended because the server stopped.
    ClosedShutdown = "closed_shutdown", "sessions";
    /// Sessions ended by an error of the socket.
    ClosedTransport = "closed_transport", "sessions";
    /// HTTP requests answered without becoming a WebSocket.
    ClosedHttp = "closed_http", "sessions";
    /// Raw sessions ended because a request failed.
    ClosedBadRequest = "closed_bad_request", "sessions";
    /// Sessions ended because a newer connection of the same identity came.
    ClosedReplaced = "closed_replaced", "sessions";
    /// Sessions that the operator closed.
    ClosedByOperator = "closed_by_operator", "sessions";
    /// Turns of the shard's loop.
    Turns = "turns", "turns";
    /// Turns that took more than 100 ms, not counting the time asleep.
    TurnsSlow = "turns_slow", "turns";
    /// Completions of the data ring that the shard handled: receives, accepts, closes, timers.
    RingEvents = "ring_events", "events";
    /// Bytes taken in from the rings of other shards and of sources.
    MeshBytes = "mesh_bytes", "bytes";
    /// Topics and subscriptions visited for sessions that subscribe, or change or end a subscription.
    TopicsVisited = "topics_visited", "topics";
    /// Timers that expired.
    TimersExpired = "timers_expired", "timers";
    /// Requests of operators that the shard handled.
    ControlRequests = "control_requests", "requests";
    /// Times the shard went to sleep.
    Parks = "parks", "times";
    /// Time the shard was at work.
    BusyNs = "busy_ns", "nanoseconds";
    /// Time the shard slept or span: with nothing to do, or for its latency budget.
    IdleNs = "idle_ns", "nanoseconds";
}

impl Counter {
    /// Whether it also falls: what there is now, not what there was ever.
    pub fn is_gauge(self) -> bool {
        matches!(self, Counter::SessionsOpen | Counter::SessionsSubscribed)
    }
}

/// A shard's counters. One writer: the shard. Padded, so that no two shards share a cache line.
#[derive(Debug)]
#[repr(align(128))]
pub struct Counters {
    values: [AtomicU64; Counter::ALL.len()],
    turn_times: TurnTimes,
}

impl Default for Counters {
    fn default() -> Self {
        Counters { values: std::array::from_fn(|_| AtomicU64::new(0)), turn_times: TurnTimes::default() }
    }
}

impl Counters {
    /// Adds; only by the shard that owns them. A load and a store, no locked instruction.
    pub fn add(&self, counter: Counter, n: u64) {
        let value = &self.values[counter as usize];
        value.store(value.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Takes away from a gauge; only by the shard that owns them.
    pub fn subtract(&self, counter: Counter, n: u64) {
        self.add(counter, n.wrapping_neg());
    }

    /// The histogram of the shard's turns.
    pub fn turn_times(&self) -> &TurnTimes {
        &self.turn_times
    }

    /// Reads; from any thread.
    pub fn value(&self, counter: Counter) -> u64 {
        self.values[counter as usize].load(Relaxed)
    }
}
