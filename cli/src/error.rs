//! How a command fails, and the exit code that says so.

use std::process::ExitCode;

/// Every way in which a command ends without having done its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The job ended, and not well; or a check of `doctor` failed.
    #[error("{0}")]
    JobFailed(String),
    /// The command line, or what it names, is wrong.
    #[error("{0}")]
    Usage(String),
    /// No coordinator answers.
    #[error("{0}")]
    Unreachable(String),
    /// The coordinator knows no such job.
    #[error("{0}")]
    NotFound(String),
    /// The request clashes with what there is already.
    #[error("{0}")]
    Conflict(String),
    /// The spec does not pass.
    #[error("{0}")]
    InvalidSpec(String),
    /// A signal ended the command; what there was to say has been said.
    #[error("interrupted")]
    Interrupted,
    /// Nobody reads standard output any more.
    #[error("standard output was closed")]
    OutputClosed,
    /// Anything else.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl Failure {
    /// The process's exit code.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::OutputClosed => 0,
            Self::JobFailed(_) | Self::Other(_) => 1,
            Self::Usage(_) | Self::Conflict(_) => 2,
            Self::Unreachable(_) => 3,
            Self::NotFound(_) => 4,
            Self::InvalidSpec(_) => 5,
            // As shells report a process that SIGINT ended.
            Self::Interrupted => 130,
        })
    }

    /// True when there is nothing left to say on standard error.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self, Self::Interrupted | Self::OutputClosed)
    }
}
