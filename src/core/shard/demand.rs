//! Sources that subscribe at their engine on demand: reports what this shard's sessions ask for, and ends the lives of topics
//! whose subscription has ended.

use std::collections::VecDeque;

use super::{LOG_TARGET_TOPIC, Shard};
use crate::{
    config::Limits,
    demand::{Demand, DemandChange},
    home::{Creator, TopicLookup, TopicRefusal},
    ids::UpstreamId,
    limits::TURN_LAPSE_UNITS,
    metrics::counters::Counter,
    now::Now,
    topic_key,
};

/// What this shard's sessions ask of each source that subscribes on demand.
#[derive(Debug)]
pub(super) struct Demands(Vec<Demand>);

impl Demands {
    /// Creates the state for the sources of a configuration.
    pub(super) fn new(limits: &Limits) -> Demands {
        Demands(limits.on_demand.iter().cloned().map(Demand::new).collect())
    }

    /// Bytes of the patterns.
    pub(super) fn heap_bytes(&self) -> usize {
        self.0.iter().map(Demand::heap_bytes).sum()
    }
}

impl Shard {
    /// Notes that this shard has its first subscriber of the pattern with this key, or that its last one has left.
    pub(super) fn note_demand(&mut self, key: &str, is_wanted: bool) {
        let exports = self.limits.tenants.exports();
        self.demands.0.iter_mut().for_each(|demand| demand.note(key, is_wanted, exports));
    }

    /// Calls `take` with the changes that a source has to learn of, so that it can move them into the source's ring. Nothing to do
    /// for an unknown source.
    pub fn with_demand_changes<R>(
        &mut self,
        source: u32,
        take: impl FnOnce(&mut VecDeque<DemandChange>) -> R,
    ) -> Option<R> {
        let demand = self.demands.0.iter_mut().find(|demand| demand.source() == source)?;
        Some(take(demand.staged()))
    }

    /// Notes the subscription that a tick of a topic comes from. If the topic had its ticks from elsewhere, ticks may be missing
    /// between those and this one: its life ends, and the next one begins.
    ///
    /// # Errors
    /// Why the next life does not begin.
    #[cold]
    pub(super) fn change_upstream(
        &mut self,
        found: TopicLookup,
        key: &str,
        upstream: UpstreamId,
        now: Now,
    ) -> Result<TopicLookup, TopicRefusal> {
        let mut found = found;
        if !found.is_new {
            self.counters.add(Counter::TopicsLapsed, 1);
            ::log::debug!(target: LOG_TARGET_TOPIC, "topic {:?}: another subscription", topic_key::name(key));
            // The next life may be refused at first: it needs a place, which this one frees once all shards have closed it.
            self.with_home(|home, notify| home.end_life(found.index, now.monotonic_ns, notify));
            found = self.home.find_or_create(key, Creator::default(), now)?;
        }
        self.home.set_upstream(found.index, upstream);
        Ok(found)
    }

    /// Whether lives of topics have to end because their subscription has.
    pub(super) fn has_lapses_to_make(&self) -> bool {
        self.home.has_lapses_left() && self.draining.is_none() && self.stages.deliveries_are_half_empty()
    }

    /// Ends lives of topics whose subscription has ended. Returns whether there was anything to do.
    pub(super) fn advance_lapses(&mut self, now: Now) -> bool {
        if !self.has_lapses_to_make() {
            return false;
        }
        let ended =
            self.with_home(|home, notify| home.advance_lapses(TURN_LAPSE_UNITS, now.monotonic_ns, notify));
        self.counters.add(Counter::TopicsLapsed, ended as u64);
        true
    }
}

#[cfg(test)]
mod tests;
