//! The task of an asynchronous client: a session, a socket and a timer.

use std::{
    future::{Future, poll_fn},
    io, mem,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncWrite, ReadBuf},
    task::JoinSet,
    time::{Sleep, sleep, timeout},
};

use super::{
    GetToken, SavePositions, Shared, TokenFuture,
    dial::{Dialed, Dialer, Socket},
};
use crate::{
    Action, ClientToken, Message, OUTPUT_BYTES_MAX, Positions, clock,
    link::{CLOSE_CUT, Link, LinkEvent},
};

/// Time to send what waits, and a close frame, on a connection that this client ends.
const HANG_UP_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes read in one call.
const READ_BYTES: usize = 64 << 10;

type Dialing = Pin<Box<dyn Future<Output = Result<Dialed, String>> + Send>>;

/// A connection that is open, perhaps still in its handshake.
struct Open {
    socket: Box<dyn Socket>,
    link: Link,
    /// Bytes were written since the last flush: TLS may hold them back.
    needs_flush: bool,
    /// A write has failed. What the server had sent before is still read.
    has_failed: bool,
    /// The link may have more events: the application had no room for them.
    has_events: bool,
}

#[derive(Default)]
enum Connection {
    #[default]
    None,
    Dialing(Dialing),
    Open(Box<Open>),
}

/// What a wait ended with.
enum Turn {
    /// A handle has changed something.
    Woken,
    Timeout,
    Dialed(Result<Dialed, String>),
    /// So many bytes were read; 0: the end of the stream.
    Read(usize),
    Token(Result<ClientToken, String>),
}

pub(super) struct Driver {
    shared: Arc<Shared>,
    dialer: Arc<Dialer>,
    get_token: Option<GetToken>,
    save_positions: Option<SavePositions>,
    connection: Connection,
    token: Option<TokenFuture>,
    /// The timer, and its deadline.
    timer: Option<(u64, Pin<Box<Sleep>>)>,
    /// Connections that send what waits before they close. Each lasts at most [`HANG_UP_TIMEOUT`].
    hang_ups: JoinSet<()>,
    buffer: Box<[u8]>,
}

/// Says that the task has ended, however it does.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        // Nobody serves the session any more: subscriptions end.
        state.is_closing = true;
        state.session.disconnect(clock::monotonic_ns());
        self.0.pump(&mut state);
        // Waiting publishes are answered by the drop of their senders.
        state.publishes.clear();
        drop(state);
        self.0.ended.send_replace(true);
    }
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        dialer: Arc<Dialer>,
        get_token: Option<GetToken>,
        save_positions: Option<SavePositions>,
    ) -> Driver {
        Driver {
            shared,
            dialer,
            get_token,
            save_positions,
            connection: Connection::None,
            token: None,
            timer: None,
            hang_ups: JoinSet::new(),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
        }
    }

    /// Runs until the last handle is gone, or the client is closed.
    pub(super) async fn run(mut self) {
        let _ended = Ended(self.shared.clone());
        loop {
            let (deadline_ns, is_paused, is_closing) = self.take_actions();
            while self.hang_ups.try_join_next().is_some() {}
            if is_closing {
                break;
            }
            let turn = self.wait(deadline_ns, is_paused).await;
            self.handle(turn, is_paused);
        }
        while self.hang_ups.join_next().await.is_some() {}
    }

    /// Does what the session asks for. Returns its next deadline, whether to pause reading, and whether to end.
    fn take_actions(&mut self) -> (Option<u64>, bool, bool) {
        let mut actions = Vec::new();
        let shared = self.shared.clone();
        let mut state = shared.lock();
        let is_closing = state.is_closing;
        if is_closing {
            state.session.disconnect(clock::monotonic_ns());
            shared.pump(&mut state);
        }
        while let Some(mut action) = state.session.poll_action() {
            if let Action::Save(positions) = &mut action {
                *positions = state.finished_positions();
            }
            actions.push(action);
        }
        if is_closing {
            // Events that were read since the last time have moved the positions.
            actions.retain(|action| !matches!(action, Action::Save(_)));
            actions.push(Action::Save(state.finished_positions()));
        }
        let (deadline_ns, is_paused) = (state.session.poll_timeout(), state.is_paused());
        drop(state);
        // Without the lock: hooks of the application may call the client.
        for action in actions {
            self.act(action);
        }
        let output_bytes = match &self.connection {
            Connection::Open(open) => open.link.poll_transmit().len(),
            _ => 0,
        };
        self.shared.lock().output_bytes = output_bytes;
        (deadline_ns, is_paused, is_closing)
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Dial { url, .. } => {
                self.connection = Connection::Dialing(Box::pin(self.dialer.clone().dial(url)));
            }
            Action::Send { message, is_optional } => self.send(message, is_optional),
            Action::HangUp { code } => {
                // An attempt to connect is abandoned.
                if let Connection::Open(mut open) = mem::take(&mut self.connection) {
                    open.link.hang_up(code);
                    self.hang_ups.spawn(hang_up(open));
                }
            }
            Action::AskToken(purpose) => {
                self.token = self.get_token.as_mut().map(|get_token| get_token(purpose));
            }
            Action::Save(positions) => self.save(positions),
        }
    }

    fn send(&mut self, message: Message, is_optional: bool) {
        if let Connection::Open(open) = &mut self.connection {
            let is_full = open.link.poll_transmit().len() > OUTPUT_BYTES_MAX;
            if !(is_optional && is_full) {
                open.link.send(message);
            }
        }
    }

    fn save(&mut self, positions: Positions) {
        if let Some(save_positions) = &mut self.save_positions {
            save_positions(positions);
        }
    }

    /// Writes what waits, until something is to be handled.
    async fn wait(&mut self, deadline_ns: Option<u64>, is_paused: bool) -> Turn {
        let now_ns = clock::monotonic_ns();
        if self.timer.as_ref().map(|(at_ns, _)| *at_ns) != deadline_ns {
            self.timer = deadline_ns.map(|at_ns| {
                let left = Duration::from_nanos(at_ns.saturating_sub(now_ns));
                (at_ns, Box::pin(sleep(left)))
            });
        }
        let shared = self.shared.clone();
        let mut woken = pin!(shared.wake.notified());
        poll_fn(|context| {
            if let Some((_, timer)) = &mut self.timer
                && timer.as_mut().poll(context).is_ready()
            {
                self.timer = None;
                return Poll::Ready(Turn::Timeout);
            }
            if let Some(token) = &mut self.token
                && let Poll::Ready(token) = token.as_mut().poll(context)
            {
                self.token = None;
                return Poll::Ready(Turn::Token(token));
            }
            let turn = match &mut self.connection {
                Connection::None => Poll::Pending,
                Connection::Dialing(dialing) => dialing.as_mut().poll(context).map(Turn::Dialed),
                Connection::Open(open) => {
                    if !open.has_failed && matches!(open.poll_write(context), Poll::Ready(Err(_))) {
                        open.has_failed = true;
                    }
                    match is_paused && !open.has_failed {
                        true => Poll::Pending,
                        false if open.has_events => Poll::Ready(Turn::Woken),
                        false => open.poll_read(context, &mut self.buffer).map(Turn::Read),
                    }
                }
            };
            // Last: what the handles ask for is done after every turn, so they cannot keep the task from reading.
            match turn {
                Poll::Pending => woken.as_mut().poll(context).map(|()| Turn::Woken),
                turn => turn,
            }
        })
        .await
    }

    fn handle(&mut self, turn: Turn, is_paused: bool) {
        let now_ns = clock::monotonic_ns();
        let shared = self.shared.clone();
        let mut state = shared.lock();
        match turn {
            Turn::Woken => {}
            Turn::Timeout => {
                if is_paused {
                    // The silence is the application's own.
                    state.session.handle_paused();
                }
                state.session.handle_timeout(now_ns);
            }
            Turn::Token(Ok(token)) => state.session.handle_token(token, now_ns),
            Turn::Token(Err(reason)) => state.session.handle_token_failed(&reason, now_ns),
            Turn::Dialed(Err(reason)) => {
                self.connection = Connection::None;
                state.session.handle_closed(CLOSE_CUT, &reason, 0, now_ns);
            }
            Turn::Dialed(Ok((socket, link))) => {
                let open = Open { socket, link, needs_flush: false, has_failed: false, has_events: true };
                self.connection = Connection::Open(Box::new(open));
            }
            Turn::Read(read) => {
                if let Connection::Open(open) = &mut self.connection {
                    match read {
                        0 => open.link.handle_eof(),
                        read => open.link.handle_bytes(&self.buffer[..read]),
                    }
                }
            }
        }
        let Connection::Open(open) = &mut self.connection else {
            shared.pump(&mut state);
            return;
        };
        let mut has_ended = false;
        open.has_events = true;
        // What a server had sent before a write failed is taken whatever the application does.
        while open.has_failed || !state.holds_back() {
            let Some(event) = open.link.poll_event() else {
                open.has_events = false;
                break;
            };
            match event {
                LinkEvent::Open(protocol) => state.session.handle_open(protocol, now_ns),
                LinkEvent::Message(message) => {
                    state.session.handle_message(&message, now_ns, clock::wall_ns());
                }
                LinkEvent::Closed { code, reason, reconnect_after_ms } => {
                    state.session.handle_closed(code, &reason, reconnect_after_ms, now_ns);
                    has_ended = true;
                }
            }
            shared.pump(&mut state);
        }
        shared.pump(&mut state);
        if has_ended && let Connection::Open(open) = mem::take(&mut self.connection) {
            // The answer to a close frame.
            self.hang_ups.spawn(hang_up(open));
        }
    }
}

impl Open {
    /// Writes what waits and flushes it.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.link.poll_transmit().is_empty() {
            match Pin::new(&mut self.socket).poll_write(context, self.link.poll_transmit()) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => {
                    self.link.handle_transmitted(written);
                    self.needs_flush = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        if self.needs_flush {
            match Pin::new(&mut self.socket).poll_flush(context) {
                Poll::Ready(Ok(())) => self.needs_flush = false,
                other => return other,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once. An error counts as the end: the session learns from its length that the connection was cut.
    fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<usize> {
        let mut buffer = ReadBuf::new(buffer);
        match tokio::io::AsyncRead::poll_read(Pin::new(&mut self.socket), context, &mut buffer) {
            Poll::Ready(Ok(())) => Poll::Ready(buffer.filled().len()),
            Poll::Ready(Err(_)) => Poll::Ready(0),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Sends what waits, says goodbye, and waits until the server has closed its side: a socket that is closed with unread input resets
/// the connection, and the server could lose what it has not read yet (RFC 1122, section 4.2.2.13).
async fn hang_up(mut open: Box<Open>) {
    let ending = async {
        poll_fn(|context| open.poll_write(context)).await.ok()?;
        poll_fn(|context| Pin::new(&mut open.socket).poll_shutdown(context)).await.ok()?;
        let mut buffer = [0; 4_096];
        while poll_fn(|context| open.poll_read(context, &mut buffer)).await > 0 {}
        Some(())
    };
    // A server that does not read has its reasons.
    let _ = timeout(HANG_UP_TIMEOUT, ending).await;
}
