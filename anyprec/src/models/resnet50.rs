//! The ImageNet ResNet of the paper: pre-activation bottlenecks, real-valued downsampling of the
//! raw input with a batch norm per width.

use anybit_shared::ids::BitWidth;
use tch::{TchError, Tensor};

use super::Network;
use crate::nn::{
    Activation, Conv, ConvShape, Linear, Pass, QuantConv, Registry, Streams, SwitchBatchNorm, average_pool,
    max_pool,
};
use crate::quant::Rounding;

/// Output channels of a bottleneck, in units of its inner width.
const EXPANSION: i64 = 4;

struct Bottleneck {
    stages: [(SwitchBatchNorm, QuantConv); 3],
    downsample: Option<(Conv, SwitchBatchNorm)>,
}

impl Bottleneck {
    fn new(
        registry: &mut Registry,
        name: &str,
        widths: &[BitWidth],
        input: i64,
        inner: i64,
        stride: i64,
    ) -> Result<Self, TchError> {
        let output = EXPANSION * inner;
        let mut stage = |place: usize, input, output, kernel, stride| {
            let shape = ConvShape { input, output, kernel, stride, padding: kernel / 2 };
            Ok::<_, TchError>((
                SwitchBatchNorm::new(registry, &format!("{name}.bn{place}"), widths, input)?,
                QuantConv::new(registry, &format!("{name}.conv{place}"), shape, shape.kaiming_fan_out())?,
            ))
        };
        let stages = [
            stage(0, input, inner, 1, 1)?,
            stage(1, inner, inner, 3, stride)?,
            stage(2, inner, output, 1, 1)?,
        ];
        let shape = ConvShape { input, output, kernel: 1, stride, padding: 0 };
        let downsample = if stride == 1 && input == output {
            None
        } else {
            Some((
                Conv::new(registry, &format!("{name}.downsample.0"), shape, shape.kaiming_fan_out())?,
                SwitchBatchNorm::new(registry, &format!("{name}.downsample.1"), widths, output)?,
            ))
        };
        Ok(Self { stages, downsample })
    }

    fn forward(&self, x: Streams, pass: &Pass<'_>) -> Result<Streams, TchError> {
        let mut h = None;
        for (bn, conv) in &self.stages {
            let normal = bn.forward(h.as_ref().unwrap_or(&x), pass)?;
            h = Some(conv.forward(&Activation(Rounding::Codes).forward(&normal, pass)?, pass)?);
        }
        let skip = match &self.downsample {
            None => x,
            Some((conv, bn)) => bn.forward(&conv.forward(&x)?, pass)?,
        };
        match h {
            Some(h) => h.add(&skip, pass),
            None => Ok(skip),
        }
    }
}

/// ResNet-50 with the default depth 3, 4, 6, 3.
pub(super) struct ResNet50 {
    conv1: Conv,
    layers: Vec<Bottleneck>,
    bn: SwitchBatchNorm,
    fc: Linear,
}

impl ResNet50 {
    pub(super) fn new(
        registry: &mut Registry,
        widths: &[BitWidth],
        classes: i64,
        depth: &[u32],
    ) -> Result<Self, TchError> {
        let stem = ConvShape { input: 3, output: 64, kernel: 7, stride: 2, padding: 3 };
        let conv1 = Conv::new(registry, "conv1", stem, stem.kaiming_fan_out())?;
        let (mut layers, mut channels) = (Vec::new(), stem.output);
        for (stage, blocks) in depth.iter().enumerate() {
            let inner = 64 << stage;
            for block in 0..*blocks {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let name = format!("layer{}.{block}", stage + 1);
                layers.push(Bottleneck::new(registry, &name, widths, channels, inner, stride)?);
                channels = EXPANSION * inner;
            }
        }
        let bn = SwitchBatchNorm::new(registry, "bn", widths, channels)?;
        Ok(Self { conv1, layers, bn, fc: Linear::new(registry, "fc", channels, classes)? })
    }
}

impl Network for ResNet50 {
    fn forward(&self, input: &Tensor, pass: &Pass<'_>) -> Result<Streams, TchError> {
        let mut x = max_pool(&self.conv1.forward(&Streams::Shared(input.shallow_clone()))?, 3, 2, 1)?;
        for layer in &self.layers {
            x = layer.forward(x, pass)?;
        }
        let x = Activation(Rounding::Codes).forward(&self.bn.forward(&x, pass)?, pass)?;
        self.fc.forward(&average_pool(&x)?)
    }
}
