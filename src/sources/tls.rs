//! The table `tls` of a source that connects to another server.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::kind::OptionChecks;

/// Which servers a source trusts, and the certificate that it presents. Files are PEM. The address decides whether a connection
/// uses TLS.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Authorities of the server's certificate; default: those that the system trusts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The certificate to present, with its chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// Its private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

impl Tls {
    /// Refuses, under the key `tls`, a certificate without its key and files that cannot be read.
    pub fn check(&self, checks: &mut OptionChecks) {
        if self.cert.is_some() != self.key.is_some() {
            checks.refuse("tls", "cert and key belong together");
        }
        [&self.ca, &self.cert, &self.key].into_iter().flatten().for_each(|file| checks.readable("tls", file));
    }

    /// Refuses the table beside an address that does not require TLS: its connection may be in plain text.
    pub fn check_address(&self, requires_tls: bool, scheme: &str, checks: &mut OptionChecks) {
        if !requires_tls && *self != Tls::default() {
            checks.refuse("tls", format!("an address does not require TLS: write {scheme}"));
        }
    }
}

/// Adds to an error of a client what to do if it is about the server's certificate. The texts are those of rustls.
pub fn with_advice(error: String) -> String {
    let advice = if error.contains("UnknownIssuer") {
        "set tls.ca to the authority that signed the server's certificate"
    } else if error.contains("not valid for name") {
        "connect to a name that the server's certificate has"
    } else {
        return error;
    };
    format!("{error}; {advice}")
}
