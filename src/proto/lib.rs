//! The wire protocol: decodes bytes into values and encodes values into bytes. No socket, no clock, no session state.
//!
//! `PROTOCOL.md` beside this file is the specification; `tests/golden.rs` checks the code against its bytes.

pub mod codec;
pub mod command;
mod error;
pub mod features;
pub mod frame;
pub mod framing;
pub mod http;
pub mod identity;
pub mod ids;
pub mod limits;
pub mod logged;
pub mod pattern;
pub mod proxy;
pub mod records;
pub mod reply;
pub mod subscription;
pub mod units;
mod wire_format;

pub use self::{
    error::{DecodeError, ErrorCode},
    wire_format::WireFormat,
};

/// Result of one decoding step. "Needs more bytes" is a value, not an error.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// The input ends in the middle of a message. Nothing was consumed: call again with the same bytes and more.
    Partial,
    /// The number of bytes consumed, and the decoded value.
    Complete(usize, T),
}
