//! Convolutions, activations, pooling, dropout, the classifier.

use tch::{Kind, TchError, Tensor};

use super::registry::keyed;
use super::{Init, Mode, Pass, Registry, Streams};
use crate::native;
use crate::quant::{Rounding, quantize_activation, quantize_weight};

/// Geometry of a square convolution.
#[derive(Debug, Clone, Copy)]
pub struct ConvShape {
    /// Input channels.
    pub input: i64,
    /// Output channels.
    pub output: i64,
    /// Side of the kernel.
    pub kernel: i64,
    /// Step of the kernel.
    pub stride: i64,
    /// Zeros added at each border.
    pub padding: i64,
}

impl ConvShape {
    fn weight(&self) -> [i64; 4] {
        [self.output, self.input, self.kernel, self.kernel]
    }

    /// PyTorch's default start.
    pub fn fan_in(&self) -> Init {
        Init::FanIn { fan_in: self.input * self.kernel * self.kernel }
    }

    /// He's start for ReLU networks.
    pub fn kaiming_fan_out(&self) -> Init {
        Init::KaimingFanOut { fan_out: self.output * self.kernel * self.kernel }
    }

    fn apply(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
        x.f_conv2d(weight, bias, [self.stride, self.stride], [self.padding, self.padding], [1, 1], 1)
    }
}

/// A real-valued convolution: the first layer, skips and downsampling.
pub struct Conv {
    shape: ConvShape,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Conv {
    /// Without bias.
    pub fn new(registry: &mut Registry, name: &str, shape: ConvShape, init: Init) -> Result<Self, TchError> {
        let weight = registry.parameter(format!("{name}.weight"), &shape.weight(), init)?;
        Ok(Self { shape, weight, bias: None })
    }

    /// With bias, both begun as PyTorch does.
    pub fn with_bias(registry: &mut Registry, name: &str, shape: ConvShape) -> Result<Self, TchError> {
        let mut conv = Self::new(registry, name, shape, shape.fan_in())?;
        conv.bias = Some(registry.parameter(format!("{name}.bias"), &[shape.output], shape.fan_in())?);
        Ok(conv)
    }

    /// Runs once while the streams are shared.
    pub fn forward(&self, x: &Streams) -> Result<Streams, TchError> {
        x.map(|x| self.shape.apply(x, &self.weight, self.bias.as_ref()))
    }
}

/// A convolution whose weight is quantized to each stream's width.
pub struct QuantConv {
    shape: ConvShape,
    weight: Tensor,
}

impl QuantConv {
    /// Without bias.
    pub fn new(registry: &mut Registry, name: &str, shape: ConvShape, init: Init) -> Result<Self, TchError> {
        Ok(Self { shape, weight: registry.parameter(format!("{name}.weight"), &shape.weight(), init)? })
    }

    /// Quantizes the weight for all widths of the pass here, so that its gradient is final as soon
    /// as the backward pass has left this layer.
    pub fn forward(&self, x: &Streams, pass: &Pass<'_>) -> Result<Streams, TchError> {
        let weights = quantize_weight(&self.weight, pass.widths)?;
        x.map_widths(pass, |x, i, _| self.shape.apply(x, &weights[i], None))
    }
}

/// ReLU at 32 bits, clamp and rounding below.
pub struct Activation(pub Rounding);

impl Activation {
    /// Same shapes.
    pub fn forward(&self, x: &Streams, pass: &Pass<'_>) -> Result<Streams, TchError> {
        x.map_widths(pass, |x, _, width| quantize_activation(x, width, self.0))
    }
}

/// Dropout whose mask depends on (seed, sample number, layer, width) only: not on the rank that
/// holds the sample, nor on the number of ranks. The sample number is counted over the whole run,
/// so it tells the step too.
pub struct Dropout {
    probability: f64,
    seed: u64,
    layer: u64,
}

impl Dropout {
    /// `layer` tells this dropout from the network's others.
    pub fn new(probability: f64, seed: u64, layer: u64) -> Self {
        Self { probability, seed, layer }
    }

    /// Scales what it keeps by 1 / (1 - p); the identity in evaluation.
    pub fn forward(&self, x: Streams, pass: &Pass<'_>) -> Result<Streams, TchError> {
        let Mode::Train { first_sample, .. } = pass.mode else { return Ok(x) };
        if self.probability == 0.0 {
            return Ok(x);
        }
        x.map_widths(pass, |x, _, width| {
            let key = keyed(self.seed, [self.layer, u64::from(width.bits())]);
            x.f_mul(&native::dropout_mask(x, self.probability, key, first_sample)?)
        })
    }
}

/// The real-valued classifier.
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// Named `{name}.weight` [output, input] and `{name}.bias` [output].
    pub fn new(registry: &mut Registry, name: &str, input: i64, output: i64) -> Result<Self, TchError> {
        let init = Init::FanIn { fan_in: input };
        Ok(Self {
            weight: registry.parameter(format!("{name}.weight"), &[output, input], init)?,
            bias: registry.parameter(format!("{name}.bias"), &[output], init)?,
        })
    }

    /// [samples, input] to [samples, output] at each width.
    pub fn forward(&self, x: &Streams) -> Result<Streams, TchError> {
        x.map(|x| x.f_linear(&self.weight, Some(&self.bias)))
    }
}

/// Max pooling over `kernel` x `kernel` windows.
pub fn max_pool(x: &Streams, kernel: i64, stride: i64, padding: i64) -> Result<Streams, TchError> {
    x.map(|x| x.f_max_pool2d([kernel, kernel], [stride, stride], [padding, padding], [1, 1], false))
}

/// The mean over height and width: [samples, channels, h, w] to [samples, channels].
pub fn average_pool(x: &Streams) -> Result<Streams, TchError> {
    x.map(|x| x.f_mean_dim([2i64, 3].as_slice(), false, None::<Kind>))
}
