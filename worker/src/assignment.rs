//! What an agent hands to a trainer process: one JSON file, readable by its owner only.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anybit_shared::ids::{Generation, JobId, Rank};
use anybit_shared::spec::JobSpec;
use anyhow::Context;
use serde::{Deserialize, Serialize};

/// One rank's part in one generation of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// The job.
    pub job: JobId,
    /// The attempt that this trainer belongs to.
    pub generation: Generation,
    /// This trainer's place, `0..world_size`.
    pub rank: Rank,
    /// Trainers of this generation.
    pub world_size: u32,
    /// The resolved spec.
    pub spec: JobSpec,
    /// `host:port` of the rendezvous store.
    pub store_address: String,
    /// The job's folder under the checkpoint root.
    pub checkpoint_dir: PathBuf,
    /// Generations whose checkpoints may be restored, ascending.
    pub restorable_generations: Vec<Generation>,
    /// Folders that the spec's data path is looked up in.
    pub data_roots: Vec<PathBuf>,
    /// Network interface or address for the collectives; by default the one that the host's name
    /// resolves to.
    pub interface: Option<String>,
    /// Compute threads.
    pub threads: u32,
    /// A collective that takes longer fails.
    pub collective_timeout: Duration,
    /// All ranks must have met within this time.
    pub rendezvous_timeout: Duration,
    /// Memory limit in MiB, for the trainer to set on itself.
    pub memory_limit_mib: Option<u64>,
}

impl Assignment {
    /// Reads an assignment file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read assignment {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("assignment {} is not valid", path.display()))
    }

    /// Writes an assignment file with mode 0600, and the folder above it where it is missing.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let write = || -> anyhow::Result<()> {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            Ok(())
        };
        write().with_context(|| format!("cannot write assignment {}", path.display()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A small valid spec for this crate's tests.
    pub(crate) const SPEC: &str = r#"
name = "tiny"
[model]
name = "cnn8"
classes = 10
expand = 1
[train]
batch = 64
epochs = 1
optimizer = "adam"
learning_rate = 0.001
[data]
path = "digits"
image_size = 40
"#;

    fn assignment() -> Assignment {
        let mut spec: JobSpec = toml::from_str(SPEC).unwrap();
        // Not exact in a decimal parser that rounds twice.
        spec.train.learning_rate = 0.1 + 0.2;
        spec.train.seed = u64::MAX;
        Assignment {
            job: JobId::new("j1").unwrap(),
            generation: Generation(3),
            rank: Rank(1),
            world_size: 2,
            spec,
            store_address: "10.0.0.1:4711".to_owned(),
            checkpoint_dir: "/c/j1".into(),
            restorable_generations: vec![Generation(1), Generation(2)],
            data_roots: vec!["/data".into()],
            interface: Some("eth0".to_owned()),
            threads: 2,
            collective_timeout: Duration::from_millis(60_500),
            rendezvous_timeout: Duration::from_secs(300),
            memory_limit_mib: None,
        }
    }

    #[test]
    fn what_was_written_is_read_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/j1/g0003-r001.json");
        assignment().write(&path).unwrap();
        assert_eq!(Assignment::read(&path).unwrap(), assignment());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_broken_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broken.json");
        fs::write(&path, "{\"job\": \"j1\"}").unwrap();
        let error = format!("{:#}", Assignment::read(&path).unwrap_err());
        assert!(error.contains("broken.json") && error.contains("generation"), "{error}");
    }
}
