//! Any-precision deep networks (Yu et al., AAAI 2021) over libtorch: one set of float weights,
//! trained jointly at several bit-widths and usable at any of them.
//!
//! - [`quant`]: the weight and activation quantizers.
//! - [`nn`]: layers over one stream of activations per bit-width; parameters and their names.
//! - [`models`]: one file per network.
//! - [`joint`]: the joint forward pass, all widths as one graph or one after another.
//! - [`loss`]: the joint loss and its distillation; top-k.
//! - [`optim`]: SGD, Adam and the MultiStep schedule.
//! - [`golden`]: replay of recorded training runs, to check every number.
//! - [`native`]: the C++ bridge and all `unsafe`.
//!
//! Tensors are `tch` tensors; errors of libtorch come back as [`tch::TchError`].

pub mod golden;
pub mod joint;
pub mod loss;
pub mod models;
pub mod native;
pub mod nn;
pub mod optim;
pub mod quant;
