//! One subscriber: a socket, a session, and how far it came.

use std::io::{self, ErrorKind, Read, Write};

use crate::{
    feed::Feed,
    options::Plan,
    tally::{Tally, intended_ns},
};
use mio::net::TcpStream;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tickcast::clock;
use tickcast_client::Event;

/// Reads of one connection in a row, so that a busy one does not keep the others waiting.
const READS_PER_TURN: usize = 4;

/// How far a connection came.
#[derive(Debug, PartialEq, Eq)]
pub enum State {
    Connecting,
    /// Subscriptions that are not acknowledged yet.
    Subscribing(usize),
    Subscribed,
    /// Over, and why.
    Ended(String),
}

/// What one turn left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Drained,
    /// More may be there, and no event will say so.
    MoreToRead,
}

/// One subscriber.
#[derive(Debug)]
pub struct Connection {
    pub stream: TcpStream,
    pub session: Feed,
    pub state: State,
    /// Ticks delivered since it was opened.
    pub ticks: u64,
    /// When it began to connect, monotonic.
    opened_at_ns: u64,
    /// When the last of its requests began to be written, monotonic; 0 before.
    requested_at_ns: u64,
    /// Never reads once it has subscribed.
    pub is_stalled: bool,
    /// In the place of one that left: it was not there when the window began.
    pub has_returned: bool,
    closing: Option<String>,
    pub peer_closed: bool,
}

impl Connection {
    /// Starts to connect, and queues what is to be said.
    ///
    /// # Errors
    /// What the system says to the socket, the source address or the connection.
    pub fn open(plan: &Plan, index: usize) -> io::Result<Connection> {
        let socket = Socket::new(Domain::for_address(plan.server), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(source) = plan.source(index) {
            // The port is chosen at connect, when the whole four-tuple is known: 28k ports for each pair of
            // addresses instead of 28k in all (ip(7)).
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
            socket.bind(&source.into())?;
        }
        let opened_at_ns = clock::monotonic_ns();
        match socket.connect(&plan.server.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let session =
            Feed::open(plan, index).map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))?;
        let stream = TcpStream::from_std(socket.into());
        let state = if Feed::acknowledgements(plan) == 0 { State::Subscribed } else { State::Connecting };
        Ok(Connection {
            stream,
            session,
            state,
            ticks: 0,
            opened_at_ns,
            requested_at_ns: 0,
            is_stalled: plan.is_stalled(index),
            has_returned: false,
            closing: None,
            peer_closed: false,
        })
    }

    /// The socket may be written: ends the connecting, sends what is queued.
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

    /// The peer has shut its side down: reads go on to the end.
    pub fn handle_peer_closed(&mut self) {
        self.peer_closed = true;
    }

    /// The socket may be read: takes what is there, within a budget.
    pub fn handle_readable(&mut self, buffer: &mut [u8], tally: &mut Tally) -> Turn {
        for _ in 0..READS_PER_TURN {
            if matches!(self.state, State::Ended(_) | State::Connecting) {
                return Turn::Drained;
            }
            if self.is_stalled && self.state == State::Subscribed {
                return Turn::Drained;
            }
            let mut drained = false;
            match self.stream.read(buffer) {
                Ok(0) => self.session.handle_end(),
                Ok(read) => {
                    // A short read has emptied the socket; what comes next is a new edge (epoll(7), question 9).
                    drained = read < buffer.len() && !self.peer_closed;
                    if tally.measuring {
                        tally.wire_bytes += read as u64;
                    }
                    self.session.handle_bytes(&buffer[..read]);
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
                tally.first_tick(
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

    #[inline]
    fn take_events(&mut self, tally: &mut Tally) {
        // One reading for all that a read brought: it arrived together.
        let received_ns = clock::realtime_ns();
        loop {
            match self.session.poll_event() {
                Ok(Some(Event::Tick(tick))) => {
                    self.ticks += 1;
                    tally.tick(tick.producer_time_ns, received_ns, tick.payload.len());
                    tally.numbered(&tick, received_ns);
                }
                Ok(Some(Event::Payload(payload))) => {
                    self.ticks += 1;
                    tally.tick(intended_ns(payload), received_ns, payload.len());
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
                    return self.end(why.unwrap_or_else(|| "the server closed without a word".into()));
                }
                // The session counts what was announced as left out; the tally reads it there.
                Ok(Some(Event::Conflated { .. } | Event::Gap { .. } | Event::Recovered { .. })) => {}
                Ok(Some(Event::Welcome { .. } | Event::Topic { .. } | Event::Unsubscribed { .. })) => {}
                Err(error) => {
                    let why = error.to_string();
                    return self.end(why);
                }
            }
        }
    }

    fn write(&mut self) {
        // Over a WebSocket the subscriptions follow the answer to the upgrade: the last write before they are
        // acknowledged has them.
        if self.ticks == 0 && matches!(self.state, State::Subscribing(_)) && !self.session.output().is_empty()
        {
            self.requested_at_ns = clock::monotonic_ns();
        }
        while !self.session.output().is_empty() && !matches!(self.state, State::Ended(_)) {
            match self.stream.write(self.session.output()) {
                Ok(written) => self.session.output_written(written),
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
