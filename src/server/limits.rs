//! Bounds of the server around the core, and the assertions that relate them to the core's bounds.

pub use tickcast_core::limits::*;
pub use tickcast_sources::limits::*;

/// Uncompressed bytes of one file of the page, or of the SDK. For a client without gzip, its session buffers the file in this form.
pub const PAGE_FILE_BYTES_MAX: usize = 48 << 10;
/// Bytes of the response head of a page file.
pub const PAGE_HEAD_BYTES_MAX: usize = 1 << 10;
/// Compressed bytes of all files of the page.
pub const PAGE_GZIP_BYTES_MAX: usize = 64 << 10;
/// Compressed bytes of the JavaScript SDK at `/tickcast.js`.
pub const SDK_GZIP_BYTES_MAX: usize = 12 << 10;
/// Default time from SIGTERM to exit, in which accepted ticks are flushed.
pub const DRAIN_DEADLINE_MS_DEFAULT: u64 = 5_000;
/// Default of unsent bytes that a socket accepts: a few SENDs, so that the wire never waits for the next one.
pub const NOTSENT_LOWAT_BYTES_DEFAULT: u32 = 128 << 10;
/// Longest drain once a shard has failed: the others cannot hand over everything, and a restart is better than half a server.
pub const FAILED_DRAIN_MS_MAX: u64 = DRAIN_DEADLINE_MS_DEFAULT;
/// Time in which every shard must start. One that fails reports it at once, or after 2 s of retries if memory is short.
pub const SHARDS_START_MS_MAX: u64 = 30_000;
/// Time that shards may take to end after the drain's deadline: closing a ring takes up to 5 s. Later ones are stuck.
pub const SHARDS_LATE_MS_MAX: u64 = 6_000;
/// Time that sources may take to end. They notice a stop within 20 ms unless a system call blocks them.
pub const SOURCES_STOP_MS_MAX: u64 = 5_000;
/// Smallest send buffer of a socket, in bytes.
pub const SOCKET_SEND_BYTES_LOWEST: usize = 4 << 10;

/// Default bytes of the ring from one shard or source to one shard.
pub const MESH_RING_BYTES_DEFAULT: usize = 1 << 20;
/// Highest core number: kernels have up to 8,192 cores (CONFIG_NR_CPUS).
pub const CORE_HIGHEST: usize = 8_191;
/// Completions of the data ring that a shard handles in one turn.
pub const TURN_EVENTS: usize = 1_024;
/// Connections that a shard accepts in one turn: about 1 ms.
pub const TURN_ACCEPTS: usize = 64;
/// Bytes received that a shard handles in one turn: about 1 ms of published ticks.
pub const TURN_RECEIVED_BYTES: usize = 256 << 10;
/// Longest latency budget, milliseconds. A wait also ends once enough input has arrived, so no tighter bound is needed.
pub const LATENCY_BUDGET_MS_HIGHEST: u64 = 60_000;
/// Longest spin before a shard sleeps, microseconds. After a second without work, a wake-up of 20 us does not matter.
pub const SPIN_US_HIGHEST: u64 = 1_000_000;
/// SENDs of one turn before the shard checks its rings again: 512 short ones take about 2.5 ms.
pub const TURN_SENDS: usize = 512;
/// Bytes of these SENDs beyond which no further batch begins: 1 ms at 4 GB/s.
pub const TURN_SEND_BYTES: usize = 4 << 20;
/// Bytes of sealed records beyond which a batch of SENDs is complete. The kernel reads them at once, while they are cached.
pub const TLS_SEALED_BYTES: usize = 256 << 10;
/// TLS handshake steps of a shard in one turn, after the SENDs to open connections.
pub const TURN_TLS_HANDSHAKES: usize = 5;
/// Time in a turn after which no further handshake begins: one takes 80 us with a P-256 certificate, 620 us with RSA-2048.
pub const TURN_TLS_HANDSHAKES_NS: u64 = 400_000;
/// Bytes received for a handshake beyond which the connection is not read until they have been processed.
pub const TLS_HANDSHAKE_WAITING_BYTES: usize = 64 << 10;
/// Shortest sleep of an idle shard, even if a timer is due earlier, so that it does not spin within a timer granule.
pub const SLEEP_NS_LOWEST: u64 = 1_000_000;
/// Longest sleep of a shard with a pending timer, so that a miscalculated due time costs only a short delay.
pub const SLEEP_NS_HIGHEST: u64 = 1_000_000_000;

/// Submission queue entries of the data ring.
pub const DATA_RING_ENTRIES: u32 = 1_024;
/// Completion queue entries of the data ring: room for a burst of receives and failed SENDs.
pub const DATA_RING_COMPLETIONS: u32 = 8 * DATA_RING_ENTRIES;
/// Buffers in a shard's provided-buffer ring, which all its sockets receive into.
pub const RECEIVE_BUFFERS: u16 = 256;
/// Bytes of one receive buffer.
pub const RECEIVE_BUFFER_BYTES: usize = 4 << 10;
/// Connections that the kernel queues for a listener.
pub const LISTEN_BACKLOG: i32 = 4_096;
/// Bytes of the path of a Unix socket: what `sockaddr_un` holds besides the final 0.
pub const UNIX_PATH_BYTES_MAX: usize = 107;
/// Default permissions of the file of a Unix socket: its owner and group may connect.
pub const UNIX_MODE_DEFAULT: u32 = 0o660;
/// Listeners of one server. Each takes one descriptor per shard, part of [`DESCRIPTOR_RESERVE`].
pub const LISTENERS_MAX: usize = 16;
/// Certificates of one listener. Clients choose by name (SNI), and each handshake compares all of them.
pub const TLS_CERTIFICATES_MAX: usize = 256;
/// Longest file of certificates, or of a key.
pub const TLS_FILE_BYTES_MAX: u64 = 1 << 20;
/// Days before a certificate's expiry from which the server warns.
pub const CERTIFICATE_WARNING_DAYS: u64 = 21;
/// Pause before accepting again when the process is out of descriptors or memory, so that EMFILE does not spin.
pub const ACCEPT_RETRY_MS: u64 = 100;
/// Refused sockets kept open until the client has read the response, in the whole server; each shard gets an equal share, at
/// least one. Part of [`DESCRIPTOR_RESERVE`].
pub const REFUSED_LINGERING_MAX: usize = 32;
/// Longest time that a refused socket is kept open.
pub const REFUSED_LINGER_MS: u64 = 1_000;
/// Descriptors the process needs besides one per client: executors, rings, listeners, refused sockets, operators, log. With
/// more than [`SHARDS_IN_RESERVE`] shards it needs [`DESCRIPTORS_PER_SHARD`] more for each.
pub const DESCRIPTOR_RESERVE: u64 = 128;
/// Descriptors of one shard: its executor, ring and doorbell, and its sockets of two listeners (measured: 10).
pub const DESCRIPTORS_PER_SHARD: u64 = 10;
/// Shards for which [`DESCRIPTOR_RESERVE`] is enough.
pub const SHARDS_IN_RESERVE: u64 = 8;
/// Locked memory of one shard: the kernel charges its rings (measured: 484 KiB on Linux 6.18), and glommio 0.9 refuses to
/// start with a limit below 512 KiB.
pub const MEMLOCK_BYTES_PER_SHARD: u64 = 512 << 10;
/// Default of the maximum number of connections; lowered to what the descriptor limit allows.
pub const CLIENTS_MAX_DEFAULT: usize = 65_536;

/// Connections to the admin listener whose request head has not arrived. One more evicts the oldest. Part of
/// [`DESCRIPTOR_RESERVE`].
pub const ADMIN_HEADLESS_MAX: usize = 32;
/// Admin connections whose request involves shards; more are refused with 503. Part of [`DESCRIPTOR_RESERVE`].
pub const ADMIN_SERVED_MAX: usize = 32;
/// Admin requests that query shards at the same time. More wait, and are refused if that takes too long.
pub const ADMIN_QUERIES_MAX: usize = 16;
/// Requests queued in a shard's control channel. More are not sent, and the shard counts as not replying.
pub const CONTROL_REQUESTS_PER_SHARD: usize = 2 * ADMIN_QUERIES_MAX;
/// Control requests that a shard takes in one turn.
pub const TURN_CONTROL_REQUESTS: usize = 8;
/// Surveys of sessions or topics on a shard, including the one under way. It drops further ones without a reply.
pub const SURVEYS_PER_SHARD: usize = ADMIN_QUERIES_MAX;
/// Time that shards have to reply to an admin request.
pub const ADMIN_REPLY_MS: u64 = 1_000;
/// Time in which the head of an admin request must arrive.
pub const ADMIN_HEAD_MS: u64 = 2_000;
/// Longest lifetime of a connection to the admin listener, which carries one request.
pub const ADMIN_CONNECTION_MS: u64 = 10_000;
/// Bytes of the head of an admin request.
pub const ADMIN_HEAD_BYTES_MAX: usize = 16 << 10;
/// Default number of sessions or topics in a response.
pub const ADMIN_ROWS_DEFAULT: usize = 100;
/// Most sessions or topics in a response: about 300 bytes of JSON each.
pub const ADMIN_ROWS_MAX: usize = 1_000;
/// Sockets whose address and round-trip time a shard looks up in one turn: four system calls each.
pub const TURN_SOCKET_LOOKUPS: usize = 32;

/// Default refresh interval of `tickcast top`.
pub const TOP_INTERVAL_MS_DEFAULT: u64 = 1_000;
/// Shortest refresh interval of `tickcast top`; each poll makes four requests.
pub const TOP_INTERVAL_MS_LOWEST: u64 = 100;
/// Longest refresh interval of `tickcast top`.
pub const TOP_INTERVAL_MS_HIGHEST: u64 = 60_000;
/// Time that `tickcast top` waits for a response.
pub const TOP_RESPONSE_MS: u64 = 5_000;
/// Largest response that `tickcast top` reads, in bytes: [`ADMIN_ROWS_MAX`] topics whose names are all escapes, or 2,000 shards.
pub const TOP_RESPONSE_BYTES_MAX: usize = 8 << 20;
/// Topics, and also sessions, that `tickcast top --once` prints.
pub const TOP_ROWS_ONCE: usize = 20;

/// Log lines per second about peers, for each kind; the rest are counted.
pub const PEER_LINES_PER_SECOND: u32 = 10;
/// Bytes of log that wait for standard error, besides as many that are being written. Further lines are dropped and counted.
pub const LOG_QUEUE_BYTES_MAX: usize = 64 << 10;
/// Longest wait at exit for a log that nobody reads.
pub const LOG_FLUSH_MS_MAX: u64 = 500;

/// Shortest secret of HS256, bytes: as long as its hash (RFC 7518, section 3.2).
pub const SECRET_BYTES_LOWEST: usize = 32;
/// Shortest static token that `tickcast token` hashes, bytes: one that nobody can guess from its hash.
pub const STATIC_TOKEN_BYTES_LOWEST: usize = 24;
/// Bytes of a key file: an RSA key of 8,192 bits takes 7 KiB in PEM.
pub const KEY_FILE_BYTES_MAX: usize = 64 << 10;
/// Tables `[[auth.key]]` of a configuration.
pub const KEYS_MAX: usize = 32;
/// Keys tried for one token, one after the other: 100 us each for RSA and P-256.
pub const KEYS_TRIED_MAX: usize = 4;
/// Tables `[[auth.token]]`, and as many `[[auth.certificate]]`.
pub const AUTH_ENTRIES_MAX: usize = 4_096;
/// Tables `[[auth.operator]]`: a wrong token is compared with all of them.
pub const OPERATORS_MAX: usize = 256;
/// Default tolerance between the clocks of an issuer and of this server, milliseconds.
pub const TOKEN_LEEWAY_MS_DEFAULT: u64 = 10_000;
/// Largest such tolerance: "a few minutes" (RFC 7519, section 4.1.4).
pub const TOKEN_LEEWAY_MS_HIGHEST: u64 = 300_000;
/// Default interval at which a JWKS is fetched, milliseconds.
pub const JWKS_REFRESH_MS_DEFAULT: u64 = 600_000;
/// Shortest such interval.
pub const JWKS_REFRESH_MS_LOWEST: u64 = 10_000;
/// Longest such interval: a withdrawn key stays valid for that long.
pub const JWKS_REFRESH_MS_HIGHEST: u64 = 86_400_000;
/// Wait after a failed fetch, milliseconds; it doubles with each further failure, up to the usual interval.
pub const JWKS_RETRY_MS: u64 = 5_000;
/// Shortest time between two fetches that unknown key ids cause, milliseconds.
pub const JWKS_REQUESTED_MS_LOWEST: u64 = 10_000;
/// Time for a whole fetch: less than the deadline of a handshake, which waits for it.
pub const JWKS_FETCH_MS: u64 = 3_000;
/// Bytes of a JWKS.
pub const JWKS_BYTES_MAX: usize = 256 << 10;
/// Keys of a JWKS.
pub const JWKS_KEYS_MAX: usize = 64;
/// Tokens that wait for a fetch, on the whole server.
pub const JWKS_TOKENS_WAITING_MAX: usize = 1 << 10;
/// Threads that verify credentials: 10,000 to 30,000 a second each.
pub const VERIFIERS: usize = 2;
/// Niceness of those threads, so that a flood of tokens does not delay the shards they share cores with.
pub const VERIFIER_NICENESS: i32 = 10;
/// Credentials that wait for a verifier, on the whole server: 100 bytes each and the token. More are refused as busy.
pub const VERIFICATIONS_WAITING_MAX: usize = 1 << 12;
/// Revocations in memory: about 200 bytes each.
pub const REVOCATIONS_MAX: usize = 1 << 16;
/// Longest time that a revocation is kept, milliseconds. Also the default if nothing limits how long tokens are valid.
pub const REVOCATION_MS_HIGHEST: u64 = 366 * 86_400_000;

const _: () = assert!(JWKS_FETCH_MS < HANDSHAKE_DEADLINE_MS_DEFAULT);
const _: () = assert!(JWKS_RETRY_MS <= JWKS_REFRESH_MS_LOWEST);
const _: () = assert!(REFUSED_LINGERING_MAX as u64 <= DESCRIPTOR_RESERVE / 2);
const _: () = assert!(
    (REFUSED_LINGERING_MAX + ADMIN_HEADLESS_MAX + ADMIN_SERVED_MAX) as u64 <= DESCRIPTOR_RESERVE * 3 / 4
);
const _: () = assert!(ADMIN_SERVED_MAX >= 2 * ADMIN_QUERIES_MAX, "some wait while others query the shards");
const _: () = assert!(DESCRIPTORS_PER_SHARD * SHARDS_IN_RESERVE < DESCRIPTOR_RESERVE);
const _: () = assert!(ADMIN_HEAD_MS < ADMIN_CONNECTION_MS && ADMIN_REPLY_MS < ADMIN_CONNECTION_MS);
// /v1/topics queries the shards twice, and each query may wait for its turn as long as for the replies.
const _: () = assert!(TOP_RESPONSE_MS > 4 * ADMIN_REPLY_MS && TOP_RESPONSE_MS < ADMIN_CONNECTION_MS);
const _: () = assert!(TOP_RESPONSE_BYTES_MAX > ADMIN_ROWS_MAX * (6 * TOPIC_BYTES_MAX + 512));
const _: () = assert!(MESH_RING_BYTES_DEFAULT.is_multiple_of(FRAME_ALIGN));
const _: () =
    assert!(NOTSENT_LOWAT_BYTES_DEFAULT as usize >= 2 * SEND_BYTES_MAX, "the wire never waits for a SEND");
const _: () = assert!(SENDS_PER_SUBMIT <= DATA_RING_ENTRIES as usize);
const _: () = assert!(RECEIVE_BUFFERS.is_power_of_two());
