//! Parsing of lines, numbers and marks in text protocols.

use tickcast_proto::Step;

use super::FeedError;

pub use crate::common::nats::LINE_BYTES_MAX;

/// Most digits of a length or count; a number with more is far past every limit.
const DIGITS_MAX: usize = 10;

/// Splits the first line off `bytes`: its text without CR LF, and its length with them.
///
/// # Errors
/// [`FeedError::LongLine`], or a line that ends in LF alone.
#[inline]
pub fn line(bytes: &[u8]) -> Result<Step<&[u8]>, FeedError> {
    let within = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    match within.iter().position(|&byte| byte == b'\n') {
        Some(end) => match within[..end].strip_suffix(b"\r") {
            Some(line) => Ok(Step::Complete(end + 1, line)),
            None => Err(FeedError::Protocol("a line that does not end in CR LF")),
        },
        None if bytes.len() >= LINE_BYTES_MAX => Err(FeedError::LongLine),
        None => Ok(Step::Partial),
    }
}

/// Parses an unsigned decimal number; `None` for anything else.
#[inline]
pub fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > DIGITS_MAX {
        return None;
    }
    digits
        .iter()
        .try_fold(0, |value, byte| byte.is_ascii_digit().then(|| value * 10 + u64::from(byte - b'0')))
}

/// Where a text first occurs.
#[inline]
pub fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}
