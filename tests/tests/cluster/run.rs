//! `anybit run`: a cluster for one job, and nothing after it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anybit_tests::dataset::{self, Shape};
use anybit_tests::process::{living_under, until_none_under};
use anybit_tests::{LONG, PEOPLE, Service, Spec, Turn, checkpoint, process, until};
use nix::sys::signal::Signal;
use tempfile::TempDir;

/// `anybit run` and the folder in which everything of it lies.
struct Run {
    program: Service,
    root: TempDir,
    _turn: Turn,
}

impl Run {
    fn start(spec: &Spec) -> Self {
        let turn = Turn::shared();
        let root = tempfile::Builder::new().prefix("anybit-run-").tempdir().expect("temporary folder");
        let here = root.path();
        dataset::write(&here.join("data/tiny"), Shape { side: 8, classes: 4, train: 96, test: 24 });
        fs::write(here.join("spec.toml"), spec.to_toml()).expect("spec");
        let path = |name: &str| here.join(name).into_os_string();
        let args = vec![
            "run".into(),
            path("spec.toml"),
            "--workers".into(),
            "2".into(),
            "--threads".into(),
            "1".into(),
            "--data-root".into(),
            path("data"),
            "--state-dir".into(),
            path("state"),
            "--report".into(),
            path("report.json"),
        ];
        let program = Service::start("run", PEOPLE, args, here);
        Self { program, root, _turn: turn }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Waits for a checkpoint of its one job.
    fn until_training(&mut self) {
        until("the job has a checkpoint", LONG, || {
            let ended = self.program.has_ended();
            assert!(ended.is_none(), "{ended:?}: {}", self.program.log());
            let Ok(jobs) = fs::read_dir(self.path("state/checkpoints")) else { return false };
            jobs.flatten().any(|job| !checkpoint::list(&job.path()).is_empty())
        });
        let living = living_under(self.root.path());
        assert_eq!(living.len(), 6, "itself, a coordinator, two agents and two trainers: {living:?}");
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("---- anybit run\n{}", self.program.log());
            self.program.kill();
            for left in living_under(self.root.path()) {
                process::signal(left.pid, Signal::SIGKILL);
            }
        }
    }
}

#[test]
fn a_run_ends_with_its_figures_in_the_report_and_no_process() {
    let mut run = Run::start(&Spec::tiny("run").ranks(2).steps(40));
    let status = run.program.ended(LONG);
    assert!(status.success(), "{status}");
    let left = living_under(run.root.path());
    assert!(left.is_empty(), "{left:?}");

    let report = fs::read(run.path("report.json")).expect("a report");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
    let keys: Vec<_> = report.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(keys, ["checkpoint", "seconds", "widths"]);
    let widths = report["widths"].as_object().expect("widths");
    assert_eq!(widths.len(), 3);
    for bits in ["1", "2", "32"] {
        let top1 = widths[bits]["top1"].as_f64().expect("top1");
        assert!(widths[bits]["loss"].is_f64() && (0.0..=100.0).contains(&top1), "{report}");
    }
    assert!(report["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{report}");
    checkpoint::verify(Path::new(report["checkpoint"].as_str().expect("a folder")));
}

#[test]
fn ctrl_c_stops_all_of_a_run_after_a_checkpoint() {
    let mut run = Run::start(&Spec::tiny("interrupted").ranks(2).steps(100_000));
    run.until_training();
    run.program.signal(Signal::SIGINT);
    let status = run.program.ended(Duration::from_secs(30));
    assert_eq!(status.code(), Some(130), "{status}");
    let left = living_under(run.root.path());
    assert!(left.is_empty(), "{left:?}");
    assert!(!run.path("report.json").exists(), "a report of a job that did not end");
}

#[test]
fn a_killed_run_leaves_nothing_behind() {
    let mut run = Run::start(&Spec::tiny("killed-run").ranks(2).steps(100_000));
    run.until_training();
    run.program.kill();
    until_none_under(run.root.path(), Duration::from_secs(30));
}
