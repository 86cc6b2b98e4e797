//! Tracks the publishes that the server has not answered yet.

use std::collections::HashSet;

use crate::{Connection, PUBLISHES_UNACKNOWLEDGED_MAX};
use tickcast_proto::features::Features;

/// Publishes without an answer, by request number.
///
/// Invariant: empty unless the server may acknowledge publishes, and at most [`PUBLISHES_UNACKNOWLEDGED_MAX`] of them.
#[derive(Debug, Default)]
pub(super) struct Unacknowledged {
    /// Whether the server has granted acknowledgements, or may still grant them.
    is_tracking: bool,
    requests: HashSet<u32>,
}

impl Unacknowledged {
    pub(super) fn new(is_asked: bool) -> Unacknowledged {
        Unacknowledged { is_tracking: is_asked, requests: HashSet::new() }
    }

    /// Records the features that the server has granted.
    pub(super) fn handle_welcome(&mut self, granted: Features) {
        self.is_tracking &= granted.contains(Features::PUBLISHED);
        if !self.is_tracking {
            self.requests = HashSet::new();
        }
    }

    /// Records that a publish was queued.
    pub(super) fn handle_publish(&mut self, request: u32) {
        if self.is_tracking {
            self.requests.insert(request);
        }
    }

    /// Records that a request was answered.
    pub(super) fn handle_answer(&mut self, request: u32) {
        self.requests.remove(&request);
    }

    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.requests.len() >= PUBLISHES_UNACKNOWLEDGED_MAX
    }
}

impl Connection {
    /// Whether the server acknowledges publishes: the options asked for it
    /// ([`ConnectOptions::acknowledgements`](crate::ConnectOptions)), and the server has granted it in its welcome. A server of
    /// version 0.1 does not.
    pub fn acknowledges(&self) -> bool {
        self.features.contains(Features::PUBLISHED)
    }

    /// Whether the server recognises message ids of publishes ([`PublishRequest::message_id`](crate::PublishRequest)): the options asked
    /// for acknowledgements, and the server has granted it in its welcome. A server of version 0.1 does not.
    pub fn recognises_message_ids(&self) -> bool {
        self.features.contains(Features::MESSAGE_IDS)
    }

    /// The number of publishes that the server has neither acknowledged nor refused yet; 0 if it does not acknowledge them.
    pub fn unacknowledged(&self) -> usize {
        self.unacknowledged.len()
    }
}
