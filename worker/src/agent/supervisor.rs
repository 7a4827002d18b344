//! Runs the ledger's actions: the shell around the pure core, and the one place effects happen.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anybit_proto::v1::attach_request::Message;
use anybit_proto::v1::{Draining, ExitKind, HeldGeneration, MetricRecord};
use anyhow::anyhow;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::key::{GenerationKey, RankKey};
use super::ledger::{Action, Event, Launch, Ledger};
use super::logs;
use super::mailbox::Mailbox;
use super::state_dir::StateDir;
use super::store_host::StoreHost;
use super::trainer::{Start, TrainerCommand, TrainerHandle};
use crate::assignment::Assignment;
use crate::settings::AgentSettings;

/// A store that takes longer to open is reported as failed.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);
/// Past a shutdown's grace, for killed processes to be reaped and stores to close.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(5);

/// What the supervisor is told.
pub(crate) enum Input {
    /// For the ledger.
    Event(Event),
    /// A trainer's metric record.
    Record(RankKey, MetricRecord),
    /// A trainer dropped so many step records.
    Dropped(RankKey, u64),
    /// What came of opening a store.
    Store(GenerationKey, anyhow::Result<(Box<dyn Send>, String)>),
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(event) => event.fmt(f),
            Self::Record(key, _) => write!(f, "Record({key})"),
            Self::Dropped(key, records) => write!(f, "Dropped({key}, {records})"),
            Self::Store(key, _) => write!(f, "Store({key})"),
        }
    }
}

struct Running {
    handle: TrainerHandle,
    ended: CancellationToken,
}

/// See the module.
pub(crate) struct Supervisor {
    settings: AgentSettings,
    state_dir: Arc<StateDir>,
    store_host: Arc<dyn StoreHost>,
    command: TrainerCommand,
    mailbox: Mailbox,
    held: watch::Sender<Vec<HeldGeneration>>,
    inputs: mpsc::Sender<Input>,
    ledger: Ledger,
    trainers: HashMap<RankKey, Running>,
    stores: HashMap<GenerationKey, Box<dyn Send>>,
    /// Timers and store openings; aborted with the supervisor.
    tasks: JoinSet<()>,
    relays: JoinSet<()>,
}

impl Supervisor {
    pub(crate) fn new(
        settings: AgentSettings,
        state_dir: StateDir,
        store_host: Arc<dyn StoreHost>,
        command: TrainerCommand,
        mailbox: Mailbox,
        inputs: mpsc::Sender<Input>,
    ) -> Self {
        Self {
            settings,
            state_dir: Arc::new(state_dir),
            store_host,
            command,
            mailbox,
            held: watch::Sender::new(Vec::new()),
            inputs,
            ledger: Ledger::default(),
            trainers: HashMap::new(),
            stores: HashMap::new(),
            tasks: JoinSet::new(),
            relays: JoinSet::new(),
        }
    }

    /// The generations held, kept up to date for the next hello.
    pub(crate) fn held(&self) -> watch::Receiver<Vec<HeldGeneration>> {
        self.held.subscribe()
    }

    /// Runs until a shutdown is asked for and everything was stopped. The log relays go on and
    /// are returned.
    pub(crate) async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        shutdown: CancellationToken,
    ) -> JoinSet<()> {
        loop {
            tokio::select! {
                Some(input) = inputs.recv() => self.take(input),
                () = shutdown.cancelled() => break,
                Some(_) = self.tasks.join_next() => {}
                Some(_) = self.relays.join_next() => {}
            }
        }
        // Before any rank's end: or its job would be placed here again.
        self.mailbox.change(|outbox| outbox.push("", Message::Draining(Draining {})));
        let grace = self.settings.stop_grace;
        self.apply(Event::Shutdown { grace });
        let stopped = async {
            while !self.ledger.is_idle() {
                match inputs.recv().await {
                    Some(input) => self.take(input),
                    None => return,
                }
            }
        };
        if timeout(grace + SHUTDOWN_MARGIN, stopped).await.is_err() {
            tracing::error!("not everything stopped in time; what is left ends with this process");
        }
        self.relays
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Event(event) => self.apply(event),
            Input::Record(key, mut record) => {
                record.generation = key.of.generation.0;
                self.mailbox.change(|outbox| outbox.push_record(key.of.job.as_str(), record));
            }
            Input::Dropped(key, records) => {
                self.mailbox.look(|outbox| outbox.note_dropped(key.of.job.as_str(), records));
            }
            Input::Store(key, Ok((store, address))) => {
                self.stores.insert(key.clone(), store);
                self.apply(Event::StoreOpened(key, Ok(address)));
            }
            Input::Store(key, Err(error)) => {
                let error = format!("cannot open a rendezvous store: {error:#}");
                tracing::error!(%key, "{error}");
                self.apply(Event::StoreOpened(key, Err(error)));
            }
        }
    }

    fn apply(&mut self, event: Event) {
        match &event {
            Event::Heartbeat(..) | Event::Phase(..) | Event::StoreClosed(_) => tracing::trace!(?event),
            Event::Exited(key, kind, message) => {
                tracing::info!(%key, kind = kind.as_str_name(), "trainer ended: {message}");
                if let Some(running) = self.trainers.remove(key) {
                    running.ended.cancel();
                }
            }
            _ => tracing::debug!(?event),
        }
        let actions = self.ledger.apply(event);
        // Before the actions: who reads of an end in the outbox must not find it running here.
        let held = self.ledger.held();
        self.held.send_if_modified(|current| {
            let changed = *current != held;
            *current = held;
            changed
        });
        for action in actions {
            self.execute(action);
        }
    }

    fn execute(&mut self, action: Action) {
        match action {
            Action::Report(job, report) => {
                self.mailbox.change(|outbox| outbox.push(job.as_str(), report));
            }
            Action::Spawn(launch) => self.spawn(*launch),
            Action::AskToStop(key) => {
                if let Some(running) = self.trainers.get(&key) {
                    tracing::info!(%key, "asking the trainer to stop");
                    running.handle.ask_to_stop();
                }
            }
            Action::Kill { key, reason } => {
                if let Some(running) = self.trainers.get(&key) {
                    tracing::info!(%key, "killing the trainer: {reason}");
                    running.handle.kill(&reason);
                }
            }
            Action::StartGrace(key, grace) => {
                self.later(async move {
                    sleep(grace).await;
                    Input::Event(Event::GraceOver(key))
                });
            }
            Action::OpenStore(key) => self.open_store(key),
            Action::CloseStore(key) => {
                let store = self.stores.remove(&key);
                self.later(async move {
                    // A store that panics while it closes is closed all the same.
                    let _ = spawn_blocking(move || drop(store)).await;
                    Input::Event(Event::StoreClosed(key))
                });
            }
        }
    }

    fn open_store(&mut self, key: GenerationKey) {
        let host = self.store_host.clone();
        let of = key.clone();
        let opening = spawn_blocking(move || host.open(&of.job, of.generation));
        self.later(async move {
            let result = match timeout(STORE_TIMEOUT, opening).await {
                Ok(Ok(result)) => result,
                Ok(Err(error)) => Err(anyhow!(error)),
                Err(_) => Err(anyhow!("it took longer than {STORE_TIMEOUT:?}")),
            };
            Input::Store(key, result)
        });
    }

    fn spawn(&mut self, launch: Launch) {
        let key = launch.key.clone();
        let start = Start {
            key: key.clone(),
            command: self.command.clone(),
            assignment: self.assignment(launch),
            state_dir: self.state_dir.clone(),
            stall_timeout: Some(self.settings.stall_timeout).filter(|timeout| !timeout.is_zero()),
        };
        tracing::info!(%key, "starting the trainer");
        match TrainerHandle::start(start, self.inputs.clone()) {
            Ok(handle) => {
                let ended = CancellationToken::new();
                let log = self.state_dir.log_file(&key);
                self.relays.spawn(logs::relay(key.clone(), log, self.mailbox.clone(), ended.clone()));
                self.trainers.insert(key, Running { handle, ended });
            }
            Err(error) => {
                let message = format!("cannot start a thread for the trainer: {error}");
                self.later(async move { Input::Event(Event::Exited(key, ExitKind::Crashed, message)) });
            }
        }
    }

    fn assignment(&self, launch: Launch) -> Assignment {
        let settings = &self.settings;
        let RankKey { of: GenerationKey { job, generation }, rank } = launch.key;
        Assignment {
            checkpoint_dir: settings.checkpoint_root.join(job.as_str()),
            job,
            generation,
            rank,
            world_size: launch.world_size,
            spec: launch.spec,
            store_address: launch.store_address,
            restorable_generations: launch.restorable_generations,
            data_roots: settings.data_roots.clone(),
            interface: settings.interface.clone(),
            threads: settings.threads_per_trainer(),
            collective_timeout: settings.collective_timeout,
            rendezvous_timeout: settings.rendezvous_timeout,
            memory_limit_mib: settings.memory_limit_mib,
        }
    }

    fn later(&mut self, input: impl Future<Output = Input> + Send + 'static) {
        let inputs = self.inputs.clone();
        self.tasks.spawn(async move {
            // Without a supervisor nobody needs to know.
            let _ = inputs.send(input.await).await;
        });
    }
}
