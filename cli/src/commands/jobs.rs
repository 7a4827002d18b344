//! `anybit jobs`, `job`, `cancel` and `checkpoints`.

use crate::args::{Format, Global};
use crate::client::Client;
use crate::error::Failure;
use crate::model::{Checkpoint, Job, JobState};
use crate::out::{self, Table};
use crate::text;

pub(crate) async fn list(global: &Global, limit: u32, states: &[JobState]) -> Result<(), Failure> {
    let client = Client::connect(&global.coordinator, global.insecure).await?;
    let jobs = client.jobs(limit, states).await?;
    if jobs.is_empty() && global.output == Format::Table {
        out::note("no jobs; submit one with `anybit submit`");
        return Ok(());
    }
    out::answer(global.output, &jobs, || {
        jobs_table(&jobs, text::now_unix_ms()).render(out::terminal_columns())
    })
}

fn jobs_table(jobs: &[Job], now_unix_ms: i64) -> Table {
    let ids: Vec<&str> = jobs.iter().map(|job| job.id.as_str()).collect();
    let short = text::short_length(&ids);
    let mut table = Table::new(&["ID", "NAME", "STATE", ">STEP", "TOP-1 % BY BITS", ">AGE"]).elastic(1);
    for job in jobs {
        table.row(vec![
            job.id.chars().take(short).collect(),
            out::one_line(&job.name),
            text::state(job.state),
            match &job.progress {
                // It never began.
                progress if progress.total_steps == 0 => "-".to_owned(),
                progress => format!("{}/{}", progress.step, progress.total_steps),
            },
            job.evaluation.as_ref().map_or_else(|| "-".to_owned(), |last| text::top1s(&last.widths)),
            text::age(job.created_unix_ms, now_unix_ms),
        ]);
    }
    table
}

pub(crate) async fn show(global: &Global, id: &str) -> Result<(), Failure> {
    let client = Client::connect(&global.coordinator, global.insecure).await?;
    let job = client.job(id).await?;
    out::answer(global.output, &job, || describe(&job))
}

/// Everything, for people.
fn describe(job: &Job) -> String {
    let mut lines: Vec<(&str, String)> =
        vec![("id", job.id.clone()), ("name", out::one_line(&job.name)), ("state", text::state(job.state))];
    let mut add = |key: &'static str, value: String| lines.push((key, value));
    if !job.reason_beyond_state().is_empty() {
        add("reason", job.reason.trim().replace('\n', "\n              "));
    }
    add("created", text::time(job.created_unix_ms));
    if let Some(started) = job.started_unix_ms {
        add("started", text::time(started));
    }
    if let Some(ended) = job.ended_unix_ms {
        let took = ended.saturating_sub(job.started_unix_ms.unwrap_or(job.created_unix_ms));
        add("ended", format!("{}, after {}", text::time(ended), text::duration(took as f64 / 1000.0)));
    }
    let progress = &job.progress;
    if progress.total_steps > 0 {
        add("step", format!("{} of {}", progress.step, progress.total_steps));
        add("epoch", format!("{:.2} of {:.2}", progress.epoch, progress.total_epochs));
    }
    if progress.images_per_second > 0.0 {
        add("images/s", format!("{:.0}", progress.images_per_second));
    }
    if let (false, Some(eta)) = (job.state.is_terminal(), progress.eta_seconds) {
        add("eta", text::duration(eta));
    }
    if progress.learning_rate > 0.0 {
        add("learn. rate", format!("{:e}", progress.learning_rate));
    }
    if progress.skipped_steps > 0 {
        add("skipped", text::counted(progress.skipped_steps, "step"));
    }
    add("ranks", job.world_size.to_string());
    for place in &job.ranks {
        add("", format!("rank {} on {}", place.rank, place.worker_id));
    }
    add("generation", job.generation.to_string());
    add("restarts", format!("{} of {}", job.restarts, job.max_restarts));
    add("priority", job.priority.to_string());
    if job.dropped_step_records > 0 {
        add("thinned out", text::counted(job.dropped_step_records, "step record"));
    }
    if let Some(checkpoint) = &job.checkpoint {
        add(
            "checkpoint",
            format!("{} (step {}, {})", checkpoint.path, checkpoint.step, text::bytes(checkpoint.bytes)),
        );
    }
    let mut page: String = lines.iter().map(|(key, value)| format!("{key:<12}  {value}\n")).collect();
    if let Some(figures) = figures(job) {
        page.push_str(&format!("\n{}", figures.render(None)));
    }
    page
}

/// Training and test figures of every width.
fn figures(job: &Job) -> Option<Table> {
    if job.training.is_empty() && job.evaluation.is_none() {
        return None;
    }
    let tested = job.evaluation.as_ref().map(|last| last.widths.as_slice()).unwrap_or_default();
    let mut table =
        Table::new(&[">BITS", ">TRAIN LOSS", ">TOP-1 %", ">TOP-5 %", ">TEST LOSS", ">TOP-1 %", ">TOP-5 %"]);
    for &bits in &job.bits {
        let mut row = vec![bits.to_string()];
        for widths in [job.training.as_slice(), tested] {
            match widths.iter().find(|width| width.bits == bits) {
                Some(width) => row.extend([
                    format!("{:.4}", width.loss),
                    format!("{:.2}", width.top1),
                    format!("{:.2}", width.top5),
                ]),
                None => row.extend(["-"; 3].map(str::to_owned)),
            }
        }
        table.row(row);
    }
    Some(table)
}

pub(crate) async fn cancel(global: &Global, id: &str) -> Result<(), Failure> {
    let client = Client::connect(&global.coordinator, global.insecure).await?;
    let job = client.cancel(id).await?;
    out::answer(global.output, &job, || format!("{}  {}\n", job.id, text::state(job.state)))?;
    if global.output == Format::Table && !job.state.is_terminal() {
        out::note("it ends after the step in flight and a checkpoint");
    }
    Ok(())
}

pub(crate) async fn checkpoints(global: &Global, id: &str) -> Result<(), Failure> {
    let client = Client::connect(&global.coordinator, global.insecure).await?;
    let checkpoints = client.checkpoints(id).await?;
    if checkpoints.is_empty() && global.output == Format::Table {
        let ended = client.job(id).await?.state.is_terminal();
        out::note(if ended { "no checkpoints" } else { "no checkpoints yet" });
        return Ok(());
    }
    let now = text::now_unix_ms();
    // Paths are for copying: no terminal is too narrow for them.
    out::answer(global.output, &checkpoints, || checkpoints_table(&checkpoints, now).render(None))
}

fn checkpoints_table(checkpoints: &[Checkpoint], now_unix_ms: i64) -> Table {
    let mut table = Table::new(&[">STEP", ">EPOCH", ">GEN", ">SIZE", ">AGE", "PATH"]);
    for checkpoint in checkpoints {
        table.row(vec![
            checkpoint.step.to_string(),
            format!("{:.1}", checkpoint.epoch),
            checkpoint.generation.to_string(),
            text::bytes(checkpoint.bytes),
            text::age(checkpoint.unix_ms, now_unix_ms),
            checkpoint.path.clone(),
        ]);
    }
    table
}
