//! One thread: its connections, an event loop and a shared read buffer.
//!
//! It uses epoll(7) and recv(2) rather than io_uring: multishot receives took the same CPU for 100 connections at 500,000
//! ticks/s, and the median latency was 20 % higher, because all ready sockets are received before the first is parsed.

mod churn;

use std::{
    collections::{BTreeMap, VecDeque},
    io::ErrorKind,
    sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mio::{Events, Interest, Poll, Token};
use tickcast::clock;

use self::churn::Churn;
use crate::{
    clients::{Client, Counts},
    common::process::{pin_thread, thread_cpu_ns},
    connection::{Buffers, Connection, State, Turn},
    plan::Plan,
    tally::{self, Loss, SequenceByTopic, Tally},
};

/// Size of the read buffer.
const READ_BYTES: usize = 64 << 10;
/// Most events per epoll_wait(2).
const EVENTS_MAX: usize = 1_024;
/// Connections opened per turn of a spike; the sockets already open are read in between.
const SPIKE_OPENS_PER_TURN: usize = 64;
/// Longest sleep, which bounds how late a thread notices a new phase.
const SLEEP_MS_MAX: u64 = 5;
/// Interval at which a settling thread checks whether everything has arrived.
const SETTLE_CHECK_NS: u64 = 20_000_000;

/// Phase of the run, the same for all threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    Ramp,
    WarmUp,
    /// Note the highest sequences, from which loss is counted.
    Start,
    Measure,
    /// Note the highest sequences again, up to which loss is counted.
    End,
    Settle,
    Done,
}

impl Phase {
    const ALL: [Phase; 7] =
        [Phase::Ramp, Phase::WarmUp, Phase::Start, Phase::Measure, Phase::End, Phase::Settle, Phase::Done];
}

/// State shared by the threads and their coordinator; written a few times a second, not per tick.
#[derive(Debug, Default)]
pub struct Shared {
    phase: AtomicU8,
    pub subscribed: AtomicUsize,
    /// Connections that have received all expected ticks.
    pub complete: AtomicUsize,
    /// Threads that have completed the phase; only Start, End and Settle are completed.
    pub done: AtomicUsize,
    /// All threads have noted the start; false if the run was interrupted before.
    pub has_start: AtomicBool,
    pub start: Mutex<SequenceByTopic>,
    pub end: Mutex<SequenceByTopic>,
    /// The first reason why the run cannot continue.
    failure: Mutex<Option<String>>,
}

impl Shared {
    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Acquire))]
    }

    pub fn enter(&self, phase: Phase) {
        self.done.store(0, Ordering::Release);
        self.phase.store(phase as u8, Ordering::Release);
    }

    pub fn fail(&self, why: String) {
        lock(&self.failure).get_or_insert(why);
        self.phase.store(Phase::Done as u8, Ordering::Release);
    }

    pub fn failure(&self) -> Option<String> {
        lock(&self.failure).clone()
    }
}

/// Locks a mutex, even a poisoned one.
///
/// A thread that panicked has ended the run, and what it guarded is only reported.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Results of one thread.
#[derive(Debug)]
pub struct WorkerReport {
    pub tally: Tally,
    pub window_ns: u64,
    pub cpu_ns: u64,
    pub loss: Loss,
    pub clients: Vec<Client>,
    /// Expected ticks that the connections did not receive.
    pub short: u64,
    /// Connections that ended before the run did, by reason.
    pub ended: BTreeMap<String, usize>,
    /// Stalled connections that the server was seen to close.
    pub stalled_closed: usize,
    /// Connections that were reset, and those of them that subscribed again.
    pub left: u64,
    pub came_back: u64,
}

/// State of one thread.
///
/// Invariant: `subscribed + ended` is at most `connections.len()`, which is at most `share`.
pub struct Worker<'a> {
    plan: &'a Plan,
    shared: &'a Shared,
    index: usize,
    share: usize,
    poll: Poll,
    connections: Vec<Connection>,
    /// Connections that used up their read budget: no event will announce their remaining bytes.
    unread: VecDeque<usize>,
    buffers: Buffers,
    tally: Tally,
    opened_at_ns: u64,
    connecting: usize,
    churn: Churn,
    phase: Phase,
    window_from_ns: u64,
    window_ns: u64,
    cpu_from_ns: u64,
    cpu_ns: u64,
    checked_at_ns: u64,
    is_settled: bool,
}

/// Runs the `index`-th thread to the end of the run.
///
/// # Errors
/// One line for the operator; the run ends for all threads.
pub fn run(plan: &Plan, shared: &Shared, index: usize) -> Result<WorkerReport, String> {
    let result = Worker::new(plan, shared, index).and_then(Worker::run);
    if let Err(why) = &result {
        shared.fail(why.clone());
    }
    result
}

impl<'a> Worker<'a> {
    fn new(plan: &'a Plan, shared: &'a Shared, index: usize) -> Result<Worker<'a>, String> {
        if let Some(first) = plan.pin {
            pin_thread("--pin", first + index)?;
        }
        let share = plan.connections / plan.threads + usize::from(index < plan.connections % plan.threads);
        let mut tally = Tally::new()?;
        tally.in_spike = plan.spike;
        tally.measuring = plan.expect_ticks.is_some();
        Ok(Worker {
            plan,
            shared,
            index,
            share,
            poll: Poll::new().map_err(|error| format!("epoll: {error}"))?,
            connections: Vec::with_capacity(share),
            unread: VecDeque::new(),
            buffers: Buffers::new(READ_BYTES),
            tally,
            opened_at_ns: clock::monotonic_ns(),
            connecting: 0,
            churn: Churn::default(),
            phase: Phase::Ramp,
            window_from_ns: 0,
            window_ns: 0,
            cpu_from_ns: 0,
            cpu_ns: 0,
            checked_at_ns: 0,
            is_settled: false,
        })
    }

    fn run(mut self) -> Result<WorkerReport, String> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        while self.phase != Phase::Done {
            let phase = self.shared.phase();
            if phase != self.phase {
                self.enter(phase);
            }
            if phase == Phase::Ramp {
                self.open_due()?;
            }
            if phase == Phase::Measure && self.plan.churn_per_s > 0 {
                self.churn_due()?;
            }
            let is_opening = phase == Phase::Ramp && self.may_open() && self.plan.spike;
            let timeout_ms = if self.unread.is_empty() && !is_opening { SLEEP_MS_MAX } else { 0 };
            match self.poll.poll(&mut events, Some(Duration::from_millis(timeout_ms))) {
                Err(error) if error.kind() != ErrorKind::Interrupted => {
                    return Err(format!("epoll: {error}"));
                }
                _ => {}
            }
            for event in &events {
                let at = event.token().0;
                if event.is_read_closed() || event.is_error() {
                    self.connections[at].handle_peer_closed();
                }
                if event.is_writable() || event.is_error() {
                    self.turn(at, |connection, context| connection.handle_writable(context.plan))?;
                }
                if event.is_readable() || event.is_read_closed() {
                    self.read(at)?;
                }
            }
            for _ in 0..self.unread.len() {
                let Some(at) = self.unread.pop_front() else { break };
                self.read(at)?;
            }
            if phase == Phase::Settle {
                self.check_settled();
            }
        }
        Ok(self.report())
    }

    fn open_due(&mut self) -> Result<(), String> {
        let elapsed_ns = clock::monotonic_ns() - self.opened_at_ns;
        let due =
            u128::from(elapsed_ns) * self.plan.ramp_per_s as u128 / self.plan.threads as u128 / 1_000_000_000;
        let due = match self.plan.spike {
            true => self.share.min(self.connections.len() + SPIKE_OPENS_PER_TURN),
            false => self.share.min(due as usize + 1),
        };
        while self.connections.len() < due && self.may_open() {
            let at = self.connections.len();
            let global = at * self.plan.threads + self.index;
            let fail = |error| format!("connection {global} to {}: {error}", self.plan.server);
            let mut connection = Connection::open(self.plan, global).map_err(fail)?;
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut connection.stream, Token(at), interest).map_err(fail)?;
            self.connections.push(connection);
            self.connecting += 1;
        }
        Ok(())
    }

    fn may_open(&self) -> bool {
        self.connections.len() < self.share && self.connecting < self.plan.connecting_max()
    }

    fn read(&mut self, at: usize) -> Result<(), String> {
        let mut turn = Turn::Drained;
        self.turn(at, |connection, context| {
            turn = connection.handle_readable(context.buffers, context.tally);
        })?;
        if turn == Turn::MoreToRead {
            self.unread.push_back(at);
        }
        Ok(())
    }

    /// Runs one connection and counts its changes of state.
    #[inline]
    fn turn(&mut self, at: usize, act: impl FnOnce(&mut Connection, Context<'_>)) -> Result<(), String> {
        let connection = &mut self.connections[at];
        let was_open = matches!(connection.state, State::Subscribed | State::Ended(_));
        let was_complete = self.plan.expect_ticks.is_some_and(|wanted| connection.ticks >= wanted);
        act(connection, Context { plan: self.plan, buffers: &mut self.buffers, tally: &mut self.tally });
        if !was_open {
            match &connection.state {
                State::Subscribed if connection.is_reconnect => {
                    self.connecting -= 1;
                    self.churn.came_back += 1;
                }
                State::Subscribed => {
                    self.connecting -= 1;
                    self.shared.subscribed.fetch_add(1, Ordering::AcqRel);
                }
                // Counted as ended early, so that what was measured so far is still reported.
                State::Ended(_) if connection.is_reconnect => self.connecting -= 1,
                State::Ended(why) => return Err(format!("a connection to {}: {why}", self.plan.server)),
                State::Connecting | State::Subscribing(_) => {}
            }
        }
        if !was_complete && self.plan.expect_ticks.is_some_and(|wanted| connection.ticks >= wanted) {
            self.shared.complete.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }

    fn enter(&mut self, phase: Phase) {
        let (now_ns, cpu_ns) = (clock::monotonic_ns(), thread_cpu_ns());
        if self.phase == Phase::Measure {
            (self.tally.measuring, self.tally.in_spike) = (false, false);
            self.window_ns = now_ns - self.window_from_ns;
            self.cpu_ns = cpu_ns - self.cpu_from_ns;
        }
        self.phase = phase;
        match phase {
            Phase::Start => self.note(&self.shared.start),
            Phase::Measure => {
                self.tally.measuring = true;
                (self.window_from_ns, self.cpu_from_ns) = (now_ns, cpu_ns);
                // Nobody waits for this phase, and the next one may have begun: do not count it as done.
                return;
            }
            Phase::End => {
                if self.plan.expect_ticks.is_some() {
                    let mut start = lock(&self.shared.start);
                    self.connections.iter().for_each(|one| tally::lower_to_first(&mut start, &one.feed));
                }
                self.note(&self.shared.end);
            }
            Phase::Ramp | Phase::WarmUp | Phase::Settle | Phase::Done => return,
        }
        self.shared.done.fetch_add(1, Ordering::AcqRel);
    }

    /// Raises `shared` to the highest sequences that this thread has seen.
    fn note(&self, shared: &Mutex<SequenceByTopic>) {
        let mut seen = self.churn.seen.clone();
        self.connections.iter().for_each(|one| tally::raise_to_last(&mut seen, &one.feed));
        let mut shared = lock(shared);
        seen.into_iter().for_each(|(topic, sequence)| tally::raise(&mut shared, topic, sequence));
    }

    fn check_settled(&mut self) {
        let now_ns = clock::monotonic_ns();
        if self.is_settled || now_ns < self.checked_at_ns + SETTLE_CHECK_NS {
            return;
        }
        let end = lock(&self.shared.end);
        self.is_settled = self.connections.iter().all(|one| match one.state {
            State::Ended(_) => true,
            _ if one.is_stalled => true,
            // Topics that ticked only before it reconnected are not its concern.
            State::Subscribed if one.is_reconnect => Loss::of_feed(&one.feed, None, &end).tail == 0,
            _ if self.plan.own_topics.is_some() => {
                tally::has_reached(&one.feed, &tally::known_part(&end, &one.feed))
            }
            _ => tally::has_reached(&one.feed, &end),
        });
        self.checked_at_ns = now_ns;
        if self.is_settled {
            self.shared.done.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Whether it is known which ticks the `at`-th connection could have seen first.
    fn is_start_known(&self, at: usize) -> bool {
        let is_known = self.shared.has_start.load(Ordering::Acquire) || self.plan.expect_ticks.is_some();
        is_known && !self.connections[at].is_reconnect
    }

    fn client(&self, at: usize) -> Client {
        let connection = &self.connections[at];
        let mut counts = Counts::of_topics(connection.ticks, connection.feed.topics());
        counts.add(self.churn.before.get(&at).copied().unwrap_or_default());
        let index = at * self.plan.threads + self.index;
        let ended = match &connection.state {
            State::Ended(why) => Some(why.clone()),
            _ => None,
        };
        let source = connection.stream.local_addr().ok().or_else(|| self.plan.source(index));
        Client { index, source, counts, stalled: connection.is_stalled, ended }
    }

    fn report(self) -> WorkerReport {
        let (start, end) = (lock(&self.shared.start), lock(&self.shared.end));
        let mut loss = self.churn.loss;
        let mut short = 0;
        let mut ended = BTreeMap::new();
        let mut stalled_closed = 0;
        let mut clients = Vec::with_capacity(self.connections.len());
        for (at, connection) in self.connections.iter().enumerate() {
            clients.push(self.client(at));
            if connection.is_stalled {
                stalled_closed += usize::from(connection.peer_closed);
                continue;
            }
            if self.plan.has_sequences() {
                let own_end = self.plan.own_topics.map(|_| tally::known_part(&end, &connection.feed));
                loss.add(Loss::of_feed(
                    &connection.feed,
                    self.is_start_known(at).then_some(&*start),
                    own_end.as_ref().unwrap_or(&end),
                ));
            }
            short += self.plan.expect_ticks.unwrap_or(0).saturating_sub(connection.ticks);
            if let State::Ended(why) = &connection.state {
                *ended.entry(why.clone()).or_insert(0) += 1;
            }
        }
        drop((start, end));
        WorkerReport {
            tally: self.tally,
            window_ns: self.window_ns,
            cpu_ns: self.cpu_ns,
            loss,
            clients,
            short,
            ended,
            stalled_closed,
            left: self.churn.left,
            came_back: self.churn.came_back,
        }
    }
}

/// Parts of the thread that a connection's turn uses.
struct Context<'a> {
    plan: &'a Plan,
    buffers: &'a mut Buffers,
    tally: &'a mut Tally,
}
