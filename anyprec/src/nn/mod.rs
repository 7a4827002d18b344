//! Layers over one stream of activations per bit-width.
//!
//! A forward pass carries all its widths through each layer before the next: [`Streams`] is the
//! list, highest width first, and each layer takes and returns it. A layer owns handles to
//! tensors that [`Registry`] knows by their published names.

mod layers;
mod norm;
mod registry;

pub use layers::{Activation, Conv, ConvShape, Dropout, Linear, QuantConv, average_pool, max_pool};
pub use norm::{SharedBatchNorm, SwitchBatchNorm};
pub use registry::{Init, LoadError, NamedTensor, Registry, RunningStatistics};

use anybit_shared::ids::BitWidth;
use tch::{TchError, Tensor};

/// What a forward pass is for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// Batch statistics, dropout; gradients flow.
    Train {
        /// This group's place among the groups that this process runs in the present step, from
        /// 0: batch statistics are averaged over them until [`Registry::commit_statistics`].
        group: u32,
        /// Number of the group's first sample, counted over the whole run: seeds dropout.
        first_sample: u64,
    },
    /// Running statistics, no dropout.
    Evaluate,
}

/// One forward pass: its widths, highest first, and its mode.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'a> {
    /// Widths of the streams, highest first.
    pub widths: &'a [BitWidth],
    /// What the pass is for.
    pub mode: Mode,
}

/// The activations of a pass, [samples, channels, height, width] or [samples, features] each.
pub enum Streams {
    /// Before the first layer that differs by width: one tensor serves all.
    Shared(Tensor),
    /// One tensor per width of the pass, in its order.
    PerWidth(Vec<Tensor>),
}

impl Streams {
    /// Applies one function to every tensor, once if it is shared.
    pub fn map(&self, mut f: impl FnMut(&Tensor) -> Result<Tensor, TchError>) -> Result<Self, TchError> {
        Ok(match self {
            Self::Shared(x) => Self::Shared(f(x)?),
            Self::PerWidth(xs) => Self::PerWidth(xs.iter().map(f).collect::<Result<_, _>>()?),
        })
    }

    /// Applies a function that differs by width, given the width's place in the pass.
    pub fn map_widths(
        &self,
        pass: &Pass<'_>,
        mut f: impl FnMut(&Tensor, usize, BitWidth) -> Result<Tensor, TchError>,
    ) -> Result<Self, TchError> {
        let out = pass.widths.iter().enumerate().map(|(i, width)| f(self.at(i), i, *width));
        Ok(Self::PerWidth(out.collect::<Result<_, _>>()?))
    }

    /// Adds two passes' streams, width by width.
    pub fn add(&self, other: &Self, pass: &Pass<'_>) -> Result<Self, TchError> {
        self.map_widths(pass, |x, i, _| x.f_add(other.at(i)))
    }

    /// The tensor of the pass's `i`-th width.
    pub fn at(&self, i: usize) -> &Tensor {
        match self {
            Self::Shared(x) => x,
            Self::PerWidth(xs) => &xs[i],
        }
    }

    /// One tensor per width of the pass.
    pub fn into_vec(self, pass: &Pass<'_>) -> Vec<Tensor> {
        match self {
            Self::Shared(x) => pass.widths.iter().map(|_| x.shallow_clone()).collect(),
            Self::PerWidth(xs) => xs,
        }
    }
}
