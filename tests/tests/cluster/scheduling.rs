//! Who waits, who goes first, who is stopped.

use anybit_tests::{Cluster, JobState, Spec, checkpoint};

#[test]
fn a_cancelled_job_saves_its_last_step_and_leaves_no_process() {
    let cluster = Cluster::start(2, 1);
    let spec = Spec::tiny("cancelled").ranks(2).steps(100_000).set("checkpoint.every_steps", 0);
    let job = cluster.submit(&spec);
    cluster.at_step(&job, 30);
    cluster.api.cancel(&job);
    let ended = cluster.wait(&job, JobState::Cancelled);
    cluster.until_no_trainers();
    assert_eq!((ended.generation, ended.restarts), (1, 0));
    let saved = ended.checkpoint.expect("a checkpoint");
    assert_eq!(saved.step, ended.progress.expect("progress").step, "the last step is the one that is saved");
    assert!(saved.step >= 30);
    assert_eq!(checkpoint::verify(saved.path.as_ref()), saved.manifest_sha256);
    cluster.assert_every_step_once(&job, saved.step);
}

#[test]
fn a_wide_job_waits_for_a_worker_and_priority_goes_before_age() {
    let mut cluster = Cluster::start(2, 1);
    let wide = cluster.submit(&Spec::tiny("wide").ranks(3).steps(10));
    let waiting = cluster.until_job(&wide, "says why it waits", |now| now.reason.contains("3 ranks"));
    assert_eq!((waiting.state(), waiting.generation), (JobState::Queued, 0), "{}", waiting.reason);

    let first = cluster.submit(&Spec::tiny("first").ranks(2).steps(100_000));
    cluster.at_step(&first, 1);
    let low = cluster.submit(&Spec::tiny("low").ranks(2).steps(10));
    let high = cluster.submit(&Spec::tiny("high").ranks(2).steps(10).set("resources.priority", 5));
    let waiting = cluster.until_job(&low, "waits behind", |now| now.reason.contains(&high));
    assert_eq!(waiting.state(), JobState::Queued);
    cluster.api.cancel(&first);
    cluster.wait(&first, JobState::Cancelled);
    let low = cluster.wait(&low, JobState::Succeeded);
    let high = cluster.wait(&high, JobState::Succeeded);
    assert!(high.ended_unix_ms <= low.started_unix_ms, "high must end before low starts: {high:?}, {low:?}");

    assert_eq!(cluster.api.job(&wide).state(), JobState::Queued);
    cluster.add_agent();
    let ended = cluster.wait(&wide, JobState::Succeeded);
    assert_eq!((ended.generation, ended.ranks.len()), (1, 3));
}
