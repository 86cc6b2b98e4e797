//! How the main thread asks running shards for their latencies: a flag each, looked at once a turn.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use crate::{latency::Latency, ring::Doorbell, tick::ShardId};

/// Shared by all shards and the main thread.
#[derive(Debug)]
pub struct Reports {
    asked: Vec<AtomicBool>,
    bells: Vec<Arc<Doorbell>>,
}

impl Reports {
    /// For the shards that `bells` wake.
    pub fn new(bells: Vec<Arc<Doorbell>>) -> Reports {
        Reports { asked: bells.iter().map(|_| AtomicBool::new(false)).collect(), bells }
    }

    /// By the main thread: every shard is to answer, once, however often it was asked meanwhile.
    pub fn ask(&self) {
        for (asked, bell) in self.asked.iter().zip(&self.bells) {
            asked.store(true, SeqCst);
            bell.ring();
        }
    }

    /// By a shard: whether it is to answer.
    fn is_asked(&self, shard: ShardId) -> bool {
        self.asked[usize::from(shard.0)].load(SeqCst)
    }
}

/// A shard's end.
pub struct Reporter {
    reports: Arc<Reports>,
    shard: ShardId,
    answer: Box<dyn Fn(Box<Latency>) + Send>,
}

impl Reporter {
    /// `answer` takes a copy of the shard's latencies to the main thread. It must not wait.
    pub fn new(
        reports: Arc<Reports>,
        shard: ShardId,
        answer: impl Fn(Box<Latency>) + Send + 'static,
    ) -> Reporter {
        Reporter { reports, shard, answer: Box::new(answer) }
    }

    /// Whether the main thread has asked: one load.
    pub fn is_asked(&self) -> bool {
        self.reports.is_asked(self.shard)
    }

    /// Answers if the main thread has asked.
    pub fn answer_if_asked(&self, latency: &Latency) {
        if self.is_asked() {
            self.reports.asked[usize::from(self.shard.0)].store(false, SeqCst);
            self.answer(latency);
        }
    }

    /// Hands a copy to the main thread, asked or not.
    pub fn answer(&self, latency: &Latency) {
        (self.answer)(Box::new(latency.clone()));
    }
}
