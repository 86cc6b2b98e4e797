//! Bounds of the sources.

/// Subjects, streams or channels that one source reads.
pub const SOURCE_SUBJECTS_MAX: usize = 64;
/// Partitions that one Kafka source reads.
pub const SOURCE_PARTITIONS_MAX: usize = 4_096;
/// Topics that one Kafka source with positions reads: it looks at their ids several times a second.
pub const SOURCE_LOG_TOPICS_MAX: usize = 256;
/// Bytes of a message from an outgoing WebSocket connection.
pub const SOURCE_MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Addresses of one engine.
pub const SOURCE_SERVERS_MAX: usize = 16;
/// Ids of published messages that a failover group remembers, and messages that one of its standbys holds.
pub const GROUP_IDS_MAX: usize = 65_536;
/// Bytes of messages that a standby of a failover group holds.
pub const GROUP_HELD_BYTES_MAX: usize = 8 << 20;
/// Messages that a source of a failover group may have to read and still take over from another: a batch. The group remembers
/// the ids of many more.
pub const GROUP_BEHIND_MAX: u64 = 1_000;
const _: () = assert!(GROUP_BEHIND_MAX < GROUP_IDS_MAX as u64);
/// Characters of a source's last error, for operators.
pub const SOURCE_ERROR_CHARS_MAX: usize = 256;
/// Bytes of a file with a source's password, token or credentials.
pub const SOURCE_SECRET_BYTES_MAX: u64 = 64 << 10;
/// Bytes of the longest line of a replay file.
pub const REPLAY_LINE_BYTES_MAX: usize = 1 << 20;
/// Wait of a replay for its next line after which the server logs it.
pub const REPLAY_WAIT_SAID_NS: u64 = 60_000_000_000;
/// Largest window of a zstd capture, in bytes: what `zstd --long` (27) needs. Memory grows up to it with the data.
pub const REPLAY_WINDOW_BYTES_MAX: u64 = 128 << 20;
/// Most samples in one tick of the ECG source: one second at 4 kHz.
pub const ECG_BATCH_HIGHEST: usize = 4_096;
/// Smallest payload of the simulator, in bytes: the intended send time, a topic, a counter and the JSON around them.
pub const SIM_SIZE_LOWEST: usize = 80;
/// Ticks that a sink has passed to its engine and that are not confirmed yet. The JetStream client blocks at 5,000.
pub const SINK_TAKEN_MAX: usize = 4_096;
/// Bytes of these ticks.
pub const SINK_TAKEN_BYTES_MAX: usize = 16 << 20;
/// Commands per request to Redis: in one of 1,000, each XADD took 1.7 us.
pub const SINK_BATCH_MAX: usize = 512;
/// JetStream streams whose lives a sink remembers; ticks in others are confirmed without a position.
pub const SINK_STREAMS_MAX: usize = 64;
/// Bytes of a sink's name.
pub const SINK_NAME_BYTES_MAX: usize = 64;
/// Waves of the simulator.
pub const SIM_WAVES_MAX: usize = 16;
/// Subscriptions at the engine of a source that subscribes on demand. Beyond that, it subscribes to whole prefixes. The client of NATS
/// takes about 7 KiB for each.
pub const SOURCE_SUBSCRIPTIONS_MAX: usize = 4_096;
/// Patterns with wildcards that a source on demand subscribes to by themselves. Each message is compared with them: with 64, that takes
/// up to 1.5 us, and with 4,096 it took 100 (opt-level 3, names of 15 bytes), of which NATS alone sends one every microsecond. Beyond
/// that, the source subscribes to whole prefixes.
pub const SOURCE_WILDCARDS_MAX: usize = 64;
const _: () = assert!(SOURCE_WILDCARDS_MAX <= SOURCE_SUBSCRIPTIONS_MAX);
/// Subscriptions of a source that end at a time: while they do, each message is compared with all of them.
pub const SOURCE_ENDING_MAX: usize = 256;
