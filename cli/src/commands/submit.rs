//! `anybit submit`.

use serde::Serialize;
use uuid::Uuid;

use crate::args::{Format, Global, SubmitArgs};
use crate::client::{Backoff, Client};
use crate::error::Failure;
use crate::model::Job;
use crate::{out, spec, watch};

/// Tries before an unreachable coordinator is reported.
const TRIES: u32 = 4;
const LONGEST_KEY: usize = 128;

#[derive(Serialize)]
struct Submitted<'a> {
    created: bool,
    job: &'a Job,
}

pub(crate) async fn submit(global: &Global, args: SubmitArgs) -> Result<(), Failure> {
    let spec = spec::resolve(&args.spec)?;
    if args.dry_run {
        return match global.output {
            Format::Table => out::print(spec.to_toml()),
            Format::Json => out::json(&spec),
        };
    }
    if let Some(key) = &args.idempotency_key
        && !(1..=LONGEST_KEY).contains(&key.len())
    {
        return Err(Failure::Usage(format!("--idempotency-key must have 1 to {LONGEST_KEY} characters")));
    }
    let key = args.idempotency_key.unwrap_or_else(|| Uuid::new_v4().to_string());
    let client = Client::connect(&global.coordinator, global.insecure).await?;
    let (job, created) = submit_once(&client, &spec.to_toml(), &key).await?;
    match (global.output, args.watch) {
        // A watched job's document stream begins with its first snapshot.
        (Format::Json, true) => {}
        (Format::Json, false) => out::json(&Submitted { created, job: &job })?,
        (Format::Table, _) => out::line(&job.id)?,
    }
    if !created {
        out::note(format_args!("this idempotency key had made job {} before; nothing was submitted", job.id));
    }
    if args.watch {
        return watch::attached(&client, &job.id, global.output).await;
    }
    if global.output == Format::Table && created {
        out::note(format_args!("submitted; follow it with `anybit watch {}`", job.id));
    }
    Ok(())
}

/// Submits, and tries again with the same key when the answer is lost: one job, never two.
pub(crate) async fn submit_once(client: &Client, spec: &str, key: &str) -> Result<(Job, bool), Failure> {
    let mut backoff = Backoff::new();
    for _ in 1..TRIES {
        match client.submit(spec, key).await {
            Err(Failure::Unreachable(_)) => tokio::time::sleep(backoff.advance()).await,
            answer => return answer,
        }
    }
    client.submit(spec, key).await
}
