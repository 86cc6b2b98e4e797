//! The HTTP client of `tickcast top`. One connection per request, as the admin listener keeps none open.

use std::{fs, sync::Arc, time::Duration};

use http::{HeaderValue, header::AUTHORIZATION};
use serde::de::DeserializeOwned;
use tickcast_client::{ClientError, TlsError, TlsOptions};
use ureq::{
    Agent,
    tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsProvider},
};

use super::{
    AdminAddress, format,
    model::sort_name,
    responses::{self, Snapshot, TenantsResponse},
};
use crate::{
    clock,
    limits::{ADMIN_ROWS_DEFAULT, ADMIN_ROWS_MAX, TOP_RESPONSE_BYTES_MAX, TOP_RESPONSE_MS},
};
use tickcast_core::shard::survey::SessionSort;
use tickcast_tls::certificates;

/// A client of an admin listener.
pub(super) struct AdminClient {
    agent: Agent,
    address: AdminAddress,
    authorization: Option<HeaderValue>,
}

impl AdminClient {
    /// Creates a client. Does not connect yet.
    ///
    /// # Errors
    /// Which file of the TLS options cannot be used.
    pub(super) fn new(address: AdminAddress, tls: &TlsOptions) -> Result<AdminClient, ClientError> {
        let tls = if address.is_tls { tls_config(tls)? } else { TlsConfig::default() };
        let config = Agent::config_builder()
            .timeout_global(Some(Duration::from_millis(TOP_RESPONSE_MS)))
            // Error responses have a body to show.
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections(0)
            // A proxy from the environment cannot reach this machine's loopback.
            .proxy(None)
            .tls_config(tls)
            .user_agent(concat!("tickcast-top/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(AdminClient { agent: Agent::new_with_config(config), address, authorization: None })
    }

    /// Sends this header with each request.
    pub(super) fn with_authorization(self, authorization: Option<HeaderValue>) -> AdminClient {
        AdminClient { authorization, ..self }
    }

    /// The listener's address.
    pub(super) fn address(&self) -> &AdminAddress {
        &self.address
    }

    /// Polls the server: five requests of at most [`TOP_RESPONSE_MS`] each.
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
            // Version 0.1 knows no tenants.
            tenants: self
                .get::<TenantsResponse>("/v1/tenants")?
                .map_or_else(|_| Vec::new(), |all| all.tenants),
        })
    }

    fn scheme(&self) -> &'static str {
        if self.address.is_tls { "https" } else { "http" }
    }

    /// The outer error: no response. The inner error: a response that is not the requested data.
    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Result<T, String>, String> {
        let request = self.agent.get(format!("{}://{}{path}", self.scheme(), self.address.host));
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

/// The options in the form that ureq needs.
fn tls_config(options: &TlsOptions) -> Result<TlsConfig, ClientError> {
    // Also checks the files, and that the key belongs to the certificate.
    options.read(&[], false)?;
    let owned = |der: &[u8]| Certificate::from_der(der).to_owned();
    let mut builder = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(certificates::provider()));
    builder = match options.authorities()? {
        None => builder.disable_verification(true),
        Some(authorities) => {
            let authorities: Vec<_> = authorities.iter().map(|authority| owned(authority)).collect();
            builder.root_certs(RootCerts::Specific(Arc::new(authorities)))
        }
    };
    let Some(cert) = &options.cert else { return Ok(builder.build()) };
    let key = options.key.as_ref().unwrap_or(cert);
    let unusable =
        |error: &dyn std::fmt::Display| ClientError::TlsSettings(format!("{}: {error}", cert.display()));
    let chain = fs::read(cert).map_err(|error| unusable(&error))?;
    let chain: Vec<_> = certificates::certificates(&chain).map_err(|error| unusable(&error))?;
    let chain: Vec<_> = chain.iter().map(|certificate| owned(certificate)).collect();
    let key = fs::read(key).map_err(|error| unusable(&error))?;
    let key = PrivateKey::from_pem(&key).map_err(|error| unusable(&error))?;
    Ok(builder.client_cert(Some(ClientCert::new_with_certs(&chain, key))).build())
}

fn reason(error: ureq::Error) -> String {
    let tls = match &error {
        ureq::Error::Rustls(error) => Some(TlsError::from(error)),
        ureq::Error::Io(error) => TlsError::in_io(error),
        _ => None,
    };
    if let Some(tls) = tls {
        return tls.to_string();
    }
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
        net::{SocketAddr, TcpListener},
        thread,
    };

    use super::*;

    fn client(address: SocketAddr) -> AdminClient {
        AdminClient::new(address.to_string().parse().unwrap(), &TlsOptions::default()).unwrap()
    }

    /// Polls a server that responds to every request with `respond`.
    fn poll(respond: impl Fn(&mut dyn Write) + Send + 'static) -> Result<Snapshot, String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = client(listener.local_addr().unwrap());
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
        assert!(client(address).poll(SessionSort::Lag).unwrap_err().contains("refused"));
    }
}
