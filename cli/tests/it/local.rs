//! `up` and `run` with services that this very test program plays: see [`fake_service`].

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anybit_proto::v1;
use anybit_proto::v1::agent_service_client::AgentServiceClient;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use crate::fake::Fake;
use crate::support::{Done, LONG, program, run};

const ARGS: &str = "ANYBIT_FAKE_ARGS";

/// Not a test of its own: the scripts of [`Home`] start it as a coordinator or a worker.
#[tokio::test]
async fn fake_service() {
    let Ok(line) = std::env::var(ARGS) else { return };
    let args: Vec<&str> = line.split('\n').collect();
    let value = |flag: &str| {
        let at =
            args.iter().position(|arg| *arg == flag).unwrap_or_else(|| panic!("{flag} is missing: {args:?}"));
        args[at + 1].to_owned()
    };
    assert!(args.contains(&"--exit-with-parent"), "{args:?}");
    nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).expect("set");
    let parent: i32 = std::env::var("ANYBIT_PARENT_PID").expect("set").parse().expect("a number");
    assert_eq!(nix::unistd::getppid().as_raw(), parent, "the parent lives");
    match args[0] {
        "serve" => {
            let listen: SocketAddr = value("--listen").parse().expect("an address");
            assert!(!value("--data-dir").is_empty());
            let fake = Fake::default();
            fake.memory().idle = std::env::var_os("ANYBIT_FAKE_BUSY").is_none();
            let (url, served) = fake.listen(listen).await.expect("a free port");
            std::fs::write(value("--address-file"), url).expect("written");
            served.await;
        }
        "agent" => {
            for flag in ["--state-dir", "--data-root", "--checkpoint-root", "--threads"] {
                assert!(!value(flag).is_empty());
            }
            if std::env::var_os("ANYBIT_FAKE_BAD_WORKER").is_some() {
                eprintln!("libtorch is not there");
                std::process::exit(3);
            }
            let worker_id = value("--worker-id");
            loop {
                let _ = attach(&value("--coordinator"), &worker_id).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        other => panic!("unknown role {other}"),
    }
}

async fn attach(url: &str, worker_id: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut client = AgentServiceClient::connect(url.to_owned()).await?;
    let hello = v1::Hello { worker_id: worker_id.to_owned(), slots: 1, ..v1::Hello::default() };
    let first = v1::AttachRequest { sequence: 0, message: Some(v1::attach_request::Message::Hello(hello)) };
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(first).await?;
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut replies = client.attach(requests).await?.into_inner();
    while replies.message().await?.is_some() {}
    Ok(())
}

/// A folder with `anybit` and the two fake services beside it.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let anybit = folder.path().join("anybit");
        let built = env!("CARGO_BIN_EXE_anybit");
        std::fs::hard_link(built, &anybit)
            .or_else(|_| std::fs::copy(built, &anybit).map(drop))
            .expect("linked");
        let test = std::env::current_exe().expect("own path");
        for name in ["anybit-coordinator", "anybit-worker"] {
            // `exec` keeps the process's id, so that signals and waits meet the fake itself.
            let script = format!(
                "#!/bin/sh\n[ \"$1\" = --version ] && {{ echo \"{name} 0.1.0\"; exit; }}\n\
                 {ARGS}=\"$(printf '%s\\n' \"$@\")\" exec '{}' --exact local::fake_service --nocapture\n",
                test.display()
            );
            let path = folder.path().join(name);
            std::fs::write(&path, script).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
        }
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    fn command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = program(&self.path().join("anybit"), "http://127.0.0.1:1");
        command.args(args).current_dir(self.path());
        command
    }

    async fn run(&self, args: &[&str]) -> Done {
        tokio::time::timeout(LONG, self.command(args).output())
            .await
            .expect("in time")
            .expect("started")
            .into()
    }

    /// `up`, ready: the process and what it said.
    async fn up(&self, args: &[&str]) -> Up {
        let mut all = vec!["up", "--listen", "127.0.0.1:0", "--state-dir", "state", "-o", "json"];
        all.extend(args);
        let mut child = self.command(&all).spawn().expect("started");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let line = tokio::time::timeout(LONG, lines.next_line()).await.expect("in time").expect("read");
        let ready: serde_json::Value = match line {
            Some(line) => serde_json::from_str(&line).expect("JSON"),
            None => panic!("{:?}", child.wait_with_output().await),
        };
        let pids = ready["services"].as_array().expect("a list").iter();
        let pids =
            pids.map(|service| Pid::from_raw(service["pid"].as_i64().expect("alive") as i32)).collect();
        Up { url: ready["coordinator"].as_str().expect("a URL").to_owned(), child, pids }
    }
}

struct Up {
    child: Child,
    url: String,
    pids: Vec<Pid>,
}

impl Up {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().expect("alive") as i32), signal).expect("sent");
    }

    async fn all_gone(&self) {
        wait_until("every service is gone", || self.pids.iter().all(|&pid| is_gone(pid))).await;
    }
}

/// Gone, or a zombie that only waits for its reaper.
fn is_gone(pid: Pid) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')),
        Err(_) => true,
    }
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

#[tokio::test]
async fn up_runs_until_a_signal_and_leaves_nothing_behind() {
    let home = Home::new();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut up = home.up(&["--workers", "2"]).await;
        assert_eq!(up.pids.len(), 3);
        let workers = run(&up.url, &["workers"]).await;
        assert!(workers.out.contains("worker-1") && workers.out.contains("worker-2"), "{}", workers.out);
        up.signal(signal);
        let status = tokio::time::timeout(LONG, up.child.wait()).await.expect("in time").expect("ended");
        assert_eq!(status.code(), Some(0));
        assert!(up.pids.iter().all(|&pid| is_gone(pid)), "nothing outlives it");
    }
}

#[tokio::test]
async fn nothing_outlives_an_up_that_is_killed() {
    let home = Home::new();
    let mut up = home.up(&["--workers", "2"]).await;
    up.signal(Signal::SIGKILL);
    up.child.wait().await.expect("ended");
    up.all_gone().await;
}

#[tokio::test]
async fn a_service_that_dies_is_started_again_where_it_was() {
    let home = Home::new();
    let mut up = home.up(&[]).await;
    let mut notes = BufReader::new(up.child.stderr.take().expect("piped")).lines();
    let starting = notes.next_line().await.expect("read");
    assert!(starting.is_some_and(|line| line.starts_with("starting ")));
    for (index, name) in [(0, "coordinator"), (1, "worker-1")] {
        kill(up.pids[index], Signal::SIGKILL).expect("sent");
        let note = tokio::time::timeout(LONG, notes.next_line()).await.expect("in time").expect("read");
        let note = note.expect("a line");
        assert!(note.starts_with(&format!("{name} was killed by SIGKILL; starting it again in ")), "{note}");
    }
    // The same address serves again, and the worker is back.
    let wait = async {
        loop {
            let workers = run(&up.url, &["workers"]).await;
            if workers.code == 0 && workers.out.contains("alive") {
                return;
            }
        }
    };
    tokio::time::timeout(LONG, wait).await.expect("back in time");
    up.signal(Signal::SIGTERM);
    let status = tokio::time::timeout(LONG, up.child.wait()).await.expect("in time").expect("ended");
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn a_state_folder_serves_one_up() {
    let home = Home::new();
    let up = home.up(&[]).await;
    let second = home.run(&["up", "--listen", "127.0.0.1:0", "--state-dir", "state"]).await;
    assert_eq!(second.code, 2);
    let pid = up.child.id().expect("alive");
    assert!(
        second.err.contains(&format!("another anybit (process {pid}) uses the state folder")),
        "{}",
        second.err
    );
    assert!(up.pids.iter().all(|&pid| !is_gone(pid)), "the first is not disturbed");
}

#[tokio::test]
async fn a_worker_that_cannot_start_ends_up_with_its_last_words() {
    let home = Home::new();
    let mut command = home.command(&["up", "--listen", "127.0.0.1:0", "--state-dir", "state"]);
    let output = command.env("ANYBIT_FAKE_BAD_WORKER", "1").output();
    let done = Done::from(tokio::time::timeout(LONG, output).await.expect("in time").expect("started"));
    assert_eq!(done.code, 1);
    assert!(done.err.contains("worker-1 ended with exit code 3 during its start"), "{}", done.err);
    assert!(done.err.contains("libtorch is not there"), "{}", done.err);
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let home = Home::new();
    std::fs::remove_file(home.path().join("anybit-worker")).expect("removed");
    let mut command = home.command(&["up", "--listen", "127.0.0.1:0"]);
    let done = Done::from(command.env("PATH", "/nowhere").output().await.expect("started"));
    assert_eq!(done.code, 2);
    assert!(done.err.contains("anybit-worker was not found beside "), "{}", done.err);
    assert!(!home.path().join(".anybit").exists(), "nothing was begun");
}

#[tokio::test]
async fn run_goes_from_nothing_to_a_report() {
    let home = Home::new();
    std::fs::create_dir(home.path().join("out")).expect("made");
    let args = ["run", "--preset", "digits", "--workers", "2", "--report", "out/demo.json"];
    let done = home.run(&args).await;
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(
        done.out.starts_with("BITS  LOSS  TOP-1 %  TOP-5 %\n   1   NaN    92.50   100.00\n"),
        "{}",
        done.out
    );
    assert!(done.out.contains("checkpoint  /checkpoints/job/step-460\n"), "{}", done.out);
    let report = std::fs::read_to_string(home.path().join("out/demo.json")).expect("written");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report["widths"]["32"]["top1"], 100.0);
    assert_eq!(report["checkpoint"], "/checkpoints/job/step-460");
    assert!(report["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
    let kept: Vec<_> = std::fs::read_dir(home.path().join(".anybit")).expect("kept").collect();
    assert_eq!(kept.len(), 1);
    assert!(kept[0].as_ref().expect("an entry").file_name().to_string_lossy().starts_with("run-2"));
    no_process_of(&home).await;
}

#[tokio::test]
async fn a_job_that_fails_fails_run_with_its_reason_and_last_lines() {
    let home = Home::new();
    let args = ["run", "--preset", "digits", "--workers", "2", "--name", "fails", "--report", "r.json"];
    let done = home.run(&args).await;
    assert_eq!((done.code, done.out.as_str()), (1, ""), "{}", done.err);
    assert!(done.err.contains("r1 | other rank\n"), "{}", done.err);
    assert!(
        done.err.ends_with("error: job job-fails failed: rank 1: data.path \"nowhere\" does not exist\n"),
        "{}",
        done.err
    );
    assert!(!home.path().join("r.json").exists());
    no_process_of(&home).await;
}

#[tokio::test]
async fn an_interrupted_run_stops_everything() {
    let home = Home::new();
    let args = ["run", "--preset", "digits", "--workers", "2", "--name", "hang", "--state-dir", "state"];
    let mut child = home.command(&args).spawn().expect("started");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    loop {
        let line = tokio::time::timeout(LONG, lines.next_line()).await.expect("in time").expect("read");
        if line.expect("a line").contains("running") {
            break;
        }
    }
    kill(Pid::from_raw(child.id().expect("alive") as i32), Signal::SIGINT).expect("sent");
    let status = tokio::time::timeout(LONG, child.wait()).await.expect("in time").expect("ended");
    assert_eq!(status.code(), Some(130));
    assert!(home.state().join("coordinator.log").exists());
    no_process_of(&home).await;
}

#[tokio::test]
async fn run_refuses_a_job_that_its_workers_cannot_hold() {
    let home = Home::new();
    let done = home.run(&["run", "--preset", "digits"]).await;
    assert_eq!(done.code, 2);
    assert!(
        done.err.contains("the job wants 2 ranks, and 1 worker of 1 slot can hold 1: add --workers 2"),
        "{}",
        done.err
    );
}

#[tokio::test]
async fn run_refuses_a_state_folder_with_unfinished_jobs() {
    let home = Home::new();
    let args = ["run", "--preset", "digits", "--workers", "2", "--state-dir", "state"];
    let output = home.command(&args).env("ANYBIT_FAKE_BUSY", "1").output();
    let done = Done::from(tokio::time::timeout(LONG, output).await.expect("in time").expect("started"));
    assert_eq!((done.code, done.out.as_str()), (2, ""), "{}", done.err);
    assert!(done.err.contains("unfinished jobs: digits job-live (running) and others;"), "{}", done.err);
    assert!(done.err.contains("`anybit up --state-dir "), "{}", done.err);
    assert!(!home.state().join("worker-1.log").exists(), "no worker took the job up");
    no_process_of(&home).await;
}

#[tokio::test]
async fn run_refuses_a_report_without_a_folder_before_anything_starts() {
    let home = Home::new();
    let args = ["run", "--preset", "digits", "--workers", "2", "--report", "out/demo.json"];
    let done = home.run(&args).await;
    assert_eq!(done.code, 2, "{}", done.err);
    assert!(done.err.contains("there is no folder out"), "{}", done.err);
    assert!(!home.path().join(".anybit").exists() && !home.path().join("out").exists());
}

/// Every process whose command line or environment names the folder is gone.
async fn no_process_of(home: &Home) {
    let folder = home.path().to_string_lossy().into_owned();
    let found = || {
        let processes = std::fs::read_dir("/proc").expect("proc").flatten();
        processes
            .filter(|entry| {
                let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
                String::from_utf8_lossy(&environment).contains(&format!("{folder}/"))
            })
            .count()
    };
    wait_until("no process of the cluster is left", || found() == 0).await;
}
