//! Every error of the API, and the one place where it becomes a gRPC status.

use anybit_shared::ids::IdError;
use anybit_shared::spec::SpecError;
use tonic::Status;

use crate::engine::{CloseReason, EngineError};
use crate::store::StoreError;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// The request is at fault.
    #[error("{0}")]
    Invalid(String),
    /// The spec is at fault.
    #[error("{0}")]
    Spec(#[from] SpecError),
    /// An id is at fault.
    #[error("{0}")]
    Id(#[from] IdError),
    /// The engine's answer.
    #[error("{0}")]
    Engine(#[from] EngineError),
    /// The store's.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// A log file's.
    #[error("log file: {0}")]
    Log(#[from] std::io::Error),
    /// The stream's end.
    #[error("{}", close_message(.0))]
    Closed(CloseReason),
}

impl ApiError {
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid(message.into())
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let message = error.to_string();
        match error {
            ApiError::Invalid(_) | ApiError::Spec(_) | ApiError::Id(_) => Self::invalid_argument(message),
            ApiError::Engine(error) => match error {
                EngineError::NoSuchJob(_) => Self::not_found(message),
                EngineError::Ambiguous(_) => Self::invalid_argument(message),
                EngineError::KeyTaken(_) => Self::already_exists(message),
                EngineError::Refused(_) | EngineError::AttachRefused(_) => Self::failed_precondition(message),
                EngineError::TooManyJobs(_) => Self::resource_exhausted(message),
                EngineError::Closed => Self::unavailable(message),
                EngineError::Id(_) | EngineError::Store(_) | EngineError::Log(_) => internal(&message),
            },
            ApiError::Store(_) | ApiError::Log(_) => internal(&message),
            ApiError::Closed(reason) => match reason {
                CloseReason::Superseded => Self::aborted(message),
                CloseReason::LeaseLost | CloseReason::TooSlow => Self::aborted(message),
                CloseReason::NotStored | CloseReason::ShuttingDown => Self::unavailable(message),
            },
        }
    }
}

/// Logged here, since the caller sees it only in part.
fn internal(message: &str) -> Status {
    tracing::error!(error = message, "call failed");
    Status::internal("the coordinator could not read or write its data: see its log")
}

fn close_message(reason: &CloseReason) -> &'static str {
    match reason {
        CloseReason::Superseded => "a newer stream of an agent with the same worker id replaced this one",
        CloseReason::LeaseLost => "the worker's lease is lost: attach again",
        CloseReason::TooSlow => "the agent does not read its orders: attach again",
        CloseReason::NotStored => "a message could not be stored: attach and send it again",
        CloseReason::ShuttingDown => "the coordinator is shutting down",
    }
}

#[cfg(test)]
mod tests {
    use anybit_shared::ids::JobId;
    use tonic::Code;

    use super::*;
    use crate::job::{JobState, Refused};

    #[test]
    fn each_error_has_its_code() {
        let job = JobId::new("j").unwrap();
        let ended = Refused::Ended { job: job.clone(), state: JobState::Failed };
        let cases: [(ApiError, Code); 8] = [
            (ApiError::invalid("x"), Code::InvalidArgument),
            (EngineError::NoSuchJob("x".into()).into(), Code::NotFound),
            (EngineError::Ambiguous("x".into()).into(), Code::InvalidArgument),
            (EngineError::KeyTaken(job).into(), Code::AlreadyExists),
            (EngineError::Refused(ended).into(), Code::FailedPrecondition),
            (EngineError::Closed.into(), Code::Unavailable),
            (StoreError::TooLarge(1).into(), Code::Internal),
            (ApiError::Closed(CloseReason::Superseded), Code::Aborted),
        ];
        for (error, code) in cases {
            let message = error.to_string();
            let status = Status::from(error);
            assert_eq!(status.code(), code);
            assert!(code == Code::Internal || status.message() == message);
        }
    }
}
