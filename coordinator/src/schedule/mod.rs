//! PURE: which waiting job goes next, and on which workers.
//!
//! The queue is ordered by priority, then age. A job gets all its ranks at once or none. No later
//! job overtakes the first that waits, unless the cluster as it is could never hold that one.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;

use anybit_shared::ids::{JobId, WorkerId};

/// A job in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The job.
    pub job: JobId,
    /// Slots it needs, all at once.
    pub ranks: u32,
    /// Higher goes first.
    pub priority: i32,
    /// Older goes first.
    pub created_unix_ms: i64,
    /// Whether it may start now.
    pub readiness: Readiness,
}

/// Whether a waiting job may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// As soon as there is room.
    Ready,
    /// It waits a little before its next generation; it keeps its place in the queue.
    BacksOff,
}

/// A worker that lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// The worker.
    pub worker: WorkerId,
    /// Ranks it can hold.
    pub slots: u32,
    /// Of these, unused. 0 for a worker that cannot be reached at the moment.
    pub free: u32,
}

/// What becomes of a waiting job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Starts: the worker of each rank.
    Place(Vec<WorkerId>),
    /// Waits, with the reason for people.
    Wait(String),
}

/// Goes through the queue once; verdicts are in queue order. Deterministic.
pub fn plan(mut queue: Vec<Waiting>, workers: &[Capacity]) -> Vec<(JobId, Verdict)> {
    queue.sort_by(|a, b| {
        let key = |w: &Waiting| (Reverse(w.priority), w.created_unix_ms);
        key(a).cmp(&key(b)).then_with(|| a.job.cmp(&b.job))
    });
    let mut workers = workers.to_vec();
    let total: u64 = workers.iter().map(|worker| u64::from(worker.slots)).sum();
    let mut head: Option<JobId> = None;
    let mut verdicts = Vec::with_capacity(queue.len());
    for waiting in queue {
        let verdict = if u64::from(waiting.ranks) > total {
            Verdict::Wait(never_fits(waiting.ranks, total))
        } else if let Some(head) = &head {
            Verdict::Wait(format!("waits behind job {head}"))
        } else {
            let verdict = place(&waiting, &mut workers, total);
            if matches!(verdict, Verdict::Wait(_)) {
                head = Some(waiting.job.clone());
            }
            verdict
        };
        verdicts.push((waiting.job, verdict));
    }
    verdicts
}

fn place(waiting: &Waiting, workers: &mut [Capacity], total: u64) -> Verdict {
    if waiting.readiness == Readiness::BacksOff {
        return Verdict::Wait("waits a little before it starts again".to_owned());
    }
    let free: u64 = workers.iter().map(|worker| u64::from(worker.free)).sum();
    if u64::from(waiting.ranks) > free {
        return Verdict::Wait(format!("needs {}, {free} of {total} are free", ranks(waiting.ranks)));
    }
    Verdict::Place(pack(waiting.ranks, workers))
}

/// Takes slots: the tightest single worker that holds all ranks, or else the emptiest ones.
fn pack(ranks: u32, workers: &mut [Capacity]) -> Vec<WorkerId> {
    let fits = workers.iter_mut().filter(|worker| worker.free >= ranks);
    if let Some(tightest) = fits.min_by_key(|worker| (worker.free, worker.worker.clone())) {
        tightest.free -= ranks;
        return vec![tightest.worker.clone(); ranks as usize];
    }
    let mut order: Vec<&mut Capacity> = workers.iter_mut().collect();
    order.sort_by_key(|worker| (Reverse(worker.free), worker.worker.clone()));
    let mut places = Vec::with_capacity(ranks as usize);
    let mut left = ranks;
    for worker in order {
        let taken = worker.free.min(left);
        worker.free -= taken;
        left -= taken;
        places.extend((0..taken).map(|_| worker.worker.clone()));
    }
    places
}

fn never_fits(wanted: u32, total: u64) -> String {
    match total {
        0 => format!("needs {}, no worker is attached", ranks(wanted)),
        _ => format!("needs {}, the cluster has {total}", ranks(wanted)),
    }
}

fn ranks(count: u32) -> String {
    if count == 1 { "1 rank".to_owned() } else { format!("{count} ranks") }
}
