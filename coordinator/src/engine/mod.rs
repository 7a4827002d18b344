//! The one task that owns the jobs' state: event, pure decision, store, effects.
//!
//! - An event is answered only after what it changed is stored, so an acknowledged message lasts.
//! - A decision that could not be stored did not happen: the sender gets an error and tries again,
//!   and what time or a lost lease asks for is asked again at the next tick.
//! - Effects are orders to agents. One that does not arrive is repeated when its agent attaches
//!   again, since agents and coordinator compare what they hold then.
//!
//! After a restart of the coordinator every agent has one lease to attach again; trainers that
//! run, or are just starting, go on and nothing counts as a restart of the job.

mod link;
mod members;
mod pace;
mod task;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anybit_shared::clock::Clock;
use anybit_shared::ids::{BitWidth, Generation, IdError, JobId, Rank, WorkerId, WorkerIncarnation};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::job::{Job, JobState, Now, Refused, Report, Rules};
use crate::store::{Delivery, Figures, MetricRow, Store, StoreError};

pub use link::{CloseReason, LastSeen, Link, Order, Outbound};
pub use members::{HeldGeneration, Hello, Liveness, WorkerStatus};
pub use pace::Pace;

const COMMANDS: usize = 1024;

/// What the engine runs by.
#[derive(Debug, Clone)]
pub struct Options {
    /// For the pure core.
    pub rules: Rules,
    /// How often agents must speak.
    pub heartbeat: Duration,
    /// Jobs that have not ended, at most.
    pub max_unfinished_jobs: usize,
}

/// Why the engine did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No job of that id.
    #[error("no job has an id that begins with {0:?}")]
    NoSuchJob(String),
    /// The prefix is not unique.
    #[error("more than one job has an id that begins with {0:?}: give more of it")]
    Ambiguous(String),
    /// The key made a job of another spec.
    #[error("the idempotency key has made job {0} already, from another spec")]
    KeyTaken(JobId),
    /// The event does not apply.
    #[error("{0}")]
    Refused(#[from] Refused),
    /// An agent may not attach.
    #[error("{0}")]
    AttachRefused(String),
    /// Too many jobs.
    #[error("{0} jobs wait or run already, which is the limit (max_unfinished_jobs)")]
    TooManyJobs(usize),
    /// An id that could not be made.
    #[error("{0}")]
    Id(#[from] IdError),
    /// The store failed.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// A log could not be written.
    #[error("log file: {0}")]
    Log(#[source] std::io::Error),
    /// The coordinator is shutting down.
    #[error("the coordinator is shutting down")]
    Closed,
}

/// A job and its newest figures, as people see them.
#[derive(Debug, Clone, PartialEq)]
pub struct JobView {
    /// The job.
    pub job: Job,
    /// Its figures.
    pub figures: Figures,
    /// Its speed, once the coordinator has seen it train.
    pub pace: Option<Pace>,
}

/// What is asked when a job is submitted.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// For people.
    pub name: String,
    /// The resolved spec.
    pub spec_toml: String,
    /// Ranks.
    pub world_size: u32,
    /// Higher goes first.
    pub priority: i32,
    /// Generations after the first before it fails.
    pub max_restarts: u32,
    /// Widths, ascending.
    pub bits: Vec<BitWidth>,
    /// Makes the submission repeatable.
    pub idempotency_key: Option<String>,
}

/// Whether a submission made a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It did.
    Now,
    /// The idempotency key had made it.
    Before,
}

/// What an agent says that must last.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentMessage {
    /// The agent is ending: it gets no more ranks in this life.
    Draining,
    /// Something happened to a generation.
    Report {
        /// Of which job.
        job: JobId,
        /// Of which generation.
        generation: Generation,
        /// What.
        report: Report,
    },
    /// Records of one job.
    Metrics {
        /// The job.
        job: JobId,
        /// In order.
        rows: Vec<MetricRow>,
        /// The committed steps among them, per generation.
        paces: Vec<(Generation, Pace)>,
        /// Step records thinned out.
        dropped_step_records: u64,
        /// Where the message has a sequence.
        delivery: Option<Delivery>,
    },
}

/// A rank on a worker.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeldRank {
    /// The job.
    pub job: JobId,
    /// The generation.
    pub generation: Generation,
    /// The rank.
    pub rank: Rank,
}

type Reply<T> = oneshot::Sender<Result<T, EngineError>>;

enum Command {
    Submit(NewJob, Reply<(JobId, Created)>),
    Cancel(JobId, Reply<()>),
    Workers(Reply<Vec<WorkerStatus>>),
    Attach(Hello, Link, Reply<()>),
    Deliver { worker: WorkerId, incarnation: WorkerIncarnation, message: AgentMessage, reply: Reply<()> },
    Detach { worker: WorkerId, link: u64 },
}

/// What is sent to those who watch a job.
#[derive(Debug)]
struct Channels {
    view: watch::Sender<Arc<JobView>>,
    logs: watch::Sender<()>,
}

type Registry = Arc<RwLock<HashMap<JobId, Channels>>>;

/// A live job's news.
#[derive(Debug)]
pub struct Feed {
    /// The job, after every change. Closed after its end.
    pub view: watch::Receiver<Arc<JobView>>,
    /// Marked as changed whenever log bytes were written. Closed after the job's end.
    pub logs: watch::Receiver<()>,
}

/// A job, live or ended.
#[derive(Debug)]
pub enum Watched {
    /// It may still change.
    Live(Feed),
    /// It has ended.
    Ended(Arc<JobView>),
}

/// Asks the engine. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    registry: Registry,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
}

/// Loads the unfinished jobs and starts the engine; it ends after `shutdown`.
pub async fn start(
    options: Options,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    shutdown: CancellationToken,
) -> Result<(Handle, JoinHandle<()>), StoreError> {
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let registry = Registry::default();
    let handle = Handle {
        commands,
        registry: Arc::clone(&registry),
        store: Arc::clone(&store),
        clock: Arc::clone(&clock),
    };
    let engine = task::Engine::load(options, store, clock, registry).await?;
    Ok((handle, tokio::spawn(engine.run(inbox, shutdown))))
}

impl Handle {
    /// Stores a job and puts it into the queue.
    pub async fn submit(&self, new: NewJob) -> Result<(Arc<JobView>, Created), EngineError> {
        let (job, created) = self.ask(|reply| Command::Submit(new, reply)).await?;
        Ok((self.view(&job).await?, created))
    }

    /// Asks a job to stop.
    pub async fn cancel(&self, job: &JobId) -> Result<Arc<JobView>, EngineError> {
        match self.ask(|reply| Command::Cancel(job.clone(), reply)).await {
            // Jobs that have ended are no longer the engine's.
            Err(EngineError::NoSuchJob(_)) => {
                let state = self.view(job).await?.job.state;
                Err(Refused::Ended { job: job.clone(), state }.into())
            }
            Err(error) => Err(error),
            Ok(()) => self.view(job).await,
        }
    }

    /// The workers known, by id.
    pub async fn workers(&self) -> Result<Vec<WorkerStatus>, EngineError> {
        self.ask(Command::Workers).await
    }

    /// An agent says hello over a new stream. Its orders come over the link, the welcome first.
    pub async fn attach(&self, hello: Hello, link: Link) -> Result<(), EngineError> {
        self.ask(|reply| Command::Attach(hello, link, reply)).await
    }

    /// Handles an agent's message; returns when what it says is stored.
    pub async fn deliver(
        &self,
        worker: &WorkerId,
        incarnation: &WorkerIncarnation,
        message: AgentMessage,
    ) -> Result<(), EngineError> {
        let (worker, incarnation) = (worker.clone(), incarnation.clone());
        self.ask(|reply| Command::Deliver { worker, incarnation, message, reply }).await
    }

    /// An agent's stream has ended; its lease goes on.
    pub async fn detach(&self, worker: &WorkerId, link: u64) {
        // A closed engine has let go of all links already.
        let _ = self.commands.send(Command::Detach { worker: worker.clone(), link }).await;
    }

    /// The one job whose id begins with this text.
    pub async fn find(&self, prefix: &str) -> Result<JobId, EngineError> {
        let ids = self.store.ids_with_prefix(prefix, 2).await?;
        match &ids[..] {
            [] => Err(EngineError::NoSuchJob(prefix.to_owned())),
            [first, ..] if ids.len() == 1 || first.as_str() == prefix => Ok(first.clone()),
            _ => Err(EngineError::Ambiguous(prefix.to_owned())),
        }
    }

    /// A job as it is now.
    pub async fn view(&self, job: &JobId) -> Result<Arc<JobView>, EngineError> {
        match self.watch(job).await? {
            Watched::Live(feed) => Ok(feed.view.borrow().clone()),
            Watched::Ended(view) => Ok(view),
        }
    }

    /// A job as it is now, and its news while it lives.
    pub async fn watch(&self, job: &JobId) -> Result<Watched, EngineError> {
        if let Some(feed) = self.feed(job) {
            return Ok(Watched::Live(feed));
        }
        let stored = self.store.job(job).await?.ok_or_else(|| EngineError::NoSuchJob(job.to_string()))?;
        // A job submitted just now enters the registry after the store.
        if let Some(feed) = self.feed(job) {
            return Ok(Watched::Live(feed));
        }
        Ok(Watched::Ended(Arc::new(self.with_figures(stored).await?)))
    }

    /// Jobs in one of these states (none given: any), newest first, older than `before`.
    pub async fn list(
        &self,
        states: &[JobState],
        before: Option<&JobId>,
        limit: u32,
    ) -> Result<Vec<Arc<JobView>>, EngineError> {
        let mut views = Vec::new();
        for job in self.store.list(states, before, limit).await? {
            let live = self.feed(&job.info.id).map(|feed| feed.view.borrow().clone());
            views.push(match live {
                Some(view) if view.job.state == job.state => view,
                _ => Arc::new(self.with_figures(job).await?),
            });
        }
        Ok(views)
    }

    /// Tells those who follow a job's logs that there is more.
    pub fn log_written(&self, job: &JobId) {
        let registry = self.registry.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(channels) = registry.get(job) {
            channels.logs.send_replace(());
        }
    }

    /// For reading; writes go through the engine.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The time.
    pub fn now(&self) -> Now {
        Now { unix_ms: self.clock.unix_ms(), at: self.clock.now() }
    }

    async fn with_figures(&self, job: Job) -> Result<JobView, StoreError> {
        let figures = self.store.figures(&job.info.id).await?;
        Ok(JobView { job, figures, pace: None })
    }

    fn feed(&self, job: &JobId) -> Option<Feed> {
        let registry = self.registry.read().unwrap_or_else(PoisonError::into_inner);
        let channels = registry.get(job)?;
        Some(Feed { view: channels.view.subscribe(), logs: channels.logs.subscribe() })
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| EngineError::Closed)?;
        answer.await.map_err(|_| EngineError::Closed)?
    }
}
