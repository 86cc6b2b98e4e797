//! Types of option values, parsed the same way on the command line and in a file.

use std::{fmt, str::FromStr};

use serde::{Deserializer, Serializer, de};

use tickcast_core::flush_wait::{AUTO_WAIT_MAX_NS, LatencyBudget, SHORTEST_WAIT_NS};
use tickcast_proto::units::{UnitError, format_duration, format_size, parse_duration_ns, parse_size_bytes};

/// A time: `250ms`, `5s`, `0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Nanoseconds.
    pub ns: u64,
}

impl Time {
    /// From whole milliseconds.
    pub const fn from_ms(ms: u64) -> Time {
        Time { ns: ms * 1_000_000 }
    }

    /// From whole microseconds.
    pub const fn from_us(us: u64) -> Time {
        Time { ns: us * 1_000 }
    }
}

/// A latency budget: `auto`, `auto:2ms`, `5ms`, `0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget(pub LatencyBudget);

/// A size: `8MiB`, `64KiB`, `4096`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size {
    /// Bytes.
    pub bytes: usize,
}

impl Size {
    /// From bytes.
    pub const fn new(bytes: usize) -> Size {
        Size { bytes }
    }
}

/// Speed of a replay: a multiple of the capture's own pace, or as fast as possible.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// Multiple of the capture's own pace; finite and above 0.
    Factor(f64),
    /// As fast as the shards accept ticks.
    Max,
}

/// Permissions of a file, written in octal: `0660`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub u32);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_duration(self.ns))
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            LatencyBudget::Fixed { ns } => f.write_str(&format_duration(ns)),
            LatencyBudget::Auto { max_ns: AUTO_WAIT_MAX_NS } => f.write_str("auto"),
            LatencyBudget::Auto { max_ns } => write!(f, "auto:{}", format_duration(max_ns)),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_size(self.bytes as u64))
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Speed::Factor(factor) => write!(f, "{factor:?}"),
            Speed::Max => f.write_str("max"),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl FromStr for Time {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Time, UnitError> {
        parse_duration_ns(text).map(|ns| Time { ns })
    }
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Budget, String> {
        let time = |text: &str| {
            let ns = parse_duration_ns(text);
            ns.map_err(|error| {
                format!("{error}; or auto, or auto:MAX with the longest wait, such as auto:2ms")
            })
        };
        match (text, text.strip_prefix("auto:")) {
            ("auto", _) => Ok(Budget::default()),
            (_, Some(max)) => match time(max)? {
                max_ns @ 1..SHORTEST_WAIT_NS => Err(format!(
                    "auto:{} is too short: auto never waits less than {}; use auto:0 to never wait",
                    format_duration(max_ns),
                    format_duration(SHORTEST_WAIT_NS)
                )),
                max_ns => Ok(Budget(LatencyBudget::Auto { max_ns })),
            },
            (_, None) => time(text).map(|ns| Budget(LatencyBudget::Fixed { ns })),
        }
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Size, UnitError> {
        // The server is 64-bit, so every size fits a usize.
        parse_size_bytes(text).map(|bytes| Size { bytes: bytes as usize })
    }
}

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Speed, String> {
        match text.parse::<f64>() {
            _ if text == "max" => Ok(Speed::Max),
            Ok(factor) if factor.is_finite() && factor > 0.0 => Ok(Speed::Factor(factor)),
            _ => Err("must be a number above 0, or max".into()),
        }
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Mode, String> {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 && !text.starts_with('+') => Ok(Mode(mode)),
            _ => Err("must be octal digits up to 0777, such as 0660".into()),
        }
    }
}

/// Deserializes through `FromStr`. Accepts bare numbers as text: 0 is a valid time, 4096 a valid size, and the error for
/// a time of 5 names the units.
struct FromText<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err: fmt::Display>> de::Visitor<'_> for FromText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a number")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

/// Serializes and deserializes a value as text in the syntax of the command line.
pub mod text {
    use super::*;

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// For `#[serde(with)]`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn deserialize<'de, T: FromStr<Err: fmt::Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        deserializer.deserialize_any(FromText(std::marker::PhantomData))
    }
}

/// Makes types serialize and deserialize as their text.
#[macro_export]
macro_rules! as_text {
    ($($type:ty),*) => {$(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                $crate::values::text::serialize(self, serializer)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                $crate::values::text::deserialize(deserializer)
            }
        }
    )*};
}

as_text!(Time, Budget, Size, Speed, Mode);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_they_are_written() {
        for text in ["0s", "250ms", "25s", "1m", "100us"] {
            assert_eq!(text.parse::<Time>().unwrap().to_string(), text);
        }
        for text in ["0B", "8MiB", "256KiB", "100B"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        for text in ["1.0", "0.5", "max", "1e300"] {
            assert_eq!(text.parse::<Speed>().unwrap().to_string(), text);
        }
        for text in ["auto", "auto:2ms", "auto:10us", "auto:0s", "5ms", "5us", "0s"] {
            assert_eq!(text.parse::<Budget>().unwrap().to_string(), text);
        }
        assert_eq!("660".parse::<Mode>().unwrap().to_string(), "0660");
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        assert!("5".parse::<Time>().is_err() && "5ms".parse::<Size>().is_err());
        for bad in ["5", "auto:", "auto:5", "automatic", "1ms:auto", ""] {
            assert!(bad.parse::<Budget>().is_err(), "{bad}");
        }
        for short in ["auto:1ns", "auto:5us", "auto:9999ns"] {
            let refused = short.parse::<Budget>().unwrap_err();
            assert!(refused.contains("too short: auto never waits less than 10us"), "{short}: {refused}");
        }
        for bad in ["0", "-1", "inf", "NaN", "fast"] {
            assert!(bad.parse::<Speed>().is_err(), "{bad}");
        }
        for bad in ["rw", "0888", "7777", "+660", ""] {
            assert!(bad.parse::<Mode>().is_err(), "{bad}");
        }
    }
}
