//! Every bound that is not configuration, and the assertions that relate them.
//!
//! Bounds an operator may change have their default and range here and their value in [`crate::config`].

/// Bytes that every native frame's length and every mesh ring's capacity is a multiple of, so that a frame
/// received into a buffer aligned to it stays aligned.
pub const FRAME_ALIGN: usize = 16;

/// Bytes of the native frame header.
pub const FRAME_HEADER_BYTES: usize = 32;

/// Longest topic name and longest subscription pattern, in bytes.
pub const TOPIC_BYTES_MAX: usize = 255;

/// Longest identity of a client, in bytes.
pub const IDENTITY_BYTES_MAX: usize = 255;

/// Shards a server may have: a topic's interested shards are one `u128`.
pub const SHARDS_MAX: usize = 128;

/// Largest frame (native) or message (WebSocket) a peer may send, its default and its range.
pub const FRAME_BYTES_MAX_DEFAULT: usize = 256 << 10;
/// Lower end of the range of `frame_bytes_max`: a publish of the longest topic name and some payload must fit.
pub const FRAME_BYTES_MAX_LOWEST: usize = 1 << 10;
/// Upper end of the range of `frame_bytes_max`.
pub const FRAME_BYTES_MAX_HIGHEST: usize = 16 << 20;

/// What JSON puts around a payload at most: a topic's name with every byte escaped, two numbers, the keys.
pub const JSON_ENVELOPE_BYTES: usize = 4 << 10;

/// Largest message `/echo` returns: what the conformance suites for WebSocket ask for.
pub const ECHO_BYTES_MAX: usize = 16 << 20;

/// HTTP request head (request line and headers), default bound in bytes.
pub const HTTP_HEAD_BYTES_MAX_DEFAULT: usize = 8 << 10;
/// Header lines in an HTTP request head.
pub const HTTP_HEADERS_MAX: usize = 64;

/// Bytes of one file of the page, as it is served to a client that cannot read gzip: it waits with its session.
pub const PAGE_FILE_BYTES_MAX: usize = 48 << 10;
/// Bytes of the head that goes before it.
pub const PAGE_HEAD_BYTES_MAX: usize = 1 << 10;
/// Bytes of all files of the page, compressed.
pub const PAGE_GZIP_BYTES_MAX: usize = 40 << 10;

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
/// Time from SIGTERM to exit, default: what was accepted is flushed within it.
pub const DRAIN_DEADLINE_MS_DEFAULT: u64 = 5_000;
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

/// One encoding's egress log on one shard, default bytes. A session that falls further behind than this has lost
/// its place in it.
pub const EGRESS_LOG_BYTES_DEFAULT: usize = 16 << 20;
/// Lowest bytes of an egress log: what one piece of history adds must not lap what was fresh before it.
pub const EGRESS_LOG_BYTES_LOWEST: usize = 4 * HISTORY_PIECE_BYTES;
/// Bytes a session may have waiting in the egress logs before it counts as a slow consumer, default.
pub const OUTBOX_BYTES_MAX_DEFAULT: usize = 8 << 20;
/// Ranges of the egress logs a session may have waiting: 24 bytes each, 1.5 MiB for a session at the bound.
pub const OUTBOX_RANGES_MAX: usize = 64 << 10;

/// Slowest pace a subscriber may ask for, ticks a second of each topic.
pub const MAX_RATE_LOWEST: f64 = 0.001;
/// Fastest pace a subscriber may ask for: past it, the timers' granularity decides.
pub const MAX_RATE_HIGHEST: f64 = 1_000.0;
/// Places in topics that RESUME frames of one session may name before their SUBSCRIBE.
pub const RESUME_POSITIONS_MAX: usize = 16_384;

/// Bytes waiting for a session before what yields (conflate, drop, a pace) is taken out of its outbox, default.
pub const BEHIND_BYTES_DEFAULT: usize = 256 << 10;
/// Time a socket may take for one SEND before what yields is taken out, default.
pub const BEHIND_MS_DEFAULT: u64 = 500;
/// Time a socket may take for one SEND before a session with subscriptions that do not yield is closed, default: 32 KiB at
/// 9 kbit/s.
pub const STALL_DEADLINE_MS_DEFAULT: u64 = 30_000;
/// Bytes not yet on the wire that a socket takes, default: a few SENDs, so that the wire never waits for the next one.
pub const NOTSENT_LOWAT_BYTES_DEFAULT: u32 = 128 << 10;
/// Lowest bytes that the kernel may be asked to keep for a socket to send.
pub const SOCKET_SEND_BYTES_LOWEST: usize = 4 << 10;
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
pub const HISTORY_PIECE_BYTES: usize = 32 << 10;
/// Pieces of history that a session waits for at once.
pub const PIECES_IN_FLIGHT_MAX: u32 = 2;
/// Pieces of history that a shard asks for in one turn.
pub const TURN_PIECES: usize = 256;

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

/// One direction of one (shard, shard) or (ingest, shard) pair, default bytes.
pub const MESH_RING_BYTES_DEFAULT: usize = 1 << 20;
/// Bytes staged for a mesh ring that is full before the shard stops taking in what would add to them.
pub const MESH_STAGE_BYTES: usize = 256 << 10;
/// Bytes of mesh frames a shard handles from one ring in one turn.
pub const TURN_RING_BYTES: usize = 256 << 10;
/// Timers a shard handles in one turn.
pub const TURN_TIMERS: usize = 1_024;
/// Completions of the data ring a shard handles in one turn.
pub const TURN_EVENTS: usize = 1_024;
/// Topics an interest scan looks at in one turn.
pub const TURN_SCAN_TOPICS: usize = 4_096;
/// Walks over a home's topics that may wait before it takes no more requests.
pub const SCANS_MAX: usize = 1_024;
/// Longest latency budget, microseconds: what waits for a turn is bounded by the rings, not by time.
pub const LATENCY_BUDGET_US_HIGHEST: u64 = 100_000;
/// Longest spin before a shard sleeps, microseconds: beyond a second of silence nobody waits for 20 us.
pub const SPIN_US_HIGHEST: u64 = 1_000_000;
/// Bytes of histories that are copied into smaller buffers in one turn.
pub const TURN_TRIM_BYTES: usize = 256 << 10;
/// SENDs of one turn before the shard looks at its rings again: 1,024 sends are about 5 ms.
pub const TURN_SENDS: usize = 1_024;

/// Nanoseconds by which a timer may be late: a power of two, so that reckoning with it is a shift.
pub const TIMER_GRANULE_NS: u64 = 1 << 22;
/// Levels of the timer wheel, 64 slots each: entries up to 19.5 h away have a slot of their own.
pub const TIMER_LEVELS: usize = 4;
/// Entries that one call moves down in the timer wheel: 3 us if they were inserted in a row, some 60 us if each misses
/// the cache.
pub const TIMER_MOVES_PER_POP: usize = 1_024;
/// A shard with nothing to do sleeps at least so long, even if a timer is due before: no spin about a granule.
pub const SLEEP_NS_LOWEST: u64 = 1_000_000;
/// A shard with any timer pending sleeps at most so long, lest a wrong reckoning be more than a short delay.
pub const SLEEP_NS_HIGHEST: u64 = 1_000_000_000;

/// Submission queue entries of the data ring.
pub const DATA_RING_ENTRIES: u32 = 1_024;
/// Completion queue entries of the data ring: a burst of receives and failed sends.
pub const DATA_RING_COMPLETIONS: u32 = 8 * DATA_RING_ENTRIES;
/// Buffers in the provided-buffer ring that all sockets of a shard receive into.
pub const RECEIVE_BUFFERS: u16 = 256;
/// Bytes of one of them.
pub const RECEIVE_BUFFER_BYTES: usize = 4 << 10;
/// Accepted sockets the kernel keeps for a listener.
pub const LISTEN_BACKLOG: i32 = 4_096;
/// Pause before accepting again when the process is out of descriptors or memory: no spin at EMFILE.
pub const ACCEPT_RETRY_MS: u64 = 100;
/// Connections on their way from one shard to another, of one pair and direction: some 80 bytes each, and what the
/// client has sent. Past it they wait with the shard that accepted them.
pub const HANDOVERS_PER_LANE: usize = 64;
/// Sockets that were refused with an answer and are kept until it was read, of the whole server; each shard has its
/// share, at least one. They count into [`DESCRIPTOR_RESERVE`].
pub const REFUSED_LINGERING_MAX: usize = 32;
/// How long each is kept at most.
pub const REFUSED_LINGER_MS: u64 = 1_000;
/// When to try again, as a refused HTTP client is told.
pub const REFUSED_RETRY_AFTER_S: u64 = 1;
/// Descriptors the process needs besides one for each client: executors, rings, listeners, refused
/// sockets, operators, log.
pub const DESCRIPTOR_RESERVE: u64 = 128;
/// Most connections a server may be asked to serve: the kernel's bound on a ring's registered files
/// (io_uring/rsrc.h, IORING_MAX_FIXED_FILES).
pub const CLIENTS_MAX_HIGHEST: usize = 1 << 20;
/// Most connections served at once unless configured; lowered to what the descriptor limit allows.
pub const CLIENTS_MAX_DEFAULT: usize = 65_536;

/// Connections to the admin listener at once; more wait until the kernel's backlog. They count into
/// [`DESCRIPTOR_RESERVE`].
pub const ADMIN_CONNECTIONS_MAX: usize = 64;
/// Requests of operators that shards are being asked for at once; more wait, and are refused when that takes too long.
pub const ADMIN_INQUIRIES_MAX: usize = 16;
/// Questions that may wait for a shard; more are not asked, and it counts as not answering.
pub const QUESTIONS_PER_SHARD: usize = 2 * ADMIN_INQUIRIES_MAX;
/// Questions that a shard takes up in one turn.
pub const TURN_QUESTIONS: usize = 8;
/// Surveys of sessions or topics that wait at a shard, the one under way included; one more is not answered.
pub const SURVEYS_PER_SHARD: usize = ADMIN_INQUIRIES_MAX;
/// Time that shards have to answer an operator.
pub const ADMIN_ANSWER_MS: u64 = 1_000;
/// Time that an operator's request head may take to arrive.
pub const ADMIN_HEAD_MS: u64 = 2_000;
/// Life of a connection to the admin listener: one request and its answer.
pub const ADMIN_CONNECTION_MS: u64 = 10_000;
/// Bytes of an operator's request head.
pub const ADMIN_HEAD_BYTES_MAX: usize = 16 << 10;
/// Sessions or topics in one answer, unless asked for otherwise.
pub const ADMIN_ROWS_DEFAULT: usize = 100;
/// Sessions or topics in one answer, at most: 300 bytes of JSON each.
pub const ADMIN_ROWS_MAX: usize = 1_000;
/// Sessions or topics that a shard looks at in one turn for an operator: some 0.2 ms by an estimate, if each misses the cache (100 ns).
pub const TURN_SURVEYED: usize = 2_048;
/// Sockets whose address and round trip a shard asks the kernel for in one turn: four system calls each.
pub const TURN_SOCKETS_ASKED: usize = 32;

/// Time between two looks of `tickcast top`, unless asked for otherwise.
pub const TOP_INTERVAL_MS_DEFAULT: u64 = 1_000;
/// Shortest time between two looks of `tickcast top`: each takes four requests.
pub const TOP_INTERVAL_MS_LOWEST: u64 = 100;
/// Longest time between two looks of `tickcast top`.
pub const TOP_INTERVAL_MS_HIGHEST: u64 = 60_000;
/// Time that `tickcast top` waits for an answer.
pub const TOP_ANSWER_MS: u64 = 5_000;
/// Bytes of an answer that `tickcast top` takes: [`ADMIN_ROWS_MAX`] topics whose names are escapes, or 2,000 shards.
pub const TOP_ANSWER_BYTES_MAX: usize = 8 << 20;
/// Topics, and sessions, that `tickcast top --once` prints.
pub const TOP_ROWS_ONCE: usize = 20;

/// Shortest latency that is told apart, microseconds.
pub const LATENCY_US_LOWEST: u64 = 1;
/// Longest latency that is told apart, microseconds; what takes longer counts as this.
pub const LATENCY_US_HIGHEST: u64 = 60_000_000;
/// Significant digits of a latency: with two a histogram takes 20 KiB, with three 140.
pub const LATENCY_DIGITS: u8 = 2;

/// Lines of the log a second about what peers do, of each kind; the rest is counted.
pub const PEER_LINES_PER_SECOND: u32 = 10;

/// Longest line of a replay file, in bytes.
pub const REPLAY_LINE_BYTES_MAX: usize = 1 << 20;
/// Samples in one tick of the ECG, at most: a second at 4 kHz.
pub const ECG_BATCH_HIGHEST: usize = 4_096;
/// Smallest payload the simulator can make: the intended send time, a topic, a counter and the JSON around them.
pub const SIM_SIZE_LOWEST: usize = 80;

const _: () = assert!(FRAME_HEADER_BYTES.is_multiple_of(FRAME_ALIGN));
const _: () = assert!(FRAME_BYTES_MAX_LOWEST > FRAME_HEADER_BYTES + TOPIC_BYTES_MAX + 256);
const _: () = assert!(FRAME_BYTES_MAX_LOWEST > FRAME_HEADER_BYTES + IDENTITY_BYTES_MAX + 512);
const _: () = assert!(REFUSED_LINGERING_MAX as u64 <= DESCRIPTOR_RESERVE / 2);
const _: () = assert!((REFUSED_LINGERING_MAX + ADMIN_CONNECTIONS_MAX) as u64 <= DESCRIPTOR_RESERVE * 3 / 4);
const _: () = assert!(ADMIN_HEAD_MS < ADMIN_CONNECTION_MS && ADMIN_ANSWER_MS < ADMIN_CONNECTION_MS);
// Topics take two questions, and each may wait for its turn as long as for its answers.
const _: () = assert!(TOP_ANSWER_MS > 4 * ADMIN_ANSWER_MS && TOP_ANSWER_MS < ADMIN_CONNECTION_MS);
const _: () = assert!(TOP_ANSWER_BYTES_MAX > ADMIN_ROWS_MAX * (6 * TOPIC_BYTES_MAX + 512));
const _: () = assert!(JSON_ENVELOPE_BYTES > 6 * TOPIC_BYTES_MAX + 256);
const _: () = assert!(FRAME_BYTES_MAX_HIGHEST >= ECHO_BYTES_MAX);
const _: () = assert!(MESH_RING_BYTES_DEFAULT.is_multiple_of(FRAME_ALIGN));
const _: () = assert!(OUTBOX_BYTES_MAX_DEFAULT <= EGRESS_LOG_BYTES_DEFAULT / 2);
// What comes back in pieces must not be what makes a session yield.
const _: () =
    assert!(SEND_BYTES_MAX + PIECES_IN_FLIGHT_MAX as usize * HISTORY_PIECE_BYTES < BEHIND_BYTES_DEFAULT);
const _: () = assert!(BEHIND_BYTES_DEFAULT <= OUTBOX_BYTES_MAX_DEFAULT);
const _: () = assert!(GATHER_BYTES >= SEND_BYTES_MAX);
const _: () =
    assert!(NOTSENT_LOWAT_BYTES_DEFAULT as usize >= 2 * SEND_BYTES_MAX, "the wire waits for no SEND");
const _: () = assert!(SEND_DIRECT_BYTES <= SEND_BYTES_MAX);
const _: () = assert!(SENDS_PER_SUBMIT <= DATA_RING_ENTRIES as usize);
const _: () = assert!(RECEIVE_BUFFERS.is_power_of_two());
const _: () =
    assert!(TIMER_GRANULE_NS.is_power_of_two() && TIMER_GRANULE_NS < PING_MS_LOWEST * 1_000_000 / 4);
const _: () = assert!(PING_MS_HIGHEST < u32::MAX as u64 / 4);
