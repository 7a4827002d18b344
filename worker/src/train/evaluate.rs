//! The test set at every width, shared among the ranks.

use std::sync::Arc;

use anybit_anyprec::joint;
use anybit_anyprec::nn::Mode;
use anybit_shared::spec::{Distill, JobSpec};
use tch::Device;

use super::TrainError;
use super::step::{Replica, group, kind};
use super::tally::Tally;
use crate::data::{Evaluation, LoaderOptions, Resizer, Samples};

/// Images a forward pass, at most: a group is what is known to fit in memory, and in training it
/// leaves room for the backward pass.
fn batch(spec: &JobSpec) -> u32 {
    spec.train.group().min(256)
}

/// Figures over the whole test set: losses against the labels, with running statistics. The
/// statistics must have been averaged over the ranks. Every rank gets the same figures. `alive` is
/// called after every batch.
pub fn evaluate(
    replica: &Replica,
    spec: &JobSpec,
    test: &Arc<dyn Samples>,
    device: Device,
    mut alive: impl FnMut(),
) -> Result<Tally, TrainError> {
    let replicas = replica.replicas();
    let resizer = Resizer::new(&spec.data);
    let (rank, world) = (replicas.rank(), replicas.world_size());
    let mut mine = Evaluation::new(test, &resizer, rank, world, batch(spec), LoaderOptions::default())?;
    let mut tally = Tally::new(replica.model.widths(), None, false);
    while let Some(batch) = mine.next() {
        let batch = batch?;
        for part in &batch.groups {
            let side = i64::from(spec.data.image_size);
            let input = group(&part.images, &part.labels, side, 0, kind(spec.train.precision), device)?;
            let outputs = tch::no_grad(|| {
                joint::forward(&replica.model, &input.images, &input.labels, Distill::Hard, Mode::Evaluate)
            })?;
            tally.add(&outputs, &input.labels)?;
        }
        mine.recycle(batch);
        alive();
    }
    tally.all_reduce(replicas)
}
