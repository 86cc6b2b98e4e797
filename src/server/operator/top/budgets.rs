//! The abuse budgets on the screen: a notice of what they refuse, by kind and by whose budget was used up.

use super::{figures::Figures, responses::ShardCounters, tenants::over};

/// Refusals by a budget of one kind of owner: what was asked for, and its counters.
type Kind = (&'static str, fn(&ShardCounters) -> u64);

/// What budgets of sessions refuse.
const SESSIONS: [Kind; 4] = [
    ("ticks", |counters| counters.ticks_refused_rate.saturating_add(counters.ticks_refused_bandwidth)),
    ("patterns", |counters| {
        let patterns = counters.patterns_refused_wildcards.saturating_add(counters.patterns_refused_session);
        counters.subscriptions_refused_rate.saturating_add(patterns)
    }),
    ("histories", |counters| counters.history_refused_rate),
    ("last values", |counters| counters.last_values_refused_rate),
];
/// What budgets of addresses refuse.
const ADDRESSES: [Kind; 4] = [
    ("ticks", |counters| {
        counters.ticks_refused_source_rate.saturating_add(counters.ticks_refused_source_bandwidth)
    }),
    ("patterns", |counters| {
        counters.subscriptions_refused_source_rate.saturating_add(counters.patterns_refused_source)
    }),
    ("histories", |counters| counters.history_refused_source_rate),
    ("last values", |counters| counters.last_values_refused_source_rate),
];

/// What a budget refused per second, by kind.
pub type Refused = Vec<(&'static str, f64)>;

/// What the budgets of sessions and those of addresses refused on all shards; empty: nothing. `shards`: the counters of each,
/// earlier and now.
pub fn figures<'a>(
    shards: impl Iterator<Item = (&'a ShardCounters, &'a ShardCounters)> + Clone,
    seconds: f64,
) -> (Refused, Refused) {
    let rate = |of: fn(&ShardCounters) -> u64| {
        let refused = shards.clone().map(|(before, now)| of(now).saturating_sub(of(before)));
        refused.fold(0u64, u64::saturating_add) as f64 / seconds
    };
    let rates = |kinds: [Kind; 4]| {
        kinds.map(|(what, of)| (what, rate(of))).into_iter().filter(|(_, rate)| *rate > 0.0).collect()
    };
    (rates(SESSIONS), rates(ADDRESSES))
}

/// A notice for each kind of owner whose budgets refuse something, fitted into `width`.
pub fn notices(figures: &Figures, width: usize) -> Vec<String> {
    let (sessions, addresses) = &figures.budgets;
    [("sessions over budget: ", sessions), ("addresses over budget: ", addresses)]
        .into_iter()
        .filter(|(_, refused)| !refused.is_empty())
        .map(|(start, refused)| over(start, refused, width))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::top::figures::tests::snapshot;

    fn after(count: impl Fn(&mut ShardCounters)) -> Figures {
        let [before, mut now] = [snapshot(100, 2, 1, 1), snapshot(102, 2, 1, 1)];
        now.server.shards.iter_mut().for_each(|shard| count(&mut shard.counters));
        Figures::new(Some(&before), &now)
    }

    #[test]
    fn refusals_are_shown_by_owner_and_kind() {
        let figures = after(|counters| {
            counters.ticks_refused_rate = 1_000;
            counters.ticks_refused_bandwidth = 200;
            counters.patterns_refused_wildcards = 3;
            counters.history_refused_source_rate = 40;
        });
        assert_eq!(
            notices(&figures, 100),
            ["sessions over budget: 1,200 ticks/s, 3.0 patterns/s", "addresses over budget: 40 histories/s"]
        );
        assert_eq!(
            notices(&figures, 40),
            ["sessions over budget: 1,200 ticks/s", "addresses over budget: 40 histories/s"]
        );
    }

    #[test]
    fn without_refusals_there_is_nothing() {
        assert!(notices(&after(|_| {}), 100).is_empty());
        let mut first = snapshot(100, 2, 1, 1);
        first.server.shards[0].counters.ticks_refused_rate = 7;
        assert!(notices(&Figures::new(None, &first), 100).is_empty(), "no rates yet");
    }
}
