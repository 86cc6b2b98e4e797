//! Reads of logs for this shard's sessions: out to the ring of a log's reader, and the chunk back to the session.
//!
//! ```text
//!  chunk of history: "in the log" -> bounds, budget -> waiting -> queue -> ring -> the log's reader
//!                                                        |
//!        ticks, or the history without the log  <--- first of: the reader's answer | the deadline | the session ends, or leaves the topic
//! ```
//!
//! A session whose topic waits is recovering, as between two chunks of history: it gets no live ticks of the topic, which its home
//! keeps in the history meanwhile. The request counts as a chunk in flight, so it has room in the session's outbox, and a session
//! has at most [`HISTORY_CHUNKS_IN_FLIGHT_MAX`](crate::limits::HISTORY_CHUNKS_IN_FLIGHT_MAX). Its first chunk of a topic costs what a subscription
//! from a position costs, from the same budget.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Shard;
use crate::{
    budgets::{Expense, Payer},
    config::Limits,
    fanout::LogWant,
    home::Backfill,
    ids::SlotId,
    limits::{ANSWER_UNITS, LOG_READS_MAX, TURN_LOG_READS_EXPIRED},
    log_reads::{Cancellation, LogChunk, LogRead, LogReadOutcome, LogReaderConfig},
    metrics::counters::Counter,
    now::Now,
};

/// A request that waits for its answer.
#[derive(Debug)]
struct WaitingRead {
    want: LogWant,
    deadline_ns: u64,
    cancellation: Cancellation,
}

/// A shard's state for the reader of one log.
#[derive(Debug)]
struct Reader {
    config: LogReaderConfig,
    /// Requests that are not in the ring yet. Bound: `waiting`, and those cancelled since the ring last had room.
    queue: VecDeque<LogRead>,
    /// By ticket. Tickets ascend, and so do deadlines, because a reader has one timeout. Bound: [`LOG_READS_MAX`].
    waiting: BTreeMap<u64, WaitingRead>,
}

/// A shard's requests to the readers of logs.
///
/// Invariant: `by_slot` has each waiting request once.
#[derive(Debug)]
pub(super) struct LogReads {
    readers: Vec<Reader>,
    /// Slot of the session, index of the reader, ticket.
    by_slot: BTreeSet<(SlotId, usize, u64)>,
    tickets: u64,
}

impl LogReads {
    /// Creates empty queues for the readers of a configuration.
    pub(super) fn new(limits: &Limits) -> LogReads {
        let reader =
            |&config: &LogReaderConfig| Reader { config, queue: VecDeque::new(), waiting: BTreeMap::new() };
        let readers = limits.log_readers.iter().map(reader).collect();
        LogReads { readers, by_slot: BTreeSet::new(), tickets: 0 }
    }

    /// Whether a source's log has a reader.
    pub(super) fn has_reader(&self, source: u32) -> bool {
        self.readers.iter().any(|reader| reader.config.source == source)
    }

    fn index_of(&self, source: u32) -> Option<usize> {
        self.readers.iter().position(|reader| reader.config.source == source)
    }

    /// Deadline of the next request, when it is given up.
    pub(super) fn next_deadline_ns(&self) -> Option<u64> {
        let firsts = self.readers.iter().filter_map(|reader| reader.waiting.first_key_value());
        firsts.map(|(_, waiting)| waiting.deadline_ns).min()
    }

    fn remove(&mut self, at: usize, ticket: u64) -> Option<WaitingRead> {
        let waiting = self.readers.get_mut(at)?.waiting.remove(&ticket)?;
        self.by_slot.remove(&(waiting.want.session.slot(), at, ticket));
        self.invariants();
        Some(waiting)
    }

    /// Checks the tables against each other. O(readers).
    fn invariants(&self) {
        debug_assert_eq!(
            self.by_slot.len(),
            self.readers.iter().map(|reader| reader.waiting.len()).sum::<usize>(),
            "each request is listed once by slot"
        );
        debug_assert!(
            self.readers.iter().all(|reader| reader.waiting.len() <= LOG_READS_MAX),
            "requests are bounded"
        );
    }

    /// Bytes of the requests.
    pub(super) fn heap_bytes(&self) -> usize {
        let of_reader = |reader: &Reader| {
            let waiting = reader.waiting.values();
            let names: usize = waiting.map(|waiting| waiting.want.name.len()).sum();
            let queued: usize = reader.queue.iter().map(|read| read.name.len()).sum();
            names + queued + reader.queue.capacity() * size_of::<LogRead>()
        };
        self.readers.iter().map(of_reader).sum::<usize>()
            + self.by_slot.len() * (size_of::<WaitingRead>() + size_of::<(SlotId, usize, u64)>())
    }
}

impl Shard {
    /// Requests the ticks that sessions want from logs, or lets them go on without.
    pub(super) fn request_log_reads(&mut self, now: Now) {
        if !self.fanout.has_log_wants() {
            return;
        }
        for want in self.fanout.take_log_wants() {
            self.charge(ANSWER_UNITS);
            if !self.request_log_read(&want, now) {
                self.counters.add(Counter::LogReadsRefused, 1);
                self.fanout.handle_unread(&want, &mut self.sessions);
            }
        }
    }

    /// Requests ticks from the reader of a log. Returns `false` if a bound or a budget does not allow it.
    fn request_log_read(&mut self, want: &LogWant, now: Now) -> bool {
        let Some(at) = self.log_reads.index_of(want.source).filter(|_| !self.input_stopped) else {
            return false;
        };
        if self.log_reads.readers[at].waiting.len() >= LOG_READS_MAX {
            return false;
        }
        let slot = want.session.slot();
        let session = self.sessions.open_mut(slot).filter(|session| session.id == want.session);
        // A session that has ended needs no answer.
        let Some(source) = session.map(|session| session.source) else { return false };
        if want.wanted == Backfill::Position {
            let payer = Payer { session: want.session, source };
            let paid = self.budgets.spend(payer, &[(Expense::History, 1)], now.monotonic_ns);
            if let Err(overspent) = paid {
                self.counters.add(overspent.counter(), 1);
                return false;
            }
        }
        self.counters.add(Counter::LogReads, 1);
        let reads = &mut self.log_reads;
        reads.tickets += 1;
        let (ticket, reader) = (reads.tickets, &mut reads.readers[at]);
        let deadline_ns = now.monotonic_ns.saturating_add(reader.config.timeout_ns);
        let cancellation = Cancellation::default();
        reader.queue.push_back(LogRead {
            ticket,
            topic: want.topic,
            name: want.name.clone(),
            epoch: want.epoch,
            from: want.from,
            until: want.until,
            answer_by_ns: deadline_ns - reader.config.timeout_ns.min(deadline_ns) / 2,
            deadline_ns,
            cancellation: cancellation.clone(),
        });
        let waiting = WaitingRead { want: want.clone(), deadline_ns, cancellation };
        reader.waiting.insert(ticket, waiting);
        reads.by_slot.insert((slot, at, ticket));
        reads.invariants();
        self.count_waiting_reads();
        true
    }

    /// Calls `take` with the requests queued for the reader of a source's log, so that it can move them into the reader's ring.
    /// Nothing to do for an unknown source.
    pub fn with_log_reads<R>(
        &mut self,
        source: u32,
        take: impl FnOnce(&mut VecDeque<LogRead>) -> R,
    ) -> Option<R> {
        let at = self.log_reads.index_of(source)?;
        let queue = &mut self.log_reads.readers[at].queue;
        while queue.front().is_some_and(|read| read.cancellation.is_cancelled()) {
            queue.pop_front();
        }
        Some(take(queue))
    }

    /// Processes the answer of a log's reader. One that nobody waits for any more is only counted. Call only while
    /// [`Shard::takes_deliveries`].
    pub fn handle_log_chunk(&mut self, source: u32, chunk: &LogChunk, now: Now) {
        std::mem::swap(&mut self.mesh_units_left, &mut self.intake_units_left);
        self.charge(ANSWER_UNITS);
        let waiting = self
            .log_reads
            .index_of(source)
            .and_then(|at| self.log_reads.remove(at, chunk.ticket))
            .map(|waiting| waiting.want);
        self.count_waiting_reads();
        match (waiting, chunk.outcome) {
            (None, _) => self.counters.add(Counter::LogReadsLate, 1),
            (Some(want), LogReadOutcome::Read { end }) => {
                debug_assert!(want.from < end && end <= want.until, "the reader answers what was asked");
                self.counters.add(Counter::LogTicksRead, chunk.ticks.into());
                let Shard { fanout, sessions, logs, .. } = self;
                fanout.handle_read(&want, end, &chunk.frames, sessions, logs);
            }
            (Some(want), LogReadOutcome::Gone) => {
                self.counters.add(Counter::LogReadsTooOld, 1);
                self.fanout.handle_unread(&want, &mut self.sessions);
            }
        }
        self.apply_deferred(now);
        std::mem::swap(&mut self.mesh_units_left, &mut self.intake_units_left);
    }

    /// Gives up requests whose deadline has passed, a bounded number per turn. Returns whether there were any.
    pub(super) fn expire_log_reads(&mut self, now: Now) -> bool {
        let mut expired = 0;
        for at in 0..self.log_reads.readers.len() {
            while expired < TURN_LOG_READS_EXPIRED
                && let Some((&ticket, first)) = self.log_reads.readers[at].waiting.first_key_value()
                && first.deadline_ns <= now.monotonic_ns
                && let Some(waiting) = self.log_reads.remove(at, ticket)
            {
                waiting.cancellation.cancel();
                self.counters.add(Counter::LogReadsExpired, 1);
                self.fanout.handle_unread(&waiting.want, &mut self.sessions);
                expired += 1;
            }
        }
        if expired > 0 {
            self.count_waiting_reads();
        }
        expired > 0
    }

    /// Cancels what a session has requested, because it ends. O(its requests * log requests).
    pub(super) fn cancel_log_reads(&mut self, slot: SlotId) {
        let mut is_changed = false;
        let first = |reads: &LogReads| reads.by_slot.range((slot, 0, 0)..).next().copied();
        while let Some((_, at, ticket)) = first(&self.log_reads).filter(|(of, ..)| *of == slot) {
            match self.log_reads.remove(at, ticket) {
                Some(waiting) => waiting.cancellation.cancel(),
                None => break,
            }
            is_changed = true;
        }
        if is_changed {
            self.count_waiting_reads();
        }
    }

    /// Cancels what a session has requested of topics that it has left since, so that its other topics can recover meanwhile. O(its
    /// requests * log requests).
    pub(super) fn cancel_left_log_reads(&mut self, slot: SlotId) {
        let of_slot = self.log_reads.by_slot.range((slot, 0, 0)..).take_while(|(of, ..)| *of == slot);
        let listed: Vec<(usize, u64)> = of_slot.map(|&(_, at, ticket)| (at, ticket)).collect();
        for (at, ticket) in listed {
            let topic = self.log_reads.readers[at].waiting.get(&ticket).map(|waiting| waiting.want.topic);
            let session = self.sessions.open_mut(slot);
            let is_left = topic.zip(session).filter(|(topic, session)| !session.memberships.contains(*topic));
            let Some((_, session)) = is_left else { continue };
            let lag = session.lag_mut();
            lag.chunks_in_flight = lag.chunks_in_flight.saturating_sub(1);
            if let Some(waiting) = self.log_reads.remove(at, ticket) {
                waiting.cancellation.cancel();
            }
            self.fanout.queue_pull(slot, &mut self.sessions);
            self.count_waiting_reads();
        }
    }

    /// Cancels what sessions have requested of topics that they have left because their homes forgot them. O(requests * log requests).
    pub(super) fn cancel_forgotten_log_reads(&mut self) {
        let mut slots: Vec<SlotId> = self.log_reads.by_slot.iter().map(|&(slot, ..)| slot).collect();
        slots.dedup();
        slots.into_iter().for_each(|slot| self.cancel_left_log_reads(slot));
    }

    fn count_waiting_reads(&self) {
        self.counters.set(Counter::LogReadsWaiting, self.log_reads.by_slot.len() as u64);
    }
}

#[cfg(test)]
mod tests;
