//! The topics that a source is configured to read, and those among them that exist in the cluster.

use std::time::Duration;

use rdkafka::{consumer::Consumer as _, error::KafkaError, error::RDKafkaErrorCode as Code};
use regex::Regex;

use super::connection::Consumer;

/// Which topics to read.
#[derive(Clone, Debug)]
pub enum Wanted {
    Name(String),
    Matching(Regex),
}

impl Wanted {
    /// Reads the configured text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Wanted, String> {
        if text.starts_with('^') {
            return Regex::new(text)
                .map(Wanted::Matching)
                .map_err(|error| error.to_string().replace('\n', " "));
        }
        match is_name(text) {
            true => Ok(Wanted::Name(text.to_owned())),
            false => Err("not the name of a topic; a regular expression begins with ^".into()),
        }
    }

    /// Whether this topic is wanted. Kafka's own topics begin with two underscores and are read only by name.
    pub fn matches(&self, topic: &str) -> bool {
        match self {
            Wanted::Name(name) => name == topic,
            Wanted::Matching(expression) => !topic.starts_with("__") && expression.is_match(topic),
        }
    }
}

/// Whether Kafka accepts this as the name of a topic.
pub fn is_name(text: &str) -> bool {
    let is_in_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=249).contains(&text.len()) && text.bytes().all(is_in_name) && text != "." && text != ".."
}

/// What the cluster has of the wanted topics.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Names and numbers of partitions.
    pub topics: Vec<(String, usize)>,
    /// Topics that exist, or may exist, but cannot be read now.
    pub unreadable: Vec<String>,
    /// Topics wanted by name that cannot be read, with the reason.
    pub missing: Vec<(String, String)>,
    /// The number of a broker that answers; `None` if there is none.
    pub broker: Option<i32>,
}

/// Looks for the wanted topics, with one request for each entry of `wanted`.
///
/// # Errors
/// There is no answer.
pub fn look(consumer: &Consumer, wanted: &[Wanted], timeout: Duration) -> Result<Found, KafkaError> {
    let mut all = Found::default();
    for wanted in wanted {
        let name = match wanted {
            Wanted::Name(name) => Some(&**name),
            Wanted::Matching(_) => None,
        };
        let metadata = consumer.fetch_metadata(name, timeout)?;
        let mut brokers = metadata.brokers().iter().map(|broker| broker.id());
        // It has just answered. An address as configured, which has no number yet, is not among the brokers.
        let answering = brokers.clone().find(|id| *id == metadata.orig_broker_id());
        all.broker = answering.or_else(|| brokers.next()).or(all.broker);
        let before = all.topics.len();
        for topic in metadata.topics().iter().filter(|topic| wanted.matches(topic.name())) {
            if let Some(error) = topic.error() {
                if !is_unknown(error.into()) {
                    all.unreadable.push(topic.name().to_owned());
                }
                continue;
            }
            let is_known = all.topics[..before].iter().any(|(known, _)| known == topic.name());
            if !topic.partitions().is_empty() && !is_known {
                all.topics.push((topic.name().to_owned(), topic.partitions().len()));
            }
        }
        if let Some(name) = name.filter(|name| !all.topics.iter().any(|(known, _)| known == name)) {
            let why = metadata.topics().first().and_then(|topic| topic.error());
            let why = why.map_or("there is no such topic".to_owned(), |code| Code::from(code).to_string());
            all.missing.push((name.to_owned(), why));
        }
    }
    Ok(all)
}

/// Whether an error says that the topic does not exist. Other errors may hide one that exists.
pub fn is_unknown(code: Code) -> bool {
    matches!(code, Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownTopicId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_read_by_name_or_by_expression_and_kafkas_own_only_by_name() {
        let matches = |wanted: &str, topic: &str| Wanted::new(wanted).unwrap().matches(topic);
        assert!(matches("md.eu", "md.eu") && !matches("md.eu", "md.eu.1") && !matches("md.eu", "mdxeu"));
        assert!(matches(r"^md\.(eu|us)$", "md.us") && !matches(r"^md\.(eu|us)$", "md.use"));
        assert!(matches("__consumer_offsets", "__consumer_offsets") && !matches("^.*", "__consumer_offsets"));
        for bad in ["", "a b", "md.*", "^(", ".", "..", &*"a".repeat(250)] {
            assert!(Wanted::new(bad).is_err(), "{bad}");
        }
    }
}
