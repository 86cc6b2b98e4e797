//! A shard's handling of control requests: most are answered at once; surveys advance by a bounded piece per turn.

use std::{collections::VecDeque, io};

use crate::operator::control::{ControlReceiver, ReplySender, ShardRequest};
use crate::{
    limits::{SURVEYS_PER_SHARD, TURN_CONTROL_REQUESTS, TURN_SOCKET_LOOKUPS},
    operator::views::{SessionView, TopicView},
    process::fault::{self, Place},
    transport::driver::Driver,
};
use tickcast_core::{
    ids::SessionId,
    metrics::counters::Counter,
    now::Now,
    shard::survey::{SessionSummary, SessionSurvey, ShardState, TopicSurvey},
};

/// A shard's control requests, and the surveys they started.
pub struct ControlQueue {
    receiver: ControlReceiver,
    /// The first one is in progress. Bound: [`SURVEYS_PER_SHARD`].
    surveys: VecDeque<Survey>,
}

/// The next step of a survey.
enum Survey {
    /// Selects sessions.
    Sessions(SessionSurvey, ReplySender<Vec<SessionView>>),
    /// Looks up the sockets of the selected sessions. The views so far belong to the first of them.
    Sockets(Vec<SessionSummary>, Vec<SessionView>, ReplySender<Vec<SessionView>>),
    /// Selects topics.
    Topics(TopicSurvey, ReplySender<Vec<TopicView>>),
}

impl ControlQueue {
    /// Creates the queue of the shard to which `receiver` belongs.
    pub fn new(receiver: ControlReceiver) -> ControlQueue {
        ControlQueue { receiver, surveys: VecDeque::new() }
    }

    /// Whether there is something to do. Cost: one load.
    pub fn has_work(&self) -> bool {
        !self.surveys.is_empty() || self.receiver.has_requests()
    }
}

impl Survey {
    fn is_closed(&self) -> bool {
        match self {
            Survey::Sessions(_, reply) | Survey::Sockets(_, _, reply) => reply.is_closed(),
            Survey::Topics(_, reply) => reply.is_closed(),
        }
    }
}

impl Driver {
    /// Handles waiting control requests and one piece of a survey. Returns whether there was anything to do.
    pub(super) fn handle_control(&mut self, now: Now) -> io::Result<bool> {
        if !self.control.has_work() {
            return Ok(false);
        }
        fault::at(Place::Control(self.shard.id().0));
        // Their requesters have given up.
        self.control.surveys.retain(|survey| !survey.is_closed());
        for _ in 0..TURN_CONTROL_REQUESTS {
            let Some(request) = self.control.receiver.try_recv() else { break };
            self.shard.counters().add(Counter::ControlRequests, 1);
            let survey = self.begin(request, now);
            // Dropping a survey beyond the limit notifies its requester.
            if let Some(survey) = survey.filter(|_| self.control.surveys.len() < SURVEYS_PER_SHARD) {
                self.control.surveys.push_back(survey);
            }
        }
        if let Some(survey) = self.control.surveys.pop_front()
            && let Some(rest) = self.advance(survey, now)?
        {
            self.control.surveys.push_front(rest);
        }
        Ok(true)
    }

    /// Replies to a request at once, or returns the survey it starts.
    fn begin(&mut self, request: ShardRequest, now: Now) -> Option<Survey> {
        match request {
            ShardRequest::State(reply) if !reply.is_closed() => reply.send(Box::new(self.state())),
            ShardRequest::SessionCounts(topics, reply) if !reply.is_closed() => {
                reply.send(self.shard.subscriber_counts(&topics))
            }
            ShardRequest::State(_) | ShardRequest::SessionCounts(..) => {}
            ShardRequest::Close(id, reply) => reply.send(self.shard.close(SessionId(id), now)),
            ShardRequest::Revoke(revocation, at_s, reply) => {
                reply.send(self.shard.revoke(&revocation, at_s, now))
            }
            ShardRequest::FeedState(feed, state, since_ns) => {
                self.shard.set_feed_state(feed, state, since_ns)
            }
            ShardRequest::Reload(limits) => self.shard.reload(&limits, now),
            ShardRequest::Certificates(configs) => self.tls.set_configs(configs),
            ShardRequest::Sessions(query, reply) => {
                return Some(Survey::Sessions(SessionSurvey::new(query), reply));
            }
            ShardRequest::Topics(query, reply) => {
                return Some(Survey::Topics(TopicSurvey::new(query), reply));
            }
        }
        None
    }

    fn state(&self) -> ShardState {
        let (mesh_ring_bytes, source_ring_bytes) = self.mesh.waiting_bytes();
        ShardState { mesh_ring_bytes, source_ring_bytes, ..self.shard.state() }
    }

    /// Advances a survey by one piece. Returns what remains of it.
    fn advance(&mut self, survey: Survey, now: Now) -> io::Result<Option<Survey>> {
        Ok(match survey {
            Survey::Sessions(mut survey, reply) => Some(match self.shard.survey_sessions(&mut survey, now) {
                false => Survey::Sessions(survey, reply),
                true => Survey::Sockets(self.shard.session_summaries(survey, now), Vec::new(), reply),
            }),
            Survey::Sockets(seen, mut views, reply) => {
                for summary in seen.iter().skip(views.len()).take(TURN_SOCKET_LOOKUPS) {
                    let mut view = SessionView::new(self.shard.id(), summary);
                    // A session that polls has no socket.
                    if self.shard.is_session(summary.slot, summary.id) && !self.shard.is_polling(summary.slot)
                    {
                        let socket = self.ring.look_at(summary.slot.0)?;
                        let client = self.admission.client(summary.slot.0);
                        (view.address, view.rtt_us) = (client.or(socket.address), socket.rtt_us);
                    }
                    views.push(view);
                }
                if views.len() < seen.len() {
                    return Ok(Some(Survey::Sockets(seen, views, reply)));
                }
                reply.send(views);
                None
            }
            Survey::Topics(mut survey, reply) => {
                if !self.shard.survey_topics(&mut survey) {
                    return Ok(Some(Survey::Topics(survey, reply)));
                }
                reply.send(self.shard.topic_summaries(survey).into_iter().map(TopicView::from).collect());
                None
            }
        })
    }
}
