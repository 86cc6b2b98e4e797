use super::*;
use crate::{auth::policy::token_hash, config::auth::OperatorTable};

const READER: &str = "the-token-of-the-reader";
const OPERATOR: &str = "the-token-of-the-operator";

fn table(name: &str, token: &str, certificate: Option<&str>, role: Role) -> OperatorTable {
    OperatorTable {
        name: name.into(),
        sha256: Some(token_hash(token)),
        certificate: certificate.map(Into::into),
        role: Some(role),
    }
}

fn operators() -> Arc<Operators> {
    let tables = [
        table("reader", READER, Some("reader.test"), Role::Read),
        table("alice", OPERATOR, Some("alice.test"), Role::Operate),
    ];
    Arc::new(Operators::build(&tables, true).unwrap())
}

fn certificate(name: Option<&str>) -> Certificate {
    Certificate { name: name.map(Into::into), sha256: "00ff".into() }
}

fn peer(certificate: Option<Certificate>) -> Peer {
    Peer { address: PeerAddress::Tcp("192.0.2.7:5000".parse().unwrap()), certificate }
}

/// The text of who it is, or the status.
fn checked(
    access: &AdminAccess,
    shown: Option<Certificate>,
    method: &Method,
    path: &str,
    authorization: &[&str],
) -> Result<String, u16> {
    let mut headers = HeaderMap::new();
    for value in authorization {
        headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
    }
    let found = access.check(&peer(shown), method, path, &headers);
    found.map(|who| who.to_string()).map_err(|error| {
        assert!(error.challenge.unwrap().starts_with("Bearer realm="), "{error:?}");
        for secret in [READER, OPERATOR, "wrong"] {
            assert!(!error.message.contains(secret), "{error:?}");
        }
        error.status
    })
}

#[test]
fn a_role_decides_about_methods_and_credentials_about_roles() {
    let access = AdminAccess::new(Rule::Operators(operators()));
    let (reader, alice) = ("operator \"reader\"".to_owned(), "operator \"alice\"".to_owned());
    let named = |name| Some(certificate(Some(name)));
    let (of_reader, of_alice) = (format!("Bearer {READER}"), format!("bEARER  {OPERATOR} "));
    let changes = [Method::DELETE, Method::POST, Method::PUT, Method::PATCH, Method::OPTIONS];
    for (shown, headers, reads, changes_something) in [
        (None, vec![&of_reader[..]], Ok(reader.clone()), Err(403)),
        (None, vec![&of_alice], Ok(alice.clone()), Ok(alice.clone())),
        (named("reader.test"), vec![], Ok(reader.clone()), Err(403)),
        (named("alice.test"), vec![], Ok(alice.clone()), Ok(alice)),
        // The token counts.
        (named("alice.test"), vec![&of_reader], Ok(reader), Err(403)),
        (named("alice.test"), vec!["Bearer wrong"], Err(401), Err(401)),
        (None, vec![], Err(401), Err(401)),
        (None, vec!["Bearer wrong"], Err(401), Err(401)),
        (None, vec!["Bearer "], Err(401), Err(401)),
        (None, vec!["Bearer"], Err(401), Err(401)),
        (None, vec![OPERATOR], Err(401), Err(401)),
        (None, vec!["Basic YWxpY2U6YWxpY2U="], Err(401), Err(401)),
        (None, vec![&of_alice, &of_alice], Err(401), Err(401)),
        (named("mallory.test"), vec![], Err(401), Err(401)),
        (Some(certificate(None)), vec![], Err(401), Err(401)),
    ] {
        for method in [Method::GET, Method::HEAD] {
            let found = checked(&access, shown.clone(), &method, "/metrics", &headers);
            assert_eq!(found, reads, "{method} {shown:?} {headers:?}");
        }
        for method in &changes {
            let found = checked(&access, shown.clone(), method, "/v1/sessions/0-1", &headers);
            assert_eq!(found, changes_something, "{method} {shown:?} {headers:?}");
        }
        for path in ["/healthz", "/readyz"] {
            assert!(checked(&access, shown.clone(), &Method::GET, path, &headers).is_ok());
        }
    }
    for path in ["/", "", "/healthz/", "//healthz", "/readyz/x", "/HEALTHZ", "/v1/shards", "/nothing"] {
        assert_eq!(checked(&access, None, &Method::GET, path, &[]), Err(401), "{path:?}");
    }
}

#[test]
fn refusals_are_counted_by_reason() {
    let access = AdminAccess::new(Rule::Operators(operators()));
    let reader = format!("Bearer {READER}");
    for authorization in [&[][..], &["Bearer wrong"], &["Basic x"], &[&reader]] {
        let _ = checked(&access, None, &Method::DELETE, "/v1/sessions/0-1", authorization);
    }
    access.count(Refusal::Handshake);
    assert_eq!(access.refused(), [("missing", 1), ("invalid", 2), ("role", 1), ("handshake", 1)]);
}

#[test]
fn without_operators_the_address_and_the_authorities_decide() {
    let rule = |is_local, has_authorities, allow_anonymous| {
        Rule::new(None, is_local, has_authorities, allow_anonymous)
    };
    assert_eq!(rule(false, false, false), None, "the server must not start");
    assert_eq!(rule(false, false, true), Some(Rule::Anonymous));
    for allow_anonymous in [false, true] {
        assert_eq!(rule(false, true, allow_anonymous), Some(Rule::AnyCertificate));
        for has_authorities in [false, true] {
            assert_eq!(rule(true, has_authorities, allow_anonymous), Some(Rule::Local));
            for is_local in [false, true] {
                let with = Rule::new(Some(operators()), is_local, has_authorities, allow_anonymous);
                assert_eq!(with, Some(Rule::Operators(operators())));
            }
        }
    }
    let who = |rule, shown| checked(&AdminAccess::new(rule), shown, &Method::DELETE, "/v1/sessions/0-1", &[]);
    let named = || Some(certificate(Some("ops.test")));
    assert_eq!(who(Rule::Local, None), Ok("local".into()));
    assert_eq!(who(Rule::Local, named()), Ok("certificate \"ops.test\"".into()));
    assert_eq!(who(Rule::Anonymous, None), Ok("anonymous".into()));
    assert_eq!(who(Rule::AnyCertificate, None), Err(401));
    assert_eq!(who(Rule::AnyCertificate, named()), Ok("certificate \"ops.test\"".into()));
    assert_eq!(
        who(Rule::AnyCertificate, Some(certificate(None))),
        Ok("certificate without a name (SHA-256 00ff)".into())
    );
}

#[test]
fn a_reload_replaces_operators_and_never_opens_the_listener() {
    let access = AdminAccess::new(Rule::Local);
    let get = || checked(&access, None, &Method::GET, "/metrics", &[]);
    assert_eq!(access.reload(None), Ok(()));
    assert!(get().is_ok());
    assert_eq!(access.reload(Some(operators())), Ok(()));
    assert_eq!(get(), Err(401));
    assert!(access.reload(None).unwrap_err().contains("is kept"));
    assert_eq!(get(), Err(401));
    let other = [table("bob", "the-token-of-bob", None, Role::Operate)];
    access.reload(Some(Arc::new(Operators::build(&other, true).unwrap()))).unwrap();
    let with = |token: &str| checked(&access, None, &Method::GET, "/metrics", &[&format!("Bearer {token}")]);
    assert_eq!((with("the-token-of-bob"), with(OPERATOR)), (Ok("operator \"bob\"".into()), Err(401)));
}
