//! The guarantees, as tests over any store. Another implementation adds its own `Backend`.

use std::time::Instant;

use anybit_shared::ids::{BitWidth, GlobalStep, Rank, WorkerId, WorkerIncarnation};
use tempfile::TempDir;

use super::*;
use crate::job::{EndKind, Ending, Intent, JobInfo, Phase, Place, Progress, Run};

/// A store that can be closed and opened again.
#[async_trait]
trait Backend {
    async fn open(&self) -> Box<dyn Store>;
}

struct Sqlite(TempDir);

#[async_trait]
impl Backend for Sqlite {
    async fn open(&self) -> Box<dyn Store> {
        Box::new(SqliteStore::open(&self.0.path().join("store.db")).await.unwrap())
    }
}

macro_rules! suite {
    ($($test:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $test() {
                super::$test(&super::Sqlite(tempfile::tempdir().unwrap())).await;
            })+
        }
    };
}

suite![
    a_job_is_read_back_after_reopening,
    a_key_makes_one_job,
    lists_are_paged_newest_first,
    prefixes_find_ids,
    the_later_generation_wins_a_step,
    a_record_sent_twice_changes_nothing,
    readers_follow_by_revision,
    figures_are_the_newest,
    checkpoints_of_every_generation_are_listed,
    records_of_no_job_are_refused_whole,
];

fn now() -> Now {
    Now { unix_ms: 7, at: Instant::now() }
}

fn id(text: &str) -> JobId {
    JobId::new(text).unwrap()
}

pub(super) fn job(name: &str) -> Job {
    Job::new(JobInfo {
        id: id(name),
        name: "digits".to_owned(),
        spec_toml: "name = \"digits\"".to_owned(),
        world_size: 1,
        priority: -3,
        max_restarts: 5,
        bits: [1, 32].map(|bits| BitWidth::new(bits).unwrap()).to_vec(),
        created_unix_ms: 42,
    })
}

fn running(name: &str) -> Job {
    let incarnation = WorkerIncarnation::new("life").unwrap();
    let run = Run {
        generation: Generation(1),
        places: vec![Place { worker: WorkerId::new("w0").unwrap(), incarnation }],
        phases: vec![Phase::Training],
        store_address: Some("h:1".to_owned()),
        endings: vec![Ending { rank: Some(Rank(0)), kind: EndKind::Killed, message: "9".to_owned() }],
        stopped: [WorkerId::new("w0").unwrap()].into(),
        progress: Progress::None(Some(GlobalStep(3))),
        start_deadline: None,
        resend_stop: None,
        doubts: Default::default(),
    };
    Job {
        state: JobState::Running,
        reason: "trains".to_owned(),
        intent: Intent::Cancel,
        generation: Generation(1),
        restarts: 2,
        fruitless: 1,
        last_cause: Some("rank 0 was killed".to_owned()),
        started_unix_ms: Some(50),
        run: Some(run),
        ..job(name)
    }
}

fn row(kind: MetricKind, ordinal: u64, generation: u32, payload: &str) -> MetricRow {
    MetricRow { kind, ordinal, generation: Generation(generation), payload: payload.as_bytes().into() }
}

fn batch(rows: Vec<MetricRow>) -> MetricBatch {
    MetricBatch { job: id("a"), rows, dropped_step_records: 0, delivery: None }
}

async fn read(store: &dyn Store, after: u64, filter: MetricFilter) -> Vec<(u64, String)> {
    let stored = store.metrics_after(&id("a"), after, filter, 100).await.unwrap();
    stored.into_iter().map(|m| (m.revision, String::from_utf8(m.payload).unwrap())).collect()
}

async fn a_job_is_read_back_after_reopening(backend: &dyn Backend) {
    let store = backend.open().await;
    assert_eq!(store.submit(&job("a"), None).await.unwrap(), Submission::Created);
    let reason = "every rank trains".to_owned();
    let path = [Step { from: JobState::Starting, to: JobState::Running, reason }];
    store.commit(&running("a"), &path, now()).await.unwrap();
    store.submit(&job("b"), None).await.unwrap();
    let ended = Job { state: JobState::Cancelled, ended_unix_ms: Some(9), ..job("b") };
    store.commit(&ended, &[], now()).await.unwrap();
    store.close().await;

    let store = backend.open().await;
    assert_eq!(store.job(&id("a")).await.unwrap(), Some(running("a")));
    assert_eq!(store.job(&id("b")).await.unwrap(), Some(ended));
    assert_eq!(store.job(&id("c")).await.unwrap(), None);
    assert_eq!(store.unfinished().await.unwrap(), [running("a")]);
    assert_eq!(store.history(&id("a")).await.unwrap(), path);
}

async fn a_key_makes_one_job(backend: &dyn Backend) {
    let store = backend.open().await;
    assert_eq!(store.submitted(&job("a"), "key").await.unwrap(), None);
    store.submit(&job("a"), Some("key")).await.unwrap();
    assert_eq!(store.submitted(&job("b"), "key").await.unwrap(), Some(Submission::Existing(id("a"))));
    assert_eq!(store.submit(&job("b"), Some("key")).await.unwrap(), Submission::Existing(id("a")));
    let mut other = job("c");
    Arc::make_mut(&mut other.info).spec_toml = "name = \"other\"".to_owned();
    assert_eq!(store.submit(&other, Some("key")).await.unwrap(), Submission::KeyTaken(id("a")));
    assert_eq!(store.submitted(&other, "key").await.unwrap(), Some(Submission::KeyTaken(id("a"))));
    assert_eq!(store.submit(&job("d"), None).await.unwrap(), Submission::Created);
    assert_eq!(store.list(&[], None, 10).await.unwrap().len(), 2);
}

async fn lists_are_paged_newest_first(backend: &dyn Backend) {
    let store = backend.open().await;
    for name in ["a", "b", "c", "d"] {
        store.submit(&job(name), None).await.unwrap();
    }
    store.commit(&running("b"), &[], now()).await.unwrap();
    let ids = |jobs: Vec<Job>| jobs.iter().map(|job| job.info.id.to_string()).collect::<Vec<_>>();
    assert_eq!(ids(store.list(&[], None, 3).await.unwrap()), ["d", "c", "b"]);
    assert_eq!(ids(store.list(&[], Some(&id("b")), 3).await.unwrap()), ["a"]);
    assert_eq!(ids(store.list(&[JobState::Running], None, 3).await.unwrap()), ["b"]);
    let two = [JobState::Queued, JobState::Failed];
    assert_eq!(ids(store.list(&two, None, 9).await.unwrap()), ["d", "c", "a"]);
}

async fn prefixes_find_ids(backend: &dyn Backend) {
    let store = backend.open().await;
    for name in ["ab1", "ab2", "ac"] {
        store.submit(&job(name), None).await.unwrap();
    }
    assert_eq!(store.ids_with_prefix("ab", 2).await.unwrap(), [id("ab1"), id("ab2")]);
    assert_eq!(store.ids_with_prefix("ac", 2).await.unwrap(), [id("ac")]);
    assert_eq!(store.ids_with_prefix("ad", 2).await.unwrap(), []);
    assert_eq!(store.ids_with_prefix("a%", 2).await.unwrap(), []);
}

async fn the_later_generation_wins_a_step(backend: &dyn Backend) {
    let store = backend.open().await;
    store.submit(&job("a"), None).await.unwrap();
    let step = |ordinal, generation, text| row(MetricKind::Step, ordinal, generation, text);
    store.put_metrics(&batch(vec![step(1, 1, "1 of g1"), step(2, 1, "2 of g1")])).await.unwrap();
    store.put_metrics(&batch(vec![step(2, 2, "2 of g2")])).await.unwrap();
    store.put_metrics(&batch(vec![step(2, 1, "2 of g1, late")])).await.unwrap();
    let got = read(&*store, 0, MetricFilter::All).await;
    assert_eq!(got, [(1, "1 of g1".to_owned()), (3, "2 of g2".to_owned())]);
}

async fn a_record_sent_twice_changes_nothing(backend: &dyn Backend) {
    let store = backend.open().await;
    store.submit(&job("a"), None).await.unwrap();
    let delivery = Delivery { incarnation: WorkerIncarnation::new("life").unwrap(), sequence: 5 };
    let rows = vec![row(MetricKind::Evaluation, 1, 1, "e")];
    let sent = MetricBatch { dropped_step_records: 3, delivery: Some(delivery.clone()), ..batch(rows) };
    let first = store.put_metrics(&sent).await.unwrap();
    store.close().await;
    let store = backend.open().await;
    assert_eq!(store.put_metrics(&sent).await.unwrap(), first);
    assert_eq!(store.figures(&id("a")).await.unwrap().dropped_step_records, 3);
    let next = MetricBatch {
        dropped_step_records: 2,
        delivery: Some(Delivery { sequence: 6, ..delivery }),
        ..batch(vec![])
    };
    store.put_metrics(&next).await.unwrap();
    assert_eq!(store.figures(&id("a")).await.unwrap().dropped_step_records, 5);
}

async fn readers_follow_by_revision(backend: &dyn Backend) {
    let store = backend.open().await;
    store.submit(&job("a"), None).await.unwrap();
    store.submit(&job("b"), None).await.unwrap();
    let rows = vec![row(MetricKind::Step, 1, 1, "s"), row(MetricKind::Evaluation, 1, 1, "e")];
    assert_eq!(store.put_metrics(&batch(rows.clone())).await.unwrap(), 2);
    let other = MetricBatch { job: id("b"), ..batch(rows) };
    assert_eq!(store.put_metrics(&other).await.unwrap(), 4);
    let skipped = vec![row(MetricKind::Skipped, 1, 1, "k"), row(MetricKind::Checkpoint, 1, 1, "c")];
    store.put_metrics(&batch(skipped)).await.unwrap();
    let revisions = |got: Vec<(u64, String)>| got.iter().map(|(r, _)| *r).collect::<Vec<_>>();
    assert_eq!(revisions(read(&*store, 0, MetricFilter::All).await), [1, 2, 5, 6]);
    assert_eq!(revisions(read(&*store, 2, MetricFilter::All).await), [5, 6]);
    assert_eq!(revisions(read(&*store, 0, MetricFilter::NoSteps).await), [2, 6]);
    assert!(read(&*store, u64::MAX, MetricFilter::All).await.is_empty());
    assert_eq!(store.metrics_after(&id("a"), 0, MetricFilter::All, 2).await.unwrap().len(), 2);
}

async fn figures_are_the_newest(backend: &dyn Backend) {
    let store = backend.open().await;
    store.submit(&job("a"), None).await.unwrap();
    assert_eq!(store.figures(&id("a")).await.unwrap(), Figures::default());
    let rows = vec![
        row(MetricKind::Step, 7, 1, "step 7"),
        row(MetricKind::Skipped, 4, 1, "skip"),
        row(MetricKind::Evaluation, 5, 1, "evaluation"),
        row(MetricKind::Checkpoint, 6, 1, "checkpoint of g1"),
    ];
    store.put_metrics(&batch(rows)).await.unwrap();
    let rows = vec![row(MetricKind::Step, 3, 2, "step 3"), row(MetricKind::Checkpoint, 3, 2, "of g2")];
    store.put_metrics(&batch(rows)).await.unwrap();
    let late = vec![row(MetricKind::Evaluation, 9, 0, "evaluation of g0, late")];
    store.put_metrics(&batch(late)).await.unwrap();
    let figures = store.figures(&id("a")).await.unwrap();
    let text = |payload: &Option<Arc<[u8]>>| String::from_utf8(payload.clone().unwrap().to_vec()).unwrap();
    assert_eq!(text(&figures.step), "step 3", "the last one stored, though its step is lower");
    assert_eq!(text(&figures.evaluation), "evaluation");
    assert_eq!(text(&figures.checkpoint), "of g2");
    assert_eq!((figures.skipped_steps, figures.revision), (4, 7));
}

async fn checkpoints_of_every_generation_are_listed(backend: &dyn Backend) {
    let store = backend.open().await;
    store.submit(&job("a"), None).await.unwrap();
    for (step, generation, text) in [(5, 1, "5 of g1"), (5, 2, "5 of g2"), (3, 2, "3 of g2"), (9, 1, "late")]
    {
        store.put_metrics(&batch(vec![row(MetricKind::Checkpoint, step, generation, text)])).await.unwrap();
    }
    for (limit, expected) in
        [(9, &["5 of g2", "3 of g2", "late", "5 of g1"][..]), (2, &["5 of g2", "3 of g2"])]
    {
        let listed = store.checkpoints(&id("a"), limit).await.unwrap();
        let listed: Vec<_> = listed.into_iter().map(|payload| String::from_utf8(payload).unwrap()).collect();
        assert_eq!(listed, expected);
    }
}

async fn records_of_no_job_are_refused_whole(backend: &dyn Backend) {
    let store = backend.open().await;
    store.submit(&job("a"), None).await.unwrap();
    let rows = vec![row(MetricKind::Step, 1, 1, "s"), row(MetricKind::Step, u64::MAX, 1, "s")];
    assert!(store.put_metrics(&batch(rows.clone())).await.is_err());
    assert!(store.put_metrics(&MetricBatch { job: id("zz"), ..batch(rows[..1].to_vec()) }).await.is_err());
    assert_eq!(read(&*store, 0, MetricFilter::All).await, []);
    assert_eq!(store.put_metrics(&batch(rows[..1].to_vec())).await.unwrap(), 1);
}
