//! Churn: connections that are reset and reopened during the measured window.

use std::{collections::HashMap, time::Duration};

use mio::{Interest, Token};
use socket2::SockRef;
use tickcast::clock;

use super::{Worker, lock};
use crate::{
    clients::Counts,
    connection::{Connection, State},
    tally::{self, Loss, SequenceByTopic},
};

/// One thread's churn so far.
#[derive(Debug, Default)]
pub struct Churn {
    pub left: u64,
    /// Connections that subscribed again.
    pub came_back: u64,
    /// Loss of the connections up to their reset.
    pub loss: Loss,
    /// Highest sequences that they had seen.
    pub seen: SequenceByTopic,
    /// Counts of clients before their reset, by index in the thread's connections.
    pub before: HashMap<usize, Counts>,
    next: usize,
}

impl Worker<'_> {
    /// Resets and reopens the connections that are due, in turn.
    ///
    /// Connections that are stalled, ended or not yet resubscribed are skipped; if no other is left, the rest waits for a
    /// later turn. Cost: one connect per reset, and one pass over the connections at most.
    pub(super) fn churn_due(&mut self) -> Result<(), String> {
        let elapsed_ns = clock::monotonic_ns() - self.window_from_ns;
        let due = u128::from(elapsed_ns) * u128::from(self.plan.churn_per_s)
            / self.plan.threads as u128
            / 1_000_000_000;
        for _ in 0..self.connections.len() {
            if u128::from(self.churn.left) >= due || self.connecting >= self.plan.connecting_max() {
                break;
            }
            let at = self.churn.next % self.connections.len();
            self.churn.next = at + 1;
            if !self.connections[at].is_stalled && self.connections[at].state == State::Subscribed {
                self.reset(at)?;
                self.reopen(at)?;
            }
        }
        Ok(())
    }

    /// Counts what a connection lost up to its last tick, then resets it.
    fn reset(&mut self, at: usize) -> Result<(), String> {
        let is_start_known = self.is_start_known(at);
        let connection = &mut self.connections[at];
        if self.plan.has_sequences() {
            let mut last = SequenceByTopic::new();
            tally::raise_to_last(&mut last, &connection.feed);
            let start = is_start_known.then(|| lock(&self.shared.start));
            self.churn.loss.add(Loss::of_feed(&connection.feed, start.as_deref(), &last));
            tally::raise_to_last(&mut self.churn.seen, &connection.feed);
        }
        let counts = Counts::of_topics(connection.ticks, connection.feed.topics());
        self.churn.before.entry(at).or_default().add(counts);
        let fail = |error| format!("cannot reset a connection: {error}");
        self.poll.registry().deregister(&mut connection.stream).map_err(fail)?;
        // A reset sends the server nothing else and leaves no port in TIME_WAIT here.
        SockRef::from(&connection.stream).set_linger(Some(Duration::ZERO)).map_err(fail)?;
        self.churn.left += 1;
        Ok(())
    }

    /// Replaces a connection that was reset by a new one; dropping the old one closes its socket.
    fn reopen(&mut self, at: usize) -> Result<(), String> {
        let global = at * self.plan.threads + self.index;
        let fail = |error| format!("cannot reopen connection {global} to {}: {error}", self.plan.server);
        let mut connection = Connection::open(self.plan, global).map_err(fail)?;
        connection.is_reconnect = true;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut connection.stream, Token(at), interest).map_err(fail)?;
        self.connections[at] = connection;
        self.connecting += 1;
        Ok(())
    }
}
