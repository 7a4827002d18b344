//! SGD with momentum, Adam, and the MultiStep schedule.

use anybit_shared::spec::{OptimizerName, TrainSpec};
use tch::{TchError, Tensor};

use crate::native::{self, TensorList, ffi};
use crate::nn::{LoadError, NamedTensor, Registry};

const ADAM_BETAS: (f64, f64) = (0.9, 0.999);
const ADAM_EPSILON: f64 = 1e-8;

/// An optimizer bound to a registry's parameters. Weight decay is added to the gradient (L2).
pub struct Optimizer {
    name: OptimizerName,
    momentum: f64,
    weight_decay: f64,
    parameters: TensorList,
    /// Names of the parameters, in order.
    names: Vec<String>,
    /// One list per moment: SGD has its momentum buffer, Adam the first and second moment.
    moments: Vec<(&'static str, Vec<Tensor>, TensorList)>,
    steps: i64,
}

impl Optimizer {
    /// With moments at zero.
    pub fn new(spec: &TrainSpec, registry: &Registry) -> Result<Self, TchError> {
        let kinds: &[&'static str] = match spec.optimizer {
            OptimizerName::Sgd => &["momentum_buffer"],
            OptimizerName::Adam => &["exp_avg", "exp_avg_sq"],
        };
        let parameters = registry.parameters();
        let moments = kinds.iter().map(|kind| {
            let zeros = parameters.iter().map(|p| p.tensor.f_zeros_like()).collect::<Result<Vec<_>, _>>()?;
            let zeros: Vec<Tensor> = zeros.iter().map(Tensor::detach).collect();
            let list = TensorList::new(&zeros);
            Ok((*kind, zeros, list))
        });
        Ok(Self {
            name: spec.optimizer,
            momentum: spec.momentum,
            weight_decay: spec.weight_decay,
            parameters: registry.parameter_list(),
            names: parameters.iter().map(|p| p.name.clone()).collect(),
            moments: moments.collect::<Result<_, TchError>>()?,
            steps: 0,
        })
    }

    /// One update from the parameters' gradients. Every parameter must have one.
    pub fn step(&mut self, learning_rate: f64) -> Result<(), TchError> {
        self.steps += 1;
        let parameters = self.parameters.raw();
        match (self.name, self.moments.as_slice()) {
            (OptimizerName::Sgd, [(_, _, buffers)]) => {
                ffi::sgd_step(parameters, buffers.raw(), learning_rate, self.momentum, self.weight_decay)
            }
            (OptimizerName::Adam, [(_, _, first), (_, _, second)]) => {
                let (beta1, beta2) = ADAM_BETAS;
                let (first, second) = (first.raw(), second.raw());
                let (steps, decay) = (self.steps, self.weight_decay);
                ffi::adam_step(
                    parameters,
                    first,
                    second,
                    steps,
                    learning_rate,
                    beta1,
                    beta2,
                    ADAM_EPSILON,
                    decay,
                )
            }
            _ => return Err(TchError::Torch("the optimizer's moments do not fit its kind".to_owned())),
        }
        .map_err(native::error)
    }

    /// Moments as `{parameter}.{moment}`, and `step` ([] int64). Handles, not copies.
    pub fn state(&self) -> Vec<NamedTensor> {
        let mut state = vec![NamedTensor { name: "step".to_owned(), tensor: Tensor::from(self.steps) }];
        for (kind, tensors, _) in &self.moments {
            for (name, tensor) in self.names.iter().zip(tensors) {
                state.push(NamedTensor { name: format!("{name}.{kind}"), tensor: tensor.shallow_clone() });
            }
        }
        state
    }

    /// Copies a state in; strict about names and shapes.
    pub fn load(&mut self, values: &[NamedTensor]) -> Result<(), LoadError> {
        let given: std::collections::HashMap<&str, &Tensor> =
            values.iter().map(|v| (v.name.as_str(), &v.tensor)).collect();
        let own = self.state();
        for NamedTensor { name, tensor } in &own {
            match given.get(name.as_str()) {
                None => return Err(LoadError::Missing(name.clone())),
                Some(value) if value.size() != tensor.size() => {
                    return Err(LoadError::Shape {
                        name: name.clone(),
                        given: value.size(),
                        expected: tensor.size(),
                    });
                }
                Some(_) => {}
            }
        }
        for NamedTensor { name, mut tensor } in own {
            if let Some(value) = given.get(name.as_str()) {
                if name == "step" {
                    self.steps = i64::try_from(*value)?;
                } else {
                    tensor.f_copy_(value)?;
                }
            }
        }
        Ok(())
    }
}

/// The learning rate at `epoch` (samples consumed over samples in the set, before the step): the
/// base rate times gamma for every milestone reached.
pub fn learning_rate(spec: &TrainSpec, epoch: f64) -> f64 {
    let reached = spec.milestones.iter().filter(|milestone| epoch >= **milestone).count();
    spec.learning_rate * spec.gamma.powi(reached as i32)
}
