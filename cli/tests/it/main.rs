//! The built `anybit` against a small coordinator that lives in the test.

mod commands;
mod fake;
mod local;
mod watching;

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;

/// No test waits longer for anything.
const LONG: Duration = Duration::from_secs(60);

/// The program with a clean environment: no terminal, no settings of the developer's.
fn anybit(coordinator: &str) -> Command {
    program(Path::new(env!("CARGO_BIN_EXE_anybit")), coordinator)
}

fn program(path: &Path, coordinator: &str) -> Command {
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
struct Done {
    code: i32,
    out: String,
    err: String,
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
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs to the end.
async fn run(coordinator: &str, args: &[&str]) -> Done {
    let output = anybit(coordinator).args(args).output();
    tokio::time::timeout(LONG, output).await.expect("in time").expect("started").into()
}
