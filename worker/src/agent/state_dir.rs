//! The agent's folder: a lock against a second agent, assignments, logs.
//!
//! ```text
//! lock                      held while an agent lives; names its process
//! run/<job>/g0001-r000.json assignments, removed at the next start
//! logs/<job>/g0001-r000.log trainers' output, the newest jobs' kept
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};

use super::key::RankKey;

/// Jobs whose logs are kept.
const KEPT_JOB_LOGS: usize = 200;

/// See the module. The lock ends with this value.
#[derive(Debug)]
pub(crate) struct StateDir {
    root: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the folder where it is missing, and takes it.
    pub(crate) fn lock(root: &Path) -> anyhow::Result<Self> {
        let what = || format!("cannot use state_dir {}", root.display());
        for folder in ["run", "logs"] {
            fs::create_dir_all(root.join(folder)).with_context(what)?;
        }
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(root.join("lock"))
            .with_context(what)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Only for the message.
                let _ = lock.read_to_string(&mut holder);
                bail!(
                    "state_dir {} is in use by another agent (process {}): give each agent its own",
                    root.display(),
                    holder.trim()
                );
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(what),
        }
        lock.set_len(0).with_context(what)?;
        lock.rewind().with_context(what)?;
        writeln!(lock, "{}", std::process::id()).with_context(what)?;
        let run = root.join("run");
        fs::remove_dir_all(&run).and_then(|()| fs::create_dir(&run)).with_context(what)?;
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    /// Where a trainer's assignment stands.
    pub(crate) fn assignment_file(&self, key: &RankKey) -> PathBuf {
        self.root.join("run").join(key.of.job.as_str()).join(format!("{}.json", key.file_stem()))
    }

    /// Where a trainer's output goes.
    pub(crate) fn log_file(&self, key: &RankKey) -> PathBuf {
        self.root.join("logs").join(key.of.job.as_str()).join(format!("{}.log", key.file_stem()))
    }

    /// Opens a trainer's log to append to; a new job's first log makes room among the old ones.
    pub(crate) fn open_log(&self, key: &RankKey) -> anyhow::Result<File> {
        let path = self.log_file(key);
        let folder = self.root.join("logs").join(key.of.job.as_str());
        if !folder.exists() {
            trim(&self.root.join("logs"), KEPT_JOB_LOGS.saturating_sub(1));
        }
        fs::create_dir_all(&folder)
            .and_then(|()| OpenOptions::new().append(true).create(true).open(&path))
            .with_context(|| format!("cannot open log {}", path.display()))
    }
}

/// Deletes all but the folders written to last.
fn trim(logs: &Path, keep: usize) {
    let Ok(entries) = fs::read_dir(logs) else { return };
    let mut folders: Vec<_> =
        entries.flatten().map(|entry| (last_written(&entry.path()), entry.path())).collect();
    folders.sort();
    let surplus = folders.len().saturating_sub(keep);
    for (_, folder) in folders.into_iter().take(surplus) {
        if let Err(error) = fs::remove_dir_all(&folder) {
            tracing::warn!("cannot delete old log folder {}: {error}", folder.display());
        }
    }
}

fn last_written(folder: &Path) -> Option<SystemTime> {
    fs::read_dir(folder).ok()?.flatten().filter_map(|file| file.metadata().ok()?.modified().ok()).max()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anybit_shared::ids::{Generation, JobId, Rank};

    use super::*;
    use crate::agent::key::GenerationKey;

    fn key(job: &str) -> RankKey {
        let of = GenerationKey { job: JobId::new(job).unwrap(), generation: Generation(1) };
        RankKey { of, rank: Rank(2) }
    }

    #[test]
    fn a_second_agent_is_refused_by_name_until_the_first_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let first = StateDir::lock(root.path()).unwrap();
        let error = StateDir::lock(root.path()).unwrap_err().to_string();
        assert!(error.contains("in use") && error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        StateDir::lock(root.path()).unwrap();
    }

    #[test]
    fn old_assignments_go_and_old_logs_stay() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::lock(root.path()).unwrap();
        state.open_log(&key("j")).unwrap().write_all(b"hello").unwrap();
        let assignment = state.assignment_file(&key("j"));
        fs::create_dir_all(assignment.parent().unwrap()).unwrap();
        fs::write(&assignment, "{}").unwrap();
        drop(state);
        let state = StateDir::lock(root.path()).unwrap();
        assert!(!assignment.exists());
        state.open_log(&key("j")).unwrap().write_all(b" again").unwrap();
        assert_eq!(fs::read(root.path().join("logs/j/g0001-r002.log")).unwrap(), b"hello again");
    }

    #[test]
    fn only_the_folders_written_last_are_kept() {
        let root = tempfile::tempdir().unwrap();
        for (age, job) in ["new", "old", "older"].into_iter().enumerate() {
            fs::create_dir(root.path().join(job)).unwrap();
            let file = File::create(root.path().join(job).join("g0001-r000.log")).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age as u64 * 60)).unwrap();
        }
        trim(root.path(), 1);
        let left: Vec<_> = fs::read_dir(root.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["new"]);
    }
}
