//! Exit codes and what each command prints.

use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::fake::Fake;
use crate::support::{anybit, run};

/// Nothing listens on port 1.
const NOBODY: &str = "http://127.0.0.1:1";

#[tokio::test]
async fn an_unreachable_coordinator_is_exit_code_3_and_says_what_to_do() {
    let done = run(NOBODY, &["jobs"]).await;
    assert_eq!((done.code, done.out.as_str()), (3, ""));
    assert_eq!(
        done.err,
        "error: cannot reach the coordinator at http://127.0.0.1:1: Connection refused (os error 111); \
         start one with `anybit up`, or set --coordinator\n"
    );
    for args in [vec!["watch", "x"], vec!["logs", "x"], vec!["submit", "--preset", "digits"], vec!["workers"]]
    {
        assert_eq!(run(NOBODY, &args).await.code, 3, "{args:?}");
    }
}

#[tokio::test]
async fn an_unknown_job_is_exit_code_4() {
    let url = Fake::default().start().await;
    for command in ["job", "watch", "metrics", "logs", "cancel", "checkpoints"] {
        let done = run(&url, &[command, "nix"]).await;
        assert_eq!((done.code, done.err.as_str()), (4, "error: no job nix\n"), "{command}");
    }
}

#[tokio::test]
async fn a_wrong_command_line_is_exit_code_2() {
    for args in [
        vec!["frobnicate"],
        vec!["submit"],
        vec!["submit", "--preset", "digits", "--set", "novalue"],
        vec!["submit", "no-such-file.toml"],
        vec!["jobs", "--coordinator", "https://127.0.0.1:1"],
        vec!["jobs", "--coordinator", "http://10.0.0.1:1"],
        vec!["up", "--workers", "0"],
        vec!["up", "--listen", "0.0.0.0:0"],
        vec!["metrics", "x", "--plot", "--follow"],
        vec!["metrics", "x", "--csv", "-o", "json"],
        vec!["metrics", "x", "--plot", "-o", "json"],
        vec!["jobs", "--coordinator", ""],
    ] {
        let done = run(NOBODY, &args).await;
        assert_eq!((done.code, done.out.as_str()), (2, ""), "{args:?}: {}", done.err);
    }
}

#[tokio::test]
async fn an_empty_variable_counts_as_unset_and_a_switch_takes_words() {
    let done = run("", &["presets"]).await;
    assert_eq!(done.code, 0, "{}", done.err);
    for (value, code) in [("1", 0), ("yes", 0), ("", 0), ("maybe", 2)] {
        let output = anybit(NOBODY).args(["presets"]).env("ANYBIT_INSECURE", value).output().await;
        assert_eq!(output.expect("started").status.code(), Some(code), "{value:?}");
    }
}

#[tokio::test]
async fn an_invalid_spec_is_exit_code_5_before_any_coordinator_is_asked() {
    let done =
        run(NOBODY, &["submit", "--preset", "digits", "--set", "train.epoch=3", "--set", "train.batch=0"])
            .await;
    assert_eq!((done.code, done.out.as_str()), (5, ""));
    assert_eq!(
        done.err,
        "error: the job spec (preset digits) is not valid:\n  \
         unknown key train.epoch: did you mean train.epochs?\n  \
         train.batch must be an integer from 1 to 65536, not 0\n"
    );
    let done = run(NOBODY, &["submit", "--preset", "digit", "--dry-run"]).await;
    assert_eq!(done.code, 5);
    assert!(done.err.contains("did you mean \"digits\"?"), "{}", done.err);
}

#[tokio::test]
async fn a_dry_run_prints_the_resolved_spec_and_that_is_a_spec_again() {
    let args = ["submit", "--preset", "digits", "--set", "train.steps=7", "--name", "mine", "--dry-run"];
    let done = run(NOBODY, &args).await;
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    assert!(done.out.starts_with("name = \"mine\"\n"), "{}", done.out);
    assert!(done.out.contains("steps = 7\n") && !done.out.contains("epochs = 20"), "{}", done.out);

    let mut child = anybit(NOBODY)
        .args(["submit", "-", "--dry-run"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("started");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(done.out.as_bytes()).await.expect("written");
    drop(input);
    let again = child.wait_with_output().await.expect("ended");
    assert_eq!(String::from_utf8_lossy(&again.stdout), done.out);

    let json = run(NOBODY, &[&args[..], &["-o", "json"]].concat()).await.json();
    assert_eq!(json["train"]["steps"], 7);
    assert_eq!(json["model"]["bits"], json!([1, 2, 4, 8, 32]));
}

#[tokio::test]
async fn submit_prints_the_id_alone_on_standard_output() {
    let fake = Fake::default();
    let url = fake.start().await;
    let done = run(&url, &["submit", "--preset", "digits", "--name", "a"]).await;
    assert_eq!((done.code, done.out.as_str()), (0, "job-a\n"));
    assert_eq!(done.err, "submitted; follow it with `anybit watch job-a`\n");
    let json = run(&url, &["submit", "--preset", "digits", "--name", "b", "-o", "json"]).await.json();
    assert_eq!((&json["created"], &json["job"]["id"]), (&json!(true), &json!("job-b")));
    let memory = fake.memory();
    assert_eq!(memory.submitted.len(), 2);
    assert_ne!(memory.submitted[0].0, memory.submitted[1].0, "each command has a key of its own");
    assert!(memory.submitted[0].1.contains("\nbatch = 64\n"), "the resolved spec is what is sent");
}

#[tokio::test]
async fn a_submission_whose_answer_is_lost_makes_one_job() {
    let fake = Fake::default();
    fake.memory().lose_answers = 2;
    let url = fake.start().await;
    let done = run(&url, &["submit", "--preset", "digits", "--name", "a"]).await;
    assert_eq!((done.code, done.out.as_str()), (0, "job-a\n"), "{}", done.err);
    let memory = fake.memory();
    assert_eq!((memory.submit_calls, memory.submitted.len()), (3, 1));
}

#[tokio::test]
async fn the_same_key_submits_nothing_twice_and_says_so() {
    let url = Fake::default().start().await;
    let args = ["submit", "--preset", "digits", "--name", "a", "--idempotency-key", "k"];
    assert_eq!(run(&url, &args).await.code, 0);
    let again = run(&url, &args).await;
    assert_eq!((again.code, again.out.as_str()), (0, "job-a\n"));
    assert!(again.err.contains("nothing was submitted"), "{}", again.err);
    let other = run(&url, &[&args[..], &["--set", "train.seed=1"]].concat()).await;
    assert_eq!((other.code, other.out.as_str()), (2, ""), "the same key for another spec: {}", other.err);
}

#[tokio::test]
async fn jobs_are_listed_from_all_pages() {
    let url = Fake::default().start().await;
    let done = run(&url, &["jobs"]).await;
    let lines: Vec<&str> = done.out.lines().collect();
    assert_eq!(lines.len(), 5, "{}", done.out);
    assert!(lines[0].starts_with("ID          NAME    STATE         STEP  TOP-1 % BY BITS"), "{}", done.out);
    assert!(
        lines[1].starts_with("job-live    digits  running    100/460  92.5/98.2/98.3/98.3/100.0"),
        "{}",
        done.out
    );
    assert!(lines[2].contains("queued       0/460  -  "), "{}", done.out);
    assert!(!done.out.contains('\x1b'), "no colours in a pipe");
    let failed = run(&url, &["jobs", "--state", "failed", "-o", "json"]).await.json();
    assert_eq!(failed.as_array().expect("a list").len(), 1);
    assert_eq!(failed[0]["state"], "failed");
    let one = run(&url, &["jobs", "--limit", "1", "-o", "json"]).await.json();
    assert_eq!(one.as_array().expect("a list").len(), 1);
}

#[tokio::test]
async fn a_job_is_described_with_its_reason() {
    let url = Fake::default().start().await;
    let done = run(&url, &["job", "job-bad"]).await;
    assert_eq!(done.code, 0, "looking at a failed job is no failure");
    for line in [
        "state         failed\n",
        "reason        rank 1: data.path \"nowhere\" does not exist\n",
        "step          23 of 460\n",
        "              rank 1 on worker-2\n",
        "checkpoint    /checkpoints/job/step-23 (step 23, 1.4 MiB)\n",
        "\n   1      0.2500    92.50   100.00        NaN    92.50   100.00\n",
    ] {
        assert!(done.out.contains(line), "{line:?} is not in\n{}", done.out);
    }
    let json = run(&url, &["job", "job-bad", "-o", "json"]).await.json();
    assert_eq!(json["state"], "failed");
    assert_eq!(
        json["evaluation"]["widths"][4],
        json!({"bits": 32, "loss": null, "top1": 100.0, "top5": 100.0})
    );
}

#[tokio::test]
async fn cancel_reports_the_state_and_refuses_an_ended_job() {
    let url = Fake::default().start().await;
    let done = run(&url, &["cancel", "job-live"]).await;
    assert_eq!((done.code, done.out.as_str()), (0, "job-live  stopping\n"));
    let done = run(&url, &["cancel", "job-ok"]).await;
    assert_eq!((done.code, done.err.as_str()), (1, "error: job job-ok has ended already\n"));
}

#[tokio::test]
async fn metrics_come_as_rows_csv_json_lines_and_curves() {
    let url = Fake::default().start().await;
    let rows = run(&url, &["metrics", "job-ok"]).await.out;
    assert_eq!(rows.lines().count(), 14, "{rows}");
    assert!(rows.lines().all(|line| line.len() <= 80), "{rows}");
    assert!(rows.contains("train     3   0.75   nan  92.5"), "{rows}");

    let csv = run(&url, &["metrics", "job-ok", "--csv", "--evaluations"]).await.out;
    assert_eq!(csv.lines().count(), 1 + 3 * 5, "{csv}");
    assert!(
        csv.starts_with("kind,generation,step,epoch,bits,loss,top1,top5\ntest,1,4,1,1,0.25,92.5,100\n"),
        "{csv}"
    );

    let json = run(&url, &["metrics", "job-ok", "-o", "json"]).await.out;
    let lines: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 12);
    assert_eq!((&lines[2]["kind"], &lines[2]["widths"][0]["loss"]), (&json!("step"), &json!(null)));
    assert_eq!(lines[3]["kind"], "evaluation");

    let plot = run(&url, &["metrics", "job-ok", "--plot"]).await;
    assert_eq!(plot.code, 0);
    assert!(
        plot.out.contains("test top-1 % at 32 bits") && plot.out.contains("training loss at 1 bit"),
        "{}",
        plot.out
    );
    assert!(!plot.out.contains('\x1b'), "{}", plot.out);
}

#[tokio::test]
async fn followed_metrics_go_on_after_a_lost_connection_without_repeating() {
    let fake = Fake::default();
    fake.memory().break_streams = 1;
    let url = fake.start().await;
    let done = run(&url, &["metrics", "job-ok", "--follow", "--csv"]).await;
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(done.out.lines().count(), 1 + 12 * 5, "{}", done.out);
    assert!(done.err.contains("the coordinator went away"), "{}", done.err);
}

#[tokio::test]
async fn logs_are_whole_lines_named_by_rank() {
    let fake = Fake::default();
    let url = fake.start().await;
    let done = run(&url, &["logs", "job-ok"]).await;
    assert_eq!(done.out, "g1 r1 | other rank\ng1 r0 | first line\ng1 r0 | second line\ng1 r0 | no end\n");
    let done = run(&url, &["logs", "job-ok", "--rank", "0"]).await;
    assert_eq!(done.out, "first line\nsecond line\nno end\n");
    let done = run(&url, &["logs", "job-ok", "--rank", "1", "-o", "json"]).await;
    assert_eq!(done.json(), json!({"generation": 1, "rank": 1, "text": "other rank"}));

    fake.memory().break_streams = 1;
    let done = run(&url, &["logs", "job-ok", "-f", "--rank", "0"]).await;
    assert_eq!((done.code, done.out.as_str()), (0, "first line\nsecond line\nno end\n"), "{}", done.err);
}

#[tokio::test]
async fn checkpoints_workers_and_presets_are_listed() {
    let url = Fake::default().start().await;
    let done = run(&url, &["checkpoints", "job-ok"]).await;
    assert_eq!(done.out.lines().count(), 3, "{}", done.out);
    assert!(done.out.contains("/checkpoints/job/step-460"), "{}", done.out);
    let done = run(&url, &["workers"]).await;
    assert_eq!((done.code, done.out.as_str()), (0, ""));
    assert!(done.err.starts_with("no workers"), "{}", done.err);
    assert_eq!(run(&url, &["workers", "-o", "json"]).await.json(), json!([]));

    let json = run(NOBODY, &["presets", "-o", "json"]).await.json();
    assert_eq!(json[0]["name"], "digits");
    assert_eq!(json[0]["spec"]["train"]["batch"], 64);
    let text = run(NOBODY, &["presets", "digits"]).await.out;
    assert!(text.contains("[model]"), "{text}");
    assert_eq!(run(NOBODY, &["presets", "nix"]).await.code, 4);
}

#[tokio::test]
async fn doctor_fails_without_a_coordinator_and_says_what_to_do() {
    let done = run(NOBODY, &["doctor", "--state-dir", "/tmp/not/there/yet"]).await;
    assert_eq!(done.code, 1);
    assert!(done.out.contains("FAIL  coordinator"), "{}", done.out);
    assert!(done.out.contains("start one with `anybit up`"), "{}", done.out);
    let json = run(NOBODY, &["doctor", "-o", "json"]).await.json();
    let coordinator = json
        .as_array()
        .expect("a list")
        .iter()
        .find(|check| check["name"] == "coordinator")
        .expect("checked");
    assert_eq!(coordinator["status"], "fail");
}

#[tokio::test]
async fn completions_and_versions_need_nothing() {
    for shell in ["bash", "zsh", "fish"] {
        let done = run(NOBODY, &["completions", shell]).await;
        assert!(done.code == 0 && done.out.contains("idempotency-key"), "{shell}");
    }
    assert!(run(NOBODY, &["--version"]).await.out.starts_with("anybit "));
}

#[tokio::test]
async fn a_closed_pipe_is_no_error() {
    let url = Fake::default().start().await;
    let script =
        format!("{} metrics job-ok --csv | head -n 1; echo ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_anybit"));
    let output = tokio::process::Command::new("bash")
        .args(["-c", &script])
        .env("ANYBIT_COORDINATOR", &url)
        .output()
        .await
        .expect("bash");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("\n0\n"), "{output:?}");
}
