//! An identity provider: a small HTTP or HTTPS server with a key set, whose key, answers and certificate a test may change.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::{certificates::Signed, data};

/// It serves one connection at a time, so a silent one must not keep it.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What the provider does with a request.
#[derive(Clone)]
pub enum Answer {
    /// It serves the key of the tests, `ed25519.pem`, under this id.
    Key(String),
    /// It fails with 500.
    Failure,
    /// It closes the connection without an answer.
    Nothing,
}

/// Runs until the process ends.
pub struct Idp {
    /// The URL of its key set.
    pub url: String,
    answer: Arc<Mutex<Answer>>,
    tls: Arc<Mutex<Option<Arc<ServerConfig>>>>,
    served: Arc<AtomicU64>,
}

impl Idp {
    /// Starts a provider whose key has this id. `certificate`: what it shows; `None`: it speaks plain HTTP.
    pub fn start(kid: &str, certificate: Option<&Signed>) -> Idp {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let scheme = if certificate.is_some() { "https" } else { "http" };
        let idp = Idp {
            url: format!("{scheme}://{}/jwks", listener.local_addr().unwrap()),
            answer: Arc::new(Mutex::new(Answer::Key(kid.into()))),
            tls: Arc::new(Mutex::new(certificate.map(server_config))),
            served: Arc::default(),
        };
        let (answer, tls, served, public) =
            (idp.answer.clone(), idp.tls.clone(), idp.served.clone(), public_key());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(SILENCE_MAX)).unwrap();
                let answer = answer.lock().unwrap().clone();
                let config = tls.lock().unwrap().clone();
                let is_served = match config {
                    None => serve(stream, &answer, &public),
                    Some(config) => {
                        let connection = ServerConnection::new(config).unwrap();
                        let mut stream = StreamOwned::new(connection, stream);
                        let is_served = serve(&mut stream, &answer, &public);
                        stream.conn.send_close_notify();
                        let _ = stream.flush();
                        is_served
                    }
                };
                served.fetch_add(u64::from(is_served), SeqCst);
            }
        });
        idp
    }

    /// Changes what it answers.
    pub fn set(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// Changes the certificate that it shows.
    pub fn show(&self, certificate: &Signed) {
        *self.tls.lock().unwrap() = Some(server_config(certificate));
    }

    /// Key sets served so far.
    pub fn served(&self) -> u64 {
        self.served.load(SeqCst)
    }
}

/// Answers one request. Returns whether it has served a key set.
fn serve(mut stream: impl Read + Write, answer: &Answer, public: &str) -> bool {
    let mut lines = BufReader::new(&mut stream).lines();
    let is_whole = lines.by_ref().map_while(Result::ok).any(|line| line.is_empty());
    let (status, body) = match answer {
        _ if !is_whole => return false,
        Answer::Nothing => return false,
        Answer::Failure => ("500 Internal Server Error", String::new()),
        Answer::Key(kid) => {
            let key = serde_json::json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": public});
            ("200 OK", serde_json::json!({ "keys": [key] }).to_string())
        }
    };
    let len = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n");
    stream.write_all((head + &body).as_bytes()).is_ok() && matches!(answer, Answer::Key(_))
}

fn server_config(certificate: &Signed) -> Arc<ServerConfig> {
    let chain = CertificateDer::from_pem_slice(&fs::read(&certificate.cert).unwrap()).unwrap();
    let key = PrivateKeyDer::from_pem_file(&certificate.key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(builder.with_no_client_auth().with_single_cert(vec![chain], key).unwrap())
}

/// The public half of the key, as a JSON Web Key has it.
fn public_key() -> String {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let file = data("auth/ed25519.pub.pem");
    let mut command = Command::new("openssl");
    command.args(["pkey", "-pubin", "-outform", "DER", "-in"]).arg(file).stdin(Stdio::null());
    let der = command.output().unwrap().stdout;
    URL_SAFE_NO_PAD.encode(&der[der.len() - 32..])
}
