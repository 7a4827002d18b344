//! The engine's end of an agent's stream.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anybit_shared::ids::{Generation, JobId, Rank};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What the coordinator says to an agent.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// First on every stream.
    Welcome {
        /// Silence for this long loses the lease.
        lease: Duration,
        /// Speak at least this often.
        heartbeat: Duration,
    },
    /// Everything up to this sequence is stored.
    Acknowledge(u64),
    /// Open the rendezvous store.
    HostStore {
        /// The job.
        job: JobId,
        /// The generation.
        generation: Generation,
    },
    /// Start trainers.
    StartRanks {
        /// The job.
        job: JobId,
        /// The generation.
        generation: Generation,
        /// Ranks in all.
        world_size: u32,
        /// The worker's own.
        ranks: Vec<Rank>,
        /// The resolved spec.
        spec_toml: String,
        /// Where they meet.
        store_address: String,
        /// Generations whose checkpoints may be restored, ascending.
        restorable: Vec<Generation>,
    },
    /// End what is held of a generation.
    StopGeneration {
        /// The job.
        job: JobId,
        /// The generation.
        generation: Generation,
        /// Time for a checkpoint; zero kills.
        grace: Duration,
        /// Why.
        reason: String,
    },
}

/// Why the coordinator ends an agent's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloseReason {
    /// A newer agent uses the same worker id, or the same agent a newer stream.
    Superseded,
    /// It was silent for longer than a lease.
    LeaseLost,
    /// It does not read what it is sent.
    TooSlow,
    /// A message could not be stored: attach and send it again.
    NotStored,
    /// The coordinator is shutting down.
    ShuttingDown,
}

/// Goes out on an agent's stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Outbound {
    /// To be sent.
    Order(Order),
    /// The last.
    Close(CloseReason),
}

/// When an agent was last heard, noted where its messages arrive: work that waits in the engine
/// does not age the lease.
#[derive(Debug, Clone)]
pub struct LastSeen(Arc<Mutex<Instant>>);

impl LastSeen {
    /// Heard now.
    pub fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(now)))
    }

    /// Heard again.
    pub fn touch(&self, now: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// When.
    pub fn at(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine's end of an agent's stream.
#[derive(Debug, Clone)]
pub struct Link {
    /// Tells this stream from others of the same agent.
    pub id: u64,
    /// What goes out. Bounded: an agent that does not read is cut off.
    pub outbound: mpsc::Sender<Outbound>,
    /// Ends the tasks of the stream.
    pub closed: CancellationToken,
    /// When the agent was last heard.
    pub seen: LastSeen,
}

impl Link {
    /// Sends without waiting; an agent whose buffer is full is cut off and will attach again.
    pub fn send(&self, order: Order) {
        if self.outbound.try_send(Outbound::Order(order)).is_err() {
            self.close(CloseReason::TooSlow);
        }
    }

    /// Ends the stream.
    pub fn close(&self, reason: CloseReason) {
        // Without room for the reason the stream just ends.
        let _ = self.outbound.try_send(Outbound::Close(reason));
        self.closed.cancel();
    }
}
