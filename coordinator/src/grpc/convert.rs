//! Between the generated types and the coordinator's own.

use std::collections::BTreeMap;
use std::sync::Arc;

use anybit_proto::v1::{
    self, AttachResponse, attach_request, attach_response, metric_record::Record, trainer_phase,
};
use anybit_shared::ids::{Generation, GlobalStep, JobId, Rank, WorkerId, WorkerIncarnation};
use anybit_shared::spec::JobSpec;
use prost::Message;

use super::error::ApiError;
use crate::engine::{
    AgentMessage, HeldGeneration, Hello, JobView, Liveness, NewJob, Order, Pace, WorkerStatus,
};
use crate::job::{EndKind, JobState, Phase, Report};
use crate::store::{Delivery, Figures, MetricKind, MetricRow};

const MAX_SLOTS: u32 = 1024;
const MAX_TEXT_BYTES: usize = 8 << 10;

/// What the engine needs to know of a spec.
pub(super) fn new_job(spec: &JobSpec, idempotency_key: Option<String>) -> NewJob {
    NewJob {
        name: spec.name.clone(),
        spec_toml: spec.to_toml(),
        world_size: spec.resources.ranks,
        priority: spec.resources.priority,
        max_restarts: spec.resources.max_restarts,
        bits: spec.model.bits.clone(),
        idempotency_key,
    }
}

pub(super) fn job_state(state: JobState) -> v1::JobState {
    match state {
        JobState::Queued => v1::JobState::Queued,
        JobState::Starting => v1::JobState::Starting,
        JobState::Running => v1::JobState::Running,
        JobState::Stopping => v1::JobState::Stopping,
        JobState::Succeeded => v1::JobState::Succeeded,
        JobState::Failed => v1::JobState::Failed,
        JobState::Cancelled => v1::JobState::Cancelled,
    }
}

pub(super) fn job_state_from(value: i32) -> Result<JobState, ApiError> {
    JobState::ALL
        .into_iter()
        .find(|state| job_state(*state) as i32 == value)
        .ok_or_else(|| ApiError::invalid(format!("states has {value}, which is no state of a job")))
}

/// A job as people see it.
pub(super) fn job(view: &JobView) -> v1::Job {
    let (job, info) = (&view.job, &view.job.info);
    let step = match record(view.figures.step.as_deref()) {
        Some(Record::Step(step)) => Some(step),
        _ => None,
    };
    let progress = progress(view, step.as_ref());
    let placed = job.run.iter().flat_map(|run| run.places.iter().enumerate());
    v1::Job {
        id: info.id.to_string(),
        name: info.name.clone(),
        spec_toml: info.spec_toml.clone(),
        state: job_state(job.state).into(),
        reason: job.reason.clone(),
        generation: job.generation.0,
        restarts: job.restarts,
        max_restarts: info.max_restarts,
        world_size: info.world_size,
        priority: info.priority,
        created_unix_ms: info.created_unix_ms,
        started_unix_ms: job.started_unix_ms,
        ended_unix_ms: job.ended_unix_ms,
        progress: Some(progress),
        training: step.map(|step| step.widths).unwrap_or_default(),
        evaluation: match record(view.figures.evaluation.as_deref()) {
            Some(Record::Evaluation(evaluation)) => Some(evaluation),
            _ => None,
        },
        ranks: placed
            .map(|(rank, place)| v1::RankPlacement { rank: rank as u32, worker_id: place.worker.to_string() })
            .collect(),
        checkpoint: view.figures.checkpoint.as_deref().and_then(checkpoint),
        bits: info.bits.iter().map(|bits| bits.bits()).collect(),
        dropped_step_records: view.figures.dropped_step_records,
    }
}

fn progress(view: &JobView, step: Option<&v1::StepMetrics>) -> v1::Progress {
    let Figures { skipped_steps, .. } = view.figures;
    let Some(step) = step else { return v1::Progress { skipped_steps, ..Default::default() } };
    let left = step.total_steps.saturating_sub(step.step) as f64;
    let seconds = view.pace.map_or(step.seconds, Pace::seconds_per_step);
    let eta = left * seconds;
    let live = !view.job.state.is_terminal();
    v1::Progress {
        step: step.step,
        total_steps: step.total_steps,
        epoch: step.epoch,
        total_epochs: total_epochs(&view.job.info.spec_toml, step),
        images_per_second: step.images_per_second,
        learning_rate: step.learning_rate,
        skipped_steps,
        eta_seconds: (live && eta.is_finite()).then_some(eta),
    }
}

/// As the spec says; or, for one that counts steps, by proportion.
fn total_epochs(spec_toml: &str, step: &v1::StepMetrics) -> f64 {
    let spec = toml::from_str::<JobSpec>(spec_toml).ok();
    match spec.and_then(|spec| spec.train.epochs) {
        Some(epochs) => f64::from(epochs),
        None if step.step > 0 => step.epoch * step.total_steps as f64 / step.step as f64,
        None => 0.0,
    }
}

fn record(payload: Option<&[u8]>) -> Option<Record> {
    v1::MetricRecord::decode(payload?).ok()?.record
}

/// How many of a job's checkpoints its trainers leave on disk.
pub(super) fn checkpoints_kept(spec_toml: &str) -> u32 {
    let spec = toml::from_str::<JobSpec>(spec_toml).ok();
    // A spec of another version may not be readable: the newest one is there in any case.
    spec.map_or(1, |spec| spec.checkpoint.keep.max(1))
}

/// The checkpoint in a stored record.
pub(super) fn checkpoint(payload: &[u8]) -> Option<v1::CheckpointRecord> {
    match record(Some(payload)) {
        Some(Record::Checkpoint(checkpoint)) => Some(checkpoint),
        _ => None,
    }
}

pub(super) fn worker(status: WorkerStatus) -> v1::Worker {
    let ranks = status.ranks.iter().map(|held| v1::HeldRank {
        job_id: held.job.to_string(),
        generation: held.generation.0,
        rank: held.rank.0,
    });
    v1::Worker {
        id: status.worker.to_string(),
        incarnation: status.incarnation.to_string(),
        slots: status.slots,
        used_slots: status.used_slots,
        alive: status.liveness == Liveness::Alive,
        attached_unix_ms: status.attached_unix_ms,
        lease_age_ms: u64::try_from(status.silence.as_millis()).unwrap_or(u64::MAX),
        ranks: ranks.collect(),
        hostname: status.hostname,
        version: status.version,
    }
}

pub(super) fn hello(hello: v1::Hello) -> Result<Hello, ApiError> {
    if !(1..=MAX_SLOTS).contains(&hello.slots) {
        let slots = hello.slots;
        return Err(ApiError::invalid(format!("an agent offers 1 to {MAX_SLOTS} slots, not {slots}")));
    }
    let mut held: BTreeMap<(JobId, Generation), HeldGeneration> = BTreeMap::new();
    for generation in hello.held {
        let job = JobId::new(generation.job_id)?;
        let running = generation.running_ranks.into_iter().map(Rank);
        let key = (job.clone(), Generation(generation.generation));
        let entry = held.entry(key).or_insert_with_key(|(job, generation)| HeldGeneration {
            job: job.clone(),
            generation: *generation,
            running: Default::default(),
        });
        entry.running.extend(running);
    }
    Ok(Hello {
        worker: WorkerId::new(hello.worker_id)?,
        incarnation: WorkerIncarnation::new(hello.incarnation)?,
        hostname: clip(hello.hostname),
        version: clip(hello.version),
        slots: hello.slots,
        held: held.into_values().collect(),
    })
}

/// What an agent's message says to the engine.
pub(super) fn report(message: attach_request::Message) -> Result<AgentMessage, ApiError> {
    use attach_request::Message as Said;
    let (job_id, generation, report) = match message {
        Said::StoreReady(ready) => {
            let opened = if ready.error.is_empty() { Ok(ready.address) } else { Err(clip(ready.error)) };
            (ready.job_id, ready.generation, Report::StoreReady(opened))
        }
        Said::TrainerPhase(said) => {
            let report = Report::Phase {
                rank: Rank(said.rank),
                phase: phase(said.phase())?,
                step: GlobalStep(said.step),
            };
            (said.job_id, said.generation, report)
        }
        Said::RankExited(exited) => {
            let report = Report::Exited {
                rank: Rank(exited.rank),
                kind: end_kind(exited.kind()),
                step: GlobalStep(exited.step),
                message: clip(exited.message),
            };
            (exited.job_id, exited.generation, report)
        }
        Said::GenerationStopped(stopped) => (stopped.job_id, stopped.generation, Report::Stopped),
        Said::Draining(_) => return Ok(AgentMessage::Draining),
        Said::Hello(_) | Said::Heartbeat(_) | Said::Metrics(_) | Said::Log(_) => {
            return Err(ApiError::invalid("the message is no report of a generation"));
        }
    };
    Ok(AgentMessage::Report { job: JobId::new(job_id)?, generation: Generation(generation), report })
}

fn phase(phase: trainer_phase::Phase) -> Result<Phase, ApiError> {
    match phase {
        trainer_phase::Phase::Unspecified => Err(ApiError::invalid("the trainer's phase is not known")),
        trainer_phase::Phase::Spawned => Ok(Phase::Spawned),
        trainer_phase::Phase::Rendezvous => Ok(Phase::Rendezvous),
        trainer_phase::Phase::Training => Ok(Phase::Training),
    }
}

fn end_kind(kind: v1::ExitKind) -> EndKind {
    match kind {
        v1::ExitKind::Succeeded => EndKind::Succeeded,
        v1::ExitKind::Stopped => EndKind::Stopped,
        v1::ExitKind::UserError => EndKind::UserError,
        v1::ExitKind::OutOfMemory => EndKind::OutOfMemory,
        v1::ExitKind::NonFinite => EndKind::NonFinite,
        v1::ExitKind::PeerLost => EndKind::PeerLost,
        v1::ExitKind::Diverged => EndKind::Diverged,
        v1::ExitKind::Crashed | v1::ExitKind::Unspecified => EndKind::Crashed,
        v1::ExitKind::Killed => EndKind::Killed,
    }
}

/// A batch of records; ones that are empty or impossible are left out.
pub(super) fn metrics(batch: v1::MetricBatch, delivery: Option<Delivery>) -> Result<AgentMessage, ApiError> {
    let job = JobId::new(batch.job_id)?;
    let mut rows = Vec::with_capacity(batch.records.len());
    let mut paces: BTreeMap<Generation, Pace> = BTreeMap::new();
    for record in batch.records {
        let generation = Generation(record.generation);
        let payload: Arc<[u8]> = record.encode_to_vec().into();
        let (kind, ordinal) = match &record.record {
            Some(Record::Step(step)) => match &step.skipped {
                Some(skipped) => (MetricKind::Skipped, skipped.total),
                None => {
                    paces.entry(generation).or_default().add(GlobalStep(step.step), step.seconds);
                    (MetricKind::Step, step.step)
                }
            },
            Some(Record::Evaluation(evaluation)) => (MetricKind::Evaluation, evaluation.step),
            Some(Record::Checkpoint(checkpoint)) => (MetricKind::Checkpoint, checkpoint.step),
            None => continue,
        };
        if i64::try_from(ordinal).is_err() {
            tracing::warn!(%job, ordinal, "a record with an impossible step is left out");
            continue;
        }
        rows.push(MetricRow { kind, ordinal, generation, payload });
    }
    let dropped_step_records = batch.dropped_step_records.min(u64::from(u32::MAX));
    let paces = paces.into_iter().collect();
    Ok(AgentMessage::Metrics { job, rows, paces, dropped_step_records, delivery })
}

pub(super) fn order(order: Order) -> AttachResponse {
    use attach_response::Message as Said;
    let message = match order {
        Order::Welcome { lease, heartbeat } => Said::Welcome(v1::Welcome {
            lease_ms: lease.as_millis() as u64,
            heartbeat_ms: heartbeat.as_millis() as u64,
        }),
        Order::Acknowledge(sequence) => Said::Acknowledge(v1::Acknowledge { sequence }),
        Order::HostStore { job, generation } => {
            Said::HostStore(v1::HostStore { job_id: job.to_string(), generation: generation.0 })
        }
        Order::StartRanks { job, generation, world_size, ranks, spec_toml, store_address, restorable } => {
            Said::StartRanks(v1::StartRanks {
                job_id: job.to_string(),
                generation: generation.0,
                world_size,
                ranks: ranks.into_iter().map(|rank| rank.0).collect(),
                spec_toml,
                store_address,
                restorable_generations: restorable.into_iter().map(|generation| generation.0).collect(),
            })
        }
        Order::StopGeneration { job, generation, grace, reason } => {
            Said::StopGeneration(v1::StopGeneration {
                job_id: job.to_string(),
                generation: generation.0,
                grace_ms: grace.as_millis() as u64,
                reason,
            })
        }
    };
    AttachResponse { message: Some(message) }
}

/// Texts from agents are shown to people and stored: they may not be endless.
fn clip(mut text: String) -> String {
    if text.len() > MAX_TEXT_BYTES {
        text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_survive_the_round_trip() {
        for state in JobState::ALL {
            assert_eq!(job_state_from(job_state(state) as i32).unwrap(), state);
        }
        assert!(job_state_from(0).is_err() && job_state_from(99).is_err());
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let clipped = clip("é".repeat(MAX_TEXT_BYTES));
        assert!(clipped.len() <= MAX_TEXT_BYTES + 4 && clipped.ends_with("é…"));
        assert_eq!(clip("short".to_owned()), "short");
    }

    #[test]
    fn skipped_steps_do_not_hide_the_step_before() {
        let step = |step, skipped| v1::MetricRecord {
            generation: 1,
            unix_ms: 0,
            record: Some(Record::Step(v1::StepMetrics { step, skipped, ..Default::default() })),
        };
        let skipped = Some(v1::SkippedStep { total: 7, ..Default::default() });
        let records = vec![step(3, None), step(3, skipped)];
        let batch = v1::MetricBatch { job_id: "j".to_owned(), records, dropped_step_records: 0 };
        let AgentMessage::Metrics { rows, .. } = metrics(batch, None).unwrap() else { panic!() };
        let keys: Vec<_> = rows.iter().map(|row| (row.kind, row.ordinal)).collect();
        assert_eq!(keys, [(MetricKind::Step, 3), (MetricKind::Skipped, 7)]);
    }
}
