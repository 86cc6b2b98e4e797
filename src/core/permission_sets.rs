//! The permission sets of a shard's sessions, each stored once, with cached decisions about publishes.

use std::{collections::HashMap, sync::Arc};

use rustc_hash::FxBuildHasher;

use crate::{
    limits::PUBLISH_DECISIONS_MAX,
    principal::{Permissions, Principal},
};

/// The permission sets of a shard, and a cache of its decisions on publishing. Sessions with equal permissions share one set, so
/// the cache identifies a set by its address.
///
/// Invariant: a set with cached decisions is among `sets`, so it is alive and no other set has its address.
/// Invariant: `decisions_len` is the number of cached decisions.
/// Bound: one set per session with a principal, and [`PUBLISH_DECISIONS_MAX`] decisions.
#[derive(Debug, Default)]
pub struct PermissionSets {
    /// Each set, and the number of sessions that share it.
    sets: HashMap<Arc<Permissions>, usize>,
    /// By the address of a set, and the topic. Topics are hashed with a key, because peers choose them.
    decisions: HashMap<usize, HashMap<Box<str>, bool>, FxBuildHasher>,
    decisions_len: usize,
}

fn address(permissions: &Arc<Permissions>) -> usize {
    Arc::as_ptr(permissions) as usize
}

impl PermissionSets {
    /// Returns a session's principal with permissions shared by the shard's other sessions, until [`PermissionSets::release`].
    pub fn share(&mut self, principal: Arc<Principal>) -> Arc<Principal> {
        let Some((known, _)) = self.sets.get_key_value(&principal.permissions) else {
            self.sets.insert(principal.permissions.clone(), 1);
            return principal;
        };
        let known = known.clone();
        *self.sets.entry(known.clone()).or_default() += 1;
        match Arc::ptr_eq(&known, &principal.permissions) {
            true => principal,
            false => Arc::new(Principal { permissions: known, ..Principal::clone(&principal) }),
        }
    }

    /// Records that a session no longer has a principal from [`PermissionSets::share`]. Drops its permissions if no other session
    /// shares them.
    pub fn release(&mut self, principal: &Principal) {
        let Some(sessions) = self.sets.get_mut(&principal.permissions) else {
            return debug_assert!(false, "a session's permissions are shared");
        };
        *sessions -= 1;
        if *sessions == 0 {
            self.sets.remove(&principal.permissions);
            let gone = self.decisions.remove(&address(&principal.permissions));
            self.decisions_len -= gone.map_or(0, |gone| gone.len());
        }
    }

    /// Whether permissions from [`PermissionSets::share`] allow publishing to a topic. Only if the decision is not cached,
    /// compares patterns and allocates.
    pub fn may_publish(&mut self, permissions: &Arc<Permissions>, topic: &str) -> bool {
        let rules = &permissions.publish;
        if rules.is_all() {
            return true;
        }
        let set = address(permissions);
        if let Some(&decision) = self.decisions.get(&set).and_then(|topics| topics.get(topic)) {
            return decision;
        }
        debug_assert!(
            self.sets.get_key_value(permissions).is_some_and(|(known, _)| Arc::ptr_eq(known, permissions)),
            "a set stays while its address is in use"
        );
        let decision = rules.permits(topic);
        if self.decisions_len >= PUBLISH_DECISIONS_MAX {
            self.decisions.clear();
            self.decisions_len = 0;
        }
        self.decisions.entry(set).or_default().insert(topic.into(), decision);
        self.decisions_len += 1;
        decision
    }

    /// Whether no session has a principal.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// Heap memory in bytes, excluding the permissions themselves. An estimate for topic names of 32 bytes.
    pub fn heap_bytes(&self) -> usize {
        self.decisions_len * (size_of::<(Box<str>, bool)>() + 32)
            + self.sets.capacity() * size_of::<(Arc<Permissions>, usize)>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::principal::Rules;

    fn principal(subject: &str, publish: &[&str]) -> Arc<Principal> {
        let rules = Rules::new(publish.iter().copied(), ["t.secret"]).unwrap();
        let permissions = Permissions { subscribe: Rules::NONE, publish: rules };
        Arc::new(Principal {
            subject: subject.into(),
            permissions: permissions.into(),
            ..Principal::default()
        })
    }

    #[test]
    fn sessions_that_may_do_the_same_share_one_set() {
        let mut sets = PermissionSets::default();
        let first = sets.share(principal("a", &["t.*", "u"]));
        let second = sets.share(principal("b", &["u", "t.*", "u"]));
        let other = sets.share(principal("b", &["u"]));
        assert!(Arc::ptr_eq(&first.permissions, &second.permissions));
        assert!(!Arc::ptr_eq(&first.permissions, &other.permissions));
        assert_eq!((&*first.subject, &*second.subject), ("a", "b"));
        assert!(Arc::ptr_eq(&sets.share(first.clone()), &first), "a known set changes nothing");
    }

    #[test]
    fn a_cached_decision_is_that_of_the_rules() {
        let mut sets = PermissionSets::default();
        let narrow = sets.share(principal("a", &["t.*"]));
        let wide = sets.share(principal("a", &["t.>", "u"]));
        for _ in 0..2 {
            for (principal, topic, expected) in [
                (&narrow, "t.a", true),
                (&narrow, "t.a.b", false),
                (&narrow, "t.secret", false),
                (&narrow, "u", false),
                (&wide, "t.a", true),
                (&wide, "t.a.b", true),
                (&wide, "t.secret", false),
                (&wide, "u", true),
            ] {
                assert_eq!(sets.may_publish(&principal.permissions, topic), expected, "{topic}");
            }
        }
        assert_eq!(sets.decisions_len, 8);
    }

    #[test]
    fn a_set_is_forgotten_with_its_last_session_and_decisions_are_bounded() {
        let mut sets = PermissionSets::default();
        let kept = sets.share(principal("kept", &["t.*"]));
        for n in 0..100 {
            let topic = format!("t.{n}");
            let gone = sets.share(principal("gone", &[&topic]));
            let twice = sets.share(principal("twice", &[&topic]));
            assert!(sets.may_publish(&gone.permissions, &topic));
            assert!(!sets.may_publish(&gone.permissions, "t.x"));
            assert!(sets.may_publish(&kept.permissions, &topic));
            sets.release(&gone);
            assert_eq!(sets.sets.len(), 2);
            sets.release(&twice);
            assert_eq!((sets.sets.len(), sets.decisions_len), (1, n + 1));
        }
        for n in 0..PUBLISH_DECISIONS_MAX + 10 {
            assert!(!sets.may_publish(&kept.permissions, &format!("u.{n}")));
            let held: usize = sets.decisions.values().map(HashMap::len).sum();
            assert!(held == sets.decisions_len && held <= PUBLISH_DECISIONS_MAX);
        }
        sets.release(&kept);
        assert!(sets.is_empty() && sets.decisions_len == 0);
    }
}
