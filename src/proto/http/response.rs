//! Responses and their bytes.

use std::{
    borrow::Cow,
    fmt::Write as _,
    time::{Duration, UNIX_EPOCH},
};

use http::StatusCode;

/// The part of a response that depends on the resource.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// Header lines of this response, each with its line break. The headers of every response are added to them.
    pub fields: String,
    /// The content.
    pub body: Cow<'static, [u8]>,
}

/// The part of a response that depends on the request and its connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delivery {
    /// The request was HEAD: the response is that of a GET without its content (RFC 9110, section 9.3.2).
    pub is_head: bool,
    /// Whether the connection stays open.
    pub keeps_alive: bool,
    /// Whether the client speaks HTTP/1.0: then a header must say that the connection stays open.
    pub is_1_0: bool,
    /// The time, CLOCK_REALTIME nanoseconds.
    pub realtime_ns: u64,
}

impl Response {
    /// One line of text.
    pub fn text(status: StatusCode, text: &str) -> Response {
        let fields = "Content-Type: text/plain; charset=utf-8\r\n".to_owned();
        Response { status, fields, body: Cow::Owned(format!("{text}\n").into_bytes()) }
    }

    pub(super) fn encode(&self, delivery: Delivery) -> Vec<u8> {
        let mut head = format!(
            "HTTP/1.1 {} {}\r\nDate: {}\r\n",
            self.status.as_u16(),
            self.status.canonical_reason().unwrap_or_default(),
            date(delivery.realtime_ns)
        );
        // Upgrade is an option of this connection only, and Connection lists it (RFC 9110, section 7.8).
        let connection = match (self.status, delivery.keeps_alive) {
            (StatusCode::UPGRADE_REQUIRED, true) => "Connection: upgrade\r\n",
            (StatusCode::UPGRADE_REQUIRED, false) => "Connection: upgrade, close\r\n",
            (_, false) => "Connection: close\r\n",
            (_, true) if delivery.is_1_0 => "Connection: keep-alive\r\n",
            (_, true) => "",
        };
        head += connection;
        // A HEAD without the content that a GET would get leaves out its length (RFC 9110, section 9.3.2).
        let is_unknown = delivery.is_head && self.body.is_empty();
        if !is_unknown && ![StatusCode::NOT_MODIFIED, StatusCode::NO_CONTENT].contains(&self.status) {
            // Writing to a String cannot fail.
            let _ = write!(head, "Content-Length: {}\r\n", self.body.len());
        }
        head += "X-Content-Type-Options: nosniff\r\n";
        head += &self.fields;
        head += "\r\n";
        let mut bytes = head.into_bytes();
        if !delivery.is_head {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

/// A time in HTTP's format (RFC 9110, section 5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`. Never panics: 64 bits of nanoseconds end
/// in the year 2554.
pub(super) fn date(realtime_ns: u64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_nanos(realtime_ns))
}
