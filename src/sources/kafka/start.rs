//! Where reading begins.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use tickcast_common::clock;
use tickcast_proto::units::{format_duration, parse_duration_ns};

/// Where to begin: `new`, `all`, an offset of every partition, a time (RFC 3339) or a window before now (`10m`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    /// With the next message.
    New,
    /// With the oldest message.
    All,
    /// With this offset.
    Offset(i64),
    /// With the first message of this time or later.
    Time(jiff::Timestamp),
    /// With the first message that is not older than this many nanoseconds.
    Window(u64),
}

impl Start {
    /// The time to begin with, milliseconds since 1970.
    pub fn time_ms(self) -> Option<i64> {
        match self {
            Start::New | Start::All | Start::Offset(_) => None,
            Start::Time(time) => Some(time.as_millisecond()),
            Start::Window(window_ns) => {
                let from_ns = clock::realtime_ns().saturating_sub(window_ns);
                Some((from_ns / 1_000_000).cast_signed())
            }
        }
    }
}

impl FromStr for Start {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Start, &'static str> {
        match text {
            "new" => return Ok(Start::New),
            "all" => return Ok(Start::All),
            _ => {}
        }
        if let Ok(offset @ 0..) = text.parse() {
            return Ok(Start::Offset(offset));
        }
        if let Ok(window_ns) = parse_duration_ns(text) {
            return Ok(Start::Window(window_ns));
        }
        text.parse().map(Start::Time).map_err(
            |_| "use new, all, an offset, a window such as 10m or a time such as 2026-01-31T08:00:00Z",
        )
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Start::New => f.write_str("new"),
            Start::All => f.write_str("all"),
            Start::Offset(offset) => write!(f, "{offset}"),
            Start::Time(time) => write!(f, "{time}"),
            Start::Window(ns) => f.write_str(&format_duration(*ns)),
        }
    }
}

impl Serialize for Start {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Start {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Start, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(offset) => i64::try_from(offset)
                .map(Start::Offset)
                .map_err(|_| D::Error::custom("the offset is too large")),
            Written::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_read_as_it_is_written() {
        for (text, start) in [
            ("new", Start::New),
            ("all", Start::All),
            ("0", Start::Offset(0)),
            ("9007199254740993", Start::Offset(9_007_199_254_740_993)),
            ("10m", Start::Window(600_000_000_000)),
        ] {
            assert_eq!(text.parse(), Ok(start));
            assert_eq!(start.to_string(), text);
        }
        for text in ["2026-01-31T08:00:00Z", "2026-01-31T08:00:00.001Z"] {
            let start: Start = text.parse().unwrap();
            assert!(matches!(start, Start::Time(_)) && start.to_string() == text, "{start}");
        }
        let eight = "2026-01-31T08:00:00Z".parse::<Start>().unwrap();
        assert_eq!("2026-01-31T09:00:00+01:00".parse(), Ok(eight));
        assert_eq!(eight.time_ms(), Some(1_769_846_400_000));
        for bad in ["", "newest", "-1", "10 minutes", "2026-01-31"] {
            assert!(bad.parse::<Start>().is_err(), "{bad}");
        }
    }
}
