//! Captures values that rustls reveals only during the handshake: the TLS 1.3 traffic secrets and the requested server name.
//! rustls exports keys and IVs, but not the secrets from which the next KeyUpdate derives its keys. Only a key log receives
//! those. rustls calls it on the same thread when it creates the server's flight, and handshakes of other connections run in
//! between. So the secrets pass through a thread-local slot, which each step of a handshake empties immediately.

use std::cell::RefCell;

use rustls::KeyLog;
use zeroize::Zeroize;

/// Maximum length of a secret, that of SHA-384, in bytes.
const SECRET_BYTES_MAX: usize = 48;

/// The first traffic secrets of a connection, cleared when dropped.
#[derive(Default)]
pub struct TrafficSecrets {
    pub client: Secret,
    pub server: Secret,
}

/// One secret, padded with zeros.
pub struct Secret(pub [u8; SECRET_BYTES_MAX]);

impl Default for Secret {
    fn default() -> Secret {
        Secret([0; SECRET_BYTES_MAX])
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Values revealed by a handshake step.
#[derive(Default)]
pub struct Revealed {
    pub secrets: Option<Box<TrafficSecrets>>,
    pub server_name: Option<Box<str>>,
}

impl Revealed {
    /// Adds the values that a later step has revealed.
    pub fn add(&mut self, later: Revealed) {
        if later.secrets.is_some() {
            self.secrets = later.secrets;
        }
        if later.server_name.is_some() {
            self.server_name = later.server_name;
        }
    }
}

thread_local! {
    /// Values revealed by this thread's current step.
    static REVEALED: RefCell<Revealed> = const { RefCell::new(Revealed { secrets: None, server_name: None }) };
}

/// Takes the values that the last step on this thread has revealed.
pub fn take() -> Revealed {
    REVEALED.take()
}

/// Stores the name from a ClientHello, which an unbuffered connection does not expose.
pub fn note_server_name(name: Option<&str>) {
    REVEALED.with_borrow_mut(|revealed| revealed.server_name = name.map(Into::into));
}

/// The key log of every handshake.
#[derive(Debug)]
pub struct SecretsLog;

const CLIENT_SECRET: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER_SECRET: &str = "SERVER_TRAFFIC_SECRET_0";

impl KeyLog for SecretsLog {
    fn will_log(&self, label: &str) -> bool {
        label == CLIENT_SECRET || label == SERVER_SECRET
    }

    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        // In TLS 1.2, rustls logs the master secret without calling `will_log`.
        if !self.will_log(label) || secret.len() > SECRET_BYTES_MAX {
            return;
        }
        REVEALED.with_borrow_mut(|revealed| {
            let secrets = revealed.secrets.get_or_insert_default();
            let kept = if label == CLIENT_SECRET { &mut secrets.client } else { &mut secrets.server };
            kept.0[..secret.len()].copy_from_slice(secret);
        });
    }
}
