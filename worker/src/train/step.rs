//! The joint step: forward at all widths, the global joint loss, one backward pass, commit.

use anybit_anyprec::joint::{self, WidthOutput};
use anybit_anyprec::models::Model;
use anybit_anyprec::native::{self, TensorList};
use anybit_anyprec::nn::Mode;
use anybit_anyprec::optim::Optimizer;
use anybit_shared::ids::{BitWidth, GlobalStep, Rank};
use anybit_shared::spec::{Precision, Schedule, TrainSpec};
use tch::{Device, Kind, TchError, Tensor};

use super::TrainError;
use super::tally::{Tally, WidthFigures};
use crate::dist::{Reducer, Replicas};

/// One group on the device: what one batch norm sees.
pub struct Group {
    /// [samples, 3, height, width], channels-last.
    pub images: Tensor,
    /// [samples] int64.
    pub labels: Tensor,
    /// Number of its first sample, counted over the whole run.
    pub first_sample: u64,
}

/// Why every rank skipped a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Skip {
    /// Widths whose loss was not finite; empty when it was the reduced gradient.
    pub widths: Vec<BitWidth>,
    /// For people.
    pub reason: String,
}

/// What a step did; the same on every rank.
pub struct Stepped {
    /// Figures over the global batch, highest width first.
    pub widths: Vec<WidthFigures>,
    /// L2 norm of the joint gradient; 0 for a step skipped by its loss.
    pub gradient_norm: f64,
    /// Set if nothing was committed.
    pub skip: Option<Skip>,
    /// True if any rank was asked to stop.
    pub stop_requested: bool,
}

/// One rank's replica of the training state and its way to the others.
pub struct Replica {
    /// The network.
    pub model: Model,
    /// Its optimizer.
    pub optimizer: Optimizer,
    /// Committed steps.
    pub step: GlobalStep,
    /// Skipped steps so far.
    pub skipped: u64,
    /// Skipped steps in a row.
    pub skipped_in_a_row: u32,
    replicas: Replicas,
    reducer: Option<Reducer>,
    parameters: TensorList,
    spec: TrainSpec,
}

impl Replica {
    /// A fresh replica; all ranks begin with rank 0's weights.
    pub fn new(model: Model, spec: &TrainSpec, replicas: Replicas) -> Result<Self, TrainError> {
        let registry = model.registry();
        let parameters = registry.parameter_list();
        replicas.broadcast(&parameters, Rank(0), "sharing the first weights")?;
        let reducer = replicas.reducer(registry, spec.schedule == Schedule::Sequential)?;
        let optimizer = Optimizer::new(spec, registry)?;
        let step = GlobalStep(0);
        Ok(Self {
            model,
            optimizer,
            step,
            skipped: 0,
            skipped_in_a_row: 0,
            replicas,
            reducer,
            parameters,
            spec: spec.clone(),
        })
    }

    /// The other ranks.
    pub fn replicas(&self) -> &Replicas {
        &self.replicas
    }

    /// One step over this rank's groups of the global batch, at least one.
    pub fn step(&mut self, groups: &[Group], learning_rate: f64, stop: bool) -> Result<Stepped, TrainError> {
        native::zero_gradients(&self.parameters)?;
        let mut tally = Tally::new(self.model.widths(), Some(self.spec.batch), stop);

        for (place, group) in groups.iter().enumerate() {
            let reducing = place + 1 == groups.len();
            match self.spec.schedule {
                Schedule::Joint => {
                    let outputs = self.forward(group, place)?;
                    tally.add(&outputs, &group.labels)?;
                    let loss = self.scaled(&joint::total(&outputs)?)?;
                    if reducing {
                        tally = tally.all_reduce(&self.replicas)?; // every rank knows the joint loss
                        if let Some(skip) = tally.not_finite() {
                            return self.skip(tally, skip, 0.0);
                        }
                        self.reduce_in_backward_of(&loss)?;
                    }
                    loss.f_backward().map_err(TrainError::in_backward)?;
                }
                Schedule::Sequential => {
                    let outputs = self.forward_backward_sequential(group, place, reducing)?;
                    tally.add(&outputs, &group.labels)?;
                    if reducing {
                        tally = tally.all_reduce(&self.replicas)?;
                        if let Some(skip) = tally.not_finite() {
                            return self.skip(tally, skip, 0.0);
                        }
                    }
                }
            }
        }

        let norms = native::gradient_norms(&self.parameters)?; // equal on all ranks
        let norm = norms.iter().map(|n| n * n).sum::<f64>().sqrt();
        if !norm.is_finite() {
            let skip = self.name_gradient(&norms);
            return self.skip(tally, skip, norm);
        }
        self.commit(learning_rate)?;
        Ok(tally.stepped(norm, None))
    }

    fn mode(group: &Group, place: usize) -> Mode {
        Mode::Train { group: place as u32, first_sample: group.first_sample }
    }

    fn forward(&self, group: &Group, place: usize) -> Result<Vec<WidthOutput>, TchError> {
        joint::forward(&self.model, &group.images, &group.labels, self.spec.distill, Self::mode(group, place))
    }

    /// Each width's graph lives from its forward to its backward pass; the last width of the last
    /// group reduces.
    fn forward_backward_sequential(
        &mut self,
        group: &Group,
        place: usize,
        reducing: bool,
    ) -> Result<Vec<WidthOutput>, TrainError> {
        let last = self.model.widths().last().copied();
        let factor = self.loss_factor();
        let (reducer, mut lost) = (&mut self.reducer, None);
        let outputs = joint::forward_sequential(
            &self.model,
            &group.images,
            &group.labels,
            self.spec.distill,
            Self::mode(group, place),
            |output| {
                let loss = output.loss.f_mul_scalar(factor)?;
                if let (true, true, Some(reducer)) = (reducing, Some(output.width) == last, reducer.as_mut())
                {
                    lost = reducer.reduce_in_backward_of(&loss).err();
                }
                loss.f_backward()
            },
        )
        .map_err(TrainError::in_backward)?;
        lost.map_or(Ok(outputs), |error| Err(error.into()))
    }

    /// The Reducer divides by the number of ranks; a group's mean loss counts for one of all the
    /// groups.
    fn loss_factor(&self) -> f64 {
        f64::from(self.replicas.world_size()) / f64::from(self.spec.groups())
    }

    fn scaled(&self, loss: &Tensor) -> Result<Tensor, TchError> {
        loss.f_mul_scalar(self.loss_factor())
    }

    fn reduce_in_backward_of(&mut self, loss: &Tensor) -> Result<(), TrainError> {
        self.reducer
            .as_mut()
            .map_or(Ok(()), |reducer| reducer.reduce_in_backward_of(loss))
            .map_err(TrainError::from)
    }

    /// Parameters and running statistics move together.
    fn commit(&mut self, learning_rate: f64) -> Result<(), TrainError> {
        self.optimizer.step(learning_rate)?;
        self.model.registry_mut().commit_statistics()?;
        self.step.0 += 1;
        self.skipped_in_a_row = 0;
        Ok(())
    }

    /// Parameters and running statistics stay as they were.
    fn skip(&mut self, tally: Tally, skip: Skip, norm: f64) -> Result<Stepped, TrainError> {
        self.model.registry_mut().discard_statistics()?;
        self.skipped += 1;
        self.skipped_in_a_row += 1;
        Ok(tally.stepped(norm, Some(skip)))
    }

    /// Says whose gradient was not finite: a width's, where the parameter is a width's own.
    fn name_gradient(&self, norms: &[f64]) -> Skip {
        let parameters = self.model.registry().parameters();
        let name =
            parameters.iter().zip(norms).find(|(_, norm)| !norm.is_finite()).map(|(p, _)| p.name.as_str());
        let width = name
            .and_then(|name| name.split(".bn_dict.").nth(1)?.split('.').next()?.parse::<i64>().ok())
            .and_then(|bits| BitWidth::new(bits).ok());
        let reason = match name {
            Some(name) => format!("the gradient of {name} is not finite"),
            None => "the norm of the joint gradient is not finite".to_owned(),
        };
        Skip { widths: width.into_iter().collect(), reason }
    }
}

/// The tensor type of a precision.
pub fn kind(precision: Precision) -> Kind {
    match precision {
        Precision::Float32 => Kind::Float,
        Precision::Float64 => Kind::Double,
    }
}

/// A group on the device from rows in NHWC order (`samples * side * side * 3` floats) and labels.
pub fn group(
    images: &[f32],
    labels: &[i64],
    side: i64,
    first_sample: u64,
    kind: Kind,
    device: Device,
) -> Result<Group, TchError> {
    let samples = labels.len() as i64;
    // [N, H, W, C] in memory seen as [N, C, H, W]: channels-last without a copy.
    let images = Tensor::f_from_slice(images)?.f_view([samples, side, side, 3])?.f_permute([0, 3, 1, 2])?;
    Ok(Group {
        images: images.f_to_device(device)?.f_to_kind(kind)?,
        labels: Tensor::f_from_slice(labels)?.f_to_device(device)?,
        first_sample,
    })
}
