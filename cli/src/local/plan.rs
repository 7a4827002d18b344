//! What `up` and `run` will start, decided before anything is.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::lock::StateLock;
use super::programs::{COORDINATOR, WORKER, find_program};
use super::service::Service;
use crate::args::LocalArgs;
use crate::error::Failure;

/// A cluster on this machine: its folder is taken already.
pub(crate) struct Plan {
    pub(super) state_dir: PathBuf,
    pub(super) lock: StateLock,
    pub(super) workers: u32,
    pub(super) slots: u32,
    pub(super) threads: u32,
    listen: SocketAddr,
    data_roots: Vec<PathBuf>,
    coordinator_program: PathBuf,
    worker_program: PathBuf,
}

impl Plan {
    pub(crate) fn new(args: &LocalArgs, listen: SocketAddr, state_dir: &Path) -> Result<Self, Failure> {
        if !listen.ip().is_loopback() {
            return Err(Failure::Usage(format!(
                "--listen {listen} is open to other machines: `anybit up` serves this one only, on 127.0.0.1"
            )));
        }
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        let (coordinator_program, worker_program) = (find_program(COORDINATOR)?, find_program(WORKER)?);
        let data_roots = data_roots(&args.data_root)?;
        let state_dir = absolute(state_dir)?;
        Ok(Self {
            lock: StateLock::take(&state_dir)?,
            state_dir,
            workers: args.workers,
            slots: args.slots,
            threads: args.threads.unwrap_or((cores / (args.workers * args.slots)).max(1)),
            listen,
            data_roots,
            coordinator_program,
            worker_program,
        })
    }

    /// Where the coordinator writes its URL.
    pub(super) fn address_file(&self) -> PathBuf {
        self.state_dir.join("coordinator.address")
    }

    pub(super) fn coordinator(&self) -> Service {
        let args = Args::new("serve")
            .with("--listen", self.listen.to_string())
            .with("--data-dir", self.state_dir.join("coordinator"))
            .with("--address-file", self.address_file());
        Service::new("coordinator", &self.coordinator_program, args.end(), &self.state_dir)
    }

    /// The worker of this number, from 1.
    pub(super) fn worker(&self, number: u32, coordinator_url: &str) -> Service {
        let name = worker_name(number);
        let mut args = Args::new("agent")
            .with("--coordinator", coordinator_url)
            .with("--worker-id", &name)
            .with("--slots", self.slots.to_string())
            .with("--state-dir", self.state_dir.join(&name))
            .with("--checkpoint-root", self.state_dir.join("checkpoints"))
            .with("--threads", self.threads.to_string());
        for root in &self.data_roots {
            args = args.with("--data-root", root);
        }
        Service::new(&name, &self.worker_program, args.end(), &self.state_dir)
    }
}

pub(super) fn worker_name(number: u32) -> String {
    format!("worker-{number}")
}

/// A command line, built up.
struct Args(Vec<OsString>);

impl Args {
    fn new(command: &str) -> Self {
        Self(vec![command.into()])
    }

    fn with(mut self, flag: &str, value: impl Into<OsString>) -> Self {
        self.0.push(flag.into());
        self.0.push(value.into());
        self
    }

    /// Every service ends when this process does.
    fn end(mut self) -> Vec<OsString> {
        self.0.push("--exit-with-parent".into());
        self.0
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    Ok(std::path::absolute(path).with_context(|| format!("cannot resolve {}", path.display()))?)
}

/// As given; else relative paths are sought here, then where this program's presets have their
/// data, and absolute ones anywhere.
fn data_roots(given: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    if given.is_empty() {
        let here = std::env::current_dir().context("cannot tell the current folder")?;
        let own = std::env::current_exe().context("cannot tell where this program lies")?;
        let presets = home_of_presets(&own).filter(|home| *home != here);
        return Ok([Some(here), presets, Some(PathBuf::from("/"))].into_iter().flatten().collect());
    }
    for root in given {
        if !root.is_dir() {
            return Err(Failure::Usage(format!("--data-root {} is not a folder", root.display())));
        }
    }
    given.iter().map(|root| absolute(root)).collect()
}

/// The nearest folder above the program that holds `presets/data`, so that presets work from anywhere.
fn home_of_presets(program: &Path) -> Option<PathBuf> {
    program.ancestors().skip(1).find(|folder| folder.join("presets/data").is_dir()).map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_presets_data_is_found_above_the_program() {
        let folder = tempfile::tempdir().expect("folder");
        let program = folder.path().join("a/target/release/anybit");
        assert_eq!(home_of_presets(&program), None);
        std::fs::create_dir_all(folder.path().join("presets/data")).expect("made");
        assert_eq!(home_of_presets(&program).as_deref(), Some(folder.path()));
        std::fs::create_dir_all(folder.path().join("a/presets/data")).expect("made");
        assert_eq!(home_of_presets(&program), Some(folder.path().join("a")));
    }
}
