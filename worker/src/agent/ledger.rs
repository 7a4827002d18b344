//! The generations that this worker holds, and what to do about each event. Pure: events in,
//! actions out; the supervisor runs the actions and feeds back what came of them.
//!
//! Of each job at most one generation lives here. An older one than was seen is refused; a newer
//! one ends the older at once.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use anybit_proto::v1::attach_request::Message as Report;
use anybit_proto::v1::{
    ExitKind, GenerationStopped, HeldGeneration, RankExited, StoreReady, TrainerPhase, trainer_phase,
};
use anybit_shared::ids::{Generation, GlobalStep, JobId, Rank};
use anybit_shared::spec::JobSpec;

use super::command::{Command, StartRanks};
use super::key::{GenerationKey, RankKey};

/// Generations remembered after they ended or were stopped; the oldest are forgotten first.
const REMEMBERED: usize = 256;

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// The coordinator asks.
    Command(Command),
    /// A store is open at this address, or why not.
    StoreOpened(GenerationKey, Result<String, String>),
    /// A store is closed.
    StoreClosed(GenerationKey),
    /// A trainer process exists.
    Spawned(RankKey),
    /// A trainer got this far.
    Phase(RankKey, TrainerPhase),
    /// A trainer committed this step.
    Heartbeat(RankKey, GlobalStep),
    /// A trainer ended, or could not be started.
    Exited(RankKey, ExitKind, String),
    /// A stop's grace is over.
    GraceOver(GenerationKey),
    /// The agent is told to end.
    Shutdown { grace: Duration },
}

/// What to do.
#[derive(Debug)]
pub(crate) enum Action {
    /// Open a store and feed back `StoreOpened`.
    OpenStore(GenerationKey),
    /// Close it and feed back `StoreClosed`.
    CloseStore(GenerationKey),
    /// Start a trainer and feed back `Spawned`, then `Exited`.
    Spawn(Box<Launch>),
    /// Ask a trainer for a checkpoint and an end.
    AskToStop(RankKey),
    /// End a trainer's process group now.
    Kill { key: RankKey, reason: String },
    /// Feed back `GraceOver` after this long.
    StartGrace(GenerationKey, Duration),
    /// Tell the coordinator.
    Report(JobId, Report),
}

/// A trainer to start.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) key: RankKey,
    pub(crate) world_size: u32,
    pub(crate) spec: JobSpec,
    pub(crate) store_address: String,
    pub(crate) restorable_generations: Vec<Generation>,
}

#[derive(Debug, Default)]
struct Held {
    store: Store,
    ranks: BTreeMap<Rank, Trainer>,
    stopping: Option<Stopping>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
enum Store {
    #[default]
    None,
    Opening,
    Open(String),
    Closing,
}

#[derive(Debug)]
struct Trainer {
    life: Life,
    step: GlobalStep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Alive,
    Ended,
}

#[derive(Debug)]
struct Stopping {
    reason: String,
    answer: Answer,
}

/// Who waits for the end of a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Coordinator,
    Nobody,
}

impl Held {
    fn alive(&self) -> impl Iterator<Item = Rank> + '_ {
        self.ranks.iter().filter(|(_, trainer)| trainer.life == Life::Alive).map(|(rank, _)| *rank)
    }

    fn is_idle(&self) -> bool {
        self.store == Store::None && self.alive().next().is_none()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    held: BTreeMap<GenerationKey, Held>,
    /// The newest generation of each job that was stopped here, the latest stop last.
    stopped: VecDeque<GenerationKey>,
    shutting_down: bool,
}

impl Ledger {
    /// Takes note of an event and says what to do, in order.
    pub(crate) fn apply(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Command(Command::HostStore(key)) => self.host_store(key, &mut actions),
            Event::Command(Command::StartRanks(start)) => self.start(start, &mut actions),
            Event::Command(Command::StopGeneration { key, grace, reason }) => {
                self.stop(&key, grace, reason, Answer::Coordinator, &mut actions);
            }
            Event::StoreOpened(key, result) => self.store_opened(key, result, &mut actions),
            Event::StoreClosed(key) => {
                if let Some(held) = self.held.get_mut(&key) {
                    held.store = Store::None;
                }
                self.settle(&key, &mut actions);
            }
            Event::Spawned(key) => {
                let phase =
                    TrainerPhase { phase: trainer_phase::Phase::Spawned.into(), ..Default::default() };
                self.phase(&key, phase, &mut actions);
            }
            Event::Phase(key, phase) => self.phase(&key, phase, &mut actions),
            Event::Heartbeat(key, step) => {
                if let Some(trainer) = self.trainer(&key) {
                    trainer.step = trainer.step.max(step);
                }
            }
            Event::Exited(key, kind, message) => self.exited(&key, kind, message, &mut actions),
            Event::GraceOver(key) => self.grace_over(&key, &mut actions),
            Event::Shutdown { grace } => {
                self.shutting_down = true;
                let keys: Vec<_> = self.held.keys().cloned().collect();
                for key in keys {
                    self.stop(
                        &key,
                        grace,
                        "the agent is shutting down".to_owned(),
                        Answer::Nobody,
                        &mut actions,
                    );
                }
            }
        }
        self.forget();
        actions
    }

    /// For `Hello`.
    pub(crate) fn held(&self) -> Vec<HeldGeneration> {
        self.held
            .iter()
            .map(|(key, held)| HeldGeneration {
                job_id: key.job.to_string(),
                generation: key.generation.0,
                running_ranks: held.alive().map(|rank| rank.0).collect(),
            })
            .collect()
    }

    /// True when no trainer is alive and no store is open.
    pub(crate) fn is_idle(&self) -> bool {
        self.held.values().all(Held::is_idle)
    }

    fn trainer(&mut self, key: &RankKey) -> Option<&mut Trainer> {
        self.held
            .get_mut(&key.of)
            .and_then(|held| held.ranks.get_mut(&key.rank))
            .filter(|trainer| trainer.life == Life::Alive)
    }

    /// Why a generation must not begin here, if it must not.
    fn refusal(&self, key: &GenerationKey) -> Option<String> {
        if self.shutting_down {
            return Some("this agent is shutting down".to_owned());
        }
        if self.held.get(key).is_some_and(|held| held.stopping.is_some()) {
            return Some(format!("generation {} is being stopped", key.generation));
        }
        let held = self.held.keys().filter(|held| held.job == key.job).map(|held| held.generation).max();
        if let Some(newer) = held.filter(|held| *held > key.generation) {
            return Some(format!(
                "generation {} is older than {newer}, which this worker holds",
                key.generation
            ));
        }
        let stopped = self.stopped.iter().find(|stopped| stopped.job == key.job);
        stopped
            .filter(|stopped| stopped.generation >= key.generation)
            .map(|stopped| format!("generation {} was stopped here", stopped.generation))
    }

    /// Ends what is older of the same job.
    fn supersede(&mut self, key: &GenerationKey, actions: &mut Vec<Action>) {
        let older: Vec<_> =
            self.held.keys().filter(|held| held.job == key.job && *held < key).cloned().collect();
        for old in older {
            let reason = format!("generation {} begins", key.generation);
            self.stop(&old, Duration::ZERO, reason, Answer::Nobody, actions);
        }
    }

    fn host_store(&mut self, key: GenerationKey, actions: &mut Vec<Action>) {
        if let Some(why) = self.refusal(&key) {
            actions.push(store_ready(&key, Err(why)));
            return;
        }
        self.supersede(&key, actions);
        let held = self.held.entry(key.clone()).or_default();
        match &held.store {
            Store::None => {
                held.store = Store::Opening;
                actions.push(Action::OpenStore(key));
            }
            Store::Open(address) => actions.push(store_ready(&key, Ok(address.clone()))),
            Store::Opening | Store::Closing => {}
        }
    }

    fn store_opened(
        &mut self,
        key: GenerationKey,
        result: Result<String, String>,
        actions: &mut Vec<Action>,
    ) {
        let Some(held) = self.held.get_mut(&key) else { return };
        match (result, &held.stopping) {
            (Ok(_), Some(_)) => {
                held.store = Store::Closing;
                actions.push(Action::CloseStore(key));
            }
            (Ok(address), None) => {
                held.store = Store::Open(address.clone());
                actions.push(store_ready(&key, Ok(address)));
            }
            (Err(error), stopping) => {
                let answer = stopping.is_none();
                held.store = Store::None;
                if answer {
                    actions.push(store_ready(&key, Err(error)));
                }
                self.settle(&key, actions);
            }
        }
    }

    fn start(&mut self, start: StartRanks, actions: &mut Vec<Action>) {
        let StartRanks { key, world_size, ranks, spec_toml, store_address, restorable_generations } = start;
        let refused = |kind, message: &str, actions: &mut Vec<Action>| {
            for rank in &ranks {
                let key = RankKey { of: key.clone(), rank: *rank };
                actions.push(rank_exited(&key, kind, message.to_owned(), GlobalStep(0)));
            }
        };
        if let Some(why) = self.refusal(&key) {
            return refused(ExitKind::Crashed, &why, actions);
        }
        if let Some(rank) = ranks.iter().find(|rank| rank.0 >= world_size) {
            let why = format!("rank {rank} is not below the world size {world_size}");
            return refused(ExitKind::Crashed, &why, actions);
        }
        let spec = match JobSpec::from_toml(&spec_toml) {
            Ok(spec) => spec,
            Err(error) => {
                let why = format!("this worker cannot read the job's spec: {error}");
                return refused(ExitKind::UserError, &why, actions);
            }
        };
        self.supersede(&key, actions);
        let held = self.held.entry(key.clone()).or_default();
        for rank in ranks {
            // Running already, or ended already: its end is reported once.
            if held.ranks.contains_key(&rank) {
                continue;
            }
            held.ranks.insert(rank, Trainer { life: Life::Alive, step: GlobalStep(0) });
            actions.push(Action::Spawn(Box::new(Launch {
                key: RankKey { of: key.clone(), rank },
                world_size,
                spec: spec.clone(),
                store_address: store_address.clone(),
                restorable_generations: restorable_generations.clone(),
            })));
        }
    }

    fn phase(&mut self, key: &RankKey, mut phase: TrainerPhase, actions: &mut Vec<Action>) {
        let Some(trainer) = self.trainer(key) else { return };
        trainer.step = trainer.step.max(GlobalStep(phase.step));
        phase.job_id = key.of.job.to_string();
        phase.generation = key.of.generation.0;
        phase.rank = key.rank.0;
        actions.push(Action::Report(key.of.job.clone(), Report::TrainerPhase(phase)));
    }

    fn exited(&mut self, key: &RankKey, kind: ExitKind, message: String, actions: &mut Vec<Action>) {
        let Some(trainer) = self.trainer(key) else { return };
        trainer.life = Life::Ended;
        let step = trainer.step;
        actions.push(rank_exited(key, kind, message, step));
        self.settle(&key.of, actions);
    }

    fn stop(
        &mut self,
        key: &GenerationKey,
        grace: Duration,
        reason: String,
        answer: Answer,
        actions: &mut Vec<Action>,
    ) {
        self.note_stopped(key);
        let Some(held) = self.held.get_mut(key) else {
            if answer == Answer::Coordinator {
                actions.push(generation_stopped(key));
            }
            return;
        };
        let answer = match &held.stopping {
            Some(earlier) if earlier.answer == Answer::Coordinator => Answer::Coordinator,
            _ => answer,
        };
        let first = held.stopping.is_none();
        let alive: Vec<_> = held.alive().map(|rank| RankKey { of: key.clone(), rank }).collect();
        if grace.is_zero() {
            let reason = &reason;
            actions.extend(alive.into_iter().map(|key| Action::Kill { key, reason: reason.clone() }));
        } else if !alive.is_empty() {
            // A second stop only shortens the grace: the earlier timer still runs.
            if first {
                actions.extend(alive.into_iter().map(Action::AskToStop));
            }
            actions.push(Action::StartGrace(key.clone(), grace));
        }
        held.stopping = Some(Stopping { reason, answer });
        self.settle(key, actions);
    }

    fn grace_over(&mut self, key: &GenerationKey, actions: &mut Vec<Action>) {
        let Some(held) = self.held.get(key) else { return };
        let Some(stopping) = &held.stopping else { return };
        let reason = format!("it did not stop in the time given ({})", stopping.reason);
        actions.extend(
            held.alive()
                .map(|rank| Action::Kill { key: RankKey { of: key.clone(), rank }, reason: reason.clone() }),
        );
    }

    /// Goes on with a stop as far as it can: trainers first, then the store, then the answer.
    fn settle(&mut self, key: &GenerationKey, actions: &mut Vec<Action>) {
        let Some(held) = self.held.get_mut(key) else { return };
        let Some(stopping) = &held.stopping else { return };
        if held.alive().next().is_some() {
            return;
        }
        match held.store {
            Store::Open(_) => {
                held.store = Store::Closing;
                actions.push(Action::CloseStore(key.clone()));
            }
            Store::Opening | Store::Closing => {}
            Store::None => {
                if stopping.answer == Answer::Coordinator {
                    actions.push(generation_stopped(key));
                }
                self.held.remove(key);
            }
        }
    }

    fn note_stopped(&mut self, key: &GenerationKey) {
        let before = self.stopped.iter().position(|stopped| stopped.job == key.job);
        let newest = match before.and_then(|index| self.stopped.remove(index)) {
            Some(stopped) => stopped.max(key.clone()),
            None => key.clone(),
        };
        self.stopped.push_back(newest);
    }

    /// Keeps the memory of what is over within bounds.
    fn forget(&mut self) {
        while self.stopped.len() > REMEMBERED {
            self.stopped.pop_front();
        }
        while self.held.len() > REMEMBERED {
            let over = self.held.iter().find(|(_, held)| held.is_idle()).map(|(key, _)| key.clone());
            match over {
                Some(key) => self.held.remove(&key),
                None => return,
            };
        }
    }
}

fn store_ready(key: &GenerationKey, result: Result<String, String>) -> Action {
    let (address, error) = match result {
        Ok(address) => (address, String::new()),
        Err(error) => (String::new(), error),
    };
    let ready = StoreReady { job_id: key.job.to_string(), generation: key.generation.0, address, error };
    Action::Report(key.job.clone(), Report::StoreReady(ready))
}

fn rank_exited(key: &RankKey, kind: ExitKind, message: String, step: GlobalStep) -> Action {
    let exited = RankExited {
        job_id: key.of.job.to_string(),
        generation: key.of.generation.0,
        rank: key.rank.0,
        kind: kind.into(),
        message,
        step: step.0,
    };
    Action::Report(key.of.job.clone(), Report::RankExited(exited))
}

fn generation_stopped(key: &GenerationKey) -> Action {
    let stopped = GenerationStopped { job_id: key.job.to_string(), generation: key.generation.0 };
    Action::Report(key.job.clone(), Report::GenerationStopped(stopped))
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
