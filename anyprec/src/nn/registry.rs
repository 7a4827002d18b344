//! Parameters, running statistics and their published names.

use tch::{Device, Kind, TchError, Tensor};

use crate::native::{self, TensorList};

/// Weight of the newest batch in a running statistic, PyTorch's default.
const STATISTICS_MOMENTUM: f64 = 0.1;

/// A tensor and its published name.
pub struct NamedTensor {
    /// As in the published checkpoints, `layers.3.bn0.bn_dict.2.weight` for one.
    pub name: String,
    /// A handle; the layer that uses it holds another.
    pub tensor: Tensor,
}

/// How a parameter begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All the same value.
    Constant(f64),
    /// Uniform in +-1 / sqrt(fan-in): PyTorch's default for convolutions and linear layers.
    FanIn {
        /// Inputs of one output.
        fan_in: i64,
    },
    /// Normal with variance 2 / fan-out (He et al., 2015).
    KaimingFanOut {
        /// Outputs of one input.
        fan_out: i64,
    },
}

/// The running mean and variance of one batch norm.
pub struct RunningStatistics {
    /// The batch norm's published name, `layers.3.bn0.bn_dict.2` for one.
    pub name: String,
    /// [channels].
    pub mean: Tensor,
    /// [channels], unbiased.
    pub variance: Tensor,
    /// Mean and unbiased variance of the step in flight, averaged over its groups: one pair, or
    /// for a batch norm that all widths share one per width, in their order.
    pub(super) pending: Vec<(Tensor, Tensor)>,
    /// Committed updates.
    updates: i64,
}

/// All tensors of a network in the order of their making, which is the order of the forward pass.
pub struct Registry {
    kind: Kind,
    device: Device,
    seed: u64,
    parameters: Vec<NamedTensor>,
    statistics: Vec<RunningStatistics>,
}

impl Registry {
    /// An empty registry for tensors of one type on one device; `seed` decides the parameters.
    pub fn new(kind: Kind, device: Device, seed: u64) -> Self {
        Self { kind, device, seed, parameters: Vec::new(), statistics: Vec::new() }
    }

    /// Element type of all parameters.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Device of all tensors.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Makes a parameter and returns a handle to it. Four-dimensional ones are laid out
    /// channels-last.
    pub fn parameter(&mut self, name: String, shape: &[i64], init: Init) -> Result<Tensor, TchError> {
        let tensor = Tensor::f_empty_strided(shape, strides(shape), (self.kind, Device::Cpu))?;
        // A stream of its own: neither other parameters nor the process change what it draws.
        let seed = keyed(self.seed, name.bytes().map(u64::from));
        let tensor = match init {
            Init::Constant(value) => tensor.f_fill(value)?,
            Init::FanIn { fan_in } => {
                native::fill_uniform(&tensor, 1.0 / (fan_in.max(1) as f64).sqrt(), seed)?;
                tensor
            }
            Init::KaimingFanOut { fan_out } => {
                native::fill_normal(&tensor, (2.0 / fan_out.max(1) as f64).sqrt(), seed)?;
                tensor
            }
        };
        let tensor = tensor.f_to_device(self.device)?;
        let tensor = tensor.f_set_requires_grad(true)?;
        self.parameters.push(NamedTensor { name, tensor: tensor.shallow_clone() });
        Ok(tensor)
    }

    /// Makes running statistics of `channels` channels, with `pending` batches a step, and returns
    /// their index.
    pub(super) fn add_statistics(
        &mut self,
        name: String,
        channels: i64,
        pending: usize,
    ) -> Result<usize, TchError> {
        let options = (self.kind, self.device);
        let pairs = (0..pending)
            .map(|_| Ok((Tensor::f_zeros([channels], options)?, Tensor::f_zeros([channels], options)?)))
            .collect::<Result<_, TchError>>()?;
        self.statistics.push(RunningStatistics {
            name,
            mean: Tensor::f_zeros([channels], options)?,
            variance: Tensor::f_ones([channels], options)?,
            pending: pairs,
            updates: 0,
        });
        Ok(self.statistics.len() - 1)
    }

    /// The running statistics at an index.
    pub(super) fn statistics_at(&self, index: usize) -> &RunningStatistics {
        &self.statistics[index]
    }

    /// Parameters in order.
    pub fn parameters(&self) -> &[NamedTensor] {
        &self.parameters
    }

    /// The parameters as a list for bridge calls.
    pub fn parameter_list(&self) -> TensorList {
        TensorList::new(self.parameters.iter().map(|p| &p.tensor))
    }

    /// Running statistics in order.
    pub fn statistics(&self) -> &[RunningStatistics] {
        &self.statistics
    }

    /// Moves the running statistics to the step's batch statistics, PyTorch's momentum 0.1. A
    /// batch norm that the widths share moves once per width, in their order.
    pub fn commit_statistics(&mut self) -> Result<(), TchError> {
        let rounds = self.statistics.iter().map(|s| s.pending.len()).max().unwrap_or(0);
        for round in 0..rounds {
            let moved = || self.statistics.iter().filter(|s| s.pending.len() > round);
            let running = TensorList::new(moved().flat_map(|s| [&s.mean, &s.variance]));
            let batch = TensorList::new(moved().flat_map(|s| [&s.pending[round].0, &s.pending[round].1]));
            native::move_towards(&running, &batch, STATISTICS_MOMENTUM)?;
        }
        for s in &mut self.statistics {
            s.updates += s.pending.len() as i64;
        }
        Ok(())
    }

    /// Forgets the step's batch statistics, which may not be finite.
    pub fn discard_statistics(&mut self) -> Result<(), TchError> {
        let pending = self.statistics.iter().flat_map(|s| &s.pending).flat_map(|(mean, var)| [mean, var]);
        native::zero_all(&TensorList::new(pending))
    }

    /// Everything that a published checkpoint holds: parameters, running statistics and their
    /// update counts ([] int64), in PyTorch's naming. Handles, not copies.
    pub fn state(&self) -> Vec<NamedTensor> {
        let mut state: Vec<NamedTensor> = self
            .parameters
            .iter()
            .map(|p| NamedTensor { name: p.name.clone(), tensor: p.tensor.detach() })
            .collect();
        for s in &self.statistics {
            let named =
                |part: &str, tensor: Tensor| NamedTensor { name: format!("{}.{part}", s.name), tensor };
            state.push(named("running_mean", s.mean.shallow_clone()));
            state.push(named("running_var", s.variance.shallow_clone()));
            state.push(named("num_batches_tracked", Tensor::from(s.updates)));
        }
        state
    }

    /// Copies `values` into the tensors of the same names. Strict: an unknown, missing or
    /// wrongly shaped tensor is an error that names it, and then nothing has changed. Update
    /// counts may be missing, as they are in old checkpoints.
    pub fn load(&mut self, values: &[NamedTensor]) -> Result<(), LoadError> {
        let given: std::collections::HashMap<&str, &Tensor> =
            values.iter().map(|v| (v.name.as_str(), &v.tensor)).collect();
        let state = self.state();
        let known: std::collections::HashSet<&str> = state.iter().map(|s| s.name.as_str()).collect();
        if let Some(name) = given.keys().filter(|name| !known.contains(**name)).min() {
            return Err(LoadError::Unknown((*name).to_owned()));
        }
        for own in &state {
            match given.get(own.name.as_str()) {
                None if own.name.ends_with("num_batches_tracked") => {}
                None => return Err(LoadError::Missing(own.name.clone())),
                Some(value) if value.size() != own.tensor.size() => {
                    return Err(LoadError::Shape {
                        name: own.name.clone(),
                        given: value.size(),
                        expected: own.tensor.size(),
                    });
                }
                Some(_) => {}
            }
        }
        for mut own in state {
            if let Some(value) = given.get(own.name.as_str()) {
                tch::no_grad(|| own.tensor.f_copy_(value))?;
            }
        }
        for s in &mut self.statistics {
            if let Some(value) = given.get(format!("{}.num_batches_tracked", s.name).as_str()) {
                s.updates = i64::try_from(*value)?;
            }
        }
        Ok(())
    }
}

/// Why a checkpoint's tensors do not fit the network.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The network has no tensor of that name.
    #[error(
        "the checkpoint holds {0}, which this network does not have: check model.name, model.bits, model.expand and model.layers"
    )]
    Unknown(String),
    /// The checkpoint lacks one.
    #[error("the checkpoint lacks {0}: check model.name, model.bits, model.expand and model.layers")]
    Missing(String),
    /// Shapes differ.
    #[error(
        "{name} is {given:?} in the checkpoint and {expected:?} in this network: check model.classes, model.expand and model.layers"
    )]
    Shape {
        /// Tensor.
        name: String,
        /// In the checkpoint.
        given: Vec<i64>,
        /// In the network.
        expected: Vec<i64>,
    },
    /// libtorch could not copy.
    #[error(transparent)]
    Torch(#[from] TchError),
}

/// A seed made of another and of some parts: SplitMix64 (Steele, Lea, Flood 2014) over all of them.
pub(crate) fn keyed(seed: u64, parts: impl IntoIterator<Item = u64>) -> u64 {
    parts.into_iter().fold(seed, |key, part| {
        let mut z = (key ^ part).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

/// Strides of a channels-last tensor (NHWC in memory, shape [N, C, H, W]); row-major otherwise.
/// Written out because libtorch keeps whatever strides dimensions of one element have, and
/// gradients of such weights come with these.
fn strides(shape: &[i64]) -> Vec<i64> {
    if let [_, channels, height, width] = *shape {
        return vec![height * width * channels, 1, width * channels, channels];
    }
    (0..shape.len()).map(|d| shape[d + 1..].iter().product()).collect()
}
