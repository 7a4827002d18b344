//! The networks: one file each, reading like the paper's figures, with the published parameter
//! names.

mod cnn8;
mod resnet20;
mod resnet50;

use anybit_shared::ids::BitWidth;
use anybit_shared::spec::{ModelName, ModelSpec};
use tch::{Device, Kind, TchError, Tensor};

use crate::nn::{LoadError, NamedTensor, Pass, Registry, Streams};

/// A network's forward pass over all widths of a [`Pass`].
pub(crate) trait Network: Send {
    /// [samples, 3, height, width] to logits, [samples, classes] at each width.
    fn forward(&self, input: &Tensor, pass: &Pass<'_>) -> Result<Streams, TchError>;
}

/// A network and its tensors.
pub struct Model {
    network: Box<dyn Network>,
    registry: Registry,
    widths: Vec<BitWidth>,
}

impl Model {
    /// Builds the network of a valid spec. `seed` decides the weights and the dropout masks.
    pub fn build(spec: &ModelSpec, seed: u64, kind: Kind, device: Device) -> Result<Self, TchError> {
        let mut registry = Registry::new(kind, device, seed);
        let classes = i64::from(spec.classes);
        let expand = |default| i64::from(spec.expand.unwrap_or(default));
        let layers = |default: &[u32]| spec.layers.clone().unwrap_or_else(|| default.to_vec());
        let network: Box<dyn Network> = match spec.name {
            ModelName::Resnet20 => {
                let layers = layers(&[3, 3, 3]);
                Box::new(resnet20::ResNet20::new(&mut registry, &spec.bits, classes, expand(5), &layers)?)
            }
            ModelName::Resnet50 => {
                let layers = layers(&[3, 4, 6, 3]);
                Box::new(resnet50::ResNet50::new(&mut registry, &spec.bits, classes, &layers)?)
            }
            ModelName::Cnn8 => {
                Box::new(cnn8::Cnn8::new(&mut registry, &spec.bits, classes, expand(2), spec.dropout, seed)?)
            }
        };
        let mut widths = spec.bits.clone();
        widths.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Self { network, registry, widths })
    }

    /// Runs `input` [samples, 3, height, width] through every layer at all widths of the pass.
    /// Returns logits [samples, classes], in the pass's order.
    pub fn forward(&self, input: &Tensor, pass: &Pass<'_>) -> Result<Vec<Tensor>, TchError> {
        Ok(self.network.forward(input, pass)?.into_vec(pass))
    }

    /// The widths it was built for, highest first: the order of the joint step.
    pub fn widths(&self) -> &[BitWidth] {
        &self.widths
    }

    /// Its tensors.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Its tensors, to commit or discard a step's statistics.
    pub fn registry_mut(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// Parameters and running statistics under their published names.
    pub fn state(&self) -> Vec<NamedTensor> {
        self.registry.state()
    }

    /// Copies a published state in; strict about names and shapes.
    pub fn load(&mut self, state: &[NamedTensor]) -> Result<(), LoadError> {
        self.registry.load(state)
    }
}
