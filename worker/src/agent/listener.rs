//! Listens to one trainer: passes on what it says, and notices when it says no more.

use std::convert::Infallible;
use std::io::{BufReader, ErrorKind};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anybit_proto::v1::{TrainerExit, TrainerMessage, trainer_message, trainer_phase::Phase};
use anybit_shared::ids::GlobalStep;
use tokio::sync::mpsc::Sender;

use super::exit::{OomBaseline, oom_kill_count};
use super::key::RankKey;
use super::ledger::Event;
use super::supervisor::Input;
use crate::frame;

/// One trainer's listener.
#[derive(Debug)]
pub(crate) struct Listener<'a> {
    key: &'a RankKey,
    socket: &'a UnixStream,
    inputs: &'a Sender<Input>,
    stall_timeout: Option<Duration>,
    /// None until the trainer trains.
    patience: Option<Duration>,
    oom_kills: OomBaseline,
    last_word: Option<TrainerExit>,
}

/// The trainer gave no sign of life for this long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stalled(pub(crate) Duration);

impl<'a> Listener<'a> {
    /// With the OOM killer's count from before the trainer started.
    pub(crate) fn new(
        key: &'a RankKey,
        socket: &'a UnixStream,
        inputs: &'a Sender<Input>,
        stall_timeout: Option<Duration>,
        oom_kills: OomBaseline,
    ) -> Self {
        Self { key, socket, inputs, stall_timeout, patience: None, oom_kills, last_word: None }
    }

    /// What the trainer said last, and what the OOM killer took since its last signs of life.
    pub(crate) fn heard(self) -> (Option<TrainerExit>, u64) {
        (self.last_word, self.oom_kills.since(oom_kill_count()))
    }

    /// Returns when the trainer has ended or closed its socket, or when it stalls. `ended` closes with
    /// the process.
    pub(crate) fn listen(&mut self, ended: &Receiver<Infallible>) -> Result<(), Stalled> {
        let mut from = BufReader::new(self.socket);
        loop {
            match frame::read::<TrainerMessage>(&mut from) {
                Ok(Some(message)) => self.take(message),
                Ok(None) => break,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return self.patience.map_or(Ok(()), |patience| Err(Stalled(patience)));
                }
                Err(error) => {
                    tracing::warn!(key = %self.key, "a trainer's message is damaged, closing its socket: {error}");
                    // It ends itself at end of file; a silent listener would let it hang instead.
                    let _ = self.socket.shutdown(Shutdown::Both);
                    break;
                }
            }
        }
        // It has no more to say, but may still hang on its way out.
        match self.patience.map(|patience| (patience, ended.recv_timeout(patience))) {
            Some((patience, Err(RecvTimeoutError::Timeout))) => Err(Stalled(patience)),
            _ => Ok(()),
        }
    }

    fn take(&mut self, message: TrainerMessage) {
        self.oom_kills.refresh(Instant::now(), oom_kill_count);
        if message.dropped_step_records > 0 {
            send(self.inputs, Input::Dropped(self.key.clone(), message.dropped_step_records));
        }
        match message.message {
            Some(trainer_message::Message::Phase(phase)) => {
                if phase.phase() == Phase::Training {
                    self.expect_news();
                }
                send(self.inputs, Input::Event(Event::Phase(self.key.clone(), phase)));
            }
            Some(trainer_message::Message::Record(record)) => {
                send(self.inputs, Input::Record(self.key.clone(), record));
            }
            Some(trainer_message::Message::HeartbeatStep(step)) => {
                send(self.inputs, Input::Event(Event::Heartbeat(self.key.clone(), GlobalStep(step))));
            }
            Some(trainer_message::Message::Exit(exit)) => self.last_word = Some(exit),
            None => {
                tracing::debug!(key = %self.key, "a trainer sent a message that this agent does not know")
            }
        }
    }

    /// From now on silence is a hang. Each wait for the socket counts, so the time that this agent
    /// itself takes does not.
    fn expect_news(&mut self) {
        match self.socket.set_read_timeout(self.stall_timeout) {
            Ok(()) => self.patience = self.stall_timeout,
            Err(error) => {
                tracing::warn!(key = %self.key, "a hang of this trainer will not be noticed: {error}")
            }
        }
    }
}

pub(super) fn send(inputs: &Sender<Input>, input: Input) {
    // Without a supervisor this process is at its end, and its trainers with it.
    let _ = inputs.blocking_send(input);
}
