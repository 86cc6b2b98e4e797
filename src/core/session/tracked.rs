//! SENDs of event streams: everything is copied, and each whole tick is recorded, because the SEND ends with the client's new
//! place.

use super::outbox::{Content, NextSend, Outbox, Segment, SendSource};
use crate::{
    egress_log::{Cut, EgressLog, FrameInfo, Range},
    limits::SEND_BYTES_MAX,
};
use tickcast_proto::{framing::event_stream::PLACE_EVENT_BYTES, limits::LAST_EVENT_ID_BYTES_MAX};

/// Maximum bytes of a SEND before the place.
const TRACKED_BYTES_MAX: usize = SEND_BYTES_MAX - LAST_EVENT_ID_BYTES_MAX - PLACE_EVENT_BYTES;

impl Outbox {
    /// Like [`Outbox::take_send`], with room left for the event that ends the SEND. Calls `sent` with the identity of each frame
    /// whose last byte is in it, in order.
    pub(super) fn take_tracked(
        &mut self,
        log: Option<&EgressLog>,
        notices_pending: bool,
        gather: &mut Vec<u8>,
        mut sent: impl FnMut(Content),
    ) -> NextSend {
        self.seal();
        let start = gather.len();
        loop {
            let left = start + TRACKED_BYTES_MAX - gather.len();
            let Some(segment) = self.front().filter(|_| left > 0) else { break };
            match (segment, log) {
                (Segment::Shared(_) | Segment::Private { .. } | Segment::Notice { .. }, _)
                    if notices_pending && !self.is_mid_frame() =>
                {
                    break;
                }
                (Segment::Reply(_) | Segment::Private { .. } | Segment::Notice { .. }, _) => {
                    let taken = segment.len().min(left as u32);
                    self.take_front(log, taken, segment.len() - taken, gather);
                    if let Some(content) = segment.content().filter(|_| taken == segment.len()) {
                        sent(content);
                    }
                }
                (Segment::Shared(_), None) => return NextSend::Overwritten,
                (Segment::Shared(range), Some(log)) if log.is_overwritten(range.start) => {
                    match gather.len() > start {
                        true => break,
                        false => return NextSend::Overwritten,
                    }
                }
                (Segment::Shared(range), Some(log)) => {
                    let Cut { len, frame_rest } = match range.len as usize {
                        len if len <= left => Cut { len: range.len, frame_rest: 0 },
                        _ if gather.len() > start => break,
                        _ => log.cut(range, left),
                    };
                    let begun =
                        (1..=len).contains(&self.cut_rest).then(|| log.frame_at(range.start)).flatten();
                    begun.into_iter().for_each(|info| sent(info.into()));
                    let end = range.start + u64::from(len);
                    for (frame, info) in log.frames(Range { start: range.start, len }) {
                        if frame.end() <= end {
                            sent(info.into());
                        }
                    }
                    self.take_front(Some(log), len, frame_rest, gather);
                }
            }
        }
        self.give_back();
        self.invariants();
        match gather.len() - start {
            0 => NextSend::Idle,
            len => NextSend::Send(SendSource::Gathered { start, len }),
        }
    }
}

impl Content {
    /// The last tick that it accounts for; `None` for an announcement.
    pub(super) fn last_sequence(self) -> Option<u64> {
        match self {
            Content::Frame(FrameInfo { sequence: 0, .. }) => None,
            Content::Frame(FrameInfo { sequence, .. }) => Some(sequence),
            Content::Notice { skipped, .. } => skipped.to.0.checked_sub(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: FrameInfo = FrameInfo { topic: 9, sequence: 1 };

    /// The bytes and frame identities of all SENDs.
    fn drain(outbox: &mut Outbox, log: &EgressLog) -> Vec<(Vec<u8>, Vec<u64>)> {
        let mut sends = Vec::new();
        loop {
            let (mut gather, mut sent) = (Vec::new(), Vec::new());
            let next = outbox
                .take_tracked(Some(log), false, &mut gather, |content| sent.extend(content.last_sequence()));
            match next {
                NextSend::Send(SendSource::Gathered { start: 0, len }) => {
                    assert!(len == gather.len() && len <= TRACKED_BYTES_MAX);
                    sends.push((gather, sent));
                }
                NextSend::Idle => return sends,
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn each_frame_is_noted_once_with_the_send_that_has_its_last_byte() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..300 {
            let (mut outbox, mut log) = (Outbox::default(), EgressLog::new(4 << 20));
            let (mut expected, mut ends) = (Vec::new(), Vec::new());
            for sequence in 1..random.u64(2..60) {
                let frame =
                    vec![sequence as u8; random.usize(1..if sequence % 10 == 0 { 90_000 } else { 300 })];
                let info = FrameInfo { topic: 5, sequence };
                expected.extend_from_slice(&frame);
                match random.u8(..4) {
                    0 => outbox.push_reply(|out| out.extend_from_slice(&frame)),
                    1 => {
                        outbox.push_private(info.into(), |out| out.extend_from_slice(&frame));
                        ends.push((sequence, expected.len()));
                    }
                    _ => {
                        let range = log.append(info, &frame).unwrap();
                        outbox.push_range(&log, range);
                        ends.push((sequence, expected.len()));
                    }
                }
                if random.bool() {
                    log.append(NOTHING, b"somebody else's").unwrap();
                }
            }
            let (mut got, mut noted) = (Vec::new(), Vec::new());
            for (bytes, sent) in drain(&mut outbox, &log) {
                got.extend_from_slice(&bytes);
                noted.extend(sent);
                let whole: Vec<u64> =
                    ends.iter().filter(|(_, end)| *end <= got.len()).map(|(sequence, _)| *sequence).collect();
                assert_eq!(noted, whole);
            }
            assert!(got == expected);
        }
    }

    #[test]
    fn a_lapped_stream_gets_what_comes_before_and_is_told_so() {
        let (mut outbox, mut log) = (Outbox::default(), EgressLog::new(1_000));
        outbox.push_reply(|out| out.extend_from_slice(b"own"));
        let range = log.append(NOTHING, &[0; 600]).unwrap();
        outbox.push_range(&log, range);
        log.append(NOTHING, &[0; 600]).unwrap();
        let mut gather = Vec::new();
        let mut take = |gather: &mut Vec<u8>| outbox.take_tracked(Some(&log), false, gather, |_| {});
        assert_eq!(take(&mut gather), NextSend::Send(SendSource::Gathered { start: 0, len: 3 }));
        assert_eq!(take(&mut gather), NextSend::Overwritten);
    }
}
