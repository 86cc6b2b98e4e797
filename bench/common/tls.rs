//! TLS of one connection: the handshake by rustls, records by tickcast's own layer, so that the client's CPU stays small beside
//! the server's.

use std::sync::Arc;

use rustls::{ClientConfig, pki_types::ServerName};
use tickcast_client::{TlsOptions, server_name};
use tickcast_tls::{
    handshake::{ClientHandshake, Established, Progress},
    opener::Opener,
    record::{Outcome, RecordLayer},
};

/// The TLS configuration of every connection.
#[derive(Clone, Debug)]
pub struct TlsPlan {
    pub config: Arc<ClientConfig>,
    pub name: ServerName<'static>,
}

impl TlsPlan {
    /// How connections to this host shake hands; `protocols`: names of application protocols.
    ///
    /// # Errors
    /// One line for the operator: which file cannot be used, or that the host has no name.
    pub fn new(host: &str, protocols: &[&[u8]], options: &TlsOptions) -> Result<TlsPlan, String> {
        let config = options.read(protocols, true).map_err(|error| format!("--tls: {error}"))?;
        Ok(TlsPlan { config, name: server_name(host).map_err(|error| error.to_string())? })
    }
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is that of a connection for all but its first moments"
)]
enum State {
    Handshake(Box<ClientHandshake>),
    Open { records: RecordLayer, opener: Opener },
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

    /// Opens what was received, and puts its plaintext into `plaintext`, a buffer for reuse.
    ///
    /// # Errors
    /// Why the connection is over. The plaintext before is valid.
    pub fn receive(&mut self, bytes: &[u8], plaintext: &mut Vec<u8>) -> Result<Received, String> {
        plaintext.clear();
        let State::Open { records, opener } = &mut self.state else {
            return self.shake_hands(bytes, plaintext);
        };
        plaintext.extend_from_slice(bytes);
        match opener.open(records, plaintext) {
            Outcome::Open => Ok(Received::More),
            Outcome::Closed => Ok(Received::Closed),
            Outcome::Failed(alert) => Err(format!("TLS: the server sent {}", alert.name())),
            Outcome::Broken(alert) => Err(format!("TLS: a record is wrong ({})", alert.name())),
        }
    }

    fn shake_hands(&mut self, bytes: &[u8], plaintext: &mut Vec<u8>) -> Result<Received, String> {
        let State::Handshake(handshake) = &mut self.state else { return Ok(Received::More) };
        let progress = handshake.advance(bytes, &mut self.output);
        match progress.map_err(|error| format!("TLS: {error}"))? {
            Progress::Waiting => Ok(Received::More),
            Progress::Done(established) => {
                let Established { records, unopened, .. } = *established;
                self.state = State::Open { records, opener: Opener::default() };
                self.receive(&unopened, plaintext)
            }
        }
    }
}
