//! Small IDX data sets, the same on every run.

use std::fs;
use std::path::Path;

/// What a data set is made of.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Side of the square grey images.
    pub side: usize,
    /// Labels `0..classes`.
    pub classes: usize,
    /// Images to train on.
    pub train: usize,
    /// Images to evaluate on.
    pub test: usize,
}

/// Writes the four files of the MNIST family. An image is its class's wave under noise, so that
/// there is something to learn.
pub fn write(folder: &Path, shape: Shape) {
    fs::create_dir_all(folder).expect("data folder");
    for (prefix, count, seed) in [("train", shape.train, 1), ("t10k", shape.test, 2)] {
        let mut noise = Noise(seed);
        let labels: Vec<u8> = (0..count).map(|index| (index % shape.classes) as u8).collect();
        let mut pixels = Vec::with_capacity(count * shape.side * shape.side);
        for &label in &labels {
            for at in 0..shape.side * shape.side {
                let (row, column) = (at / shape.side, at % shape.side);
                let wave = (row * (usize::from(label) + 1) + column * (usize::from(label) % 3 + 1)) * 37;
                pixels.push(((wave % 192) as u64 + noise.next() % 64) as u8);
            }
        }
        let side = shape.side as u32;
        let images = idx(&[count as u32, side, side], &pixels);
        fs::write(folder.join(format!("{prefix}-images-idx3-ubyte")), images).expect("images");
        fs::write(folder.join(format!("{prefix}-labels-idx1-ubyte")), idx(&[count as u32], &labels))
            .expect("labels");
    }
}

/// An IDX file of bytes: magic with the number of dimensions, each dimension big-endian, the bytes.
fn idx(dimensions: &[u32], bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, dimensions.len() as u8];
    file.extend(dimensions.iter().flat_map(|dimension| dimension.to_be_bytes()));
    file.extend(bytes);
    file
}

/// Marsaglia's xorshift64.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }
}
