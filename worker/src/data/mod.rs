//! From files on disk to batches in memory; nothing here knows libtorch.
//!
//! - [`sampler`]: which sample stands at which global offset, and which rank takes it. Pure.
//! - [`idx`]: the IDX format.
//! - [`dataset`]: a data set found under the worker's data roots.
//! - [`transform`]: an image to the network's input.
//! - [`loader`]: decoding and batching off the training thread.

mod error;
mod pipeline;

pub mod dataset;
pub mod idx;
pub mod loader;
pub mod sampler;
pub mod transform;

pub use dataset::{Dataset, Split};
pub use error::{DataError, Position};
pub use loader::{Batch, Evaluation, GroupBatch, Loader, LoaderOptions, Samples, Share};
pub use transform::Resizer;

#[cfg(test)]
mod tests;
