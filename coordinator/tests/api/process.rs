//! The program itself: settings, signals, and its death by `kill -9`.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use crate::support::{Agent, PATIENCE, spec, step, train};
use anybit_proto::v1::job_service_client::JobServiceClient;
use anybit_proto::v1::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_anybit-coordinator"));
    command.kill_on_drop(true).stdin(Stdio::null()).env_remove("ANYBIT_LOG").env_remove("RUST_LOG");
    command
}

/// A coordinator process on the data in this folder, and its address.
async fn serve(dir: &Path) -> (Child, String) {
    let address_file = dir.join("address");
    let _ = std::fs::remove_file(&address_file);
    let child = program()
        .args(["serve", "--listen", "127.0.0.1:0", "--set", "lease=5s", "--address-file"])
        .arg(&address_file)
        .arg("--data-dir")
        .arg(dir.join("data"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let written = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Ok(text) = std::fs::read_to_string(&address_file) {
                return text.trim().to_owned();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    (child, written.await.expect("no address was written"))
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().unwrap() as i32), signal).unwrap();
}

async fn run(args: &[&str]) -> Output {
    tokio::time::timeout(PATIENCE, program().args(args).output()).await.expect("did not end").unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn training_and_data_outlive_a_killed_coordinator() {
    let dir = tempfile::tempdir().unwrap();
    let (mut coordinator, url) = serve(dir.path()).await;
    let mut jobs = JobServiceClient::connect(url.clone()).await.unwrap();
    let request = SubmitJobRequest { spec_toml: spec(1, 3), idempotency_key: String::new() };
    let job_id = jobs.submit_job(request).await.unwrap().into_inner().job.unwrap().id;
    let mut agent = Agent::attach(&url, "a", "life1", Vec::new()).await.unwrap();
    train(&mut [&mut agent], 0).await;
    agent.metrics(&job_id, vec![step(1, 1, 2.0), step(1, 2, 1.5)]).await;
    agent.log(&job_id, 1, 0, 0, "a line\n").await;
    signal(&coordinator, Signal::SIGKILL);
    coordinator.wait().await.unwrap();

    let (mut coordinator, url) = serve(dir.path()).await;
    let mut jobs = JobServiceClient::connect(url.clone()).await.unwrap();
    let get = GetJobRequest { job_id: job_id.clone() };
    let job = jobs.get_job(get.clone()).await.unwrap().into_inner().job.unwrap();
    assert_eq!((job.state(), job.generation, job.progress.unwrap().step), (JobState::Running, 1, 2));
    let held = HeldGeneration { job_id: job_id.clone(), generation: 1, running_ranks: vec![0] };
    let mut agent = Agent::attach(&url, "a", "life1", vec![held]).await.unwrap();
    agent.sequence = 100;
    agent.log(&job_id, 1, 0, 7, "another\n").await;
    agent.exit(&job_id, 1, 0, ExitKind::Succeeded, "").await;
    let job = jobs.get_job(get).await.unwrap().into_inner().job.unwrap();
    assert_eq!((job.state(), job.restarts), (JobState::Succeeded, 0));
    let log = std::fs::read_to_string(dir.path().join("data/logs").join(&job_id).join("g0001-r000.log"));
    assert_eq!(log.unwrap(), "a line\nanother\n");

    signal(&coordinator, Signal::SIGTERM);
    let ended = tokio::time::timeout(PATIENCE, coordinator.wait()).await.expect("did not end").unwrap();
    assert!(ended.success(), "{ended}");
}

#[tokio::test]
async fn one_coordinator_a_folder_and_its_health() {
    let dir = tempfile::tempdir().unwrap();
    let (mut coordinator, url) = serve(dir.path()).await;
    assert!(run(&["health", "--address", &url]).await.status.success());

    let data = dir.path().join("data");
    let file = dir.path().join("address");
    let (data, file) = (data.to_str().unwrap(), file.to_str().unwrap());
    let args = ["serve", "--listen", "127.0.0.1:0", "--data-dir", data, "--address-file", file];
    let second = run(&args).await;
    assert_eq!(std::fs::read_to_string(file).unwrap().trim(), url, "the first one's is left alone");
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("in use by another coordinator"), "{}", text(&second.stderr));

    signal(&coordinator, Signal::SIGINT);
    let ended = tokio::time::timeout(PATIENCE, coordinator.wait()).await.expect("did not end").unwrap();
    assert!(ended.success(), "{ended}");
    let health = run(&["health", "--address", &url]).await;
    assert_eq!(health.status.code(), Some(1));
    assert!(text(&health.stderr).contains("cannot reach"), "{}", text(&health.stderr));
}

#[tokio::test]
async fn settings_are_checked_and_printed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "lease = \"9s\"\nheartbeat = \"2s\"\n").unwrap();
    let file = file.to_str().unwrap();
    let printed = program()
        .args(["serve", "--check-config", "--config", file, "--set", "start_timeout=77s"])
        .env("ANYBIT_COORDINATOR_HEARTBEAT", "3s")
        .env("ANYBIT_COORDINATOR_BACKOFF__FACTOR", "3")
        .output()
        .await
        .unwrap();
    assert!(printed.status.success(), "{}", text(&printed.stderr));
    let printed: toml::Table = text(&printed.stdout).parse().unwrap();
    for (key, value) in [("lease", "9s"), ("heartbeat", "3s"), ("start_timeout", "1m 17s")] {
        assert_eq!(printed[key].as_str(), Some(value), "{key}");
    }
    assert_eq!(printed["backoff"]["factor"].as_float(), Some(3.0));

    for (args, named) in [
        (["--set", "leas=9s"], "did you mean \"lease\""),
        (["--listen", "0.0.0.0:0"], "--insecure"),
        (["--set", "lease=soon"], "soon"),
        (["--config", "/nowhere.toml"], "/nowhere.toml"),
    ] {
        let refused = run(&[&["serve", "--check-config"], &args[..]].concat()).await;
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused.stderr).contains(named), "{args:?}: {}", text(&refused.stderr));
    }
}
