//! Connections that leave abruptly and come back, while the window is measured.

use std::{collections::HashMap, time::Duration};

use crate::{
    clients::Counts,
    connection::{Connection, State},
    tally::{self, Cut, Loss},
};
use mio::{Interest, Token};
use socket2::SockRef;
use tickcast::clock;

use super::{Worker, lock};

/// What one thread's churn did so far.
#[derive(Debug, Default)]
pub struct Churn {
    pub left: u64,
    /// Those that were acknowledged again.
    pub came_back: u64,
    /// What the ones that left had lost until then.
    pub loss: Loss,
    /// Highest sequences that the ones that left had seen.
    pub seen: Cut,
    /// What clients had before they left, by their place in the thread's connections.
    pub before: HashMap<usize, Counts>,
    next: usize,
}

impl Worker<'_> {
    /// Lets as many leave as the time since the window began asks for, in turn.
    ///
    /// One that is stalled, has ended or is still on its way back is passed over; where none is left to go, the rest
    /// waits. Cost: one connection each, and at most one look at all.
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
                self.leave(at)?;
                self.come_back(at)?;
            }
        }
        Ok(())
    }

    /// Accounts what a connection lost up to its last tick, and resets it.
    fn leave(&mut self, at: usize) -> Result<(), String> {
        let is_judged = self.is_start_judged(at);
        let connection = &mut self.connections[at];
        if self.plan.has_sequences() {
            let mut own = Cut::new();
            tally::raise_cut(&mut own, &connection.session);
            let start = is_judged.then(|| lock(&self.shared.start));
            self.churn.loss.add(Loss::of_session(&connection.session, start.as_deref(), &own));
            tally::raise_cut(&mut self.churn.seen, &connection.session);
        }
        let counts = Counts::of_topics(connection.ticks, connection.session.topics());
        self.churn.before.entry(at).or_default().add(counts);
        let fail = |error| format!("a connection that leaves: {error}");
        self.poll.registry().deregister(&mut connection.stream).map_err(fail)?;
        // A reset says nothing more to the server, and leaves no port waiting here.
        SockRef::from(&connection.stream).set_linger(Some(Duration::ZERO)).map_err(fail)?;
        self.churn.left += 1;
        Ok(())
    }

    /// Opens a new connection in the place of one that left; the old one's socket is closed by that.
    fn come_back(&mut self, at: usize) -> Result<(), String> {
        let global = at * self.plan.threads + self.index;
        let fail = |error| format!("connection {global} back to {}: {error}", self.plan.server);
        let mut connection = Connection::open(self.plan, global).map_err(fail)?;
        connection.has_returned = true;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut connection.stream, Token(at), interest).map_err(fail)?;
        self.connections[at] = connection;
        self.connecting += 1;
        Ok(())
    }
}
