//! One service's process.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::process::signal;
use crate::programs::program;
use crate::wait::wait_for;

/// A process and its log. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Service {
    /// For people.
    pub name: String,
    child: Child,
    log: PathBuf,
}

impl Service {
    /// Starts a program from the calling thread; where the program offers it, it ends with that
    /// thread. What it says is appended to `FOLDER/NAME.log`.
    pub fn start(name: &str, program_name: &str, args: Vec<OsString>, folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log).expect("log");
        let child = Command::new(program(program_name))
            .args(args)
            .env("ANYBIT_PARENT_PID", std::process::id().to_string())
            .env_remove("RUST_LOG")
            .env_remove("ANYBIT_COORDINATOR")
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("log"))
            .stderr(output)
            // Ctrl-C in the terminal reaches the tests only.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {program_name}: {error}"));
        Self { name: name.to_owned(), child, log }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// What it said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// `kill -9`, and reaps it.
    pub fn kill(&mut self) {
        // Fails only for one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal.
    pub fn signal(&self, what: Signal) {
        signal(self.pid(), what);
    }

    /// Waits for its end.
    pub fn ended(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        wait_for(&what, deadline, || self.child.try_wait().expect("a child"))
    }

    /// Its end, if it came already.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}
