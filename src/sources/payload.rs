//! The payload of simulated ticks, for measuring latency and loss: `{"at":NANOS,"topic":T,"n":N,"pad":"..."}`.
//!
//! `at` is the intended send time, `n` numbers the ticks of its topic from 1. The subscriber computes latency and
//! loss from them alone, so any server can be measured: the simulator, the load client and its feeder share this format.

use crate::limits::SIM_SIZE_LOWEST;

/// Longest payload without padding: every number at its longest.
pub const LONGEST_UNPADDED_BYTES: usize =
    AT.len() + 20 + TOPIC.len() + 10 + N.len() + 20 + PAD.len() + END.len();
/// Most digits of a number to read: more may not fit 64 bits.
const DIGITS_MAX: usize = 19;

const AT: &[u8] = b"{\"at\":";
const TOPIC: &[u8] = b",\"topic\":";
const N: &[u8] = b",\"n\":";
const PAD: &[u8] = b",\"pad\":\"";
const END: &[u8] = b"\"}";

const _: () =
    assert!(LONGEST_UNPADDED_BYTES <= SIM_SIZE_LOWEST, "every simulated payload has the size asked for");

/// The numbers in a payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The intended send time, nanoseconds since 1970.
    pub at_ns: u64,
    /// Number of the topic among those of its source, from 0.
    pub topic: u32,
    /// Number of the tick in its topic, from 1.
    pub n: u64,
}

impl Mark {
    /// Replaces `payload` by one JSON object of `size_bytes`, or longer if the numbers need it: at most
    /// [`LONGEST_UNPADDED_BYTES`] then. No allocation within the capacity.
    pub fn write(&self, payload: &mut Vec<u8>, size_bytes: usize) {
        let mut digits = itoa::Buffer::new();
        payload.clear();
        payload.extend_from_slice(AT);
        payload.extend_from_slice(digits.format(self.at_ns).as_bytes());
        payload.extend_from_slice(TOPIC);
        payload.extend_from_slice(digits.format(self.topic).as_bytes());
        payload.extend_from_slice(N);
        payload.extend_from_slice(digits.format(self.n).as_bytes());
        payload.extend_from_slice(PAD);
        payload.resize(size_bytes.saturating_sub(END.len()).max(payload.len()), b'.');
        payload.extend_from_slice(END);
    }

    /// Reads what [`Mark::write`] wrote; `None` for any other bytes. The padding is not checked.
    #[inline]
    pub fn read(payload: &[u8]) -> Option<Mark> {
        let (at_ns, rest) = number(payload.strip_prefix(AT)?)?;
        let (topic, rest) = number(rest.strip_prefix(TOPIC)?)?;
        let (n, rest) = number(rest.strip_prefix(N)?)?;
        rest.starts_with(PAD).then_some(Mark { at_ns, topic: u32::try_from(topic).ok()?, n })
    }
}

/// The number that `text` begins with, and what follows it.
#[inline]
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    let mut at = 0;
    while let Some(digit) = text.get(at).filter(|byte| byte.is_ascii_digit()) {
        if at == DIGITS_MAX {
            return None;
        }
        value = value * 10 + u64::from(digit - b'0');
        at += 1;
    }
    (at > 0).then(|| (value, &text[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_json_of_the_size_asked_for_and_are_read_back() {
        let mut payload = Vec::new();
        let longest = u64::from(u32::MAX) << 31;
        for (size, n) in [(LONGEST_UNPADDED_BYTES, longest), (80, 0), (100, 7), (10_240, 1)] {
            let mark = Mark { at_ns: longest, topic: u32::MAX, n };
            mark.write(&mut payload, size);
            let value: serde_json::Value = serde_json::from_slice(&payload).unwrap();
            assert_eq!((value["n"].as_u64(), value["at"].as_u64()), (Some(n), Some(longest)));
            assert_eq!(payload.len(), size);
            assert_eq!(Mark::read(&payload), Some(mark));
        }
        Mark { at_ns: u64::MAX, topic: u32::MAX, n: u64::MAX }.write(&mut payload, 0);
        assert_eq!(payload.len(), LONGEST_UNPADDED_BYTES);
    }

    #[test]
    fn nothing_else_is_taken_for_a_mark() {
        let mut payload = Vec::new();
        Mark { at_ns: 17, topic: 3, n: 5 }.write(&mut payload, 0);
        let marked = payload.len() - END.len();
        for len in 0..marked {
            assert_eq!(Mark::read(&payload[..len]), None, "{len}");
        }
        for bad in [
            "{\"at\":,\"topic\":1,\"n\":1,\"pad\":\"",
            "{\"at\":10000000000000000000,\"topic\":1,\"n\":1,\"pad\":\"",
            "{\"at\":1,\"topic\":4294967296,\"n\":1,\"pad\":\"",
            "{\"at\":1,\"topic\":1,\"n\":-1,\"pad\":\"",
            " {\"at\":1,\"topic\":1,\"n\":1,\"pad\":\"",
        ] {
            assert_eq!(Mark::read(bad.as_bytes()), None, "{bad}");
        }
    }
}
