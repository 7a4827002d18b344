//! Running the program.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;

/// No test waits longer for anything.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// The program with a clean environment: no terminal, no settings of the developer's.
pub(crate) fn anybit(coordinator: &str) -> Command {
    program(Path::new(env!("CARGO_BIN_EXE_anybit")), coordinator)
}

pub(crate) fn program(path: &Path, coordinator: &str) -> Command {
    let mut command = Command::new(path);
    command
        .env_remove("NO_COLOR")
        .env("ANYBIT_COORDINATOR", coordinator)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// What a finished command left.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).expect("UTF-8"),
            err: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }
}

impl Done {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs to the end.
pub(crate) async fn run(coordinator: &str, args: &[&str]) -> Done {
    let output = anybit(coordinator).args(args).output();
    tokio::time::timeout(LONG, output).await.expect("in time").expect("started").into()
}
