//! The questions of `tickcast top`, over HTTP. Each has a connection of its own, because the admin listener gives no other.

use std::{net::SocketAddr, time::Duration};

use serde::de::DeserializeOwned;
use ureq::Agent;

use crate::{
    clock,
    limits::{ADMIN_ROWS_DEFAULT, ADMIN_ROWS_MAX, TOP_ANSWER_BYTES_MAX, TOP_ANSWER_MS},
    operator::top::{
        answers::{self, Answers},
        format,
        model::sort_name,
    },
};
use tickcast_core::shard::survey::SessionSort;

/// Who asks a server.
pub(super) struct Asker {
    agent: Agent,
    address: SocketAddr,
}

impl Asker {
    /// Asks an admin listener. No connection yet.
    pub(super) fn new(address: SocketAddr) -> Asker {
        let config = Agent::config_builder()
            .timeout_global(Some(Duration::from_millis(TOP_ANSWER_MS)))
            // What is refused has a text.
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections(0)
            // The environment's proxy is not for this machine's loopback.
            .proxy(None)
            .user_agent(concat!("tickcast-top/", env!("CARGO_PKG_VERSION")))
            .build();
        Asker { agent: Agent::new_with_config(config), address }
    }

    /// Whom it asks.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// One look: four questions, [`TOP_ANSWER_MS`] at most for each.
    ///
    /// # Errors
    /// Why there is no answer. What a server has not got, as one that is starting, is missing in the answers instead.
    pub(super) fn ask(&self, sort: SessionSort) -> Result<Answers, String> {
        let server = self.answer("/v1/shards")??;
        let received_ns = clock::monotonic_ns();
        Ok(Answers {
            received_ns,
            server,
            topics: self.answer(&format!("/v1/topics?limit={ADMIN_ROWS_MAX}"))?,
            sort,
            sessions: self
                .answer(&format!("/v1/sessions?sort={}&limit={ADMIN_ROWS_DEFAULT}", sort_name(sort)))?,
            latency: self.answer("/v1/latency?format=counts")?,
        })
    }

    /// Outside, why there is no answer; inside, why it is not what was asked for.
    fn answer<T: DeserializeOwned>(&self, path: &str) -> Result<Result<T, String>, String> {
        let mut response = self.agent.get(format!("http://{}{path}", self.address)).call().map_err(reason)?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(TOP_ANSWER_BYTES_MAX as u64).read_to_vec();
        Ok(answers::parse(status, &body.map_err(reason)?))
    }
}

fn reason(error: ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => format::reason(&error.to_string()),
        ureq::Error::Timeout(_) => format!("not within {}", format::milliseconds(TOP_ANSWER_MS)),
        ureq::Error::BodyExceedsLimit(bytes) => format!("an answer of more than {bytes} bytes"),
        error => {
            let error = format::reason(&error.to_string());
            format!("what answers is no admin listener of tickcast: {error}")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        thread,
    };

    use super::*;

    /// What the asker says to something that answers this to everything, until it is not asked any more.
    fn asked(answer: impl Fn(&mut dyn Write) + Send + 'static) -> Result<Answers, String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let asker = Asker::new(listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 4_096]);
                answer(&mut stream);
            }
        });
        asker.ask(SessionSort::Lag)
    }

    #[test]
    fn what_is_no_admin_listener_is_told_as_that() {
        for bytes in ["SSH-2.0-OpenSSH\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", ""] {
            let error = asked(move |stream| drop(stream.write_all(bytes.as_bytes()))).unwrap_err();
            assert!(!error.is_empty() && error.len() < 200, "{bytes}: {error}");
        }
        let error = asked(|stream| {
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        });
        assert!(error.unwrap_err().contains("no admin listener of tickcast"));
    }

    #[test]
    fn an_answer_without_an_end_is_cut() {
        let error = asked(|stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[b' '; 1 << 16]).is_ok() {}
        });
        assert!(error.unwrap_err().contains("more than"));
    }

    #[test]
    fn nobody_there_is_told_as_the_kernel_does() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(Asker::new(address).ask(SessionSort::Lag).unwrap_err().contains("refused"));
    }
}
