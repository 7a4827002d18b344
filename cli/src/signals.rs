//! The signals that end a command early.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Failure;

/// Signals listened for since its making; the process's default for them is off from then on.
pub(crate) struct Signals {
    interrupt: Signal,
    others: Option<(Signal, Signal)>,
}

impl Signals {
    /// Ctrl-C only: for commands that detach.
    pub(crate) fn ctrl_c() -> Result<Self, Failure> {
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, others: None })
    }

    /// Ctrl-C, SIGTERM and the closing of the terminal: for commands that have something to stop.
    pub(crate) fn all() -> Result<Self, Failure> {
        let others = (listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, others: Some(others) })
    }

    /// Waits for the next one.
    pub(crate) async fn recv(&mut self) {
        match &mut self.others {
            None => drop(self.interrupt.recv().await),
            Some((terminate, hangup)) => tokio::select! {
                _ = self.interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            },
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    Ok(signal(kind).context("cannot listen for signals")?)
}
