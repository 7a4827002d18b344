//! The rendezvous store, as far as the agent needs to know it.

use anybit_shared::ids::{Generation, JobId};

/// Opens rendezvous stores for trainers to meet at.
pub trait StoreHost: Send + Sync + 'static {
    /// Opens a store for one generation on a free port. Returns the store, which closes when it is
    /// dropped, and its `host:port` as other workers reach it. May block: it is called, and the
    /// store dropped, on a blocking thread; the agent waits ten seconds for it.
    fn open(&self, job: &JobId, generation: Generation) -> anyhow::Result<(Box<dyn Send>, String)>;
}
