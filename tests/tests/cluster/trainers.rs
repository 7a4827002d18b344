//! Trainers killed in the middle.

use std::time::{Duration, Instant};

use anybit_proto::v1::metric_record::Record;
use anybit_tests::{Cluster, JobState, Spec};

const STEPS: u64 = 240;

#[test]
fn a_lost_trainer_is_noticed_at_once_and_the_result_is_the_undisturbed_one() {
    let cluster = Cluster::builder(2, 1).alone().start();
    let spec = Spec::tiny("lost-trainer").ranks(2).steps(STEPS as i64);
    let undisturbed = cluster.submit(&spec);
    cluster.wait(&undisturbed, JobState::Succeeded);

    let job = cluster.submit(&spec);
    let (states, records) = (cluster.api.watch(&job), cluster.api.follow(&job));
    cluster.at_step(&job, STEPS / 2);
    let killed = Instant::now();
    cluster.kill_trainer(&job, 1);
    let (seen, state) =
        states.first("the loss is reported", |now| now.generation > 1 || now.state() == JobState::Stopping);
    let (training, _) = records.first("the second generation trains", |record| {
        record.generation == 2 && matches!(record.record, Some(Record::Step(_)))
    });
    let ended = cluster.wait(&job, JobState::Succeeded);

    let (seen, training) = (seen - killed, training - killed);
    println!("lost trainer: seen after {seen:.3?} ({}), training again after {training:.3?}", state.reason);
    assert!(seen < Duration::from_secs(5), "seen after {seen:?}");
    assert!(training < Duration::from_secs(30), "training again after {training:?}");
    assert!(state.reason.contains("rank 1") && state.reason.contains("SIGKILL"), "{}", state.reason);
    assert_eq!((ended.restarts, ended.generation), (1, 2));
    cluster.assert_every_step_once(&job, STEPS);
    assert!(cluster.api.steps(&job).iter().any(|(generation, _)| *generation == 1), "nothing was kept");
    assert_eq!(cluster.final_weights(&job).0, STEPS);
    cluster.assert_same_result(&job, &undisturbed);
}

#[test]
fn past_the_restart_limit_the_job_fails_and_names_it() {
    let cluster = Cluster::start(2, 1);
    let spec = Spec::tiny("restart-limit").ranks(2).steps(100_000).set("resources.max_restarts", 1);
    let job = cluster.submit(&spec);
    cluster.at_step(&job, 20);
    cluster.kill_trainer(&job, 0);
    cluster.in_generation(&job, 2);
    cluster.kill_trainer(&job, 1);
    let ended = cluster.wait(&job, JobState::Failed);
    assert_eq!((ended.restarts, ended.generation), (1, 2));
    assert!(ended.reason.contains("resources.max_restarts"), "{}", ended.reason);
    cluster.until_no_trainers();
}
