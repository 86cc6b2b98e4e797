//! Subscriptions of a connection: their options and start positions.

use crate::{
    RequestError, SubscribeOptions,
    connection::Connection,
    request::{Outgoing, Start},
    topics::{Announcer, SkipReason},
};
use tickcast_proto::{
    WireFormat,
    features::Features,
    limits::RESUME_POSITIONS_MAX,
    subscription::{Delivery, Moment, Position, StartPosition},
};

impl Connection {
    /// The server's epoch; `None` before its welcome.
    pub fn server_epoch(&self) -> Option<u64> {
        self.server_epoch
    }

    /// Queues a subscription to a pattern, starting with the next tick; returns the request's number.
    /// [`Event::Subscribed`](crate::Event) with that number acknowledges it, except on a raw connection.
    ///
    /// # Errors
    /// [`RequestError`]: nothing was queued.
    pub fn subscribe(&mut self, pattern: &str) -> Result<u32, RequestError> {
        self.start(pattern, Delivery::default(), Start::Live)
    }

    /// [`Connection::subscribe`] with a policy, a rate and a start.
    ///
    /// To a server without the feature `positions`, JSON carries one epoch for all positions: the server's if it is known, else
    /// the highest among them. Positions of another epoch are not sent; the connection itself reports them as not recovered
    /// ([`Event::Recovered`](crate::Event)) when their topics are announced.
    ///
    /// # Errors
    /// [`RequestError`]: nothing was queued. [`RequestError::SinceNotGranted`] for [`StartPosition::Since`] before the welcome of a
    /// server that knows it: topics without a position would start at their oldest tick kept. Positions passed to [`Connection::resume`] are discarded nevertheless.
    pub fn subscribe_with(&mut self, pattern: &str, options: &SubscribeOptions) -> Result<u32, RequestError> {
        let delivery = options.delivery;
        let is_raw = self.encoding == WireFormat::WEBSOCKET_RAW;
        match &options.from {
            StartPosition::Live => self.start(pattern, delivery, Start::Live),
            StartPosition::Latest => self.start(pattern, delivery, Start::Latest),
            // Raw connections carry payloads only. Without sequences there is no position to resume from.
            StartPosition::After(_)
            | StartPosition::AfterEach(_)
            | StartPosition::Resume
            | StartPosition::Since(..)
                if is_raw =>
            {
                self.resume_positions = Vec::new();
                self.start(pattern, delivery, Start::Latest)
            }
            StartPosition::After(position) => {
                if self.topics.pattern_positions() >= RESUME_POSITIONS_MAX {
                    return Err(RequestError::TooManyPositions);
                }
                let request = self.start(pattern, delivery, Start::After(*position))?;
                self.topics.add_pattern_position(pattern, *position);
                Ok(request)
            }
            StartPosition::AfterEach(positions) => {
                if positions.len() > RESUME_POSITIONS_MAX {
                    return Err(RequestError::TooManyPositions);
                }
                let positions: Vec<_> =
                    positions.iter().map(|(topic, &position)| (topic.clone(), position)).collect();
                self.start_after(pattern, delivery, &positions, None)
            }
            StartPosition::Since(positions, moment) => {
                let given = positions.iter().map(|(topic, &position)| (topic.clone(), position));
                let mut positions = std::mem::take(&mut self.resume_positions);
                positions.extend(given);
                if !self.grants_since() {
                    return Err(RequestError::SinceNotGranted);
                }
                if positions.len() > RESUME_POSITIONS_MAX {
                    return Err(RequestError::TooManyPositions);
                }
                self.start_after(pattern, delivery, &positions, Some(*moment))
            }
            StartPosition::Resume => {
                let positions = std::mem::take(&mut self.resume_positions);
                self.start_after(pattern, delivery, &positions, None)
            }
        }
    }

    /// Adds the client's position in a topic for the next subscription with [`StartPosition::Resume`], which sends it.
    ///
    /// # Errors
    /// [`RequestError::TooManyPositions`] beyond [`RESUME_POSITIONS_MAX`] of them.
    pub fn resume(&mut self, topic: &str, position: Position) -> Result<(), RequestError> {
        if self.resume_positions.len() >= RESUME_POSITIONS_MAX {
            return Err(RequestError::TooManyPositions);
        }
        self.resume_positions.push((topic.into(), position));
        Ok(())
    }

    /// Whether a subscription may start at a moment: [`StartPosition::Since`]. In JSON, a moment goes with positions of any epoch.
    pub(crate) fn grants_since(&self) -> bool {
        let grants_positions =
            self.encoding != WireFormat::WEBSOCKET_JSON || self.features.contains(Features::POSITIONS);
        grants_positions && self.features.contains(Features::SINCE)
    }

    /// Queues a change of an active subscription's delivery; returns the request's number.
    /// [`Event::Subscribed`](crate::Event) with that number acknowledges it.
    ///
    /// # Errors
    /// [`RequestError`]: nothing was queued.
    pub fn update(&mut self, pattern: &str, delivery: Delivery) -> Result<u32, RequestError> {
        let request = self.requests.next();
        self.request(&Outgoing::Update { request, pattern, delivery }).map(|()| request)
    }

    /// Queues the end of a subscription, identified by its pattern; returns the request's number.
    /// [`Event::Unsubscribed`](crate::Event) with that number acknowledges it.
    /// After that, the next tick of every topic counts as its first, because only the server knows which topics paused.
    ///
    /// # Errors
    /// [`RequestError`]: nothing was queued.
    pub fn unsubscribe(&mut self, pattern: &str) -> Result<u32, RequestError> {
        let request = self.requests.next();
        self.request(&Outgoing::Unsubscribe { request, pattern })?;
        self.topics.remove_pattern_position(pattern);
        Ok(request)
    }

    /// Adds a position that is not sent to the server. The connection reports the ticks between it and the snapshot that
    /// the topic starts with, as conflated or as lost.
    pub(crate) fn expect_snapshot(&mut self, topic: &str, position: Position, reason: SkipReason) {
        self.topics.add_position(topic, position, Announcer::Client(reason));
    }

    fn start(&mut self, pattern: &str, delivery: Delivery, start: Start<'_>) -> Result<u32, RequestError> {
        let request = self.requests.next();
        self.request(&Outgoing::Subscribe { request, pattern, delivery, start }).map(|()| request)
    }

    fn start_after(
        &mut self,
        pattern: &str,
        delivery: Delivery,
        positions: &[(Box<str>, Position)],
        moment: Option<Moment>,
    ) -> Result<u32, RequestError> {
        let carries_one_epoch =
            self.encoding == WireFormat::WEBSOCKET_JSON && !self.features.contains(Features::POSITIONS);
        let highest = || positions.iter().map(|(_, position)| position.epoch).max().unwrap_or(0);
        let only = carries_one_epoch.then(|| self.server_epoch.unwrap_or_else(highest));
        let start = match (only, moment) {
            (Some(epoch), _) => Start::PositionsOf(epoch, positions),
            (None, None) => Start::Positions(positions),
            (None, Some(moment)) => Start::Since(positions, moment),
        };
        let request = self.start(pattern, delivery, start)?;
        for (topic, position) in positions {
            let is_sent = only.is_none_or(|epoch| position.epoch == epoch);
            let announcer = if is_sent { Announcer::Server } else { Announcer::Client(SkipReason::Gap) };
            self.topics.add_position(topic, *position, announcer);
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests;
