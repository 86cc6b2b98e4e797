//! What readers of NATS and Redis share to subscribe on demand: the rings from the shards, what is subscribed to, and what of it is
//! taken.

use std::time::Duration;

use super::{
    SourceContext,
    engine::Ingest,
    on_demand::{DemandLanes, OnDemand},
    upstreams::{Step, SubscriptionId, Upstreams},
};
use tickcast_common::clock;
use tickcast_core::demand::DemandChange;

/// The subjects that are read all the time.
pub(crate) fn read_always(subjects: Vec<String>, on_demand: &[String]) -> Vec<String> {
    subjects.into_iter().filter(|subject| !on_demand.contains(subject)).collect()
}

/// The state of a running source that subscribes on demand.
pub(crate) struct Demanded {
    on_demand: OnDemand,
    lanes: DemandLanes,
    upstreams: Upstreams,
    /// Whether some subjects are read all the time.
    has_others: bool,
}

impl Demanded {
    /// Creates the state; `None` for a source that reads everything all the time.
    pub(crate) fn new(
        on_demand: Option<OnDemand>,
        has_others: bool,
        context: &mut SourceContext,
    ) -> Option<Demanded> {
        let (on_demand, lanes) = on_demand.zip(context.take_demand())?;
        let topics = on_demand.topics().iter().map(|topics| on_demand.widened(topics.clone())).collect();
        let upstreams = Upstreams::new(topics, on_demand.linger_ns());
        Some(Demanded { on_demand, lanes, upstreams, has_others })
    }

    /// Begins anew with a connection that has no subscription. Returns those that it must have.
    pub(crate) fn begin(&mut self) -> Vec<(SubscriptionId, Box<str>)> {
        self.upstreams.handle_connection();
        self.upstreams.active().map(|(id, pattern)| (id, pattern.into())).collect()
    }

    /// The next thing to do at the engine.
    pub(crate) fn next_step(&mut self, ingest: &mut Ingest<'_>) -> Option<Step> {
        let now_ns = clock::monotonic_ns();
        let Demanded { on_demand, lanes, upstreams, has_others } = self;
        lanes.take(|DemandChange { pattern, is_wanted }| {
            let pattern = pattern.map(|pattern| on_demand.widened(pattern));
            upstreams.handle_change(DemandChange { pattern, is_wanted }, now_ns);
        });
        let step = upstreams.next_step(now_ns);
        if upstreams.is_empty() && !*has_others {
            ingest.note_idle();
        }
        match &step {
            Some(Step::Subscribe { pattern, is_whole: true, .. }) => ingest.warn(&format!(
                "clients ask for too many topics or wildcards to subscribe to each: subscribing to all of {pattern}"
            )),
            Some(Step::Subscribe { .. } | Step::Unsubscribe(..) | Step::End(_)) => {}
            None => ingest.set_upstreams(upstreams),
        }
        step
    }

    /// Waits until clients may ask for something else, or something is due, at most `watch`.
    pub(crate) async fn changed(&self, watch: Duration) {
        let due = self.upstreams.due_ns().map(|due_ns| due_ns.saturating_sub(clock::monotonic_ns()));
        let wait = due.map_or(watch, |due_ns| watch.min(Duration::from_nanos(due_ns)));
        let _ = tokio::time::timeout(wait, self.lanes.ready()).await;
    }

    /// The subject, or pattern of subjects, of a pattern of topics.
    pub(crate) fn subject(&self, pattern: &str) -> String {
        self.on_demand.subject(pattern)
    }

    /// The subscription to a subject, or pattern of subjects. O(subscriptions).
    pub(crate) fn id_of(&self, subject: &str) -> Option<SubscriptionId> {
        let mut active = self.upstreams.active();
        active.find(|(_, pattern)| self.on_demand.subject(pattern) == subject).map(|(id, _)| id)
    }

    /// Whether a message is to be taken: a subscription that is not on demand has brought it, or the one that brings its topic.
    /// Counts what leads to no topic.
    pub(crate) fn takes(&self, id: SubscriptionId, subject: &str, ingest: &Ingest<'_>) -> bool {
        if id == SubscriptionId::NONE {
            return true;
        }
        match self.on_demand.topic(subject) {
            Some(topic) => self.upstreams.takes(id, &topic),
            None => {
                ingest.skip(subject, &"no topic leads back to it");
                false
            }
        }
    }

    /// Notes that what came before the end of a subscription has been taken, by whichever it came.
    pub(crate) fn handle_settled(&mut self, id: SubscriptionId) {
        self.upstreams.handle_settled(id);
    }

    /// Notes that the engine has refused a subscription, and why.
    pub(crate) fn handle_refused(&mut self, id: SubscriptionId, why: &str, ingest: &Ingest<'_>) {
        ingest.warn(&format!("subscribing on demand: {why}"));
        self.upstreams.handle_refused(id);
    }
}
