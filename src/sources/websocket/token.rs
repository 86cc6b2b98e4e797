//! Obtains the token of an outgoing connection: from a file, from the output of a command, or from an HTTP endpoint.

use std::{
    io::Read,
    path::PathBuf,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::{
    engine::{EngineError, secret},
    kind::OptionChecks,
    limits::SOURCE_SECRET_BYTES_MAX,
    mapping::json_pointer::JsonPointer,
};
use tickcast_common::{clock, values::Time};

/// Timeout for a command or a request.
const OBTAIN_NS: u64 = 10_000_000_000;
/// Pause between two checks whether a command has ended.
const LOOK_NS: u64 = 20_000_000;
/// A token is renewed this long before it expires, because a command or a request takes time, and clocks differ.
const MARGIN_S: u64 = 60;
/// Shortest time between two renewals, whatever a token says.
const RENEW_NS_LOWEST: u64 = 1_000_000_000;

/// The table `token`: exactly one of `file`, `command` and `url`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenOptions {
    /// A file with the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    /// A program and its arguments; it writes the token to its standard output.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    command: Vec<String>,
    /// An endpoint that answers GET with the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    /// JSON pointer to the token in an output or answer; empty: the whole text.
    pointer: String,
    /// How long a token is used; 0: until a JWT expires, and any other token for ever.
    every: Time,
}

/// How to obtain tokens.
#[derive(Clone, Debug)]
pub struct Token {
    options: TokenOptions,
    pointer: Option<JsonPointer>,
}

/// A token.
#[derive(Clone, PartialEq, Eq)]
pub struct Obtained {
    /// The text that replaces `{token}`.
    pub text: String,
    /// When to obtain the next one, a time of [`clock::monotonic_ns`].
    pub renew_ns: Option<u64>,
}

impl Token {
    /// Checks the options.
    pub fn new(options: TokenOptions, checks: &mut OptionChecks) -> Option<Token> {
        let ways = [options.file.is_some(), !options.command.is_empty(), options.url.is_some()];
        if ways.into_iter().filter(|way| *way).count() != 1 {
            checks.refuse("token", "set one of file, command and url");
            return None;
        }
        options.file.iter().for_each(|file| checks.readable("token", file));
        if let Some(url) = &options.url
            && !(url.starts_with("https://") || url.starts_with("http://"))
        {
            checks.refuse("token", format!("{url:?}: use https://host/path"));
        }
        let pointer = match &*options.pointer {
            "" => None,
            text => Some(JsonPointer::parse(text).or_else(|| {
                checks.refuse("token", format!("{text:?} is not a JSON pointer such as /access_token"));
                None
            })?),
        };
        Some(Token { options, pointer })
    }

    /// Obtains a token, on a thread that may wait for it.
    ///
    /// # Errors
    /// What failed; the text holds no token.
    pub async fn obtain(&self) -> Result<Obtained, EngineError> {
        let own = self.clone();
        let obtained = tokio::task::spawn_blocking(move || own.fetch()).await;
        obtained.map_err(|error| EngineError::new("token", error))?
    }

    fn fetch(&self) -> Result<Obtained, EngineError> {
        let output = match &self.options {
            TokenOptions { file: Some(file), .. } => secret(file)?,
            TokenOptions { url: Some(url), .. } => {
                get(url).map_err(|error| EngineError::new("token", error))?
            }
            TokenOptions { command, .. } => {
                run(command, OBTAIN_NS).map_err(|error| EngineError::new("token", error))?
            }
        };
        let mut text = String::new();
        match &self.pointer {
            None => text.push_str(output.trim()),
            Some(pointer) if pointer.append_scalar(output.as_bytes(), &mut text) => {}
            Some(pointer) => return Err(EngineError(format!("token: there is nothing at {pointer}"))),
        }
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err(EngineError("token: the text is empty or has control characters".into()));
        }
        let life_ns = match self.options.every.ns {
            0 => expiry_s(&text).map(|at_s| life_ns(at_s, clock::realtime_ns() / 1_000_000_000)),
            ns => Some(ns),
        };
        let renew_ns =
            life_ns.map(|life_ns| clock::monotonic_ns().saturating_add(life_ns.max(RENEW_NS_LOWEST)));
        Ok(Obtained { text, renew_ns })
    }
}

/// How long to use a token that expires at `at_s`: until a minute before that, or half of what is left.
fn life_ns(at_s: u64, now_s: u64) -> u64 {
    let left_s = at_s.saturating_sub(now_s);
    left_s.saturating_sub(MARGIN_S).max(left_s / 2).saturating_mul(1_000_000_000)
}

/// The claim `exp` of a JWT. It is not verified: that is the other server's task.
fn expiry_s(token: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Claims {
        exp: f64,
    }
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let exp = serde_json::from_slice::<Claims>(&payload).ok()?.exp;
    (0.0..1e12).contains(&exp).then_some(exp as u64)
}

fn get(url: &str) -> Result<String, String> {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_nanos(OBTAIN_NS)))
        .max_redirects(0)
        .proxy(None)
        .tls_config(
            ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::PlatformVerifier).build(),
        )
        .build();
    // Not the URL, which may hold a secret.
    let mut response =
        ureq::Agent::new_with_config(config).get(url).call().map_err(|error| error.to_string())?;
    let body = response.body_mut().with_config().limit(SOURCE_SECRET_BYTES_MAX).read_to_string();
    body.map_err(|error| error.to_string())
}

/// Runs a program for at most `timeout_ns`, and returns what it writes.
fn run(command: &[String], timeout_ns: u64) -> Result<String, String> {
    let [program, arguments @ ..] = command else { return Err("no command".into()) };
    let spawned = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|error| format!("{program}: {error}"))?;
    let output = child.stdout.take();
    // A program that it has left running may hold the pipe open for ever: the thread then ends with that program.
    let (send, reader) = mpsc::channel();
    thread::spawn(move || {
        let mut text = String::new();
        let read = output.map(|output| output.take(SOURCE_SECRET_BYTES_MAX).read_to_string(&mut text));
        // Nobody waits for it any more if this fails.
        let _ = send.send(read.unwrap_or(Ok(0)).map(|_| text));
    });
    let end_ns = clock::monotonic_ns() + timeout_ns;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if clock::monotonic_ns() < end_ns => clock::sleep_ns(LOOK_NS),
            other => {
                // It has ended, or is killed now.
                let _ = child.kill();
                let _ = child.wait();
                return Err(match other {
                    Err(error) => format!("{program}: {error}"),
                    Ok(_) => format!("{program}: still running after {} s", timeout_ns / 1_000_000_000),
                });
            }
        }
    };
    if !status.success() {
        return Err(format!("{program}: {status}"));
    }
    let left_ns = end_ns.saturating_sub(clock::monotonic_ns());
    let text = reader.recv_timeout(Duration::from_nanos(left_ns)).map_err(|_| {
        format!("{program}: its output has no end: a program that it started still has it open")
    })?;
    text.map_err(|error| format!("{program}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jwt_is_renewed_before_it_ends() {
        let token = |claims: &str| format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims));
        for (claims, exp) in [
            (r#"{"exp":1793322000}"#, Some(1_793_322_000)),
            (r#"{"exp":1793322000.9}"#, Some(1_793_322_000)),
            (r#"{"exp":-1}"#, None),
            (r#"{"exp":1e300}"#, None),
            (r#"{"exp":"soon"}"#, None),
            ("{}", None),
            ("[", None),
        ] {
            assert_eq!(expiry_s(&token(claims)), exp, "{claims}");
        }
        assert_eq!((expiry_s("opaque"), expiry_s("a.!.c"), expiry_s("")), (None, None, None));
        for (left_s, life_s) in [(3_600, 3_540), (120, 60), (90, 45), (5, 2), (0, 0)] {
            assert_eq!(life_ns(1_000 + left_s, 1_000), life_s * 1_000_000_000);
        }
        assert_eq!(life_ns(0, 1_000), 0);
    }

    #[test]
    fn a_command_gives_its_output_or_its_fault() {
        let sh = |script: &str| run(&["sh".into(), "-c".into(), script.into()], OBTAIN_NS);
        assert_eq!(sh("echo secret"), Ok("secret\n".into()));
        assert!(sh("echo secret; exit 3").unwrap_err().ends_with("exit status: 3"));
        assert!(
            run(&["/nonexistent/program".into()], OBTAIN_NS)
                .unwrap_err()
                .starts_with("/nonexistent/program: ")
        );
        let left = ["sh", "-c", "exec sh -c 'sleep 5 & echo secret'"].map(String::from);
        assert!(run(&left, 300_000_000).unwrap_err().contains("has no end"));
    }
}
