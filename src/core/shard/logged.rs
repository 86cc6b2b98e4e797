//! Ticks of topics that durable logs feed, from the sources that read the logs.

use super::{LOG_TARGET_TOPIC, Shard};
use crate::{
    home::LoggedTopic,
    limits::{ANSWER_UNITS, NEW_TOPIC_UNITS},
    metrics::counters::Counter,
    now::Now,
    topic_key,
};
use tickcast_proto::{frame::Frame, logged};

impl Shard {
    /// Handles a log's tick as its topic's home. Refused and repeated ticks are counted, because there is nobody to answer.
    pub(super) fn append(&mut self, frame: &Frame<'_>, now: Now) {
        let Ok((at, record, key, payload)) = logged::append_parts(frame) else {
            return debug_assert!(false, "this process encoded the frame");
        };
        let found = self.home.find_logged(key, &at);
        let index = match found {
            LoggedTopic::Next(index) => index,
            LoggedTopic::Repeated => return self.counters.add(Counter::LogTicksRepeated, 1),
            LoggedTopic::Foreign => {
                self.counters.add(Counter::LogTicksForeign, 1);
                self.charge(ANSWER_UNITS);
                ::log::warn!(
                    target: LOG_TARGET_TOPIC,
                    "topic {:?}{}: a tick of source {} was refused: another source feeds the topic by position",
                    topic_key::name(key),
                    self.of_tenant(key),
                    at.source
                );
                return;
            }
            LoggedTopic::Absent | LoggedTopic::Ends(_) => {
                // The next life may be refused at first: it needs a place, which this one frees once all shards have closed it.
                if let LoggedTopic::Ends(index) = found {
                    self.counters.add(Counter::TopicsReplaced, 1);
                    self.with_home(|home, notify| home.end_life(index, now.monotonic_ns, notify));
                }
                match self.home.create_logged(key, &at, now) {
                    Ok(index) => {
                        self.charge(NEW_TOPIC_UNITS);
                        self.announce_topic(index);
                        index
                    }
                    Err(refusal) => {
                        self.counters.add(Counter::TicksRefused, 1);
                        self.counters.add(Counter::TopicsRefused, 1);
                        self.charge(ANSWER_UNITS);
                        ::log::warn!(
                            target: LOG_TARGET_TOPIC,
                            "topic {:?}{}: a tick of source {} was refused: {}",
                            topic_key::name(key),
                            self.of_tenant(key),
                            at.source,
                            refusal.text()
                        );
                        return;
                    }
                }
            }
        };
        self.note_feed(index, record.request, now);
        self.distribute(index, Some(&at), frame.header.flags, frame.header.schema, record, payload, now);
    }

    /// The tenant of a topic for a log line; empty for the default tenant.
    fn of_tenant(&self, key: &str) -> String {
        let (id, _) = topic_key::split(key);
        let tenant = self.limits.tenants.get(id).filter(|_| topic_key::has_tenant(key));
        tenant.map_or_else(String::new, |tenant| format!(" of tenant {:?}", tenant.config.name))
    }
}

#[cfg(test)]
pub(super) mod tests;
