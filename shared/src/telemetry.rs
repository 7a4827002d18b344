//! Logs: to standard error, for people by default, one JSON object a line on request.

use std::io::{self, IsTerminal};

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::util::SubscriberInitExt;

/// The environment variable with the filter, in `tracing`'s directive syntax (`info`,
/// `warn,anybit_coordinator=debug`). `RUST_LOG` is used where it is absent.
pub const FILTER_VARIABLE: &str = "ANYBIT_LOG";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        match text {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            other => Err(TelemetryError::Format(other.to_owned())),
        }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// No such format.
    #[error("log format {0:?} is not known: use \"human\" or \"json\"")]
    Format(String),
    /// The filter does not parse.
    #[error("the log filter in {variable} is not valid: {message}")]
    Filter {
        /// The environment variable it came from.
        variable: &'static str,
        /// The parser's words.
        message: String,
    },
    /// A process sets up logging once.
    #[error("logging is already set up in this process")]
    AlreadySet,
}

/// Sets up logging for this process. `default_filter` holds where the environment names none.
pub fn init(format: LogFormat, default_filter: &str) -> Result<(), TelemetryError> {
    let builder = fmt().with_env_filter(filter(default_filter)?).with_writer(io::stderr);
    let set = match format {
        LogFormat::Human => {
            builder.with_ansi(io::stderr().is_terminal()).with_target(false).finish().try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).finish().try_init(),
    };
    set.map_err(|_| TelemetryError::AlreadySet)
}

fn filter(default_filter: &str) -> Result<EnvFilter, TelemetryError> {
    for variable in [FILTER_VARIABLE, EnvFilter::DEFAULT_ENV] {
        if let Some(text) = std::env::var(variable).ok().filter(|text| !text.is_empty()) {
            return EnvFilter::try_new(text)
                .map_err(|error| TelemetryError::Filter { variable, message: error.to_string() });
        }
    }
    EnvFilter::try_new(default_filter)
        .map_err(|error| TelemetryError::Filter { variable: "the program", message: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_read_by_name() {
        assert_eq!("json".parse::<LogFormat>().unwrap(), LogFormat::Json);
        let error = "xml".parse::<LogFormat>().unwrap_err().to_string();
        assert!(error.contains("xml") && error.contains("human"), "{error}");
    }
}
