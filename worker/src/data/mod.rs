//! From files on disk to batches in memory; nothing here knows libtorch.
//!
//! - [`sampler`]: which sample stands at which global offset, and which rank takes it. Pure.
//! - [`idx`]: the IDX format.
//! - [`dataset`]: a data set found under the worker's data roots.
//! - [`transform`]: an image to the network's input.
//! - [`loader`]: decoding and batching off the training thread.

pub mod sampler;
