//! What a trainer tells its agent: step and evaluation figures, checkpoints.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anybit_proto::v1::{
    CheckpointRecord, EvaluationMetrics, MetricRecord, SkippedStep, StepMetrics, WidthMetrics,
    metric_record::Record,
};

use super::step::{Replica, Stepped};
use super::tally::{Tally, WidthFigures};
use crate::assignment::Assignment;
use crate::checkpoint::CheckpointInfo;
use crate::trainer_link::TrainerLink;

/// Sends rank 0's records, and every rank's heartbeat.
pub(super) struct Reporter<'a> {
    assignment: &'a Assignment,
    link: &'a TrainerLink,
}

/// Figures in ascending bits, as the API wants them.
fn ascending(figures: &[WidthFigures]) -> Vec<WidthMetrics> {
    let mut widths: Vec<WidthMetrics> = figures
        .iter()
        .map(|f| WidthMetrics { bits: f.width.bits(), loss: f.loss, top1: f.top1, top5: f.top5 })
        .collect();
    widths.sort_by_key(|w| w.bits);
    widths
}

impl<'a> Reporter<'a> {
    pub(super) fn new(assignment: &'a Assignment, link: &'a TrainerLink) -> Self {
        Self { assignment, link }
    }

    fn record(&self, record: Record) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        self.link.record(MetricRecord {
            generation: self.assignment.generation.0,
            unix_ms,
            record: Some(record),
        });
    }

    /// After every step, skipped ones too. `offset` and `end` are samples consumed and to consume.
    #[expect(clippy::too_many_arguments, reason = "one call site; a struct would be these fields again")]
    pub(super) fn step(
        &mut self,
        replica: &Replica,
        stepped: &Stepped,
        learning_rate: f64,
        took: Duration,
        waited: Duration,
        offset: u64,
        epoch: f64,
        end: u64,
    ) {
        self.link.heartbeat(replica.step);
        if let Some(skip) = &stepped.skip {
            tracing::warn!(step = %replica.step, in_a_row = replica.skipped_in_a_row, "step skipped: {}", skip.reason);
        }
        if replica.replicas().rank().0 != 0 {
            return;
        }
        let batch = u64::from(self.assignment.spec.train.batch).max(1);
        let seconds = took.as_secs_f64();
        self.record(Record::Step(StepMetrics {
            step: replica.step.0,
            total_steps: replica.step.0 + end.saturating_sub(offset).div_ceil(batch),
            epoch,
            seconds,
            data_wait_seconds: waited.as_secs_f64(),
            images_per_second: batch as f64 / seconds.max(1e-9),
            learning_rate,
            gradient_norm: stepped.gradient_norm,
            joint_loss: stepped.widths.iter().map(|w| w.loss).sum(),
            widths: ascending(&stepped.widths),
            skipped: stepped.skip.as_ref().map(|skip| SkippedStep {
                bits: skip.widths.iter().map(|w| w.bits()).collect(),
                reason: skip.reason.clone(),
                consecutive: replica.skipped_in_a_row,
                total: replica.skipped,
            }),
            sample_offset: offset,
        }));
    }

    pub(super) fn evaluation(&mut self, replica: &Replica, tally: &Tally, epoch: f64, took: Duration) {
        if replica.replicas().rank().0 != 0 {
            return;
        }
        let widths = ascending(&tally.figures());
        let top1: Vec<String> = widths.iter().map(|w| format!("{}: {:.2}", w.bits, w.top1)).collect();
        tracing::info!(step = %replica.step, "epoch {epoch:.2}: top-1 % by bits {}", top1.join("  "));
        self.record(Record::Evaluation(EvaluationMetrics {
            step: replica.step.0,
            epoch,
            samples: tally.samples(),
            widths,
            seconds: took.as_secs_f64(),
        }));
    }

    /// A checkpoint that is whole on disk; `seconds` that writing it took, 0 for a restored one.
    pub(super) fn checkpoint(&mut self, written: &CheckpointInfo, epoch: f64, seconds: f64) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.record(Record::Checkpoint(CheckpointRecord {
            step: written.step.0,
            epoch,
            path: written.path.display().to_string(),
            bytes: written.bytes,
            manifest_sha256: written.manifest_sha256.clone(),
            generation: written.generation.0,
            unix_ms: i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
            seconds,
        }));
    }
}
