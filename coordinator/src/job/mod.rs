//! PURE: a job, its generations, and the one table of what may happen to it.
//!
//! [`decide`] takes a job, an event and the time and gives the job afterwards and what must be
//! done. Nothing here waits, writes or reads a clock; the engine does that.

mod outcome;
mod run;
mod transition;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anybit_shared::ids::{BitWidth, Generation, GlobalStep, JobId, Rank, WorkerId};
use anybit_shared::retry::RetryPolicy;
use serde::{Deserialize, Serialize};

pub use run::{Doubt, EndKind, Ending, Held, Phase, Place, Progress, Run};
pub use transition::decide;

/// The time of a decision: wall time for records, monotonic time for deadlines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since 1970.
    pub unix_ms: i64,
    /// Never goes back.
    pub at: Instant,
}

/// What decisions depend on besides the job.
#[derive(Debug, Clone)]
pub struct Rules {
    /// From placement until every rank must be training.
    pub start_timeout: Duration,
    /// What trainers get to write a checkpoint when a job is cancelled, or a rank was stopped in order.
    pub cancel_grace: Duration,
    /// How long a re-attached agent may take to account for ranks that it no longer runs.
    pub lease: Duration,
    /// A worker that has not confirmed a stop is asked again this often.
    pub stop_resend: Duration,
    /// Waits before generations after ones without progress.
    pub backoff: RetryPolicy,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Waits for ranks.
    Queued,
    /// Placed; trainers are starting and meeting.
    Starting,
    /// Every rank trains.
    Running,
    /// The generation is ending; what follows is decided when no process of it is left.
    Stopping,
    /// Trained to the end.
    Succeeded,
    /// Ended by an error that a restart would not cure, or by one restart too many.
    Failed,
    /// Ended on request.
    Cancelled,
}

impl JobState {
    /// All states, in order.
    pub const ALL: [Self; 7] = [
        Self::Queued,
        Self::Starting,
        Self::Running,
        Self::Stopping,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The name that the store and logs use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// True when nothing can happen to the job any more.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// True while the job holds slots of workers.
    pub fn holds_slots(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Stopping)
    }

    /// The legal edges.
    pub fn may_become(self, next: Self) -> bool {
        use JobState::{Cancelled, Failed, Queued, Running, Starting, Stopping, Succeeded};
        match self {
            Queued => matches!(next, Starting | Cancelled),
            Starting => matches!(next, Running | Stopping | Succeeded),
            Running => matches!(next, Stopping | Succeeded),
            Stopping => matches!(next, Queued | Succeeded | Failed | Cancelled),
            Succeeded | Failed | Cancelled => false,
        }
    }
}

/// What is fixed when a job is submitted.
#[derive(Debug, Clone, PartialEq)]
pub struct JobInfo {
    /// The job.
    pub id: JobId,
    /// For people.
    pub name: String,
    /// The resolved spec.
    pub spec_toml: String,
    /// Ranks, placed all at once or not at all.
    pub world_size: u32,
    /// Higher goes first.
    pub priority: i32,
    /// Generations after the first before the job fails.
    pub max_restarts: u32,
    /// Bit-widths trained, ascending.
    pub bits: Vec<BitWidth>,
    /// When it was submitted.
    pub created_unix_ms: i64,
}

/// What the person who submitted the job wants of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Intent {
    /// That it trains to its end.
    Train,
    /// That it stops.
    Cancel,
}

/// A job.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// What is fixed.
    pub info: Arc<JobInfo>,
    /// Where it stands.
    pub state: JobState,
    /// Why it stands there, for people.
    pub reason: String,
    /// What is wanted of it.
    pub intent: Intent,
    /// The newest generation that was registered; 0 before the first.
    pub generation: Generation,
    /// Generations after the first that a failure asked for.
    pub restarts: u32,
    /// Generations in a row that committed no step.
    pub fruitless: u32,
    /// Why the last generation ended, for people.
    pub last_cause: Option<String>,
    /// When every rank first trained.
    pub started_unix_ms: Option<i64>,
    /// When it reached a terminal state.
    pub ended_unix_ms: Option<i64>,
    /// No new generation before this.
    pub not_before: Option<Instant>,
    /// The current generation, or the last one of an ended job; none while queued.
    pub run: Option<Run>,
}

impl Job {
    /// A job just submitted.
    pub fn new(info: JobInfo) -> Self {
        Self {
            info: Arc::new(info),
            state: JobState::Queued,
            reason: "waits to be placed".to_owned(),
            intent: Intent::Train,
            generation: Generation(0),
            restarts: 0,
            fruitless: 0,
            last_cause: None,
            started_unix_ms: None,
            ended_unix_ms: None,
            not_before: None,
            run: None,
        }
    }

    /// A stored job, after a restart of the coordinator: its deadlines begin anew.
    pub fn resumed(mut self, now: Now, rules: &Rules) -> Self {
        let grace = outcome::stop_grace(&self, rules);
        if let Some(run) = &mut self.run {
            match self.state {
                JobState::Starting => run.start_deadline = Some(now.at + rules.start_timeout),
                JobState::Stopping => run.resend_stop = Some(now.at + grace + rules.stop_resend),
                _ => {}
            }
        }
        self
    }
}

/// What happens to a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The scheduler found places for all ranks.
    Placed(Vec<Place>),
    /// The scheduler found none, and says why.
    Waits(String),
    /// A person asks it to stop.
    Cancel,
    /// A worker reports something of a generation.
    Report {
        /// Of which generation.
        generation: Generation,
        /// Which worker.
        worker: WorkerId,
        /// What.
        report: Report,
    },
    /// A worker's agent is attached again in the same life.
    Reattached {
        /// Which worker.
        worker: WorkerId,
        /// What it holds of the current generation.
        held: Held,
    },
    /// A worker's lease ran out, or its agent started anew.
    WorkerLost {
        /// Which worker.
        worker: WorkerId,
        /// Why, for people.
        why: String,
    },
    /// Time has passed.
    Tick,
}

/// What a worker reports of a generation.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// The rendezvous store's address, or why there is none.
    StoreReady(Result<String, String>),
    /// A rank got this far.
    Phase {
        /// Which rank.
        rank: Rank,
        /// How far.
        phase: Phase,
        /// The committed step that training starts from.
        step: GlobalStep,
    },
    /// A rank committed this step.
    Progress(GlobalStep),
    /// A rank's process ended.
    Exited {
        /// Which rank.
        rank: Rank,
        /// In what way.
        kind: EndKind,
        /// For people.
        message: String,
        /// The last committed step known.
        step: GlobalStep,
    },
    /// No process of the generation is alive on the worker.
    Stopped,
}

/// What must be done after a decision, once it is stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// The worker opens the rendezvous store.
    HostStore {
        /// Rank 0's worker.
        worker: WorkerId,
    },
    /// The worker starts trainers.
    StartRanks {
        /// Which worker.
        worker: WorkerId,
        /// Its ranks.
        ranks: Vec<Rank>,
        /// Where they meet.
        store_address: String,
    },
    /// The worker ends what it holds of the generation.
    Stop {
        /// Which worker.
        worker: WorkerId,
        /// Time for a checkpoint; zero kills.
        grace: Duration,
        /// Why, for its log.
        reason: String,
    },
}

/// The job after an event, and what must be done; effects are of [`Job::generation`].
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// The job afterwards.
    pub job: Job,
    /// The edges taken, each legal on its own; one event may take two (a lost worker that held
    /// all ranks ends the generation, and nobody is left to wait for).
    pub path: Vec<Step>,
    /// In order.
    pub effects: Vec<Effect>,
}

/// One edge taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Left.
    pub from: JobState,
    /// Entered.
    pub to: JobState,
    /// Why, for people.
    pub reason: String,
}

/// Why an event does not apply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The job has ended.
    #[error("job {job} has ended already: {}", state.name())]
    Ended {
        /// The job.
        job: JobId,
        /// How.
        state: JobState,
    },
    /// A report of a generation that is not the current one.
    #[error("generation {reported} of job {job} is not current ({current} is)")]
    StaleGeneration {
        /// The job.
        job: JobId,
        /// What was reported.
        reported: Generation,
        /// What is current.
        current: Generation,
    },
    /// A report on something that the worker does not hold.
    #[error("worker {worker} does not hold what it reports of job {job}")]
    NotHeld {
        /// The job.
        job: JobId,
        /// The worker.
        worker: WorkerId,
    },
    /// A placement that does not fit the job or its state.
    #[error("job {job} cannot be placed now")]
    Misplaced {
        /// The job.
        job: JobId,
    },
}
