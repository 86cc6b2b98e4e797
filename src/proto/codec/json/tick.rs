//! Ticks as JSON objects.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};

use super::{NUMBER_HIGHEST, literal};
use crate::{
    features::Features,
    frame::{FLAG_PAYLOAD_JSON, FLAG_SNAPSHOT, Frame, TickParts},
    records::TickTimes,
};

/// The beginning of every tick of a topic: `{"topic":"NAME","seq":`.
pub fn tick_prefix(topic: &str) -> Vec<u8> {
    format!("{{\"topic\":{},\"seq\":", literal(topic)).into_bytes()
}

/// Appends the tick in a TICK frame. `prefix` is the topic's [`tick_prefix`]. With the feature `previous`, a tick has the bound
/// that its frame has.
pub(in crate::codec) fn encode_frame(out: &mut Vec<u8>, prefix: &[u8], tick: &Frame<'_>, features: Features) {
    let times = tick.record::<TickTimes>();
    debug_assert!(times.is_ok(), "a TICK frame has times");
    let times = times.unwrap_or_default();
    let parts =
        TickParts { flags: tick.header.flags, schema: 0, times, key: tick.key(), payload: tick.payload() };
    let previous = (tick.is_linked() && features.contains(Features::PREVIOUS)).then(|| tick.previous());
    encode_tick_with(out, prefix, tick.header.sequence, previous, &parts, append_as_base64);
}

/// As [`encode_frame`] with that feature, for messages that have opaque payloads beside them: `opaque` stands for these.
pub(in crate::codec) fn encode_frame_beside(
    out: &mut Vec<u8>,
    prefix: &[u8],
    tick: &Frame<'_>,
    opaque: &[u8],
) {
    let times = tick.record::<TickTimes>();
    debug_assert!(times.is_ok(), "a TICK frame has times");
    let times = times.unwrap_or_default();
    let parts =
        TickParts { flags: tick.header.flags, schema: 0, times, key: tick.key(), payload: tick.payload() };
    let previous = tick.is_linked().then(|| tick.previous());
    encode_tick_with(out, prefix, tick.header.sequence, previous, &parts, |out, _| {
        out.extend_from_slice(b",\"data\":");
        out.extend_from_slice(opaque);
    });
}

/// Appends a tick. `prefix` is the topic's [`tick_prefix`]. Allocates only to grow `out`.
pub fn encode_tick(out: &mut Vec<u8>, prefix: &[u8], sequence: u64, tick: &TickParts<'_>) {
    encode_tick_with(out, prefix, sequence, None, tick, append_as_base64);
}

/// A key that a double cannot hold is a string of its digits, so that every JSON parser reads it exactly.
#[inline]
fn encode_tick_with(
    out: &mut Vec<u8>,
    prefix: &[u8],
    sequence: u64,
    previous: Option<u64>,
    tick: &TickParts<'_>,
    append_opaque: impl FnOnce(&mut Vec<u8>, &[u8]),
) {
    let TickParts { flags, times, key, payload, .. } = *tick;
    let mut digits = itoa::Buffer::new();
    out.extend_from_slice(prefix);
    out.extend_from_slice(digits.format(sequence).as_bytes());
    if let Some(previous) = previous {
        out.extend_from_slice(b",\"prev\":");
        out.extend_from_slice(digits.format(previous).as_bytes());
    }
    out.extend_from_slice(b",\"ts\":");
    out.extend_from_slice(digits.format(times.producer_time_ns).as_bytes());
    if key != 0 {
        let quote: &[u8] = if key > NUMBER_HIGHEST { b"\"" } else { b"" };
        out.extend_from_slice(b",\"key\":");
        out.extend_from_slice(quote);
        out.extend_from_slice(digits.format(key).as_bytes());
        out.extend_from_slice(quote);
    }
    if flags & FLAG_SNAPSHOT != 0 {
        out.extend_from_slice(b",\"snapshot\":true");
    }
    if flags & FLAG_PAYLOAD_JSON != 0 {
        out.extend_from_slice(b",\"data\":");
        out.extend_from_slice(payload);
    } else {
        append_opaque(out, payload);
    }
    out.push(b'}');
}

fn append_as_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(b",\"encoding\":\"base64\",\"data\":\"");
    let (start, len) = (out.len(), bytes.len().div_ceil(3) * 4);
    out.resize(start + len, 0);
    let written = BASE64.encode_slice(bytes, &mut out[start..]);
    debug_assert_eq!(written, Ok(len), "base64 has 4 characters per 3 bytes, padded");
    out.push(b'"');
}
