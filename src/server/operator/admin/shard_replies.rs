//! Querying the shards: sends a request to one or all of them and collects the replies.

use std::time::Duration;

use tokio::{sync::mpsc, time::timeout};

use super::context::AdminContext;
use crate::{
    limits::ADMIN_REPLY_MS,
    operator::control::{Dispatch, ReplySender, ShardRequest},
};
use tickcast_proto::ids::ShardId;

/// The shards' replies to one request.
pub(super) struct ShardReplies<T> {
    /// Replies in shard order.
    pub(super) replies: Vec<(ShardId, T)>,
    /// The shards that did not reply in time.
    pub(super) unanswered: Vec<u16>,
}

impl<T> ShardReplies<T> {
    /// No replies, and none expected.
    pub(super) fn none() -> ShardReplies<T> {
        ShardReplies { replies: Vec::new(), unanswered: Vec::new() }
    }

    /// A shard's reply.
    pub(super) fn get(&self, shard: usize) -> Option<&T> {
        let at = self.replies.binary_search_by_key(&shard, |(shard, _)| usize::from(shard.0)).ok()?;
        Some(&self.replies[at].1)
    }
}

impl AdminContext {
    /// Sends a request to one shard or to all and waits for the replies.
    ///
    /// Waits at most [`ADMIN_REPLY_MS`] for its turn among the requests that query shards, then as long again for the
    /// replies. Does not wait for a shard that has ended or whose control channel is full.
    pub(super) async fn query_shards<T: Send + 'static>(
        &self,
        to: Option<ShardId>,
        request: impl Fn(ReplySender<T>) -> ShardRequest + Send + 'static,
    ) -> ShardReplies<T> {
        let deadline = Duration::from_millis(ADMIN_REPLY_MS);
        let shards = self.handles.shards.len();
        let mut replies = Vec::new();
        if let Ok(Ok(_permit)) = timeout(deadline, self.shard_requests.acquire()).await {
            // One slot for each shard's single reply: `try_send` always finds room.
            let (sender, mut receiver) = mpsc::channel(shards.max(1));
            (self.handles.dispatch)(Dispatch {
                to,
                request: Box::new(move |shard| {
                    let (sender, requester) = (sender.clone(), sender.clone());
                    let send = move |reply| drop(sender.try_send((shard, reply)));
                    request(ReplySender::new(send, move || requester.is_closed()))
                }),
            });
            // Ends once every reply sender was used or dropped.
            let collect = async {
                while let Some(reply) = receiver.recv().await {
                    replies.push(reply);
                }
            };
            let _ = timeout(deadline, collect).await;
        }
        replies.sort_by_key(|(shard, _)| *shard);
        let expected = (0..shards as u16).filter(|&shard| to.is_none_or(|to| to.0 == shard));
        let unanswered =
            expected.filter(|&shard| replies.iter().all(|(replied, _)| replied.0 != shard)).collect();
        ShardReplies { replies, unanswered }
    }
}
