//! What an operator asks a running server, and what it answers: requests, selections, views and texts as functions of
//! plain values. [`listener`] has the socket and the thread.

mod answer;
mod ask;
mod cores;
pub mod latency;
pub mod listener;
pub mod metrics;
pub mod overview;
mod process;
pub mod query;
pub mod route;
pub mod views;

/// What a server is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Its shards are being made.
    Starting = 0,
    /// It serves.
    Serving = 1,
    /// It stops: nobody is let in, and who is there gets what waits for them.
    Draining = 2,
}

impl Stage {
    /// Name in answers and logs.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Starting => "starting",
            Stage::Serving => "serving",
            Stage::Draining => "draining",
        }
    }

    /// The stage of a number that an atomic holds.
    pub fn from_number(number: u8) -> Stage {
        match number {
            0 => Stage::Starting,
            1 => Stage::Serving,
            _ => Stage::Draining,
        }
    }
}
