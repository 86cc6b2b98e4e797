//! Durations and sizes as an operator writes them: `250ms`, `1.5s`, `8MiB`.
//!
//! The command line, the environment and files share one grammar: a decimal number without a sign, then a unit.
//! Whitespace around either is ignored; units are case-sensitive. All arithmetic is exact: a value that is not a whole
//! number of nanoseconds or bytes is rejected, never rounded.
//!
//! | durations | `ns`, `us` (or `µs`), `ms`, `s`, `m` (or `min`), `h`, `d`; only 0 needs no unit |
//! |---|---|
//! | sizes, powers of 1024 | `KiB`, `MiB`, `GiB` |
//! | sizes, powers of 1000 | `kB`, `MB`, `GB` |
//! | sizes, bytes | `B`, or no unit |

use std::fmt;

/// Nanoseconds in a microsecond.
pub const NS_PER_US: u64 = 1_000;
/// Nanoseconds in a millisecond.
pub const NS_PER_MS: u64 = 1_000_000;
/// Nanoseconds in a second.
pub const NS_PER_S: u64 = 1_000_000_000;

/// Most digits after the decimal point, without trailing zeros. No unit needs more to be exact.
const FRACTION_DIGITS_MAX: usize = 18;

/// A unit's name, and its length in nanoseconds or bytes.
type Unit = (&'static str, u64);

/// Units of a duration, largest first. Of two names for a unit, the first is used for output.
const DURATION_UNITS: [Unit; 9] = [
    ("d", 86_400 * NS_PER_S),
    ("h", 3_600 * NS_PER_S),
    ("m", 60 * NS_PER_S),
    ("min", 60 * NS_PER_S),
    ("s", NS_PER_S),
    ("ms", NS_PER_MS),
    ("us", NS_PER_US),
    ("µs", NS_PER_US),
    ("ns", 1),
];

/// Units of a size, largest first.
const SIZE_UNITS: [Unit; 7] = [
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

/// The quantity that a value measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// A time, in nanoseconds.
    Duration,
    /// A size, in bytes.
    Size,
}

impl Quantity {
    fn units(self) -> &'static [Unit] {
        match self {
            Quantity::Duration => &DURATION_UNITS,
            Quantity::Size => &SIZE_UNITS,
        }
    }

    fn unit_list(self) -> &'static str {
        match self {
            Quantity::Duration => "ns, us, ms, s, m, h or d",
            Quantity::Size => "B, KiB, MiB, GiB, kB, MB or GB",
        }
    }
}

/// Why a text is not a duration or size.
///
/// The message says what to write instead. The caller quotes the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitError {
    /// The text does not begin with a decimal number.
    NotANumber(Quantity),
    /// The number has a minus sign.
    Negative(Quantity),
    /// A duration without a unit. Contains its number.
    MissingUnit(String),
    /// The unit does not exist. Contains the given unit.
    UnknownUnit(Quantity, String),
    /// Does not fit 64 bits of nanoseconds or bytes.
    TooLarge(Quantity),
    /// Not a whole number of nanoseconds or bytes.
    NotWhole(Quantity),
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnitError::NotANumber(Quantity::Duration) => {
                write!(f, "not a duration: write a number and a unit, such as 10s or 250ms")
            }
            UnitError::NotANumber(Quantity::Size) => {
                write!(f, "not a size: write a number of bytes, or a number and a unit, such as 8MiB")
            }
            UnitError::Negative(Quantity::Duration) => write!(f, "a duration cannot be negative"),
            UnitError::Negative(Quantity::Size) => write!(f, "a size cannot be negative"),
            UnitError::MissingUnit(number) => {
                write!(f, "the unit is missing: write {number}s, {number}ms or {number}us")
            }
            UnitError::UnknownUnit(quantity, unit) => {
                write!(f, "unknown unit {unit:?}: use {}", quantity.unit_list())
            }
            UnitError::TooLarge(Quantity::Duration) => {
                write!(f, "too long: the limit is {}", format_duration(u64::MAX))
            }
            UnitError::TooLarge(Quantity::Size) => write!(f, "too large: the limit is {} bytes", u64::MAX),
            UnitError::NotWhole(Quantity::Duration) => {
                write!(f, "not a whole number of nanoseconds: use a smaller unit or fewer digits")
            }
            UnitError::NotWhole(Quantity::Size) => {
                write!(f, "not a whole number of bytes: use a smaller unit or fewer digits")
            }
        }
    }
}

impl std::error::Error for UnitError {}

/// Parses a duration into nanoseconds: `1.5s`, `250ms`, `0`.
///
/// # Errors
/// [`UnitError`] if it is not a duration. A number without a unit is one only if it is 0.
pub fn parse_duration_ns(text: &str) -> Result<u64, UnitError> {
    parse(text, Quantity::Duration, None)
}

/// Parses a size into bytes: `8MiB`, `1.5kB`, `4096`.
///
/// # Errors
/// [`UnitError`] if it is not a size.
pub fn parse_size_bytes(text: &str) -> Result<u64, UnitError> {
    parse(text, Quantity::Size, Some("B"))
}

/// Parses a duration; a number without a unit means seconds. For options such as `--duration-s 10`.
///
/// # Errors
/// [`UnitError`] if it is not a duration.
pub fn parse_seconds_ns(text: &str) -> Result<u64, UnitError> {
    parse(text, Quantity::Duration, Some("s"))
}

/// Parses a duration; a number without a unit means milliseconds. For options such as `--behind-ms 500`.
///
/// # Errors
/// [`UnitError`] if it is not a duration.
pub fn parse_milliseconds_ns(text: &str) -> Result<u64, UnitError> {
    parse(text, Quantity::Duration, Some("ms"))
}

/// Parses a duration; a number without a unit means microseconds. For options such as `--interval-us 200`.
///
/// # Errors
/// [`UnitError`] if it is not a duration.
pub fn parse_microseconds_ns(text: &str) -> Result<u64, UnitError> {
    parse(text, Quantity::Duration, Some("us"))
}

/// Formats a duration as the shortest text that parses back exactly: `1.5s`, `500ms`, `2h`.
///
/// Minutes, hours and days are whole numbers.
pub fn format_duration(ns: u64) -> String {
    if ns == 0 {
        return "0s".into();
    }
    let is_readable = |(_, unit_ns): &&Unit| *unit_ns <= NS_PER_S || ns.is_multiple_of(*unit_ns);
    format(ns, DURATION_UNITS.iter().filter(is_readable))
}

/// Formats a size as the shortest text, with a unit, that parses back exactly: `8MiB`.
pub fn format_size(bytes: u64) -> String {
    if bytes == 0 { "0B".into() } else { format(bytes, SIZE_UNITS.iter()) }
}

fn parse(text: &str, quantity: Quantity, bare_unit: Option<&str>) -> Result<u64, UnitError> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..split], text[split..].trim_start());
    if number.is_empty() && unit.starts_with('-') {
        return Err(UnitError::Negative(quantity));
    }
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // "1." and ".5" are decimal numbers; "." and "1.2.3" are not.
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return Err(UnitError::NotANumber(quantity));
    }
    let is_zero = number.bytes().all(|byte| matches!(byte, b'0' | b'.'));
    let unit = match (unit, bare_unit) {
        ("", Some(bare_unit)) => bare_unit,
        ("", None) if is_zero => return Ok(0),
        ("", None) => return Err(UnitError::MissingUnit(number.into())),
        (unit, _) => unit,
    };
    let &(_, multiplier) = quantity
        .units()
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(|| UnitError::UnknownUnit(quantity, unit.into()))?;
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > FRACTION_DIGITS_MAX {
        return Err(UnitError::NotWhole(quantity));
    }
    // At most 10^18 times the 8.64 * 10^13 ns of a day: far below 2^128.
    let scaled = digits(fraction).unwrap_or(0) * u128::from(multiplier);
    let scale = 10_u128.pow(fraction.len() as u32);
    if !scaled.is_multiple_of(scale) {
        return Err(UnitError::NotWhole(quantity));
    }
    digits(whole)
        .and_then(|whole| whole.checked_mul(u128::from(multiplier)))
        .and_then(|whole| u64::try_from(whole + scaled / scale).ok())
        .ok_or(UnitError::TooLarge(quantity))
}

/// The value of decimal digits; 0 if there are none, `None` if it exceeds 64 bits.
fn digits(digits: &str) -> Option<u128> {
    digits
        .bytes()
        .try_fold(0_u64, |value, byte| value.checked_mul(10)?.checked_add(u64::from(byte - b'0')))
        .map(u128::from)
}

/// The shortest exact form of `value` in a unit not larger than it. Of equally short ones, that with the largest unit.
fn format<'a>(value: u64, units: impl Iterator<Item = &'a Unit>) -> String {
    let mut shortest = String::new();
    for &(name, multiplier) in units.filter(|(_, multiplier)| *multiplier <= value) {
        let Some(number) = exact_decimal(value, multiplier) else { continue };
        // µs is one byte longer than us, so it is never chosen.
        if shortest.is_empty() || number.len() + name.len() < shortest.len() {
            shortest = number + name;
        }
    }
    shortest
}

/// `value / multiplier` with all digits; `None` if they do not end.
fn exact_decimal(value: u64, multiplier: u64) -> Option<String> {
    let mut number = (value / multiplier).to_string();
    let mut rest = u128::from(value % multiplier);
    for place in 0..FRACTION_DIGITS_MAX {
        if rest == 0 {
            return Some(number);
        }
        if place == 0 {
            number.push('.');
        }
        rest *= 10;
        number.push_str(&(rest / u128::from(multiplier)).to_string());
        rest %= u128::from(multiplier);
    }
    (rest == 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_parses() {
        for (text, ns) in [
            ("7ns", 7),
            ("7us", 7_000),
            ("7µs", 7_000),
            ("7ms", 7_000_000),
            ("7s", 7_000_000_000),
            ("7m", 420_000_000_000),
            ("7min", 420_000_000_000),
            ("7h", 25_200_000_000_000),
            ("7d", 604_800_000_000_000),
            ("1.5s", 1_500_000_000),
            ("0.5ms", 500_000),
            (".5ms", 500_000),
            ("1.ms", 1_000_000),
            ("1.250000000000000000000us", 1_250),
            ("0", 0),
            ("0.0", 0),
            ("0h", 0),
        ] {
            assert_eq!(parse_duration_ns(text), Ok(ns), "{text}");
        }
        for (text, bytes) in [
            ("7", 7),
            ("7B", 7),
            ("7kB", 7_000),
            ("7MB", 7_000_000),
            ("7GB", 7_000_000_000),
            ("7KiB", 7 << 10),
            ("7MiB", 7 << 20),
            ("7GiB", 7 << 30),
            ("1.5MiB", 3 << 19),
            ("0", 0),
        ] {
            assert_eq!(parse_size_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn whitespace_around_number_and_unit_is_ignored() {
        assert_eq!(parse_duration_ns(" \t10 ms\n"), Ok(10_000_000));
        assert_eq!(parse_size_bytes("  8  MiB "), Ok(8 << 20));
        assert_eq!(parse_size_bytes(" 12 "), Ok(12));
        assert_eq!(
            parse_duration_ns("1 0s"),
            Err(UnitError::UnknownUnit(Quantity::Duration, "0s".into())),
            "whitespace does not join digits"
        );
    }

    #[test]
    fn duration_without_a_unit_is_rejected_with_suggestions() {
        let error = parse_duration_ns("10").unwrap_err();
        assert_eq!(error, UnitError::MissingUnit("10".into()));
        assert_eq!(error.to_string(), "the unit is missing: write 10s, 10ms or 10us");
    }

    #[test]
    fn option_that_names_its_unit_accepts_a_bare_number() {
        assert_eq!(parse_seconds_ns("10"), Ok(10 * NS_PER_S));
        assert_eq!(parse_milliseconds_ns("250"), Ok(250 * NS_PER_MS));
        assert_eq!(parse_microseconds_ns("200"), Ok(200 * NS_PER_US));
        assert_eq!(parse_seconds_ns("10ms"), Ok(10 * NS_PER_MS));
        assert_eq!(parse_seconds_ns("-1"), Err(UnitError::Negative(Quantity::Duration)));
    }

    #[test]
    fn text_without_a_number_is_rejected() {
        for text in
            ["", "  ", "s", "NaN", "nan", "inf", "+1s", "e3s", "one", ".", ".s", "1.2.3s", "MiB", "٣s"]
        {
            assert_eq!(parse_duration_ns(text), Err(UnitError::NotANumber(Quantity::Duration)), "{text:?}");
            assert_eq!(parse_size_bytes(text), Err(UnitError::NotANumber(Quantity::Size)), "{text:?}");
        }
        for text in ["-1s", "-0.5ms", "-1", "-"] {
            assert_eq!(parse_duration_ns(text), Err(UnitError::Negative(Quantity::Duration)), "{text:?}");
        }
    }

    #[test]
    fn unknown_unit_is_rejected_with_the_known_ones() {
        for (text, unit) in [("1S", "S"), ("1M", "M"), ("1e3s", "e3s"), ("1h30m", "h30m"), ("1,5s", ",5s")] {
            let error = parse_duration_ns(text).unwrap_err();
            assert_eq!(error, UnitError::UnknownUnit(Quantity::Duration, unit.into()), "{text}");
            assert!(error.to_string().ends_with("use ns, us, ms, s, m, h or d"), "{error}");
        }
        for (text, unit) in [("1K", "K"), ("1KB", "KB"), ("1mib", "mib"), ("1TiB", "TiB"), ("1s", "s")] {
            let error = parse_size_bytes(text).unwrap_err();
            assert_eq!(error, UnitError::UnknownUnit(Quantity::Size, unit.into()), "{text}");
        }
    }

    #[test]
    fn value_beyond_64_bits_is_rejected() {
        assert_eq!(parse_duration_ns("18446744073709551615ns"), Ok(u64::MAX));
        assert_eq!(parse_size_bytes("18446744073709551615"), Ok(u64::MAX));
        for text in
            ["18446744073709551616ns", "213504d", "18446744073.709551616s", "99999999999999999999999d"]
        {
            assert_eq!(parse_duration_ns(text), Err(UnitError::TooLarge(Quantity::Duration)), "{text}");
        }
        let digits = "9".repeat(10_000);
        assert_eq!(parse_size_bytes(&digits), Err(UnitError::TooLarge(Quantity::Size)));
        assert_eq!(parse_size_bytes("17179869184GiB"), Err(UnitError::TooLarge(Quantity::Size)));
    }

    #[test]
    fn inexact_value_is_rejected() {
        for text in ["0.5ns", "1.0000000001s", "0.3333us", "0.00000000000000000001d"] {
            assert_eq!(parse_duration_ns(text), Err(UnitError::NotWhole(Quantity::Duration)), "{text}");
        }
        assert_eq!(parse_size_bytes("0.1KiB"), Err(UnitError::NotWhole(Quantity::Size)));
        assert_eq!(parse_size_bytes("0.5"), Err(UnitError::NotWhole(Quantity::Size)));
    }

    #[test]
    fn duration_formats_as_the_shortest_text() {
        for (ns, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5us"),
            (250 * NS_PER_US, "250us"),
            (500 * NS_PER_MS, "500ms"),
            (1_234 * NS_PER_MS, "1.234s"),
            (1_500 * NS_PER_MS, "1.5s"),
            (10 * NS_PER_S, "10s"),
            (60 * NS_PER_S, "1m"),
            (90 * NS_PER_S, "90s"),
            (5_400 * NS_PER_S, "90m"),
            (36 * 3_600 * NS_PER_S, "36h"),
            (2 * 86_400 * NS_PER_S, "2d"),
            (u64::MAX, "18446744073.709551615s"),
        ] {
            assert_eq!(format_duration(ns), text);
        }
    }

    #[test]
    fn size_formats_as_the_shortest_text() {
        for (bytes, text) in [
            (0, "0B"),
            (100, "100B"),
            (1_000, "1kB"),
            (1_024, "1KiB"),
            (1_536, "1536B"),
            (128 << 10, "128KiB"),
            (8 << 20, "8MiB"),
            (3 << 19, "1.5MiB"),
            (1_500_000, "1.5MB"),
            (u64::MAX, "18446744073709551615B"),
        ] {
            assert_eq!(format_size(bytes), text);
        }
    }

    #[test]
    fn formatted_value_parses_back() {
        // Powers of two and their neighbours, and round decimal values.
        let powers = (0..64).flat_map(|bit| [(1_u64 << bit) - 1, 1 << bit, (1 << bit) + 1]);
        let rounds =
            (0..19).flat_map(|zeros| [1, 3, 15, 86_400].map(|n: u64| n.saturating_mul(10_u64.pow(zeros))));
        for value in powers.chain(rounds).chain([u64::MAX]) {
            assert_eq!(parse_duration_ns(&format_duration(value)), Ok(value));
            assert_eq!(parse_size_bytes(&format_size(value)), Ok(value));
        }
    }
}
