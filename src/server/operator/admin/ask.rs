//! Asking the shards: how an inquiry goes out, and how its answers are gathered.

use std::time::Duration;

use tokio::{sync::mpsc, time::timeout};

use crate::{
    limits::ADMIN_ANSWER_MS,
    operator::{
        admin::listener::Office,
        control::{Answer, Inquiry, Question},
    },
};
use tickcast_proto::ids::ShardId;

/// What shards answered.
pub(super) struct Answers<T> {
    /// By shard, ascending.
    pub(super) found: Vec<(ShardId, T)>,
    /// Those that did not, in time.
    pub(super) missing: Vec<u16>,
}

impl<T> Answers<T> {
    /// The answer of a shard.
    pub(super) fn of(&self, shard: usize) -> Option<&T> {
        let at = self.found.binary_search_by_key(&shard, |(shard, _)| usize::from(shard.0)).ok()?;
        Some(&self.found[at].1)
    }
}

impl Office {
    /// Asks all shards, or one, and waits for those that answer, at most [`ADMIN_ANSWER_MS`]; as long again for other
    /// requests that ask. A shard that is not there, or is not asked, does not answer, and is not waited for.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        to: Option<ShardId>,
        question: impl Fn(ShardId, Answer<T>) -> Question + Send + 'static,
    ) -> Answers<T> {
        let deadline = Duration::from_millis(ADMIN_ANSWER_MS);
        let shards = self.sights.shards.len();
        let mut found = Vec::new();
        if let Ok(Ok(_permit)) = timeout(deadline, self.inquiries.acquire()).await {
            // An answer each: there is always room.
            let (answered, mut answers) = mpsc::channel(shards.max(1));
            (self.sights.ask)(Inquiry {
                to,
                question: Box::new(move |shard| {
                    let answered = answered.clone();
                    let asker = answered.clone();
                    let give = move |answer| drop(answered.try_send((shard, answer)));
                    question(shard, Answer::new(give, move || asker.is_closed()))
                }),
            });
            // It ends when all that could answer have, or have dropped the question.
            let gather = async {
                while let Some(answer) = answers.recv().await {
                    found.push(answer);
                }
            };
            let _ = timeout(deadline, gather).await;
        }
        found.sort_by_key(|(shard, _)| *shard);
        let asked = (0..shards as u16).filter(|&shard| to.is_none_or(|to| to.0 == shard));
        let missing = asked.filter(|&shard| found.iter().all(|(answered, _)| answered.0 != shard)).collect();
        Answers { found, missing }
    }
}
