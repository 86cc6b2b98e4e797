//! Differences between two configurations: live options, and those that need a restart.

pub use crate::cli::serve::LIVE;

/// One changed option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Path in the file: `limits.publish_rate`.
    pub key: String,
    /// Old value; empty: not set.
    pub before: String,
    /// New value; empty: not set.
    pub after: String,
    /// Whether it takes effect without a restart.
    pub is_live: bool,
}

/// Whether the option at this path takes effect without a restart. Options of listeners and sources never do, even those
/// named like a live option. `[auth]` is replaced as a whole, and so are the tenants, apart from what they export.
pub fn is_live(path: &str) -> bool {
    path.starts_with("auth.")
        || (path.starts_with("tenant[") && !path.ends_with(".exports"))
        || path.split_once('.').is_some_and(|(table, key)| !table.ends_with(']') && LIVE.contains(&key))
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |text: &str| if text.is_empty() { "not set".to_owned() } else { text.to_owned() };
        let Change { key, before, after, is_live } = self;
        write!(f, "{key}: {} instead of {}", shown(after), shown(before))?;
        if *is_live { Ok(()) } else { write!(f, ": takes effect at the next start") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_of_a_source_is_not_live_even_if_it_has_the_name_of_a_live_one() {
        assert!(is_live("delivery.history") && is_live("server.log") && is_live("auth.key"));
        for path in ["source[0].history", "listener[12].log", "delivery.last_values_memory", "history"] {
            assert!(!is_live(path), "{path}");
        }
    }

    #[test]
    fn a_change_says_what_it_was_and_whether_it_waits() {
        let change = |is_live| Change {
            key: "delivery.behind_time".into(),
            before: "500".into(),
            after: "7".into(),
            is_live,
        };
        assert_eq!(change(true).to_string(), "delivery.behind_time: 7 instead of 500");
        assert_eq!(
            change(false).to_string(),
            "delivery.behind_time: 7 instead of 500: takes effect at the next start"
        );
    }
}
