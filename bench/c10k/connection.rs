//! One subscriber: a socket, its protocol state and its progress.

use std::io::{self, ErrorKind, Read, Write};

use mio::net::TcpStream;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tickcast::clock;
use tickcast_client::Event;

use crate::{
    common::tls::{Received, Tls},
    deflate::{Deflate, Inflater},
    feed::Feed,
    plan::Plan,
    tally::{Tally, intended_ns},
};

/// Most reads of one connection in a row, so that a busy one does not starve the others.
const READS_PER_TURN: usize = 4;

/// Progress of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum State {
    Connecting,
    /// Acknowledgements still to come.
    Subscribing(usize),
    Subscribed,
    /// Ended. Contains the reason.
    Ended(String),
}

/// State of the socket after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Drained,
    /// There may be more to read, and no event will announce it.
    MoreToRead,
}

/// What all connections of a thread receive into.
#[derive(Debug)]
pub struct Buffers {
    pub received: Box<[u8]>,
    /// What TLS makes of it.
    pub plaintext: Vec<u8>,
    /// What inflating makes of that.
    pub inflated: Vec<u8>,
    pub inflater: Inflater,
}

impl Buffers {
    /// Buffers for reads of at most `bytes`.
    pub fn new(bytes: usize) -> Buffers {
        Buffers {
            received: vec![0; bytes].into_boxed_slice(),
            plaintext: Vec::new(),
            inflated: Vec::new(),
            inflater: Inflater::new(),
        }
    }
}

/// One subscriber.
#[derive(Debug)]
pub struct Connection {
    pub stream: TcpStream,
    pub feed: Feed,
    /// `None`: the connection is plain.
    tls: Option<Box<Tls>>,
    /// `None`: messages are never compressed.
    deflate: Option<Box<Deflate>>,
    pub state: State,
    /// Ticks received since the connection was opened.
    pub ticks: u64,
    /// When the connect began, monotonic.
    opened_at_ns: u64,
    /// When the last subscription was first written, monotonic; 0 before that.
    requested_at_ns: u64,
    /// Never reads once subscribed.
    pub is_stalled: bool,
    /// Replaces a connection that was reset, so it did not exist when the window began.
    pub is_reconnect: bool,
    /// Reason that the server announced before closing.
    closing: Option<String>,
    pub peer_closed: bool,
}

impl Connection {
    /// Starts to connect and queues the handshake and the subscriptions.
    ///
    /// # Errors
    /// Those of socket(2), bind(2) and connect(2).
    pub fn open(plan: &Plan, index: usize) -> io::Result<Connection> {
        let socket = Socket::new(Domain::for_address(plan.server), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(source) = plan.source(index) {
            // The kernel then chooses the port at connect(2), when the destination is known: 28,000 ports per pair of
            // addresses instead of 28,000 in all (ip(7)).
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
            socket.bind(&source.into())?;
        }
        let opened_at_ns = clock::monotonic_ns();
        match socket.connect(&plan.server.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let mut feed =
            Feed::open(plan, index).map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))?;
        let tls = plan.tls.as_ref().map(Tls::start).transpose().map_err(io::Error::other)?.map(Box::new);
        let deflate = plan.deflate.then(|| Box::new(Deflate::open(&mut feed)));
        let stream = TcpStream::from_std(socket.into());
        let state = if Feed::acknowledgements(plan) == 0 { State::Subscribed } else { State::Connecting };
        Ok(Connection {
            stream,
            feed,
            tls,
            deflate,
            state,
            ticks: 0,
            opened_at_ns,
            requested_at_ns: 0,
            is_stalled: plan.is_stalled(index),
            is_reconnect: false,
            closing: None,
            peer_closed: false,
        })
    }

    /// The socket is writable: completes the connect, then sends what is queued.
    pub fn handle_writable(&mut self, plan: &Plan) {
        if self.state == State::Connecting {
            if let Some(error) = self.stream.take_error().ok().flatten() {
                return self.end(format!("cannot connect: {error}"));
            }
            if self.stream.peer_addr().is_err() {
                return;
            }
            self.state = State::Subscribing(Feed::acknowledgements(plan));
        }
        self.write();
    }

    /// The server has shut down its side; reading continues to the end of the stream.
    pub fn handle_peer_closed(&mut self) {
        self.peer_closed = true;
    }

    /// The socket is readable: reads within a budget.
    pub fn handle_readable(&mut self, buffers: &mut Buffers, tally: &mut Tally) -> Turn {
        for _ in 0..READS_PER_TURN {
            if matches!(self.state, State::Ended(_) | State::Connecting) {
                return Turn::Drained;
            }
            if self.is_stalled && self.state == State::Subscribed {
                return Turn::Drained;
            }
            let mut drained = false;
            match self.stream.read(&mut buffers.received) {
                Ok(0) => self.feed.handle_end(),
                Ok(read) => {
                    // A short read has emptied the socket; later bytes are a new edge (epoll(7), "Questions and answers", 9).
                    drained = read < buffers.received.len() && !self.peer_closed;
                    if tally.measuring {
                        tally.wire_bytes += read as u64;
                    }
                    self.take_bytes(read, buffers);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Turn::Drained,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.end(format!("read: {error}"));
                    return Turn::Drained;
                }
            }
            let first_at_ns = (self.ticks == 0).then(clock::monotonic_ns);
            self.take_events(tally);
            if let Some(first_at_ns) = first_at_ns.filter(|_| self.ticks > 0) {
                tally.count_first_tick(
                    first_at_ns.saturating_sub(self.opened_at_ns),
                    first_at_ns.saturating_sub(self.requested_at_ns),
                );
            }
            self.write();
            if drained {
                return Turn::Drained;
            }
        }
        Turn::MoreToRead
    }

    /// Passes received bytes on to the feed.
    #[inline]
    fn take_bytes(&mut self, len: usize, buffers: &mut Buffers) {
        let Buffers { received, plaintext, inflated, inflater } = buffers;
        let (bytes, outcome) = match &mut self.tls {
            None => (&received[..len], Ok(Received::More)),
            Some(tls) => {
                let outcome = tls.receive(&received[..len], plaintext);
                (&plaintext[..], outcome)
            }
        };
        match &mut self.deflate {
            _ if bytes.is_empty() => {}
            None => self.feed.handle_bytes(bytes),
            Some(deflate) => {
                let outcome = deflate.receive(bytes, inflater, inflated);
                self.feed.handle_bytes(inflated);
                if let Err(why) = outcome {
                    return self.end(why);
                }
            }
        }
        match outcome {
            Ok(Received::More) => {}
            Ok(Received::Closed) => self.feed.handle_end(),
            Err(why) => self.end(why),
        }
    }

    #[inline]
    fn take_events(&mut self, tally: &mut Tally) {
        // One clock reading for everything that a read returned.
        let received_ns = clock::realtime_ns();
        loop {
            match self.feed.poll_event() {
                Ok(Some(Event::Tick(tick))) => {
                    self.ticks += 1;
                    tally.count_tick(tick.producer_time_ns, received_ns, tick.payload.len());
                    tally.count_sequenced(&tick, received_ns);
                }
                Ok(Some(Event::Payload(payload))) => {
                    self.ticks += 1;
                    tally.count_tick(intended_ns(payload), received_ns, payload.len());
                }
                Ok(None) => return,
                Ok(Some(Event::Subscribed { .. } | Event::Pong { .. })) => {
                    if let State::Subscribing(left) = self.state {
                        self.state = if left <= 1 { State::Subscribed } else { State::Subscribing(left - 1) };
                    }
                }
                Ok(Some(Event::Error { code, text, .. })) => {
                    let why = format!("the server refused: {text} (code {code})");
                    return self.end(why);
                }
                Ok(Some(Event::Closing { code, text, .. })) => {
                    self.closing = Some(format!("the server closed: {text} (code {code})"));
                }
                Ok(Some(Event::Closed)) => {
                    let why = self.closing.take();
                    return self
                        .end(why.unwrap_or_else(|| "the server closed without giving a reason".into()));
                }
                // The feed counts announced losses; the tally reads them there.
                Ok(Some(Event::Conflated { .. } | Event::Gap { .. } | Event::Recovered { .. })) => {}
                Ok(Some(Event::Welcome { .. } | Event::Topic { .. } | Event::Unsubscribed { .. })) => {}
                // Not asked for.
                Ok(Some(Event::Published { .. } | Event::Nodes { .. })) => {}
                Err(error) => {
                    let why = error.to_string();
                    return self.end(why);
                }
            }
        }
    }

    /// Bytes to write, or to seal.
    #[inline]
    fn output(&self) -> &[u8] {
        output_of(self.deflate.as_deref(), &self.feed)
    }

    fn output_written(&mut self, bytes: usize) {
        match &mut self.deflate {
            Some(deflate) if !deflate.output().is_empty() => deflate.output_written(bytes),
            _ => self.feed.output_written(bytes),
        }
    }

    fn write(&mut self) {
        if self.tls.as_ref().is_some_and(|tls| !tls.is_open()) {
            return self.write_sealed();
        }
        // Over a WebSocket the subscriptions follow the upgrade, so the last write before the acknowledgement carries
        // them.
        if self.ticks == 0 && matches!(self.state, State::Subscribing(_)) && !self.output().is_empty() {
            self.requested_at_ns = clock::monotonic_ns();
        }
        if let Some(mut tls) = self.tls.take() {
            // One record for all that waits.
            let bytes = self.output().len();
            tls.seal(self.output());
            self.output_written(bytes);
            self.tls = Some(tls);
            return self.write_sealed();
        }
        while !self.output().is_empty() && !matches!(self.state, State::Ended(_)) {
            match self.stream.write(output_of(self.deflate.as_deref(), &self.feed)) {
                Ok(written) => self.output_written(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => self.end(format!("write: {error}")),
            }
        }
    }

    fn write_sealed(&mut self) {
        while let Some(tls) = &mut self.tls
            && !tls.output().is_empty()
            && !matches!(self.state, State::Ended(_))
        {
            match self.stream.write(tls.output()) {
                Ok(written) => tls.output_written(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => self.end(format!("write: {error}")),
            }
        }
    }

    fn end(&mut self, why: String) {
        if !matches!(self.state, State::Ended(_)) {
            self.state = State::Ended(why);
            let _ = self.stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// The request with the offer of compression until it is written, then what the feed sends.
#[inline]
fn output_of<'a>(deflate: Option<&'a Deflate>, feed: &'a Feed) -> &'a [u8] {
    deflate.map(Deflate::output).filter(|request| !request.is_empty()).unwrap_or_else(|| feed.output())
}
