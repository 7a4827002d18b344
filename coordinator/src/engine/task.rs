//! The engine's task.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anybit_shared::clock::Clock;
use anybit_shared::ids::{Generation, JobId, Rank, WorkerId, WorkerIncarnation};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::members::{Members, Standing};
use super::{
    AgentMessage, Channels, CloseReason, Command, Created, EngineError, HeldRank, Hello, JobView, Link,
    NewJob, Options, Order, Pace, Registry,
};
use crate::ident::JobIds;
use crate::job::{Effect, Event, Held, Job, JobInfo, JobState, Now, Report, decide};
use crate::schedule::{self, Readiness, Verdict, Waiting};
use crate::store::{Figures, MetricBatch, MetricKind, MetricRow, Store, StoreError, Submission};

/// Deadlines are met within this, or a sixth of the lease where that is shorter.
const TICK: Duration = Duration::from_millis(100);

/// Owns the unfinished jobs and the workers.
pub(super) struct Engine {
    options: Options,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    registry: Registry,
    jobs: BTreeMap<JobId, Live>,
    members: Members,
    ids: JobIds,
    /// No job is placed before this: after a restart, workers attach again first.
    place_after: Option<Instant>,
    last_tick: Instant,
}

/// An unfinished job.
struct Live {
    job: Job,
    figures: Figures,
    pace: Option<Pace>,
}

impl Engine {
    pub(super) async fn load(
        options: Options,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        registry: Registry,
    ) -> Result<Self, StoreError> {
        let now = Now { unix_ms: clock.unix_ms(), at: clock.now() };
        let mut jobs = BTreeMap::new();
        for job in store.unfinished().await? {
            let figures = store.figures(&job.info.id).await?;
            let job = job.resumed(now, &options.rules);
            tracing::info!(job = %job.info.id, state = job.state.name(), generation = %job.generation, "loaded");
            open_channels(&registry, &job, &figures);
            jobs.insert(job.info.id.clone(), Live { job, figures, pace: None });
        }
        let place_after = (!jobs.is_empty()).then(|| now.at + options.rules.lease);
        let members = Members::new(options.rules.lease, now.at);
        let (ids, last_tick) = (JobIds::default(), now.at);
        Ok(Self { options, store, clock, registry, jobs, members, ids, place_after, last_tick })
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Command>, shutdown: CancellationToken) {
        let period = TICK.min(self.options.rules.lease / 6).max(Duration::from_millis(1));
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                command = inbox.recv() => match command {
                    Some(command) => self.handle(command).await,
                    None => break,
                },
                _ = ticks.tick() => self.tick().await,
            }
        }
        self.members.close_all(&CloseReason::ShuttingDown);
        self.registry.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn now(&self) -> Now {
        Now { unix_ms: self.clock.unix_ms(), at: self.clock.now() }
    }

    async fn handle(&mut self, command: Command) {
        // A reply that nobody waits for any more is dropped: the caller went away.
        match command {
            Command::Submit(new, reply) => {
                let done = self.submit(new).await;
                self.place().await;
                let _ = reply.send(done);
            }
            Command::Cancel(id, reply) => {
                let done = self.apply(&id, Event::Cancel).await;
                self.place().await;
                let _ = reply.send(done);
            }
            Command::Workers(reply) => {
                let _ = reply.send(Ok(self.members.statuses(&self.held_ranks(), self.now().at)));
            }
            Command::Attach(hello, link, reply) => {
                let done = self.attach(hello, link).await;
                self.place().await;
                let _ = reply.send(done);
            }
            Command::Deliver { worker, incarnation, message, reply } => {
                let done = self.deliver(&worker, &incarnation, message).await;
                self.place().await;
                let _ = reply.send(done);
            }
            Command::Detach { worker, link } => self.members.detach(&worker, link),
        }
    }

    async fn submit(&mut self, new: NewJob) -> Result<(JobId, Created), EngineError> {
        let now = self.now();
        let id = self.ids.next_id(now.unix_ms)?;
        let job = Job::new(JobInfo {
            id: id.clone(),
            name: new.name,
            spec_toml: new.spec_toml,
            world_size: new.world_size,
            priority: new.priority,
            max_restarts: new.max_restarts,
            bits: new.bits,
            created_unix_ms: now.unix_ms,
        });
        let key = new.idempotency_key.as_deref();
        let submission = if self.jobs.len() < self.options.max_unfinished_jobs {
            self.store.submit(&job, key).await?
        } else {
            // What a key has made is answered even where there is no room for another job.
            let submitted = match key {
                Some(key) => self.store.submitted(&job, key).await?,
                None => None,
            };
            submitted.ok_or(EngineError::TooManyJobs(self.options.max_unfinished_jobs))?
        };
        match submission {
            Submission::Existing(existing) => return Ok((existing, Created::Before)),
            Submission::KeyTaken(existing) => return Err(EngineError::KeyTaken(existing)),
            Submission::Created => {}
        }
        tracing::info!(job = %id, name = job.info.name, ranks = job.info.world_size, "submitted");
        open_channels(&self.registry, &job, &Figures::default());
        self.jobs.insert(id.clone(), Live { job, figures: Figures::default(), pace: None });
        Ok((id, Created::Now))
    }

    /// Decides, stores, publishes, acts; in that order.
    async fn apply(&mut self, id: &JobId, event: Event) -> Result<(), EngineError> {
        let now = self.now();
        let live = self.jobs.get_mut(id).ok_or_else(|| EngineError::NoSuchJob(id.to_string()))?;
        let decision = decide(&live.job, &event, now, &self.options.rules)?;
        if decision.job != live.job {
            self.store.commit(&decision.job, &decision.path, now).await?;
            for step in &decision.path {
                let (from, to, generation) = (step.from.name(), step.to.name(), decision.job.generation);
                tracing::info!(job = %id, %generation, from, to, reason = step.reason, "job moved");
            }
            live.job = decision.job;
            publish(&self.registry, live);
        }
        self.act(id, decision.effects);
        if self.jobs.get(id).is_some_and(|live| live.job.state.is_terminal()) {
            self.jobs.remove(id);
            self.registry.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        }
        Ok(())
    }

    fn act(&self, id: &JobId, effects: Vec<Effect>) {
        let Some(Live { job, .. }) = self.jobs.get(id) else { return };
        let generation = job.generation;
        for effect in effects {
            let (worker, order) = match effect {
                Effect::HostStore { worker } => (worker, Order::HostStore { job: id.clone(), generation }),
                Effect::StartRanks { worker, ranks, store_address } => {
                    let order = Order::StartRanks {
                        job: id.clone(),
                        generation,
                        world_size: job.info.world_size,
                        ranks,
                        spec_toml: job.info.spec_toml.clone(),
                        store_address,
                        restorable: (1..generation.0).map(Generation).collect(),
                    };
                    (worker, order)
                }
                Effect::Stop { worker, grace, reason } => {
                    (worker, Order::StopGeneration { job: id.clone(), generation, grace, reason })
                }
            };
            match self.members.link(&worker) {
                Some(link) => link.send(order),
                // It is told when it attaches again.
                None => tracing::debug!(%worker, job = %id, "order not sent: the agent is not attached"),
            }
        }
    }

    async fn attach(&mut self, hello: Hello, link: Link) -> Result<(), EngineError> {
        let now = self.now();
        self.members.admit(&hello, link.clone(), now).map_err(EngineError::AttachRefused)?;
        let (lease, heartbeat) = (self.options.rules.lease, self.options.heartbeat);
        tracing::info!(worker = %hello.worker, incarnation = %hello.incarnation, slots = hello.slots, "attached");
        link.send(Order::Welcome { lease, heartbeat });

        // Ranks of the worker's earlier lives are lost at once.
        self.lose_ranks().await;
        for held in &hello.held {
            if self.holds(&hello, &held.job, held.generation) {
                continue;
            }
            self.members.note_stale(&hello.worker, held);
            link.send(Order::StopGeneration {
                job: held.job.clone(),
                generation: held.generation,
                grace: Duration::ZERO,
                reason: "this generation is over".to_owned(),
            });
        }
        for (id, generation) in self.active_generations() {
            if self.holds(&hello, &id, generation) {
                let same = hello.held.iter().find(|held| held.job == id && held.generation == generation);
                let held = same.map_or(Held::Nothing, |held| Held::Ranks(held.running.clone()));
                self.apply(&id, Event::Reattached { worker: hello.worker.clone(), held }).await?;
            }
        }
        Ok(())
    }

    /// True when this life of the worker holds ranks of the job's current generation.
    fn holds(&self, hello: &Hello, job: &JobId, generation: Generation) -> bool {
        let run =
            self.jobs.get(job).filter(|live| live.job.state.holds_slots()).and_then(|l| l.job.run.as_ref());
        run.is_some_and(|run| {
            run.generation == generation
                && !run.stopped.contains(&hello.worker)
                && run
                    .places
                    .iter()
                    .any(|place| place.worker == hello.worker && place.incarnation == hello.incarnation)
        })
    }

    fn active_generations(&self) -> Vec<(JobId, Generation)> {
        let active = self.jobs.iter().filter(|(_, live)| live.job.state.holds_slots());
        active.map(|(id, live)| (id.clone(), live.job.generation)).collect()
    }

    async fn deliver(
        &mut self,
        worker: &WorkerId,
        incarnation: &WorkerIncarnation,
        message: AgentMessage,
    ) -> Result<(), EngineError> {
        if !self.members.is_current(worker, incarnation) {
            let reason = format!("the lease of worker {worker} is lost: attach again");
            return Err(EngineError::AttachRefused(reason));
        }
        match message {
            AgentMessage::Draining => {
                tracing::info!(%worker, "ends in order: it gets no more ranks");
                self.members.drain(worker, incarnation);
                Ok(())
            }
            AgentMessage::Report { job, generation, report } => {
                if report == Report::Stopped {
                    self.members.released(worker, &job, generation);
                }
                self.report(worker, job, generation, report).await
            }
            AgentMessage::Metrics { job, rows, paces, dropped_step_records, delivery } => {
                let batch = MetricBatch { job, rows, dropped_step_records, delivery };
                let id = batch.job.clone();
                self.put_metrics(worker, batch).await?;
                for (generation, pace) in paces {
                    self.note_pace(&id, generation, pace);
                    self.report(worker, id.clone(), generation, Report::Progress(pace.step())).await?;
                }
                Ok(())
            }
        }
    }

    /// A report that does not apply (any more) is dealt with by saying so: sending it again would
    /// not help.
    async fn report(
        &mut self,
        worker: &WorkerId,
        job: JobId,
        generation: Generation,
        report: Report,
    ) -> Result<(), EngineError> {
        let event = Event::Report { generation, worker: worker.clone(), report };
        match self.apply(&job, event).await {
            Err(EngineError::Refused(refused)) => {
                tracing::debug!(%worker, %refused, "report ignored");
                Ok(())
            }
            Err(EngineError::NoSuchJob(_)) => {
                tracing::debug!(%worker, %job, %generation, "report on a job that is not active ignored");
                Ok(())
            }
            done => done,
        }
    }

    async fn put_metrics(&mut self, worker: &WorkerId, mut batch: MetricBatch) -> Result<(), EngineError> {
        let id = batch.job.clone();
        let job = match self.jobs.get(&id) {
            Some(live) => live.job.clone(),
            None => match self.store.job(&id).await? {
                Some(job) => job,
                None => {
                    tracing::debug!(%worker, job = %id, "records of an unknown job ignored");
                    return Ok(());
                }
            },
        };
        let offered = batch.rows.len();
        batch.rows.retain(|row| is_wanted(&job, worker, row));
        if batch.rows.len() < offered {
            let ignored = offered - batch.rows.len();
            tracing::debug!(%worker, job = %id, ignored, "records of another generation ignored");
        }
        if batch.rows.is_empty() && batch.dropped_step_records == 0 {
            return Ok(());
        }
        self.store.put_metrics(&batch).await?;
        if self.jobs.contains_key(&id) {
            let figures = self.store.figures(&id).await?;
            if let Some(live) = self.jobs.get_mut(&id) {
                live.figures = figures;
                publish(&self.registry, live);
            }
        }
        Ok(())
    }

    fn note_pace(&mut self, id: &JobId, generation: Generation, pace: Pace) {
        let live = self.jobs.get_mut(id).filter(|live| live.job.generation == generation);
        if let Some(live) = live {
            live.pace.get_or_insert_default().extend(pace);
        }
    }

    async fn tick(&mut self) {
        let now = self.now().at;
        if now.saturating_duration_since(self.last_tick) > self.options.rules.lease / 2 {
            tracing::warn!("the coordinator stood still; leases begin anew");
            self.members.listen_anew(now);
        }
        self.last_tick = now;
        for worker in self.members.expire(now) {
            tracing::warn!(%worker, "lease lost");
        }
        self.lose_ranks().await;
        for (id, _) in self.active_generations() {
            self.attempt(&id, Event::Tick).await;
        }
        self.place().await;
    }

    /// Tells jobs of the workers that they lost.
    async fn lose_ranks(&mut self) {
        let now = self.now().at;
        let mut lost = Vec::new();
        for (id, live) in self.jobs.iter().filter(|(_, live)| live.job.state.holds_slots()) {
            let Some(run) = &live.job.run else { continue };
            for place in run.places.iter().filter(|place| !run.stopped.contains(&place.worker)) {
                if let Standing::Lost(why) = self.members.standing(place, now) {
                    lost.push((id.clone(), place.worker.clone(), why));
                }
            }
        }
        lost.dedup();
        for (id, worker, why) in lost {
            self.attempt(&id, Event::WorkerLost { worker, why }).await;
        }
    }

    /// Places waiting jobs, and tells the others why they wait.
    async fn place(&mut self) {
        let now = self.now().at;
        let holding = self.place_after.filter(|after| *after > now).is_some();
        if !holding {
            self.place_after = None;
        }
        let queue: Vec<Waiting> = self
            .jobs
            .values()
            .filter(|live| live.job.state == JobState::Queued)
            .map(|l| waiting(&l.job, now))
            .collect();
        if queue.is_empty() {
            return;
        }
        if holding {
            for waiting in queue {
                let reason = "waits for workers to attach again after the coordinator's restart";
                self.attempt(&waiting.job, Event::Waits(reason.to_owned())).await;
            }
            return;
        }
        let capacities = self.members.capacities(&self.held_ranks());
        for (id, verdict) in schedule::plan(queue, &capacities) {
            let event = match verdict {
                Verdict::Wait(reason) => Event::Waits(reason),
                Verdict::Place(workers) => {
                    let places = workers.iter().filter_map(|worker| self.members.place(worker)).collect();
                    Event::Placed(places)
                }
            };
            self.attempt(&id, event).await;
        }
    }

    /// Applies what time or the scheduler asks for. What fails is asked for again.
    async fn attempt(&mut self, id: &JobId, event: Event) {
        if let Err(error) = self.apply(id, event).await {
            tracing::error!(job = %id, %error, "a change of the job failed and will be tried again");
        }
    }

    fn held_ranks(&self) -> BTreeMap<WorkerId, Vec<HeldRank>> {
        let mut held: BTreeMap<WorkerId, Vec<HeldRank>> = BTreeMap::new();
        for live in self.jobs.values().filter(|live| live.job.state.holds_slots()) {
            let Some(run) = &live.job.run else { continue };
            for (rank, place) in run.places.iter().enumerate() {
                if !run.stopped.contains(&place.worker) {
                    held.entry(place.worker.clone()).or_default().push(HeldRank {
                        job: live.job.info.id.clone(),
                        generation: run.generation,
                        rank: Rank(rank as u32),
                    });
                }
            }
        }
        held
    }
}

impl Live {
    fn view(&self) -> JobView {
        JobView { job: self.job.clone(), figures: self.figures.clone(), pace: self.pace }
    }
}

fn waiting(job: &Job, now: Instant) -> Waiting {
    Waiting {
        job: job.info.id.clone(),
        ranks: job.info.world_size,
        priority: job.info.priority,
        created_unix_ms: job.info.created_unix_ms,
        readiness: match job.not_before {
            Some(at) if at > now => Readiness::BacksOff,
            _ => Readiness::Ready,
        },
    }
}

/// Records of the current generation, from a worker of it; and of earlier ones those that must
/// last, since an agent may have been away. The store lets the later generation's win.
fn is_wanted(job: &Job, worker: &WorkerId, row: &MetricRow) -> bool {
    let current =
        row.generation == job.generation && job.run.as_ref().is_none_or(|run| run.workers().contains(worker));
    let registered = row.generation > Generation(0) && row.generation <= job.generation;
    current || (registered && row.kind != MetricKind::Step)
}

fn open_channels(registry: &Registry, job: &Job, figures: &Figures) {
    let view = Arc::new(JobView { job: job.clone(), figures: figures.clone(), pace: None });
    let channels = Channels { view: watch::Sender::new(view), logs: watch::Sender::new(()) };
    registry.write().unwrap_or_else(PoisonError::into_inner).insert(job.info.id.clone(), channels);
}

fn publish(registry: &Registry, live: &Live) {
    let registry = registry.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(channels) = registry.get(&live.job.info.id) {
        channels.view.send_replace(Arc::new(live.view()));
    }
}
