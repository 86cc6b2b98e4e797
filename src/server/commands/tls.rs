//! Options for TLS connections to servers.

use std::path::PathBuf;

use tickcast_client::TlsOptions;

/// How to verify a TLS server, and which certificate to present.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TlsArgs {
    /// TLS: PEM file of the authorities that may sign the server's certificate [default: the system's]
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    pub ca: Option<PathBuf>,
    /// TLS: PEM file of the client certificate, for servers that ask for one
    #[arg(long, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// TLS: PEM file of the certificate's private key, without a passphrase [default: the file of --cert]
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub cert_key: Option<PathBuf>,
    /// TLS: do not verify the server; only for tests, anyone on the path can read and change everything
    #[arg(long)]
    pub insecure: bool,
}

impl TlsArgs {
    /// The options of the client library. Warns on standard error if the server is not verified.
    pub fn options(&self) -> TlsOptions {
        if self.insecure {
            ::log::warn!(
                "--insecure: the server is not verified; anyone on the path can read and change everything"
            );
        }
        TlsOptions {
            ca: self.ca.clone(),
            cert: self.cert.clone(),
            key: self.cert_key.clone(),
            insecure: self.insecure,
        }
    }
}
