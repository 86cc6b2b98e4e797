//! Bounds of the server around the core, and the assertions that relate them to the core's.

pub use tickcast_core::limits::*;

/// Bytes of one file of the page, as it is served to a client that cannot read gzip: it waits with its session.
pub const PAGE_FILE_BYTES_MAX: usize = 48 << 10;
/// Bytes of the head that goes before it.
pub const PAGE_HEAD_BYTES_MAX: usize = 1 << 10;
/// Bytes of all files of the page, compressed.
pub const PAGE_GZIP_BYTES_MAX: usize = 40 << 10;
/// Time from SIGTERM to exit, default: what was accepted is flushed within it.
pub const DRAIN_DEADLINE_MS_DEFAULT: u64 = 5_000;
/// Bytes not yet on the wire that a socket takes, default: a few SENDs, so that the wire never waits for the next one.
pub const NOTSENT_LOWAT_BYTES_DEFAULT: u32 = 128 << 10;
/// Lowest bytes that the kernel may be asked to keep for a socket to send.
pub const SOCKET_SEND_BYTES_LOWEST: usize = 4 << 10;

/// One direction of one (shard, shard) or (ingest, shard) pair, default bytes.
pub const MESH_RING_BYTES_DEFAULT: usize = 1 << 20;
/// Highest number of a core that a list may name.
pub const CORE_HIGHEST: usize = 4_096;
/// Completions of the data ring a shard handles in one turn.
pub const TURN_EVENTS: usize = 1_024;
/// Longest latency budget, microseconds: what waits for a turn is bounded by the rings, not by time.
pub const LATENCY_BUDGET_US_HIGHEST: u64 = 100_000;
/// Longest spin before a shard sleeps, microseconds: beyond a second of silence nobody waits for 20 us.
pub const SPIN_US_HIGHEST: u64 = 1_000_000;
/// SENDs of one turn before the shard looks at its rings again: 1,024 sends are about 5 ms.
pub const TURN_SENDS: usize = 1_024;
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
/// Bytes of the path of a Unix socket: what `sockaddr_un` holds besides the final 0.
pub const UNIX_PATH_BYTES_MAX: usize = 107;
/// Permissions of the file of a Unix socket, default: its owner and group connect.
pub const UNIX_MODE_DEFAULT: u32 = 0o660;
/// Listeners of one server: each takes a descriptor a shard and counts into [`DESCRIPTOR_RESERVE`].
pub const LISTENERS_MAX: usize = 16;
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
/// Descriptors the process needs besides one for each client: executors, rings, listeners, refused
/// sockets, operators, log.
pub const DESCRIPTOR_RESERVE: u64 = 128;
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

/// Lines of the log a second about what peers do, of each kind; the rest is counted.
pub const PEER_LINES_PER_SECOND: u32 = 10;

/// Longest line of a replay file, in bytes.
pub const REPLAY_LINE_BYTES_MAX: usize = 1 << 20;
/// Samples in one tick of the ECG, at most: a second at 4 kHz.
pub const ECG_BATCH_HIGHEST: usize = 4_096;
/// Smallest payload the simulator can make: the intended send time, a topic, a counter and the JSON around them.
pub const SIM_SIZE_LOWEST: usize = 80;

const _: () = assert!(REFUSED_LINGERING_MAX as u64 <= DESCRIPTOR_RESERVE / 2);
const _: () = assert!((REFUSED_LINGERING_MAX + ADMIN_CONNECTIONS_MAX) as u64 <= DESCRIPTOR_RESERVE * 3 / 4);
const _: () = assert!(ADMIN_HEAD_MS < ADMIN_CONNECTION_MS && ADMIN_ANSWER_MS < ADMIN_CONNECTION_MS);
// Topics take two questions, and each may wait for its turn as long as for its answers.
const _: () = assert!(TOP_ANSWER_MS > 4 * ADMIN_ANSWER_MS && TOP_ANSWER_MS < ADMIN_CONNECTION_MS);
const _: () = assert!(TOP_ANSWER_BYTES_MAX > ADMIN_ROWS_MAX * (6 * TOPIC_BYTES_MAX + 512));
const _: () = assert!(MESH_RING_BYTES_DEFAULT.is_multiple_of(FRAME_ALIGN));
const _: () =
    assert!(NOTSENT_LOWAT_BYTES_DEFAULT as usize >= 2 * SEND_BYTES_MAX, "the wire waits for no SEND");
const _: () = assert!(SENDS_PER_SUBMIT <= DATA_RING_ENTRIES as usize);
const _: () = assert!(RECEIVE_BUFFERS.is_power_of_two());
