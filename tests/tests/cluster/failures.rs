//! Jobs that no restart can help.

use anybit_tests::{Cluster, JobState, Spec};

#[test]
fn a_data_path_that_is_not_there_fails_the_job_at_once() {
    let cluster = Cluster::start(2, 1);
    let job = cluster.submit(&Spec::tiny("no-data").ranks(2).set("data.path", "nowhere"));
    let ended = cluster.wait_failed(&job);
    assert_eq!((ended.restarts, ended.generation), (0, 1));
    assert!(ended.reason.contains("data.path") && ended.reason.contains("nowhere"), "{}", ended.reason);
    cluster.until_no_trainers();
}

#[test]
fn running_out_of_memory_fails_the_job_and_says_so() {
    let cluster = Cluster::builder(1, 1).agent_flag("--memory-limit-mib", "1000").start();
    let spec = Spec::tiny("memory").set("model", toml::Table::new()).set("model.name", "cnn8");
    let spec = spec.set("model.bits", vec![1, 32]).set("model.classes", 4).set("data.image_size", 40);
    let enough = cluster.submit(&spec.clone().steps(3));
    cluster.wait(&enough, JobState::Succeeded);

    let job = cluster.submit(&spec.set("train.batch", 8192).set("train.group", 8192));
    let ended = cluster.wait_failed(&job);
    assert_eq!((ended.restarts, ended.generation), (0, 1), "{}", ended.reason);
    assert!(ended.reason.contains("out of memory"), "{}", ended.reason);
    cluster.until_no_trainers();
}

#[test]
fn figures_that_are_not_finite_fail_the_job_and_name_the_widths_and_the_limit() {
    let cluster = Cluster::start(2, 1);
    let spec = Spec::tiny("not-finite").ranks(2).set("train.learning_rate", 1000.0);
    let spec = spec.set("train.weight_decay", 1.0).set("train.max_skipped_steps", 5);
    let job = cluster.submit(&spec);
    let ended = cluster.wait_failed(&job);
    assert_eq!((ended.restarts, ended.generation), (0, 1), "{}", ended.reason);
    assert!(ended.reason.contains("train.max_skipped_steps"), "{}", ended.reason);
    let skipped: Vec<_> = cluster.api.steps(&job).into_iter().filter_map(|(_, step)| step.skipped).collect();
    let last = skipped.iter().max_by_key(|skipped| skipped.total).expect("skipped steps");
    assert_eq!((last.consecutive, ended.progress.expect("progress").skipped_steps), (5, last.total));
    assert!(last.bits.contains(&32), "{last:?}");
    assert!(last.bits.iter().all(|bits| ended.reason.contains(&bits.to_string())), "{}", ended.reason);
}
