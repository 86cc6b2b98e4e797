//! A body of lines that is published while it arrives: `POST /v1/publish?answer=summary`. It may have any length, because no more
//! than one batch of lines is kept.
//!
//! ```text
//!  bytes -> Scanner: chunks, ends of lines -> whole lines -> ticks -> Call::PublishLines, one batch after another
//! ```

use std::net::IpAddr;

use http::StatusCode;

use super::{
    Answer, Failure, HttpConfig,
    api::{self, Call, Exchange, Refused},
    body::BodyLength,
    idempotency,
    request::Request,
};
use crate::{
    Step,
    command::Token,
    limits::{HTTP_BODY_BYTES_MAX, HTTP_CHUNK_LINE_BYTES_MAX, HTTP_PUBLISH_TICKS_MAX, MESSAGE_ID_BYTES_MAX},
};

/// A request whose lines are published while they arrive.
#[derive(Debug)]
pub(super) struct Lines {
    scanner: Scanner,
    exchange: Exchange,
    host: Box<str>,
    forwarded_for: Vec<IpAddr>,
    token: Option<Token<'static>>,
    key: Option<String>,
    /// Ticks so far.
    ticks: u64,
    /// Scanner and ticks before the last step, in case its lines are not taken yet.
    before: (Scanner, u64),
    /// Whether the last step has taken the last lines.
    is_over: bool,
}

impl Lines {
    /// Begins the body of a request whose head has been consumed.
    pub(super) fn new(
        request: &Request,
        exchange: Exchange,
        host: Box<str>,
        token: Option<Token<'static>>,
    ) -> Result<Lines, Failure> {
        let scanner = Scanner::new(request.body);
        Ok(Lines {
            scanner,
            before: (scanner, 0),
            is_over: false,
            exchange,
            host,
            forwarded_for: request.forwarded_for(),
            token,
            key: idempotency::key(request)?,
            ticks: 0,
        })
    }

    /// Whether the last lines have been taken.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Takes back the last step: its lines have to wait, and come again with the next one.
    pub(super) fn unread(&mut self) {
        (self.scanner, self.ticks) = self.before;
        self.is_over = false;
    }

    /// Takes the next lines, whose bytes start where the last complete step ended.
    pub(super) fn step(&mut self, bytes: &[u8], config: &HttpConfig<'_>) -> Step<Answer> {
        self.before = (self.scanner, self.ticks);
        let (used, parsed) = match self.scanner.step(bytes) {
            Ok(Step::Partial) => return Step::Partial,
            Ok(Step::Complete(used, batch)) => {
                let (ticks, failure) = self.parse(&batch.text, config);
                (used, (ticks, batch.is_last, failure))
            }
            Err(failure) => (bytes.len(), (Vec::new(), true, Some(failure))),
        };
        let (ticks, is_last, failure) = parsed;
        let is_last = is_last || failure.is_some();
        self.ticks += ticks.len() as u64;
        let mut exchange = self.exchange.clone();
        // After a line that cannot be read, the rest of the body is not read either.
        exchange.closes |= failure.is_some();
        let refused = failure.map(|Failure(status, text)| Refused { status: status.as_u16(), text });
        let used = if refused.is_some() { bytes.len() } else { used };
        let call = Call::PublishLines { ticks, is_last, refused };
        let (host, forwarded_for) = (self.host.clone(), self.forwarded_for.clone());
        let answer = Answer::Call { call, exchange, host, forwarded_for, token: self.token.clone() };
        self.is_over = is_last;
        Step::Complete(used, answer)
    }

    /// The ticks in these lines, up to the first line that is none.
    fn parse(&self, text: &[u8], config: &HttpConfig<'_>) -> (Vec<api::Tick>, Option<Failure>) {
        let mut ticks = Vec::new();
        for line in text.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
            let place = self.ticks + ticks.len() as u64 + 1;
            let line = std::str::from_utf8(line)
                .map_err(|_| Failure::bad_request(format!("tick {place}: it is not UTF-8")));
            let tick = line.and_then(|line| api::line(line, place));
            match tick.and_then(|tick| self.with_id(tick, place, config)) {
                Ok(tick) => ticks.push(tick),
                Err(failure) => return (ticks, Some(failure)),
            }
        }
        (ticks, None)
    }

    /// Gives a tick its message id, if the request has a key.
    fn with_id(
        &self,
        mut tick: api::Tick,
        place: u64,
        config: &HttpConfig<'_>,
    ) -> Result<api::Tick, Failure> {
        if !config.message_ids && !tick.message_id.is_empty() {
            return Err(Failure(StatusCode::NOT_IMPLEMENTED, idempotency::OFF.into()));
        }
        let Some(key) = &self.key else { return Ok(tick) };
        if !tick.message_id.is_empty() {
            return Err(Failure::bad_request(idempotency::BOTH));
        }
        tick.message_id = format!("{key}:{place}");
        match tick.message_id.len() > MESSAGE_ID_BYTES_MAX {
            true => Err(idempotency::too_long()),
            false => Ok(tick),
        }
    }
}

/// Whole lines of a body.
#[derive(Debug, PartialEq, Eq)]
struct Batch {
    text: Vec<u8>,
    /// The body ends with them.
    is_last: bool,
}

/// What comes next in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// So many bytes of lines, with which the body ends.
    Plain(usize),
    /// The size of a chunk.
    Size,
    /// So many bytes of lines, then a line break.
    Chunk(usize),
    /// A trailer, or the empty line after the last one.
    Trailer,
    /// Nothing: the body has ended.
    End,
}

/// Finds whole lines in the bytes of a body. Scans each byte once, apart from the lines that it takes out, and the beginning of a
/// chunk's size.
///
/// Bound: the bytes of an incomplete line, with the framing of its chunks, are at most [`HTTP_BODY_BYTES_MAX`].
#[derive(Clone, Copy, Debug)]
struct Scanner {
    /// The part at the front of the bytes.
    first: Part,
    /// Offset of the first byte that has not been scanned, and the part that it belongs to.
    at: usize,
    part: Part,
    /// End of the last whole line that has been scanned: its offset, and the part that follows.
    line_end: Option<(usize, Part)>,
    lines: usize,
}

impl Scanner {
    fn new(length: BodyLength) -> Scanner {
        let first = match length {
            BodyLength::Bytes(len) => Part::Plain(len),
            BodyLength::Chunked => Part::Size,
        };
        Scanner { first, at: 0, part: first, line_end: None, lines: 0 }
    }

    fn step(&mut self, bytes: &[u8]) -> Result<Step<Batch>, Failure> {
        while self.part != Part::End && self.lines < HTTP_PUBLISH_TICKS_MAX && self.at < HTTP_BODY_BYTES_MAX {
            let rest = bytes.get(self.at..).unwrap_or_default();
            match self.part {
                Part::Plain(0) => self.part = Part::End,
                Part::Plain(left) | Part::Chunk(left) if left > 0 => {
                    if rest.is_empty() {
                        break;
                    }
                    self.scan(&rest[..left.min(rest.len()).min(HTTP_BODY_BYTES_MAX)], left);
                }
                Part::Chunk(_) => match rest {
                    [b'\r', b'\n', ..] => {
                        // A chunk that ends with a line goes with it, so that nothing of it waits for the next one.
                        if self.line_end == Some((self.at, Part::Chunk(0))) {
                            self.line_end = Some((self.at + 2, Part::Size));
                        }
                        (self.at, self.part) = (self.at + 2, Part::Size);
                    }
                    [] | [b'\r'] => break,
                    _ => return Err(Failure::bad_request("a chunk does not end with a line break")),
                },
                Part::Size => {
                    let Some(line) = line_of(rest, "malformed size of a chunk")? else { break };
                    // httparse reads an empty line as a size of 0.
                    let size = match (line.first(), httparse::parse_chunk_size(line)) {
                        (Some(first), Ok(httparse::Status::Complete((_, size))))
                            if first.is_ascii_hexdigit() =>
                        {
                            size
                        }
                        _ => return Err(Failure::bad_request("malformed size of a chunk")),
                    };
                    self.at += line.len();
                    self.part = match usize::try_from(size).unwrap_or(usize::MAX) {
                        0 => Part::Trailer,
                        size => Part::Chunk(size),
                    };
                }
                Part::Trailer => {
                    let Some(line) = line_of(rest, "a trailer is too long")? else { break };
                    self.at += line.len();
                    self.part = if matches!(line, b"\r\n" | b"\n") { Part::End } else { Part::Trailer };
                }
                Part::Plain(_) | Part::End => break,
            }
        }
        if self.part == Part::Plain(0) {
            self.part = Part::End;
        }
        let is_last = self.part == Part::End;
        let end = if is_last { Some((self.at, Part::End)) } else { self.line_end };
        let Some((used, next)) = end else {
            return match self.at >= HTTP_BODY_BYTES_MAX {
                true => Err(Failure(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("a line is longer than {HTTP_BODY_BYTES_MAX} bytes"),
                )),
                false => Ok(Step::Partial),
            };
        };
        let text = content(self.first, bytes.get(..used).unwrap_or_default());
        (self.first, self.at, self.lines, self.line_end) = (next, self.at - used, 0, None);
        Ok(Step::Complete(used, Batch { text, is_last }))
    }

    /// Scans bytes of lines, up to as many lines as a batch may have. `left`: bytes of lines in this part.
    fn scan(&mut self, bytes: &[u8], left: usize) {
        let is_plain = matches!(self.part, Part::Plain(_));
        let part = |left| if is_plain { Part::Plain(left) } else { Part::Chunk(left) };
        let (mut scanned, start) = (bytes.len(), self.at);
        for (at, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
            self.line_end = Some((start + at + 1, part(left - at - 1)));
            self.lines += 1;
            if self.lines == HTTP_PUBLISH_TICKS_MAX {
                scanned = at + 1;
                break;
            }
        }
        (self.at, self.part) = (start + scanned, part(left - scanned));
    }
}

/// The line at the front of `bytes`, with its end; `None` if it is incomplete.
fn line_of<'a>(bytes: &'a [u8], too_long: &str) -> Result<Option<&'a [u8]>, Failure> {
    let searched = bytes.get(..HTTP_CHUNK_LINE_BYTES_MAX).unwrap_or(bytes);
    match searched.iter().position(|&byte| byte == b'\n') {
        Some(at) => Ok(bytes.get(..=at)),
        None if bytes.len() < HTTP_CHUNK_LINE_BYTES_MAX => Ok(None),
        None => Err(Failure::bad_request(too_long)),
    }
}

/// The lines in bytes that have been scanned, of which `part` is first, without the framing of chunks.
fn content(mut part: Part, mut bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    loop {
        match part {
            Part::Plain(left) => {
                text.extend_from_slice(&bytes[..left.min(bytes.len())]);
                return text;
            }
            Part::Chunk(left) => {
                let (lines, rest) = bytes.split_at(left.min(bytes.len()));
                text.extend_from_slice(lines);
                (bytes, part) = (rest.get(2..).unwrap_or_default(), Part::Size);
            }
            Part::Size => match httparse::parse_chunk_size(bytes) {
                Ok(httparse::Status::Complete((used, size @ 1..))) => {
                    (bytes, part) = (bytes.get(used..).unwrap_or_default(), Part::Chunk(size as usize));
                }
                _ => return text,
            },
            Part::Trailer | Part::End => return text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The batches in a body that arrives in pieces of this many bytes.
    fn batches(length: BodyLength, body: &[u8], piece: usize) -> Result<Vec<String>, String> {
        let (mut scanner, mut kept, mut found) = (Scanner::new(length), Vec::new(), Vec::new());
        for piece in body.chunks(piece).map(Some).chain([None]) {
            kept.extend_from_slice(piece.unwrap_or_default());
            // As the server does, it is asked again only if there are more bytes.
            let mut is_empty_body = length == BodyLength::Bytes(0);
            while (!kept.is_empty() || std::mem::take(&mut is_empty_body))
                && let Step::Complete(used, batch) = scanner.step(&kept).map_err(|Failure(_, text)| text)?
            {
                kept.drain(..used);
                found.push(String::from_utf8(batch.text).unwrap());
                if batch.is_last {
                    assert_eq!(kept, b"", "the next request is not part of the body");
                    return Ok(found);
                }
            }
        }
        Err(format!("the body has not ended; {} bytes are kept", kept.len()))
    }

    fn chunked(text: &str, chunk: usize) -> Vec<u8> {
        let mut body = Vec::new();
        for part in text.as_bytes().chunks(chunk) {
            body.extend(format!("{:x};ext=1\r\n", part.len()).into_bytes());
            body.extend_from_slice(part);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"0\r\nTrailer: x\r\n\r\n");
        body
    }

    #[test]
    fn lines_come_whole_and_in_order_however_they_are_cut() {
        let lines: Vec<String> = (0..3_000).map(|n| format!("{n}{}", "x".repeat(n % 90))).collect();
        for (count, end) in [(3_000, "\n"), (3_000, ""), (1_024, "\n"), (2_048, "\n"), (1_024, "")] {
            let text = lines[..count].join("\n") + end;
            for piece in [1, 7, 1_000, 64 << 10, 1 << 20] {
                let whole = batches(BodyLength::Bytes(text.len()), text.as_bytes(), piece).unwrap();
                assert_eq!(whole.concat(), text);
                let most = whole.iter().map(|batch| batch.lines().count()).max();
                assert!(most <= Some(HTTP_PUBLISH_TICKS_MAX + 1), "{most:?}");
                for chunk in [1, 13, 5_000, 1 << 20] {
                    let body = chunked(&text, chunk);
                    assert_eq!(
                        batches(BodyLength::Chunked, &body, piece).unwrap().concat(),
                        text,
                        "{chunk} {piece}"
                    );
                }
            }
        }
        assert_eq!(batches(BodyLength::Bytes(0), b"", 1), Ok(vec![String::new()]));
        assert_eq!(batches(BodyLength::Chunked, b"0\r\n\r\n", 1), Ok(vec![String::new()]));
    }

    #[test]
    fn a_line_without_end_and_malformed_chunks_are_refused() {
        let long = "x".repeat(2 * HTTP_BODY_BYTES_MAX);
        let too_long = format!("a line is longer than {HTTP_BODY_BYTES_MAX} bytes");
        assert_eq!(batches(BodyLength::Bytes(usize::MAX), long.as_bytes(), 999), Err(too_long.clone()));
        assert_eq!(batches(BodyLength::Chunked, &chunked(&long, 10), 999), Err(too_long));
        for (body, error) in [
            (&b"x\r\n"[..], "malformed size of a chunk"),
            (b"\r\n", "malformed size of a chunk"),
            (b"1\r\nab\r\n", "a chunk does not end with a line break"),
            (&[b'0'; HTTP_CHUNK_LINE_BYTES_MAX], "malformed size of a chunk"),
            (&[&b"0\r\n"[..], &[b'a'; HTTP_CHUNK_LINE_BYTES_MAX]].concat(), "a trailer is too long"),
        ] {
            assert_eq!(batches(BodyLength::Chunked, body, 1).unwrap_err(), error);
        }
    }
}
