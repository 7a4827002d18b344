//! The coordinator: takes jobs, places their ranks on workers, keeps their state, curves and
//! logs, and serves all of that over gRPC. It links no libtorch and is not on the training path:
//! while it is away, training goes on.
//!
//! - [`job`], [`schedule`]: PURE. What may happen to a job, and which one goes next.
//! - [`engine`]: the one task that owns the jobs; event, decision, store, effects.
//! - [`store`]: what must last. [`logs`]: the trainers' logs.
//! - [`grpc`]: the API. [`Service`]: all of it, started and stopped. [`Settings`]: how.

pub mod engine;
pub mod grpc;
mod ident;
pub mod job;
pub mod logs;
pub mod schedule;
mod service;
mod settings;
pub mod store;

pub use service::{ServeError, Service};
pub use settings::{ENV_PREFIX, InvalidSettings, Settings};
