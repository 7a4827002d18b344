//! One child process, kept alive until it is told to stop.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::client::Backoff;
use crate::text;

/// A life this long makes the next restart quick again.
const STEADY: Duration = Duration::from_secs(30);
/// Lines of a log that say why a start failed.
const TAIL_LINES: usize = 10;
const TAIL_BYTES: u64 = 16 * 1024;

/// A program, its arguments and its log.
pub(super) struct Service {
    pub(super) name: String,
    pub(super) log: PathBuf,
    program: PathBuf,
    args: Mutex<Vec<OsString>>,
    /// Where this cluster's part of the log begins.
    log_start: u64,
    /// 0 while no process lives.
    pid: AtomicU32,
}

/// How a service is asked to end.
#[derive(Clone)]
pub(super) struct Stop {
    /// SIGTERM now, SIGKILL after the grace.
    pub(super) ask: CancellationToken,
    /// SIGKILL now.
    pub(super) hurry: CancellationToken,
    pub(super) grace: Duration,
}

/// A service's process ended by itself.
pub(super) struct Ended {
    pub(super) name: String,
    /// For people: which service, how it ended, when it is started again.
    pub(super) text: String,
}

impl Service {
    pub(super) fn new(name: &str, program: &Path, args: Vec<OsString>, state_dir: &Path) -> Self {
        let log = state_dir.join(format!("{name}.log"));
        let log_start = std::fs::metadata(&log).map_or(0, |meta| meta.len());
        Self {
            name: name.to_owned(),
            program: program.to_owned(),
            args: Mutex::new(args),
            log,
            log_start,
            pid: AtomicU32::new(0),
        }
    }

    /// The living process's id.
    pub(super) fn pid(&self) -> Option<u32> {
        Some(self.pid.load(Ordering::Relaxed)).filter(|&pid| pid != 0)
    }

    /// Changes the value after `flag` for the next start.
    pub(super) fn set(&self, flag: &str, value: &str) {
        let mut args = self.args.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = args.iter().position(|arg| arg == flag)
            && let Some(old) = args.get_mut(at + 1)
        {
            *old = value.into();
        }
    }

    /// Starts the process over and over, until it is told to stop and has stopped.
    ///
    /// Spawns from the calling thread, which must live as long as the process: the child asks the
    /// kernel for a signal when its parent *thread* is gone.
    pub(super) async fn keep(&self, stop: Stop, ended: mpsc::Sender<Ended>) {
        let mut backoff = Backoff::new();
        loop {
            let started = Instant::now();
            let how = match self.spawn() {
                Err(error) => format!("cannot be started: {error:#}"),
                Ok(mut child) => {
                    self.pid.store(child.id().unwrap_or(0), Ordering::Relaxed);
                    let status = tokio::select! {
                        status = child.wait() => Some(status),
                        () = stop.ask.cancelled() => None,
                    };
                    let Some(status) = status else {
                        terminate(&mut child, &stop).await;
                        self.pid.store(0, Ordering::Relaxed);
                        return;
                    };
                    self.pid.store(0, Ordering::Relaxed);
                    status.map_or_else(|error| format!("was lost: {error}"), describe)
                }
            };
            if started.elapsed() >= STEADY {
                backoff.reset();
            }
            let pause = backoff.advance();
            let again = text::duration(pause.as_secs_f64());
            let text =
                format!("{} {how}; starting it again in {again} (log: {})", self.name, self.log.display());
            // Full only when nobody listens any more.
            let _ = ended.try_send(Ended { name: self.name.clone(), text });
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.ask.cancelled() => return,
            }
        }
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot open the log {}", self.log.display()))?;
        let errors = log.try_clone().context("cannot share the log")?;
        let args = self.args.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Command::new(&self.program)
            .args(args)
            .env(anybit_shared::parent::PARENT_PID, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // Ctrl-C in the terminal reaches this process only, which then stops the others in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))
    }

    /// The last lines that this cluster's processes wrote.
    pub(super) fn log_tail(&self) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&self.log)?;
            let end = file.metadata()?.len();
            file.seek(SeekFrom::Start(self.log_start.max(end.saturating_sub(TAIL_BYTES)).min(end)))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let first = lines.len().saturating_sub(TAIL_LINES);
        lines[first..].iter().map(|line| format!("\n  {}", crate::out::one_line(line))).collect()
    }
}

/// `ended with exit code 2`, `was killed by SIGKILL`.
fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("was killed by {signal}"),
            Err(_) => format!("was killed by signal {number}"),
        },
        (None, None) => format!("ended: {status}"),
    }
}

/// SIGTERM, then after the grace SIGKILL to its whole process group.
async fn terminate(child: &mut Child, stop: &Stop) {
    let Some(group) = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw) else {
        return;
    };
    let _ = killpg(group, Signal::SIGTERM);
    tokio::select! {
        _ = child.wait() => return,
        () = tokio::time::sleep(stop.grace) => {}
        () = stop.hurry.cancelled() => {}
    }
    let _ = killpg(group, Signal::SIGKILL);
    let _ = child.wait().await;
}
