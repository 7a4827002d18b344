//! An image to the network's input: resized bilinearly, normalised, three channels, channels last.

use anybit_shared::spec::DataSpec;

use super::dataset::ImageRef;

/// Channels of every network's input; grey images are repeated.
pub const CHANNELS: usize = 3;

/// Resizes images to a square and normalises them: `(pixel / 255 - mean) / std`.
///
/// Enlarging equals PyTorch's `interpolate(mode="bilinear", align_corners=False)` of the float
/// image; shrinking is antialiased, as `antialias=True` there and in torchvision and PIL, so that
/// no pixel is dropped. Each axis is by itself. Nothing is allocated while the size of the images
/// that come in stays the same.
#[derive(Debug, Clone)]
pub struct Resizer {
    size: usize,
    /// Network value = 0..255 value * `factor` + `shift`.
    factor: f32,
    shift: f32,
    columns: Axis,
    rows: Axis,
    /// The image with its columns resized: source height x size x channels.
    wide: Vec<f32>,
    /// One finished row: size x channels.
    row: Vec<f32>,
}

impl Resizer {
    /// For images as a spec wants them.
    pub fn new(spec: &DataSpec) -> Self {
        Self {
            size: spec.image_size.max(1) as usize,
            factor: (1.0 / (255.0 * spec.std)) as f32,
            shift: (-spec.mean / spec.std) as f32,
            columns: Axis::default(),
            rows: Axis::default(),
            wide: Vec::new(),
            row: Vec::new(),
        }
    }

    /// Values of one resized image: `size * size * 3`.
    pub fn values(&self) -> usize {
        self.size * self.size * CHANNELS
    }

    /// Writes one image as rows x columns x 3 values into `out`, which must have room for exactly
    /// [`Resizer::values`].
    pub fn apply(&mut self, image: ImageRef<'_>, out: &mut [f32]) {
        debug_assert_eq!(out.len(), self.values());
        self.columns.fit(image.width, self.size);
        self.rows.fit(image.height, self.size);
        let stride = self.size * image.channels;
        self.wide.resize(image.height * stride, 0.0);
        self.row.resize(stride, 0.0);

        let sources = image.pixels.chunks_exact(image.width * image.channels);
        for (source, wide) in sources.zip(self.wide.chunks_exact_mut(stride)) {
            resize_columns(&self.columns, image.channels, source, wide);
        }
        for (y, out) in out.chunks_exact_mut(self.size * CHANNELS).enumerate() {
            let (start, weights) = self.rows.taps(y);
            self.row.fill(0.0);
            for (wide, &weight) in self.wide[start * stride..].chunks_exact(stride).zip(weights) {
                for (value, &from) in self.row.iter_mut().zip(wide) {
                    *value += weight * from;
                }
            }
            let normalised = |value: f32| value * self.factor + self.shift;
            if image.channels == CHANNELS {
                for (value, &from) in out.iter_mut().zip(&self.row) {
                    *value = normalised(from);
                }
            } else {
                let (pixels, _) = out.as_chunks_mut::<CHANNELS>();
                for (pixel, from) in pixels.iter_mut().zip(self.row.chunks_exact(image.channels)) {
                    *pixel = [normalised(from[0]); CHANNELS];
                }
            }
        }
    }
}

fn resize_columns(columns: &Axis, channels: usize, source: &[u8], wide: &mut [f32]) {
    match channels {
        // Known channel counts let the compiler unroll.
        1 => resize_columns_of::<1>(columns, source, wide),
        _ => resize_columns_of::<CHANNELS>(columns, source, wide),
    }
}

fn resize_columns_of<const C: usize>(columns: &Axis, source: &[u8], wide: &mut [f32]) {
    let ((source, _), (wide, _)) = (source.as_chunks::<C>(), wide.as_chunks_mut::<C>());
    for (x, pixel) in wide.iter_mut().enumerate() {
        let (start, weights) = columns.taps(x);
        let mut sum = [0.0; C];
        for (from, &weight) in source[start..].iter().zip(weights) {
            for (value, &byte) in sum.iter_mut().zip(from) {
                *value += weight * f32::from(byte);
            }
        }
        *pixel = sum;
    }
}

/// One axis of a resize: which source pixels make a target pixel, with which weights.
#[derive(Debug, Clone, Default)]
struct Axis {
    source: usize,
    target: usize,
    /// Weights a target pixel, the same number for each, unused ones 0.
    count: usize,
    starts: Vec<usize>,
    weights: Vec<f32>,
}

impl Axis {
    fn taps(&self, target: usize) -> (usize, &[f32]) {
        (self.starts[target], &self.weights[target * self.count..(target + 1) * self.count])
    }

    /// Computes the taps, unless they are there already.
    fn fit(&mut self, source: usize, target: usize) {
        if (self.source, self.target) == (source, target) {
            return;
        }
        let scale = source as f32 / target as f32;
        // Half the width of the triangle that weighs source pixels: one pixel, or more to shrink.
        let support = scale.max(1.0);
        self.count = source.min(2 * support.ceil() as usize + usize::from(support > 1.0));
        self.starts.clear();
        self.weights.clear();
        for x in 0..target {
            let first = self.weights.len();
            self.weights.resize(first + self.count, 0.0);
            let weights = &mut self.weights[first..];
            let start = if scale <= 1.0 {
                enlarging(x, scale, source, weights)
            } else {
                shrinking(x, scale, source, weights)
            };
            self.starts.push(start);
        }
        (self.source, self.target) = (source, target);
    }
}

/// The two neighbours of a target pixel, in the same single-precision steps as PyTorch, whose
/// rounding of the coordinate (some 1e-6) would else be visible.
fn enlarging(x: usize, scale: f32, source: usize, weights: &mut [f32]) -> usize {
    let center = (scale * (x as f32 + 0.5) - 0.5).max(0.0);
    let left = (center as usize).min(source - 1);
    let start = left.min(source - weights.len());
    let right_share = (center - left as f32).clamp(0.0, 1.0);
    let right = (left + 1).min(source - 1);
    weights[left - start] += 1.0 - right_share;
    weights[right - start] += right_share;
    start
}

/// A triangle over all source pixels that a target pixel covers.
fn shrinking(x: usize, scale: f32, source: usize, weights: &mut [f32]) -> usize {
    let center = scale * (x as f32 + 0.5);
    let first = (center - scale + 0.5).max(0.0) as usize;
    let end = ((center + scale + 0.5) as usize).min(source);
    let start = first.min(source - weights.len());
    let mut total = 0.0;
    for i in first..end.min(start + weights.len()) {
        let weight = (1.0 - ((i as f32 - center + 0.5) / scale).abs()).max(0.0);
        weights[i - start] = weight;
        total += weight;
    }
    for weight in weights {
        *weight /= total;
    }
    start
}
