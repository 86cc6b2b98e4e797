//! The option `position`: who numbers the ticks of a source's topics.

use serde::{Deserialize, Serialize};

/// Who numbers the ticks of a source's topics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PositionKind {
    /// This server, from 1, as for ticks of clients.
    #[default]
    Local,
    /// The log that is read: the same numbers on every server that reads it.
    Log,
}
