//! The admin listener: an HTTP server on its own thread.
//!
//! ```text
//!  operator --HTTP--> "admin" thread --Dispatch--> main thread --ShardRequest--> shards
//!                          ^----------------------- replies --------------------------'
//! ```
//!
//! Counters are read directly. Everything else is a request to the shards, which reply once they get to it: a response lists
//! the shards that did not reply within [`crate::limits::ADMIN_REPLY_MS`] and omits their part. The listener starts before
//! the shards and stops after them.
//! Its thread runs on cores without a shard if there are any, otherwise at the lowest priority.
//! Each connection carries one request and lives at most [`ADMIN_CONNECTION_MS`]; `connections.rs` bounds their number.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    thread::{self, JoinHandle},
    time::Duration,
};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::oneshot,
    task::{AbortHandle, yield_now},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    access::{Certificate, Peer, PeerAddress, Refusal},
    affinity,
    connections::{Connection, Connections},
    context::{AdminContext, ServerHandles},
    route::RequestError,
    stage::Stage,
};
use crate::{
    config::listener::Address,
    limits::{ACCEPT_RETRY_MS, ADMIN_CONNECTION_MS, ADMIN_HEAD_BYTES_MAX, ADMIN_HEAD_MS},
    process::{
        fault::{self, Place},
        panics,
    },
};

/// A running admin listener. Stops when dropped.
pub struct AdminListener {
    address: Address,
    context: Arc<AdminContext>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl AdminListener {
    /// Serves on a listening socket, in stage [`Stage::Starting`]. Calls `on_failure` from the admin thread, with the reason,
    /// if it ends before it is stopped.
    ///
    /// # Errors
    /// Errors of epoll(7), eventfd(2) and of starting the thread.
    pub fn start(
        address: Address,
        (listener, tls): (OwnedFd, AdminTls),
        handles: ServerHandles,
        on_failure: impl FnOnce(String) + Send + 'static,
    ) -> io::Result<AdminListener> {
        SockRef::from(&listener).set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let context = Arc::new(AdminContext::new(handles, address.is_local()));
        let (stop, mut stopped) = oneshot::channel::<()>();
        let guard = runtime.enter();
        let listener = match &address {
            Address::Tcp(_) => Listener::Tcp(TcpListener::from_std(listener.into())?),
            Address::Unix(_) => Listener::Unix(UnixListener::from_std(listener.into())?),
        };
        drop(guard);
        let pinned: Vec<usize> = context.handles.shards.iter().map(|(core, _)| *core).collect();
        let shared = context.clone();
        let serve = move || {
            affinity::avoid_shard_cores(&pinned);
            // A panic that ends one connection goes no further: tokio catches it.
            let ended = runtime.block_on(async move {
                let mut accepting = tokio::spawn(accept(listener, tls, shared));
                // Ends when the sender is dropped, and aborts the open connections.
                poll_fn(move |context| match Pin::new(&mut stopped).poll(context) {
                    Poll::Ready(_) => Poll::Ready(None),
                    Poll::Pending => Pin::new(&mut accepting).poll(context).map(Some),
                })
                .await
            });
            match ended {
                None => {}
                Some(Ok(())) => on_failure("it accepts no more connections".to_owned()),
                Some(Err(error)) => on_failure(match error.try_into_panic() {
                    Ok(panic) => format!("it panicked: {}", panics::message(&*panic)),
                    Err(error) => error.to_string(),
                }),
            }
        };
        let thread = thread::Builder::new().name("admin".into()).spawn(serve)?;
        Ok(AdminListener { address, context, stop: Some(stop), thread: Some(thread) })
    }

    /// The address it listens on.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Updates the server's stage.
    pub fn set_stage(&self, stage: Stage) {
        self.context.set_stage(stage);
    }
}

impl Drop for AdminListener {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            ::log::error!("the admin thread panicked");
        }
    }
}

/// A listening socket of either transport.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Listener::Tcp(listener) => {
                listener.accept().await.map(|(stream, peer)| Stream::Tcp(stream, peer))
            }
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
        }
    }
}

/// A connection of either transport.
enum Stream {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// Accepts connections for as long as the runtime lives.
async fn accept(listener: Listener, tls: AdminTls, context: Arc<AdminContext>) {
    let connections = Connections::new();
    let mut is_failing = false;
    loop {
        match listener.accept().await {
            Ok(stream) => {
                is_failing = false;
                fault::at(Place::Admin);
                let spawn = |connection| stream.spawn(tls.acceptor(), context.clone(), connection);
                if connections.begin(spawn) {
                    ::log::debug!("--admin: too many connections without a request, the oldest is closed");
                }
                // Lets the connection read its request: otherwise a burst of connections would evict it before.
                yield_now().await;
            }
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    ::log::warn!(
                        "--admin: cannot accept a connection: {error}; retrying every {ACCEPT_RETRY_MS} ms"
                    );
                }
                sleep(Duration::from_millis(ACCEPT_RETRY_MS)).await;
            }
        }
    }
}

impl Stream {
    fn spawn(
        self,
        tls: Option<TlsAcceptor>,
        context: Arc<AdminContext>,
        connection: Connection,
    ) -> AbortHandle {
        match self {
            Stream::Tcp(stream, peer) => {
                let from = PeerAddress::Tcp(peer);
                tokio::spawn(begin(stream, from, tls, context, connection)).abort_handle()
            }
            Stream::Unix(stream) => {
                let peer = stream.peer_cred().ok();
                let from = PeerAddress::Unix(peer.map(|peer| (peer.uid(), peer.pid().unwrap_or_default())));
                tokio::spawn(begin(stream, from, tls, context, connection)).abort_handle()
            }
        }
    }
}

/// Does the TLS handshake if the listener has TLS, then serves.
async fn begin(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    address: PeerAddress,
    tls: Option<TlsAcceptor>,
    context: Arc<AdminContext>,
    connection: Connection,
) {
    let Some(tls) = tls else {
        return serve(stream, Peer { address, certificate: None }, context, connection).await;
    };
    match timeout(Duration::from_millis(ADMIN_HEAD_MS), tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            let certificate = Certificate::of(stream.get_ref().1.peer_certificates());
            return serve(stream, Peer { address, certificate }, context, connection).await;
        }
        Ok(Err(error)) => ::log::debug!("--admin: TLS: {error}"),
        Err(_) => ::log::debug!("--admin: the TLS handshake did not complete in time"),
    }
    context.handles.access.count(Refusal::Handshake);
}

/// The TLS configuration of the admin listener, shared with the main thread, which changes it.
#[derive(Clone, Default)]
pub struct AdminTls(Arc<Mutex<Option<Arc<ServerConfig>>>>);

impl AdminTls {
    /// Starts with this configuration; `None`: no TLS.
    pub fn new(config: Option<Arc<ServerConfig>>) -> AdminTls {
        AdminTls(Arc::new(Mutex::new(config)))
    }

    /// Changes it for new connections.
    pub fn set(&self, config: Option<Arc<ServerConfig>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = config;
    }

    fn acceptor(&self) -> Option<TlsAcceptor> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().map(TlsAcceptor::from)
    }
}

/// Serves one connection: a request and its response.
async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Peer,
    context: Arc<AdminContext>,
    connection: Connection,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        connection.head_arrived();
        // No endpoint takes a body, so it is not read.
        let routed = context.route(&request, &peer).and_then(|(route, who)| {
            match route.is_immediate() || connection.begin_service() {
                true => Ok((route, who)),
                false => Err(RequestError::new(503, "too many requests at once")),
            }
        });
        let (context, peer) = (context.clone(), peer.clone());
        async move { Ok::<_, Infallible>(context.respond(routed, &peer).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(ADMIN_HEAD_MS))
        .max_buf_size(ADMIN_HEAD_BYTES_MAX)
        .keep_alive(false)
        // A client that sends FIN after its request may still read the response.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = timeout(Duration::from_millis(ADMIN_CONNECTION_MS), connection).await {
        ::log::debug!("--admin: {error}");
    }
}

#[cfg(test)]
mod tests;
