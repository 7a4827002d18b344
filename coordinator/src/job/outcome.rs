//! What follows from how a generation's ranks ended.

use std::time::Duration;

use super::{EndKind, Ending, Intent, Job, Rules, Run};

/// What becomes of a job whose generation is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Every rank trained to the end.
    Succeeded,
    /// A person asked for it.
    Cancelled,
    /// With the reason.
    Failed(String),
    /// Another generation, with the cause of the last one's end.
    Restart(String),
    /// Another generation that does not count as a restart: the last one was stopped in order.
    PlaceAgain(String),
}

/// Decides from the collected endings; called when no process of the generation is left.
pub(super) fn verdict(job: &Job, run: &Run) -> Verdict {
    if all_succeeded(run) {
        return Verdict::Succeeded;
    }
    if job.intent == Intent::Cancel {
        return Verdict::Cancelled;
    }
    let Some(root) = root_cause(run) else {
        return Verdict::Restart("the generation ended without a report".to_owned());
    };
    let cause = describe(root, run);
    if blame(root.kind) == Blame::Spec {
        return Verdict::Failed(cause);
    }
    if stopped_in_order(run) {
        return Verdict::PlaceAgain(cause);
    }
    if job.restarts >= job.info.max_restarts {
        let max = job.info.max_restarts;
        return Verdict::Failed(format!("{cause}; no restart is left of {max} (resources.max_restarts)"));
    }
    Verdict::Restart(cause)
}

/// True when every rank trained to the end.
pub(super) fn all_succeeded(run: &Run) -> bool {
    let done = run.endings.iter().filter(|ending| ending.rank.is_some());
    done.filter(|ending| ending.kind == EndKind::Succeeded).count() == run.places.len()
}

/// The ending that explains the others, for people.
pub(super) fn cause_so_far(run: &Run) -> Option<String> {
    root_cause(run).map(|root| describe(root, run))
}

/// True when ranks ended in order only: their agent was told to stop, and it is nobody's fault.
fn stopped_in_order(run: &Run) -> bool {
    let nobody = |ending: &Ending| blame(ending.kind) == Blame::Nobody;
    !run.endings.is_empty() && run.endings.iter().all(nobody)
}

/// What the ranks left of an ending generation get: time for a checkpoint where a person asked for
/// the stop, or where one rank was stopped in order and the others may still be writing; none
/// where a rank was lost, since the others only wait for it.
pub(super) fn stop_grace(job: &Job, rules: &Rules) -> Duration {
    match job.intent {
        Intent::Cancel => rules.cancel_grace,
        Intent::Train if job.run.as_ref().is_some_and(stopped_in_order) => rules.cancel_grace,
        Intent::Train => Duration::ZERO,
    }
}

/// Whose doing an ending is, the one that explains most first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Blame {
    /// A restart would fail the same way.
    Spec,
    /// A process or machine went away.
    Machine,
    /// The program.
    Program,
    /// Only that time ran out.
    Time,
    /// Another rank's end.
    Peer,
    /// Nobody's.
    Nobody,
}

fn blame(kind: EndKind) -> Blame {
    match kind {
        EndKind::UserError | EndKind::OutOfMemory | EndKind::NonFinite => Blame::Spec,
        EndKind::Killed | EndKind::WorkerLost => Blame::Machine,
        EndKind::Crashed | EndKind::StoreFailed | EndKind::Diverged => Blame::Program,
        EndKind::StartTimeout => Blame::Time,
        EndKind::PeerLost => Blame::Peer,
        EndKind::Stopped | EndKind::Succeeded => Blame::Nobody,
    }
}

fn root_cause(run: &Run) -> Option<&Ending> {
    // min_by_key keeps the first of equals: the one that arrived first.
    run.endings
        .iter()
        .filter(|ending| ending.kind != EndKind::Succeeded)
        .min_by_key(|ending| blame(ending.kind))
}

fn describe(ending: &Ending, run: &Run) -> String {
    let what = match ending.kind {
        EndKind::Succeeded => "trained to the end",
        EndKind::Stopped => "was stopped",
        EndKind::UserError => "cannot train this job",
        EndKind::OutOfMemory => "ran out of memory",
        EndKind::NonFinite => "met too many non-finite steps in a row",
        EndKind::PeerLost => "lost a peer",
        EndKind::Diverged => "found replicas that differ",
        EndKind::Crashed => "crashed",
        EndKind::Killed => "was killed",
        EndKind::WorkerLost => "was lost with its worker",
        EndKind::StoreFailed => "could not open the rendezvous store",
        EndKind::StartTimeout => "the generation did not start in time",
    };
    let subject = match ending.rank {
        Some(rank) => match run.worker_of(rank) {
            Some(worker) => format!("rank {rank} on {worker} {what}"),
            None => format!("rank {rank} {what}"),
        },
        None => what.to_owned(),
    };
    if ending.message.is_empty() { subject } else { format!("{subject}: {}", ending.message) }
}
