//! Connects to NATS: addresses, credentials, TLS, and what the client tells while it runs.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::Chars,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_nats::{Client, ConnectOptions, Event, HeaderMap, ServerAddr};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::{
    engine::{EngineError, secret},
    kind::OptionChecks,
    limits::SOURCE_SERVERS_MAX,
    mapping::Headers,
    tls::Tls,
};
use tickcast_proto::pattern;

/// Messages of one subscription that wait in the client. What comes beyond them is lost, or a fetch from JetStream hangs: more than
/// a batch, and 10 ms at 800,000 messages/s.
pub const SUBSCRIPTION_CAPACITY: usize = 8_192;
/// Time for a connection and its handshake.
const CONNECT: Duration = Duration::from_secs(3);
/// Time for an answer. A server that is stopped gives none.
const REQUEST: Duration = Duration::from_secs(2);
/// Silence after which the client asks whether the server is there. The connection ends when the next ping is due.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// The table `auth`: at most one way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// A `.creds` file with a JWT and an nkey seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    credentials_file: Option<PathBuf>,
    /// The user whose password is in `password_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password_file: Option<PathBuf>,
    /// A file with a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_file: Option<PathBuf>,
    /// A file with an nkey seed.
    #[serde(skip_serializing_if = "Option::is_none")]
    nkey_file: Option<PathBuf>,
}

/// How to reach NATS.
#[derive(Clone, Debug)]
pub struct Connection {
    kind: &'static str,
    servers: Vec<ServerAddr>,
    auth: Auth,
    tls: Tls,
}

/// The addresses, without what they may hold of credentials.
impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, server) in self.servers.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{}:{}", server.host(), server.port())?;
        }
        Ok(())
    }
}

impl Connection {
    /// Checks the options.
    pub fn new(
        kind: &'static str,
        servers: Vec<String>,
        auth: Auth,
        tls: Tls,
        checks: &mut OptionChecks,
    ) -> Option<Connection> {
        checks.within("servers", servers.len(), 1, SOURCE_SERVERS_MAX);
        let mut parsed = Vec::new();
        for server in &servers {
            match server.parse::<ServerAddr>() {
                // It would be printed with the options.
                Ok(address) if address.username().is_some() => {
                    checks.refuse("servers", "an address holds credentials: name a file in `auth` instead");
                }
                Ok(address) => parsed.push(address),
                Err(_) => {
                    checks.refuse("servers", format!("{server:?}: use nats://host:4222 or tls://host:4222"))
                }
            }
        }
        let ways = [&auth.credentials_file, &auth.password_file, &auth.token_file, &auth.nkey_file];
        if ways.iter().filter(|way| way.is_some()).count() > 1 {
            checks.refuse("auth", "more than one way: keep one of its files");
        }
        if auth.user.is_some() != auth.password_file.is_some() {
            checks.refuse("auth", "user and password_file belong together");
        }
        ways.into_iter().flatten().for_each(|file| checks.readable("auth", file));
        tls.check(checks);
        (parsed.len() == servers.len()).then_some(Connection { kind, servers: parsed, auth, tls })
    }

    /// Connects once. Files are read anew, so that changed credentials are taken at the next attempt.
    ///
    /// # Errors
    /// No server can be reached or lets this client in, or a file cannot be read.
    pub async fn connect(&self, events: &Arc<Events>) -> Result<Client, EngineError> {
        let noted = events.clone();
        let mut options = ConnectOptions::new()
            .name("tickcast")
            .connection_timeout(CONNECT)
            .request_timeout(Some(REQUEST))
            .ping_interval(PING_INTERVAL)
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .event_callback(move |event| {
                noted.note(&event);
                std::future::ready(())
            });
        if let Some(file) = &self.auth.credentials_file {
            let text = secret(file)?;
            options = options.credentials(&text).map_err(|error| self.file_error(file, &error))?;
        }
        if let (Some(user), Some(file)) = (&self.auth.user, &self.auth.password_file) {
            options = options.user_and_password(user.clone(), secret(file)?);
        }
        if let Some(file) = &self.auth.token_file {
            options = options.token(secret(file)?);
        }
        if let Some(file) = &self.auth.nkey_file {
            options = options.nkey(secret(file)?);
        }
        if let Some(ca) = &self.tls.ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let (Some(cert), Some(key)) = (&self.tls.cert, &self.tls.key) {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        options.connect(&*self.servers).await.map_err(|error| {
            // The cause says more than the kind: which file, which certificate.
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            EngineError(format!("{self}: {}{}", error.kind(), cause.unwrap_or_default()))
        })
    }

    fn file_error(&self, file: &Path, error: &dyn fmt::Display) -> EngineError {
        EngineError(format!("{}: {}: {error}", self.kind, file.display()))
    }
}

/// Refuses subjects that NATS would not accept.
pub fn check_subjects(subjects: &[String], checks: &mut OptionChecks) {
    for subject in subjects {
        if let Err(error) = pattern::check_pattern(subject.as_bytes()) {
            checks.refuse("subjects", format!("{subject:?}: {error}"));
        }
    }
}

/// What the client tells beside messages.
#[derive(Debug, Default)]
pub struct Events {
    noted: AtomicU64,
    connections: AtomicU64,
    slow: AtomicU64,
    last: Mutex<Option<String>>,
    /// Subjects that this client may not publish on. Bound: [`DENIED_MAX`].
    denied: Mutex<Vec<String>>,
    /// Rings when there is another.
    denial: Notify,
    is_subscription_denied: AtomicBool,
}

/// Events that wait in the client. It drops those that find the queue full. The value is the client's own, which it does not export.
pub const EVENTS_MAX: u64 = 128;
/// Refused subjects that are remembered until they are taken; more than the client hands on between two calls.
const DENIED_MAX: usize = 4_096;
const _: () = assert!(DENIED_MAX as u64 > EVENTS_MAX);
/// Turns of the runtime in which the events that wait are handed on.
const EVENT_TURNS_MAX: u32 = 8;

impl Events {
    fn note(&self, event: &Event) {
        self.noted.fetch_add(1, Relaxed);
        match event {
            Event::Connected => _ = self.connections.fetch_add(1, Relaxed),
            Event::SlowConsumer(_) => _ = self.slow.fetch_add(1, Relaxed),
            Event::ServerError(_) | Event::ClientError(_) => {
                self.note_denied(&event.to_string());
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(event.to_string());
            }
            _ => {}
        }
    }

    fn note_denied(&self, text: &str) {
        // Only subjects have the case that matters.
        let lower = text.to_ascii_lowercase();
        let after = |what: &str| lower.find(what).map(|at| &text[at + what.len()..]);
        if after("permissions violation for subscription").is_some() {
            self.is_subscription_denied.store(true, Relaxed);
        }
        if let Some(rest) = after("permissions violation for publish to \"") {
            let mut denied = self.denied.lock().unwrap_or_else(PoisonError::into_inner);
            if denied.len() < DENIED_MAX {
                // What cannot be read is no tick's subject, and is told as such.
                denied.push(unquoted(rest).unwrap_or_else(|| rest.to_owned()));
            }
            self.denial.notify_one();
        }
    }

    /// Waits until the client has handed on the events that it had at the call. On a runtime of one thread, as sources and sinks have it,
    /// every task runs once in each turn.
    pub async fn quiet(&self) {
        for _ in 0..EVENT_TURNS_MAX {
            let noted = self.noted.load(Relaxed);
            tokio::task::yield_now().await;
            if self.noted.load(Relaxed) == noted {
                return;
            }
        }
    }

    /// Events of any kind since the last call. At [`EVENTS_MAX`] and more, some may be missing.
    pub fn take_noted(&self) -> u64 {
        self.noted.swap(0, Relaxed)
    }

    /// Whether the server has refused to publish on this subject since [`Events::take_denied`].
    pub fn is_denied(&self, subject: &str) -> bool {
        let denied = self.denied.lock().unwrap_or_else(PoisonError::into_inner);
        denied.iter().any(|denied| denied == subject)
    }

    /// Waits until [`Events::is_denied`]. Only one task may wait.
    pub async fn denied(&self, subject: &str) {
        while !self.is_denied(subject) {
            self.denial.notified().await;
        }
    }

    /// Subjects on which the server has refused to publish since the last call, one for each refused message.
    pub fn take_denied(&self) -> Vec<String> {
        std::mem::take(&mut *self.denied.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the server has refused a subscription.
    pub fn is_subscription_denied(&self) -> bool {
        self.is_subscription_denied.load(Relaxed)
    }

    /// Connections of the client so far: it makes another when one ends.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Messages that the client has dropped since the last call, because they came faster than they were taken.
    pub fn take_slow(&self) -> u64 {
        self.slow.swap(0, Relaxed)
    }

    /// The last error since the last call.
    pub fn take_last(&self) -> Option<String> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Reads a text that the server has quoted, as Go's `%q` does, from after its opening quote. `None` if it has no end, or bytes that are
/// not UTF-8.
fn unquoted(quoted: &str) -> Option<String> {
    let (mut text, mut rest) = (String::new(), quoted.chars());
    loop {
        text.push(match rest.next()? {
            '"' => return Some(text),
            '\\' => match rest.next()? {
                'a' => '\x07',
                'b' => '\x08',
                'f' => '\x0c',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'v' => '\x0b',
                // Beyond ASCII, it is a byte of something that is not UTF-8.
                'x' => code_point(&mut rest, 2).filter(char::is_ascii)?,
                'u' => code_point(&mut rest, 4)?,
                'U' => code_point(&mut rest, 8)?,
                other => other,
            },
            other => other,
        });
    }
}

/// Takes a code point of so many hexadecimal digits.
fn code_point(rest: &mut Chars<'_>, digits: usize) -> Option<char> {
    let (number, after) = rest.as_str().split_at_checked(digits)?;
    *rest = after.chars();
    u32::from_str_radix(number, 16).ok().and_then(char::from_u32)
}

/// Headers of a message.
pub struct Fields<'a>(pub Option<&'a HeaderMap>);

impl Headers for Fields<'_> {
    fn value(&self, name: &str) -> Option<&str> {
        self.0?.get(name).map(|value| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_subjects_are_read_with_their_escapes() {
        for (quoted, subject) in [
            (r#"other.A""#, Some("other.A")),
            (r#"a\"b\\c" and more"#, Some("a\"b\\c")),
            (r#"\x7f\u200b\U000e0001é""#, Some("\x7f\u{200b}\u{e0001}é")),
            (r#"a\xff""#, None),
            (r#"a\u12""#, None),
            (r"a\", None),
            ("no end", None),
        ] {
            assert_eq!(unquoted(quoted).as_deref(), subject, "{quoted}");
        }
        let events = Events::default();
        events.note_denied("nats: Permissions Violation for Publish to \"a.\\\"B\"");
        assert!(events.is_denied("a.\"B"));
        assert_eq!(events.take_denied(), ["a.\"B"]);
        assert!(!events.is_subscription_denied());
    }
}
