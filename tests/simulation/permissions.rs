//! Tokens of the simulated clients, `SET.SUBJECT~TENANT`, and what they allow.

use std::sync::Arc;

use tickcast_core::principal::{AuthRefusal, Credentials, Permissions, Principal, Rules};

/// Number of permission sets.
pub const SETS: u32 = 3;

/// The tenants of a run that has any, by id. The default one has no name.
pub const TENANTS: [&str; 3] = ["", "a", "b"];

/// The permissions of a token.
pub fn of(token: &str) -> Permissions {
    let rules = |allow: &[&str], deny: &[&str]| {
        Rules::new(allow.iter().copied(), deny.iter().copied()).expect("patterns")
    };
    let subscribe = match token.split_once('.').map(|(set, _)| set) {
        Some("0") => rules(&["t.*", "p.>"], &["t.1"]),
        Some("1") => rules(&["t.>", "*.2", "c.>", "p.>"], &[]),
        _ => Rules::all(),
    };
    Permissions { subscribe, publish: rules(&["c.*"], &[]) }
}

/// What the verifier says to a token.
pub fn verdict(credentials: &Credentials) -> Result<Arc<Principal>, AuthRefusal> {
    let token = credentials.token.as_deref().ok_or(AuthRefusal::Missing)?;
    let (_, subject) = token.split_once('.').ok_or(AuthRefusal::Expired)?;
    let (subject, tenant) = subject.split_once('~').ok_or(AuthRefusal::Expired)?;
    Ok(Arc::new(Principal {
        subject: subject.into(),
        tenant: tenant.into(),
        permissions: of(token).into(),
        ..Principal::default()
    }))
}
