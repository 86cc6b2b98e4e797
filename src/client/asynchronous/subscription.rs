//! A subscription of an asynchronous client.

use std::{
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use futures_core::Stream;

use super::{Handle, Queue, lock};
use crate::{Change, ClientState, RequestError, SubscriptionEvent, SubscriptionState};
use tickcast_proto::subscription::{Delivery, Policy};

/// One subscription: a stream of its events. Dropping it unsubscribes.
///
/// It ends after [`SubscriptionState::Unsubscribed`], and when the client is disconnected for good; see
/// [`AsyncClient::state`](crate::AsyncClient::state) for the reason.
#[derive(Debug)]
pub struct Subscription {
    handle: Arc<Handle>,
    pattern: Arc<str>,
    queue: Arc<Mutex<Queue>>,
}

impl Subscription {
    pub(super) fn new(handle: Arc<Handle>, pattern: Arc<str>, queue: Arc<Mutex<Queue>>) -> Subscription {
        Subscription { handle, pattern, queue }
    }

    /// The pattern.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// The state, and what caused it.
    pub fn state(&self) -> Change<SubscriptionState> {
        lock(&self.queue).change().clone()
    }

    /// Ticks that were dropped here because the application was too slow. Gaps have announced them.
    pub fn dropped_ticks(&self) -> u64 {
        lock(&self.queue).dropped_ticks()
    }

    /// Events that wait for the application.
    pub fn unread(&self) -> usize {
        lock(&self.queue).len()
    }

    /// The next event; `None` at the end.
    pub async fn next(&mut self) -> Option<SubscriptionEvent> {
        poll_fn(|context| self.poll_next_event(context)).await
    }

    fn poll_next_event(&mut self, context: &mut Context<'_>) -> Poll<Option<SubscriptionEvent>> {
        let mut queue = lock(&self.queue);
        let was_full = queue.is_full();
        let polled = queue.poll_next(context);
        if was_full && !queue.is_full() {
            drop(queue);
            self.handle.shared.refill();
        }
        polled
    }

    /// Says that the application has finished the last event, as asking for the next one does. Matters for saved positions.
    pub fn finish(&mut self) {
        lock(&self.queue).finish();
    }

    /// Waits until the server has acknowledged the subscription: ticks published from then on are delivered.
    ///
    /// # Errors
    /// [`SubscribeError`] if the server refuses it, or if the client is disconnected for good.
    pub async fn ready(&self) -> Result<(), SubscribeError> {
        let shared = &self.handle.shared;
        let _awaiting = shared.await_answer();
        loop {
            let mut changed = pin!(shared.changed.notified());
            // Before the state is looked at: a change in between must not be missed.
            changed.as_mut().enable();
            let Change { state, code, reason, .. } = self.state();
            let client = shared.change.borrow().clone();
            match state {
                SubscriptionState::Subscribed => return Ok(()),
                SubscriptionState::Unsubscribed => return Err(SubscribeError { code, reason }),
                SubscriptionState::Subscribing if client.state == ClientState::Disconnected => {
                    let Change { code, reason, .. } = client;
                    return Err(SubscribeError { code, reason });
                }
                SubscriptionState::Subscribing => changed.await,
            }
        }
    }

    /// Replaces policy and rate, live and for later connections. If the server refuses them, a
    /// [`SubscriptionEvent::Error`] says so, and those before apply again.
    ///
    /// # Errors
    /// [`RequestError`] if the subscription has ended.
    pub fn set_delivery(&self, delivery: Delivery) -> Result<(), RequestError> {
        self.handle.call(|session| session.update(&self.pattern, delivery))
    }

    /// Replaces the policy: see [`Subscription::set_delivery`]. `None`: the server's default.
    ///
    /// # Errors
    /// [`RequestError`] if the subscription has ended.
    pub fn set_policy(&self, policy: Option<Policy>) -> Result<(), RequestError> {
        self.handle.call(|session| {
            let delivery = session.delivery(&self.pattern)?;
            session.update(&self.pattern, Delivery { policy, ..delivery })
        })
    }

    /// Replaces the most ticks per second of each topic: see [`Subscription::set_delivery`]. `None`: no limit.
    ///
    /// # Errors
    /// [`RequestError`] if the rate is out of range, or the subscription has ended.
    pub fn set_max_rate(&self, max_rate: Option<f64>) -> Result<(), RequestError> {
        let interval_us = max_rate.map(tickcast_proto::subscription::interval_us).transpose();
        let interval_us = interval_us.map_err(RequestError::Option)?.unwrap_or(0);
        self.handle.call(|session| {
            let delivery = session.delivery(&self.pattern)?;
            session.update(&self.pattern, Delivery { interval_us, ..delivery })
        })
    }
}

impl Stream for Subscription {
    type Item = SubscriptionEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<SubscriptionEvent>> {
        self.poll_next_event(context)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let shared = &self.handle.shared;
        let mut state = shared.lock();
        // The pattern may have another subscription by now.
        if state.queues.get(&self.pattern).is_some_and(|queue| Arc::ptr_eq(queue, &self.queue)) {
            let finished = state.finished_positions();
            state.queues.remove(&self.pattern);
            state.held.retain(|(on, _)| *on != self.pattern);
            // It fails only while too many requests wait, and then the pattern stays subscribed.
            let _ = state.session.unsubscribe(&self.pattern);
            state.keep_left(finished);
            shared.pump(&mut state);
            shared.wake.notify_one();
        }
    }
}

/// Why a subscription is not live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscribeError {
    /// The server's error code, or a close code; 0: none.
    pub code: u16,
    /// The reason, for a person.
    pub reason: Arc<str>,
}

impl fmt::Display for SubscribeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not subscribed: {} (code {})", self.reason, self.code)
    }
}

impl std::error::Error for SubscribeError {}
