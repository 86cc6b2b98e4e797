//! How the main thread asks running shards: one bounded SPSC ring of questions for each, looked at once a turn.
//!
//! A shard answers on its own thread from its own state; nobody waits for it, and a shard whose ring is full is not asked.
//! Whoever asked finds out either way: the answer comes, or is dropped.

use std::sync::Arc;

use crate::{
    limits::QUESTIONS_PER_SHARD,
    operator::admin::views::{SessionView, TopicView},
};
use tickcast_core::{
    config::Limits,
    mesh::ring::Doorbell,
    shard::survey::{SessionsQuery, ShardState, TopicsQuery},
};
use tickcast_proto::ids::{ShardId, TopicId};

/// The way back to whoever asked. Used on the shard's thread: neither part may wait.
pub struct Answer<T> {
    give: Box<dyn FnOnce(T) + Send>,
    is_gone: Box<dyn Fn() -> bool + Send>,
}

impl<T> Answer<T> {
    /// `give` takes the answer, while not `is_gone`.
    pub fn new(
        give: impl FnOnce(T) + Send + 'static,
        is_gone: impl Fn() -> bool + Send + 'static,
    ) -> Answer<T> {
        Answer { give: Box::new(give), is_gone: Box::new(is_gone) }
    }

    /// To somebody who waits for it as long as it takes.
    pub fn awaited(give: impl FnOnce(T) + Send + 'static) -> Answer<T> {
        Answer::new(give, || false)
    }

    /// Gives it.
    pub fn give(self, answer: T) {
        (self.give)(answer);
    }

    /// Whether nobody waits for it any more.
    pub fn is_gone(&self) -> bool {
        (self.is_gone)()
    }
}

/// What a shard can be asked.
pub enum Question {
    /// What it says of itself.
    State(Answer<Box<ShardState>>),
    /// Some of its sessions.
    Sessions(SessionsQuery, Answer<Vec<SessionView>>),
    /// Some of the topics that it sequences.
    Topics(TopicsQuery, Answer<Vec<TopicView>>),
    /// How many of its sessions take each of these topics.
    Takers(Arc<[TopicId]>, Answer<Vec<u64>>),
    /// To work within other limits from now on.
    Reload(Arc<Limits>),
    /// To close the session with this id, and whether it was there.
    Close(u64, Answer<bool>),
}

/// A question for one shard or for all, each with an answer of its own.
pub struct Inquiry {
    /// Whom to ask; `None`: all.
    pub to: Option<ShardId>,
    /// Makes the question for a shard.
    pub question: Box<dyn FnMut(ShardId) -> Question + Send>,
}

/// The main thread's ends.
pub struct Control {
    lanes: Vec<(rtrb::Producer<Question>, Arc<Doorbell>)>,
}

/// A shard's end.
pub struct Inbox(rtrb::Consumer<Question>);

/// Makes the rings to the shards that `bells` wake.
pub fn control(bells: &[Arc<Doorbell>]) -> (Control, Vec<Inbox>) {
    let ring = |bell: &Arc<Doorbell>| {
        let (producer, consumer) = rtrb::RingBuffer::new(QUESTIONS_PER_SHARD);
        ((producer, bell.clone()), Inbox(consumer))
    };
    let (lanes, inboxes) = bells.iter().map(ring).unzip();
    (Control { lanes }, inboxes)
}

impl Control {
    /// Asks. A shard that has ended, or whose ring is full, is left out; the latter are returned, for what must not be lost.
    pub fn ask(&mut self, mut inquiry: Inquiry) -> Vec<ShardId> {
        let mut left_out = Vec::new();
        for (index, (ring, bell)) in self.lanes.iter_mut().enumerate() {
            let shard = ShardId(index as u16);
            if ring.is_abandoned() || inquiry.to.is_some_and(|to| to != shard) {
                continue;
            }
            if ring.is_full() {
                left_out.push(shard);
                continue;
            }
            // Cannot fail: this is the only writer, and there was room.
            let _ = ring.push((inquiry.question)(shard));
            bell.ring();
        }
        left_out
    }
}

impl Inbox {
    /// Whether a question waits: one load.
    pub fn has_questions(&self) -> bool {
        !self.0.is_empty()
    }

    /// The next question.
    pub fn take(&mut self) -> Option<Question> {
        self.0.pop().ok()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        // The ring keeps what is in it until both ends are gone, and whoever asked would wait.
        while self.take().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

    use super::*;

    fn closes(to: Option<ShardId>) -> (Inquiry, Receiver<(ShardId, bool)>) {
        let (answered, answers): (Sender<(ShardId, bool)>, _) = channel();
        let question = Box::new(move |shard| {
            let answered = answered.clone();
            Question::Close(7, Answer::awaited(move |was_there| answered.send((shard, was_there)).unwrap()))
        });
        (Inquiry { to, question }, answers)
    }

    fn answer(inbox: &mut Inbox) {
        let Some(Question::Close(7, answer)) = inbox.take() else { panic!("no question") };
        answer.give(true);
    }

    #[test]
    fn a_question_reaches_all_shards_or_the_one_it_is_for() {
        let bells: Vec<_> = (0..3).map(|_| Arc::new(Doorbell::new(|| {}))).collect();
        let (mut control, mut inboxes) = control(&bells);
        let (inquiry, answers) = closes(None);
        control.ask(inquiry);
        inboxes.iter_mut().for_each(answer);
        let who: Vec<u16> = answers.iter().map(|(shard, _)| shard.0).collect();
        assert_eq!(who, [0, 1, 2]);
        let (inquiry, answers) = closes(Some(ShardId(1)));
        control.ask(inquiry);
        assert!(!inboxes[0].has_questions() && !inboxes[2].has_questions());
        answer(&mut inboxes[1]);
        assert_eq!(answers.iter().collect::<Vec<_>>(), [(ShardId(1), true)]);
    }

    #[test]
    fn a_shard_that_does_not_look_is_not_asked_any_more_and_whoever_asks_finds_out() {
        let (mut control, inboxes) = control(&[Arc::new(Doorbell::new(|| {}))]);
        let kept: Vec<_> = (0..QUESTIONS_PER_SHARD)
            .map(|_| {
                let (inquiry, answers) = closes(None);
                control.ask(inquiry);
                answers
            })
            .collect();
        let (inquiry, answers) = closes(None);
        control.ask(inquiry);
        assert!(answers.recv().is_err(), "nobody holds its answer");
        let (inquiry, _answers) = closes(None);
        assert_eq!(control.ask(inquiry), [ShardId(0)]);
        assert!(kept.iter().all(|answers| answers.try_recv() == Err(TryRecvError::Empty)), "those wait");
        drop(inboxes);
        assert!(kept.iter().all(|answers| answers.recv().is_err()), "a shard that ends keeps nobody waiting");
        let (inquiry, answers) = closes(None);
        assert!(control.ask(inquiry).is_empty() && answers.recv().is_err());
    }
}
