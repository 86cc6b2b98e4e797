//! An issuer for the tests of this module: an HTTP server on this machine that answers each request as it is told.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
};

/// What it answers with: the bytes of a response, after which it closes the connection. `None`: nothing, and it keeps the connection.
pub type Answer = Option<Vec<u8>>;

/// A server. Its thread ends with the process.
pub struct Issuer {
    /// Where it listens.
    pub address: SocketAddr,
    answer: Arc<Mutex<Answer>>,
    requests: Arc<AtomicU64>,
}

impl Issuer {
    /// Starts a server that answers every request in the same way.
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
                    // A client that has had enough closes early.
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

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(SeqCst)
    }

    /// The URL of its keys.
    pub fn url(&self) -> String {
        format!("http://{}/jwks", self.address)
    }
}

/// A response with this status line, content type and body.
pub fn response(status: &str, content_type: &str, body: &str) -> Answer {
    let len = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n"
    );
    Some((head + body).into_bytes())
}

/// A key set with one Ed25519 key, of `tests/data/auth/ed25519.pem`, under this id.
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
