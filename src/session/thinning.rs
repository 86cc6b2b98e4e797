//! What happens to an outbox whose session is behind: frames are taken out of its middle, and notices put in.

use super::{Segment, Session};
use crate::log::{EgressLog, Mark, Range};

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
    /// Goes over the shared frames that wait, from the oldest, and takes out those that `fate` gives up; after the first
    /// [`Fate::KeepRest`] nothing more is looked at. The rest of a frame that was begun is kept, as bytes of the session's
    /// own. A look at each frame: O(frames looked at).
    pub fn thin_out(&mut self, log: &EgressLog, mut fate: impl FnMut(Mark, Range) -> Fate) {
        let mut rest_kept = false;
        for segment in std::mem::take(&mut self.segments) {
            let mut range = match segment {
                Segment::Log(range) if !rest_kept => range,
                other => {
                    self.put_back(log, other);
                    continue;
                }
            };
            if self.cut_rest > 0 && self.segments.is_empty() && !log.is_lapped(range.start) {
                let rest = Range { start: range.start, len: self.cut_rest };
                self.replies.splice(self.replies_start..self.replies_start, log.bytes(rest).iter().copied());
                self.segments.push_back(Segment::Reply(rest.len));
                range = Range { start: rest.end(), len: range.len - rest.len };
            }
            let mut looked_to = range.start;
            for (frame, mark) in log.frames(range) {
                // What has been lapped is kept: whoever comes to send it finds out.
                self.keep_piece(log, looked_to, frame.start);
                looked_to = frame.start;
                match fate(mark, frame) {
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
        }
        self.invariants();
    }

    fn keep_piece(&mut self, log: &EgressLog, start: u64, end: u64) {
        if start < end {
            self.append_segment(log, Range { start, len: (end - start) as u32 });
        }
    }

    fn put_back(&mut self, log: &EgressLog, segment: Segment) {
        match (segment, self.segments.back_mut()) {
            (Segment::Reply(len), Some(Segment::Reply(last))) => *last += len,
            (Segment::Log(range), _) => self.append_segment(log, range),
            (reply, _) => self.segments.push_back(reply),
        }
    }

    /// Queues bytes of the session's own before the first shared frame that waits: whole frames.
    pub fn insert_before_frames(&mut self, log: Option<&EgressLog>, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut replies = 0;
        let mut at = 0;
        while let Some(&Segment::Reply(len)) = self.segments.get(at) {
            replies += len as usize;
            at += 1;
        }
        // A frame that was begun must end first.
        if replies == 0
            && self.cut_rest > 0
            && let Some(&Segment::Log(range)) = self.segments.front()
        {
            let rest = Range { start: range.start, len: self.cut_rest.min(range.len) };
            let after = Range { start: rest.end(), len: range.len - rest.len };
            debug_assert!(log.is_some(), "a session with shared frames has their log");
            self.segments[0] = Segment::Log(rest);
            at = 1;
            if after.len > 0 {
                self.segments.insert(1, Segment::Log(after));
            }
        }
        self.segments.insert(at, Segment::Reply(bytes.len() as u32));
        let start = self.replies_start + replies;
        self.replies.splice(start..start, bytes.iter().copied());
        self.outbox_bytes += bytes.len();
        self.invariants();
    }
}
