//! What an operator sees and does: the admin listener, `tickcast top`, `tickcast check`.

pub mod admin;
pub mod check;
pub mod control;
pub mod top;
