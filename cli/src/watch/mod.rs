//! Following a job to its end, through lost connections.

mod live;
mod plain;

use std::io::IsTerminal;

use tokio::sync::mpsc;

use crate::args::Format;
use crate::client::{Backoff, Client};
use crate::error::Failure;
use crate::model::{Job, JobState};
use crate::out;
use crate::results::Results;
use crate::signals::Signals;
use crate::text;

/// Answers without a snapshot in a row, other than a lost connection, before giving up.
const REFUSALS: u32 = 3;

const LOST: &str = "the coordinator went away; the job may well go on, trying again until it answers";

/// How a watched job is shown.
pub(crate) enum View {
    /// A document a snapshot on standard output.
    Json,
    /// Lines on standard error.
    Plain(plain::Plain),
    /// A progress bar and a line per width on standard error.
    Live(Box<live::Live>),
}

impl View {
    pub(crate) fn new(format: Format) -> Self {
        match format {
            Format::Json => Self::Json,
            Format::Table if std::io::stderr().is_terminal() => Self::Live(Box::default()),
            Format::Table => Self::Plain(plain::Plain::default()),
        }
    }

    /// Lines only, whatever standard error is.
    pub(crate) fn plain() -> Self {
        Self::Plain(plain::Plain::default())
    }

    fn show(&mut self, job: &Job) -> Result<(), Failure> {
        match self {
            Self::Json => out::json_line(job)?,
            Self::Plain(plain) => plain.show(job, std::time::Instant::now()).iter().for_each(out::note),
            Self::Live(live) => live.show(job),
        }
        Ok(())
    }

    /// A remark that stays on the screen.
    pub(crate) fn note(&mut self, text: &str) {
        match self {
            Self::Json | Self::Plain(_) => out::note(text),
            Self::Live(live) => live.note(text),
        }
    }

    /// Leaves the moving part on the screen, and moves it no more.
    fn leave(&mut self) {
        if let Self::Live(live) = self {
            live.leave();
        }
    }

    /// Takes the moving part off the screen.
    pub(crate) fn close(&mut self) {
        if let Self::Live(live) = self {
            live.clear();
        }
    }
}

/// Shows the job until it ends, and gives its last state. `notes` are shown as they come.
pub(crate) async fn follow(
    client: &Client,
    id: &str,
    view: &mut View,
    notes: &mut mpsc::Receiver<String>,
    signals: &mut Signals,
) -> Result<Job, Failure> {
    let ended = follow_open(client, id, view, notes, signals).await;
    match &ended {
        // What is known when the looking ends stays to be looked at.
        Err(Failure::Interrupted) => view.leave(),
        _ => view.close(),
    }
    if let (View::Live(_), Ok(job)) = (&view, &ended) {
        out::note(format_args!("{}  {}", headline(job), job.state.as_str()));
    }
    ended
}

async fn follow_open(
    client: &Client,
    id: &str,
    view: &mut View,
    notes: &mut mpsc::Receiver<String>,
    signals: &mut Signals,
) -> Result<Job, Failure> {
    let mut backoff = Backoff::new();
    let mut shown_any = false;
    let mut lost = false;
    let mut refusals = 0;
    loop {
        let failure = match client.watch(id).await {
            Err(failure) => Some(failure),
            Ok(mut feed) => loop {
                tokio::select! {
                    next = feed.next() => match next {
                        Ok(Some(job)) => {
                            if std::mem::take(&mut lost) {
                                view.note("the coordinator is back");
                            }
                            backoff.reset();
                            (shown_any, refusals) = (true, 0);
                            view.show(&job)?;
                            if job.state.is_terminal() {
                                return Ok(job);
                            }
                        }
                        Ok(None) => break None,
                        Err(failure) => break Some(failure),
                    },
                    Some(note) = notes.recv() => view.note(&note),
                    () = signals.recv() => return Err(Failure::Interrupted),
                }
            },
        };
        match failure {
            None => {}
            Some(failure @ Failure::Unreachable(_)) if !shown_any => return Err(failure),
            Some(Failure::Unreachable(_)) => {
                let first = !std::mem::replace(&mut lost, true);
                first.then(|| view.note(LOST));
            }
            Some(failure @ Failure::Other(_)) if refusals < REFUSALS => {
                refusals += 1;
                view.note(&format!("{failure}; trying again"));
            }
            Some(failure) => return Err(failure),
        }
        let pause = tokio::time::sleep(backoff.advance());
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                Some(note) = notes.recv() => view.note(&note),
                () = signals.recv() => return Err(Failure::Interrupted),
            }
        }
    }
}

/// `anybit watch`: follows a job that goes on without us.
pub(crate) async fn attached(client: &Client, id: &str, format: Format) -> Result<(), Failure> {
    let mut signals = Signals::ctrl_c()?;
    let (_, mut notes) = mpsc::channel(1);
    let mut view = View::new(format);
    match follow(client, id, &mut view, &mut notes, &mut signals).await {
        Ok(job) => conclude(&job, format),
        Err(Failure::Interrupted) => {
            out::note(format_args!("detached: the job goes on; see it again with `anybit watch {id}`"));
            Err(Failure::Interrupted)
        }
        Err(failure) => Err(failure),
    }
}

/// Results on standard output, the verdict on standard error and as the exit code.
fn conclude(job: &Job, format: Format) -> Result<(), Failure> {
    let end = job.ended_unix_ms.unwrap_or_else(text::now_unix_ms);
    let seconds =
        end.saturating_sub(job.started_unix_ms.unwrap_or(job.created_unix_ms)).max(0) as f64 / 1000.0;
    if format == Format::Table && (job.evaluation.is_some() || job.checkpoint.is_some()) {
        out::print(Results::of(job, seconds).table())?;
    }
    verdict(job)
}

/// Whether the job ended well.
pub(crate) fn verdict(job: &Job) -> Result<(), Failure> {
    let reason = match job.reason_beyond_state() {
        "" => String::new(),
        reason => format!(": {reason}"),
    };
    match job.state {
        JobState::Succeeded => Ok(()),
        JobState::Cancelled => Err(Failure::JobFailed(format!("job {} was cancelled{reason}", job.id))),
        _ => Err(Failure::JobFailed(format!("job {} {}{reason}", job.id, job.state.as_str()))),
    }
}

/// `name id` for a headline.
fn headline(job: &Job) -> String {
    format!("{} {}", out::one_line(&job.name), job.id)
}

/// What there is to say of the state: where it runs, or why it does not.
fn situation(job: &Job) -> String {
    let reason = out::one_line(job.reason_beyond_state());
    if !matches!(job.state, JobState::Running | JobState::Starting) {
        return reason;
    }
    let mut workers: Vec<&str> = job.ranks.iter().map(|place| place.worker_id.as_str()).collect();
    workers.dedup();
    let mut parts = vec![text::counted(u64::from(job.world_size), "rank")];
    if !workers.is_empty() {
        parts[0] = format!("{} on {}", parts[0], workers.join(", "));
    }
    if job.restarts > 0 {
        parts.push(format!("{} of {}", text::counted(u64::from(job.restarts), "restart"), job.max_restarts));
    }
    if job.progress.skipped_steps > 0 {
        parts.push(format!("{} skipped", text::counted(job.progress.skipped_steps, "step")));
    }
    parts.join(", ")
}

/// `epoch 14.0/20  1,234 img/s  eta 12s`.
fn pace(job: &Job) -> String {
    let progress = &job.progress;
    let mut text = format!("epoch {:.1}/{}", progress.epoch, (progress.total_epochs * 10.0).round() / 10.0);
    if progress.images_per_second.is_finite() && progress.images_per_second > 0.0 {
        text.push_str(&format!("  {} img/s", text::thousands(progress.images_per_second.round() as u64)));
    }
    if let Some(eta) = progress.eta_seconds {
        text.push_str(&format!("  eta {}", text::duration(eta)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn job() -> Job {
        let mut job = Job::from(anybit_proto::v1::Job::default());
        job.id = "0198-job".to_owned();
        job.name = "digits".to_owned();
        job.state = JobState::Running;
        job.world_size = 2;
        job.progress.total_steps = 100;
        job.progress.total_epochs = 20.0;
        job
    }

    #[test]
    fn the_situation_of_a_job_names_workers_and_trouble() {
        let mut job = job();
        job.ranks = ["w1", "w2"]
            .into_iter()
            .enumerate()
            .map(|(rank, worker)| crate::model::Placement { rank: rank as u32, worker_id: worker.to_owned() })
            .collect();
        assert_eq!(situation(&job), "2 ranks on w1, w2");
        (job.restarts, job.max_restarts, job.progress.skipped_steps) = (1, 5, 3);
        assert_eq!(situation(&job), "2 ranks on w1, w2, 1 restart of 5, 3 steps skipped");
        (job.state, job.reason) = (JobState::Queued, "waits for 2 ranks:\n0 free".to_owned());
        assert_eq!(situation(&job), "waits for 2 ranks: 0 free");
    }

    #[test]
    fn the_pace_leaves_out_what_is_not_known() {
        let mut job = job();
        assert_eq!(pace(&job), "epoch 0.0/20");
        (job.progress.epoch, job.progress.images_per_second) = (2.25, 1234.4);
        job.progress.eta_seconds = Some(65.0);
        assert_eq!(pace(&job), "epoch 2.2/20  1,234 img/s  eta 1m 05s");
    }

    #[test]
    fn only_success_is_success() {
        let mut job = job();
        job.reason = "out of memory".to_owned();
        job.state = JobState::Failed;
        assert_eq!(verdict(&job).expect_err("failed").to_string(), "job 0198-job failed: out of memory");
        job.state = JobState::Cancelled;
        assert!(verdict(&job).is_err());
        job.reason = "cancelled".to_owned();
        assert_eq!(verdict(&job).expect_err("cancelled").to_string(), "job 0198-job was cancelled");
        assert_eq!(situation(&job), "");
        job.state = JobState::Succeeded;
        assert!(verdict(&job).is_ok());
    }
}
