//! Jobs, workers and records as the CLI shows them, and as `-o json` writes them. Figures that are
//! not finite become `null` there.

use anybit_proto::v1;
use clap::ValueEnum;
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum JobState {
    #[value(skip)]
    Unknown,
    Queued,
    Starting,
    Running,
    Stopping,
    Succeeded,
    Failed,
    Cancelled,
}

impl JobState {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Queued => "queued",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Nothing changes any more.
    pub(crate) fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

impl From<v1::JobState> for JobState {
    fn from(state: v1::JobState) -> Self {
        match state {
            v1::JobState::Unspecified => Self::Unknown,
            v1::JobState::Queued => Self::Queued,
            v1::JobState::Starting => Self::Starting,
            v1::JobState::Running => Self::Running,
            v1::JobState::Stopping => Self::Stopping,
            v1::JobState::Succeeded => Self::Succeeded,
            v1::JobState::Failed => Self::Failed,
            v1::JobState::Cancelled => Self::Cancelled,
        }
    }
}

impl From<JobState> for v1::JobState {
    fn from(state: JobState) -> Self {
        match state {
            JobState::Unknown => Self::Unspecified,
            JobState::Queued => Self::Queued,
            JobState::Starting => Self::Starting,
            JobState::Running => Self::Running,
            JobState::Stopping => Self::Stopping,
            JobState::Succeeded => Self::Succeeded,
            JobState::Failed => Self::Failed,
            JobState::Cancelled => Self::Cancelled,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) state: JobState,
    pub(crate) reason: String,
    pub(crate) generation: u32,
    pub(crate) restarts: u32,
    pub(crate) max_restarts: u32,
    pub(crate) world_size: u32,
    pub(crate) priority: i32,
    pub(crate) created_unix_ms: i64,
    pub(crate) started_unix_ms: Option<i64>,
    pub(crate) ended_unix_ms: Option<i64>,
    pub(crate) bits: Vec<u32>,
    pub(crate) progress: Progress,
    /// The last step's figures.
    pub(crate) training: Vec<WidthFigures>,
    pub(crate) evaluation: Option<Evaluation>,
    pub(crate) ranks: Vec<Placement>,
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) dropped_step_records: u64,
    pub(crate) spec_toml: String,
}

impl Job {
    /// The reason, where it says more than the state does.
    pub(crate) fn reason_beyond_state(&self) -> &str {
        Some(self.reason.trim()).filter(|reason| *reason != self.state.as_str()).unwrap_or_default()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Progress {
    pub(crate) step: u64,
    pub(crate) total_steps: u64,
    pub(crate) epoch: f64,
    pub(crate) total_epochs: f64,
    pub(crate) images_per_second: f64,
    pub(crate) learning_rate: f64,
    pub(crate) skipped_steps: u64,
    pub(crate) eta_seconds: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct WidthFigures {
    pub(crate) bits: u32,
    pub(crate) loss: f64,
    /// Percent, as is `top5`.
    pub(crate) top1: f64,
    pub(crate) top5: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Evaluation {
    pub(crate) step: u64,
    pub(crate) epoch: f64,
    pub(crate) samples: u64,
    pub(crate) widths: Vec<WidthFigures>,
    pub(crate) seconds: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Placement {
    pub(crate) rank: u32,
    pub(crate) worker_id: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Checkpoint {
    pub(crate) step: u64,
    pub(crate) epoch: f64,
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) manifest_sha256: String,
    pub(crate) generation: u32,
    pub(crate) unix_ms: i64,
    pub(crate) seconds: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Step {
    pub(crate) step: u64,
    pub(crate) total_steps: u64,
    pub(crate) epoch: f64,
    pub(crate) seconds: f64,
    pub(crate) data_wait_seconds: f64,
    pub(crate) images_per_second: f64,
    pub(crate) learning_rate: f64,
    pub(crate) gradient_norm: f64,
    pub(crate) joint_loss: f64,
    pub(crate) widths: Vec<WidthFigures>,
    pub(crate) skipped: Option<String>,
    pub(crate) sample_offset: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub(crate) enum Record {
    Step(Step),
    Evaluation(Evaluation),
    Checkpoint(Checkpoint),
}

/// A record as it was stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Stored {
    pub(crate) revision: u64,
    pub(crate) generation: u32,
    pub(crate) unix_ms: i64,
    /// `None`: of a kind that this CLI does not know.
    #[serde(flatten)]
    pub(crate) record: Option<Record>,
}

/// Log bytes and where they stand in their rank's log.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LogChunk {
    pub(crate) generation: u32,
    pub(crate) rank: u32,
    pub(crate) offset: u64,
    pub(crate) data: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Worker {
    pub(crate) id: String,
    pub(crate) incarnation: String,
    pub(crate) hostname: String,
    pub(crate) version: String,
    pub(crate) slots: u32,
    pub(crate) used_slots: u32,
    pub(crate) alive: bool,
    pub(crate) attached_unix_ms: i64,
    pub(crate) lease_age_ms: u64,
    pub(crate) ranks: Vec<HeldRank>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct HeldRank {
    pub(crate) job_id: String,
    pub(crate) generation: u32,
    pub(crate) rank: u32,
}

fn all<A, B: From<A>>(list: Vec<A>) -> Vec<B> {
    list.into_iter().map(B::from).collect()
}

impl From<v1::Job> for Job {
    fn from(job: v1::Job) -> Self {
        Self {
            state: job.state().into(),
            id: job.id,
            name: job.name,
            reason: job.reason,
            generation: job.generation,
            restarts: job.restarts,
            max_restarts: job.max_restarts,
            world_size: job.world_size,
            priority: job.priority,
            created_unix_ms: job.created_unix_ms,
            started_unix_ms: job.started_unix_ms,
            ended_unix_ms: job.ended_unix_ms,
            bits: job.bits,
            progress: job.progress.map(Progress::from).unwrap_or_default(),
            training: all(job.training),
            evaluation: job.evaluation.map(Evaluation::from),
            ranks: all(job.ranks),
            checkpoint: job.checkpoint.map(Checkpoint::from),
            dropped_step_records: job.dropped_step_records,
            spec_toml: job.spec_toml,
        }
    }
}

impl From<v1::Progress> for Progress {
    fn from(progress: v1::Progress) -> Self {
        Self {
            step: progress.step,
            total_steps: progress.total_steps,
            epoch: progress.epoch,
            total_epochs: progress.total_epochs,
            images_per_second: progress.images_per_second,
            learning_rate: progress.learning_rate,
            skipped_steps: progress.skipped_steps,
            eta_seconds: progress.eta_seconds,
        }
    }
}

impl From<v1::WidthMetrics> for WidthFigures {
    fn from(width: v1::WidthMetrics) -> Self {
        Self { bits: width.bits, loss: width.loss, top1: width.top1, top5: width.top5 }
    }
}

impl From<v1::EvaluationMetrics> for Evaluation {
    fn from(evaluation: v1::EvaluationMetrics) -> Self {
        Self {
            step: evaluation.step,
            epoch: evaluation.epoch,
            samples: evaluation.samples,
            widths: all(evaluation.widths),
            seconds: evaluation.seconds,
        }
    }
}

impl From<v1::RankPlacement> for Placement {
    fn from(placement: v1::RankPlacement) -> Self {
        Self { rank: placement.rank, worker_id: placement.worker_id }
    }
}

impl From<v1::CheckpointRecord> for Checkpoint {
    fn from(checkpoint: v1::CheckpointRecord) -> Self {
        Self {
            step: checkpoint.step,
            epoch: checkpoint.epoch,
            path: checkpoint.path,
            bytes: checkpoint.bytes,
            manifest_sha256: checkpoint.manifest_sha256,
            generation: checkpoint.generation,
            unix_ms: checkpoint.unix_ms,
            seconds: checkpoint.seconds,
        }
    }
}

impl From<v1::StepMetrics> for Step {
    fn from(step: v1::StepMetrics) -> Self {
        Self {
            step: step.step,
            total_steps: step.total_steps,
            epoch: step.epoch,
            seconds: step.seconds,
            data_wait_seconds: step.data_wait_seconds,
            images_per_second: step.images_per_second,
            learning_rate: step.learning_rate,
            gradient_norm: step.gradient_norm,
            joint_loss: step.joint_loss,
            widths: all(step.widths),
            skipped: step.skipped.map(|skipped| skipped.reason),
            sample_offset: step.sample_offset,
        }
    }
}

impl From<v1::StreamMetricsResponse> for Stored {
    fn from(response: v1::StreamMetricsResponse) -> Self {
        use v1::metric_record::Record as Kind;
        let record = response.record.unwrap_or_default();
        Self {
            revision: response.revision,
            generation: record.generation,
            unix_ms: record.unix_ms,
            record: record.record.map(|kind| match kind {
                Kind::Step(step) => Record::Step(step.into()),
                Kind::Evaluation(evaluation) => Record::Evaluation(evaluation.into()),
                Kind::Checkpoint(checkpoint) => Record::Checkpoint(checkpoint.into()),
            }),
        }
    }
}

impl From<v1::WatchJobResponse> for Job {
    fn from(response: v1::WatchJobResponse) -> Self {
        response.job.unwrap_or_default().into()
    }
}

impl From<v1::TailLogsResponse> for LogChunk {
    fn from(chunk: v1::TailLogsResponse) -> Self {
        Self { generation: chunk.generation, rank: chunk.rank, offset: chunk.offset, data: chunk.data }
    }
}

impl From<v1::Worker> for Worker {
    fn from(worker: v1::Worker) -> Self {
        Self {
            id: worker.id,
            incarnation: worker.incarnation,
            hostname: worker.hostname,
            version: worker.version,
            slots: worker.slots,
            used_slots: worker.used_slots,
            alive: worker.alive,
            attached_unix_ms: worker.attached_unix_ms,
            lease_age_ms: worker.lease_age_ms,
            ranks: all(worker.ranks),
        }
    }
}

impl From<v1::HeldRank> for HeldRank {
    fn from(held: v1::HeldRank) -> Self {
        Self { job_id: held.job_id, generation: held.generation, rank: held.rank }
    }
}
