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
    /// WebSocket messages: one for all native frames of a SEND, with a header written when the SEND is gathered.
    /// No supported [`crate::WireFormat`] uses it: a SEND with its own header must be copied, whereas
    /// [`Framing::WebSocket`] sends directly from the log.
    WebSocketBatch = 2,
    /// Server-Sent Events: one event for each JSON message. Each SEND that ends with an event ends with the client's place.
    EventStream = 3,
    /// Lines: one for each JSON message.
    Lines = 4,
    /// Engine.IO 4 over WebSocket: one packet for each Socket.IO packet, and a binary message for its attachment.
    EngineIo = 5,
}

/// Longest header that [`Framing::write_send_header`] writes, in bytes.
pub const SEND_HEADER_BYTES_MAX: usize = 10;

impl Framing {
    /// Number of framings.
    pub const COUNT: usize = 6;

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
        self == Framing::WebSocketBatch
    }

    /// Appends the header for a message of the next `len` bytes, which may span several SENDs. Appends nothing if
    /// queued messages have headers already.
    pub fn write_send_header(self, message_type: MessageType, len: usize, out: &mut Vec<u8>) {
        match self {
            Framing::Tcp | Framing::WebSocket | Framing::EventStream | Framing::Lines | Framing::EngineIo => {
            }
            Framing::WebSocketBatch => websocket::encode_header(out, message_type, len),
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
            Framing::Tcp | Framing::WebSocketBatch => {}
            Framing::WebSocket => websocket::encode_header(scratch, message_type, body.len()),
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
            Framing::WebSocket | Framing::WebSocketBatch => websocket::encode(out, message_type, body),
            Framing::EventStream => event_stream::encode_event(out, body),
            Framing::Lines => event_stream::encode_line(out, body),
            Framing::EngineIo => engine_io::encode_message(out, body),
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
            Framing::WebSocket
            | Framing::WebSocketBatch
            | Framing::EventStream
            | Framing::Lines
            | Framing::EngineIo => {
                let mut body = Vec::with_capacity(128);
                write_body(&mut body);
                if !body.is_empty() {
                    self.write(message_type, &body, out);
                }
            }
        }
    }

    /// Appends a ping, with `token` if the framing has a field for it.
    pub fn write_ping(self, token: u64, out: &mut Vec<u8>) {
        match self {
            Framing::Tcp => tcp::encode_ping(out, token),
            Framing::WebSocket | Framing::WebSocketBatch => websocket::encode_ping(out),
            Framing::EventStream => out.extend_from_slice(b":\n\n"),
            Framing::Lines => out.push(b'\n'),
            Framing::EngineIo => engine_io::encode_ping(out),
        }
    }

    /// Appends the end of the message stream: a WebSocket close frame, or nothing where FIN ends it.
    pub fn write_close(self, code: u16, reason: &str, out: &mut Vec<u8>) {
        match self {
            Framing::Tcp | Framing::EventStream | Framing::Lines => {}
            Framing::WebSocket | Framing::WebSocketBatch | Framing::EngineIo => {
                websocket::encode_close(out, code, reason);
            }
        }
    }
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
}

impl SharedDecoders {
    /// Limits of native frames and WebSocket messages, in bytes.
    pub fn new(frame_bytes_max: usize, message_bytes_max: usize) -> SharedDecoders {
        SharedDecoders { frame_bytes_max, message_bytes_max, websocket: None }
    }
}

impl Decoder {
    /// The decoder of a new session.
    pub fn new(framing: Framing) -> Decoder {
        match framing {
            Framing::Tcp => Decoder::Tcp,
            Framing::WebSocket | Framing::WebSocketBatch | Framing::EngineIo => Decoder::WebSocket(None),
            Framing::EventStream | Framing::Lines => Decoder::OneWay,
        }
    }

    /// A WebSocket decoder with its own limit, for the few sessions with long messages.
    pub fn for_long_messages(message_bytes_max: usize) -> Decoder {
        Decoder::WebSocketOwned(Box::new(WebSocket::server_for_long_messages(message_bytes_max)))
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
        match self {
            Decoder::Tcp => tcp::step(bytes, shared.frame_bytes_max),
            Decoder::OneWay => event_stream::step(bytes),
            Decoder::Polling => engine_io::step(bytes),
            Decoder::WebSocket(fragments) => {
                let mut decoder = shared
                    .websocket
                    .take()
                    .unwrap_or_else(|| Box::new(WebSocket::server(shared.message_bytes_max)));
                decoder.fragments = fragments.take();
                let step = decoder.step(bytes, replies)?;
                *fragments = decoder.fragments.take();
                shared.websocket = Some(decoder).filter(|decoder| !decoder.is_over());
                Ok(incoming(step))
            }
            Decoder::WebSocketOwned(decoder) => decoder.step(bytes, replies).map(incoming),
        }
    }

    /// The unfinished message, if the peer has sent some but not all of its fragments.
    #[inline]
    pub fn fragments_mut(&mut self) -> Option<&mut Fragments> {
        match self {
            Decoder::Tcp | Decoder::OneWay | Decoder::Polling => None,
            Decoder::WebSocket(fragments) => fragments.as_deref_mut(),
            Decoder::WebSocketOwned(decoder) => decoder.fragments.as_deref_mut(),
        }
    }

    /// Like the above, read-only.
    #[inline]
    pub fn fragments(&self) -> Option<&Fragments> {
        match self {
            Decoder::Tcp | Decoder::OneWay | Decoder::Polling => None,
            Decoder::WebSocket(fragments) => fragments.as_deref(),
            Decoder::WebSocketOwned(decoder) => decoder.fragments.as_deref(),
        }
    }

    /// Frees the unfinished message. The decoder must not be used again.
    pub fn discard_fragments(&mut self) {
        match self {
            Decoder::Tcp | Decoder::OneWay | Decoder::Polling => {}
            Decoder::WebSocket(fragments) => *fragments = None,
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
        for framing in framings {
            for body in [&b"x"[..], &[7; 200], &[7; 70_000], b"51-[]\x1eattached"] {
                let (mut whole, mut with) = (b"before".to_vec(), b"before".to_vec());
                framing.write(MessageType::Binary, body, &mut whole);
                framing.write_with(MessageType::Binary, &mut with, |out| out.extend_from_slice(body));
                let mut scratch = b"stale".to_vec();
                let (header, rest) = framing.delimit(MessageType::Binary, body, &mut scratch);
                let mut sent = b"before".to_vec();
                framing.write_send_header(MessageType::Binary, body.len(), &mut sent);
                assert!(sent.len() - 6 <= SEND_HEADER_BYTES_MAX);
                assert_eq!(framing.has_send_headers(), sent.len() > 6);
                sent.extend_from_slice(&[header, rest].concat());
                assert_eq!((&whole, &whole), (&with, &sent));
            }
            let mut nothing = Vec::new();
            framing.write_with(MessageType::Text, &mut nothing, |_| {});
            assert!(nothing.is_empty(), "no message without a body");
        }
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
