//! Who a session is and what it may do, as plain data. Credentials are verified elsewhere.
//!
//! ```text
//!  hello, upgrade or certificate -> Credentials -> (verifier) -> Principal, or AuthRefusal
//!                                                                   |
//!                                        permissions: patterns that it may subscribe to, topics that it may publish
//! ```

use std::{borrow::Cow, fmt, sync::Arc};

use crate::{
    limits::{CLOSE_REFUSED, PERMISSION_PATTERNS_MAX, TOKEN_BYTES_MAX},
    listed::Listing,
    metrics::counters::Counter,
};
use tickcast_proto::{
    command::Token,
    pattern::{self, NameError},
};

/// Who a session is and what it may do. Sessions of a shard with equal permissions share them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Principal {
    /// Who it is: 1 to 255 bytes that [`identity::check`](tickcast_proto::identity::check) accepts. For an anonymous principal, a
    /// name shown to operators, which identifies nobody.
    pub subject: Box<str>,
    /// The namespace that the subject belongs to, under the same rule; empty if there is none.
    pub tenant: Box<str>,
    /// Id of its token (`jti`), for revocation.
    pub token_id: Option<Box<str>>,
    /// When its token was issued (`iat`), at the latest when it was verified, seconds since 1970; `None`: not known.
    pub issued_at_s: Option<u64>,
    /// When its credentials expire, seconds since 1970; `None`: never.
    pub expires_at_s: Option<u64>,
    /// What it may do.
    pub permissions: Arc<Permissions>,
    /// The table of the configuration file that defines it; `None`: a JSON Web Token does.
    pub listing: Option<Listing>,
}

/// Separates tenant and subject in an identity. Neither contains it, because it is a control character.
const IDENTITY_SEPARATOR: char = '\u{1f}';

impl Principal {
    /// The identity of its sessions: the subject, plus the tenant if there is one, so that the same name in two tenants makes two
    /// identities.
    pub fn identity(&self) -> Cow<'_, str> {
        match &*self.tenant {
            "" => Cow::Borrowed(&self.subject),
            tenant => Cow::Owned(format!("{tenant}{IDENTITY_SEPARATOR}{}", self.subject)),
        }
    }

    /// Whether its token was issued after this moment, seconds since 1970. Never true without a time of issue.
    pub fn is_issued_after(&self, at_s: u64) -> bool {
        self.issued_at_s.is_some_and(|issued_at_s| issued_at_s > at_s)
    }

    /// Whether another principal is the same client with other credentials.
    pub fn is_same_client(&self, other: &Principal) -> bool {
        (&self.subject, &self.tenant) == (&other.subject, &other.tenant)
    }
}

/// What a principal may do. Without rules, it may do nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Permissions {
    /// Patterns that clients with these permissions may subscribe to, including history and last values.
    pub subscribe: Rules,
    /// Topics that clients with these permissions may publish to.
    pub publish: Rules,
}

impl Permissions {
    /// Permission to do everything.
    pub fn all() -> Permissions {
        Permissions { subscribe: Rules::all(), publish: Rules::all() }
    }
}

/// A set of topics: those that some pattern in `allow` matches and no pattern in `deny`. Sorted and without duplicates, so that
/// sets with the same patterns are equal.
///
/// Bound: [`PERMISSION_PATTERNS_MAX`] patterns of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rules {
    allow: Vec<Box<str>>,
    deny: Vec<Box<str>>,
}

/// A rule that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RulesError {
    /// An invalid pattern, with the reason.
    Pattern(Box<str>, NameError),
    /// More than [`PERMISSION_PATTERNS_MAX`] patterns of a kind.
    TooMany,
}

impl fmt::Display for RulesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RulesError::Pattern(pattern, error) => {
                write!(f, "pattern {:?}: {error}", pattern.chars().take(64).collect::<String>())
            }
            RulesError::TooMany => write!(f, "more than {PERMISSION_PATTERNS_MAX} patterns"),
        }
    }
}

impl std::error::Error for RulesError {}

impl Rules {
    /// The empty set.
    pub const NONE: Rules = Rules { allow: Vec::new(), deny: Vec::new() };

    /// The set of all topics.
    pub fn all() -> Rules {
        Rules { allow: vec![Box::from(">")], deny: Vec::new() }
    }

    /// The topics that some pattern in `allow` matches and no pattern in `deny`.
    ///
    /// # Errors
    /// The first invalid pattern, or too many patterns. Stops at the first pattern beyond the limit.
    pub fn new<A, D>(allow: A, deny: D) -> Result<Rules, RulesError>
    where
        A: IntoIterator<Item: Into<Box<str>>>,
        D: IntoIterator<Item: Into<Box<str>>>,
    {
        let mut allow = patterns(allow)?;
        if allow.iter().any(|pattern| &**pattern == ">") {
            // `>` covers all others.
            allow = vec![Box::from(">")];
        }
        Ok(Rules { allow, deny: patterns(deny)? })
    }

    /// The allowed patterns, sorted.
    pub fn allow(&self) -> &[Box<str>] {
        &self.allow
    }

    /// The denied patterns, which take precedence, sorted.
    pub fn deny(&self) -> &[Box<str>] {
        &self.deny
    }

    /// Whether the set contains every topic.
    pub fn is_all(&self) -> bool {
        self.deny.is_empty() && self.allow.first().is_some_and(|pattern| &**pattern == ">")
    }

    /// Whether a pattern lies wholly within the set: one allowed pattern covers it, and no denied pattern overlaps it. Compares
    /// each pattern at most once; does not allocate.
    ///
    /// Conservative: a pattern covered only by several patterns of `allow` together does not count as covered.
    pub fn covers(&self, pattern: &str) -> bool {
        self.allow.iter().any(|allowed| pattern::covers(allowed, pattern))
            && !self.deny.iter().any(|denied| pattern::overlaps(denied, pattern))
    }

    /// Whether the set may contain topics that a pattern matches: some allowed pattern overlaps it, and no denied pattern covers
    /// it. Compares each pattern at most once; does not allocate.
    ///
    /// Conservative: a pattern covered only by several patterns of `deny` together still counts as overlapping.
    pub fn overlaps(&self, pattern: &str) -> bool {
        self.allow.iter().any(|allowed| pattern::overlaps(allowed, pattern))
            && !self.deny.iter().any(|denied| pattern::covers(denied, pattern))
    }

    /// Whether the set contains a topic. Compares each pattern at most once; does not allocate.
    pub fn permits(&self, topic: &str) -> bool {
        self.allow.iter().any(|allowed| pattern::matches(allowed, topic))
            && !self.deny.iter().any(|denied| pattern::matches(denied, topic))
    }
}

fn patterns(patterns: impl IntoIterator<Item: Into<Box<str>>>) -> Result<Vec<Box<str>>, RulesError> {
    let mut checked = Vec::new();
    for pattern in patterns {
        let pattern: Box<str> = pattern.into();
        if checked.len() == PERMISSION_PATTERNS_MAX {
            return Err(RulesError::TooMany);
        }
        if let Err(error) = pattern::check_pattern(pattern.as_bytes()) {
            return Err(RulesError::Pattern(pattern, error));
        }
        checked.push(pattern);
    }
    checked.sort_unstable();
    checked.dedup();
    Ok(checked)
}

/// A client's credentials: a token, a certificate, or both.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// A token, 1 to [`TOKEN_BYTES_MAX`] bytes.
    pub token: Option<Box<str>>,
    /// Its TLS certificate, which a trusted authority has signed.
    pub certificate: Option<ClientCertificate>,
}

/// What a client's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Its DNS or URI name.
    pub name: Box<str>,
    /// The last second at which it is valid, since 1970.
    pub ends_s: u64,
}

/// Omits the token, which is a secret.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("token_bytes", &self.token.as_deref().map(str::len))
            .field("certificate", &self.certificate)
            .finish()
    }
}

impl Credentials {
    /// Creates credentials from a client's token.
    ///
    /// # Errors
    /// [`AuthRefusal::Invalid`] if it is empty, too long, or not UTF-8.
    pub fn new(
        token: Option<&Token<'_>>,
        certificate: Option<ClientCertificate>,
    ) -> Result<Credentials, AuthRefusal> {
        let Some(Token(token)) = token else { return Ok(Credentials { token: None, certificate }) };
        if token.is_empty() {
            return Err(AuthRefusal::Invalid("it is empty".into()));
        }
        if token.len() > TOKEN_BYTES_MAX {
            let text = format!("it has {} bytes, {TOKEN_BYTES_MAX} are allowed", token.len());
            return Err(AuthRefusal::Invalid(text.into()));
        }
        match std::str::from_utf8(token) {
            Ok(token) => Ok(Credentials { token: Some(token.into()), certificate }),
            Err(_) => Err(AuthRefusal::Invalid("it is not UTF-8".into())),
        }
    }
}

/// Why a client's credentials are refused. No text contains any part of the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthRefusal {
    /// The client has given no usable credentials: none, or a certificate whose name is not listed. Refused unless anonymous
    /// clients are allowed.
    Missing,
    /// The credentials are invalid. Contains the reason for humans.
    Invalid(Box<str>),
    /// The token has expired.
    Expired,
    /// The client's certificate has expired.
    CertificateExpired,
    /// The token is not valid yet.
    NotYetValid,
    /// The token has been revoked.
    Revoked,
    /// The tenant does not exist, or the listener, the host name and the token name different ones. Contains the reason for
    /// humans.
    Tenant(Box<str>),
    /// Too many credentials are waiting for verification, or verification took too long.
    Busy,
}

impl AuthRefusal {
    /// The code in CLOSING: 3500, unless the client may succeed later with a new token or certificate (3005) or with the same one (3504).
    pub fn close_code(&self) -> u16 {
        match self {
            AuthRefusal::Missing
            | AuthRefusal::Invalid(_)
            | AuthRefusal::Revoked
            | AuthRefusal::Tenant(_) => 3500,
            AuthRefusal::Expired | AuthRefusal::CertificateExpired | AuthRefusal::NotYetValid => 3005,
            AuthRefusal::Busy => CLOSE_REFUSED,
        }
    }

    /// The counter of sessions that ended for this reason.
    pub fn counter(&self) -> Counter {
        match self {
            AuthRefusal::Missing | AuthRefusal::Invalid(_) | AuthRefusal::Tenant(_) => {
                Counter::ClosedUnauthorized
            }
            AuthRefusal::Expired | AuthRefusal::CertificateExpired | AuthRefusal::NotYetValid => {
                Counter::ClosedTokenExpired
            }
            AuthRefusal::Revoked => Counter::ClosedRevoked,
            AuthRefusal::Busy => Counter::ClosedAuthBusy,
        }
    }

    /// The status of the response to a plain HTTP request.
    pub fn status(&self) -> u16 {
        match self {
            AuthRefusal::Busy => 503,
            _ => 401,
        }
    }
}

impl fmt::Display for AuthRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AuthRefusal::Missing => write!(f, "a token is required"),
            AuthRefusal::Invalid(text) => write!(f, "invalid token: {text}"),
            AuthRefusal::Expired => write!(f, "the token has expired"),
            AuthRefusal::CertificateExpired => write!(f, "the certificate has expired"),
            AuthRefusal::NotYetValid => write!(f, "the token is not valid yet"),
            AuthRefusal::Revoked => write!(f, "the token has been revoked"),
            AuthRefusal::Tenant(text) => write!(f, "wrong tenant: {text}"),
            AuthRefusal::Busy => write!(f, "too many tokens wait to be verified"),
        }
    }
}

impl std::error::Error for AuthRefusal {}

/// Selects the sessions to close.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// All sessions of a subject whose tokens were not issued after the revocation, or were verified before it.
    Subject {
        /// The subject's tenant; empty if there is none.
        tenant: Box<str>,
        /// The subject.
        subject: Box<str>,
    },
    /// All sessions with this token.
    TokenId(Box<str>),
}

impl Revocation {
    /// Whether a principal is revoked by this revocation at `at_s`, seconds since 1970.
    pub fn revokes(&self, principal: &Principal, at_s: u64) -> bool {
        match self {
            Revocation::Subject { tenant, subject } => {
                (tenant, subject) == (&principal.tenant, &principal.subject)
                    && !principal.is_issued_after(at_s)
            }
            Revocation::TokenId(id) => principal.token_id.as_ref() == Some(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(tokens: &[&str], tokens_max: usize) -> Vec<String> {
        let mut names: Vec<String> = tokens.iter().map(|token| (*token).into()).collect();
        let mut longest = names.clone();
        for _ in 1..tokens_max {
            let longer =
                |name: &String| tokens.iter().map(|token| format!("{name}.{token}")).collect::<Vec<_>>();
            longest = longest.iter().flat_map(longer).collect();
            names.extend(longest.iter().cloned());
        }
        names
    }

    /// Every pattern of two tokens over an alphabet, where `c` stands for all tokens that are not in it.
    fn patterns() -> Vec<String> {
        let all = names(&["a", "b", "*", ">"], 2);
        all.into_iter().filter(|pattern| pattern::check_pattern(pattern.as_bytes()).is_ok()).collect()
    }

    #[test]
    fn a_pattern_that_is_covered_matches_only_topics_that_are_permitted() {
        let (patterns, topics) = (patterns(), names(&["a", "b", "c"], 3));
        let mut covered = 0;
        for allow in &patterns {
            for deny in patterns.iter().map(Some).chain([None]) {
                let rules = Rules::new([&**allow], deny.map(|deny| &**deny)).unwrap();
                for topic in &topics {
                    let expected = pattern::matches(allow, topic)
                        && !deny.is_some_and(|deny| pattern::matches(deny, topic));
                    assert_eq!(rules.permits(topic), expected, "{rules:?} {topic}");
                    assert_eq!(rules.covers(topic), expected, "a topic is a pattern: {rules:?} {topic}");
                }
                for pattern in &patterns {
                    let matched = || topics.iter().filter(|topic| pattern::matches(pattern, topic));
                    // With one allowed pattern, a pattern is covered exactly if it matches nothing else.
                    let expected = matched().all(|topic| rules.permits(topic));
                    assert_eq!(rules.covers(pattern), expected, "{rules:?} {pattern}");
                    covered += usize::from(expected);
                }
            }
        }
        assert!(covered > 500, "{covered}");
    }

    #[test]
    fn patterns_allowed_add_up_and_those_denied_win() {
        let rules = Rules::new(["t.a.*", "t.b"], ["t.a.secret", "x.>"]).unwrap();
        for topic in ["t.a.b", "t.b"] {
            assert!(rules.permits(topic) && rules.covers(topic), "{topic}");
        }
        for topic in ["t.a.secret", "t.a", "t.a.b.c", "t.c", "x.a"] {
            assert!(!rules.permits(topic) && !rules.covers(topic), "{topic}");
        }
        for pattern in ["t.a.*", "t.*", "t.>", ">"] {
            assert!(!rules.covers(pattern), "{pattern}");
        }
        let both = Rules::new(["t.a", "t.>"], ["t.b.>"]).unwrap();
        assert!(both.covers("t.a.*") && both.covers("t.*") && !both.covers("t.*.a"));
    }

    #[test]
    fn sets_with_the_same_patterns_are_equal() {
        let rules = Rules::new(["b", "a", "b"], ["d", "c", "c"]).unwrap();
        assert_eq!(rules, Rules::new(["a", "b"], ["c", "d"]).unwrap());
        assert_eq!((rules.allow().len(), rules.deny().len()), (2, 2));
        let all = Rules::new(["a.b", ">", "*"], [] as [&str; 0]).unwrap();
        assert!(all == Rules::all() && all.is_all() && all.covers(">"));
        assert!(!Rules::new([">"], ["a"]).unwrap().is_all() && !Rules::NONE.is_all());
        assert!(!Rules::NONE.permits("a") && !Rules::NONE.covers("a"));
    }

    #[test]
    fn bad_and_too_many_patterns_are_rejected() {
        let none: [&str; 0] = [];
        let bad = RulesError::Pattern("a..b".into(), NameError::EmptyToken);
        assert_eq!(Rules::new(["a", "a..b"], none), Err(bad.clone()));
        assert_eq!(Rules::new(none, ["a..b"]), Err(bad));
        let many = |count: usize| (0..count).map(|n| format!("a.{n}"));
        assert!(Rules::new(many(PERMISSION_PATTERNS_MAX), none).is_ok());
        assert_eq!(Rules::new(many(PERMISSION_PATTERNS_MAX + 1), none), Err(RulesError::TooMany));
    }

    #[test]
    fn credentials_do_not_show_their_token() {
        let token = Token(b"secret"[..].into());
        let credentials = Credentials::new(Some(&token), None).unwrap();
        assert_eq!(credentials.token.as_deref(), Some("secret"));
        assert!(!format!("{token:?} {credentials:?}").contains("secret"));
        let longest = vec![b'x'; TOKEN_BYTES_MAX];
        assert!(Credentials::new(Some(&Token((&longest[..]).into())), None).is_ok());
        let too_long = vec![b'x'; TOKEN_BYTES_MAX + 1];
        for bad in [&b""[..], b"secret\xff", &too_long] {
            let refusal = Credentials::new(Some(&Token(bad.into())), None).unwrap_err();
            assert!(matches!(&refusal, AuthRefusal::Invalid(text) if !text.contains("secret")), "{refusal}");
        }
    }

    #[test]
    fn the_same_subject_in_two_tenants_is_two_clients() {
        let principal = |tenant: &str, subject: &str| Principal {
            subject: subject.into(),
            tenant: tenant.into(),
            ..Principal::default()
        };
        let (none, a, b) = (principal("", "s"), principal("a", "s"), principal("b", "s"));
        assert_eq!(none.identity(), "s");
        assert!(a.identity() != b.identity() && a.identity() != none.identity());
        assert!(a.is_same_client(&a) && !a.is_same_client(&b) && !a.is_same_client(&none));
        let revocation = Revocation::Subject { tenant: "a".into(), subject: "s".into() };
        let revokes = |principal: &Principal| revocation.revokes(principal, 100);
        assert!(revokes(&a) && !revokes(&b) && !revokes(&none));
        let issued_at = |at_s| Principal { issued_at_s: Some(at_s), ..a.clone() };
        assert!(revokes(&issued_at(100)) && !revokes(&issued_at(101)));
        let revocation = Revocation::TokenId("id".into());
        assert!(!revocation.revokes(&a, 100));
        let later = Principal { token_id: Some("id".into()), ..issued_at(101) };
        assert!(revocation.revokes(&later, 100));
    }
}
