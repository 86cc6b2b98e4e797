//! Compressed messages: permessage-deflate (RFC 7692) without context takeover, so that one message is the same for every client.

use miniz_oxide::{
    DataFormat, MZFlush,
    deflate::{
        core::{CompressionStrategy, CompressorOxide},
        stream::deflate,
    },
    inflate::{
        TINFLStatus,
        core::{DecompressorOxide, decompress, inflate_flags},
    },
};

use super::encode_compressed_header;
use crate::{DecodeError, codec::MessageType};

/// Name of the extension.
const NAME: &[u8] = b"permessage-deflate";
/// Window of the compressor, as a power of two: `server_max_window_bits`. Python's `websockets` asks for it, it covers all ticks
/// but the longest. With fifty ticks a message, 32 KiB would leave 19 % of a market feed's bytes instead of 22 % (zlib).
const WINDOW_BITS: u8 = 12;
/// Bytes of the window.
const WINDOW_BYTES: usize = 1 << WINDOW_BITS;
/// How each compressed message ends; it is not sent (RFC 7692, section 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// Level of the compressor. Of the bytes of a market feed it leaves 76 % with one tick a message, 24 % with ten and 21 % with fifty; level 6
/// leaves 76, 22 and 18 %, in up to 1.6 times the time.
const LEVEL: u8 = 1;
/// First size of the buffer for an inflated message: this many bytes for each compressed one.
const INFLATED_TIMES: usize = 4;

/// What client and server have agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// Whether the server may compress. A client whose window is smaller than the server's only gets plain messages.
    pub compresses: bool,
    /// Value of `server_max_window_bits` in the response.
    window_bits: u8,
}

impl Agreement {
    /// The value of `Sec-WebSocket-Extensions` in the response.
    pub fn response(self) -> String {
        format!(
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits={}",
            self.window_bits
        )
    }
}

/// Selects the first offer of the extension that is valid (RFC 7692, section 7.1). `offers`: the elements of
/// `Sec-WebSocket-Extensions`.
pub fn negotiate<'a>(mut offers: impl Iterator<Item = &'a [u8]>) -> Option<Agreement> {
    offers.find_map(|offer| {
        let mut parts = offer.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
        if parts.next()? != NAME {
            return None;
        }
        let mut names = Vec::new();
        let mut window_bits = WINDOW_BITS;
        for parameter in parts {
            let mut sides = parameter.splitn(2, |&byte| byte == b'=').map(<[u8]>::trim_ascii);
            let (name, value) = (sides.next()?, sides.next());
            // An offer with a parameter twice is declined.
            if names.contains(&name) {
                return None;
            }
            names.push(name);
            match (name, value) {
                (
                    b"server_no_context_takeover" | b"client_no_context_takeover" | b"client_max_window_bits",
                    None,
                ) => {}
                (b"client_max_window_bits", Some(value)) => drop(bits(value)?),
                (b"server_max_window_bits", Some(value)) => window_bits = bits(value)?.min(WINDOW_BITS),
                _ => return None,
            }
        }
        Some(Agreement { compresses: window_bits == WINDOW_BITS, window_bits })
    })
}

/// The value of a parameter with a number of bits: 8 to 15, without leading zeros, perhaps quoted.
fn bits(value: &[u8]) -> Option<u8> {
    let value = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value);
    (8..=15).find(|bits: &u8| bits.to_string().as_bytes() == value)
}

/// Compresses messages, each on its own. About 330 KiB, allocated when first used.
#[derive(Default)]
pub struct Deflater {
    compressor: Option<Box<CompressorOxide>>,
    /// The compressed message.
    compressed: Vec<u8>,
}

impl Deflater {
    /// Appends a compressed message, with its header. Returns `false`, having appended nothing, if that would be no shorter than the
    /// plain message. 18 us for a tick of 200 bytes, 98 us for 10 KiB (with miniz_oxide's opt-level 1).
    pub fn encode(&mut self, out: &mut Vec<u8>, message_type: MessageType, body: &[u8]) -> bool {
        let Some(len) = self.compress(body) else { return false };
        encode_compressed_header(out, message_type, len);
        out.extend_from_slice(&self.compressed[..len]);
        true
    }

    /// Compresses a message into the buffer. Returns its length, unless it is no shorter.
    fn compress(&mut self, body: &[u8]) -> Option<usize> {
        if body.is_empty() {
            return None;
        }
        let compressor = self.compressor.get_or_insert_with(|| {
            Box::new(CompressorOxide::with_params(DataFormat::Raw, LEVEL, CompressionStrategy::Default, 15))
        });
        let room = body.len() + TAIL.len();
        if self.compressed.len() < room {
            self.compressed.resize(room, 0);
        }
        let mut len = 0;
        // No distance is longer than the window if nothing is remembered from one piece to the next.
        for piece in body.chunks(WINDOW_BYTES) {
            let result = deflate(compressor, piece, &mut self.compressed[len..room], MZFlush::Full);
            len += result.bytes_written;
            if result.bytes_consumed < piece.len() || len == room {
                // Its output waits in the compressor.
                self.compressor = None;
                return None;
            }
        }
        let len = len - TAIL.len();
        debug_assert!(self.compressed[len..].starts_with(&TAIL), "a full flush ends with an empty block");
        (len < body.len()).then_some(len)
    }
}

impl std::fmt::Debug for Deflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deflater").field("compressed", &self.compressed.capacity()).finish_non_exhaustive()
    }
}

/// Work for the tables of one block, as inflated bytes.
const BLOCK_WORK_BYTES: usize = 1 << 10;
/// Blocks that a message may have whatever its size, for flushes.
const BLOCKS_BEYOND_SIZE: usize = 64;

/// Blocks that honest data may have. Compressors end a block after some thousand symbols, or when they are flushed.
const fn blocks_max(compressed_bytes: usize, inflated_bytes: usize) -> usize {
    BLOCKS_BEYOND_SIZE + compressed_bytes / 64 + inflated_bytes / BLOCK_WORK_BYTES
}

/// Inflates messages, each on its own: 11 KiB.
#[derive(Default)]
pub struct Inflater {
    state: Box<DecompressorOxide>,
    /// Bytes inflated since [`Inflater::take_inflated`].
    inflated: usize,
}

impl Inflater {
    /// Inflates a message. Allocates at most one byte more than `bytes_max`, and no more than four times the compressed bytes or
    /// twice the inflated ones.
    ///
    /// # Errors
    /// [`DecodeError::TooLarge`] as soon as more than `bytes_max` bytes are inflated. [`DecodeError::WebSocket`] for more blocks than
    /// honest data has: each costs about a microsecond for its tables, even if it is empty and takes ten bits.
    pub(super) fn inflate(&mut self, compressed: &[u8], bytes_max: usize) -> Result<Vec<u8>, DecodeError> {
        // One more, so that a longer message is noticed.
        let room_max = bytes_max + 1;
        let mut out = Vec::new();
        grow(&mut out, (compressed.len() * INFLATED_TIMES).max(64).min(room_max))?;
        let mut len = 0;
        let mut blocks = 0;
        self.state.init();
        for mut input in [compressed, &TAIL] {
            while !input.is_empty() {
                let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF
                    | inflate_flags::TINFL_FLAG_HAS_MORE_INPUT
                    | inflate_flags::TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY;
                let (status, used, written) = decompress(&mut self.state, input, &mut out, len, flags);
                (input, len) = (&input[used..], len + written);
                self.inflated += written;
                if len > bytes_max {
                    return Err(DecodeError::TooLarge { bytes: len as u64, bytes_max });
                }
                if matches!(status, TINFLStatus::BlockBoundary | TINFLStatus::Done) {
                    self.inflated += BLOCK_WORK_BYTES;
                    blocks += 1;
                    if blocks > blocks_max(compressed.len(), len) {
                        return Err(DecodeError::WebSocket(
                            "a compressed message has too many blocks".into(),
                        ));
                    }
                }
                match status {
                    TINFLStatus::BlockBoundary => {}
                    TINFLStatus::NeedsMoreInput if input.is_empty() => {}
                    // A block that says that it is the last; others may follow (RFC 7692, section 7.2.3.4).
                    TINFLStatus::Done => self.state.init(),
                    TINFLStatus::HasMoreOutput if out.len() < room_max => {
                        let room = (2 * out.len()).min(room_max);
                        grow(&mut out, room)?;
                    }
                    _ => return Err(DecodeError::WebSocket("a message is not valid deflate data".into())),
                }
            }
        }
        out.truncate(len);
        Ok(out)
    }

    /// Bytes inflated since the last call, and 1 KiB for each block: work that the length of the input does not show.
    pub fn take_inflated(&mut self) -> usize {
        std::mem::take(&mut self.inflated)
    }
}

impl std::fmt::Debug for Inflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflater").finish_non_exhaustive()
    }
}

/// Lengthens a buffer to `len` bytes.
fn grow(out: &mut Vec<u8>, len: usize) -> Result<(), DecodeError> {
    out.try_reserve_exact(len.saturating_sub(out.len())).map_err(|_| DecodeError::OutOfMemory)?;
    out.resize(len, 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A JSON feed of about `len` bytes.
    fn feed(len: usize, random: &mut fastrand::Rng) -> Vec<u8> {
        let mut out = Vec::new();
        while out.len() < len {
            let (n, price) = (random.u32(..1000), random.u32(..1_000_000));
            out.extend(format!(r#"{{"topic":"market.{n}","seq":{n},"data":{{"price":{price}}}}},"#).bytes());
        }
        out.truncate(len);
        out
    }

    #[test]
    fn a_message_of_empty_blocks_is_refused_before_they_cost_much() {
        // Not final, fixed codes, end of block: ten bits that inflate to nothing.
        let bits = [false, true, false, false, false, false, false, false, false, false];
        let bits: Vec<bool> = bits.iter().copied().cycle().take(10 * 8_000).collect();
        let bytes: Vec<u8> = bits
            .chunks(8)
            .map(|bits| bits.iter().rev().fold(0, |byte, &bit| byte << 1 | u8::from(bit)))
            .collect();
        let mut inflater = Inflater::default();
        let refused = inflater.inflate(&bytes, 1 << 20).unwrap_err();
        assert!(refused.to_string().contains("too many blocks"), "{refused}");
        assert_eq!(inflater.take_inflated(), (blocks_max(bytes.len(), 0) + 1) * BLOCK_WORK_BYTES);
        assert_eq!(inflater.inflate(&bytes[..5], 1 << 20).unwrap(), b"", "a few are honest");
    }

    #[test]
    fn what_is_compressed_inflates_to_the_same_bytes_each_message_on_its_own() {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
        let mut shrunk = 0;
        for round in 0..400 {
            let len = random.usize(1..if round % 20 == 0 { 40_000 } else { 3_000 });
            let body = match round % 5 {
                0 => (0..len).map(|_| random.u8(..)).collect(),
                _ => feed(len, &mut random),
            };
            let mut out = b"before".to_vec();
            match deflater.encode(&mut out, MessageType::Text, &body) {
                false => assert_eq!(out, b"before"),
                true => {
                    assert_eq!(out[6], 0xc1, "one whole compressed text message");
                    let header = match out[7] {
                        ..126 => 2,
                        126 => 4,
                        _ => panic!("longer than 64 KiB"),
                    };
                    assert!(out.len() - 6 - header < body.len());
                    assert_eq!(inflater.inflate(&out[6 + header..], body.len()).unwrap(), body);
                    shrunk += 1;
                }
            }
        }
        assert!(shrunk > 300, "{shrunk}");
    }

    #[test]
    fn what_does_not_shrink_stays_plain_and_the_next_message_is_not_affected() {
        let mut random = fastrand::Rng::with_seed(8);
        let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
        for len in [0, 1, 5, 500, 5_000, 50_000] {
            let noise: Vec<u8> = (0..len).map(|_| random.u8(..)).collect();
            let mut out = Vec::new();
            assert!(!deflater.encode(&mut out, MessageType::Binary, &noise) && out.is_empty(), "{len}");
            let text = feed(600 + len, &mut random);
            assert!(deflater.encode(&mut out, MessageType::Binary, &text));
            assert_eq!(inflater.inflate(&out[4..], text.len()).unwrap(), text);
        }
    }

    #[test]
    fn a_bomb_is_refused_while_it_is_inflated() {
        let mut out = Vec::new();
        Deflater::default().encode(&mut out, MessageType::Binary, &vec![0; 10 << 20]);
        let bomb = &out[if out[1] == 127 { 10 } else { 4 }..];
        assert!(bomb.len() < 100_000, "{}", bomb.len());
        let mut inflater = Inflater::default();
        for bytes_max in [0, 1, 63, 64, 1_000, 100_000, (10 << 20) - 1] {
            let bytes = bytes_max as u64 + 1;
            assert_eq!(inflater.inflate(bomb, bytes_max), Err(DecodeError::TooLarge { bytes, bytes_max }));
            let work = bytes_max + 1 + blocks_max(bomb.len(), bytes_max) * BLOCK_WORK_BYTES;
            assert!((bytes_max + 1..=work).contains(&inflater.take_inflated()), "no more than that");
        }
        assert_eq!(inflater.inflate(bomb, 10 << 20).unwrap().len(), 10 << 20);
    }

    #[test]
    fn messages_of_other_compressors_inflate() {
        // RFC 7692, section 7.2.3: fixed codes, no compression, a last block, two blocks.
        for message in [
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
        ] {
            assert_eq!(Inflater::default().inflate(message, 5).unwrap(), b"Hello", "{message:02x?}");
        }
        assert_eq!(Inflater::default().inflate(&[0], 0).unwrap(), b"");
        assert_eq!(Inflater::default().inflate(&[], 0).unwrap(), b"");
        // A reserved block type; a distance before the beginning.
        for invalid in [&[0x06][..], &[0x02, 0x02, 0x00]] {
            let error = Inflater::default().inflate(invalid, 1 << 10).unwrap_err();
            assert_eq!(error.close_code(), 1002, "{invalid:02x?}");
        }
    }

    #[test]
    fn any_bytes_inflate_within_the_bound_or_fail() {
        let mut random = fastrand::Rng::with_seed(9);
        let mut inflater = Inflater::default();
        for _ in 0..5_000 {
            let bytes: Vec<u8> = (0..random.usize(..80)).map(|_| random.u8(..)).collect();
            let bytes_max = random.usize(..300);
            let inflated = inflater.inflate(&bytes, bytes_max);
            assert!(inflated.is_err() || inflated.is_ok_and(|out| out.len() <= bytes_max));
            let work = bytes_max + 1 + (blocks_max(bytes.len(), bytes_max) + 1) * BLOCK_WORK_BYTES;
            assert!(inflater.take_inflated() <= work);
        }
    }

    #[test]
    fn the_first_valid_offer_is_accepted() {
        let accepted = |offers: &str| {
            let agreement = negotiate(offers.split(',').map(|offer| offer.trim().as_bytes()))?;
            let response = agreement.response();
            let bits = response.rsplit_once('=').unwrap().1.parse::<u8>().unwrap();
            Some((bits, agreement.compresses))
        };
        for (offers, expected) in [
            ("permessage-deflate", Some((12, true))),
            ("permessage-deflate; client_max_window_bits", Some((12, true))),
            ("permessage-deflate;server_max_window_bits=12;client_max_window_bits=12", Some((12, true))),
            ("permessage-deflate; server_max_window_bits=\"15\"", Some((12, true))),
            ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", Some((12, true))),
            // Its window is too small for what all clients share, so it gets plain messages.
            ("permessage-deflate; server_max_window_bits=9", Some((9, false))),
            ("x-webkit-deflate-frame, permessage-deflate", Some((12, true))),
            ("permessage-deflate; server_max_window_bits=16, permessage-deflate", Some((12, true))),
            ("permessage-deflate; server_max_window_bits", None),
            ("permessage-deflate; server_max_window_bits=012", None),
            ("permessage-deflate; server_no_context_takeover=1", None),
            ("permessage-deflate; client_max_window_bits=7", None),
            ("permessage-deflate; unknown", None),
            ("permessage-deflate; client_max_window_bits; client_max_window_bits=10", None),
            ("permessage-bzip2", None),
            ("", None),
        ] {
            assert_eq!(accepted(offers), expected, "{offers}");
        }
    }
}
