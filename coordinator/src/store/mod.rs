//! What must last: jobs, generations, curves, checkpoints, and what happened.
//!
//! Guarantees that every implementation gives, and that [`suite`](self) tests:
//!
//! - A call that returned `Ok` survives the loss of the process and of power.
//! - A call is applied as a whole or not at all.
//! - Calls may be repeated: the second time changes nothing (counters included, where a
//!   [`Delivery`] is given).
//! - Revisions grow with every metric stored, over all jobs; a reader that asks for later ones
//!   than it has seen misses none.
//! - One process writes at a time; readers never wait for it.

mod queries;
mod sqlite;
#[cfg(test)]
mod suite;

use std::sync::Arc;

use anybit_shared::ids::{Generation, JobId, WorkerIncarnation};
use async_trait::async_trait;

use crate::job::{Job, JobState, Now, Step};

pub use sqlite::SqliteStore;

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database's own error.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("database schema: {0}")]
    Schema(#[from] sqlx::migrate::MigrateError),
    /// A stored value that this program cannot have written.
    #[error("stored {what} is damaged: {detail}")]
    Damaged {
        /// Which.
        what: &'static str,
        /// How.
        detail: String,
    },
    /// A number that does not fit.
    #[error("{0} is too large to be stored")]
    TooLarge(u64),
}

/// What became of a submission.
#[derive(Debug, Clone, PartialEq)]
pub enum Submission {
    /// Stored.
    Created,
    /// The key had made this job, of the same spec.
    Existing(JobId),
    /// The key had made this job, of another spec.
    KeyTaken(JobId),
}

/// The kinds of records on a job's curves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MetricKind {
    /// A committed step.
    Step,
    /// A skipped step.
    Skipped,
    /// An evaluation.
    Evaluation,
    /// A checkpoint.
    Checkpoint,
}

impl MetricKind {
    /// The name in the store.
    pub fn name(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Skipped => "skipped",
            Self::Evaluation => "evaluation",
            Self::Checkpoint => "checkpoint",
        }
    }
}

/// A record as it was reported. The store knows where it belongs; what it says is the edge's.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricRow {
    /// What kind.
    pub kind: MetricKind,
    /// The step, and for skipped steps their running count: one record each is kept.
    pub ordinal: u64,
    /// By which generation.
    pub generation: Generation,
    /// The encoded record.
    pub payload: Arc<[u8]>,
}

/// Which message a batch came in, so that one sent twice is counted once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The sender's life.
    pub incarnation: WorkerIncarnation,
    /// Grows over it.
    pub sequence: u64,
}

/// Records of one job. Of two with the same kind and ordinal the later generation's wins;
/// checkpoints are also listed, per generation.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricBatch {
    /// The job.
    pub job: JobId,
    /// In order.
    pub rows: Vec<MetricRow>,
    /// Step records that the agent thinned out.
    pub dropped_step_records: u64,
    /// The message, where it has a sequence.
    pub delivery: Option<Delivery>,
}

/// A stored record.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredMetric {
    /// Grows with every stored record of the cluster.
    pub revision: u64,
    /// The encoded record.
    pub payload: Vec<u8>,
}

/// The newest figures of a job.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// The step record stored last.
    pub step: Option<Arc<[u8]>>,
    /// The newest generation's newest evaluation.
    pub evaluation: Option<Arc<[u8]>>,
    /// The newest generation's newest checkpoint.
    pub checkpoint: Option<Arc<[u8]>>,
    /// Skipped steps so far.
    pub skipped_steps: u64,
    /// Step records thinned out so far.
    pub dropped_step_records: u64,
    /// The newest revision.
    pub revision: u64,
}

/// Which records to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricFilter {
    /// All.
    All,
    /// All but step records, skipped ones included.
    NoSteps,
}

/// Where the jobs are kept.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Stores a new job.
    async fn submit(&self, job: &Job, idempotency_key: Option<&str>) -> Result<Submission, StoreError>;
    /// What submitting this job with this key would find: what the key has made, or nothing.
    async fn submitted(&self, job: &Job, idempotency_key: &str) -> Result<Option<Submission>, StoreError>;
    /// Stores a job after a decision, its generation, and the edges taken.
    async fn commit(&self, job: &Job, path: &[Step], now: Now) -> Result<(), StoreError>;
    /// Jobs that have not ended, oldest first.
    async fn unfinished(&self) -> Result<Vec<Job>, StoreError>;
    /// One job.
    async fn job(&self, id: &JobId) -> Result<Option<Job>, StoreError>;
    /// At most `limit` ids that begin with this text, ascending.
    async fn ids_with_prefix(&self, prefix: &str, limit: u32) -> Result<Vec<JobId>, StoreError>;
    /// Jobs in one of these states (none given: any), newest first, older than `before`.
    async fn list(
        &self,
        states: &[JobState],
        before: Option<&JobId>,
        limit: u32,
    ) -> Result<Vec<Job>, StoreError>;
    /// Stores records; gives the newest revision.
    async fn put_metrics(&self, batch: &MetricBatch) -> Result<u64, StoreError>;
    /// Records of a job with a later revision, in its order.
    async fn metrics_after(
        &self,
        job: &JobId,
        revision: u64,
        filter: MetricFilter,
        limit: u32,
    ) -> Result<Vec<StoredMetric>, StoreError>;
    /// The newest figures of a job.
    async fn figures(&self, job: &JobId) -> Result<Figures, StoreError>;
    /// At most `limit` of a job's checkpoints, newest first: later generation, then later step.
    async fn checkpoints(&self, job: &JobId, limit: u32) -> Result<Vec<Vec<u8>>, StoreError>;
    /// The edges that a job took, in order.
    async fn history(&self, job: &JobId) -> Result<Vec<Step>, StoreError>;
    /// Waits for readers and closes.
    async fn close(&self);
}
