//! Calls to the coordinator: the only place that sees gRPC. Every call has a deadline, and every
//! failure says what to do.

use std::error::Error;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::time::Duration;

use anybit_proto::v1;
use anybit_proto::v1::cluster_service_client::ClusterServiceClient;
use anybit_proto::v1::job_service_client::JobServiceClient;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::error::Failure;
use crate::model::{Checkpoint, Job, JobState, LogChunk, Stored, Worker};

const CONNECT: Duration = Duration::from_secs(5);
const CALL: Duration = Duration::from_secs(15);
/// A peer that is silent for two of these is taken for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A job carries its spec, a listing a thousand jobs.
const LARGEST_REPLY_BYTES: usize = 128 << 20;
const LARGEST_PAGE: u32 = 500;

/// A connection, cheap to clone; it reconnects by itself at the next call.
#[derive(Clone)]
pub(crate) struct Client {
    channel: Channel,
    url: String,
}

/// One direction of messages from the coordinator.
pub(crate) struct Feed<P, M> {
    messages: Streaming<P>,
    url: String,
    shown_as: PhantomData<M>,
}

/// Which metric records are wanted.
pub(crate) struct MetricsQuery {
    pub(crate) follow: bool,
    pub(crate) evaluations_only: bool,
    pub(crate) after_revision: u64,
}

/// Which log bytes are wanted.
#[derive(Clone, Copy, Default)]
pub(crate) struct LogsQuery {
    pub(crate) follow: bool,
    pub(crate) rank: Option<u32>,
    pub(crate) generation: Option<u32>,
    pub(crate) last_lines: u32,
}

impl Client {
    /// Connects, or says why not.
    pub(crate) async fn connect(url: &str, insecure: bool) -> Result<Self, Failure> {
        let uri = check_url(url, insecure)?;
        let endpoint = Endpoint::from(uri)
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .user_agent(concat!("anybit/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| Failure::Usage(error.to_string()))?;
        let channel = endpoint.connect().await.map_err(|error| unreachable(url, &root_cause(&error)))?;
        Ok(Self { channel, url: url.to_owned() })
    }

    fn jobs_client(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_REPLY_BYTES)
    }

    /// Submits a resolved spec. The second value is false when the key had made the job before.
    pub(crate) async fn submit(&self, spec_toml: &str, key: &str) -> Result<(Job, bool), Failure> {
        let request =
            v1::SubmitJobRequest { spec_toml: spec_toml.to_owned(), idempotency_key: key.to_owned() };
        let mut client = self.jobs_client();
        let reply = self.call(request, async |request| client.submit_job(request).await).await;
        let reply = reply.map_err(|failure| match failure {
            Failure::Usage(message) => Failure::InvalidSpec(message),
            other => other,
        })?;
        Ok((self.present(reply.job)?.into(), reply.created))
    }

    pub(crate) async fn job(&self, id: &str) -> Result<Job, Failure> {
        let request = v1::GetJobRequest { job_id: id.to_owned() };
        let mut client = self.jobs_client();
        let reply = self.call(request, async |request| client.get_job(request).await).await?;
        Ok(self.present(reply.job)?.into())
    }

    /// The newest `limit` jobs in one of the states (all states, if none is given).
    pub(crate) async fn jobs(&self, limit: u32, states: &[JobState]) -> Result<Vec<Job>, Failure> {
        let mut jobs: Vec<Job> = Vec::new();
        let mut page_token = String::new();
        loop {
            let left = limit.saturating_sub(jobs.len() as u32);
            let request = v1::ListJobsRequest {
                states: states.iter().map(|&state| v1::JobState::from(state).into()).collect(),
                page_size: left.min(LARGEST_PAGE),
                page_token,
            };
            let mut client = self.jobs_client();
            let reply = self.call(request, async |request| client.list_jobs(request).await).await?;
            jobs.extend(reply.jobs.into_iter().map(Job::from).take(left as usize));
            page_token = reply.next_page_token;
            if page_token.is_empty() || jobs.len() >= limit as usize {
                return Ok(jobs);
            }
        }
    }

    pub(crate) async fn cancel(&self, id: &str) -> Result<Job, Failure> {
        let request = v1::CancelJobRequest { job_id: id.to_owned() };
        let mut client = self.jobs_client();
        let reply = self.call(request, async |request| client.cancel_job(request).await).await?;
        Ok(self.present(reply.job)?.into())
    }

    pub(crate) async fn checkpoints(&self, id: &str) -> Result<Vec<Checkpoint>, Failure> {
        let request = v1::ListCheckpointsRequest { job_id: id.to_owned() };
        let mut client = self.jobs_client();
        let reply = self.call(request, async |request| client.list_checkpoints(request).await).await?;
        Ok(reply.checkpoints.into_iter().map(Checkpoint::from).collect())
    }

    pub(crate) async fn workers(&self) -> Result<Vec<Worker>, Failure> {
        let mut client =
            ClusterServiceClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_REPLY_BYTES);
        let request = v1::ListWorkersRequest {};
        let reply = self.call(request, async |request| client.list_workers(request).await).await?;
        Ok(reply.workers.into_iter().map(Worker::from).collect())
    }

    /// True when the coordinator says that it serves.
    pub(crate) async fn healthy(&self) -> Result<bool, Failure> {
        let mut client = HealthClient::new(self.channel.clone());
        let request = HealthCheckRequest { service: String::new() };
        let reply = self.call(request, async |request| client.check(request).await).await?;
        Ok(reply.status() == ServingStatus::Serving)
    }

    pub(crate) async fn watch(&self, id: &str) -> Result<Feed<v1::WatchJobResponse, Job>, Failure> {
        let request = v1::WatchJobRequest { job_id: id.to_owned() };
        let mut client = self.jobs_client();
        self.open(async || client.watch_job(request).await).await
    }

    pub(crate) async fn metrics(
        &self,
        id: &str,
        query: &MetricsQuery,
    ) -> Result<Feed<v1::StreamMetricsResponse, Stored>, Failure> {
        let request = v1::StreamMetricsRequest {
            job_id: id.to_owned(),
            follow: query.follow,
            evaluations_only: query.evaluations_only,
            after_revision: query.after_revision,
        };
        let mut client = self.jobs_client();
        self.open(async || client.stream_metrics(request).await).await
    }

    pub(crate) async fn logs(
        &self,
        id: &str,
        query: LogsQuery,
    ) -> Result<Feed<v1::TailLogsResponse, LogChunk>, Failure> {
        let request = v1::TailLogsRequest {
            job_id: id.to_owned(),
            follow: query.follow,
            rank: query.rank,
            generation: query.generation,
            last_lines: query.last_lines,
        };
        let mut client = self.jobs_client();
        self.open(async || client.tail_logs(request).await).await
    }

    async fn call<T, R>(
        &self,
        message: T,
        call: impl AsyncFnOnce(Request<T>) -> Result<Response<R>, Status>,
    ) -> Result<R, Failure> {
        let mut request = Request::new(message);
        request.set_timeout(CALL);
        match tokio::time::timeout(CALL, call(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(failure(&self.url, &status)),
            Err(_) => Err(silent(&self.url)),
        }
    }

    /// A stream may last for days: only its beginning has a deadline, keep-alive guards the rest.
    async fn open<P, M>(
        &self,
        call: impl AsyncFnOnce() -> Result<Response<Streaming<P>>, Status>,
    ) -> Result<Feed<P, M>, Failure> {
        match tokio::time::timeout(CALL, call()).await {
            Ok(Ok(response)) => {
                Ok(Feed { messages: response.into_inner(), url: self.url.clone(), shown_as: PhantomData })
            }
            Ok(Err(status)) => Err(failure(&self.url, &status)),
            Err(_) => Err(silent(&self.url)),
        }
    }

    fn present<T>(&self, value: Option<T>) -> Result<T, Failure> {
        value.ok_or_else(|| anyhow::anyhow!("the coordinator at {} answered without a job", self.url).into())
    }
}

impl<P, M: From<P>> Feed<P, M> {
    /// The next message; `None` at the stream's end.
    pub(crate) async fn next(&mut self) -> Result<Option<M>, Failure> {
        match self.messages.message().await {
            Ok(message) => Ok(message.map(M::from)),
            Err(status) => Err(failure(&self.url, &status)),
        }
    }
}

/// Waits that grow from call to call, for trying again.
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(250);
    const LONGEST: Duration = Duration::from_secs(5);

    pub(crate) fn new() -> Self {
        Self { next: Self::FIRST }
    }

    pub(crate) fn reset(&mut self) {
        self.next = Self::FIRST;
    }

    pub(crate) fn advance(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(Self::LONGEST);
        now
    }
}

fn check_url(url: &str, insecure: bool) -> Result<Uri, Failure> {
    let usage = |why: &str| Failure::Usage(format!("--coordinator {url:?} {why}"));
    let uri: Uri = url
        .parse()
        .map_err(|_| usage("is not a URL: write http://HOST:PORT, as in http://127.0.0.1:7420"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(usage("asks for TLS, which this version cannot do: write http://")),
        _ => return Err(usage("is not a URL: write http://HOST:PORT, as in http://127.0.0.1:7420")),
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(usage("has a user name, which a coordinator does not ask for: write http://HOST:PORT"));
    }
    if uri.path().len() > 1 || uri.query().is_some() {
        return Err(usage("has more than a host and a port: write http://HOST:PORT"));
    }
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if !local && !insecure {
        return Err(usage(
            "is another machine, and the connection is not encrypted: add --insecure to allow that",
        ));
    }
    Ok(uri)
}

fn unreachable(url: &str, why: &str) -> Failure {
    Failure::Unreachable(format!(
        "cannot reach the coordinator at {url}: {why}; start one with `anybit up`, or set --coordinator"
    ))
}

fn silent(url: &str) -> Failure {
    unreachable(url, &format!("no answer within {} s", CALL.as_secs()))
}

fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// What a status means to the person who typed the command.
fn failure(url: &str, status: &Status) -> Failure {
    let message = status.message().to_owned();
    match status.code() {
        Code::NotFound => Failure::NotFound(message),
        Code::InvalidArgument | Code::OutOfRange => Failure::Usage(message),
        Code::AlreadyExists => Failure::Conflict(message),
        Code::FailedPrecondition => Failure::Other(anyhow::anyhow!(message)),
        Code::DeadlineExceeded | Code::Cancelled => silent(url),
        // Aborted: the coordinator closed a stream that may be opened again.
        Code::Unavailable | Code::Aborted => unreachable(url, &status.source().map_or(message, root_cause)),
        // A connection that broke in the middle comes as an unknown or internal error with a cause.
        Code::Unknown | Code::Internal if status.source().is_some() => {
            unreachable(url, &status.source().map_or(message, root_cause))
        }
        Code::Unimplemented => Failure::Other(anyhow::anyhow!(
            "the coordinator at {url} does not know this call: is it another program, or an older version?"
        )),
        code => Failure::Other(anyhow::anyhow!("the coordinator at {url} answered {code:?}: {message}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_coordinators_are_reached_in_the_clear() {
        for url in ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"] {
            assert!(check_url(url, false).is_ok(), "{url}");
        }
        for url in ["http://example.org:1", "http://10.0.0.1:1"] {
            assert!(
                check_url(url, false).is_err_and(|error| error.to_string().contains("--insecure")),
                "{url}"
            );
            assert!(check_url(url, true).is_ok(), "{url}");
        }
        for url in ["", "127.0.0.1:7420", "https://localhost:1", "ftp://localhost", "http://"] {
            assert!(check_url(url, true).is_err(), "{url}");
        }
        for url in [
            "http://localhost:1/x",
            "http://me@localhost:1",
            "http://me:x@localhost:1",
            "http://localhost:1/?a",
        ] {
            assert!(
                check_url(url, true).is_err_and(|error| error.to_string().contains("http://HOST")),
                "{url}"
            );
        }
        assert!(check_url("http://localhost:1/", false).is_ok());
    }

    #[test]
    fn waits_grow_to_a_limit_and_start_over() {
        let mut backoff = Backoff::new();
        let waits: Vec<u128> = (0..7).map(|_| backoff.advance().as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 5000, 5000]);
        backoff.reset();
        assert_eq!(backoff.advance(), Backoff::FIRST);
    }
}
