//! What the coordinator asks for, from the wire's types to this crate's.

use std::time::Duration;

use anybit_proto::v1;
use anybit_shared::ids::{Generation, IdError, JobId, Rank};

use super::key::GenerationKey;

/// What the coordinator may ask of an agent that it has welcomed.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    /// Open a rendezvous store.
    HostStore(GenerationKey),
    /// Start trainers.
    StartRanks(StartRanks),
    /// End a generation.
    StopGeneration { key: GenerationKey, grace: Duration, reason: String },
}

/// One generation's trainers on this worker.
#[derive(Debug, Clone)]
pub(crate) struct StartRanks {
    pub(crate) key: GenerationKey,
    pub(crate) world_size: u32,
    pub(crate) ranks: Vec<Rank>,
    pub(crate) spec_toml: String,
    pub(crate) store_address: String,
    pub(crate) restorable_generations: Vec<Generation>,
}

impl TryFrom<v1::HostStore> for Command {
    type Error = IdError;
    fn try_from(wire: v1::HostStore) -> Result<Self, IdError> {
        Ok(Self::HostStore(key(wire.job_id, wire.generation)?))
    }
}

impl TryFrom<v1::StartRanks> for Command {
    type Error = IdError;
    fn try_from(wire: v1::StartRanks) -> Result<Self, IdError> {
        Ok(Self::StartRanks(StartRanks {
            key: key(wire.job_id, wire.generation)?,
            world_size: wire.world_size,
            ranks: wire.ranks.into_iter().map(Rank).collect(),
            spec_toml: wire.spec_toml,
            store_address: wire.store_address,
            restorable_generations: wire.restorable_generations.into_iter().map(Generation).collect(),
        }))
    }
}

impl TryFrom<v1::StopGeneration> for Command {
    type Error = IdError;
    fn try_from(wire: v1::StopGeneration) -> Result<Self, IdError> {
        Ok(Self::StopGeneration {
            key: key(wire.job_id, wire.generation)?,
            grace: Duration::from_millis(wire.grace_ms),
            reason: wire.reason,
        })
    }
}

fn key(job: String, generation: u32) -> Result<GenerationKey, IdError> {
    Ok(GenerationKey { job: JobId::new(job)?, generation: Generation(generation) })
}
