//! IDX files and data sets: what is right is read, what is wrong is named, nothing panics.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::data::idx::Idx;
use crate::data::{DataError, Dataset, Split};
use anybit_shared::spec::{DataFormat, DataSpec};
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

fn idx(dims: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, dims.len() as u8];
    bytes.extend(dims.iter().flat_map(|d| d.to_be_bytes()));
    bytes.extend(data);
    bytes
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Five grey images of 2 x 3.
fn images() -> Vec<u8> {
    idx(&[5, 2, 3], &(0..30).collect::<Vec<u8>>())
}

fn read(bytes: &[u8], dims: &[usize]) -> Result<Idx, DataError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, bytes).unwrap();
    Idx::read_limited(&file, dims, 1 << 20)
}

/// The complaint about a file, which must name it.
fn complaint(bytes: &[u8], dims: &[usize]) -> String {
    let text = read(bytes, dims).unwrap_err().to_string();
    let (file, rest) = text.split_once(": ").unwrap();
    assert!(file.ends_with("/file"), "{text}");
    rest.to_owned()
}

#[test]
fn plain_and_compressed_files_read_the_same() {
    let plain = read(&images(), &[3]).unwrap();
    assert_eq!(plain.dims, [5, 2, 3]);
    assert_eq!(plain.data, (0..30).collect::<Vec<u8>>());
    let packed = read(&gz(&images()), &[3, 4]).unwrap();
    assert_eq!((packed.dims, packed.data), (plain.dims, plain.data));
    let colour = read(&idx(&[2, 1, 2, 3], &[7; 12]), &[3, 4]).unwrap();
    assert_eq!(colour.dims, [2, 1, 2, 3]);
}

#[test]
fn members_of_a_gzip_file_are_joined() {
    let bytes = images();
    let packed = [gz(&bytes[..20]), gz(&bytes[20..])].concat();
    assert_eq!(read(&packed, &[3]).unwrap().data.len(), 30);
}

#[test]
fn every_complaint_names_the_byte_and_what_was_expected() {
    let full = images();
    let cases: &[(&[u8], &str)] = &[
        (b"", "byte 0: expected 4 bytes: the IDX magic number, found the end of the file after 0 of them"),
        (&full[..10], "byte 8: expected 4 bytes: a dimension, found the end of the file after 2 of them"),
        (&full[..40], "byte 40: expected 30 bytes of elements (5 x 2 x 3), found the end of the file"),
        (
            &idx(&[5, 2, 3], &[0; 31]),
            "byte 46: expected the end after 30 bytes of elements (5 x 2 x 3), found more bytes",
        ),
        (
            b"<html>no such page</html>",
            "byte 0: expected the two zero bytes that begin an IDX file, found 0x3c 0x68",
        ),
        (&[0, 0, 0x0d, 3], "byte 2: expected element type 0x08 (unsigned byte), found 0x0d"),
        (&idx(&[30], &[0; 30]), "byte 3: expected 3 or 4 dimensions, found 1"),
        (&idx(&[5, 0, 3], &[]), "byte 8: expected dimension 1 to be at least 1, found 0"),
        (&idx(&[0, 2, 3], &[]), "byte 4: expected dimension 0 to be at least 1, found 0"),
        (&idx(&[1, 2, 3, 4], &[0; 24]), "byte 16: expected 3 channels as the last dimension, found 4"),
        (
            &idx(&[u32::MAX, 16_384, 16_384], &[]),
            "byte 4: expected at most 1048576 bytes of elements, found dimensions 4294967295 x 16384 x 16384",
        ),
        (&idx(&[1, 1, 1 << 20], &[]), "byte 12: expected dimension 2 to be at most 16384, found 1048576"),
    ];
    for (bytes, expected) in cases {
        assert_eq!(complaint(bytes, &[3, 4]), *expected);
        let packed = complaint(&gz(bytes), &[3, 4]);
        assert_eq!(packed, format!("decompressed {expected}"));
    }
}

#[test]
fn damaged_compression_is_told_from_a_damaged_file() {
    let packed = gz(&images());
    for cut in 2..packed.len() {
        let text = complaint(&packed[..cut], &[3]);
        assert!(text.contains("damaged gzip data"), "cut at {cut}: {text}");
    }
    let mut flipped = packed.clone();
    let crc = flipped.len() - 5;
    flipped[crc] ^= 1;
    assert!(complaint(&flipped, &[3]).starts_with("decompressed byte 46: damaged gzip data"));
    let trailing = [packed, b"garbage".to_vec()].concat();
    assert!(complaint(&trailing, &[3]).contains("damaged gzip data"));
}

#[test]
fn a_decompression_bomb_is_read_no_further_than_promised() {
    // A header that promises 30 bytes, a megabyte of zeros, and damage after that: who reads on
    // meets the damage.
    let mut packed = gz(&idx(&[5, 2, 3], &[0; 1 << 20]));
    packed.truncate(packed.len() - 8);
    let text = complaint(&packed, &[3]);
    assert!(text.ends_with("found more bytes"), "{text}");
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let text = Idx::read(folder.path(), &[3]).unwrap_err().to_string();
    assert!(text.ends_with("not a regular file"), "{text}");
    let text = Idx::read(&folder.path().join("absent"), &[3]).unwrap_err().to_string();
    assert!(text.contains("absent: No such file"), "{text}");
}

proptest! {
    #[test]
    fn mutations_never_panic(
        packed: bool,
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        tail in proptest::collection::vec(any::<u8>(), 0..4),
    ) {
        let original = read(&images(), &[3]).unwrap();
        let mut bytes = if packed { gz(&images()) } else { images() };
        for (place, value) in flips {
            let at = place.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.extend(tail);
        if let Ok(read) = read(&bytes, &[3, 4]) {
            prop_assert_eq!(read.data.len(), read.dims.iter().product::<usize>());
            // The gzip checksum lets no change of the contents through.
            prop_assert!(!packed || read.data == original.data || bytes[..2] != [0x1f, 0x8b]);
        }
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..3u8) {
        let prefix: &[u8] = match kind { 0 => &[], 1 => &[0, 0, 8, 3], _ => &[0x1f, 0x8b, 8, 0] };
        let _ = read(&[prefix, &bytes].concat(), &[3, 4]);
    }
}

/// A data root with a set in folder `set`.
struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        let root = Self(tempfile::tempdir().unwrap());
        fs::create_dir(root.path("set")).unwrap();
        root.put("set/train-images-idx3-ubyte", &images());
        root.put("set/train-labels-idx1-ubyte", &idx(&[5], &[0, 1, 2, 3, 4]));
        root.put("set/t10k-images-idx4-ubyte.gz", &gz(&idx(&[2, 1, 1, 3], &[1, 2, 3, 4, 5, 6])));
        root.put("set/t10k-labels-idx1-ubyte.gz", &gz(&idx(&[2], &[1, 0])));
        root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn open(&self, path: &str, classes: u32, split: Split) -> Result<Dataset, DataError> {
        open(path, classes, &[self.0.path()], split)
    }

    fn train(&self) -> Result<Dataset, DataError> {
        self.open("set", 5, Split::Train)
    }
}

fn open(path: &str, classes: u32, roots: &[&Path], split: Split) -> Result<Dataset, DataError> {
    let spec = DataSpec { format: DataFormat::Idx, path: path.into(), image_size: 8, mean: 0.5, std: 0.5 };
    let roots: Vec<PathBuf> = roots.iter().map(|root| root.to_path_buf()).collect();
    Dataset::open(&spec, classes, &roots, split)
}

#[test]
fn both_splits_open_in_their_kinds_of_file() {
    let root = Root::new();
    let train = root.train().unwrap();
    assert_eq!(train.count().get(), 5);
    let (image, label) = train.get(3).unwrap();
    assert_eq!((image.height, image.width, image.channels, label), (2, 3, 1, 3));
    assert_eq!(image.pixels, [18, 19, 20, 21, 22, 23]);
    assert!(matches!(train.get(5), Err(DataError::Index { index: 5, len: 5 })));

    let test = root.open("set", 5, Split::Test).unwrap();
    let (image, label) = test.get(1).unwrap();
    assert_eq!((image.channels, image.pixels, label), (3, [4, 5, 6].as_slice(), 0));
}

#[test]
fn a_label_without_a_class_names_its_record_and_byte() {
    let root = Root::new();
    let text = root.open("set", 3, Split::Train).unwrap_err().to_string();
    let expected =
        "train-labels-idx1-ubyte: byte 11: record 3 has the label 3, but model.classes = 3 allows 0 to 2";
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn unequal_counts_name_both_files() {
    let root = Root::new();
    root.put("set/train-labels-idx1-ubyte", &idx(&[4], &[0; 4]));
    let text = root.train().unwrap_err().to_string();
    assert!(text.contains("train-images-idx3-ubyte holds 5 images, but"), "{text}");
    assert!(text.ends_with("train-labels-idx1-ubyte holds 4 labels"), "{text}");
}

#[test]
fn a_missing_file_lists_the_names_looked_for() {
    let root = Root::new();
    fs::remove_file(root.path("set/train-images-idx3-ubyte")).unwrap();
    let text = root.train().unwrap_err().to_string();
    for name in ["idx3-ubyte,", "idx3-ubyte.gz,", "idx4-ubyte,", "idx4-ubyte.gz is"] {
        assert!(text.contains(&format!("train-images-{name}")), "{text}");
    }
}

#[test]
fn roots_are_tried_in_order() {
    let (first, second) = (tempfile::tempdir().unwrap(), Root::new());
    let absent = first.path().join("not-mounted");
    let train = open("set", 5, &[&absent, first.path(), second.0.path()], Split::Train);
    assert_eq!(train.unwrap().count().get(), 5);
    let text = open("else", 5, &[first.path(), second.0.path()], Split::Train).unwrap_err().to_string();
    assert!(
        text.contains("\"else\" does not exist on this worker")
            && text.contains(first.path().to_str().unwrap()),
        "{text}"
    );
    assert!(matches!(open("set", 5, &[], Split::Train), Err(DataError::NoRoots)));
}

#[test]
fn nothing_outside_the_roots_is_opened() {
    let (root, secret) = (Root::new(), Root::new());
    let inside = root.path("set");
    assert!(root.open(inside.to_str().unwrap(), 5, Split::Train).is_ok(), "absolute, inside a root");
    assert!(root.open("set/../set", 5, Split::Train).is_ok(), "leaves and comes back");

    let outside = secret.path("set");
    symlink(&outside, root.path("link")).unwrap();
    let up = format!("../{}/set", secret.0.path().file_name().unwrap().to_str().unwrap());
    for path in [outside.to_str().unwrap(), "link", &up] {
        let error = root.open(path, 5, Split::Train).unwrap_err();
        assert!(matches!(error, DataError::Outside { .. }), "{path}: {error}");
        assert!(error.to_string().contains("outside the worker's data roots"), "{error}");
    }

    // A file that is a link.
    let labels = root.path("set/train-labels-idx1-ubyte");
    fs::remove_file(&labels).unwrap();
    symlink(secret.path("set/train-labels-idx1-ubyte"), &labels).unwrap();
    assert!(matches!(root.train(), Err(DataError::Outside { .. })));
    // A sibling whose name begins with the root's is not inside it.
    let twin = root.0.path().with_extension("twin");
    fs::create_dir(&twin).unwrap();
    let error = root.open(twin.to_str().unwrap(), 5, Split::Train).unwrap_err();
    fs::remove_dir(&twin).unwrap();
    assert!(matches!(error, DataError::Outside { .. }), "{error}");
}

#[test]
fn odd_paths_are_errors() {
    let root = Root::new();
    for path in ["", "nul\0byte", "set/train-labels-idx1-ubyte", "\u{202e}", "a/../../../../../../.."] {
        assert!(root.open(path, 5, Split::Train).is_err(), "{path:?}");
    }
    symlink("loop", root.path("loop")).unwrap();
    assert!(matches!(root.open("loop", 5, Split::Train), Err(DataError::Io { .. })));
}

#[test]
fn the_digits_that_ship_are_whole() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (split, count, classes) in [
        (Split::Train, 1437, [141, 146, 141, 141, 151, 149, 143, 141, 139, 145]),
        (Split::Test, 360, [37, 36, 36, 42, 30, 33, 38, 38, 35, 35]),
    ] {
        let digits = open("presets/data/digits", 10, &[&root], split).unwrap();
        assert_eq!(digits.count().get(), count);
        let mut found = [0; 10];
        for index in 0..count {
            let (image, label) = digits.get(index).unwrap();
            assert_eq!((image.height, image.width, image.channels), (8, 8, 1));
            assert!(image.pixels.iter().any(|&pixel| pixel >= 200), "a blank image");
            found[usize::from(label)] += 1;
        }
        assert_eq!(found, classes);
    }
}
