//! A job as plain lines, for files and pipes: every change of state and evaluation, and steps now and then.

use std::time::{Duration, Instant};

use super::{headline, pace, situation};
use crate::model::{Job, WidthFigures};
use crate::text;

/// Longest silence while steps go by.
const QUIET: Duration = Duration::from_secs(10);
/// A line at every such share of the steps, however fast they go by.
const SHARES: u64 = 10;

/// What was said last.
#[derive(Default)]
pub(crate) struct Plain {
    situation: Option<String>,
    evaluated_step: Option<u64>,
    step: u64,
    said: Option<Instant>,
}

impl Plain {
    /// The lines that this snapshot adds.
    pub(super) fn show(&mut self, job: &Job, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        let detail = situation(job);
        let colon = if detail.is_empty() { "" } else { ": " };
        let situation = format!("{}  {}{colon}{detail}", headline(job), job.state.as_str());
        if self.situation.as_ref() != Some(&situation) {
            lines.push(situation.clone());
            self.situation = Some(situation);
        }
        let progress = &job.progress;
        let share = |step: u64| (step * SHARES).checked_div(progress.total_steps).unwrap_or(0);
        let due = self.said.is_none_or(|said| now.duration_since(said) >= QUIET);
        if progress.step != self.step && (share(progress.step) != share(self.step) || due) {
            let losses = widths(&job.training, |width| text::loss(width.loss));
            let line =
                format!("step {}/{}  {}  loss {losses}", progress.step, progress.total_steps, pace(job));
            lines.push(line);
            self.said = Some(now);
            self.step = progress.step;
        }
        if let Some(evaluation) = &job.evaluation
            && self.evaluated_step != Some(evaluation.step)
        {
            self.evaluated_step = Some(evaluation.step);
            let top1s = widths(&evaluation.widths, |width| text::percent(width.top1));
            lines.push(format!("evaluation at epoch {:.1}  top-1 % {top1s}", evaluation.epoch));
        }
        lines
    }
}

/// `1: 0.432 2: 0.391`.
fn widths(widths: &[WidthFigures], figure: impl Fn(&WidthFigures) -> String) -> String {
    widths.iter().map(|width| format!("{}: {}", width.bits, figure(width))).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Evaluation, JobState};

    #[test]
    fn steps_are_thinned_and_nothing_is_said_twice() {
        let mut job = super::super::tests::job();
        job.training = vec![WidthFigures { bits: 1, loss: 0.5, top1: 90.0, top5: 99.0 }];
        let (mut plain, start) = (Plain::default(), Instant::now());
        assert_eq!(plain.show(&job, start), ["digits 0198-job  running: 2 ranks"]);
        assert!(plain.show(&job, start).is_empty());
        let mut lines = Vec::new();
        for step in 1..=100 {
            job.progress.step = step;
            lines.extend(plain.show(&job, start));
        }
        assert_eq!(lines.len(), 11, "the first, and one every tenth: {lines:?}");
        assert_eq!(lines[10], "step 100/100  epoch 0.0/20  loss 1: 0.500");
        job.progress.step = 101;
        assert!(plain.show(&job, start).is_empty());
        assert_eq!(plain.show(&job, start + QUIET).len(), 1);
    }

    #[test]
    fn every_evaluation_and_change_of_state_is_said() {
        let mut job = super::super::tests::job();
        let (mut plain, now) = (Plain::default(), Instant::now());
        plain.show(&job, now);
        let widths = vec![
            WidthFigures { bits: 1, loss: f64::NAN, top1: 90.04, top5: 99.0 },
            WidthFigures { bits: 32, loss: 0.25, top1: 100.0, top5: 100.0 },
        ];
        job.evaluation = Some(Evaluation { step: 7, epoch: 1.0, samples: 9, widths, seconds: 0.1 });
        let line = "evaluation at epoch 1.0  top-1 % 1: 90.0 32: 100.0";
        assert_eq!(plain.show(&job, now), [line]);
        assert!(plain.show(&job, now).is_empty());
        (job.state, job.reason) = (JobState::Stopping, "rank 1 was lost".to_owned());
        assert_eq!(plain.show(&job, now), ["digits 0198-job  stopping: rank 1 was lost"]);
    }
}
