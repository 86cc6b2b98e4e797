//! One checked property of the machine.

use serde::{Deserialize, Serialize};

/// The state of a property, compared to its recommended value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ItemState {
    /// It has the recommended value.
    Enabled,
    /// It does not, but this machine supports it.
    Supported,
    /// This machine does not support it.
    Unsupported,
}

/// A checked property.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckItem {
    /// The property.
    pub name: String,
    /// Whether the server needs it to run.
    pub required: bool,
    /// How it compares to `wanted`.
    pub state: ItemState,
    /// Its current value, if known.
    pub now: Option<String>,
    /// The value it should have.
    pub wanted: String,
    /// Why it should have that value, or why it does not.
    pub reason: String,
}

impl CheckItem {
    /// Whether this prevents the server from running.
    pub fn is_missing(&self) -> bool {
        self.required && self.state != ItemState::Enabled
    }
}
