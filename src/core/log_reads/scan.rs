//! Decides which part of a log its reader reads next, and collects the ticks for everybody who waits.
//!
//! ```text
//!  positions     10 . . . . . . . . . . . . . 60 . . . . . . . .
//!                 ^ lowest place wanted        ^ another
//!  pass           |------------ read --------->  one pass serves both
//!  window                   [ kept for requests that follow )
//! ```
//!
//! A pass begins at the lowest place wanted, and goes on while somebody waits for what it comes to. It keeps the ticks that it has read last
//! in a window, because a session requests a chunk only when it has the one before. If others wait elsewhere (in another life of the log,
//! before the window, or far ahead), a pass ends after [`LOG_READ_PASS_MESSAGES`]: those that it serves get what has been read so
//! far, and the next pass begins at the place that has waited longest.

use std::collections::{HashMap, VecDeque};

use super::{LogChunk, LogRead, LogReadOutcome};
use crate::limits::{
    HISTORY_CHUNK_BYTES, LOG_READ_PASS_MESSAGES, LOG_READ_WINDOW_BYTES, LOG_READS_ACTIVE_MAX,
};
use tickcast_proto::{
    frame::{self, TickParts},
    ids::Sequence,
    logged,
    records::TickTimes,
};

/// Bytes of a tick in the window, besides its topic and payload.
const WINDOW_TICK_BYTES: usize = 96;

/// A message of the log that maps to a tick.
#[derive(Clone, Copy, Debug)]
pub struct LogTick<'a> {
    /// Its position.
    pub position: u64,
    /// Name of its topic.
    pub topic: &'a str,
    /// The parts of the tick.
    pub parts: TickParts<'a>,
}

/// What the reader must do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanStep {
    /// Nothing: nobody waits.
    Idle,
    /// Open the log in the life with this epoch at this position. Then call [`LogScan::begin`], or [`LogScan::refuse`] if it no longer
    /// has everything from there on.
    Open {
        /// Epoch of the life.
        epoch: u64,
        /// The first position to read.
        from: u64,
    },
    /// Read some messages in order. Call [`LogScan::tick`] for each that maps to a tick, then [`LogScan::reached`]; or
    /// [`LogScan::end_pass`] where something is missing, or if the log cannot be read.
    Read,
}

#[derive(Debug)]
struct Want {
    read: LogRead,
    /// When it came, compared with the others.
    number: u64,
    /// Whether the present pass collects ticks for it.
    collecting: Collecting,
    frames: Vec<u8>,
    ticks: u32,
    /// Position of the last tick in `frames`, or the one before the first position wanted.
    last: u64,
}

/// Whether a pass collects ticks for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Collecting {
    /// The pass began after the first position wanted, or reads another life of the log.
    No,
    Yes,
    /// It did, until a tick did not fit.
    Full,
}

impl Want {
    fn new(read: LogRead, number: u64) -> Want {
        let last = read.from.saturating_sub(1);
        Want { read, number, collecting: Collecting::No, frames: Vec::new(), ticks: 0, last }
    }

    /// Appends a tick of the topic, if it is wanted and fits.
    fn take(&mut self, position: u64, parts: &TickParts<'_>) {
        let is_wanted = (self.read.from..self.read.until).contains(&position);
        if !is_wanted || self.collecting != Collecting::Yes {
            return;
        }
        let len = logged::linked_tick_len(parts.payload.len());
        if self.ticks > 0 && self.frames.len() + len > HISTORY_CHUNK_BYTES {
            self.collecting = Collecting::Full;
            return;
        }
        let (topic, sequence) = (self.read.topic, Sequence(position));
        match self.last + 1 == position {
            true => frame::encode_tick(&mut self.frames, topic, sequence, parts),
            false => logged::encode_linked_tick(&mut self.frames, topic, sequence, self.last, parts),
        };
        self.last = position;
        self.ticks += 1;
    }

    fn into_chunk(self, outcome: LogReadOutcome) -> LogChunk {
        LogChunk { ticket: self.read.ticket, outcome, ticks: self.ticks, frames: self.frames }
    }
}

#[derive(Debug)]
struct WindowTick {
    position: u64,
    topic: Box<str>,
    flags: u8,
    times: TickTimes,
    key: u64,
    payload: Box<[u8]>,
}

impl WindowTick {
    fn bytes(&self) -> usize {
        WINDOW_TICK_BYTES + self.topic.len() + self.payload.len()
    }

    fn parts(&self) -> TickParts<'_> {
        let WindowTick { flags, times, key, .. } = *self;
        TickParts { flags, schema: 0, times, key, payload: &self.payload }
    }
}

/// A pass over one life of a log.
#[derive(Debug)]
struct Pass {
    epoch: u64,
    /// Every tick from this position up to `head` is in the window.
    window_from: u64,
    /// The next position to read.
    head: u64,
    /// Messages that it may still read while others wait elsewhere.
    messages_left: u64,
}

/// The requests to the reader of a log, and the ticks read for them. Plain data: the reader reads the log, and tells it the time.
///
/// Bound: [`LOG_READS_ACTIVE_MAX`] requests and answers, each with a chunk of [`HISTORY_CHUNK_BYTES`] or one longer tick, and
/// [`LOG_READ_WINDOW_BYTES`].
/// Invariant: `wants_len` and `window_bytes` are the sums over the requests and the window.
#[derive(Debug, Default)]
pub struct LogScan {
    /// By topic.
    wants: HashMap<Box<str>, Vec<Want>>,
    wants_len: usize,
    wants_total: u64,
    pass: Option<Pass>,
    window: VecDeque<WindowTick>,
    window_bytes: usize,
    /// The next pass begins with what has waited longest, not at the lowest place.
    begins_with_oldest: bool,
    answers: VecDeque<LogChunk>,
}

impl LogScan {
    /// Whether it takes another request.
    pub fn has_room(&self) -> bool {
        self.wants_len + self.answers.len() < LOG_READS_ACTIVE_MAX
    }

    /// Adds a request. What the window has of it is collected at once. O(ticks in the window).
    pub fn want(&mut self, read: LogRead) {
        debug_assert!(self.has_room() && read.from < read.until, "the caller has looked");
        self.wants_total += 1;
        let mut want = Want::new(read, self.wants_total);
        if let Some(pass) = &self.pass
            && pass.epoch == want.read.epoch
            && pass.window_from <= want.read.from
        {
            want.collecting = Collecting::Yes;
            let first = self.window.partition_point(|tick| tick.position < want.read.from);
            for tick in self.window.range(first..) {
                if tick.topic == want.read.name {
                    want.take(tick.position, &tick.parts());
                }
            }
        }
        self.wants_len += 1;
        self.wants.entry(want.read.name.clone()).or_default().push(want);
        self.answer_due();
    }

    /// The next answer.
    pub fn poll_answer(&mut self) -> Option<LogChunk> {
        self.answers.pop_front()
    }

    /// What to do next. Forgets requests that nobody waits for any more. `now_ns`: CLOCK_MONOTONIC. O(requests).
    pub fn step(&mut self, now_ns: u64) -> ScanStep {
        self.take_out(|want| want.read.cancellation.is_cancelled() || want.read.deadline_ns <= now_ns);
        if let Some(Pass { head, messages_left, .. }) = self.pass {
            self.answer(|want| (want.read.answer_by_ns <= now_ns).then(|| want.progress(head)).flatten());
            let mut wants = self.wants.values().flatten();
            let is_elsewhere = |want: &Want| !want.is_in_pass() || want.read.from > head;
            if wants.clone().any(Want::is_in_pass) {
                if messages_left > 0 || !wants.any(is_elsewhere) {
                    return ScanStep::Read;
                }
                self.end_pass();
                self.begins_with_oldest = true;
            }
        }
        let wants = || self.wants.values().flatten();
        let Some(oldest) = wants().min_by_key(|want| want.number).map(|want| &want.read) else {
            return ScanStep::Idle;
        };
        let of_life = wants().filter(|want| want.read.epoch == oldest.epoch);
        let lowest = of_life.map(|want| want.read.from).min().filter(|_| !self.begins_with_oldest);
        ScanStep::Open { epoch: oldest.epoch, from: lowest.unwrap_or(oldest.from) }
    }

    /// Begins a pass: the log has everything of this life from the position on.
    pub fn begin(&mut self, epoch: u64, from: u64) {
        self.end_pass();
        self.begins_with_oldest = false;
        let messages_left = LOG_READ_PASS_MESSAGES;
        self.pass = Some(Pass { epoch, window_from: from, head: from, messages_left });
        for want in self.wants.values_mut().flatten() {
            let is_in_pass = want.read.epoch == epoch && want.read.from >= from;
            want.collecting = if is_in_pass { Collecting::Yes } else { Collecting::No };
        }
    }

    /// Ends the pass, if there is one, and frees the window. Those that it has read something for get that; the others wait for the
    /// next pass.
    pub fn end_pass(&mut self) {
        if let Some(Pass { head, .. }) = self.pass {
            self.answer(|want| want.progress(head));
        }
        self.pass = None;
        (self.window, self.window_bytes) = (VecDeque::new(), 0);
        for want in self.wants.values_mut().flatten() {
            debug_assert!(want.frames.is_empty(), "what was read for it is before the head");
            want.collecting = Collecting::No;
        }
        self.invariants();
    }

    /// Refuses the requests for positions below `first` of this life: the log may no longer have them all.
    pub fn refuse(&mut self, epoch: u64, first: u64) {
        for want in self.take_out(|want| want.read.epoch == epoch && want.read.from < first) {
            self.answers.push_back(Want::new(want.read, 0).into_chunk(LogReadOutcome::Gone));
        }
    }

    /// Collects a tick of the pass. Its position is above all before it.
    pub fn tick(&mut self, tick: &LogTick<'_>) {
        let LogTick { position, topic, parts } = *tick;
        let Some(pass) = &mut self.pass else { return debug_assert!(false, "only a pass has ticks") };
        debug_assert!(position >= pass.head, "ticks come in order");
        pass.head = position + 1;
        let TickParts { flags, times, key, payload, .. } = parts;
        let kept = WindowTick { position, topic: topic.into(), flags, times, key, payload: payload.into() };
        self.window_bytes += kept.bytes();
        self.window.push_back(kept);
        while self.window_bytes > LOG_READ_WINDOW_BYTES
            && let Some(oldest) = self.window.pop_front()
        {
            self.window_bytes -= oldest.bytes();
            pass.window_from = oldest.position + 1;
        }
        let Some(wants) = self.wants.get_mut(topic) else { return };
        let mut is_full = false;
        for want in wants {
            want.take(position, &parts);
            is_full |= want.collecting == Collecting::Full;
        }
        if is_full {
            self.answer_due();
        }
    }

    /// Notes that everything below `head` has been read, the last `messages` of it since the last call.
    pub fn reached(&mut self, head: u64, messages: u64) {
        let Some(pass) = &mut self.pass else { return debug_assert!(false, "only a pass is read") };
        pass.head = pass.head.max(head);
        pass.messages_left = pass.messages_left.saturating_sub(messages);
        self.answer_due();
    }

    /// Answers the requests that have a full chunk, or all that they want.
    fn answer_due(&mut self) {
        let Some(Pass { head, .. }) = self.pass else { return };
        self.answer(|want| {
            let end = want.end(head);
            match want.collecting {
                Collecting::No => None,
                Collecting::Yes => (end == want.read.until).then_some(end),
                Collecting::Full => Some(end),
            }
        });
        self.invariants();
    }

    /// Answers the requests for which `end` returns up to where they have been read.
    fn answer(&mut self, end: impl Fn(&Want) -> Option<u64>) {
        for want in self.take_out(|want| end(want).is_some()) {
            let end = end(&want).unwrap_or(want.read.until);
            self.answers.push_back(want.into_chunk(LogReadOutcome::Read { end }));
        }
    }

    fn take_out(&mut self, is_out: impl Fn(&Want) -> bool) -> Vec<Want> {
        if !self.wants.values().flatten().any(&is_out) {
            return Vec::new();
        }
        let mut out = Vec::new();
        for wants in self.wants.values_mut() {
            out.extend(wants.extract_if(.., |want| is_out(want)));
        }
        self.wants.retain(|_, wants| !wants.is_empty());
        self.wants_len -= out.len();
        // In the order in which they came.
        out.sort_unstable_by_key(|want| want.number);
        out
    }

    fn invariants(&self) {
        if cfg!(debug_assertions) {
            let wants = || self.wants.values().flatten();
            assert_eq!(self.wants_len, wants().count());
            assert!(self.wants_len + self.answers.len() <= LOG_READS_ACTIVE_MAX);
            assert!(self.pass.is_some() || self.window.is_empty());
        }
    }
}

impl Want {
    /// Whether the present pass collects ticks for it, or has until a tick did not fit.
    fn is_in_pass(&self) -> bool {
        self.collecting != Collecting::No
    }

    /// Up to where it has been read, if the pass has come past its first position.
    fn progress(&self, head: u64) -> Option<u64> {
        (self.is_in_pass() && self.read.from < head).then(|| self.end(head))
    }

    /// Up to where it has been read, if the pass has read everything below `head`.
    fn end(&self, head: u64) -> u64 {
        match self.collecting {
            Collecting::Full => self.last + 1,
            _ => head.min(self.read.until),
        }
    }
}

#[cfg(test)]
mod tests;
