//! What all anybit programs share.
//!
//! - [`ids`]: a newtype for every id and counter.
//! - [`spec`]: the job spec: its keys, parsing, presets, validation.

pub mod ids;
pub mod spec;
