//! Sockets of an asynchronous client.

use std::{
    io,
    sync::{Arc, Mutex},
};

use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::lock;
use crate::{
    Address, ClientError, ConnectOptions, TlsError, address::UNIX_PREFIX, addresses, link::Link, tls,
};

/// A connected socket, with or without TLS.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// A connected socket, and what it will carry.
pub(super) type Dialed = (Box<dyn Socket>, Link);

/// Makes the connections of one client.
#[derive(Debug)]
pub(super) struct Dialer {
    address: Address,
    options: ConnectOptions,
    /// Read again after a failed handshake: certificates are renewed.
    tls: Mutex<Option<Arc<ClientConfig>>>,
}

impl Dialer {
    pub(super) fn new(address: Address, options: ConnectOptions) -> Result<Arc<Dialer>, ClientError> {
        let tls = address.read_tls(&options)?;
        if address.is_tls {
            tls::server_name(&address.host)?;
        }
        Ok(Arc::new(Dialer { address, options, tls: Mutex::new(tls) }))
    }

    /// Connects to the server's address or that of another node, with the TLS handshake. The caller limits the time.
    ///
    /// # Errors
    /// Why not, for a person.
    pub(super) async fn dial(self: Arc<Dialer>, url: Arc<str>) -> Result<Dialed, String> {
        let address = addresses::dialed(&url, &self.address);
        let socket = self.connect(&address.host).await?;
        let link = Link::new(&addresses::options_for(&address, &self.address, &self.options));
        Ok((socket, link))
    }

    async fn connect(&self, host: &str) -> Result<Box<dyn Socket>, String> {
        let fail = |error: io::Error| ClientError::Connect { address: host.into(), error }.to_string();
        if let Some(path) = host.strip_prefix(UNIX_PREFIX) {
            return connect_unix(path).await.map_err(fail);
        }
        let socket = TcpStream::connect(host).await.map_err(fail)?;
        socket.set_nodelay(true).map_err(fail)?;
        let config = lock(&self.tls).clone();
        let Some(config) = config else { return Ok(Box::new(socket)) };
        let name = tls::server_name(host).map_err(|error| error.to_string())?;
        match TlsConnector::from(config).connect(name, socket).await {
            Ok(socket) => Ok(Box::new(socket)),
            Err(error) => {
                if let Ok(renewed) = self.address.read_tls(&self.options) {
                    *lock(&self.tls) = renewed;
                }
                let error = TlsError::in_io(&error).unwrap_or_else(|| TlsError::Other(error.to_string()));
                Err(ClientError::Tls { address: host.into(), error }.to_string())
            }
        }
    }
}

#[cfg(unix)]
async fn connect_unix(path: &str) -> io::Result<Box<dyn Socket>> {
    Ok(Box::new(tokio::net::UnixStream::connect(path).await?))
}

#[cfg(not(unix))]
async fn connect_unix(_: &str) -> io::Result<Box<dyn Socket>> {
    Err(io::ErrorKind::Unsupported.into())
}
