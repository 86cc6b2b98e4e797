//! What a session asks to be delivered: subscriptions, their options, and where they begin.

use crate::{
    RequestError, SubscribeOptions,
    request::{Outgoing, Start},
    session::Session,
    topics::{Skip, Teller},
};
use tickcast_proto::{
    Encoding,
    limits::RESUME_POSITIONS_MAX,
    subscription::{Delivery, From, Position},
};

impl Session {
    /// The server's life, once it has welcomed.
    pub fn server_epoch(&self) -> Option<u64> {
        self.server_epoch
    }

    /// Asks for the ticks of a pattern, from the next one on. The acknowledgement names the number returned; a raw
    /// session gets none.
    ///
    /// # Errors
    /// [`RequestError`]: nothing was queued.
    pub fn subscribe(&mut self, pattern: &str) -> Result<u32, RequestError> {
        self.start(pattern, Delivery::default(), Start::Live)
    }

    /// [`Session::subscribe`] with a policy, a rate and a place to begin.
    ///
    /// JSON names one epoch for all places: the server's if it has welcomed, else the newest among them. A place of
    /// another epoch is not sent, and the session itself gives its [`Event::Recovered`](crate::Event) when
    /// the topic is announced.
    ///
    /// # Errors
    /// [`RequestError`]: nothing was queued. Places named by [`Session::resume`] are used up all the same.
    pub fn subscribe_with(&mut self, pattern: &str, options: &SubscribeOptions) -> Result<u32, RequestError> {
        let delivery = options.delivery;
        let is_raw = self.encoding == Encoding::WebSocketRaw;
        match &options.from {
            From::Live => self.start(pattern, delivery, Start::Live),
            From::Latest => self.start(pattern, delivery, Start::Latest),
            // Payloads travel alone: without sequences there is no place to go on from.
            From::Position(_) | From::Positions(..) | From::Resume if is_raw => {
                self.resuming = Vec::new();
                self.start(pattern, delivery, Start::Latest)
            }
            From::Position(position) => {
                if self.topics.pattern_places() >= RESUME_POSITIONS_MAX {
                    return Err(RequestError::TooManyPlaces);
                }
                let request = self.start(pattern, delivery, Start::After(*position))?;
                self.topics.place_pattern(pattern, *position);
                Ok(request)
            }
            From::Positions(epoch, sequences) => {
                if sequences.len() > RESUME_POSITIONS_MAX {
                    return Err(RequestError::TooManyPlaces);
                }
                let mut places = Vec::with_capacity(sequences.len());
                for (topic, &sequence) in sequences {
                    places.push((topic.clone(), Position { epoch: *epoch, sequence }));
                }
                self.start_after(pattern, delivery, *epoch, &places)
            }
            From::Resume => {
                let places = std::mem::take(&mut self.resuming);
                let newest = places.iter().map(|(_, position)| position.epoch).max().unwrap_or(0);
                self.start_after(pattern, delivery, self.server_epoch.unwrap_or(newest), &places)
            }
        }
    }

    /// Names the place that the client has in a topic, for the next subscription with [`From::Resume`]: nothing is
    /// sent before that.
    ///
    /// # Errors
    /// [`RequestError::TooManyPlaces`] past [`RESUME_POSITIONS_MAX`] of them.
    pub fn resume(&mut self, topic: &str, position: Position) -> Result<(), RequestError> {
        if self.resuming.len() >= RESUME_POSITIONS_MAX {
            return Err(RequestError::TooManyPlaces);
        }
        self.resuming.push((topic.into(), position));
        Ok(())
    }

    /// Changes how a live subscription is delivered. The acknowledgement is an
    /// [`Event::Subscribed`](crate::Event) that names the number returned.
    ///
    /// # Errors
    /// [`RequestError`]: nothing was queued.
    pub fn update(&mut self, pattern: &str, delivery: Delivery) -> Result<u32, RequestError> {
        let request = self.next_request();
        self.request(&Outgoing::Update { request, pattern, delivery }).map(|()| request)
    }

    /// Ends a subscription, named by its pattern. The answer names the number returned.
    ///
    /// The next tick of each topic counts as its first again: which topics paused is the server's to know.
    ///
    /// # Errors
    /// [`RequestError`]: nothing was queued.
    pub fn unsubscribe(&mut self, pattern: &str) -> Result<u32, RequestError> {
        let request = self.next_request();
        self.request(&Outgoing::Unsubscribe { request, pattern })?;
        self.topics.forget_pattern(pattern);
        Ok(request)
    }

    /// Notes a place that the server is not asked for: what lies between it and the snapshot that the topic begins
    /// with is then told, as conflated or as lost.
    pub(crate) fn expect_snapshot(&mut self, topic: &str, position: Position, skip: Skip) {
        self.topics.place(topic, position, Teller::Client(skip));
    }

    fn start(&mut self, pattern: &str, delivery: Delivery, start: Start<'_>) -> Result<u32, RequestError> {
        let request = self.next_request();
        self.request(&Outgoing::Subscribe { request, pattern, delivery, start }).map(|()| request)
    }

    fn start_after(
        &mut self,
        pattern: &str,
        delivery: Delivery,
        epoch: u64,
        places: &[(Box<str>, Position)],
    ) -> Result<u32, RequestError> {
        let request = self.start(pattern, delivery, Start::Places(epoch, places))?;
        let is_json = self.encoding == Encoding::WebSocketJson;
        for (topic, position) in places {
            let said = !is_json || position.epoch == epoch;
            let teller = if said { Teller::Server } else { Teller::Client(Skip::Gap) };
            self.topics.place(topic, *position, teller);
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests;
