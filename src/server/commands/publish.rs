//! `tickcast pub`: publishes one tick, or one for each line of standard input.

use std::{
    borrow::Cow,
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use clap::builder::NonEmptyStringValueParser;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::{
    byte_order_mark, clock,
    commands::{CommandError, ServerArgs, counted},
    limits::FRAME_BYTES_MAX_HIGHEST,
};
use tickcast_client::{
    Client, ClientError, ConnectOptions, Event, PUBLISHES_UNACKNOWLEDGED_MAX, PublishRequest, RequestError,
};

/// Time for the server to accept more bytes, to acknowledge the next tick, or to answer a ping.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Rejected lines that are reported one by one; further ones are only counted.
const REJECTIONS_SHOWN_MAX: u64 = 10;
/// Bytes of a line that are kept: no server accepts more.
const LINE_BYTES_MAX: usize = FRAME_BYTES_MAX_HIGHEST;
/// Bytes of standard input read in one call.
const READ_BYTES: usize = 64 << 10;

/// Publish one tick, or one for each line of standard input
#[derive(Clone, Debug, clap::Args)]
pub struct PubArgs {
    /// Topic to publish to; no wildcards
    pub topic: String,
    /// Payload; `-` publishes each line of standard input
    #[arg(allow_hyphen_values = true)]
    pub data: String,
    /// Key within the topic, such as a price level: conflation keeps the last tick of each key; 0 means none
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub key: u64,
    /// Message id of the tick, by which the server recognises it if it is published again; with lines, line N has the id ID:N
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    pub message_id: Option<String>,
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Runs `tickcast pub`. `Ok` means that the server has acknowledged every tick.
/// A server of version 0.1 does not acknowledge ticks. Then `Ok` means that it has answered a ping after the last tick: one of
/// its shards has processed all of them, but another may still refuse some.
///
/// # Errors
/// [`CommandError`]; rejected lines were reported on standard error.
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

/// [`publish_from`] with the descriptor that `input` reads from: while no line arrives, the client answers the server.
pub(super) fn publish_from_either(
    args: &PubArgs,
    input: impl Read,
    descriptor: Option<BorrowedFd<'_>>,
    notices: &mut impl Write,
) -> Result<(), CommandError> {
    let (address, options) = args.server.parse()?;
    let options = ConnectOptions { acknowledgements: true, ..options };
    let mut client = Client::connect_with(&address, &options)?;
    client.set_write_timeout(Some(ANSWER_TIMEOUT));
    let mut publisher = Publisher {
        client,
        topic: &args.topic,
        key: args.key,
        message_id: args.message_id.as_deref(),
        is_lines: args.data == "-",
        notices,
        first_request: None,
        lines: 0,
        refused: 0,
        pong: None,
        close_code: 0,
        close_text: String::new(),
    };
    let result = match args.data.as_str() {
        "-" => publisher.publish_lines(input, descriptor),
        data => publisher.publish(data.as_bytes()),
    };
    match result.and_then(|()| publisher.await_answers()) {
        Ok(()) => publisher.finish(),
        Err(error) => {
            let error = publisher.handle_failure(error);
            publisher.report_unacknowledged();
            Err(error)
        }
    }
}

struct Publisher<'a, W> {
    client: Client,
    topic: &'a str,
    key: u64,
    message_id: Option<&'a str>,
    /// Whether each line is a tick.
    is_lines: bool,
    notices: &'a mut W,
    /// Request number and line number of the first tick: both increase together from there.
    first_request: Option<(u32, u64)>,
    lines: u64,
    refused: u64,
    /// Token of the last pong.
    pong: Option<u64>,
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

    /// Reads a line without its line break (LF or CR LF), or the first bytes of an overlong one; returns `false` at the end.
    fn read_line(
        &mut self,
        input: &mut BufReader<impl Read>,
        descriptor: Option<BorrowedFd<'_>>,
        line: &mut Vec<u8>,
    ) -> Result<bool, CommandError> {
        line.clear();
        loop {
            if input.buffer().is_empty() {
                // The next read may block for long: send what was read so far, and keep answering pings.
                self.flush()?;
                while let Some(descriptor) = descriptor
                    && !self.wait_for_input(descriptor)?
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
                self.strip_byte_order_mark(line)?;
                return Ok(!line.is_empty());
            }
            let end = chunk.iter().position(|&byte| byte == b'\n');
            let room = LINE_BYTES_MAX + 1 - line.len();
            line.extend_from_slice(&chunk[..end.unwrap_or(chunk.len()).min(room)]);
            let used = end.map_or(chunk.len(), |end| end + 1);
            input.consume(used);
            if end.is_some() {
                line.pop_if(|byte| *byte == b'\r');
                self.strip_byte_order_mark(line)?;
                return Ok(true);
            }
        }
    }

    /// Removes a UTF-8 byte order mark from the first line. Refuses UTF-16: its lines end within characters.
    fn strip_byte_order_mark(&self, line: &mut Vec<u8>) -> Result<(), CommandError> {
        if self.lines == 0 {
            if byte_order_mark::is_utf16(line) {
                return Err(CommandError::Input(io::Error::new(
                    ErrorKind::InvalidData,
                    byte_order_mark::UTF16,
                )));
            }
            let mark_bytes = line.len() - byte_order_mark::strip(line).len();
            line.drain(..mark_bytes);
        }
        Ok(())
    }

    /// Waits until the server has sent something, the client has something to do, or `input` is readable; returns whether `input`
    /// is, or has ended.
    fn wait_for_input(&self, input: BorrowedFd<'_>) -> Result<bool, CommandError> {
        let mut server = PollFlags::POLLIN;
        server.set(PollFlags::POLLOUT, !self.client.connection().poll_transmit().is_empty());
        let mut waited = [PollFd::new(self.client.as_fd(), server), PollFd::new(input, PollFlags::POLLIN)];
        let wakes_after =
            self.client.wakes_after().map(|after| after.saturating_add(Duration::from_millis(1)));
        let timeout = wakes_after.and_then(|after| PollTimeout::try_from(after).ok());
        match poll(&mut waited, timeout.unwrap_or(PollTimeout::NONE)) {
            Ok(_) => Ok(waited[1].any().unwrap_or(true)),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(CommandError::Input(errno.into())),
        }
    }

    fn publish(&mut self, payload: &[u8]) -> Result<(), CommandError> {
        if self.client.connection().unacknowledged() >= PUBLISHES_UNACKNOWLEDGED_MAX {
            // Half of them, so that the next ticks leave together.
            self.read_answers(PUBLISHES_UNACKNOWLEDGED_MAX / 2)?;
        }
        self.lines += 1;
        let message_id = match self.message_id {
            None => Cow::Borrowed(""),
            Some(id) if self.is_lines => Cow::Owned(format!("{id}:{}", self.lines)),
            Some(id) => Cow::Borrowed(id),
        };
        let publish = PublishRequest {
            topic: self.topic,
            payload,
            producer_time_ns: clock::realtime_ns(),
            key: self.key,
            message_id: &message_id,
            ..PublishRequest::default()
        };
        match self.client.publish_buffered(publish) {
            Ok(request) => {
                self.first_request.get_or_insert((request, self.lines));
                Ok(())
            }
            Err(ClientError::Request(
                error @ (RequestError::TooLarge { .. }
                | RequestError::NameLength(_)
                | RequestError::MessageIdLength(_)),
            )) => {
                // A rejected request uses up a number too, so lines and requests stay in step.
                let line = self.lines;
                self.report(Some(line), &error.to_string());
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Sends queued ticks and reports those that the server has rejected so far.
    fn flush(&mut self) -> Result<(), CommandError> {
        self.client.flush()?;
        self.handle_received()
    }

    /// Handles the events that have arrived.
    fn handle_received(&mut self) -> Result<(), CommandError> {
        loop {
            match self.client.next_event(Some(Duration::ZERO))? {
                None => return Ok(()),
                Some(event) => {
                    let answer = Answer::from(event);
                    self.handle_answer(answer)?;
                }
            }
        }
    }

    /// Reads answers until at most `left` ticks wait for one.
    fn read_answers(&mut self, left: usize) -> Result<(), CommandError> {
        while self.client.connection().unacknowledged() > left {
            self.read_answer("acknowledgement")?;
        }
        Ok(())
    }

    /// Waits until the server has answered for every tick.
    fn await_answers(&mut self) -> Result<(), CommandError> {
        if self.client.connection().acknowledges() {
            self.client.flush()?;
            return self.read_answers(0);
        }
        let token = self.client.ping()?;
        while self.pong != Some(token) {
            self.read_answer("answer to a ping")?;
        }
        Ok(())
    }

    fn read_answer(&mut self, awaited: &'static str) -> Result<(), CommandError> {
        let Some(event) = self.client.next_event(Some(ANSWER_TIMEOUT))? else {
            return Err(ClientError::TimedOut { awaited, waited: ANSWER_TIMEOUT }.into());
        };
        let answer = Answer::from(event);
        self.handle_answer(answer)
    }

    fn finish(self) -> Result<(), CommandError> {
        // The server has answered for everything, so a failed close changes nothing.
        let _ = self.client.close();
        match self.refused {
            0 => Ok(()),
            refused => Err(CommandError::LinesRefused { refused, lines: self.lines }),
        }
    }

    /// Handles what the server sent before the connection failed: answers, and perhaps the reason for closing, which is the
    /// better error.
    fn handle_failure(&mut self, error: CommandError) -> CommandError {
        let is_lost = matches!(
            error,
            CommandError::Client(ClientError::Io(_) | ClientError::Request(RequestError::Ended))
        );
        match self.handle_received() {
            Err(reason @ CommandError::Client(ClientError::Closed { code: 1.., .. })) if is_lost => reason,
            _ => error,
        }
    }

    /// Reports how many ticks may or may not have been published, after the connection has failed.
    fn report_unacknowledged(&mut self) {
        let unknown = self.client.connection().unacknowledged();
        if unknown > 0 {
            let _ = writeln!(
                self.notices,
                "{} not acknowledged: they may or may not have been published",
                counted(unknown as u64, "tick")
            );
        }
    }

    fn handle_answer(&mut self, answer: Answer) -> Result<(), CommandError> {
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
            Answer::Pong(token) => self.pong = Some(token),
            Answer::Other => {}
        }
        Ok(())
    }

    fn report(&mut self, line: Option<u64>, text: &str) {
        self.refused += 1;
        // If standard error is closed, nobody reads reports; the exit status still tells.
        let _ = match (self.refused, line) {
            (1..=REJECTIONS_SHOWN_MAX, Some(line)) => writeln!(self.notices, "line {line}: {text}"),
            (1..=REJECTIONS_SHOWN_MAX, None) => writeln!(self.notices, "{text}"),
            (refused, _) if refused == REJECTIONS_SHOWN_MAX + 1 => {
                writeln!(self.notices, "further lines were not published; they are counted but not shown")
            }
            _ => Ok(()),
        };
    }
}

/// The parts of an event that matter here, owned, so that the borrow of the client ends.
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
