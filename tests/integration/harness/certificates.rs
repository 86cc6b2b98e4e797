//! Certificates for tests with TLS: an authority, and what it signs, in files of a temporary directory.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

use tickcast_tls::testing::Authority;

/// An authority with the certificates of one test, removed on drop:
///
/// | file | what it has |
/// |---|---|
/// | `ca.pem` | the authority's certificate |
/// | `server.pem`, `server.key` | a certificate for `localhost`, `127.0.0.1` and `a.test` |
/// | `client.pem`, `client.key` | a certificate for `client.test`, for mutual TLS |
///
/// All are ECDSA with P-256, and valid until the year 4096.
pub struct Certificates {
    directory: PathBuf,
    authority: Authority,
}

/// The files of one certificate.
pub struct Signed {
    /// The certificate, PEM.
    pub cert: String,
    /// Its private key, PEM.
    pub key: String,
}

impl Certificates {
    /// Makes an authority and its files. `name` tells tests of one process apart.
    pub fn new(name: &str) -> Certificates {
        let directory = std::env::temp_dir().join(format!("tickcast-{}-{name}.tls", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let authority = Authority::new(&format!("tickcast test authority {name}"));
        fs::write(directory.join("ca.pem"), &authority.own.cert).unwrap();
        let certificates = Certificates { directory, authority };
        certificates.sign("server", &["localhost", "127.0.0.1", "a.test"]);
        certificates.sign("client", &["client.test"]);
        certificates
    }

    /// Signs a certificate for these names (hosts, IP addresses, URIs), and writes `{file}.pem` and `{file}.key`, over older ones if
    /// there are any.
    pub fn sign(&self, file: &str, names: &[&str]) -> Signed {
        self.write(file, self.authority.sign(names))
    }

    /// Signs a certificate as [`Certificates::sign`] does, whose last valid second since 1970 is `ends_s`.
    pub fn sign_until(&self, file: &str, names: &[&str], ends_s: u64) -> Signed {
        self.write(file, self.authority.sign_until(names, ends_s))
    }

    fn write(&self, file: &str, made: tickcast_tls::testing::Signed) -> Signed {
        let signed =
            Signed { cert: self.file(&format!("{file}.pem")), key: self.file(&format!("{file}.key")) };
        fs::write(&signed.cert, made.cert).unwrap();
        let _ = fs::remove_file(&signed.key);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&signed.key).unwrap();
        file.write_all(made.key.as_bytes()).unwrap();
        signed
    }

    /// The path of a file in the directory.
    pub fn file(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().into()
    }

    /// The path of the authority's certificate.
    pub fn ca(&self) -> String {
        self.file("ca.pem")
    }

    /// The `tls` of a `[[listener]]` that shows the server's certificate; `more`: further settings, each with a comma in front.
    pub fn listener(&self, more: &str) -> String {
        format!("tls = {{ cert = {:?}, key = {:?}{more} }}", self.file("server.pem"), self.file("server.key"))
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
