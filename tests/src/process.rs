//! Who lives, from `/proc`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::until;

/// A living process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its command line.
    pub args: Vec<String>,
}

impl Process {
    /// The rank that it trains, if it is a trainer.
    pub fn trainer(&self) -> Option<Trainer> {
        let at = self.args.iter().position(|arg| arg == "--assignment")?;
        let file = PathBuf::from(self.args.get(at + 1)?);
        let job = file.parent()?.file_name()?.to_str()?.to_owned();
        let (generation, rank) = file.file_stem()?.to_str()?.strip_prefix('g')?.split_once("-r")?;
        let (generation, rank) = (generation.parse().ok()?, rank.parse().ok()?);
        Some(Trainer { pid: self.pid, job, generation, rank, assignment: file })
    }
}

/// A living trainer process; its assignment's file says whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trainer {
    /// Its id.
    pub pid: i32,
    /// The job.
    pub job: String,
    /// The generation.
    pub generation: u32,
    /// The rank.
    pub rank: u32,
    /// `STATE_DIR/run/JOB/gNNNN-rNNN.json`.
    pub assignment: PathBuf,
}

/// Living processes whose command line names something under `folder`. Zombies have none.
pub fn living_under(folder: &Path) -> Vec<Process> {
    let needle = folder.to_str().expect("UTF-8");
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let own = std::process::id() as i32;
    pids.filter(|&pid: &i32| pid != own)
        .filter_map(|pid| {
            // Gone since the listing: no process.
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let args: Vec<String> = line
                .split(|&byte| byte == 0)
                .filter(|arg| !arg.is_empty())
                .map(|arg| String::from_utf8_lossy(arg).into_owned())
                .collect();
            args.iter().any(|arg| arg.contains(needle)).then_some(Process { pid, args })
        })
        .collect()
}

/// Living trainers of agents whose state lies under `folder`.
pub fn trainers_under(folder: &Path) -> Vec<Trainer> {
    living_under(folder).iter().filter_map(Process::trainer).collect()
}

/// Waits until nothing under `folder` lives.
pub fn until_none_under(folder: &Path, deadline: Duration) {
    until(
        &format!("no process of {} is left: {:?}", folder.display(), living_under(folder)),
        deadline,
        || living_under(folder).is_empty(),
    );
}

/// Sends a signal; a process that is gone already gets none.
pub fn signal(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}
