//! What can be wrong with a data set, told so that the person can mend it.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a data set could not be opened or a sample not be read.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The worker was started without data roots.
    #[error("no data roots are configured on this worker: name at least one folder that holds data sets")]
    NoRoots,
    /// A relative path that exists under no root.
    #[error("data.path {path:?} does not exist on this worker: looked for {}", candidates(.path, .roots))]
    NotFound {
        /// As the spec gives it.
        path: String,
        /// The roots, in the order tried.
        roots: Vec<PathBuf>,
    },
    /// A path that leaves the roots, perhaps through a link.
    #[error("{path:?} leads to {} outside the worker's data roots ({})", .real.display(), list(.roots))]
    Outside {
        /// As given.
        path: String,
        /// With links and `..` resolved.
        real: PathBuf,
        /// The roots.
        roots: Vec<PathBuf>,
    },
    /// None of the format's file names is there.
    #[error("{}: none of the files {} is there", .folder.display(), .names.join(", "))]
    Missing {
        /// Where was looked.
        folder: PathBuf,
        /// For which names.
        names: Vec<String>,
    },
    /// The operating system refused.
    #[error("{}: {source}", .file.display())]
    Io {
        /// The file or folder.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that is not what it should be.
    #[error("{}: {at}: expected {expected}, found {found}", .file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// Where in it.
        at: Position,
        /// What the format wants there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A compressed file that does not decompress.
    #[error("{}: {at}: damaged gzip data: {reason}", .file.display())]
    Gzip {
        /// The file.
        file: PathBuf,
        /// How much of it could be decompressed.
        at: Position,
        /// The decompressor's words.
        reason: String,
    },
    /// A label that the model has no class for.
    #[error(
        "{}: {at}: record {record} has the label {label}, but model.classes = {classes} allows 0 to {}",
        .file.display(), .classes.saturating_sub(1)
    )]
    Label {
        /// The label file.
        file: PathBuf,
        /// Where in it.
        at: Position,
        /// Which record, from 0.
        record: u64,
        /// Its label.
        label: u8,
        /// The model's classes.
        classes: u32,
    },
    /// Images and labels do not pair up.
    #[error("{} holds {images} images, but {} holds {labels} labels", .images_file.display(), .labels_file.display())]
    Count {
        /// The image file.
        images_file: PathBuf,
        /// Its records.
        images: u64,
        /// The label file.
        labels_file: PathBuf,
        /// Its records.
        labels: u64,
    },
    /// An index beyond the data set's end.
    #[error("sample {index} was asked for, but the data set has {len}")]
    Index {
        /// The index.
        index: u64,
        /// The number of samples.
        len: u64,
    },
    /// A decode thread could not be started.
    #[error("cannot start a decode thread: {0}")]
    Spawn(io::Error),
    /// The decode threads ended after an earlier error.
    #[error("decoding stopped after an earlier error")]
    Stopped,
}

impl DataError {
    /// Whether a restart, perhaps on another host, may not meet this again.
    pub fn is_machines_fault(&self) -> bool {
        use io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied};
        match self {
            Self::Io { source, .. } => {
                !matches!(source.kind(), NotFound | PermissionDenied | NotADirectory | IsADirectory)
            }
            Self::Spawn(_) | Self::Stopped => true,
            _ => false,
        }
    }
}

/// A byte of a file, or of what it decompresses to, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// In the file itself.
    Byte(u64),
    /// In the decompressed stream.
    Decompressed(u64),
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Byte(byte) => write!(f, "byte {byte}"),
            Self::Decompressed(byte) => write!(f, "decompressed byte {byte}"),
        }
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Where a path was looked for.
fn candidates(path: &str, roots: &[PathBuf]) -> String {
    roots.iter().map(|root| root.join(path).display().to_string()).collect::<Vec<_>>().join(", ")
}
