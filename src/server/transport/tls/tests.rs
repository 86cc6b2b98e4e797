use rustls::ClientConfig;
use tickcast_tls::{
    handshake::{ClientHandshake, Established},
    testing,
};

use super::*;

const SLOT: u32 = 3;
const PLAIN: usize = 0;
const TLS: usize = 1;

/// A shard's connections, and the client of one of them.
struct Bench {
    shard: TlsConnections,
    config: Arc<ClientConfig>,
}

impl Bench {
    fn new() -> Bench {
        let (server, config) = testing::configs();
        let mut shard = TlsConnections::default();
        shard.set_configs(vec![None, Some(server)]);
        Bench { shard, config }
    }

    fn accept(&mut self, slot: u32) {
        self.shard.accept(slot, TLS, ClientAddress::Peer);
    }

    fn hello(&self) -> (ClientHandshake, Vec<u8>) {
        testing::hello(&self.config)
    }

    /// Takes the next step of the first handshake in the queue.
    fn step(&mut self) -> (u32, Shaken) {
        let slot = self.shard.next_ready().expect("a handshake can go on");
        (slot, self.shard.shake_hands(slot).shaken)
    }

    fn sent(&mut self, slot: u32) -> Vec<u8> {
        std::mem::take(&mut self.shard.get_mut(slot).unwrap().waiting)
    }

    /// Performs the handshake in [`SLOT`].
    fn establish(&mut self) -> Box<Established> {
        self.accept(SLOT);
        let (mut client, hello) = self.hello();
        assert_eq!(self.shard.receive(SLOT, &hello), Received::Handshake(false));
        assert!(matches!(self.step(), (SLOT, Shaken::Waiting)));
        let mut finished = Vec::new();
        let flight = self.sent(SLOT);
        let Progress::Done(mut client) = client.advance(&flight, &mut finished).unwrap() else { panic!() };
        assert_eq!(self.shard.receive(SLOT, &finished), Received::Handshake(false));
        let (_, Shaken::Done { unopened, .. }) = self.step() else { panic!("the client has finished") };
        assert!(unopened.is_empty());
        let mut ticket = self.sent(SLOT);
        assert_eq!(client.records.open(&mut ticket).plaintext, 0);
        client
    }

    /// Decrypts these records as the client.
    fn read(client: &mut Established, mut bytes: Vec<u8>) -> (Vec<u8>, Outcome) {
        let opened = client.records.open(&mut bytes);
        bytes.truncate(opened.plaintext);
        (bytes, opened.outcome)
    }
}

#[test]
fn a_plain_listener_has_no_tls_and_costs_nothing() {
    let mut bench = Bench::new();
    bench.shard.accept(SLOT, PLAIN, ClientAddress::Peer);
    assert!(bench.shard.is_empty() && bench.shard.get_mut(SLOT).is_none());
    assert_eq!(bench.shard.seal(SLOT, b"tick", &mut Vec::new()), Sealed::Plain);
}

#[test]
fn records_reach_the_shard_as_plaintext_wherever_they_are_cut() {
    let mut bench = Bench::new();
    let mut client = bench.establish();
    for step in [1, 2, 7, 30, 1_000] {
        let mut sent = Vec::new();
        for text in ["first", "second", "third"] {
            client.records.seal(text.as_bytes(), &mut sent);
        }
        let mut plaintext = Vec::new();
        for piece in sent.chunks(step) {
            match bench.shard.receive(SLOT, piece) {
                Received::Plaintext(len) => plaintext.extend_from_slice(&bench.shard.opened()[..len]),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(plaintext, b"firstsecondthird", "{step}");
    }
    let State::Open { opener, .. } = &bench.shard.get_mut(SLOT).unwrap().state else { panic!() };
    assert_eq!(opener.memory_bytes(), 0, "a connection that waits for nothing keeps no buffer");
}

#[test]
fn sends_are_sealed_and_those_that_nobody_could_read_are_discarded() {
    let mut bench = Bench::new();
    bench.accept(SLOT);
    let mut out = Vec::new();
    assert_eq!(bench.shard.seal(SLOT, b"408", &mut out), Sealed::Discarded);
    assert!(out.is_empty(), "not a byte in the clear");
    let mut client = bench.establish();
    assert_eq!(bench.shard.seal(SLOT, b"tick", &mut out), Sealed::Appended);
    assert_eq!(Bench::read(&mut client, out), (b"tick".to_vec(), Outcome::Open));
    bench.shard.get_mut(SLOT).unwrap().say_goodbye();
    let goodbye = bench.sent(SLOT);
    assert_eq!(Bench::read(&mut client, goodbye), (vec![], Outcome::Closed));
    assert_eq!(bench.shard.seal(SLOT, b"late", &mut Vec::new()), Sealed::Discarded);
}

#[test]
fn a_send_waits_behind_what_tls_itself_has_to_send() {
    let mut bench = Bench::new();
    let mut client = bench.establish();
    bench.shard.get_mut(SLOT).unwrap().parked = ParkedSend::Own;
    let mut out = Vec::new();
    assert_eq!(bench.shard.seal(SLOT, b"tick", &mut out), Sealed::Waiting);
    let connection = bench.shard.get_mut(SLOT).unwrap();
    assert!(out.is_empty() && connection.is_shard_waiting && connection.is_busy());
    let waiting = bench.sent(SLOT);
    assert_eq!(Bench::read(&mut client, waiting).0, b"tick");
}

#[test]
fn what_comes_before_a_wrong_record_counts_and_an_alert_follows_it() {
    let mut bench = Bench::new();
    let mut client = bench.establish();
    let mut sent = Vec::new();
    client.records.seal(b"good", &mut sent);
    client.records.seal(b"changed", &mut sent);
    *sent.last_mut().unwrap() ^= 1;
    let Received::Failed(len, why) = bench.shard.receive(SLOT, &sent) else { panic!() };
    assert_eq!(&bench.shard.opened()[..len], b"good");
    assert!(why.contains("bad_record_mac"), "{why}");
    let alert = bench.sent(SLOT);
    assert_eq!(Bench::read(&mut client, alert), (vec![], Outcome::Failed(Alert::BAD_RECORD_MAC)));
    assert_eq!(bench.shard.receive(SLOT, b"anything"), Received::Plaintext(0));
}

#[test]
fn a_peer_that_closes_is_noticed_once_and_may_still_be_sent_to() {
    let mut bench = Bench::new();
    let mut client = bench.establish();
    let mut sent = Vec::new();
    client.records.seal(b"bye", &mut sent);
    client.records.close_notify(&mut sent);
    assert_eq!(bench.shard.receive(SLOT, &sent), Received::Closed(3));
    assert!(bench.shard.get_mut(SLOT).unwrap().peer_closed());
    assert_eq!(bench.shard.receive(SLOT, b"more"), Received::Plaintext(0));
    let mut out = Vec::new();
    assert_eq!(bench.shard.seal(SLOT, b"the rest", &mut out), Sealed::Appended);
    assert_eq!(Bench::read(&mut client, out).0, b"the rest");
}

#[test]
fn a_peer_that_fails_is_sent_nothing() {
    let mut bench = Bench::new();
    let mut client = bench.establish();
    let mut sent = Vec::new();
    client.records.fatal_alert(Alert(42), &mut sent);
    let Received::Failed(0, why) = bench.shard.receive(SLOT, &sent) else { panic!() };
    assert!(why.contains("bad_certificate"), "{why}");
    assert!(bench.sent(SLOT).is_empty());
}

#[test]
fn handshakes_take_turns_in_the_order_in_which_they_can_go_on() {
    let mut bench = Bench::new();
    let hellos: Vec<_> = (0..8).map(|_| bench.hello().1).collect();
    for (slot, hello) in hellos.iter().enumerate() {
        bench.accept(slot as u32);
        bench.shard.receive(slot as u32, &hello[..40]);
        assert!(!bench.shard.has_ready(), "an unfinished hello waits for its rest only");
    }
    for (slot, hello) in hellos.iter().enumerate().rev() {
        bench.shard.receive(slot as u32, &hello[40..]);
        // More bytes do not queue it twice.
        bench.shard.receive(slot as u32, &[20, 3, 3, 0, 1, 1]);
    }
    // Two connections have ended; one slot is vacant, the other serves a new connection.
    bench.shard.remove(7);
    bench.accept(6);
    for expected in (0..6).rev() {
        assert_eq!(bench.step().0, expected);
    }
    assert_eq!(bench.shard.next_ready(), None);
}

#[test]
fn handshakes_that_have_ended_hold_nobody_up_and_take_no_room_in_the_queue() {
    let mut bench = Bench::new();
    let hello = bench.hello().1;
    for slot in 0..100 {
        bench.accept(slot);
        bench.shard.receive(slot, &hello);
        bench.shard.remove(slot);
    }
    // One slot, reused for connections that end before their turn.
    for _ in 0..1_000 {
        bench.accept(SLOT);
        bench.shard.receive(SLOT, &hello);
        bench.shard.remove(SLOT);
    }
    assert_eq!(bench.shard.ready.len(), 100, "one place for each slot");
    bench.accept(100);
    bench.shard.receive(100, &hello);
    assert_eq!(bench.shard.next_ready(), Some(100), "the first call skips all that have ended");
    assert!(!bench.shard.has_ready());
}

#[test]
fn a_fin_waits_for_what_came_before_it_and_has_been_handled_after_one_step() {
    let mut bench = Bench::new();
    bench.accept(SLOT);
    let (mut client, hello) = bench.hello();
    bench.shard.receive(SLOT, &hello[..40]);
    assert!(!bench.shard.get_mut(SLOT).unwrap().postpone_eof(), "half a record waits for its rest only");
    bench.shard.receive(SLOT, &hello[40..]);
    assert!(matches!(bench.step(), (SLOT, Shaken::Waiting)));
    let (flight, mut sent) = (bench.sent(SLOT), Vec::new());
    let Progress::Done(mut client) = client.advance(&flight, &mut sent).unwrap() else { panic!() };
    client.records.seal(b"the last words", &mut sent);
    bench.shard.receive(SLOT, &sent);
    assert!(bench.shard.get_mut(SLOT).unwrap().postpone_eof());
    let slot = bench.shard.next_ready().unwrap();
    let HandshakeTurn { shaken: Shaken::Done { unopened, .. }, has_eof: true, .. } =
        bench.shard.shake_hands(slot)
    else {
        panic!("the client has finished")
    };
    assert_eq!(bench.shard.receive(SLOT, &unopened), Received::Plaintext(14));
    assert!(!bench.shard.get_mut(SLOT).unwrap().postpone_eof());
}

#[test]
fn a_socket_leaves_once_everything_is_sent_unless_its_session_ends_before() {
    let mut bench = Bench::new();
    bench.establish();
    let connection = bench.shard.get_mut(SLOT).unwrap();
    assert!(connection.begin_detach());
    connection.parked = ParkedSend::Own;
    assert!(!connection.begin_detach());
    assert_eq!(connection.then, Then::Detach);
    connection.cancel_detach();
    assert_eq!(connection.then, Then::Stay);
    connection.then = Then::ShutdownWrite;
    connection.cancel_detach();
    assert_eq!(connection.then, Then::ShutdownWrite, "a goodbye is not cancelled");
}

#[test]
fn bytes_that_wait_for_a_handshake_have_a_bound() {
    let mut bench = Bench::new();
    bench.accept(SLOT);
    let mut received = 0;
    loop {
        // Empty handshake records that have not been processed yet.
        match bench.shard.receive(SLOT, &[22, 3, 3, 0, 1, 0].repeat(700)) {
            Received::Handshake(is_full) if !is_full => received += 1,
            Received::Handshake(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(received * 700 * 6 <= TLS_HANDSHAKE_WAITING_BYTES);
    let slot = bench.shard.next_ready().unwrap();
    let step = bench.shard.shake_hands(slot);
    assert!(matches!(step.shaken, Shaken::Failed(_)) && step.resumes);
}

#[test]
fn a_proxy_header_goes_to_the_shard_in_the_clear_and_the_handshake_follows() {
    let header = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n";
    for step in [1, 10, 1_000] {
        let mut bench = Bench::new();
        bench.shard.accept(SLOT, TLS, ClientAddress::ProxyHeader);
        let (_, hello) = bench.hello();
        let mut plaintext = Vec::new();
        for piece in [&header[..], &hello].concat().chunks(step) {
            match bench.shard.receive(SLOT, piece) {
                Received::Plaintext(len) => plaintext.extend_from_slice(&bench.shard.opened()[..len]),
                Received::Handshake(false) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(plaintext, header);
        assert!(matches!(bench.step(), (SLOT, Shaken::Waiting)));
        assert!(!bench.sent(SLOT).is_empty(), "the server's flight");
    }
}

#[test]
fn a_connection_goes_on_on_another_shard() {
    let mut bench = Bench::new();
    let mut client = bench.establish();
    let mut sent = Vec::new();
    client.records.seal(b"in two places", &mut sent);
    let (now, later) = sent.split_at(9);
    assert_eq!(bench.shard.receive(SLOT, now), Received::Plaintext(0));
    let connection = bench.shard.remove(SLOT).unwrap();
    let moved = std::thread::spawn(move || {
        let mut shard = TlsConnections::default();
        shard.insert(0, connection);
        shard
    });
    let mut shard = moved.join().unwrap();
    assert_eq!(shard.receive(0, later), Received::Plaintext(13));
    assert_eq!(&shard.opened()[..13], b"in two places");
    let mut out = Vec::new();
    assert_eq!(shard.seal(0, b"welcome", &mut out), Sealed::Appended);
    assert_eq!(Bench::read(&mut client, out).0, b"welcome");
}
