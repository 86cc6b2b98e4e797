use super::*;
use crate::{
    auth::{
        key::Algorithm,
        tests::{Issuer, key_set, response},
    },
    limits::JWKS_REFRESH_MS_DEFAULT,
};

fn set(url: &str) -> KeySet {
    KeySet::new(url, "id", Algorithm::EdDsa, JWKS_REFRESH_MS_DEFAULT * 1_000_000)
}

fn fetched(issuer: &Issuer) -> Result<Keys, String> {
    Client::new(JWKS_FETCH_MS, &[]).fetch(&set(&issuer.url()))
}

#[test]
fn keys_are_fetched_whatever_their_content_type_says_but_must_be_json() {
    let issuer = Issuer::start(key_set("1"));
    assert_eq!(fetched(&issuer).unwrap().with_id(Some("1")).count(), 1);
    let Some(json) = key_set("1") else { panic!("an answer") };
    let odd = String::from_utf8(json).unwrap().replace("application/json", "text/html");
    issuer.set(Some(odd.into_bytes()));
    assert!(fetched(&issuer).is_ok());
    for (status, body, part) in [
        ("200 OK", "<html></html>", "not a JSON Web Key Set"),
        ("200 OK", "", "not a JSON Web Key Set"),
        ("200 OK", "{\"keys\":[]}", "none of its 0 keys"),
        ("404 Not Found", "{\"keys\":[]}", "status 404"),
        ("500 Internal Server Error", "", "status 500"),
    ] {
        issuer.set(response(status, "application/json", body));
        let error = fetched(&issuer).unwrap_err();
        assert!(error.contains(part), "{status} {body}: {error}");
    }
    issuer.set(Some(b"nonsense\r\n\r\n".to_vec()));
    assert!(fetched(&issuer).is_err());
}

#[test]
fn redirects_are_not_followed() {
    let private = Issuer::start(key_set("1"));
    let to = format!(
        "HTTP/1.1 302 Found\r\nLocation: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        private.url()
    );
    let issuer = Issuer::start(Some(to.into_bytes()));
    assert!(fetched(&issuer).unwrap_err().contains("redirects are not followed"));
    assert_eq!((issuer.requests(), private.requests()), (1, 0));
}

#[test]
fn a_set_that_is_too_large_is_refused_whether_its_length_is_announced_or_not() {
    let body = format!("{{\"keys\":[],\"x\":\"{}\"}}", "y".repeat(JWKS_BYTES_MAX));
    let issuer = Issuer::start(response("200 OK", "application/json", &body));
    assert!(fetched(&issuer).is_err());
    issuer.set(Some(format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}").into_bytes()));
    assert!(fetched(&issuer).is_err());
}

#[test]
fn an_issuer_that_does_not_answer_is_given_up() {
    let issuer = Issuer::start(None);
    assert!(Client::new(20, &[]).fetch(&set(&issuer.url())).is_err());
    let gone = set("http://127.0.0.1:1/jwks");
    assert!(Client::new(JWKS_FETCH_MS, &[]).fetch(&gone).is_err());
}

#[test]
fn the_client_can_make_a_tls_connection() {
    // The server does not speak TLS: the error must blame the peer, not a missing provider or missing certificates.
    let issuer = Issuer::start(key_set("1"));
    let url = issuer.url().replace("http://", "https://");
    let error = Client::new(JWKS_FETCH_MS, &[]).fetch(&set(&url)).unwrap_err();
    assert!(!error.contains("provider"), "{error}");
}
