//! Writing a checkpoint, all of it or nothing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::CheckpointInfo;
use super::error::CheckpointError;
use super::layout::{clean, folder, generations, remove, temporary};
use super::manifest::{FileRecord, MANIFEST, MODEL, Manifest, OPTIMIZER, STATE};
use super::state::TrainState;
use super::tensor::{NamedTensor, encode};

/// How far a write has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Begun,
    Model,
    Optimizer,
    State,
    Manifest,
    Renamed,
}

/// Writes a checkpoint under `job_dir`, in the folder that its state's generation and step name,
/// and returns when it would survive a power cut. One that is there already is replaced in one step.
/// Whatever goes wrong, no finished checkpoint is lost and no half of a new one is seen.
pub fn write(
    job_dir: &Path,
    state: &TrainState,
    model: &[NamedTensor],
    optimizer: &[NamedTensor],
) -> Result<CheckpointInfo, CheckpointError> {
    let outcome = write_in_stages(job_dir, state, model, optimizer, &mut |_| Ok(()));
    if outcome.is_err() {
        // Space is the likeliest thing to have run out.
        remove(&temporary(&folder(job_dir, state.generation, state.step), "new"));
    }
    outcome
}

/// As [`write`], telling `reached` of every stage and stopping where it fails, with nothing tidied.
pub(super) fn write_in_stages(
    job_dir: &Path,
    state: &TrainState,
    model: &[NamedTensor],
    optimizer: &[NamedTensor],
    reached: &mut dyn FnMut(Stage) -> Result<(), CheckpointError>,
) -> Result<CheckpointInfo, CheckpointError> {
    let (generation, step) = (state.generation, state.step);
    let path = folder(job_dir, generation, step);
    // A newer generation's folder is none of this one's business.
    for (_, older) in generations(job_dir)?.into_iter().filter(|(other, _)| *other <= generation) {
        clean(&older)?;
    }
    let mut draft = Draft::begin(&path)?;
    reached(Stage::Begun)?;
    draft.add(MODEL, &encode(model)?)?;
    reached(Stage::Model)?;
    draft.add(OPTIMIZER, &encode(optimizer)?)?;
    reached(Stage::Optimizer)?;
    draft.add(STATE, &state.to_json()?)?;
    reached(Stage::State)?;

    let manifest = Manifest::new(generation, step, draft.files.clone()).to_json()?;
    draft.add(MANIFEST, &manifest)?;
    sync(&draft.temporary)?;
    reached(Stage::Manifest)?;

    let bytes = draft.files.values().map(|file| file.bytes).sum();
    let record = draft.publish(&path)?;
    reached(Stage::Renamed)?;
    Ok(CheckpointInfo { path, generation, step, bytes, manifest_sha256: record.sha256 })
}

/// A checkpoint in the making.
struct Draft {
    temporary: PathBuf,
    files: BTreeMap<String, FileRecord>,
}

impl Draft {
    fn begin(path: &Path) -> Result<Self, CheckpointError> {
        let temporary = temporary(path, "new");
        create_folders(&temporary)?;
        Ok(Self { temporary, files: BTreeMap::new() })
    }

    fn add(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let path = self.temporary.join(name);
        let write = || {
            let mut file = File::create_new(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(CheckpointError::io("write", &path))?;
        self.files.insert(name.to_owned(), FileRecord::of(bytes));
        Ok(())
    }

    /// Gives it its name, and returns the manifest's record.
    fn publish(mut self, path: &Path) -> Result<FileRecord, CheckpointError> {
        match fs::rename(&self.temporary, path) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {
                replace(&self.temporary, path).map_err(CheckpointError::io("replace", path))?;
            }
            Err(e) => return Err(CheckpointError::io("rename a finished checkpoint to", path)(e)),
        }
        if let Some(parent) = path.parent() {
            sync(parent)?;
        }
        // Where an older checkpoint of this name was replaced, it is here now.
        remove(&self.temporary);
        self.files.remove(MANIFEST).ok_or_else(|| CheckpointError::Unsavable("it has no manifest".into()))
    }
}

/// Puts `new` in the place of the folder `path`; the old one ends under the name `new`.
fn replace(new: &Path, path: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, new, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => Ok(()),
        // A file system that cannot exchange names (some network ones): two renames, and a kill
        // between them costs this one checkpoint.
        Err(nix::Error::EINVAL | nix::Error::ENOSYS | nix::Error::EOPNOTSUPP) => {
            let old = temporary(path, "old");
            fs::rename(path, &old)?;
            fs::rename(new, path)?;
            remove(&old);
            Ok(())
        }
        Err(e) => Err(e.into()),
    }
}

/// Creates a folder and those above it, each synced into its parent.
fn create_folders(path: &Path) -> Result<(), CheckpointError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match fs::create_dir(path) {
        Ok(()) => parent.map_or(Ok(()), sync),
        Err(e) if e.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let Some(parent) = parent else { return Err(CheckpointError::io("create", path)(e)) };
            create_folders(parent)?;
            fs::create_dir(path).map_err(CheckpointError::io("create", path))?;
            sync(parent)
        }
        Err(e) => Err(CheckpointError::io("create", path)(e)),
    }
}

fn sync(folder: &Path) -> Result<(), CheckpointError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(CheckpointError::io("sync", folder))
}
