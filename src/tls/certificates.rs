//! Certificates, private keys, and the rustls configurations built from them. Reads no files; the caller does.

use std::{fmt, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring as provider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use x509_cert::{Certificate, der::Decode};

use crate::{
    secrets::{self, SecretsLog},
    tickets::Tickets,
};

/// The application protocol (ALPN) of native connections.
pub const ALPN_NATIVE: &[u8] = b"tickcast";
/// The application protocol of HTTP and WebSocket connections.
pub const ALPN_HTTP: &[u8] = b"http/1.1";
/// Maximum certificates in one chain, and authorities in one file.
pub const CERTIFICATES_MAX: usize = 1_024;

/// Why certificates or keys cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateError {
    /// No certificate in the PEM text.
    NoCertificate,
    /// No private key in the PEM text.
    NoKey,
    /// More certificates than [`CERTIFICATES_MAX`].
    TooMany,
    /// The text is not PEM, or a block is not what its label says.
    Malformed(String),
    /// The key does not belong to the first certificate.
    NotAPair,
    /// rustls rejects it.
    Refused(String),
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CertificateError::NoCertificate => {
                write!(f, "no certificate in it: a PEM file with BEGIN CERTIFICATE is needed")
            }
            CertificateError::NoKey => {
                write!(
                    f,
                    "no private key in it: a PEM file with BEGIN PRIVATE KEY is needed, without a passphrase"
                )
            }
            CertificateError::TooMany => write!(f, "more than {CERTIFICATES_MAX} certificates"),
            CertificateError::Malformed(why) => write!(f, "malformed: {why}"),
            CertificateError::NotAPair => write!(
                f,
                "the key does not belong to the first certificate: its own certificate comes first, those of the \
                 authorities follow"
            ),
            CertificateError::Refused(why) => write!(f, "{why}"),
        }
    }
}

impl std::error::Error for CertificateError {}

/// A certificate chain with its private key.
#[derive(Clone, Debug)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    /// DNS names that the certificate is valid for, in lower case; a leading `*.` matches one label.
    names: Vec<String>,
    /// Start and end of validity, in seconds since 1970.
    pub valid_s: (u64, u64),
}

impl Identity {
    /// Reads a certificate chain, the server's own certificate first, and its private key.
    ///
    /// # Errors
    /// A [`CertificateError`] with the reason.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Identity, CertificateError> {
        let chain = certificates(chain)?;
        let first = chain.first().ok_or(CertificateError::NoCertificate)?;
        let (names, valid_s) = (dns_names(first)?, validity_s(first)?);
        let key = private_key(key)?;
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => CertificateError::NotAPair,
            error => CertificateError::Refused(error.to_string()),
        })?;
        Ok(Identity { certified: Arc::new(certified), names, valid_s })
    }

    /// DNS names that the certificate is valid for.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    #[cfg(test)]
    pub(crate) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    fn is_for(&self, name: &str) -> bool {
        self.names.iter().any(|pattern| match pattern.strip_prefix('*') {
            None => pattern == name,
            // A wildcard matches exactly one label (RFC 6125, section 6.4.3).
            Some(suffix) => {
                name.strip_suffix(suffix).is_some_and(|label| !label.is_empty() && !label.contains('.'))
            }
        })
    }
}

/// Whether clients must present a certificate signed by one of the authorities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// A client may present none, but one signed by another authority is rejected.
    Optional,
    /// Every client must present one.
    #[default]
    Required,
}

/// Settings of a server's handshakes.
#[derive(Clone, Debug)]
pub struct ServerSettings<'a> {
    /// The server's certificates; the first is for clients that name no server or an unknown one.
    pub identities: &'a [Identity],
    /// Authorities of client certificates, PEM; `None`: clients are not asked for a certificate.
    pub client_authorities: Option<(&'a [u8], ClientCertificates)>,
    /// Whether to refuse TLS 1.2.
    pub only_tls13: bool,
    /// Application protocols in order of preference. A client that offers only others is refused.
    pub protocols: &'a [&'a [u8]],
    /// Issues and accepts session tickets; `None`: each connection begins with a full handshake.
    pub tickets: Option<Tickets>,
    /// Whether [`ServerHandshake`](crate::handshake::ServerHandshake) performs the handshake and our record layer takes over. If
    /// not, rustls keeps the connection.
    pub hands_over: bool,
}

/// Creates the configuration of a server's handshakes.
///
/// The server's cipher order applies, AES-128 first: with AES instructions it is the cheapest, and a server encrypts for
/// thousands of clients. Early data is disabled.
///
/// # Errors
/// A [`CertificateError`] that says which setting is wrong.
pub fn server_config(settings: &ServerSettings<'_>) -> Result<Arc<ServerConfig>, CertificateError> {
    let provider = Arc::new(provider());
    let refused = |error: rustls::Error| CertificateError::Refused(error.to_string());
    let versions: &[_] = match settings.only_tls13 {
        true => &[&rustls::version::TLS13],
        false => &[&rustls::version::TLS13, &rustls::version::TLS12],
    };
    if settings.identities.is_empty() {
        return Err(CertificateError::NoCertificate);
    }
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(refused)?;
    let builder = match settings.client_authorities {
        None => builder.with_no_client_auth(),
        Some((authorities, wanted)) => {
            let roots = Arc::new(root_store(authorities)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            let verifier = match wanted {
                ClientCertificates::Optional => verifier.allow_unauthenticated(),
                ClientCertificates::Required => verifier,
            };
            let verifier = verifier.build().map_err(|error| CertificateError::Refused(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(ByName(settings.identities.to_vec())));
    config.alpn_protocols = settings.protocols.iter().map(|name| name.to_vec()).collect();
    // Sessions are resumed by ticket only. A cache would hold secrets without an age limit, behind a lock that all shards share.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ignore_client_order = true;
    config.send_tls13_tickets = usize::from(settings.tickets.is_some());
    if let Some(tickets) = &settings.tickets {
        config.ticketer = Arc::new(tickets.clone());
    }
    if settings.hands_over {
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(SecretsLog);
    }
    Ok(Arc::new(config))
}

/// Which servers a client trusts.
#[derive(Clone, Debug)]
pub enum ServerTrust {
    /// Servers whose certificate for the requested name is signed by one of these authorities.
    Authorities(RootCertStore),
    /// Any server. The connection is encrypted, but an attacker in the middle can read and change everything.
    Anyone,
}

/// Settings of a client's handshakes.
#[derive(Clone, Debug)]
pub struct ClientSettings<'a> {
    /// Which servers the client trusts.
    pub trust: ServerTrust,
    /// The certificate to present if the server asks for one.
    pub identity: Option<&'a Identity>,
    /// Application protocols in order of preference.
    pub protocols: &'a [&'a [u8]],
    /// Whether [`ClientHandshake`](crate::handshake::ClientHandshake) performs the handshake and our record layer takes over. If
    /// not, rustls keeps the connection.
    pub hands_over: bool,
}

/// Creates the configuration of a client's handshakes. Connections that share it resume each other's sessions.
///
/// # Errors
/// A [`CertificateError`] that says which setting is wrong.
pub fn client_config(settings: ClientSettings<'_>) -> Result<Arc<ClientConfig>, CertificateError> {
    let provider = Arc::new(provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| CertificateError::Refused(error.to_string()))?;
    let builder = match settings.trust {
        ServerTrust::Authorities(roots) => builder.with_root_certificates(roots),
        ServerTrust::Anyone => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        }
    };
    let mut config = match settings.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
            identity.certified.clone(),
        ))),
    };
    config.alpn_protocols = settings.protocols.iter().map(|name| name.to_vec()).collect();
    if settings.hands_over {
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(SecretsLog);
    }
    Ok(Arc::new(config))
}

/// Accepts every certificate. The server must still prove that it has the private key.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The cryptography of every handshake: ring, with AES-128 before AES-256.
pub fn provider() -> CryptoProvider {
    let mut provider = provider::default_provider();
    // The order of preference within a version. The sort is stable, so TLS 1.3 stays first.
    provider.cipher_suites.sort_by_key(|suite| {
        let is_tls12 = suite.tls13().is_none();
        let name = format!("{:?}", suite.suite());
        (is_tls12, !name.contains("AES_128"))
    });
    provider
}

/// Reads the certificates in a PEM text.
///
/// # Errors
/// A [`CertificateError`] with the reason; a text without certificates is an error too.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let malformed = |error: rustls::pki_types::pem::Error| CertificateError::Malformed(error.to_string());
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).take(CERTIFICATES_MAX + 1).collect();
    let found = found.map_err(malformed)?;
    match found.len() {
        0 => Err(CertificateError::NoCertificate),
        len if len > CERTIFICATES_MAX => Err(CertificateError::TooMany),
        _ => Ok(found),
    }
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, CertificateError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => CertificateError::NoKey,
        error => CertificateError::Malformed(error.to_string()),
    })
}

/// Reads the authorities in a PEM text.
///
/// # Errors
/// A [`CertificateError`] that says what is wrong with one of them.
pub fn root_store(pem: &[u8]) -> Result<RootCertStore, CertificateError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(|error| CertificateError::Refused(error.to_string()))?;
    }
    Ok(roots)
}

fn dns_names(certificate: &CertificateDer<'_>) -> Result<Vec<String>, CertificateError> {
    let certificate = webpki::EndEntityCert::try_from(certificate)
        .map_err(|error| CertificateError::Malformed(error.to_string()))?;
    Ok(certificate.valid_dns_names().map(str::to_ascii_lowercase).collect())
}

/// Start and end of a certificate's validity, in seconds since 1970.
///
/// # Errors
/// It is malformed.
pub(crate) fn validity_s(certificate: &CertificateDer<'_>) -> Result<(u64, u64), CertificateError> {
    let certificate =
        Certificate::from_der(certificate).map_err(|error| CertificateError::Malformed(error.to_string()))?;
    let validity = certificate.tbs_certificate.validity;
    Ok((validity.not_before.to_unix_duration().as_secs(), validity.not_after.to_unix_duration().as_secs()))
}

/// Chooses a certificate by the name that the client asks for, or the first if none matches. (The rustls resolver refuses clients
/// that name an unknown server, and those that name none because they connect by address.)
#[derive(Debug)]
struct ByName(Vec<Identity>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name();
        secrets::note_server_name(name);
        let name = name.map(str::to_ascii_lowercase);
        let exact = |identity: &Identity| name.as_ref().is_some_and(|name| identity.names.contains(name));
        let matching = |identity: &Identity| name.as_ref().is_some_and(|name| identity.is_for(name));
        let schemes = hello.signature_schemes();
        // A name may have two certificates, such as ECDSA and RSA.
        let usable = |identity: &Identity| identity.certified.key.choose_scheme(schemes).is_some();
        let find = |wanted: &dyn Fn(&Identity) -> bool| {
            let usable = self.0.iter().find(|identity| wanted(identity) && usable(identity));
            usable.or_else(|| self.0.iter().find(|identity| wanted(identity)))
        };
        let found = find(&exact).or_else(|| find(&matching)).or_else(|| find(&|_| true));
        found.map(|identity| identity.certified.clone())
    }
}

#[cfg(test)]
mod tests;
