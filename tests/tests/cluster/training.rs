//! A job that goes well, as seen from everywhere.

use std::path::Path;

use anybit_tests::{Cluster, JobState, LONG, Spec, checkpoint, until};
use serde_json::Value;

const EPOCHS: i64 = 3;
/// 1,437 images an epoch in batches of 64.
const STEPS: u64 = (1437 * EPOCHS as u64).div_ceil(64);

#[test]
fn the_digits_train_on_two_workers_and_everyone_tells_the_same() {
    let cluster = Cluster::start(2, 1);
    let job = cluster.submit(&Spec::preset("digits").set("train.epochs", EPOCHS));
    let ended = cluster.wait(&job, JobState::Succeeded);

    assert_eq!((ended.generation, ended.restarts, ended.dropped_step_records), (1, 0, 0));
    let placed: Vec<_> = ended.ranks.iter().map(|place| (place.rank, place.worker_id.as_str())).collect();
    assert_eq!(placed, [(0, "worker-1"), (1, "worker-2")]);
    let progress = ended.progress.expect("progress");
    assert_eq!((progress.step, progress.total_steps, progress.skipped_steps), (STEPS, STEPS, 0));

    cluster.assert_every_step_once(&job, STEPS);
    let steps = cluster.api.steps(&job);
    for (_, step) in &steps {
        let bits: Vec<_> = step.widths.iter().map(|width| width.bits).collect();
        assert_eq!(bits, [1, 2, 4, 8, 32]);
        assert!(step.widths.iter().all(|width| width.loss.is_finite()) && step.gradient_norm > 0.0);
    }
    let evaluations = cluster.api.evaluations(&job);
    assert_eq!(evaluations.len(), EPOCHS as usize);
    for evaluation in &evaluations {
        assert_eq!((evaluation.samples, evaluation.widths.len()), (360, 5));
    }
    // Three epochs teach some width something: a tenth is chance.
    let last = evaluations.last().expect("evaluations");
    assert!(last.widths.iter().any(|width| width.top1 > 50.0), "{last:?}");

    for rank in [0, 1] {
        let worker = rank as usize + 1;
        until("the coordinator has the whole log", LONG, || {
            let kept = cluster.log_at_coordinator(&job, 1, rank);
            !kept.is_empty() && kept == cluster.log_at_worker(worker, &job, 1, rank)
        });
        let log = cluster.api.log(&job, 1, rank);
        assert!(log.contains("training begins"), "{log}");
    }

    let listed = cluster.api.checkpoints(&job);
    let newest = &listed[0];
    assert_eq!((newest.step, newest.generation), (STEPS, 1));
    assert_eq!(checkpoint::verify(Path::new(&newest.path)), newest.manifest_sha256);
    assert_eq!(ended.checkpoint.as_ref(), Some(newest));

    the_cli_agrees(&cluster, &job, &steps, &last.widths);
}

#[test]
fn one_rank_trains_as_three_do() {
    let cluster = Cluster::start(1, 3);
    let losses = |ranks: i64| -> Vec<f64> {
        let job = cluster.submit(&Spec::tiny("ranks").ranks(ranks).steps(6));
        cluster.wait(&job, JobState::Succeeded);
        cluster.api.steps(&job).iter().map(|(_, step)| step.joint_loss).collect()
    };
    let (one, three) = (losses(1), losses(3));
    assert_eq!((one.len(), three.len()), (6, 6));
    // Single precision: the ranks' sums are added in another order.
    assert!(one.iter().zip(&three).all(|(a, b)| (a - b).abs() < 1e-3 * a), "{one:?}, {three:?}");
}

fn the_cli_agrees(
    cluster: &Cluster,
    job: &str,
    steps: &[(u32, anybit_proto::v1::StepMetrics)],
    widths: &[anybit_proto::v1::WidthMetrics],
) {
    let jobs = cluster.people(&["jobs"]);
    let jobs = jobs[0].as_array().expect("a list");
    assert_eq!((jobs.len(), &jobs[0]["id"], &jobs[0]["state"]), (1, &job.into(), &"succeeded".into()));

    // A beginning of the id is enough.
    let page = &cluster.people(&["job", &job[..job.len() - 1]])[0];
    assert_eq!(page["id"], job);
    assert_eq!(page["progress"]["step"], STEPS);
    let figures: Vec<_> = page["evaluation"]["widths"].as_array().expect("widths").iter().collect();
    assert_eq!(figures.len(), widths.len());
    for (told, width) in figures.iter().zip(widths) {
        assert_eq!(told["bits"], width.bits);
        assert!(same(&told["top1"], width.top1) && same(&told["loss"], width.loss), "{told}, {width:?}");
    }

    let records = cluster.people(&["metrics", job]);
    let of_kind = |kind: &str| records.iter().filter(|record| record["kind"] == kind).collect::<Vec<_>>();
    let told = of_kind("step");
    assert_eq!(told.len(), steps.len());
    for (_, step) in steps {
        let same = |told: &&&Value| told["step"] == step.step && same(&told["joint_loss"], step.joint_loss);
        assert!(
            told.iter().any(|told| same(&told)),
            "step {} with joint loss {}",
            step.step,
            step.joint_loss
        );
    }
    assert_eq!(of_kind("evaluation").len(), EPOCHS as usize);
    assert!(!of_kind("checkpoint").is_empty());

    let lines = cluster.people(&["logs", job, "--rank", "1"]);
    let text: Vec<_> = lines.iter().filter_map(|line| line["text"].as_str()).collect();
    assert!(text.iter().any(|line| line.contains("training begins")), "{lines:?}");

    let workers = cluster.people(&["workers"]);
    let mut names: Vec<_> = workers[0].as_array().expect("a list").iter().collect();
    names.sort_by_key(|worker| worker["id"].to_string());
    let told: Vec<_> = names.iter().map(|worker| (&worker["id"], &worker["alive"])).collect();
    let alive = Value::Bool(true);
    assert_eq!(told, [(&"worker-1".into(), &alive), (&"worker-2".into(), &alive)]);
}

/// serde_json reads numbers to within an ulp.
fn same(told: &Value, stored: f64) -> bool {
    told.as_f64().is_some_and(|told| (told - stored).abs() <= 1e-14 * stored.abs())
}
