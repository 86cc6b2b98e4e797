use std::{fs, path::PathBuf};

use rustls::server::ProducesTickets;
use tickcast_core::{ids::TenantId, shard::ClientAddress};
use tickcast_tls::testing::Authority;

use super::*;
use crate::config::listener::{Address, OneOrMore, SocketBounds};

/// When test certificates expire, in seconds since 1970: the start of the year 4096.
const ENDS_S: u64 = 67_090_118_400;

/// Two listeners with a certificate each, the second with a file of ticket keys, in a directory that is removed on drop.
struct Files {
    directory: PathBuf,
    listeners: Vec<Listener>,
}

impl Files {
    fn new(name: &str) -> Files {
        let directory = std::env::temp_dir().join(format!("tickcast-{}-{name}.unit", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let signed = Authority::new("authority").sign(&["a.test"]);
        let write = |name: &str, bytes: &[u8]| {
            let path = directory.join(name);
            fs::write(&path, bytes).unwrap();
            path
        };
        let (cert, key) =
            (write("cert.pem", signed.cert.as_bytes()), write("key.pem", signed.key.as_bytes()));
        let keys = write("tickets.key", &[7; TICKET_KEY_BYTES]);
        let listener = |kind: Kind, ticket_keys| Listener {
            kind,
            address: Address::Tcp(([127, 0, 0, 1], 0).into()),
            client: ClientAddress::Peer,
            socket: SocketBounds::default(),
            tls: Some(TlsTable {
                cert: OneOrMore::One(cert.clone()),
                key: OneOrMore::One(key.clone()),
                client_ca: None,
                client_cert: None,
                min_version: None,
                ticket_keys,
            }),
            mode: 0o660,
            is_read_only: false,
            tenant: TenantId::DEFAULT,
            is_guarded: true,
            named: kind.name().to_owned(),
        };
        let listeners = vec![listener(Kind::Native, None), listener(Kind::Http, Some(keys))];
        Files { directory, listeners }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn random_ticket_keys_change_every_lifetime_of_a_ticket_and_those_of_a_file_do_not() {
    let files = Files::new("rotation");
    let start_ns = 5_000_000_000;
    let (mut certificates, _) = Certificates::load(&files.listeners, (start_ns, 0)).unwrap();
    let [random, of_file] = [0, 1].map(|at: usize| certificates.tickets[at].for_context(b""));
    let tickets = [&random, &of_file].map(|keys| keys.encrypt(b"state").unwrap());
    let accepted = || [random.decrypt(&tickets[0]).is_some(), of_file.decrypt(&tickets[1]).is_some()];
    for (turns_ns, is_accepted) in [
        (TICKET_ROTATION_NS - 1, [true, true]),
        // The first rotation: the previous key is still accepted.
        (TICKET_ROTATION_NS, [true, true]),
        (2 * TICKET_ROTATION_NS - 1, [true, true]),
        (2 * TICKET_ROTATION_NS, [false, true]),
    ] {
        let before = random.encrypt(b"").unwrap();
        certificates.turn((start_ns + turns_ns, 0));
        assert_eq!(accepted(), is_accepted, "after {turns_ns} ns");
        // A ticket begins with the name of its key.
        let has_changed = before[..16] != random.encrypt(b"").unwrap()[..16];
        assert_eq!(has_changed, turns_ns % TICKET_ROTATION_NS == 0, "after {turns_ns} ns");
    }
}

#[test]
fn certificates_that_end_soon_are_warned_of_once_a_day() {
    let files = Files::new("expiry");
    let (mut certificates, _) = Certificates::load(&files.listeners, (1, 0)).unwrap();
    assert!(certificates.statuses().get().iter().all(|status| status.ends_s == ENDS_S));
    let warning_s = CERTIFICATE_WARNING_DAYS * DAY_S;
    let mut turn = |days_ns: u64, now_s| certificates.advance((1 + days_ns, now_s));
    let none: Vec<String> = Vec::new();
    assert_eq!(turn(WARNING_INTERVAL_NS, ENDS_S - warning_s), none, "it is early");
    assert_eq!(turn(2 * WARNING_INTERVAL_NS - 1, ENDS_S - warning_s + 1), none, "it is not a day later");
    let warned = turn(2 * WARNING_INTERVAL_NS, ENDS_S - warning_s + 1);
    assert_eq!(warned.len(), 2, "{warned:?}");
    assert!(warned[0].contains("a.test of native 0 expires in 20 days"), "{warned:?}");
    assert!(warned[1].contains("a.test of http 1 expires in 20 days"), "{warned:?}");
    assert_eq!(turn(3 * WARNING_INTERVAL_NS - 1, ENDS_S), none);
    assert!(turn(3 * WARNING_INTERVAL_NS, ENDS_S)[0].contains("expires in 0 days"));
    assert!(turn(4 * WARNING_INTERVAL_NS, ENDS_S + 1)[1].contains("http 1 has expired"));
}
