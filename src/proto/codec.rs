//! How a message is encoded, whatever delimits and carries it.

pub mod json;
