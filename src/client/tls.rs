//! TLS of the blocking clients: server verification, client certificates, and errors.

use std::{fmt, fs::File, io::Read, path::Path, path::PathBuf, sync::Arc};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};

use crate::ClientError;
use tickcast_proto::WireFormat;
use tickcast_tls::certificates::{self, ALPN_HTTP, ALPN_NATIVE, ClientSettings, Identity, ServerTrust};

/// Longest file of certificates, or of a key.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// How a client verifies TLS servers, and which certificate it presents. By default, an authority that the system trusts must
/// have signed the server's certificate, and the client presents none.
/// All files are PEM. A client reads them when it connects; a [`ReconnectingClient`](crate::ReconnectingClient) reads them
/// again after a failed handshake, to find renewed certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// File with the authorities that may sign the server's certificate; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// File with the client's certificate and those of its authorities, for servers that ask for one.
    pub cert: Option<PathBuf>,
    /// File with its private key; `None`: the file of `cert`.
    pub key: Option<PathBuf>,
    /// Skips the verification of the server; only for tests. The connection is encrypted, but anyone on the path can read and
    /// change everything.
    pub insecure: bool,
}

impl TlsOptions {
    /// Reads the files. `protocols`: names of application protocols, in the order of preference.
    ///
    /// # Errors
    /// [`ClientError::TlsSettings`] with the file that cannot be used, and the reason.
    pub fn read(&self, protocols: &[&[u8]], hands_over: bool) -> Result<Arc<ClientConfig>, ClientError> {
        let unusable = |path: &Path, why: &dyn fmt::Display| {
            ClientError::TlsSettings(format!("{}: {why}", path.display()))
        };
        let trust = match self.authorities()? {
            None => ServerTrust::Anyone,
            Some(authorities) => {
                let mut roots = RootCertStore::empty();
                // Some systems have certificates that no verifier accepts.
                let (_, unusable_ones) = roots.add_parsable_certificates(authorities);
                if let Some(path) = self.ca.as_deref().filter(|_| unusable_ones > 0) {
                    return Err(unusable(path, &"one of its certificates cannot be that of an authority"));
                }
                ServerTrust::Authorities(roots)
            }
        };
        let identity = match (&self.cert, &self.key) {
            (None, None) => None,
            (None, Some(_)) => {
                return Err(ClientError::TlsSettings("a key needs its certificate: set cert".into()));
            }
            (Some(cert), key) => {
                let key = key.as_ref().unwrap_or(cert);
                let identity = Identity::from_pem(&read(cert)?, &read(key)?);
                Some(identity.map_err(|error| {
                    unusable(cert, &format_args!("with the key in {}: {error}", key.display()))
                })?)
            }
        };
        let settings = ClientSettings { trust, identity: identity.as_ref(), protocols, hands_over };
        certificates::client_config(settings).map_err(|error| ClientError::TlsSettings(error.to_string()))
    }

    /// The certificates of the authorities that verify servers; `None`: servers are not verified.
    ///
    /// # Errors
    /// [`ClientError::TlsSettings`]: the file cannot be used, or this system has no authorities.
    pub fn authorities(&self) -> Result<Option<Vec<CertificateDer<'static>>>, ClientError> {
        let found = match &self.ca {
            _ if self.insecure => return Ok(None),
            Some(path) => certificates::certificates(&read(path)?)
                .map_err(|error| ClientError::TlsSettings(format!("{}: {error}", path.display())))?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        match found.is_empty() {
            true => Err(ClientError::TlsSettings(
                "this system has no certificate authorities: set ca to the PEM file of the server's authority".into(),
            )),
            false => Ok(Some(found)),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ClientError> {
    let failed = |error| ClientError::TlsSettings(format!("cannot read {}: {error}", path.display()));
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(failed)?;
    match bytes.len() as u64 > FILE_BYTES_MAX {
        true => {
            Err(ClientError::TlsSettings(format!("{}: longer than {FILE_BYTES_MAX} bytes", path.display())))
        }
        false => Ok(bytes),
    }
}

/// An encoding's application protocol name (ALPN).
pub(super) fn protocol(encoding: WireFormat) -> &'static [u8] {
    match encoding {
        WireFormat::TCP_NATIVE => ALPN_NATIVE,
        _ => ALPN_HTTP,
    }
}

/// The name that the certificate of a server at `HOST:PORT` must contain: a host name or an IP address.
///
/// # Errors
/// [`ClientError::Address`] if it is neither.
pub fn server_name(host: &str) -> Result<ServerName<'static>, ClientError> {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    ServerName::try_from(name.to_owned()).map_err(|_| {
        ClientError::Address(format!("{name:?} is no name that a certificate can be for; use another one"))
    })
}

/// Why TLS failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsError {
    /// No authority that the client trusts has signed the server's certificate.
    UnknownAuthority,
    /// The server's certificate does not contain the name in the address. Contains the certificate's names.
    WrongName(Vec<String>),
    /// The server's certificate has expired, or is not valid yet.
    NotValidNow,
    /// The server presents the certificate of an authority, as self-signed certificates often are.
    AuthorityShown,
    /// The server does not use TLS at this address.
    PlainServer,
    /// The server does not accept the client's application protocol (native or HTTP) at this address.
    OtherProtocol,
    /// The server requires a client certificate.
    CertificateRequired,
    /// The server refuses the client's certificate. Contains the name of its alert.
    CertificateRefused(String),
    /// The server has ended the handshake without a reason.
    Ended,
    /// Another error, with its description.
    Other(String),
}

impl TlsError {
    /// The TLS failure in a stream's error, if there is one.
    pub fn in_io(error: &std::io::Error) -> Option<TlsError> {
        error.get_ref()?.downcast_ref::<rustls::Error>().map(TlsError::from)
    }
}

impl From<&rustls::Error> for TlsError {
    fn from(error: &rustls::Error) -> TlsError {
        use rustls::Error;
        match error {
            Error::InvalidCertificate(error) => match error {
                // The second means that an authority was recreated under its old name.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    TlsError::UnknownAuthority
                }
                CertificateError::NotValidForName => TlsError::WrongName(Vec::new()),
                CertificateError::NotValidForNameContext { presented, .. } => {
                    TlsError::WrongName(presented.clone())
                }
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => TlsError::NotValidNow,
                CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
                    TlsError::AuthorityShown
                }
                error => TlsError::Other(error.to_string()),
            },
            Error::InvalidMessage(_) => TlsError::PlainServer,
            Error::AlertReceived(AlertDescription::NoApplicationProtocol) => TlsError::OtherProtocol,
            Error::AlertReceived(AlertDescription::CertificateRequired) => TlsError::CertificateRequired,
            Error::AlertReceived(
                alert @ (AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied
                | AlertDescription::DecryptError),
            ) => TlsError::CertificateRefused(format!("{alert:?}")),
            error => TlsError::Other(error.to_string()),
        }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsError::UnknownAuthority => write!(
                f,
                "the server's certificate is of an unknown authority: set ca to the PEM file of that authority"
            ),
            TlsError::WrongName(names) => {
                write!(
                    f,
                    "the server's certificate is for another name: use one of its names in the address"
                )?;
                let separator = |at| if at == 0 { ": " } else { ", " };
                names.iter().enumerate().try_for_each(|(at, name)| write!(f, "{}{name}", separator(at)))
            }
            TlsError::NotValidNow => write!(
                f,
                "the server's certificate has expired or is not valid yet: renew it, or correct this machine's clock"
            ),
            TlsError::AuthorityShown => write!(
                f,
                "the server shows the certificate of an authority (CA:TRUE): let that authority sign one for the server"
            ),
            TlsError::PlainServer => {
                write!(f, "this port does not speak TLS: use HOST:PORT, ws:// or http://")
            }
            TlsError::OtherProtocol => write!(
                f,
                "this port speaks another protocol over TLS: use tls:// for a native port, wss:// or https:// for an \
                 HTTP port"
            ),
            TlsError::CertificateRequired => {
                write!(f, "the server asks for a client certificate: set cert and key to its PEM files")
            }
            TlsError::CertificateRefused(alert) => write!(
                f,
                "the server refuses the client's certificate ({alert}): see the server's log, and its client_ca"
            ),
            TlsError::Ended => {
                write!(
                    f,
                    "the server has ended the TLS handshake: see its log, or check that this port speaks TLS"
                )
            }
            TlsError::Other(why) => write!(f, "TLS: {why}"),
        }
    }
}

#[cfg(test)]
mod tests;
