//! The services' programs: beside this one, else on PATH.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::error::Failure;

pub(crate) const COORDINATOR: &str = "anybit-coordinator";
pub(crate) const WORKER: &str = "anybit-worker";

/// Loading libtorch for the first time reads half a gigabyte.
const VERSION_DEADLINE: Duration = Duration::from_secs(20);

/// Where the program is.
pub(crate) fn find_program(name: &str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().context("cannot tell where this program lies")?;
    let beside = own.parent().map(Path::to_path_buf);
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .iter()
        .cloned()
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|file| is_program(file))
        .ok_or_else(|| {
            Failure::Usage(format!(
                "{name} was not found beside {} or on PATH: build it with `cargo build --release`",
                own.display()
            ))
        })
}

fn is_program(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// What it answers to `--version`.
pub(crate) async fn version_of(program: &Path) -> anyhow::Result<String> {
    let mut command = tokio::process::Command::new(program);
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(VERSION_DEADLINE, command.output()).await {
        Ok(output) => output?,
        Err(_) => bail!("--version gave no answer within {} s", VERSION_DEADLINE.as_secs()),
    };
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}", output.status, text.lines().next().unwrap_or_default());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
