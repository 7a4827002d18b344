//! The quantizers of any-precision networks, after DoReFa-Net (Zhou et al., 2016).
//!
//! With n = 2^k - 1 at k bits, and rounding half to even:
//!
//! - weight: `E * (2 * round((t / (2M) + 1/2) * n) / n - 1)` with t = tanh(w), M = max|t| and
//!   E = mean|w| over the tensor; at 32 bits `E * t / M`. E carries no gradient, M does.
//! - activation: `round(clamp(x, 0, 1) * n) / n`; at 32 bits ReLU.
//!
//! The gradient of rounding is taken as the identity (straight-through); the clamp blocks it
//! outside [0, 1]. Every width then has the same linear map from its weight's gradient to the
//! float weight's, so [`quantize_weight`] sums the widths' gradients and applies it once.

use anybit_shared::ids::BitWidth;
use tch::{TchError, Tensor};

use crate::native;

/// `weight` at every width, in the order of `widths`; same shape, type and memory format each.
pub fn quantize_weight(weight: &Tensor, widths: &[BitWidth]) -> Result<Vec<Tensor>, TchError> {
    let bits: Vec<i64> = widths.iter().map(|w| i64::from(*w)).collect();
    native::quantize_weight(weight, &bits)
}

/// What an activation does below 32 bits after its clamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Round to multiples of 1 / (2^k - 1).
    Codes,
    /// Leave the clamped value (CNN-8's last activation).
    None,
}

/// The activation of one width's stream; same shape and memory format.
pub fn quantize_activation(input: &Tensor, width: BitWidth, rounding: Rounding) -> Result<Tensor, TchError> {
    match (width.levels(), rounding) {
        (None, _) => input.f_relu(),
        (levels, Rounding::Codes) => native::quantize_activation(input, levels),
        (_, Rounding::None) => native::quantize_activation(input, None),
    }
}
