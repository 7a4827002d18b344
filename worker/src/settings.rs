//! The agent's settings: a file, then `ANYBIT_WORKER_*`, then flags.

use std::net::IpAddr;
use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

use anybit_shared::ids::WorkerId;
use anybit_shared::settings::{self, duration, list};
use anybit_shared::telemetry::LogFormat;
use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use tonic::transport::Uri;

/// The prefix of the environment's variables: `ANYBIT_WORKER_SLOTS` sets `slots`.
pub const ENVIRONMENT_PREFIX: &str = "ANYBIT_WORKER";

/// The flags of `anybit-worker agent`; each overrides the setting of its name.
#[derive(Debug, Clone, Default, Args)]
pub struct AgentArgs {
    /// Settings file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The coordinator, for example http://127.0.0.1:7420
    #[arg(long, value_name = "URL")]
    coordinator: Option<String>,
    /// This worker's name in the cluster [default: the host's name]
    #[arg(long, value_name = "ID")]
    worker_id: Option<String>,
    /// Trainers that may run here at a time
    #[arg(long, value_name = "N")]
    slots: Option<String>,
    /// Folder for logs and what runs; one agent each
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// Folder that jobs may read data from; may be given more than once
    #[arg(long = "data-root", value_name = "DIR")]
    data_roots: Vec<String>,
    /// Folder for the jobs' checkpoints, shared by all workers of a job
    #[arg(long, value_name = "DIR")]
    checkpoint_root: Option<String>,
    /// Compute threads of a trainer; 0: cores / slots
    #[arg(long, value_name = "N")]
    threads: Option<String>,
    /// Network interface or address for the collectives
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Memory limit of a trainer
    #[arg(long, value_name = "N")]
    memory_limit_mib: Option<String>,
    /// Log lines for people or as JSON
    #[arg(long, value_name = "human|json")]
    log_format: Option<String>,
    /// End when the process that started this one ends
    #[arg(long)]
    exit_with_parent: bool,
    /// Allow a plaintext connection to a coordinator on another host
    #[arg(long)]
    insecure: bool,
    /// Print the settings and end
    #[arg(long)]
    pub check_config: bool,
}

/// An agent's settings, checked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AgentSettings {
    /// The coordinator's URL.
    pub coordinator: String,
    /// This worker's name in the cluster.
    pub worker_id: WorkerId,
    /// Trainers that may run here at a time.
    pub slots: u32,
    /// Folder for logs and what runs.
    pub state_dir: PathBuf,
    /// Folders that jobs may read data from.
    pub data_roots: Vec<PathBuf>,
    /// Folder for the jobs' checkpoints.
    pub checkpoint_root: PathBuf,
    /// Compute threads of a trainer; 0: cores / slots.
    pub threads: u32,
    /// Network interface or address for the collectives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Memory limit of a trainer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit_mib: Option<u64>,
    /// A trainer's collective that takes longer fails; longer than the coordinator's lease.
    #[serde(with = "duration")]
    pub collective_timeout: Duration,
    /// All ranks must have met within this time; longer than `collective_timeout`.
    #[serde(with = "duration")]
    pub rendezvous_timeout: Duration,
    /// A trainer that trains and says nothing for this long is killed, and reported as crashed; 0s:
    /// never. A trainer speaks after every step and every batch of an evaluation, but not while it
    /// writes a checkpoint or waits for one: longer than the longest of each, and longer than
    /// `collective_timeout`, or a trainer that waits for a lost peer would be blamed. Until it trains,
    /// the coordinator's `start_timeout` counts.
    #[serde(with = "duration")]
    pub stall_timeout: Duration,
    /// What trainers get to write a checkpoint when the agent is told to end.
    #[serde(with = "duration")]
    pub stop_grace: Duration,
    /// Log lines for people or as JSON.
    pub log_format: LogFormat,
    /// End when the process that started this one ends.
    pub exit_with_parent: bool,
    /// Plaintext to another host is allowed.
    pub insecure: bool,
}

/// The settings as given, before they are checked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Given {
    coordinator: String,
    worker_id: Option<String>,
    slots: u32,
    state_dir: PathBuf,
    #[serde(deserialize_with = "list")]
    data_roots: Vec<PathBuf>,
    checkpoint_root: PathBuf,
    threads: u32,
    interface: Option<String>,
    memory_limit_mib: Option<u64>,
    #[serde(with = "duration")]
    collective_timeout: Duration,
    #[serde(with = "duration")]
    rendezvous_timeout: Duration,
    #[serde(with = "duration")]
    stall_timeout: Duration,
    #[serde(with = "duration")]
    stop_grace: Duration,
    log_format: LogFormat,
    exit_with_parent: bool,
    insecure: bool,
}

impl Default for Given {
    fn default() -> Self {
        Self {
            coordinator: String::new(),
            worker_id: None,
            slots: 1,
            state_dir: PathBuf::new(),
            data_roots: Vec::new(),
            checkpoint_root: PathBuf::new(),
            threads: 0,
            interface: None,
            memory_limit_mib: None,
            collective_timeout: Duration::from_secs(60),
            rendezvous_timeout: Duration::from_secs(300),
            stall_timeout: Duration::from_secs(600),
            stop_grace: Duration::from_secs(20),
            log_format: LogFormat::default(),
            exit_with_parent: false,
            insecure: false,
        }
    }
}

impl AgentArgs {
    /// The settings from all sources, checked. Relative folders are made absolute.
    pub fn load(&self) -> anyhow::Result<AgentSettings> {
        settings::load::<Given>(self.config.as_deref(), ENVIRONMENT_PREFIX, self.overrides())?.check()
    }

    fn overrides(&self) -> Vec<(String, String)> {
        let roots = (!self.data_roots.is_empty()).then(|| self.data_roots.join(","));
        let flag = |given: bool| given.then(|| "true".to_owned());
        let pairs = [
            ("coordinator", self.coordinator.clone()),
            ("worker_id", self.worker_id.clone()),
            ("slots", self.slots.clone()),
            ("state_dir", self.state_dir.clone()),
            ("data_roots", roots),
            ("checkpoint_root", self.checkpoint_root.clone()),
            ("threads", self.threads.clone()),
            ("interface", self.interface.clone()),
            ("memory_limit_mib", self.memory_limit_mib.clone()),
            ("log_format", self.log_format.clone()),
            ("exit_with_parent", flag(self.exit_with_parent)),
            ("insecure", flag(self.insecure)),
        ];
        pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }
}

impl Given {
    fn check(self) -> anyhow::Result<AgentSettings> {
        check_coordinator(&self.coordinator, self.insecure)?;
        ensure!(self.slots > 0, "slots is 0: use at least 1");
        ensure!(
            self.collective_timeout < self.rendezvous_timeout,
            "collective_timeout, {:?}, must be shorter than rendezvous_timeout, {:?}",
            self.collective_timeout,
            self.rendezvous_timeout
        );
        ensure!(
            self.stall_timeout.is_zero() || self.collective_timeout < self.stall_timeout,
            "collective_timeout, {:?}, must be shorter than stall_timeout, {:?} (0s: trainers may be silent for \
             ever)",
            self.collective_timeout,
            self.stall_timeout
        );
        ensure!(!self.collective_timeout.is_zero(), "collective_timeout is 0: use for example 60s");
        ensure!(self.memory_limit_mib != Some(0), "memory_limit_mib is 0: leave it out for no limit");
        let worker_id = self.worker_id.unwrap_or_else(hostname);
        Ok(AgentSettings {
            worker_id: WorkerId::new(worker_id).context("worker_id")?,
            coordinator: self.coordinator,
            slots: self.slots,
            state_dir: folder("state_dir", &self.state_dir)?,
            data_roots: self.data_roots.iter().map(|root| data_root(root)).collect::<Result<_, _>>()?,
            checkpoint_root: folder("checkpoint_root", &self.checkpoint_root)?,
            threads: self.threads,
            interface: self.interface.filter(|name| !name.is_empty()),
            memory_limit_mib: self.memory_limit_mib,
            collective_timeout: self.collective_timeout,
            rendezvous_timeout: self.rendezvous_timeout,
            stall_timeout: self.stall_timeout,
            stop_grace: self.stop_grace,
            log_format: self.log_format,
            exit_with_parent: self.exit_with_parent,
            insecure: self.insecure,
        })
    }
}

impl AgentSettings {
    /// Compute threads of one trainer.
    pub fn threads_per_trainer(&self) -> u32 {
        if self.threads > 0 {
            return self.threads;
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (cores as u32 / self.slots.max(1)).max(1)
    }
}

/// This host's name, as far as it can be told.
pub(crate) fn hostname() -> String {
    nix::unistd::gethostname()
        .map_or_else(|_| "localhost".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn folder(key: &str, path: &Path) -> anyhow::Result<PathBuf> {
    if path.as_os_str().is_empty() {
        let flag = key.replace('_', "-");
        let variable = key.to_uppercase();
        bail!(
            "{key} is not set: give --{flag}, {ENVIRONMENT_PREFIX}_{variable} or {key} in the settings file"
        );
    }
    absolute(path).with_context(|| format!("{key} {} is no path", path.display()))
}

fn data_root(path: &Path) -> anyhow::Result<PathBuf> {
    let path = folder("data_roots", path)?;
    ensure!(path.is_dir(), "data root {} is not a folder", path.display());
    Ok(path)
}

fn check_coordinator(url: &str, insecure: bool) -> anyhow::Result<()> {
    ensure!(
        !url.is_empty(),
        "coordinator is not set: give --coordinator, {ENVIRONMENT_PREFIX}_COORDINATOR or coordinator in the \
         settings file, for example http://127.0.0.1:7420"
    );
    let uri: Uri = url.parse().with_context(|| format!("coordinator {url:?} is no URL"))?;
    let (Some("http"), Some(host)) = (uri.scheme_str(), uri.host()) else {
        bail!("coordinator {url:?} is not valid: use http://HOST:PORT");
    };
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let loopback = host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|a| a.is_loopback());
    ensure!(
        loopback || insecure,
        "coordinator {url:?} is on another host, and the connection would be plaintext: give --insecure to \
         allow that on a network you trust"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        agent: AgentArgs,
    }

    const LEAST: &[&str] =
        &["--coordinator", "http://127.0.0.1:1", "--state-dir", "s", "--checkpoint-root", "/c"];

    fn load(more: &[&str]) -> anyhow::Result<AgentSettings> {
        let args = ["anybit-worker"].iter().chain(LEAST).chain(more);
        Program::try_parse_from(args)?.agent.load()
    }

    fn error(more: &[&str]) -> String {
        format!("{:#}", load(more).unwrap_err())
    }

    #[test]
    fn little_is_needed() {
        let settings = load(&["--worker-id", "w1"]).unwrap();
        assert_eq!((settings.slots, settings.worker_id.as_str()), (1, "w1"));
        assert!(settings.state_dir.is_absolute());
        assert!(settings.threads_per_trainer() >= 1);
        assert_eq!(settings.collective_timeout, Duration::from_secs(60));
        assert_eq!(settings.stall_timeout, Duration::from_secs(600));
    }

    #[test]
    fn plaintext_leaves_the_host_only_when_asked() {
        for near in ["http://localhost:1", "http://[::1]:1", "http://127.8.8.8:1"] {
            check_coordinator(near, false).unwrap();
        }
        for far in ["http://10.0.0.1:1", "http://coordinator:1", "http://localhost.example.org:1"] {
            let error = check_coordinator(far, false).unwrap_err().to_string();
            assert!(error.contains("--insecure"), "{error}");
            check_coordinator(far, true).unwrap();
        }
        assert!(check_coordinator("10.0.0.1", true).is_err());
        assert!(check_coordinator("https://localhost:1", true).is_err());
    }

    #[test]
    fn timeouts_must_nest() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let args = ["--worker-id", "w", "--config", file.path().to_str().unwrap()];
        let write = |text: &str| std::fs::write(file.path(), text).unwrap();
        for (text, above) in [
            ("collective_timeout = \"5m\"\n", "rendezvous_timeout"),
            ("stall_timeout = \"1m\"\n", "stall_timeout"),
        ] {
            write(text);
            let error = error(&args);
            assert!(error.contains("collective_timeout") && error.contains(above), "{error}");
        }
        for off in ["0s", "0"] {
            write(&format!("stall_timeout = \"{off}\"\n"));
            assert!(load(&args).unwrap().stall_timeout.is_zero());
        }
    }

    #[test]
    fn data_roots_must_be_there() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().to_str().unwrap();
        let settings = load(&["--worker-id", "w", "--data-root", path, "--data-root", "/"]).unwrap();
        assert_eq!(settings.data_roots, [root.path(), Path::new("/")]);
        assert!(error(&["--worker-id", "w", "--data-root", "/nowhere/at/all"]).contains("/nowhere/at/all"));
    }

    #[test]
    fn what_is_missing_is_named_with_all_ways_to_give_it() {
        let error = Program::try_parse_from(["p", "--coordinator", "http://[::1]:1"]).unwrap();
        let error = error.agent.load().unwrap_err().to_string();
        assert!(error.contains("--state-dir") && error.contains("ANYBIT_WORKER_STATE_DIR"), "{error}");
    }

    #[test]
    fn wrong_values_name_their_key() {
        assert!(error(&["--slots", "many"]).contains("slots"));
        assert!(error(&["--worker-id", "a b"]).contains("worker_id"));
        assert!(error(&["--memory-limit-mib", "0"]).contains("memory_limit_mib"));
    }
}
