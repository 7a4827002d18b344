//! From files on disk to batches in memory; nothing here knows libtorch.
//!
//! - [`sampler`]: which sample stands at which global offset, and which rank takes it. Pure.
//! - [`idx`]: the IDX format.
//! - [`dataset`]: a data set found under the worker's data roots.

mod error;

pub mod dataset;
pub mod idx;
pub mod sampler;

pub use dataset::{Dataset, Split};
pub use error::{DataError, Position};
