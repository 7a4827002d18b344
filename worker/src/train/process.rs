//! `anybit-worker trainer`: a trainer process from its first line to its exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use anybit_anyprec::native;
use anybit_proto::v1::ExitKind;
use anyhow::Context;
use clap::Args;
use nix::sys::resource::{Resource, setrlimit};

use super::{Ending, TrainError, run};
use crate::assignment::Assignment;
use crate::trainer_link::TrainerLink;

/// How an agent starts a trainer.
#[derive(Debug, Args)]
pub struct TrainerOptions {
    /// The assignment file
    #[arg(long)]
    assignment: PathBuf,
    /// Run without an agent: records become log lines
    #[arg(long)]
    detached: bool,
}

/// Runs the trainer. Its last message names how it ended; the exit code says it again: 0 finished
/// or stopped, 1 otherwise.
pub fn trainer(options: &TrainerOptions) -> anyhow::Result<ExitCode> {
    let link = if options.detached { TrainerLink::detached() } else { TrainerLink::from_stdin()? };
    let said = link.clone();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!("{panic}");
        said.exit(ExitKind::Crashed, &format!("the trainer panicked: {panic}"));
    }));
    let assignment = Assignment::read(&options.assignment)?;
    if let Some(mib) = assignment.memory_limit_mib {
        let bytes = mib.saturating_mul(1 << 20);
        setrlimit(Resource::RLIMIT_DATA, bytes, bytes).context("setting the trainer's memory limit")?;
    }
    tch::set_num_threads(i32::try_from(assignment.threads.max(1)).unwrap_or(1));
    native::keep_freed_memory();

    let (kind, message) = match run::run(&assignment, &link) {
        Ok(Ending::Finished) => (ExitKind::Succeeded, String::new()),
        Ok(Ending::Stopped) => (ExitKind::Stopped, String::new()),
        Err(error) => {
            tracing::error!("{error}");
            (exit_kind(&error), error.to_string())
        }
    };
    link.exit(kind, &message);
    Ok(if message.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A machine's fault may be gone in another generation, perhaps on another host.
fn blame(machine: bool) -> ExitKind {
    if machine { ExitKind::Crashed } else { ExitKind::UserError }
}

/// Whose fault an error is, which decides whether a restart can help.
fn exit_kind(error: &TrainError) -> ExitKind {
    use crate::dist::DistError;
    match error {
        TrainError::Dist(DistError::Interface { .. }) | TrainError::Load(_) => ExitKind::UserError,
        TrainError::Data(error) => blame(error.is_machines_fault()),
        TrainError::Dist(_) => ExitKind::PeerLost,
        TrainError::Torch(_) if error.is_out_of_memory() => ExitKind::OutOfMemory,
        TrainError::Torch(_) => ExitKind::Crashed,
        TrainError::Checkpoint(error) => blame(error.is_machines_fault()),
        TrainError::NonFinite { .. } => ExitKind::NonFinite,
        TrainError::Diverged(_) => ExitKind::Diverged,
    }
}
