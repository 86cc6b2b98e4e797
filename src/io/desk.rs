//! Where a shard works on what it was asked: one question at a time, a bounded piece of it in each turn.

use std::io;

use super::{
    control::{Answer, Inbox, Question},
    executor::Driver,
};
use crate::{
    admin::views::{SessionView, ShardState, TopicView},
    clock::Now,
    limits::TURN_SOCKETS_ASKED,
    shard::{Seen, SessionSurvey, TopicSurvey},
};

/// A shard's questions, and the one it works on.
pub struct Desk {
    inbox: Inbox,
    work: Option<Work>,
}

/// What is left to do for a question.
enum Work {
    /// Choosing sessions.
    Sessions(SessionSurvey, Answer<Vec<SessionView>>),
    /// Asking the kernel about the sockets of those that were chosen, from the one at this index on.
    Sockets(Vec<Seen>, usize, Answer<Vec<SessionView>>),
    /// Choosing topics.
    Topics(TopicSurvey, Answer<Vec<TopicView>>),
}

impl Desk {
    /// With questions from the main thread.
    pub fn new(inbox: Inbox) -> Desk {
        Desk { inbox, work: None }
    }

    /// Whether there is something to do: a look at the ring.
    pub fn has_work(&self) -> bool {
        self.work.is_some() || self.inbox.has_questions()
    }
}

impl Driver {
    /// Does a piece of what was asked. Returns whether there was anything.
    pub(super) fn answer(&mut self, now: Now) -> io::Result<bool> {
        if !self.desk.has_work() {
            return Ok(false);
        }
        let work = match self.desk.work.take() {
            Some(work) => Some(work),
            None => self.desk.inbox.take().and_then(|question| self.begin(question, now)),
        };
        if let Some(work) = work {
            self.desk.work = self.go_on(work, now)?;
        }
        Ok(true)
    }

    /// Answers what is answered at once.
    fn begin(&mut self, question: Question, now: Now) -> Option<Work> {
        match question {
            Question::State(answer) => answer(Box::new(self.state())),
            Question::Takers(topics, answer) => answer(self.shard.takers(&topics)),
            Question::Reload(limits) => self.shard.reload(&limits, now),
            Question::Close(id, answer) => answer(self.shard.close(id, now)),
            Question::Sessions(query, answer) => {
                return Some(Work::Sessions(SessionSurvey::new(query), answer));
            }
            Question::Topics(query, answer) => return Some(Work::Topics(TopicSurvey::new(query), answer)),
        }
        None
    }

    fn state(&self) -> ShardState {
        let (mesh_ring_bytes, source_ring_bytes) = self.mesh.waiting_bytes();
        ShardState { mesh_ring_bytes, source_ring_bytes, ..self.shard.state() }
    }

    /// Returns what is left.
    fn go_on(&mut self, work: Work, now: Now) -> io::Result<Option<Work>> {
        Ok(match work {
            Work::Sessions(mut survey, answer) => Some(match self.shard.survey_sessions(&mut survey, now) {
                false => Work::Sessions(survey, answer),
                true => Work::Sockets(self.shard.seen(survey, now), 0, answer),
            }),
            Work::Sockets(mut seen, at, answer) => {
                let end = seen.len().min(at + TURN_SOCKETS_ASKED);
                for Seen { slot, id, view } in &mut seen[at..end] {
                    if self.shard.is_session(*slot, *id) {
                        let socket = self.ring.look_at(*slot)?;
                        (view.address, view.rtt_us) = (socket.address, socket.rtt_us);
                    }
                }
                if end < seen.len() {
                    return Ok(Some(Work::Sockets(seen, end, answer)));
                }
                answer(seen.into_iter().map(|seen| seen.view).collect());
                None
            }
            Work::Topics(mut survey, answer) => {
                if !self.shard.survey_topics(&mut survey) {
                    return Ok(Some(Work::Topics(survey, answer)));
                }
                answer(self.shard.topic_views(survey));
                None
            }
        })
    }
}
