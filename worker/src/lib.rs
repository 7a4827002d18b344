//! The worker.
//!
//! - [`data`]: readers, resizing, the elastic sampler, decoding off the training thread.
//! - [`checkpoint`]: write, verify, restore, prune.

pub mod checkpoint;
pub mod data;
