//! The CIFAR ResNet of the paper: pre-activation, real-valued skips with one batch norm for all
//! widths.

use anybit_shared::ids::BitWidth;
use tch::{TchError, Tensor};

use super::Network;
use crate::nn::{
    Activation, Conv, ConvShape, Linear, Pass, QuantConv, Registry, SharedBatchNorm, Streams,
    SwitchBatchNorm, average_pool,
};
use crate::quant::Rounding;

struct Block {
    bn0: SwitchBatchNorm,
    conv0: QuantConv,
    bn1: SwitchBatchNorm,
    conv1: QuantConv,
    skip: Option<(Conv, SharedBatchNorm)>,
}

impl Block {
    fn new(
        registry: &mut Registry,
        name: &str,
        widths: &[BitWidth],
        input: i64,
        output: i64,
        stride: i64,
    ) -> Result<Self, TchError> {
        let conv0 = ConvShape { input, output, kernel: 3, stride, padding: 1 };
        let conv1 = ConvShape { input: output, output, kernel: 3, stride: 1, padding: 1 };
        let skip = ConvShape { input, output, kernel: 1, stride, padding: 0 };
        Ok(Self {
            bn0: SwitchBatchNorm::new(registry, &format!("{name}.bn0"), widths, input)?,
            conv0: QuantConv::new(registry, &format!("{name}.conv0"), conv0, conv0.fan_in())?,
            bn1: SwitchBatchNorm::new(registry, &format!("{name}.bn1"), widths, output)?,
            conv1: QuantConv::new(registry, &format!("{name}.conv1"), conv1, conv1.fan_in())?,
            skip: if stride == 1 {
                None
            } else {
                Some((
                    Conv::new(registry, &format!("{name}.skip_conv"), skip, skip.fan_in())?,
                    SharedBatchNorm::new(registry, &format!("{name}.skip_bn"), widths, output)?,
                ))
            },
        })
    }

    fn forward(&self, x: Streams, pass: &Pass<'_>) -> Result<Streams, TchError> {
        let act = Activation(Rounding::Codes);
        let h = act.forward(&self.bn0.forward(&x, pass)?, pass)?;
        let skip = match &self.skip {
            None => x,
            Some((conv, bn)) => bn.forward(&conv.forward(&h)?, pass)?,
        };
        let h = self.conv0.forward(&h, pass)?;
        let h = act.forward(&self.bn1.forward(&h, pass)?, pass)?;
        self.conv1.forward(&h, pass)?.add(&skip, pass)
    }
}

/// ResNet-20 with the default depth 3, 3, 3.
pub(super) struct ResNet20 {
    conv0: Conv,
    layers: Vec<Block>,
    bn: SwitchBatchNorm,
    fc: Linear,
}

impl ResNet20 {
    pub(super) fn new(
        registry: &mut Registry,
        widths: &[BitWidth],
        classes: i64,
        expand: i64,
        depth: &[u32],
    ) -> Result<Self, TchError> {
        let base = 16 * expand;
        let stem = ConvShape { input: 3, output: base, kernel: 3, stride: 1, padding: 1 };
        let conv0 = Conv::new(registry, "conv0", stem, stem.fan_in())?;
        let (mut layers, mut channels) = (Vec::new(), base);
        for (stage, blocks) in depth.iter().enumerate() {
            for block in 0..*blocks {
                let output = base << stage;
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                layers.push(Block::new(
                    registry,
                    &format!("layers.{}", layers.len()),
                    widths,
                    channels,
                    output,
                    stride,
                )?);
                channels = output;
            }
        }
        let bn = SwitchBatchNorm::new(registry, "bn", widths, channels)?;
        Ok(Self { conv0, layers, bn, fc: Linear::new(registry, "fc", channels, classes)? })
    }
}

impl Network for ResNet20 {
    fn forward(&self, input: &Tensor, pass: &Pass<'_>) -> Result<Streams, TchError> {
        let mut x = self.conv0.forward(&Streams::Shared(input.shallow_clone()))?;
        for layer in &self.layers {
            x = layer.forward(x, pass)?;
        }
        self.fc.forward(&average_pool(&self.bn.forward(&x, pass)?)?)
    }
}
