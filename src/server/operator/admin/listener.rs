//! The admin listener: what `crate::operator::admin` answers, over HTTP on a thread of its own.
//!
//! ```text
//!  operator --HTTP--> "admin" thread --Inquiry--> main thread --Question--> shards
//!                          ^-------------------- answers ----------------------'
//! ```
//!
//! Counters are read as they are. Whatever only a shard knows is asked for, and shards answer when they come to it: one that
//! does not within [`crate::limits::ADMIN_ANSWER_MS`] is left out, and the answer says so. It listens before the shards are made and until
//! they have ended.
//!
//! Its thread makes way for the shards: it keeps to the cores that none of them is pinned to, or else has the lowest priority.
//!
//! A connection is for one request and lives [`ADMIN_CONNECTION_MS`] at most: there is nothing to be kept alive, and nobody
//! can keep others out for long.

use std::{
    convert::Infallible,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{sleep, timeout},
};

use super::{cores, process};
use crate::{
    clock,
    config::listener::Address,
    limits::{
        ACCEPT_RETRY_MS, ADMIN_CONNECTION_MS, ADMIN_CONNECTIONS_MAX, ADMIN_HEAD_BYTES_MAX, ADMIN_HEAD_MS,
        ADMIN_INQUIRIES_MAX,
    },
    operator::{admin::Stage, control::Inquiry},
};
use tickcast_core::metrics::counters::Counters;

/// What the admin thread looks at by itself.
pub struct Sights {
    /// Of the shards, in order, with the core each is pinned to.
    pub shards: Vec<(usize, Arc<Counters>)>,
    /// Of the server's own sources.
    pub sources: Vec<Arc<Counters>>,
    /// Asks the shards, without waiting. An inquiry that nobody can pass on is dropped.
    pub ask: Box<dyn Fn(Inquiry) + Send + Sync>,
}

/// All that requests share.
pub(super) struct Office {
    pub(super) sights: Sights,
    pub(super) stage: AtomicU8,
    /// Requests that ask shards.
    pub(super) inquiries: Semaphore,
    /// Only requests that name this machine are answered: the listener is for nobody else.
    pub(super) is_local: bool,
    /// By the wall clock: what metrics and answers carry, the same in each.
    pub(super) started_seconds: f64,
    /// By CLOCK_MONOTONIC: the wall clock may be set by NTP after the start.
    pub(super) started_ns: u64,
}

/// A running admin listener. Ends when dropped.
pub struct Admin {
    address: Address,
    office: Arc<Office>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    /// Serves on a listening socket, at first as a server that is starting.
    ///
    /// # Errors
    /// What epoll(7), eventfd(2) and the thread's start say.
    pub fn start(address: Address, listener: OwnedFd, sights: Sights) -> io::Result<Admin> {
        if !is_local(&address) {
            ::log::warn!(
                "--admin: {address} is not a loopback address: who reaches it needs no password to see and close sessions"
            );
        }
        SockRef::from(&listener).set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let office = Arc::new(Office {
            sights,
            stage: AtomicU8::new(Stage::Starting as u8),
            inquiries: Semaphore::new(ADMIN_INQUIRIES_MAX),
            is_local: is_local(&address),
            started_seconds: process::start_seconds(),
            started_ns: clock::monotonic_ns(),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let (of_thread, guard) = (office.clone(), runtime.enter());
        let listener = match &address {
            Address::Tcp(_) => Listener::Tcp(TcpListener::from_std(listener.into())?),
            Address::Unix(_) => Listener::Unix(UnixListener::from_std(listener.into())?),
        };
        drop(guard);
        let pinned: Vec<usize> = office.sights.shards.iter().map(|(core, _)| *core).collect();
        let serve = move || {
            cores::make_way(&pinned);
            runtime.block_on(async move {
                tokio::spawn(accept(listener, of_thread));
                // Told, or dropped: either way it is over, and what is under way with it.
                let _ = stopped.await;
            });
        };
        let thread = thread::Builder::new().name("admin".into()).spawn(serve)?;
        Ok(Admin { address, office, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The server is at another stage.
    pub fn set_stage(&self, stage: Stage) {
        self.office.stage.store(stage as u8, Relaxed);
    }
}

/// Whether only this machine reaches it. An IPv4 address may stand in an IPv6 one.
fn is_local(address: &Address) -> bool {
    address.tcp().is_none_or(|address| address.ip().to_canonical().is_loopback())
}

impl Drop for Admin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            ::log::error!("the admin thread panicked");
        }
    }
}

impl Office {
    pub(super) fn stage(&self) -> Stage {
        Stage::from_number(self.stage.load(Relaxed))
    }

    /// Since it was opened, which is among the first things that a server does.
    pub(super) fn uptime_seconds(&self) -> f64 {
        clock::monotonic_ns().saturating_sub(self.started_ns) as f64 / 1e9
    }
}

/// What connections come in on.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<Stream> {
        match self {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| Stream::Tcp(stream)),
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
        }
    }
}

/// An operator's connection.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Takes in connections while there is room for them; the kernel keeps the others waiting.
async fn accept(listener: Listener, office: Arc<Office>) {
    let room = Arc::new(Semaphore::new(ADMIN_CONNECTIONS_MAX));
    let mut fails = false;
    // It is never closed, so there is always a permit to come.
    while let Ok(permit) = room.clone().acquire_owned().await {
        match listener.accept().await {
            Ok(stream) => {
                fails = false;
                match stream {
                    Stream::Tcp(stream) => drop(tokio::spawn(serve(stream, office.clone(), permit))),
                    Stream::Unix(stream) => drop(tokio::spawn(serve(stream, office.clone(), permit))),
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut fails, true) {
                    ::log::warn!("accept (--admin): {error}: trying again every {ACCEPT_RETRY_MS} ms");
                }
                sleep(Duration::from_millis(ACCEPT_RETRY_MS)).await;
            }
        }
    }
}

/// One connection: one request and its answer.
async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    office: Arc<Office>,
    _permit: OwnedSemaphorePermit,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        // The body is of no use to anybody here: it is not read.
        let (office, routed) = (office.clone(), office.routed(&request));
        async move { Ok::<_, Infallible>(office.answer(routed).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(ADMIN_HEAD_MS))
        .max_buf_size(ADMIN_HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = timeout(Duration::from_millis(ADMIN_CONNECTION_MS), connection).await {
        ::log::debug!("admin: {error}");
    }
}

#[cfg(test)]
mod tests;
