//! The worker.
//!
//! - [`data`]: readers, resizing, the elastic sampler, decoding off the training thread.

pub mod data;
