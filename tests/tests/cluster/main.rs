//! The whole service as real processes: jobs that go well, and every part killed in the middle.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "clippy.toml allows these in tests, which clippy knows by #[test]: helpers have none"
)]

mod agents;
mod checkpoints;
mod coordinator;
mod failures;
mod resnet50;
mod run;
mod scheduling;
mod trainers;
mod training;
