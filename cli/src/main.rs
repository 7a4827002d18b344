//! The anybit command line: submit, watch and manage any-precision training jobs.
//!
//! - [`args`]: the command line's shape.
//! - [`client`]: calls to the coordinator, the only place that sees gRPC; [`model`]: what they give.
//! - [`commands`]: one file a command; [`watch`]: following a job.
//! - [`local`]: a cluster of child processes on this machine.
//! - [`out`], [`text`], [`results`], [`plot`]: how things look.

mod args;
mod client;
mod commands;
mod error;
mod local;
mod loglines;
mod model;
mod out;
mod plot;
mod results;
mod signals;
mod spec;
mod text;
mod watch;

use std::process::ExitCode;

use clap::CommandFactory;

use crate::args::{Cli, Command};
use crate::client::Client;
use crate::error::Failure;

fn main() -> ExitCode {
    let cli = Cli::read();
    out::set_colors(cli.global.color);
    // One thread: children are spawned from it, and live no longer than it does.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(dispatch(cli)),
        Err(error) => Err(anyhow::Error::new(error).context("cannot start").into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.is_silent() {
                let word = console::style("error:").for_stderr().red().bold();
                out::note(format_args!("{word} {failure}"));
            }
            failure.exit_code()
        }
    }
}

async fn dispatch(cli: Cli) -> Result<(), Failure> {
    let Cli { global, command } = cli;
    match command {
        Command::Submit(args) => commands::submit::submit(&global, args).await,
        Command::Jobs { limit, state } => commands::jobs::list(&global, limit, &state).await,
        Command::Job { id } => commands::jobs::show(&global, &id).await,
        Command::Watch { id } => {
            let client = Client::connect(&global.coordinator, global.insecure).await?;
            watch::attached(&client, &id, global.output).await
        }
        Command::Metrics(args) => commands::metrics::metrics(&global, &args).await,
        Command::Logs(args) => commands::logs::logs(&global, &args).await,
        Command::Cancel { id } => commands::jobs::cancel(&global, &id).await,
        Command::Checkpoints { id } => commands::jobs::checkpoints(&global, &id).await,
        Command::Workers => commands::cluster::workers(&global).await,
        Command::Presets { name } => commands::presets::presets(&global, name.as_deref()),
        Command::Up(args) => commands::up::up(&global, args).await,
        Command::Run(args) => commands::run::run(&global, args).await,
        Command::Doctor { state_dir } => commands::doctor::doctor(&global, &state_dir).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "anybit", &mut script);
            out::print(String::from_utf8_lossy(&script))
        }
    }
}
