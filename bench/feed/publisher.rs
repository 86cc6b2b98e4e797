//! Publisher side of one connection's protocol, without socket or clock.
//!
//! Ticks go in and bytes come out; the server's answers go in.

use std::io::Write;

use tickcast::limits::{HTTP_HEAD_BYTES_MAX_DEFAULT, HTTP_HEADERS_MAX};
use tickcast_client::{ConnectOptions, Connection, Event, PublishRequest};
use tickcast_proto::WireFormat;

use crate::{
    common::nats::{LINE_BYTES_MAX, write_connect},
    options::{Plan, Protocol},
};

/// Bytes queued for one connection at which ticks are refused. The last tick accepted may exceed it.
pub const UNWRITTEN_BYTES_MAX: usize = tickcast_client::OUTPUT_BYTES_MAX;
/// Most unanswered ticks on one HTTP connection; further ones are refused.
pub const UNANSWERED_MAX: u64 = 4_096;
/// Longest body of an HTTP response, in bytes: Nchan writes four lines about the channel.
const BODY_BYTES_MAX: usize = 4 << 10;

/// Protocol state of one connection.
#[derive(Debug)]
pub struct Publisher {
    wire: Wire,
    output: Vec<u8>,
    written: usize,
    /// An incomplete answer, at most [`LINE_BYTES_MAX`] or an HTTP head and body.
    input: Vec<u8>,
    /// Ticks that the server has not answered yet, in protocols that answer.
    unanswered: u64,
    /// Ticks that the server answered with an error.
    pub failed: u64,
    /// The first of these errors.
    pub failure: Option<String>,
}

#[derive(Debug)]
enum Wire {
    Tickcast(Box<Connection>),
    Nats,
    Redis,
    Nchan {
        /// Request head up to the topic.
        before_topic: String,
        /// Request head from the topic to the length.
        after_topic: String,
    },
}

impl Publisher {
    /// Opens a connection; its handshake, if it has one, is in [`Publisher::output`].
    pub fn open(plan: &Plan) -> Publisher {
        let mut output = Vec::new();
        let wire = match plan.protocol {
            Protocol::Tickcast => {
                let options = ConnectOptions {
                    name: "tickcast-feed".into(),
                    token: plan.token.clone(),
                    ..ConnectOptions::new(WireFormat::TCP_NATIVE)
                };
                Wire::Tickcast(Box::new(Connection::new(&options)))
            }
            Protocol::Nats => {
                write_connect("tickcast-feed", &mut output);
                Wire::Nats
            }
            Protocol::Redis => Wire::Redis,
            Protocol::Nchan => Wire::Nchan {
                before_topic: format!("POST {}?id=", plan.path),
                after_topic: format!(" HTTP/1.1\r\nHost: {}\r\nContent-Length: ", plan.host),
            },
        };
        Publisher { wire, output, written: 0, input: Vec::new(), unanswered: 0, failed: 0, failure: None }
    }

    /// Whether the next tick is refused: too much is unwritten or unanswered.
    pub fn is_full(&self) -> bool {
        self.output().len() >= UNWRITTEN_BYTES_MAX
            || (matches!(self.wire, Wire::Nchan { .. }) && self.unanswered >= UNANSWERED_MAX)
    }

    /// Queues one tick. The topic must need no escaping in any of the protocols.
    ///
    /// # Errors
    /// The refusal of tickcast's client; nothing is queued.
    pub fn publish(&mut self, topic: &str, producer_time_ns: u64, payload: &[u8]) -> Result<(), String> {
        let (mut len, out) = (itoa::Buffer::new(), &mut self.output);
        let len = len.format(payload.len()).as_bytes();
        match &mut self.wire {
            Wire::Tickcast(session) => {
                let request =
                    PublishRequest { topic, payload, producer_time_ns, ..PublishRequest::default() };
                return session.publish(request).map(|_| ()).map_err(|error| error.to_string());
            }
            Wire::Nats => {
                for part in [b"PUB ", topic.as_bytes(), b" ", len, b"\r\n", payload, b"\r\n"] {
                    out.extend_from_slice(part);
                }
            }
            Wire::Redis => {
                // Writing to a Vec cannot fail.
                let _ = write!(out, "*3\r\n$7\r\nPUBLISH\r\n${}\r\n", topic.len());
                for part in [topic.as_bytes(), b"\r\n$", len, b"\r\n", payload, b"\r\n"] {
                    out.extend_from_slice(part);
                }
                self.unanswered += 1;
            }
            Wire::Nchan { before_topic, after_topic } => {
                let parts = [
                    before_topic.as_bytes(),
                    topic.as_bytes(),
                    after_topic.as_bytes(),
                    len,
                    b"\r\n\r\n",
                    payload,
                ];
                for part in parts {
                    out.extend_from_slice(part);
                }
                self.unanswered += 1;
            }
        }
        Ok(())
    }

    /// Bytes to write to the socket.
    pub fn output(&self) -> &[u8] {
        match &self.wire {
            Wire::Tickcast(session) => session.poll_transmit(),
            _ => &self.output[self.written..],
        }
    }

    /// Removes the first `bytes` of [`Publisher::output`], which were written.
    pub fn output_written(&mut self, bytes: usize) {
        if let Wire::Tickcast(session) = &mut self.wire {
            return session.handle_transmitted(bytes);
        }
        self.written += bytes;
        if self.written == self.output.len() {
            self.written = 0;
            self.output.clear();
        } else if self.written >= UNWRITTEN_BYTES_MAX {
            // With a socket that never takes everything, the buffer would otherwise grow forever.
            self.output.drain(..self.written);
            self.written = 0;
        }
    }

    /// Parses answers of the server.
    ///
    /// # Errors
    /// One line for the operator; the connection is unusable.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<(), String> {
        if let Wire::Tickcast(session) = &mut self.wire {
            session.handle_bytes(bytes);
            while let Some(event) = session.poll_event().map_err(|error| error.to_string())? {
                match event {
                    Event::Error { code, text, .. } => {
                        self.failed += 1;
                        self.failure.get_or_insert_with(|| format!("{text} (code {code})"));
                    }
                    Event::Closing { code, text, .. } => {
                        return Err(format!("the server closed: {text} (code {code})"));
                    }
                    Event::Pong { .. } => self.unanswered = 0,
                    _ => {}
                }
            }
            return Ok(());
        }
        self.input.extend_from_slice(bytes);
        let mut taken = 0;
        while let Some(used) = self.take_answer(taken)? {
            taken += used;
        }
        self.input.drain(..taken);
        Ok(())
    }

    /// Asks for an acknowledgement of everything published, in protocols that do not answer each tick.
    ///
    /// # Errors
    /// The refusal of tickcast's client.
    pub fn finish(&mut self) -> Result<(), String> {
        match &mut self.wire {
            Wire::Tickcast(session) => {
                session.ping().map_err(|error| error.to_string())?;
                self.unanswered += 1;
            }
            Wire::Nats => {
                self.output.extend_from_slice(b"PING\r\n");
                self.unanswered += 1;
            }
            Wire::Redis | Wire::Nchan { .. } => {}
        }
        Ok(())
    }

    /// Whether the server has answered everything.
    pub fn is_answered(&self) -> bool {
        self.unanswered == 0
    }

    /// Parses the answer at `at` of the input and returns its length; `None` if it is incomplete.
    fn take_answer(&mut self, at: usize) -> Result<Option<usize>, String> {
        let rest = &self.input[at..];
        let (used, failure, is_answer) = match &self.wire {
            Wire::Nchan { .. } => match http_answer(rest)? {
                Some((used, None)) => (used, None, true),
                Some((used, Some(status))) => (used, Some(format!("HTTP {status}")), true),
                None => return Ok(None),
            },
            _ => {
                let Some(end) = rest.iter().position(|&byte| byte == b'\n') else {
                    let long = rest.len() > LINE_BYTES_MAX;
                    return if long { Err("the server sent an endless line".into()) } else { Ok(None) };
                };
                let line = rest[..end].trim_ascii_end();
                if line == b"PING" && matches!(self.wire, Wire::Nats) {
                    self.output.extend_from_slice(b"PONG\r\n");
                }
                let failed = line.starts_with(b"-").then(|| String::from_utf8_lossy(line).into_owned());
                if failed.is_none() && !is_known(&self.wire, line) {
                    let shown = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
                    return Err(format!(
                        "the server answered {shown:?}: does this port speak that protocol?"
                    ));
                }
                (end + 1, failed, line == b"PONG" || matches!(self.wire, Wire::Redis))
            }
        };
        self.unanswered = self.unanswered.saturating_sub(u64::from(is_answer));
        if let Some(failure) = failure {
            self.failed += 1;
            self.failure.get_or_insert(failure);
        }
        Ok(Some(used))
    }
}

/// Whether a line is a valid answer in this protocol.
fn is_known(wire: &Wire, line: &[u8]) -> bool {
    match wire {
        Wire::Nats => line.starts_with(b"INFO ") || matches!(line, b"PING" | b"PONG" | b"+OK"),
        // The number of subscribers that received the tick.
        _ => line.starts_with(b":"),
    }
}

/// Parses the HTTP response that `bytes` begin with: its length, and its status unless a success.
fn http_answer(bytes: &[u8]) -> Result<Option<(usize, Option<u16>)>, String> {
    let head = &bytes[..bytes.len().min(HTTP_HEAD_BYTES_MAX_DEFAULT)];
    let mut headers = [httparse::EMPTY_HEADER; HTTP_HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let head_len = match response.parse(head) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) if bytes.len() < HTTP_HEAD_BYTES_MAX_DEFAULT => return Ok(None),
        Ok(httparse::Status::Partial) => return Err("the server sent an endless HTTP head".into()),
        Err(error) => return Err(format!("the server's answer is not HTTP ({error})")),
    };
    let header = |name: &str| response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    if header("transfer-encoding").is_some() {
        return Err("the server sent a chunked response, which Nchan never sends to a publisher".into());
    }
    let body_len = match header("content-length") {
        None => 0,
        Some(header) => std::str::from_utf8(header.value)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .filter(|&len: &usize| len <= BODY_BYTES_MAX)
            .ok_or("the server sent a response whose Content-Length is invalid or too large")?,
    };
    let status = response.code.unwrap_or_default();
    let whole_len = head_len + body_len;
    let failed = (!(200..300).contains(&status)).then_some(status);
    Ok((bytes.len() >= whole_len).then_some((whole_len, failed)))
}

#[cfg(test)]
mod tests;
