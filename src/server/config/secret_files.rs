//! Files that only the server should be able to read.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::settings::Settings;
use crate::auth::key::Algorithm;

/// Permissions of every user of the machine: to read, write or execute.
const OTHERS: u32 = 0o007;

/// A file with a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it has.
    pub what: &'static str,
    /// Whoever reads it can use the secret at once, as it is.
    pub is_usable: bool,
}

impl SecretFile {
    fn new(path: &Path, what: &'static str) -> SecretFile {
        SecretFile { path: path.to_owned(), what, is_usable: true }
    }

    /// Its permissions; `None` if it cannot be looked at.
    pub fn mode(&self) -> Option<u32> {
        fs::metadata(&self.path).ok().map(|file| file.mode() & 0o7777)
    }

    /// Whether every user of this machine may read or change it.
    pub fn is_open(&self) -> bool {
        self.mode().is_some_and(|mode| mode & OTHERS != 0)
    }

    /// What to do about one that is open.
    pub fn remedy(&self) -> String {
        format!(
            "{} has {} and is open to every user of this machine: chmod o= {0}",
            self.path.display(),
            self.what
        )
    }
}

/// The secret files of a configuration, each once: private keys and ticket keys of TLS, secrets of HS256, what sources log in with, and
/// the configuration file itself if it has hashes of tokens.
pub fn secret_files(settings: &Settings) -> Vec<SecretFile> {
    let mut files = Vec::new();
    for tls in settings.listeners.iter().filter_map(|listener| listener.tls.as_ref()) {
        files.extend(tls.key.files().iter().map(|path| SecretFile::new(path, "a private key")));
        files.extend(tls.ticket_keys.iter().map(|path| SecretFile::new(path, "session ticket keys")));
    }
    let sources = settings.sources.iter().map(|source| &source.options);
    for options in sources.chain(settings.sinks.iter().map(|sink| &sink.options)) {
        files.extend(engine_secrets(options));
    }
    if let Some(auth) = &settings.auth {
        let secrets = auth.keys.iter().filter(|key| key.algorithm == Some(Algorithm::Hs256));
        let secrets = secrets.filter_map(|key| key.file.as_deref());
        files.extend(secrets.map(|path| SecretFile::new(path, "the secret of tokens")));
        let has_hashes =
            !auth.tokens.is_empty() || auth.operators.iter().any(|operator| operator.sha256.is_some());
        files.extend(
            settings
                .path()
                .filter(|_| has_hashes)
                .map(|path| SecretFile { is_usable: false, ..SecretFile::new(path, "hashes of tokens") }),
        );
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    files.dedup_by(|one, other| one.path == other.path);
    files
}

/// Files of the secrets of a source or a sink, by the names that all kinds share: every `..._file` of its table `auth`, `token.file` and `tls.key`.
fn engine_secrets(options: &Table) -> impl Iterator<Item = SecretFile> {
    let within = |table: &str| options.get(table).and_then(Value::as_table).into_iter().flatten();
    let auth =
        within("auth").filter(|(key, _)| key.ends_with("_file")).map(|(_, file)| (file, "a source's secret"));
    let token = within("token").filter(|(key, _)| *key == "file").map(|(_, file)| (file, "a source's token"));
    let tls = within("tls").filter(|(key, _)| *key == "key").map(|(_, file)| (file, "a private key"));
    let files = auth.chain(token).chain(tls);
    files.filter_map(|(file, what)| Some(SecretFile::new(Path::new(file.as_str()?), what)))
}

/// Logs a warning for each secret file that is open. Not for hashes: a reader still has to guess a token of 24 bytes or more.
pub fn warn_of_open(settings: &Settings, prefix: &str) {
    for file in secret_files(settings).iter().filter(|file| file.is_usable && file.is_open()) {
        ::log::warn!("{prefix}{}", file.remedy());
    }
}
