//! One generation of a job.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anybit_shared::ids::{Generation, GlobalStep, Rank, WorkerId, WorkerIncarnation};
use serde::{Deserialize, Serialize};

/// One generation: a placement, and what its ranks have come to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Which one.
    pub generation: Generation,
    /// Where each rank is, by rank.
    pub places: Vec<Place>,
    /// How far each rank has come, by rank.
    pub phases: Vec<Phase>,
    /// The rendezvous store, once rank 0's worker has opened it.
    pub store_address: Option<String>,
    /// How ranks ended, in order of arrival; each rank at most once.
    pub endings: Vec<Ending>,
    /// Workers that hold no process of this generation any more.
    pub stopped: BTreeSet<WorkerId>,
    /// Whether it committed a step.
    pub progress: Progress,
    /// When every rank must be training.
    #[serde(skip)]
    pub start_deadline: Option<Instant>,
    /// When workers that have not confirmed the stop are asked again.
    #[serde(skip)]
    pub resend_stop: Option<Instant>,
    /// Re-attached workers that have to account for something until then.
    #[serde(skip)]
    pub doubts: BTreeMap<WorkerId, Doubt>,
}

/// Where a rank is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The worker.
    pub worker: WorkerId,
    /// Its agent's life: another one cannot hold the rank.
    pub incarnation: WorkerIncarnation,
}

/// How far a rank has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Placed.
    Placed,
    /// The process exists.
    Spawned,
    /// All ranks have met.
    Rendezvous,
    /// The first step began.
    Training,
}

impl Phase {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Placed => "placed",
            Self::Spawned => "spawned",
            Self::Rendezvous => "rendezvous",
            Self::Training => "training",
        }
    }
}

/// Whether a generation committed a step of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Progress {
    /// Not yet; it started from this step, where that is known.
    None(Option<GlobalStep>),
    /// Yes.
    Made,
}

/// Ranks that a re-attached agent did not say it still runs: lost, unless its unacknowledged
/// messages tell how they ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    /// Until when the agent has time.
    pub until: Instant,
    /// Which ranks.
    pub ranks: BTreeSet<Rank>,
}

/// What an agent holds of a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Nothing.
    Nothing,
    /// The generation, with these ranks' processes alive.
    Ranks(BTreeSet<Rank>),
}

/// How a rank, or the generation as a whole, ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// The rank; none when the whole generation is meant.
    pub rank: Option<Rank>,
    /// In what way.
    pub kind: EndKind,
    /// For people.
    pub message: String,
}

/// In what way a rank ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndKind {
    /// Trained to the end.
    Succeeded,
    /// Stopped on request.
    Stopped,
    /// The spec or its data is at fault.
    UserError,
    /// Memory ran out.
    OutOfMemory,
    /// Too many non-finite steps in a row.
    NonFinite,
    /// Another rank went away.
    PeerLost,
    /// Replicas differ.
    Diverged,
    /// Panicked, or an error that is nobody's in particular.
    Crashed,
    /// Killed by a signal that the agent did not send.
    Killed,
    /// Its worker was lost, or no longer knows of it.
    WorkerLost,
    /// The rendezvous store could not be opened.
    StoreFailed,
    /// Not every rank was training in time.
    StartTimeout,
}

impl Run {
    /// The workers of this generation, each once.
    pub fn workers(&self) -> BTreeSet<&WorkerId> {
        self.places.iter().map(|place| &place.worker).collect()
    }

    /// The ranks placed on a worker.
    pub fn ranks_on<'a>(&'a self, worker: &'a WorkerId) -> impl Iterator<Item = Rank> + 'a {
        let held = self.places.iter().enumerate().filter(move |(_, place)| place.worker == *worker);
        held.map(|(rank, _)| Rank(rank as u32))
    }

    /// How a rank ended, if it did.
    pub fn ending(&self, rank: Rank) -> Option<&Ending> {
        self.endings.iter().find(|ending| ending.rank == Some(rank))
    }

    /// Doubts these ranks, in place of what was doubted of the worker before.
    pub(super) fn doubt(&mut self, worker: &WorkerId, ranks: BTreeSet<Rank>, until: Instant) {
        if ranks.is_empty() {
            self.doubts.remove(worker);
        } else {
            self.doubts.insert(worker.clone(), Doubt { until, ranks });
        }
    }

    /// The worker that holds a rank.
    pub fn worker_of(&self, rank: Rank) -> Option<&WorkerId> {
        self.places.get(rank.0 as usize).map(|place| &place.worker)
    }
}
