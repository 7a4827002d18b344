//! Where checkpoints lie.

use std::cmp::Reverse;
use std::fs::{self, DirEntry};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anybit_shared::ids::{Generation, GlobalStep};

use super::error::CheckpointError;

/// How the names of unfinished and of half-deleted folders begin.
const TEMPORARY: &str = ".tmp-";

/// A checkpoint's folder, its contents not looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The folder.
    pub path: PathBuf,
    /// From its name.
    pub generation: Generation,
    /// From its name.
    pub step: GlobalStep,
}

/// The folder of a checkpoint.
pub fn folder(job_dir: &Path, generation: Generation, step: GlobalStep) -> PathBuf {
    generation_folder(job_dir, generation).join(step_name(step))
}

/// The finished checkpoints of a job, the newest first: by generation, then by step. None where the
/// job has no folder yet.
pub fn list(job_dir: &Path) -> Result<Vec<Entry>, CheckpointError> {
    let mut entries = Vec::new();
    for (generation, path) in generations(job_dir)? {
        for child in children(&path)? {
            if let Some(step) = numbered(&child, "step-").map(GlobalStep)
                && child.file_name() == *step_name(step)
            {
                entries.push(Entry { path: child.path(), generation, step });
            }
        }
    }
    entries.sort_by_key(|entry| Reverse((entry.generation, entry.step)));
    Ok(entries)
}

/// The folders of a job's generations.
pub(super) fn generations(job_dir: &Path) -> Result<Vec<(Generation, PathBuf)>, CheckpointError> {
    let mut found = Vec::new();
    for child in children(job_dir)? {
        let number = numbered(&child, "g").and_then(|n| u32::try_from(n).ok());
        if let Some(generation) = number.map(Generation)
            && generation_folder(job_dir, generation) == child.path()
        {
            found.push((generation, child.path()));
        }
    }
    Ok(found)
}

pub(super) fn generation_folder(job_dir: &Path, generation: Generation) -> PathBuf {
    job_dir.join(format!("g{generation:05}"))
}

/// A sibling of a checkpoint's folder that no listing shows. `purpose` tells several apart.
pub(super) fn temporary(path: &Path, purpose: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{TEMPORARY}{name}-{purpose}-{}", std::process::id()))
}

/// Removes what killed writers and deleters left behind in a generation's folder.
pub(super) fn clean(generation_folder: &Path) -> Result<(), CheckpointError> {
    for child in children(generation_folder)? {
        if child.file_name().to_string_lossy().starts_with(TEMPORARY) {
            remove(&child.path());
        }
    }
    Ok(())
}

/// Removes a temporary folder. What resists costs disk space and nothing else, and is tried again
/// at the next write.
pub(super) fn remove(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), error = %e, "cannot remove a temporary checkpoint folder");
        }
        _ => {}
    }
}

fn step_name(step: GlobalStep) -> String {
    format!("step-{step:09}")
}

/// A folder's entries; none if it is not there.
fn children(folder: &Path) -> Result<Vec<DirEntry>, CheckpointError> {
    let error = CheckpointError::io("list", folder);
    match fs::read_dir(folder).and_then(Iterator::collect) {
        Ok(children) => Ok(children),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(error(e)),
    }
}

/// The number in the name of a folder (no link) `prefix` + digits.
fn numbered(child: &DirEntry, prefix: &str) -> Option<u64> {
    let name = child.file_name();
    let digits = name.to_str()?.strip_prefix(prefix)?;
    let folder = child.file_type().is_ok_and(|kind| kind.is_dir());
    (folder && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}
