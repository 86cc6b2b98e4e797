//! Shared by TLS tests: an authority, the certificates that it signs, and both ends of a handshake. Only built with the feature
//! `testing`.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};

use crate::{
    certificates::{
        ALPN_NATIVE, ClientSettings, Identity, ServerSettings, ServerTrust, client_config, root_store,
        server_config,
    },
    handshake::{ClientHandshake, Established, Progress, ServerHandshake},
    tickets::TicketKeys,
};

/// Name in the certificate of [`configs`].
pub const NAME: &str = "a.test";

/// A certificate and its private key, PEM.
pub struct Signed {
    /// The certificate.
    pub cert: String,
    /// The key.
    pub key: String,
}

/// An authority. All keys are ECDSA P-256; all certificates are valid until the year 4096.
pub struct Authority {
    /// Its own certificate, which is also valid for `localhost`, and its key.
    pub own: Signed,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Creates an authority. Two with the same name have different keys.
    pub fn new(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let own = Signed { cert: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() };
        Authority { own, issuer: Issuer::new(params, key) }
    }

    /// Signs a certificate for these names: hosts, IP addresses, or URIs (anything with a `:`).
    pub fn sign(&self, names: &[&str]) -> Signed {
        self.sign_params(params(names))
    }

    /// Signs a certificate as [`Authority::sign`] does, whose last valid second since 1970 is `ends_s`.
    pub fn sign_until(&self, names: &[&str], ends_s: u64) -> Signed {
        let mut params = params(names);
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(ends_s);
        self.sign_params(params)
    }

    /// Signs a certificate that expired long ago.
    pub fn sign_expired(&self, names: &[&str]) -> Signed {
        let mut params = params(names);
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        self.sign_params(params)
    }

    fn sign_params(&self, params: CertificateParams) -> Signed {
        let key = KeyPair::generate().unwrap();
        Signed { cert: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }

    /// Signs a certificate as [`Authority::sign`] does, and returns it as an identity.
    pub fn identity(&self, names: &[&str]) -> Identity {
        let Signed { cert, key } = self.sign(names);
        Identity::from_pem(cert.as_bytes(), key.as_bytes()).unwrap()
    }
}

fn params(names: &[&str]) -> CertificateParams {
    let (uris, hosts): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| name.contains(':'));
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).into()).collect();
    let mut params = CertificateParams::new(hosts).unwrap();
    params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
    params.distinguished_name.push(DnType::CommonName, names[0]);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// Configurations of a server for [`NAME`] and of its clients, both with `hands_over`.
pub fn configs() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let authority = Authority::new("authority");
    let server = server_config(&ServerSettings {
        identities: &[authority.identity(&[NAME])],
        client_authorities: None,
        only_tls13: false,
        protocols: &[ALPN_NATIVE],
        tickets: Some(TicketKeys::random(|| 1_900_000_000).unwrap().for_context(b"")),
        hands_over: true,
    });
    let client = client_config(ClientSettings {
        trust: ServerTrust::Authorities(root_store(authority.own.cert.as_bytes()).unwrap()),
        identity: None,
        protocols: &[ALPN_NATIVE],
        hands_over: true,
    });
    (server.unwrap(), client.unwrap())
}

/// Begins the handshake of a client of [`configs`]. Also returns its ClientHello.
pub fn hello(client: &Arc<ClientConfig>) -> (ClientHandshake, Vec<u8>) {
    let mut out = Vec::new();
    let name = ServerName::try_from(NAME).unwrap();
    (ClientHandshake::new(client.clone(), name, &mut out).unwrap(), out)
}

/// Connects both ends with our own handshakes, and returns them, server first.
pub fn connect((server, client): &(Arc<ServerConfig>, Arc<ClientConfig>)) -> [Box<Established>; 2] {
    let (mut client, hello) = hello(client);
    let (mut flight, mut finished, mut ticket) = (Vec::new(), Vec::new(), Vec::new());
    let mut handshake = ServerHandshake::default();
    handshake.push(&hello);
    assert!(matches!(handshake.advance(server, &mut flight), Ok(Progress::Waiting)));
    let Ok(Progress::Done(mut client)) = client.advance(&flight, &mut finished) else {
        panic!("the server's flight is complete")
    };
    handshake.push(&finished);
    let Ok(Progress::Done(server)) = handshake.advance(server, &mut ticket) else {
        panic!("the client's flight is complete")
    };
    assert_eq!(client.records.open(&mut ticket).plaintext, 0);
    [server, client]
}
