//! A coordinator and its agents.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::panicking;
use std::time::Duration;

use anybit_proto::v1::{Job, JobState};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::api::Api;
use crate::checkpoint::{self, OnDisk};
use crate::dataset::{self, Shape};
use crate::process::{Trainer, living_under, signal, trainers_under, until_none_under};
use crate::programs::{COORDINATOR, PEOPLE, WORKER, program, repository};
use crate::service::Service;
use crate::spec::Spec;
use crate::turn::Turn;
use crate::wait::{LONG, until, wait_for};

/// The end of a log that is shown when a test failed.
const SHOWN_LINES: usize = 60;

/// What a cluster is made of, before it is started.
#[derive(Debug)]
pub struct Builder {
    workers: usize,
    slots: u32,
    alone: bool,
    agent_flags: Vec<OsString>,
}

impl Builder {
    /// The machine to itself: for what is timed.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// A flag for every agent.
    #[must_use]
    pub fn agent_flag(mut self, flag: &str, value: &str) -> Self {
        self.agent_flags.extend([flag.into(), value.into()]);
        self
    }

    /// Starts it, and waits until every agent is attached.
    pub fn start(self) -> Cluster {
        let turn = if self.alone { Turn::alone() } else { Turn::shared() };
        let root = tempfile::Builder::new().prefix("anybit-cluster-").tempdir().expect("temporary folder");
        dataset::write(&root.path().join("data/tiny"), Shape { side: 8, classes: 4, train: 96, test: 24 });
        let (coordinator, address) = start_coordinator(root.path(), "127.0.0.1:0".parse().expect("address"));
        let url = format!("http://{address}");
        let mut cluster = Cluster {
            api: Api::new(&url),
            url,
            address,
            coordinator,
            agents: Vec::new(),
            slots: self.slots,
            agent_flags: self.agent_flags,
            root,
            _turn: turn,
        };
        for _ in 0..self.workers {
            cluster.spawn_agent();
        }
        cluster.until_attached(self.workers);
        cluster
    }
}

/// See the crate. Workers are numbered from 1, and `worker-1` is the first one's name.
#[derive(Debug)]
pub struct Cluster {
    /// What people ask.
    pub api: Api,
    /// The coordinator's URL.
    pub url: String,
    address: SocketAddr,
    coordinator: Service,
    agents: Vec<Service>,
    slots: u32,
    agent_flags: Vec<OsString>,
    root: TempDir,
    _turn: Turn,
}

impl Cluster {
    /// A cluster of so many workers with so many slots each.
    pub fn start(workers: usize, slots: u32) -> Self {
        Self::builder(workers, slots).start()
    }

    /// The same, to be changed before it is started.
    pub fn builder(workers: usize, slots: u32) -> Builder {
        Builder { workers, slots, alone: false, agent_flags: Vec::new() }
    }

    /// Where a data set may be written; specs name it relative to this.
    pub fn data_root(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// A further agent; does not wait for it.
    pub fn add_agent(&mut self) {
        self.spawn_agent();
    }

    fn spawn_agent(&mut self) {
        let name = format!("worker-{}", self.agents.len() + 1);
        let mut args: Vec<OsString> = ["agent", "--coordinator"].map(Into::into).into();
        args.push(self.url.clone().into());
        let paths = [
            ("--worker-id", PathBuf::from(&name)),
            ("--slots", PathBuf::from(self.slots.to_string())),
            ("--threads", PathBuf::from("1")),
            ("--interface", PathBuf::from("lo")),
            ("--state-dir", self.root.path().join(&name)),
            ("--checkpoint-root", self.root.path().join("checkpoints")),
            ("--data-root", self.data_root()),
            ("--data-root", repository().to_owned()),
        ];
        args.extend(paths.into_iter().flat_map(|(flag, value)| [flag.into(), value.into_os_string()]));
        args.extend(self.agent_flags.clone());
        args.push("--exit-with-parent".into());
        self.agents.push(Service::start(&name, WORKER, args, self.root.path()));
    }

    /// Waits until so many workers live.
    pub fn until_attached(&mut self, workers: usize) {
        until(&format!("{workers} workers are attached"), LONG, || {
            for service in &mut self.agents {
                if let Some(status) = service.has_ended() {
                    assert!(workers < 1, "{} ended with {status}: {}", service.name, service.log());
                }
            }
            self.api.workers().iter().filter(|worker| worker.alive).count() >= workers
        });
    }

    /// Submits a job, and returns its id.
    pub fn submit(&self, spec: &Spec) -> String {
        self.api.submit(&spec.to_toml()).expect("a valid spec")
    }

    /// Waits until the coordinator knows of this step.
    pub fn at_step(&self, job: &str, step: u64) {
        let reached = |now: &Job| now.progress.as_ref().is_some_and(|progress| progress.step >= step);
        self.until_job(job, &format!("reaches step {step}"), reached);
    }

    /// Waits until the job is in this generation and trains.
    pub fn in_generation(&self, job: &str, generation: u32) {
        self.until_job(job, &format!("trains in generation {generation}"), |now| {
            now.generation >= generation && now.state() == JobState::Running
        });
    }

    /// Waits until the job, which must not end before, is so.
    pub fn until_job(&self, job: &str, what: &str, holds: impl Fn(&Job) -> bool) -> Job {
        wait_for(&format!("job {job} {what}"), LONG, || {
            let now = self.api.job(job);
            let holds = holds(&now);
            assert!(holds || !is_over(&now), "job {job} is over before it {what}: {}", tell(&now));
            holds.then_some(now)
        })
    }

    /// Waits until the job ends, which must be like this.
    pub fn wait(&self, job: &str, state: JobState) -> Job {
        let ended = wait_for(&format!("job {job} ends as {}", state.as_str_name()), LONG, || {
            Some(self.api.job(job)).filter(is_over)
        });
        assert_eq!(ended.state(), state, "{}", tell(&ended));
        ended
    }

    /// Waits until the job has failed; gives the reason.
    pub fn wait_failed(&self, job: &str) -> Job {
        self.wait(job, JobState::Failed)
    }

    /// Living trainers of a job, by rank.
    pub fn trainers(&self, job: &str) -> Vec<Trainer> {
        let mut trainers = trainers_under(self.root.path());
        trainers.retain(|trainer| trainer.job == job);
        trainers.sort_by_key(|trainer| (trainer.generation, trainer.rank));
        trainers
    }

    /// Living trainers of a worker.
    pub fn trainers_of_agent(&self, number: usize) -> Vec<Trainer> {
        trainers_under(&self.root.path().join(format!("worker-{number}")))
    }

    /// `kill -9` of the trainer of a rank, of the newest generation.
    pub fn kill_trainer(&self, job: &str, rank: u32) {
        let trainers = self.trainers(job);
        let victim = trainers.iter().rfind(|trainer| trainer.rank == rank);
        let victim = victim.unwrap_or_else(|| panic!("no trainer of rank {rank} among {trainers:?}"));
        signal(victim.pid, Signal::SIGKILL);
    }

    /// Stops the time of all trainers of a job, until they are killed.
    pub fn freeze(&self, job: &str) {
        for trainer in self.trainers(job) {
            signal(trainer.pid, Signal::SIGSTOP);
        }
    }

    /// `kill -9` of an agent; reaps it.
    pub fn kill_agent(&mut self, number: usize) {
        self.agents[number - 1].kill();
    }

    /// Asks an agent to end.
    pub fn terminate_agent(&self, number: usize) {
        self.agents[number - 1].signal(Signal::SIGTERM);
    }

    /// An agent's process.
    pub fn agent(&mut self, number: usize) -> &mut Service {
        &mut self.agents[number - 1]
    }

    /// `kill -9` of the coordinator; reaps it.
    pub fn kill_coordinator(&mut self) {
        self.coordinator.kill();
    }

    /// Starts it again on its data, where the agents know it.
    pub fn restart_coordinator(&mut self) {
        self.coordinator.kill();
        let (service, address) = start_coordinator(self.root.path(), self.address);
        assert_eq!(address, self.address);
        self.coordinator = service;
    }

    /// The job's checkpoints on disk, oldest first.
    pub fn checkpoints_on_disk(&self, job: &str) -> Vec<OnDisk> {
        checkpoint::list(&self.root.path().join("checkpoints").join(job))
    }

    /// Waits for a checkpoint on disk of this step or later, whether or not anyone reports it.
    pub fn until_checkpoint(&self, job: &str, step: u64) -> OnDisk {
        wait_for(&format!("a checkpoint of job {job} at step {step} or later"), LONG, || {
            self.checkpoints_on_disk(job).into_iter().rfind(|found| found.step >= step)
        })
    }

    /// The weights and statistics that the job ended with, and from which step.
    pub fn final_weights(&self, job: &str) -> (u64, Vec<u8>) {
        let newest = self.checkpoints_on_disk(job).pop().expect("a checkpoint");
        checkpoint::verify(&newest.path);
        (newest.step, checkpoint::model(&newest.path))
    }

    /// Two jobs ended with the same bits: weights, running statistics, step.
    pub fn assert_same_result(&self, job: &str, other: &str) {
        let ((step, weights), (other_step, other_weights)) =
            (self.final_weights(job), self.final_weights(other));
        assert_eq!(step, other_step, "the last steps differ");
        if weights == other_weights {
            return;
        }
        let curve = |job| {
            let mut steps = self.api.steps(job);
            steps.sort_by_key(|(_, step)| step.step);
            steps.into_iter().map(|(generation, s)| (s.step, generation, s.joint_loss, s.gradient_norm))
        };
        let parted = curve(job).zip(curve(other)).find(|(a, b)| (a.2, a.3) != (b.2, b.3));
        let differing = weights.iter().zip(&other_weights).filter(|(a, b)| a != b).count();
        panic!(
            "the weights differ in {differing} of {} bytes; the curves (step, generation, joint loss, \
             gradient norm) part at {parted:?}",
            weights.len()
        );
    }

    /// A rank's log as the coordinator keeps it.
    pub fn log_at_coordinator(&self, job: &str, generation: u32, rank: u32) -> Vec<u8> {
        self.log_in(Path::new("coordinator"), job, generation, rank)
    }

    /// The same as its worker keeps it.
    pub fn log_at_worker(&self, number: usize, job: &str, generation: u32, rank: u32) -> Vec<u8> {
        self.log_in(Path::new(&format!("worker-{number}")), job, generation, rank)
    }

    fn log_in(&self, folder: &Path, job: &str, generation: u32, rank: u32) -> Vec<u8> {
        let name = format!("g{generation:04}-r{rank:03}.log");
        fs::read(self.root.path().join(folder).join("logs").join(job).join(name)).unwrap_or_default()
    }

    /// Every step's record is there, once.
    pub fn assert_every_step_once(&self, job: &str, total: u64) {
        let mut steps: Vec<u64> = self.api.steps(job).iter().map(|(_, step)| step.step).collect();
        steps.sort_unstable();
        let missing: Vec<u64> = (1..=total).filter(|step| steps.binary_search(step).is_err()).collect();
        assert!(missing.is_empty(), "no records of steps {missing:?}");
        assert_eq!(steps.len() as u64, total, "records that are too many among {steps:?}");
    }

    /// What `anybit ARGS -o json` prints: one value a line or document.
    pub fn people(&self, args: &[&str]) -> Vec<serde_json::Value> {
        let output = Command::new(program(PEOPLE))
            .args(["--coordinator", &self.url, "-o", "json"])
            .args(args)
            .current_dir(self.root.path())
            .stdin(Stdio::null())
            .output()
            .expect("anybit");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "anybit {args:?}: {}\n{errors}", output.status);
        let values = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
        values.collect::<Result<_, _>>().unwrap_or_else(|error| panic!("anybit {args:?}: {error}"))
    }

    /// Waits until no trainer of this cluster lives.
    pub fn until_no_trainers(&self) {
        until("no trainer is left", Duration::from_secs(10), || trainers_under(self.root.path()).is_empty());
    }

    fn show_logs(&self) {
        for service in self.agents.iter().chain([&self.coordinator]) {
            show(&service.name, &service.log());
        }
        for agent in &self.agents {
            for log in files(&self.root.path().join(&agent.name).join("logs")) {
                show(&log.display().to_string(), &fs::read_to_string(&log).unwrap_or_default());
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if panicking() {
            self.show_logs();
        }
        for agent in &mut self.agents {
            agent.kill();
        }
        self.coordinator.kill();
        if panicking() {
            // What should have ended with its agent is the tests' business, not this one's.
            for left in living_under(self.root.path()) {
                signal(left.pid, Signal::SIGKILL);
            }
        } else {
            until_none_under(self.root.path(), Duration::from_secs(10));
        }
    }
}

fn start_coordinator(root: &Path, listen: SocketAddr) -> (Service, SocketAddr) {
    let address_file = root.join("coordinator.address");
    let mut args: Vec<OsString> = vec!["serve".into()];
    let values = [
        ("--listen", OsString::from(listen.to_string())),
        ("--data-dir", root.join("coordinator").into()),
        ("--address-file", address_file.clone().into()),
        ("--set", "lease=2s".into()),
        ("--set", "heartbeat=300ms".into()),
        ("--set", "start_timeout=60s".into()),
        ("--set", "stop_resend=1s".into()),
    ];
    args.extend(values.into_iter().flat_map(|(flag, value)| [flag.into(), value]));
    args.push("--exit-with-parent".into());
    // A later coordinator removes the address of an earlier one only once it runs.
    let _ = fs::remove_file(&address_file);
    let mut service = Service::start("coordinator", COORDINATOR, args, root);
    let address = wait_for("the coordinator serves", LONG, || {
        if let Some(status) = service.has_ended() {
            panic!("the coordinator ended with {status}: {}", service.log());
        }
        let text = fs::read_to_string(&address_file).ok()?;
        text.trim().trim_start_matches("http://").trim_end_matches('/').parse().ok()
    });
    (service, address)
}

fn is_over(job: &Job) -> bool {
    matches!(job.state(), JobState::Succeeded | JobState::Failed | JobState::Cancelled)
}

fn tell(job: &Job) -> String {
    let state = job.state().as_str_name();
    format!("{state} in generation {} after {} restarts: {}", job.generation, job.restarts, job.reason)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn show(name: &str, text: &str) {
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
    println!("---- {name}, the last {} of {} lines\n{}", shown.len(), lines.len(), shown.join("\n"));
}
