//! Trainers' logs: one file a rank and generation, each byte written at its offset.
//!
//! A chunk that was written and acknowledged survives the coordinator's death; it is not synced
//! to disk, so the last seconds before a power cut may be lost.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anybit_shared::ids::{Generation, JobId, Rank};

/// A chunk may begin this far past the end of its file; the hole reads as zeros.
const MAX_GAP_BYTES: u64 = 1 << 20;
const SCAN_BYTES: u64 = 64 << 10;

/// One rank's log in one generation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogKey {
    /// The generation.
    pub generation: Generation,
    /// The rank.
    pub rank: Rank,
}

/// Why a chunk was refused.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// It would leave a hole.
    #[error("log offset {offset} lies too far past the end of the log, {length}")]
    Gap {
        /// Where it begins.
        offset: u64,
        /// The file's length.
        length: u64,
    },
    /// The file is as long as it may get.
    #[error("the log has reached its limit of {limit} bytes")]
    Full {
        /// The limit.
        limit: u64,
    },
    /// The file system's error.
    #[error("log file: {0}")]
    Io(#[from] io::Error),
}

/// The folder of all logs. Calls block; they are for `spawn_blocking`.
#[derive(Debug, Clone)]
pub struct LogFiles {
    root: PathBuf,
    max_bytes: u64,
}

impl LogFiles {
    /// Logs under this folder, each at most so long.
    pub fn new(root: PathBuf, max_bytes: u64) -> Self {
        Self { root, max_bytes }
    }

    fn path(&self, job: &JobId, key: &LogKey) -> PathBuf {
        let name = format!("g{:04}-r{:03}.log", key.generation.0, key.rank.0);
        self.root.join(job.as_str()).join(name)
    }

    /// Writes bytes at their offset; writing them again changes nothing.
    pub fn write(&self, job: &JobId, key: &LogKey, offset: u64, data: &[u8]) -> Result<(), LogError> {
        let path = self.path(job, key);
        let open = || OpenOptions::new().create(true).write(true).truncate(false).open(&path);
        let file = match open() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(self.root.join(job.as_str()))?;
                open()?
            }
            other => other?,
        };
        let length = file.metadata()?.len();
        if offset > length.saturating_add(MAX_GAP_BYTES) {
            return Err(LogError::Gap { offset, length });
        }
        if offset.saturating_add(data.len() as u64) > self.max_bytes {
            return Err(LogError::Full { limit: self.max_bytes });
        }
        file.write_all_at(data, offset)?;
        Ok(())
    }

    /// The logs of a job, by generation and rank.
    pub fn list(&self, job: &JobId) -> io::Result<Vec<LogKey>> {
        let entries = match fs::read_dir(self.root.join(job.as_str())) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut keys = Vec::new();
        for entry in entries {
            keys.extend(entry?.file_name().to_str().and_then(parse_name));
        }
        keys.sort();
        Ok(keys)
    }

    /// At most `max` bytes from an offset on; empty at the end.
    pub fn read(&self, job: &JobId, key: &LogKey, offset: u64, max: usize) -> io::Result<Vec<u8>> {
        let file = File::open(self.path(job, key))?;
        let mut data = vec![0; max];
        let got = file.read_at(&mut data, offset)?;
        data.truncate(got);
        Ok(data)
    }

    /// Where the last `lines` lines begin; `lines` is at least 1.
    pub fn offset_of_last(&self, job: &JobId, key: &LogKey, lines: u32) -> io::Result<u64> {
        last_lines(&self.path(job, key), lines)
    }
}

fn parse_name(name: &str) -> Option<LogKey> {
    let (generation, rank) = name.strip_prefix('g')?.strip_suffix(".log")?.split_once("-r")?;
    Some(LogKey { generation: Generation(generation.parse().ok()?), rank: Rank(rank.parse().ok()?) })
}

fn last_lines(path: &Path, lines: u32) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut seen = 0;
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(SCAN_BYTES);
        let mut block = vec![0; (end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block)?;
        for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = start + index as u64 + 1;
            // The newline that ends the last line begins none.
            if after < length {
                seen += 1;
            }
            if seen == lines {
                return Ok(after);
            }
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn files() -> (tempfile::TempDir, LogFiles, JobId, LogKey) {
        let dir = tempfile::tempdir().unwrap();
        let files = LogFiles::new(dir.path().to_owned(), 4 << 20);
        (dir, files, JobId::new("j").unwrap(), LogKey { generation: Generation(1), rank: Rank(0) })
    }

    #[test]
    fn chunks_may_come_twice_and_out_of_order() {
        let (_dir, files, job, key) = files();
        files.write(&job, &key, 3, b"def").unwrap();
        files.write(&job, &key, 0, b"abc").unwrap();
        files.write(&job, &key, 0, b"abc").unwrap();
        assert_eq!(files.read(&job, &key, 0, 100).unwrap(), b"abcdef");
        assert_eq!(files.read(&job, &key, 4, 1).unwrap(), b"e");
        assert_eq!(files.read(&job, &key, 6, 9).unwrap(), b"");
    }

    #[test]
    fn holes_and_endless_logs_are_refused() {
        let (_dir, files, job, key) = files();
        assert!(matches!(files.write(&job, &key, u64::MAX, b"a"), Err(LogError::Gap { .. })));
        assert!(matches!(files.write(&job, &key, 2 << 20, b"a"), Err(LogError::Gap { .. })));
        files.write(&job, &key, 0, &vec![b'x'; 4 << 20]).unwrap();
        assert!(matches!(files.write(&job, &key, 4 << 20, b"a"), Err(LogError::Full { .. })));
    }

    #[test]
    fn logs_are_listed_in_order() {
        let (dir, files, job, _) = files();
        assert!(files.list(&job).unwrap().is_empty());
        for (generation, rank) in [(2, 0), (1, 1), (1, 0), (12345, 1234)] {
            let key = LogKey { generation: Generation(generation), rank: Rank(rank) };
            files.write(&job, &key, 0, b"x").unwrap();
        }
        std::fs::write(dir.path().join("j/notes.txt"), "x").unwrap();
        let listed: Vec<_> = files.list(&job).unwrap().iter().map(|k| (k.generation.0, k.rank.0)).collect();
        assert_eq!(listed, [(1, 0), (1, 1), (2, 0), (12345, 1234)]);
        assert!(dir.path().join("j/g0001-r000.log").exists());
    }

    proptest! {
        #[test]
        fn the_last_lines_are_those_that_a_split_gives(
            text in prop::collection::vec(prop_oneof![Just("\n"), Just("a"), Just("bc\n")], 0..60),
            lines in 1..10u32,
        ) {
            let (_dir, files, job, key) = files();
            let text: String = text.concat();
            files.write(&job, &key, 0, text.as_bytes()).unwrap();
            let offset = files.offset_of_last(&job, &key, lines).unwrap() as usize;
            let all: Vec<&str> = text.split_inclusive('\n').collect();
            let expected = all[all.len().saturating_sub(lines as usize)..].concat();
            prop_assert_eq!(&text[offset..], expected);
        }
    }
}
