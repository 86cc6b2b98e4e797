//! Lines and numbers of text protocols.

use tickcast_proto::Step;

use super::FeedError;

/// Longest line taken from a peer, in bytes, its end included: NATS allows its server 32 KiB for INFO.
pub const LINE_BYTES_MAX: usize = 32 << 10;
/// Digits of a length or count: more announce nothing that could be meant.
const DIGITS_MAX: usize = 10;

/// The line that `bytes` begin with, without its end (CR LF), and the bytes it took with it.
///
/// # Errors
/// [`FeedError::LongLine`], or a line that LF alone ends.
#[inline]
pub fn line(bytes: &[u8]) -> Result<Step<&[u8]>, FeedError> {
    let within = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    match within.iter().position(|&byte| byte == b'\n') {
        Some(end) => match within[..end].strip_suffix(b"\r") {
            Some(line) => Ok(Step::Complete(end + 1, line)),
            None => Err(FeedError::Protocol("a line without CR LF")),
        },
        None if bytes.len() >= LINE_BYTES_MAX => Err(FeedError::LongLine),
        None => Ok(Step::Partial),
    }
}

/// A number without a sign; `None` for anything else.
#[inline]
pub fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > DIGITS_MAX {
        return None;
    }
    digits
        .iter()
        .try_fold(0, |value, byte| byte.is_ascii_digit().then(|| value * 10 + u64::from(byte - b'0')))
}
