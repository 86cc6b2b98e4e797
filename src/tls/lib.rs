//! TLS as plain state machines: bytes in, bytes out. No socket, no clock, no runtime.
//!
//! rustls performs the handshake over the caller's buffers. Then a [`RecordLayer`](record::RecordLayer) of plain data takes over,
//! because a fan-out server encrypts the same plaintext for thousands of connections, as the last step of each SEND. A record
//! layer takes 232 bytes per connection; a buffered rustls connection takes 7.6 KB.
//!
//! ```text
//!  bytes --> ServerHandshake --> Established { records, unopened, .. }
//!                                  records.open(bytes)      --> plaintext
//!                                  records.seal(plaintext)  --> bytes
//! ```

pub mod certificates;
pub mod handshake;
mod keys;
pub mod opener;
pub mod record;
mod secrets;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod tickets;
