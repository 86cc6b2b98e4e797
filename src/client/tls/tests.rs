use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustls::{ServerConfig, ServerConnection, StreamOwned, server::WebPkiClientVerifier};

use super::*;
use crate::{
    Address, Client, ConnectOptions, PublishRequest, ReconnectOptions, ReconnectingClient, StreamEvent,
};
use tickcast_proto::{features::Features, reply::Reply};
use tickcast_tls::testing::{self, Signed};

/// An authority, and files of what it signs, removed on drop.
struct Authority {
    directory: PathBuf,
    signs: testing::Authority,
}

impl Authority {
    /// Writes `ca.pem` and `ca.key`. All have the same name.
    fn new(name: &str) -> Authority {
        let directory = std::env::temp_dir().join(format!("tickcast-client-{}-{name}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let authority = Authority { directory, signs: testing::Authority::new("authority") };
        authority.write("ca", &authority.signs.own);
        authority
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes `{file}.pem` and `{file}.key`.
    fn write(&self, file: &str, signed: &Signed) {
        fs::write(self.file(&format!("{file}.pem")), &signed.cert).unwrap();
        fs::write(self.file(&format!("{file}.key")), &signed.key).unwrap();
    }

    /// Signs a certificate, and writes it.
    fn sign(&self, file: &str, name: &str) {
        self.write(file, &self.signs.sign(&[name]));
    }

    /// A server with the certificate in `{file}.pem`, which wants one of the client too if `is_mutual`.
    fn server_config(&self, file: &str, is_mutual: bool) -> Arc<ServerConfig> {
        let read = |name: &str| fs::read(self.file(name)).unwrap();
        let chain = certificates::certificates(&read(&format!("{file}.pem"))).unwrap();
        let key = rustls::pki_types::pem::PemObject::from_pem_slice(&read(&format!("{file}.key"))).unwrap();
        let provider = Arc::new(certificates::provider());
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = match is_mutual {
            false => builder.with_no_client_auth(),
            true => {
                let roots = Arc::new(certificates::root_store(&read("ca.pem")).unwrap());
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build().unwrap();
                builder.with_client_cert_verifier(verifier)
            }
        };
        Arc::new(builder.with_single_cert(chain, key).unwrap())
    }

    fn trusted(&self) -> TlsOptions {
        TlsOptions { ca: Some(self.file("ca.pem")), ..TlsOptions::default() }
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Serves connections one after another until `stop` is dropped: a welcome, then it reads nothing.
fn serve_unread(
    config: Arc<ServerConfig>,
    connections: usize,
) -> (Address, mpsc::Sender<()>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (stop, stopped) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        let mut open = Vec::new();
        for _ in 0..connections {
            let (socket, _) = listener.accept().unwrap();
            let connection = ServerConnection::new(config.clone()).unwrap();
            let mut stream = StreamOwned::new(connection, socket);
            let mut welcome = Vec::new();
            let features = Some(Features::NONE);
            let reply =
                Reply::Welcome { request: 1, epoch: 3, session: 2, frame_bytes_max: 1 << 18, features };
            reply.encode(WireFormat::TCP_NATIVE, &mut welcome);
            // The client may have refused the handshake.
            if stream.write_all(&welcome).and_then(|()| stream.flush()).is_err() {
                let _ = stream.sock.read(&mut [0; 100]);
            }
            open.push(stream);
        }
        let _ = stopped.recv();
    });
    (Address::parse(&format!("tls://localhost:{port}")).unwrap(), stop, thread)
}

/// Why a client with these options does not connect to such a server.
fn refused(config: Arc<ServerConfig>, tls: TlsOptions) -> ClientError {
    let (address, stop, server) = serve_unread(config, 1);
    let error =
        Client::connect_with(&address, &ConnectOptions { tls, ..address.connect_options() }).unwrap_err();
    drop(stop);
    server.join().unwrap();
    error
}

fn tls_error(error: ClientError) -> TlsError {
    match error {
        ClientError::Tls { error, .. } => error,
        error => panic!("{error:?}"),
    }
}

#[test]
fn each_untrusted_server_is_refused_with_what_to_do() {
    let (authority, other) = (Authority::new("trusted"), Authority::new("other"));
    authority.sign("good", "localhost");
    authority.sign("named", "a.test");
    authority.write("expired", &authority.signs.sign_expired(&["localhost"]));

    let refuse = |file: &str, tls| tls_error(refused(authority.server_config(file, false), tls));
    // Both authorities have the same name.
    let unknown = refuse("good", other.trusted());
    assert_eq!(unknown, TlsError::UnknownAuthority);
    assert!(unknown.to_string().contains("set ca"), "{unknown}");
    let named = refuse("named", authority.trusted());
    assert!(matches!(&named, TlsError::WrongName(_)) && named.to_string().contains("a.test"), "{named}");
    assert_eq!(refuse("expired", authority.trusted()), TlsError::NotValidNow);
    assert_eq!(refuse("ca", authority.trusted()), TlsError::AuthorityShown);

    let insecure = TlsOptions { insecure: true, ..TlsOptions::default() };
    let (address, stop, server) = serve_unread(other.server_config("ca", false), 1);
    Client::connect_with(&address, &ConnectOptions { tls: insecure, ..address.connect_options() }).unwrap();
    drop(stop);
    server.join().unwrap();
}

#[test]
fn a_server_that_wants_a_certificate_says_so_and_takes_one_of_its_authority() {
    let (authority, other) = (Authority::new("mutual"), Authority::new("foreign"));
    authority.sign("server", "localhost");
    authority.sign("client", "client.test");
    other.sign("client", "client.test");
    let shown = |from: &Authority| TlsOptions {
        cert: Some(from.file("client.pem")),
        key: Some(from.file("client.key")),
        ..authority.trusted()
    };
    let config = || authority.server_config("server", true);
    assert_eq!(tls_error(refused(config(), authority.trusted())), TlsError::CertificateRequired);
    assert!(matches!(tls_error(refused(config(), shown(&other))), TlsError::CertificateRefused(_)));
    let (address, stop, server) = serve_unread(config(), 1);
    Client::connect_with(&address, &ConnectOptions { tls: shown(&authority), ..address.connect_options() })
        .unwrap();
    drop(stop);
    server.join().unwrap();
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let authority = Authority::new("files");
    authority.sign("client", "client.test");
    let read = |tls: TlsOptions| tls.read(&[], false).unwrap_err().to_string();
    let absent = read(TlsOptions { ca: Some(authority.file("absent.pem")), ..TlsOptions::default() });
    assert!(absent.contains("cannot read") && absent.contains("absent.pem"), "{absent}");
    let empty = read(TlsOptions { ca: Some(authority.file("ca.key")), ..TlsOptions::default() });
    assert!(empty.contains("ca.key: no certificate"), "{empty}");
    let alone = TlsOptions { cert: Some(authority.file("client.pem")), ..authority.trusted() };
    let keyless = read(alone.clone());
    assert!(keyless.contains("client.pem") && keyless.contains("no private key"), "{keyless}");
    let mixed = read(TlsOptions { key: Some(authority.file("ca.key")), ..alone });
    assert!(mixed.contains("client.pem") && mixed.contains("does not belong"), "{mixed}");
    // A bundle that is cut after 4 MiB would lack authorities.
    let bundle = authority.file("bundle.pem");
    let mut text = fs::read_to_string(authority.file("ca.pem")).unwrap();
    text.push_str(&"#".repeat(FILE_BYTES_MAX as usize - text.len()));
    let tls = TlsOptions { ca: Some(bundle.clone()), ..TlsOptions::default() };
    fs::write(&bundle, &text).unwrap();
    assert!(tls.read(&[], false).is_ok());
    text.push('#');
    fs::write(&bundle, &text).unwrap();
    let long = read(tls);
    assert!(long.contains("bundle.pem: longer than 4194304 bytes"), "{long}");
}

#[test]
fn a_server_that_speaks_no_tls_or_ends_the_handshake_is_named_as_such() {
    for (answer, expected) in
        [(&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], TlsError::PlainServer), (b"", TlsError::Ended)]
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("tls://{}", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            assert!(socket.read(&mut [0; 4_096]).unwrap() > 0);
            socket.write_all(answer).unwrap();
        });
        let address = Address::parse(&address).unwrap();
        let tls = TlsOptions { insecure: true, ..TlsOptions::default() };
        let error = Client::connect_with(&address, &ConnectOptions { tls, ..address.connect_options() });
        assert_eq!(tls_error(error.unwrap_err()), expected);
        server.join().unwrap();
    }
}

#[test]
fn names_of_certificates_are_those_of_addresses() {
    let name = |host| server_name(host).map(|name| name.to_str().into_owned()).ok();
    assert_eq!(name("a.test:9400").as_deref(), Some("a.test"));
    assert_eq!(name("127.0.0.1:1").as_deref(), Some("127.0.0.1"));
    assert_eq!(name("[::1]:1").as_deref(), Some("::1"));
    assert_eq!(name("a b:1"), None);
}

#[test]
fn a_write_times_out_over_tls_and_the_reconnecting_client_counts_the_connection_as_lost() {
    let authority = Authority::new("unread");
    authority.sign("server", "localhost");
    let (address, stop, server) = serve_unread(authority.server_config("server", false), 2);
    let options = ConnectOptions { tls: authority.trusted(), ..address.connect_options() };
    let payload = vec![b'x'; 200 << 10];
    let publish = PublishRequest { topic: "a", payload: &payload, ..PublishRequest::default() };

    let mut client = Client::connect_with(&address, &options).unwrap();
    client.set_write_timeout(Some(Duration::from_millis(1)));
    let failed = (0..500).find_map(|_| client.publish_buffered(publish).err());
    assert!(matches!(failed, Some(ClientError::TimedOut { .. })), "{failed:?}");

    let reconnect = ReconnectOptions::default();
    let mut client = ReconnectingClient::connect_with(&address, &options, reconnect).unwrap();
    client.set_write_timeout(Some(Duration::from_millis(1)));
    assert!((0..500).any(|_| client.publish(publish).unwrap().is_none()), "it never blocks");
    let event = client.next_event(Some(Duration::ZERO)).unwrap();
    assert!(
        matches!(event, Some(StreamEvent::Disconnected { reason, .. }) if reason.contains("does not read")),
        "{event:?}"
    );
    drop(stop);
    server.join().unwrap();
}

#[test]
fn closing_ends_although_the_goodbye_of_tls_finds_no_room_in_the_socket() {
    let authority = Authority::new("full");
    authority.sign("server", "localhost");
    let (address, stop, server) = serve_unread(authority.server_config("server", false), 1);
    let options = ConnectOptions { tls: authority.trusted(), ..address.connect_options() };
    let client = Client::connect_with(&address, &options).unwrap();
    // Everything has been sent, and the socket, which nobody reads from, is full.
    let mut socket =
        std::os::fd::AsFd::as_fd(&client).try_clone_to_owned().map(std::net::TcpStream::from).unwrap();
    socket.set_nonblocking(false).unwrap();
    socket.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    while socket.write(&[0; 1 << 16]).is_ok() {}
    // The last segment still has room.
    while socket.write(&[0]).is_ok() {}
    socket.set_nonblocking(true).unwrap();
    client.close().unwrap();
    drop(stop);
    server.join().unwrap();
}
