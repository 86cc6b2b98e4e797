//! TLS of the blocking clients: which servers they believe, what they show them, and what can go wrong.

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

/// How a client verifies servers that speak TLS, and what it shows them. The default: the server's certificate must be of an
/// authority that the system trusts, and the client shows none.
///
/// All files are PEM. They are read when a client connects, and by a
/// [`ReconnectingClient`](crate::ReconnectingClient) again after a failed handshake, so that renewed ones are found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// File of the authorities that servers' certificates are verified by; `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// File of the client's certificate and those of its authorities, shown to servers that ask for one.
    pub cert: Option<PathBuf>,
    /// File of its private key; `None`: that is in the file of `cert` too.
    pub key: Option<PathBuf>,
    /// Whether every server is believed. The connection is then encrypted, but whoever is in between can read and change
    /// everything: for tests.
    pub insecure: bool,
}

impl TlsOptions {
    /// Reads the files. `protocols`: names of application protocols, in the order of preference.
    ///
    /// # Errors
    /// [`ClientError::TlsSettings`]: which file cannot be used, and why.
    pub fn read(&self, protocols: &[&[u8]], hands_over: bool) -> Result<Arc<ClientConfig>, ClientError> {
        let unusable = |path: &Path, why: &dyn fmt::Display| {
            ClientError::TlsSettings(format!("{}: {why}", path.display()))
        };
        let trust = match self.authorities()? {
            None => ServerTrust::Anyone,
            Some(authorities) => {
                let mut roots = RootCertStore::empty();
                // Systems have some that no verifier can use.
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

    /// The certificates of the authorities that servers are verified by; `None`: every server is believed.
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

/// Name of the application protocol of an encoding (ALPN).
pub(super) fn protocol(encoding: WireFormat) -> &'static [u8] {
    match encoding {
        WireFormat::TCP_NATIVE => ALPN_NATIVE,
        _ => ALPN_HTTP,
    }
}

/// The name that the certificate of a server at `HOST:PORT` must be for: a host name or an IP address.
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
    /// The server's certificate is for these names, and none of them is the one in the address.
    WrongName(Vec<String>),
    /// The server's certificate has expired, or is not valid yet.
    NotValidNow,
    /// The server shows the certificate of an authority, as one that is signed by itself often is.
    AuthorityShown,
    /// The server does not speak TLS there.
    PlainServer,
    /// The server speaks no native protocol there, or nothing else.
    OtherProtocol,
    /// The server wants a certificate of the client.
    CertificateRequired,
    /// The server refuses the client's certificate: the name of its alert.
    CertificateRefused(String),
    /// The server has ended the handshake without a reason.
    Ended,
    /// Something else: what.
    Other(String),
}

impl TlsError {
    /// The failure of TLS in an error of a stream, if it is one.
    pub fn in_io(error: &std::io::Error) -> Option<TlsError> {
        error.get_ref()?.downcast_ref::<rustls::Error>().map(TlsError::from)
    }
}

impl From<&rustls::Error> for TlsError {
    fn from(error: &rustls::Error) -> TlsError {
        use rustls::Error;
        match error {
            Error::InvalidCertificate(error) => match error {
                // The second: an authority that was made anew under its old name.
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
