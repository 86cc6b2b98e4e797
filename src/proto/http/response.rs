//! Responses and their bytes.

use std::{borrow::Cow, fmt::Write as _};

use http::StatusCode;

/// A response, as far as it depends on the resource.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// Header lines of this response, each with its line break. Those that every response has are added.
    pub fields: String,
    /// The content.
    pub body: Cow<'static, [u8]>,
}

/// How a response is sent: what depends on the request and its connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delivery {
    /// The request was HEAD: the response is that of a GET without its content (RFC 9110, section 9.3.2).
    pub is_head: bool,
    /// Whether the connection stays open.
    pub keeps_alive: bool,
    /// The client speaks HTTP/1.0, which needs to be told that the connection stays open.
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
            date(delivery.realtime_ns / 1_000_000_000)
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
        if self.status != StatusCode::NOT_MODIFIED {
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

/// A time, in seconds since 1970, as HTTP writes it (RFC 9110, section 5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`.
pub(super) fn date(unix_s: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    // Years begin in March here, so that a leap day is a year's last (Howard Hinnant, "chrono-compatible low-level date
    // algorithms", civil_from_days).
    let since_0 = days + 719_468;
    let (era, day_of_era) = (since_0 / 146_097, since_0 % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12;
    let year = 400 * era + year_of_era + u64::from(month < 2);
    format!(
        "{}, {day:02} {} {year} {:02}:{:02}:{:02} GMT",
        DAYS[(days % 7) as usize],
        MONTHS[month as usize],
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}
