//! Connects to Redis: address, credentials, TLS. Also what Redis sources and sinks share for streams: ids, positions,
//! generations.

use std::{fmt, fs, path::PathBuf, str::FromStr, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    TlsCertificates, aio::MultiplexedConnection,
};
use serde::{Deserialize, Serialize};

use super::{
    engine::{EngineError, secret},
    kind::OptionChecks,
    tls::Tls,
};

/// Timeout for a connection and its handshake.
const CONNECT: Duration = Duration::from_secs(3);
/// Timeout for an answer, in addition to what a blocking command may wait. A stopped server gives none.
pub const ANSWER: Duration = Duration::from_secs(2);

/// 2025-01-01, milliseconds since 1970.
pub const BASE_MS: u64 = 1_735_689_600_000;
/// Bits of the number within a millisecond. Redis assigns some 2,000 at most.
pub const NUMBER_BITS: u32 = 13;
/// Bound on positions, so that a JavaScript number holds them.
const POSITION_MAX: u64 = 1 << 53;

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
        let address = server.into_connection_info();
        if let Ok(address) = &address {
            let requires_tls = matches!(address.addr(), ConnectionAddr::TcpTls { .. });
            tls.check_address(requires_tls, "rediss://host:6379", checks);
        }
        match address {
            // It would be printed with the options.
            Ok(address) if address.redis_settings().password().is_some() => {
                checks.refuse("server", "the address holds a password: name a file in `auth` instead");
                None
            }
            Ok(address) => Some(Server { address, auth, tls }),
            Err(error) => {
                // What is before the last @ may be a password.
                let shown = server.rsplit_once('@').map_or(server, |(_, host)| host);
                checks.refuse(
                    "server",
                    format!("{shown:?}: {error}; use redis://host:6379 or rediss://host:6379"),
                );
                None
            }
        }
    }

    /// Creates a client with what the files contain now.
    ///
    /// # Errors
    /// A file cannot be read, or its contents are invalid.
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
    /// The server cannot be reached or does not accept this client.
    pub async fn connect(&self, answer: Duration) -> Result<MultiplexedConnection, EngineError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(answer));
        let connected = self.client()?.get_multiplexed_async_connection_with_config(&config).await;
        connected.map_err(|error| EngineError::new(&self.to_string(), error))
    }
}

/// The id of an entry: milliseconds since 1970, and a number within them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    /// Milliseconds since 1970.
    pub ms: u64,
    /// The number within the millisecond.
    pub n: u64,
}

impl FromStr for Id {
    type Err = ();

    fn from_str(text: &str) -> Result<Id, ()> {
        let (ms, n) = text.split_once('-').ok_or(())?;
        Ok(Id { ms: ms.parse().map_err(|_| ())?, n: n.parse().map_err(|_| ())? })
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.n)
    }
}

impl Id {
    /// The position of an entry, from 1: `(milliseconds since 2025-01-01) * 2^13 + number`; `None` if it does not fit.
    pub fn position(self) -> Option<u64> {
        let ms = self.ms.checked_sub(BASE_MS)?;
        let fits = self.n < 1 << NUMBER_BITS && ms < POSITION_MAX >> NUMBER_BITS;
        let position = fits.then(|| (ms << NUMBER_BITS) + self.n)?;
        (position > 0).then_some(position)
    }

    /// The id of a position.
    pub fn at(position: u64) -> Id {
        Id { ms: BASE_MS + (position >> NUMBER_BITS), n: position & ((1 << NUMBER_BITS) - 1) }
    }

    /// The last position that an entry with this id or a smaller one may have.
    pub fn highest_position(self) -> u64 {
        let number = self.n.min((1 << NUMBER_BITS) - 1);
        let ms = self.ms.checked_sub(BASE_MS);
        ms.map_or(0, |ms| (ms.min((POSITION_MAX >> NUMBER_BITS) - 1) << NUMBER_BITS) + number)
    }
}

/// How the key that holds a stream's generation ends.
pub const GENERATION: &str = ":gen";

/// The key that holds a stream's generation, in the same slot of a Redis cluster: `{STREAM}:gen`, without the braces if the
/// name has its own.
pub fn generation_key(stream: &str) -> String {
    match stream.contains('{') {
        true => format!("{stream}{GENERATION}"),
        false => format!("{{{stream}}}{GENERATION}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::SourceBounds;

    const fn id(ms: u64, n: u64) -> Id {
        Id { ms: BASE_MS + ms, n }
    }

    #[test]
    fn ids_are_positions_that_increase_and_others_do_not_fit() {
        assert_eq!(
            [id(0, 1), id(1, 0), id(1, 8_191), id(2, 0)].map(Id::position),
            [1, 8_192, 16_383, 16_384].map(Some)
        );
        for id in [id(0, 1), id(1, 0), id(1, 8_191)] {
            assert_eq!(id.position().map(Id::at), Some(id));
        }
        let last = id((1 << 40) - 1, 8_191);
        assert_eq!((last.position(), last.highest_position()), (Some((1 << 53) - 1), (1 << 53) - 1));
        for unfit in
            [id(0, 0), id(1, 8_192), id(1 << 40, 0), Id { ms: BASE_MS - 1, n: 0 }, Id { ms: 5, n: 1 }]
        {
            assert_eq!(unfit.position(), None, "{unfit}");
        }
        assert_eq!(id(1, u64::MAX).highest_position(), 16_383);
        assert_eq!(Id::default().highest_position(), 0);
    }

    #[test]
    fn a_table_tls_needs_an_address_with_tls() {
        for (server, is_refused) in
            [("rediss://h:6379", false), ("redis://h:6379", true), ("unix:/run/redis", true)]
        {
            let bounds = SourceBounds { payload_bytes_max: 64, topics_max: 10, reads_files: true };
            let mut checks = OptionChecks::new(bounds);
            let tls = Tls { ca: Some("Cargo.toml".into()), ..Tls::default() };
            Server::new(server, Auth::default(), tls, &mut checks);
            let refused = checks.into_refused();
            assert_eq!(refused.iter().any(|(key, _)| *key == "tls"), is_refused, "{server}: {refused:?}");
        }
    }

    #[test]
    fn a_generation_is_in_the_slot_of_its_stream() {
        assert_eq!(generation_key("orders"), "{orders}:gen");
        assert_eq!(generation_key("{a}:orders"), "{a}:orders:gen");
    }
}
