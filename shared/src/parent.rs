//! Services that end with the process that started them.

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

/// Names the process id of the parent, for a child that asks after the parent may have gone.
pub const PARENT_PID: &str = "ANYBIT_PARENT_PID";

/// Asks the kernel for SIGTERM when the parent ends. The request is tied to the calling thread:
/// call it on the main one. An error if the parent, by [`PARENT_PID`] where that is set, is gone
/// already.
pub fn end_with_parent() -> anyhow::Result<()> {
    let before = getppid();
    set_pdeathsig(Signal::SIGTERM)?;
    let named = std::env::var(PARENT_PID).ok().and_then(|pid| pid.parse::<i32>().ok());
    let parent = named.unwrap_or(before.as_raw());
    anyhow::ensure!(getppid().as_raw() == parent, "the parent process ended while this one started");
    Ok(())
}
