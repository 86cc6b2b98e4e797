//! Revoked subjects and tokens, kept in memory until the tokens have expired anyway.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::limits::REVOCATIONS_MAX;
use tickcast_core::principal::{Principal, Revocation};

/// Revoked subjects and tokens. Shared by all verifiers and the admin listener.
#[derive(Debug, Default)]
pub struct Revocations(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    /// By tenant and subject. Tokens issued after the revocation are valid.
    subjects: HashMap<(Box<str>, Box<str>), Revoked>,
    /// By `jti`.
    token_ids: HashMap<Box<str>, Revoked>,
}

/// Times in seconds since 1970.
#[derive(Clone, Copy, Debug)]
struct Revoked {
    /// When it was revoked.
    at_s: u64,
    /// When it is forgotten.
    until_s: u64,
}

/// The table of revocations is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Revocations {
    /// Revokes until `until_s`; a later revocation of the same subject or token replaces the first, also if it ends sooner. Cost:
    /// O(1), unless the table is full: then expired revocations are removed first.
    ///
    /// # Errors
    /// [`Full`] if [`REVOCATIONS_MAX`] revocations have not expired.
    pub fn add(&self, revocation: &Revocation, now_s: u64, until_s: u64) -> Result<(), Full> {
        let mut table = self.lock();
        if table.len() >= REVOCATIONS_MAX {
            table.forget(now_s);
        }
        if table.len() >= REVOCATIONS_MAX && !table.contains(revocation) {
            return Err(Full);
        }
        let revoked = Revoked { at_s: now_s, until_s };
        match revocation {
            Revocation::Subject { tenant, subject } => {
                table.subjects.insert((tenant.clone(), subject.clone()), revoked);
            }
            Revocation::TokenId(id) => {
                table.token_ids.insert(id.clone(), revoked);
            }
        }
        Ok(())
    }

    /// Whether a principal's token is revoked. If it does not say when it was issued, it is if its subject is.
    pub fn is_revoked(&self, principal: &Principal, now_s: u64) -> bool {
        let table = self.lock();
        let holds = |revoked: &&Revoked| revoked.until_s > now_s;
        let of_subject = (!table.subjects.is_empty())
            .then(|| table.subjects.get(&(principal.tenant.clone(), principal.subject.clone())))
            .flatten()
            .filter(holds)
            .is_some_and(|revoked| !principal.is_issued_after(revoked.at_s));
        let of_token = principal.token_id.as_ref().and_then(|id| table.token_ids.get(id));
        of_subject || of_token.filter(holds).is_some()
    }

    /// Revocations in memory. May include expired ones.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Ignore poison: each change is one insertion, so a panicking thread leaves nothing half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn len(&self) -> usize {
        self.subjects.len() + self.token_ids.len()
    }

    fn contains(&self, revocation: &Revocation) -> bool {
        match revocation {
            Revocation::Subject { tenant, subject } => {
                self.subjects.contains_key(&(tenant.clone(), subject.clone()))
            }
            Revocation::TokenId(id) => self.token_ids.contains_key(id),
        }
    }

    fn forget(&mut self, now_s: u64) {
        self.subjects.retain(|_, revoked| revoked.until_s > now_s);
        self.token_ids.retain(|_, revoked| revoked.until_s > now_s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(subject: &str, token_id: Option<&str>, issued_at_s: Option<u64>) -> Principal {
        let (subject, token_id) = (subject.into(), token_id.map(Into::into));
        Principal { subject, token_id, issued_at_s, ..Principal::default() }
    }

    fn subject(name: &str) -> Revocation {
        Revocation::Subject { tenant: "".into(), subject: name.into() }
    }

    #[test]
    fn a_revoked_subject_needs_a_token_that_was_issued_later() {
        let revocations = Revocations::default();
        revocations.add(&subject("alice"), 100, 200).unwrap();
        let alice = |issued_at_s| principal("alice", None, issued_at_s);
        assert!(revocations.is_revoked(&alice(Some(100)), 150) && revocations.is_revoked(&alice(None), 150));
        assert!(!revocations.is_revoked(&alice(Some(101)), 150));
        assert!(!revocations.is_revoked(&principal("bob", None, None), 150));
        let other_tenant = Principal { tenant: "t".into(), ..alice(None) };
        assert!(!revocations.is_revoked(&other_tenant, 150));
        assert!(!revocations.is_revoked(&alice(None), 200), "it has run out");
    }

    #[test]
    fn a_later_revocation_replaces_the_first_also_if_it_ends_sooner() {
        let revocations = Revocations::default();
        for (revocation, id) in [(subject("alice"), None), (Revocation::TokenId("7".into()), Some("7"))] {
            revocations.add(&revocation, 100, 200).unwrap();
            revocations.add(&revocation, 150, 160).unwrap();
            let alice = principal("alice", id, Some(150));
            assert!(revocations.is_revoked(&alice, 159) && !revocations.is_revoked(&alice, 160));
        }
    }

    #[test]
    fn a_revoked_token_id_stays_refused_whatever_its_time_of_issue() {
        let revocations = Revocations::default();
        revocations.add(&Revocation::TokenId("7".into()), 100, 200).unwrap();
        assert!(revocations.is_revoked(&principal("alice", Some("7"), Some(150)), 150));
        assert!(!revocations.is_revoked(&principal("alice", Some("8"), Some(1)), 150));
        assert!(!revocations.is_revoked(&principal("alice", None, None), 150));
    }

    #[test]
    fn revocations_are_bounded_and_what_has_run_out_makes_room() {
        let revocations = Revocations::default();
        for at in 0..REVOCATIONS_MAX {
            revocations.add(&subject(&at.to_string()), 100, 200 + (at as u64 & 1)).unwrap();
        }
        assert_eq!(revocations.add(&subject("more"), 199, 300), Err(Full));
        revocations.add(&subject("1"), 199, 201).unwrap();
        revocations.add(&subject("more"), 200, 300).unwrap();
        assert_eq!(revocations.len(), REVOCATIONS_MAX / 2 + 1);
    }
}
