//! Connects to Redis: address, credentials, TLS.

use std::{fmt, fs, path::PathBuf, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionInfo, IntoConnectionInfo, TlsCertificates,
    aio::MultiplexedConnection,
};
use serde::{Deserialize, Serialize};

use super::{
    engine::{EngineError, secret},
    kind::OptionChecks,
    tls::Tls,
};

/// Time for a connection and its handshake.
const CONNECT: Duration = Duration::from_secs(3);
/// Time for an answer, beside what a blocking command may wait. A server that is stopped gives none.
pub const ANSWER: Duration = Duration::from_secs(2);

/// The table `auth`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// The user; without one, the default user.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    /// A file with the password.
    #[serde(skip_serializing_if = "Option::is_none")]
    password_file: Option<PathBuf>,
}

/// How to reach Redis.
#[derive(Clone, Debug)]
pub struct Server {
    address: ConnectionInfo,
    auth: Auth,
    tls: Tls,
}

/// The address, without credentials.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address.addr())
    }
}

impl Server {
    /// Checks the options.
    pub fn new(server: &str, auth: Auth, tls: Tls, checks: &mut OptionChecks) -> Option<Server> {
        if auth.user.is_some() && auth.password_file.is_none() {
            checks.refuse("auth", "user without password_file");
        }
        auth.password_file.iter().for_each(|file| checks.readable("auth", file));
        tls.check(checks);
        match server.into_connection_info() {
            // It would be printed with the options.
            Ok(address) if address.redis_settings().password().is_some() => {
                checks.refuse("server", "the address holds a password: name a file in `auth` instead");
                None
            }
            Ok(address) => Some(Server { address, auth, tls }),
            Err(error) => {
                checks.refuse(
                    "server",
                    format!("{server:?}: {error}; use redis://host:6379 or rediss://host:6379"),
                );
                None
            }
        }
    }

    /// A client with what the files hold now.
    ///
    /// # Errors
    /// A file cannot be read, or does not hold what it should.
    pub fn client(&self) -> Result<Client, EngineError> {
        let mut settings = self.address.redis_settings().clone();
        if let Some(user) = &self.auth.user {
            settings = settings.set_username(user);
        }
        if let Some(file) = &self.auth.password_file {
            settings = settings.set_password(secret(file)?);
        }
        let address = self.address.clone().set_redis_settings(settings);
        let read = |file: &PathBuf| {
            fs::read(file).map_err(|error| EngineError::new(&file.display().to_string(), error))
        };
        let root_cert = self.tls.ca.as_ref().map(read).transpose()?;
        let client_tls = match (&self.tls.cert, &self.tls.key) {
            (Some(cert), Some(key)) => {
                Some(ClientTlsConfig { client_cert: read(cert)?, client_key: read(key)? })
            }
            _ => None,
        };
        let client = match root_cert.is_some() || client_tls.is_some() {
            true => Client::build_with_tls(address, TlsCertificates { client_tls, root_cert }),
            false => Client::open(address),
        };
        client.map_err(|error| EngineError::new(&self.to_string(), error))
    }

    /// Connects for commands, each of which may take `answer`.
    ///
    /// # Errors
    /// The server cannot be reached or does not let this client in.
    pub async fn connect(&self, answer: Duration) -> Result<MultiplexedConnection, EngineError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(answer));
        let connected = self.client()?.get_multiplexed_async_connection_with_config(&config).await;
        connected.map_err(|error| EngineError::new(&self.to_string(), error))
    }
}

/// The key with the generation of a stream, in the same slot of a Redis cluster: `{STREAM}:gen`, without the braces if the name has
/// some of its own.
pub fn generation_key(stream: &str) -> String {
    match stream.contains('{') {
        true => format!("{stream}:gen"),
        false => format!("{{{stream}}}:gen"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_in_the_slot_of_its_stream() {
        assert_eq!(generation_key("orders"), "{orders}:gen");
        assert_eq!(generation_key("{a}:orders"), "{a}:orders:gen");
    }
}
