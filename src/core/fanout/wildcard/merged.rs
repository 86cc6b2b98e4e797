//! How several subscriptions of a session to one topic are delivered together.

use super::super::{
    Subscription,
    subscriptions::PatternEntry,
    topic::{EgressTopic, Merged},
};
use super::COMPARED_MAX;
use crate::{ids::TenantId, pattern_trie::PatternTrie, principal::Principal, tenants::Exports};

/// Decides whether a pattern matches a topic.
#[derive(Clone, Copy, Debug)]
pub(in crate::fanout) struct Matching<'a> {
    /// The trie of all patterns.
    pub(in crate::fanout) patterns: &'a PatternTrie<u32>,
    /// The highest tenant that has a pattern.
    pub(in crate::fanout) tenant_highest: TenantId,
    /// What tenants export.
    pub(in crate::fanout) exports: &'a Exports,
}

impl<'a> Matching<'a> {
    /// Borrows parts of the fan-out, so that its topics can be changed meanwhile.
    pub(in crate::fanout) fn new(
        patterns: &'a PatternTrie<u32>,
        tenant_highest: TenantId,
        exports: &'a Exports,
    ) -> Matching<'a> {
        Matching { patterns, tenant_highest, exports }
    }
}

/// Merges the deliveries of the session's live subscriptions that deliver a topic; `None` if none does. Compares the topic with
/// each.
pub(in crate::fanout) fn merged<'a>(
    matching: Matching<'_>,
    entries: &[Option<PatternEntry>],
    topic: &EgressTopic,
    subscriptions: impl IntoIterator<Item = &'a Subscription>,
    principal: Option<&Principal>,
) -> Option<Merged> {
    let mut merged: Option<Merged> = None;
    for held in subscriptions {
        let name = &topic.info.name;
        let entry = entries[held.entry as usize].as_ref();
        let entry = entry.filter(|entry| held.position.is_some() && entry.matches(matching, topic.key()));
        let Some(entry) = entry.filter(|_| held.delivers(name, principal)) else { continue };
        let shares = entry.shares(held.delivery);
        let policy = held.delivery.policy.unwrap_or_else(|| {
            let wildcard = entry.wildcard.as_deref().filter(|_| shares);
            let policies = wildcard.and_then(|wildcard| wildcard.policies(held.generation));
            policies.map_or(topic.policy, |policies| policies.of(name))
        });
        let one = Merged {
            policy,
            interval_us: held.delivery.interval_us,
            shared: u32::from(shares),
            is_shared: shares,
        };
        merged = Some(merged.map_or(one, |before| before.merge(one)));
    }
    merged
}

/// Like [`merged`], for all of a session's subscriptions. If there are many, looks up those that match, so that patterns that
/// match nothing cost nothing.
pub(in crate::fanout) fn merged_of_all(
    matching: Matching<'_>,
    entries: &[Option<PatternEntry>],
    topic: &EgressTopic,
    subscriptions: &[Subscription],
    principal: Option<&Principal>,
) -> Option<Merged> {
    if subscriptions.len() <= COMPARED_MAX {
        return merged(matching, entries, topic, subscriptions, principal);
    }
    let mut held = Vec::new();
    let Matching { patterns, tenant_highest, exports } = matching;
    exports.for_each_match(patterns, tenant_highest, topic.key(), |&index| {
        let found = subscriptions.binary_search_by_key(&index, |held| held.entry);
        held.extend(found.ok().and_then(|at| subscriptions.get(at)));
    });
    merged(matching, entries, topic, held, principal)
}
