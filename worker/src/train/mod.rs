//! Training: synchronous, one process per rank.
//!
//! [`process`] is a trainer process; [`run`] its loop; [`step`] the joint step on one screen;
//! [`tally`] the joint loss vector; [`evaluate`] the test set at every width; [`state`] what goes
//! into checkpoints and comes out.

pub mod evaluate;
pub mod process;
mod report;
pub mod run;
pub mod state;
pub mod step;
pub mod tally;

use anybit_anyprec::nn::LoadError;
use anybit_shared::ids::GlobalStep;
use tch::TchError;

use crate::checkpoint::CheckpointError;
use crate::data::DataError;
use crate::dist::{AverageError, DistError};

/// How training ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// After its last step.
    Finished,
    /// On request, after a checkpoint.
    Stopped,
}

/// Why training ended early.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A peer is gone, or the ranks did not meet.
    #[error(transparent)]
    Dist(#[from] DistError),
    /// libtorch failed.
    #[error("libtorch: {}", first_line(.0))]
    Torch(#[from] TchError),
    /// A checkpoint does not fit the network.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The data set is at fault.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint could not be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Too many skipped steps in a row.
    #[error(
        "{steps} steps in a row were skipped, the limit of train.max_skipped_steps: {reason}; lower train.learning_rate or check the data"
    )]
    NonFinite {
        /// Why the last one was.
        reason: String,
        /// How many.
        steps: u32,
    },
    /// Replicas that must be equal are not.
    #[error(
        "the ranks' parameters differ at step {0}: a machine computes wrongly, or ranks run different builds"
    )]
    Diverged(GlobalStep),
}

impl From<AverageError> for TrainError {
    fn from(error: AverageError) -> Self {
        match error {
            AverageError::Dist(error) => Self::Dist(error),
            AverageError::Torch(error) => Self::Torch(error),
        }
    }
}

impl TrainError {
    /// The Reducer's all-reduce runs inside the backward pass: its failures come out of libtorch,
    /// told apart by the transport's words.
    fn in_backward(error: TchError) -> Self {
        let problem = first_line(&error);
        let lower = error.to_string().to_lowercase();
        if ["gloo", "connection closed", "connection reset", "timed out", "broken pipe"]
            .iter()
            .any(|word| lower.contains(word))
        {
            return Self::Dist(DistError::Collective { what: "all-reduce of the gradients", problem });
        }
        Self::Torch(error)
    }

    /// True if memory ran out.
    pub fn is_out_of_memory(&self) -> bool {
        let Self::Torch(error) = self else { return false };
        let lower = error.to_string().to_lowercase();
        ["can't allocate memory", "not enough memory", "out of memory", "bad_alloc"]
            .iter()
            .any(|word| lower.contains(word))
    }
}

/// libtorch's messages carry a stack trace after their first line.
fn first_line(error: &TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
