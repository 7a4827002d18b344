//! Deleting old checkpoints.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::error::CheckpointError;
use super::layout::{Entry, clean, generations, list, remove, temporary};
use super::read::verify;

/// Deletes the oldest checkpoints beyond the `keep` newest (at least one), and what killed writers
/// left in generations before the newest checkpoint's: in that one a write may be under way. The newest one that verifies is always
/// spared, however many damaged ones are newer. Returns the folders deleted; one that someone else
/// deletes at the same time is no error.
pub fn prune(job_dir: &Path, keep: u32) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut kept = list(job_dir)?;
    let Some(newest) = kept.first().map(|entry| entry.generation) else { return Ok(Vec::new()) };
    let mut old = kept.split_off(kept.len().min(keep.max(1) as usize));
    if !old.is_empty() && !kept.iter().any(is_valid) {
        // Everything newer is damaged.
        if let Some(spared) = old.iter().position(is_valid) {
            old.remove(spared);
        }
    }
    let mut deleted = Vec::with_capacity(old.len());
    // The oldest first: a kill in between leaves the newer ones.
    for Entry { path, .. } in old.into_iter().rev() {
        // Renamed first, so that a half-deleted one is never taken for a checkpoint.
        let doomed = temporary(&path, "deleted");
        match fs::rename(&path, &doomed) {
            Ok(()) => {
                remove(&doomed);
                deleted.push(path);
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(CheckpointError::io("delete", &path)(e)),
        }
    }
    for (generation, folder) in generations(job_dir)? {
        if generation >= newest {
            continue;
        }
        clean(&folder)?;
        // Fails, rightly, where anything is left in it.
        let _ = fs::remove_dir(folder);
    }
    Ok(deleted)
}

fn is_valid(entry: &Entry) -> bool {
    verify(&entry.path).is_ok_and(|info| (info.generation, info.step) == (entry.generation, entry.step))
}
