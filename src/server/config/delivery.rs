//! Options that differ by topic: `[PATTERN=]VALUE`, given several times.

use crate::error::StartupError;
use tickcast_core::home::history::HistoryBounds;
use tickcast_proto::{
    pattern,
    subscription::{Policy, Rules},
};

/// What becomes of a slow subscriber's ticks.
///
/// # Errors
/// [`StartupError::Option`] that names the value.
pub(super) fn policies(options: &[String]) -> Result<Rules<Policy>, StartupError> {
    rules("--policy", options, Policy::default(), |value| {
        value.parse().map_err(|error: tickcast_proto::subscription::OptionError| error.to_string())
    })
}

/// Recent ticks kept.
///
/// # Errors
/// [`StartupError::Option`] that names the value.
pub(super) fn histories(
    options: &[String],
    bytes_highest: usize,
) -> Result<Rules<HistoryBounds>, StartupError> {
    rules("--history", options, HistoryBounds::default(), |value| history(value, bytes_highest))
}

fn rules<T: Copy>(
    option: &'static str,
    options: &[String],
    default: T,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Rules<T>, StartupError> {
    let mut rules = Rules::all(default);
    for text in options {
        let bad = |error: String| StartupError::Option(option, format!("{text}: {error}"));
        match text.rsplit_once('=') {
            None => rules.default = parse(text).map_err(bad)?,
            Some((pattern, value)) => {
                pattern::check_pattern(pattern.as_bytes()).map_err(|error| bad(error.to_string()))?;
                rules.rules.push((pattern.into(), parse(value).map_err(bad)?));
            }
        }
    }
    Ok(rules)
}

fn history(value: &str, bytes_highest: usize) -> Result<HistoryBounds, String> {
    let mut bounds = HistoryBounds::default();
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text:?} is no number"));
    let mut parts = value.split(':');
    if let Some(ticks) = parts.next() {
        bounds.ticks = number(ticks)? as usize;
    }
    if let Some(bytes) = parts.next() {
        bounds.bytes = number(bytes)? as usize;
    }
    if let Some(age_ms) = parts.next() {
        bounds.age_ns = number(age_ms)?.saturating_mul(1_000_000);
    }
    if parts.next().is_some() {
        return Err("TICKS, TICKS:BYTES or TICKS:BYTES:MS".into());
    }
    if bounds.bytes > bytes_highest {
        return Err(format!(
            "{} bytes for one topic: at most {bytes_highest} (--egress-log-bytes)",
            bounds.bytes
        ));
    }
    Ok(bounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(options: &[&str]) -> Vec<String> {
        options.iter().map(|option| (*option).to_owned()).collect()
    }

    #[test]
    fn values_are_for_all_topics_or_for_those_of_a_pattern() {
        let rules = policies(&strings(&["conflate", "a.>=drop"])).unwrap();
        assert_eq!((rules.of("a.b"), rules.of("b")), (Policy::Drop, Policy::Conflate));
        let rules = histories(&strings(&["a.*=7", "9:100:5"]), 1 << 20).unwrap();
        assert_eq!(rules.of("a.b"), HistoryBounds { ticks: 7, ..HistoryBounds::default() });
        assert_eq!(rules.of("b"), HistoryBounds { ticks: 9, bytes: 100, age_ns: 5_000_000 });
    }

    #[test]
    fn values_that_make_no_sense_are_refused_with_what_was_typed() {
        for bad in ["fast", "a..b=drop", "=drop", "a.>=never"] {
            assert!(policies(&strings(&[bad])).unwrap_err().to_string().contains(bad), "{bad}");
        }
        for bad in ["x", "1:x", "1:2:x", "1:2:3:4", "a.>=", "1:99999999"] {
            assert!(histories(&strings(&[bad]), 1 << 20).unwrap_err().to_string().contains(bad), "{bad}");
        }
    }
}
