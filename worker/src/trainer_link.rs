//! A trainer's side of the socket to its agent. Synchronous: training runs without an async
//! runtime, and never waits for the agent.

use std::io::{self, BufReader};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

use anybit_proto::v1::{
    AgentMessage, ExitKind, MetricRecord, TrainerExit, TrainerMessage, TrainerPhase, agent_message,
    metric_record, trainer_message, trainer_phase,
};
use anybit_shared::ids::GlobalStep;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{dup2_stdin, getpgrp, getpid, getppid};

use crate::frame;

/// The exit status of a trainer whose agent is gone, where the process could not kill itself.
pub const AGENT_GONE_STATUS: i32 = 75;

/// Messages that wait for the agent to read; past it step records are dropped.
const QUEUED_MESSAGES: usize = 1024;
/// The last message must not keep a trainer alive whose agent does not read.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// A cheap handle on the link to the agent.
#[derive(Debug, Clone)]
pub struct TrainerLink {
    /// `None` when nobody listens and messages become log lines.
    queue: Option<SyncSender<Outgoing>>,
    stop: Arc<AtomicBool>,
    dropped: Arc<AtomicU64>,
}

/// What became of a message that may be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queued {
    Taken,
    NoRoom,
}

#[derive(Debug)]
enum Outgoing {
    Message(trainer_message::Message),
    /// Answered once everything before it is written.
    Flush(SyncSender<()>),
}

impl TrainerLink {
    /// Takes over standard input, which must be the agent's socket (an error otherwise), and puts
    /// `/dev/null` in its place. From here on this process ends with its agent: at end of file
    /// on the socket, and by SIGKILL from the kernel.
    pub fn from_stdin() -> io::Result<Self> {
        let stdin = io::stdin();
        let socket = stdin.as_fd().try_clone_to_owned()?;
        let agent = getsockopt(&socket, PeerCredentials).map_err(|error| {
            let hint = "standard input is not an agent's socket: a trainer is started by its agent";
            io::Error::new(io::ErrorKind::InvalidInput, format!("{hint} ({error})"))
        })?;
        let socket = UnixStream::from(socket);
        let writing = socket.try_clone()?;
        dup2_stdin(std::fs::File::open("/dev/null")?)?;

        let (queue, outgoing) = mpsc::sync_channel(QUEUED_MESSAGES);
        let link = Self { queue: Some(queue), stop: Arc::default(), dropped: Arc::default() };
        let (stop, dropped) = (link.stop.clone(), link.dropped.clone());
        let (ready, readiness) = mpsc::sync_channel(1);
        thread::Builder::new().name("agent-reader".to_owned()).spawn(move || {
            // The kernel ties this to the calling thread, and this one lives as long as the link.
            let tied = set_pdeathsig(Signal::SIGKILL);
            let orphan = getppid().as_raw() != agent.pid();
            // Nobody waits for the answer only when the constructor has failed already.
            let _ = ready.send(tied);
            if orphan {
                end_with_agent("the agent went away while this trainer started");
            }
            end_with_agent(&listen(&socket, &stop));
        })?;
        readiness.recv().map_err(io::Error::other)??;
        thread::Builder::new()
            .name("agent-writer".to_owned())
            .spawn(move || deliver(&writing, &outgoing, &dropped))?;
        Ok(link)
    }

    /// A link without an agent, for a trainer run by hand: messages become log lines.
    pub fn detached() -> Self {
        Self { queue: None, stop: Arc::default(), dropped: Arc::default() }
    }

    /// True once the agent asked for a checkpoint and an end.
    pub fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// How far this trainer got. `step` and `restored_from` (a checkpoint folder, empty for a
    /// fresh start) go with `Training`. The agent fills in job, generation and rank.
    pub fn phase(&self, phase: trainer_phase::Phase, step: GlobalStep, restored_from: &str) {
        let phase = TrainerPhase {
            phase: phase.into(),
            step: step.0,
            restored_from: restored_from.to_owned(),
            ..TrainerPhase::default()
        };
        self.send(trainer_message::Message::Phase(phase));
    }

    /// A record for the curves. A step record that was not skipped is dropped, and counted, when
    /// the agent does not keep up; evaluations, checkpoints and skipped steps wait for room.
    pub fn record(&self, record: MetricRecord) {
        let lasting = must_last(&record);
        let message = trainer_message::Message::Record(record);
        if lasting {
            self.send(message);
        } else if self.try_send(message) == Queued::NoRoom {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The step committed last; on every rank after every step.
    pub fn heartbeat(&self, step: GlobalStep) {
        // A full queue holds news of life already.
        self.try_send(trainer_message::Message::HeartbeatStep(step.0));
    }

    /// The last message: how this trainer ends. Returns once it is written; an agent that does not read
    /// is waited for at most five seconds after all before it was taken.
    pub fn exit(&self, kind: ExitKind, message: &str) {
        self.send(trainer_message::Message::Exit(TrainerExit {
            kind: kind.into(),
            message: message.to_owned(),
        }));
        let Some(queue) = &self.queue else { return };
        let (done, written) = mpsc::sync_channel(1);
        if queue.send(Outgoing::Flush(done)).is_ok() {
            // Nothing is left to do about a message that could not be written.
            let _ = written.recv_timeout(FLUSH_TIMEOUT);
        }
    }

    /// Step records dropped and not yet told to the agent.
    pub fn dropped_step_records(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn send(&self, message: trainer_message::Message) {
        match &self.queue {
            // The writer ends only with the socket, and then the reader ends this process.
            Some(queue) => drop(queue.send(Outgoing::Message(message))),
            None => log_line(&message),
        }
    }

    fn try_send(&self, message: trainer_message::Message) -> Queued {
        let Some(queue) = &self.queue else {
            log_line(&message);
            return Queued::Taken;
        };
        match queue.try_send(Outgoing::Message(message)) {
            Ok(()) => Queued::Taken,
            Err(_) => Queued::NoRoom,
        }
    }
}

/// True for records that no pressure may drop: all but the metrics of a step that was committed.
pub(crate) fn must_last(record: &MetricRecord) -> bool {
    match &record.record {
        Some(metric_record::Record::Step(step)) => step.skipped.is_some(),
        Some(metric_record::Record::Evaluation(_) | metric_record::Record::Checkpoint(_)) => true,
        None => false,
    }
}

/// Reads until the agent is gone; says why.
fn listen(socket: &UnixStream, stop: &AtomicBool) -> String {
    let mut from = BufReader::new(socket);
    loop {
        match frame::read::<AgentMessage>(&mut from) {
            Ok(Some(AgentMessage { message: Some(agent_message::Message::Stop(_)) })) => {
                tracing::info!("the agent asks for a checkpoint and an end");
                stop.store(true, Ordering::Relaxed);
            }
            Ok(Some(AgentMessage { message: None })) => {
                tracing::warn!("the agent sent a message that this version does not know");
            }
            Ok(None) => return "the agent is gone".to_owned(),
            Err(error) => return format!("the agent is gone: {error}"),
        }
    }
}

/// Ends the process without running destructors, which could wait for threads that hang in a
/// collective. As leader of its process group it takes along what it may have started.
fn end_with_agent(why: &str) -> ! {
    tracing::error!("{why}: ending");
    if getpgrp() == getpid() {
        // Does not return when it succeeds.
        let _ = killpg(getpgrp(), Signal::SIGKILL);
    }
    std::process::exit(AGENT_GONE_STATUS)
}

fn deliver(mut socket: &UnixStream, outgoing: &Receiver<Outgoing>, dropped: &AtomicU64) {
    for item in outgoing {
        match item {
            Outgoing::Message(message) => {
                let last = matches!(message, trainer_message::Message::Exit(_));
                let dropped_step_records = dropped.swap(0, Ordering::Relaxed);
                let message = TrainerMessage { message: Some(message), dropped_step_records };
                if let Err(error) = frame::write(&mut socket, &message) {
                    tracing::warn!("cannot write to the agent: {error}");
                    return;
                }
                if last {
                    // Fails only when the agent has gone, which the reader sees.
                    let _ = socket.shutdown(Shutdown::Write);
                }
            }
            Outgoing::Flush(done) => drop(done.send(())),
        }
    }
}

fn log_line(message: &trainer_message::Message) {
    match message {
        trainer_message::Message::HeartbeatStep(step) => tracing::trace!(step, "step committed"),
        other => tracing::info!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use anybit_proto::v1::{EvaluationMetrics, SkippedStep, StepMetrics};

    use super::*;

    fn step(step: u64) -> MetricRecord {
        let metrics = StepMetrics { step, ..StepMetrics::default() };
        MetricRecord { record: Some(metric_record::Record::Step(metrics)), ..MetricRecord::default() }
    }

    fn linked(capacity: usize) -> (TrainerLink, Receiver<Outgoing>) {
        let (queue, outgoing) = mpsc::sync_channel(capacity);
        (TrainerLink { queue: Some(queue), stop: Arc::default(), dropped: Arc::default() }, outgoing)
    }

    #[test]
    fn step_records_are_dropped_and_counted_when_the_agent_does_not_read() {
        let (link, _outgoing) = linked(2);
        for n in 1..=5 {
            link.record(step(n));
            link.heartbeat(GlobalStep(n));
        }
        assert_eq!(link.dropped_step_records(), 4);
    }

    #[test]
    fn the_next_message_tells_the_agent_how_many_were_dropped() {
        let (link, outgoing) = linked(8);
        link.dropped.store(7, Ordering::Relaxed);
        link.record(step(1));
        link.record(step(2));
        let dropped = link.dropped.clone();
        drop(link);
        let (here, there) = UnixStream::pair().unwrap();
        deliver(&here, &outgoing, &dropped);
        drop(here);
        let mut from = BufReader::new(there);
        let mut told = Vec::new();
        while let Some(message) = frame::read::<TrainerMessage>(&mut from).unwrap() {
            told.push(message.dropped_step_records);
        }
        assert_eq!(told, [7, 0]);
    }

    #[test]
    fn skipped_steps_and_evaluations_must_last() {
        let skipped = StepMetrics { skipped: Some(SkippedStep::default()), ..StepMetrics::default() };
        let record = |record| MetricRecord { record: Some(record), ..MetricRecord::default() };
        assert!(must_last(&record(metric_record::Record::Step(skipped))));
        assert!(must_last(&record(metric_record::Record::Evaluation(EvaluationMetrics::default()))));
        assert!(!must_last(&step(1)));
    }

    #[test]
    fn a_detached_link_never_blocks() {
        let link = TrainerLink::detached();
        link.record(step(1));
        link.exit(ExitKind::Succeeded, "done");
        assert!(!link.stop_requested());
    }
}
