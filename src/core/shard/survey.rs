//! Queries of the operator: the largest sessions and topics by some rank, and the shard's state.
//!
//! A survey visits a bounded number of sessions or topics per turn, so its answer is not a snapshot of one moment. Sessions
//! that end before the answer is made are left out of it.

mod largest;

use super::Shard;
use crate::{
    ids::{SessionId, SlotId, TenantId},
    limits::TURN_SURVEYED,
    metrics::latency::Latency,
    now::Now,
    session::{Protocol, Session},
};

use self::largest::Largest;
use tickcast_proto::ids::{Sequence, ShardId, TopicId};

/// The rank by which sessions are chosen and sorted, highest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionSort {
    /// Bytes in the outbox.
    #[default]
    Outbox,
    /// How long the socket has been full.
    Lag,
    /// Ticks lost, announced in gaps.
    Dropped,
    /// Ticks conflated.
    Conflated,
    /// Topics subscribed to.
    Topics,
    /// Newest first. Across shards, by the number of sessions opened on the same shard since: no times are kept.
    Newest,
}

/// The rank by which topics are chosen and sorted, highest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TopicSort {
    /// Ticks published so far.
    #[default]
    Ticks,
    /// Memory of the history.
    Bytes,
    /// Newest first. Across shards, by the number of topics created at the same home since.
    Newest,
}

/// A query for sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionsQuery {
    /// Name of their tenant, empty for the default; `None`: all.
    pub tenant: Option<Box<str>>,
    /// The rank to sort by.
    pub sort: SessionSort,
    /// Highest number of results, bounded by the caller.
    pub limit: usize,
}

/// A query for topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicsQuery {
    /// Prefix of the names.
    pub prefix: String,
    /// Name of their tenant, empty for the default; `None`: all.
    pub tenant: Option<Box<str>>,
    /// The rank to sort by.
    pub sort: TopicSort,
    /// Highest number of results, bounded by the caller.
    pub limit: usize,
}

/// A shard's state, apart from its counters.
#[derive(Clone, Debug)]
pub struct ShardState {
    /// Unread bytes in the rings from other shards.
    pub mesh_ring_bytes: usize,
    /// Unread bytes in the rings from sources.
    pub source_ring_bytes: usize,
    /// Bytes staged for the rings to other shards.
    pub mesh_stage_bytes: usize,
    /// Topics whose home is this shard.
    pub topics: usize,
    /// Topics with subscribers on this shard.
    pub topics_taken: usize,
    /// Patterns with subscribers on this shard.
    pub patterns: usize,
    /// Sessions with a non-empty outbox.
    pub sessions_waiting: usize,
    /// Memory of the egress logs.
    pub egress_log_bytes: usize,
    /// Latencies.
    pub latency: Latency,
}

/// A survey of the sessions in progress. Keeps at most the query's limit of them.
#[derive(Debug)]
pub struct SessionSurvey {
    tenant: Option<Box<str>>,
    sort: SessionSort,
    next: u32,
    largest: Largest<(SlotId, SessionId)>,
}

impl SessionSurvey {
    /// Starts a survey.
    pub fn new(query: SessionsQuery) -> SessionSurvey {
        let SessionsQuery { tenant, sort, limit } = query;
        SessionSurvey { tenant, sort, next: 0, largest: Largest::new(limit) }
    }
}

/// A survey of a home's topics in progress.
#[derive(Debug)]
pub struct TopicSurvey {
    query: TopicsQuery,
    next: u32,
    largest: Largest<u32>,
}

impl TopicSurvey {
    /// Starts a survey.
    pub fn new(query: TopicsQuery) -> TopicSurvey {
        TopicSurvey { largest: Largest::new(query.limit), query, next: 0 }
    }
}

/// One session of a survey's answer.
#[derive(Clone, Debug)]
pub struct SessionSummary {
    /// Slot.
    pub slot: SlotId,
    /// Id. The slot may belong to another session by now.
    pub id: SessionId,
    /// Identity given by the client.
    pub identity: Option<String>,
    /// Name of its tenant; empty: the default.
    pub tenant: String,
    /// Name of the wire format.
    pub encoding: &'static str,
    /// `handshake`, `open` or `ending`.
    pub state: &'static str,
    /// Patterns subscribed to.
    pub subscriptions: usize,
    /// Topics subscribed to.
    pub topics: usize,
    /// Bytes in the outbox, not counting those in the kernel.
    pub outbox_bytes: usize,
    /// How long the socket has been full, milliseconds; 0: it is not.
    pub lag_ms: u64,
    /// Topics with a tick held back until there is room.
    pub held_topics: usize,
    /// Ticks conflated.
    pub conflated: u64,
    /// Ticks lost, announced in gaps.
    pub dropped: u64,
    /// Rank by the query's order.
    pub rank: u64,
}

/// One topic of a survey's answer.
#[derive(Clone, Debug)]
pub struct TopicSummary {
    /// Name.
    pub name: String,
    /// Name of its tenant; empty: the default.
    pub tenant: String,
    /// Id on the wire.
    pub id: TopicId,
    /// The shard that sequences it.
    pub home: ShardId,
    /// Last sequence: the number of ticks so far.
    pub sequence: Sequence,
    /// Ticks in the history.
    pub history_ticks: usize,
    /// Keys with a last value.
    pub keys: usize,
    /// Memory of the history.
    pub history_bytes: usize,
    /// Rank by the query's order.
    pub rank: u64,
}

impl Shard {
    /// Visits the next [`TURN_SURVEYED`] slots. Returns whether the survey is complete. Allocates only for what it keeps.
    pub fn survey_sessions(&self, survey: &mut SessionSurvey, now: Now) -> bool {
        let slots = self.sessions.slots_len();
        let end = slots.min(survey.next.saturating_add(TURN_SURVEYED as u32));
        for slot in (survey.next..end).map(SlotId) {
            if let Some(session) = self.sessions.get(slot)
                && self.is_wanted(survey.tenant.as_deref(), session.tenant)
            {
                survey.largest.offer(self.rank(slot, session, survey.sort, now), (slot, session.id));
            }
        }
        survey.next = end;
        end == slots
    }

    /// Returns the chosen sessions that still exist, highest rank first.
    pub fn session_summaries(&self, survey: SessionSurvey, now: Now) -> Vec<SessionSummary> {
        let sort = survey.sort;
        let chosen = survey.largest.into_sorted().filter_map(|(_, (slot, id))| {
            let session = self.sessions.get(slot).filter(|session| session.id == id)?;
            let mut rank = self.rank(slot, session, sort, now);
            if sort == SessionSort::Newest {
                // Generations are not comparable across shards: a shard that has opened more sessions has higher ones.
                rank = newest_rank(u64::from(self.generation), rank);
            }
            Some(self.summary(slot, session, rank, now))
        });
        chosen.collect()
    }

    /// Whether a query is for a tenant.
    fn is_wanted(&self, wanted: Option<&str>, tenant: TenantId) -> bool {
        wanted.is_none_or(|name| name == self.limits.tenants.name(tenant))
    }

    /// Returns whether the session with this id is still in the slot.
    pub fn is_session(&self, slot: SlotId, id: SessionId) -> bool {
        self.sessions.get(slot).is_some_and(|session| session.id == id)
    }

    fn rank(&self, slot: SlotId, session: &Session, sort: SessionSort, now: Now) -> u64 {
        match sort {
            SessionSort::Outbox => session.outbox_bytes() as u64,
            SessionSort::Lag => self.sessions.full_ns(session.id.slot(), now),
            SessionSort::Dropped => self.sessions.skipped(slot).dropped,
            SessionSort::Conflated => self.sessions.skipped(slot).conflated,
            SessionSort::Topics => self.fanout.topics_of(session) as u64,
            SessionSort::Newest => u64::from(session.id.generation()),
        }
    }

    fn summary(&self, slot: SlotId, session: &Session, rank: u64, now: Now) -> SessionSummary {
        let skipped = self.sessions.skipped(slot);
        let state = match (&session.ending, session.protocol.is_handshake()) {
            (Some(_), _) => "ending",
            (None, true) => "handshake",
            (None, false) => "open",
        };
        let encoding = match session.protocol {
            Protocol::Echo(_) => "echo",
            _ => session.format.name(),
        };
        SessionSummary {
            slot,
            id: session.id,
            identity: self.identities.get(&slot).map(|identity| identity.to_string()),
            tenant: self.limits.tenants.name(session.tenant).to_owned(),
            encoding,
            state,
            subscriptions: session.subscriptions.len(),
            topics: self.fanout.topics_of(session),
            outbox_bytes: session.outbox_bytes(),
            lag_ms: self.sessions.full_ns(slot, now) / 1_000_000,
            held_topics: session.lag.as_deref().map_or(0, |lag| lag.held.len()),
            conflated: skipped.conflated,
            dropped: skipped.dropped,
            rank,
        }
    }

    /// Visits the next [`TURN_SURVEYED`] topics. Returns whether the survey is complete. Allocates only for what it keeps.
    pub fn survey_topics(&self, survey: &mut TopicSurvey) -> bool {
        let topics = self.home.places() as u32;
        let end = topics.min(survey.next.saturating_add(TURN_SURVEYED as u32));
        for index in survey.next..end {
            let topic = self.home.topic(index);
            if topic.is_open()
                && topic.name().starts_with(&survey.query.prefix)
                && self.is_wanted(survey.query.tenant.as_deref(), topic.tenant())
            {
                survey.largest.offer(self.topic_rank(index, survey.query.sort), index);
            }
        }
        survey.next = end;
        end == topics
    }

    /// Returns the chosen topics, highest rank first. [`Shard::subscriber_counts`] has the numbers of their subscribers.
    pub fn topic_summaries(&self, survey: TopicSurvey) -> Vec<TopicSummary> {
        let sort = survey.query.sort;
        let view = |index: u32| {
            let topic = self.home.topic(index);
            TopicSummary {
                name: topic.name().to_string(),
                tenant: self.limits.tenants.name(topic.tenant()).to_owned(),
                id: topic.id,
                home: self.id,
                sequence: topic.sequence,
                history_ticks: topic.history().len(),
                keys: topic.last_values.keys_len(),
                history_bytes: topic.history().memory_bytes(),
                rank: match sort {
                    TopicSort::Newest => newest_rank(self.home.places() as u64, u64::from(index)),
                    _ => self.topic_rank(index, sort),
                },
            }
        };
        survey.largest.into_sorted().map(|(_, index)| view(index)).collect()
    }

    fn topic_rank(&self, index: u32, sort: TopicSort) -> u64 {
        let topic = self.home.topic(index);
        match sort {
            TopicSort::Ticks => topic.sequence.0,
            TopicSort::Bytes => topic.history().memory_bytes() as u64,
            TopicSort::Newest => u64::from(index),
        }
    }

    /// Returns the number of this shard's sessions subscribed to each topic. One look-up per topic.
    pub fn subscriber_counts(&self, topics: &[TopicId]) -> Vec<u64> {
        topics.iter().map(|&id| self.fanout.subscribers_len(id) as u64).collect()
    }

    /// Returns the shard's state; the transport fills in the rings. Copies the latency histograms, 40 KiB.
    pub fn state(&self) -> ShardState {
        ShardState {
            mesh_ring_bytes: 0,
            source_ring_bytes: 0,
            mesh_stage_bytes: self.stages.waiting_bytes(),
            topics: self.home.len(),
            topics_taken: self.fanout.topics_len(),
            patterns: self.fanout.patterns_len(),
            sessions_waiting: self.sessions.waiting(),
            egress_log_bytes: self.logs.bytes(),
            latency: self.latency.clone(),
        }
    }
}

/// Returns a rank by the number of sessions or topics added to the shard since: the fewer, the higher.
fn newest_rank(last: u64, number: u64) -> u64 {
    u64::MAX - last.saturating_sub(number)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        config::Limits,
        metrics::counters::{Counter, Counters},
        shard::{Action, ListenerKind},
        testing::{TurnLoop, hello_as},
    };
    use tickcast_proto::{frame, ids::ShardId, records::Publish};

    const NOW: Now = Now { monotonic_ns: 1 << 40, realtime_ns: 1 << 60 };

    fn shard() -> Shard {
        Shard::new(ShardId(0), 1, 1, Limits::default(), Arc::new(Counters::default()))
    }

    fn enter(shard: &mut Shard, slot: SlotId, client: &str) {
        shard.handle_accept(slot, ListenerKind::Native, NOW);
        shard.handle_bytes(slot, &hello_as(client), NOW);
    }

    fn names(shard: &Shard, query: SessionsQuery) -> Vec<SessionSummary> {
        let mut survey = SessionSurvey::new(query);
        while !shard.survey_sessions(&mut survey, NOW) {}
        shard.session_summaries(survey, NOW)
    }

    #[test]
    fn the_highest_ranked_sessions_are_chosen_among_many() {
        let mut shard = shard();
        (0..3 * TURN_SURVEYED as u32)
            .for_each(|slot| shard.handle_accept(SlotId(slot), ListenerKind::Native, NOW));
        enter(&mut shard, SlotId(1 << 13), "the one");
        shard.sessions.count_conflated(SlotId(77), 5);
        shard.sessions.count_dropped(SlotId(77), 2);
        shard.sessions.count_conflated(SlotId(78), 4);
        shard.sessions.count_dropped(SlotId(78), 3);
        let by = |sort, limit| names(&shard, SessionsQuery { tenant: None, sort, limit });
        let first = by(SessionSort::Dropped, 2);
        assert_eq!(
            first.iter().map(|view| (view.dropped, view.conflated)).collect::<Vec<_>>(),
            [(3, 4), (2, 5)]
        );
        assert_eq!(by(SessionSort::Conflated, 1)[0].id, first[1].id);
        let outbox = by(SessionSort::Outbox, 3);
        assert_eq!(outbox[0].identity.as_deref(), Some("the one"), "its WELCOME waits");
        assert_eq!((outbox[0].state, outbox[1].state, outbox[0].encoding), ("open", "handshake", "native"));
        assert_eq!(by(SessionSort::Newest, 1)[0].id, outbox[0].id);
        assert_eq!(by(SessionSort::Lag, 1_000).len(), 1_000);
    }

    #[test]
    fn the_newest_rank_equally_on_a_busy_and_on_a_quiet_shard() {
        let (mut busy, mut quiet) = (shard(), shard());
        (0..200).for_each(|slot| enter(&mut busy, SlotId(slot), ""));
        (0..3).for_each(|slot| enter(&mut quiet, SlotId(slot), ""));
        let query = SessionsQuery { tenant: None, sort: SessionSort::Newest, limit: 3 };
        let ranks =
            |shard: &Shard| names(shard, query.clone()).iter().map(|view| view.rank).collect::<Vec<_>>();
        assert_eq!(ranks(&busy), ranks(&quiet));
        assert!(ranks(&busy).is_sorted_by(|one, other| one > other));

        let topics = |shard: &mut Shard, count: usize| {
            let mut bytes = Vec::new();
            for topic in 0..count {
                let name = format!("t.{topic}");
                frame::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), &name, b"1");
            }
            shard.handle_bytes(SlotId(0), &bytes, NOW);
            let mut survey = TopicSurvey::new(TopicsQuery {
                prefix: String::new(),
                tenant: None,
                sort: TopicSort::Newest,
                limit: 3,
            });
            assert!(shard.survey_topics(&mut survey));
            shard.topic_summaries(survey)
        };
        let (of_busy, of_quiet) = (topics(&mut busy, 50), topics(&mut quiet, 3));
        let ranks = |views: &[TopicSummary]| views.iter().map(|view| view.rank).collect::<Vec<_>>();
        assert_eq!(ranks(&of_busy), ranks(&of_quiet));
        assert_eq!((&*of_busy[0].name, &*of_quiet[0].name), ("t.49", "t.2"));
    }

    #[test]
    fn a_survey_leaves_out_sessions_that_have_ended_since() {
        let mut shard = shard();
        (0..3).for_each(|slot| enter(&mut shard, SlotId(slot), ""));
        let mut survey =
            SessionSurvey::new(SessionsQuery { tenant: None, sort: SessionSort::Newest, limit: 10 });
        assert!(shard.survey_sessions(&mut survey, NOW));
        shard.handle_error(SlotId(1), 104, NOW);
        enter(&mut shard, SlotId(1), "another");
        let slots: Vec<u32> = shard.session_summaries(survey, NOW).iter().map(|seen| seen.slot.0).collect();
        assert_eq!(slots, [2, 0]);
    }

    #[test]
    fn the_operator_closes_exactly_the_named_session() {
        let mut shard = shard();
        enter(&mut shard, SlotId(5), "");
        let id = names(&shard, SessionsQuery { tenant: None, sort: SessionSort::Newest, limit: 1 })[0].id;
        assert!(!shard.close(SessionId(id.0 + (1 << 20)), NOW) && !shard.close(SessionId(id.0 + 1), NOW));
        assert!(shard.close(id, NOW) && !shard.close(id, NOW), "once");
        shard.handle_eof(SlotId(5), NOW);
        let actions = TurnLoop::default().turn(&mut shard, None, NOW, usize::MAX, |_, _| false);
        assert!(!shard.is_session(SlotId(5), id), "its goodbye has been sent");
        assert_eq!(shard.counters().value(Counter::ClosedByOperator), 1);
        assert!(actions.contains(&Action::Close(SlotId(5))));
    }

    #[test]
    fn topics_are_chosen_by_prefix_and_have_subscriber_counts() {
        let mut shard = shard();
        enter(&mut shard, SlotId(0), "");
        let mut bytes = Vec::new();
        tickcast_proto::command::encode_request(&mut bytes, frame::Kind::Subscribe, 1, "b.>");
        for (topic, ticks) in [("a.x", 9), ("b.x", 1), ("b.y", 2)] {
            for _ in 0..ticks {
                frame::encode_publish(&mut bytes, 0, 0, 0, Publish::default(), topic, b"1");
            }
        }
        shard.handle_bytes(SlotId(0), &bytes, NOW);
        while shard.turn(NOW) {}
        let by = |prefix: &str, limit| {
            let mut survey = TopicSurvey::new(TopicsQuery {
                prefix: prefix.into(),
                tenant: None,
                sort: TopicSort::Ticks,
                limit,
            });
            assert!(shard.survey_topics(&mut survey));
            shard.topic_summaries(survey)
        };
        let all: Vec<_> = by("", 10).into_iter().map(|view| (view.name, view.sequence.0)).collect();
        assert_eq!(all, [("a.x".into(), 9), ("b.y".into(), 2), ("b.x".into(), 1)]);
        let found = by("b.", 1);
        assert_eq!((found.len(), &*found[0].name), (1, "b.y"));
        assert_eq!(shard.subscriber_counts(&[found[0].id, TopicId(u32::MAX)]), [1, 0]);
        assert_eq!(shard.state().topics, 3);
    }
}
