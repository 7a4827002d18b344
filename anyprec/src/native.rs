//! The C++ behind a cxx bridge, and the safe functions above it. All of this crate's `unsafe`
//! stands here.
//!
//! An `at::Tensor` is a counted handle: passing one by reference borrows the handle, and a handle
//! that comes back is owned by the `tch::Tensor` made of it. Storage may be shared by several
//! handles; the functions that write in place say so.
#![allow(unsafe_code)]

use cxx::UniquePtr;
use tch::{TchError, Tensor};

/// The raw bridge, public so that the worker's bridge can share its types.
#[cxx::bridge(namespace = "anybit")]
#[allow(missing_docs, clippy::missing_safety_doc)]
pub mod ffi {
    unsafe extern "C++" {
        include!("anybit-anyprec/native/tensors.h");
        include!("anybit-anyprec/native/quantize.h");
        include!("anybit-anyprec/native/update.h");

        #[namespace = "at"]
        type Tensor;
        type Tensors;

        fn new_tensors() -> UniquePtr<Tensors>;
        fn push(self: Pin<&mut Tensors>, tensor: &Tensor);
        fn size(self: &Tensors) -> usize;
        fn get(self: &Tensors, index: usize) -> Result<UniquePtr<Tensor>>;

        fn quantize_weight(weight: &Tensor, bits: &[i64]) -> Result<UniquePtr<Tensors>>;
        fn quantize_activation(input: &Tensor, levels: i64) -> Result<UniquePtr<Tensor>>;
        fn dropout_mask(like: &Tensor, p: f64, key: u64, first_sample: u64) -> Result<UniquePtr<Tensor>>;

        fn sgd_step(
            parameters: &Tensors,
            momentum_buffers: &Tensors,
            learning_rate: f64,
            momentum: f64,
            weight_decay: f64,
        ) -> Result<()>;
        #[allow(clippy::too_many_arguments)]
        fn adam_step(
            parameters: &Tensors,
            first_moments: &Tensors,
            second_moments: &Tensors,
            step: i64,
            learning_rate: f64,
            beta1: f64,
            beta2: f64,
            epsilon: f64,
            weight_decay: f64,
        ) -> Result<()>;
        fn gradient_norms(parameters: &Tensors) -> Result<UniquePtr<Tensor>>;
        fn zero_gradients(parameters: &Tensors) -> Result<()>;
        fn move_towards(running: &Tensors, batch: &Tensors, weight: f64) -> Result<()>;
        fn zero_all(tensors: &Tensors) -> Result<()>;
        fn fill_uniform(tensor: &Tensor, bound: f64, seed: u64) -> Result<()>;
        fn fill_normal(tensor: &Tensor, deviation: f64, seed: u64) -> Result<()>;
        fn keep_freed_memory();
    }
}

/// A C++ exception as tch's own error.
pub fn error(exception: cxx::Exception) -> TchError {
    TchError::Torch(exception.what().to_owned())
}

/// Borrows a tch tensor's `at::Tensor` for a call.
pub fn borrow(tensor: &Tensor) -> &ffi::Tensor {
    // SAFETY: tch's pointer is to an at::Tensor that lives as long as `tensor` does; the bridge's
    // type is that very class, opaque and never moved or read on this side.
    unsafe { &*tensor.as_ptr().cast::<ffi::Tensor>() }
}

/// Takes over a handle that C++ made.
fn own(tensor: UniquePtr<ffi::Tensor>) -> Tensor {
    // SAFETY: the pointer comes from `new at::Tensor` (std::make_unique) and is given up here;
    // tch deletes it once, with `delete`.
    unsafe { Tensor::from_ptr(tensor.into_raw().cast()) }
}

/// A list of tensor handles on the C++ side, made once for calls that are made often.
pub struct TensorList(UniquePtr<ffi::Tensors>);

// SAFETY: the list owns counted handles whose counts are atomic; it is changed through `&mut` only.
unsafe impl Send for TensorList {}

impl TensorList {
    /// Handles to `tensors`, in their order.
    pub fn new<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Self {
        let mut list = ffi::new_tensors();
        for tensor in tensors {
            list.pin_mut().push(borrow(tensor));
        }
        Self(list)
    }

    /// The list for a bridge call.
    pub fn raw(&self) -> &ffi::Tensors {
        &self.0
    }

    fn into_vec(self) -> Result<Vec<Tensor>, TchError> {
        (0..self.0.size()).map(|i| self.0.get(i).map(own).map_err(error)).collect()
    }
}

/// See [`crate::quant::quantize_weight`]; `bits` are 1 to 8 or 32.
pub(crate) fn quantize_weight(weight: &Tensor, bits: &[i64]) -> Result<Vec<Tensor>, TchError> {
    TensorList(ffi::quantize_weight(borrow(weight), bits).map_err(error)?).into_vec()
}

/// See [`crate::quant::quantize_activation`]; no levels: clamp only.
pub(crate) fn quantize_activation(input: &Tensor, levels: Option<u32>) -> Result<Tensor, TchError> {
    ffi::quantize_activation(borrow(input), levels.map_or(0, i64::from)).map(own).map_err(error)
}

/// See [`crate::nn::Dropout`].
pub(crate) fn dropout_mask(like: &Tensor, p: f64, key: u64, first_sample: u64) -> Result<Tensor, TchError> {
    ffi::dropout_mask(borrow(like), p, key, first_sample).map(own).map_err(error)
}

/// L2 norm of each parameter's gradient, float64; 0 where a parameter has none.
pub fn gradient_norms(parameters: &TensorList) -> Result<Vec<f64>, TchError> {
    let norms = ffi::gradient_norms(parameters.raw()).map(own).map_err(error)?;
    Vec::<f64>::try_from(&norms)
}

/// Zeroes the parameters' gradients in place (they may be views into all-reduce buckets).
pub fn zero_gradients(parameters: &TensorList) -> Result<(), TchError> {
    ffi::zero_gradients(parameters.raw()).map_err(error)
}

/// `running += weight * (batch - running)`, pairwise and in place.
pub(crate) fn move_towards(running: &TensorList, batch: &TensorList, weight: f64) -> Result<(), TchError> {
    ffi::move_towards(running.raw(), batch.raw(), weight).map_err(error)
}

/// Zeroes every tensor in place.
pub(crate) fn zero_all(tensors: &TensorList) -> Result<(), TchError> {
    ffi::zero_all(tensors.raw()).map_err(error)
}

/// Fills a CPU tensor in place, uniform in +-`bound`, from a generator of its own.
pub(crate) fn fill_uniform(tensor: &Tensor, bound: f64, seed: u64) -> Result<(), TchError> {
    ffi::fill_uniform(borrow(tensor), bound, seed).map_err(error)
}

/// Fills a CPU tensor in place, normal with mean 0, from a generator of its own.
pub(crate) fn fill_normal(tensor: &Tensor, deviation: f64, seed: u64) -> Result<(), TchError> {
    ffi::fill_normal(borrow(tensor), deviation, seed).map_err(error)
}

/// Keeps freed buffers in the process instead of returning them to the kernel: a training step
/// asks for the same memory again at once. Affects the whole process.
pub fn keep_freed_memory() {
    ffi::keep_freed_memory();
}
