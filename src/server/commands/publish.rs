//! `tickcast pub`: one tick, or a tick a line.

use std::{
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use crate::{
    clock,
    commands::{CommandError, connect},
    limits::FRAME_BYTES_MAX_HIGHEST,
};
use tickcast_client::{Address, Client, ClientError, Event, PublishRequest, RequestError};

/// Time for the server to say that it has taken everything.
const BARRIER_DEADLINE_MS: u64 = 10_000;
/// Refused lines that are reported one by one; the rest are counted.
const REFUSALS_SHOWN_MAX: u64 = 10;
/// Longest line read: no server takes more. Memory is bounded by it.
const LINE_BYTES_MAX: usize = FRAME_BYTES_MAX_HIGHEST;
/// Bytes of standard input read in one call.
const READ_BYTES: usize = 64 << 10;

/// Publish one tick, or each line of standard input as one
#[derive(Clone, Debug, clap::Args)]
pub struct PubArgs {
    /// Topic to publish to, without wildcards
    pub topic: String,
    /// The payload; `-` publishes each line of standard input
    #[arg(allow_hyphen_values = true)]
    pub data: String,
    /// What the tick is about within its topic, a price level say: of each key the newest survives conflation. 0: none
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub key: u64,
    /// Server: HOST:PORT, or ws://HOST:PORT/ws
    #[arg(long, value_name = "ADDRESS", env = "TICKCAST_SERVER", default_value = "127.0.0.1:9400")]
    pub server: String,
    /// Identity, if this client is to have one: decides which shard serves it, and may replace an older connection
    #[arg(long, value_name = "ID")]
    pub client: Option<String>,
}

/// Runs `tickcast pub`. `Ok` means that the server has taken every tick.
///
/// # Errors
/// [`CommandError`]; what the server refused was reported on standard error.
pub fn publish(args: &PubArgs) -> Result<(), CommandError> {
    let input = io::stdin();
    publish_from_either(args, input.lock(), Some(input.as_fd()), &mut io::stderr().lock())
}

/// [`publish`] with the lines from `input` and the notices to `notices`.
///
/// # Errors
/// As [`publish`].
pub fn publish_from(args: &PubArgs, input: impl Read, notices: &mut impl Write) -> Result<(), CommandError> {
    publish_from_either(args, input, None, notices)
}

/// [`publish_from`] with the descriptor that `input` reads from: while no line comes, the server is answered.
pub(super) fn publish_from_either(
    args: &PubArgs,
    input: impl Read,
    descriptor: Option<BorrowedFd<'_>>,
    notices: &mut impl Write,
) -> Result<(), CommandError> {
    let mut publisher = Publisher {
        client: connect(&Address::parse(&args.server)?, &args.client)?,
        topic: &args.topic,
        key: args.key,
        notices,
        first_request: None,
        lines: 0,
        refused: 0,
        close_code: 0,
        close_text: String::new(),
    };
    match args.data.as_str() {
        "-" => publisher.publish_lines(input, descriptor)?,
        data => publisher.publish(data.as_bytes())?,
    }
    publisher.finish()
}

struct Publisher<'a, W> {
    client: Client,
    topic: &'a str,
    key: u64,
    notices: &'a mut W,
    /// Request and line of the first tick sent: requests and lines count on together from there.
    first_request: Option<(u32, u64)>,
    lines: u64,
    refused: u64,
    close_code: u16,
    close_text: String,
}

impl<W: Write> Publisher<'_, W> {
    fn publish_lines(
        &mut self,
        input: impl Read,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), CommandError> {
        let mut input = BufReader::with_capacity(READ_BYTES, input);
        let mut line = Vec::new();
        while self.read_line(&mut input, descriptor, &mut line)? {
            self.publish(&line)?;
        }
        Ok(())
    }

    /// Reads a line without its end; of one that is too long only as much as shows that. `false`: there is none.
    fn read_line(
        &mut self,
        input: &mut BufReader<impl Read>,
        descriptor: Option<BorrowedFd<'_>>,
        line: &mut Vec<u8>,
    ) -> Result<bool, CommandError> {
        line.clear();
        loop {
            if input.buffer().is_empty() {
                // The next read may wait for ever: what was read so far must not wait with it, nor a ping.
                self.flush()?;
                while let Some(descriptor) = descriptor
                    && !self.client.wait_readable_or(descriptor)?
                {
                    self.flush()?;
                }
            }
            let chunk = match input.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(CommandError::Input(error)),
            };
            if chunk.is_empty() {
                return Ok(!line.is_empty());
            }
            let end = chunk.iter().position(|&byte| byte == b'\n');
            let room = LINE_BYTES_MAX + 1 - line.len();
            line.extend_from_slice(&chunk[..end.unwrap_or(chunk.len()).min(room)]);
            let used = end.map_or(chunk.len(), |end| end + 1);
            input.consume(used);
            if end.is_some() {
                return Ok(true);
            }
        }
    }

    fn publish(&mut self, payload: &[u8]) -> Result<(), CommandError> {
        self.lines += 1;
        let publish = PublishRequest {
            topic: self.topic,
            payload,
            producer_time_ns: clock::realtime_ns(),
            key: self.key,
            ..PublishRequest::default()
        };
        match self.client.publish_later(publish) {
            Ok(request) => {
                self.first_request.get_or_insert((request, self.lines));
                Ok(())
            }
            Err(ClientError::Request(
                error @ (RequestError::TooLarge { .. } | RequestError::NameLength(_)),
            )) => {
                // A refused request used a number up as well, so lines and requests stay in step.
                let line = self.lines;
                self.report(Some(line), &error.to_string());
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Sends what is queued and reports what the server refused so far.
    fn flush(&mut self) -> Result<(), CommandError> {
        self.client.flush()?;
        loop {
            match self.client.next_event(Some(Duration::ZERO))? {
                None => return Ok(()),
                Some(event) => {
                    let taken = Answer::from(event);
                    self.take(taken)?;
                }
            }
        }
    }

    fn finish(mut self) -> Result<(), CommandError> {
        let token = self.client.ping()?;
        let deadline_ns = clock::monotonic_ns() + BARRIER_DEADLINE_MS * 1_000_000;
        loop {
            let left = Duration::from_nanos(deadline_ns.saturating_sub(clock::monotonic_ns()));
            let Some(event) = self.client.next_event(Some(left))? else {
                let what = "answer to a ping";
                return Err(ClientError::TimedOut { what, waited_ms: BARRIER_DEADLINE_MS }.into());
            };
            match Answer::from(event) {
                Answer::Pong(pong) if pong == token => break,
                answer => self.take(answer)?,
            }
        }
        // Everything is taken: how the goodbye goes changes nothing.
        let _ = self.client.close();
        match self.refused {
            0 => Ok(()),
            refused => Err(CommandError::LinesRefused { refused, lines: self.lines }),
        }
    }

    fn take(&mut self, answer: Answer) -> Result<(), CommandError> {
        match answer {
            Answer::Refused { request, code, text } => {
                let line = self
                    .first_request
                    .filter(|_| request != 0)
                    .map(|(first, line)| line + u64::from(request.wrapping_sub(first)));
                self.report(line, &format!("{text} (code {code})"));
            }
            Answer::Closing(code, text) => (self.close_code, self.close_text) = (code, text),
            Answer::Closed => {
                let (code, text) = (self.close_code, std::mem::take(&mut self.close_text));
                return Err(ClientError::Closed { code, text }.into());
            }
            Answer::Pong(_) | Answer::Other => {}
        }
        Ok(())
    }

    fn report(&mut self, line: Option<u64>, text: &str) {
        self.refused += 1;
        // Where standard error is closed nobody reads reports; the exit status still tells.
        let _ = match (self.refused, line) {
            (1..=REFUSALS_SHOWN_MAX, Some(line)) => writeln!(self.notices, "line {line}: {text}"),
            (1..=REFUSALS_SHOWN_MAX, None) => writeln!(self.notices, "{text}"),
            (refused, _) if refused == REFUSALS_SHOWN_MAX + 1 => {
                writeln!(self.notices, "more lines were refused; they are counted, not shown")
            }
            _ => Ok(()),
        };
    }
}

/// What of an event matters here, owned: the borrow of the client ends.
enum Answer {
    Pong(u64),
    Refused { request: u32, code: u16, text: String },
    Closing(u16, String),
    Closed,
    Other,
}

impl From<Event<'_>> for Answer {
    fn from(event: Event<'_>) -> Answer {
        match event {
            Event::Pong { token } => Answer::Pong(token),
            Event::Error { request, code, text } => Answer::Refused { request, code, text: text.to_owned() },
            Event::Closing { code, text, .. } => Answer::Closing(code, text.to_owned()),
            Event::Closed => Answer::Closed,
            _ => Answer::Other,
        }
    }
}
