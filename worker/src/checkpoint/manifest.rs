//! The manifest: which files a checkpoint has, with size and SHA-256 of each.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anybit_shared::ids::{Generation, GlobalStep};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::CheckpointError;
use super::state::{FORMAT_VERSION, check_version};

pub(super) const MODEL: &str = "model.safetensors";
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";
pub(super) const STATE: &str = "state.json";
pub(super) const MANIFEST: &str = "manifest.json";

/// Far more than three files need.
const MAX_BYTES: u64 = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format_version: u32,
    pub(super) generation: Generation,
    pub(super) step: GlobalStep,
    pub(super) files: BTreeMap<String, FileRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileRecord {
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

impl FileRecord {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, sha256: hex(&Sha256::digest(bytes)) }
    }
}

impl Manifest {
    pub(super) fn new(generation: Generation, step: GlobalStep, files: BTreeMap<String, FileRecord>) -> Self {
        Self { format_version: FORMAT_VERSION, generation, step, files }
    }

    pub(super) fn to_json(&self) -> Result<Vec<u8>, CheckpointError> {
        let mut json =
            serde_json::to_vec_pretty(self).map_err(|e| CheckpointError::Unsavable(e.to_string()))?;
        json.push(b'\n');
        Ok(json)
    }

    /// Reads the manifest of the checkpoint in `folder`, and its bytes.
    pub(super) fn read(folder: &Path) -> Result<(Self, Vec<u8>), CheckpointError> {
        let path = folder.join(MANIFEST);
        let mut json = Vec::new();
        let file = File::open(&path).map_err(CheckpointError::io("open", &path))?;
        file.take(MAX_BYTES + 1).read_to_end(&mut json).map_err(CheckpointError::io("read", &path))?;
        if let Err(other_version) = check_version(&path, &json) {
            // A format has one version: where the state's is ours, the manifest's is a flipped bit.
            let state = folder.join(STATE);
            let bytes = std::fs::read(&state).map_err(CheckpointError::io("read", &state))?;
            check_version(&state, &bytes)?;
            return Err(CheckpointError::damaged(folder, other_version.to_string()));
        }
        let damaged = |why: String| CheckpointError::damaged(folder, format!("{MANIFEST}: {why}"));
        let manifest: Self = serde_json::from_slice(&json).map_err(|e| damaged(e.to_string()))?;
        // Nothing hashes the manifest itself: its one legal spelling finds changes that JSON's
        // grammar would forgive.
        if manifest.to_json()? != json {
            return Err(damaged("it was changed after it was written".into()));
        }
        if !manifest.files.keys().map(String::as_str).eq([MODEL, OPTIMIZER, STATE]) {
            return Err(damaged(format!(
                "it must list {MODEL}, {OPTIMIZER} and {STATE}, no more and no less"
            )));
        }
        Ok((manifest, json))
    }

    /// Opens the file `name` of the checkpoint in `folder`, if its size is right.
    pub(super) fn open(&self, folder: &Path, name: &str) -> Result<Checked<'_>, CheckpointError> {
        let Some(record) = self.files.get(name) else {
            return Err(CheckpointError::damaged(folder, format!("{name} is not in the manifest")));
        };
        let path = folder.join(name);
        let meta = std::fs::metadata(&path).map_err(CheckpointError::io("open", &path))?;
        if !meta.is_file() || meta.len() != record.bytes {
            let reason = format!("{name} has {} bytes in place of {}", meta.len(), record.bytes);
            return Err(CheckpointError::damaged(folder, reason));
        }
        let file = File::open(&path).map_err(CheckpointError::io("open", &path))?;
        Ok(Checked { file, record, hash: Sha256::new(), read: 0 })
    }
}

/// A file being read and hashed.
pub(super) struct Checked<'a> {
    file: File,
    record: &'a FileRecord,
    hash: Sha256,
    read: u64,
}

impl Checked<'_> {
    /// Its contents, verified.
    pub(super) fn contents(mut self, folder: &Path, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let mut bytes = Vec::with_capacity(self.record.bytes as usize);
        let limited = self.file.by_ref().take(self.record.bytes + 1).read_to_end(&mut bytes);
        limited.map_err(CheckpointError::io("read", &folder.join(name)))?;
        self.update(&bytes);
        self.finish(folder, name)?;
        Ok(bytes)
    }

    /// Verifies it without keeping it.
    pub(super) fn check(mut self, folder: &Path, name: &str) -> Result<(), CheckpointError> {
        let mut buffer = vec![0; 1 << 18];
        loop {
            let read = self.file.read(&mut buffer);
            match read.map_err(CheckpointError::io("read", &folder.join(name)))? {
                0 => return self.finish(folder, name),
                n => self.update(&buffer[..n]),
            }
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.read += bytes.len() as u64;
    }

    fn finish(self, folder: &Path, name: &str) -> Result<(), CheckpointError> {
        if self.read != self.record.bytes || hex(&self.hash.finalize()) != self.record.sha256 {
            return Err(CheckpointError::damaged(folder, format!("{name} does not match its SHA-256")));
        }
        Ok(())
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
