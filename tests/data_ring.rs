//! The data ring on real sockets, with faults injected through its shim: every byte sent arrives, however much the kernel
//! takes or gives at a time.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
};

use tickcast::transport::uring::{
    data_ring::{DataRing, Event, ListenerId, Sent, Settings, eventfd},
    shim::{Operation, Shim, Verdict},
};

const BYTES_MAX: usize = 64 << 10;
/// Prime, so that an offset of a power of two does not go unnoticed.
const PERIOD: usize = 251;

/// The verdict on each kind of operation.
#[derive(Default)]
struct Script {
    send: Option<Verdict>,
    parked: Option<Verdict>,
    received: Option<Verdict>,
    /// For the next receives to be armed.
    receive: VecDeque<Verdict>,
    accept: VecDeque<Verdict>,
    /// Panics at the SEND after this many.
    sends_before_panic: Option<usize>,
}

impl Shim for Script {
    fn decide(&mut self, operation: Operation) -> Verdict {
        if let (Operation::Send(_), Some(left)) = (operation, &mut self.sends_before_panic) {
            *left = left.checked_sub(1).expect("a panic between queueing and submitting");
        }
        let verdict = match operation {
            Operation::Send(_) => self.send,
            Operation::SendParked(_) => self.parked,
            Operation::Received(_) => self.received,
            Operation::Receive => self.receive.pop_front(),
            Operation::Accept => self.accept.pop_front(),
        };
        verdict.unwrap_or(Verdict::Pass)
    }
}

fn ring(settings: Settings) -> DataRing<Script> {
    DataRing::with_shim(settings, eventfd().unwrap(), Script::default()).unwrap()
}

fn roomy() -> Settings {
    Settings { slots: 8, receive_buffers: 16, receive_buffer_bytes: BYTES_MAX }
}

fn pair() -> (TcpStream, OwnedFd) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_nonblocking(true).unwrap();
    peer.set_nodelay(true).unwrap();
    (peer, listener.accept().unwrap().0.into())
}

/// Bytes that reveal their position.
struct Pattern(Vec<u8>);

impl Pattern {
    fn new() -> Pattern {
        Pattern((0..BYTES_MAX + 2 * PERIOD).map(|at| (at % PERIOD) as u8).collect())
    }

    fn at(&self, position: usize, len: usize) -> &[u8] {
        &self.0[position % PERIOD..][..len]
    }
}

/// Reads what is available and checks it against the pattern. Returns the new position.
fn read_and_check(peer: &mut TcpStream, pattern: &Pattern, mut position: usize, buffer: &mut [u8]) -> usize {
    match peer.read(buffer) {
        Ok(len) => {
            assert_eq!(&buffer[..len], pattern.at(position, len), "byte-exact from {position}");
            position += len;
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
    }
    position
}

#[test]
fn partial_sends_of_every_size_resume_at_the_exact_byte() {
    let (mut peer, socket) = pair();
    let mut ring = ring(roomy());
    let slot = ring.add(socket).unwrap();
    let (pattern, mut buffer) = (Pattern::new(), vec![0; BYTES_MAX]);
    let (mut sent, mut read, mut parked) = (0, 0, 0u32);
    for size in 1..=BYTES_MAX {
        // The socket takes `size` bytes; the parked SEND takes the rest, in two parts if it is long enough.
        let len = (size + 1 + size % 5).min(BYTES_MAX);
        ring.shim_mut().send = Some(Verdict::Truncate(size));
        ring.shim_mut().parked = (size % 2 == 0).then_some(Verdict::Truncate(2));
        let mut outcome = Sent::Failed;
        ring.send_batch(&[(slot, pattern.at(sent, len))], |_, sent| outcome = sent).unwrap();
        sent += len;
        let mut busy = outcome == Sent::Parked;
        assert!(busy || (outcome == Sent::Whole && len == size));
        parked += u32::from(busy);
        while busy || read < sent {
            read = read_and_check(&mut peer, &pattern, read, &mut buffer);
            ring.poll().unwrap();
            while let Some(event) = ring.next_event() {
                assert!(matches!(event, Event::Writable(of) if of == slot), "{event:?}");
                busy = false;
            }
        }
    }
    assert_eq!((read, parked), (sent, BYTES_MAX as u32 - 1));
}

#[test]
fn receives_of_every_size_deliver_every_byte_once() {
    let (mut peer, socket) = pair();
    let mut ring = ring(roomy());
    let slot = ring.add(socket).unwrap();
    let pattern = Pattern::new();
    let (mut written, mut read) = (0, 0);
    let mut seen = vec![false; BYTES_MAX + 1];
    for size in 1..=BYTES_MAX {
        ring.shim_mut().received = Some(Verdict::Truncate(size));
        let end = written + size + 1;
        while read < end {
            if written < end {
                match peer.write(pattern.at(written, (end - written).min(BYTES_MAX))) {
                    Ok(len) => written += len,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            ring.poll().unwrap();
            while let Some(event) = ring.next_event() {
                let Event::Received(received) = event else { panic!("{event:?}") };
                assert_eq!(received.slot, slot);
                let bytes = ring.bytes(&received);
                assert_eq!(bytes, pattern.at(read, bytes.len()), "byte-exact from {read}");
                seen[bytes.len()] = true;
                read += bytes.len();
                ring.recycle(received);
            }
        }
    }
    assert_eq!(read, written);
    let distinct = seen.iter().filter(|&&seen| seen).count();
    assert!(distinct > BYTES_MAX / 2, "only {distinct} sizes came in one piece");
}

/// Polls until an event comes. The peer has already acted, so one must.
fn next<S: Shim>(ring: &mut DataRing<S>) -> Event {
    for _ in 0..10_000_000u64 {
        ring.poll().unwrap();
        if let Some(event) = ring.next_event() {
            return event;
        }
    }
    panic!("no event");
}

#[test]
fn a_slow_socket_is_parked_once_and_its_neighbour_is_not() {
    let ((mut slow, slow_socket), (mut healthy, healthy_socket)) = (pair(), pair());
    let mut ring = ring(roomy());
    let (slow_slot, healthy_slot) = (ring.add(slow_socket).unwrap(), ring.add(healthy_socket).unwrap());
    let (pattern, mut buffer) = (Pattern::new(), vec![0; BYTES_MAX]);
    let (mut sent, mut healthy_read, mut parked) = (0, 0, false);
    // Nobody reads the slow socket, so it fills up.
    for _ in 0..1_000 {
        let bytes = pattern.at(sent, BYTES_MAX);
        ring.send_batch(&[(slow_slot, bytes), (healthy_slot, bytes)], |index, sent| match index {
            0 => parked = sent == Sent::Parked,
            _ => assert_eq!(sent, Sent::Whole),
        })
        .unwrap();
        sent += BYTES_MAX;
        while healthy_read < sent {
            healthy_read = read_and_check(&mut healthy, &pattern, healthy_read, &mut buffer);
        }
        if parked {
            break;
        }
    }
    assert!(parked, "a socket nobody reads fills up");
    let mut slow_read = 0;
    while slow_read < sent {
        slow_read = read_and_check(&mut slow, &pattern, slow_read, &mut buffer);
        ring.poll().unwrap();
    }
    assert!(matches!(next(&mut ring), Event::Writable(slot) if slot == slow_slot));
}

#[test]
fn few_buffers_lose_nothing() {
    let (mut peer, socket) = pair();
    let mut ring = ring(Settings { slots: 1, receive_buffers: 2, receive_buffer_bytes: 64 });
    ring.add(socket).unwrap();
    let pattern = Pattern::new();
    let (mut written, mut read) = (0, 0);
    while read < 1 << 20 {
        if written < 1 << 20
            && let Ok(len) = peer.write(pattern.at(written, 4096))
        {
            written += len;
        }
        ring.poll().unwrap();
        while let Some(event) = ring.next_event() {
            let Event::Received(received) = event else { panic!("{event:?}") };
            let bytes = ring.bytes(&received);
            assert_eq!(bytes, pattern.at(read, bytes.len()));
            read += bytes.len();
            ring.recycle(received);
        }
    }
    assert!(read <= written);
}

#[test]
fn a_receive_that_cannot_be_armed_is_retried_or_fails_its_own_socket() {
    let ((mut first, first_socket), (mut second, second_socket)) = (pair(), pair());
    let mut ring = ring(roomy());
    ring.shim_mut().receive.extend([Verdict::Fail(libc::ENOBUFS), Verdict::Fail(libc::ECONNRESET)]);
    let first_slot = ring.add(first_socket).unwrap();
    let second_slot = ring.add(second_socket).unwrap();
    assert!(matches!(next(&mut ring), Event::Failed(slot, libc::ECONNRESET) if slot == second_slot));
    first.write_all(b"x").unwrap();
    second.write_all(b"x").unwrap();
    assert!(matches!(next(&mut ring), Event::Received(received) if received.slot == first_slot));
}

#[test]
fn a_failed_send_is_reported_for_its_own_socket_only() {
    let ((peer, socket), (mut healthy, healthy_socket)) = (pair(), pair());
    let mut ring = ring(roomy());
    let (slot, healthy_slot) = (ring.add(socket).unwrap(), ring.add(healthy_socket).unwrap());
    ring.shim_mut().send = Some(Verdict::Fail(libc::EPIPE));
    ring.send_batch(&[(slot, b"lost")], |_, sent| assert_eq!(sent, Sent::Failed)).unwrap();
    assert!(matches!(next(&mut ring), Event::Failed(of, libc::EPIPE) if of == slot));
    ring.shim_mut().send = None;
    ring.send_batch(&[(healthy_slot, b"here")], |_, sent| assert_eq!(sent, Sent::Whole)).unwrap();
    healthy.set_nonblocking(false).unwrap();
    let mut got = [0; 4];
    healthy.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"here");
    drop(peer);
}

/// Runs a batch that is expected to panic.
fn panics(ring: &mut DataRing<Script>, sends: &[(u32, &[u8])], outcome: impl FnMut(usize, Sent)) {
    let batch = std::panic::AssertUnwindSafe(|| ring.send_batch(sends, outcome));
    assert!(std::panic::catch_unwind(batch).is_err(), "the batch panics");
}

/// Reads until the peer closes. Whatever it has closed with counts as the end.
fn read_all(mut peer: TcpStream) -> Vec<u8> {
    peer.set_nonblocking(false).unwrap();
    let mut bytes = Vec::new();
    let _ = peer.read_to_end(&mut bytes);
    bytes
}

#[test]
fn a_batch_abandoned_by_a_panic_is_never_submitted() {
    let (peers, sockets): (Vec<_>, Vec<_>) = (0..3).map(|_| pair()).unzip();
    let mut ring = ring(roomy());
    let slots: Vec<u32> = sockets.into_iter().map(|socket| ring.add(socket).unwrap()).collect();
    ring.poll().unwrap();
    ring.shim_mut().sends_before_panic = Some(2);
    // Two SENDs are queued, with pointers to bytes that are freed before anything else happens.
    let bytes = vec![7u8; 100];
    let sends: Vec<(u32, &[u8])> = slots.iter().map(|&slot| (slot, &bytes[..])).collect();
    panics(&mut ring, &sends, |_, _| panic!("no SEND has an outcome"));
    drop(sends);
    drop(bytes);
    ring.shim_mut().sends_before_panic = None;
    assert!(ring.poll().is_err() && ring.wait().is_err(), "the ring refuses to submit");
    assert!(ring.send_batch(&[(slots[2], b"later")], |_, _| ()).is_err());
    drop(ring);
    for peer in peers {
        assert_eq!(read_all(peer), b"", "nothing was sent, not even while the ring was dropped");
    }
}

#[test]
fn a_panic_after_the_sends_leaves_the_ring_in_use() {
    let (peer, socket) = pair();
    let mut ring = ring(roomy());
    let slot = ring.add(socket).unwrap();
    panics(&mut ring, &[(slot, b"first")], |_, _| panic!("the SENDs are over"));
    ring.send_batch(&[(slot, b" second")], |_, sent| assert_eq!(sent, Sent::Whole)).unwrap();
    drop(ring);
    assert_eq!(read_all(peer), b"first second");
}

#[test]
fn pieces_of_one_buffer_may_be_recycled_in_any_order() {
    let (mut peer, socket) = pair();
    let mut ring = ring(Settings { receive_buffers: 1, ..roomy() });
    let slot = ring.add(socket).unwrap();
    ring.shim_mut().received = Some(Verdict::Truncate(2));
    for round in [b"abcdef", b"ghijkl"] {
        peer.write_all(round).unwrap();
        let mut pieces = Vec::new();
        while pieces.iter().map(|received| ring.bytes(received).len()).sum::<usize>() < round.len() {
            let Event::Received(received) = next(&mut ring) else { panic!("bytes of slot {slot}") };
            pieces.push(received);
        }
        // The last goes first: the others still hold the ring's only buffer, and keep their bytes.
        ring.recycle(pieces.pop().unwrap());
        let rest: Vec<u8> = pieces.iter().flat_map(|received| ring.bytes(received)).copied().collect();
        assert_eq!(rest, round[..rest.len()]);
        pieces.into_iter().for_each(|received| ring.recycle(received));
    }
}

#[test]
fn a_failed_accept_can_be_rearmed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut ring = ring(roomy());
    ring.shim_mut().accept.push_back(Verdict::Fail(libc::EMFILE));
    ring.accept(ListenerId(1), listener.into()).unwrap();
    assert!(matches!(next(&mut ring), Event::AcceptFailed(ListenerId(1), libc::EMFILE)));
    ring.rearm_accept(ListenerId(1)).unwrap();
    let _peer = TcpStream::connect(address).unwrap();
    assert!(matches!(next(&mut ring), Event::Accepted(ListenerId(1), _)));
    ring.stop_accepting().unwrap();
    ring.poll().unwrap();
    assert!(ring.next_event().is_none(), "a closed listener reports no failure");
}

#[test]
fn closing_a_parked_socket_frees_its_slot_and_leaks_nothing_to_the_next() {
    let (mut peer, socket) = pair();
    let mut ring = ring(Settings { slots: 1, ..roomy() });
    let slot = ring.add(socket).unwrap();
    let pattern = Pattern::new();
    let mut parked = false;
    while !parked {
        ring.send_batch(&[(slot, pattern.at(0, BYTES_MAX))], |_, sent| parked = sent == Sent::Parked)
            .unwrap();
    }
    // Bytes on their way when the slot is closed must not reach the next owner of the slot.
    peer.write_all(b"old").unwrap();
    ring.close(slot).unwrap();
    while ring.in_use() > 0 {
        ring.poll().unwrap();
    }
    let (mut next_peer, next_socket) = pair();
    assert_eq!(ring.add(next_socket).unwrap(), slot);
    next_peer.write_all(b"new").unwrap();
    let Event::Received(received) = next(&mut ring) else { panic!("received") };
    assert_eq!(ring.bytes(&received), b"new");
    ring.recycle(received);
    assert!(ring.next_event().is_none());
}

#[test]
fn a_shutdown_never_reaches_the_next_connection() {
    let mut ring = ring(roomy());
    for _ in 0..50 {
        let (peer, socket) = pair();
        let slot = ring.add(socket).unwrap();
        ring.poll().unwrap();
        drop(peer);
        // A goodbye that was sent, the peer's FIN and an accept in one turn, before the kernel has seen any of it.
        ring.pause_receive(slot).unwrap();
        ring.poll().unwrap();
        ring.shutdown_write(slot).unwrap();
        ring.close(slot).unwrap();
        let (mut next_peer, next_socket) = pair();
        let next_slot = ring.add(next_socket).unwrap();
        while ring.in_use() > 1 {
            ring.poll().unwrap();
        }
        (0..1_000).for_each(|_| ring.poll().unwrap());
        ring.send_batch(&[(next_slot, b"open")], |_, sent| assert_eq!(sent, Sent::Whole)).unwrap();
        next_peer.set_nonblocking(false).unwrap();
        let mut got = [0; 4];
        next_peer.read_exact(&mut got).unwrap();
        ring.close(next_slot).unwrap();
        while ring.in_use() > 0 {
            ring.poll().unwrap();
        }
    }
}

#[test]
fn a_paused_socket_is_not_received_from_until_it_is_resumed() {
    let (mut peer, socket) = pair();
    let mut ring = ring(roomy());
    let slot = ring.add(socket).unwrap();
    ring.poll().unwrap();
    ring.pause_receive(slot).unwrap();
    ring.poll().unwrap();
    peer.write_all(b"later").unwrap();
    for _ in 0..100 {
        ring.poll().unwrap();
        assert!(ring.next_event().is_none());
    }
    ring.resume_receive(slot).unwrap();
    let Event::Received(received) = next(&mut ring) else { panic!("received") };
    assert_eq!(ring.bytes(&received), b"later");
    ring.recycle(received);
    drop(peer);
    assert!(matches!(next(&mut ring), Event::Eof(of) if of == slot));
}

#[test]
fn a_ring_with_everything_in_flight_is_dropped_without_waiting_for_peers() {
    let (peers, sockets): (Vec<_>, Vec<_>) = (0..4).map(|_| pair()).unzip();
    let mut ring = ring(roomy());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    ring.accept(ListenerId(0), listener.into()).unwrap();
    ring.arm_timer(3_600_000_000_000).unwrap();
    let pattern = Pattern::new();
    for socket in sockets {
        let slot = ring.add(socket).unwrap();
        let mut parked = false;
        while !parked {
            ring.send_batch(&[(slot, pattern.at(0, BYTES_MAX))], |_, sent| parked = sent == Sent::Parked)
                .unwrap();
        }
    }
    drop(ring);
    drop(peers);
}

#[test]
fn an_armed_timer_moves_earlier_and_never_later() {
    const HOUR_NS: u64 = 3_600_000_000_000;
    let mut ring = ring(roomy());
    ring.arm_timer(HOUR_NS).unwrap();
    // Once before the kernel knows of the timer, once after.
    ring.arm_timer(HOUR_NS / 2).unwrap();
    ring.poll().unwrap();
    ring.arm_timer(5_000_000).unwrap();
    ring.arm_timer(HOUR_NS).unwrap();
    assert!(matches!(next(&mut ring), Event::Timer));
    ring.arm_timer(5_000_000).unwrap();
    assert!(matches!(next(&mut ring), Event::Timer));
}

/// Handles events until `done`; appends the received bytes.
fn take_in(ring: &mut DataRing<Script>, got: &mut Vec<u8>, mut done: impl FnMut(&Event, usize) -> bool) {
    loop {
        ring.poll().unwrap();
        while let Some(event) = ring.next_event() {
            let ends = match &event {
                Event::Received(received) => {
                    got.extend_from_slice(ring.bytes(received));
                    done(&event, got.len())
                }
                other => done(other, got.len()),
            };
            if let Event::Received(received) = event {
                ring.recycle(received);
            }
            if ends {
                return;
            }
        }
    }
}

#[test]
fn a_socket_that_moves_between_rings_loses_no_byte() {
    const BYTES: usize = 4 << 20;
    let mut random = fastrand::Rng::with_seed(11);
    let (mut peer, mut socket) = pair();
    peer.set_nonblocking(false).unwrap();
    let sent: Vec<u8> = (0..BYTES).map(|at| (at % PERIOD) as u8).collect();
    let expected = sent.clone();
    let writer = std::thread::spawn(move || {
        for piece in sent.chunks(5_000) {
            peer.write_all(piece).unwrap();
        }
        peer
    });
    let (mut got, mut moves) = (Vec::new(), 0);
    while got.len() < BYTES {
        let mut ring = ring(Settings { receive_buffer_bytes: 4 << 10, ..roomy() });
        let slot = ring.add(socket).unwrap();
        let until = (got.len() + random.usize(1..400_000)).min(BYTES);
        take_in(&mut ring, &mut got, |_, len| len >= until);
        ring.detach(slot).unwrap();
        take_in(&mut ring, &mut got, |event, _| matches!(event, Event::Detached(of) if *of == slot));
        socket = ring.take(slot).unwrap().unwrap();
        assert_eq!((ring.in_use(), ring.has_events()), (0, false));
        moves += 1;
    }
    assert!(moves > 5);
    assert!(got == expected, "every byte once, in order");
    drop((socket, writer.join().unwrap()));
}

#[test]
fn a_cancelled_detach_keeps_receiving_and_a_settled_socket_cannot_be_taken() {
    let (mut peer, socket) = pair();
    let mut ring = ring(roomy());
    let slot = ring.add(socket).unwrap();
    assert!(ring.take(slot).unwrap().is_none(), "no detach was requested");
    for _ in 0..20 {
        let mut got = Vec::new();
        ring.detach(slot).unwrap();
        ring.resume_receive(slot).unwrap();
        peer.write_all(b"stays").unwrap();
        take_in(&mut ring, &mut got, |_, len| len == 5);
        assert_eq!(got, b"stays");
        assert!(ring.take(slot).unwrap().is_none());
    }
    ring.settle(slot);
    ring.detach(slot).unwrap();
    take_in(&mut ring, &mut Vec::new(), |event, _| matches!(event, Event::Detached(_)));
    assert!(ring.take(slot).unwrap().is_none());
    ring.close(slot).unwrap();
    ring.poll().unwrap();
    peer.set_nonblocking(false).unwrap();
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "the plain descriptor does not keep the connection open");
}
