//! `anybit run`: a cluster on this machine for one job.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anybit_shared::spec::JobSpec;
use anyhow::Context;
use uuid::Uuid;

use crate::args::{Format, Global, LocalArgs, RunArgs};
use crate::client::{Client, LogsQuery};
use crate::commands::submit::submit_once;
use crate::error::Failure;
use crate::local::{Cluster, Plan};
use crate::loglines::LogLines;
use crate::model::{Job, JobState};
use crate::results::{self, Results};
use crate::signals::Signals;
use crate::watch::{self, View};
use crate::{out, spec, text};

/// Log lines of each rank that are shown when the job failed.
const LAST_LINES: u32 = 20;

pub(crate) async fn run(global: &Global, args: RunArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let spec = spec::resolve(&args.spec)?;
    check_room(&spec, &args.local)?;
    if let Some(path) = &args.report {
        check_report(path)?;
    }
    let fresh = args.state_dir.is_none();
    let state_dir = match args.state_dir {
        Some(folder) => folder,
        None => new_state_dir(Path::new(".anybit"))?,
    };
    let plan = Plan::new(&args.local, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &state_dir)?;
    let mut signals = Signals::all()?;
    out::note(format_args!("starting a coordinator and its workers in {}", state_dir.display()));
    let mut cluster = Cluster::launch(plan)?;
    let outcome = job(global.output, &spec, fresh, &mut cluster, &mut signals).await;
    let seconds = started.elapsed().as_secs_f64();
    if matches!(outcome, Err(Failure::Interrupted)) {
        out::note(format_args!(
            "interrupted: stopping everything; what was saved is in {}",
            state_dir.display()
        ));
    }
    cluster.stop(&mut signals).await;

    let job = outcome?;
    watch::verdict(&job)?;
    let results = Results::of(&job, seconds);
    if let Some(path) = &args.report {
        results.write(path)?;
    }
    match global.output {
        Format::Json => out::json(&results),
        Format::Table => out::print(results.table()),
    }
}

/// A job that can never be placed would wait for ever.
fn check_room(spec: &JobSpec, local: &LocalArgs) -> Result<(), Failure> {
    let room = local.workers * local.slots;
    if spec.resources.ranks <= room {
        return Ok(());
    }
    let ranks = spec.resources.ranks;
    Err(Failure::Usage(format!(
        "the job wants {}, and {} of {} can hold {room}: add --workers {} or --set resources.ranks={room}",
        text::counted(u64::from(ranks), "rank"),
        text::counted(u64::from(local.workers), "worker"),
        text::counted(u64::from(local.slots), "slot"),
        ranks.div_ceil(local.slots),
    )))
}

/// A report that cannot be written would be known only after the training.
fn check_report(path: &Path) -> Result<(), Failure> {
    let folder = results::folder_of(path);
    if !folder.is_dir() {
        let (path, folder) = (path.display(), folder.display());
        return Err(Failure::Usage(format!("--report {path}: there is no folder {folder}, make it first")));
    }
    if path.is_dir() {
        return Err(Failure::Usage(format!("--report {} is a folder: name a file", path.display())));
    }
    Ok(())
}

/// Jobs that a state folder's coordinator has still to do would take the workers first.
async fn check_idle(client: &Client, state_dir: &Path) -> Result<(), Failure> {
    const UNFINISHED: [JobState; 4] =
        [JobState::Queued, JobState::Starting, JobState::Running, JobState::Stopping];
    let jobs = client.jobs(2, &UNFINISHED).await?;
    let Some(job) = jobs.first() else { return Ok(()) };
    let others = if jobs.len() > 1 { " and others" } else { "" };
    Err(Failure::Usage(format!(
        "the state folder {dir} has unfinished jobs: {name} {id} ({state}){others}; give another --state-dir, \
         or finish what is there with `anybit up --state-dir {dir}`",
        dir = state_dir.display(),
        name = out::one_line(&job.name),
        id = job.id,
        state = job.state.as_str(),
    )))
}

/// `ROOT/run-20260102-030405`, or with a number behind it.
fn new_state_dir(root: &Path) -> Result<PathBuf, Failure> {
    let time: String =
        text::time(text::now_unix_ms()).chars().filter(|c| c.is_ascii_digit() || *c == 'T').collect();
    let name = format!("run-{}", time.replace('T', "-"));
    std::fs::create_dir_all(root).with_context(|| format!("cannot make the folder {}", root.display()))?;
    for number in 1_u32.. {
        let folder = root.join(if number == 1 { name.clone() } else { format!("{name}-{number}") });
        match std::fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                let context = format!("cannot make the folder {}", folder.display());
                return Err(anyhow::Error::new(error).context(context).into());
            }
        }
    }
    Err(anyhow::anyhow!("no name is left for a folder in {}", root.display()).into())
}

async fn job(
    format: Format,
    spec: &JobSpec,
    fresh: bool,
    cluster: &mut Cluster,
    signals: &mut Signals,
) -> Result<Job, Failure> {
    let submitted = async {
        let client = cluster.coordinator_ready().await?;
        if !fresh {
            // Before there are workers to go on with them.
            check_idle(&client, cluster.state_dir()).await?;
        }
        cluster.ready().await?;
        let (job, _) = submit_once(&client, &spec.to_toml(), &Uuid::new_v4().to_string()).await?;
        Ok::<_, Failure>((client, job))
    };
    let (client, job) = tokio::select! {
        submitted = submitted => submitted?,
        () = signals.recv() => return Err(Failure::Interrupted),
    };
    let mut view = match format {
        Format::Table => View::new(format),
        // Standard output is for the results.
        Format::Json => View::plain(),
    };
    let job = watch::follow(&client, &job.id, &mut view, &mut cluster.notes, signals).await?;
    if job.state == JobState::Failed {
        let shown = tokio::select! {
            shown = show_last_lines(&client, &job) => shown,
            () = signals.recv() => return Err(Failure::Interrupted),
        };
        if let Err(failure) = shown {
            out::note(format_args!("cannot show the job's last log lines: {failure}"));
        }
    }
    Ok(job)
}

/// What the ranks of the last generation said last.
async fn show_last_lines(client: &Client, job: &Job) -> Result<(), Failure> {
    let generation = (job.generation > 0).then_some(job.generation);
    let query = LogsQuery { generation, last_lines: LAST_LINES, ..LogsQuery::default() };
    let mut feed = client.logs(&job.id, query).await?;
    let mut lines = LogLines::default();
    let mut all = Vec::new();
    while let Some(chunk) = feed.next().await? {
        all.extend(lines.push(&chunk));
    }
    all.extend(lines.finish());
    for line in all {
        out::note(format_args!("r{} | {}", line.rank, out::one_line(&line.text)));
    }
    Ok(())
}
