//! The largest network, through a loss.

use std::time::Instant;

use anybit_tests::dataset::{self, Shape};
use anybit_tests::{Cluster, JobState, Spec};

const STEPS: u64 = 12;

#[test]
fn resnet50_on_three_agents_ends_with_the_same_bits_after_a_lost_trainer() {
    let cluster = Cluster::builder(3, 1).alone().start();
    let shape = Shape { side: 64, classes: 20, train: 200, test: 20 };
    dataset::write(&cluster.data_root().join("small"), shape);
    let spec = Spec::tiny("resnet50")
        .set("model", toml::Table::new())
        .set("model.name", "resnet50")
        .set("model.bits", vec![1, 2, 4, 8, 32])
        .set("model.classes", 20)
        .set("train.batch", 6)
        .set("train.group", 2)
        .set("train.precision", "float32")
        .set("data.path", "small")
        .set("data.image_size", 64)
        .set("checkpoint.every_steps", 4)
        .steps(STEPS as i64)
        .ranks(3);
    let start = Instant::now();
    let undisturbed = cluster.submit(&spec);
    cluster.wait(&undisturbed, JobState::Succeeded);
    let undisturbed_took = start.elapsed();

    let start = Instant::now();
    let job = cluster.submit(&spec);
    cluster.at_step(&job, STEPS / 2);
    cluster.kill_trainer(&job, 1);
    let ended = cluster.wait(&job, JobState::Succeeded);
    println!("resnet50: undisturbed {undisturbed_took:.1?}, through a loss {:.1?}", start.elapsed());

    assert_eq!((ended.generation, ended.restarts), (2, 1));
    cluster.assert_every_step_once(&job, STEPS);
    assert_eq!(cluster.final_weights(&job).0, STEPS);
    cluster.assert_same_result(&job, &undisturbed);
}
