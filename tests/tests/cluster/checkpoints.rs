//! A damaged checkpoint.

use anybit_tests::{Cluster, JobState, Spec, checkpoint};

const STEPS: u64 = 160;

#[test]
fn a_damaged_checkpoint_is_passed_over_and_the_result_is_the_undisturbed_one() {
    let cluster = Cluster::start(3, 1);
    // Three: a mean over ranks is exact in binary only for powers of two.
    let spec = Spec::tiny("damaged").ranks(3).steps(STEPS as i64);
    let undisturbed = cluster.submit(&spec);
    cluster.wait(&undisturbed, JobState::Succeeded);

    let job = cluster.submit(&spec);
    cluster.until_checkpoint(&job, 60);
    cluster.freeze(&job);
    let on_disk = cluster.checkpoints_on_disk(&job);
    let [.., older, newest] = &on_disk[..] else { panic!("two checkpoints at least: {on_disk:?}") };
    checkpoint::damage(&newest.path);
    cluster.kill_trainer(&job, 0);
    let ended = cluster.wait(&job, JobState::Succeeded);

    assert_eq!((ended.generation, ended.restarts), (2, 1));
    let log = cluster.api.log(&job, 2, 0);
    let warned = log.lines().find(|line| line.contains("damaged checkpoint")).expect("a warning");
    assert!(warned.contains(newest.path.to_str().expect("UTF-8")), "{warned}");
    let again = cluster.api.steps(&job).into_iter().filter(|(generation, _)| *generation == 2);
    assert_eq!(again.map(|(_, step)| step.step).min(), Some(older.step + 1));
    cluster.assert_every_step_once(&job, STEPS);
    cluster.assert_same_result(&job, &undisturbed);
}
