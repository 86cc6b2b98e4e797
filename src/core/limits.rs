//! Bounds of the core that are not configuration, the defaults of those that are, and the assertions that relate them.

pub use tickcast_proto::limits::*;

/// Shards a server may have: a topic's interested shards are one `u128`.
pub const SHARDS_MAX: usize = 128;

/// Largest message `/echo` returns: what the conformance suites for WebSocket ask for.
pub const ECHO_BYTES_MAX: usize = 16 << 20;

/// Time from accept to the end of the handshake (native HELLO, or the HTTP upgrade), default.
pub const HANDSHAKE_DEADLINE_MS_DEFAULT: u64 = 5_000;
/// Time a frame or message that has begun may take to arrive whole, default: 256 KiB at 70 kbit/s.
pub const FRAME_DEADLINE_MS_DEFAULT: u64 = 30_000;
/// Silence of a peer after which it is pinged, default: below the 30 s after which home routers and proxies forget.
pub const PING_INTERVAL_MS_DEFAULT: u64 = 25_000;
/// Time a pinged peer has to send anything at all, default.
pub const PING_TIMEOUT_MS_DEFAULT: u64 = 10_000;
/// Lower end of the range of both: a busy machine delays an answer by more than less.
pub const PING_MS_LOWEST: u64 = 100;
/// Upper end of the range of both: sessions reckon silence in 32 bits of milliseconds.
pub const PING_MS_HIGHEST: u64 = 86_400_000;
/// Moments within a ping interval at which silent sessions are looked at, so that many share one wake of the shard.
pub const PING_LOOKS_PER_INTERVAL: u64 = 256;
/// Time a closing session gets to take its last bytes and answer, before the socket is closed regardless.
pub const LINGER_DEADLINE_MS: u64 = 1_000;
/// Deadlines of sessions that are gone which a shard keeps at most, besides as many as the others may have: 32 bytes each.
pub const TIMERS_GONE_MAX: usize = 4 << 10;
/// Longest time that clients are asked to wait before they come back when the server stops, default: each is told
/// another time up to it.
pub const RECONNECT_SPREAD_MS_DEFAULT: u32 = 5_000;

/// Subscriptions (patterns) one session may hold, default.
pub const SUBSCRIPTIONS_PER_SESSION_MAX_DEFAULT: usize = 1_024;
/// What a rate allows at once after a pause: so many nanoseconds' worth.
pub const BURST_NS: u64 = 1_000_000_000;
/// Highest rate that can be asked for, a second; above it a nanosecond is too coarse.
pub const RATE_HIGHEST: u32 = 10_000_000;
/// Topics a home shard sequences: the server's `topics_max` is divided over the shards. Default of the whole.
pub const TOPICS_MAX_DEFAULT: usize = 65_536;

/// One wire format's egress log on one shard, default bytes. A session that falls further behind than this has lost
/// its place in it.
pub const EGRESS_LOG_BYTES_DEFAULT: usize = 16 << 20;
/// Lowest bytes of an egress log: what one piece of history adds must not lap what was fresh before it.
pub const EGRESS_LOG_BYTES_LOWEST: usize = 4 * HISTORY_CHUNK_BYTES;
/// Bytes a session may have waiting in the egress logs before it counts as a slow consumer, default.
pub const OUTBOX_BYTES_MAX_DEFAULT: usize = 8 << 20;
/// Ranges of the egress logs a session may have waiting: 24 bytes each, 1.5 MiB for a session at the bound.
pub const OUTBOX_RANGES_MAX: usize = 64 << 10;

/// Bytes waiting for a session before what yields (conflate, drop, a pace) is taken out of its outbox, default.
pub const BEHIND_BYTES_DEFAULT: usize = 256 << 10;
/// Time a socket may take for one SEND before what yields is taken out, default.
pub const BEHIND_MS_DEFAULT: u64 = 500;
/// Time a socket may take for one SEND before a session with subscriptions that do not yield is closed, default: 32 KiB at
/// 9 kbit/s.
pub const STALL_DEADLINE_MS_DEFAULT: u64 = 30_000;
/// Keys of one topic whose newest tick is kept, default.
pub const KEYS_PER_TOPIC_MAX_DEFAULT: usize = 1_024;
/// Bytes of the newest ticks by key of all topics together, default; divided over the shards.
pub const KEYS_BYTES_MAX_DEFAULT: usize = 64 << 20;
/// Bytes of names that the places of one session may have.
pub const RESUME_BYTES_MAX: usize = 1 << 20;
/// Recent ticks that a topic keeps, default.
pub const HISTORY_TICKS_DEFAULT: usize = 256;
/// Bytes of recent ticks that a topic keeps, default.
pub const HISTORY_BYTES_DEFAULT: usize = 64 << 10;
/// Age of the oldest tick that a topic keeps, default.
pub const HISTORY_AGE_MS_DEFAULT: u64 = 60_000;
/// Bytes of recent ticks that all topics keep together, default; divided over the shards.
pub const HISTORY_BYTES_MAX_DEFAULT: usize = 256 << 20;
/// History that a home sends to a shard in one piece, unless a single tick is longer.
pub const HISTORY_CHUNK_BYTES: usize = 32 << 10;
/// Pieces of history that a session waits for at once.
pub const HISTORY_CHUNKS_IN_FLIGHT_MAX: u32 = 2;
/// Pieces of history that a shard asks for in one turn.
pub const TURN_HISTORY_CHUNKS: usize = 256;

/// Replies (acknowledgements, pongs, errors) a session may have waiting. Past it the session's input waits, so a
/// peer that does not read its replies is not read from either.
pub const REPLY_BYTES_MAX: usize = 64 << 10;

/// Bytes handed to the kernel in one SEND. Also what a slow session's parked SEND pins at most.
///
/// A longer one finds its socket full more often, and what is parked is copied: 10 KB ticks to 100 sockets, as many as go,
/// were 4.3 GB/s in SENDs of 32 KiB, 3.8 of 64 KiB, 1.9 of 20 KiB (a tick a SEND), each 3 runs beside the others on
/// loopback.
pub const SEND_BYTES_MAX: usize = 32 << 10;
/// A range of the egress log at least this long leaves straight from the log; shorter ones are gathered.
pub const SEND_DIRECT_BYTES: usize = 16 << 10;
/// SENDs submitted with one `io_uring_enter`: past 64 to 256 nothing more is gained.
pub const SENDS_PER_SUBMIT: usize = 128;
/// Scratch in which a batch of SENDs gathers scattered frames.
pub const GATHER_BYTES: usize = 1 << 20;
/// Bytes staged for a mesh ring that is full before the shard stops taking in what would add to them.
pub const MESH_STAGE_BYTES: usize = 256 << 10;
/// Bytes of mesh frames a shard handles from one ring in one turn.
pub const TURN_RING_BYTES: usize = 256 << 10;
/// Timers a shard handles in one turn.
pub const TURN_TIMERS: usize = 1_024;
/// Topics an interest scan looks at in one turn.
pub const TURN_SCAN_TOPICS: usize = 4_096;
/// Walks over a home's topics that may wait before it takes no more requests.
pub const SCANS_MAX: usize = 1_024;
/// Bytes of histories that are copied into smaller buffers in one turn.
pub const TURN_TRIM_BYTES: usize = 256 << 10;

/// Nanoseconds by which a timer may be late: a power of two, so that reckoning with it is a shift.
pub const TIMER_GRANULE_NS: u64 = 1 << 22;
/// Levels of the timer wheel, 64 slots each: entries up to 19.5 h away have a slot of their own.
pub const TIMER_LEVELS: usize = 4;
/// Entries that one call moves down in the timer wheel: 3 us if they were inserted in a row, some 60 us if each misses
/// the cache.
pub const TIMER_MOVES_PER_POP: usize = 1_024;
/// Most connections a server may be asked to serve: the kernel's bound on a ring's registered files
/// (io_uring/rsrc.h, IORING_MAX_FIXED_FILES).
pub const CLIENTS_MAX_HIGHEST: usize = 1 << 20;
/// Sessions or topics that a shard looks at in one turn for an operator: some 0.2 ms by an estimate, if each misses the cache (100 ns).
pub const TURN_SURVEYED: usize = 2_048;

/// Shortest latency that is told apart, microseconds.
pub const LATENCY_US_LOWEST: u64 = 1;
/// Longest latency that is told apart, microseconds; what takes longer counts as this.
pub const LATENCY_US_HIGHEST: u64 = 60_000_000;
/// Significant digits of a latency: with two a histogram takes 20 KiB, with three 140.
pub const LATENCY_DIGITS: u8 = 2;

const _: () = assert!(FRAME_BYTES_MAX_HIGHEST >= ECHO_BYTES_MAX);
const _: () = assert!(OUTBOX_BYTES_MAX_DEFAULT <= EGRESS_LOG_BYTES_DEFAULT / 2);
// What comes back in pieces must not be what makes a session yield.
const _: () = assert!(
    SEND_BYTES_MAX + HISTORY_CHUNKS_IN_FLIGHT_MAX as usize * HISTORY_CHUNK_BYTES < BEHIND_BYTES_DEFAULT
);
const _: () = assert!(BEHIND_BYTES_DEFAULT <= OUTBOX_BYTES_MAX_DEFAULT);
const _: () = assert!(GATHER_BYTES >= SEND_BYTES_MAX);
const _: () = assert!(SEND_DIRECT_BYTES <= SEND_BYTES_MAX);
const _: () =
    assert!(TIMER_GRANULE_NS.is_power_of_two() && TIMER_GRANULE_NS < PING_MS_LOWEST * 1_000_000 / 4);
const _: () = assert!(PING_MS_HIGHEST < u32::MAX as u64 / 4);
