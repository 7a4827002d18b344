//! `anybit-worker`: the programs that run on a worker host.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anybit_shared::ids::{Generation, JobId};
use anybit_shared::{shutdown, telemetry};
use anybit_worker::agent::{self, StoreHost, TrainerCommand};
use anybit_worker::settings::{AgentArgs, AgentSettings};
use clap::{Parser, Subcommand};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

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
    Agent(AgentArgs),
    // `trainer`, `golden` and `bench` go here.
}

fn main() -> ExitCode {
    let result = match Program::parse().command {
        Command::Agent(args) => run_agent(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to tell it to when standard error is closed.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_agent(args: &AgentArgs) -> anyhow::Result<()> {
    let settings = args.load()?;
    if args.check_config {
        write!(std::io::stdout(), "{}", toml::to_string(&settings)?)?;
        return Ok(());
    }
    telemetry::init(settings.log_format, "info")?;
    end_with_parent(&settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(async {
        let shutdown = shutdown::on_signals()?;
        agent::run(settings, Arc::new(NoStore), TrainerCommand::this_program(), shutdown).await
    });
    // A store that hangs while it opens must not keep the process alive.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Asks the kernel for SIGTERM when the parent ends. Tied to the calling thread: the main one.
fn end_with_parent(settings: &AgentSettings) -> anyhow::Result<()> {
    if settings.exit_with_parent {
        let parent = getppid();
        set_pdeathsig(Signal::SIGTERM)?;
        anyhow::ensure!(getppid() == parent, "the parent process ended while this one started");
    }
    Ok(())
}

/// Stands here until the collectives are linked in: c10d's TCPStore takes its place.
struct NoStore;

impl StoreHost for NoStore {
    fn open(&self, _: &JobId, _: Generation) -> anyhow::Result<(Box<dyn Send>, String)> {
        anyhow::bail!("this build cannot host a rendezvous store")
    }
}
