//! Messages that several sessions send: written or compressed once, for the frames that all of them have queued.

use super::{outbox::SendSource, table::Sessions};
use crate::{
    deflate::{DeflateCounts, DeflateTurn},
    egress_log::{EgressLog, Range},
    limits::{DEFLATE_BYTES_MIN_DEFAULT, DEFLATE_CREDITS_MAX, DEFLATED_BATCHES_MAX},
};
use tickcast_proto::{WireFormat, framing};

/// The messages that SENDs share.
#[derive(Debug)]
pub struct SharedMessages {
    /// The last one in the gather buffer.
    last: Option<Written>,
    deflate: DeflateTurn,
    /// Compressed messages. The oldest is replaced first: bound [`DEFLATED_BATCHES_MAX`].
    deflated: Vec<Deflated>,
    /// Index of the oldest in `deflated`.
    oldest: usize,
    /// Compressions that may be done before a second session uses them: at most [`DEFLATE_CREDITS_MAX`].
    credits: u32,
    /// The frames of a message in parts, and its body before it is compressed. Kept for their memory.
    ranges: Vec<Range>,
    body: Vec<u8>,
}

impl Sessions {
    /// The same, with messages compressed from `bytes_min` bytes.
    pub fn with_deflate(mut self, bytes_min: usize) -> Sessions {
        self.messages = SharedMessages::new(bytes_min);
        self
    }
}

/// A message in the gather buffer, and the frames in it.
#[derive(Clone, Copy, Debug)]
struct Written {
    format: WireFormat,
    range: Range,
    start: usize,
    len: usize,
}

/// A compressed message, and the frames in it. Positions in a log only grow, so no other message ever has the same.
#[derive(Debug)]
struct Deflated {
    format: WireFormat,
    ranges: Vec<Range>,
    /// Empty if the message stays plain.
    message: Vec<u8>,
}

impl Default for SharedMessages {
    fn default() -> Self {
        SharedMessages::new(DEFLATE_BYTES_MIN_DEFAULT)
    }
}

impl SharedMessages {
    /// No messages yet. They are compressed from `deflate_bytes_min` bytes.
    pub fn new(deflate_bytes_min: usize) -> SharedMessages {
        SharedMessages {
            last: None,
            deflate: DeflateTurn::new(deflate_bytes_min),
            deflated: Vec::new(),
            oldest: 0,
            credits: DEFLATE_CREDITS_MAX,
            ranges: Vec::new(),
            body: Vec::new(),
        }
    }

    /// Begins a turn.
    pub fn begin_turn(&mut self) {
        self.deflate.begin();
    }

    /// Begins a submission of SENDs. Call whenever the gather buffer has been cleared.
    pub fn begin(&mut self) {
        self.last = None;
        self.earn();
    }

    /// Returns what was compressed since the last call.
    pub fn take_deflated(&mut self) -> DeflateCounts {
        self.deflate.take_counts()
    }

    /// One message of all frames of a range, which must not have been overwritten. Sessions that keep up have the same range
    /// queued and follow each other, so most find it in the gather buffer.
    #[inline]
    pub(super) fn message(
        &mut self,
        log: &EgressLog,
        format: WireFormat,
        range: Range,
        gather: &mut Vec<u8>,
    ) -> SendSource {
        if let Some(Written { start, len, .. }) = self.last.filter(|last| {
            (last.range, last.format) == (range, format) && last.start + last.len <= gather.len()
        }) {
            self.earn();
            return SendSource::Gathered { start, len };
        }
        let start = gather.len();
        if !(format.framing.is_deflated() && self.append_deflated(log, format, [range], gather)) {
            format.framing.write_send(format.codec.message_type(), range.len as usize, 0, gather, |out| {
                out.extend_from_slice(log.bytes(range));
            });
        }
        let len = gather.len() - start;
        self.last = Some(Written { format, range, start, len });
        SendSource::Gathered { start, len }
    }

    /// Appends one compressed message of all frames of these ranges, of which none may have been overwritten. Returns `false`, having
    /// appended nothing, if it is to be sent plain.
    ///
    /// It is compressed for the first session and remembered for the others. So that compression does not become work for each
    /// client where no two have the same frames, one that nobody else uses costs a credit.
    pub(super) fn append_deflated(
        &mut self,
        log: &EgressLog,
        format: WireFormat,
        ranges: impl IntoIterator<Item = Range>,
        gather: &mut Vec<u8>,
    ) -> bool {
        let mut wanted = std::mem::take(&mut self.ranges);
        wanted.clear();
        wanted.extend(ranges);
        let known = self.deflated.iter().find(|known| known.format == format && known.ranges == wanted);
        let is_deflated = match known {
            Some(known) => {
                gather.extend_from_slice(&known.message);
                let is_deflated = !known.message.is_empty();
                self.earn();
                is_deflated
            }
            None => self.deflate(log, format, &wanted, gather),
        };
        self.ranges = wanted;
        is_deflated
    }

    /// Compresses a message, remembers it and appends it. Returns `false` if it stays plain.
    fn deflate(
        &mut self,
        log: &EgressLog,
        format: WireFormat,
        ranges: &[Range],
        gather: &mut Vec<u8>,
    ) -> bool {
        let len = ranges.iter().map(|range| range.len as usize).sum();
        if self.credits == 0 || !self.deflate.admits(len) {
            return false;
        }
        self.credits -= 1;
        if self.deflated.len() < DEFLATED_BATCHES_MAX {
            self.deflated.push(Deflated { format, ranges: Vec::new(), message: Vec::new() });
            self.oldest = self.deflated.len() - 1;
        }
        let slot = &mut self.deflated[self.oldest];
        self.oldest = (self.oldest + 1) % DEFLATED_BATCHES_MAX;
        slot.format = format;
        slot.ranges.clear();
        slot.ranges.extend_from_slice(ranges);
        slot.message.clear();
        let message_type = format.codec.message_type();
        if !ranges.iter().all(|&range| log.is_compressible(range)) {
            return false;
        }
        self.body.clear();
        framing::join_bodies(message_type, &mut self.body, |out| {
            ranges.iter().for_each(|&range| out.extend_from_slice(log.bytes(range)));
        });
        let is_deflated = self.deflate.encode(&mut slot.message, message_type, &self.body);
        gather.extend_from_slice(&slot.message);
        is_deflated
    }

    fn earn(&mut self) {
        self.credits = (self.credits + 1).min(DEFLATE_CREDITS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        egress_log::FrameInfo,
        ids::SessionId,
        session::{ListenerKind, NextSend, Session},
    };
    use tickcast_proto::{
        Step,
        framing::websocket::{Incoming, WebSocket},
    };

    const FORMAT: WireFormat =
        WireFormat::WEBSOCKET_NATIVE.deflated().with(tickcast_proto::features::Features::BATCHES);

    /// A log with frames, of which each is the same text with its number.
    struct Bench {
        log: EgressLog,
        messages: SharedMessages,
        gather: Vec<u8>,
    }

    impl Bench {
        fn new() -> Bench {
            Bench { log: EgressLog::new(1 << 20), messages: SharedMessages::new(100), gather: Vec::new() }
        }

        fn frame(&mut self, number: u32) -> Range {
            let text =
                format!("{number:05} the quick brown fox jumps over the lazy dog, over and over and over");
            let info = FrameInfo { topic: 5, sequence: u64::from(number) + 1 };
            self.log.append(info, text.as_bytes()).unwrap()
        }

        /// What a session sends that has these frames queued: its bytes before and after compression.
        fn send(&mut self, ranges: &[Range]) -> (usize, Vec<u8>) {
            let mut session = Session::new(SessionId(1), ListenerKind::Http);
            session.format = FORMAT;
            for &range in ranges {
                session.push_range(&self.log, range);
            }
            let next = session.take_send(Some(&self.log), &mut self.gather, &mut self.messages);
            let NextSend::Send(SendSource::Gathered { start, len }) = next else { panic!("{next:?}") };
            assert_eq!((session.outbox_bytes(), session.has_work()), (0, false));
            let mut client = WebSocket::client(1 << 20);
            client.inflates = true;
            let step = client.step(&self.gather[start..start + len], &mut Vec::new()).unwrap();
            let Step::Complete(used, Incoming::Binary(body)) = step else { panic!("{step:?}") };
            assert_eq!(used, len, "one message");
            let expected: Vec<u8> = ranges.iter().flat_map(|&range| self.log.bytes(range).to_vec()).collect();
            assert_eq!(body, expected);
            (len, body.to_vec())
        }

        /// Begins another submission.
        fn submit(&mut self) {
            self.gather.clear();
            self.messages.begin();
        }
    }

    #[test]
    fn sessions_with_the_same_frames_share_one_compression_over_several_submissions() {
        let mut bench = Bench::new();
        let all: Vec<Range> = (0..20).map(|number| bench.frame(number)).collect();
        let (whole, parts) = (&all[..], [&all[..5], &all[10..]].concat());
        for _ in 0..5 {
            for _ in 0..100 {
                for ranges in [whole, &parts] {
                    let (sent, body) = bench.send(ranges);
                    assert!(sent < body.len() / 4, "{sent} of {}", body.len());
                }
            }
            bench.submit();
        }
        let DeflateCounts { messages, from_bytes, to_bytes } = bench.messages.take_deflated();
        assert_eq!(messages, 2);
        assert!(to_bytes < from_bytes / 4);
    }

    #[test]
    fn where_no_two_sessions_have_the_same_frames_few_messages_are_compressed_and_all_are_right() {
        let mut bench = Bench::new();
        let all: Vec<Range> = (0..200).map(|number| bench.frame(number)).collect();
        for submission in 1..=5 {
            for first in 0..100 {
                bench.send(&all[first..first + submission * 10]);
            }
            bench.submit();
        }
        let compressed = bench.messages.take_deflated().messages;
        assert_eq!(compressed, u64::from(DEFLATE_CREDITS_MAX) + 4, "one more for each submission");
    }

    #[test]
    fn the_rest_of_a_turn_is_sent_plain_once_its_budget_is_used_up() {
        let mut bench = Bench::new();
        let all: Vec<Range> = (0..10_000).map(|number| bench.frame(number)).collect();
        let mut messages = 0;
        for chunk in all.chunks(300) {
            bench.send(chunk);
            bench.submit();
            messages += 1;
        }
        let compressed = bench.messages.take_deflated();
        assert!(
            compressed.messages > 2 && compressed.messages < messages / 2,
            "{compressed:?} of {messages}"
        );
        bench.messages.begin_turn();
        let number = bench.frame(7);
        bench.send(&[all[9_999], number]);
        assert_eq!(bench.messages.take_deflated().messages, 1);
    }

    #[test]
    fn a_message_with_a_frame_that_is_kept_plain_is_plain_for_everybody() {
        let mut bench = Bench::new();
        let mut all: Vec<Range> = (0..10).map(|number| bench.frame(number)).collect();
        bench.log.keep_last_plain();
        all.push(bench.frame(10));
        for _ in 0..3 {
            let (sent, body) = bench.send(&all);
            assert!(sent > body.len());
            bench.submit();
        }
        assert_eq!(bench.messages.take_deflated().messages, 0);
        let (sent, body) = bench.send(&all[..9]);
        assert!(sent < body.len());
    }
}
