//! Principals that the configuration file lists, so that a reload reaches their open sessions.

use std::{collections::HashMap, fmt, sync::Arc};

use crate::principal::{AuthRefusal, Principal};

/// The table of the configuration file that defines a principal.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Entry {
    /// The `[[auth.token]]` with this SHA-256. A name that gets another token is another entry.
    Token([u8; 32]),
    /// The `[[auth.certificate]]` with this name.
    Certificate(Box<str>),
    /// `[auth.anonymous]`.
    Anonymous,
}

/// Omits the hash of a token.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entry::Token(_) => write!(f, "Token"),
            Entry::Certificate(name) => write!(f, "Certificate({name:?})"),
            Entry::Anonymous => write!(f, "Anonymous"),
        }
    }
}

/// Where a principal is listed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Listing {
    /// The table.
    pub entry: Entry,
    /// The version of the file: a later reading has a higher one.
    pub version: u64,
}

/// All principals of one version of the file. Bound: the number of tables that the configuration allows.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    version: u64,
    principals: HashMap<Entry, Arc<Principal>>,
}

/// Two versions are equal if they list the same principals.
impl PartialEq for Listed {
    fn eq(&self, other: &Listed) -> bool {
        let has_same = |(entry, principal): (&Entry, &Arc<Principal>)| {
            other.principals.get(entry).is_some_and(|same| {
                same.is_same_client(principal) && same.permissions == principal.permissions
            })
        };
        self.principals.len() == other.principals.len() && self.principals.iter().all(has_same)
    }
}

impl Eq for Listed {}

impl Listed {
    /// The principals of one version, each with its listing.
    pub fn new(version: u64, principals: impl IntoIterator<Item = Arc<Principal>>) -> Listed {
        let by_entry = |principal: Arc<Principal>| Some((principal.listing.clone()?.entry, principal));
        Listed { version, principals: principals.into_iter().filter_map(by_entry).collect() }
    }

    /// Compares a principal with this version, and returns it as this version has it. One that no file lists stays, and so does one
    /// from a later version, which is on its way to its shard.
    ///
    /// # Errors
    /// The file no longer lists it, or lists it under another name or tenant.
    pub fn current(&self, principal: &Arc<Principal>) -> Result<Arc<Principal>, AuthRefusal> {
        let Some(Listing { entry, .. }) =
            principal.listing.as_ref().filter(|listing| listing.version < self.version)
        else {
            return Ok(principal.clone());
        };
        match self.principals.get(entry).filter(|listed| listed.is_same_client(principal)) {
            Some(listed) if listed.permissions == principal.permissions => Ok(principal.clone()),
            Some(listed) => {
                let expires_at_s = principal.expires_at_s;
                Ok(Arc::new(Principal { expires_at_s, ..Principal::clone(listed) }))
            }
            None if *entry == Entry::Anonymous => Err(AuthRefusal::Missing),
            None => Err(AuthRefusal::Revoked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::principal::{Permissions, Rules};

    fn listed(entry: Entry, version: u64, subject: &str, allow: &[&str]) -> Arc<Principal> {
        let subscribe = Rules::new(allow.iter().copied(), [] as [&str; 0]).unwrap();
        Arc::new(Principal {
            subject: subject.into(),
            permissions: Permissions { subscribe, publish: Rules::NONE }.into(),
            listing: Some(Listing { entry, version }),
            ..Principal::default()
        })
    }

    const TOKEN: Entry = Entry::Token([7; 32]);

    #[test]
    fn a_principal_is_what_the_latest_version_says() {
        let session = Arc::new(Principal {
            expires_at_s: Some(9),
            ..Principal::clone(&listed(TOKEN, 1, "a", &["t.a"]))
        });
        let at = |version, principals: &[Arc<Principal>]| {
            Listed::new(version, principals.iter().cloned()).current(&session)
        };
        assert_eq!(at(2, &[listed(TOKEN, 2, "a", &["t.a"])]).unwrap(), session, "nothing has changed");
        let narrow = at(2, &[listed(TOKEN, 2, "a", &["t.b"])]).unwrap();
        assert_eq!((narrow.expires_at_s, narrow.permissions.subscribe.permits("t.a")), (Some(9), false));
        for gone in [
            vec![],
            vec![listed(TOKEN, 2, "b", &["t.a"])],
            vec![listed(Entry::Token([8; 32]), 2, "a", &["t.a"])],
            vec![listed(Entry::Certificate("a".into()), 2, "a", &["t.a"])],
        ] {
            assert_eq!(at(2, &gone), Err(AuthRefusal::Revoked));
        }
        assert_eq!(at(1, &[]).unwrap(), session, "it comes from this version, or from a later one");
        let anonymous = listed(Entry::Anonymous, 1, "anonymous", &["t.a"]);
        assert_eq!(Listed::new(2, []).current(&anonymous), Err(AuthRefusal::Missing));
        let by_token = Arc::new(Principal { listing: None, ..Principal::clone(&session) });
        assert_eq!(Listed::new(2, []).current(&by_token).unwrap(), by_token, "a JWT");
    }

    #[test]
    fn versions_with_the_same_principals_are_equal() {
        let of = |version, allow: &[&str]| Listed::new(version, [listed(TOKEN, version, "a", allow)]);
        assert_eq!(of(1, &["t.a"]), of(2, &["t.a"]));
        assert!(of(1, &["t.a"]) != of(2, &["t.b"]) && of(1, &["t.a"]) != Listed::default());
        assert!(!format!("{:?}", of(1, &["t.a"])).contains("7, 7"), "no hash is printed");
    }
}
