//! The agent as real processes against a scripted coordinator.
//!
//! This binary is also its own cast: started as `as-agent` it is an agent with the real library
//! code, as `as-trainer` a trainer whose behaviour is the name of its job spec.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "clippy.toml allows these in tests, which clippy knows by #[test]: here there is none"
)]

mod cast;
mod coordinator;
mod lab;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anybit_proto::v1::attach_request::Message;
use anybit_proto::v1::{ExitKind, metric_record, trainer_phase::Phase};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::Signal;

use lab::{Lab, is_alive, until};

macro_rules! trials {
    ($($name:ident),* $(,)?) => { vec![$(Trial::test(stringify!($name), || run($name))),*] };
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("as-agent") => return cast::agent(),
        Some("as-trainer") => return cast::trainer(),
        Some("as-stray") => return cast::stray(),
        _ => {}
    }
    let trials = trials![
        a_generation_lives_from_store_to_stop,
        a_killed_trainer_is_seen_within_a_second,
        a_crash_names_its_signal,
        a_panic_is_a_crash,
        a_trainer_that_cannot_be_run_is_a_crash,
        a_kill_takes_the_whole_process_group,
        a_trainers_end_takes_its_children_along,
        the_agents_death_leaves_no_orphans,
        unacknowledged_messages_come_again_after_a_reconnect,
        a_flood_while_the_coordinator_is_away_is_thinned_and_counted,
        logs_are_whole_after_a_reconnect,
        a_stop_with_grace_lets_trainers_finish,
        a_deaf_trainer_is_killed_after_the_grace,
        a_trainer_that_hangs_is_killed_and_reported,
        an_older_generation_is_refused_and_the_newer_goes_on,
        a_second_agent_in_the_state_dir_is_refused,
        sigterm_stops_trainers_in_order,
        a_lease_that_is_too_long_is_refused,
        a_trainer_without_an_agent_says_so,
        the_program_ends_with_its_parent,
        the_program_checks_its_settings,
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn run<F: Future<Output = ()>>(test: fn() -> F) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), test()).await })?;
    Ok(())
}

async fn a_generation_lives_from_store_to_stop() {
    let mut lab = Lab::start().await;
    lab.host_store(1).await;
    let ready = lab.wait(|m| if let Message::StoreReady(m) = m { Some(m.clone()) } else { None }).await;
    assert!(ready.error.is_empty() && std::net::TcpStream::connect(&ready.address).is_ok());

    lab.start_ranks("succeed", 1, &[0, 1]).await;
    for rank in [0, 1] {
        let exited = lab.exited(rank).await;
        assert_eq!((exited.kind(), exited.step), (ExitKind::Succeeded, 20), "{}", exited.message);
    }
    assert!(lab.phase(0, Phase::Spawned) && lab.phase(1, Phase::Training));
    let records = lab.records();
    assert_eq!(records.len(), 2 * 21, "twenty steps and one evaluation from each rank");
    assert!(records.iter().all(|record| record.generation == 1));
    lab.wait_log(0, "hello from rank 0 of 2").await;

    lab.stop(1, 0).await;
    lab.stopped(1).await;
    assert!(std::net::TcpStream::connect(&ready.address).is_err(), "its store is closed");
    assert!(lab.connection.hello.held.is_empty());
}

async fn a_killed_trainer_is_seen_within_a_second() {
    let mut lab = Lab::start().await;
    lab.start_ranks("obey", 1, &[0, 1]).await;
    let victim = lab.trainer_pid(1).await;
    let started = Instant::now();
    nix::sys::signal::kill(victim, Signal::SIGKILL).unwrap();
    let exited = lab.exited(1).await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!(exited.kind(), ExitKind::Killed, "{}", exited.message);
    assert!(!lab.is_exited(0), "the other rank goes on");
}

async fn a_crash_names_its_signal() {
    let mut lab = Lab::start().await;
    lab.start_ranks("abort", 1, &[0]).await;
    let exited = lab.exited(0).await;
    assert_eq!(exited.kind(), ExitKind::Crashed);
    assert!(exited.message.contains("SIGABRT") && exited.message.contains("g0001-r000.log"));
}

async fn a_panic_is_a_crash() {
    let mut lab = Lab::start().await;
    lab.start_ranks("panic", 1, &[0]).await;
    let exited = lab.exited(0).await;
    assert_eq!(exited.kind(), ExitKind::Crashed);
    assert!(exited.message.contains("panicked"), "{}", exited.message);
    lab.wait_log(0, "a panic on purpose").await;
}

async fn a_trainer_that_cannot_be_run_is_a_crash() {
    let mut lab = Lab::start_with(&[("TEST_TRAINER", "/nowhere/trainer")]).await;
    lab.start_ranks("succeed", 1, &[0]).await;
    let exited = lab.exited(0).await;
    assert_eq!(exited.kind(), ExitKind::Crashed);
    assert!(exited.message.contains("/nowhere/trainer"), "{}", exited.message);
}

async fn a_kill_takes_the_whole_process_group() {
    let mut lab = Lab::start().await;
    lab.start_ranks("parent", 1, &[0]).await;
    let grandchild = lab.logged_pid(0, "grandchild").await;
    assert!(is_alive(grandchild));
    lab.stop(1, 0).await;
    assert_eq!(lab.exited(0).await.kind(), ExitKind::Stopped);
    lab.stopped(1).await;
    until("the grandchild ends", || !is_alive(grandchild)).await;
}

async fn a_trainers_end_takes_its_children_along() {
    let mut lab = Lab::start().await;
    lab.start_ranks("parent", 1, &[0]).await;
    let grandchild = lab.logged_pid(0, "grandchild").await;
    nix::sys::signal::kill(lab.trainer_pid(0).await, Signal::SIGKILL).unwrap();
    assert_eq!(lab.exited(0).await.kind(), ExitKind::Killed);
    until("the grandchild ends", || !is_alive(grandchild)).await;
}

async fn the_agents_death_leaves_no_orphans() {
    let mut lab = Lab::start().await;
    lab.start_ranks("obey", 1, &[0]).await;
    lab.start_job("other", "deaf", 1, &[0]).await;
    let trainers = [lab.trainer_pid(0).await, lab.pid_of("other", 0).await];
    lab.agent.kill().unwrap();
    lab.agent.wait().unwrap();
    until("both trainers end", || !trainers.iter().any(|pid| is_alive(*pid))).await;
}

async fn unacknowledged_messages_come_again_after_a_reconnect() {
    let mut lab = Lab::start().await;
    lab.connection.acknowledging = false;
    lab.start_ranks("succeed", 1, &[0]).await;
    let exited = lab.exited(0).await;
    let first = lab.connection.lasting();
    assert!(first.len() >= 3, "spawned, training, metrics, exited: {first:?}");

    lab.reconnect().await;
    assert_eq!(lab.connection.hello.held[0].generation, 1);
    assert!(lab.connection.hello.held[0].running_ranks.is_empty());
    assert_eq!(lab.exited(0).await, exited);
    assert_eq!(lab.connection.lasting()[..first.len()], first, "the same, in the same order");

    let last = lab.connection.lasting().last().unwrap().sequence;
    lab.connection.acknowledge(last).await;
    lab.connection.acknowledging = true;
    // The next answer shows that the acknowledgement was taken.
    lab.stop(7, 0).await;
    lab.stopped(7).await;
    lab.reconnect().await;
    lab.stop(8, 0).await;
    lab.stopped(8).await;
    assert!(!lab.is_exited(0), "what was acknowledged does not come again");
}

async fn a_flood_while_the_coordinator_is_away_is_thinned_and_counted() {
    let mut lab = Lab::start().await;
    lab.coordinator.refuse(true);
    lab.start_ranks("flood", 1, &[0]).await;
    let trainer = lab.trainer_pid(0).await;
    lab.connection.drop_stream();
    until("the trainer goes on to its end", || !is_alive(trainer)).await;
    lab.coordinator.refuse(false);
    lab.attached().await;
    assert_eq!(lab.exited(0).await.kind(), ExitKind::Succeeded);

    let (mut steps, mut evaluations) = (Vec::new(), 0);
    for record in lab.all_records() {
        match record.record.unwrap() {
            metric_record::Record::Step(step) => steps.push(step.step),
            metric_record::Record::Evaluation(_) => evaluations += 1,
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(evaluations, 10);
    assert!(steps.is_sorted() && steps.last() == Some(&cast::FLOOD));
    let dropped = lab.dropped_step_records();
    assert!(dropped > 0, "ten thousand do not fit");
    assert_eq!(steps.len() as u64 + dropped, cast::FLOOD);
}

async fn logs_are_whole_after_a_reconnect() {
    let mut lab = Lab::start().await;
    lab.connection.acknowledging = false;
    lab.start_ranks("talk", 1, &[0]).await;
    lab.wait_log(0, "line 100\n").await;
    lab.reconnect().await;
    lab.connection.acknowledging = true;
    assert_eq!(lab.exited(0).await.kind(), ExitKind::Succeeded);
    lab.wait_log(0, "the last line\n").await;
    let file = fs::read(lab.log_file("g0001-r000.log")).unwrap();
    assert!(file.len() > 300_000, "more than the window of bytes in flight");
    assert_eq!(lab.log(0), file);
}

async fn a_stop_with_grace_lets_trainers_finish() {
    let mut lab = Lab::start().await;
    lab.start_ranks("obey", 1, &[0, 1]).await;
    lab.trainer_pid(0).await;
    lab.stop(1, 30_000).await;
    for rank in [0, 1] {
        let exited = lab.exited(rank).await;
        assert_eq!((exited.kind(), exited.message.as_str()), (ExitKind::Stopped, "stopped as asked"));
    }
    lab.stopped(1).await;
}

async fn a_deaf_trainer_is_killed_after_the_grace() {
    let mut lab = Lab::start().await;
    lab.start_ranks("deaf", 1, &[0]).await;
    lab.training(0).await;
    lab.stop(1, 300).await;
    let exited = lab.exited(0).await;
    assert_eq!(exited.kind(), ExitKind::Stopped);
    assert!(exited.message.contains("killed by its agent"), "{}", exited.message);
    lab.stopped(1).await;
}

async fn a_trainer_that_hangs_is_killed_and_reported() {
    let environment = [
        ("ANYBIT_WORKER_COLLECTIVE_TIMEOUT", "1s"),
        ("ANYBIT_WORKER_RENDEZVOUS_TIMEOUT", "2s"),
        ("ANYBIT_WORKER_STALL_TIMEOUT", "2s"),
    ];
    let mut lab = Lab::start_timed(&environment, Duration::from_millis(500)).await;
    // Its start is the coordinator's to judge.
    lab.start_job("meets", "meet", 1, &[0]).await;
    lab.pid_of("meets", 0).await;
    lab.start_ranks("beat", 1, &[0, 1]).await;
    for rank in [0, 1] {
        lab.training(rank).await;
    }
    let victim = lab.trainer_pid(1).await;
    nix::sys::signal::kill(victim, Signal::SIGSTOP).unwrap();
    let exited = lab.exited(1).await;
    assert_eq!(exited.kind(), ExitKind::Crashed);
    assert!(exited.message.contains("no sign of life for 2 s"), "{}", exited.message);
    assert!(!is_alive(victim));

    lab.start_job("lingers", "linger", 1, &[0]).await;
    let exited = lab.exited_of("lingers", 0).await;
    assert_eq!((exited.kind(), exited.message.as_str()), (ExitKind::Succeeded, "trained"));
    assert!(!lab.is_exited(0), "it goes on");
    assert!(!lab.is_exited_of("meets", 0), "it does not train yet");
}

async fn an_older_generation_is_refused_and_the_newer_goes_on() {
    let mut lab = Lab::start().await;
    lab.start_ranks("obey", 2, &[0]).await;
    let running = lab.trainer_pid(0).await;
    lab.start_ranks("obey", 1, &[1]).await;
    let refused = lab.exited(1).await;
    assert_eq!((refused.generation, refused.kind()), (1, ExitKind::Crashed));
    assert!(refused.message.contains("older"), "{}", refused.message);
    assert!(is_alive(running));
}

async fn a_second_agent_in_the_state_dir_is_refused() {
    let lab = Lab::start().await;
    let second = lab.agent_command().stderr(Stdio::piped()).output().unwrap();
    let error = String::from_utf8(second.stderr).unwrap();
    assert!(!second.status.success() && error.contains("in use by another agent"), "{error}");
}

async fn sigterm_stops_trainers_in_order() {
    let mut lab = Lab::start().await;
    lab.start_ranks("obey", 1, &[0]).await;
    lab.training(0).await;
    lab.signal_agent(Signal::SIGTERM);
    let exited = lab.exited(0).await;
    assert_eq!((exited.kind(), exited.message.as_str()), (ExitKind::Stopped, "stopped as asked"));
    let status = lab.agent_ended().await;
    assert!(status.success(), "{status}");
}

async fn a_lease_that_is_too_long_is_refused() {
    let mut lab = Lab::start_under_lease(Duration::from_secs(60)).await;
    let status = lab.agent_ended().await;
    assert_eq!((status.code(), status.signal()), (Some(1), None));
    assert!(lab.agent_log().contains("lease"), "{}", lab.agent_log());
}

async fn a_trainer_without_an_agent_says_so() {
    let stray = Command::new("/proc/self/exe").arg("as-stray").stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8(stray.stdout).unwrap();
    assert!(error.contains("not an agent's socket"), "{error}");
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_anybit-worker"))
}

async fn the_program_ends_with_its_parent() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "{} agent --coordinator http://127.0.0.1:9 --worker-id w --state-dir {1} --checkpoint-root {1} \
         --exit-with-parent 2>/dev/null & wait",
        env!("CARGO_BIN_EXE_anybit-worker"),
        folder.path().display()
    );
    let mut parent = Command::new("sh").arg("-c").arg(script).spawn().unwrap();
    let lock = folder.path().join("lock");
    let mut agent = None;
    until("the agent holds its folder", || {
        agent = fs::read_to_string(&lock).ok().and_then(|pid| pid.trim().parse().ok());
        agent.is_some()
    })
    .await;
    let agent = nix::unistd::Pid::from_raw(agent.unwrap());
    assert!(is_alive(agent));
    parent.kill().unwrap();
    parent.wait().unwrap();
    until("the agent ends", || !is_alive(agent)).await;
}

async fn the_program_checks_its_settings() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("agent.toml");
    let write = |text: &str| fs::write(&config, text).unwrap();
    let check = |config: &Path, environment: &[(&str, &str)]| {
        let mut command = program();
        command.args(["agent", "--check-config", "--worker-id", "w7", "--config"]).arg(config);
        let output = command.envs(environment.iter().copied()).output().unwrap();
        let text = String::from_utf8(if output.status.success() { output.stdout } else { output.stderr });
        (output.status.success(), text.unwrap())
    };
    write("coordinator = \"http://localhost:1\"\nstate_dir = \"/s\"\ncheckpoint_root = \"/c\"\nslots = 2\n");
    let (ok, text) = check(&config, &[("ANYBIT_WORKER_SLOTS", "3")]);
    assert!(ok && text.contains("slots = 3") && text.contains("worker_id = \"w7\""), "{text}");
    let (ok, text) = check(&config, &[("ANYBIT_WORKER_COORDINATOR", "http://10.1.2.3:1")]);
    assert!(!ok && text.contains("--insecure"), "{text}");
    write("slot = 2\n");
    let (ok, text) = check(&config, &[]);
    assert!(!ok && text.contains("slots"), "{text}");
}
