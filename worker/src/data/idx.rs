//! The IDX format of the MNIST family, plain or gzip-compressed (told by its magic, not its name).
//!
//! Two zero bytes, the element type (8: unsigned byte), the number of dimensions, then each
//! dimension as a big-endian `u32`, then the elements, the last dimension fastest. Images have the
//! dimensions N, H, W (grey) or N, H, W, 3 (colour); labels have N.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::error::{DataError, Position};

/// The most that a file may decompress to; what it promises is checked before it is read.
pub const MAX_BYTES: u64 = 4 << 30;
/// Pixels of an image's side: resizing takes memory by the side, however well the file compresses.
const MAX_SIDE: u32 = 16_384;

/// Elements of type `u8` with their dimensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idx {
    /// The dimensions, none of them 0.
    pub dims: Vec<usize>,
    /// As many elements as the dimensions' product.
    pub data: Vec<u8>,
    compressed: bool,
}

impl Idx {
    /// Reads a file that must have one of the given numbers of dimensions.
    pub fn read(file: &Path, dims: &[usize]) -> Result<Self, DataError> {
        Self::read_limited(file, dims, MAX_BYTES)
    }

    /// As [`Idx::read`], refusing files that promise more than `limit` bytes of elements.
    pub fn read_limited(file: &Path, dims: &[usize], limit: u64) -> Result<Self, DataError> {
        let mut source = Source::open(file)?;
        let shape = source.header(dims, limit)?;
        let header = 4 + 4 * shape.len() as u64;
        let promised = shape.iter().product::<usize>() as u64;
        // Room is made as the bytes arrive, so that a short file with a big promise costs nothing.
        let mut data = Vec::new();
        if let Some(held) = source.plain_bytes {
            data.reserve_exact(held.saturating_sub(header).min(promised) as usize);
        }
        source.read_up_to(promised + 1, &mut data)?;
        let text = || format!("{promised} bytes of elements ({})", times(&shape));
        if (data.len() as u64) < promised {
            return Err(source.wrong(header + data.len() as u64, text(), "the end of the file"));
        }
        if data.len() as u64 > promised {
            return Err(source.wrong(header + promised, format!("the end after {}", text()), "more bytes"));
        }
        data.shrink_to_fit();
        Ok(Self { dims: shape, data, compressed: source.compressed })
    }

    /// Where element `i` stands in the file.
    pub fn position(&self, i: usize) -> Position {
        position(self.compressed, (4 + 4 * self.dims.len() + i) as u64)
    }
}

/// An open file, decompressed on the fly where needed.
struct Source<'a> {
    file: &'a Path,
    compressed: bool,
    /// The size of an uncompressed file.
    plain_bytes: Option<u64>,
    reader: Box<dyn Read>,
    /// Bytes read so far.
    at: u64,
}

impl<'a> Source<'a> {
    fn open(file: &'a Path) -> Result<Self, DataError> {
        let io = |source| DataError::Io { file: file.into(), source };
        // Before opening: opening a named pipe would wait for a writer.
        let meta = std::fs::metadata(file).map_err(io)?;
        if !meta.is_file() {
            return Err(io(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let mut handle = File::open(file).map_err(io)?;
        let mut magic = Vec::with_capacity(2);
        handle.by_ref().take(2).read_to_end(&mut magic).map_err(io)?;
        handle.rewind().map_err(io)?;
        let compressed = magic == [0x1f, 0x8b];
        let reader: Box<dyn Read> = if compressed {
            Box::new(MultiGzDecoder::new(BufReader::with_capacity(1 << 16, handle)))
        } else {
            Box::new(BufReader::new(handle))
        };
        Ok(Self { file, compressed, plain_bytes: (!compressed).then_some(meta.len()), reader, at: 0 })
    }

    /// The dimensions.
    fn header(&mut self, dims: &[usize], limit: u64) -> Result<Vec<usize>, DataError> {
        let magic = self.read_word("the IDX magic number")?;
        if magic[..2] != [0, 0] {
            let found = format!("0x{:02x} 0x{:02x}", magic[0], magic[1]);
            return Err(self.wrong(0, "the two zero bytes that begin an IDX file", &found));
        }
        if magic[2] != 8 {
            return Err(self.wrong(2, "element type 0x08 (unsigned byte)", &format!("0x{:02x}", magic[2])));
        }
        let count = usize::from(magic[3]);
        if !dims.contains(&count) {
            let allowed = dims.iter().map(usize::to_string).collect::<Vec<_>>().join(" or ");
            return Err(self.wrong(3, format!("{allowed} dimensions"), &count.to_string()));
        }
        let mut shape = Vec::with_capacity(count);
        let mut product = 1u64;
        for axis in 0..count {
            let at = self.at;
            let size = u32::from_be_bytes(self.read_word("a dimension")?);
            if size == 0 {
                return Err(self.wrong(at, format!("dimension {axis} to be at least 1"), "0"));
            }
            if axis > 0 && size > MAX_SIDE {
                let expected = format!("dimension {axis} to be at most {MAX_SIDE}");
                return Err(self.wrong(at, expected, &size.to_string()));
            }
            product = product.saturating_mul(u64::from(size));
            shape.push(size as usize);
        }
        if product > limit || usize::try_from(product).is_err() {
            let found = format!("dimensions {}", times(&shape));
            return Err(self.wrong(4, format!("at most {limit} bytes of elements"), &found));
        }
        if count == 4 && shape[3] != 3 {
            return Err(self.wrong(16, "3 channels as the last dimension", &shape[3].to_string()));
        }
        Ok(shape)
    }

    fn read_word(&mut self, what: &str) -> Result<[u8; 4], DataError> {
        let at = self.at;
        let mut bytes = Vec::with_capacity(4);
        self.read_up_to(4, &mut bytes)?;
        let found = format!("the end of the file after {} of them", bytes.len());
        bytes.try_into().map_err(|_| self.wrong(at, format!("4 bytes: {what}"), &found))
    }

    /// Appends up to `count` bytes, fewer only where the file ends.
    fn read_up_to(&mut self, count: u64, into: &mut Vec<u8>) -> Result<(), DataError> {
        let before = into.len();
        let outcome = self.reader.by_ref().take(count).read_to_end(into);
        self.at += (into.len() - before) as u64;
        match outcome {
            Ok(_) => Ok(()),
            // The decompressor's own complaints carry no error number.
            Err(e) if self.compressed && e.raw_os_error().is_none() => Err(DataError::Gzip {
                file: self.file.into(),
                at: position(true, self.at),
                reason: e.to_string(),
            }),
            Err(source) => Err(DataError::Io { file: self.file.into(), source }),
        }
    }

    fn wrong(&self, at: u64, expected: impl Into<String>, found: &str) -> DataError {
        DataError::Format {
            file: self.file.into(),
            at: position(self.compressed, at),
            expected: expected.into(),
            found: found.into(),
        }
    }
}

fn position(compressed: bool, byte: u64) -> Position {
    if compressed { Position::Decompressed(byte) } else { Position::Byte(byte) }
}

fn times(dims: &[usize]) -> String {
    dims.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
}
