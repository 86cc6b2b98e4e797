//! TLS of one connection: the handshake by rustls, records by tickcast's own layer, so that the client's CPU stays small beside
//! the server's.

use std::sync::Arc;

use rustls::{ClientConfig, pki_types::ServerName};
use tickcast_tls::{
    handshake::{ClientHandshake, Progress},
    record::{Outcome, RecordLayer},
};

/// The TLS configuration of every connection.
#[derive(Clone, Debug)]
pub struct TlsPlan {
    pub config: Arc<ClientConfig>,
    pub name: ServerName<'static>,
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is that of a connection for all but its first moments"
)]
enum State {
    Handshake(Box<ClientHandshake>),
    Open {
        records: RecordLayer,
        /// A record that has not arrived completely.
        partial: Vec<u8>,
    },
}

/// TLS between a socket and a feed. No socket of its own.
#[derive(Debug)]
pub struct Tls {
    state: State,
    /// Records to send, and how many of their bytes have been written.
    output: Vec<u8>,
    written: usize,
}

/// Whether more may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    More,
    /// The server has closed its side.
    Closed,
}

impl Tls {
    /// Begins the handshake.
    ///
    /// # Errors
    /// Why rustls does not.
    pub fn start(plan: &TlsPlan) -> Result<Tls, String> {
        let mut output = Vec::new();
        let handshake = ClientHandshake::new(plan.config.clone(), plan.name.clone(), &mut output)
            .map_err(|error| error.to_string())?;
        Ok(Tls { state: State::Handshake(Box::new(handshake)), output, written: 0 })
    }

    /// Whether the handshake is over, so that [`Tls::seal`] may be called.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Records to write.
    pub fn output(&self) -> &[u8] {
        &self.output[self.written..]
    }

    /// Removes the first `bytes` of [`Tls::output`], which were written.
    pub fn output_written(&mut self, bytes: usize) {
        self.written += bytes;
        if self.written == self.output.len() {
            (self.output, self.written) = (Vec::new(), 0);
        }
    }

    /// Appends records with all of `plaintext` to the output. Nothing before the handshake is over.
    pub fn seal(&mut self, plaintext: &[u8]) {
        if let State::Open { records, .. } = &mut self.state {
            records.seal(plaintext, &mut self.output);
        }
    }

    /// Opens what was received, in place, and gives the plaintext to `take`.
    ///
    /// # Errors
    /// Why the connection is over.
    pub fn receive(&mut self, bytes: &mut [u8], mut take: impl FnMut(&[u8])) -> Result<Received, String> {
        match &mut self.state {
            State::Handshake(handshake) => {
                let progress = handshake.advance(bytes, &mut self.output);
                match progress.map_err(|error| format!("TLS: {error}"))? {
                    Progress::Waiting => Ok(Received::More),
                    Progress::Done(established) => {
                        let mut unopened = established.unopened;
                        self.state = State::Open { records: established.records, partial: Vec::new() };
                        self.receive(&mut unopened, take)
                    }
                }
            }
            State::Open { records, partial } => {
                let outcome = if partial.is_empty() {
                    let opened = records.open(bytes);
                    take(&bytes[..opened.plaintext]);
                    partial.extend_from_slice(&bytes[opened.used..]);
                    opened.outcome
                } else {
                    partial.extend_from_slice(bytes);
                    let opened = records.open(partial);
                    take(&partial[..opened.plaintext]);
                    partial.drain(..opened.used);
                    opened.outcome
                };
                if partial.is_empty() {
                    // An idle connection keeps no buffer.
                    *partial = Vec::new();
                }
                match outcome {
                    Outcome::Open => Ok(Received::More),
                    Outcome::Closed => Ok(Received::Closed),
                    Outcome::Failed(alert) => Err(format!("TLS: the server sent {}", alert.name())),
                    Outcome::Broken(alert) => Err(format!("TLS: a record is wrong ({})", alert.name())),
                }
            }
        }
    }
}
