//! Decides who may send which request: operators by token or certificate, or anyone if the configuration allows it.

use std::{
    fmt::{self, Write},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use http::{HeaderMap, HeaderValue, Method, header::AUTHORIZATION};
use ring::digest;
use rustls::pki_types::CertificateDer;

use super::route::RequestError;
use crate::{
    auth::operators::{Operators, Role},
    logging::peer,
};
use tickcast_tls::handshake::name_in;

/// Paths that only show whether the server is healthy. Load balancers and service managers have no credentials.
const OPEN_PATHS: [&str; 2] = ["/healthz", "/readyz"];
/// Reasons of [`AdminAccess::refused`].
const REFUSAL_COUNT: usize = 4;

/// Who may use the listener.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// Everyone who can reach it: only this machine can.
    Local,
    /// Everyone who can reach it: `--allow-anonymous`.
    Anonymous,
    /// Everyone with a certificate of the listener's `client_ca`.
    AnyCertificate,
    /// These operators.
    Operators(Arc<Operators>),
}

impl Rule {
    /// The rule for a listener. `has_authorities`: whether it requests client certificates. `None`: other machines can reach it,
    /// and nothing defines who may use it.
    pub fn new(
        operators: Option<Arc<Operators>>,
        is_local: bool,
        has_authorities: bool,
        allow_anonymous: bool,
    ) -> Option<Rule> {
        match operators {
            Some(operators) => Some(Rule::Operators(operators)),
            None if is_local => Some(Rule::Local),
            None if has_authorities => Some(Rule::AnyCertificate),
            None => allow_anonymous.then_some(Rule::Anonymous),
        }
    }
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The request has no credentials.
    Missing,
    /// The credentials are not an operator's.
    Invalid,
    /// The operator may only read.
    Role,
    /// The TLS handshake failed, so there was no request.
    Handshake,
}

/// Values of the label `reason`, in the order of [`Refusal`].
const REASONS: [&str; REFUSAL_COUNT] = ["missing", "invalid", "role", "handshake"];

/// The rule in force and the counters. Shared with the main thread, which changes the rule.
#[derive(Clone, Debug)]
pub struct AdminAccess(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    rule: Mutex<Rule>,
    /// By [`Refusal`].
    refused: [AtomicU64; REFUSAL_COUNT],
}

impl AdminAccess {
    /// Starts with this rule.
    pub fn new(rule: Rule) -> AdminAccess {
        AdminAccess(Arc::new(Shared { rule: Mutex::new(rule), refused: Default::default() }))
    }

    /// Replaces the operators, for requests from now on.
    ///
    /// # Errors
    /// There are no operators any more. The old ones stay, because a reload never opens the listener.
    pub fn reload(&self, operators: Option<Arc<Operators>>) -> Result<(), &'static str> {
        let mut rule = self.0.rule.lock().unwrap_or_else(PoisonError::into_inner);
        match (operators, &*rule) {
            (Some(operators), _) => *rule = Rule::Operators(operators),
            (None, Rule::Operators(_)) => {
                return Err("[[auth.operator]] is kept: removing it takes effect at the next start");
            }
            (None, _) => {}
        }
        Ok(())
    }

    /// Requests and handshakes refused, by reason.
    pub fn refused(&self) -> [(&'static str, u64); REFUSAL_COUNT] {
        let mut counts = REASONS.map(|reason| (reason, 0));
        for ((_, count), counter) in counts.iter_mut().zip(&self.0.refused) {
            *count = counter.load(Relaxed);
        }
        counts
    }

    pub(super) fn count(&self, refusal: Refusal) {
        self.0.refused[refusal as usize].fetch_add(1, Relaxed);
    }

    /// Decides whether a request may be answered. If there is a token, the certificate does not count.
    ///
    /// # Errors
    /// 401 without an operator's credentials, 403 if the operator's role does not allow it. Counted and logged.
    pub(super) fn check(
        &self,
        peer: &Peer,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Who, RequestError> {
        if OPEN_PATHS.contains(&path) {
            return Ok(Who::Anyone);
        }
        let rule = self.0.rule.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let found = match rule {
            Rule::Local => Ok((Who::Local(peer.certificate.clone()), Role::Operate)),
            Rule::Anonymous => Ok((Who::Anyone, Role::Operate)),
            Rule::AnyCertificate => match &peer.certificate {
                Some(certificate) => Ok((Who::Certificate(certificate.clone()), Role::Operate)),
                None => Err(Refusal::Missing),
            },
            Rule::Operators(operators) => {
                let found = match (token(headers), &peer.certificate) {
                    (Token::Given(token), _) => operators.with_token(token).ok_or(Refusal::Invalid),
                    (Token::Malformed, _) => Err(Refusal::Invalid),
                    (Token::Missing, Some(Certificate { name, .. })) => {
                        let named = name.as_deref().and_then(|name| operators.with_certificate(name));
                        named.ok_or(Refusal::Invalid)
                    }
                    (Token::Missing, None) => Err(Refusal::Missing),
                };
                found.map(|operator| (Who::Operator(operator.name.clone()), operator.role))
            }
        };
        match found {
            Ok((who, Role::Read)) if !is_read(method) => Err(self.refuse(Refusal::Role, peer, Some(&who))),
            Ok((who, _)) => Ok(who),
            Err(refusal) => Err(self.refuse(refusal, peer, None)),
        }
    }

    fn refuse(&self, refusal: Refusal, peer: &Peer, who: Option<&Who>) -> RequestError {
        self.count(refusal);
        let (status, challenge, message) = match refusal {
            Refusal::Role => (
                403,
                "Bearer realm=\"tickcast admin\", error=\"insufficient_scope\"",
                "this operator may only read: its role is \"read\"",
            ),
            Refusal::Invalid => (
                401,
                "Bearer realm=\"tickcast admin\", error=\"invalid_token\"",
                "neither the token nor the certificate belongs to an operator",
            ),
            Refusal::Missing | Refusal::Handshake => (
                401,
                "Bearer realm=\"tickcast admin\"",
                "credentials are missing: a token (Authorization: Bearer TOKEN) or a client certificate of an operator",
            ),
        };
        match who {
            Some(who) => {
                ::log::warn!(target: peer::ADMIN, "admin request refused: {who} at {peer}: {message}")
            }
            None => ::log::warn!(target: peer::ADMIN, "admin request refused: {peer}: {message}"),
        }
        RequestError { challenge: Some(challenge), ..RequestError::new(status, message) }
    }
}

fn is_read(method: &Method) -> bool {
    [Method::GET, Method::HEAD].contains(method)
}

/// The token of a request.
enum Token<'a> {
    Missing,
    /// Not a token: another scheme, or several headers.
    Malformed,
    Given(&'a [u8]),
}

fn token(headers: &HeaderMap) -> Token<'_> {
    let mut values = headers.get_all(AUTHORIZATION).iter().map(HeaderValue::as_bytes);
    let Some(value) = values.next() else { return Token::Missing };
    let scheme = b"Bearer ";
    match value.split_at_checked(scheme.len()) {
        Some((begin, token)) if begin.eq_ignore_ascii_case(scheme) && values.next().is_none() => {
            Token::Given(token.trim_ascii())
        }
        _ => Token::Malformed,
    }
}

/// A verified certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Certificate {
    /// Its first DNS name, else its first URI.
    name: Option<Box<str>>,
    /// Its SHA-256, for certificates without a name.
    sha256: Box<str>,
}

impl Certificate {
    /// How the log names the first certificate of a verified chain.
    pub(super) fn of(chain: Option<&[CertificateDer<'_>]>) -> Option<Certificate> {
        let certificate = chain?.first()?;
        let mut sha256 = String::new();
        for byte in digest::digest(&digest::SHA256, certificate).as_ref() {
            let _ = write!(sha256, "{byte:02x}");
        }
        Some(Certificate { name: name_in(certificate), sha256: sha256.into() })
    }
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "certificate {name:?}"),
            None => write!(f, "certificate without a name (SHA-256 {})", self.sha256),
        }
    }
}

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    /// Its address.
    pub(super) address: PeerAddress,
    /// The certificate that it presented.
    pub(super) certificate: Option<Certificate>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerAddress {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket: user and process, as far as the kernel knows them (SO_PEERCRED).
    Unix(Option<(u32, i32)>),
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerAddress::Tcp(address) => address.fmt(f),
            PeerAddress::Unix(Some((uid, pid))) => write!(f, "unix (uid {uid}, pid {pid})"),
            PeerAddress::Unix(None) => write!(f, "unix"),
        }
    }
}

/// Who sends a request, for the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// An operator, by its name.
    Operator(String),
    /// Someone with a certificate of the listener's authorities.
    Certificate(Certificate),
    /// Someone on this machine, perhaps with a certificate.
    Local(Option<Certificate>),
    /// Someone who needs no credentials.
    Anyone,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Operator(name) => write!(f, "operator {name:?}"),
            Who::Certificate(certificate) | Who::Local(Some(certificate)) => certificate.fmt(f),
            Who::Local(None) => write!(f, "local"),
            Who::Anyone => write!(f, "anonymous"),
        }
    }
}

#[cfg(test)]
mod tests;
