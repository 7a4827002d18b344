//! Replay of golden files: a few joint training steps in float64 from a start made by formula,
//! compared number by number with what a reference implementation recorded.
//!
//! A file is safetensors; its metadata names the case and its tensors are logits, losses, digests
//! of gradients and of final tensors. The format is described in `tests/golden/README.md`.

use std::collections::HashMap;
use std::path::Path;

use anybit_shared::ids::BitWidth;
use anybit_shared::spec::{Distill, ModelName, ModelSpec, OptimizerName, Precision, Schedule, TrainSpec};
use safetensors::{Dtype, SafeTensors};
use tch::{Device, Kind, TchError, Tensor};

use crate::models::Model;
use crate::nn::{LoadError, Mode, NamedTensor, Pass};
use crate::optim::Optimizer;
use crate::{joint, native};

/// A number may be off by this share of the largest magnitude in its tensor, plus [`FLOOR`].
pub const RELATIVE_BOUND: f64 = 1e-9;
/// Added to the largest magnitude: some gradients are exactly zero in real arithmetic. So the
/// bound is `|a - b| <= 1e-9 * max|a| + 1e-12`.
pub const FLOOR: f64 = 1e-3;
/// Entries of a digest beyond the sum and the norm.
const DIGEST_ENTRIES: usize = 16;

/// Why a golden file could not be replayed.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// The file cannot be read.
    #[error("cannot read it: {0}")]
    Io(#[from] std::io::Error),
    /// It is no safetensors file.
    #[error("not a safetensors file: {0}")]
    Format(#[from] safetensors::SafeTensorError),
    /// Its metadata lacks a key or holds a value that is not understood.
    #[error("metadata {key:?} is {value:?}, expected {expected}")]
    Metadata {
        /// Metadata key.
        key: &'static str,
        /// What it holds, empty when missing.
        value: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// A tensor is missing, unknown or misshapen.
    #[error("tensor {name}: {problem}")]
    Tensor {
        /// Tensor key.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// libtorch failed.
    #[error(transparent)]
    Torch(#[from] TchError),
    /// The start could not be set.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// How far a replay was from its file.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The largest `|a - b| / (max|a| + FLOOR)` over all tensors; infinite where one side is not a
    /// number. Within [`RELATIVE_BOUND`] the file passes.
    pub worst: f64,
    /// The tensor with that error.
    pub worst_key: String,
    /// Tensors compared.
    pub tensors: usize,
}

impl Report {
    /// True within the bound.
    pub fn passes(&self) -> bool {
        self.worst <= RELATIVE_BOUND
    }
}

/// The case that a file's metadata describes.
struct Case {
    model: ModelSpec,
    train: TrainSpec,
    image_size: i64,
    steps: u64,
}

impl Case {
    fn parse(metadata: &HashMap<String, String>) -> Result<Self, GoldenError> {
        let text = |key: &'static str| metadata.get(key).map_or("", String::as_str).trim();
        let wrong = |key, expected| GoldenError::Metadata { key, value: text(key).to_owned(), expected };
        let float = |key| text(key).parse::<f64>().map_err(|_| wrong(key, "a number"));
        let whole = |key, most: u32| match text(key).parse::<u32>() {
            Ok(value) if (1..=most).contains(&value) => Ok(value),
            _ => Err(wrong(key, "a positive whole number of sane size")),
        };
        let list = |key| {
            let parts = text(key).split(',').filter(|part| !part.is_empty());
            parts.map(|part| part.trim().parse::<u32>()).collect::<Result<Vec<_>, _>>()
        };
        if text("dropout").parse() != Ok(0.0) {
            return Err(wrong("dropout", "0"));
        }
        let name = match text("model") {
            "resnet20" => ModelName::Resnet20,
            "resnet50" => ModelName::Resnet50,
            "cnn8" => ModelName::Cnn8,
            _ => return Err(wrong("model", "resnet20, resnet50 or cnn8")),
        };
        let stages = match name {
            ModelName::Resnet20 => 3,
            ModelName::Resnet50 => 4,
            ModelName::Cnn8 => 0,
        };
        let mut bits = list("bits")
            .ok()
            .and_then(|bits| {
                bits.into_iter().map(|b| BitWidth::new(b.into()).ok()).collect::<Option<Vec<_>>>()
            })
            .filter(|bits| !bits.is_empty())
            .ok_or_else(|| wrong("bits", "a list of widths, 1 to 8 and 32"))?;
        bits.sort_unstable();
        bits.dedup();
        let layers = list("layers").map_err(|_| wrong("layers", "a list of depths, or nothing"))?;
        if !layers.is_empty() && (layers.len() != stages || layers.iter().any(|n| *n > 256)) {
            return Err(wrong("layers", "one depth per stage, or nothing"));
        }
        let (batch, classes) = (whole("batch", 4096)?, whole("classes", 100_000)?);
        Ok(Self {
            model: ModelSpec {
                name,
                bits,
                classes,
                expand: if text("expand").is_empty() { None } else { Some(whole("expand", 64)?) },
                layers: (!layers.is_empty()).then_some(layers),
                dropout: 0.0,
            },
            train: TrainSpec {
                batch,
                group: None,
                epochs: None,
                steps: Some(whole("steps", 1000)?.into()),
                seed: 0,
                optimizer: match text("optimizer") {
                    "sgd" => OptimizerName::Sgd,
                    "adam" => OptimizerName::Adam,
                    _ => return Err(wrong("optimizer", "sgd or adam")),
                },
                learning_rate: float("lr")?,
                momentum: float("momentum")?,
                weight_decay: float("weight_decay")?,
                milestones: Vec::new(),
                gamma: 1.0,
                distill: match text("distill") {
                    "hard" => Distill::Hard,
                    "soft" => Distill::Soft,
                    "recursive" => Distill::Recursive,
                    _ => return Err(wrong("distill", "hard, soft or recursive")),
                },
                schedule: Schedule::Joint,
                precision: Precision::Float64,
                max_skipped_steps: 1,
                evaluate_epochs: 0,
            },
            image_size: whole("image_size", 1024)?.into(),
            steps: whole("steps", 1000)?.into(),
        })
    }
}

/// `n` numbers in [0, 1): SplitMix64 seeded with the FNV-1a 64 hash of `name`.
fn uniform(name: &str, n: usize) -> impl Iterator<Item = f64> + use<> {
    let seed =
        name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |h, c| (h ^ u64::from(c)).wrapping_mul(0x100_0000_01B3));
    (1..=n as u64).map(move |i| {
        let mut z = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    })
}

/// The start of a golden run: every parameter by formula from its name; running statistics as
/// they are.
pub fn fill(model: &mut Model) -> Result<(), LoadError> {
    let mut state = model.state();
    for NamedTensor { name, tensor } in &mut state {
        if name.contains("num_batches") || name.contains("running") {
            continue;
        }
        let shape = tensor.size();
        let (count, fan_in) = (tensor.numel(), shape.iter().skip(1).product::<i64>());
        let values: Vec<f64> = uniform(name, count)
            .map(|u| match (shape.len() >= 2, name.ends_with("weight")) {
                (true, _) => (2.0 * u - 1.0) * (3.0 / fan_in as f64).sqrt(),
                (false, true) => 0.5 + u,
                (false, false) => u - 0.5,
            })
            .collect();
        *tensor = Tensor::f_from_slice(&values)?.f_view(shape.as_slice())?;
    }
    model.load(&state)
}

/// The images of one golden step, [batch, 3, size, size] float64.
pub fn images(name: &str, batch: i64, size: i64) -> Result<Tensor, TchError> {
    let values: Vec<f64> =
        uniform(name, (batch * 3 * size * size) as usize).map(|u| (u * 2.0 - 1.0) * 1.7).collect();
    Tensor::f_from_slice(&values)?.f_view([batch, 3, size, size])
}

/// The labels of one golden step, [batch] int64.
pub fn labels(name: &str, batch: i64, classes: u32) -> Result<Tensor, TchError> {
    let values: Vec<i64> = uniform(name, batch as usize).map(|u| (u * f64::from(classes)) as i64).collect();
    Tensor::f_from_slice(&values)
}

/// `[sum, L2 norm, entries]` of the flattened tensor.
fn digest(tensor: &Tensor) -> Result<Vec<f64>, TchError> {
    let values = numbers(tensor)?;
    let entries = values.len().min(DIGEST_ENTRIES);
    let mut out =
        vec![tensor.f_sum(None::<Kind>)?.f_double_value(&[])?, tensor.f_norm()?.f_double_value(&[])?];
    out.extend((0..entries).map(|i| values[((values.len() - 1) * i).checked_div(entries - 1).unwrap_or(0)]));
    Ok(out)
}

/// All entries in row-major order.
fn numbers(tensor: &Tensor) -> Result<Vec<f64>, TchError> {
    Vec::<f64>::try_from(
        &tensor
            .f_detach()?
            .f_to_device(Device::Cpu)?
            .f_to_kind(Kind::Double)?
            .f_contiguous()?
            .f_view([-1])?,
    )
}

/// Compares numbers with a file's and remembers the worst.
struct Check<'a> {
    file: &'a SafeTensors<'a>,
    seen: Vec<String>,
    report: Report,
}

impl Check<'_> {
    fn compare(&mut self, key: String, ours: &[f64]) -> Result<(), GoldenError> {
        let wrong = |problem: String| GoldenError::Tensor { name: key.clone(), problem };
        let theirs = self.file.tensor(&key).map_err(|_| wrong("missing from the file".to_owned()))?;
        if theirs.dtype() != Dtype::F64 {
            return Err(wrong(format!("is {:?}, expected F64", theirs.dtype())));
        }
        let theirs: Vec<f64> =
            theirs.data().chunks_exact(8).filter_map(|b| b.try_into().ok().map(f64::from_le_bytes)).collect();
        if theirs.len() != ours.len() {
            return Err(wrong(format!("has {} numbers, expected {}", theirs.len(), ours.len())));
        }
        let largest = theirs.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let off = theirs
            .iter()
            .zip(ours)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0f64, |m, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
        let error = off / (largest + FLOOR);
        let error = if error.is_nan() { f64::INFINITY } else { error };
        if error > self.report.worst || self.report.worst_key.is_empty() {
            self.report.worst = error;
            self.report.worst_key.clone_from(&key);
        }
        self.report.tensors += 1;
        self.seen.push(key);
        Ok(())
    }
}

/// Replays one file on `device` and reports its worst error.
pub fn replay(path: &Path, device: Device) -> Result<Report, GoldenError> {
    let bytes = std::fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes)?;
    let case = Case::parse(metadata.metadata().as_ref().unwrap_or(&HashMap::new()))?;

    let mut check = Check {
        file: &file,
        seen: Vec::new(),
        report: Report { worst: 0.0, worst_key: String::new(), tensors: 0 },
    };
    let mut model = Model::build(&case.model, case.train.seed, Kind::Double, device)?;
    fill(&mut model)?;
    let mut optimizer = Optimizer::new(&case.train, model.registry())?;
    let parameters = model.registry().parameter_list();
    let batch = i64::from(case.train.batch);
    for s in 0..case.steps {
        let x = images(&format!("input.{s}"), batch, case.image_size)?.f_to_device(device)?;
        let y = labels(&format!("target.{s}"), batch, case.model.classes)?.f_to_device(device)?;
        native::zero_gradients(&parameters)?;
        let mode = Mode::Train { group: 0, first_sample: 0 };
        let outputs = joint::forward(&model, &x, &y, case.train.distill, mode)?;
        joint::total(&outputs)?.f_backward()?;
        for output in &outputs {
            check.compare(format!("logits.{s}.{}", output.width), &numbers(&output.logits)?)?;
            check.compare(format!("loss.{s}.{}", output.width), &numbers(&output.loss)?)?;
        }
        for parameter in model.registry().parameters() {
            check.compare(format!("grad.{s}.{}", parameter.name), &digest(&parameter.tensor.f_grad()?)?)?;
        }
        optimizer.step(case.train.learning_rate)?;
        model.registry_mut().commit_statistics()?;
    }
    let x = images("input.eval", batch, case.image_size)?.f_to_device(device)?;
    let pass = Pass { widths: model.widths(), mode: Mode::Evaluate };
    for (width, logits) in model.widths().iter().zip(tch::no_grad(|| model.forward(&x, &pass))?) {
        check.compare(format!("eval.{width}"), &numbers(&logits)?)?;
    }
    for NamedTensor { name, tensor } in model.state() {
        if !name.ends_with("num_batches_tracked") {
            check.compare(format!("final.{name}"), &digest(&tensor)?)?;
        }
    }
    match file.names().into_iter().find(|name| !check.seen.iter().any(|seen| seen == name)) {
        Some(name) => {
            Err(GoldenError::Tensor { name: name.to_string(), problem: "unknown to this replay".to_owned() })
        }
        None => Ok(check.report),
    }
}
