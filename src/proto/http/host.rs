//! The host that a request is for (RFC 9110, section 7.2).

use std::net::{IpAddr, Ipv6Addr};

use http::uri::Authority;

/// Parses a Host header or the authority of a request target. `None` unless it is a host with an optional port: no user, no
/// empty name, no invalid address in brackets.
pub fn parse(bytes: &[u8]) -> Option<Authority> {
    Authority::try_from(bytes).ok().filter(is_well_formed)
}

/// Whether an authority is a host with an optional port; see [`parse`].
pub fn is_well_formed(authority: &Authority) -> bool {
    let (whole, host) = (authority.as_str(), authority.host());
    let is_host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok()),
        None => !host.is_empty(),
    };
    let is_port = match whole.strip_prefix(host) {
        Some("" | ":") => true,
        Some(rest) => authority.port_u16().is_some() && rest.starts_with(':'),
        // A user precedes the host.
        None => false,
    };
    is_host && is_port && !whole.contains('@')
}

/// Whether two authorities are the same host and port. An authority without a port has `default_port`.
pub fn is_same(one: &Authority, other: &Authority, default_port: u16) -> bool {
    let port = |authority: &Authority| authority.port_u16().unwrap_or(default_port);
    one.host().eq_ignore_ascii_case(other.host()) && port(one) == port(other)
}

/// Whether a host is an IP address, `localhost` or a name below it. An attacker cannot point these elsewhere (RFC 6761,
/// section 6.3), so a page at such a host is not foreign.
pub fn is_address_or_localhost(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let last_label = host.rsplit('.').next().unwrap_or_default();
    last_label.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}
