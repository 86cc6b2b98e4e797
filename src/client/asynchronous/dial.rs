//! Sockets of an asynchronous client.

use std::{
    io,
    sync::{Arc, Mutex},
};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::lock;
use crate::{Address, ClientError, ConnectOptions, TlsError, blocking::UNIX_PREFIX, tls};

/// A connected socket, with or without TLS.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// Makes the connections of one client.
#[derive(Debug)]
pub(super) struct Dialer {
    address: Address,
    pub(super) options: ConnectOptions,
    name: Option<ServerName<'static>>,
    /// Read again after a failed handshake: certificates are renewed.
    tls: Mutex<Option<Arc<ClientConfig>>>,
}

impl Dialer {
    pub(super) fn new(address: Address, options: ConnectOptions) -> Result<Arc<Dialer>, ClientError> {
        let tls = address.read_tls(&options)?;
        let name = address.is_tls.then(|| tls::server_name(&address.host)).transpose()?;
        Ok(Arc::new(Dialer { address, options, name, tls: Mutex::new(tls) }))
    }

    /// Connects, with the TLS handshake. The caller limits the time.
    ///
    /// # Errors
    /// Why not, for a person.
    pub(super) async fn dial(self: Arc<Dialer>) -> Result<Box<dyn Socket>, String> {
        let host = &*self.address.host;
        let fail = |error: io::Error| ClientError::Connect { address: host.into(), error }.to_string();
        if let Some(path) = host.strip_prefix(UNIX_PREFIX) {
            return connect_unix(path).await.map_err(fail);
        }
        let socket = TcpStream::connect(host).await.map_err(fail)?;
        socket.set_nodelay(true).map_err(fail)?;
        let config = lock(&self.tls).clone();
        let (Some(config), Some(name)) = (config, self.name.clone()) else { return Ok(Box::new(socket)) };
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
