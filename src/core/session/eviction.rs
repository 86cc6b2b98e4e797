//! Eviction: removes frames from the middle of the outbox of a session that is behind.

use super::outbox::{Backlog, Content, Outbox, Segment};
use crate::egress_log::{EgressLog, FrameInfo, Range};

/// What to do with a waiting frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Keep it.
    Keep,
    /// Keep it and everything after it.
    KeepRest,
    /// Evict it. The caller announces the loss to the session.
    Evict,
}

impl Outbox {
    /// Removes frames of topics from the outbox, starting with the oldest: those for which `judge` says evict, up to the first
    /// [`Verdict::KeepRest`]. `judge` gets the frame's identity, its length, and its range if it is shared. A partly sent frame
    /// is kept; its rest becomes private bytes. `log`: that of the session's wire format; `None` while nothing has been appended in
    /// it, so that only private frames wait. O(frames judged), plus a copy of the private bytes.
    pub fn evict(
        &mut self,
        log: Option<&EgressLog>,
        mut judge: impl FnMut(Content, u32, Option<Range>) -> Verdict,
    ) {
        self.seal();
        let Backlog { segments, private: old, private_start } = std::mem::take(self.backlog_mut());
        let mut old = &old[private_start..];
        let (mut rest_kept, mut first) = (false, true);
        for segment in segments {
            let begun = std::mem::take(&mut first) && self.is_mid_frame();
            match (segment, log) {
                (Segment::Shared(range), None) => {
                    debug_assert!(false, "a range was appended to the log");
                    self.bytes -= range.len as usize;
                }
                (Segment::Shared(range), Some(log)) if rest_kept => {
                    self.backlog_mut().append_range(log, range);
                }
                (Segment::Shared(mut range), Some(log)) => {
                    if begun && !log.is_overwritten(range.start) {
                        let rest = Range { start: range.start, len: self.cut_rest };
                        let kept = self.backlog_mut();
                        kept.private.extend_from_slice(log.bytes(rest));
                        // Partly sent, so never judged again: its identity is irrelevant.
                        let (sequence, topic, len) = (0, 0, rest.len);
                        kept.segments.push_back(Segment::Private { sequence, topic, len });
                        range = Range { start: rest.end(), len: range.len - rest.len };
                    }
                    rest_kept = self.evict_range(log, range, &mut judge);
                }
                (Segment::Reply(_) | Segment::Private { .. } | Segment::Notice { .. }, _) => {
                    let len = segment.len();
                    let (bytes, rest) = old.split_at(len as usize);
                    old = rest;
                    if let Some(content) = segment.content()
                        && !rest_kept
                        && !begun
                    {
                        match judge(content, len, None) {
                            Verdict::Keep => {}
                            Verdict::KeepRest => rest_kept = true,
                            Verdict::Evict => {
                                self.bytes -= bytes.len();
                                continue;
                            }
                        }
                    }
                    let kept = self.backlog_mut();
                    kept.private.extend_from_slice(bytes);
                    match (segment, kept.segments.back_mut()) {
                        (Segment::Reply(len), Some(Segment::Reply(last))) => *last += len,
                        (segment, _) => kept.segments.push_back(segment),
                    }
                }
            }
        }
        self.invariants();
    }

    /// Drops the topics' waiting frames, and keeps the replies in order. A partly sent frame is kept; its rest becomes private
    /// bytes. If that rest has been overwritten, drops everything and returns `false`; then nothing may follow. Copies the
    /// private bytes and the rest of one frame.
    pub fn keep_replies(&mut self, log: Option<&EgressLog>) -> bool {
        self.seal();
        let mut old = std::mem::take(self);
        let begun = Content::Frame(FrameInfo { topic: 0, sequence: 0 });
        let Backlog { segments, private, private_start } = std::mem::take(old.backlog_mut());
        let mut private = &private[private_start..];
        for (index, segment) in segments.into_iter().enumerate() {
            let is_begun = index == 0 && old.is_mid_frame();
            match (segment, log) {
                (Segment::Shared(_), _) if !is_begun => {}
                (Segment::Shared(range), Some(log)) if !log.is_overwritten(range.start) => {
                    let rest = Range { start: range.start, len: old.cut_rest };
                    self.push_private(begun, |out| out.extend_from_slice(log.bytes(rest)));
                }
                (Segment::Shared(_), _) => return false,
                (Segment::Reply(_) | Segment::Private { .. } | Segment::Notice { .. }, _) => {
                    let len = segment.len();
                    let (bytes, rest) = private.split_at(len as usize);
                    private = rest;
                    match segment {
                        Segment::Reply(_) => self.push_reply(|out| out.extend_from_slice(bytes)),
                        _ if is_begun => self.push_private(begun, |out| out.extend_from_slice(bytes)),
                        _ => {}
                    }
                }
            }
        }
        self.cut_rest = old.cut_rest;
        self.invariants();
        true
    }

    /// Evicts from one range. Returns whether everything after it is kept.
    fn evict_range(
        &mut self,
        log: &EgressLog,
        range: Range,
        judge: &mut impl FnMut(Content, u32, Option<Range>) -> Verdict,
    ) -> bool {
        let mut judged_to = range.start;
        let mut rest_kept = false;
        for (frame, info) in log.frames(range) {
            // Keep overwritten frames: `take_send` finds them and reports the session as too slow.
            self.keep(log, judged_to, frame.start);
            judged_to = frame.start;
            match judge(info.into(), frame.len, Some(frame)) {
                Verdict::Keep => self.backlog_mut().append_range(log, frame),
                Verdict::Evict => self.bytes -= frame.len as usize,
                Verdict::KeepRest => {
                    rest_kept = true;
                    break;
                }
            }
            judged_to = frame.end();
        }
        self.keep(log, judged_to, range.end());
        rest_kept
    }

    fn keep(&mut self, log: &EgressLog, start: u64, end: u64) {
        if start < end {
            self.backlog_mut().append_range(log, Range { start, len: (end - start) as u32 });
        }
    }
}
