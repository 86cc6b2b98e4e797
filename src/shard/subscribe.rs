//! Subscriptions as a session asks for them, changes them and ends them.

use super::{Shard, input::shown};
use crate::{
    clock::Now,
    fanout::{Begin, Interest, Subscription},
    limits::RESUME_POSITIONS_MAX,
    router,
    subscription::{Delivery, From, Position},
    wire::{ErrorCode, reply::Reply},
};

impl Shard {
    /// Where a subscription begins; places by topic are kept with the session until their topics are joined. `None`
    /// when there are more than may be, and the request has been answered.
    pub(super) fn begin(&mut self, slot: u32, request: u32, from: From, now: Now) -> Option<Begin> {
        match from {
            From::Live => Some(Begin::Live),
            From::Latest => Some(Begin::Latest),
            From::Position(position) => Some(Begin::After(position)),
            From::Resume => Some(Begin::Places),
            From::Positions(epoch, sequences) => {
                for topic in sequences.keys() {
                    if let Err(error) = router::check_topic(topic.as_bytes()) {
                        let text = format!("from: sequences: topic {}: {error}", shown(topic.as_bytes()));
                        self.fail(slot, request, ErrorCode::BadTopic, &text, now);
                        return None;
                    }
                }
                let session = self.sessions.open_mut(slot)?;
                let places = &mut session.lag_mut().places;
                if places.len() + sequences.len() > RESUME_POSITIONS_MAX {
                    self.too_many_places(slot, request, now);
                    return None;
                }
                let place = |(topic, sequence)| (topic, Position { epoch, sequence });
                places.extend(sequences.into_iter().map(place));
                Some(Begin::Places)
            }
        }
    }

    /// Notes a place in a topic for the subscription that follows.
    pub(super) fn resume(&mut self, slot: u32, topic: &str, position: Position, now: Now) {
        if let Err(error) = router::check_topic(topic.as_bytes()) {
            let text = format!("resume: topic {}: {error}", shown(topic.as_bytes()));
            return self.fail(slot, 0, ErrorCode::BadTopic, &text, now);
        }
        let Some(session) = self.sessions.open_mut(slot) else { return };
        let places = &mut session.lag_mut().places;
        if places.len() >= RESUME_POSITIONS_MAX {
            return self.too_many_places(slot, 0, now);
        }
        places.insert(topic.into(), position);
    }

    fn too_many_places(&mut self, slot: u32, request: u32, now: Now) {
        let text =
            format!("from: a session may name {RESUME_POSITIONS_MAX} places that wait for their topics");
        self.fail(slot, request, ErrorCode::BadRequest, &text, now);
    }

    /// Changes how a subscription is delivered.
    pub(super) fn update(&mut self, slot: u32, request: u32, pattern: &str, delivery: Delivery, now: Now) {
        let entry = self.fanout.entry_of(pattern);
        let held = |session: &mut crate::session::Session| {
            session.subscriptions.iter().any(|held| Some(held.entry) == entry)
        };
        let (Some(entry), true) = (entry, self.sessions.open_mut(slot).is_some_and(held)) else {
            let text = format!("not subscribed to {}", shown(pattern.as_bytes()));
            return self.fail(slot, request, ErrorCode::NotSubscribed, &text, now);
        };
        self.fanout.update(entry, slot, delivery, &mut self.sessions);
        let epoch = self.epoch;
        self.reply(slot, &Reply::Subscribed { request, pattern, epoch });
    }

    pub(super) fn subscribe(
        &mut self,
        slot: u32,
        request: u32,
        pattern: &str,
        delivery: Delivery,
        begin: Begin,
        now: Now,
    ) {
        if let Err(error) = router::check_pattern(pattern.as_bytes()) {
            let text = format!("pattern {}: {error}", shown(pattern.as_bytes()));
            return self.fail(slot, request, ErrorCode::BadPattern, &text, now);
        }
        let known = self.fanout.entry_of(pattern);
        let Some(session) = self.sessions.open_mut(slot) else { return };
        if session.subscriptions.len() >= self.limits.subscriptions_per_session_max {
            let text =
                format!("a session may hold {} subscriptions", self.limits.subscriptions_per_session_max);
            return self.fail(slot, request, ErrorCode::TooManySubscriptions, &text, now);
        }
        if known.is_some_and(|entry| session.subscriptions.iter().any(|held| held.entry == entry)) {
            let text = format!("already subscribed to {}", shown(pattern.as_bytes()));
            return self.fail(slot, request, ErrorCode::AlreadySubscribed, &text, now);
        }
        let (entry, interest) = self.fanout.subscribe(slot, request, pattern);
        if let Some(session) = self.sessions.open_mut(slot) {
            session.subscriptions.push(Subscription { entry, position: None, delivery, begin });
        }
        if let Some(Interest { request, exact }) = interest {
            self.ask_homes(pattern, exact, request);
        }
    }

    pub(super) fn unsubscribe(&mut self, slot: u32, request: u32, pattern: &str, now: Now) {
        let entry = self.fanout.entry_of(pattern);
        let held = self.sessions.open_mut(slot).and_then(|session| {
            let at = session.subscriptions.iter().position(|held| Some(held.entry) == entry)?;
            Some(session.subscriptions.swap_remove(at))
        });
        let Some(held) = held else {
            let text = format!("not subscribed to {}", shown(pattern.as_bytes()));
            return self.fail(slot, request, ErrorCode::NotSubscribed, &text, now);
        };
        if let Some(last) = self.fanout.unsubscribe(held, slot, &mut self.sessions, &self.logs) {
            self.tell_homes_gone(&last);
        }
        self.reply(slot, &Reply::Unsubscribed { request, pattern });
    }
}
