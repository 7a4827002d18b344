//! Checkpoints as they lie on disk: read by what the contract says, not by the product's code.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Parameters and running statistics.
pub const MODEL: &str = "model.safetensors";

/// A checkpoint's folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OnDisk {
    /// The generation that wrote it.
    pub generation: u32,
    /// Its step.
    pub step: u64,
    /// The folder.
    pub path: PathBuf,
}

/// The finished checkpoints under a job's folder, oldest first.
pub fn list(job_folder: &Path) -> Vec<OnDisk> {
    let mut found = Vec::new();
    for (generation, folder) in numbered(job_folder, "g") {
        for (step, path) in numbered(&folder, "step-") {
            found.push(OnDisk { generation: generation as u32, step, path });
        }
    }
    found.sort();
    found
}

fn numbered(folder: &Path, prefix: &str) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let number = |path: &Path| path.file_name()?.to_str()?.strip_prefix(prefix)?.parse().ok();
    entries.flatten().filter_map(|entry| Some((number(&entry.path())?, entry.path()))).collect()
}

/// SHA-256 in lowercase hex.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks every file against the manifest; returns the manifest's own hash.
pub fn verify(folder: &Path) -> String {
    let bytes = fs::read(folder.join("manifest.json")).expect("manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    let files = manifest["files"].as_object().expect("files");
    assert!(files.contains_key(MODEL) && files.len() == 3, "{manifest}");
    for (name, record) in files {
        let content = fs::read(folder.join(name)).expect("file of the manifest");
        assert_eq!(record["bytes"], content.len(), "{name} in {}", folder.display());
        assert_eq!(record["sha256"], sha256(&content), "{name} in {}", folder.display());
    }
    sha256(&bytes)
}

/// The bytes of its weights and running statistics.
pub fn model(folder: &Path) -> Vec<u8> {
    fs::read(folder.join(MODEL)).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

/// Flips one bit in the middle of its weights.
pub fn damage(folder: &Path) {
    let path = folder.join(MODEL);
    let mut bytes = model(folder);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).expect("writable checkpoint");
}
