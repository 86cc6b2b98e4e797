//! Limits of the wire protocol, and const assertions that relate them.

/// Alignment of native frames, in bytes.
/// All frame lengths and mesh ring capacities are multiples of it, so all frames in an aligned buffer are aligned.
pub const FRAME_ALIGN: usize = 16;

/// Length of the native frame header, in bytes.
pub const FRAME_HEADER_BYTES: usize = 32;

/// Longest topic name and longest subscription pattern, in bytes.
pub const TOPIC_BYTES_MAX: usize = 255;

/// Longest message id of a publish, in bytes.
pub const MESSAGE_ID_BYTES_MAX: usize = 255;

/// Longest client identity, in bytes.
pub const IDENTITY_BYTES_MAX: usize = 255;

/// Bytes of a node's id, and of an address that NODES names.
pub const NODE_BYTES_MAX: usize = 255;

/// Addresses in one NODES. Clients ignore further ones.
pub const NODES_MAX: usize = 16;

/// Longest token, in bytes: the usual size of a request head that HTTP servers accept.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;

/// Default of `frame_bytes_max`: the largest native frame a peer may send.
pub const FRAME_BYTES_MAX_DEFAULT: usize = 256 << 10;
/// Smallest `frame_bytes_max`: a PUBLISH with the longest topic name and some payload must fit.
pub const FRAME_BYTES_MAX_LOWEST: usize = 1 << 10;
/// Largest `frame_bytes_max`.
pub const FRAME_BYTES_MAX_HIGHEST: usize = 16 << 20;

/// Most bytes that JSON adds to a payload: topic name with every byte escaped, field names, numbers.
pub const JSON_ENVELOPE_BYTES: usize = 4 << 10;

/// Deepest nesting of a payload that is sent as JSON. With the object and the array around it, it stays below the 64 levels
/// of .NET's parser, the lowest limit among common parsers (Ruby: 100, Rust's serde_json: 128, Python: about 1,000).
pub const JSON_DEPTH_MAX: usize = 60;
/// Longest number in a payload that is sent as JSON, in bytes. Rust's serde_json reads integers up to 308 digits, Java's
/// Jackson numbers of 1,000 characters, Python integers of 4,300 digits.
pub const JSON_NUMBER_BYTES_MAX: usize = 300;

/// Default limit on an HTTP request head (request line and headers), in bytes.
pub const HTTP_HEAD_BYTES_MAX_DEFAULT: usize = 8 << 10;
/// Most header lines in an HTTP request head.
pub const HTTP_HEADERS_MAX: usize = 64;
/// Largest body of an HTTP request, including chunk framing.
pub const HTTP_BODY_BYTES_MAX: usize = 64 << 10;
/// Longest line that gives the size of a chunk, and longest trailer after the last one.
pub const HTTP_CHUNK_LINE_BYTES_MAX: usize = 1 << 10;

/// Longest id of an event, and longest `Last-Event-ID`: half of what servers accept as a request head. Positions that need more
/// are kept by the server.
pub const LAST_EVENT_ID_BYTES_MAX: usize = 4 << 10;
/// Time after which an EventSource reconnects, unless the server says otherwise, milliseconds.
pub const EVENT_STREAM_RETRY_MS: u32 = 1_000;

/// Longest name of a Socket.IO namespace, in bytes. Only `/` exists; the refusal of others repeats the name.
pub const SOCKET_IO_NAMESPACE_BYTES_MAX: usize = 255;
/// Longest packet of a Socket.IO event whose attachment follows, in bytes: name, topic and options. A session keeps it until the
/// attachment has arrived.
pub const SOCKET_IO_BINARY_EVENT_BYTES_MAX: usize = 4 << 10;

/// Most ticks that one HTTP request may publish.
pub const HTTP_PUBLISH_TICKS_MAX: usize = 1_024;
/// Most ticks or topics in one answer over HTTP.
pub const HTTP_PAGE_ITEMS_MAX: usize = 1_000;
/// Ticks or topics in one answer over HTTP, unless the request says otherwise.
pub const HTTP_PAGE_ITEMS_DEFAULT: usize = 100;

/// Lowest `max_rate` a subscriber may ask for, in ticks per second and topic.
pub const MAX_RATE_LOWEST: f64 = 0.001;
/// Highest `max_rate` a subscriber may ask for, in ticks per second and topic. Above it, timers are too coarse.
pub const MAX_RATE_HIGHEST: f64 = 1_000.0;
/// Most positions that a session may have given, by RESUME or `sequences`, and not used yet.
pub const RESUME_POSITIONS_MAX: usize = 16_384;
/// Retry-After that a refused HTTP client receives, in seconds.
pub const REFUSED_RETRY_AFTER_S: u64 = 1;

const _: () = assert!(2 * LAST_EVENT_ID_BYTES_MAX <= HTTP_HEAD_BYTES_MAX_DEFAULT);
const _: () = assert!(FRAME_HEADER_BYTES.is_multiple_of(FRAME_ALIGN));
const _: () = assert!(FRAME_BYTES_MAX_LOWEST > FRAME_HEADER_BYTES + TOPIC_BYTES_MAX + 256);
const _: () = assert!(FRAME_BYTES_MAX_LOWEST > FRAME_HEADER_BYTES + IDENTITY_BYTES_MAX + 512);
const _: () = assert!(FRAME_BYTES_MAX_HIGHEST <= u32::MAX as usize, "frame lengths are u32");
const _: () = assert!(TOPIC_BYTES_MAX <= u16::MAX as usize && IDENTITY_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(SOCKET_IO_BINARY_EVENT_BYTES_MAX > 6 * TOPIC_BYTES_MAX + 256, "any topic's name fits");
const _: () = assert!(JSON_ENVELOPE_BYTES > 6 * (TOPIC_BYTES_MAX + MESSAGE_ID_BYTES_MAX) + 256);
const _: () = assert!(JSON_DEPTH_MAX + 2 < 64 && JSON_NUMBER_BYTES_MAX < 308);
const _: () =
    assert!(1e6 / MAX_RATE_LOWEST <= u32::MAX as f64, "the longest interval fits 32 bits of microseconds");
