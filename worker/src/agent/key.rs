//! What names a generation and a trainer on this worker.

use std::fmt;

use anybit_shared::ids::{Generation, JobId, Rank};

/// One attempt at one job.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct GenerationKey {
    pub(crate) job: JobId,
    pub(crate) generation: Generation,
}

/// One trainer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RankKey {
    pub(crate) of: GenerationKey,
    pub(crate) rank: Rank,
}

impl RankKey {
    /// `g0001-r000`: the stem of this trainer's files.
    pub(crate) fn file_stem(&self) -> String {
        format!("g{:04}-r{:03}", self.of.generation.0, self.rank.0)
    }
}

impl fmt::Display for GenerationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} generation {}", self.job, self.generation)
    }
}

impl fmt::Display for RankKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rank {}", self.of, self.rank)
    }
}
