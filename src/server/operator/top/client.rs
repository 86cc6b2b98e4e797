//! The HTTP client of `tickcast top`. One connection per request, as the admin listener keeps none open.

use std::{net::SocketAddr, time::Duration};

use http::{HeaderValue, header::AUTHORIZATION};
use serde::de::DeserializeOwned;
use ureq::Agent;

use super::{
    format,
    model::sort_name,
    responses::{self, Snapshot},
};
use crate::{
    clock,
    limits::{ADMIN_ROWS_DEFAULT, ADMIN_ROWS_MAX, TOP_RESPONSE_BYTES_MAX, TOP_RESPONSE_MS},
};
use tickcast_core::shard::survey::SessionSort;

/// A client of an admin listener.
pub(super) struct AdminClient {
    agent: Agent,
    address: SocketAddr,
    authorization: Option<HeaderValue>,
}

impl AdminClient {
    /// Creates a client. Does not connect yet.
    pub(super) fn new(address: SocketAddr) -> AdminClient {
        let config = Agent::config_builder()
            .timeout_global(Some(Duration::from_millis(TOP_RESPONSE_MS)))
            // Error responses have a body to show.
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections(0)
            // A proxy from the environment cannot reach this machine's loopback.
            .proxy(None)
            .user_agent(concat!("tickcast-top/", env!("CARGO_PKG_VERSION")))
            .build();
        AdminClient { agent: Agent::new_with_config(config), address, authorization: None }
    }

    /// Sends this header with each request.
    pub(super) fn with_authorization(self, authorization: Option<HeaderValue>) -> AdminClient {
        AdminClient { authorization, ..self }
    }

    /// The listener's address.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Polls the server: four requests of at most [`TOP_RESPONSE_MS`] each.
    ///
    /// # Errors
    /// Why the server did not respond. If only a part is unavailable, as while the server starts, the snapshot has the reason
    /// in its place.
    pub(super) fn poll(&self, sort: SessionSort) -> Result<Snapshot, String> {
        let server = self.get("/v1/shards")??;
        let received_ns = clock::monotonic_ns();
        Ok(Snapshot {
            received_ns,
            server,
            topics: self.get(&format!("/v1/topics?limit={ADMIN_ROWS_MAX}"))?,
            sort,
            sessions: self
                .get(&format!("/v1/sessions?sort={}&limit={ADMIN_ROWS_DEFAULT}", sort_name(sort)))?,
            latency: self.get("/v1/latency?format=counts")?,
        })
    }

    /// The outer error: no response. The inner error: a response that is not the requested data.
    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Result<T, String>, String> {
        let request = self.agent.get(format!("http://{}{path}", self.address));
        let request = match &self.authorization {
            Some(value) => request.header(AUTHORIZATION, value),
            None => request,
        };
        let mut response = request.call().map_err(reason)?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(TOP_RESPONSE_BYTES_MAX as u64).read_to_vec();
        Ok(responses::parse(status, &body.map_err(reason)?))
    }
}

fn reason(error: ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => format::reason(&error.to_string()),
        ureq::Error::Timeout(_) => format!("timed out after {}", format::milliseconds(TOP_RESPONSE_MS)),
        ureq::Error::BodyExceedsLimit(bytes) => format!("response is larger than {bytes} bytes"),
        error => {
            let error = format::reason(&error.to_string());
            format!("the server is not a tickcast admin listener: {error}")
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

    /// Polls a server that responds to every request with `respond`.
    fn poll(respond: impl Fn(&mut dyn Write) + Send + 'static) -> Result<Snapshot, String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = AdminClient::new(listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 4_096]);
                respond(&mut stream);
            }
        });
        client.poll(SessionSort::Lag)
    }

    #[test]
    fn another_server_is_reported_as_not_an_admin_listener() {
        for bytes in ["SSH-2.0-OpenSSH\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", ""] {
            let error = poll(move |stream| drop(stream.write_all(bytes.as_bytes()))).unwrap_err();
            assert!(!error.is_empty() && error.len() < 200, "{bytes}: {error}");
        }
        let error = poll(|stream| {
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        });
        assert!(error.unwrap_err().contains("not a tickcast admin listener"));
    }

    #[test]
    fn an_endless_response_is_an_error() {
        let error = poll(|stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[b' '; 1 << 16]).is_ok() {}
        });
        assert!(error.unwrap_err().contains("larger than"));
    }

    #[test]
    fn a_refused_connection_is_reported() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(AdminClient::new(address).poll(SessionSort::Lag).unwrap_err().contains("refused"));
    }
}
