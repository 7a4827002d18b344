//! What can go wrong with a checkpoint.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}{}", .path.display(), remedy(.source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The checkpoint is not as it was written, or was never finished.
    #[error("checkpoint {} is damaged: {reason}", .path.display())]
    Damaged {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Written by another version of the program.
    #[error("{} has format version {found}, and this program reads {supported}: use the version that wrote it", .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The version understood.
        supported: u32,
    },
    /// What should be saved cannot be.
    #[error("cannot save this checkpoint: {0}")]
    Unsavable(String),
}

impl CheckpointError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(super) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), reason: reason.into() }
    }

    /// Whether a restart, perhaps on another host, may not meet this again. What a person must
    /// mend (permissions, space, the format's version) is none of the machine's.
    pub fn is_machines_fault(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Io { source, .. } => !must_be_mended(source.kind()),
            Self::Version { .. } | Self::Unsavable(_) => false,
        }
    }

    /// Whether the checkpoint itself is bad, so that an older one must serve. Anything else (no
    /// permission, too many open files, a newer format) would hide a good checkpoint if it were
    /// skipped, and training would silently begin again from an older one.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Io { source, .. } => {
                matches!(
                    source.kind(),
                    ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory
                ) || source.raw_os_error() == Some(nix::libc::EIO)
            }
            Self::Version { .. } | Self::Unsavable(_) => false,
        }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "; free some space there, lower checkpoint.keep, or give the worker another checkpoint folder"
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "; give the worker's user access to it, or the worker another checkpoint folder"
        }
        _ => "",
    }
}

/// What stays so until a person changes it.
fn must_be_mended(kind: ErrorKind) -> bool {
    use ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(kind, PermissionDenied | ReadOnlyFilesystem | StorageFull | QuotaExceeded)
}
