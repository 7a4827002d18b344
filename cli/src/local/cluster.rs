//! The coordinator and the workers together: started in order, watched, stopped in order.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lock::StateLock;
use super::plan::{Plan, worker_name};
use super::service::{Ended, Service, Stop};
use crate::client::Client;
use crate::error::Failure;
use crate::signals::Signals;
use crate::text;

const COORDINATOR_DEADLINE: Duration = Duration::from_secs(30);
/// The worker loads libtorch, from a cold disk perhaps.
const WORKERS_DEADLINE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);
/// Trainers may be writing a checkpoint.
const WORKER_GRACE: Duration = Duration::from_secs(20);
const COORDINATOR_GRACE: Duration = Duration::from_secs(10);
const NOTES: usize = 64;

/// A running service, for people and `-o json`.
#[derive(Serialize)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) pid: Option<u32>,
    pub(crate) what: String,
    pub(crate) log: PathBuf,
}

/// Services that stop together.
struct Group {
    services: Vec<Arc<Service>>,
    tasks: JoinSet<()>,
    stop: Stop,
}

/// A cluster of children. Dropping it kills them; [`Cluster::stop`] asks first.
pub(crate) struct Cluster {
    /// What happened to the services since they were ready.
    pub(crate) notes: mpsc::Receiver<String>,
    plan: Plan,
    url: String,
    client: Option<Client>,
    coordinator: Group,
    workers: Group,
    ended: Option<mpsc::Receiver<Ended>>,
    ended_sender: mpsc::Sender<Ended>,
    notes_sender: mpsc::Sender<String>,
    relay: JoinSet<()>,
    started_unix_ms: i64,
}

impl Cluster {
    /// Starts the coordinator.
    pub(crate) fn launch(plan: Plan) -> Result<Self, Failure> {
        let address = plan.address_file();
        if let Err(error) = std::fs::remove_file(&address)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            let context = format!("cannot remove the old {}", address.display());
            return Err(anyhow::Error::new(error).context(context).into());
        }
        let (notes_sender, notes) = mpsc::channel(NOTES);
        let (ended_sender, ended) = mpsc::channel(NOTES);
        let mut coordinator = Group::new(COORDINATOR_GRACE);
        coordinator.start(plan.coordinator(), &ended_sender);
        Ok(Self {
            notes,
            url: String::new(),
            client: None,
            coordinator,
            workers: Group::new(WORKER_GRACE),
            ended: Some(ended),
            ended_sender,
            notes_sender,
            relay: JoinSet::new(),
            started_unix_ms: text::now_unix_ms(),
            plan,
        })
    }

    /// The coordinator's URL, once ready.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn state_dir(&self) -> &Path {
        &self.plan.state_dir
    }

    /// Waits for the coordinator; gives a connection to it.
    pub(crate) async fn coordinator_ready(&mut self) -> Result<Client, Failure> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let client =
            self.wait_for(COORDINATOR_DEADLINE, "the coordinator does not serve", Self::serving).await?;
        let address = self.url.strip_prefix("http://").unwrap_or(&self.url).trim_end_matches('/').to_owned();
        for service in &self.coordinator.services {
            // Started again it must be where the workers know it.
            service.set("--listen", &address);
        }
        self.client = Some(client.clone());
        Ok(client)
    }

    /// Waits for the coordinator, starts the workers, waits until all are attached.
    pub(crate) async fn ready(&mut self) -> Result<Vec<Place>, Failure> {
        self.coordinator_ready().await?;
        for number in 1..=self.plan.workers {
            self.workers.start(self.plan.worker(number, &self.url), &self.ended_sender);
        }
        self.wait_for(WORKERS_DEADLINE, "the workers do not attach", Self::attached).await?;
        self.relay_ends();
        Ok(self.places())
    }

    /// Asks again and again until there is an answer. A service that ends meanwhile is the end of it.
    async fn wait_for<T>(
        &mut self,
        deadline: Duration,
        complaint: &str,
        mut ask: impl AsyncFnMut(&mut Self) -> Option<T>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + deadline;
        loop {
            if let Some(ended) = self.ended.as_mut().and_then(|ended| ended.try_recv().ok()) {
                let what = ended.text.split(';').next().unwrap_or_default();
                return Err(anyhow::anyhow!("{what} during its start{}", self.log_tail(&ended.name)).into());
            }
            if let Some(answer) = ask(self).await {
                return Ok(answer);
            }
            if Instant::now() >= deadline {
                let logs = self.plan.state_dir.display();
                return Err(anyhow::anyhow!("{complaint}; look into the logs in {logs}").into());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// A connection, when the coordinator has said where it is and serves.
    async fn serving(&mut self) -> Option<Client> {
        let url = std::fs::read_to_string(self.plan.address_file()).ok()?.trim().to_owned();
        if url.is_empty() {
            return None;
        }
        let client = Client::connect(&url, false).await.ok()?;
        let healthy = client.healthy().await.ok()?;
        self.url = url;
        healthy.then_some(client)
    }

    /// When every worker of this life of the cluster is attached.
    async fn attached(&mut self) -> Option<()> {
        let workers = self.client.as_ref()?.workers().await.ok()?;
        let all = (1..=self.plan.workers).map(worker_name).all(|name| {
            workers.iter().any(|worker| {
                worker.id == name && worker.alive && worker.attached_unix_ms >= self.started_unix_ms
            })
        });
        all.then_some(())
    }

    fn log_tail(&self, name: &str) -> String {
        let services = || self.coordinator.services.iter().chain(&self.workers.services);
        services().find(|service| service.name == name).map(|service| service.log_tail()).unwrap_or_default()
    }

    /// From now on an end is news, and no failure.
    fn relay_ends(&mut self) {
        let notes = self.notes_sender.clone();
        if let Some(mut ended) = self.ended.take() {
            self.relay.spawn(async move {
                while let Some(ended) = ended.recv().await {
                    let _ = notes.try_send(ended.text);
                }
            });
        }
    }

    fn places(&self) -> Vec<Place> {
        let place = |service: &Arc<Service>, what: String| Place {
            name: service.name.clone(),
            pid: service.pid(),
            what,
            log: shown(&service.log),
        };
        let per_worker = format!(
            "{}, {} a rank",
            text::counted(u64::from(self.plan.slots), "slot"),
            text::counted(u64::from(self.plan.threads), "thread")
        );
        let coordinator = self.coordinator.services.iter().map(|service| place(service, self.url.clone()));
        coordinator
            .chain(self.workers.services.iter().map(|service| place(service, per_worker.clone())))
            .collect()
    }

    /// Stops the workers, then the coordinator; a further signal makes it quick.
    pub(crate) async fn stop(self, signals: &mut Signals) {
        let Self { coordinator, workers, mut relay, plan, .. } = self;
        workers.stop(signals).await;
        coordinator.stop(signals).await;
        relay.shutdown().await;
        let Plan { lock, .. } = plan;
        drop::<StateLock>(lock);
    }
}

impl Group {
    fn new(grace: Duration) -> Self {
        let stop = Stop { ask: CancellationToken::new(), hurry: CancellationToken::new(), grace };
        Self { services: Vec::new(), tasks: JoinSet::new(), stop }
    }

    fn start(&mut self, service: Service, ended: &mpsc::Sender<Ended>) {
        let service = Arc::new(service);
        self.services.push(Arc::clone(&service));
        let (stop, ended) = (self.stop.clone(), ended.clone());
        self.tasks.spawn(async move { service.keep(stop, ended).await });
    }

    async fn stop(mut self, signals: &mut Signals) {
        self.stop.ask.cancel();
        loop {
            tokio::select! {
                next = self.tasks.join_next() => if next.is_none() { return },
                () = signals.recv() => self.stop.hurry.cancel(),
            }
        }
    }
}

/// Relative to the current folder where it lies in it.
fn shown(path: &Path) -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).to_owned()
}
