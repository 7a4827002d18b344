//! Batch normalisation: one per bit-width, or one that all widths share.
//!
//! A training pass leaves the running statistics alone. It averages its batch statistics into
//! the pending ones, and the step's commit moves the running statistics to them: so a step that
//! is skipped leaves no trace.

use anybit_shared::ids::BitWidth;
use tch::{TchError, Tensor};

use super::{Init, Mode, Pass, Registry, Streams};

/// PyTorch's default.
const EPSILON: f64 = 1e-5;

/// Handles of one batch norm; shared storage with the registry.
struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    pending: Vec<(Tensor, Tensor)>,
}

impl BatchNorm {
    fn new(registry: &mut Registry, name: String, channels: i64, pending: usize) -> Result<Self, TchError> {
        let weight = registry.parameter(format!("{name}.weight"), &[channels], Init::Constant(1.0))?;
        let bias = registry.parameter(format!("{name}.bias"), &[channels], Init::Constant(0.0))?;
        let index = registry.add_statistics(name, channels, pending)?;
        let statistics = registry.statistics_at(index);
        Ok(Self {
            weight,
            bias,
            mean: statistics.mean.shallow_clone(),
            variance: statistics.variance.shallow_clone(),
            pending: statistics.pending.iter().map(|(m, v)| (m.shallow_clone(), v.shallow_clone())).collect(),
        })
    }

    /// With batch statistics, the momentum 1 / (group + 1) makes the pending pair the mean over
    /// the groups so far.
    fn forward(&self, x: &Tensor, mode: Mode, pending: usize) -> Result<Tensor, TchError> {
        let (mean, variance, training, momentum) = match mode {
            Mode::Train { group, .. } => {
                let (mean, variance) = &self.pending[pending];
                (mean, variance, true, 1.0 / (f64::from(group) + 1.0))
            }
            Mode::Evaluate => (&self.mean, &self.variance, false, 0.0),
        };
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        x.f_batch_norm(weight, bias, Some(mean), Some(variance), training, momentum, EPSILON, true)
    }
}

/// A batch norm per bit-width, with its own weight, bias and statistics.
pub struct SwitchBatchNorm {
    norms: Vec<(BitWidth, BatchNorm)>,
}

impl SwitchBatchNorm {
    /// Named `{name}.bn_dict.{bits}`.
    pub fn new(
        registry: &mut Registry,
        name: &str,
        widths: &[BitWidth],
        channels: i64,
    ) -> Result<Self, TchError> {
        let norm =
            |w: &BitWidth| Ok((*w, BatchNorm::new(registry, format!("{name}.bn_dict.{w}"), channels, 1)?));
        Ok(Self { norms: widths.iter().map(norm).collect::<Result<_, TchError>>()? })
    }

    /// Normalises each width's stream by its own batch norm.
    pub fn forward(&self, x: &Streams, pass: &Pass<'_>) -> Result<Streams, TchError> {
        x.map_widths(pass, |x, _, width| {
            let (_, norm) = self
                .norms
                .iter()
                .find(|(w, _)| *w == width)
                .ok_or_else(|| TchError::Torch(format!("the network was not built for {width} bits")))?;
            norm.forward(x, pass.mode, 0)
        })
    }
}

/// One batch norm for all widths: each width normalises by its own batch, and the running
/// statistics move once per width.
pub struct SharedBatchNorm {
    norm: BatchNorm,
    /// Highest first: the order of the updates.
    widths: Vec<BitWidth>,
}

impl SharedBatchNorm {
    /// `widths` in any order.
    pub fn new(
        registry: &mut Registry,
        name: &str,
        widths: &[BitWidth],
        channels: i64,
    ) -> Result<Self, TchError> {
        let mut widths = widths.to_vec();
        widths.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Self { norm: BatchNorm::new(registry, name.to_owned(), channels, widths.len())?, widths })
    }

    /// Normalises each width's stream.
    pub fn forward(&self, x: &Streams, pass: &Pass<'_>) -> Result<Streams, TchError> {
        x.map_widths(pass, |x, _, width| {
            let place = self
                .widths
                .iter()
                .position(|w| *w == width)
                .ok_or_else(|| TchError::Torch(format!("the network was not built for {width} bits")))?;
            self.norm.forward(x, pass.mode, place)
        })
    }
}
