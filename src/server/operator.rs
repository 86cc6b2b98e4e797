//! The operators' tools: the admin listener, `tickcast top` and `tickcast check`.

pub mod admin;
pub mod check;
pub mod control;
pub mod tenants;
pub mod top;
pub mod views;
