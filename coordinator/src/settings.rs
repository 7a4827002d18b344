//! The coordinator's settings: file, `ANYBIT_COORDINATOR_*`, flags.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anybit_shared::retry::RetryPolicy;
use anybit_shared::settings::{self, SettingsError, duration};
use anybit_shared::telemetry::LogFormat;
use serde::{Deserialize, Serialize};

use crate::engine::Options;
use crate::job::Rules;

/// What environment variables begin with.
pub const ENV_PREFIX: &str = "ANYBIT_COORDINATOR";

/// How the coordinator runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where it listens; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Its database, logs and lock.
    pub data_dir: PathBuf,
    /// Where it writes its address once it serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address_file: Option<PathBuf>,
    /// Allows plaintext on an address that other hosts reach.
    pub insecure: bool,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Silence for this long loses a worker.
    #[serde(with = "duration")]
    pub lease: Duration,
    /// Agents speak at least this often.
    #[serde(with = "duration")]
    pub heartbeat: Duration,
    /// From placement until every rank must be training.
    #[serde(with = "duration")]
    pub start_timeout: Duration,
    /// What trainers get to write a checkpoint when a job is cancelled.
    #[serde(with = "duration")]
    pub cancel_grace: Duration,
    /// A worker that has not confirmed a stop is asked again this often.
    #[serde(with = "duration")]
    pub stop_resend: Duration,
    /// Open calls and streams get so long at the end.
    #[serde(with = "duration")]
    pub shutdown_grace: Duration,
    /// Jobs that wait or run, at most.
    pub max_unfinished_jobs: usize,
    /// Bytes of one rank's log in one generation, at most.
    pub max_log_bytes: u64,
    /// Calls and streams on one connection, at most.
    pub max_concurrent_streams: u32,
    /// Waits before generations after ones without progress.
    pub backoff: RetryPolicy,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7420)),
            data_dir: PathBuf::from(".anybit/coordinator"),
            address_file: None,
            insecure: false,
            log_format: LogFormat::Human,
            lease: Duration::from_secs(6),
            heartbeat: Duration::from_secs(1),
            start_timeout: Duration::from_secs(120),
            cancel_grace: Duration::from_secs(20),
            stop_resend: Duration::from_secs(5),
            shutdown_grace: Duration::from_secs(3),
            max_unfinished_jobs: 10_000,
            max_log_bytes: 1 << 30,
            max_concurrent_streams: 1024,
            backoff: RetryPolicy {
                initial: Duration::from_millis(500),
                max: Duration::from_secs(30),
                factor: 2.0,
                jitter: 0.0,
                max_attempts: None,
            },
        }
    }
}

/// Why the coordinator does not start with its settings.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSettings {
    /// They cannot be read.
    #[error(transparent)]
    Load(#[from] SettingsError),
    /// They contradict each other.
    #[error("{0}")]
    Contradiction(String),
}

impl Settings {
    /// Reads and checks them.
    pub fn load(file: Option<&Path>, flags: Vec<(String, String)>) -> Result<Self, InvalidSettings> {
        let settings: Self = settings::load(file, ENV_PREFIX, flags)?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), InvalidSettings> {
        let problem = if !self.listen.ip().is_loopback() && !self.insecure {
            Some(format!(
                "listen = {} is reachable from other hosts, without encryption or login: use a loopback \
                 address, or give --insecure (insecure = true) on a network that you trust",
                self.listen
            ))
        } else if self.heartbeat.is_zero() || self.lease < self.heartbeat * 2 {
            Some("lease must be at least twice heartbeat, and heartbeat above 0".to_owned())
        } else if self.start_timeout <= self.lease {
            Some("start_timeout must be longer than lease".to_owned())
        } else if self.stop_resend.is_zero() {
            Some("stop_resend must be above 0".to_owned())
        } else if self.max_concurrent_streams == 0 || self.max_unfinished_jobs == 0 {
            Some("max_concurrent_streams and max_unfinished_jobs must be above 0".to_owned())
        } else {
            None
        };
        problem.map_or(Ok(()), |problem| Err(InvalidSettings::Contradiction(problem)))
    }

    /// What the engine needs of them.
    pub fn engine_options(&self) -> Options {
        Options {
            rules: Rules {
                start_timeout: self.start_timeout,
                cancel_grace: self.cancel_grace,
                lease: self.lease,
                stop_resend: self.stop_resend,
                backoff: self.backoff.clone(),
            },
            heartbeat: self.heartbeat,
            max_unfinished_jobs: self.max_unfinished_jobs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(pairs: &[(&str, &str)]) -> Result<Settings, InvalidSettings> {
        let flags = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Settings::load(None, flags)
    }

    #[test]
    fn the_defaults_are_valid_and_written_are_read_back() {
        let settings = flags(&[]).unwrap();
        assert_eq!(settings, Settings::default());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), toml::to_string(&settings).unwrap()).unwrap();
        assert_eq!(Settings::load(Some(file.path()), Vec::new()).unwrap(), settings);
    }

    #[test]
    fn other_hosts_need_insecure() {
        let error = flags(&[("listen", "0.0.0.0:0")]).unwrap_err().to_string();
        assert!(error.contains("0.0.0.0:0") && error.contains("--insecure"), "{error}");
        assert!(flags(&[("listen", "0.0.0.0:0"), ("insecure", "true")]).is_ok());
        assert!(flags(&[("listen", "[::1]:0")]).is_ok());
    }

    #[test]
    fn times_must_nest() {
        for pairs in [
            [("lease", "1s"), ("heartbeat", "1s")],
            [("lease", "0s"), ("heartbeat", "0s")],
            [("lease", "200s"), ("heartbeat", "1s")],
        ] {
            assert!(matches!(flags(&pairs), Err(InvalidSettings::Contradiction(_))), "{pairs:?}");
        }
        assert!(flags(&[("listen", "here")]).unwrap_err().to_string().contains("listen"));
    }
}
