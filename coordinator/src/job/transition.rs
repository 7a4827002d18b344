//! The table: `(state, event, now)` to the job afterwards and what must be done.

use std::collections::BTreeSet;
use std::time::Duration;

use anybit_shared::ids::{GlobalStep, Rank, WorkerId};

use super::outcome::{Verdict, all_succeeded, cause_so_far, stop_grace, verdict};
use super::{
    Decision, Doubt, Effect, EndKind, Ending, Event, Held, Intent, Job, JobState, Now, Phase, Place,
    Progress, Refused, Report, Rules, Run, Step,
};

/// What an event makes of a job. An event that changes nothing gives the job as it was, so that
/// messages may arrive twice.
pub fn decide(job: &Job, event: &Event, now: Now, rules: &Rules) -> Result<Decision, Refused> {
    use JobState::{Cancelled, Failed, Queued, Running, Starting, Stopping, Succeeded};

    let mut next = Next { job: job.clone(), path: Vec::new(), effects: Vec::new(), now, rules };
    match (job.state, event) {
        (Succeeded | Failed | Cancelled, _) => {
            return Err(Refused::Ended { job: job.info.id.clone(), state: job.state });
        }

        (Queued, Event::Placed(places)) => next.start(places)?,
        (Queued, Event::Waits(reason)) => next.job.reason = next.with_history(reason.clone()),
        (Queued, Event::Cancel) => next.end(Cancelled, "cancelled while it was queued".to_owned()),
        (Queued, Event::Report { generation, .. }) => {
            return Err(Refused::StaleGeneration {
                job: job.info.id.clone(),
                reported: *generation,
                current: job.generation,
            });
        }
        (Queued, Event::Reattached { .. } | Event::WorkerLost { .. } | Event::Tick) => {}

        (Starting | Running | Stopping, Event::Placed(_) | Event::Waits(_)) => {
            return Err(Refused::Misplaced { job: job.info.id.clone() });
        }
        (Starting | Running | Stopping, Event::Report { generation, worker, report }) => {
            check_report(job, *generation, worker, report)?;
            match job.state {
                Stopping => next.report_while_stopping(worker, report),
                _ => next.report_while_live(worker, report),
            }
        }

        (Starting | Running, Event::Cancel) => {
            next.job.intent = Intent::Cancel;
            next.stop(rules.cancel_grace, "cancelled".to_owned());
        }
        (Starting | Running, Event::Reattached { worker, held }) => next.reattach_while_live(worker, held),
        (Starting | Running, Event::WorkerLost { worker, why }) => next.lose_while_live(worker, why),
        (Starting | Running, Event::Tick) => next.tick_while_live(),

        (Stopping, Event::Cancel) => {
            next.job.intent = Intent::Cancel;
            next.job.reason = "cancelled".to_owned();
        }
        (Stopping, Event::Reattached { worker, held }) => next.reattach_while_stopping(worker, held),
        (Stopping, Event::WorkerLost { worker, why }) => {
            next.lose_ranks(worker, why);
            next.confirm_stopped(worker);
        }
        (Stopping, Event::Tick) => next.tick_while_stopping(),
    }
    Ok(Decision { job: next.job, path: next.path, effects: next.effects })
}

/// A report must be of the current generation, by a worker that holds what it reports.
fn check_report(
    job: &Job,
    generation: anybit_shared::ids::Generation,
    worker: &WorkerId,
    report: &Report,
) -> Result<(), Refused> {
    if generation != job.generation {
        let (reported, current) = (generation, job.generation);
        return Err(Refused::StaleGeneration { job: job.info.id.clone(), reported, current });
    }
    let holder = |rank: Rank| job.run.as_ref().and_then(|run| run.worker_of(rank)) == Some(worker);
    let held = match report {
        Report::StoreReady(_) => holder(Rank(0)),
        Report::Phase { rank, .. } | Report::Exited { rank, .. } => holder(*rank),
        Report::Progress(_) | Report::Stopped => {
            job.run.as_ref().is_some_and(|run| run.workers().contains(worker))
        }
    };
    if held { Ok(()) } else { Err(Refused::NotHeld { job: job.info.id.clone(), worker: worker.clone() }) }
}

/// The job as it is being changed.
struct Next<'a> {
    job: Job,
    path: Vec<Step>,
    effects: Vec<Effect>,
    now: Now,
    rules: &'a Rules,
}

impl Next<'_> {
    /// Takes an edge.
    fn enter(&mut self, to: JobState, reason: String) {
        self.path.push(Step { from: self.job.state, to, reason: reason.clone() });
        self.job.state = to;
        self.job.reason = reason;
    }

    fn start(&mut self, places: &[Place]) -> Result<(), Refused> {
        let wanted = self.job.info.world_size as usize;
        let (Some(first), true) = (places.first(), places.len() == wanted) else {
            return Err(Refused::Misplaced { job: self.job.info.id.clone() });
        };
        self.effects.push(Effect::HostStore { worker: first.worker.clone() });
        self.job.generation = self.job.generation.next();
        let run = Run {
            generation: self.job.generation,
            places: places.to_vec(),
            phases: vec![Phase::Placed; places.len()],
            store_address: None,
            endings: Vec::new(),
            stopped: Default::default(),
            progress: Progress::None(None),
            start_deadline: Some(self.now.at + self.rules.start_timeout),
            resend_stop: None,
            doubts: Default::default(),
        };
        let workers: Vec<_> = run.workers().iter().map(ToString::to_string).collect();
        self.job.run = Some(run);
        self.job.not_before = None;
        self.enter(JobState::Starting, self.with_history(format!("starting on {}", workers.join(", "))));
        Ok(())
    }

    fn report_while_live(&mut self, worker: &WorkerId, report: &Report) {
        match report {
            Report::StoreReady(Ok(address)) => self.open_store(address),
            Report::StoreReady(Err(message)) => {
                self.record(Ending {
                    rank: Some(Rank(0)),
                    kind: EndKind::StoreFailed,
                    message: message.clone(),
                });
                self.after_ending();
            }
            Report::Phase { rank, phase, step } => self.advance(*rank, *phase, *step),
            Report::Progress(step) => self.progress(*step),
            Report::Exited { rank, kind, message, step } => {
                self.progress(*step);
                self.record(Ending { rank: Some(*rank), kind: *kind, message: message.clone() });
                self.after_ending();
            }
            Report::Stopped => {
                self.lose_ranks(worker, "its agent stopped the generation");
                if let Some(run) = &mut self.job.run {
                    run.stopped.insert(worker.clone());
                }
                self.after_ending();
            }
        }
    }

    fn report_while_stopping(&mut self, worker: &WorkerId, report: &Report) {
        match report {
            Report::Exited { rank, kind, message, step } => {
                self.progress(*step);
                self.record(Ending { rank: Some(*rank), kind: *kind, message: message.clone() });
            }
            Report::Progress(step) => self.progress(*step),
            Report::Stopped => self.confirm_stopped(worker),
            Report::StoreReady(_) | Report::Phase { .. } => {}
        }
    }

    fn open_store(&mut self, address: &str) {
        let Some(run) = &mut self.job.run else { return };
        if run.store_address.is_some() {
            return;
        }
        run.store_address = Some(address.to_owned());
        for worker in run.workers() {
            self.effects.push(Effect::StartRanks {
                worker: worker.clone(),
                ranks: run.ranks_on(worker).collect(),
                store_address: address.to_owned(),
            });
        }
    }

    fn advance(&mut self, rank: Rank, phase: Phase, step: GlobalStep) {
        let Some(run) = &mut self.job.run else { return };
        let Some(reached) = run.phases.get_mut(rank.0 as usize) else { return };
        *reached = phase.max(*reached);
        if phase == Phase::Training && run.progress == Progress::None(None) {
            run.progress = Progress::None(Some(step));
        }
        let all = run.phases.iter().all(|phase| *phase == Phase::Training);
        if all && self.job.state == JobState::Starting {
            run.start_deadline = None;
            self.job.started_unix_ms = self.job.started_unix_ms.or(Some(self.now.unix_ms));
            self.enter(JobState::Running, self.with_history(format!("trains from step {step}")));
        }
    }

    fn progress(&mut self, step: GlobalStep) {
        let Some(run) = &mut self.job.run else { return };
        if let Progress::None(Some(start)) = run.progress
            && step > start
        {
            run.progress = Progress::Made;
        }
    }

    /// Notes how a rank ended; the first word counts.
    fn record(&mut self, ending: Ending) {
        let Some(run) = &mut self.job.run else { return };
        let known = ending.rank.is_some_and(|rank| run.ending(rank).is_some());
        if !known {
            run.endings.push(ending);
        }
    }

    /// Goes on, succeeds, or ends the generation, after an ending was noted in a live one.
    fn after_ending(&mut self) {
        let Some(run) = &self.job.run else { return };
        if all_succeeded(run) {
            self.release("the job has succeeded");
            self.end(JobState::Succeeded, "trained to the end".to_owned());
        } else if let Some(cause) = cause_so_far(run) {
            self.stop(stop_grace(&self.job, self.rules), cause);
        }
    }

    /// Ends the generation: all its workers stop what they hold of it.
    fn stop(&mut self, grace: Duration, reason: String) {
        self.enter(JobState::Stopping, reason.clone());
        let Some(run) = &mut self.job.run else { return };
        run.start_deadline = None;
        run.doubts.clear();
        run.resend_stop = Some(self.now.at + grace + self.rules.stop_resend);
        self.send_stops(grace, &reason);
        self.settle();
    }

    fn send_stops(&mut self, grace: Duration, reason: &str) {
        let Some(run) = &self.job.run else { return };
        for worker in run.workers().into_iter().filter(|worker| !run.stopped.contains(*worker)) {
            let (worker, reason) = (worker.clone(), reason.to_owned());
            self.effects.push(Effect::Stop { worker, grace, reason });
        }
    }

    fn confirm_stopped(&mut self, worker: &WorkerId) {
        if let Some(run) = &mut self.job.run
            && run.workers().contains(worker)
        {
            run.stopped.insert(worker.clone());
            run.doubts.remove(worker);
        }
        self.settle();
    }

    /// Decides what follows, once no worker holds anything of the generation.
    fn settle(&mut self) {
        let Some(run) = &self.job.run else { return };
        if run.workers().iter().any(|worker| !run.stopped.contains(*worker)) {
            return;
        }
        match verdict(&self.job, run) {
            Verdict::Succeeded => self.end(JobState::Succeeded, "trained to the end".to_owned()),
            Verdict::Cancelled => self.end(JobState::Cancelled, "cancelled".to_owned()),
            Verdict::Failed(reason) => self.end(JobState::Failed, reason),
            Verdict::Restart(cause) => {
                self.job.restarts += 1;
                self.place_again(cause);
            }
            Verdict::PlaceAgain(cause) => self.place_again(cause),
        }
    }

    fn place_again(&mut self, cause: String) {
        let progress = self.job.run.take().map(|run| run.progress);
        self.job.fruitless = match progress {
            Some(Progress::Made) => 0,
            _ => self.job.fruitless.saturating_add(1),
        };
        self.job.not_before = match self.job.fruitless {
            0 => None,
            failed => self.rules.backoff.delay(failed, 0.0).map(|wait| self.now.at + wait),
        };
        self.job.last_cause = Some(cause);
        self.enter(JobState::Queued, self.with_history("waits to be placed again".to_owned()));
    }

    fn end(&mut self, state: JobState, reason: String) {
        if let Some(run) = &mut self.job.run {
            run.resend_stop = None;
            run.start_deadline = None;
            run.doubts.clear();
        }
        self.job.not_before = None;
        self.enter(state, reason);
        self.job.ended_unix_ms = Some(self.now.unix_ms);
    }

    /// Frees what workers still hold (the rendezvous store) after every rank has ended.
    fn release(&mut self, reason: &str) {
        self.send_stops(Duration::ZERO, reason);
    }

    fn lose_ranks(&mut self, worker: &WorkerId, why: &str) {
        let Some(run) = &self.job.run else { return };
        let ranks = run.ranks_on(worker).collect();
        self.lose(ranks, why);
    }

    fn lose(&mut self, ranks: BTreeSet<Rank>, why: &str) {
        for rank in ranks {
            let message = why.to_owned();
            self.record(Ending { rank: Some(rank), kind: EndKind::WorkerLost, message });
        }
    }

    fn lose_while_live(&mut self, worker: &WorkerId, why: &str) {
        let Some(run) = &mut self.job.run else { return };
        if !run.workers().contains(worker) {
            return;
        }
        run.stopped.insert(worker.clone());
        self.lose_ranks(worker, why);
        self.after_ending();
    }

    /// Repeats what the worker may not have received, and remembers what it must account for.
    fn reattach_while_live(&mut self, worker: &WorkerId, held: &Held) {
        let Some(run) = &mut self.job.run else { return };
        if !run.workers().contains(worker) {
            return;
        }
        // Decided now: what begins later has nothing to do with what was held before.
        let missing = |rank: &Rank| {
            let begun = run.phases.get(rank.0 as usize).is_some_and(|phase| *phase > Phase::Placed);
            let runs = matches!(held, Held::Ranks(ranks) if ranks.contains(rank));
            begun && !runs && run.ending(*rank).is_none()
        };
        let ranks = run.ranks_on(worker).filter(missing).collect();
        run.doubt(worker, ranks, self.now.at + self.rules.lease);
        match &run.store_address {
            None if run.worker_of(Rank(0)) == Some(worker) => {
                self.effects.push(Effect::HostStore { worker: worker.clone() });
            }
            None => {}
            Some(address) => {
                let unstarted = |rank: &Rank| {
                    run.phases.get(rank.0 as usize) == Some(&Phase::Placed) && run.ending(*rank).is_none()
                };
                let ranks: Vec<Rank> = run.ranks_on(worker).filter(unstarted).collect();
                if !ranks.is_empty() {
                    let (worker, store_address) = (worker.clone(), address.clone());
                    self.effects.push(Effect::StartRanks { worker, ranks, store_address });
                }
            }
        }
    }

    fn reattach_while_stopping(&mut self, worker: &WorkerId, held: &Held) {
        let Some(run) = &mut self.job.run else { return };
        if !run.workers().contains(worker) || run.stopped.contains(worker) {
            return;
        }
        let ranks = match held {
            Held::Nothing => run.ranks_on(worker).collect(),
            Held::Ranks(_) => BTreeSet::new(),
        };
        run.doubt(worker, ranks, self.now.at + self.rules.lease);
        let grace = stop_grace(&self.job, self.rules);
        let reason = self.job.reason.clone();
        self.effects.push(Effect::Stop { worker: worker.clone(), grace, reason });
    }

    fn tick_while_live(&mut self) {
        for (_, doubt) in self.due_doubts() {
            self.lose(doubt.ranks, "its agent no longer runs it");
            self.after_ending();
            if self.job.state == JobState::Stopping || self.job.state.is_terminal() {
                return;
            }
        }
        let Some(run) = &self.job.run else { return };
        if run.start_deadline.is_some_and(|deadline| deadline <= self.now.at) {
            let message = start_report(run, self.rules.start_timeout);
            self.record(Ending { rank: None, kind: EndKind::StartTimeout, message });
            self.after_ending();
        }
    }

    fn tick_while_stopping(&mut self) {
        for (worker, doubt) in self.due_doubts() {
            self.lose(doubt.ranks, "its agent no longer runs it");
            self.confirm_stopped(&worker);
            if self.job.state != JobState::Stopping {
                return;
            }
        }
        let Some(run) = &mut self.job.run else { return };
        if run.resend_stop.is_some_and(|at| at <= self.now.at) {
            run.resend_stop = Some(self.now.at + self.rules.stop_resend);
            let reason = self.job.reason.clone();
            self.send_stops(Duration::ZERO, &reason);
        }
    }

    /// Takes out the doubts whose time is up.
    fn due_doubts(&mut self) -> Vec<(WorkerId, Doubt)> {
        let Some(run) = &mut self.job.run else { return Vec::new() };
        let now = self.now.at;
        run.doubts.extract_if(.., |_, doubt| doubt.until <= now).collect()
    }

    fn with_history(&self, text: String) -> String {
        match &self.job.last_cause {
            Some(cause) => {
                let (restarts, max) = (self.job.restarts, self.job.info.max_restarts);
                format!("{text} (restart {restarts} of {max}: {cause})")
            }
            None => text,
        }
    }
}

fn start_report(run: &Run, timeout: Duration) -> String {
    let behind: Vec<String> = run
        .phases
        .iter()
        .enumerate()
        .filter(|(_, phase)| **phase != Phase::Training)
        .map(|(rank, phase)| format!("rank {rank} is {}", phase.name()))
        .collect();
    format!("after {} s {}", timeout.as_secs_f64(), behind.join(", "))
}
