//! Which web pages may open a WebSocket or a stream, or send other requests with credentials, and which host names the server answers to.
//! Browsers do not apply the same-origin policy to WebSockets: they send `Origin` and let the server decide (RFC
//! 6455, section 10.2). A page may use its own server, and servers whose operators allow it.
//! In a DNS rebinding attack, a foreign page's name points to the server's address, so that the page looks like the server's
//! own. Therefore the server also checks the name. A page at an IP address or localhost is never foreign. Neither is a page
//! that was loaded over TLS, because the attacker has no certificate for the server's name.

use std::str::FromStr;

use http::{HeaderValue, StatusCode, header, uri::Authority};

use super::{Failure, host, request::Request};

/// Origins and host names that are allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Origins allowed besides the one of the request's own host.
    pub origins: Vec<OriginPattern>,
    /// Host names that requests may use, besides IP addresses and localhost; empty: any, except if `is_local`.
    pub hosts: Vec<HostPattern>,
    /// Whether only this machine can connect. Then a page at an unlisted name is not the server's own.
    pub is_local: bool,
}

/// Hosts that are allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// `*`: every host.
    Any,
    /// One host.
    Exact(String),
    /// `*.example.com`: names that end in this one, which starts with a dot.
    Below(String),
}

/// Origins that are allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPattern {
    /// `*`: every origin.
    Any,
    /// `null`: pages without an origin, such as files and sandboxed frames.
    Null,
    /// Pages of a scheme, host and port.
    Page {
        /// `https`.
        scheme: String,
        /// The host, or names below it.
        host: HostPattern,
        /// The port.
        port: u16,
    },
}

impl Access {
    /// Checks the host of a request, if the operator lists the hosts.
    pub(super) fn check_host(&self, host: Option<&Authority>) -> Result<(), Failure> {
        match host {
            Some(host) if !self.hosts.is_empty() && !self.lists(host) => Err(forbidden(format!(
                "{:?} is not a name of this server; --allow-host {} adds it",
                host.as_str(),
                host.host()
            ))),
            _ => Ok(()),
        }
    }

    /// Checks the origin of a request to `host`. Clients other than browsers send none.
    pub(super) fn check_origin(&self, origin: Option<&HeaderValue>, host: &Authority) -> Result<(), Failure> {
        let Some(text) = origin else { return Ok(()) };
        let Ok(text) = text.to_str() else { return Err(Failure::bad_request("malformed header origin")) };
        let origin = Origin::parse(text);
        if self.origins.iter().any(|pattern| pattern.allows(text, origin.as_ref())) {
            return Ok(());
        }
        let Some(own) = origin.filter(|origin| host::is_same(&origin.host, host, origin.default_port)) else {
            return Err(forbidden(format!(
                "a page of {text:?} may not connect to {:?}; --allow-origin {text} allows it",
                host.as_str()
            )));
        };
        if self.is_local && own.scheme == "http" && !self.lists(host) {
            return Err(forbidden(format!(
                "this server is local, and {:?} is neither an IP address nor localhost; --allow-host {} allows it",
                host.as_str(),
                host.host()
            )));
        }
        Ok(())
    }

    fn lists(&self, host: &Authority) -> bool {
        host::is_address_or_localhost(host.host())
            || self.hosts.iter().any(|pattern| pattern.allows(host.host()))
    }
}

/// The header lines that let a browser show the answer to a request to the page that has sent it (Fetch, section 3.2); none for
/// other clients.
///
/// # Errors
/// The page is of an origin that is not allowed.
pub(super) fn cors(access: &Access, request: &Request) -> Result<String, Failure> {
    let (Some(origin), Some(host)) = (request.head.headers().get(header::ORIGIN), &request.authority) else {
        return Ok(String::new());
    };
    access.check_origin(Some(origin), host)?;
    let origin = origin.to_str().unwrap_or_default();
    Ok(format!("Access-Control-Allow-Origin: {origin}\r\nVary: Origin\r\n"))
}

fn forbidden(text: String) -> Failure {
    Failure(StatusCode::FORBIDDEN, text)
}

/// The origin of a page (RFC 6454, section 7).
struct Origin<'a> {
    scheme: &'a str,
    host: Authority,
    default_port: u16,
}

impl Origin<'_> {
    /// `None` for `null`, and for schemes without hosts.
    fn parse(text: &str) -> Option<Origin<'_>> {
        let (scheme, rest) = text.split_once("://")?;
        let default_port = match scheme {
            "http" => 80,
            "https" => 443,
            _ => 0,
        };
        Some(Origin { scheme, host: host::parse(rest.as_bytes())?, default_port })
    }
}

impl HostPattern {
    fn allows(&self, host: &str) -> bool {
        match self {
            HostPattern::Any => true,
            HostPattern::Exact(name) => host.eq_ignore_ascii_case(name),
            HostPattern::Below(suffix) => {
                let at = host.len().saturating_sub(suffix.len());
                at > 0 && host.get(at..).is_some_and(|end| end.eq_ignore_ascii_case(suffix))
            }
        }
    }
}

impl OriginPattern {
    fn allows(&self, text: &str, origin: Option<&Origin<'_>>) -> bool {
        match (self, origin) {
            (OriginPattern::Any, _) => true,
            (OriginPattern::Null, _) => text == "null",
            (OriginPattern::Page { scheme, host, port }, Some(origin)) => {
                origin.scheme == scheme
                    && origin.host.port_u16().unwrap_or(origin.default_port) == *port
                    && host.allows(origin.host.host())
            }
            (OriginPattern::Page { .. }, None) => false,
        }
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<HostPattern, String> {
        let is_name = |name: &str| {
            host::parse(name.as_bytes()).is_some_and(|host| host.host() == name) && !name.contains('*')
        };
        match text.strip_prefix('*') {
            Some("") => Ok(HostPattern::Any),
            Some(suffix) if suffix.strip_prefix('.').is_some_and(is_name) => {
                Ok(HostPattern::Below(suffix.to_ascii_lowercase()))
            }
            None if is_name(text) => Ok(HostPattern::Exact(text.to_ascii_lowercase())),
            _ => Err(format!("{text:?} is not a host; use ticks.example.com, *.example.com or *")),
        }
    }
}

impl FromStr for OriginPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<OriginPattern, String> {
        let page = || {
            let (scheme, rest) = text.split_once("://")?;
            let named = rest.strip_prefix("*.").unwrap_or(rest);
            if named.contains('*') {
                return None;
            }
            // Without `*.`, the pattern is an origin.
            let origin = format!("{}://{named}", scheme.to_ascii_lowercase());
            let Origin { scheme, host, default_port } = Origin::parse(&origin)?;
            let below = if named.len() < rest.len() { "*." } else { "" };
            let port = host.port_u16().unwrap_or(default_port);
            let host = format!("{below}{}", host.host()).parse().ok()?;
            Some(OriginPattern::Page { scheme: scheme.to_owned(), host, port })
        };
        match text {
            "*" => Ok(OriginPattern::Any),
            "null" => Ok(OriginPattern::Null),
            _ => page().ok_or_else(|| {
                format!(
                    "{text:?} is not an origin; use https://app.example.com, https://*.example.com, null or *"
                )
            }),
        }
    }
}
