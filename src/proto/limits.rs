//! Bounds of the wire protocol, and the assertions that relate them.

/// Bytes that every native frame's length and every mesh ring's capacity is a multiple of, so that a frame
/// received into a buffer aligned to it stays aligned.
pub const FRAME_ALIGN: usize = 16;

/// Bytes of the native frame header.
pub const FRAME_HEADER_BYTES: usize = 32;

/// Longest topic name and longest subscription pattern, in bytes.
pub const TOPIC_BYTES_MAX: usize = 255;

/// Longest identity of a client, in bytes.
pub const IDENTITY_BYTES_MAX: usize = 255;

/// Largest frame (native) or message (WebSocket) a peer may send, its default and its range.
pub const FRAME_BYTES_MAX_DEFAULT: usize = 256 << 10;
/// Lower end of the range of `frame_bytes_max`: a publish of the longest topic name and some payload must fit.
pub const FRAME_BYTES_MAX_LOWEST: usize = 1 << 10;
/// Upper end of the range of `frame_bytes_max`.
pub const FRAME_BYTES_MAX_HIGHEST: usize = 16 << 20;

/// What JSON puts around a payload at most: a topic's name with every byte escaped, two numbers, the keys.
pub const JSON_ENVELOPE_BYTES: usize = 4 << 10;

/// HTTP request head (request line and headers), default bound in bytes.
pub const HTTP_HEAD_BYTES_MAX_DEFAULT: usize = 8 << 10;
/// Header lines in an HTTP request head.
pub const HTTP_HEADERS_MAX: usize = 64;

/// Slowest pace a subscriber may ask for, ticks a second of each topic.
pub const MAX_RATE_LOWEST: f64 = 0.001;
/// Fastest pace a subscriber may ask for: past it, the timers' granularity decides.
pub const MAX_RATE_HIGHEST: f64 = 1_000.0;
/// Places in topics that RESUME frames of one session may name before their SUBSCRIBE.
pub const RESUME_POSITIONS_MAX: usize = 16_384;
/// When to try again, as a refused HTTP client is told.
pub const REFUSED_RETRY_AFTER_S: u64 = 1;

const _: () = assert!(FRAME_HEADER_BYTES.is_multiple_of(FRAME_ALIGN));
const _: () = assert!(FRAME_BYTES_MAX_LOWEST > FRAME_HEADER_BYTES + TOPIC_BYTES_MAX + 256);
const _: () = assert!(FRAME_BYTES_MAX_LOWEST > FRAME_HEADER_BYTES + IDENTITY_BYTES_MAX + 512);
const _: () = assert!(JSON_ENVELOPE_BYTES > 6 * TOPIC_BYTES_MAX + 256);
