//! Routes: topics whose publishes are sent to another engine instead of their home, and the sinks that send them.
//!
//! ```text
//!  session -- publish --> shard: a route matches? -- no --> home
//!                           | yes
//!                           v
//!                         ring --> sink's thread --> engine --> a source --> home
//!                           ^         |
//!                           +-- answer+
//! ```
//!
//! The first route that matches a topic applies. Routes are fixed at startup; a reload does not change them.

use std::collections::HashMap;

use crate::{ids::TenantId, limits::ROUTE_DECISIONS_MAX, topic_key};
use tickcast_proto::{ErrorCode, pattern};

/// Index of a sink in [`Routes::sinks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SinkId(pub u16);

impl SinkId {
    /// Returns the sink's index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What shards know about a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkConfig {
    /// Its name in the configuration.
    pub name: Box<str>,
    /// Maximum time from a publish to its answer, nanoseconds.
    pub ack_timeout_ns: u64,
    /// Whether it takes message ids: its engine recognises them, or the operator has them passed on. If not, publishes with one are refused.
    pub takes_message_ids: bool,
}

/// A tenant's topics that are sent to a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The tenant.
    pub tenant: TenantId,
    /// A pattern of topic names.
    pub topics: Box<str>,
    /// The sink that they are sent to.
    pub sink: SinkId,
}

/// The routes of a server and their sinks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// In order of precedence: the first that matches applies.
    pub routes: Vec<Route>,
    /// By [`SinkId`].
    pub sinks: Vec<SinkConfig>,
}

impl Routes {
    /// The sink of a topic, by its key; `None`: the topic's home receives its ticks. Compares patterns, up to 50 ns each.
    fn find(&self, key: &str) -> Option<SinkId> {
        self.routes.iter().find(|route| route.matches(key)).map(|route| route.sink)
    }
}

impl Route {
    fn matches(&self, key: &str) -> bool {
        let (tenant, name) = topic_key::split(key);
        tenant == self.tenant && pattern::matches(&self.topics, name)
    }
}

/// A cache of topics' sinks, so that a publish costs one look-up instead of a comparison with each route.
///
/// Bound: [`ROUTE_DECISIONS_MAX`] topics; then the cache is cleared.
#[derive(Debug, Default)]
pub struct RouteCache {
    // Hashed with a key, because peers choose the topics.
    decisions: HashMap<Box<str>, Option<SinkId>>,
}

impl RouteCache {
    /// The sink of a topic, by its key. Allocates only for a topic that is not cached.
    pub fn sink_of(&mut self, routes: &Routes, key: &str) -> Option<SinkId> {
        if let Some(&decision) = self.decisions.get(key) {
            return decision;
        }
        let decision = routes.find(key);
        if self.decisions.len() >= ROUTE_DECISIONS_MAX {
            self.decisions.clear();
        }
        self.decisions.insert(key.into(), decision);
        decision
    }

    /// Bytes of the cached topics.
    pub fn heap_bytes(&self) -> usize {
        let names: usize = self.decisions.keys().map(|key| key.len()).sum();
        names + self.decisions.capacity() * size_of::<(Box<str>, Option<SinkId>)>()
    }
}

/// What became of a tick sent to an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Outcome {
    /// The engine has accepted it.
    Confirmed = 0,
    /// Not published: the engine cannot be reached.
    Away = 1,
    /// Not published: too many ticks are waiting for the engine.
    Full = 2,
    /// Not published: the engine has refused it.
    Refused = 3,
    /// Not published: no stream of the engine accepts the subject.
    NoStream = 4,
    /// Not published: the topic is a name that the engine reserves.
    Reserved = 5,
    /// The engine has not confirmed it, but may have it.
    Unconfirmed = 6,
    /// Not published: it has a message id, and the engine recognises none.
    NoMessageIds = 7,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Outcome; 8] = [
        Outcome::Confirmed,
        Outcome::Away,
        Outcome::Full,
        Outcome::Refused,
        Outcome::NoStream,
        Outcome::Reserved,
        Outcome::Unconfirmed,
        Outcome::NoMessageIds,
    ];

    /// Converts the number in an answer; an unknown one is [`Outcome::Unconfirmed`].
    pub fn from_number(number: u16) -> Outcome {
        Outcome::ALL.into_iter().find(|known| *known as u16 == number).unwrap_or(Outcome::Unconfirmed)
    }

    /// The code and text of the ERROR to send; `None` for a success. Short enough for the room that
    /// [`answer_bytes_max`](crate::limits::answer_bytes_max) reserves.
    pub fn error(self) -> Option<(ErrorCode, &'static str)> {
        let text = match self {
            Outcome::Confirmed => return None,
            Outcome::Unconfirmed => {
                return Some((
                    ErrorCode::Unconfirmed,
                    "the engine has not confirmed it: it may be published",
                ));
            }
            Outcome::Away => "its engine cannot be reached: not published",
            Outcome::Full => "too many ticks wait for its engine: not published",
            Outcome::Refused => "its engine refuses it: not published",
            Outcome::NoStream => "no stream of its engine takes it: not published",
            Outcome::NoMessageIds => {
                return Some((ErrorCode::BadRequest, "its engine recognises no message ids: not published"));
            }
            Outcome::Reserved => {
                return Some((ErrorCode::BadTopic, "its engine reserves this name: not published"));
            }
        };
        Some((ErrorCode::EngineUnavailable, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::answer_bytes_max;
    use tickcast_proto::{WireFormat, reply::Reply};

    fn routes() -> Routes {
        let route = |tenant, topics: &str, sink| Route {
            tenant: TenantId(tenant),
            topics: topics.into(),
            sink: SinkId(sink),
        };
        let sink = |name: &str| SinkConfig { name: name.into(), ack_timeout_ns: 1, takes_message_ids: false };
        Routes {
            routes: vec![route(0, "orders.eu.*", 1), route(0, "orders.>", 0), route(2, ">", 1)],
            sinks: vec![sink("world"), sink("eu")],
        }
    }

    #[test]
    fn first_matching_route_of_the_tenant_decides_and_is_remembered() {
        let (routes, mut cache) = (routes(), RouteCache::default());
        let key = |tenant, name: &str| topic_key::of(TenantId(tenant), name).into_owned();
        for _ in 0..2 {
            for (tenant, name, sink) in [
                (0, "orders.eu.a", Some(1)),
                (0, "orders.us.a", Some(0)),
                (0, "orders", None),
                (0, "prices.a", None),
                (1, "orders.eu.a", None),
                (2, "prices.a", Some(1)),
            ] {
                assert_eq!(cache.sink_of(&routes, &key(tenant, name)), sink.map(SinkId), "{tenant} {name}");
            }
        }
        assert_eq!(cache.decisions.len(), 6);
    }

    #[test]
    fn remembered_topics_are_bounded() {
        let (routes, mut cache) = (routes(), RouteCache::default());
        for n in 0..ROUTE_DECISIONS_MAX + 10 {
            assert_eq!(cache.sink_of(&routes, &format!("orders.{n}")), Some(SinkId(0)));
            assert!(cache.decisions.len() <= ROUTE_DECISIONS_MAX);
        }
    }

    #[test]
    fn errors_fit_the_room_kept_for_an_answer() {
        for outcome in Outcome::ALL {
            assert_eq!(Outcome::from_number(outcome as u16), outcome);
            let Some((code, text)) = outcome.error() else { continue };
            for format in WireFormat::ALL {
                let mut bytes = Vec::new();
                Reply::Error { request: u32::MAX, code, text }.encode(format, &mut bytes);
                assert!(bytes.len() <= answer_bytes_max(1), "{outcome:?} in {}", format.name());
            }
        }
    }
}
