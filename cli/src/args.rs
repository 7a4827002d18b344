//! The command line's shape.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::model::JobState;

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the job failed or was cancelled, a check failed, or something unforeseen went wrong
  2    the command line, or what it names, is wrong
  3    the coordinator cannot be reached
  4    there is no such job or preset
  5    the job spec is not valid
  130  interrupted with Ctrl-C";

/// Train one network for many bit-widths, as a service.
#[derive(Parser)]
#[command(name = "anybit", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const DEFAULT_COORDINATOR: &str = "http://127.0.0.1:7420";

impl Cli {
    /// Reads the command line, or ends the process with help or a complaint.
    pub(crate) fn read() -> Self {
        let matches = Self::command().get_matches();
        let mut cli = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        let from_environment = matches.value_source("coordinator") == Some(ValueSource::EnvVariable);
        if from_environment && cli.global.coordinator.is_empty() {
            DEFAULT_COORDINATOR.clone_into(&mut cli.global.coordinator);
        }
        cli
    }
}

#[derive(Args, Clone)]
pub(crate) struct Global {
    /// Where the coordinator listens
    #[arg(
        long,
        global = true,
        env = "ANYBIT_COORDINATOR",
        value_name = "URL",
        default_value = DEFAULT_COORDINATOR
    )]
    pub(crate) coordinator: String,
    /// Allow an unencrypted connection to another machine
    #[arg(long, global = true, env = "ANYBIT_INSECURE", value_parser = switch)]
    pub(crate) insecure: bool,
    /// Form of the data on standard output
    #[arg(short, long, global = true, value_enum, default_value_t)]
    pub(crate) output: Format,
    /// When to use colours
    #[arg(long, global = true, value_enum, default_value_t)]
    pub(crate) color: ColorWhen,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// For programs: one document, or one a line for streams
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum ColorWhen {
    /// On terminals, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Submit a job
    Submit(SubmitArgs),
    /// List jobs, newest first
    Jobs {
        /// List at most this many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        /// Only jobs in this state (repeatable)
        #[arg(long, value_enum)]
        state: Vec<JobState>,
    },
    /// Show all about a job
    Job {
        /// The job's id, or a unique beginning of it
        id: String,
    },
    /// Follow a job to its end; Ctrl-C detaches and the job goes on
    ///
    /// The figures left are of the last training step, those right of the last evaluation. With
    /// distillation the training loss of a narrower width is measured against a wider width's
    /// output, not against the labels: it is not comparable with the test loss.
    Watch {
        /// The job's id, or a unique beginning of it
        id: String,
    },
    /// Show a job's curves
    Metrics(MetricsArgs),
    /// Show what a job's ranks logged
    Logs(LogsArgs),
    /// Stop a job after its step in flight and a checkpoint
    Cancel {
        /// The job's id, or a unique beginning of it
        id: String,
    },
    /// List a job's checkpoints, newest first
    Checkpoints {
        /// The job's id, or a unique beginning of it
        id: String,
    },
    /// List workers
    Workers,
    /// List the built-in specs, or print one
    Presets {
        /// Print this one
        name: Option<String>,
    },
    /// Run a coordinator and workers on this machine, until Ctrl-C
    Up(UpArgs),
    /// Run one job on this machine, from nothing to its results
    Run(RunArgs),
    /// Check this machine and the coordinator
    Doctor {
        /// State folder whose disk is checked
        #[arg(long, default_value = ".anybit", value_name = "DIR")]
        state_dir: PathBuf,
    },
    /// Print a shell's completion script
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Args)]
pub(crate) struct SpecArgs {
    /// The job spec, a TOML file; - reads standard input
    #[arg(required_unless_present = "preset", conflicts_with = "preset")]
    pub(crate) spec: Option<PathBuf>,
    /// A built-in spec instead of a file (see `anybit presets`)
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// Set a key of the spec, as in train.epochs=5 (repeatable); train.steps replaces the epochs
    /// of the file or preset, and train.epochs its steps
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) set: Vec<(String, String)>,
    /// The job's name
    #[arg(long)]
    pub(crate) name: Option<String>,
}

#[derive(Args)]
pub(crate) struct SubmitArgs {
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
    /// Submitting again with the same key makes no second job
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
    /// Check the spec and print it in full; submit nothing
    #[arg(long, conflicts_with = "watch")]
    pub(crate) dry_run: bool,
    /// Follow the job to its end
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Args)]
pub(crate) struct MetricsArgs {
    /// The job's id, or a unique beginning of it
    pub(crate) id: String,
    /// Draw the curves
    #[arg(long, conflicts_with_all = ["csv", "follow"])]
    pub(crate) plot: bool,
    /// One row per record and width
    #[arg(long)]
    pub(crate) csv: bool,
    /// Leave training steps out
    #[arg(long)]
    pub(crate) evaluations: bool,
    /// Go on with live records until the job ends
    #[arg(short, long)]
    pub(crate) follow: bool,
}

#[derive(Args)]
pub(crate) struct LogsArgs {
    /// The job's id, or a unique beginning of it
    pub(crate) id: String,
    /// Go on with live lines until the job ends
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only this rank
    #[arg(long, value_name = "N")]
    pub(crate) rank: Option<u32>,
    /// Only this generation
    #[arg(long, value_name = "N")]
    pub(crate) generation: Option<u32>,
    /// Begin this many lines before the end of each rank's log
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) lines: u32,
}

#[derive(Args, Clone)]
pub(crate) struct LocalArgs {
    /// Worker agents to start
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) workers: u32,
    /// Ranks that each worker can hold
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) slots: u32,
    /// Folder that jobs may read data from (repeatable) [default: the current folder,
    /// the nearest folder above this program that contains presets/data, and /]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_root: Vec<PathBuf>,
    /// Threads per rank [default: cores / ranks]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
}

#[derive(Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) local: LocalArgs,
    /// Address that the coordinator serves; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7420")]
    pub(crate) listen: SocketAddr,
    /// Folder for state, logs and checkpoints
    #[arg(long, value_name = "DIR", default_value = ".anybit")]
    pub(crate) state_dir: PathBuf,
}

#[derive(Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) spec: SpecArgs,
    #[command(flatten)]
    pub(crate) local: LocalArgs,
    /// Write the results to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Folder for state, logs and checkpoints, kept afterwards [default: .anybit/run-TIME]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// A switch's environment variable; set and empty counts as unset.
fn switch(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "" | "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("write 1, true or yes; or 0, false or no".to_owned()),
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE, as in train.epochs=5".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn switches_take_the_usual_words() {
        assert_eq!(["1", "true", "YES", "0", ""].map(switch), [true, true, true, false, false].map(Ok));
        assert!(switch("maybe").is_err());
    }

    #[test]
    fn a_spec_and_a_preset_exclude_each_other() {
        assert!(Cli::try_parse_from(["anybit", "submit"]).is_err());
        assert!(Cli::try_parse_from(["anybit", "submit", "a.toml", "--preset", "b"]).is_err());
        assert!(Cli::try_parse_from(["anybit", "submit", "--preset", "b", "--set", "x"]).is_err());
        assert!(Cli::try_parse_from(["anybit", "submit", "--preset", "b", "--set", "x=1=2"]).is_ok());
    }
}
