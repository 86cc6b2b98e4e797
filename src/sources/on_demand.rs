//! Subjects that a source subscribes to only while clients ask for topics of them: how patterns of topics become patterns of subjects.
//!
//! ```text
//!  map.strip = "in/", map.separator = "/", map.prefix = "prices."
//!
//!  topic    prices.eu.*    prices.>
//!  subject  in/eu/*        in/>          (NATS; for Redis in/eu/*, in/*)
//! ```
//!
//! It works only where a topic leads back to its subject: the topic is the subject, but for a separator and whole tokens in front.

use std::{borrow::Cow, sync::Arc};

use tokio::sync::Notify;

use super::{glob, kind::OptionChecks, mapping::MapOptions};
use tickcast_common::values::Time;
use tickcast_core::{
    demand::{DemandChange, DemandLane},
    limits::DEMAND_RING,
    mesh::{
        SinkWake,
        item_ring::{ItemConsumer, item_ring},
        ring::Doorbell,
    },
};
use tickcast_proto::pattern;

/// Default of `linger`.
pub const LINGER_DEFAULT: Time = Time::from_ms(30_000);
/// Bounds of `linger`.
const LINGER_RANGE: (Time, Time) = (Time::from_ms(100), Time::from_ms(86_400_000));

/// How an engine writes patterns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `*` is one token, `>` the rest.
    Nats,
    /// `*` is any text.
    Redis,
}

/// What the options of a source say about subjects on demand.
#[derive(Clone, Copy, Debug)]
pub struct OnDemandOptions<'a> {
    /// Key of all its subjects.
    pub key: &'static str,
    /// All its subjects.
    pub subjects: &'a [String],
    /// Those that are subscribed to on demand.
    pub on_demand: &'a [String],
    /// How long a subscription is kept after nobody wants it any more.
    pub linger: Time,
    /// How topics are made of subjects.
    pub map: &'a MapOptions,
    /// The engine.
    pub dialect: Dialect,
}

/// The compiled options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnDemand {
    /// Patterns of the topics.
    topics: Vec<Box<str>>,
    linger_ns: u64,
    separator: Box<str>,
    /// What precedes the tokens that subject and topic share.
    strip: Box<str>,
    prefix: Box<str>,
    dialect: Dialect,
}

impl OnDemand {
    /// Checks the options, and refuses what leads from no topic back to its subject. `None`: everything is read all the time, or
    /// something was refused.
    pub fn new(options: OnDemandOptions<'_>, checks: &mut OptionChecks) -> Option<OnDemand> {
        let OnDemandOptions { key, subjects, on_demand, linger, map, dialect } = options;
        checks.within("linger", linger, LINGER_RANGE.0, LINGER_RANGE.1);
        if on_demand.is_empty() {
            return None;
        }
        let mut is_refused = false;
        let mut refuse = |text: String| {
            checks.refuse("on_demand", text);
            is_refused = true;
        };
        if map.topic != "{subject}" {
            refuse(format!(
                "map.topic = {:?}: a topic must lead back to its subject; leave map.topic out, and use map.strip and map.prefix",
                map.topic
            ));
        }
        if dialect == Dialect::Nats && map.separator != "." {
            refuse(format!(
                "map.separator = {:?}: tokens of subjects are separated by dots; leave it out",
                map.separator
            ));
        }
        for (name, text, end) in [("strip", &map.strip, &*map.separator), ("prefix", &map.prefix, ".")] {
            if !text.is_empty() && !text.ends_with(end) {
                refuse(format!("map.{name} = {text:?}: must consist of whole tokens; end it with {end:?}"));
            }
        }
        let mut topics: Vec<Box<str>> = Vec::new();
        for (at, subject) in on_demand.iter().enumerate() {
            if !subjects.contains(subject) {
                refuse(format!("{subject:?}: not one of `{key}`; list it there too"));
            }
            let others = subjects.iter().filter(|other| *other != subject).chain(&on_demand[..at]);
            if let Some(other) = others.into_iter().find(|other| overlap(dialect, subject, other)) {
                refuse(format!(
                    "{subject:?} and {other:?} overlap, so messages would come twice; list what each has of its own"
                ));
            }
            match topics_of(subject, map, dialect) {
                Ok(pattern) => topics.push(pattern),
                Err(text) => refuse(format!("{subject:?}: {text}")),
            }
        }
        let (separator, strip) = ((&*map.separator).into(), (&*map.strip).into());
        let prefix = (&*map.prefix).into();
        (!is_refused).then_some(OnDemand { topics, linger_ns: linger.ns, separator, strip, prefix, dialect })
    }

    /// Patterns of the topics that are subscribed to on demand.
    pub fn topics(&self) -> &[Box<str>] {
        &self.topics
    }

    /// How long a subscription is kept after nobody wants it any more, nanoseconds.
    pub fn linger_ns(&self) -> u64 {
        self.linger_ns
    }

    /// The pattern of topics that the engine is asked for when this one is wanted: the same, or a wider one. No two of them are the same
    /// to the engine: to Redis, the last token of `a.*` and `a.>` is.
    pub fn widened(&self, pattern: Box<str>) -> Box<str> {
        match pattern.strip_suffix('*').filter(|rest| rest.is_empty() || rest.ends_with('.')) {
            Some(rest) if self.dialect == Dialect::Redis => format!("{rest}>").into(),
            _ => pattern,
        }
    }

    /// The subject, or pattern of subjects as the engine writes it, of a pattern of topics.
    pub fn subject(&self, pattern: &str) -> String {
        let rest = pattern.strip_prefix(&*self.prefix);
        debug_assert!(rest.is_some(), "the pattern lies within the topics");
        let rest = rest.unwrap_or(pattern);
        if self.dialect == Dialect::Nats {
            return format!("{}{rest}", self.strip);
        }
        if pattern::is_exact(rest) {
            return format!("{}{}", self.strip, rest.replace('.', &self.separator));
        }
        let mut glob = escaped(&self.strip);
        for (at, token) in rest.split('.').enumerate() {
            if at > 0 {
                glob.push_str(&escaped(&self.separator));
            }
            match token {
                "*" | ">" => glob.push('*'),
                token => glob.push_str(&escaped(token)),
            }
        }
        glob
    }

    /// The topic of a subject; `None` if it does not lead back to the subject, or the subject is none of these.
    pub fn topic<'a>(&self, subject: &'a str) -> Option<Cow<'a, str>> {
        let rest = subject.strip_prefix(&*self.strip)?;
        if &*self.separator == "." && self.prefix.is_empty() {
            return Some(Cow::Borrowed(rest));
        }
        if &*self.separator != "." && rest.contains('.') {
            return None;
        }
        Some(Cow::Owned(format!("{}{}", self.prefix, rest.replace(&*self.separator, "."))))
    }
}

/// The pattern of the topics of a subject or pattern of subjects.
fn topics_of(subject: &str, map: &MapOptions, dialect: Dialect) -> Result<Box<str>, String> {
    let dotted = match dialect {
        Dialect::Nats => subject.to_owned(),
        Dialect::Redis => {
            let stem = subject.strip_suffix('*').unwrap_or(subject);
            let is_whole = stem.len() == subject.len() || stem.is_empty() || stem.ends_with(&map.separator);
            if stem.contains(['*', '?', '[', '\\']) || !is_whole {
                return Err(format!(
                    "use the name of a channel, or whole tokens and `*`, such as \"md{}*\"",
                    map.separator
                ));
            }
            if map.separator != "." && stem.contains('.') {
                return Err(format!(
                    "contains a dot, and so would the topic's tokens; only {:?} separates them",
                    map.separator
                ));
            }
            let rest = if stem.len() < subject.len() { ">" } else { "" };
            stem.replace(&map.separator, ".") + rest
        }
    };
    let strip = map.strip.replace(&map.separator, ".");
    let within = pattern::intersection(&dotted, &format!("{strip}>"));
    let rest = within.as_deref().and_then(|within| within.strip_prefix(&strip));
    let Some(rest) = rest else { return Err(format!("does not begin with map.strip, {:?}", map.strip)) };
    let topics = format!("{}{rest}", map.prefix);
    match pattern::check_pattern(topics.as_bytes()) {
        Ok(_) => Ok(topics.into()),
        Err(error) => Err(format!("topics {topics:?}: {error}")),
    }
}

/// Whether two patterns of subjects may match the same subject.
fn overlap(dialect: Dialect, a: &str, b: &str) -> bool {
    if dialect == Dialect::Nats {
        return pattern::overlaps(a, b);
    }
    glob::overlap(a, b)
}

/// A text in a glob of Redis that stands for itself.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if "*?[]\\".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// A source's end of the ring from one shard.
#[derive(Debug)]
struct Lane {
    changes: ItemConsumer<DemandChange>,
    bell: Arc<Doorbell>,
}

/// A source's ends of the rings from all shards, by which it learns what their sessions ask for.
#[derive(Debug)]
pub struct DemandLanes {
    lanes: Vec<Lane>,
    wake: Arc<Notify>,
}

impl DemandLanes {
    /// Creates the rings from the shards that `bells` wake to a source of this number. Returns its ends, and each shard's in order.
    pub fn new(source: u32, bells: &[Arc<Doorbell>]) -> (DemandLanes, Vec<DemandLane>) {
        let wake = Arc::new(Notify::new());
        let (lanes, shards) = bells
            .iter()
            .map(|bell| {
                let (changes_out, changes) = item_ring(DEMAND_RING);
                let notify = wake.clone();
                // While the thread is awake, this only stores a permit.
                let wake = SinkWake(Box::new(move || notify.notify_one()));
                (Lane { changes, bell: bell.clone() }, DemandLane { source, changes_out, wake })
            })
            .unzip();
        (DemandLanes { lanes, wake }, shards)
    }

    /// Takes the changes of all shards, at most a ring of each.
    pub fn take(&mut self, mut each: impl FnMut(DemandChange)) {
        let mut is_full = false;
        for lane in &mut self.lanes {
            let mut taken = 0;
            while taken < DEMAND_RING
                && let Some(change) = lane.changes.pop()
            {
                taken += 1;
                each(change);
            }
            if taken > 0 && lane.changes.producer_waits() {
                lane.bell.ring();
            }
            is_full |= taken == DEMAND_RING;
        }
        if is_full {
            self.wake.notify_one();
        }
    }

    /// Waits until changes may have come.
    pub async fn ready(&self) {
        self.wake.notified().await;
    }
}

#[cfg(test)]
mod tests;
