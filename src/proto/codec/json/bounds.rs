//! Bounds for payloads that are sent as JSON, so that every common parser can read the message around them.

use crate::limits::{JSON_DEPTH_MAX, JSON_NUMBER_BYTES_MAX};

/// Longest text that cannot exceed any bound: each further level takes two brackets.
const WITHIN_BYTES: usize = 2 * JSON_DEPTH_MAX;
const _: () = assert!(WITHIN_BYTES <= JSON_NUMBER_BYTES_MAX);

/// Whether a JSON text is nested at most [`JSON_DEPTH_MAX`] levels, and no number in it is longer than
/// [`JSON_NUMBER_BYTES_MAX`]. RFC 8259, section 9, lets a parser limit both.
/// Does not check whether the text is valid. One pass; does not allocate.
pub fn is_within_bounds(text: &[u8]) -> bool {
    if text.len() <= WITHIN_BYTES {
        return true;
    }
    let (mut depth, mut at) = (0usize, 0);
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'"' => at += string_len(&text[at..]),
            b'[' | b'{' => {
                depth += 1;
                if depth > JSON_DEPTH_MAX {
                    return false;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'-' | b'0'..=b'9' => {
                let rest = number_len(&text[at..]);
                if rest >= JSON_NUMBER_BYTES_MAX {
                    return false;
                }
                at += rest;
            }
            _ => {}
        }
    }
    true
}

/// Length of the rest of a string, including its closing quote.
fn string_len(text: &[u8]) -> usize {
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'"' => break,
            b'\\' => at += 1,
            _ => {}
        }
    }
    at.min(text.len())
}

/// Length of the rest of a number.
fn number_len(text: &[u8]) -> usize {
    let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-');
    text.iter().position(|byte| !is_part(byte)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::json::is_json;

    fn nested(levels: usize) -> String {
        let (open, close) = (["[", "{\"[\":"], ["]", "}"]);
        let opening: String = (0..levels).map(|level| open[level % 2]).collect();
        let closing: String = (0..levels).rev().map(|level| close[level % 2]).collect();
        format!("{opening}1{closing}")
    }

    #[test]
    fn the_deepest_nesting_is_json_and_one_level_more_is_opaque() {
        for (levels, expected) in [(0, true), (1, true), (60, true), (61, false), (100_000, false)] {
            let text = nested(levels);
            assert_eq!(is_json(text.as_bytes()), expected, "{levels}");
            // A value after it has no part in its depth.
            let pair = format!("[{},{}]", nested(levels.saturating_sub(1)), nested(levels.saturating_sub(1)));
            assert_eq!(is_json(pair.as_bytes()), expected || levels == 0, "{levels} twice");
        }
    }

    #[test]
    fn the_longest_number_is_json_and_one_digit_more_is_opaque() {
        for prefix in ["", "-", "0.", "1e", "-1.5E+"] {
            for (len, expected) in [(300, true), (301, false), (5_000, false)] {
                let number = format!("{prefix}{}", "1".repeat(len - prefix.len()));
                assert_eq!(is_json(number.as_bytes()), expected, "{prefix} {len}");
                assert_eq!(
                    is_json(format!("{{\"n\": [{number} ,2]}}").as_bytes()),
                    expected,
                    "{prefix} {len}"
                );
            }
        }
    }

    #[test]
    fn brackets_and_digits_in_strings_count_for_nothing() {
        for part in ["[", "{", "1", "\\\"[", "\\\\", "\\u005b", "é["] {
            let text = format!("[\"{}\",\"{}\"]", part.repeat(1_000), part.repeat(1_000));
            assert!(is_json(text.as_bytes()), "{part}");
            assert!(!is_json(format!("[{text},{}]", nested(60)).as_bytes()), "{part}");
        }
    }

    #[test]
    fn any_bytes_are_measured_without_panic() {
        let mut random = fastrand::Rng::with_seed(12);
        for _ in 0..20_000 {
            let text: Vec<u8> = (0..random.usize(..400))
                .map(|_| *random.choice(b"[]{}\"\\1-e.a\xff").unwrap_or(&0))
                .collect();
            let _ = is_within_bounds(&text);
        }
    }
}
