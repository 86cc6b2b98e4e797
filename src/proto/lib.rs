//! What goes over the wire: pure bytes in, values out, and back. No socket, no clock, no session.
//!
//! `PROTOCOL.md` beside this file is the specification; `tests/golden.rs` holds the code to its bytes.

pub mod codec;
pub mod command;
mod error;
pub mod frame;
pub mod framing;
pub mod http;
pub mod identity;
pub mod ids;
pub mod limits;
pub mod pattern;
pub mod records;
pub mod reply;
pub mod subscription;
pub mod units;
mod wire_format;

pub use self::{
    error::{DecodeError, ErrorCode},
    wire_format::WireFormat,
};

/// How far a decoder came: needing more bytes is a value, not an error.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// The bytes end before the message does.
    Partial,
    /// One message, and how many bytes it took.
    Complete(usize, T),
}
