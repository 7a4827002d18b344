//! Reading checkpoints: never one byte that is not as it was written.

use std::path::Path;

use anybit_shared::ids::Generation;

use super::CheckpointInfo;
use super::error::CheckpointError;
use super::layout::list;
use super::manifest::{FileRecord, MODEL, Manifest, OPTIMIZER, STATE};
use super::state::TrainState;
use super::tensor::{NamedTensor, decode};

/// A checkpoint, verified and in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Its folder, size and hash.
    pub info: CheckpointInfo,
    /// Everything but the tensors.
    pub state: TrainState,
    /// Parameters and running statistics, ordered by name.
    pub model: Vec<NamedTensor>,
    /// The optimizer's state, ordered by name.
    pub optimizer: Vec<NamedTensor>,
}

/// Reads a checkpoint; its bytes are hashed as they are read.
pub fn read(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let (manifest, json) = Manifest::read(path)?;
    let state = read_state(path, &manifest)?;
    let info = info(path, &manifest, &json, &state);
    let tensors = |name| {
        let bytes = manifest.open(path, name)?.contents(path, name)?;
        decode(path, name, &bytes)
    };
    Ok(Checkpoint { info, model: tensors(MODEL)?, optimizer: tensors(OPTIMIZER)?, state })
}

/// Checks every byte of a checkpoint, in little memory.
pub fn verify(path: &Path) -> Result<CheckpointInfo, CheckpointError> {
    let (manifest, json) = Manifest::read(path)?;
    let state = read_state(path, &manifest)?;
    for name in [MODEL, OPTIMIZER] {
        manifest.open(path, name)?.check(path, name)?;
    }
    Ok(info(path, &manifest, &json, &state))
}

fn info(path: &Path, manifest: &Manifest, json: &[u8], state: &TrainState) -> CheckpointInfo {
    let record = FileRecord::of(json);
    CheckpointInfo {
        path: path.to_owned(),
        generation: state.generation,
        step: state.step,
        bytes: record.bytes + manifest.files.values().map(|file| file.bytes).sum::<u64>(),
        manifest_sha256: record.sha256,
    }
}

fn read_state(path: &Path, manifest: &Manifest) -> Result<TrainState, CheckpointError> {
    let state = TrainState::from_json(path, &manifest.open(path, STATE)?.contents(path, STATE)?)?;
    if (state.generation, state.step) != (manifest.generation, manifest.step) {
        return Err(CheckpointError::damaged(path, "its manifest and its state are of different steps"));
    }
    Ok(state)
}

/// The newest checkpoint of the `allowed` generations that verifies. Damaged ones are passed over
/// with a warning; what is no damage (no permission, a newer format) is an error, since passing
/// over it would silently lose work.
pub fn newest_valid(
    job_dir: &Path,
    allowed: &[Generation],
) -> Result<Option<CheckpointInfo>, CheckpointError> {
    newest(job_dir, allowed, |path| verify(path).map(|info| ((info.generation, info.step), info)))
}

/// As [`newest_valid`], and reads it.
pub fn load_newest(job_dir: &Path, allowed: &[Generation]) -> Result<Option<Checkpoint>, CheckpointError> {
    newest(job_dir, allowed, |path| {
        read(path).map(|checkpoint| ((checkpoint.state.generation, checkpoint.state.step), checkpoint))
    })
}

type Identity = (Generation, anybit_shared::ids::GlobalStep);

fn newest<T>(
    job_dir: &Path,
    allowed: &[Generation],
    open: impl Fn(&Path) -> Result<(Identity, T), CheckpointError>,
) -> Result<Option<T>, CheckpointError> {
    for entry in list(job_dir)?.into_iter().filter(|entry| allowed.contains(&entry.generation)) {
        let reason = match open(&entry.path) {
            Ok((identity, found)) if identity == (entry.generation, entry.step) => return Ok(Some(found)),
            Ok(_) => "it was renamed: its state is of another generation or step".to_owned(),
            Err(error) if error.is_damage() => error.to_string(),
            Err(error) => return Err(error),
        };
        tracing::warn!(path = %entry.path.display(), reason, "skipping a damaged checkpoint");
    }
    Ok(None)
}
