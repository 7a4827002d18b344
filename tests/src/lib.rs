//! A cluster of real processes, for tests: the built programs, gRPC, kill and restart.
//!
//! A fault test reads as a sentence:
//!
//! ```no_run
//! # use anybit_tests::{Cluster, JobState, Spec};
//! let mut cluster = Cluster::start(2, 1);
//! let job = cluster.submit(&Spec::tiny("sentence").ranks(2));
//! cluster.at_step(&job, 40);
//! cluster.kill_trainer(&job, 1);
//! cluster.wait(&job, JobState::Succeeded);
//! ```
//!
//! - [`Cluster`]: starts, kills and restarts coordinator and agents; kills trainers; waits.
//! - [`Api`]: what people ask the coordinator, as plain values.
//! - [`Spec`], [`dataset`]: what is trained, on what.
//! - [`checkpoint`]: checkpoints as they lie on disk, by the contract and not by the product's code.
//! - [`process`]: who lives, from `/proc`.
//!
//! Whatever happens, dropping a cluster kills and reaps all it started; after a panic it prints
//! the logs of everything first.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::missing_panics_doc,
    reason = "all of this crate is test code, which clippy knows by #[test]"
)]

mod api;
pub mod checkpoint;
mod cluster;
pub mod dataset;
pub mod process;
mod programs;
mod service;
mod spec;
mod turn;
mod wait;

pub use anybit_proto::v1::JobState;
pub use api::{Api, Recording};
pub use cluster::{Builder, Cluster};
pub use programs::{COORDINATOR, PEOPLE, WORKER, program, repository};
pub use service::Service;
pub use spec::Spec;
pub use turn::Turn;
pub use wait::{LONG, until, wait_for};
