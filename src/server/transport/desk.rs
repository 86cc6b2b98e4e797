//! Where a shard works on what it was asked: what it can tell at once it does, surveys go on by a bounded piece in each turn.

use std::{collections::VecDeque, io};

use crate::operator::control::{ControlReceiver, ReplySender, ShardRequest};
use crate::{
    limits::{SURVEYS_PER_SHARD, TURN_QUESTIONS, TURN_SOCKETS_ASKED},
    operator::views::{SessionView, TopicView},
    transport::driver::Driver,
};
use tickcast_core::{
    ids::SessionId,
    now::Now,
    shard::survey::{SessionSummary, SessionSurvey, ShardState, TopicSurvey},
};

/// A shard's questions, and what it works on.
pub struct Desk {
    receiver: ControlReceiver,
    /// The first is under way. Bound: [`SURVEYS_PER_SHARD`].
    surveys: VecDeque<Work>,
}

/// What is left to do for a question.
enum Work {
    /// Choosing sessions.
    Sessions(SessionSurvey, ReplySender<Vec<SessionView>>),
    /// Asking the kernel about the sockets of those that were chosen, from the one at this index on.
    Sockets(Vec<SessionSummary>, Vec<SessionView>, ReplySender<Vec<SessionView>>),
    /// Choosing topics.
    Topics(TopicSurvey, ReplySender<Vec<TopicView>>),
}

impl Desk {
    /// With questions from the main thread.
    pub fn new(receiver: ControlReceiver) -> Desk {
        Desk { receiver, surveys: VecDeque::new() }
    }

    /// Whether there is something to do: a look at the ring.
    pub fn has_work(&self) -> bool {
        !self.surveys.is_empty() || self.receiver.has_requests()
    }
}

impl Work {
    fn is_closed(&self) -> bool {
        match self {
            Work::Sessions(_, answer) | Work::Sockets(_, _, answer) => answer.is_closed(),
            Work::Topics(_, answer) => answer.is_closed(),
        }
    }
}

impl Driver {
    /// Answers what can be answered at once, and does a piece of a survey. Returns whether there was anything.
    pub(super) fn answer(&mut self, now: Now) -> io::Result<bool> {
        if !self.desk.has_work() {
            return Ok(false);
        }
        // Nobody waits for these any more.
        self.desk.surveys.retain(|survey| !survey.is_closed());
        for _ in 0..TURN_QUESTIONS {
            let Some(question) = self.desk.receiver.try_recv() else { break };
            let survey = self.begin(question, now);
            // One that is too many is dropped, and whoever asked finds out.
            if let Some(survey) = survey.filter(|_| self.desk.surveys.len() < SURVEYS_PER_SHARD) {
                self.desk.surveys.push_back(survey);
            }
        }
        if let Some(survey) = self.desk.surveys.pop_front()
            && let Some(rest) = self.go_on(survey, now)?
        {
            self.desk.surveys.push_front(rest);
        }
        Ok(true)
    }

    /// Answers what is answered at once.
    fn begin(&mut self, question: ShardRequest, now: Now) -> Option<Work> {
        match question {
            ShardRequest::State(answer) if !answer.is_closed() => answer.send(Box::new(self.state())),
            ShardRequest::SessionCounts(topics, answer) if !answer.is_closed() => {
                answer.send(self.shard.subscriber_counts(&topics))
            }
            ShardRequest::State(_) | ShardRequest::SessionCounts(..) => {}
            ShardRequest::Close(id, answer) => answer.send(self.shard.close(SessionId(id), now)),
            ShardRequest::Reload(limits) => self.shard.reload(&limits, now),
            ShardRequest::Sessions(query, answer) => {
                return Some(Work::Sessions(SessionSurvey::new(query), answer));
            }
            ShardRequest::Topics(query, answer) => {
                return Some(Work::Topics(TopicSurvey::new(query), answer));
            }
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
                true => Work::Sockets(self.shard.session_summaries(survey, now), Vec::new(), answer),
            }),
            Work::Sockets(seen, mut views, answer) => {
                for summary in seen.iter().skip(views.len()).take(TURN_SOCKETS_ASKED) {
                    let mut view = SessionView::new(self.shard.id(), summary);
                    if self.shard.is_session(summary.slot, summary.id) {
                        let socket = self.ring.look_at(summary.slot.0)?;
                        (view.address, view.rtt_us) = (socket.address, socket.rtt_us);
                    }
                    views.push(view);
                }
                if views.len() < seen.len() {
                    return Ok(Some(Work::Sockets(seen, views, answer)));
                }
                answer.send(views);
                None
            }
            Work::Topics(mut survey, answer) => {
                if !self.shard.survey_topics(&mut survey) {
                    return Ok(Some(Work::Topics(survey, answer)));
                }
                answer.send(self.shard.topic_summaries(survey).into_iter().map(TopicView::from).collect());
                None
            }
        })
    }
}
