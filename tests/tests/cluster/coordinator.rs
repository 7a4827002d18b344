//! The coordinator killed in the middle.

use anybit_tests::{Cluster, JobState, LONG, Spec, until};

const STEPS: u64 = 480;

#[test]
fn training_goes_on_without_the_coordinator_and_nothing_is_missing_afterwards() {
    let mut cluster = Cluster::start(2, 1);
    let job = cluster.submit(&Spec::tiny("no-coordinator").ranks(2).steps(STEPS as i64));
    cluster.at_step(&job, 40);
    let before = cluster.trainers(&job);
    assert_eq!(before.len(), 2);
    cluster.kill_coordinator();
    let then = cluster.checkpoints_on_disk(&job).pop().map_or(0, |newest| newest.step);
    cluster.until_checkpoint(&job, then + 60);
    assert_eq!(cluster.trainers(&job), before, "trainers were started anew while nobody asked");
    cluster.restart_coordinator();
    let known = cluster.api.job(&job);
    assert_eq!((known.state(), known.generation), (JobState::Running, 1));
    cluster.at_step(&job, then + 80);
    assert_eq!(cluster.trainers(&job), before, "trainers were started anew");

    let ended = cluster.wait(&job, JobState::Succeeded);
    assert_eq!((ended.generation, ended.restarts, ended.dropped_step_records), (1, 0, 0));
    cluster.assert_every_step_once(&job, STEPS);
    // 96 images in batches of 12: 8 steps an epoch, and an evaluation every 20 epochs.
    let mut evaluated: Vec<u64> = cluster.api.evaluations(&job).iter().map(|e| e.step).collect();
    evaluated.sort_unstable();
    assert_eq!(evaluated, [160, 320, 480]);
    for rank in [0, 1] {
        let worker = rank as usize + 1;
        until("the coordinator has the whole log", LONG, || {
            let kept = cluster.log_at_coordinator(&job, 1, rank);
            !kept.is_empty() && kept == cluster.log_at_worker(worker, &job, 1, rank)
        });
    }
}
