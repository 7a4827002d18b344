//! One rank's training, from its assignment to the last step.

use std::sync::Arc;
use std::time::Instant;

use anybit_anyprec::models::Model;
use anybit_anyprec::optim::learning_rate;
use anybit_proto::v1::trainer_phase::Phase;
use anybit_shared::spec::JobSpec;
use tch::Device;

use super::evaluate::evaluate;
use super::report::Reporter;
use super::state::{self, Position, Restored};
use super::step::{Group, Replica, Stepped, group, kind};
use super::{Ending, TrainError};
use crate::assignment::Assignment;
use crate::data::{Batch, Dataset, Loader, LoaderOptions, Resizer, Samples, Share, Split, sampler};
use crate::dist::{Meeting, Replicas};
use crate::trainer_link::TrainerLink;

/// The data sets and what follows from their sizes.
struct Plan {
    train: Arc<dyn Samples>,
    test: Arc<dyn Samples>,
    /// Steps in all, skipped ones included.
    steps: u64,
    share: Share,
}

impl Plan {
    fn open(assignment: &Assignment) -> Result<Self, TrainError> {
        let spec = &assignment.spec;
        let open = |split| Dataset::open(&spec.data, spec.model.classes, &assignment.data_roots, split);
        let (train, test) = (open(Split::Train)?, open(Split::Test)?);
        let steps = match (spec.train.steps, spec.train.epochs) {
            (Some(steps), _) => steps,
            (None, epochs) => sampler::total_steps(epochs.unwrap_or(1), train.count(), spec.train.batch),
        };
        let share = Share {
            seed: spec.train.seed,
            group: spec.train.group(),
            groups: spec.train.groups(),
            rank: assignment.rank,
            world_size: assignment.world_size,
        };
        Ok(Self { train: Arc::new(train), test: Arc::new(test), steps, share })
    }

    fn epoch(&self, offset: u64) -> f64 {
        sampler::epochs_at(self.train.count(), offset)
    }

    fn my_groups(&self) -> u32 {
        let mine = sampler::groups_of(self.share.rank.0, self.share.world_size, self.share.groups);
        mine.len() as u32
    }

    /// True if a multiple of `every` epochs lies in (before, after]; never for 0.
    fn crosses_epochs(&self, before: u64, after: u64, every: u32) -> bool {
        let samples = self.train.count().get().saturating_mul(every.into());
        samples > 0 && before / samples < after / samples
    }
}

/// Trains one rank of a generation to its end.
pub fn run(assignment: &Assignment, link: &TrainerLink) -> Result<Ending, TrainError> {
    let spec = &assignment.spec;
    let device = Device::Cpu;
    let plan = Plan::open(assignment)?; // a wrong path should fail before anyone waits
    let replicas = meet(assignment)?;
    link.phase(Phase::Rendezvous, anybit_shared::ids::GlobalStep(0), "");

    let model = Model::build(&spec.model, spec.train.seed, kind(spec.train.precision), device)?;
    let mut replica = Replica::new(model, &spec.train, replicas)?;
    let restored = state::restore(&mut replica, assignment)?;
    let mut saved = restored.is_some().then_some(replica.step);
    let Restored { mut position, source } = restored.unwrap_or_default();
    let folder = source.as_ref().map(|s| s.path.display().to_string()).unwrap_or_default();
    let mut reporter = Reporter::new(assignment, link);
    if let Some(source) = &source {
        // Its first report may have been lost with the agent that held it.
        reporter.checkpoint(source, plan.epoch(position.sample_offset), 0.0);
    }
    tracing::info!(
        rank = %assignment.rank, world_size = assignment.world_size, step = %replica.step,
        epoch = plan.epoch(position.sample_offset), restored_from = folder, "training begins"
    );
    link.phase(Phase::Training, replica.step, &folder);

    let resizer = Resizer::new(&spec.data);
    let mut loader = Loader::new(
        plan.train.clone(),
        resizer,
        plan.share,
        position.sample_offset,
        LoaderOptions::default(),
    )?;
    let end = plan.steps.saturating_mul(plan.share.batch());
    let mut evaluated = None;
    while position.sample_offset < end {
        let before = position.sample_offset;
        let start = Instant::now();
        let batch = loader.next()?;
        let waited = start.elapsed();
        let rate = learning_rate(&spec.train, plan.epoch(before));
        let groups = groups(&batch, spec, plan.share, device)?;
        let stepped = replica.step(&groups, rate, link.stop_requested())?;
        loader.recycle(batch);
        position.sample_offset += plan.share.batch();
        let after = position.sample_offset;
        reporter.step(&replica, &stepped, rate, start.elapsed(), waited, after, plan.epoch(after), end);
        give_up_if_non_finite(&replica, &stepped, spec)?;

        let last = after >= end || stepped.stop_requested;
        let evaluation =
            last && !stepped.stop_requested || plan.crosses_epochs(before, after, spec.train.evaluate_epochs);
        let checkpoint = last
            || plan.crosses_epochs(before, after, spec.checkpoint.every_epochs)
            || (stepped.skip.is_none()
                && spec.checkpoint.every_steps > 0
                && replica.step.0 % spec.checkpoint.every_steps == 0);
        if evaluation || checkpoint {
            replica.replicas().average_statistics(
                replica.model.registry(),
                plan.my_groups(),
                plan.share.groups,
            )?;
        }
        if evaluation {
            let start = Instant::now();
            let tally = evaluate(&replica, spec, &plan.test, device, || link.heartbeat(replica.step))?;
            reporter.evaluation(&replica, &tally, plan.epoch(after), start.elapsed());
            evaluated = Some(after);
        }
        if checkpoint && saved != Some(replica.step) {
            save(&replica, position, last, &plan, assignment, &mut reporter)?;
            saved = Some(replica.step);
        }
        if stepped.stop_requested && after < end {
            return Ok(Ending::Stopped);
        }
    }
    // A generation may end between its last checkpoint and its last evaluation.
    if evaluated != Some(position.sample_offset) {
        let tally = evaluate(&replica, spec, &plan.test, device, || link.heartbeat(replica.step))?;
        reporter.evaluation(&replica, &tally, plan.epoch(position.sample_offset), std::time::Duration::ZERO);
    }
    Ok(Ending::Finished)
}

fn meet(assignment: &Assignment) -> Result<Replicas, TrainError> {
    Ok(Replicas::meet(&Meeting {
        store: assignment.store_address.clone(),
        prefix: format!("{}/{}", assignment.job, assignment.generation),
        rank: assignment.rank,
        world_size: assignment.world_size,
        interface: assignment.interface.clone(),
        collective_timeout: assignment.collective_timeout,
        rendezvous_timeout: assignment.rendezvous_timeout,
    })?)
}

fn groups(batch: &Batch, spec: &JobSpec, share: Share, device: Device) -> Result<Vec<Group>, TrainError> {
    let first = sampler::groups_of(share.rank.0, share.world_size, share.groups).start;
    let side = i64::from(spec.data.image_size);
    let kind = kind(spec.train.precision);
    let group = |(place, part): (u32, &crate::data::GroupBatch)| {
        let first_sample = batch.offset + u64::from(place) * u64::from(share.group);
        Ok(group(&part.images, &part.labels, side, first_sample, kind, device)?)
    };
    (first..).zip(&batch.groups).map(group).collect()
}

fn give_up_if_non_finite(replica: &Replica, stepped: &Stepped, spec: &JobSpec) -> Result<(), TrainError> {
    match &stepped.skip {
        Some(skip) if replica.skipped_in_a_row >= spec.train.max_skipped_steps => {
            Err(TrainError::NonFinite { reason: skip.reason.clone(), steps: replica.skipped_in_a_row })
        }
        _ => Ok(()),
    }
}

/// All ranks compare their parameters; rank 0 writes. Only the `last` checkpoint must succeed.
fn save(
    replica: &Replica,
    position: Position,
    last: bool,
    plan: &Plan,
    assignment: &Assignment,
    reporter: &mut Reporter<'_>,
) -> Result<(), TrainError> {
    if !state::replicas_agree(replica)? {
        return Err(TrainError::Diverged(replica.step));
    }
    if replica.replicas().rank().0 == 0 {
        let epoch = plan.epoch(position.sample_offset);
        match state::save(replica, position, epoch, assignment) {
            Ok((written, seconds)) => {
                tracing::info!("checkpoint {} written in {seconds:.2} s", written.path.display());
                reporter.checkpoint(&written, epoch, seconds);
                state::prune(assignment);
            }
            // The trained steps are worth more than the checkpoint: the next one may succeed.
            Err(TrainError::Checkpoint(error)) if !last => {
                tracing::error!(step = %replica.step, "no checkpoint was written, training goes on: {error}");
            }
            Err(error) => return Err(error),
        }
    }
    // The others would otherwise wait in the next step's all-reduce, under its shorter timeout.
    Ok(replica.replicas().wait_for_all("waiting for the checkpoint")?)
}
