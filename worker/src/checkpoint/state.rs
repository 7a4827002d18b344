//! Everything of a training run but its tensors.

use std::path::Path;

use anybit_shared::ids::{Generation, GlobalStep};
use anybit_shared::spec::JobSpec;
use serde::{Deserialize, Serialize};

use super::error::CheckpointError;
use super::manifest::STATE;

/// The version of the checkpoint format that is written and read; manifest and state both carry it.
pub const FORMAT_VERSION: u32 = 1;

/// Everything of a training run but its tensors. Shuffling and dropout are functions of the seed
/// and of what is counted here, so there is no other random state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainState {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The job, resolved.
    pub spec: JobSpec,
    /// Steps committed.
    pub step: GlobalStep,
    /// Where the sampler goes on; skipped steps count here and not in `step`.
    pub sample_offset: u64,
    /// Epochs completed, with the fraction of the one under way.
    pub epoch: f64,
    /// Seeds weights, shuffling and dropout.
    pub seed: u64,
    /// The generation that wrote this.
    pub generation: Generation,
    /// Steps skipped since the job began.
    pub skipped_steps: u64,
    /// Of these, in a row up to now.
    pub consecutive_skipped: u32,
}

impl TrainState {
    /// As JSON that reads back as exactly this state.
    pub(super) fn to_json(&self) -> Result<Vec<u8>, CheckpointError> {
        let unsavable = |e: serde_json::Error| CheckpointError::Unsavable(e.to_string());
        let mut json = serde_json::to_vec_pretty(self).map_err(unsavable)?;
        json.push(b'\n');
        // JSON has no NaN and no infinity, and the version must be ours.
        let back: Self = serde_json::from_slice(&json).map_err(|e| {
            CheckpointError::Unsavable(format!(
                "its state does not survive JSON (a number is not finite?): {e}"
            ))
        })?;
        if back != *self || self.format_version != FORMAT_VERSION {
            return Err(CheckpointError::Unsavable("its state does not read back as it was".into()));
        }
        Ok(json)
    }

    /// Reads `state.json` of the checkpoint in `folder`.
    pub(super) fn from_json(folder: &Path, json: &[u8]) -> Result<Self, CheckpointError> {
        check_version(&folder.join(STATE), json)?;
        serde_json::from_slice(json).map_err(|e| CheckpointError::damaged(folder, format!("{STATE}: {e}")))
    }
}

/// Refuses a JSON object of another `format_version`; one without any is left to the full parser.
pub(super) fn check_version(file: &Path, json: &[u8]) -> Result<(), CheckpointError> {
    let supported = FORMAT_VERSION;
    #[derive(Deserialize)]
    struct Versioned {
        format_version: u64,
    }
    match serde_json::from_slice::<Versioned>(json) {
        Ok(v) if v.format_version != u64::from(supported) => {
            Err(CheckpointError::Version { path: file.to_owned(), found: v.format_version, supported })
        }
        _ => Ok(()),
    }
}
