//! Compressed WebSocket messages (permessage-deflate, RFC 7692), inflated between a socket and a feed.
//!
//! A feed of any transport writes its upgrade request and reads plain messages; this layer adds the offer to the request, takes the
//! answer out of the response, and inflates what is compressed. The offer excludes context takeover, so a server may send the same
//! bytes to all clients. Then a thread inflates them once for all its connections, and the load client's own cost stays small beside
//! the server's. The report counts the bytes on the wire.

use std::{
    collections::VecDeque,
    hash::{Hash, Hasher},
    io::Cursor,
};

use rustc_hash::{FxHashMap, FxHasher};
use tickcast::limits::HTTP_HEAD_BYTES_MAX_DEFAULT;
use tickcast_client::IDLE_BUFFER_BYTES_MAX;
use tickcast_proto::{
    Step,
    codec::MessageType,
    framing::websocket::{self, Incoming, WebSocket},
};
use tungstenite::protocol::frame::FrameHeader;

use crate::feed::{Feed, PAYLOAD_BYTES_MAX, lines::find};

/// In the request.
const OFFER: &[u8] =
    b"\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover";
/// Name of the header, in lower case.
const EXTENSIONS: &str = "sec-websocket-extensions:";
/// What the answer must promise, so that each message can be inflated on its own.
const PROMISED: [&str; 2] = ["permessage-deflate", "server_no_context_takeover"];
/// Ends a request and a response.
const END: &[u8] = b"\r\n\r\n";
/// The bit of a frame's first byte that marks a compressed message.
const COMPRESSED: u8 = 0x40;
/// Inflated messages that a thread remembers: more than the ticks by which its connections are apart.
const KNOWN_MAX: usize = 256;

/// One connection.
#[derive(Debug)]
pub struct Deflate {
    /// The upgrade request with the offer, and how many of its bytes have been written.
    request: Vec<u8>,
    written: usize,
    /// Received: the response until it is complete, then an incomplete frame.
    input: Vec<u8>,
    is_open: bool,
}

impl Deflate {
    /// Takes the upgrade request from a feed that has just been opened.
    pub fn open(feed: &mut Feed) -> Deflate {
        let plain = feed.output();
        let line = find(plain, b"\r\n").unwrap_or(plain.len());
        let request = [&plain[..line], OFFER, &plain[line..]].concat();
        let len = plain.len();
        feed.output_written(len);
        Deflate { request, written: 0, input: Vec::new(), is_open: false }
    }

    /// Bytes to write before those of the feed.
    #[inline]
    pub fn output(&self) -> &[u8] {
        &self.request[self.written..]
    }

    /// Removes the first `bytes` of [`Deflate::output`], which were written.
    pub fn output_written(&mut self, bytes: usize) {
        self.written += bytes;
        if self.output().is_empty() {
            (self.request, self.written) = (Vec::new(), 0);
        }
    }

    /// Puts what a feed is to read of received bytes into `plain`, a buffer for reuse.
    ///
    /// # Errors
    /// Why the connection is over. The bytes in `plain` are valid.
    #[inline]
    pub fn receive(
        &mut self,
        bytes: &[u8],
        inflater: &mut Inflater,
        plain: &mut Vec<u8>,
    ) -> Result<(), String> {
        plain.clear();
        self.input.extend_from_slice(bytes);
        let mut used = 0;
        if !self.is_open {
            let Some(end) = find(&self.input, END) else {
                return match self.input.len() < HTTP_HEAD_BYTES_MAX_DEFAULT {
                    true => Ok(()),
                    false => Err("the response has no end".into()),
                };
            };
            used = end + END.len();
            self.is_open = true;
            append_response(&self.input[..used], plain)?;
        }
        while let Some(frame) = next_frame(&self.input[used..])? {
            used += frame.len();
            match frame[0] & COMPRESSED {
                0 => plain.extend_from_slice(frame),
                _ => inflater.append(frame, plain)?,
            }
        }
        self.input.drain(..used);
        if self.input.is_empty() && self.input.capacity() > IDLE_BUFFER_BYTES_MAX {
            self.input = Vec::new();
        }
        Ok(())
    }
}

/// Appends the response without the answer to the offer. A response that refuses the upgrade is appended as it is.
fn append_response(response: &[u8], plain: &mut Vec<u8>) -> Result<(), String> {
    let mut is_compressed = false;
    for line in response.split_inclusive(|&byte| byte == b'\n') {
        let text = String::from_utf8_lossy(line).to_ascii_lowercase();
        match text.strip_prefix(EXTENSIONS) {
            Some(answer) => is_compressed = PROMISED.iter().all(|promise| answer.contains(promise)),
            None => plain.extend_from_slice(line),
        }
    }
    let is_upgrade = response.split(|&byte| byte == b' ').nth(1) == Some(&b"101"[..]);
    match is_compressed || !is_upgrade {
        true => Ok(()),
        false => Err("the server does not compress messages without context takeover".into()),
    }
}

/// The frame that `bytes` begin with, if it is complete.
#[inline]
fn next_frame(bytes: &[u8]) -> Result<Option<&[u8]>, String> {
    let mut cursor = Cursor::new(bytes);
    let Some((_, len)) = FrameHeader::parse(&mut cursor).map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    if len > PAYLOAD_BYTES_MAX as u64 {
        return Err(format!("the server sent a frame of {len} bytes; the limit is {PAYLOAD_BYTES_MAX}"));
    }
    Ok(bytes.get(..cursor.position() as usize + len as usize))
}

/// A frame, compressed and plain.
#[derive(Debug)]
struct Known {
    frame: Box<[u8]>,
    inflated: Box<[u8]>,
}

/// Inflates the messages of a thread's connections, each once.
#[derive(Debug)]
pub struct Inflater {
    decoder: WebSocket,
    /// Frames by the hash of their compressed bytes.
    known: FxHashMap<u64, Known>,
    /// Their hashes, oldest first.
    order: VecDeque<u64>,
}

impl Inflater {
    pub fn new() -> Inflater {
        Inflater { decoder: new_decoder(), known: FxHashMap::default(), order: VecDeque::new() }
    }

    /// Appends the plain message of a compressed frame.
    #[inline]
    fn append(&mut self, frame: &[u8], plain: &mut Vec<u8>) -> Result<(), String> {
        let mut hasher = FxHasher::default();
        frame.hash(&mut hasher);
        let hash = hasher.finish();
        match self.known.get(&hash) {
            Some(known) if *known.frame == *frame => plain.extend_from_slice(&known.inflated),
            _ => {
                let inflated = self.inflate(frame)?;
                plain.extend_from_slice(&inflated);
                self.remember(hash, frame, inflated);
            }
        }
        Ok(())
    }

    fn inflate(&mut self, frame: &[u8]) -> Result<Vec<u8>, String> {
        let (message_type, message) = match self.decoder.step(frame, &mut Vec::new()) {
            Ok(Step::Complete(_, Incoming::Text(text))) => (MessageType::Text, text.into()),
            Ok(Step::Complete(_, Incoming::Binary(bytes))) => (MessageType::Binary, bytes),
            other => {
                self.decoder = new_decoder();
                let why =
                    other.err().map_or_else(|| "is not a whole message".into(), |error| error.to_string());
                return Err(format!("a compressed frame: {why}"));
            }
        };
        let mut inflated = Vec::with_capacity(message.len() + 10);
        websocket::encode(&mut inflated, message_type, &message);
        Ok(inflated)
    }

    fn remember(&mut self, hash: u64, frame: &[u8], inflated: Vec<u8>) {
        if self.known.insert(hash, Known { frame: frame.into(), inflated: inflated.into() }).is_none() {
            self.order.push_back(hash);
        }
        if self.order.len() > KNOWN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

fn new_decoder() -> WebSocket {
    let mut decoder = WebSocket::client(PAYLOAD_BYTES_MAX);
    decoder.inflates = true;
    decoder
}

#[cfg(test)]
mod tests {
    use tickcast_proto::framing::websocket::deflate::Deflater;

    use super::*;

    const RESPONSE: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Extensions: \
                            permessage-deflate; server_no_context_takeover\r\nSec-WebSocket-Accept: x\r\n\r\n";

    fn opened(request: &[u8]) -> Deflate {
        Deflate { request: request.to_vec(), written: 0, input: Vec::new(), is_open: false }
    }

    /// What a feed reads of `pieces`.
    fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<(Vec<u8>, Inflater), String> {
        let (mut deflate, mut inflater, mut all) = (opened(b""), Inflater::new(), Vec::new());
        for piece in pieces {
            let mut plain = b"stale".to_vec();
            deflate.receive(piece, &mut inflater, &mut plain)?;
            all.append(&mut plain);
        }
        assert!(deflate.input.is_empty());
        Ok((all, inflater))
    }

    #[test]
    fn what_is_compressed_is_inflated_once_and_the_rest_passes_however_the_stream_is_cut() {
        let text = "{\"topic\":\"a\",\"data\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}"
            .repeat(3);
        let (mut compressed, mut plain) = (Vec::new(), Vec::new());
        assert!(Deflater::default().encode(&mut compressed, MessageType::Text, text.as_bytes()));
        websocket::encode(&mut plain, MessageType::Text, text.as_bytes());
        assert!(compressed.len() < plain.len());
        let ping = [0x89, 0];
        let stream = [RESPONSE.as_bytes(), &compressed, &ping, &plain, &compressed].concat();
        let head = RESPONSE
            .replace("Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n", "");
        let expected = [head.as_bytes(), &plain, &ping, &plain, &plain].concat();
        for piece in [1, 7, stream.len()] {
            let (all, inflater) = read(stream.chunks(piece)).unwrap();
            assert_eq!(all, expected, "{piece}");
            assert_eq!((inflater.known.len(), inflater.order.len()), (1, 1));
        }
    }

    #[test]
    fn a_server_that_does_not_compress_or_sends_broken_data_ends_the_connection() {
        let refusal = b"HTTP/1.1 404 Not Found\r\n\r\n";
        assert_eq!(read([&refusal[..]].into_iter()).unwrap().0, refusal, "the feed says so");
        for bad in [
            &b"HTTP/1.1 101 Switching Protocols\r\n\r\n"[..],
            b"HTTP/1.1 101 OK\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
            &[RESPONSE.as_bytes(), &[0xc1, 3, 0xff, 0xff, 0xff]].concat(),
            &[RESPONSE.as_bytes(), &[0x41, 1, 0]].concat(),
            &[RESPONSE.as_bytes(), &[0x82, 127, 0, 0, 0, 1, 0, 0, 0, 0]].concat(),
            &vec![b'x'; HTTP_HEAD_BYTES_MAX_DEFAULT],
        ] {
            assert!(read([bad].into_iter()).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_thread_remembers_a_bounded_number_of_messages() {
        let (mut inflater, mut deflater) = (Inflater::new(), Deflater::default());
        for n in 0..2 * KNOWN_MAX {
            let (mut frame, mut plain) = (Vec::new(), Vec::new());
            let text = format!("{n}{}", " ".repeat(100));
            assert!(deflater.encode(&mut frame, MessageType::Text, text.as_bytes()));
            inflater.append(&frame, &mut plain).unwrap();
            assert!(plain.ends_with(text.as_bytes()));
        }
        assert_eq!((inflater.known.len(), inflater.order.len()), (KNOWN_MAX, KNOWN_MAX));
    }
}
