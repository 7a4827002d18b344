//! A coordinator on a free port, and an agent that does what the test says.

use std::collections::VecDeque;
use std::time::Duration;

use anybit_coordinator::{Service, Settings};
use anybit_proto::v1::agent_service_client::AgentServiceClient;
use anybit_proto::v1::attach_request::Message as Said;
use anybit_proto::v1::attach_response::Message as Told;
use anybit_proto::v1::cluster_service_client::ClusterServiceClient;
use anybit_proto::v1::job_service_client::JobServiceClient;
use anybit_proto::v1::*;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Nothing takes so long unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A coordinator in this process.
pub(crate) struct Rig {
    _dir: TempDir,
    pub(crate) settings: Settings,
    pub(crate) service: Option<Service>,
    pub(crate) jobs: JobServiceClient<Channel>,
    pub(crate) cluster: ClusterServiceClient<Channel>,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::with(|_| ()).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = Settings {
            listen: "127.0.0.1:0".parse().unwrap(),
            data_dir: dir.path().join("data"),
            lease: Duration::from_secs(5),
            heartbeat: Duration::from_millis(100),
            ..Settings::default()
        };
        settings.backoff.initial = Duration::from_millis(20);
        change(&mut settings);
        let service = Service::start(settings.clone(), CancellationToken::new()).await.unwrap();
        let channel = Channel::from_shared(service.url()).unwrap().connect().await.unwrap();
        Self {
            _dir: dir,
            settings,
            service: Some(service),
            jobs: JobServiceClient::new(channel.clone()),
            cluster: ClusterServiceClient::new(channel),
        }
    }

    /// Stops the coordinator and starts one on the same data.
    pub(crate) async fn restart(&mut self) {
        self.service.take().unwrap().stop().await.unwrap();
        let service = Service::start(self.settings.clone(), CancellationToken::new()).await.unwrap();
        let channel = Channel::from_shared(service.url()).unwrap().connect().await.unwrap();
        self.service = Some(service);
        self.jobs = JobServiceClient::new(channel.clone());
        self.cluster = ClusterServiceClient::new(channel);
    }

    pub(crate) fn url(&self) -> String {
        self.service.as_ref().unwrap().url()
    }

    pub(crate) async fn agent(&self, worker: &str) -> Agent {
        Agent::attach(&self.url(), worker, "life1", Vec::new()).await.unwrap()
    }

    pub(crate) async fn submit(&mut self, ranks: u32, max_restarts: u32) -> String {
        self.submit_spec(&spec(ranks, max_restarts)).await.unwrap()
    }

    pub(crate) async fn submit_spec(&mut self, spec: &str) -> Result<String, Status> {
        let request = SubmitJobRequest { spec_toml: spec.to_owned(), idempotency_key: String::new() };
        Ok(self.jobs.submit_job(request).await?.into_inner().job.unwrap().id)
    }

    pub(crate) async fn job(&mut self, id: &str) -> Job {
        let request = GetJobRequest { job_id: id.to_owned() };
        self.jobs.get_job(request).await.unwrap().into_inner().job.unwrap()
    }

    /// Watches until the job is in this state.
    pub(crate) async fn wait(&mut self, id: &str, state: JobState) -> Job {
        self.wait_until(id, |job| job.state() == state).await
    }

    pub(crate) async fn wait_until(&mut self, id: &str, done: impl Fn(&Job) -> bool) -> Job {
        let request = WatchJobRequest { job_id: id.to_owned() };
        let mut news = self.jobs.watch_job(request).await.unwrap().into_inner();
        let mut last = None;
        let found = tokio::time::timeout(PATIENCE, async {
            while let Some(response) = news.message().await.unwrap() {
                let job = response.job.unwrap();
                if done(&job) {
                    return Some(job);
                }
                last = Some((job.state(), job.reason));
            }
            None
        });
        found.await.ok().flatten().unwrap_or_else(|| panic!("not seen; last {last:?}"))
    }

    pub(crate) async fn workers(&mut self) -> Vec<Worker> {
        self.cluster.list_workers(ListWorkersRequest {}).await.unwrap().into_inner().workers
    }

    pub(crate) async fn metrics(&mut self, request: StreamMetricsRequest) -> Vec<StreamMetricsResponse> {
        let mut stream = self.jobs.stream_metrics(request).await.unwrap().into_inner();
        collect(&mut stream).await
    }

    /// The bytes of one rank's log.
    pub(crate) async fn log(&mut self, request: TailLogsRequest) -> String {
        let mut stream = self.jobs.tail_logs(request).await.unwrap().into_inner();
        let bytes = collect(&mut stream).await.into_iter().flat_map(|piece| piece.data).collect();
        String::from_utf8(bytes).unwrap()
    }
}

pub(crate) async fn collect<T>(stream: &mut Streaming<T>) -> Vec<T> {
    tokio::time::timeout(PATIENCE, async {
        let mut all = Vec::new();
        while let Some(item) = stream.message().await.unwrap() {
            all.push(item);
        }
        all
    })
    .await
    .expect("the stream did not end")
}

pub(crate) fn spec(ranks: u32, max_restarts: u32) -> String {
    format!("extends = \"digits\"\n[resources]\nranks = {ranks}\nmax_restarts = {max_restarts}\n")
}

/// An agent that does what the test says, and keeps its lease until it is muted or dropped.
pub(crate) struct Agent {
    pub(crate) worker: String,
    said: mpsc::Sender<AttachRequest>,
    told: Streaming<AttachResponse>,
    unread: VecDeque<Told>,
    pub(crate) sequence: u64,
    mute: CancellationToken,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.mute.cancel();
    }
}

impl Agent {
    pub(crate) async fn attach(
        url: &str,
        worker: &str,
        incarnation: &str,
        held: Vec<HeldGeneration>,
    ) -> Result<Self, Status> {
        let hello = Hello {
            worker_id: worker.to_owned(),
            incarnation: incarnation.to_owned(),
            hostname: "host".to_owned(),
            version: "test".to_owned(),
            slots: 1,
            held,
        };
        Self::attach_as(url, hello).await
    }

    pub(crate) async fn attach_as(url: &str, hello: Hello) -> Result<Self, Status> {
        let worker = hello.worker_id.clone();
        let channel = Channel::from_shared(url.to_owned()).unwrap().connect().await.unwrap();
        let (said, outgoing) = mpsc::channel(64);
        said.send(AttachRequest { sequence: 0, message: Some(Said::Hello(hello)) }).await.unwrap();
        let told = AgentServiceClient::new(channel).attach(ReceiverStream::new(outgoing)).await?.into_inner();
        let mute = CancellationToken::new();
        let (muted, heart) = (mute.clone(), said.downgrade());
        tokio::spawn(async move {
            while !muted.is_cancelled() {
                let beat = AttachRequest { sequence: 0, message: Some(Said::Heartbeat(Heartbeat {})) };
                match heart.upgrade() {
                    Some(said) if said.send(beat).await.is_ok() => {}
                    _ => return,
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let mut agent = Self { worker, said, told, unread: VecDeque::new(), sequence: 0, mute };
        let first = agent.next().await?;
        assert!(matches!(first, Told::Welcome(_)), "{first:?}");
        Ok(agent)
    }

    /// No more heartbeats; the stream stays open.
    pub(crate) fn mute(&self) {
        self.mute.cancel();
    }

    async fn next(&mut self) -> Result<Told, Status> {
        let message = tokio::time::timeout(PATIENCE, self.told.message());
        let message = message.await.expect("the coordinator said nothing")?;
        Ok(message.ok_or_else(|| Status::ok("the stream ended"))?.message.unwrap())
    }

    /// The next message that fits; others are kept.
    async fn find<T>(&mut self, fits: impl Fn(&Told) -> Option<T>) -> T {
        if let Some(index) = self.unread.iter().position(|told| fits(told).is_some()) {
            return fits(&self.unread.remove(index).unwrap()).unwrap();
        }
        loop {
            let told = self.next().await.unwrap();
            match fits(&told) {
                Some(found) => return found,
                None => self.unread.push_back(told),
            }
        }
    }

    pub(crate) async fn host_store(&mut self) -> HostStore {
        self.find(|told| if let Told::HostStore(order) = told { Some(order.clone()) } else { None }).await
    }

    pub(crate) async fn start_ranks(&mut self) -> StartRanks {
        self.find(|told| if let Told::StartRanks(order) = told { Some(order.clone()) } else { None }).await
    }

    pub(crate) async fn stop(&mut self) -> StopGeneration {
        self.find(|told| if let Told::StopGeneration(order) = told { Some(order.clone()) } else { None })
            .await
    }

    /// How the stream ends.
    pub(crate) async fn end(mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }

    /// Says something that must last, and waits until it is acknowledged.
    pub(crate) async fn say(&mut self, message: Said) {
        self.sequence += 1;
        let sequence = self.sequence;
        self.send(sequence, message).await;
        self.find(|told| matches!(told, Told::Acknowledge(a) if a.sequence == sequence).then_some(())).await;
    }

    pub(crate) async fn send(&mut self, sequence: u64, message: Said) {
        self.said.send(AttachRequest { sequence, message: Some(message) }).await.unwrap();
    }

    pub(crate) async fn phase(&mut self, job: &str, generation: u32, rank: u32, step: u64) {
        let (job_id, restored_from) = (job.to_owned(), String::new());
        let phase = trainer_phase::Phase::Training.into();
        self.say(Said::TrainerPhase(TrainerPhase { job_id, generation, rank, phase, step, restored_from }))
            .await;
    }

    pub(crate) async fn exit(
        &mut self,
        job: &str,
        generation: u32,
        rank: u32,
        kind: ExitKind,
        message: &str,
    ) {
        let (job_id, message) = (job.to_owned(), message.to_owned());
        let exited = RankExited { job_id, generation, rank, kind: kind.into(), message, step: 0 };
        self.say(Said::RankExited(exited)).await;
    }

    pub(crate) async fn stopped(&mut self, job: &str, generation: u32) {
        self.say(Said::GenerationStopped(GenerationStopped { job_id: job.to_owned(), generation })).await;
    }

    pub(crate) async fn metrics(&mut self, job: &str, records: Vec<MetricRecord>) {
        let batch = MetricBatch { job_id: job.to_owned(), records, dropped_step_records: 0 };
        self.say(Said::Metrics(batch)).await;
    }

    pub(crate) async fn log(&mut self, job: &str, generation: u32, rank: u32, offset: u64, text: &str) {
        let chunk =
            LogChunk { job_id: job.to_owned(), generation, rank, offset, data: text.as_bytes().to_vec() };
        self.say(Said::Log(chunk)).await;
    }
}

/// Rank 0's agent opens the store, and every agent's ranks train from this step on.
pub(crate) async fn train(agents: &mut [&mut Agent], from: u64) -> (String, u32) {
    let mut host = None;
    // Only rank 0's agent is asked; which one that is, the scheduler decides.
    for agent in agents.iter_mut() {
        let asked = tokio::time::timeout(Duration::from_millis(300), agent.host_store());
        if let Ok(order) = asked.await {
            host = Some((agent.worker.clone(), order));
            let order = &host.as_ref().unwrap().1;
            let ready = StoreReady {
                job_id: order.job_id.clone(),
                generation: order.generation,
                address: "127.0.0.1:9".to_owned(),
                error: String::new(),
            };
            agent.say(Said::StoreReady(ready)).await;
            break;
        }
    }
    let (_, order) = host.expect("no agent was asked to host the store");
    for agent in agents {
        let start = agent.start_ranks().await;
        assert_eq!((&start.job_id, start.generation), (&order.job_id, order.generation));
        assert_eq!(start.store_address, "127.0.0.1:9");
        for rank in start.ranks {
            agent.phase(&order.job_id, order.generation, rank, from).await;
        }
    }
    (order.job_id, order.generation)
}

pub(crate) fn step(generation: u32, step: u64, loss: f64) -> MetricRecord {
    let widths = [1, 2, 4, 8, 32].map(|bits| WidthMetrics { bits, loss, top1: 50.0, top5: 90.0 }).to_vec();
    let metrics =
        StepMetrics { step, total_steps: 10, epoch: step as f64, seconds: 0.5, widths, ..Default::default() };
    MetricRecord { generation, unix_ms: 1, record: Some(metric_record::Record::Step(metrics)) }
}

pub(crate) fn skipped(generation: u32, at: u64, total: u64) -> MetricRecord {
    let skip = SkippedStep { total, ..Default::default() };
    let metrics = StepMetrics { step: at, skipped: Some(skip), ..Default::default() };
    MetricRecord { generation, unix_ms: 1, record: Some(metric_record::Record::Step(metrics)) }
}

pub(crate) fn evaluation(generation: u32, step: u64) -> MetricRecord {
    let metrics = EvaluationMetrics { step, samples: 360, ..Default::default() };
    MetricRecord { generation, unix_ms: 1, record: Some(metric_record::Record::Evaluation(metrics)) }
}

pub(crate) fn checkpoint(generation: u32, step: u64) -> MetricRecord {
    let path = format!("/ckpt/g{generation}-s{step}");
    let record = CheckpointRecord { step, path, generation, ..Default::default() };
    MetricRecord { generation, unix_ms: 1, record: Some(metric_record::Record::Checkpoint(record)) }
}
