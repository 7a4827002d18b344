//! `anybit-coordinator`: reads settings, serves, ends in order.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anybit_coordinator::{Service, Settings};
use anybit_shared::{parent, shutdown, telemetry};
use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// Schedules training jobs, keeps their state, serves the gRPC API.
#[derive(Parser)]
#[command(name = "anybit-coordinator", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGINT or SIGTERM.
    Serve(ServeArgs),
    /// Ask a running coordinator whether it serves; exits 0 or 1.
    Health {
        /// Its address.
        #[arg(long, default_value = "http://127.0.0.1:7420", env = "ANYBIT_COORDINATOR")]
        address: String,
    },
}

#[derive(Args)]
struct ServeArgs {
    /// Settings file (TOML). Environment variables ANYBIT_COORDINATOR_* win over it, flags over both.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Address and port; port 0 picks a free one.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Database, logs and lock.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Write the address here once it serves.
    #[arg(long, value_name = "FILE")]
    address_file: Option<String>,
    /// Log lines: human or json.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Allow plaintext on an address that other hosts reach.
    #[arg(long)]
    insecure: bool,
    /// Any other setting, for example --set lease=10s.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// End when the process that started this one ends.
    #[arg(long)]
    exit_with_parent: bool,
    /// Check the settings, print them in full and exit.
    #[arg(long)]
    check_config: bool,
}

impl ServeArgs {
    fn settings(&self) -> anyhow::Result<Settings> {
        let mut flags = self.set.clone();
        let named = [
            ("listen", &self.listen),
            ("data_dir", &self.data_dir),
            ("address_file", &self.address_file),
            ("log_format", &self.log_format),
        ];
        for (key, value) in named {
            flags.extend(value.clone().map(|value| (key.to_owned(), value)));
        }
        if self.insecure {
            flags.push(("insecure".to_owned(), "true".to_owned()));
        }
        Ok(Settings::load(self.config.as_deref(), flags)?)
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("give it as KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(args) => serve(&args).await,
        Command::Health { address } => health(address).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is left to tell it to when standard error is gone.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let settings = args.settings()?;
    if args.check_config {
        std::io::stdout().write_all(toml::to_string(&settings)?.as_bytes())?;
        return Ok(());
    }
    telemetry::init(settings.log_format, "info")?;
    if args.exit_with_parent {
        parent::end_with_parent()?; // this future runs on the main thread
    }
    let shutdown = shutdown::on_signals().context("cannot listen for signals")?;
    Service::start(settings, shutdown).await?.finished().await?;
    Ok(())
}

async fn health(address: String) -> anyhow::Result<()> {
    let endpoint = tonic::transport::Endpoint::from_shared(address.clone())
        .with_context(|| format!("address {address:?} is no URL such as http://127.0.0.1:7420"))?
        .connect_timeout(Duration::from_secs(3))
        .timeout(Duration::from_secs(5));
    let channel = endpoint.connect().await.with_context(|| format!("cannot reach {address}"))?;
    let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await?;
    let status = answer.into_inner().status();
    anyhow::ensure!(status == ServingStatus::Serving, "{address} is {}", status.as_str_name());
    Ok(())
}
