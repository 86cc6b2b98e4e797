//! TLS as plain state machines: bytes go in, bytes come out. No socket, no clock, no runtime.
//!
//! rustls does the handshake over the caller's buffers. Then a [`RecordLayer`](record::RecordLayer) of plain data takes over,
//! because a fan-out server seals the same plaintext for thousands of connections, once for each SEND and as the last step:
//! 232 bytes a connection, where a buffered rustls connection takes 7.6 KB.
//!
//! ```text
//!  bytes --> ServerHandshake --> Established { records, unopened, .. }
//!                                  records.open(bytes)      --> plaintext
//!                                  records.seal(plaintext)  --> bytes
//! ```

pub mod certificates;
pub mod handshake;
pub mod opener;
pub mod record;
mod secrets;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod tickets;
