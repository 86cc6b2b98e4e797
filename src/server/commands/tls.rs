//! The options with which the commands verify servers that speak TLS.

use std::path::PathBuf;

use tickcast_client::TlsOptions;

/// How a server that speaks TLS is verified, and what it is shown.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TlsArgs {
    /// TLS: PEM file of the authorities that sign the server's certificate [default: those of this system]
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    pub ca: Option<PathBuf>,
    /// TLS: PEM file of the certificate to show to a server that asks for one
    #[arg(long, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// TLS: PEM file of its private key, without a passphrase [default: in the file of --cert]
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub cert_key: Option<PathBuf>,
    /// TLS: believe any server, for tests: whoever is in between can read and change everything
    #[arg(long)]
    pub insecure: bool,
}

impl TlsArgs {
    /// The options of the client library. Warns on standard error if every server is believed.
    pub fn options(&self) -> TlsOptions {
        if self.insecure {
            ::log::warn!(
                "--insecure: the server is not verified; whoever is in between can read and change everything"
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
