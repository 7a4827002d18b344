//! `watch`: to a job's end, through a lost connection, and away from it.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::fake::Fake;
use crate::support::{LONG, anybit, run};

#[tokio::test]
async fn a_watched_job_ends_in_a_table_and_exit_code_0() {
    let url = Fake::default().start().await;
    let done = run(&url, &["watch", "job-live"]).await;
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(
        done.out,
        "BITS  LOSS  TOP-1 %  TOP-5 %\n   1   NaN    92.50   100.00\n   2   NaN    98.25   100.00\n   \
         4   NaN    98.30   100.00\n   8   NaN    98.30   100.00\n  32   NaN   100.00   100.00\n\n\
         checkpoint  /checkpoints/job/step-460\ntime        44s\n"
    );
    assert!(done.err.starts_with("digits job-live  queued: waits for 2 ranks, 0 are free\n"), "{}", done.err);
    assert!(done.err.contains("digits job-live  running: 2 ranks on worker-1, worker-2\n"), "{}", done.err);
    assert_eq!(done.err.matches("evaluation at epoch").count(), 21, "{}", done.err);
    assert!(!done.err.contains('\x1b') && !done.err.contains('\r'), "plain lines only");
}

#[tokio::test]
async fn a_failed_job_is_exit_code_1_with_its_reason() {
    let url = Fake::default().start().await;
    let done = run(&url, &["watch", "job-bad"]).await;
    assert_eq!(done.code, 1);
    assert!(
        done.err.ends_with("error: job job-bad failed: rank 1: data.path \"nowhere\" does not exist\n"),
        "{}",
        done.err
    );
    let done = run(&url, &["submit", "--preset", "digits", "--name", "fails", "--watch"]).await;
    assert_eq!(done.code, 1, "{}", done.err);
    assert!(done.out.starts_with("job-fails\n"), "{}", done.out);
}

#[tokio::test]
async fn json_is_a_document_a_snapshot() {
    let url = Fake::default().start().await;
    let done = run(&url, &["watch", "job-live", "-o", "json"]).await;
    let lines: Vec<serde_json::Value> =
        done.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.first().expect("snapshots")["state"], "queued");
    assert_eq!(lines.last().expect("snapshots")["state"], "succeeded");
    assert_eq!(done.err, "");
}

#[tokio::test]
async fn watching_goes_on_when_the_coordinator_comes_back() {
    let fake = Fake::default();
    fake.memory().break_streams = 2;
    let url = fake.start().await;
    let done = run(&url, &["watch", "job-live"]).await;
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(done.err.matches("the coordinator went away").count(), 2, "{}", done.err);
    assert_eq!(done.err.matches("the coordinator is back").count(), 2, "{}", done.err);
    assert_eq!(fake.memory().watch_calls, 3);
}

#[tokio::test]
async fn a_coordinator_that_only_fails_is_given_up() {
    let url = Fake::default().start().await;
    let done = run(&url, &["watch", "job-silent"]).await;
    assert_eq!(done.code, 1);
    assert!(done.err.contains("the store is on fire"), "{}", done.err);
}

#[tokio::test]
async fn ctrl_c_detaches() {
    let url = Fake::default().start().await;
    let mut child = anybit(&url).args(["watch", "job-hang"]).spawn().expect("started");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let first = tokio::time::timeout(LONG, lines.next_line()).await.expect("in time").expect("read");
    assert!(first.expect("a line").contains("running"), "it watches");
    let pid = Pid::from_raw(child.id().expect("alive") as i32);
    kill(pid, Signal::SIGINT).expect("sent");
    let status = tokio::time::timeout(LONG, child.wait()).await.expect("in time").expect("ended");
    assert_eq!(status.code(), Some(130));
    let mut last = String::new();
    while let Some(line) = lines.next_line().await.expect("read") {
        last = line;
    }
    assert_eq!(last, "detached: the job goes on; see it again with `anybit watch job-hang`");
}
