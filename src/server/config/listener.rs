//! Listeners: their kind, address and socket options.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use tickcast_core::{
    ids::TenantId,
    shard::{ClientAddress, ListenerKind},
};

use crate::{
    cli::values::{Mode, Size},
    limits,
};

/// Prefix of a Unix socket's address.
const UNIX_PREFIX: &str = "unix:";

/// A `[[listener]]` of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListenerTable {
    /// Whom it serves.
    pub kind: Kind,
    /// Address to listen on.
    pub address: Address,
    /// Transport of its connections; `None`: TLS if `tls` is set.
    pub transport: Option<Transport>,
    /// Certificates of a listener for TLS.
    pub tls: Option<TlsTable>,
    /// Whether trusted proxies begin their connections with a PROXY protocol header.
    pub proxy_protocol: Option<bool>,
    /// Whether trusted proxies add the client's address to `X-Forwarded-For`.
    pub forwarded_for: Option<bool>,
    /// Permissions of a Unix socket's file.
    pub mode: Option<Mode>,
    /// Send buffer of an accepted TCP socket; `None`: the value in `[delivery]`.
    pub socket_send_buffer: Option<Size>,
    /// Unsent data that an accepted TCP socket accepts; `None`: the value in `[delivery]`.
    pub notsent_lowat: Option<Size>,
    /// Whether its clients may publish; `None`: as `[auth]` allows.
    pub publish: Option<bool>,
    /// Tenant of its clients; `None`: that of their host name or token.
    pub tenant: Option<String>,
}

impl ListenerTable {
    /// Keys of the table, in the order of `--print-config`.
    pub const KEYS: [&str; 11] = [
        "kind",
        "address",
        "transport",
        "tls",
        "proxy_protocol",
        "forwarded_for",
        "mode",
        "socket_send_buffer",
        "notsent_lowat",
        "publish",
        "tenant",
    ];
}

/// Transport of a listener's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Unencrypted.
    Plain,
    /// TLS 1.3 or 1.2.
    Tls,
}

/// The `tls` of a `[[listener]]`. Files are PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsTable {
    /// Files with certificate chains, each with the server's own certificate first. Clients that request no server name, or an
    /// unknown one, get the first chain.
    pub cert: OneOrMore,
    /// Files of their private keys, in the same order.
    pub key: OneOrMore,
    /// File with the authorities of client certificates; `None`: the server requests no client certificate.
    pub client_ca: Option<PathBuf>,
    /// Whether clients must present a certificate of `client_ca`; `None`: they must.
    pub client_cert: Option<ClientCert>,
    /// Oldest version; `None`: 1.2.
    pub min_version: Option<MinVersion>,
    /// File of session ticket keys, 48 bytes each, the newest first; `None`: random keys of this process.
    pub ticket_keys: Option<PathBuf>,
}

/// One file, or a list of files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMore {
    /// One file.
    One(PathBuf),
    /// Several files.
    More(Vec<PathBuf>),
}

impl OneOrMore {
    /// The files.
    pub fn files(&self) -> &[PathBuf] {
        match self {
            OneOrMore::One(file) => std::slice::from_ref(file),
            OneOrMore::More(files) => files,
        }
    }
}

/// Whether clients must present a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCert {
    /// They may.
    Optional,
    /// They must.
    Required,
}

/// The oldest version of TLS that a listener accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MinVersion {
    /// TLS 1.2
    #[serde(rename = "1.2")]
    Tls12,
    /// TLS 1.3
    #[serde(rename = "1.3")]
    Tls13,
}

/// Kind of a listener: whom it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Native clients.
    Native,
    /// HTTP and WebSocket clients.
    Http,
    /// The operator: metrics, health, sessions.
    Admin,
}

impl Kind {
    /// All kinds, in the order of the `listening` line.
    pub const ALL: [Kind; 3] = [Kind::Native, Kind::Http, Kind::Admin];

    /// The core's kind for it; `None` if its connections are not clients.
    pub fn of_clients(self) -> Option<ListenerKind> {
        match self {
            Kind::Native => Some(ListenerKind::Native),
            Kind::Http => Some(ListenerKind::Http),
            Kind::Admin => None,
        }
    }

    /// Name in the configuration file.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Native => "native",
            Kind::Http => "http",
            Kind::Admin => "admin",
        }
    }

    /// Name of the option that sets the address of the first listener of this kind; also its `FileDescriptorName=`.
    pub fn option(self) -> &'static str {
        match self {
            Kind::Native => "tcp",
            Kind::Http => "http",
            Kind::Admin => "admin",
        }
    }
}

/// Address of a listener: `IP:PORT`, `localhost:PORT` (127.0.0.1) or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A TCP address; port 0 is any free port.
    Tcp(SocketAddr),
    /// The absolute path of a Unix stream socket.
    Unix(PathBuf),
}

impl Address {
    /// The TCP address; `None` for a Unix socket.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Address::Tcp(address) => Some(*address),
            Address::Unix(_) => None,
        }
    }

    /// Whether only this machine can reach it: a Unix socket or a loopback address, including IPv4-mapped ones.
    pub fn is_local(&self) -> bool {
        self.tcp().is_none_or(|address| address.ip().to_canonical().is_loopback())
    }
}

tickcast_common::as_text!(Address);

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        Address::Tcp(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "{address}"),
            Address::Unix(path) => write!(f, "{UNIX_PREFIX}{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let Some(path) = text.strip_prefix(UNIX_PREFIX) else {
            return tcp_address(text).map(Address::Tcp);
        };
        if !Path::new(path).is_absolute() {
            return Err("the path of a Unix socket must be absolute: unix:/run/tickcast.sock".to_owned());
        }
        if path.len() > limits::UNIX_PATH_BYTES_MAX {
            let (bytes, bytes_max) = (path.len(), limits::UNIX_PATH_BYTES_MAX);
            return Err(format!(
                "the path of the Unix socket is too long: {bytes} bytes, the limit is {bytes_max}"
            ));
        }
        Ok(Address::Unix(path.into()))
    }
}

/// Parses `IP:PORT` or `localhost:PORT`. Resolves no other name, because its address may change and may be several.
///
/// # Errors
/// The text says what to write instead.
pub fn tcp_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    match port.parse::<u16>() {
        Ok(port) if host.eq_ignore_ascii_case("localhost") => Ok((Ipv4Addr::LOCALHOST, port).into()),
        Ok(port) => Err(format!(
            "not an IP address and a port: write 127.0.0.1:{port} for clients on this machine, 0.0.0.0:{port} for all IPv4 \
             networks, or [::]:{port}"
        )),
        Err(_) => Err("not an address: write IP:PORT, localhost:PORT or unix:/path".to_owned()),
    }
}

/// Refuses a listener that other machines can reach although the configuration does not define who may use it.
pub fn open_to_all(kind: Kind, address: &Address) -> String {
    match kind {
        Kind::Native | Kind::Http => format!(
            "{address}: other machines reach it, and without [auth] anyone may read and write every topic; configure [auth], or \
             accept that with --allow-anonymous"
        ),
        Kind::Admin => format!(
            "{address}: other machines reach it, and anyone may close sessions and revoke tokens; configure [[auth.operator]], or \
             client_ca in the listener's tls, whose certificates are then operators, or accept that with --allow-anonymous"
        ),
    }
}

/// The validated configuration of one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Whom it serves.
    pub kind: Kind,
    /// Address to listen on.
    pub address: Address,
    /// How a trusted proxy gives the address of its client.
    pub client: ClientAddress,
    /// Bounds of what the kernel buffers for an accepted TCP socket.
    pub socket: SocketBounds,
    /// Certificates; `None`: connections are not encrypted.
    pub tls: Option<TlsTable>,
    /// Permissions of a Unix socket's file.
    pub mode: u32,
    /// Whether its clients may only subscribe.
    pub is_read_only: bool,
    /// Tenant of its clients; the default: that of their host name or token.
    pub tenant: TenantId,
    /// Whether the configuration defines who may use it, or allows everyone. Otherwise only this machine may reach it.
    pub is_guarded: bool,
    /// Name in errors: the option that set its address, or its line in the file.
    pub named: String,
}

/// Bounds of what the kernel buffers for one client. Further ticks wait in the server, where they can be conflated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketBounds {
    /// SO_SNDBUF, bytes; `None`: the kernel sizes it automatically.
    pub send_bytes: Option<usize>,
    /// TCP_NOTSENT_LOWAT, bytes; 0: the kernel's default.
    pub notsent_lowat_bytes: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["127.0.0.1:0", "[::1]:9400", "unix:/run/tickcast/native.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("LocalHost:9400".parse::<Address>().unwrap().to_string(), "127.0.0.1:9400");
        let long = format!("unix:/{}", "x".repeat(limits::UNIX_PATH_BYTES_MAX));
        for (bad, why) in [
            ("9400", "127.0.0.1:9400"),
            (":9400", "127.0.0.1:9400"),
            ("*:9400", "0.0.0.0:9400"),
            ("example.com:9400", "0.0.0.0:9400"),
            ("::1:9400", "[::]:9400"),
            ("localhost", "IP:PORT"),
            ("localhost:65536", "IP:PORT"),
            ("", "IP:PORT"),
            ("unix:run/x.sock", "absolute"),
            ("unix:", "absolute"),
            (&long, "108 bytes, the limit is 107"),
        ] {
            assert!(bad.parse::<Address>().unwrap_err().contains(why), "{bad}");
        }
    }
}
