//! The paper's eight-layer CNN for 40x40 images (SVHN).

use anybit_shared::ids::BitWidth;
use tch::{TchError, Tensor};

use super::Network;
use crate::nn::{
    Activation, Conv, ConvShape, Dropout, Linear, Pass, QuantConv, Registry, Streams, SwitchBatchNorm,
    max_pool,
};
use crate::quant::Rounding;

/// A quantized convolution, its batch norm, and whether a 2x2 max pool follows that.
struct Unit {
    conv: QuantConv,
    bn: SwitchBatchNorm,
    pool: bool,
}

/// CNN-8. The numbers in its parameter names are those of the published module list.
pub(super) struct Cnn8 {
    conv0: Conv,
    units: Vec<Unit>,
    dropout: Dropout,
    last: QuantConv,
    fc: Linear,
}

impl Cnn8 {
    pub(super) fn new(
        registry: &mut Registry,
        widths: &[BitWidth],
        classes: i64,
        expand: i64,
        dropout: f64,
        seed: u64,
    ) -> Result<Self, TchError> {
        let shape = |input: i64, output: i64, kernel, padding| ConvShape {
            input: input * expand,
            output: output * expand,
            kernel,
            stride: 1,
            padding,
        };
        let stem = ConvShape { input: 3, output: 6 * expand, kernel: 5, stride: 1, padding: 0 };
        let conv0 = Conv::with_bias(registry, "layers.0", stem)?;
        let mut units = Vec::new();
        for (index, shape, pool) in [
            (3, shape(6, 8, 3, 1), false),
            (6, shape(8, 8, 3, 1), true),
            (10, shape(8, 16, 3, 0), false),
            (13, shape(16, 16, 3, 1), false),
            (16, shape(16, 16, 3, 0), false),
        ] {
            units.push(Unit {
                conv: QuantConv::new(registry, &format!("layers.{index}"), shape, shape.fan_in())?,
                bn: SwitchBatchNorm::new(registry, &format!("layers.{}", index + 1), widths, shape.output)?,
                pool,
            });
        }
        let end = shape(16, 64, 5, 0);
        Ok(Self {
            conv0,
            units,
            dropout: Dropout::new(dropout, seed, 19),
            last: QuantConv::new(registry, "layers.20", end, end.fan_in())?,
            fc: Linear::new(registry, "fc", end.output, classes)?,
        })
    }
}

impl Network for Cnn8 {
    fn forward(&self, input: &Tensor, pass: &Pass<'_>) -> Result<Streams, TchError> {
        let act = Activation(Rounding::Codes);
        let x = max_pool(&self.conv0.forward(&Streams::Shared(input.shallow_clone()))?, 2, 2, 0)?;
        let mut x = act.forward(&x, pass)?;
        for Unit { conv, bn, pool } in &self.units {
            x = bn.forward(&conv.forward(&x, pass)?, pass)?;
            if *pool {
                x = max_pool(&x, 2, 2, 0)?;
            }
            x = act.forward(&x, pass)?;
        }
        let x = self.last.forward(&self.dropout.forward(x, pass)?, pass)?;
        let x = Activation(Rounding::None).forward(&x, pass)?;
        self.fc.forward(&x.map(|x| x.f_flatten(1, -1))?)
    }
}
