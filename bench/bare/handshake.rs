//! The handshake that a tickcast client needs before it accepts ticks.
//!
//! HELLO and SUBSCRIBE are answered, over a WebSocket after the upgrade, and every topic is announced. It blocks, one
//! connection after the other, because none of it is measured.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tickcast::{clock, limits::FRAME_BYTES_MAX_DEFAULT};
use tickcast_proto::{
    Step, WireFormat,
    codec::MessageType,
    frame::{self, Frame, HelloParts, Kind},
    framing::websocket::{self, Incoming, WebSocket},
    http::{self, Answer, HttpConfig, Target},
    records::Subscribe,
    reply::Reply,
};

use crate::{options::Options, rounds};

/// Longest wait for a client's next bytes.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Pause between two checks for a new connection.
const ACCEPT_PAUSE_NS: u64 = 500_000;
/// Size of the read buffer.
const READ_BYTES: usize = 4 << 10;
/// Epoch of every topic; no client ever resumes.
const EPOCH: u64 = 1;
/// Size of a SUBSCRIBE record without policies, the oldest form.
const SUBSCRIBE_STRIDE_FIRST: usize = 8;

/// Accepts all connections and completes their handshakes; returns early if stopped.
///
/// # Errors
/// A client that breaks the protocol or misses its deadline, or a failing socket.
pub fn accept_all(
    listener: &TcpListener,
    options: &Options,
    stop: &AtomicBool,
    sockets: &mut Vec<TcpStream>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    while sockets.len() < options.connections && !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((socket, _)) => {
                Handshake::new(socket.try_clone()?, options).run()?;
                sockets.push(socket);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => clock::sleep_ns(ACCEPT_PAUSE_NS),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Decoder for what a client sends next.
enum Decoder {
    Native,
    HttpHead,
    WebSocket(Box<WebSocket>),
}

/// A connection until it has subscribed.
struct Handshake<'a> {
    socket: TcpStream,
    options: &'a Options,
    decoder: Decoder,
    encoding: WireFormat,
    input: Vec<u8>,
    output: Vec<u8>,
    subscriptions: u32,
}

impl<'a> Handshake<'a> {
    fn new(socket: TcpStream, options: &'a Options) -> Handshake<'a> {
        let (decoder, encoding) = match options.websocket {
            true => (Decoder::HttpHead, WireFormat::WEBSOCKET_NATIVE),
            false => (Decoder::Native, WireFormat::TCP_NATIVE),
        };
        let (input, output) = (Vec::new(), Vec::new());
        Handshake { socket, options, decoder, encoding, input, output, subscriptions: 0 }
    }

    /// Reads and answers until the client has subscribed and no partial message is left.
    fn run(mut self) -> io::Result<()> {
        self.socket.set_read_timeout(Some(HANDSHAKE_DEADLINE))?;
        let mut buffer = [0; READ_BYTES];
        while self.subscriptions == 0 || !self.input.is_empty() {
            let read = match self.socket.read(&mut buffer) {
                Ok(0) => return Err(io::Error::other("the client closed before it subscribed")),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(io::Error::other(format!(
                        "the client did not subscribe within {} s",
                        HANDSHAKE_DEADLINE.as_secs()
                    )));
                }
                Err(error) => return Err(error),
            };
            self.input.extend_from_slice(&buffer[..read]);
            while let Some(used) = self.step()? {
                self.input.drain(..used);
            }
            self.socket.write_all(&self.output)?;
            self.output.clear();
        }
        Ok(())
    }

    /// Handles one message of the input and returns its length; `None` if none is complete.
    fn step(&mut self) -> io::Result<Option<usize>> {
        let input = std::mem::take(&mut self.input);
        let used = self.handle(&input);
        self.input = input;
        used
    }

    fn handle(&mut self, input: &[u8]) -> io::Result<Option<usize>> {
        match &mut self.decoder {
            Decoder::Native => match frame::decode(input, FRAME_BYTES_MAX_DEFAULT).map_err(invalid)? {
                Step::Partial => Ok(None),
                Step::Complete(used, frame) => {
                    self.answer(&frame)?;
                    Ok(Some(used))
                }
            },
            Decoder::HttpHead => match http::Connection::default().step(input, &HttpConfig::WEBSOCKET) {
                Step::Partial | Step::Complete(_, Answer::Interim(_)) => Ok(None),
                Step::Complete(used, Answer::Upgrade { response, target, .. }) => {
                    let Target::Stream { format: WireFormat::WEBSOCKET_NATIVE, .. } = target else {
                        return Err(invalid(
                            "the client must offer the subprotocol tickcast.v1.rkyv: --encoding rkyv",
                        ));
                    };
                    self.output.extend_from_slice(&response);
                    self.decoder = Decoder::WebSocket(Box::new(WebSocket::server(FRAME_BYTES_MAX_DEFAULT)));
                    Ok(Some(used))
                }
                Step::Complete(_, Answer::Call { .. } | Answer::Poll { .. }) => {
                    Err(invalid("the client must ask for a WebSocket at /ws"))
                }
                Step::Complete(_, Answer::Respond { status, .. }) => {
                    Err(invalid(format!("the client sent a request whose answer would be {status}")))
                }
            },
            Decoder::WebSocket(decoder) => {
                let Step::Complete(used, incoming) =
                    decoder.step(input, &mut self.output).map_err(invalid)?
                else {
                    return Ok(None);
                };
                match incoming {
                    Incoming::Binary(message) => self.answer_all(&message)?,
                    Incoming::Nothing => {}
                    Incoming::Text(_) | Incoming::Close(_) => {
                        return Err(invalid(
                            "the client sent something other than a binary message of frames",
                        ));
                    }
                }
                Ok(Some(used))
            }
        }
    }

    fn answer_all(&mut self, frames: &[u8]) -> io::Result<()> {
        let mut rest = frames;
        while !rest.is_empty() {
            let Step::Complete(used, frame) =
                frame::decode(rest, FRAME_BYTES_MAX_DEFAULT).map_err(invalid)?
            else {
                return Err(invalid("the client sent a message that ends within a frame"));
            };
            self.answer(&frame)?;
            rest = &rest[used..];
        }
        Ok(())
    }

    /// Answers HELLO and SUBSCRIBE and ignores everything else.
    fn answer(&mut self, frame: &Frame<'_>) -> io::Result<()> {
        match frame.kind {
            Kind::Hello => {
                let HelloParts { request, .. } = frame.hello().map_err(invalid)?;
                let welcome = Reply::Welcome {
                    request,
                    epoch: EPOCH,
                    session: 1,
                    frame_bytes_max: FRAME_BYTES_MAX_DEFAULT,
                    features: None,
                };
                welcome.encode(self.encoding, &mut self.output);
            }
            Kind::Subscribe => {
                let Subscribe { request, .. } =
                    frame.zero_extended_record(SUBSCRIBE_STRIDE_FIRST).map_err(invalid)?;
                let pattern = frame.text().map_err(invalid)?;
                let subscribed = Reply::Subscribed { request, pattern, epoch: EPOCH, since_us: None };
                subscribed.encode(self.encoding, &mut self.output);
                if self.subscriptions == 0 {
                    self.announce();
                }
                self.subscriptions += 1;
            }
            _ => {}
        }
        Ok(())
    }

    /// Announces every topic regardless of the pattern, because ticks of all of them follow.
    fn announce(&mut self) {
        for index in 0..self.options.topics {
            let mut announcement = Vec::new();
            frame::encode_topic(
                &mut announcement,
                rounds::topic_id(index),
                EPOCH,
                &rounds::topic_name(index),
            );
            match self.encoding {
                WireFormat::TCP_NATIVE => self.output.extend_from_slice(&announcement),
                _ => websocket::encode(&mut self.output, MessageType::Binary, &announcement),
            }
        }
    }
}

fn invalid(error: impl ToString) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error.to_string())
}
