//! A TLS client for the clients of these tests that have none: connections to its port go on to a server over TLS, by rustls.

use std::{
    fs::File,
    io::{BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

use super::{GUARD, certificates::Certificates};

/// Bytes that a thread of the tunnel reads at a time.
const CHUNK_BYTES: usize = 16 << 10;

/// The listening end. Its threads end with their connections.
pub struct Tunnel {
    /// Where plain clients connect.
    pub address: SocketAddr,
}

impl Tunnel {
    /// A tunnel to a server that the certificates' authority vouches for.
    pub fn to(server: SocketAddr, certificates: &Certificates) -> Tunnel {
        Tunnel::with(server, client_config(certificates, None, rustls::DEFAULT_VERSIONS))
    }

    /// A tunnel whose connections begin as `config` says.
    pub fn with(server: SocketAddr, config: Arc<ClientConfig>) -> Tunnel {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for plain in listener.incoming() {
                let (plain, config) = (plain.unwrap(), config.clone());
                thread::spawn(move || relay(plain, server, config));
            }
        });
        Tunnel { address }
    }
}

/// The configuration of a client that knows the authority, and shows the certificate in `NAME.pem` and `NAME.key`.
pub fn client_config(
    certificates: &Certificates,
    name: Option<&str>,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificates.ca()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let builder = builder.with_root_certificates(roots);
    Arc::new(match name {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let cert = BufReader::new(File::open(certificates.file(&format!("{name}.pem"))).unwrap());
            let chain = CertificateDer::pem_reader_iter(cert).map(Result::unwrap).collect();
            let key = PrivateKeyDer::from_pem_file(certificates.file(&format!("{name}.key"))).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    })
}

/// A connection over TLS without a tunnel, which shakes hands with its first write or read. Its reads end without an error only behind
/// close_notify.
pub fn connect(server: SocketAddr, config: Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let socket = TcpStream::connect_timeout(&server, GUARD).unwrap();
    socket.set_read_timeout(Some(GUARD)).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(config, name).unwrap(), socket)
}

/// Carries bytes both ways until both sides have closed, or one has failed.
fn relay(mut plain: TcpStream, server: SocketAddr, config: Arc<ClientConfig>) {
    let mut sealed = TcpStream::connect_timeout(&server, GUARD).unwrap();
    for stream in [&plain, &sealed] {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
    }
    let name = ServerName::try_from("localhost").unwrap();
    let tls = Arc::new(Mutex::new(ClientConnection::new(config, name).unwrap()));
    let (mut from_plain, mut to_server, to_send) =
        (plain.try_clone().unwrap(), sealed.try_clone().unwrap(), tls.clone());
    // What the plain side writes before the handshake is over, rustls keeps.
    let upwards = thread::spawn(move || {
        let mut chunk = [0; CHUNK_BYTES];
        loop {
            let len = from_plain.read(&mut chunk).unwrap_or(0);
            let mut tls = to_send.lock().unwrap();
            match len {
                0 => tls.send_close_notify(),
                len => tls.writer().write_all(&chunk[..len]).unwrap(),
            }
            let sent = flush(&mut tls, &mut to_server);
            if len == 0 || !sent {
                let _ = to_server.shutdown(Shutdown::Write);
                return;
            }
        }
    });
    flush(&mut tls.lock().unwrap(), &mut sealed);
    let mut chunk = [0; CHUNK_BYTES];
    loop {
        let len = sealed.read(&mut chunk).unwrap_or(0);
        let mut plaintext = Vec::new();
        let mut is_over = len == 0;
        {
            let mut tls = tls.lock().unwrap();
            let mut bytes = &chunk[..len];
            while !bytes.is_empty() && !is_over {
                tls.read_tls(&mut bytes).unwrap();
                match tls.process_new_packets() {
                    Ok(state) => is_over |= state.peer_has_closed(),
                    Err(_) => is_over = true,
                }
                let mut piece = [0; CHUNK_BYTES];
                while let Ok(len @ 1..) = tls.reader().read(&mut piece) {
                    plaintext.extend_from_slice(&piece[..len]);
                }
            }
            flush(&mut tls, &mut sealed);
        }
        if plain.write_all(&plaintext).is_err() || is_over {
            let _ = plain.shutdown(Shutdown::Write);
            break;
        }
    }
    let _ = upwards.join();
}

/// Sends what rustls wants to send. Returns whether that worked.
fn flush(tls: &mut ClientConnection, to: &mut TcpStream) -> bool {
    while tls.wants_write() {
        if tls.write_tls(to).is_err() {
            return false;
        }
    }
    true
}
