//! The embedded store: one SQLite file, write-ahead log, full sync.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anybit_shared::ids::{BitWidth, Generation, JobId};
use async_trait::async_trait;
use serde::de::DeserializeOwned;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Row, Sqlite, SqliteConnection};

use super::queries as sql;
use super::{
    Figures, MetricBatch, MetricFilter, MetricKind, MetricRow, Store, StoreError, StoredMetric, Submission,
};
use crate::job::{Intent, Job, JobInfo, JobState, Now, Step};

const READERS: u32 = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Jobs in a SQLite file.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    /// One connection: writes never meet each other.
    writer: SqlitePool,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens the file, or makes it, and brings its schema up to date.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
        sqlx::migrate!("./migrations").run(&writer).await?;
        let readers =
            SqlitePoolOptions::new().max_connections(READERS).connect_with(options.read_only(true)).await?;
        Ok(Self { writer, readers })
    }
}

/// A write transaction. Unless it commits, its connection is closed: after an error (a full disk,
/// say) SQLite may have ended the transaction by itself, and a connection that is wrong about
/// that would take later writes and never commit them.
struct Writing {
    connection: PoolConnection<Sqlite>,
    committed: bool,
}

impl Writing {
    async fn begin(writer: &SqlitePool) -> Result<Self, StoreError> {
        let mut this = Self { connection: writer.acquire().await?, committed: false };
        sqlx::query("BEGIN IMMEDIATE").execute(&mut *this).await?;
        Ok(this)
    }

    async fn commit(mut self) -> Result<(), StoreError> {
        sqlx::query("COMMIT").execute(&mut *self).await?;
        self.committed = true;
        Ok(())
    }
}

impl Deref for Writing {
    type Target = SqliteConnection;
    fn deref(&self) -> &SqliteConnection {
        &self.connection
    }
}

impl DerefMut for Writing {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.committed {
            self.connection.close_on_drop();
        }
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn submit(&self, job: &Job, idempotency_key: Option<&str>) -> Result<Submission, StoreError> {
        let mut tx = Writing::begin(&self.writer).await?;
        if let Some(key) = idempotency_key
            && let Some(row) = sqlx::query(sql::JOB_BY_KEY).bind(key).fetch_optional(&mut *tx).await?
        {
            let submission = submission(&row, job)?;
            tx.commit().await?;
            return Ok(submission);
        }
        let info = &job.info;
        sqlx::query(sql::INSERT_JOB)
            .bind(info.id.as_str())
            .bind(&info.name)
            .bind(&info.spec_toml)
            .bind(info.world_size)
            .bind(info.priority)
            .bind(info.max_restarts)
            .bind(to_json(&info.bits)?)
            .bind(info.created_unix_ms)
            .bind(idempotency_key)
            .bind(job.state.name())
            .bind(&job.reason)
            .bind(intent_name(job.intent))
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(Submission::Created)
    }

    async fn submitted(&self, job: &Job, idempotency_key: &str) -> Result<Option<Submission>, StoreError> {
        let query = sqlx::query(sql::JOB_BY_KEY).bind(idempotency_key);
        query.fetch_optional(&self.readers).await?.map(|row| submission(&row, job)).transpose()
    }

    async fn commit(&self, job: &Job, path: &[Step], now: Now) -> Result<(), StoreError> {
        let mut tx = Writing::begin(&self.writer).await?;
        let id = job.info.id.as_str();
        sqlx::query(sql::UPDATE_JOB)
            .bind(id)
            .bind(job.state.name())
            .bind(&job.reason)
            .bind(intent_name(job.intent))
            .bind(job.generation.0)
            .bind(job.restarts)
            .bind(job.fruitless)
            .bind(&job.last_cause)
            .bind(job.started_unix_ms)
            .bind(job.ended_unix_ms)
            .execute(&mut *tx)
            .await?;
        if let Some(run) = &job.run {
            sqlx::query(sql::PUT_GENERATION)
                .bind(id)
                .bind(run.generation.0)
                .bind(to_json(run)?)
                .execute(&mut *tx)
                .await?;
        }
        for step in path {
            sqlx::query(sql::INSERT_TRANSITION)
                .bind(id)
                .bind(job.generation.0)
                .bind(now.unix_ms)
                .bind(step.from.name())
                .bind(step.to.name())
                .bind(&step.reason)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    async fn unfinished(&self) -> Result<Vec<Job>, StoreError> {
        let rows = sqlx::query(sql::UNFINISHED).fetch_all(&self.readers).await?;
        rows.iter().map(read_job).collect()
    }

    async fn job(&self, id: &JobId) -> Result<Option<Job>, StoreError> {
        let row = sqlx::query(sql::JOB).bind(id.as_str()).fetch_optional(&self.readers).await?;
        row.as_ref().map(read_job).transpose()
    }

    async fn ids_with_prefix(&self, prefix: &str, limit: u32) -> Result<Vec<JobId>, StoreError> {
        let past = format!("{prefix}\u{10ffff}");
        let query = sqlx::query(sql::IDS_WITH_PREFIX).bind(prefix).bind(past).bind(limit);
        query.fetch_all(&self.readers).await?.iter().map(job_id).collect()
    }

    async fn list(
        &self,
        states: &[JobState],
        before: Option<&JobId>,
        limit: u32,
    ) -> Result<Vec<Job>, StoreError> {
        let names: Vec<&str> = states.iter().map(|state| state.name()).collect();
        let query = sqlx::query(sql::LIST).bind(to_json(&names)?).bind(before.map(JobId::as_str)).bind(limit);
        query.fetch_all(&self.readers).await?.iter().map(read_job).collect()
    }

    async fn put_metrics(&self, batch: &MetricBatch) -> Result<u64, StoreError> {
        let mut tx = Writing::begin(&self.writer).await?;
        let before: i64 = sqlx::query(sql::REVISION).fetch_one(&mut *tx).await?.try_get("value")?;
        let mut revision = before;
        for row in &batch.rows {
            if put_metric(&mut tx, &batch.job, row, revision + 1).await? {
                revision += 1;
            }
        }
        if revision > before {
            sqlx::query(sql::SET_REVISION).bind(revision).execute(&mut *tx).await?;
        }
        count_dropped(&mut tx, batch).await?;
        tx.commit().await?;
        from_db("revision", revision)
    }

    async fn metrics_after(
        &self,
        job: &JobId,
        revision: u64,
        filter: MetricFilter,
        limit: u32,
    ) -> Result<Vec<StoredMetric>, StoreError> {
        let rows = sqlx::query(sql::METRICS_AFTER)
            .bind(job.as_str())
            // A revision from afar is later than all.
            .bind(i64::try_from(revision).unwrap_or(i64::MAX))
            .bind(filter == MetricFilter::All)
            .bind(limit)
            .fetch_all(&self.readers)
            .await?;
        let read = |row: &SqliteRow| {
            let revision = from_db("revision", row.try_get("revision")?)?;
            Ok(StoredMetric { revision, payload: row.try_get("payload")? })
        };
        rows.iter().map(read).collect()
    }

    async fn figures(&self, job: &JobId) -> Result<Figures, StoreError> {
        let counters = sqlx::query(sql::COUNTERS).bind(job.as_str()).fetch_optional(&self.readers).await?;
        let Some(counters) = counters else { return Ok(Figures::default()) };
        Ok(Figures {
            step: self.newest(job, sql::NEWEST_STEP).await?,
            evaluation: self.newest(job, sql::NEWEST_EVALUATION).await?,
            checkpoint: self.newest(job, sql::NEWEST_CHECKPOINT).await?,
            skipped_steps: from_db("skipped steps", counters.try_get("skipped")?)?,
            dropped_step_records: from_db("dropped records", counters.try_get("dropped_step_records")?)?,
            revision: from_db("revision", counters.try_get("revision")?)?,
        })
    }

    async fn checkpoints(&self, job: &JobId, limit: u32) -> Result<Vec<Vec<u8>>, StoreError> {
        let query = sqlx::query(sql::CHECKPOINTS).bind(job.as_str()).bind(limit);
        let rows = query.fetch_all(&self.readers).await?;
        rows.iter().map(|row| Ok(row.try_get("payload")?)).collect()
    }

    async fn history(&self, job: &JobId) -> Result<Vec<Step>, StoreError> {
        let rows = sqlx::query(sql::HISTORY).bind(job.as_str()).fetch_all(&self.readers).await?;
        let read = |row: &SqliteRow| {
            Ok(Step {
                from: state(row, "from_state")?,
                to: state(row, "to_state")?,
                reason: row.try_get("reason")?,
            })
        };
        rows.iter().map(read).collect()
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

impl SqliteStore {
    /// The payload that one of the `NEWEST_` statements gives.
    async fn newest(&self, job: &JobId, statement: &'static str) -> Result<Option<Arc<[u8]>>, StoreError> {
        let query = sqlx::query(statement).bind(job.as_str());
        query.fetch_optional(&self.readers).await?.as_ref().map(payload).transpose()
    }
}

/// What a job that a key has made is to another submission with it.
fn submission(made: &SqliteRow, job: &Job) -> Result<Submission, StoreError> {
    let id = job_id(made)?;
    let same = made.try_get::<String, _>("spec_toml")? == job.info.spec_toml;
    Ok(if same { Submission::Existing(id) } else { Submission::KeyTaken(id) })
}

/// True when the record is new or replaces one of an earlier generation.
async fn put_metric(
    tx: &mut SqliteConnection,
    job: &JobId,
    row: &MetricRow,
    revision: i64,
) -> Result<bool, StoreError> {
    let ordinal = to_db(row.ordinal)?;
    if row.kind == MetricKind::Checkpoint {
        sqlx::query(sql::PUT_CHECKPOINT)
            .bind(job.as_str())
            .bind(row.generation.0)
            .bind(ordinal)
            .bind(&row.payload[..])
            .execute(&mut *tx)
            .await?;
    }
    let put = sqlx::query(sql::PUT_METRIC)
        .bind(job.as_str())
        .bind(row.kind.name())
        .bind(ordinal)
        .bind(row.generation.0)
        .bind(revision)
        .bind(&row.payload[..])
        .execute(&mut *tx)
        .await?;
    Ok(put.rows_affected() > 0)
}

/// Counts a message's dropped records once.
async fn count_dropped(tx: &mut SqliteConnection, batch: &MetricBatch) -> Result<(), StoreError> {
    if let Some(delivery) = &batch.delivery {
        let counted = sqlx::query(sql::COUNT_DELIVERY)
            .bind(delivery.incarnation.as_str())
            .bind(to_db(delivery.sequence)?)
            .execute(&mut *tx)
            .await?;
        if counted.rows_affected() == 0 {
            return Ok(());
        }
    }
    if batch.dropped_step_records > 0 {
        sqlx::query(sql::ADD_DROPPED)
            .bind(batch.job.as_str())
            .bind(to_db(batch.dropped_step_records)?)
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}

fn read_job(row: &SqliteRow) -> Result<Job, StoreError> {
    let bits: Vec<BitWidth> = from_json("bits", &row.try_get::<String, _>("bits")?)?;
    let info = JobInfo {
        id: job_id(row)?,
        name: row.try_get("name")?,
        spec_toml: row.try_get("spec_toml")?,
        world_size: row.try_get("world_size")?,
        priority: row.try_get("priority")?,
        max_restarts: row.try_get("max_restarts")?,
        bits,
        created_unix_ms: row.try_get("created_unix_ms")?,
    };
    let run: Option<String> = row.try_get("run")?;
    Ok(Job {
        info: Arc::new(info),
        state: state(row, "state")?,
        reason: row.try_get("reason")?,
        intent: match row.try_get::<String, _>("intent")?.as_str() {
            "cancel" => Intent::Cancel,
            _ => Intent::Train,
        },
        generation: Generation(row.try_get("generation")?),
        restarts: row.try_get("restarts")?,
        fruitless: row.try_get("fruitless")?,
        last_cause: row.try_get("last_cause")?,
        started_unix_ms: row.try_get("started_unix_ms")?,
        ended_unix_ms: row.try_get("ended_unix_ms")?,
        not_before: None,
        run: run.map(|text| from_json("generation", &text)).transpose()?,
    })
}

fn job_id(row: &SqliteRow) -> Result<JobId, StoreError> {
    JobId::new(row.try_get::<String, _>("id")?)
        .map_err(|error| StoreError::Damaged { what: "job id", detail: error.to_string() })
}

fn state(row: &SqliteRow, column: &str) -> Result<JobState, StoreError> {
    let name: String = row.try_get(column)?;
    JobState::from_name(&name).ok_or(StoreError::Damaged { what: "job state", detail: name })
}

fn payload(row: &SqliteRow) -> Result<Arc<[u8]>, StoreError> {
    Ok(row.try_get::<Vec<u8>, _>("payload")?.into())
}

fn intent_name(intent: Intent) -> &'static str {
    match intent {
        Intent::Train => "train",
        Intent::Cancel => "cancel",
    }
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Damaged { what: "value", detail: error.to_string() })
}

fn from_json<T: DeserializeOwned>(what: &'static str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Damaged { what, detail: error.to_string() })
}

fn to_db(value: u64) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|_| StoreError::TooLarge(value))
}

fn from_db(what: &'static str, value: i64) -> Result<u64, StoreError> {
    u64::try_from(value).map_err(|_| StoreError::Damaged { what, detail: value.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::suite::job;

    /// A full disk, which SQLite shows as it does a database at its page limit.
    #[tokio::test]
    async fn what_follows_a_full_disk_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let store = SqliteStore::open(&path).await.unwrap();
        store.submit(&job("before"), None).await.unwrap();
        sqlx::query("PRAGMA max_page_count = 1").execute(&store.writer).await.unwrap(); // at least the present size
        let mut failed = false;
        for i in 0..500 {
            failed |= store.submit(&job(&format!("job-{i}")), None).await.is_err();
        }
        assert!(failed, "the limit was never met");
        store.submit(&job("after"), None).await.unwrap();
        drop(store);
        let again = SqliteStore::open(&path).await.unwrap();
        assert!(again.job(&job("before").info.id).await.unwrap().is_some());
        assert!(again.job(&job("after").info.id).await.unwrap().is_some(), "an acknowledged write is gone");
    }
}
