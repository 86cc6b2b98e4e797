//! Control channels from the main thread to the shards: one bounded SPSC ring each, polled once a turn.
//!
//! A shard replies from its own thread and its own state. The sender never waits, and skips a shard whose ring is full.
//! Every request ends in a reply or in a dropped [`ReplySender`], so the requester always learns the outcome.

use std::sync::Arc;

use crate::{
    limits::CONTROL_REQUESTS_PER_SHARD,
    operator::views::{SessionView, TopicView},
    tls::TlsConfigs,
};
use tickcast_core::{
    config::Limits,
    ids::FeedId,
    mesh::ring::Doorbell,
    principal::Revocation,
    shard::survey::{SessionsQuery, ShardState, TopicsQuery},
};
use tickcast_proto::{
    ids::{ShardId, TopicId},
    reply::SourceState,
};

/// Where a shard sends its reply. Both closures run on the shard's thread and must not block.
pub struct ReplySender<T> {
    send: Box<dyn FnOnce(T) + Send>,
    is_closed: Box<dyn Fn() -> bool + Send>,
}

impl<T> ReplySender<T> {
    /// Passes the reply to `send`; `is_closed` returns whether the requester has given up.
    pub fn new(
        send: impl FnOnce(T) + Send + 'static,
        is_closed: impl Fn() -> bool + Send + 'static,
    ) -> ReplySender<T> {
        ReplySender { send: Box::new(send), is_closed: Box::new(is_closed) }
    }

    /// For a requester that never gives up.
    pub fn always_open(send: impl FnOnce(T) + Send + 'static) -> ReplySender<T> {
        ReplySender::new(send, || false)
    }

    /// Sends the reply.
    pub fn send(self, reply: T) {
        (self.send)(reply);
    }

    /// Whether the requester has given up.
    pub fn is_closed(&self) -> bool {
        (self.is_closed)()
    }
}

/// A request to one shard, with the sender of its reply where there is one.
pub enum ShardRequest {
    /// The shard's gauges and latency histograms.
    State(ReplySender<Box<ShardState>>),
    /// The sessions that match a query.
    Sessions(SessionsQuery, ReplySender<Vec<SessionView>>),
    /// The topics that the shard sequences and that match a query.
    Topics(TopicsQuery, ReplySender<Vec<TopicView>>),
    /// The number of the shard's sessions subscribed to each of these topics, in the same order.
    SessionCounts(Arc<[TopicId]>, ReplySender<Vec<u64>>),
    /// Applies new limits.
    Reload(Arc<Limits>),
    /// Uses these certificates for new TLS handshakes; by clients' listener.
    Certificates(TlsConfigs),
    /// A source or failover group that marks its topics has this state since this time, nanoseconds since 1970.
    FeedState(FeedId, SourceState, u64),
    /// Closes the session with this id; replies whether it existed.
    Close(u64, ReplySender<bool>),
    /// Closes the sessions that this revokes, at this moment in seconds since 1970; replies how many.
    Revoke(Arc<Revocation>, u64, ReplySender<usize>),
}

/// A request to dispatch to one shard or to all.
pub struct Dispatch {
    /// The only shard to send it to; `None` for all.
    pub to: Option<ShardId>,
    /// Makes the request for a shard.
    pub request: Box<dyn FnMut(ShardId) -> ShardRequest + Send>,
}

/// The main thread's end of all control channels.
pub struct ControlSender {
    lanes: Vec<(rtrb::Producer<ShardRequest>, Arc<Doorbell>)>,
}

/// A shard's end of its control channel.
pub struct ControlReceiver(rtrb::Consumer<ShardRequest>);

/// Creates one control channel for each doorbell, in shard order.
pub fn control_channels(bells: &[Arc<Doorbell>]) -> (ControlSender, Vec<ControlReceiver>) {
    let ring = |bell: &Arc<Doorbell>| {
        let (producer, consumer) = rtrb::RingBuffer::new(CONTROL_REQUESTS_PER_SHARD);
        ((producer, bell.clone()), ControlReceiver(consumer))
    };
    let (lanes, receivers) = bells.iter().map(ring).unzip();
    (ControlSender { lanes }, receivers)
}

impl ControlSender {
    /// Sends without blocking. Skips shards that have ended, and returns those whose ring was full, for a retry.
    pub fn send(&mut self, mut dispatch: Dispatch) -> Vec<ShardId> {
        let mut full = Vec::new();
        for (index, (ring, bell)) in self.lanes.iter_mut().enumerate() {
            let shard = ShardId(index as u16);
            if ring.is_abandoned() || dispatch.to.is_some_and(|to| to != shard) {
                continue;
            }
            if ring.is_full() {
                full.push(shard);
                continue;
            }
            let pushed = ring.push((dispatch.request)(shard));
            debug_assert!(pushed.is_ok(), "the only producer found room");
            bell.ring();
        }
        full
    }
}

impl ControlReceiver {
    /// Whether a request is waiting. Cost: one load.
    pub fn has_requests(&self) -> bool {
        !self.0.is_empty()
    }

    /// The next request, if one is waiting.
    pub fn try_recv(&mut self) -> Option<ShardRequest> {
        self.0.pop().ok()
    }
}

impl Drop for ControlReceiver {
    fn drop(&mut self) {
        // The ring lives until both ends are dropped; requests left in it would keep their requesters waiting.
        while self.try_recv().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

    use super::*;

    fn close(to: Option<ShardId>) -> (Dispatch, Receiver<(ShardId, bool)>) {
        let (sender, replies): (Sender<(ShardId, bool)>, _) = channel();
        let request = Box::new(move |shard| {
            let sender = sender.clone();
            let send = move |existed| sender.send((shard, existed)).unwrap();
            ShardRequest::Close(7, ReplySender::always_open(send))
        });
        (Dispatch { to, request }, replies)
    }

    fn reply(receiver: &mut ControlReceiver) {
        let Some(ShardRequest::Close(7, reply)) = receiver.try_recv() else { panic!("no request") };
        reply.send(true);
    }

    #[test]
    fn a_request_reaches_all_shards_or_only_its_target() {
        let bells: Vec<_> = (0..3).map(|_| Arc::new(Doorbell::new(|| {}))).collect();
        let (mut control, mut receivers) = control_channels(&bells);
        let (dispatch, replies) = close(None);
        control.send(dispatch);
        receivers.iter_mut().for_each(reply);
        let shards: Vec<u16> = replies.iter().map(|(shard, _)| shard.0).collect();
        assert_eq!(shards, [0, 1, 2]);
        let (dispatch, replies) = close(Some(ShardId(1)));
        control.send(dispatch);
        assert!(!receivers[0].has_requests() && !receivers[2].has_requests());
        reply(&mut receivers[1]);
        assert_eq!(replies.iter().collect::<Vec<_>>(), [(ShardId(1), true)]);
    }

    #[test]
    fn a_full_ring_or_an_ended_shard_drops_the_request_and_the_requester_learns_of_it() {
        let (mut control, receivers) = control_channels(&[Arc::new(Doorbell::new(|| {}))]);
        let queued: Vec<_> = (0..CONTROL_REQUESTS_PER_SHARD)
            .map(|_| {
                let (dispatch, replies) = close(None);
                control.send(dispatch);
                replies
            })
            .collect();
        let (dispatch, replies) = close(None);
        control.send(dispatch);
        assert!(replies.recv().is_err(), "its reply sender was dropped");
        let (dispatch, _replies) = close(None);
        assert_eq!(control.send(dispatch), [ShardId(0)]);
        assert!(queued.iter().all(|replies| replies.try_recv() == Err(TryRecvError::Empty)), "still queued");
        drop(receivers);
        assert!(queued.iter().all(|replies| replies.recv().is_err()), "an ended shard drops what was queued");
        let (dispatch, replies) = close(None);
        assert!(control.send(dispatch).is_empty() && replies.recv().is_err());
    }
}
