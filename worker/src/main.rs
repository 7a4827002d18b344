//! `anybit-worker`: the programs that run on a worker host.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anybit_shared::telemetry::{self, LogFormat};
use anybit_shared::{parent, shutdown};
use anybit_worker::agent::{self, TrainerCommand};
use anybit_worker::bench::{self, BenchOptions};
use anybit_worker::dist::TcpStoreHost;
use anybit_worker::golden::{self, GoldenOptions};
use anybit_worker::settings::AgentArgs;
use anybit_worker::train::process::{self, TrainerOptions};
use clap::{Parser, Subcommand};

/// Joint training of one network for every bit-width: the worker's programs.
#[derive(Debug, Parser)]
#[command(name = "anybit-worker", version)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Hold this host's slots and run trainers for the coordinator
    Agent(Box<AgentArgs>),
    /// Replay golden files and print each one's worst error; exit 1 above the bound
    Golden(GoldenOptions),
    /// Time the joint step and print one JSON line
    Bench(BenchOptions),
    /// One rank of a job; started by the agent
    Trainer(TrainerOptions),
}

fn main() -> ExitCode {
    let result = match Program::parse().command {
        Command::Agent(args) => run_agent(&args),
        Command::Golden(options) => golden::run(&options, &mut std::io::stdout().lock()).map_err(Into::into),
        Command::Bench(options) => run_bench(&options),
        Command::Trainer(options) => run_trainer(&options),
    };
    result.unwrap_or_else(|error| {
        // Nothing is left to tell it to when standard error is closed.
        let _ = writeln!(std::io::stderr(), "error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run_agent(args: &AgentArgs) -> anyhow::Result<ExitCode> {
    let settings = args.load()?;
    if args.check_config {
        write!(std::io::stdout(), "{}", toml::to_string(&settings)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    telemetry::init(settings.log_format, "info")?;
    if settings.exit_with_parent {
        parent::end_with_parent()?;
    }
    let stores = Arc::new(TcpStoreHost::new(&settings)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(async {
        let shutdown = shutdown::on_signals()?;
        agent::run(settings, stores, TrainerCommand::this_program(), shutdown).await
    });
    // A store that hangs while it opens must not keep the process alive.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result.map(|()| ExitCode::SUCCESS)
}

fn run_bench(options: &BenchOptions) -> anyhow::Result<ExitCode> {
    writeln!(std::io::stdout(), "{}", bench::run(options)?)?;
    Ok(ExitCode::SUCCESS)
}

fn run_trainer(options: &TrainerOptions) -> anyhow::Result<ExitCode> {
    telemetry::init(LogFormat::default(), "info")?;
    process::trainer(options)
}
