//! The job spec: what a person submits, as TOML.
//!
//! The types here are the resolved spec: every key has its value. [`JobSpec::from_toml`] reads
//! a person's file (presets, overrides, nearest-name errors) and validates; [`JobSpec::to_toml`]
//! writes it in full, and reading that again gives the same spec.

mod error;
mod parse;
pub mod preset;
mod schema;
mod suggest;
#[cfg(test)]
mod tests;
mod validate;
mod write;

use serde::{Deserialize, Serialize};

use crate::ids::BitWidth;

pub use error::{Problem, SpecError};
pub use parse::MAX_BYTES;
pub use validate::output_side;

/// A job, resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// For people; same rule as ids.
    pub name: String,
    /// The network.
    pub model: ModelSpec,
    /// How it is trained.
    pub train: TrainSpec,
    /// On what.
    pub data: DataSpec,
    /// When its state is saved.
    #[serde(default)]
    pub checkpoint: CheckpointSpec,
    /// What it runs on.
    #[serde(default)]
    pub resources: ResourceSpec,
}

/// The network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Which architecture.
    pub name: ModelName,
    /// Bit-widths trained jointly; any list of 1 to 8 and 32, ascending, without repeats. One alone
    /// is a dedicated model.
    #[serde(default = "default_bits")]
    pub bits: Vec<BitWidth>,
    /// Classes of the last layer.
    pub classes: u32,
    /// Width multiplier of `resnet20` and `cnn8`; refused for `resnet50`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expand: Option<u32>,
    /// Residual blocks per stage, for the ResNets; by default 3,3,3 and 3,4,6,3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<u32>>,
    /// Dropout probability before CNN-8's last convolution, in [0, 1).
    #[serde(default = "default_dropout")]
    pub dropout: f64,
}

/// The architectures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelName {
    /// CIFAR ResNet, pre-activation.
    Resnet20,
    /// ImageNet ResNet with bottlenecks, pre-activation.
    Resnet50,
    /// The paper's eight-layer CNN for 40x40 SVHN images.
    Cnn8,
}

impl ModelName {
    /// As the spec writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resnet20 => "resnet20",
            Self::Resnet50 => "resnet50",
            Self::Cnn8 => "cnn8",
        }
    }
}

/// How the network is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSpec {
    /// Images a step over all ranks; a multiple of `group`.
    pub batch: u32,
    /// Images that one batch norm sees and one forward pass carries. Ranks take whole groups, so
    /// the result does not depend on their number. By default `batch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    /// Passes over the training set, or `steps` instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u32>,
    /// Optimizer steps, instead of `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Seeds weights, shuffling and dropout.
    #[serde(default)]
    pub seed: u64,
    /// Which optimizer.
    pub optimizer: OptimizerName,
    /// Learning rate before the first milestone.
    pub learning_rate: f64,
    /// SGD's momentum, in [0, 1).
    #[serde(default = "default_momentum")]
    pub momentum: f64,
    /// L2 penalty, added to the gradient.
    #[serde(default)]
    pub weight_decay: f64,
    /// Epochs after which the learning rate is multiplied by `gamma`, ascending.
    #[serde(default)]
    pub milestones: Vec<f64>,
    /// Factor at each milestone.
    #[serde(default = "default_gamma")]
    pub gamma: f64,
    /// Where the lower widths' targets come from.
    #[serde(default)]
    pub distill: Distill,
    /// How the widths' graphs are ordered.
    #[serde(default)]
    pub schedule: Schedule,
    /// Arithmetic of weights and activations.
    #[serde(default)]
    pub precision: Precision,
    /// Non-finite steps in a row that fail the job.
    #[serde(default = "default_max_skipped")]
    pub max_skipped_steps: u32,
    /// Evaluate after every so many epochs (and at the end); 0: only at the end.
    #[serde(default = "one")]
    pub evaluate_epochs: u32,
}

/// The optimizers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// SGD with momentum (no dampening, no Nesterov).
    Sgd,
    /// Adam, betas 0.9 and 0.999, epsilon 1e-8.
    Adam,
}

/// Where a width's training target comes from. The highest width always learns from the labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distill {
    /// Labels at every width.
    Hard,
    /// The highest width's softmax.
    Soft,
    /// The next higher width's softmax.
    #[default]
    Recursive,
}

/// How the widths' graphs are ordered within a step; the gradient is the same to rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// All widths layer by layer, one backward pass: fastest.
    #[default]
    Joint,
    /// One width's graph alive at a time: a fifth of the activation memory at five widths.
    Sequential,
}

/// Arithmetic of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE single.
    #[default]
    Float32,
    /// IEEE double, for checking numbers.
    Float64,
}

/// The data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// File format.
    #[serde(default)]
    pub format: DataFormat,
    /// Folder with the format's files (IDX: `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`,
    /// `t10k-images-idx3-ubyte`, `t10k-labels-idx1-ubyte`, each plain or `.gz`). Relative to the
    /// worker's data roots, and never outside them.
    pub path: String,
    /// Side in pixels of the square network input; images are resized to it (bilinear).
    pub image_size: u32,
    /// Subtracted from pixels in [0, 1].
    #[serde(default = "half")]
    pub mean: f64,
    /// Then divided by.
    #[serde(default = "half")]
    pub std: f64,
}

/// File formats of data sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataFormat {
    /// The MNIST family's IDX files.
    #[default]
    Idx,
}

/// When the job's state is saved. A checkpoint is always written at the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointSpec {
    /// After every so many epochs; 0: not by epochs.
    #[serde(default = "one")]
    pub every_epochs: u32,
    /// After every so many steps; 0: not by steps.
    #[serde(default)]
    pub every_steps: u64,
    /// Newest checkpoints kept; older ones are deleted. At least 1.
    #[serde(default = "default_keep")]
    pub keep: u32,
}

/// What the job runs on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceSpec {
    /// Data-parallel trainer processes, placed all at once or not at all; at most one per group.
    #[serde(default = "one")]
    pub ranks: u32,
    /// Higher goes first.
    #[serde(default)]
    pub priority: i32,
    /// Generations after the first before the job fails.
    #[serde(default = "default_restarts")]
    pub max_restarts: u32,
}

impl Default for CheckpointSpec {
    fn default() -> Self {
        Self { every_epochs: one(), every_steps: 0, keep: default_keep() }
    }
}

impl Default for ResourceSpec {
    fn default() -> Self {
        Self { ranks: one(), priority: 0, max_restarts: default_restarts() }
    }
}

impl TrainSpec {
    /// Images per group.
    pub fn group(&self) -> u32 {
        self.group.unwrap_or(self.batch)
    }

    /// Groups per step.
    pub fn groups(&self) -> u32 {
        self.batch / self.group().max(1)
    }
}

fn default_bits() -> Vec<BitWidth> {
    [1, 2, 4, 8, 32].into_iter().filter_map(|bits| BitWidth::new(bits).ok()).collect()
}
fn default_dropout() -> f64 {
    0.5
}
fn default_momentum() -> f64 {
    0.9
}
fn default_gamma() -> f64 {
    0.1
}
fn default_max_skipped() -> u32 {
    10
}
fn default_keep() -> u32 {
    3
}
fn default_restarts() -> u32 {
    5
}
fn one() -> u32 {
    1
}
fn half() -> f64 {
    0.5
}
