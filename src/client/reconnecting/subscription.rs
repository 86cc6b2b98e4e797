//! A subscription of a reconnecting client, and where it starts on each connection.

use std::collections::HashMap;

use crate::SubscribeOptions;
use tickcast_proto::subscription::{Delivery, Policy, Position, StartPosition};

#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) request: u32,
    pub(super) pattern: Box<str>,
    pub(super) options: SubscribeOptions,
    /// Whether the server has acknowledged it at least once.
    pub(super) acknowledged: bool,
}

impl Subscription {
    /// Whether it receives the last values rather than all ticks, and does not start at a position.
    pub(super) fn conflates(&self) -> bool {
        let Delivery { policy, interval_us } = self.options.delivery;
        (policy == Some(Policy::Conflate) || interval_us != 0)
            && !matches!(
                self.options.from,
                StartPosition::After(_)
                    | StartPosition::AfterEach(_)
                    | StartPosition::Resume
                    | StartPosition::Since(..)
            )
    }

    /// Where it starts without positions, as its options say.
    pub(super) fn first_start(&self, server_epoch: Option<u64>) -> StartPosition {
        match (&self.options.from, server_epoch) {
            // Sequence 0 asks for all retained ticks, whatever the epoch.
            (StartPosition::After(Position { sequence: 0, .. }), Some(epoch)) => {
                StartPosition::After(Position { epoch, sequence: 0 })
            }
            // Other subscriptions have those of its positions that are not known to the caller.
            (StartPosition::Since(_, moment), _) => StartPosition::Since(HashMap::new(), *moment),
            (from, _) => from.clone(),
        }
    }

    /// Where it resumes, with the positions that the connection has been given. Before its first acknowledgement it needs its moment,
    /// and is refused without; later, a server that does not know moments sends more, but nothing is lost.
    pub(super) fn resumption(&self, grants_since: bool) -> StartPosition {
        match self.options.from {
            StartPosition::Since(_, moment) if grants_since || !self.acknowledged => {
                StartPosition::Since(HashMap::new(), moment)
            }
            _ => StartPosition::Resume,
        }
    }
}
