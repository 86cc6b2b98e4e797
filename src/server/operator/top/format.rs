//! Formatting of numbers, times and names for the screen.

use crate::limits::{IDENTITY_BYTES_MAX, TOPIC_BYTES_MAX};

/// Characters shown of a name.
const NAME_CHARS_MAX: usize = 255;
/// Characters shown of a word that the server chose: an IPv6 address with zone and port has 63.
const WORD_CHARS_MAX: usize = 64;
/// Characters shown of an error message.
const REASON_CHARS_MAX: usize = 100;

const _: () = assert!(NAME_CHARS_MAX >= TOPIC_BYTES_MAX && NAME_CHARS_MAX >= IDENTITY_BYTES_MAX);

/// Stands for an unknown value.
pub const UNKNOWN: &str = "-";

/// A whole number with thousands separators.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A rate per second: whole from 10 on, with one decimal below.
pub fn rate(per_second: f64) -> String {
    match per_second {
        _ if per_second >= 9.95 => count(per_second.round() as u64),
        _ if per_second >= 0.05 => format!("{per_second:.1}"),
        // A small rate must not look like none.
        _ if per_second > 0.0 => "<0.1".to_owned(),
        _ => "0".to_owned(),
    }
}

/// A size in bytes, in binary units.
pub fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1_024.0 {
            return match unit {
                "B" => format!("{bytes} B"),
                _ => format!("{value:.1} {unit}"),
            };
        }
        value /= 1_024.0;
    }
    format!("{value:.1} TiB")
}

/// Millions of bytes, without the unit.
pub fn megabytes(bytes: f64) -> String {
    let megabytes = bytes / 1e6;
    match megabytes {
        _ if megabytes >= 999.5 => count(megabytes.round() as u64),
        _ if megabytes >= 99.5 => format!("{megabytes:.0}"),
        _ if megabytes >= 0.005 => format!("{megabytes:.2}"),
        _ if megabytes > 0.0 => "<0.01".to_owned(),
        _ => "0".to_owned(),
    }
}

/// A time in microseconds.
pub fn microseconds(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..100_000 => format!("{:.2} ms", us as f64 / 1e3),
        100_000..1_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// A time in milliseconds.
pub fn milliseconds(ms: u64) -> String {
    match ms {
        0 => "0".to_owned(),
        1..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{:.1} s", ms as f64 / 1e3),
        _ => seconds(ms / 1_000),
    }
}

/// A time in seconds, in its two largest units.
pub fn seconds(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// The time of day of a CLOCK_REALTIME time, UTC.
pub fn time_of_day(realtime_ns: u64) -> String {
    let seconds = realtime_ns / 1_000_000_000;
    format!("{:02}:{:02}:{:02} UTC", seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60)
}

/// A name that a peer chose, safe for a terminal: control and invisible characters are escaped.
///
/// Names within the server's limits are shown in full; longer ones, which only another program could send, are truncated.
pub fn name(name: &str) -> String {
    escaped(name, NAME_CHARS_MAX)
}

/// A word that the server chose, safe for a terminal and truncated to the longest one there is.
pub fn word(word: &str) -> String {
    escaped(word, WORD_CHARS_MAX)
}

/// An error message of the server or a library, safe for a terminal and truncated.
pub fn reason(text: &str) -> String {
    escaped(text, REASON_CHARS_MAX)
}

/// Escapes and truncates. A character becomes at most 10.
fn escaped(text: &str, chars_max: usize) -> String {
    let mut characters = text.chars();
    let mut shown = String::with_capacity(text.len().min(chars_max));
    for character in characters.by_ref().take(chars_max) {
        match character {
            '"' | '\'' => shown.push(character),
            _ => shown.extend(character.escape_debug()),
        }
    }
    if characters.next().is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_small_rates_are_not_zero() {
        let counts = [0, 999, 1_000, 1_234_567].map(count);
        assert_eq!(counts, ["0", "999", "1,000", "1,234,567"]);
        let rates = [0.0, 0.01, 0.05, 3.12, 9.94, 9.96, 499_999.6].map(rate);
        assert_eq!(rates, ["0", "<0.1", "0.1", "3.1", "9.9", "10", "500,000"]);
        let megabytes = [0.0, 1.0, 12_340_000.0, 512e6, 4.3e9].map(megabytes);
        assert_eq!(megabytes, ["0", "<0.01", "12.34", "512", "4,300"]);
    }

    #[test]
    fn sizes_and_times_have_a_suitable_unit() {
        let sizes = [0, 1_023, 1_024, 7 << 20, 3 << 40].map(bytes);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "7.0 MiB", "3.0 TiB"]);
        let times = [1, 999, 1_010, 250_000, 60_000_000].map(microseconds);
        assert_eq!(times, ["1 us", "999 us", "1.01 ms", "250 ms", "60.00 s"]);
        let lags = [0, 350, 12_300, 125_000].map(milliseconds);
        assert_eq!(lags, ["0", "350 ms", "12.3 s", "2 min 5 s"]);
        let times = [59, 3_599, 3_600 * 3 + 120, 86_400 * 4 + 3_600].map(seconds);
        assert_eq!(times, ["59 s", "59 min 59 s", "3 h 2 min", "4 d 1 h"]);
        assert_eq!(time_of_day(1_793_322_000_130_000_000), "01:00:00 UTC");
    }

    #[test]
    fn a_name_cannot_control_the_terminal() {
        assert_eq!(name("desk 7 'ü' \"漢\""), "desk 7 'ü' \"漢\"");
        assert_eq!(name("a\x1b[2J\r\n\u{7f}\u{9b}"), r"a\u{1b}[2J\r\n\u{7f}\u{9b}");
        assert_eq!(name("\u{202e}back\\slash\0"), r"\u{202e}back\\slash\0");
    }

    #[test]
    fn names_within_the_limits_are_shown_in_full_and_longer_ones_truncated() {
        let longest = "漢".repeat(NAME_CHARS_MAX);
        assert_eq!(name(&longest), longest);
        assert_eq!(name(&(longest.clone() + "x")), longest + "…");
        let hostile = "\u{10ffff}".repeat(1 << 20);
        assert!(name(&hostile).len() <= 10 * NAME_CHARS_MAX + 3);
        assert!(
            word(&hostile).len() <= 10 * WORD_CHARS_MAX + 3
                && reason(&hostile).len() <= 10 * REASON_CHARS_MAX + 3
        );
        let address = "[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255%4294967295]:65535";
        assert_eq!(word(address), address);
    }
}
