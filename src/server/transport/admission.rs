//! Who is let in: counts connections as they come and go, and tells those that are refused why, without a slot.
//!
//! What it shares with the other shards' gates (the number of connections, and those of each address behind a lock) is
//! touched only as connections come and go: nothing here is on a tick's way.

use std::{
    collections::{HashMap, VecDeque},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use socket2::SockRef;

use crate::limits::{REFUSED_LINGER_MS, REFUSED_LINGERING_MAX, REFUSED_RETRY_AFTER_S};
use tickcast_core::{
    admission::{Bucket, Origin, Origins, Pace, Refusal},
    shard::ListenerKind,
};
use tickcast_proto::{WireFormat, http, reply::Reply};

/// CLOSING's code for a connection that is not let in.
const CLOSE_REFUSED: u16 = 3504;
/// How often refused sockets are looked at.
const SWEEP_NS: u64 = 50_000_000;
/// Bytes of a refused peer's request that are read at a time, to be thrown away.
const DISCARD_BYTES: usize = 4 << 10;
/// Reads of it in one look.
const DISCARDS_MAX: usize = 16;

/// What all shards' gates count together.
#[derive(Clone, Debug)]
pub struct Shared {
    connections: Arc<AtomicUsize>,
    clients_max: usize,
    /// `None`: not limited, and not counted.
    origins: Option<Arc<Mutex<Origins>>>,
}

impl Shared {
    /// At most so many connections in all, and so many (0: any number) from each address.
    pub fn new(clients_max: usize, clients_per_source_max: u32) -> Shared {
        let origins =
            (clients_per_source_max > 0).then(|| Arc::new(Mutex::new(Origins::new(clients_per_source_max))));
        Shared { connections: Arc::default(), clients_max, origins }
    }
}

/// A refused socket that has been told why, and may not have read it yet.
#[derive(Debug)]
struct Lingering {
    socket: OwnedFd,
    until_ns: u64,
}

/// One shard's gate.
#[derive(Debug)]
pub struct Gate {
    shared: Shared,
    pace: Option<Pace>,
    bucket: Bucket,
    /// Where the connection in a slot comes from; empty without that limit.
    origins: HashMap<u32, Origin>,
    lingering: VecDeque<Lingering>,
    lingering_max: usize,
    sweep_next_ns: u64,
}

impl Gate {
    /// One of `shards` gates that let in `accept_rate` connections a second together (0: any number).
    pub fn new(shared: Shared, accept_rate: u32, shards: u16) -> Gate {
        Gate {
            shared,
            pace: Pace::new(accept_rate, shards),
            bucket: Bucket::default(),
            origins: HashMap::new(),
            lingering: VecDeque::new(),
            lingering_max: (REFUSED_LINGERING_MAX / usize::from(shards.max(1))).max(1),
            sweep_next_ns: 0,
        }
    }

    /// Counts a connection that has come, and where from; or says why it is refused. One getpeername(2) if addresses are
    /// limited.
    pub fn admit(&mut self, socket: &OwnedFd, now_ns: u64) -> Result<Option<Origin>, Refusal> {
        if let Some(pace) = self.pace
            && !self.bucket.take(pace, now_ns)
        {
            return Err(Refusal::Rate);
        }
        if self.shared.connections.fetch_add(1, SeqCst) >= self.shared.clients_max {
            self.shared.connections.fetch_sub(1, SeqCst);
            return Err(Refusal::Clients);
        }
        // A peer that has gone again has no address; its first receive tells.
        let address = self.shared.origins.is_some().then(|| SockRef::from(socket).peer_addr().ok()).flatten();
        let origin = address.and_then(|address| address.as_socket()).map(|address| Origin::of(address.ip()));
        if let Some(origin) = origin
            && self.counted().is_some_and(|mut origins| !origins.enter(origin))
        {
            self.shared.connections.fetch_sub(1, SeqCst);
            return Err(Refusal::Source);
        }
        Ok(origin)
    }

    /// A connection that was admitted, here or at another shard's gate, is in a slot.
    pub fn enter(&mut self, slot: u32, origin: Option<Origin>) {
        if let Some(origin) = origin {
            self.origins.insert(slot, origin);
        }
    }

    /// The connection in a slot goes to another shard, and counts on.
    pub fn hand_over(&mut self, slot: u32) -> Option<Origin> {
        self.origins.remove(&slot)
    }

    /// The connection in a slot has ended.
    pub fn leave(&mut self, slot: u32) {
        let origin = self.origins.remove(&slot);
        self.forget(origin);
    }

    /// A connection that was admitted has ended without a slot.
    pub fn forget(&mut self, origin: Option<Origin>) {
        self.shared.connections.fetch_sub(1, SeqCst);
        if let (Some(origin), Some(mut origins)) = (origin, self.counted()) {
            origins.leave(origin);
        }
    }

    fn counted(&self) -> Option<MutexGuard<'_, Origins>> {
        // What a panic left is whole: a count is changed in one step.
        self.shared.origins.as_ref().map(|origins| origins.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells a peer why it is not let in. Never waits: what the socket does not take at once is not said. The socket is
    /// kept for a moment, for the peer to read it: a close while something of the peer's is unread would be a reset, which
    /// destroys the answer. Under a flood the oldest makes room.
    pub fn refuse(&mut self, socket: OwnedFd, kind: ListenerKind, refusal: Refusal, now_ns: u64) {
        let mut answer = Vec::new();
        match kind {
            ListenerKind::Http => answer = http::refused(refusal.status(), refusal.text()),
            ListenerKind::Native => Reply::Closing {
                code: CLOSE_REFUSED,
                reason: refusal.text(),
                reconnect_after_ms: REFUSED_RETRY_AFTER_S as u32 * 1_000,
            }
            .encode(WireFormat::TCP_NATIVE, &mut answer),
        }
        let said = send(socket.as_raw_fd(), &answer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
        if said.is_err() || shutdown(socket.as_raw_fd(), Shutdown::Write).is_err() {
            return;
        }
        if self.lingering.len() >= self.lingering_max {
            self.lingering.pop_front();
        }
        let until_ns = now_ns.saturating_add(REFUSED_LINGER_MS * 1_000_000);
        self.lingering.push_back(Lingering { socket, until_ns });
    }

    /// Whether refused sockets are kept: then [`Gate::turn`] is to be called now and then.
    pub fn lingers(&self) -> bool {
        !self.lingering.is_empty()
    }

    /// Sweeps when it is time to. Costs nothing otherwise.
    pub fn turn(&mut self, now_ns: u64) {
        if self.lingers() && self.sweep_next_ns <= now_ns {
            self.sweep_next_ns = now_ns + SWEEP_NS;
            self.sweep(now_ns);
        }
    }

    /// Closes the refused sockets whose peers have closed, or whose time is up. A few reads each.
    fn sweep(&mut self, now_ns: u64) {
        self.lingering.retain(|kept| kept.until_ns > now_ns && !has_ended(&kept.socket));
    }
}

/// Throws away what a refused peer has sent; whether it has closed.
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

    fn gate(clients_max: usize, per_source: u32, accept_rate: u32) -> Gate {
        Gate::new(Shared::new(clients_max, per_source), accept_rate, 1)
    }

    #[test]
    fn each_limit_refuses_for_its_own_reason_and_what_ends_makes_room() {
        let (_peer, socket) = pair();
        let mut gates = [gate(2, 0, 0), gate(9, 2, 0), gate(9, 0, 2)];
        for (gate, refusal) in gates.iter_mut().zip([Refusal::Clients, Refusal::Source, Refusal::Rate]) {
            for slot in 0..2 {
                let origin = gate.admit(&socket, 1).unwrap();
                gate.enter(slot, origin);
            }
            assert_eq!(gate.admit(&socket, 1), Err(refusal));
            gate.leave(0);
            assert_eq!(gate.admit(&socket, 1).is_ok(), refusal != Refusal::Rate);
        }
        assert!(gates[2].admit(&socket, LATER).is_ok());
    }

    #[test]
    fn a_connection_that_is_handed_over_is_counted_once() {
        let (_peer, socket) = pair();
        let shared = Shared::new(9, 1);
        let mut gates = [Gate::new(shared.clone(), 0, 2), Gate::new(shared.clone(), 0, 2)];
        let origin = gates[0].admit(&socket, 1).unwrap();
        gates[0].enter(4, origin);
        let origin = gates[0].hand_over(4);
        gates[1].enter(7, origin);
        assert_eq!(gates[0].admit(&socket, 1), Err(Refusal::Source));
        gates[1].leave(7);
        assert_eq!(shared.connections.load(SeqCst), 0);
        assert!(shared.origins.unwrap().lock().unwrap().is_empty());
    }

    #[test]
    fn a_refused_peer_reads_why_whatever_it_sends_and_is_let_go_when_it_closes() {
        let mut gate = gate(1, 0, 0);
        for (kind, expected) in
            [(ListenerKind::Http, "HTTP/1.1 503 "), (ListenerKind::Native, "--max-clients")]
        {
            let (mut peer, socket) = pair();
            gate.refuse(socket, kind, Refusal::Clients, 1);
            peer.write_all(&[b'x'; 10_000]).unwrap();
            gate.sweep(2);
            assert!(gate.lingers());
            let mut text = Vec::new();
            peer.read_to_end(&mut text).unwrap();
            assert!(String::from_utf8_lossy(&text).contains(expected));
            drop(peer);
            while gate.lingers() {
                gate.sweep(2);
            }
        }
    }

    #[test]
    fn refused_sockets_are_bounded_in_number_and_time() {
        let mut gate = gate(1, 0, 0);
        let peers: Vec<TcpStream> = (0..2 * REFUSED_LINGERING_MAX)
            .map(|_| {
                let (peer, socket) = pair();
                gate.refuse(socket, ListenerKind::Native, Refusal::Rate, 1);
                peer
            })
            .collect();
        assert_eq!(gate.lingering.len(), REFUSED_LINGERING_MAX);
        gate.sweep(1 + REFUSED_LINGER_MS * 1_000_000);
        assert!(!gate.lingers());
        drop(peers);
    }
}
