//! Which web pages may open a WebSocket or a stream, or send other requests with credentials, and which host names the server answers to.
//! Browsers do not apply the same-origin policy to WebSockets: they send `Origin` and let the server decide (RFC
//! 6455, section 10.2). A page may use its own server, and servers whose operators allow it.
//! In a DNS rebinding attack, a foreign page's name points to the server's address, so that the page looks like the server's
//! own. Its browser then sends no `Origin` with a GET that is not a WebSocket handshake. Therefore the server also checks the
//! name, whatever is asked for that a page could not read anywhere. A page at an IP address or localhost is never foreign.
//! Neither is a page that was loaded over TLS, because the attacker has no certificate for the server's name.

use std::str::FromStr;

use http::{HeaderName, HeaderValue, StatusCode, header, uri::Authority};

use super::{Failure, host, request::Request};

/// Origins and host names that are allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Origins allowed besides the one of the request's own host.
    pub origins: Vec<OriginPattern>,
    /// Host names that requests may use, besides IP addresses and localhost; empty: any, except if `is_local`.
    pub hosts: Vec<HostPattern>,
    /// Host names of tenants, which are names of this server too.
    pub tenant_hosts: Vec<HostPattern>,
    /// Whether only this machine can connect. Then a page at an unlisted name is not the server's own.
    pub is_local: bool,
}

/// Who has sent a request, as far as that shows whether a web page can have sent it directly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sender {
    /// Perhaps a browser.
    #[default]
    Anyone,
    /// A trusted proxy, if the request has `X-Forwarded-For`.
    ForwardingProxy,
    /// A trusted proxy, because the connection begins with a PROXY header. Connections over TLS or a Unix socket count as one: an
    /// attacker has no certificate for a name that points here, and no browser connects to a Unix socket.
    Proxy,
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
    /// Checks the host of a request: that the operator lists it or, if none is listed, that no web page of a foreign site can
    /// have sent the request under it. `is_public`: what it asks for is no secret, such as the server's own page.
    pub(super) fn check_host(
        &self,
        request: &Request,
        sender: Sender,
        is_public: bool,
    ) -> Result<(), Failure> {
        let Some(host) = request.authority.as_ref().filter(|host| !self.lists(host)) else { return Ok(()) };
        let (whole, name) = (host.as_str(), host.host());
        if !self.hosts.is_empty() {
            let text = format!("{whole:?} is not a name of this server; --allow-host {name} adds it");
            return Err(forbidden(text));
        }
        if self.is_local && !is_public && self.may_be_rebound(request, host, sender) {
            return Err(forbidden(format!(
                "this server is local, and {whole:?} is neither an IP address nor localhost; --allow-host {name} allows it"
            )));
        }
        Ok(())
    }

    /// Whether a web page may have sent the request after its name was made to point here. Such a page has been loaded over plain
    /// HTTP, and the request is for its own host and port.
    fn may_be_rebound(&self, request: &Request, host: &Authority, sender: Sender) -> bool {
        let headers = request.head.headers();
        let is_proxied = match sender {
            Sender::Anyone => false,
            Sender::ForwardingProxy => headers.contains_key(HeaderName::from_static("x-forwarded-for")),
            Sender::Proxy => true,
        };
        if is_proxied || self.origins.contains(&OriginPattern::Any) {
            return false;
        }
        // Browsers send no origin with a GET of their own page. But they always send one with a WebSocket handshake (RFC 6455,
        // section 4.1), and no page can set the header Upgrade itself (Fetch, forbidden request-headers).
        let Some(origin) = headers.get(header::ORIGIN) else { return !headers.contains_key(header::UPGRADE) };
        let text = origin.to_str().unwrap_or_default();
        let origin = Origin::parse(text);
        if self.origins.iter().any(|pattern| pattern.allows(text, origin.as_ref())) {
            return false;
        }
        // `check_origin` refuses the pages of other hosts.
        origin.is_some_and(|own| own.scheme == "http" && host::is_same(&own.host, host, own.default_port))
    }

    /// Checks the origin of a request to `host`, whose host has been checked. Clients other than browsers send none.
    pub(super) fn check_origin(&self, origin: Option<&HeaderValue>, host: &Authority) -> Result<(), Failure> {
        let Some(text) = origin else { return Ok(()) };
        let Ok(text) = text.to_str() else { return Err(Failure::bad_request("malformed header origin")) };
        let origin = Origin::parse(text);
        if self.origins.iter().any(|pattern| pattern.allows(text, origin.as_ref())) {
            return Ok(());
        }
        if !origin.is_some_and(|own| host::is_same(&own.host, host, own.default_port)) {
            return Err(forbidden(format!(
                "a page of {text:?} may not connect to {:?}; --allow-origin {text} allows it",
                host.as_str()
            )));
        }
        Ok(())
    }

    fn lists(&self, host: &Authority) -> bool {
        host::is_address_or_localhost(host.host())
            || self.hosts.iter().chain(&self.tenant_hosts).any(|pattern| pattern.allows(host.host()))
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
    // The server has no cookies, but a balancer in front of it may have one, to lead a client's requests to one server. A page that
    // is allowed only because every page is may not send it.
    let parsed = Origin::parse(origin);
    let is_listed = access.origins.iter().any(|pattern| pattern.allows(origin, parsed.as_ref()));
    let with_credentials = match is_listed && !access.origins.contains(&OriginPattern::Any) {
        true => "Access-Control-Allow-Credentials: true\r\n",
        false => "",
    };
    Ok(format!(
        "Access-Control-Allow-Origin: {origin}\r\n{with_credentials}Access-Control-Expose-Headers: Retry-After\r\nVary: Origin\r\n"
    ))
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
