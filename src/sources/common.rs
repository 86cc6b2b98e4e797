//! Keys that every `[[source]]` may have, whatever its kind: its name, its place in a failover group, and what counts as unfit.

use serde::{Deserialize, Serialize};

use super::kind::field_names;
use tickcast_common::values::Time;
use tickcast_proto::pattern;

/// Silence after which a source of a group is unfit, unless `stale_after` says otherwise.
const GROUP_STALE_AFTER: Time = Time::from_ms(5_000);
/// How long a source of a group must have been fit before it takes over from one of lower priority, unless `return_after` says
/// otherwise.
const GROUP_RETURN_AFTER: Time = Time::from_ms(10_000);
/// Bounds of the three times.
const TIME_LOWEST: Time = Time::from_ms(100);
const TIME_HIGHEST: Time = Time::from_ms(86_400_000);
/// Maximum characters of a name.
const NAME_CHARS_MAX: usize = 64;

/// The keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CommonOptions {
    /// Its name in logs, metrics and responses. Default: the kind, with a number from the second source of that kind on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether the server is ready only while it is fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub required: Option<bool>,
    /// Silence after which it is unfit. In a group: 5s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_after: Option<Time>,
    /// Whether its topics are reported as stale to their subscribers while it is silent for longer than `stale_after`. In a group: for the
    /// whole group, if one of its sources sets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mark_stale: Option<bool>,
    /// Age of its messages on arrival above which it is unfit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_max: Option<Time>,
    /// The failover group. Its first fit source, in the order of the file, publishes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// How long it must have been fit before it takes over from a source after it in the group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub return_after: Option<Time>,
    /// The topic on which it announces that it publishes now, and not another source of its group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_topic: Option<String>,
}

impl CommonOptions {
    /// The names of the keys.
    pub fn keys() -> &'static [&'static str] {
        field_names::<CommonOptions>()
    }

    /// Checks the values. `refuse` takes a key and what is wrong with its value.
    pub fn check(&self, mut refuse: impl FnMut(&'static str, String)) {
        for (key, name) in [("name", &self.name), ("group", &self.group)] {
            if let Some(name) = name.as_ref().filter(|name| !is_name(name)) {
                refuse(
                    key,
                    format!("{name:?}: use up to {NAME_CHARS_MAX} of a-z, A-Z, 0-9, '.', '_' and '-'"),
                );
            }
        }
        for (key, time) in [
            ("stale_after", self.stale_after),
            ("lag_max", self.lag_max),
            ("return_after", self.return_after),
        ] {
            if let Some(time) = time.filter(|time| !(TIME_LOWEST..=TIME_HIGHEST).contains(time)) {
                refuse(key, format!("{time}: must be {TIME_LOWEST} to {TIME_HIGHEST}"));
            }
        }
        let of_group =
            [("return_after", self.return_after.is_some()), ("status_topic", self.status_topic.is_some())];
        for (key, _) in of_group.into_iter().filter(|(_, is_set)| *is_set && self.group.is_none()) {
            refuse(key, "is for sources of a group; set group".into());
        }
        if self.mark_stale == Some(true) && self.stale_after.is_none() && self.group.is_none() {
            refuse("mark_stale", "needs a time after which the source is silent; set stale_after".into());
        }
        if let Some(topic) = &self.status_topic
            && let Err(error) = pattern::check_topic(topic.as_bytes())
        {
            refuse("status_topic", format!("{topic:?}: {error}"));
        }
    }

    /// The settings that these values give a source of this name.
    pub fn resolved(&self, name: &str) -> Common {
        let in_group = |time: Time| self.group.is_some().then_some(time);
        Common {
            name: name.into(),
            is_required: self.required.unwrap_or(false),
            stale_after_ns: self.stale_after.or(in_group(GROUP_STALE_AFTER)).map(|time| time.ns),
            marks_stale: self.mark_stale.unwrap_or(false),
            lag_max_ns: self.lag_max.map(|time| time.ns),
            group: self.group.as_deref().map(Into::into),
            return_after_ns: self.return_after.unwrap_or(GROUP_RETURN_AFTER).ns,
            status_topic: self.status_topic.as_deref().map(Into::into),
        }
    }
}

fn is_name(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=NAME_CHARS_MAX).contains(&text.len()) && text.bytes().all(is_allowed)
}

/// Settings that every source has, whatever its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Common {
    /// Its name: letters, digits, dots, dashes and underscores.
    pub name: Box<str>,
    /// Whether the server is ready only while it is fit.
    pub is_required: bool,
    /// Silence after which it is unfit; `None`: silence is no fault.
    pub stale_after_ns: Option<u64>,
    /// Whether its topics are marked as stale while it is silent.
    pub marks_stale: bool,
    /// Age of its messages on arrival above which it is unfit; `None`: any age is accepted.
    pub lag_max_ns: Option<u64>,
    /// Its failover group.
    pub group: Option<Box<str>>,
    /// How long it must have been fit before it takes over from a source after it in the group.
    pub return_after_ns: u64,
    /// A valid topic, on which it announces that it publishes now.
    pub status_topic: Option<Box<str>>,
}

impl Common {
    /// The default settings of a source of this name.
    pub fn named(name: &str) -> Common {
        CommonOptions::default().resolved(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_group_needs_has_defaults_only_in_a_group() {
        let alone = Common::named("a");
        assert_eq!((alone.stale_after_ns, alone.group), (None, None));
        let options = CommonOptions { group: Some("g".into()), ..CommonOptions::default() };
        let member = options.resolved("a");
        assert_eq!((member.stale_after_ns, member.return_after_ns), (Some(5_000_000_000), 10_000_000_000));
        let options = CommonOptions { stale_after: Some(Time::from_ms(1)), ..CommonOptions::default() };
        assert_eq!(options.resolved("a").stale_after_ns, Some(1_000_000));
    }

    #[test]
    fn values_that_make_no_sense_are_refused_by_key() {
        let options = CommonOptions {
            name: Some("a b".into()),
            group: Some(String::new()),
            stale_after: Some(Time::default()),
            ..CommonOptions::default()
        };
        let mut keys = Vec::new();
        options.check(|key, _| keys.push(key));
        assert_eq!(keys, ["name", "group", "stale_after"]);
        let options = CommonOptions { mark_stale: Some(true), ..CommonOptions::default() };
        let mut keys = Vec::new();
        options.check(|key, _| keys.push(key));
        assert_eq!(keys, ["mark_stale"]);
        let options = CommonOptions {
            return_after: Some(Time::from_ms(1_000)),
            status_topic: Some("a..b".into()),
            ..CommonOptions::default()
        };
        let mut keys = Vec::new();
        options.check(|key, _| keys.push(key));
        assert_eq!(keys, ["return_after", "status_topic", "status_topic"]);
    }
}
