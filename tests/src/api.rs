//! What people ask the coordinator.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anybit_proto::v1::cluster_service_client::ClusterServiceClient;
use anybit_proto::v1::job_service_client::JobServiceClient;
use anybit_proto::v1::metric_record::Record;
use anybit_proto::v1::{
    CancelJobRequest, CheckpointRecord, EvaluationMetrics, GetJobRequest, Job, ListCheckpointsRequest,
    ListWorkersRequest, MetricRecord, StepMetrics, StreamMetricsRequest, SubmitJobRequest, TailLogsRequest,
    WatchJobRequest, Worker,
};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::wait::{LONG, wait_for};

/// A blocking client. It connects again after the coordinator was away.
#[derive(Debug)]
pub struct Api {
    runtime: Runtime,
    jobs: JobServiceClient<Channel>,
    workers: ClusterServiceClient<Channel>,
}

impl Api {
    /// Of the coordinator at this URL; it may not be there yet.
    pub fn new(url: &str) -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().expect("runtime");
        let channel = {
            let _inside = runtime.enter();
            let endpoint = Endpoint::from_shared(url.to_owned()).expect("URL");
            endpoint.connect_timeout(Duration::from_secs(2)).connect_lazy()
        };
        Self {
            jobs: JobServiceClient::new(channel.clone()),
            workers: ClusterServiceClient::new(channel),
            runtime,
        }
    }

    /// Asks until the coordinator is there to answer.
    fn ask<T, F: Future<Output = Result<T, Status>>>(&self, call: impl Fn() -> F) -> Result<T, Status> {
        wait_for("the coordinator answers", LONG, || match self.runtime.block_on(call()) {
            Err(status) if is_away(&status) => None,
            answer => Some(answer),
        })
    }

    /// Submits a spec, and returns the job's id.
    pub fn submit(&self, spec_toml: &str) -> Result<String, Status> {
        // Asked for twice it is still one job.
        let idempotency_key = format!("{:?}", Instant::now());
        let request = SubmitJobRequest { spec_toml: spec_toml.to_owned(), idempotency_key };
        let answer = self.ask(|| {
            let (mut jobs, request) = (self.jobs.clone(), request.clone());
            async move { jobs.submit_job(request).await }
        })?;
        Ok(answer.into_inner().job.expect("job").id)
    }

    /// A job as it is now.
    pub fn job(&self, job: &str) -> Job {
        let answer = self.ask(|| {
            let (mut jobs, job_id) = (self.jobs.clone(), job.to_owned());
            async move { jobs.get_job(GetJobRequest { job_id }).await }
        });
        answer.expect("the job").into_inner().job.expect("job")
    }

    /// Asks a job to stop.
    pub fn cancel(&self, job: &str) {
        let answer = self.ask(|| {
            let (mut jobs, job_id) = (self.jobs.clone(), job.to_owned());
            async move { jobs.cancel_job(CancelJobRequest { job_id }).await }
        });
        answer.expect("cancelled");
    }

    /// The workers.
    pub fn workers(&self) -> Vec<Worker> {
        let answer = self.ask(|| {
            let mut workers = self.workers.clone();
            async move { workers.list_workers(ListWorkersRequest {}).await }
        });
        answer.expect("workers").into_inner().workers
    }

    /// A job's checkpoints, newest first.
    pub fn checkpoints(&self, job: &str) -> Vec<CheckpointRecord> {
        let answer = self.ask(|| {
            let (mut jobs, job_id) = (self.jobs.clone(), job.to_owned());
            async move { jobs.list_checkpoints(ListCheckpointsRequest { job_id }).await }
        });
        answer.expect("checkpoints").into_inner().checkpoints
    }

    /// All stored records of a job.
    pub fn records(&self, job: &str) -> Vec<MetricRecord> {
        let answer = self.ask(|| {
            let mut jobs = self.jobs.clone();
            let request = StreamMetricsRequest { job_id: job.to_owned(), ..Default::default() };
            async move { gather(jobs.stream_metrics(request).await?.into_inner()).await }
        });
        answer.expect("records").into_iter().filter_map(|answer| answer.record).collect()
    }

    /// The training steps among them, with their generation.
    pub fn steps(&self, job: &str) -> Vec<(u32, StepMetrics)> {
        let step = |record: MetricRecord| match record.record {
            Some(Record::Step(step)) => Some((record.generation, step)),
            _ => None,
        };
        self.records(job).into_iter().filter_map(step).collect()
    }

    /// The evaluations among them.
    pub fn evaluations(&self, job: &str) -> Vec<EvaluationMetrics> {
        let evaluation = |record: MetricRecord| match record.record {
            Some(Record::Evaluation(evaluation)) => Some(evaluation),
            _ => None,
        };
        self.records(job).into_iter().filter_map(evaluation).collect()
    }

    /// What one rank logged in one generation.
    pub fn log(&self, job: &str, generation: u32, rank: u32) -> String {
        let answer = self.ask(|| {
            let mut jobs = self.jobs.clone();
            let request = TailLogsRequest {
                job_id: job.to_owned(),
                rank: Some(rank),
                generation: Some(generation),
                ..Default::default()
            };
            async move { gather(jobs.tail_logs(request).await?.into_inner()).await }
        });
        let bytes: Vec<u8> = answer.expect("logs").into_iter().flat_map(|chunk| chunk.data).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Every state that the job's watchers see from now on, with its time.
    pub fn watch(&self, job: &str) -> Recording<Job> {
        let (mut jobs, job_id) = (self.jobs.clone(), job.to_owned());
        Recording::start(&self.runtime, async move {
            let stream = jobs.watch_job(WatchJobRequest { job_id }).await?.into_inner();
            Ok(stream.map(|answer| answer.map(|answer| answer.job.expect("job"))))
        })
    }

    /// Every record that is stored from now on (and those that are), with its time.
    pub fn follow(&self, job: &str) -> Recording<MetricRecord> {
        let mut jobs = self.jobs.clone();
        let request = StreamMetricsRequest { job_id: job.to_owned(), follow: true, ..Default::default() };
        Recording::start(&self.runtime, async move {
            let stream = jobs.stream_metrics(request).await?.into_inner();
            Ok(stream.map(|answer| answer.map(|answer| answer.record.expect("record"))))
        })
    }
}

/// True if asking again later is right.
fn is_away(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Internal)
}

async fn gather<T>(mut stream: impl Stream<Item = Result<T, Status>> + Unpin) -> Result<Vec<T>, Status> {
    let mut all = Vec::new();
    while let Some(item) = stream.next().await {
        all.push(item?);
    }
    Ok(all)
}

/// What a stream gave, and when.
#[derive(Debug)]
pub struct Recording<T> {
    items: Arc<Mutex<Vec<(Instant, T)>>>,
    task: JoinHandle<()>,
}

impl<T: Clone + Send + 'static> Recording<T> {
    fn start<S>(runtime: &Runtime, open: impl Future<Output = Result<S, Status>> + Send + 'static) -> Self
    where
        S: Stream<Item = Result<T, Status>> + Unpin + Send,
    {
        let items = Arc::new(Mutex::new(Vec::new()));
        let sink = items.clone();
        let task = runtime.spawn(async move {
            let mut stream = open.await.expect("stream");
            while let Some(Ok(item)) = stream.next().await {
                sink.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), item));
            }
        });
        Self { items, task }
    }

    /// Waits for the first item that fits; gives the time of its arrival.
    pub fn first(&self, what: &str, fits: impl Fn(&T) -> bool) -> (Instant, T) {
        wait_for(what, LONG, || {
            let items = self.items.lock().unwrap_or_else(PoisonError::into_inner);
            items.iter().find(|(_, item)| fits(item)).cloned()
        })
    }
}

impl<T> Drop for Recording<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}
