//! A coordinator with a few fixed jobs, enough to look at what the CLI makes of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anybit_proto::v1;
use anybit_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use anybit_proto::v1::cluster_service_server::{ClusterService, ClusterServiceServer};
use anybit_proto::v1::job_service_server::{JobService, JobServiceServer};
use anybit_proto::v1::{attach_request, attach_response};
use anybit_shared::spec::JobSpec;
use tokio::net::TcpListener;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

type Feed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Reply<T> = Result<Response<T>, Status>;

/// What the fake remembers.
#[derive(Default)]
pub(crate) struct Memory {
    /// Key, spec and id of every job made.
    pub(crate) submitted: Vec<(String, String, String)>,
    pub(crate) submit_calls: u32,
    pub(crate) watch_calls: u32,
    pub(crate) log_calls: u32,
    /// Submissions that are stored, and whose answer is lost.
    pub(crate) lose_answers: u32,
    /// Streams that break after their first message.
    pub(crate) break_streams: u32,
    /// No job is listed.
    pub(crate) idle: bool,
    workers: BTreeMap<String, v1::Worker>,
}

#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<Memory>>);

impl Fake {
    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().expect("not poisoned")
    }

    /// Serves on a free port until the test's runtime ends; gives the URL.
    pub(crate) async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(self.clone().serve(listener));
        format!("http://{address}")
    }

    pub(crate) async fn listen(
        &self,
        address: SocketAddr,
    ) -> std::io::Result<(String, impl Future<Output = ()> + use<>)> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok((format!("http://{address}"), self.clone().serve(listener)))
    }

    async fn serve(self, listener: TcpListener) {
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_serving::<JobServiceServer<Fake>>().await;
        tonic::transport::Server::builder()
            .add_service(health)
            .add_service(JobServiceServer::new(self.clone()))
            .add_service(ClusterServiceServer::new(self.clone()))
            .add_service(AgentServiceServer::new(self))
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
            .expect("served");
    }

    fn find(&self, id: &str) -> Result<v1::Job, Status> {
        let submitted = self.memory().submitted.iter().any(|(_, _, known)| known == id);
        match id {
            "job-ok" => Ok(job(id, v1::JobState::Succeeded, 460)),
            "job-bad" => Ok(job(id, v1::JobState::Failed, 23)),
            "job-live" | "job-hang" => Ok(job(id, v1::JobState::Running, 100)),
            "job-queued" => Ok(v1::Job { evaluation: None, ..job(id, v1::JobState::Queued, 0) }),
            "job-silent" => Err(Status::internal("the store is on fire")),
            _ if submitted => Ok(job(id, v1::JobState::Running, 100)),
            _ => Err(Status::not_found(format!("no job {id}"))),
        }
    }
}

fn widths(loss: f64) -> Vec<v1::WidthMetrics> {
    [(1, 92.5), (2, 98.25), (4, 98.3), (8, 98.3), (32, 100.0)]
        .map(|(bits, top1)| v1::WidthMetrics { bits, loss, top1, top5: 100.0 })
        .to_vec()
}

pub(crate) fn job(id: &str, state: v1::JobState, step: u64) -> v1::Job {
    let done = matches!(state, v1::JobState::Succeeded | v1::JobState::Failed);
    let now = 1_700_000_000_000;
    v1::Job {
        id: id.to_owned(),
        name: "digits".to_owned(),
        spec_toml: "name = \"digits\"".to_owned(),
        state: state.into(),
        reason: match state {
            v1::JobState::Failed => "rank 1: data.path \"nowhere\" does not exist".to_owned(),
            v1::JobState::Queued => "waits for 2 ranks, 0 are free".to_owned(),
            _ => String::new(),
        },
        generation: 1,
        max_restarts: 5,
        world_size: 2,
        created_unix_ms: now,
        started_unix_ms: Some(now + 1000),
        ended_unix_ms: done.then_some(now + 45_000),
        progress: Some(v1::Progress {
            step,
            total_steps: 460,
            epoch: step as f64 / 23.0,
            total_epochs: 20.0,
            images_per_second: 1234.5,
            learning_rate: 1e-3,
            skipped_steps: 0,
            eta_seconds: Some(40.0),
        }),
        training: widths(0.25),
        evaluation: Some(v1::EvaluationMetrics {
            step: step / 23 * 23,
            epoch: (step / 23) as f64,
            samples: 360,
            widths: widths(f64::NAN),
            seconds: 0.2,
        }),
        ranks: (0..2)
            .map(|rank| v1::RankPlacement { rank, worker_id: format!("worker-{}", rank + 1) })
            .collect(),
        checkpoint: Some(checkpoint(step)),
        bits: vec![1, 2, 4, 8, 32],
        ..v1::Job::default()
    }
}

fn checkpoint(step: u64) -> v1::CheckpointRecord {
    v1::CheckpointRecord {
        step,
        epoch: step as f64 / 23.0,
        path: format!("/checkpoints/job/step-{step}"),
        bytes: 1_500_000,
        generation: 1,
        unix_ms: 1_700_000_000_000,
        ..v1::CheckpointRecord::default()
    }
}

fn record(revision: u64) -> v1::StreamMetricsResponse {
    use v1::metric_record::Record;
    let evaluation = revision.is_multiple_of(4);
    let record = if evaluation {
        Record::Evaluation(v1::EvaluationMetrics {
            step: revision,
            epoch: revision as f64 / 4.0,
            samples: 360,
            widths: widths(1.0 / revision as f64),
            seconds: 0.1,
        })
    } else {
        let loss = if revision == 3 { f64::NAN } else { 2.0 / revision as f64 };
        Record::Step(v1::StepMetrics {
            step: revision,
            epoch: revision as f64 / 4.0,
            widths: widths(loss),
            ..Default::default()
        })
    };
    v1::StreamMetricsResponse {
        record: Some(v1::MetricRecord { generation: 1, unix_ms: 1, record: Some(record) }),
        revision,
    }
}

fn feed<T: Send + 'static>(messages: Vec<Result<T, Status>>) -> Reply<Feed<T>> {
    Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
}

#[tonic::async_trait]
impl JobService for Fake {
    async fn submit_job(&self, request: Request<v1::SubmitJobRequest>) -> Reply<v1::SubmitJobResponse> {
        let request = request.into_inner();
        let spec = JobSpec::from_toml(&request.spec_toml)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut memory = self.memory();
        memory.submit_calls += 1;
        let known = memory.submitted.iter().find(|(key, ..)| *key == request.idempotency_key).cloned();
        if known.as_ref().is_some_and(|(_, spec, _)| *spec != request.spec_toml) {
            return Err(Status::already_exists("this key made another job"));
        }
        let created = known.is_none();
        let (_, _, id) = known.unwrap_or_else(|| {
            let new = (request.idempotency_key, request.spec_toml, format!("job-{}", spec.name));
            memory.submitted.push(new.clone());
            new
        });
        if memory.lose_answers > 0 {
            memory.lose_answers -= 1;
            return Err(Status::unavailable("the connection broke"));
        }
        Ok(Response::new(v1::SubmitJobResponse { job: Some(job(&id, v1::JobState::Queued, 0)), created }))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Reply<v1::GetJobResponse> {
        let job = self.find(&request.into_inner().job_id)?;
        Ok(Response::new(v1::GetJobResponse { job: Some(job) }))
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Reply<v1::ListJobsResponse> {
        // Two pages, to see that both are asked for.
        let request = request.into_inner();
        if self.memory().idle {
            return Ok(Response::new(v1::ListJobsResponse::default()));
        }
        let (ids, next) = match request.page_token.as_str() {
            "" => (vec!["job-live", "job-queued"], "2"),
            _ => (vec!["job-ok", "job-bad"], ""),
        };
        let mut jobs = ids.into_iter().map(|id| self.find(id)).collect::<Result<Vec<_>, _>>()?;
        jobs.retain(|job| request.states.is_empty() || request.states.contains(&job.state));
        Ok(Response::new(v1::ListJobsResponse { jobs, next_page_token: next.to_owned() }))
    }

    async fn cancel_job(&self, request: Request<v1::CancelJobRequest>) -> Reply<v1::CancelJobResponse> {
        let mut job = self.find(&request.into_inner().job_id)?;
        if job.state() == v1::JobState::Succeeded {
            return Err(Status::failed_precondition("job job-ok has ended already"));
        }
        job.set_state(v1::JobState::Stopping);
        Ok(Response::new(v1::CancelJobResponse { job: Some(job) }))
    }

    type WatchJobStream = Feed<v1::WatchJobResponse>;
    async fn watch_job(&self, request: Request<v1::WatchJobRequest>) -> Reply<Self::WatchJobStream> {
        let id = request.into_inner().job_id;
        let now = self.find(&id)?;
        let message = |job| Ok(v1::WatchJobResponse { job: Some(job) });
        let mut memory = self.memory();
        memory.watch_calls += 1;
        if memory.break_streams > 0 {
            memory.break_streams -= 1;
            return feed(vec![message(now), Err(Status::unavailable("going down"))]);
        }
        if id.ends_with("hang") {
            let endless = tokio_stream::iter([message(now)]).chain(tokio_stream::pending());
            return Ok(Response::new(Box::pin(endless)));
        }
        if now.ended_unix_ms.is_some() {
            return feed(vec![message(now)]);
        }
        let mut snapshots = vec![job(&id, v1::JobState::Queued, 0), job(&id, v1::JobState::Running, 0)];
        snapshots.extend((1..=20).map(|epoch| job(&id, v1::JobState::Running, epoch * 23)));
        let end = if id.ends_with("fails") { v1::JobState::Failed } else { v1::JobState::Succeeded };
        snapshots.push(job(&id, end, 460));
        // Slow enough for a person who looks at the live view by way of this fake.
        let pause = std::env::var("ANYBIT_FAKE_PAUSE_MS").ok().and_then(|ms| ms.parse().ok()).unwrap_or(0);
        let stream = tokio_stream::iter(snapshots.into_iter().map(message)).then(move |message| async move {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            message
        });
        Ok(Response::new(Box::pin(stream)))
    }

    type StreamMetricsStream = Feed<v1::StreamMetricsResponse>;
    async fn stream_metrics(
        &self,
        request: Request<v1::StreamMetricsRequest>,
    ) -> Reply<Self::StreamMetricsStream> {
        let request = request.into_inner();
        self.find(&request.job_id)?;
        let mut records: Vec<_> = (1..=12)
            .filter(|&revision| revision > request.after_revision)
            .map(record)
            .filter(|record| !request.evaluations_only || record.revision.is_multiple_of(4))
            .map(Ok)
            .collect();
        let mut memory = self.memory();
        if memory.break_streams > 0 {
            memory.break_streams -= 1;
            records.truncate(5);
            records.push(Err(Status::unavailable("going down")));
        }
        feed(records)
    }

    type TailLogsStream = Feed<v1::TailLogsResponse>;
    async fn tail_logs(&self, request: Request<v1::TailLogsRequest>) -> Reply<Self::TailLogsStream> {
        let request = request.into_inner();
        self.find(&request.job_id)?;
        let chunk = |rank, offset, data: &[u8]| {
            Ok(v1::TailLogsResponse { generation: 1, rank, offset, data: data.to_vec() })
        };
        let mut chunks = vec![
            chunk(0, 0, b"first li"),
            chunk(1, 0, b"other rank\n"),
            chunk(0, 8, b"ne\nsecond line\nno end"),
        ];
        chunks.retain(|chunk| {
            chunk.as_ref().is_ok_and(|chunk| request.rank.is_none_or(|rank| rank == chunk.rank))
        });
        let mut memory = self.memory();
        memory.log_calls += 1;
        if memory.break_streams > 0 {
            memory.break_streams -= 1;
            chunks.truncate(2);
            chunks.push(Err(Status::unavailable("going down")));
        }
        feed(chunks)
    }

    async fn list_checkpoints(
        &self,
        request: Request<v1::ListCheckpointsRequest>,
    ) -> Reply<v1::ListCheckpointsResponse> {
        self.find(&request.into_inner().job_id)?;
        Ok(Response::new(v1::ListCheckpointsResponse { checkpoints: vec![checkpoint(460), checkpoint(437)] }))
    }
}

#[tonic::async_trait]
impl ClusterService for Fake {
    async fn list_workers(&self, _: Request<v1::ListWorkersRequest>) -> Reply<v1::ListWorkersResponse> {
        Ok(Response::new(v1::ListWorkersResponse {
            workers: self.memory().workers.values().cloned().collect(),
        }))
    }
}

#[tonic::async_trait]
impl AgentService for Fake {
    type AttachStream = Feed<v1::AttachResponse>;
    async fn attach(&self, request: Request<Streaming<v1::AttachRequest>>) -> Reply<Self::AttachStream> {
        let mut requests = request.into_inner();
        let Some(attach_request::Message::Hello(hello)) =
            requests.message().await?.and_then(|first| first.message)
        else {
            return Err(Status::invalid_argument("hello comes first"));
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        self.memory().workers.insert(
            hello.worker_id.clone(),
            v1::Worker {
                id: hello.worker_id,
                hostname: "host".to_owned(),
                slots: hello.slots,
                alive: true,
                attached_unix_ms: now.as_millis() as i64,
                ..v1::Worker::default()
            },
        );
        let welcome = v1::Welcome { lease_ms: 5000, heartbeat_ms: 1000 };
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let message = Some(attach_response::Message::Welcome(welcome));
        let _ = sender.send(Ok(v1::AttachResponse { message })).await;
        tokio::spawn(async move {
            while let Ok(Some(_)) = requests.message().await {}
            drop(sender);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
