use std::time::{Duration, Instant};

use anybit_shared::ids::{Generation, GlobalStep, JobId, Rank, WorkerId, WorkerIncarnation};
use anybit_shared::retry::RetryPolicy;
use proptest::prelude::*;

use super::*;

const LEASE: Duration = Duration::from_secs(6);

fn rules() -> Rules {
    Rules {
        start_timeout: Duration::from_secs(120),
        cancel_grace: Duration::from_secs(20),
        lease: LEASE,
        stop_resend: Duration::from_secs(5),
        backoff: RetryPolicy {
            initial: Duration::from_millis(500),
            max: Duration::from_secs(30),
            factor: 2.0,
            jitter: 0.0,
            max_attempts: None,
        },
    }
}

fn worker(n: u32) -> WorkerId {
    WorkerId::new(format!("w{n}")).unwrap()
}

/// One rank a worker.
fn places(world: u32) -> Vec<Place> {
    let incarnation = WorkerIncarnation::new("life").unwrap();
    (0..world).map(|n| Place { worker: worker(n), incarnation: incarnation.clone() }).collect()
}

/// A job with a hand on its clock.
struct Story {
    job: Job,
    now: Now,
    effects: Vec<Effect>,
}

impl Story {
    fn new(world: u32, max_restarts: u32) -> Self {
        let info = JobInfo {
            id: JobId::new("job1").unwrap(),
            name: "digits".to_owned(),
            spec_toml: String::new(),
            world_size: world,
            priority: 0,
            max_restarts,
            bits: Vec::new(),
            created_unix_ms: 0,
        };
        Self { job: Job::new(info), now: Now { unix_ms: 1_000, at: Instant::now() }, effects: Vec::new() }
    }

    fn running(world: u32, max_restarts: u32) -> Self {
        let mut story = Self::new(world, max_restarts);
        story.run();
        story
    }

    /// From the queue to every rank training, from step 10.
    fn run(&mut self) {
        let world = self.job.info.world_size;
        self.on(Event::Placed(places(world)));
        self.report(0, Report::StoreReady(Ok("h:1".to_owned())));
        for rank in 0..world {
            self.report(
                rank,
                Report::Phase { rank: Rank(rank), phase: Phase::Training, step: GlobalStep(10) },
            );
        }
        assert_eq!(self.job.state, JobState::Running);
    }

    fn on(&mut self, event: Event) {
        let decision = decide(&self.job, &event, self.now, &rules()).unwrap();
        self.job = decision.job;
        self.effects = decision.effects;
    }

    fn report(&mut self, from: u32, report: Report) {
        let generation = self.job.generation;
        self.on(Event::Report { generation, worker: worker(from), report });
    }

    fn exit(&mut self, rank: u32, kind: EndKind) {
        let message = format!("message {rank}");
        self.report(rank, Report::Exited { rank: Rank(rank), kind, message, step: GlobalStep(10) });
    }

    fn stopped(&mut self, from: u32) {
        self.report(from, Report::Stopped);
    }

    fn wait(&mut self, time: Duration) {
        self.now.at += time;
        self.now.unix_ms += time.as_millis() as i64;
        self.on(Event::Tick);
    }
}

#[test]
fn a_job_trains_to_its_end() {
    let mut story = Story::new(2, 0);
    story.on(Event::Placed(places(2)));
    assert_eq!(story.effects, [Effect::HostStore { worker: worker(0) }]);
    story.report(0, Report::StoreReady(Ok("h:1".to_owned())));
    assert_eq!(story.effects.len(), 2);
    assert!(matches!(&story.effects[1], Effect::StartRanks { worker: w, ranks, .. }
        if *w == worker(1) && ranks == &[Rank(1)]));
    for rank in [0, 1] {
        assert_eq!(story.job.state, JobState::Starting);
        story.report(rank, Report::Phase { rank: Rank(rank), phase: Phase::Training, step: GlobalStep(0) });
    }
    assert_eq!((story.job.state, story.job.started_unix_ms), (JobState::Running, Some(1_000)));
    story.exit(1, EndKind::Succeeded);
    assert_eq!(story.job.state, JobState::Running);
    story.exit(0, EndKind::Succeeded);
    assert_eq!((story.job.state, story.job.ended_unix_ms), (JobState::Succeeded, Some(1_000)));
    assert_eq!(story.effects.len(), 2, "workers close the store: {:?}", story.effects);
}

#[test]
fn a_killed_rank_waits_for_every_worker_and_then_restarts() {
    let mut story = Story::running(2, 3);
    story.report(0, Report::Progress(GlobalStep(11)));
    story.exit(0, EndKind::PeerLost);
    assert_eq!(story.job.state, JobState::Stopping);
    assert!(story.effects.iter().all(|e| matches!(e, Effect::Stop { grace, .. } if grace.is_zero())));
    story.exit(1, EndKind::Killed);
    story.stopped(1);
    assert_eq!(story.job.state, JobState::Stopping, "worker 0 has not confirmed");
    story.stopped(0);
    assert_eq!((story.job.state, story.job.restarts), (JobState::Queued, 1));
    assert_eq!(story.job.not_before, None, "there was progress, so no wait");
    assert!(story.job.reason.contains("rank 1 on w1 was killed"), "{}", story.job.reason);
    story.run();
    assert_eq!(story.job.generation, Generation(2));
}

#[test]
fn a_users_error_outranks_what_it_caused() {
    for kind in [EndKind::UserError, EndKind::OutOfMemory, EndKind::NonFinite] {
        let mut story = Story::running(3, 3);
        story.exit(0, EndKind::PeerLost);
        story.exit(2, EndKind::Killed);
        story.stopped(2);
        story.exit(1, kind);
        story.stopped(1);
        story.stopped(0);
        assert_eq!((story.job.state, story.job.restarts), (JobState::Failed, 0));
        assert!(story.job.reason.contains("message 1"), "{}", story.job.reason);
    }
}

#[test]
fn the_last_restart_fails_with_cause_and_limit() {
    let mut story = Story::running(1, 1);
    for expected in [JobState::Queued, JobState::Failed] {
        story.exit(0, EndKind::Crashed);
        story.stopped(0);
        assert_eq!(story.job.state, expected);
        if expected == JobState::Queued {
            story.run();
        }
    }
    let reason = &story.job.reason;
    assert!(reason.contains("crashed") && reason.contains("max_restarts") && reason.contains("of 1"));
}

#[test]
fn waits_grow_while_nothing_is_committed() {
    let mut story = Story::running(1, 10);
    let mut waits = Vec::new();
    for _ in 0..4 {
        story.exit(0, EndKind::Killed);
        story.stopped(0);
        waits.push((story.job.not_before.unwrap() - story.now.at).as_millis());
        story.run();
    }
    assert_eq!(waits, [500, 1000, 2000, 4000]);
    story.report(0, Report::Progress(GlobalStep(11)));
    story.exit(0, EndKind::Killed);
    story.stopped(0);
    assert_eq!((story.job.not_before, story.job.fruitless), (None, 0));
}

#[test]
fn cancelling() {
    let mut queued = Story::new(1, 0);
    queued.on(Event::Cancel);
    assert_eq!(queued.job.state, JobState::Cancelled);

    let mut story = Story::running(2, 5);
    story.on(Event::Cancel);
    assert!(story.effects.iter().all(|e| matches!(e, Effect::Stop { grace, .. } if grace.as_secs() == 20)));
    story.on(Event::Cancel);
    assert!(story.effects.is_empty(), "asking twice changes nothing");
    story.exit(0, EndKind::Stopped);
    story.exit(1, EndKind::Crashed);
    story.stopped(0);
    story.stopped(1);
    assert_eq!((story.job.state, story.job.restarts), (JobState::Cancelled, 0));
    let refused = decide(&story.job, &Event::Cancel, story.now, &rules());
    assert!(matches!(refused, Err(Refused::Ended { .. })));
}

#[test]
fn a_stop_in_order_is_not_counted_as_a_restart() {
    let mut story = Story::running(2, 0);
    story.exit(1, EndKind::Stopped);
    story.exit(0, EndKind::Stopped);
    story.stopped(0);
    story.stopped(1);
    assert_eq!((story.job.state, story.job.restarts), (JobState::Queued, 0), "{}", story.job.reason);

    let mut story = Story::running(2, 0);
    story.exit(1, EndKind::Killed);
    story.exit(0, EndKind::Stopped);
    story.stopped(0);
    story.stopped(1);
    assert_eq!(story.job.state, JobState::Failed, "one of them was lost");
}

#[test]
fn a_cancel_that_comes_during_a_restart_holds() {
    let mut story = Story::running(1, 5);
    story.exit(0, EndKind::Killed);
    story.on(Event::Cancel);
    story.stopped(0);
    assert_eq!(story.job.state, JobState::Cancelled);
}

#[test]
fn a_lost_worker_takes_its_ranks_along() {
    let mut story = Story::running(2, 5);
    story.on(Event::WorkerLost { worker: worker(1), why: "silent for 6 s".to_owned() });
    assert_eq!(story.job.state, JobState::Stopping);
    assert_eq!(story.effects.len(), 1, "only the living are asked: {:?}", story.effects);
    story.stopped(0);
    assert_eq!(story.job.state, JobState::Queued);
    assert!(story.job.reason.contains("silent"), "{}", story.job.reason);
}

#[test]
fn a_start_that_takes_too_long_ends_the_generation() {
    let mut story = Story::new(2, 5);
    story.on(Event::Placed(places(2)));
    story.wait(Duration::from_secs(119));
    assert_eq!(story.job.state, JobState::Starting);
    story.wait(Duration::from_secs(1));
    assert_eq!(story.job.state, JobState::Stopping);
    assert!(story.job.reason.contains("rank 1 is placed"), "{}", story.job.reason);
}

#[test]
fn a_stop_that_nobody_confirms_is_asked_for_again() {
    let mut story = Story::running(2, 5);
    story.exit(0, EndKind::Killed);
    story.stopped(0);
    story.wait(Duration::from_secs(5));
    assert!(matches!(&story.effects[..], [Effect::Stop { worker: w, .. }] if *w == worker(1)));
}

#[test]
fn a_rank_missing_after_a_reattach_has_one_lease_to_be_explained() {
    let held = Held::Ranks([Rank(0)].into());
    let mut lost = Story::running(2, 5);
    lost.on(Event::Reattached { worker: worker(0), held: held.clone() });
    lost.wait(LEASE);
    assert_eq!(lost.job.state, JobState::Running, "rank 0 still runs");

    lost.on(Event::Reattached { worker: worker(1), held: Held::Nothing });
    lost.wait(LEASE / 2);
    assert_eq!(lost.job.state, JobState::Running);
    let mut explained = Story { job: lost.job.clone(), now: lost.now, effects: Vec::new() };
    lost.wait(LEASE / 2);
    assert_eq!(lost.job.state, JobState::Stopping);

    explained.exit(1, EndKind::Succeeded);
    explained.wait(LEASE);
    assert_eq!(explained.job.state, JobState::Running, "it had succeeded");
}

#[test]
fn a_start_is_repeated_to_an_agent_that_may_have_missed_it() {
    let mut story = Story::new(2, 5);
    story.on(Event::Placed(places(2)));
    story.on(Event::Reattached { worker: worker(0), held: Held::Nothing });
    assert_eq!(story.effects, [Effect::HostStore { worker: worker(0) }]);
    story.report(0, Report::StoreReady(Ok("h:1".to_owned())));
    story.on(Event::Reattached { worker: worker(1), held: Held::Nothing });
    assert!(matches!(&story.effects[..], [Effect::StartRanks { worker: w, .. }] if *w == worker(1)));
}

#[test]
fn only_what_had_begun_before_a_reattach_is_doubted() {
    let mut story = Story::new(2, 5);
    story.on(Event::Placed(places(2)));
    story.on(Event::Reattached { worker: worker(0), held: Held::Ranks([].into()) });
    story.on(Event::Reattached { worker: worker(1), held: Held::Nothing });
    story.report(0, Report::StoreReady(Ok("h:1".to_owned())));
    for rank in [0, 1] {
        story.report(rank, Report::Phase { rank: Rank(rank), phase: Phase::Training, step: GlobalStep(0) });
    }
    story.wait(LEASE);
    assert_eq!(story.job.state, JobState::Running, "{}", story.job.reason);
}

#[test]
fn a_later_reattach_clears_the_doubt_of_an_earlier_one() {
    let mut story = Story::running(1, 5);
    story.on(Event::Reattached { worker: worker(0), held: Held::Nothing });
    story.wait(LEASE / 2);
    story.on(Event::Reattached { worker: worker(0), held: Held::Ranks([Rank(0)].into()) });
    story.wait(LEASE);
    assert_eq!(story.job.state, JobState::Running, "{}", story.job.reason);
}

#[test]
fn a_stop_that_nobody_is_to_blame_for_leaves_time_for_its_checkpoint() {
    let graces = |story: &Story| -> Vec<u64> {
        let grace = |effect: &Effect| match effect {
            Effect::Stop { grace, .. } => grace.as_secs(),
            other => panic!("{other:?}"),
        };
        story.effects.iter().map(grace).collect()
    };
    let mut story = Story::running(3, 5);
    story.exit(2, EndKind::Succeeded);
    story.exit(1, EndKind::Stopped);
    assert_eq!((story.job.state, graces(&story)), (JobState::Stopping, vec![20, 20, 20]));
    story.on(Event::Reattached { worker: worker(0), held: Held::Ranks([Rank(0)].into()) });
    assert_eq!(graces(&story), [20]);
    let mut restarted = Story { job: story.job.clone(), now: story.now, effects: Vec::new() };
    restarted.job = restarted.job.resumed(story.now, &rules());
    for story in [&mut story, &mut restarted] {
        story.wait(Duration::from_secs(24));
        assert!(graces(story).is_empty(), "the grace and the time to confirm are not over");
        story.wait(Duration::from_secs(1));
        assert_eq!(graces(story), [0, 0, 0]);
    }

    let mut story = Story::running(2, 5);
    story.exit(1, EndKind::Killed);
    assert_eq!(graces(&story), [0, 0]);
    story.exit(0, EndKind::Stopped);
    story.on(Event::Reattached { worker: worker(0), held: Held::Ranks([].into()) });
    assert_eq!(graces(&story), [0]);
}

#[test]
fn a_store_that_does_not_open_restarts() {
    let mut story = Story::new(1, 5);
    story.on(Event::Placed(places(1)));
    story.report(0, Report::StoreReady(Err("no free port".to_owned())));
    story.stopped(0);
    assert_eq!(story.job.state, JobState::Queued);
    assert!(story.job.reason.contains("no free port"), "{}", story.job.reason);
}

#[test]
fn reports_of_others_are_refused() {
    let story = Story::running(2, 5);
    let event = |generation, from, rank| {
        let report =
            Report::Exited { rank, kind: EndKind::Killed, message: String::new(), step: GlobalStep(0) };
        decide(&story.job, &Event::Report { generation, worker: worker(from), report }, story.now, &rules())
    };
    assert!(matches!(event(Generation(0), 0, Rank(0)), Err(Refused::StaleGeneration { .. })));
    assert!(matches!(event(Generation(1), 0, Rank(1)), Err(Refused::NotHeld { .. })));
    assert!(matches!(event(Generation(1), 0, Rank(9)), Err(Refused::NotHeld { .. })));
    assert!(event(Generation(1), 1, Rank(1)).is_ok());
}

fn any_event() -> impl Strategy<Value = (Event, u64)> {
    let kinds = prop::sample::select(vec![
        EndKind::Succeeded,
        EndKind::Succeeded,
        EndKind::Stopped,
        EndKind::UserError,
        EndKind::PeerLost,
        EndKind::Crashed,
        EndKind::Killed,
    ]);
    let phases = prop::sample::select(vec![Phase::Spawned, Phase::Training, Phase::Training]);
    let rank = 0..3u32;
    let report = prop_oneof![
        Just(Report::StoreReady(Ok("h:1".to_owned()))),
        Just(Report::StoreReady(Err("no".to_owned()))),
        (rank.clone(), phases, 0..5u64).prop_map(|(rank, phase, step)| Report::Phase {
            rank: Rank(rank),
            phase,
            step: GlobalStep(step)
        }),
        (0..9u64).prop_map(|step| Report::Progress(GlobalStep(step))),
        (rank, kinds, 0..9u64).prop_map(|(rank, kind, step)| Report::Exited {
            rank: Rank(rank),
            kind,
            message: String::new(),
            step: GlobalStep(step)
        }),
        Just(Report::Stopped),
        Just(Report::Stopped),
    ];
    let held = prop_oneof![Just(Held::Nothing), Just(Held::Ranks([Rank(0), Rank(1)].into()))];
    let event = prop_oneof![
        3 => (1..4u32).prop_map(|world| Event::Placed(places(world))),
        1 => Just(Event::Waits("busy".to_owned())),
        1 => prop::bool::weighted(0.2).prop_map(|cancel| if cancel { Event::Cancel } else { Event::Tick }),
        12 => (0..4u32, 0..3u32, report).prop_map(|(generation, from, report)| Event::Report {
            generation: Generation(generation),
            worker: worker(from),
            report
        }),
        1 => (0..3u32, held).prop_map(|(n, held)| Event::Reattached { worker: worker(n), held }),
        1 => (0..3u32).prop_map(|n| Event::WorkerLost { worker: worker(n), why: "gone".to_owned() }),
        2 => Just(Event::Tick),
    ];
    (event, prop::sample::select(vec![0u64, 0, 100, 7_000, 130_000]))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_events_make_an_illegal_edge(events in prop::collection::vec(any_event(), 1..120)) {
        let mut story = Story::new(2, 2);
        let mut reached = vec![story.job.state];
        // Generations that ended in order and counted as no restart.
        let mut in_order = 0;
        for (event, wait_ms) in events {
            story.now.at += Duration::from_millis(wait_ms);
            // Most reports are of the current generation, or little would happen.
            let event = match event {
                Event::Report { generation, worker, report } if generation != Generation(0) =>
                    Event::Report { generation: story.job.generation, worker, report },
                other => other,
            };
            let before = story.job.clone();
            match decide(&before, &event, story.now, &rules()) {
                Err(refused) => {
                    let ended = matches!(refused, Refused::Ended { .. });
                    prop_assert_eq!(ended, before.state.is_terminal());
                }
                Ok(decision) => {
                    prop_assert!(!before.state.is_terminal());
                    let mut at = before.state;
                    for step in &decision.path {
                        prop_assert_eq!(step.from, at);
                        prop_assert!(step.from.may_become(step.to), "{:?} on {:?}", step, event);
                        prop_assert!(!step.reason.is_empty());
                        at = step.to;
                        reached.push(at);
                    }
                    prop_assert_eq!(at, decision.job.state);
                    story.job = decision.job;
                }
            }
            let job = &story.job;
            prop_assert!(job.generation >= before.generation);
            prop_assert!(job.generation.0 <= before.generation.0 + 1);
            prop_assert!(job.restarts <= job.info.max_restarts);
            if before.state != JobState::Queued
                && job.state == JobState::Queued
                && job.restarts == before.restarts
            {
                let endings = before.run.iter().flat_map(|run| &run.endings);
                let blamed = |e: &Ending| !matches!(e.kind, EndKind::Stopped | EndKind::Succeeded);
                prop_assert!(!endings.clone().any(blamed), "{:?}", endings.collect::<Vec<_>>());
                in_order += 1;
            }
            prop_assert!(job.generation.0 <= job.restarts + in_order + 1);
            prop_assert_eq!(job.ended_unix_ms.is_some(), job.state.is_terminal());
            prop_assert_eq!(job.run.is_none(), job.generation == Generation(0) || job.state == JobState::Queued
                || (job.state == JobState::Cancelled && job.run.is_none()));
            if let Some(run) = &job.run {
                prop_assert_eq!(run.places.len(), 2);
                prop_assert!(run.endings.iter().filter(|e| e.rank.is_some()).count() <= 2);
            }
            if job.state == JobState::Stopping {
                let run = job.run.as_ref().unwrap();
                prop_assert!(run.workers().iter().any(|w| !run.stopped.contains(*w)), "nothing to wait for");
            }
        }
    }
}
