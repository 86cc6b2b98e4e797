//! What happens to an outbox whose session is behind: frames are taken out of its middle, and notices put in.

use super::{Segment, Session};
use crate::egress_log::{EgressLog, Mark, Range};

/// What becomes of a frame that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Keep,
    /// It and everything after it stays.
    KeepRest,
    /// It goes; the caller has seen to it that the session is told.
    TakeOut,
}

impl Session {
    /// Goes over the topics' frames that wait, from the oldest, and takes out those that `fate` gives up; after the first
    /// [`Fate::KeepRest`] nothing more is looked at. `fate` is told what the frame is, its bytes, and where it stands in
    /// the log if it is shared. A frame that was begun is kept, its rest as bytes of the session's own. A look at each
    /// frame: O(frames looked at), and a copy of the session's own bytes.
    pub fn thin_out(&mut self, log: &EgressLog, mut fate: impl FnMut(Mark, u32, Option<Range>) -> Fate) {
        let old = std::mem::take(&mut self.replies);
        let mut old = &old[std::mem::take(&mut self.replies_start)..];
        let (mut rest_kept, mut first) = (false, true);
        for segment in std::mem::take(&mut self.segments) {
            let begun = std::mem::take(&mut first) && self.cut_rest > 0;
            match segment {
                Segment::Log(range) if rest_kept => self.append_segment(log, range),
                Segment::Log(mut range) => {
                    if begun && !log.is_lapped(range.start) {
                        let rest = Range { start: range.start, len: self.cut_rest };
                        self.replies.extend_from_slice(log.bytes(rest));
                        self.own_bytes += rest.len as usize;
                        // Begun, so never looked at again: what it is does not matter.
                        let (sequence, topic, skipped, len) = (0, 0, 0, rest.len);
                        self.segments.push_back(Segment::Own { sequence, topic, skipped, len });
                        range = Range { start: rest.end(), len: range.len - rest.len };
                    }
                    rest_kept = self.thin_out_range(log, range, &mut fate);
                }
                Segment::Reply(len) | Segment::Own { len, .. } => {
                    let (bytes, rest) = old.split_at(len as usize);
                    old = rest;
                    if let Segment::Own { sequence, topic, skipped, .. } = segment
                        && !rest_kept
                        && !begun
                    {
                        match fate(Mark { topic, sequence, skipped }, len, None) {
                            Fate::Keep => {}
                            Fate::KeepRest => rest_kept = true,
                            Fate::TakeOut => {
                                self.outbox_bytes -= bytes.len();
                                self.own_bytes -= bytes.len();
                                continue;
                            }
                        }
                    }
                    self.replies.extend_from_slice(bytes);
                    match (segment, self.segments.back_mut()) {
                        (Segment::Reply(len), Some(Segment::Reply(last))) => *last += len,
                        (segment, _) => self.segments.push_back(segment),
                    }
                }
            }
        }
        self.invariants();
    }

    /// The frames of one range. Returns whether the rest is kept.
    fn thin_out_range(
        &mut self,
        log: &EgressLog,
        range: Range,
        fate: &mut impl FnMut(Mark, u32, Option<Range>) -> Fate,
    ) -> bool {
        let mut looked_to = range.start;
        let mut rest_kept = false;
        for (frame, mark) in log.frames(range) {
            // What has been lapped is kept: whoever comes to send it finds out.
            self.keep_piece(log, looked_to, frame.start);
            looked_to = frame.start;
            match fate(mark, frame.len, Some(frame)) {
                Fate::Keep => self.append_segment(log, frame),
                Fate::TakeOut => self.outbox_bytes -= frame.len as usize,
                Fate::KeepRest => {
                    rest_kept = true;
                    break;
                }
            }
            looked_to = frame.end();
        }
        self.keep_piece(log, looked_to, range.end());
        rest_kept
    }

    fn keep_piece(&mut self, log: &EgressLog, start: u64, end: u64) {
        if start < end {
            self.append_segment(log, Range { start, len: (end - start) as u32 });
        }
    }

    /// Queues bytes of the session's own before the first topic's frame that waits: whole frames. A look at each
    /// reply before it, which are few, and a move of the session's own bytes.
    pub fn insert_before_frames(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let (mut before, mut at) = (0, 0);
        // A frame that was begun must end first.
        if self.cut_rest > 0 {
            match self.segments.front().copied() {
                Some(Segment::Log(range)) => {
                    let rest = Range { start: range.start, len: self.cut_rest.min(range.len) };
                    let after = Range { start: rest.end(), len: range.len - rest.len };
                    self.segments[0] = Segment::Log(rest);
                    if after.len > 0 {
                        self.segments.insert(1, Segment::Log(after));
                    }
                    at = 1;
                }
                Some(Segment::Own { len, .. }) => (before, at) = (len as usize, 1),
                Some(Segment::Reply(_)) | None => {}
            }
        }
        while let Some(&Segment::Reply(len)) = self.segments.get(at) {
            before += len as usize;
            at += 1;
        }
        match at.checked_sub(1).and_then(|last| self.segments.get_mut(last)) {
            Some(Segment::Reply(last)) => *last += bytes.len() as u32,
            _ => self.segments.insert(at, Segment::Reply(bytes.len() as u32)),
        }
        let start = self.replies_start + before;
        self.replies.splice(start..start, bytes.iter().copied());
        self.outbox_bytes += bytes.len();
        self.invariants();
    }
}
