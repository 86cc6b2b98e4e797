//! Maps messages of another engine to ticks: topic, key and producer time, from the message's subject, key, headers and JSON.
//!
//! ```text
//!  topic = "prices.{2}.{json:/venue}"       {subject}        the subject, stripped
//!  key   = "{header:Symbol-Id}"             {1} .. {32}      a token of it
//!  time  = "{json:/ts}"                     {key}            the message's key
//!  id    = "{header:Nats-Msg-Id}"           {header:NAME}    a header
//!                                           {partition}      the partition of its log
//!                                           {json:/a/0/b}    a string, number or boolean of the payload (RFC 6901)
//! ```
//!
//! The payload passes through untouched.

pub mod json_pointer;
mod template;

use std::{collections::HashSet, fmt};

use serde::{Deserialize, Serialize};

use self::template::{Input, Template};
use super::kind::OptionChecks;
use tickcast_proto::pattern::{self, NameError};

/// The partition in a template.
const PARTITION: &str = "{partition}";

/// The table `map` of a `[[source]]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MapOptions {
    /// Prefix to strip from each subject. A message whose subject begins differently is skipped.
    pub strip: String,
    /// Separator of a subject's tokens, instead of a dot: `/`, `:`.
    pub separator: String,
    /// Template of the topic. Its result follows `prefix`.
    pub topic: String,
    /// Prefix of each topic.
    pub prefix: String,
    /// Template of the key. A number is the key itself; any other text is hashed. Empty: no key.
    pub key: String,
    /// Template of the producer time. Empty: the engine's time, or else the time of arrival.
    pub time: String,
    /// Unit of `time`.
    pub time_unit: TimeUnit,
    /// Template of the message's id: a failover group publishes each id once. Empty: messages have no id.
    pub id: String,
}

impl MapOptions {
    /// The template of the topic without the partition, and whether the partition is its first or last token. Then messages of two
    /// different partitions of a subject never map to the same topic: a number has no dot.
    fn split_partition(&self) -> (&str, bool) {
        let topic = &*self.topic;
        if topic == PARTITION {
            return ("", true);
        }
        let rest = topic.strip_suffix(PARTITION).and_then(|rest| rest.strip_suffix('.'));
        let rest = rest.or_else(|| topic.strip_prefix(PARTITION).and_then(|rest| rest.strip_prefix('.')));
        rest.map_or((topic, false), |rest| (rest, true))
    }

    /// Whether messages of two different partitions of a subject never map to the same topic.
    pub fn tells_partitions_apart(&self) -> bool {
        self.split_partition().1
    }

    /// Whether messages of two different subjects never map to the same topic.
    pub fn tells_subjects_apart(&self, subjects: &[String]) -> bool {
        let names = subjects.iter().map(|subject| {
            let rest = subject.strip_prefix(&self.strip).unwrap_or(subject);
            rest.replace(&self.separator, ".")
        });
        let names: HashSet<String> = names.collect();
        self.split_partition().0 == "{subject}" && names.len() == subjects.len()
    }
}

impl Default for MapOptions {
    fn default() -> MapOptions {
        MapOptions {
            strip: String::new(),
            separator: ".".into(),
            topic: "{subject}".into(),
            prefix: String::new(),
            key: String::new(),
            time: String::new(),
            time_unit: TimeUnit::Ms,
            id: String::new(),
        }
    }
}

/// The unit of a producer time, counted from 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeUnit {
    /// Nanoseconds.
    Ns,
    /// Microseconds.
    Us,
    /// Milliseconds.
    #[default]
    Ms,
    /// Seconds.
    S,
}

impl TimeUnit {
    const fn ns(self) -> u64 {
        match self {
            TimeUnit::Ns => 1,
            TimeUnit::Us => 1_000,
            TimeUnit::Ms => 1_000_000,
            TimeUnit::S => 1_000_000_000,
        }
    }
}

/// Looks up headers of a message by name.
pub trait Headers {
    /// The first value of the header; `None` if there is none, or if it is not UTF-8.
    fn value(&self, name: &str) -> Option<&str>;

    /// The partition of the message's log, if the log has partitions.
    fn partition(&self) -> Option<i32> {
        None
    }
}

/// No headers.
impl Headers for () {
    fn value(&self, _: &str) -> Option<&str> {
        None
    }
}

/// A message of another engine.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    /// Subject, channel, stream or topic.
    pub subject: &'a str,
    /// The engine's own key of the message.
    pub key: Option<&'a str>,
    /// Its headers or other fields.
    pub headers: &'a dyn Headers,
    /// Its payload.
    pub payload: &'a [u8],
    /// The engine's own time of the message, nanoseconds since 1970.
    pub time_ns: Option<u64>,
}

/// What a message maps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped<'a> {
    /// A valid topic.
    pub topic: &'a str,
    /// 0: none.
    pub key: u64,
    /// Nanoseconds since 1970; `None`: the message has no time.
    pub producer_time_ns: Option<u64>,
    /// Its id, the same in every source of a failover group; `None`: the message has none.
    pub id: Option<&'a str>,
}

/// Why a message is skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unmappable {
    /// The subject does not begin with `strip`.
    Strip,
    /// A template needs something that the message lacks.
    Missing(Box<str>),
    /// The topic is not a valid name.
    Topic(Box<str>, NameError),
    /// The time is not a number of `time_unit` since 1970.
    Time(Box<str>),
    /// The payload has more bytes than fit into a frame.
    PayloadBytes(usize),
}

impl fmt::Display for Unmappable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unmappable::Strip => write!(f, "the subject does not begin with what `strip` says"),
            Unmappable::Missing(part) => write!(f, "there is no {part}"),
            Unmappable::Topic(topic, error) => write!(f, "topic {topic:?}: {error}"),
            Unmappable::Time(text) => write!(f, "time {text:?} is not a number"),
            Unmappable::PayloadBytes(bytes) => write!(f, "a payload of {bytes} bytes"),
        }
    }
}

/// Compiled options. One topic, key and time are rendered at a time, into buffers that are reused.
#[derive(Clone, Debug)]
pub struct Mapping {
    strip: Box<str>,
    separator: Box<str>,
    prefix: Box<str>,
    topic: Template,
    key: Option<Template>,
    time: Option<Template>,
    time_unit: TimeUnit,
    id: Option<Template>,
    payload_bytes_max: usize,
    rendered: String,
    scalar: String,
    id_rendered: String,
}

impl Mapping {
    /// Compiles the options. Refuses faulty ones under the key `map`.
    pub fn new(options: &MapOptions, checks: &mut OptionChecks) -> Option<Mapping> {
        let mut compiled = |name: &str, text: &str| match Template::parse(text) {
            Ok(template) => Some(template),
            Err(error) => {
                checks.refuse("map", format!("{name} = {text:?}: {error}"));
                None
            }
        };
        let topic = compiled("topic", &options.topic);
        let optional = |text: &str| !text.is_empty();
        let key = optional(&options.key).then(|| compiled("key", &options.key));
        let time = optional(&options.time).then(|| compiled("time", &options.time));
        let id = optional(&options.id).then(|| compiled("id", &options.id));
        if options.separator.is_empty() {
            checks.refuse("map", "separator is empty: leave it out if tokens are separated by dots");
            return None;
        }
        // The rest of the name depends on the message, and is checked with each.
        let sample = format!("{}x", options.prefix);
        if let Err(error) = pattern::check_topic(sample.as_bytes()) {
            checks.refuse("map", format!("prefix {:?}: {error}", options.prefix));
            return None;
        }
        Some(Mapping {
            strip: (&*options.strip).into(),
            separator: (&*options.separator).into(),
            prefix: (&*options.prefix).into(),
            topic: topic?,
            key: key.map_or(Some(None), |key| key.map(Some))?,
            time: time.map_or(Some(None), |time| time.map(Some))?,
            time_unit: options.time_unit,
            id: id.map_or(Some(None), |id| id.map(Some))?,
            payload_bytes_max: checks.bounds.payload_bytes_max,
            rendered: String::new(),
            scalar: String::new(),
            id_rendered: String::new(),
        })
    }

    /// A pattern that matches every topic of this mapping.
    pub fn pattern(&self) -> String {
        let literal = format!("{}{}", self.prefix, self.topic.literal_start());
        match literal.rsplit_once('.') {
            Some((tokens, _)) if !tokens.is_empty() => format!("{tokens}.>"),
            _ => ">".into(),
        }
    }

    /// The headers that it names.
    pub fn headers(&self) -> impl Iterator<Item = &str> {
        let optional = [&self.key, &self.time, &self.id].into_iter().flatten();
        optional.chain([&self.topic]).flat_map(Template::headers)
    }

    /// Maps a message. Parses the payload only for templates that name a part of it, and only up to that part. Does not
    /// allocate once its buffers have grown.
    ///
    /// # Errors
    /// Why the message is skipped.
    pub fn map<'a>(&'a mut self, message: Message<'a>) -> Result<Mapped<'a>, Unmappable> {
        if message.payload.len() > self.payload_bytes_max {
            return Err(Unmappable::PayloadBytes(message.payload.len()));
        }
        let subject = message.subject.strip_prefix(&*self.strip).ok_or(Unmappable::Strip)?;
        let input = Input { subject, separator: &self.separator, message };
        let key = match &self.key {
            None => 0,
            Some(key) => key_of(key.render(&input, &mut self.scalar)?),
        };
        let producer_time_ns = match &self.time {
            None => message.time_ns,
            Some(time) => {
                let text = time.render(&input, &mut self.scalar)?;
                Some(time_ns(text, self.time_unit).ok_or_else(|| Unmappable::Time(shortened(text)))?)
            }
        };
        // Without its id, a message may be published twice. That is better than not at all.
        let id = self.id.as_ref().and_then(|id| {
            self.id_rendered.clear();
            id.render_onto(&input, &mut self.id_rendered).ok()
        });
        let topic = match self.prefix.is_empty() && &*self.separator == "." && self.topic.is_subject() {
            true => subject,
            false => {
                self.rendered.clear();
                self.rendered.push_str(&self.prefix);
                self.topic.render_onto(&input, &mut self.rendered)?;
                &self.rendered
            }
        };
        pattern::check_topic(topic.as_bytes()).map_err(|error| Unmappable::Topic(shortened(topic), error))?;
        let id = id.map(|()| &*self.id_rendered);
        Ok(Mapped { topic, key, producer_time_ns, id })
    }
}

/// At most 64 characters of what a peer has sent, for the log.
fn shortened(text: &str) -> Box<str> {
    text.chars().take(64).collect::<String>().into()
}

/// A decimal number above 0 without leading zeros is the key itself. Any other text becomes its FNV-1a hash of 53 bits, which JavaScript represents exactly:
/// the same text has the same key on every node. Two of 100,000 texts share a key with a probability of 1 in 2 million.
fn key_of(text: &str) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    // Not "0", because 0 means no key, and not "07", because it is another text than "7".
    let is_number = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number && let Ok(number) = text.parse() {
        return number;
    }
    let hash = text.bytes().fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    // Folded to 53 bits. Never 0, which means no key.
    ((hash >> 53) ^ (hash & ((1 << 53) - 1))).max(1)
}

/// Converts a number of units since 1970 to nanoseconds, to the last digit if it is written without an exponent.
fn time_ns(text: &str, unit: TimeUnit) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        let number: f64 = text.parse().ok()?;
        let ns = number * unit.ns() as f64;
        return (0.0..u64::MAX as f64).contains(&ns).then_some(ns as u64);
    }
    let whole_ns = whole.parse::<u64>().ok()?.checked_mul(unit.ns())?;
    let (mut fraction_ns, mut scale) = (0, unit.ns());
    for digit in fraction.bytes() {
        scale /= 10;
        fraction_ns += u64::from(digit - b'0') * scale;
    }
    whole_ns.checked_add(fraction_ns)
}

#[cfg(test)]
mod tests;
