//! Fixed bounds of the core, defaults of the configured ones, and the assertions that relate them.

use crate::metrics::turn_times::SLOW_NS;
pub use tickcast_proto::limits::*;

/// Maximum shards in a server: the shards interested in a topic are the bits of one `u128`.
pub const SHARDS_MAX: usize = 128;

/// Maximum tokens in a topic name or pattern: each is at least one byte long, with a dot between two.
pub const NAME_TOKENS_MAX: usize = TOPIC_BYTES_MAX.div_ceil(2);

/// Maximum tenants, including the default tenant and those removed since the server started.
pub const TENANTS_MAX: usize = 1_024;
/// Leases into which a tenant's quota is divided, per shard: enough that shards have little unused.
pub const LEASES_PER_SHARD: u64 = 16;
/// Maximum lease of connections, subscriptions or topics.
pub const LEASE_UNITS_MAX: u64 = 64;
/// Maximum lease of history, in bytes.
pub const LEASE_BYTES_MAX: u64 = 1 << 20;
/// How long a shard keeps its lease of a tenant's rate.
pub const RATE_WINDOW_NS: u64 = 100_000_000;

/// Maximum length of a message that `/echo` returns, as WebSocket conformance suites require.
pub const ECHO_BYTES_MAX: usize = 16 << 20;

/// Default time from accept to the end of the handshake (native HELLO, or the HTTP upgrade).
pub const HANDSHAKE_DEADLINE_MS_DEFAULT: u64 = 5_000;
/// Default time before a token's expiry at which the server warns its client, milliseconds.
pub const TOKEN_WARNING_MS_DEFAULT: u64 = 30_000;
/// Default time that a session stays open after its token has expired, milliseconds: a refresh may be on its way.
pub const TOKEN_GRACE_MS_DEFAULT: u64 = 5_000;
/// Default number of credentials per shard that may await their verdicts: a tenth of a second's work of one verifier, which takes
/// 30 to 100 us for each.
pub const CREDENTIALS_WAITING_MAX_DEFAULT: usize = 1 << 10;
/// Burst of new tokens that a session may give, by REFRESH or by a hello once it is open: each costs a verification. A legitimate
/// client gives one for each token that expires.
pub const NEW_TOKENS_BURST: u32 = 5;
/// New tokens per second that a session may give after its burst.
pub const NEW_TOKENS_PER_S: u32 = 1;
/// Verdicts that a shard handles in one turn: as many as the connections that it accepts.
pub const TURN_VERDICTS: usize = 64;
/// Maximum patterns of each kind, allowed or denied, in a set of rules. Comparing one with a topic takes about 50 ns.
pub const PERMISSION_PATTERNS_MAX: usize = 256;
/// Decisions on publishing that a shard caches. Each takes 56 bytes plus the topic's name.
pub const PUBLISH_DECISIONS_MAX: usize = 8 << 10;
/// Revocations that a shard remembers for verdicts still in transit.
pub const REVOCATIONS_RECENT_MAX: usize = 1 << 10;
/// Maximum time between two checks of a token's expiry, nanoseconds: expiry depends on the system clock, which may be set.
pub const EXPIRY_LOOK_NS: u64 = 3_600_000_000_000;
/// Units of control work to compare a subscription with a session's new permissions: at most 512 patterns, 50 ns each.
pub const REVIEW_UNITS: usize = 32;
/// Default time that an HTTP connection may be idle between two requests. Longer than load balancers keep theirs (60 s), so that
/// they do not send a request on a connection that is being closed.
pub const HTTP_IDLE_MS_DEFAULT: u64 = 75_000;
/// Default time from a frame's or message's first byte to its last: 256 KiB at 70 kbit/s.
pub const FRAME_DEADLINE_MS_DEFAULT: u64 = 30_000;
/// Default idle time after which a peer is pinged: below the 30 s after which home routers and proxies drop
/// connections.
pub const PING_INTERVAL_MS_DEFAULT: u64 = 25_000;
/// Default time within which a pinged peer must send anything at all.
pub const PING_TIMEOUT_MS_DEFAULT: u64 = 10_000;
/// Lowest ping interval and timeout: a busy machine delays answers by more than a shorter one allows.
pub const PING_MS_LOWEST: u64 = 100;
/// Highest ping interval and timeout: sessions store idle time in 32 bits of milliseconds.
pub const PING_MS_HIGHEST: u64 = 86_400_000;
/// Most sessions of a shard that began by long-polling of Engine.IO: they have slots of their own.
pub const POLLING_SESSIONS_MAX: u32 = 16_384;
/// Most of them for one address.
pub const POLLING_SESSIONS_PER_SOURCE_MAX: u32 = 1_024;
/// Longest time in Engine.IO's open packet, milliseconds, which stands for heartbeats that are off. They add two such times to a timer, which
/// in JavaScript takes at most 2^31 - 1.
pub const ENGINE_IO_HEARTBEAT_MS_MAX: u32 = 1_000_000_000;
/// Times per ping interval at which idle sessions are checked, so that many share one wake-up of the shard.
pub const PING_LOOKS_PER_INTERVAL: u64 = 256;
/// The CLOSING code for a connection that a limit refuses.
pub const CLOSE_REFUSED: u16 = 3504;
/// Time over which a full socket makes its session slow, milliseconds: longer than a client's pause, shorter than most feeds take
/// to fill the backlog.
pub const FULLNESS_MS: u32 = 2_000;
/// Time that one SEND must be incomplete for its session to be slow while the shard is saturated, milliseconds.
pub const STUCK_MS: u32 = 1_000;
/// If a tick lost by a session whose socket has room had waited this long, the shard is overloaded, milliseconds: a burst is sent
/// within a few turns.
pub const OVERLOAD_WAIT_MS: u64 = 100;
/// A shard is no longer overloaded after this time without a session that loses ticks, milliseconds.
pub const OVERLOAD_QUIET_MS: u64 = 5_000;
/// Time a closing session has to receive its last bytes and answer before the socket is closed regardless.
pub const LINGER_DEADLINE_MS: u64 = 1_000;
/// Maximum timers of closed sessions that a shard keeps beyond those its open sessions may have: 32 bytes each.
pub const TIMERS_GONE_MAX: usize = 4 << 10;
/// Default window over which clients reconnect when the server stops: each gets a different delay within it.
pub const RECONNECT_SPREAD_MS_DEFAULT: u32 = 5_000;

/// Default bytes of unfinished frames and messages of all clients together; divided over the shards.
pub const UNFINISHED_BYTES_MAX_DEFAULT: usize = 64 << 20;
/// Default bound on the memory of the patterns that sessions subscribe to, over all shards: room for 80,000 patterns of 255
/// bytes.
pub const PATTERNS_BYTES_MAX_DEFAULT: usize = 64 << 20;
/// Default bound on the memory of the positions that sessions have given but not joined yet, over all shards: room for the
/// positions of 13,000 clients that reconnect at once, 100 topics each.
pub const POSITIONS_BYTES_MAX_DEFAULT: usize = 256 << 20;
/// Default bound on the memory of the memberships that sessions have for wildcards, over all shards: room for 1,000 clients with a
/// rate limit on 2,000 topics each.
pub const MEMBERSHIPS_BYTES_MAX_DEFAULT: usize = 256 << 20;
/// Bytes of a membership: 57 to 114 in its session's map, and 4 in its topic's list.
pub const MEMBERSHIP_BYTES: usize = 120;
/// Memberships beyond its subscriptions that a session may have however few the others leave: enough for the wildcards of a modest
/// client. At most 960 bytes for each session that is admitted, beyond `--memberships-memory` if all others have used that up.
pub const MEMBERSHIPS_OWN_MIN: usize = 8;
/// Longest wildcard that homes always store individually, bytes.
pub const LONG_WILDCARD_BYTES: usize = 48;
/// Maximum bytes of longer wildcards that the homes store for each shard. Every home stores them all, so beyond this the shard
/// receives all topics instead: a long wildcard beside 2,000 others of 64 bytes costs some ticks that nobody on its shard
/// receives, but no memory.
pub const LONG_WILDCARDS_BYTES: usize = 128 << 10;
/// Minimum number of messages of maximum length that fit into a shard's share of [`UNFINISHED_BYTES_MAX_DEFAULT`]: one that has
/// arrived, whose buffer may be twice as long, and one that is growing.
pub const UNFINISHED_MESSAGES_LOWEST: usize = 4;
/// Unfinished messages to check for the oldest when one grows: 26 us if each misses the cache (100 ns).
pub const UNFINISHED_LOOKS_MAX: usize = 256;
/// Entries of ended sessions in a shard's list of unfinished messages before it is swept: 24 bytes each.
pub const UNFINISHED_GONE_MAX: usize = 1 << 10;
/// Bytes of an input buffer that may stay unused while a short rest of a frame waits in it.
pub const INPUT_SPARE_BYTES: usize = 16 << 10;

/// Default number of subscriptions (patterns) per session.
pub const SUBSCRIPTIONS_PER_SESSION_MAX_DEFAULT: usize = 1_024;
/// Burst that a rate limit allows after a pause, in nanoseconds of the rate.
pub const BURST_NS: u64 = 1_000_000_000;
/// Highest rate limit, per second; above it a nanosecond is too coarse.
pub const RATE_HIGHEST: u32 = 10_000_000;
/// Default number of patterns per second that a session may subscribe to or change after its burst. A client that replaces each
/// of its 1,024 subscriptions every second is slower. At up to 10 us a pattern, one such session takes one per cent of a shard's
/// time.
pub const SUBSCRIBE_RATE_DEFAULT: u32 = 1_000;
/// Default number of patterns per second for which a session may request history, and the same for last values. A dashboard that
/// polls 500 widgets every second instead of staying subscribed is slower.
pub const HISTORY_RATE_DEFAULT: u32 = 500;
/// Default subscribe rate for all sessions of one source, on each shard. With the burst, 10,000 clients behind one address may
/// reconnect at once with 100 subscriptions each.
pub const SUBSCRIBE_RATE_PER_SOURCE_DEFAULT: u32 = 100_000;
/// Default number of patterns per second for which the sessions of one source may request history, and the same for last values.
pub const HISTORY_RATE_PER_SOURCE_DEFAULT: u32 = 50_000;
/// Burst of a session's subscribe requests, as a multiple of the subscriptions that it may hold: it may subscribe to all of them
/// and change all of them, and do both again after unsubscribing.
pub const SUBSCRIPTIONS_BURST: u64 = 4;
/// Burst of a source's subscribe requests, in seconds of its rate: all its clients may reconnect at once.
pub const SOURCE_BURST_S: u64 = 10;
/// Refused requests per second that a session may have, and their burst. Beyond that it is not read from for a while: a refusal
/// costs as much as serving a request.
pub const REFUSALS_RATE: u32 = 1_000;
/// How long the server then stops reading from the session, milliseconds.
pub const THROTTLE_MS: u64 = 100;
/// Maximum sources with an account on one shard, about 120 bytes each. An account exists only while a bucket is not full.
pub const SOURCE_ACCOUNTS_MAX: usize = 16 << 10;
/// Accounts checked when one is added, to drop those whose buckets are full: 2 us if each misses the cache (100 ns).
pub const ACCOUNT_LOOKS: usize = 16;
/// Accounts with full buckets that a shard drops in one turn: 0.1 ms if each misses the cache.
pub const TURN_ACCOUNTS_DROPPED: usize = 1_024;
/// Default maximum of `*` tokens in a pattern. Topics rarely have more than ten levels.
pub const PATTERN_WILDCARDS_MAX_DEFAULT: usize = 16;
/// Default average bytes of text per pattern that a session may hold: half of the longest.
pub const PATTERN_BYTES_DEFAULT: usize = 128;
/// Default number of topics on the whole server; each home shard sequences its share.
pub const TOPICS_MAX_DEFAULT: usize = 65_536;
/// Default number of existing topics that one session may have created: half of the table, so that no client can fill it.
pub const TOPICS_PER_SESSION_MAX_DEFAULT: u32 = 32_768;
/// Default number of existing topics that the sessions of one source may have created.
pub const TOPICS_PER_SOURCE_MAX_DEFAULT: u32 = 32_768;
/// Default number of topics per second that one session, or the sessions of one source, may create after their burst. Once all of
/// their topics are gone, they may create a whole burst again. At 5.5 us a topic, one such client takes less than one per cent of
/// a shard's time.
pub const NEW_TOPICS_RATE_DEFAULT: u32 = 1_000;

/// Default size of one wire format's egress log on one shard. A session that falls further behind loses its position in the log.
pub const EGRESS_LOG_BYTES_DEFAULT: usize = 16 << 20;
/// Minimum size of an egress log: one chunk of history must not overwrite frames that were fresh before it.
pub const EGRESS_LOG_BYTES_LOWEST: usize = 4 * HISTORY_CHUNK_BYTES;
/// Default bytes that may wait for a session before it is closed as a slow consumer.
pub const OUTBOX_BYTES_MAX_DEFAULT: usize = 8 << 20;
/// Maximum log ranges that may wait for a session: 24 bytes each, 1.5 MiB at the bound.
pub const OUTBOX_RANGES_MAX: usize = 64 << 10;

/// Default bytes that may wait for a session before frames (conflate, drop, paced) are evicted from its outbox.
pub const BEHIND_BYTES_DEFAULT: usize = 256 << 10;
/// Default time a socket may take for one SEND before frames are evicted.
pub const BEHIND_MS_DEFAULT: u64 = 500;
/// Default time a socket may take for one SEND before a session with `disconnect` subscriptions is closed: 32 KiB at
/// 9 kbit/s.
pub const STALL_DEADLINE_MS_DEFAULT: u64 = 30_000;
/// Default number of keys per topic whose last value is kept.
pub const KEYS_PER_TOPIC_MAX_DEFAULT: usize = 1_024;
/// Default bytes of the last values of all topics together; divided over the shards. 20,000 topics of 10 KB take 200 MiB.
pub const LAST_VALUES_BYTES_MAX_DEFAULT: usize = 256 << 20;
/// Topics to check for eviction when one needs room for its last values: 6 us if each misses the cache (100 ns).
pub const LAST_VALUES_LOOKS_MAX: usize = 64;
/// Maximum bytes of topic names in one session's saved positions.
pub const RESUME_BYTES_MAX: usize = 1 << 20;
/// Changes of an event stream's places that a shard remembers, if an id cannot hold the places: 32 bytes each. A client that
/// reconnects may have missed as many.
pub const PLACE_CHANGES_MAX: usize = 4 << 10;
/// How long a shard keeps places after their stream has ended, milliseconds: as long as the history that they refer to, by
/// default.
pub const RESUME_WINDOW_MS: u64 = HISTORY_AGE_MS_DEFAULT;
/// How much earlier than its stream began a client gets ticks when it resumes, in topics of which it has none, milliseconds. Covers
/// ticks that were on their way to its shard, and clocks of nodes that differ.
pub const RESUME_SLACK_MS: u64 = 2_000;
/// The same if this server has said when the subscription became live, milliseconds. The time of a tick is that at which its home's
/// turn began, so one that arrives after this moment may be older: by that turn, by two that take what waits in the ring and in the
/// stage before it ([`MESH_WAITING_BYTES`], [`MESH_STAGE_BYTES`]), and by the one of the subscriber's shard. Four slow turns, and one to
/// spare.
pub const LIVE_SLACK_MS: u64 = 500;
/// Failures of which the answer to a publish of lines says the reason; all are counted.
pub const SUMMARY_FAILURES_MAX: usize = 16;
/// Bytes of topics and ticks after which a page of an HTTP answer ends: as much as may wait for a session that does not read.
pub const HTTP_PAGE_BYTES: usize = REPLY_BYTES_MAX;
/// Most patterns in one request for last values over HTTP: each topic found is compared with those before its own.
pub const CALL_PATTERNS_MAX: usize = 64;
/// Pieces of topics that a shard requests in one turn for HTTP requests.
pub const TURN_CALL_PIECES: usize = 8;
/// Units of delivery for a piece, at its home and at the shard that requested it: up to [`TURN_SURVEYED`] topics visited, or 32
/// KiB copied and encoded. Not measured: estimated as for a survey, and for a chunk of history in JSON.
pub const CALL_UNITS: usize = 1 << 10;
/// Default number of ticks in a topic's history.
pub const HISTORY_TICKS_DEFAULT: usize = 256;
/// Default bytes of a topic's history.
pub const HISTORY_BYTES_DEFAULT: usize = 64 << 10;
/// Default age of the oldest tick in a topic's history.
pub const HISTORY_AGE_MS_DEFAULT: u64 = 60_000;
/// Default bytes of all topics' histories together; divided over the shards.
pub const HISTORY_BYTES_MAX_DEFAULT: usize = 256 << 20;
/// Maximum logs per home for which it remembers what it has not kept: 16 bytes each.
pub const LOGS_UNKEPT_MAX: usize = 256;
/// Places in topics of logs that a shard keeps until the topics appear: 160 bytes plus the topic's name each, taken from the
/// memory for positions.
pub const AWAITED_POSITIONS_MAX: usize = 64 << 10;
/// Maximum of these per session: 16 sessions with as many fill the table.
pub const AWAITED_POSITIONS_PER_SESSION_MAX: usize = 4 << 10;
/// Maximum sequences that a shard remembers of one topic fed by a log, to count the ticks in a range: 8 bytes each.
pub const LOG_SEQUENCES_PER_TOPIC_MAX: usize = 64 << 10;
/// Maximum of these over all topics on a shard. The tables grow by doubling, and may take twice as much.
pub const LOG_SEQUENCES_MAX: usize = 1 << 20;
/// Holes in the log of one topic that a shard remembers separately: 16 bytes each. Older ones are merged into one.
pub const LOG_HOLES_PER_TOPIC_MAX: usize = 8;
/// Reads of one log that a shard has under way, for places older than its history. Beyond that, a place is not recovered.
pub const LOG_READS_MAX: usize = 16 << 10;
/// Requests in the ring from a shard to the reader of a log, and answers in the ring back.
pub const LOG_READ_RING: usize = 64;
/// Requests that the reader of a log serves at once, each with a chunk of history; the others wait in the shards.
pub const LOG_READS_ACTIVE_MAX: usize = 256;
/// Bytes of the ticks that the reader of a log has read last and keeps for requests that follow: 96 and the topic's name each, and
/// the payload.
pub const LOG_READ_WINDOW_BYTES: usize = 16 << 20;
/// Messages that the reader of a log reads before it turns to places elsewhere in the log, if there are any.
pub const LOG_READ_PASS_MESSAGES: u64 = 64 << 10;
/// Default time from a request to the reader of a log to its answer, nanoseconds: an engine that restarts is back by then.
pub const LOG_READ_TIMEOUT_NS_DEFAULT: u64 = 10_000_000_000;
/// Requests to readers of logs that are given up in one turn.
pub const TURN_LOG_READS_EXPIRED: usize = 256;
/// Patterns that a shard reports to a source that subscribes on demand. With more, the source subscribes to all of its topics.
pub const DEMAND_PATTERNS_MAX: usize = 4 << 10;
/// Changes in the ring from a shard to a source that subscribes on demand, and as many that wait for room.
pub const DEMAND_RING: usize = 256;
/// Subscriptions of sources that have ended since a home last looked at all topics. With more, the lives of all topics end that get
/// their ticks from such a subscription.
pub const LAPSES_MAX: usize = 16 << 10;
/// Units of ending the lives of topics in one turn: a topic visited, and 32 more for each that ends.
pub const TURN_LAPSE_UNITS: usize = 8 << 10;
/// Maximum chunk of history that a home sends to a shard, unless a single tick is longer.
pub const HISTORY_CHUNK_BYTES: usize = 32 << 10;
/// Outbox bytes reserved for a chunk: more than its native frames, because JSON is longer. Also the smallest configurable outbox:
/// one chunk is requested at a time if there is no room for two.
pub const HISTORY_CHUNK_OUTBOX_BYTES: usize = HISTORY_CHUNK_BYTES / 2 * 3;
/// Maximum chunks of history that a session has requested at once.
pub const HISTORY_CHUNKS_IN_FLIGHT_MAX: u32 = 2;
/// Chunks of history that a shard requests in one turn.
pub const TURN_HISTORY_CHUNKS: usize = 256;
/// Units of delivery that a shard spends in one turn on the history that it requests of itself as a home: 16 whole chunks, about
/// 0.5 ms. The last one may exceed it.
pub const TURN_HISTORY_UNITS: usize = TURN_DELIVERY_UNITS / 4;
/// Bytes of history that a home copies and encodes for one unit of delivery.
pub const HISTORY_BYTES_PER_UNIT: usize = 128;

/// Maximum bytes of replies (acknowledgements, pongs, errors) waiting for a session, including answers to its publishes that
/// other shards owe it. Beyond that, the session's input pauses: the server does not read from a peer that does not read.
pub const REPLY_BYTES_MAX: usize = 64 << 10;

/// Units of delivery for the answer to a publish: a reply of about 100 bytes, at its home and at its session's shard.
pub const ANSWER_UNITS: usize = 4;

/// Maximum bytes of the answer to a publish in any format: in JSON, each byte of the topic's name may take two.
pub const fn answer_bytes_max(topic_bytes: usize) -> usize {
    128 + 2 * topic_bytes
}

/// Default time for which a home remembers message ids, nanoseconds: JetStream's default, and longer than a client takes to reconnect.
pub const MESSAGE_ID_WINDOW_NS_DEFAULT: u64 = 120_000_000_000;
/// Lowest value of it that remembers ids, nanoseconds: clients publish with the same id again for a minute, and the tick has a way to
/// its home.
pub const MESSAGE_ID_WINDOW_NS_LOWEST: u64 = 90_000_000_000;
/// Highest configurable value of that time, nanoseconds.
pub const MESSAGE_ID_WINDOW_NS_HIGHEST: u64 = 86_400_000_000_000;
/// Default bytes of the message ids of all homes together: 320,000 ids.
pub const MESSAGE_IDS_BYTES_MAX_DEFAULT: usize = 64 << 20;
/// Smallest configurable value of these bytes.
pub const MESSAGE_IDS_BYTES_MAX_LOWEST: usize = 64 << 10;
/// Bytes of a remembered message id: an entry of 72 bytes, twice as much while the table has just grown, its place in the list of free
/// entries, and 21 bytes of the index at a load of at least 7/16.
pub const MESSAGE_ID_ENTRY_BYTES: usize = 208;
/// Bytes of a publisher that has message ids: 25 at a load of at least 7/16, and 16 in a tree whose nodes are at least half full.
pub const MESSAGE_ID_ACCOUNT_BYTES: usize = 96;
/// Expired message ids that a home forgets with each new one: more than one, so that their number falls.
pub const MESSAGE_IDS_EXPIRED_EACH: usize = 2;
/// Expired message ids that a home forgets in one turn besides: about 0.1 ms if each misses the caches.
pub const TURN_MESSAGE_IDS: usize = 256;

/// Maximum ticks of one shard that wait for one sink's engine. Beyond that, publishes are refused, so that a sink that does not
/// answer makes no other session wait. At 40 bytes each, 640 KiB. A session has far fewer, because the room for their answers
/// counts as replies ([`REPLY_BYTES_MAX`]).
pub const SINK_IN_FLIGHT_MAX: usize = 16 << 10;
/// Maximum bytes of ticks staged for the ring to one sink; beyond that, publishes are refused. The ring itself may also be full.
pub const SINK_STAGE_BYTES_MAX: usize = 1 << 20;
/// Ticks not confirmed in time that a shard answers in one turn, for each sink.
pub const TURN_SINK_EXPIRED: usize = 1_024;
/// Topics whose sinks a shard caches. Each takes 40 bytes plus the topic's name.
pub const ROUTE_DECISIONS_MAX: usize = 8 << 10;
/// Maximum routes. A topic that is not cached is compared with each, in about 50 ns.
pub const ROUTES_MAX: usize = 256;
/// Maximum sinks: each has a thread, and two rings to every shard.
pub const SINKS_MAX: usize = 16;
/// Default time after which a publish to a sink's topic is reported as unconfirmed by the engine, milliseconds.
pub const SINK_ACK_TIMEOUT_MS_DEFAULT: u64 = 5_000;
/// Lowest configurable value of that time, milliseconds.
pub const SINK_ACK_TIMEOUT_MS_LOWEST: u64 = 10;
/// Highest configurable value of that time, milliseconds.
pub const SINK_ACK_TIMEOUT_MS_HIGHEST: u64 = 600_000;

/// Maximum bytes handed to the kernel in one SEND, and therefore pinned by a slow session's parked SEND.
///
/// A longer SEND finds its socket full more often, and parked bytes are copied. Measured on loopback with 10 KB ticks
/// to 100 sockets at saturation, 3 interleaved runs each: 4.3 GB/s with 32 KiB, 3.8 with 64 KiB, 1.9 with 20 KiB (one
/// tick per SEND).
pub const SEND_BYTES_MAX: usize = 32 << 10;
/// Log ranges at least this long are sent straight from the log; shorter ones are gathered.
pub const SEND_DIRECT_BYTES: usize = 16 << 10;
/// SENDs submitted with one `io_uring_enter`: beyond 64 to 256, larger batches gain nothing.
pub const SENDS_PER_SUBMIT: usize = 128;
/// Scratch bytes in which a batch of SENDs gathers scattered frames.
pub const GATHER_BYTES: usize = 1 << 20;
/// Bytes that wait in a mesh ring before its producer keeps frames staged: what the other shard handles in one turn. Otherwise
/// ticks would wait behind those of a publisher that floods both shards: this lowers p99 from 37 to 12 ms at the same tick rate
/// (bench/abuse, `flood`).
pub const MESH_WAITING_BYTES: usize = TURN_RING_BYTES;
/// Connections in transit from one shard to another: about 80 bytes each, plus what the client has sent. Further ones wait on the
/// shard that accepted them.
pub const HANDOVERS_PER_LANE: usize = 64;
/// Bytes staged for a full mesh ring before the shard stops accepting work that would add to them.
pub const MESH_STAGE_BYTES: usize = 64 << 10;
/// Bytes of mesh frames a shard handles from one ring in one turn.
pub const TURN_RING_BYTES: usize = 128 << 10;
/// Bytes of announcements of lost ticks that a session which has sent FIN still gets at once when its time is up.
pub const CLOSE_NOTICES_BYTES: usize = SEND_BYTES_MAX;
/// Half-closed sessions checked in one turn for whether they have their answers: 26 us if each misses the caches.
pub const TURN_HALF_CLOSED: usize = 256;
/// Timers a shard handles in one turn.
pub const TURN_TIMERS: usize = 1_024;
/// Topics whose histories are trimmed in one turn.
pub const TURN_TRIM_TOPICS: usize = 4_096;
/// Topics that a home checks for idleness in one turn; forgetting one counts as 32 more. About 0.2 ms.
pub const TURN_IDLE_UNITS: usize = 8 << 10;
/// Units of forgetting topics in one turn: sessions that leave them, and topics then dropped.
pub const TURN_FORGET_UNITS: usize = 1 << 10;
/// Forgotten topics that a shard drops at once, with one scan of the waiting frames for all of them, over turns if need be.
pub const TURN_TOPICS_DROPPED: usize = 256;
/// A topic is forgotten late by at most this fraction of its idle time.
pub const IDLE_ROUNDS: u64 = 8;
/// Maximum time between two searches for idle topics, nanoseconds.
pub const IDLE_ROUND_NS_HIGHEST: u64 = 60_000_000_000;
/// Minimum configurable `topic_idle`, nanoseconds: a round over all topics takes a few turns.
pub const TOPIC_IDLE_NS_LOWEST: u64 = 100_000_000;
/// Topics that a home compares with their feeds' marks in one turn, once a feed has fallen silent or is back.
pub const TURN_MARK_UNITS: usize = 4 << 10;
/// Units of telling sessions in one turn which topics are stale: a session told, or a few listed.
pub const TURN_STALE_UNITS: usize = 2 << 10;
/// Stale topics compared with one new subscription to a wildcard, before others have their turn.
pub const STALE_LOOKS_AT_ONCE: usize = 256;
/// Sessions visited in one turn to tell them the state of a source.
pub const TURN_SOURCE_LOOKS: usize = 1 << 10;
/// Default of `topic_idle`, nanoseconds.
pub const TOPIC_IDLE_NS_DEFAULT: u64 = 3_600_000_000_000;
/// Members of topics that open which leave the topics' last lives or join, in one turn: about 1.5 ms. Opening one topic may take
/// [`NEW_TOPIC_UNITS`] of them beyond that.
pub const TURN_OPENING_UNITS: usize = 2 << 10;
/// Units of delivery that count as one such member: a tick queued to a session takes about a tenth of the time of a join.
pub const DELIVERIES_PER_OPENING_UNIT: usize = 8;
/// Units of these that the topics of one owner may use before the next owner's turn.
pub const OPENING_QUANTUM_UNITS: usize = TURN_OPENING_UNITS / 8;
/// Comparisons of new patterns with topics that are forgotten while they open, in a turn: about 0.2 ms.
pub const TURN_ENDING_COMPARISONS: usize = 4 << 10;
/// Bytes of ticks that wait on a shard for one topic with many members to open. Beyond that, the topic loses its oldest ticks.
pub const OPENING_BYTES_MAX: usize = 256 << 10;
/// Bytes of ticks that wait on a shard for all topics to open. Each owner may use as many of these as are left for the others:
/// half of them, if it is the only one.
pub const OPENINGS_BYTES_MAX: usize = 4 * OPENING_BYTES_MAX;
/// Smallest message that is compressed by default, bytes: shorter ones seldom shrink.
pub const DEFLATE_BYTES_MIN_DEFAULT: usize = 128;
/// Bytes that a shard compresses in one turn for its egress logs, and again for the messages of batches: 1 to 3 ms each. What comes
/// after that is sent plain.
pub const TURN_DEFLATE_BYTES: usize = 128 << 10;
/// What compressing a message costs besides its bytes, as bytes.
pub const DEFLATE_MESSAGE_BYTES: usize = 512;
/// Compressed messages of batches that a shard remembers for its next sessions, each with the frames in it. Sessions with the same
/// subscriptions need one.
pub const DEFLATED_BATCHES_MAX: usize = 8;
/// Compressions of batches that a shard may do in advance of their use by a second session: each use earns one, and so does each
/// submission of SENDs.
pub const DEFLATE_CREDITS_MAX: u32 = 4;
/// Inflated bytes that count as one unit of delivery.
pub const INFLATED_BYTES_PER_UNIT: usize = 128;
/// Bytes of waiting input that a shard processes for its sessions in one turn.
pub const TURN_INPUT_BYTES: usize = 128 << 10;
/// Bytes of input that one session may have processed before the next session's turn: some hundred ticks.
pub const INPUT_QUANTUM_BYTES: u32 = 16 << 10;
/// Units of control work (subscriptions that go live, change or end) that a shard does for its sessions in one turn. A unit is
/// one topic or membership visited; joining or leaving a topic takes 32 more. 0.2 ms with 1,000 topics, which fit into the caches
/// (bench/micro/control.rs); 2.4 ms with 20,000, where each visit misses them (bench/abuse, `overlapping`).
pub const TURN_CONTROL_UNITS: usize = 8 << 10;
/// Units of control work that one session may use before the next session's turn.
pub const CONTROL_QUANTUM_UNITS: u32 = 2 << 10;
/// Maximum wildcard subscriptions that walk over topics in turn. If there were more, small requests would wait longer for theirs.
pub const JOINS_ACTIVE_MAX: usize = 16;
/// Units after which a walk gives its place up to one that waits: a thousand topics joined. Sixteen such walks take 64 turns.
pub const JOIN_PLACE_UNITS: usize = 16 * CONTROL_QUANTUM_UNITS as usize;
/// Maximum walks under way, with those that have given their places up: the first tick of a topic after them checks each. Each takes
/// about 100 bytes, and at most 12 for each topic that it has joined early. When there are so many, walks keep their places until
/// they are done.
pub const JOINS_MAX: usize = 4 * JOINS_ACTIVE_MAX;
/// Topics of a wildcard that a session joins at once, if that fits into its quantum. If more match, it walks over the topics.
pub const JOINED_AT_ONCE_MAX: usize = 64;
/// Topics opened last that a shard remembers for searches under way. A search that more have overtaken counts as one that finds
/// many.
pub const RECENT_TOPICS_MAX: usize = 256;
/// Units of delivery that a turn spends on ticks from other shards, and again on the requests that it handles: about 1.5 ms each.
/// A unit is a tick queued to a session, or four sessions of a wildcard visited. One tick may exceed it, by the number of its
/// subscribers.
pub const TURN_DELIVERY_UNITS: usize = 16 << 10;
/// Minimum units of these for the kind of request preferred in a turn.
pub const TURN_DELIVERY_UNITS_PREFERRED: usize = 4 << 10;
/// Waiting frames checked per unit when those of forgotten topics are dropped. Not measured: a check is a few comparisons of
/// adjacent memory, a unit takes 0.3 us.
pub const FRAMES_PER_UNIT: usize = 16;
/// Units of delivery for a topic that is new to a shard: 5.5 us, half of it page faults (bench/abuse, `crowd`).
pub const NEW_TOPIC_UNITS: usize = 64;
/// Units of delivery for a request about a pattern that is new to its shard, at the shard and at each home: up to 10 us for a
/// pattern of 255 bytes (bench/abuse, `patterns`).
pub const PATTERN_REQUEST_UNITS: usize = 128;
/// Units of delivery for a subscription to a pattern that the shard knows.
pub const KNOWN_PATTERN_UNITS: usize = 4;
/// Units of counting the topics matched by wildcards in one turn: 0.3 ms if each misses the caches.
pub const TURN_COUNT_UNITS: usize = 1 << 10;
/// Units of work in one turn for ended sessions that leave their topics.
pub const TURN_DEPARTURE_UNITS: usize = 1 << 10;
/// Units of work that a home's interest walk does in one turn: one per topic, and one per node of the pattern trie that a topic
/// is compared with. About 0.15 ms (bench/micro/control.rs).
pub const TURN_INTEREST_UNITS: usize = 4 << 10;
/// Units of the walk for opening a topic to a shard or closing it, for each other home, which may do the same. So all homes
/// together open at most 128 topics to a shard in a turn, half of what it can handle ([`NEW_TOPIC_UNITS`]): otherwise ticks would
/// wait behind the rest in the rings.
pub const INTEREST_CHANGE_UNITS: usize = 32;
/// Changed patterns that an interest walk remembers, to skip the topics that match none of them.
pub const INTEREST_RECENT_MAX: usize = 8;
/// Bytes of history copied into smaller buffers in one turn.
pub const TURN_TRIM_BYTES: usize = 256 << 10;

/// Timer resolution: a timer fires at most this late. A power of two, so that dividing by it is a shift.
pub const TIMER_GRANULE_NS: u64 = 1 << 22;
/// Levels of the timer wheel, 64 slots each: timers up to 19.5 h away have their own slot.
pub const TIMER_LEVELS: usize = 4;
/// Timers that one call moves down a level of the timer wheel: 3 us if they were inserted in sequence, about 60 us if each misses
/// the cache.
pub const TIMER_MOVES_PER_POP: usize = 1_024;
/// Highest configurable number of connections: the kernel's bound on a ring's registered files
/// (io_uring/rsrc.h, IORING_MAX_FIXED_FILES).
pub const CLIENTS_MAX_HIGHEST: usize = 1 << 20;
/// Sessions or topics that a shard visits in one turn for an operator: an estimated 0.2 ms if each misses the cache
/// (100 ns).
pub const TURN_SURVEYED: usize = 2_048;
/// Slots whose sessions a turn compares with the principals of a new configuration file. Each may end its session.
pub const TURN_LISTED_REVIEWED: usize = 512;

/// Shortest latency resolved, microseconds.
pub const LATENCY_US_LOWEST: u64 = 1;
/// Longest latency resolved, microseconds; longer ones count as this.
pub const LATENCY_US_HIGHEST: u64 = 60_000_000;
/// Significant digits of a latency: two take 20 KiB per histogram, three 140 KiB.
pub const LATENCY_DIGITS: u8 = 2;

const _: () = assert!(FRAME_BYTES_MAX_HIGHEST >= ECHO_BYTES_MAX);
const _: () = assert!(LIVE_SLACK_MS * 1_000_000 >= 4 * SLOW_NS && LIVE_SLACK_MS < RESUME_SLACK_MS);
const _: () =
    assert!(TURN_INTEREST_UNITS / INTEREST_CHANGE_UNITS * NEW_TOPIC_UNITS <= TURN_DELIVERY_UNITS / 2);
const _: () = assert!(OUTBOX_BYTES_MAX_DEFAULT <= EGRESS_LOG_BYTES_DEFAULT / 2);
// Recovered history must not trigger eviction.
const _: () = assert!(
    SEND_BYTES_MAX + HISTORY_CHUNKS_IN_FLIGHT_MAX as usize * HISTORY_CHUNK_BYTES < BEHIND_BYTES_DEFAULT
);
const _: () = assert!(BEHIND_BYTES_DEFAULT <= OUTBOX_BYTES_MAX_DEFAULT);
const _: () = assert!(GATHER_BYTES >= SEND_BYTES_MAX);
const _: () = assert!(THROTTLE_MS * 1_000_000 > TIMER_GRANULE_NS);
const _: () = assert!(SEND_DIRECT_BYTES <= SEND_BYTES_MAX);
const _: () =
    assert!(TIMER_GRANULE_NS.is_power_of_two() && TIMER_GRANULE_NS < PING_MS_LOWEST * 1_000_000 / 4);
const _: () = assert!(PING_MS_HIGHEST < u32::MAX as u64 / 4);
