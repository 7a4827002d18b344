//! The anybit worker.
//!
//! - [`dist`]: collectives: c10d through a cxx bridge.
//! - [`train`]: the joint step and the training loop.

pub mod bench;
pub mod dist;
pub mod golden;
pub mod train;
