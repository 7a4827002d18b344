//! What people follow: a job, its curves, its logs. Each stream reads at its client's pace; a
//! slow one holds nothing up.

use std::collections::BTreeMap;
use std::time::Duration;

use anybit_proto::v1::{
    MetricRecord, StreamMetricsRequest, StreamMetricsResponse, TailLogsRequest, TailLogsResponse,
    WatchJobResponse,
};
use anybit_shared::ids::{Generation, JobId, Rank};
use async_stream::try_stream;
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::error::ApiError;
use super::{Api, Stream, convert};
use crate::engine::{CloseReason, Feed, Watched};
use crate::logs::{LogFiles, LogKey};
use crate::store::{MetricFilter, StoreError};

const METRICS_PAGE: u32 = 256;
const LOG_PIECE_BYTES: usize = 64 << 10;
const MAX_LAST_LINES: u32 = 1_000_000;
/// Followed logs end when no byte has come for so long after the job's end: the last ones may
/// travel on another agent's stream than the news of the end.
const LOG_LINGER: Duration = Duration::from_millis(600);
const LOG_POLL: Duration = Duration::from_millis(100);

/// Whether more can come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Live,
    Ended,
}

/// The job now and after every change.
pub(super) fn watch(watched: Watched, shutdown: CancellationToken) -> Stream<WatchJobResponse> {
    Box::pin(try_stream! {
        match watched {
            Watched::Ended(view) => yield WatchJobResponse { job: Some(convert::job(&view)) },
            Watched::Live(mut feed) => loop {
                let view = feed.view.borrow_and_update().clone();
                yield WatchJobResponse { job: Some(convert::job(&view)) };
                if view.job.state.is_terminal() {
                    break;
                }
                if next(&shutdown, feed.view.changed()).await?.is_err() {
                    Err(shutting_down())?;
                }
            },
        }
    })
}

/// Stored records, then live ones.
pub(super) fn metrics(
    api: Api,
    job: JobId,
    watched: Watched,
    request: &StreamMetricsRequest,
) -> Stream<StreamMetricsResponse> {
    let mut revision = request.after_revision;
    let filter = if request.evaluations_only { MetricFilter::NoSteps } else { MetricFilter::All };
    let mut feed = feed_to_follow(watched, request.follow);
    Box::pin(try_stream! {
        loop {
            // Seen before the read: what is stored before the job's end is then not missed.
            let source = state_of(&mut feed);
            loop {
                let read = api.engine.store().metrics_after(&job, revision, filter, METRICS_PAGE);
                let page = read.await.map_err(ApiError::from)?;
                let Some(last) = page.last() else { break };
                revision = last.revision;
                for stored in page {
                    let record = MetricRecord::decode(&stored.payload[..]).map_err(damaged)?;
                    yield StreamMetricsResponse { record: Some(record), revision: stored.revision };
                }
            }
            match (&mut feed, source) {
                (Some(feed), Source::Live) => {
                    // Closed: the job has ended, and one more read follows.
                    let _ = next(&api.shutdown, feed.view.changed()).await?;
                }
                _ => break,
            }
        }
    })
}

/// Stored log bytes, then live ones.
pub(super) fn logs(
    api: Api,
    job: JobId,
    watched: Watched,
    request: TailLogsRequest,
) -> Stream<TailLogsResponse> {
    let mut feed = feed_to_follow(watched, request.follow);
    let mut tail = Tail::new(api.logs.clone(), job, &request);
    Box::pin(try_stream! {
        let mut quiet = Duration::ZERO;
        loop {
            let source = state_of(&mut feed);
            let mut news = false;
            tail.list().await?;
            for key in tail.keys() {
                while let Some(piece) = tail.read(&key).await? {
                    news = true;
                    yield piece;
                }
            }
            match (&mut feed, source) {
                (None, _) => break,
                (Some(feed), Source::Live) => {
                    let (view, logs) = (&mut feed.view, &mut feed.logs);
                    let either = async { tokio::select! { _ = view.changed() => (), _ = logs.changed() => () } };
                    next(&api.shutdown, either).await?;
                }
                (Some(_), Source::Ended) => {
                    quiet = if news { Duration::ZERO } else { quiet + LOG_POLL };
                    if quiet > LOG_LINGER {
                        break;
                    }
                    next(&api.shutdown, tokio::time::sleep(LOG_POLL)).await?;
                }
            }
        }
    })
}

/// Where a client stands in each of a job's logs.
struct Tail {
    files: LogFiles,
    job: JobId,
    rank: Option<Rank>,
    generation: Option<Generation>,
    /// Lines to begin before the end with, in logs that are there at the start.
    last_lines: u32,
    offsets: BTreeMap<LogKey, u64>,
}

impl Tail {
    fn new(files: LogFiles, job: JobId, request: &TailLogsRequest) -> Self {
        Self {
            files,
            job,
            rank: request.rank.map(Rank),
            generation: request.generation.map(Generation),
            last_lines: request.last_lines.min(MAX_LAST_LINES),
            offsets: BTreeMap::new(),
        }
    }

    fn keys(&self) -> Vec<LogKey> {
        self.offsets.keys().cloned().collect()
    }

    /// Takes in logs that are new.
    async fn list(&mut self) -> Result<(), ApiError> {
        let (job, lines) = (self.job.clone(), std::mem::take(&mut self.last_lines));
        let known: Vec<LogKey> = self.keys();
        let (rank, generation) = (self.rank, self.generation);
        let found = self
            .blocking(move |files| {
                let mut found = Vec::new();
                for key in files.list(&job)? {
                    let wanted = rank.is_none_or(|rank| rank == key.rank)
                        && generation.is_none_or(|generation| generation == key.generation);
                    if wanted && !known.contains(&key) {
                        let offset = if lines > 0 { files.offset_of_last(&job, &key, lines)? } else { 0 };
                        found.push((key, offset));
                    }
                }
                Ok(found)
            })
            .await?;
        self.offsets.extend(found);
        Ok(())
    }

    async fn read(&mut self, key: &LogKey) -> Result<Option<TailLogsResponse>, ApiError> {
        let offset = self.offsets.get(key).copied().unwrap_or_default();
        let (job, wanted) = (self.job.clone(), key.clone());
        let data = self.blocking(move |files| files.read(&job, &wanted, offset, LOG_PIECE_BYTES)).await?;
        if data.is_empty() {
            return Ok(None);
        }
        self.offsets.insert(key.clone(), offset + data.len() as u64);
        Ok(Some(TailLogsResponse { generation: key.generation.0, rank: key.rank.0, offset, data }))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&LogFiles) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, ApiError> {
        let files = self.files.clone();
        let done = tokio::task::spawn_blocking(move || work(&files)).await;
        Ok(done.map_err(std::io::Error::other)??)
    }
}

/// Someone who does not follow, or comes after the end, needs no news.
fn feed_to_follow(watched: Watched, follow: bool) -> Option<Feed> {
    match watched {
        Watched::Live(feed) if follow => Some(feed),
        _ => None,
    }
}

/// Marks the news as seen, and tells whether there can be more.
fn state_of(feed: &mut Option<Feed>) -> Source {
    let Some(feed) = feed else { return Source::Ended };
    feed.logs.mark_unchanged();
    let ended = feed.view.borrow_and_update().job.state.is_terminal();
    if ended || feed.view.has_changed().is_err() { Source::Ended } else { Source::Live }
}

/// Waits for news, unless the coordinator is shutting down.
async fn next<T>(shutdown: &CancellationToken, news: impl Future<Output = T>) -> Result<T, Status> {
    tokio::select! {
        () = shutdown.cancelled() => Err(shutting_down()),
        news = news => Ok(news),
    }
}

fn shutting_down() -> Status {
    ApiError::Closed(CloseReason::ShuttingDown).into()
}

fn damaged(error: prost::DecodeError) -> Status {
    ApiError::from(StoreError::Damaged { what: "metric", detail: error.to_string() }).into()
}
