//! Rates and bounds on what clients may ask for.

use super::Checks;
use crate::{cli::serve::LimitOptions, limits};
use tickcast_core::budgets::{BudgetLimits, PatternLimits, Rates};

/// What sessions and sources may ask for per second.
pub(super) fn rates(limits: &LimitOptions) -> BudgetLimits {
    BudgetLimits {
        session: Rates {
            ticks: limits.publish_rate,
            tick_bytes: limits.publish_bandwidth.bytes as u64,
            subscriptions: limits.subscribe_rate,
            history: limits.history_rate,
            last_values: limits.last_values_rate,
        },
        source: Rates {
            ticks: limits.publish_rate_per_source,
            tick_bytes: limits.publish_bandwidth_per_source.bytes as u64,
            subscriptions: limits.subscribe_rate_per_source,
            history: limits.history_rate_per_source,
            last_values: limits.last_values_rate_per_source,
        },
    }
}

/// Patterns that sessions may hold.
pub(super) fn patterns(limits: &LimitOptions) -> PatternLimits {
    let session_default = limits.subscriptions_per_session_max.saturating_mul(limits::PATTERN_BYTES_DEFAULT);
    let source_default = limits.patterns_memory.bytes / 2;
    PatternLimits {
        wildcards_max: limits.pattern_wildcards_max,
        session_bytes_max: limits.patterns_per_session_size.map_or(session_default, |size| size.bytes),
        source_bytes_max: limits.patterns_per_source_memory.map_or(source_default, |size| size.bytes),
    }
}

impl Checks<'_> {
    /// Refuses rates that are too high to be measured.
    pub(super) fn check_rates(&mut self) {
        let limits = &self.settings.tables.limits;
        for (key, rate) in [
            ("accept_rate", limits.accept_rate),
            ("publish_rate", limits.publish_rate),
            ("publish_rate_per_source", limits.publish_rate_per_source),
            ("subscribe_rate", limits.subscribe_rate),
            ("subscribe_rate_per_source", limits.subscribe_rate_per_source),
            ("history_rate", limits.history_rate),
            ("history_rate_per_source", limits.history_rate_per_source),
            ("last_values_rate", limits.last_values_rate),
            ("last_values_rate_per_source", limits.last_values_rate_per_source),
        ] {
            if rate > limits::RATE_HIGHEST {
                let text =
                    format!("{rate}: must be at most {} per second, or 0 for no limit", limits::RATE_HIGHEST);
                self.refuse(&format!("limits.{key}"), text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Settings};
    use tickcast_core::config::Limits;

    fn limits_of(options: &[&str]) -> Limits {
        let typed: Vec<_> = ["tickcast", "serve"].iter().chain(options).map(Into::into).collect();
        Config::new(&Settings::read(&typed).unwrap(), None).unwrap().limits
    }

    #[test]
    fn the_defaults_of_the_options_are_those_of_the_core() {
        let limits = limits_of(&[]);
        assert_eq!((limits.budgets, limits.patterns), (BudgetLimits::default(), PatternLimits::default()));
    }

    #[test]
    fn each_option_sets_its_own_limit_and_bounds_follow_what_they_are_part_of() {
        let rates = |from: u32| Rates {
            ticks: from,
            tick_bytes: u64::from(from) + 1,
            subscriptions: from + 2,
            history: from + 3,
            last_values: from + 4,
        };
        let names =
            ["publish-rate", "publish-bandwidth", "subscribe-rate", "history-rate", "last-values-rate"];
        let mut options = Vec::new();
        for (from, suffix) in [(10, ""), (20, "-per-source")] {
            options.extend(names.iter().zip(from..).map(|(name, rate)| format!("--{name}{suffix}={rate}")));
        }
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        assert_eq!(limits_of(&options).budgets, BudgetLimits { session: rates(10), source: rates(20) });
        let derived = limits_of(&["--subscriptions-per-session-max=10", "--patterns-memory=8MiB"]).patterns;
        assert_eq!((derived.session_bytes_max, derived.source_bytes_max), (1_280, 4 << 20));
        let given = [
            "--pattern-wildcards-max=3",
            "--patterns-per-session-size=4KiB",
            "--patterns-per-source-memory=0",
        ];
        let wanted = PatternLimits { wildcards_max: 3, session_bytes_max: 4 << 10, source_bytes_max: 0 };
        assert_eq!(limits_of(&given).patterns, wanted);
    }
}
