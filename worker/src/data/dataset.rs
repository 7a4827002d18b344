//! A data set in memory, found under the worker's data roots.

use std::io::ErrorKind;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use anybit_shared::spec::{DataFormat, DataSpec};

use super::error::DataError;
use super::idx::Idx;

/// Which part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// What is trained on.
    Train,
    /// What is evaluated on.
    Test,
}

impl Split {
    /// How the MNIST family's file names begin.
    fn prefix(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "t10k",
        }
    }
}

/// An undecoded image: `height * width * channels` bytes, channels fastest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageRef<'a> {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// 1 (grey) or 3.
    pub channels: usize,
    /// The values.
    pub pixels: &'a [u8],
}

/// One part of a data set, checked in full: every label is one of the model's classes.
#[derive(Debug)]
pub struct Dataset {
    len: NonZeroU64,
    height: usize,
    width: usize,
    channels: usize,
    pixels: Vec<u8>,
    labels: Vec<u8>,
}

impl Dataset {
    /// Finds the spec's data set under `roots`, reads the files of one split and checks them.
    ///
    /// A relative path is tried against the roots in order; whatever it leads to (links and `..`
    /// resolved, the files themselves included) must lie inside a root.
    pub fn open(spec: &DataSpec, classes: u32, roots: &[PathBuf], split: Split) -> Result<Self, DataError> {
        let roots = Roots::new(roots)?;
        let folder = roots.resolve(&spec.path)?;
        match spec.format {
            DataFormat::Idx => Self::open_idx(&folder, classes, &roots, split),
        }
    }

    fn open_idx(folder: &Path, classes: u32, roots: &Roots, split: Split) -> Result<Self, DataError> {
        let prefix = split.prefix();
        let images_file = roots
            .find(folder, &[format!("{prefix}-images-idx3-ubyte"), format!("{prefix}-images-idx4-ubyte")])?;
        let labels_file = roots.find(folder, &[format!("{prefix}-labels-idx1-ubyte")])?;
        // The small file first: most mistakes are in it.
        let labels = Idx::read(&labels_file, &[1])?;
        if let Some(record) = labels.data.iter().position(|&label| u32::from(label) >= classes) {
            return Err(DataError::Label {
                at: labels.position(record),
                file: labels_file,
                record: record as u64,
                label: labels.data[record],
                classes,
            });
        }
        let images = Idx::read(&images_file, &[3, 4])?;
        let count = images.dims[0] as u64;
        match NonZeroU64::new(count) {
            Some(len) if images.dims[0] == labels.data.len() => Ok(Self {
                len,
                height: images.dims[1],
                width: images.dims[2],
                channels: images.dims.get(3).copied().unwrap_or(1),
                pixels: images.data,
                labels: labels.data,
            }),
            _ => Err(DataError::Count {
                images_file,
                images: count,
                labels_file,
                labels: labels.data.len() as u64,
            }),
        }
    }

    /// The number of samples.
    pub fn count(&self) -> NonZeroU64 {
        self.len
    }

    /// Sample `index`: its image and its label.
    pub fn get(&self, index: u64) -> Result<(ImageRef<'_>, u8), DataError> {
        if index >= self.len.get() {
            return Err(DataError::Index { index, len: self.len.get() });
        }
        let (index, size) = (index as usize, self.height * self.width * self.channels);
        let image = ImageRef {
            height: self.height,
            width: self.width,
            channels: self.channels,
            pixels: &self.pixels[index * size..(index + 1) * size],
        };
        Ok((image, self.labels[index]))
    }
}

/// The folders that data may come from, links resolved.
struct Roots {
    given: Vec<PathBuf>,
    real: Vec<PathBuf>,
}

impl Roots {
    fn new(given: &[PathBuf]) -> Result<Self, DataError> {
        if given.is_empty() {
            return Err(DataError::NoRoots);
        }
        // A root that is not there (a disk not mounted) holds nothing, and the others still count.
        let real = given.iter().filter_map(|root| root.canonicalize().ok()).collect();
        Ok(Self { given: given.to_vec(), real })
    }

    /// The folder that a spec's path means.
    fn resolve(&self, path: &str) -> Result<PathBuf, DataError> {
        for root in &self.real {
            // Joining an absolute path gives that path.
            let joined = root.join(path);
            match joined.canonicalize() {
                Ok(real) => return self.inside(path, real),
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(source) => return Err(DataError::Io { file: joined, source }),
            }
        }
        Err(DataError::NotFound { path: path.to_owned(), roots: self.given.clone() })
    }

    /// The first of the names, plain or `.gz`, that is in the folder.
    fn find(&self, folder: &Path, names: &[String]) -> Result<PathBuf, DataError> {
        let names: Vec<String> = names.iter().flat_map(|name| [name.clone(), format!("{name}.gz")]).collect();
        for name in &names {
            let file = folder.join(name);
            if file.symlink_metadata().is_ok() {
                let real =
                    file.canonicalize().map_err(|source| DataError::Io { file: file.clone(), source })?;
                return self.inside(&file.display().to_string(), real);
            }
        }
        Err(DataError::Missing { folder: folder.into(), names })
    }

    fn inside(&self, path: &str, real: PathBuf) -> Result<PathBuf, DataError> {
        if self.real.iter().any(|root| real.starts_with(root)) {
            Ok(real)
        } else {
            Err(DataError::Outside { path: path.to_owned(), real, roots: self.given.clone() })
        }
    }
}
