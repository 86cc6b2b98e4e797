//! Shared by the tests of authentication: keys, signed tokens, verdicts, and an issuer: a local HTTP server that answers each
//! request as the test has set.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
};

use serde_json::Value;

use super::{
    key::{self, Algorithm},
    key_set::Keys,
    policy::{Outcome, Policy},
    revocations::Revocations,
    sign,
};
use tickcast_core::principal::{AuthRefusal, Credentials, Principal};

/// Time at which the tests verify, in seconds since 1970.
pub const NOW_S: u64 = 2_000_000_000;

/// Each algorithm, with the file of a signing key.
pub const SIGNERS: [(Algorithm, &str); 4] = [
    (Algorithm::Hs256, "hs256.txt"),
    (Algorithm::Rs256, "rsa.pem"),
    (Algorithm::Es256, "p256.pem"),
    (Algorithm::EdDsa, "ed25519.pem"),
];

/// The path of a file in `tests/data/auth`.
pub fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/auth").join(name)
}

/// Signs a token with these claims.
pub fn signed(algorithm: Algorithm, kid: Option<&str>, claims: &Value) -> String {
    let file = SIGNERS.iter().find(|(signer, _)| *signer == algorithm).unwrap().1;
    let (_, key) = key::signing_key(Some(algorithm), &fs::read(data(file)).unwrap()).unwrap();
    sign(algorithm, &key, kid.map(Into::into), claims.as_object().unwrap()).unwrap()
}

/// Credentials that consist of a token only.
pub fn with_token(token: &str) -> Credentials {
    Credentials { token: Some(token.into()), certificate: None }
}

/// The verdict of a policy without key sets or revocations.
pub fn verdict_at(
    policy: &Policy,
    credentials: &Credentials,
    now_s: u64,
) -> Result<Arc<Principal>, AuthRefusal> {
    match policy.verify(credentials, now_s, &Revocations::default()) {
        Outcome::Verdict(verdict) => verdict,
        Outcome::UnknownKey(..) => panic!("there is no key set"),
    }
}

/// An Ed25519 JWK with this id.
pub fn ed25519_jwk(kid: &str) -> Value {
    serde_json::json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"})
}

/// Ed25519 keys with these ids.
pub fn ed25519_keys(ids: &[&str]) -> Keys {
    let keys: Vec<Value> = ids.iter().map(|kid| ed25519_jwk(kid)).collect();
    Keys::parse(Algorithm::EdDsa, serde_json::json!({ "keys": keys }).to_string().as_bytes()).unwrap()
}

/// The bytes of a response, after which the issuer closes the connection. `None`: it sends nothing and keeps the connection open.
pub type Answer = Option<Vec<u8>>;

/// A running issuer. Its thread ends with the process.
pub struct Issuer {
    /// Where it listens.
    pub address: SocketAddr,
    answer: Arc<Mutex<Answer>>,
    requests: Arc<AtomicU64>,
}

impl Issuer {
    /// Starts an issuer that gives every request this answer.
    pub fn start(answer: Answer) -> Issuer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let issuer = Issuer {
            address: listener.local_addr().unwrap(),
            answer: Arc::new(Mutex::new(answer)),
            requests: Arc::default(),
        };
        let (answer, requests) = (issuer.answer.clone(), issuer.requests.clone());
        thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
                requests.fetch_add(1, SeqCst);
                match answer.lock().unwrap().as_deref() {
                    // A client that has read enough may close early.
                    Some(bytes) => drop(stream.write_all(bytes)),
                    None => kept.push(stream),
                }
            }
        });
        issuer
    }

    /// Changes the answer.
    pub fn set(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// Requests received so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(SeqCst)
    }

    /// The URL of the issuer's keys.
    pub fn url(&self) -> String {
        format!("http://{}/jwks", self.address)
    }
}

/// Builds a response with this status line, content type and body.
pub fn response(status: &str, content_type: &str, body: &str) -> Answer {
    let len = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n"
    );
    Some((head + body).into_bytes())
}

/// A key set with one Ed25519 key, from `tests/data/auth/ed25519.pem`, under this id.
pub fn key_set(kid: &str) -> Answer {
    let der = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/auth/ed25519.pub.pem"));
    let body: String = der.lines().filter(|line| !line.starts_with("-----")).collect();
    use base64::{
        Engine,
        engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
    };
    let x = URL_SAFE_NO_PAD.encode(&STANDARD.decode(body).unwrap()[12..]);
    let set = serde_json::json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x}]});
    response("200 OK", "application/json", &set.to_string())
}
