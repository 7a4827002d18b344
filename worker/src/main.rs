//! Temporary composition.
use clap::Parser;
#[derive(Parser)]
enum Cli {
    Golden(anybit_worker::golden::GoldenOptions),
    Bench(anybit_worker::bench::BenchOptions),
}
fn main() -> anyhow::Result<std::process::ExitCode> {
    match Cli::parse() {
        Cli::Golden(o) => Ok(anybit_worker::golden::run(&o, &mut std::io::stdout().lock())?),
        Cli::Bench(o) => {
            use std::io::Write;
            writeln!(std::io::stdout(), "{}", anybit_worker::bench::run(&o)?)?;
            Ok(std::process::ExitCode::SUCCESS)
        }
    }
}
