//! `anybit-worker golden`: replays golden files and prints each one's worst error.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anybit_anyprec::golden::{RELATIVE_BOUND, replay};
use clap::Args;
use tch::Device;

/// Which files.
#[derive(Debug, Args)]
pub struct GoldenOptions {
    /// Golden files (format: tests/golden/README.md)
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// One line a file on `out`; failure if any could not be replayed or is above the bound.
pub fn run(options: &GoldenOptions, out: &mut impl Write) -> std::io::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for file in &options.files {
        let name = file.display();
        match replay(file, Device::Cpu) {
            Ok(report) => {
                let (verdict, worst) = (if report.passes() { "ok" } else { "ABOVE THE BOUND" }, report.worst);
                writeln!(
                    out,
                    "{name}: worst error {worst:.1e} relative (bound {RELATIVE_BOUND:.0e}) in {}, {} tensors: {verdict}",
                    report.worst_key, report.tensors
                )?;
                if !report.passes() {
                    code = ExitCode::FAILURE;
                }
            }
            Err(error) => {
                writeln!(out, "{name}: FAILED: {error}")?;
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}
