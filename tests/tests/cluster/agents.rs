//! Agents killed, and asked to end.

use std::time::Duration;

use anybit_tests::{Cluster, JobState, LONG, Spec, until};

const STEPS: u64 = 240;

#[test]
fn a_killed_agent_leaves_no_orphans_and_the_job_goes_on_elsewhere() {
    let mut cluster = Cluster::start(3, 1);
    let job = cluster.submit(&Spec::tiny("killed-agent").ranks(2).steps(STEPS as i64));
    cluster.at_step(&job, 50);
    assert_eq!(cluster.trainers_of_agent(1).len(), 1, "worker-1 holds rank 0");
    cluster.kill_agent(1);
    until("its trainers are gone", Duration::from_secs(5), || cluster.trainers_of_agent(1).is_empty());

    let ended = cluster.wait(&job, JobState::Succeeded);
    assert_eq!((ended.restarts, ended.generation), (1, 2));
    let workers: Vec<_> = ended.ranks.iter().map(|place| place.worker_id.as_str()).collect();
    assert!(!workers.contains(&"worker-1"), "{workers:?}");
    cluster.assert_every_step_once(&job, STEPS);
    let lost = cluster.api.workers().into_iter().find(|worker| worker.id == "worker-1");
    assert!(lost.is_none_or(|worker| !worker.alive), "worker-1 is dead");
}

#[test]
fn an_agent_asked_to_end_saves_its_work_and_the_job_goes_on_elsewhere() {
    let mut cluster = Cluster::start(3, 1);
    // No checkpoint but the one that is written on request.
    let spec = Spec::tiny("drained").ranks(2).steps(STEPS as i64).set("checkpoint.every_steps", 0);
    let job = cluster.submit(&spec);
    cluster.at_step(&job, 50);
    cluster.terminate_agent(1);
    let status = cluster.agent(1).ended(LONG);
    assert!(status.success(), "{status}");
    assert!(cluster.trainers_of_agent(1).is_empty(), "it left trainers behind");
    let saved = cluster.until_checkpoint(&job, 50);
    assert_eq!(saved.generation, 1);

    let ended = cluster.wait(&job, JobState::Succeeded);
    assert_eq!(ended.generation, 2);
    let again: Vec<u64> = cluster
        .api
        .steps(&job)
        .iter()
        .filter(|(generation, _)| *generation == 2)
        .map(|(_, s)| s.step)
        .collect();
    assert_eq!(again.iter().min(), Some(&(saved.step + 1)), "no step was lost, none was repeated");
    cluster.assert_every_step_once(&job, STEPS);
}
