//! SENDs whose header is written when they are gathered: frames are queued without headers, and those of one SEND form one
//! message.

use std::collections::VecDeque;

use super::{
    outbox::{NextSend, Outbox, Segment, SendSource},
    shared_messages::SharedMessages,
};
use crate::{
    egress_log::{Cut, EgressLog, Range},
    limits::SEND_BYTES_MAX,
};
use tickcast_proto::{WireFormat, framing::SEND_HEADER_BYTES_MAX};

/// Most bytes of the frames in one message, unless it is a single frame.
const BATCH_BYTES_MAX: usize = SEND_BYTES_MAX - SEND_HEADER_BYTES_MAX;

/// The contents of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Batch {
    /// Bytes at the front of the outbox that this SEND takes.
    taken: u32,
    /// Bytes after them that belong to the same frame, for the next SENDs.
    cut_rest: u32,
}

impl Outbox {
    /// Like [`Outbox::take_send`], for a framing that writes one header per SEND. The headers count as bytes of the SEND, not
    /// of the outbox.
    pub(super) fn take_batch(
        &mut self,
        log: Option<&EgressLog>,
        format: WireFormat,
        notices_pending: bool,
        gather: &mut Vec<u8>,
        messages: &mut SharedMessages,
    ) -> NextSend {
        // Most SENDs, as in `take_send`.
        let newest = self.newest;
        if self.segments().is_none_or(VecDeque::is_empty)
            && (1..=BATCH_BYTES_MAX).contains(&(newest.len as usize))
            && !notices_pending
            && let Some(log) = log.filter(|log| !log.is_overwritten(newest.start))
        {
            self.newest.len = 0;
            self.bytes = 0;
            self.invariants();
            return NextSend::Send(messages.message(log, format, newest, gather));
        }
        self.seal();
        let start = gather.len();
        loop {
            let left = start + SEND_BYTES_MAX - gather.len();
            let Some(segment) = self.front().filter(|_| left > 0) else { break };
            match segment {
                // Replies have their headers already.
                Segment::Reply(len) => {
                    let taken = len.min(left as u32);
                    self.take_front(log, taken, len - taken, gather);
                }
                Segment::Shared(range) if log.is_none_or(|log| log.is_overwritten(range.start)) => {
                    match gather.len() > start {
                        true => break,
                        false => return NextSend::Overwritten,
                    }
                }
                // The rest of a message whose header has been sent.
                Segment::Shared(_) | Segment::Private { .. } | Segment::Notice { .. }
                    if self.cut_rest > 0 =>
                {
                    let taken = self.cut_rest.min(left as u32).min(segment.len());
                    self.take_front(log, taken, self.cut_rest - taken, gather);
                }
                Segment::Shared(_) | Segment::Private { .. } | Segment::Notice { .. } if notices_pending => {
                    break;
                }
                Segment::Shared(_) | Segment::Private { .. } | Segment::Notice { .. } => {
                    let batch = self.next_batch(log, left.saturating_sub(SEND_HEADER_BYTES_MAX));
                    // Not worth a cut: send the gathered frames first, then this one.
                    if batch.taken == 0 || (batch.cut_rest > 0 && gather.len() > start) {
                        break;
                    }
                    if !self.take_deflated(log, format, batch, gather, messages) {
                        self.take_message(log, format, batch, gather);
                    }
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

    /// The frames at the front of the outbox that fit into `room`, or the beginning of a frame that is longer.
    fn next_batch(&self, log: Option<&EgressLog>, room: usize) -> Batch {
        let mut taken = 0;
        let segments = self.backlog.as_deref().map(|backlog| &backlog.segments);
        for &segment in segments.into_iter().flatten() {
            let len = match segment {
                Segment::Shared(range) if log.is_some_and(|log| !log.is_overwritten(range.start)) => {
                    range.len
                }
                Segment::Private { .. } | Segment::Notice { .. } => segment.len(),
                Segment::Shared(_) | Segment::Reply(_) => break,
            };
            if taken as usize + len as usize <= room {
                taken += len;
                continue;
            }
            if taken == 0 {
                let Cut { len: taken, frame_rest: cut_rest } = match (segment, log) {
                    (Segment::Shared(range), Some(log)) => log.cut(range, room),
                    _ => Cut { len: room as u32, frame_rest: len - room as u32 },
                };
                return Batch { taken, cut_rest };
            }
            break;
        }
        Batch { taken, cut_rest: 0 }
    }

    /// Takes a message that other sessions may send too, and that is compressed for all of them. Returns `false`, having taken
    /// nothing, if it is to be sent plain.
    fn take_deflated(
        &mut self,
        log: Option<&EgressLog>,
        format: WireFormat,
        batch: Batch,
        gather: &mut Vec<u8>,
        messages: &mut SharedMessages,
    ) -> bool {
        let Batch { taken, cut_rest: 0 } = batch else { return false };
        let Some(log) = log.filter(|_| format.framing.is_deflated()) else { return false };
        if self.front_ranges(taken).any(|range| range.is_none())
            || !messages.append_deflated(log, format, self.front_ranges(taken).flatten(), gather)
        {
            return false;
        }
        let mut left = taken;
        while left > 0
            && let Some(segment) = self.front()
        {
            let len = segment.len().min(left);
            left -= len;
            self.advance_front(Cut { len, frame_rest: 0 });
        }
        true
    }

    /// The ranges of the first `taken` bytes; `None` for bytes of this session alone.
    fn front_ranges(&self, taken: u32) -> impl Iterator<Item = Option<Range>> {
        let segments = self.backlog.as_deref().into_iter().flat_map(|backlog| &backlog.segments);
        segments.scan(taken, |left, segment| {
            let len = segment.len().min(*left);
            *left -= len;
            (len > 0).then_some(match *segment {
                Segment::Shared(range) => Some(Range { start: range.start, len }),
                Segment::Reply(_) | Segment::Private { .. } | Segment::Notice { .. } => None,
            })
        })
    }

    fn take_message(
        &mut self,
        log: Option<&EgressLog>,
        format: WireFormat,
        batch: Batch,
        gather: &mut Vec<u8>,
    ) {
        let Batch { taken, cut_rest } = batch;
        let message_type = format.codec.message_type();
        format.framing.write_send(message_type, taken as usize, cut_rest as usize, gather, |out| {
            let mut left = taken;
            while left > 0
                && let Some(segment) = self.front()
            {
                let len = segment.len().min(left);
                left -= len;
                self.take_front(log, len, if left == 0 { cut_rest } else { 0 }, out);
            }
        });
    }

    /// Takes bytes of the first segment. After that, `cut_rest` of its bytes are the rest of a partly sent frame.
    pub(super) fn take_front(
        &mut self,
        log: Option<&EgressLog>,
        len: u32,
        cut_rest: u32,
        gather: &mut Vec<u8>,
    ) {
        match (self.front(), log) {
            (Some(Segment::Shared(range)), Some(log)) => {
                gather.extend_from_slice(log.bytes(Range { start: range.start, len }));
            }
            (Some(segment @ (Segment::Reply(_) | Segment::Private { .. } | Segment::Notice { .. })), _) => {
                self.backlog_mut().take_private(len as usize, gather);
                self.reply_bytes -= if let Segment::Reply(_) = segment { len } else { 0 };
            }
            (Some(Segment::Shared(_)), None) | (None, _) => {
                debug_assert!(false, "only what is there is taken")
            }
        }
        self.advance_front(Cut { len, frame_rest: cut_rest });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        egress_log::FrameInfo,
        ids::SessionId,
        session::{ListenerKind, Session, Verdict},
    };
    use tickcast_proto::{
        Step, WireFormat,
        codec::{Codec, MessageType},
        framing::{
            Framing,
            websocket::{Incoming, WebSocket},
        },
    };

    const INFO: FrameInfo = FrameInfo { topic: 5, sequence: 1 };

    fn session() -> Session {
        let mut session = Session::new(SessionId(1), ListenerKind::Http);
        session.format = WireFormat { codec: Codec::Native, framing: Framing::WebSocketBatch };
        session
    }

    fn reply(session: &mut Session, text: &[u8]) {
        session.outbox.push_reply(|out| Framing::WebSocketBatch.write(MessageType::Text, text, out));
    }

    fn shared(session: &mut Session, log: &mut EgressLog, frame: &[u8]) {
        let range = log.append(INFO, frame).unwrap();
        session.push_range(log, range);
    }

    /// The bytes of the next SEND; `None` if nothing is waiting.
    fn send(session: &mut Session, log: &EgressLog) -> Option<Vec<u8>> {
        let mut gather = b"another's".to_vec();
        match session.take_send(Some(log), &mut gather, &mut SharedMessages::default()) {
            NextSend::Send(SendSource::Gathered { start: 9, len }) => {
                assert!((1..=SEND_BYTES_MAX).contains(&len) && gather.len() == 9 + len);
                Some(gather.split_off(9))
            }
            NextSend::Idle => None,
            other => panic!("{other:?}"),
        }
    }

    fn sends(session: &mut Session, log: &EgressLog) -> Vec<Vec<u8>> {
        let sends = std::iter::from_fn(|| send(session, log)).collect();
        assert_eq!((session.outbox_bytes(), session.outbox.cut_rest), (0, 0));
        sends
    }

    /// The messages that a client reads: whether each is a reply, and its bytes.
    fn messages(bytes: &[u8]) -> Vec<(bool, Vec<u8>)> {
        let (mut client, mut at, mut messages) = (WebSocket::client(1 << 20), 0, Vec::new());
        while let Step::Complete(used, incoming) = client.step(&bytes[at..], &mut Vec::new()).unwrap() {
            at += used;
            match incoming {
                Incoming::Text(text) => messages.push((true, text.as_bytes().to_vec())),
                Incoming::Binary(bytes) => messages.push((false, bytes.to_vec())),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(at, bytes.len(), "whole messages");
        messages
    }

    #[test]
    fn what_leaves_in_batches_is_what_was_queued_and_messages_end_where_frames_do() {
        let mut random = fastrand::Rng::with_seed(4);
        for _ in 0..300 {
            let (mut session, mut log) = (session(), EgressLog::new(4 << 20));
            let (mut expected, mut frame_ends, mut frame_bytes) = (Vec::new(), vec![0], 0);
            for n in 0..random.u8(1..60) {
                let len = random.usize(1..if n % 10 == 0 { 90_000 } else { 300 });
                let frame = vec![b'a' + n % 26; len];
                match random.u8(..4) {
                    0 => reply(&mut session, &frame),
                    kind => {
                        frame_bytes += len;
                        frame_ends.push(frame_bytes);
                        match kind {
                            1 => drop(session.push_private(INFO.into(), |out| out.extend_from_slice(&frame))),
                            _ => shared(&mut session, &mut log, &frame),
                        }
                    }
                }
                if random.bool() {
                    log.append(INFO, b"somebody else's").unwrap();
                }
                expected.extend_from_slice(&frame);
            }
            let messages = messages(&sends(&mut session, &log).concat());
            let got: Vec<u8> = messages.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
            assert!(got == expected);
            let mut frame_bytes = 0;
            for (_, bytes) in messages.iter().filter(|(is_reply, _)| !is_reply) {
                frame_bytes += bytes.len();
                assert!(frame_ends.contains(&frame_bytes));
            }
        }
    }

    #[test]
    fn frames_that_leave_together_are_one_message() {
        let (mut session, mut log) = (session(), EgressLog::new(1 << 20));
        reply(&mut session, b"subscribed");
        for n in 0..5 {
            shared(&mut session, &mut log, &[n; 100]);
            log.append(INFO, b"somebody else's").unwrap();
        }
        session.push_private(INFO.into(), |out| out.extend_from_slice(&[5; 100]));
        reply(&mut session, b"pong");
        let sends = sends(&mut session, &log);
        assert_eq!(sends.len(), 1);
        let lengths: Vec<_> =
            messages(&sends[0]).iter().map(|(reply, bytes)| (*reply, bytes.len())).collect();
        assert_eq!(lengths, [(true, 10), (false, 600), (true, 4)]);
    }

    #[test]
    fn a_message_that_was_begun_ends_before_a_notice_and_whatever_is_taken_out() {
        for thins_out in [false, true] {
            let (mut session, mut log) = (session(), EgressLog::new(1 << 20));
            let long = vec![b'l'; 3 * SEND_BYTES_MAX];
            shared(&mut session, &mut log, &long);
            shared(&mut session, &mut log, b"after");
            let mut sent = send(&mut session, &log).unwrap();
            assert_eq!(sent.len(), SEND_BYTES_MAX);
            // The header has 10 bytes.
            assert_eq!(session.outbox.cut_rest as usize, long.len() + 10 - SEND_BYTES_MAX);
            if thins_out {
                session.outbox.evict(Some(&log), |_, _, _| Verdict::Evict);
            }
            let mut notice = Vec::new();
            Framing::WebSocketBatch.write(MessageType::Text, b"notice", &mut notice);
            session.outbox.insert_before_frames(&notice);
            sent.extend(sends(&mut session, &log).concat());
            let mut expected = vec![(false, long), (true, b"notice".to_vec())];
            expected.extend((!thins_out).then(|| (false, b"after".to_vec())));
            assert_eq!(messages(&sent), expected);
        }
    }

    #[test]
    fn json_objects_that_leave_together_are_an_array_and_no_object_is_lost_or_split() {
        let mut random = fastrand::Rng::with_seed(5);
        let format = WireFormat { codec: Codec::Json, framing: Framing::WebSocketBatch };
        for _ in 0..200 {
            let (mut session, mut log) = (session(), EgressLog::new(4 << 20));
            session.format = format;
            let mut expected = Vec::new();
            for n in 0..random.u32(1..60) {
                let padding = "x".repeat(random.usize(1..if n % 10 == 0 { 90_000 } else { 300 }));
                let object = format!(r#"{{"n":{n},"x":"{padding}"}}"#);
                let mut queued = Vec::new();
                format.framing.queue_with(MessageType::Text, &mut queued, |out| out.extend(object.bytes()));
                match random.bool() {
                    true => drop(session.push_private(INFO.into(), |out| out.extend_from_slice(&queued))),
                    false => shared(&mut session, &mut log, &queued),
                }
                if random.bool() {
                    log.append(INFO, b",{}").unwrap();
                }
                expected.push(object);
            }
            let mut got = Vec::new();
            for (_, message) in messages(&sends(&mut session, &log).concat()) {
                let text = String::from_utf8(message).unwrap();
                match text.strip_prefix('[') {
                    Some(objects) => got.push(objects.strip_suffix(']').unwrap().to_owned()),
                    None => got.push(text),
                }
            }
            assert!(got.join(",") == expected.join(","));
        }
    }

    #[test]
    fn sessions_with_the_same_frames_share_one_message_until_the_gather_buffer_is_cleared() {
        let mut log = EgressLog::new(1 << 20);
        let mut sessions = [session(), session(), session()];
        let range = log.append(INFO, &[7; 100]).unwrap();
        for session in &mut sessions {
            session.push_range(&log, range);
        }
        let (mut gather, mut messages) = (Vec::new(), SharedMessages::default());
        let source =
            |session: &mut Session, gather: &mut Vec<u8>, messages: &mut SharedMessages| match session
                .take_send(Some(&log), gather, messages)
            {
                NextSend::Send(SendSource::Gathered { start, len }) => {
                    (start, gather[start..][..len].to_vec())
                }
                other => panic!("{other:?}"),
            };
        let [first, second, third] = &mut sessions;
        let (start, bytes) = source(first, &mut gather, &mut messages);
        assert_eq!((start, bytes.len(), gather.len()), (0, 102, 102));
        assert_eq!(source(second, &mut gather, &mut messages), (0, bytes.clone()));
        assert_eq!(gather.len(), 102);
        gather = vec![0; 500];
        messages.begin();
        assert_eq!(source(third, &mut gather, &mut messages), (500, bytes));
    }

    #[test]
    fn a_lapped_session_gets_what_comes_before_and_is_told_so() {
        let (mut session, mut log) = (session(), EgressLog::new(1_000));
        session.push_private(INFO.into(), |out| out.extend_from_slice(b"own"));
        shared(&mut session, &mut log, &[0; 600]);
        log.append(INFO, &[0; 600]).unwrap();
        assert_eq!(messages(&send(&mut session, &log).unwrap()), [(false, b"own".to_vec())]);
        assert_eq!(
            session.take_send(Some(&log), &mut Vec::new(), &mut SharedMessages::default()),
            NextSend::Overwritten
        );
    }
}
