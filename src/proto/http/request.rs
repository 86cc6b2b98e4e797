//! Request heads, and the checks that apply to every resource.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header, uri::Authority};

use super::{Failure, body::BodyLength, host, list_elements};
use crate::{Step, limits::HTTP_HEADERS_MAX};

/// A request head.
pub(super) struct Request {
    /// Method, target, version and headers.
    pub(super) head: http::Request<()>,
    /// The requested host. An HTTP/1.0 request may have none.
    pub(super) authority: Option<Authority>,
    /// The body's length.
    pub(super) body: BodyLength,
    /// Whether the client sends the body only when asked to.
    pub(super) expects_continue: bool,
    /// Whether the client may send another request on this connection.
    pub(super) keeps_alive: bool,
}

impl Request {
    pub(super) fn is_head(&self) -> bool {
        self.head.method() == Method::HEAD
    }

    /// Elements of a list header, over all its lines.
    pub(super) fn list(&self, name: HeaderName) -> impl Iterator<Item = &[u8]> {
        list(self.head.headers(), name)
    }

    /// The addresses in `X-Forwarded-For`, from the last proxy backwards, up to the first invalid one.
    pub(super) fn forwarded_for(&self) -> Vec<IpAddr> {
        let name = HeaderName::from_static("x-forwarded-for");
        let elements: Vec<&[u8]> = self.list(name).collect();
        elements.into_iter().rev().map_while(forwarded_address).collect()
    }

    /// Whether a list header has this element, in any case.
    pub(super) fn lists(&self, name: HeaderName, element: &str) -> bool {
        lists(self.head.headers(), name, element)
    }
}

fn list(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    list_elements(headers.get_all(name).into_iter().map(HeaderValue::as_bytes))
}

fn lists(headers: &HeaderMap, name: HeaderName, element: &str) -> bool {
    list(headers, name).any(|found| found.eq_ignore_ascii_case(element.as_bytes()))
}

/// An address as proxies write it: with a port or without, IPv6 in brackets or not.
fn forwarded_address(element: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(element).ok()?;
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse().ok().map(|address: SocketAddr| address.ip()))
}

/// Parses and checks the request head at the start of `bytes`.
///
/// # Errors
/// What is wrong, and whether the method is HEAD. The end of the request is then unknown.
pub(super) fn parse(bytes: &[u8], head_bytes_max: usize) -> Result<Step<Request>, (Failure, bool)> {
    let head = &bytes[..bytes.len().min(head_bytes_max)];
    let mut headers = [httparse::EMPTY_HEADER; HTTP_HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let too_large = |text| Failure(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, text);
    let failure = match request.parse(head) {
        Ok(httparse::Status::Complete(used)) => match check(&request) {
            Ok(request) => return Ok(Step::Complete(used, request)),
            Err(failure) => failure,
        },
        Ok(httparse::Status::Partial) if bytes.len() < head_bytes_max => return Ok(Step::Partial),
        Ok(httparse::Status::Partial) => {
            too_large(format!("the request head is longer than {head_bytes_max} bytes"))
        }
        Err(httparse::Error::TooManyHeaders) => {
            too_large(format!("the request has more than {HTTP_HEADERS_MAX} headers"))
        }
        Err(error) => Failure::bad_request(format!("malformed HTTP request: {error}")),
    };
    Err((failure, request.method == Some("HEAD")))
}

fn check(request: &httparse::Request<'_, '_>) -> Result<Request, Failure> {
    let head = convert(request)?;
    let (headers, is_1_0) = (head.headers(), head.version() < Version::HTTP_11);
    for single in [
        header::HOST,
        header::ORIGIN,
        header::AUTHORIZATION,
        header::SEC_WEBSOCKET_KEY,
        header::CONTENT_LENGTH,
        header::EXPECT,
    ] {
        if headers.get_all(&single).iter().nth(1).is_some() {
            return Err(Failure::bad_request(format!("header {single} is given more than once")));
        }
    }
    let authority = authority(&head)?;
    let expects_continue = match headers.get(header::EXPECT) {
        None => false,
        // A client of HTTP/1.0 does not wait (RFC 9110, section 10.1.1).
        Some(expected) if expected.as_bytes().eq_ignore_ascii_case(b"100-continue") => !is_1_0,
        Some(_) => {
            return Err(Failure(
                StatusCode::EXPECTATION_FAILED,
                "header expect may only be 100-continue".into(),
            ));
        }
    };
    Ok(Request {
        authority,
        body: body_length(headers, is_1_0)?,
        expects_continue,
        keeps_alive: !lists(headers, header::CONNECTION, "close")
            && (!is_1_0 || lists(headers, header::CONNECTION, "keep-alive")),
        head,
    })
}

/// Converts to the `http` crate's request.
fn convert(request: &httparse::Request<'_, '_>) -> Result<http::Request<()>, Failure> {
    let bad = |error: http::Error| Failure::bad_request(format!("malformed HTTP request: {error}"));
    let target = request.path.unwrap_or_default();
    if target.contains('#') {
        return Err(Failure::bad_request("the request target has a fragment: write # as %23"));
    }
    // RFC 3986 requires %3E for the `>` of a pattern, but many WebSocket tools send it unescaped.
    let target = target.replace('>', "%3E");
    let mut parts = http::Request::builder()
        .method(request.method.unwrap_or_default())
        .uri(target)
        .version(if request.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 })
        .body(())
        .map_err(bad)?;
    for field in request.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|error| bad(error.into()))?;
        let value = HeaderValue::from_bytes(field.value).map_err(|error| bad(error.into()))?;
        parts.headers_mut().append(name, value);
    }
    Ok(parts)
}

/// The requested host: from Host, and from the target if it is in absolute form (RFC 9112, section 3.2).
fn authority(head: &http::Request<()>) -> Result<Option<Authority>, Failure> {
    let named = match head.headers().get(header::HOST) {
        Some(value) => {
            Some(host::parse(value.as_bytes()).ok_or_else(|| Failure::bad_request("malformed header host"))?)
        }
        None if head.version() >= Version::HTTP_11 => {
            return Err(Failure::bad_request("header host is missing (RFC 9112, section 3.2)"));
        }
        None => None,
    };
    match (head.uri().authority(), named) {
        (Some(target), _) if !host::is_well_formed(target) => {
            Err(Failure::bad_request("malformed host in the request target"))
        }
        (Some(target), Some(named)) if !host::is_same(target, &named, 80) => {
            Err(Failure::bad_request("the request target is for another host than header host"))
        }
        (Some(target), _) => Ok(Some(target.clone())),
        (None, named) => Ok(named),
    }
}

/// The length of a request's body (RFC 9112, section 6.3). Refuses both headers at once, which request smuggling uses.
fn body_length(headers: &HeaderMap, is_1_0: bool) -> Result<BodyLength, Failure> {
    let length = headers.get(header::CONTENT_LENGTH);
    if headers.contains_key(header::TRANSFER_ENCODING) {
        if length.is_some() {
            return Err(Failure::bad_request(
                "headers transfer-encoding and content-length exclude each other",
            ));
        }
        if is_1_0 {
            return Err(Failure::bad_request("HTTP/1.0 knows no transfer-encoding"));
        }
        let mut codings = list(headers, header::TRANSFER_ENCODING);
        return match (codings.next(), codings.next()) {
            (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => Ok(BodyLength::Chunked),
            _ => Err(Failure(
                StatusCode::NOT_IMPLEMENTED,
                "header transfer-encoding may only be chunked".to_owned(),
            )),
        };
    }
    let Some(length) = length else { return Ok(BodyLength::Bytes(0)) };
    let digits = length.as_bytes().trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Failure::bad_request("header content-length is not a number of bytes"));
    }
    let bytes = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
    Ok(BodyLength::Bytes(bytes.unwrap_or(usize::MAX)))
}
