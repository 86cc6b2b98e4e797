//! Finds the end of a request's body: by `Content-Length`, or the last chunk and its trailers (RFC 9112, section 6).

use std::borrow::Cow;

use http::StatusCode;

use super::Failure;
use crate::{
    Step,
    limits::{HTTP_BODY_BYTES_MAX, HTTP_CHUNK_LINE_BYTES_MAX},
};

/// How the length of a body is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyLength {
    /// `Content-Length`, 0 without one. [`Body::advance`] refuses more than [`HTTP_BODY_BYTES_MAX`].
    Bytes(usize),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// A body that is arriving. Complete parts are scanned once; the beginning of an incomplete line, up to
/// [`HTTP_CHUNK_LINE_BYTES_MAX`], again with each call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body {
    /// Offsets in the request of the body's first byte, and of the first byte not scanned yet.
    start: usize,
    at: usize,
    next: Next,
}

/// The next element.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// The last bytes of the body.
    Last(usize),
    /// The size of a chunk.
    Size,
    /// The bytes of a chunk and a line break.
    Chunk(usize),
    /// A trailer, or the empty line after the last one.
    Trailer,
}

impl Body {
    /// The body of a request whose head has `start` bytes.
    pub(super) fn new(start: usize, length: BodyLength) -> Body {
        let next = match length {
            BodyLength::Bytes(bytes) => Next::Last(bytes),
            BodyLength::Chunked => Next::Size,
        };
        Body { start, at: start, next }
    }

    /// Scans what has arrived. `bytes` is the request from its beginning. Returns the length of the whole request.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<Step<()>, Failure> {
        loop {
            // Before anything else, so that a body that is too long stays so.
            let announces_too_much = matches!(self.next, Next::Last(bytes) if bytes > HTTP_BODY_BYTES_MAX);
            if announces_too_much || self.at - self.start > HTTP_BODY_BYTES_MAX + HTTP_CHUNK_LINE_BYTES_MAX {
                return Err(too_long());
            }
            let rest = bytes.get(self.at..).unwrap_or_default();
            let line = || rest.iter().position(|&byte| byte == b'\n').map(|at| &rest[..=at]);
            match self.next {
                Next::Last(len) if rest.len() < len => return Ok(Step::Partial),
                Next::Last(len) => return Ok(Step::Complete(self.at + len, ())),
                Next::Chunk(len) if rest.len() < len + 2 => return Ok(Step::Partial),
                Next::Chunk(len) if &rest[len..len + 2] == b"\r\n" => {
                    (self.at, self.next) = (self.at + len + 2, Next::Size);
                }
                Next::Chunk(_) => return Err(Failure::bad_request("a chunk does not end with a line break")),
                Next::Size => match line().map(|line| (line, httparse::parse_chunk_size(line))) {
                    // httparse reads an empty line as a size of 0.
                    Some((
                        line @ [b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F', ..],
                        Ok(httparse::Status::Complete((_, size))),
                    )) => {
                        let left = (HTTP_BODY_BYTES_MAX + self.start).saturating_sub(self.at);
                        let size =
                            usize::try_from(size).ok().filter(|size| *size <= left).ok_or_else(too_long)?;
                        self.at += line.len();
                        self.next = if size == 0 { Next::Trailer } else { Next::Chunk(size) };
                    }
                    None if rest.len() <= HTTP_CHUNK_LINE_BYTES_MAX => return Ok(Step::Partial),
                    _ => return Err(Failure::bad_request("malformed size of a chunk")),
                },
                Next::Trailer => match line() {
                    Some(line @ (b"\r\n" | b"\n")) => self.next = Next::Last(line.len()),
                    Some(line) => self.at += line.len(),
                    None if rest.len() <= HTTP_CHUNK_LINE_BYTES_MAX => return Ok(Step::Partial),
                    None => return Err(Failure::bad_request("a trailer is too long")),
                },
            }
        }
    }
}

/// The content of a complete body, without the framing of chunks. Copies chunks.
pub(super) fn content(body: &[u8], length: BodyLength) -> Cow<'_, [u8]> {
    if let BodyLength::Bytes(_) = length {
        return Cow::Borrowed(body);
    }
    let (mut rest, mut content) = (body, Vec::new());
    // The body has been scanned, so each size is valid and each chunk complete.
    while let Ok(httparse::Status::Complete((used, size @ 1..))) = httparse::parse_chunk_size(rest) {
        let Some(chunk) = rest.get(used..used + size as usize) else { break };
        content.extend_from_slice(chunk);
        rest = rest.get(used + size as usize + 2..).unwrap_or_default();
    }
    Cow::Owned(content)
}

/// The refusal of a body that is too long.
fn too_long() -> Failure {
    Failure(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the request body is longer than {HTTP_BODY_BYTES_MAX} bytes"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_what_the_chunks_hold() {
        let body = b"3\r\nab\n\r\n1;x=y\r\n0\r\n0\r\nTrailer: z\r\n\r\n";
        assert_eq!(&*content(body, BodyLength::Chunked), b"ab\n0");
        assert_eq!(&*content(b"abc", BodyLength::Bytes(3)), b"abc");
    }

    #[test]
    fn a_body_that_is_too_long_is_refused_however_often_it_is_looked_at() {
        for (start, more) in [("0\r\n", "T: y\r\n"), ("", "1\r\nx\r\n")] {
            let (mut body, mut bytes) = (Body::new(0, BodyLength::Chunked), start.as_bytes().to_vec());
            while body.advance(&bytes).is_ok() {
                assert!(bytes.len() <= 2 * HTTP_BODY_BYTES_MAX, "{more:?} is never refused");
                bytes.extend_from_slice(more.as_bytes());
            }
            assert!(body.advance(&bytes).is_err(), "{more:?}");
        }
    }
}
