//! The state of a source, as operators see it.

use std::fmt;

use tickcast_proto::ids::ShardId;

/// The state of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It publishes.
    Running,
    /// It has ticks to publish, but must wait.
    Waiting(Waiting),
    /// It has published everything, or was stopped.
    Ended,
    /// It cannot continue. Contains the reason.
    Failed(String),
}

/// What a source waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// The start of the shards.
    Shards,
    /// This many sessions with a live subscription.
    Subscribers(u64),
    /// Room in the ring to a shard.
    Room(ShardId),
    /// The next line of a capture, for more than a minute.
    Line,
    /// The first attempt to reach the engine that it reads.
    Connecting,
    /// The engine that it reads. Contains why it cannot be read.
    Engine(Box<str>),
}

impl Health {
    /// The names of all states, for metrics.
    pub const STATES: [&'static str; 4] = ["running", "waiting", "ended", "failed"];

    /// The name of the state.
    pub fn state(&self) -> &'static str {
        let at = match self {
            Health::Running => 0,
            Health::Waiting(_) => 1,
            Health::Ended => 2,
            Health::Failed(_) => 3,
        };
        Health::STATES[at]
    }

    /// What a waiting source waits for, or why a failed one cannot continue.
    pub fn reason(&self) -> Option<String> {
        match self {
            Health::Running | Health::Ended => None,
            Health::Waiting(waiting) => Some(waiting.to_string()),
            Health::Failed(reason) => Some(reason.clone()),
        }
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Waiting::Shards => write!(f, "for the shards to start"),
            Waiting::Subscribers(sessions) => write!(f, "for {sessions} subscribed sessions"),
            Waiting::Room(shard) => write!(f, "for room in the ring to shard {}", shard.0),
            Waiting::Line => write!(f, "for the next line"),
            Waiting::Connecting => write!(f, "for its engine: connecting"),
            Waiting::Engine(why) => write!(f, "for its engine: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_has_a_name_and_a_reason_where_there_is_one() {
        for (health, state, reason) in [
            (Health::Running, "running", None),
            (Health::Waiting(Waiting::Subscribers(5)), "waiting", Some("for 5 subscribed sessions")),
            (Health::Waiting(Waiting::Room(ShardId(2))), "waiting", Some("for room in the ring to shard 2")),
            (Health::Ended, "ended", None),
            (Health::Failed("no such file".into()), "failed", Some("no such file")),
        ] {
            assert_eq!((health.state(), health.reason().as_deref()), (state, reason));
        }
    }
}
