//! What all anybit programs share.
//!
//! - [`ids`]: a newtype for every id and counter.
//! - [`spec`]: the job spec: its keys, parsing, presets, validation.
//! - [`settings`]: a service's settings from file, environment and flags.
//! - [`parent`]: services that end with their parent.
//! - [`telemetry`]: logs. [`shutdown`]: signals. [`clock`]: time. [`retry`]: when to try again.

pub mod clock;
pub mod ids;
pub mod parent;
pub mod retry;
pub mod settings;
pub mod shutdown;
pub mod spec;
pub mod telemetry;
