//! How encoded messages are delimited on a connection, and what else a connection says: pings and closes.
//!
//! Adding a framing: a variant here and its module beside [`tcp`] and [`websocket`], its pairs with codecs in
//! [`crate::WireFormat`]'s table, and how a client asks for it (for HTTP, [`crate::http`]).

pub mod tcp;
pub mod websocket;

use crate::{
    DecodeError, Step,
    codec::{Message, MessageType},
};
use websocket::WebSocket;

/// What delimits a session's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Framing {
    /// Nothing of its own: every message is a native frame, which says how long it is.
    Tcp = 0,
    /// WebSocket messages (RFC 6455), one for each message that is encoded.
    WebSocket = 1,
    /// WebSocket messages, each of all the native frames that leave in one SEND: the header is written as the SEND is
    /// gathered. No supported [`crate::WireFormat`] has it: a SEND that begins with a header of its own is always a copy,
    /// where [`Framing::WebSocket`] sends from the log.
    WebSocketBatch = 2,
}

/// Longest header that [`Framing::write_send_header`] writes.
pub const SEND_HEADER_BYTES_MAX: usize = 10;

impl Framing {
    /// Number of framings.
    pub const COUNT: usize = 3;

    /// Whether headers are written as a SEND is gathered; what waits for it has none.
    #[inline]
    pub fn has_send_headers(self) -> bool {
        self == Framing::WebSocketBatch
    }

    /// Appends the header of a message that is the next `len` bytes of a SEND, or of that and the SENDs after it. Nothing
    /// where messages have their headers already.
    pub fn write_send_header(self, message_type: MessageType, len: usize, out: &mut Vec<u8>) {
        match self {
            Framing::Tcp | Framing::WebSocket => {}
            Framing::WebSocketBatch => websocket::encode_header(out, message_type, len),
        }
    }

    /// Delimits a message that is to wait for a SEND: returns its bytes, in two parts. The header is written to `scratch`,
    /// whatever it held; the body is not copied. No allocation once `scratch` has grown.
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
        }
        (scratch, body)
    }

    /// Appends a whole message, its header included.
    pub fn write(self, message_type: MessageType, body: &[u8], out: &mut Vec<u8>) {
        match self {
            Framing::Tcp => out.extend_from_slice(body),
            Framing::WebSocket | Framing::WebSocketBatch => websocket::encode(out, message_type, body),
        }
    }

    /// The same for a body that `write_body` appends; nothing where it appends nothing.
    pub fn write_with(
        self,
        message_type: MessageType,
        out: &mut Vec<u8>,
        write_body: impl FnOnce(&mut Vec<u8>),
    ) {
        match self {
            Framing::Tcp => write_body(out),
            Framing::WebSocket | Framing::WebSocketBatch => {
                let mut body = Vec::with_capacity(128);
                write_body(&mut body);
                if !body.is_empty() {
                    websocket::encode(out, message_type, &body);
                }
            }
        }
    }

    /// Appends a ping; `token` goes into it where the framing has room for one.
    pub fn write_ping(self, token: u64, out: &mut Vec<u8>) {
        match self {
            Framing::Tcp => tcp::encode_ping(out, token),
            Framing::WebSocket | Framing::WebSocketBatch => websocket::encode_ping(out),
        }
    }

    /// Appends what closes the stream of messages, after the last of them. Nothing over TCP: the FIN says it.
    pub fn write_close(self, code: u16, reason: &str, out: &mut Vec<u8>) {
        match self {
            Framing::Tcp => {}
            Framing::WebSocket | Framing::WebSocketBatch => websocket::encode_close(out, code, reason),
        }
    }
}

/// What one step of a [`Decoder`] brought.
#[derive(Debug)]
pub enum Incoming<'a> {
    /// Something that is for the framing alone: a fragment, a ping (its pong is in the replies), a pong.
    Nothing,
    /// A whole message.
    Message(Message<'a>),
    /// The peer closes; the answer is in the replies, and nothing may follow it.
    Close,
}

/// How far a session's input is decoded: 16 bytes, and more only within a message that comes in parts.
#[derive(Debug)]
pub enum Decoder {
    /// [`Framing::Tcp`]: the session's own input is all there is to know.
    Tcp,
    /// A WebSocket, with a decoder of its own only within a message in fragments.
    WebSocket(Option<Box<WebSocket>>),
    /// The same with a decoder of its own for good, which takes longer messages than others.
    WebSocketOwned(Box<WebSocket>),
}

const _: () = assert!(size_of::<Decoder>() == 16, "the docs of Decoder say how large it is");

/// What the decoders of one shard share: their bounds, and what those between two messages can do without.
#[derive(Debug)]
pub struct SharedDecoders {
    /// Largest native frame, in bytes.
    frame_bytes_max: usize,
    /// Largest message, in bytes.
    message_bytes_max: usize,
    websocket: Option<Box<WebSocket>>,
}

impl SharedDecoders {
    /// Decoders that refuse frames and messages past these bounds.
    pub fn new(frame_bytes_max: usize, message_bytes_max: usize) -> SharedDecoders {
        SharedDecoders { frame_bytes_max, message_bytes_max, websocket: None }
    }
}

impl Decoder {
    /// A decoder of a session that begins.
    pub fn new(framing: Framing) -> Decoder {
        match framing {
            Framing::Tcp => Decoder::Tcp,
            Framing::WebSocket | Framing::WebSocketBatch => Decoder::WebSocket(None),
        }
    }

    /// A decoder of WebSocket messages of up to `message_bytes_max`, for few sessions.
    pub fn of_long_messages(message_bytes_max: usize) -> Decoder {
        Decoder::WebSocketOwned(Box::new(WebSocket::server_of_long_messages(message_bytes_max)))
    }

    /// Takes what `bytes` begin with; what the framing itself answers (pongs, close answers) is appended to `replies`.
    ///
    /// # Errors
    /// A [`DecodeError`]: the session is to end with it, and its decoder is of no more use.
    #[inline]
    pub fn step<'a>(
        &mut self,
        shared: &mut SharedDecoders,
        bytes: &'a [u8],
        replies: &mut Vec<u8>,
    ) -> Result<Step<Incoming<'a>>, DecodeError> {
        match self {
            Decoder::Tcp => tcp::step(bytes, shared.frame_bytes_max),
            Decoder::WebSocket(own) => {
                let mut decoder = own
                    .take()
                    .or_else(|| shared.websocket.take())
                    .unwrap_or_else(|| Box::new(WebSocket::server(shared.message_bytes_max)));
                let step = decoder.step(bytes, replies)?;
                let keeper = if decoder.is_between_messages() { &mut shared.websocket } else { own };
                *keeper = Some(decoder);
                Ok(incoming(step))
            }
            Decoder::WebSocketOwned(decoder) => decoder.step(bytes, replies).map(incoming),
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
    use crate::frame::{self, Kind, Meta};

    #[test]
    fn a_message_is_the_same_whole_and_as_it_waits_and_is_sent() {
        for framing in [Framing::Tcp, Framing::WebSocket, Framing::WebSocketBatch] {
            for body in [&b"x"[..], &[7; 200], &[7; 70_000]] {
                let (mut whole, mut with) = (b"before".to_vec(), b"before".to_vec());
                framing.write(MessageType::Binary, body, &mut whole);
                framing.write_with(MessageType::Binary, &mut with, |out| out.extend_from_slice(body));
                let mut scratch = b"of before".to_vec();
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
    fn a_websocket_has_a_decoder_of_its_own_only_within_a_message() {
        let mut shared = SharedDecoders::new(1 << 10, 1 << 10);
        let mut decoder = Decoder::new(Framing::WebSocket);
        let mut step = |bytes: &[u8]| {
            let mut replies = Vec::new();
            let step = decoder.step(&mut shared, bytes, &mut replies).unwrap();
            let is_message = matches!(step, Step::Complete(_, Incoming::Message(_)));
            let Decoder::WebSocket(own) = &decoder else { panic!("a WebSocket") };
            (is_message, own.is_some(), shared.websocket.is_some())
        };
        assert_eq!(step(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i']), (true, false, true));
        assert_eq!(step(&[0x01, 0x81, 0, 0, 0, 0, b'h']), (false, true, false));
        assert_eq!(step(&[0x80, 0x81, 0, 0, 0, 0, b'i']), (true, false, true));
    }

    #[test]
    fn a_native_frame_is_a_message_of_tcp() {
        let mut shared = SharedDecoders::new(1 << 10, 1 << 10);
        let mut bytes = Vec::new();
        Framing::Tcp.write_ping(7, &mut bytes);
        let ping = bytes.len();
        frame::encode(&mut bytes, Kind::Pong, Meta::default(), &crate::records::Token { token: 7 }, &[]);
        let mut decoder = Decoder::new(Framing::Tcp);
        let step = decoder.step(&mut shared, &bytes, &mut Vec::new()).unwrap();
        let Step::Complete(used, Incoming::Message(Message::Frame(frame))) = step else { panic!("a frame") };
        assert_eq!((used, frame.kind), (ping, Kind::Ping));
        let partial = decoder.step(&mut shared, &bytes[..ping - 1], &mut Vec::new());
        assert!(matches!(partial, Ok(Step::Partial)));
    }
}
