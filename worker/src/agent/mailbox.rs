//! The outbox, shared: filled by the supervisor and the log relays, emptied by the session.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::outbox::{Limits, Outbox};

/// A cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Mailbox {
    outbox: Arc<Mutex<Outbox>>,
    changed: Arc<Notify>,
}

impl Mailbox {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { outbox: Arc::new(Mutex::new(Outbox::new(limits))), changed: Arc::default() }
    }

    /// Changes the outbox and wakes who waits for a change.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Outbox) -> T) -> T {
        let result = self.look(change);
        self.changed.notify_one();
        result
    }

    /// The same without waking anybody.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&mut Outbox) -> T) -> T {
        look(&mut self.outbox.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns after the next change, or at once when one was missed.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}
