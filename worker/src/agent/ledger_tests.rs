use super::*;
use crate::assignment::tests::SPEC;

fn key(generation: u32) -> GenerationKey {
    GenerationKey { job: JobId::new("j").unwrap(), generation: Generation(generation) }
}

fn rank(generation: u32, rank: u32) -> RankKey {
    RankKey { of: key(generation), rank: Rank(rank) }
}

fn start(generation: u32, ranks: &[u32]) -> Event {
    start_with(generation, ranks, SPEC)
}

fn start_with(generation: u32, ranks: &[u32], spec: &str) -> Event {
    Event::Command(Command::StartRanks(StartRanks {
        key: key(generation),
        world_size: 2,
        ranks: ranks.iter().copied().map(Rank).collect(),
        spec_toml: spec.to_owned(),
        store_address: "127.0.0.1:1".to_owned(),
        restorable_generations: Vec::new(),
    }))
}

fn host(generation: u32) -> Event {
    Event::Command(Command::HostStore(key(generation)))
}

fn stop(generation: u32, grace_ms: u64) -> Event {
    let grace = Duration::from_millis(grace_ms);
    Event::Command(Command::StopGeneration { key: key(generation), grace, reason: "test".to_owned() })
}

fn exited(generation: u32, of: u32) -> Event {
    Event::Exited(rank(generation, of), ExitKind::Succeeded, "done".to_owned())
}

/// Actions in short: what they do and to whom.
fn short(actions: &[Action]) -> Vec<String> {
    let report = |report: &Report| match report {
        Report::StoreReady(m) if m.error.is_empty() => format!("ready {}", m.address),
        Report::StoreReady(m) => format!("no store: {}", m.error),
        Report::TrainerPhase(m) => format!("phase {} of {}", m.phase().as_str_name(), m.rank),
        Report::RankExited(m) => format!("exited {} {} step {}", m.rank, m.kind().as_str_name(), m.step),
        Report::GenerationStopped(m) => format!("stopped {}", m.generation),
        other => format!("{other:?}"),
    };
    let one = |action: &Action| match action {
        Action::OpenStore(key) => format!("open {}", key.generation),
        Action::CloseStore(key) => format!("close {}", key.generation),
        Action::Spawn(launch) => format!("spawn {}", launch.key.rank),
        Action::AskToStop(key) => format!("ask {}", key.rank),
        Action::Kill { key, .. } => format!("kill {}/{}", key.of.generation, key.rank),
        Action::StartGrace(key, grace) => format!("grace {} {}ms", key.generation, grace.as_millis()),
        Action::Report(_, message) => report(message),
    };
    actions.iter().map(one).collect()
}

fn apply(ledger: &mut Ledger, event: Event) -> Vec<String> {
    short(&ledger.apply(event))
}

#[test]
fn one_life_of_a_generation() {
    let mut ledger = Ledger::default();
    assert_eq!(apply(&mut ledger, host(1)), ["open 1"]);
    assert_eq!(apply(&mut ledger, Event::StoreOpened(key(1), Ok("h:1".into()))), ["ready h:1"]);
    assert_eq!(apply(&mut ledger, start(1, &[0, 1])), ["spawn 0", "spawn 1"]);
    assert_eq!(apply(&mut ledger, Event::Spawned(rank(1, 0))), ["phase PHASE_SPAWNED of 0"]);
    assert!(apply(&mut ledger, Event::Heartbeat(rank(1, 0), GlobalStep(7))).is_empty());
    assert_eq!(ledger.held()[0].running_ranks, [0, 1]);
    assert_eq!(apply(&mut ledger, exited(1, 0)), ["exited 0 EXIT_KIND_SUCCEEDED step 7"]);
    apply(&mut ledger, exited(1, 1));
    assert_eq!(ledger.held()[0].running_ranks, [0_u32; 0], "still held, with nobody running");
    assert_eq!(apply(&mut ledger, stop(1, 0)), ["close 1"]);
    assert_eq!(apply(&mut ledger, Event::StoreClosed(key(1))), ["stopped 1"]);
    assert!(ledger.held().is_empty() && ledger.is_idle());
}

#[test]
fn starting_again_leaves_running_and_ended_ranks_alone() {
    let mut ledger = Ledger::default();
    apply(&mut ledger, start(1, &[0]));
    assert_eq!(apply(&mut ledger, start(1, &[0, 1])), ["spawn 1"]);
    apply(&mut ledger, exited(1, 0));
    assert!(apply(&mut ledger, start(1, &[0, 1])).is_empty());
}

#[test]
fn a_stop_without_grace_kills_at_once() {
    let mut ledger = Ledger::default();
    apply(&mut ledger, start(1, &[0, 1]));
    assert_eq!(apply(&mut ledger, stop(1, 0)), ["kill 1/0", "kill 1/1"]);
    assert_eq!(apply(&mut ledger, exited(1, 0)).len(), 1);
    assert_eq!(apply(&mut ledger, exited(1, 1))[1], "stopped 1");
}

#[test]
fn a_stop_with_grace_asks_first_and_kills_what_is_left() {
    let mut ledger = Ledger::default();
    apply(&mut ledger, start(1, &[0, 1]));
    assert_eq!(apply(&mut ledger, stop(1, 500)), ["ask 0", "ask 1", "grace 1 500ms"]);
    apply(&mut ledger, exited(1, 1));
    assert_eq!(apply(&mut ledger, Event::GraceOver(key(1))), ["kill 1/0"]);
    assert_eq!(apply(&mut ledger, exited(1, 0))[1], "stopped 1");
    assert!(apply(&mut ledger, Event::GraceOver(key(1))).is_empty(), "a late timer does nothing");
}

#[test]
fn a_second_stop_without_grace_overrules_the_first() {
    let mut ledger = Ledger::default();
    apply(&mut ledger, start(1, &[0]));
    apply(&mut ledger, stop(1, 60_000));
    assert_eq!(apply(&mut ledger, stop(1, 0)), ["kill 1/0"]);
    assert_eq!(apply(&mut ledger, exited(1, 0))[1..], ["stopped 1"]);
}

#[test]
fn stopping_what_is_unknown_is_answered_at_once() {
    assert_eq!(apply(&mut Ledger::default(), stop(4, 1_000)), ["stopped 4"]);
}

#[test]
fn a_store_that_opens_during_a_stop_is_closed_before_the_answer() {
    let mut ledger = Ledger::default();
    apply(&mut ledger, host(1));
    assert!(apply(&mut ledger, stop(1, 0)).is_empty());
    assert_eq!(apply(&mut ledger, Event::StoreOpened(key(1), Ok("h:1".into()))), ["close 1"]);
    assert_eq!(apply(&mut ledger, Event::StoreClosed(key(1))), ["stopped 1"]);
}

#[test]
fn a_store_that_does_not_open_is_told_and_may_be_tried_again() {
    let mut ledger = Ledger::default();
    apply(&mut ledger, host(1));
    assert!(apply(&mut ledger, host(1)).is_empty(), "once is enough");
    let failed = Event::StoreOpened(key(1), Err("no port".into()));
    assert_eq!(apply(&mut ledger, failed), ["no store: no port"]);
    assert_eq!(apply(&mut ledger, host(1)), ["open 1"]);
}

#[test]
fn an_older_generation_is_refused() {
    let mut ledger = Ledger::default();
    apply(&mut ledger, start(3, &[0]));
    assert_eq!(apply(&mut ledger, start(2, &[1])), ["exited 1 EXIT_KIND_CRASHED step 0"]);
    assert!(apply(&mut ledger, host(2))[0].contains("older than 3"));
    assert_eq!(ledger.held().len(), 1);
}

#[test]
fn a_stopped_generation_does_not_come_back() {
    let mut ledger = Ledger::default();
    apply(&mut ledger, stop(3, 0));
    assert_eq!(apply(&mut ledger, start(3, &[0])), ["exited 0 EXIT_KIND_CRASHED step 0"]);
    assert_eq!(apply(&mut ledger, start(4, &[0])), ["spawn 0"]);
}

#[test]
fn a_newer_generation_ends_the_older() {
    let mut ledger = Ledger::default();
    apply(&mut ledger, start(1, &[0]));
    assert_eq!(apply(&mut ledger, start(2, &[0])), ["kill 1/0", "spawn 0"]);
    assert_eq!(apply(&mut ledger, exited(1, 0)).len(), 1, "its end is reported, no stop is answered");
    assert_eq!(ledger.held().len(), 1);
}

#[test]
fn a_bad_spec_is_the_users_error_and_starts_nothing() {
    let mut ledger = Ledger::default();
    let actions = ledger.apply(start_with(1, &[0, 1], "name = 3"));
    assert_eq!(short(&actions).len(), 2);
    assert!(short(&actions)[0].contains("EXIT_KIND_USER_ERROR"));
    assert!(ledger.is_idle());
}

#[test]
fn a_rank_outside_the_world_is_refused() {
    let refused = apply(&mut Ledger::default(), start(1, &[0, 2]));
    assert_eq!(refused.len(), 2);
}

#[test]
fn shutting_down_asks_all_and_takes_nothing_new() {
    let mut ledger = Ledger::default();
    apply(&mut ledger, start(1, &[0]));
    let grace = Duration::from_secs(20);
    assert_eq!(apply(&mut ledger, Event::Shutdown { grace }), ["ask 0", "grace 1 20000ms"]);
    assert_eq!(apply(&mut ledger, start(2, &[0])), ["exited 0 EXIT_KIND_CRASHED step 0"]);
    assert!(!ledger.is_idle());
    apply(&mut ledger, exited(1, 0));
    assert!(ledger.is_idle());
}

#[test]
fn messages_of_an_ended_trainer_are_ignored() {
    let mut ledger = Ledger::default();
    apply(&mut ledger, start(1, &[0]));
    apply(&mut ledger, exited(1, 0));
    assert!(apply(&mut ledger, Event::Phase(rank(1, 0), TrainerPhase::default())).is_empty());
    assert!(apply(&mut ledger, exited(1, 0)).is_empty());
}

#[test]
fn what_is_over_is_forgotten_within_bounds() {
    let mut ledger = Ledger::default();
    for n in 0..600 {
        let of = GenerationKey { job: JobId::new(format!("j{n}")).unwrap(), generation: Generation(1) };
        ledger.apply(Event::Command(Command::HostStore(of.clone())));
        ledger.apply(Event::StoreOpened(of.clone(), Err("no".into())));
        if n % 2 == 0 {
            let grace = Duration::ZERO;
            ledger.apply(Event::Command(Command::StopGeneration { key: of, grace, reason: String::new() }));
        }
    }
    assert!(ledger.held.len() <= REMEMBERED && ledger.stopped.len() <= REMEMBERED);
}
