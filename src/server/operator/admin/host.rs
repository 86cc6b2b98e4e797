//! Checks a request's host: exactly one, well-formed, and on a local listener not the name of a foreign web page.

use http::{HeaderValue, Version, uri::Authority};

use tickcast_proto::http::host::{is_address_or_localhost, is_same, is_well_formed, parse};

use super::route::RequestError;

/// Checks the Host headers of a request and the authority of its target, if that is in absolute form.
///
/// # Errors
/// 400 unless there is one Host header (HTTP/1.0: at most one) with a host and an optional port, and the target has the same
/// host (RFC 9112, section 3.2). 403 if the listener `is_local` and the host is neither an IP address nor localhost.
pub fn check<'a>(
    version: Version,
    mut headers: impl Iterator<Item = &'a HeaderValue>,
    target: Option<&Authority>,
    is_local: bool,
) -> Result<(), RequestError> {
    let bad_request = |message| Err(RequestError::new(400, message));
    let header = headers.next();
    if headers.next().is_some() {
        return bad_request("more than one Host header");
    }
    if header.is_none() && version >= Version::HTTP_11 {
        return bad_request("no Host header");
    }
    let named = header.map(|value| parse(value.as_bytes()));
    let header = match named {
        Some(None) => return bad_request("malformed Host header"),
        named => named.flatten(),
    };
    if !target.into_iter().all(is_well_formed) {
        return bad_request("malformed host in the request target");
    }
    let mut hosts = header.iter().chain(target);
    if is_local && !hosts.all(|host| is_address_or_localhost(host.host())) {
        let message = "this listener is local: the Host header must be an IP address or localhost";
        return Err(RequestError::new(403, message));
    }
    match (&header, target) {
        (Some(header), Some(target)) if !is_same(header, target, 80) => {
            bad_request("the request target is for another host than the Host header")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(version: Version, hosts: &[&str], target: Option<&str>, is_local: bool) -> u16 {
        let headers: Vec<HeaderValue> =
            hosts.iter().map(|host| HeaderValue::from_bytes(host.as_bytes()).unwrap()).collect();
        let target = target.map(|target| target.parse().unwrap());
        check(version, headers.iter(), target.as_ref(), is_local).map_or_else(|error| error.status, |()| 200)
    }

    #[test]
    fn a_request_has_one_well_formed_host() {
        let of = |hosts: &[&str]| status(Version::HTTP_11, hosts, None, false);
        for host in
            ["x", "x:", "x:80", "x.example:65535", "127.0.0.1:9490", "[::1]", "[::1]:9490", "LOCALHOST"]
        {
            assert_eq!(of(&[host]), 200, "{host}");
        }
        for host in [
            "",
            " ",
            ":",
            ":80",
            "x:y",
            "x:65536",
            "x:-1",
            "x:80:80",
            "user@x",
            "user:password@x",
            "@x",
            "x y",
            "x/",
            "x?",
            "x#",
            "http://x",
            "[::1",
            "::1]",
            "[x]",
            "[]",
            "[::1]x",
            "[::1]80",
            "::1",
            "x\\",
            "\u{e4}",
            "x\t",
            "%zz",
        ] {
            assert_eq!(of(&[host]), 400, "{host:?}");
        }
        assert_eq!((of(&[]), of(&["x", "x"]), of(&["x", "y"]), of(&["x", ""])), (400, 400, 400, 400));
        assert_eq!(status(Version::HTTP_10, &[], None, true), 200);
        assert_eq!(status(Version::HTTP_10, &["x", "x"], None, false), 400);
        assert_eq!(status(Version::HTTP_10, &["x@y"], None, false), 400);
    }

    #[test]
    fn a_target_in_absolute_form_is_for_the_same_host() {
        let of = |host: &str, target| status(Version::HTTP_11, &[host], Some(target), false);
        for (host, target) in [("x", "x"), ("x", "X:80"), ("x:80", "x"), ("[::1]:9490", "[::1]:9490")] {
            assert_eq!(of(host, target), 200, "{host} {target}");
        }
        for (host, target) in
            [("x", "y"), ("x:9490", "x"), ("x:9490", "x:9491"), ("x", "user@x"), ("x", "x:y"), ("", "x")]
        {
            assert_eq!(of(host, target), 400, "{host} {target}");
        }
        assert_eq!(status(Version::HTTP_11, &[], Some("x"), false), 400);
        assert_eq!(status(Version::HTTP_10, &[], Some("x"), false), 200);
    }

    #[test]
    fn a_local_listener_refuses_foreign_names() {
        let of = |hosts: &[&str], target| status(Version::HTTP_11, hosts, target, true);
        assert_eq!((of(&["localhost:1"], None), of(&["127.0.0.1"], Some("127.0.0.1"))), (200, 200));
        assert_eq!((of(&["x"], None), of(&["localhost"], Some("x"))), (403, 403));
        assert_eq!(of(&["localhost"], Some("127.0.0.1")), 400);
        assert_eq!(status(Version::HTTP_10, &["x"], None, true), 403);
    }
}
