//! The ECG's description.
