//! Addresses of servers.

use std::{fmt, sync::Arc};

use rustls::ClientConfig;

use crate::{ClientError, ConnectOptions, ProtocolError, tls};
use tickcast_proto::{DecodeError, WireFormat};

/// The forms of an address, for errors.
const ADDRESS_FORMS: &str = "HOST:PORT, tls://HOST:PORT, ws://HOST:PORT/ws, wss://HOST:PORT/ws or unix:/path";
/// Prefix of a Unix socket's address.
pub(crate) const UNIX_PREFIX: &str = "unix:";
/// The bytes in place of a frame's magic if an HTTP server answers, `HTTP/1.1 400`.
const HTTP_MAGIC: u16 = u16::from_le_bytes(*b"/1");
/// The bytes in place of the magic in a TLS alert: the end of the record's length, and the level "fatal".
const TLS_ALERT_MAGIC: u16 = u16::from_le_bytes([2, 2]);

/// A server's address and the encoding to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `HOST:PORT`, or `unix:PATH`.
    pub host: String,
    /// Path and query of a WebSocket; empty for native.
    pub path: String,
    /// The encoding; all but native are WebSockets.
    pub encoding: WireFormat,
    /// Whether the connection is encrypted: see [`ConnectOptions::tls`].
    pub is_tls: bool,
}

impl Address {
    /// Parses `HOST:PORT`, `tcp://HOST:PORT`, `tls://HOST:PORT` and `unix:PATH` (native), and `ws://HOST:PORT[/PATH]` and
    /// `wss://HOST:PORT[/PATH]` (WebSocket with the rkyv encoding; the default path is `/ws`). `tls` and `wss` are encrypted.
    ///
    /// # Errors
    /// [`ClientError::Address`] for any other form.
    pub fn parse(text: &str) -> Result<Address, ClientError> {
        if text.strip_prefix(UNIX_PREFIX).is_some_and(|path| !path.is_empty()) {
            let encoding = WireFormat::TCP_NATIVE;
            return Ok(Address { host: text.into(), path: String::new(), encoding, is_tls: false });
        }
        let (encoding, is_tls, rest) = match text.split_once("://") {
            None => (WireFormat::TCP_NATIVE, false, text),
            Some(("tcp", rest)) => (WireFormat::TCP_NATIVE, false, rest),
            Some(("tls", rest)) => (WireFormat::TCP_NATIVE, true, rest),
            Some(("ws", rest)) => (WireFormat::WEBSOCKET_NATIVE, false, rest),
            Some(("wss", rest)) => (WireFormat::WEBSOCKET_NATIVE, true, rest),
            Some((scheme, _)) => {
                return Err(ClientError::Address(format!(
                    "unknown scheme {scheme:?} in address {text:?}; use {ADDRESS_FORMS}"
                )));
            }
        };
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let has_port =
            host.rsplit_once(':').is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok());
        let is_clean = !text.contains(|c: char| c.is_whitespace() || c.is_control());
        if !has_port || !is_clean || (encoding == WireFormat::TCP_NATIVE && !path.is_empty()) {
            return Err(ClientError::Address(format!(
                "{text:?} is not a server address; use {ADDRESS_FORMS}"
            )));
        }
        let path = match (encoding, path) {
            (WireFormat::TCP_NATIVE, _) => "",
            (_, "" | "/") => "/ws",
            (_, path) => path,
        };
        Ok(Address { host: host.into(), path: path.into(), encoding, is_tls })
    }

    /// The TLS configuration for this address; `None`: no TLS.
    pub(crate) fn read_tls(
        &self,
        options: &ConnectOptions,
    ) -> Result<Option<Arc<ClientConfig>>, ClientError> {
        let read = || options.tls.read(&[tls::protocol(self.encoding)], false);
        self.is_tls.then(read).transpose()
    }

    /// The error for a first frame without the magic number.
    pub(crate) fn misused(&self, magic: u16) -> ClientError {
        let host = &self.host;
        let text = match magic {
            HTTP_MAGIC if host.starts_with(UNIX_PREFIX) => {
                format!("{host} is an HTTP socket: use a native one")
            }
            HTTP_MAGIC if self.is_tls => format!("{host} is an HTTP port: use wss://{host}/ws"),
            HTTP_MAGIC => format!("{host} is an HTTP port: use ws://{host}/ws"),
            TLS_ALERT_MAGIC if !self.is_tls => format!("{host} speaks TLS: use tls://{host}"),
            magic => return ProtocolError::Decode(DecodeError::BadMagic(magic)).into(),
        };
        ClientError::Address(text)
    }

    /// The default options for a connection to this address.
    pub fn connect_options(&self) -> ConnectOptions {
        ConnectOptions {
            host: self.host.clone(),
            path: self.path.clone(),
            ..ConnectOptions::new(self.encoding)
        }
    }
}

/// A form that [`Address::parse`] takes.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match (self.encoding, self.is_tls) {
            (WireFormat::TCP_NATIVE, false) => "",
            (WireFormat::TCP_NATIVE, true) => "tls://",
            (_, false) => "ws://",
            (_, true) => "wss://",
        };
        write!(f, "{scheme}{}{}", self.host, self.path)
    }
}
