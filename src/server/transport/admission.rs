//! Admission control: counts connections, and refuses those beyond a limit. A refused connection gets a response with the reason,
//! but no slot.
//!
//! Shards share the number of connections and a locked table of connections by address. They access both only when a connection
//! opens or closes, never on a tick's path.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use socket2::SockRef;

use crate::{
    clock,
    limits::{CLOSE_REFUSED, REFUSED_LINGER_MS, REFUSED_LINGERING_MAX, REFUSED_RETRY_AFTER_S},
};
use tickcast_core::{
    admission::{Origin, Origins, Refusal, Sources},
    ids::SourceId,
    networks::Networks,
    shard::ListenerKind,
    token_bucket::{Bucket, Pace},
};
use tickcast_proto::{WireFormat, http, reply::Reply};

/// Interval between two sweeps over refused sockets.
const SWEEP_NS: u64 = 50_000_000;
/// Bytes of a refused peer's request discarded by one read.
const DISCARD_BYTES: usize = 4 << 10;
/// Reads per refused socket in one sweep.
const DISCARDS_MAX: usize = 16;

/// A fatal alert in the clear: internal_error (RFC 8446, section 6.2), because TLS has no alert for a full server.
const TLS_REFUSED: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

/// The connection counts that all shards share.
#[derive(Clone, Debug)]
pub struct ConnectionCounts {
    connections: Arc<AtomicUsize>,
    clients_max: usize,
    /// Connections by origin (an IPv4 address or IPv6 /64); `None` without a limit on them.
    origins: Option<Arc<Mutex<Origins>>>,
    sources: Sources,
}

/// What an admitted connection counts towards, and its client's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    /// The origin that the connection is counted for; `None` if that has no limit.
    pub origin: Option<Origin>,
    /// The source that other limits per address apply to, such as that on topics.
    pub source: SourceId,
    /// The client's address as reported by a proxy. Port 0 means unknown.
    pub client: Option<SocketAddr>,
}

impl ConnectionCounts {
    /// Allows at most `clients_max` connections, and `clients_per_source_max` from each address that is neither in `unlimited` nor in
    /// `proxies`; 0: no limit per address.
    pub fn new(
        clients_max: usize,
        clients_per_source_max: u32,
        unlimited: Networks,
        proxies: Networks,
    ) -> ConnectionCounts {
        let origins =
            (clients_per_source_max > 0).then(|| Arc::new(Mutex::new(Origins::new(clients_per_source_max))));
        let sources = Sources::new(unlimited, proxies);
        ConnectionCounts { connections: Arc::default(), clients_max, origins, sources }
    }

    /// The sources of addresses, for sessions that are not connections of their own.
    pub fn sources(&self) -> Sources {
        self.sources.clone()
    }
}

/// A refused socket whose peer may not have read the response yet.
#[derive(Debug)]
struct Lingering {
    socket: OwnedFd,
    until_ns: u64,
}

/// One shard's admission control.
#[derive(Debug)]
pub struct Admission {
    counts: ConnectionCounts,
    pace: Option<Pace>,
    bucket: Bucket,
    /// By slot. A connection without a limit per address and without a proxy has no entry.
    admitted: HashMap<u32, Admitted>,
    lingering: VecDeque<Lingering>,
    lingering_max: usize,
    sweep_next_ns: u64,
}

impl Admission {
    /// Creates the admission control of one of `shards` shards, which together admit `accept_rate` connections per second;
    /// 0: no limit.
    pub fn new(counts: ConnectionCounts, accept_rate: u32, shards: u16) -> Admission {
        Admission {
            counts,
            pace: Pace::new(accept_rate, shards),
            bucket: Bucket::default(),
            admitted: HashMap::new(),
            lingering: VecDeque::new(),
            lingering_max: (REFUSED_LINGERING_MAX / usize::from(shards.max(1))).max(1),
            sweep_next_ns: 0,
        }
    }

    /// Whether to trust the peer about its client's address. True for trusted proxies and for peers on a Unix socket, whose mode
    /// decides who can connect. Costs one getpeername(2).
    pub fn is_proxy(&self, socket: &OwnedFd) -> bool {
        match SockRef::from(socket).peer_addr() {
            Ok(address) => {
                address.as_socket().is_none_or(|address| self.counts.sources.is_proxy(address.ip()))
            }
            // The peer is gone; the first receive will fail.
            Err(_) => false,
        }
    }

    /// Admits and counts a new connection. Costs one getpeername(2).
    ///
    /// # Errors
    /// The limit that the connection would exceed. The connection is not counted then.
    pub fn admit(&mut self, socket: &OwnedFd, now_ns: u64) -> Result<Admitted, Refusal> {
        if let Some(pace) = self.pace
            && !self.bucket.take(pace, now_ns)
        {
            return Err(Refusal::Rate);
        }
        if self.counts.connections.fetch_add(1, SeqCst) >= self.counts.clients_max {
            self.counts.connections.fetch_sub(1, SeqCst);
            return Err(Refusal::Clients);
        }
        // A peer that is gone has no address; its first receive fails.
        let address = SockRef::from(socket).peer_addr().ok();
        let address = address.and_then(|address| address.as_socket()).map(|address| address.ip());
        match self.enter(address) {
            Ok((origin, source)) => Ok(Admitted { origin, source, client: None }),
            Err(refusal) => {
                self.counts.connections.fetch_sub(1, SeqCst);
                Err(refusal)
            }
        }
    }

    /// Counts the connection in a slot for its client's address, as reported by the proxy. Until then it counts for no address.
    /// Returns its source.
    ///
    /// # Errors
    /// The limit that the client would exceed. The connection stays counted until it is released.
    pub fn admit_client(&mut self, slot: u32, client: SocketAddr) -> Result<SourceId, Refusal> {
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        let entered = self.enter(Some(client.ip()));
        let before = self.admitted.remove(&slot).and_then(|before| before.origin);
        if let (Some(before), Some(mut origins)) = (before, self.origin_counts()) {
            debug_assert!(false, "a proxy's own address has no limit");
            origins.leave(before);
        }
        let (origin, source) = entered.unwrap_or_default();
        self.assign(slot, Admitted { origin, source, client: Some(client) });
        entered.map(|(_, source)| source)
    }

    /// Counts a connection for an address. Returns its source, and its origin if that has a limit.
    fn enter(&self, address: Option<IpAddr>) -> Result<(Option<Origin>, SourceId), Refusal> {
        let Some((origin, source)) = address.and_then(|address| self.counts.sources.find(address)) else {
            return Ok((None, SourceId::default()));
        };
        match self.origin_counts() {
            None => Ok((None, source)),
            Some(mut origins) => {
                origins.enter(origin).then_some((Some(origin), source)).ok_or(Refusal::Source)
            }
        }
    }

    /// Assigns a slot to a connection admitted by this or another shard.
    pub fn assign(&mut self, slot: u32, admitted: Admitted) {
        if admitted != Admitted::default() {
            self.admitted.insert(slot, admitted);
        }
    }

    /// The client's address, if a proxy has reported it.
    pub fn client(&self, slot: u32) -> Option<SocketAddr> {
        self.admitted.get(&slot)?.client
    }

    /// Frees the slot of a connection that moves to another shard. It stays counted.
    pub fn hand_over(&mut self, slot: u32) -> Admitted {
        self.admitted.remove(&slot).unwrap_or_default()
    }

    /// Frees the slot of a connection that has ended, and no longer counts it.
    pub fn release(&mut self, slot: u32) {
        let admitted = self.hand_over(slot);
        self.release_without_slot(admitted);
    }

    /// No longer counts an admitted connection that ended before it had a slot.
    pub fn release_without_slot(&mut self, admitted: Admitted) {
        self.counts.connections.fetch_sub(1, SeqCst);
        if let (Some(origin), Some(mut origins)) = (admitted.origin, self.origin_counts()) {
            origins.leave(origin);
        }
    }

    fn origin_counts(&self) -> Option<MutexGuard<'_, Origins>> {
        // Ignore poison: each count changes in one step, so a panic leaves none half-changed.
        self.counts.origins.as_ref().map(|origins| origins.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends a refused connection the reason. Does not wait: bytes that the socket does not accept at once are lost.
    ///
    /// The socket lingers for [`REFUSED_LINGER_MS`] or until the peer closes. Closing it with unread input would reset the
    /// connection, and the peer might lose the response. When too many sockets linger, the oldest is closed.
    ///
    /// `kind`: `None` for a listener with TLS. The response is then an alert, because a handshake would cost more than the
    /// refusal saves.
    pub fn refuse(&mut self, socket: OwnedFd, kind: Option<ListenerKind>, refusal: Refusal, now_ns: u64) {
        let mut answer = Vec::new();
        match kind {
            None => answer.extend_from_slice(&TLS_REFUSED),
            Some(ListenerKind::Http) => {
                answer = http::refused(refusal.status(), refusal.text(), clock::realtime_ns())
            }
            Some(ListenerKind::Native) => Reply::Closing {
                code: CLOSE_REFUSED,
                reason: refusal.text(),
                reconnect_after_ms: REFUSED_RETRY_AFTER_S as u32 * 1_000,
            }
            .encode(WireFormat::TCP_NATIVE, &mut answer),
        }
        let sent = send(socket.as_raw_fd(), &answer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
        if sent.is_err() || shutdown(socket.as_raw_fd(), Shutdown::Write).is_err() {
            return;
        }
        if self.lingering.len() >= self.lingering_max {
            self.lingering.pop_front();
        }
        let until_ns = now_ns.saturating_add(REFUSED_LINGER_MS * 1_000_000);
        self.lingering.push_back(Lingering { socket, until_ns });
    }

    /// Whether refused sockets linger. If so, call [`Admission::turn`] regularly.
    pub fn lingers(&self) -> bool {
        !self.lingering.is_empty()
    }

    /// Closes lingering sockets every 50 ms; free in between.
    pub fn turn(&mut self, now_ns: u64) {
        if self.lingers() && self.sweep_next_ns <= now_ns {
            self.sweep_next_ns = now_ns + SWEEP_NS;
            self.sweep(now_ns);
        }
    }

    /// Closes the refused sockets whose peer has closed or whose time is up. Reads each at most [`DISCARDS_MAX`] times.
    fn sweep(&mut self, now_ns: u64) {
        self.lingering.retain(|kept| kept.until_ns > now_ns && !has_ended(&kept.socket));
    }
}

/// Discards bytes from a refused peer. Returns whether the peer has closed.
fn has_ended(socket: &OwnedFd) -> bool {
    let mut discarded = [0; DISCARD_BYTES];
    for _ in 0..DISCARDS_MAX {
        match recv(socket.as_raw_fd(), &mut discarded, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return false,
            Err(_) => return true,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    const LATER: u64 = 3_600_000_000_000;

    fn pair() -> (TcpStream, OwnedFd) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (peer, listener.accept().unwrap().0.into())
    }

    fn counts(clients_max: usize, per_source: u32, unlimited: &str) -> ConnectionCounts {
        let proxies = "192.0.2.0/24".parse().unwrap();
        ConnectionCounts::new(clients_max, per_source, unlimited.parse().unwrap(), proxies)
    }

    fn admission(clients_max: usize, per_source: u32, accept_rate: u32) -> Admission {
        Admission::new(counts(clients_max, per_source, ""), accept_rate, 1)
    }

    #[test]
    fn each_limit_refuses_for_its_own_reason_until_a_connection_ends() {
        let (_peer, socket) = pair();
        let mut limits = [admission(2, 0, 0), admission(9, 2, 0), admission(9, 0, 2)];
        for (admission, refusal) in limits.iter_mut().zip([Refusal::Clients, Refusal::Source, Refusal::Rate])
        {
            for slot in 0..2 {
                let origin = admission.admit(&socket, 1).unwrap();
                admission.assign(slot, origin);
            }
            assert_eq!(admission.admit(&socket, 1), Err(refusal));
            admission.release(0);
            assert_eq!(admission.admit(&socket, 1).is_ok(), refusal != Refusal::Rate);
        }
        assert!(limits[2].admit(&socket, LATER).is_ok());
    }

    #[test]
    fn an_unlimited_source_is_not_counted() {
        let (_peer, socket) = pair();
        let counts = counts(9, 1, Networks::LOOPBACK);
        let mut admission = Admission::new(counts, 0, 1);
        for slot in 0..3 {
            let admitted = admission.admit(&socket, 1).unwrap();
            assert_eq!(admitted, Admitted::default());
            admission.assign(slot, admitted);
        }
    }

    #[test]
    fn a_client_of_a_proxy_counts_for_its_own_address_and_the_proxy_for_none() {
        let (_peer, socket) = pair();
        let mut admission = Admission::new(counts(9, 1, Networks::LOOPBACK), 0, 1);
        let client = |text: &str| text.parse::<SocketAddr>().unwrap();
        for slot in 0..5 {
            let admitted = admission.admit(&socket, 1).unwrap();
            admission.assign(slot, admitted);
        }
        let source = admission.admit_client(0, client("198.51.100.1:5")).unwrap();
        assert!(source.is_limited(), "limits by source apply to it");
        assert_eq!(admission.client(0), Some(client("198.51.100.1:5")));
        assert_eq!(admission.admit_client(1, client("[::ffff:198.51.100.1]:6")), Err(Refusal::Source));
        assert_ne!(admission.admit_client(2, client("198.51.100.2:5")), Ok(source));
        for (slot, proxy) in [(3, "192.0.2.1:1"), (4, "192.0.2.1:2")] {
            let own = admission.admit_client(slot, client(proxy));
            assert_eq!(own, Ok(SourceId::default()), "a proxy's own address");
        }
        let moved = admission.hand_over(0);
        admission.assign(7, moved);
        assert_eq!(admission.admit_client(1, client("198.51.100.1:6")), Err(Refusal::Source));
        admission.release(7);
        assert_eq!(admission.admit_client(1, client("198.51.100.1:6")), Ok(source));
        for slot in 1..5 {
            admission.release(slot);
        }
        assert!(admission.counts.origins.unwrap().lock().unwrap().is_empty());
        assert_eq!(admission.counts.connections.load(SeqCst), 0);
    }

    #[test]
    fn a_connection_that_is_handed_over_is_counted_once() {
        let (_peer, socket) = pair();
        let counts = counts(9, 1, "");
        let mut shards = [Admission::new(counts.clone(), 0, 2), Admission::new(counts.clone(), 0, 2)];
        let origin = shards[0].admit(&socket, 1).unwrap();
        shards[0].assign(4, origin);
        let origin = shards[0].hand_over(4);
        shards[1].assign(7, origin);
        assert_eq!(shards[0].admit(&socket, 1), Err(Refusal::Source));
        shards[1].release(7);
        assert_eq!(counts.connections.load(SeqCst), 0);
        assert!(counts.origins.unwrap().lock().unwrap().is_empty());
    }

    #[test]
    fn a_refused_peer_reads_the_reason_whatever_it_sends_and_is_closed_when_it_closes() {
        let mut admission = admission(1, 0, 0);
        for (kind, expected) in
            [(ListenerKind::Http, "HTTP/1.1 503 "), (ListenerKind::Native, "--max-clients")]
        {
            let (mut peer, socket) = pair();
            admission.refuse(socket, Some(kind), Refusal::Clients, 1);
            peer.write_all(&[b'x'; 10_000]).unwrap();
            admission.sweep(2);
            assert!(admission.lingers());
            let mut text = Vec::new();
            peer.read_to_end(&mut text).unwrap();
            assert!(String::from_utf8_lossy(&text).contains(expected));
            drop(peer);
            while admission.lingers() {
                admission.sweep(2);
            }
        }
    }

    #[test]
    fn refused_sockets_are_bounded_in_number_and_time() {
        let mut admission = admission(1, 0, 0);
        let peers: Vec<TcpStream> = (0..2 * REFUSED_LINGERING_MAX)
            .map(|_| {
                let (peer, socket) = pair();
                admission.refuse(socket, Some(ListenerKind::Native), Refusal::Rate, 1);
                peer
            })
            .collect();
        assert_eq!(admission.lingering.len(), REFUSED_LINGERING_MAX);
        admission.sweep(1 + REFUSED_LINGER_MS * 1_000_000);
        assert!(!admission.lingers());
        drop(peers);
    }
}
