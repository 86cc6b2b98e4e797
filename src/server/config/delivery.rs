//! Repeatable options with a value per topic pattern: `[PATTERN=]VALUE`.

use crate::cli::{
    old::with_unit,
    values::{Size, Time},
};
use tickcast_core::{
    home::history::HistoryBounds,
    limits::{TOPIC_IDLE_NS_DEFAULT, TOPIC_IDLE_NS_LOWEST},
};
use tickcast_proto::{
    pattern,
    subscription::{Policy, Rules},
};

/// Parses the policies for slow subscribers.
///
/// # Errors
/// One message for each invalid value; it quotes the value.
pub(super) fn policies(options: &[String]) -> Result<Rules<Policy>, Vec<String>> {
    rules(options, Policy::default(), |value| {
        value.parse().map_err(|error: tickcast_proto::subscription::OptionError| error.to_string())
    })
}

/// Parses the bounds of the history. `bytes_highest`: upper limit for one topic.
///
/// # Errors
/// As [`policies`].
pub(super) fn histories(
    options: &[String],
    bytes_highest: usize,
) -> Result<Rules<HistoryBounds>, Vec<String>> {
    rules(options, HistoryBounds::default(), |value| history(value, bytes_highest))
}

/// Parses the times after which topics are forgotten, to nanoseconds.
///
/// # Errors
/// As [`policies`].
pub(super) fn idle_times(options: &[String]) -> Result<Rules<u64>, Vec<String>> {
    rules(options, TOPIC_IDLE_NS_DEFAULT, |value| {
        let idle_ns = value.parse::<Time>().map_err(|error| format!("{value:?}: {error}"))?.ns;
        let is_valid = idle_ns == 0 || idle_ns >= TOPIC_IDLE_NS_LOWEST;
        is_valid.then_some(idle_ns).ok_or_else(|| "must be 0 or at least 100ms".into())
    })
}

/// Parses for which topics messages are compressed.
///
/// # Errors
/// As [`policies`].
pub(super) fn deflate(options: &[String]) -> Result<Rules<bool>, Vec<String>> {
    rules(options, false, |value| match value {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(format!("{other:?} is neither on nor off")),
    })
}

fn rules<T: Copy>(
    options: &[String],
    default: T,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Rules<T>, Vec<String>> {
    let (mut rules, mut errors) = (Rules::all(default), Vec::new());
    for text in options {
        let (pattern, value) = match text.rsplit_once('=') {
            None => (None, parse(text)),
            Some((pattern, value)) => match pattern::check_pattern(pattern.as_bytes()) {
                Ok(_) => (Some(pattern), parse(value)),
                Err(error) => (Some(pattern), Err(error.to_string())),
            },
        };
        match (pattern, value) {
            (None, Ok(value)) => rules.default = value,
            (Some(pattern), Ok(value)) => rules.rules.push((pattern.into(), value)),
            (_, Err(error)) => errors.push(format!("{text}: {error}")),
        }
    }
    if errors.is_empty() { Ok(rules) } else { Err(errors) }
}

/// Parses `TICKS[:SIZE[:TIME]]`. A time without a unit is in milliseconds, as in 0.1.
fn history(value: &str, bytes_highest: usize) -> Result<HistoryBounds, String> {
    let mut bounds = HistoryBounds::default();
    let mut parts = value.split(':');
    if let Some(ticks) = parts.next() {
        bounds.ticks = ticks.parse().map_err(|_| format!("{ticks:?} is not a number of ticks"))?;
    }
    if let Some(size) = parts.next() {
        bounds.bytes = size.parse::<Size>().map_err(|error| format!("{size:?}: {error}"))?.bytes;
    }
    if let Some(time) = parts.next() {
        let parsed = with_unit(time, "ms").parse::<Time>();
        bounds.age_ns = parsed.map_err(|error| format!("{time:?}: {error}"))?.ns;
    }
    if parts.next().is_some() {
        return Err("too many parts; write TICKS, TICKS:SIZE or TICKS:SIZE:TIME".into());
    }
    if bounds.bytes > bytes_highest {
        let (size, highest) = (Size::new(bounds.bytes), Size::new(bytes_highest));
        return Err(format!("{size} for one topic: must be at most {highest} (--egress-log)"));
    }
    Ok(bounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_is_switched_by_topic() {
        let rules = deflate(&strings(&["account.>=off", "on"])).unwrap();
        assert_eq!((rules.of("account.7"), rules.of("market.a")), (false, true));
        assert!(!deflate(&[]).unwrap().of("market.a"));
        assert!(
            deflate(&strings(&["market.>=fast"])).unwrap_err()[0].contains("\"fast\" is neither on nor off")
        );
    }

    #[test]
    fn idle_times_are_by_topic_and_0_keeps() {
        let rules = idle_times(&strings(&["2h", "odds.>=10m", "kept=0s"])).unwrap();
        let minute_ns = 60_000_000_000;
        let times = ["x", "odds.a", "kept"].map(|topic| rules.of(topic));
        assert_eq!(times, [120 * minute_ns, 10 * minute_ns, 0]);
        for bad in ["odds.>=soon", "1ms", "a..b=1h"] {
            assert!(idle_times(&strings(&["1h", bad])).unwrap_err()[0].contains(bad), "{bad}");
        }
    }

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
        let rules = histories(&strings(&["9:64KiB:5s"]), 1 << 20).unwrap();
        assert_eq!(rules.of("b"), HistoryBounds { ticks: 9, bytes: 64 << 10, age_ns: 5_000_000_000 });
    }

    #[test]
    fn values_that_make_no_sense_are_refused_with_what_was_typed() {
        for bad in ["fast", "a..b=drop", "=drop", "a.>=never"] {
            assert!(policies(&strings(&["drop", bad])).unwrap_err()[0].contains(bad), "{bad}");
        }
        for bad in ["x", "1:x", "1:2:x", "1:2:3:4", "a.>=", "1:99999999"] {
            assert!(histories(&strings(&[bad, "7"]), 1 << 20).unwrap_err()[0].contains(bad), "{bad}");
        }
    }
}
