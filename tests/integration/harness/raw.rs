//! Raw sockets: a native peer and a WebSocket peer that do exactly what a test says, right or wrong.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
};

use socket2::{Domain, SockRef, Socket, Type};

use super::{
    GUARD,
    frames::{self, Raw, Received},
};

/// A connection and the bytes read from it but not yet used.
pub struct Peer {
    pub stream: TcpStream,
    pub buffer: Vec<u8>,
}

/// A WebSocket message or control frame from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

impl Message {
    /// The payload as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).unwrap()
    }

    /// The code of a close frame.
    pub fn close_code(&self) -> u16 {
        assert_eq!(self.opcode, CLOSE, "{self:?}");
        u16::from_be_bytes(self.payload[..2].try_into().unwrap())
    }
}

impl Peer {
    /// Connects and sends nothing.
    pub fn connect(address: SocketAddr) -> Peer {
        Peer::new(TcpStream::connect_timeout(&address, GUARD).unwrap())
    }

    /// Connects with the smallest receive window, so that the server is soon stuck when this side does not read.
    pub fn connect_with_small_window(address: SocketAddr) -> Peer {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // Before connecting: the window is announced in the handshake.
        socket.set_recv_buffer_size(2048).unwrap();
        socket.connect_timeout(&address.into(), GUARD).unwrap();
        Peer::new(socket.into())
    }

    fn new(stream: TcpStream) -> Peer {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
        stream.set_write_timeout(Some(GUARD)).unwrap();
        Peer { stream, buffer: Vec::new() }
    }

    /// A native session after WELCOME.
    pub fn native(address: SocketAddr) -> Peer {
        let mut peer = Peer::connect(address);
        peer.send(&Raw::request(frames::HELLO, 1, b"raw").bytes());
        assert_eq!(peer.frame().unwrap().kind, frames::WELCOME);
        peer
    }

    /// A WebSocket on `path`, with a subprotocol unless it is empty.
    pub fn websocket(address: SocketAddr, path: &str, subprotocol: &str) -> Peer {
        let mut peer = Peer::connect(address);
        peer.upgrade(path, subprotocol);
        peer
    }

    /// Upgrades a connection to the HTTP port to a WebSocket.
    pub fn upgrade(&mut self, path: &str, subprotocol: &str) {
        self.send(upgrade_request(path, subprotocol).as_bytes());
        let head = self.http_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(!head.to_lowercase().contains("sec-websocket-extensions"), "{head}");
        let accepted = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("sec-websocket-protocol").then_some(value)
        });
        assert_eq!(accepted.unwrap_or_default(), subprotocol);
    }

    /// Sends all bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends as much as it can: a server that refuses may close before everything is written.
    pub fn send_as_far_as_it_goes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Sends FIN.
    pub fn shut_write(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Closes with RST.
    pub fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }

    /// Reads once more; `false` at the end of the stream.
    pub fn more(&mut self) -> bool {
        let mut chunk = [0; 16 << 10];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(len) => {
                self.buffer.extend_from_slice(&chunk[..len]);
                true
            }
            // The server closed while something of ours was still unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => false,
            // A process that was stopped for a moment: a read with a timeout is not restarted (signal(7)).
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            Err(error) => panic!("read failed: {error}"),
        }
    }

    /// Whether the server has sent something, or has ended the connection.
    pub fn has_answer(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let peeked = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).unwrap();
        !matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// The next native frame other than a ping, which is answered; `None` at the end.
    pub fn frame(&mut self) -> Option<Received> {
        loop {
            let frame = self.any_frame()?;
            if frame.kind != frames::PING {
                return Some(frame);
            }
            self.send(&Raw::new(frames::PONG, &frame.record, b"").bytes());
        }
    }

    /// The next native frame; `None` at the end.
    pub fn any_frame(&mut self) -> Option<Received> {
        loop {
            if let Some(frame) = Received::take(&mut self.buffer) {
                return Some(frame);
            }
            if !self.more() {
                assert!(self.buffer.is_empty(), "the stream ends within a frame");
                return None;
            }
        }
    }

    /// The next WebSocket frame other than a ping, which is answered; `None` at the end.
    pub fn message(&mut self) -> Option<Message> {
        loop {
            let message = self.any_message()?;
            if message.opcode != PING {
                return Some(message);
            }
            self.send(&masked(0x80 | PONG, &message.payload));
        }
    }

    /// The next WebSocket frame, which must be whole and unmasked; `None` at the end.
    pub fn any_message(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = take_message(&mut self.buffer) {
                return Some(message);
            }
            if !self.more() {
                assert!(self.buffer.is_empty(), "the stream ends within a message");
                return None;
            }
        }
    }

    /// The next text message.
    pub fn text(&mut self) -> String {
        let message = self.message().unwrap();
        assert_eq!(message.opcode, TEXT, "{message:?}");
        message.text().to_owned()
    }

    /// Sends a masked text message.
    pub fn send_text(&mut self, text: &str) {
        self.send(&masked(0x80 | TEXT, text.as_bytes()));
    }

    /// Reads to the end of the stream.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        while self.more() {}
        std::mem::take(&mut self.buffer)
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        while self.buffer.len() < len {
            assert!(self.more(), "{} bytes of {len}", self.buffer.len());
        }
        self.buffer.drain(..len).collect()
    }

    /// The head of an HTTP response.
    pub fn http_head(&mut self) -> String {
        loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head: Vec<u8> = self.buffer.drain(..at + 4).collect();
                return String::from_utf8(head).unwrap();
            }
            assert!(self.more(), "no HTTP head: {:?}", String::from_utf8_lossy(&self.buffer));
        }
    }
}

/// A WebSocket handshake (the key of RFC 6455, section 1.3).
pub fn upgrade_request(path: &str, subprotocol: &str) -> String {
    let subprotocol = match subprotocol {
        "" => String::new(),
        name => format!("Sec-WebSocket-Protocol: {name}\r\n"),
    };
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{subprotocol}\r\n"
    )
}

/// A masked WebSocket frame. `first`: FIN, reserved bits and opcode.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(first, 0x80, payload.len() as u64);
    let mask = [0x11, 0x22, 0x33, 0x44];
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
    frame
}

/// A WebSocket frame header up to the masking key. `mask`: 0x80 or 0.
pub fn header(first: u8, mask: u8, payload_len: u64) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload_len {
        0..=125 => bytes.push(mask | payload_len as u8),
        126..=0xffff => {
            bytes.push(mask | 126);
            bytes.extend_from_slice(&(payload_len as u16).to_be_bytes());
        }
        _ => {
            bytes.push(mask | 127);
            bytes.extend_from_slice(&payload_len.to_be_bytes());
        }
    }
    bytes
}

/// Takes the first message off `bytes`, which must be whole, unmasked and without extensions; `None` while it is
/// incomplete.
pub fn take_message(bytes: &mut Vec<u8>) -> Option<Message> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    assert_eq!(first & 0xf0, 0x80, "the server sends whole messages without extensions");
    assert_eq!(second & 0x80, 0, "the server does not mask");
    let (start, len) = match second {
        126 => (4, u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().unwrap()))),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().unwrap())),
        len => (2, u64::from(len)),
    };
    let end = start + len as usize;
    let payload = bytes.get(start..end)?.to_vec();
    bytes.drain(..end);
    Some(Message { opcode: first & 0x0f, payload })
}
