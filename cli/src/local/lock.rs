//! One `anybit up` a state folder.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::Failure;

/// Holds the folder until dropped; the kernel lets go of it when the process ends, however it does.
pub(crate) struct StateLock {
    _file: Flock<File>,
}

impl StateLock {
    /// Makes the folder where need be, and takes it.
    pub(crate) fn take(folder: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the state folder {}", folder.display()))?;
        let path = folder.join("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                let mark = |file: &mut File| {
                    file.set_len(0)?;
                    file.rewind()?;
                    writeln!(file, "{}", std::process::id())
                };
                mark(&mut file).with_context(|| format!("cannot write {}", path.display()))?;
                Ok(Self { _file: file })
            }
            Err((file, Errno::EWOULDBLOCK)) => Err(taken(folder, file)),
            Err((_, error)) => {
                Err(anyhow::Error::new(error).context(format!("cannot lock {}", path.display())).into())
            }
        }
    }
}

fn taken(folder: &Path, file: File) -> Failure {
    let mut holder = String::new();
    let _ = file.take(32).read_to_string(&mut holder);
    let who = match holder.trim() {
        "" => String::new(),
        pid => format!(" (process {pid})"),
    };
    Failure::Usage(format!(
        "another anybit{who} uses the state folder {}: stop it, or give another --state-dir",
        folder.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_taken_once_and_free_again_afterwards() {
        let folder = tempfile::tempdir().expect("folder");
        let lock = StateLock::take(folder.path()).expect("free");
        let refused = StateLock::take(folder.path()).map(drop).expect_err("taken").to_string();
        assert!(refused.contains(&format!("(process {})", std::process::id())), "{refused}");
        drop(lock);
        StateLock::take(folder.path()).expect("free again");
    }
}
