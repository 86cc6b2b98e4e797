//! Exports: topics of one tenant that others may subscribe to, under the same names.
//!
//! The exporter owns the topic, and importers see it as their own. Whoever names it exactly is served as if the name were the
//! owner's; a wildcard of an importer is compared with each topic that is exported to it. So an exported topic is sequenced, kept
//! and encoded once, whoever receives it, and a delivery costs what any other does.

use std::sync::Arc;

use crate::{ids::TenantId, pattern_trie::PatternTrie, topic_key};
use tickcast_proto::pattern;

/// Topics of a tenant that others may subscribe to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Whose topics they are.
    pub owner: TenantId,
    /// Which: a pattern.
    pub topics: Box<str>,
    /// Who receives them.
    pub to: Importers,
}

/// Who may subscribe to what a tenant exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Importers {
    /// Every other tenant but the default, those that a reload adds included.
    All,
    /// These.
    Named(Vec<TenantId>),
}

impl Export {
    /// Whether a tenant imports it.
    fn is_to(&self, tenant: TenantId) -> bool {
        tenant != self.owner
            && match &self.to {
                Importers::All => tenant != TenantId::DEFAULT,
                Importers::Named(tenants) => tenants.contains(&tenant),
            }
    }

    /// A tenant that imports both of two exports.
    fn common_importer(&self, other: &Export) -> Option<TenantId> {
        let both = |tenant: &TenantId| self.is_to(*tenant) && other.is_to(*tenant);
        match (&self.to, &other.to) {
            (Importers::Named(tenants), _) | (_, Importers::Named(tenants)) => {
                tenants.iter().copied().find(both)
            }
            // Any third tenant, whether it is configured yet or not.
            (Importers::All, Importers::All) => (1..=3).map(TenantId).find(both),
        }
    }
}

/// Two exports that do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportError {
    /// Two tenants export the same names to a third: the indices of both exports.
    Ambiguous(usize, usize),
    /// A tenant exports names that another one exports to it, and which are not its own: the indices of its export and of the
    /// other's.
    Imported(usize, usize),
}

/// All exports of the server.
///
/// Invariant: the owner of a name is the same whichever export an importer finds first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exports(Arc<[Export]>);

impl Exports {
    /// A set of exports.
    ///
    /// # Errors
    /// Names that would have two owners.
    pub fn new(exports: Vec<Export>) -> Result<Exports, ExportError> {
        for (at, export) in exports.iter().enumerate() {
            for (other_at, other) in exports.iter().enumerate() {
                if export.owner == other.owner || !pattern::overlaps(&export.topics, &other.topics) {
                    continue;
                }
                if other.is_to(export.owner) {
                    return Err(ExportError::Imported(at, other_at));
                }
                if export.common_importer(other).is_some() {
                    return Err(ExportError::Ambiguous(at, other_at));
                }
            }
        }
        Ok(Exports(exports.into()))
    }

    /// Whether nothing is exported.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The owner of the topic that a tenant means by a name. A look at each export.
    pub fn owner(&self, tenant: TenantId, name: &str) -> TenantId {
        let exported = |export: &&Export| export.is_to(tenant) && pattern::matches(&export.topics, name);
        self.0.iter().find(exported).map_or(tenant, |export| export.owner)
    }

    /// Whether a topic of one tenant is exported to another.
    fn exports(&self, owner: TenantId, to: TenantId, name: &str) -> bool {
        self.0
            .iter()
            .any(|export| export.owner == owner && export.is_to(to) && pattern::matches(&export.topics, name))
    }

    /// The patterns of the topics that one tenant exports to another.
    pub fn between(&self, owner: TenantId, to: TenantId) -> impl Iterator<Item = &str> {
        let exported = self.0.iter().filter(move |export| export.owner == owner && export.is_to(to));
        exported.map(|export| &*export.topics)
    }

    /// Whether a pattern matches a topic, both as keys: of its own tenant, or exported to it. Does not allocate.
    pub fn matches(&self, pattern: &str, topic: &str) -> bool {
        if topic_key::matches(pattern, topic) {
            return true;
        }
        if self.is_empty() {
            return false;
        }
        let ((importer, pattern), (owner, name)) = (topic_key::split(pattern), topic_key::split(topic));
        importer != owner && pattern::matches(pattern, name) && self.exports(owner, importer, name)
    }

    /// Calls `found` with the value of each pattern in a trie that matches a topic, once, all as keys. `tenants`: the patterns'
    /// highest tenant. Returns the work done, in units of [`PatternTrie::for_each_match`].
    pub fn for_each_match<V>(
        &self,
        trie: &PatternTrie<V>,
        tenants: TenantId,
        topic: &str,
        mut found: impl FnMut(&V),
    ) -> usize {
        let mut visited = trie.for_each_match(topic, &mut found);
        if self.is_empty() || trie.is_empty() {
            return visited;
        }
        let (owner, name) = topic_key::split(topic);
        if !self.0.iter().any(|export| export.owner == owner && pattern::matches(&export.topics, name)) {
            return visited;
        }
        for importer in (0..=tenants.0).map(TenantId).filter(|&tenant| self.exports(owner, tenant, name)) {
            visited += trie.for_each_match(&topic_key::of(importer, name), &mut found);
        }
        visited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 5] = ["prices.a", "prices.b.c", "orders.a", "prices", "a"];

    fn export(owner: u16, topics: &str, to: &[u16]) -> Export {
        let to = match to {
            [] => Importers::All,
            tenants => Importers::Named(tenants.iter().copied().map(TenantId).collect()),
        };
        Export { owner: TenantId(owner), topics: topics.into(), to }
    }

    #[test]
    fn an_exported_name_is_the_exporters_to_those_who_import_it_and_to_no_other() {
        let exports = Exports::new(vec![export(1, "prices.>", &[2]), export(3, "orders.*", &[])]).unwrap();
        let owner = |tenant, name| exports.owner(TenantId(tenant), name).0;
        assert_eq!((owner(2, "prices.a"), owner(1, "prices.a"), owner(4, "prices.a")), (1, 1, 4));
        assert_eq!((owner(2, "orders.a"), owner(1, "orders.a"), owner(3, "orders.a")), (3, 3, 3));
        assert_eq!(owner(0, "orders.a"), 0, "the default tenant imports only what names it");
        assert_eq!((owner(2, "prices"), owner(2, "orders.a.b")), (2, 2));
    }

    #[test]
    fn the_trie_finds_the_same_patterns_as_a_comparison_one_by_one_each_once() {
        let exports = Exports::new(vec![
            export(1, "prices.>", &[2, 3]),
            export(1, "prices.*", &[2]),
            export(3, "orders.*", &[]),
        ])
        .unwrap();
        let tenants = (0..6).map(TenantId);
        let mut trie = PatternTrie::default();
        for tenant in tenants.clone() {
            for pattern in [">", "*.a", "prices.>", "prices.a", "orders.*", "a"] {
                let key = topic_key::of(tenant, pattern).into_owned();
                trie.get_or_insert_with(&key.clone(), || key);
            }
        }
        for (tenant, name) in tenants.flat_map(|tenant| NAMES.map(|name| (tenant, name))) {
            let topic = topic_key::of(tenant, name);
            let mut found = Vec::new();
            exports.for_each_match(&trie, TenantId(5), &topic, |key| found.push(key.clone()));
            let mut all = Vec::new();
            trie.for_each(|key: &String| all.push(key.clone()));
            let mut expected: Vec<String> =
                all.into_iter().filter(|key| exports.matches(key, &topic)).collect();
            found.sort();
            expected.sort();
            assert_eq!(found, expected, "{name} of {tenant:?}");
        }
    }

    #[test]
    fn exports_that_give_a_name_two_owners_are_rejected() {
        let new = |exports: &[Export]| Exports::new(exports.to_vec());
        let (prices, all) = (export(1, "prices.>", &[2]), export(3, ">", &[]));
        assert_eq!(new(&[prices.clone(), all.clone()]), Err(ExportError::Imported(0, 1)));
        let others = export(3, "*.a", &[2, 4]);
        assert_eq!(new(&[prices.clone(), others.clone()]), Err(ExportError::Ambiguous(0, 1)));
        let apart = [export(3, "*.a", &[4]), export(5, "orders.>", &[2]), export(1, "prices.x", &[4, 2])];
        assert_eq!(new(&[prices.clone(), apart[0].clone()]).err(), None);
        assert_eq!(new(&[prices.clone(), apart[1].clone(), apart[2].clone()]).err(), None);
        assert!(new(&[export(1, "a", &[]), export(2, "a", &[])]).is_err());
        assert!(new(&[export(1, "a", &[]), export(2, "b", &[])]).is_ok());
    }
}
