//! The stages of a server's life.

/// The stage of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Creating its shards.
    Starting = 0,
    /// Accepting clients.
    Serving = 1,
    /// Stopping: refuses new clients and flushes open sessions.
    Draining = 2,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Stage; 3] = [Stage::Starting, Stage::Serving, Stage::Draining];

    /// Name in responses, metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Starting => "starting",
            Stage::Serving => "serving",
            Stage::Draining => "draining",
        }
    }

    /// Converts back from the number stored in an atomic.
    pub fn from_number(number: u8) -> Stage {
        debug_assert!(usize::from(number) < Stage::ALL.len(), "only `Stage as u8` is stored");
        match number {
            0 => Stage::Starting,
            1 => Stage::Serving,
            _ => Stage::Draining,
        }
    }
}
