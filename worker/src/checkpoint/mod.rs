//! Checkpoints: written so that a kill at any moment leaves either the whole of one or none of it,
//! and read only when every byte is as it was written.
//!
//! ```text
//! <job dir>/g00001/step-000000123/model.safetensors
//!                                 optimizer.safetensors
//!                                 state.json
//!                                 manifest.json          size and SHA-256 of each, written last
//! ```
//!
//! A checkpoint is made in a hidden sibling folder, every file and the folder synced, and takes its
//! name in one rename. Folders of a generation that the coordinator never registered are ignored by
//! a restore, so a stray trainer cannot overwrite the truth.
//!
//! - [`TrainState`]: everything but the tensors.
//! - [`NamedTensor`]: a tensor as plain bytes; nothing here knows libtorch.
//! - [`write`], [`verify`], [`read`], [`list`], [`newest_valid`], [`load_newest`], [`prune`].

mod error;
mod layout;
mod manifest;
mod prune;
mod read;
mod state;
mod tensor;
mod write;

pub use error::CheckpointError;
pub use layout::{Entry, folder, list};
pub use prune::prune;
pub use read::{Checkpoint, load_newest, newest_valid, read, verify};
pub use state::{FORMAT_VERSION, TrainState};
pub use tensor::{Dtype, NamedTensor};
pub use write::write;

use std::path::PathBuf;

use anybit_shared::ids::{Generation, GlobalStep};

/// A checkpoint that was just written or verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointInfo {
    /// Its folder.
    pub path: PathBuf,
    /// The generation that wrote it.
    pub generation: Generation,
    /// Steps committed.
    pub step: GlobalStep,
    /// Size of all its files.
    pub bytes: u64,
    /// SHA-256 of the manifest, in hex: it stands for every byte of the checkpoint.
    pub manifest_sha256: String,
}

#[cfg(test)]
mod tests;
