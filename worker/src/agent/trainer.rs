//! One trainer process: started, listened to, waited for and killed by one dedicated OS thread.
//!
//! The thread lives as long as the process, because the kernel ties a child's "parent died"
//! signal to the thread that started it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anybit_proto::v1::{AgentMessage, ExitKind, StopTraining, agent_message};
use anyhow::Context;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::sync::mpsc::Sender;

use super::exit::{Death, KillReason, OomBaseline, classify, oom_kill_count};
use super::key::RankKey;
use super::ledger::Event;
use super::listener::{Listener, Stalled, send};
use super::state_dir::StateDir;
use super::supervisor::Input;
use crate::assignment::Assignment;
use crate::frame;

/// The program that trains; `--assignment FILE` is added to its arguments.
#[derive(Debug, Clone)]
pub struct TrainerCommand {
    /// The executable.
    pub program: PathBuf,
    /// The arguments before `--assignment`.
    pub args: Vec<OsString>,
}

impl TrainerCommand {
    /// `trainer` of this very program, even if its file was replaced since it started.
    pub fn this_program() -> Self {
        Self { program: "/proc/self/exe".into(), args: vec!["trainer".into()] }
    }
}

/// What a trainer is started with.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) key: RankKey,
    pub(crate) command: TrainerCommand,
    pub(crate) assignment: Assignment,
    pub(crate) state_dir: Arc<StateDir>,
    /// A trainer that trains may be silent for this long; none: for ever.
    pub(crate) stall_timeout: Option<Duration>,
}

/// A hold on a trainer from outside its thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct TrainerHandle {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    life: Life,
    stop_asked: bool,
    killed_because: Option<KillReason>,
}

/// The process group may be signalled only while its leader is not yet reaped: later the number
/// could belong to someone else.
#[derive(Debug, Default)]
enum Life {
    #[default]
    Starting,
    Running {
        group: Pid,
        socket: UnixStream,
    },
    Ended,
}

impl TrainerHandle {
    /// Starts a trainer. `Spawned` follows if it could be started; `Exited` follows always.
    pub(crate) fn start(start: Start, inputs: Sender<Input>) -> io::Result<Self> {
        let handle = Self::default();
        let inner = handle.clone();
        thread::Builder::new().name(format!("trainer-{}", start.assignment.rank)).spawn(move || {
            let (kind, message) = inner
                .live(&start, &inputs)
                .unwrap_or_else(|error| (ExitKind::Crashed, format!("cannot start the trainer: {error:#}")));
            send(&inputs, Input::Event(Event::Exited(start.key, kind, message)));
        })?;
        Ok(handle)
    }

    /// Asks for a checkpoint and an end.
    pub(crate) fn ask_to_stop(&self) {
        let mut state = self.lock();
        state.stop_asked = true;
        state.deliver_stop();
    }

    /// Ends the whole process group now.
    pub(crate) fn kill(&self, reason: &str) {
        self.kill_because(KillReason::Unwanted(reason.to_owned()));
    }

    fn kill_because(&self, reason: KillReason) {
        let mut state = self.lock();
        state.killed_because.get_or_insert(reason);
        state.deliver_kill();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From the start of the process to its end.
    fn live(&self, start: &Start, inputs: &Sender<Input>) -> anyhow::Result<(ExitKind, String)> {
        let oom_kills = OomBaseline::new(oom_kill_count(), Instant::now());
        let log = start.state_dir.log_file(&start.key);
        let (mut child, socket) = spawn(start, start.state_dir.open_log(&start.key)?)?;
        let group = Pid::from_raw(child.id() as i32);
        let running = socket.try_clone().map(|socket| self.begin(group, socket));
        send(inputs, Input::Event(Event::Spawned(start.key.clone())));
        let mut listener = Listener::new(&start.key, &socket, inputs, start.stall_timeout, oom_kills);
        let (alive, ended) = mpsc::channel();
        let status = thread::scope(|scope| {
            let listening = scope.spawn({
                let listener = &mut listener;
                move || {
                    if let Err(Stalled(silence)) = listener.listen(&ended) {
                        tracing::warn!(key = %start.key, "no sign of life for {silence:?}: killing the trainer");
                        self.kill_because(KillReason::Stalled(silence));
                    }
                }
            });
            if running.is_err() {
                // Out of file descriptors: without the socket nobody could stop it in order.
                let _ = killpg(group, Signal::SIGKILL);
            }
            let status = self.wait(&mut child, group);
            drop(alive);
            // A process that left the group may still hold the other end; what was sent stays.
            let _ = socket.shutdown(Shutdown::Both);
            // Were it to panic, what it heard before still counts.
            let _ = listening.join();
            status
        });
        let (reported, oom_kills) = listener.heard();
        running.context("cannot keep the trainer's socket")?;
        let death = Death {
            reported,
            end: status.context("cannot wait for the trainer")?.into(),
            killed_because: self.lock().killed_because.clone(),
            oom_kills,
            log,
        };
        Ok(classify(&death))
    }

    fn begin(&self, group: Pid, socket: UnixStream) {
        let mut state = self.lock();
        state.life = Life::Running { group, socket };
        if state.stop_asked {
            state.deliver_stop();
        }
        if state.killed_because.is_some() {
            state.deliver_kill();
        }
    }

    /// Waits for the leader, takes the rest of its group along, and only then reaps it.
    fn wait(&self, child: &mut Child, group: Pid) -> io::Result<ExitStatus> {
        while waitid(Id::Pid(group), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
        let mut state = self.lock();
        // Fails only where nobody is left.
        let _ = killpg(group, Signal::SIGKILL);
        state.life = Life::Ended;
        child.wait()
    }
}

impl State {
    fn deliver_stop(&mut self) {
        let Life::Running { socket, .. } = &mut self.life else { return };
        let stop = AgentMessage { message: Some(agent_message::Message::Stop(StopTraining {})) };
        if let Err(error) = frame::write(socket, &stop) {
            tracing::debug!("cannot ask a trainer to stop, it is ending: {error}");
        }
    }

    fn deliver_kill(&mut self) {
        let Life::Running { group, .. } = &self.life else { return };
        if let Err(error) = killpg(*group, Signal::SIGKILL) {
            tracing::warn!(%group, "cannot kill a trainer's process group: {error}");
        }
    }
}

fn spawn(start: &Start, log: File) -> anyhow::Result<(Child, UnixStream)> {
    let path = start.state_dir.assignment_file(&start.key);
    start.assignment.write(&path)?;
    let (ours, theirs) = UnixStream::pair().context("no socket")?;
    let TrainerCommand { program, args } = &start.command;
    let child = Command::new(program)
        .arg0("anybit-worker")
        .args(args)
        .arg("--assignment")
        .arg(&path)
        // Read when the library loads, before a program could set it.
        .env("OMP_NUM_THREADS", start.assignment.threads.to_string())
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    Ok((child, ours))
}
