//! Framings: how messages are delimited on a connection, and how pings and closes are sent.
//! To add a framing, add a variant here, a module beside [`tcp`], [`websocket`], [`event_stream`] and [`engine_io`], its pairs with codecs in the
//! table of [`crate::WireFormat`], and the way in which a client asks for it (over HTTP: [`crate::http`]).

pub mod engine_io;
pub mod event_stream;
pub mod tcp;
pub mod websocket;

use crate::{
    DecodeError, Step,
    codec::{Message, MessageType},
    features::Features,
};
use websocket::{Fragments, WebSocket};

/// Delimits a session's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Framing {
    /// Adds no bytes: each message is a native frame, which contains its length.
    Tcp = 0,
    /// WebSocket messages (RFC 6455): one for each encoded message.
    WebSocket = 1,
    /// WebSocket messages: one for all frames of a SEND, with a header written when the SEND is gathered. Native frames are
    /// concatenated, JSON objects form an array: [`Features::BATCHES`](crate::features::Features).
    WebSocketBatch = 2,
    /// Server-Sent Events: one event for each JSON message. Each SEND that ends with an event ends with the client's place.
    EventStream = 3,
    /// Lines: one for each JSON message.
    Lines = 4,
    /// Like [`Framing::WebSocket`]; ticks may be compressed messages (RFC 7692): see [`websocket::deflate`].
    WebSocketDeflate = 5,
    /// Like [`Framing::WebSocketBatch`]; messages may be compressed.
    WebSocketBatchDeflate = 6,
    /// Engine.IO 4 over WebSocket: one packet for each Socket.IO packet, and a binary message for its attachment.
    EngineIo = 7,
}

/// Most bytes that a message of [`Framing::write_send`] has besides its queued bodies.
pub const SEND_HEADER_BYTES_MAX: usize = 11;

/// What precedes each queued object of a JSON array. The array's first one becomes `[`.
const ARRAY_SEPARATOR: u8 = b',';

impl Framing {
    /// Number of framings.
    pub const COUNT: usize = 8;

    /// Whether each SEND ends with what its client has then: see [`event_stream::encode_place`].
    #[inline]
    pub fn has_places(self) -> bool {
        self == Framing::EventStream
    }

    /// Whether clients only read.
    pub fn is_one_way(self) -> bool {
        matches!(self, Framing::EventStream | Framing::Lines)
    }

    /// Whether headers are written when a SEND is gathered. If so, queued messages have none.
    #[inline]
    pub fn has_send_headers(self) -> bool {
        matches!(self, Framing::WebSocketBatch | Framing::WebSocketBatchDeflate)
    }

    /// Whether messages may be compressed.
    #[inline]
    pub fn is_deflated(self) -> bool {
        matches!(self, Framing::WebSocketDeflate | Framing::WebSocketBatchDeflate)
    }

    /// The framing of the same messages that may be compressed. Only WebSockets have one.
    pub const fn deflated(self) -> Framing {
        match self {
            Framing::WebSocket | Framing::WebSocketDeflate => Framing::WebSocketDeflate,
            Framing::WebSocketBatch | Framing::WebSocketBatchDeflate => Framing::WebSocketBatchDeflate,
            Framing::Tcp | Framing::EventStream | Framing::Lines | Framing::EngineIo => self,
        }
    }

    /// The framing of the same messages that are never compressed.
    pub const fn plain(self) -> Framing {
        match self {
            Framing::WebSocketDeflate => Framing::WebSocket,
            Framing::WebSocketBatchDeflate => Framing::WebSocketBatch,
            _ => self,
        }
    }

    /// The framing of the same messages with these features.
    pub const fn with(self, features: Features) -> Framing {
        let has_batches = features.contains(Features::BATCHES);
        match self {
            Framing::WebSocket | Framing::WebSocketBatch if has_batches => Framing::WebSocketBatch,
            Framing::WebSocket | Framing::WebSocketBatch => Framing::WebSocket,
            Framing::WebSocketDeflate | Framing::WebSocketBatchDeflate if has_batches => {
                Framing::WebSocketBatchDeflate
            }
            Framing::WebSocketDeflate | Framing::WebSocketBatchDeflate => Framing::WebSocketDeflate,
            Framing::Tcp | Framing::EventStream | Framing::Lines | Framing::EngineIo => self,
        }
    }

    /// Appends a message whose queued bodies, from [`Framing::delimit`], `write_bodies` appends: `len` bytes. `rest` more bytes of
    /// the last body follow in later SENDs; if so, the message has no other body. Appends only the bodies if queued messages have
    /// headers already.
    pub fn write_send(
        self,
        message_type: MessageType,
        len: usize,
        rest: usize,
        out: &mut Vec<u8>,
        write_bodies: impl FnOnce(&mut Vec<u8>),
    ) {
        match (self.has_send_headers(), message_type, rest) {
            (false, ..) => write_bodies(out),
            (true, MessageType::Binary, _) => {
                websocket::encode_header(out, message_type, len + rest);
                write_bodies(out);
            }
            (true, MessageType::Text, 0) => {
                websocket::encode_header(out, message_type, len + 1);
                join_bodies(message_type, out, write_bodies);
            }
            // Its end cannot be added later, so it is the object itself.
            (true, MessageType::Text, _) => {
                websocket::encode_header(out, message_type, len + rest - 1);
                let start = out.len();
                write_bodies(out);
                out.remove(start);
            }
        }
    }

    /// Delimits a message for queueing. Returns its bytes in two parts: header and body.
    ///
    /// The header overwrites `scratch`; the body is not copied, except by framings that also add bytes after it. Allocates
    /// only to grow `scratch`.
    #[inline]
    pub fn delimit<'a>(
        self,
        message_type: MessageType,
        body: &'a [u8],
        scratch: &'a mut Vec<u8>,
    ) -> (&'a [u8], &'a [u8]) {
        scratch.clear();
        match self {
            Framing::Tcp => {}
            Framing::WebSocketBatch | Framing::WebSocketBatchDeflate => {
                if message_type == MessageType::Text {
                    scratch.push(ARRAY_SEPARATOR);
                }
            }
            Framing::WebSocket | Framing::WebSocketDeflate => {
                websocket::encode_header(scratch, message_type, body.len())
            }
            Framing::EngineIo if !engine_io::has_attachment(body) => {
                engine_io::encode_header(scratch, body.len())
            }
            Framing::EventStream | Framing::Lines | Framing::EngineIo => {
                self.write(message_type, body, scratch);
                return (scratch, &[]);
            }
        }
        (scratch, body)
    }

    /// Appends a complete message, header included.
    pub fn write(self, message_type: MessageType, body: &[u8], out: &mut Vec<u8>) {
        match self {
            Framing::Tcp => out.extend_from_slice(body),
            Framing::EventStream => event_stream::encode_event(out, body),
            Framing::Lines => event_stream::encode_line(out, body),
            Framing::EngineIo => engine_io::encode_message(out, body),
            Framing::WebSocket
            | Framing::WebSocketBatch
            | Framing::WebSocketDeflate
            | Framing::WebSocketBatchDeflate => websocket::encode(out, message_type, body),
        }
    }

    /// Appends a complete message whose body `write_body` appends. Appends nothing if the body is empty.
    pub fn write_with(
        self,
        message_type: MessageType,
        out: &mut Vec<u8>,
        write_body: impl FnOnce(&mut Vec<u8>),
    ) {
        match self {
            Framing::Tcp => write_body(out),
            _ => {
                let mut body = Vec::with_capacity(128);
                write_body(&mut body);
                if !body.is_empty() {
                    self.write(message_type, &body, out);
                }
            }
        }
    }

    /// Appends a message for [`Framing::write_send`] whose body `write_body` appends. Appends nothing if the body is empty.
    pub fn queue_with(
        self,
        message_type: MessageType,
        out: &mut Vec<u8>,
        write_body: impl FnOnce(&mut Vec<u8>),
    ) {
        let (mut body, mut scratch) = (Vec::with_capacity(128), Vec::new());
        write_body(&mut body);
        if !body.is_empty() {
            let (header, body) = self.delimit(message_type, &body, &mut scratch);
            out.extend_from_slice(header);
            out.extend_from_slice(body);
        }
    }

    /// Appends a ping, with `token` if the framing has a field for it.
    pub fn write_ping(self, token: u64, out: &mut Vec<u8>) {
        match self {
            Framing::Tcp => tcp::encode_ping(out, token),
            Framing::EventStream => out.extend_from_slice(b":\n\n"),
            Framing::Lines => out.push(b'\n'),
            Framing::EngineIo => engine_io::encode_ping(out),
            Framing::WebSocket
            | Framing::WebSocketBatch
            | Framing::WebSocketDeflate
            | Framing::WebSocketBatchDeflate => websocket::encode_ping(out),
        }
    }

    /// Appends the end of the message stream: a WebSocket close frame, or nothing where FIN ends it.
    pub fn write_close(self, code: u16, reason: &str, out: &mut Vec<u8>) {
        match self {
            Framing::Tcp | Framing::EventStream | Framing::Lines => {}
            _ => websocket::encode_close(out, code, reason),
        }
    }
}

/// Appends the body of one message of the queued bodies that `write_bodies` appends: as they are, or a JSON array.
pub fn join_bodies(message_type: MessageType, out: &mut Vec<u8>, write_bodies: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    write_bodies(out);
    if message_type == MessageType::Binary {
        return;
    }
    debug_assert_eq!(out.get(start), Some(&ARRAY_SEPARATOR), "a message has at least one object");
    if let Some(first) = out.get_mut(start) {
        *first = b'[';
    }
    out.push(b']');
}

/// Result of one step of a [`Decoder`].
#[derive(Debug)]
pub enum Incoming<'a> {
    /// No message: a fragment, a pong, or a ping, whose pong was appended to the replies.
    Nothing,
    /// A complete message.
    Message(Message<'a>),
    /// The peer closes. The answer was appended to the replies; nothing may follow it.
    Close,
}

/// A session's decoder: 16 bytes, and more only within a fragmented message.
#[derive(Debug)]
pub enum Decoder {
    /// [`Framing::Tcp`]: keeps no state besides the session's input.
    Tcp,
    /// A stream whose client only reads.
    OneWay,
    /// Packets of Engine.IO's long-polling.
    Polling,
    /// A WebSocket: keeps state only within a fragmented message.
    WebSocket(Option<Box<Fragments>>),
    /// A WebSocket whose client may compress messages.
    Inflating(Option<Box<Fragments>>),
    /// A WebSocket with its own permanent decoder, for longer messages than the shared decoder accepts.
    WebSocketOwned(Box<WebSocket>),
}

const _: () = assert!(size_of::<Decoder>() == 16, "the docs of Decoder state its size");

/// Shared state of one shard's decoders: limits, and a WebSocket decoder.
#[derive(Debug)]
pub struct SharedDecoders {
    /// Largest native frame, in bytes.
    frame_bytes_max: usize,
    /// Largest WebSocket message, in bytes.
    message_bytes_max: usize,
    /// `None` until first needed, and after an error.
    websocket: Option<Box<WebSocket>>,
    /// Bytes inflated since [`SharedDecoders::take_inflated`].
    inflated: usize,
}

impl SharedDecoders {
    /// Limits of native frames and WebSocket messages, in bytes.
    pub fn new(frame_bytes_max: usize, message_bytes_max: usize) -> SharedDecoders {
        SharedDecoders { frame_bytes_max, message_bytes_max, websocket: None, inflated: 0 }
    }

    /// Whether a message has been inflated since the last call of [`SharedDecoders::take_inflated`].
    #[inline]
    pub fn has_inflated(&self) -> bool {
        self.inflated > 0
    }

    /// Bytes of compressed messages that were inflated since the last call: work that the length of the input does not show.
    #[inline]
    pub fn take_inflated(&mut self) -> usize {
        std::mem::take(&mut self.inflated)
    }
}

impl Decoder {
    /// The decoder of a new session.
    pub fn new(framing: Framing) -> Decoder {
        match framing {
            Framing::Tcp => Decoder::Tcp,
            Framing::EventStream | Framing::Lines => Decoder::OneWay,
            _ => Decoder::WebSocket(None),
        }
    }

    /// A WebSocket decoder with its own limit, for the few sessions with long messages.
    pub fn for_long_messages(message_bytes_max: usize) -> Decoder {
        Decoder::WebSocketOwned(Box::new(WebSocket::server_for_long_messages(message_bytes_max)))
    }

    /// The same decoder before its first message, for a client that may compress messages.
    pub fn inflating(self) -> Decoder {
        match self {
            Decoder::WebSocket(fragments) => Decoder::Inflating(fragments),
            Decoder::WebSocketOwned(mut decoder) => {
                decoder.inflates = true;
                Decoder::WebSocketOwned(decoder)
            }
            other => other,
        }
    }

    /// Decodes the message or frame at the start of `bytes`. Pongs and close answers are appended to `replies`.
    ///
    /// # Errors
    /// A [`DecodeError`], after which the session must be closed and the decoder not be used again.
    #[inline]
    pub fn step<'a>(
        &mut self,
        shared: &mut SharedDecoders,
        bytes: &'a [u8],
        replies: &mut Vec<u8>,
    ) -> Result<Step<Incoming<'a>>, DecodeError> {
        let inflates = matches!(self, Decoder::Inflating(_));
        match self {
            Decoder::Tcp => tcp::step(bytes, shared.frame_bytes_max),
            Decoder::OneWay => event_stream::step(bytes),
            Decoder::Polling => engine_io::step(bytes),
            Decoder::WebSocket(fragments) | Decoder::Inflating(fragments) => {
                let mut decoder = shared
                    .websocket
                    .take()
                    .unwrap_or_else(|| Box::new(WebSocket::server(shared.message_bytes_max)));
                decoder.fragments = fragments.take();
                decoder.inflates = inflates;
                let step = decoder.step(bytes, replies);
                // Work, whatever came of it.
                if inflates {
                    shared.inflated += decoder.take_inflated();
                }
                let step = step?;
                *fragments = decoder.fragments.take();
                shared.websocket = Some(decoder).filter(|decoder| !decoder.is_over());
                Ok(incoming(step))
            }
            Decoder::WebSocketOwned(decoder) => {
                let step = decoder.step(bytes, replies);
                shared.inflated += decoder.take_inflated();
                Ok(incoming(step?))
            }
        }
    }

    /// The unfinished message, if the peer has sent some but not all of its fragments.
    #[inline]
    pub fn fragments_mut(&mut self) -> Option<&mut Fragments> {
        match self {
            Decoder::Tcp | Decoder::OneWay | Decoder::Polling => None,
            Decoder::WebSocket(fragments) | Decoder::Inflating(fragments) => fragments.as_deref_mut(),
            Decoder::WebSocketOwned(decoder) => decoder.fragments.as_deref_mut(),
        }
    }

    /// Like the above, read-only.
    #[inline]
    pub fn fragments(&self) -> Option<&Fragments> {
        match self {
            Decoder::Tcp | Decoder::OneWay | Decoder::Polling => None,
            Decoder::WebSocket(fragments) | Decoder::Inflating(fragments) => fragments.as_deref(),
            Decoder::WebSocketOwned(decoder) => decoder.fragments.as_deref(),
        }
    }

    /// Frees the unfinished message. The decoder must not be used again.
    pub fn discard_fragments(&mut self) {
        match self {
            Decoder::Tcp | Decoder::OneWay | Decoder::Polling => {}
            Decoder::WebSocket(fragments) | Decoder::Inflating(fragments) => *fragments = None,
            Decoder::WebSocketOwned(decoder) => decoder.fragments = None,
        }
    }
}

fn incoming<'a>(step: Step<websocket::Incoming>) -> Step<Incoming<'a>> {
    let Step::Complete(used, incoming) = step else { return Step::Partial };
    Step::Complete(
        used,
        match incoming {
            websocket::Incoming::Nothing => Incoming::Nothing,
            websocket::Incoming::Text(text) => Incoming::Message(Message::Text(text)),
            websocket::Incoming::Binary(bytes) => Incoming::Message(Message::Binary(bytes)),
            websocket::Incoming::Close(_) => Incoming::Close,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{self, HeaderFields, Kind};

    #[test]
    fn message_has_the_same_bytes_written_at_once_and_queued_then_sent() {
        let framings = [
            Framing::Tcp,
            Framing::WebSocket,
            Framing::WebSocketBatch,
            Framing::EventStream,
            Framing::Lines,
            Framing::EngineIo,
        ];
        for framing in framings.into_iter().chain(framings.map(Framing::deflated)) {
            assert!(framing.plain() == framing || framing.is_deflated());
            for body in [&b"x"[..], &[7; 200], &[7; 70_000], b"51-[]\x1eattached"] {
                let (mut whole, mut with) = (b"before".to_vec(), b"before".to_vec());
                framing.write(MessageType::Binary, body, &mut whole);
                framing.write_with(MessageType::Binary, &mut with, |out| out.extend_from_slice(body));
                let mut scratch = b"stale".to_vec();
                let (header, rest) = framing.delimit(MessageType::Binary, body, &mut scratch);
                let (mut sent, queued) = (b"before".to_vec(), [header, rest].concat());
                framing
                    .write_send(MessageType::Binary, queued.len(), 0, &mut sent, |out| out.extend(&queued));
                assert!(
                    !framing.has_send_headers() || sent.len() - 6 - queued.len() <= SEND_HEADER_BYTES_MAX
                );
                assert_eq!((&whole, &whole), (&with, &sent));
            }
            let mut nothing = Vec::new();
            framing.write_with(MessageType::Text, &mut nothing, |_| {});
            assert!(nothing.is_empty(), "no message without a body");
        }
    }

    #[test]
    fn queued_objects_of_one_send_are_an_array_and_one_that_is_cut_is_itself() {
        let framing = Framing::WebSocketBatch;
        let queued = |bodies: &[&str]| -> Vec<u8> {
            let mut scratch = Vec::new();
            let delimited = bodies.iter().map(|body| {
                let (header, body) = framing.delimit(MessageType::Text, body.as_bytes(), &mut scratch);
                [header, body].concat()
            });
            delimited.collect::<Vec<_>>().concat()
        };
        let sent = |queued: &[u8], rest: usize| {
            let mut out = Vec::new();
            framing.write_send(MessageType::Text, queued.len(), rest, &mut out, |out| out.extend(queued));
            assert!(out.len() <= queued.len() + SEND_HEADER_BYTES_MAX);
            String::from_utf8(out[1..].to_vec()).unwrap()
        };
        assert_eq!(sent(&queued(&["{}"]), 0), "\u{4}[{}]");
        assert_eq!(sent(&queued(&["{}", "{\"a\":1}"]), 0), "\u{c}[{},{\"a\":1}]");
        let long = queued(&["{\"a\":1}"]);
        assert_eq!(sent(&long[..4], 4) + std::str::from_utf8(&long[4..]).unwrap(), "\u{7}{\"a\":1}");
    }

    #[test]
    fn websocket_keeps_something_only_within_a_message() {
        let mut shared = SharedDecoders::new(1 << 10, 1 << 10);
        let mut decoder = Decoder::new(Framing::WebSocket);
        let mut step = |bytes: &[u8]| {
            let mut replies = Vec::new();
            let step = decoder.step(&mut shared, bytes, &mut replies).unwrap();
            let is_message = matches!(step, Step::Complete(_, Incoming::Message(_)));
            assert!(shared.websocket.is_some(), "the decoder stays with the shard");
            (is_message, decoder.fragments().is_some())
        };
        assert_eq!(step(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i']), (true, false));
        assert_eq!(step(&[0x01, 0x81, 0, 0, 0, 0, b'h']), (false, true));
        assert_eq!(step(&[0x80, 0x81, 0, 0, 0, 0, b'i']), (true, false));
    }

    #[test]
    fn native_frame_is_a_message_over_tcp() {
        let mut shared = SharedDecoders::new(1 << 10, 1 << 10);
        let mut bytes = Vec::new();
        Framing::Tcp.write_ping(7, &mut bytes);
        let ping = bytes.len();
        frame::encode(
            &mut bytes,
            Kind::Pong,
            HeaderFields::default(),
            &crate::records::Token { token: 7 },
            &[],
        );
        let mut decoder = Decoder::new(Framing::Tcp);
        let step = decoder.step(&mut shared, &bytes, &mut Vec::new()).unwrap();
        let Step::Complete(used, Incoming::Message(Message::Frame(frame))) = step else {
            panic!("not a frame")
        };
        assert_eq!((used, frame.kind), (ping, Kind::Ping));
        let partial = decoder.step(&mut shared, &bytes[..ping - 1], &mut Vec::new());
        assert!(matches!(partial, Ok(Step::Partial)));
    }
}
