//! The whole service as real processes: jobs that go well, and every part killed in the middle.

mod agents;
mod checkpoints;
mod coordinator;
mod failures;
mod resnet50;
mod run;
mod scheduling;
mod trainers;
mod training;
