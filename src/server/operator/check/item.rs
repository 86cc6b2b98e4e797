//! One checked property of the machine.

use serde::{Deserialize, Serialize};

/// How a property compares to what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ItemState {
    /// It is as it should be.
    Enabled,
    /// It is not, but this machine can change it.
    Supported,
    /// This machine lacks it.
    Unsupported,
}

/// A checked property.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckItem {
    /// The property.
    pub name: String,
    /// Whether the server cannot run without it.
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
    /// Whether this keeps the server from running.
    pub fn is_missing(&self) -> bool {
        self.required && self.state != ItemState::Enabled
    }
}
