//! A socket with or without TLS, with the methods of a socket.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::TcpStream,
    ops::Range,
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, ClientConnection, pki_types::ServerName};

use super::{WRITE_RETRY_INTERVAL, is_timeout};
use crate::{ClientError, TlsError, clock::Deadline, error::HANDSHAKE_AWAITED};

/// Bytes of records received in one call.
const RECORDS_BYTES: usize = 64 << 10;

/// A connected socket. Without TLS, its methods are the socket's.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) socket: TcpStream,
    tls: Option<Box<Tls>>,
    /// Bytes that the socket has accepted.
    pub(super) sent_bytes: u64,
    /// The socket's time-out for reads.
    read_timeout: Option<Duration>,
}

/// TLS on a socket.
#[derive(Debug)]
struct Tls {
    connection: ClientConnection,
    /// The address, for errors.
    address: String,
    /// Received records, and the range not opened yet.
    records: Box<[u8]>,
    sealed: Range<usize>,
}

impl Stream {
    /// A plain stream over a socket.
    pub(super) fn new(socket: TcpStream) -> Stream {
        Stream { socket, tls: None, sent_bytes: 0, read_timeout: None }
    }

    /// Does the TLS handshake, for at most `timeout`. The socket is blocking, without timeouts before and after.
    pub(super) fn start_tls(
        &mut self,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        address: &str,
        timeout: Duration,
    ) -> Result<(), ClientError> {
        let connection = ClientConnection::new(config, name).map_err(|error| ClientError::Tls {
            address: address.to_owned(),
            error: TlsError::from(&error),
        })?;
        let records = vec![0; RECORDS_BYTES].into_boxed_slice();
        self.tls = Some(Box::new(Tls { connection, address: address.to_owned(), records, sealed: 0..0 }));
        let deadline = Deadline::after(Some(timeout));
        let shaken = self.shake_hands(deadline).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                ClientError::TimedOut { awaited: HANDSHAKE_AWAITED, waited: timeout }
            }
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                ClientError::Tls { address: address.to_owned(), error: TlsError::Ended }
            }
            _ => self.failure(error),
        });
        self.socket.set_read_timeout(None)?;
        self.socket.set_write_timeout(None)?;
        shaken
    }

    fn shake_hands(&mut self, deadline: Deadline) -> io::Result<()> {
        let Stream { socket, tls: Some(tls), .. } = self else { return Ok(()) };
        loop {
            let left = deadline.remaining().filter(|left| !left.is_zero()).ok_or(ErrorKind::TimedOut)?;
            socket.set_write_timeout(Some(left))?;
            socket.set_read_timeout(Some(left))?;
            let result = match tls.connection.wants_write() {
                true => tls.connection.write_tls(socket).map(|_| ()),
                false if !tls.connection.is_handshaking() => return Ok(()),
                false => tls.receive(socket).and_then(|read| match read {
                    0 => Err(ErrorKind::UnexpectedEof.into()),
                    _ => Ok(()),
                }),
            };
            match result {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => result?,
            }
        }
    }

    /// Reads. Returns 0 at the end of the stream, with or without close_notify: the protocol above it detects a truncated stream.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.socket.read(buffer) };
        loop {
            match tls.connection.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                result => return result,
            }
            if tls.receive(&mut self.socket)? == 0 {
                return Ok(0);
            }
        }
    }

    /// Writes. With TLS, a part of the accepted bytes may still wait: see [`Stream::has_unsent`]. They are sent before further
    /// bytes are accepted, or by an empty write.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.tls.is_none() {
            let written = self.socket.write(bytes)?;
            self.sent_bytes += written as u64;
            return Ok(written);
        }
        self.send_sealed()?;
        let Some(tls) = &mut self.tls else { return Ok(0) };
        let taken = tls.connection.writer().write(bytes)?;
        match self.send_sealed() {
            Err(error) if taken == 0 || error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    /// Waits until input arrives, or up to `timeout`, or, if output waits, until it is worth another try. May return early. The socket
    /// is non-blocking before and after.
    pub(super) fn wait(&mut self, timeout: Option<Duration>, has_output: bool) -> io::Result<()> {
        let timeout = wait_at_most(timeout, has_output);
        if self.read_timeout != timeout {
            self.socket.set_read_timeout(timeout)?;
            self.read_timeout = timeout;
        }
        self.socket.set_nonblocking(false)?;
        // A peek takes nothing, so that a timeout loses nothing on any platform.
        let peeked = self.socket.peek(&mut [0]);
        self.socket.set_nonblocking(true)?;
        match peeked {
            Err(error) if !is_timeout(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether sealed bytes wait for room in the socket.
    pub(super) fn has_unsent(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.connection.wants_write())
    }

    /// Queues close_notify: nothing can be written afterwards.
    pub(super) fn say_goodbye(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.connection.send_close_notify();
        }
    }

    /// The error of a call: a failure of TLS, or of the socket.
    pub(super) fn failure(&self, error: io::Error) -> ClientError {
        match (&self.tls, TlsError::in_io(&error)) {
            (Some(tls), Some(error)) => ClientError::Tls { address: tls.address.clone(), error },
            _ => error.into(),
        }
    }

    fn send_sealed(&mut self) -> io::Result<()> {
        let Stream { socket, tls: Some(tls), sent_bytes, .. } = self else { return Ok(()) };
        while tls.connection.wants_write() {
            match tls.connection.write_tls(socket) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => *sent_bytes += sent as u64,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The standard library cannot wait until a socket is readable or writable, so a write is tried again soon.
pub(super) fn wait_at_most(timeout: Option<Duration>, has_output: bool) -> Option<Duration> {
    match has_output {
        false => timeout,
        true => Some(timeout.map_or(WRITE_RETRY_INTERVAL, |timeout| timeout.min(WRITE_RETRY_INTERVAL))),
    }
}

impl Tls {
    /// Opens some received records; receives first if all were opened. Returns 0 at the end of the stream.
    fn receive(&mut self, socket: &mut TcpStream) -> io::Result<usize> {
        if self.sealed.is_empty() {
            let received = socket.read(&mut self.records)?;
            self.sealed = 0..received;
        }
        let mut rest = &self.records[self.sealed.clone()];
        // Takes 4 KiB at a time, and nothing after close_notify.
        let taken = self.connection.read_tls(&mut rest)?;
        self.sealed.start += taken;
        match self.connection.process_new_packets() {
            Ok(_) => Ok(taken),
            Err(error) => {
                // The alert that says why; the server may be gone.
                let _ = self.connection.write_tls(socket);
                Err(io::Error::new(ErrorKind::InvalidData, error))
            }
        }
    }
}
