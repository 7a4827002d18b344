//! `anybit doctor`.

use std::path::Path;

use serde::Serialize;

use crate::args::{Format, Global};
use crate::client::Client;
use crate::error::Failure;
use crate::local::{COORDINATOR, WORKER, find_program, version_of};
use crate::{out, text};

const MIB: u64 = 1 << 20;
/// What a training process with libtorch takes at the least.
const LEAST_MEMORY: u64 = 1024 * MIB;
const LEAST_DISK: u64 = 512 * MIB;
const LOW_DISK: u64 = 4096 * MIB;
/// A worker's clock ahead by more than this would confuse ages and curves.
const SKEW_MS: i64 = 5_000;

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warn,
    Fail,
}

#[derive(Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), advice: None }
    }
    fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, found: found.into(), advice: Some(advice.into()) }
    }
    fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, found: found.into(), advice: Some(advice.into()) }
    }
}

pub(crate) async fn doctor(global: &Global, state_dir: &Path) -> Result<(), Failure> {
    let mut checks =
        vec![program(COORDINATOR).await, program(WORKER).await, cores(), memory(), disk(state_dir)];
    checks.extend(cluster(global).await?);
    out::answer(global.output, &checks, || checks.iter().map(line).collect())?;
    let failed = checks.iter().filter(|check| check.status == Status::Fail).count() as u64;
    match failed {
        0 => Ok(()),
        _ if global.output == Format::Json => Err(Failure::JobFailed("a check failed".to_owned())),
        _ => Err(Failure::JobFailed(format!("{} failed", text::counted(failed, "check")))),
    }
}

fn line(check: &Check) -> String {
    let word = match check.status {
        Status::Ok => console::style("ok  ").green(),
        Status::Warn => console::style("warn").yellow(),
        Status::Fail => console::style("FAIL").red().bold(),
    };
    let mut text = format!("{word}  {:<18}  {}\n", check.name, check.found);
    if let Some(advice) = &check.advice {
        text.push_str(&format!("{:26}{advice}\n", ""));
    }
    text
}

async fn program(name: &'static str) -> Check {
    let path = match find_program(name) {
        Ok(path) => path,
        Err(_) => {
            return Check::warn(
                name,
                "not found beside anybit or on PATH",
                "only `anybit up` and `anybit run` need it: build it with `cargo build --release`",
            );
        }
    };
    match version_of(&path).await {
        Ok(version) if version.ends_with(env!("CARGO_PKG_VERSION")) => {
            Check::ok(name, format!("{version}, {}", path.display()))
        }
        Ok(version) => Check::warn(
            name,
            format!("{version}, {}", path.display()),
            format!("this is anybit {}: build all programs from one version", env!("CARGO_PKG_VERSION")),
        ),
        Err(error) => Check::fail(
            name,
            format!("{} does not run: {error}", path.display()),
            "build it again; the worker must find libtorch's libraries",
        ),
    }
}

fn cores() -> Check {
    match std::thread::available_parallelism() {
        Ok(cores) => Check::ok("cores", cores.to_string()),
        Err(error) => Check::warn("cores", format!("unknown: {error}"), "give --threads to `anybit up`"),
    }
}

fn memory() -> Check {
    let field = |text: &str, name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match (field(&info, "MemAvailable:"), field(&info, "MemTotal:")) {
        (Some(free), Some(all)) => {
            let found = format!("{} free of {}", text::bytes(free), text::bytes(all));
            if free < LEAST_MEMORY {
                return Check::warn("memory", found, "a rank takes about 1 GiB: end something else first");
            }
            Check::ok("memory", found)
        }
        _ => Check::warn("memory", "unknown: /proc/meminfo does not say", "check it by hand"),
    }
}

fn disk(state_dir: &Path) -> Check {
    // The folder may not be there yet: its nearest parent is on the same disk.
    let absolute = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    let Some(folder) = absolute.ancestors().find(|folder| folder.exists()) else {
        return Check::fail(
            "disk",
            format!("{} has no parent", state_dir.display()),
            "give another --state-dir",
        );
    };
    let stat = match nix::sys::statvfs::statvfs(folder) {
        Ok(stat) => stat,
        Err(error) => {
            return Check::warn("disk", format!("{}: {error}", folder.display()), "give another --state-dir");
        }
    };
    let free = stat.blocks_available() * stat.fragment_size();
    let found = format!("{} free for {}", text::bytes(free), state_dir.display());
    if nix::unistd::access(folder, nix::unistd::AccessFlags::W_OK).is_err() {
        return Check::fail(
            "disk",
            format!("{} cannot be written to", folder.display()),
            "give another --state-dir",
        );
    }
    let advice = "checkpoints go there: make room, or give another --state-dir";
    match free {
        0..LEAST_DISK => Check::fail("disk", found, advice),
        LEAST_DISK..LOW_DISK => Check::warn("disk", found, advice),
        _ => Check::ok("disk", found),
    }
}

/// The coordinator and what it says of its workers.
async fn cluster(global: &Global) -> Result<Vec<Check>, Failure> {
    let name = "coordinator";
    let client = match Client::connect(&global.coordinator, global.insecure).await {
        Ok(client) => client,
        Err(usage @ Failure::Usage(_)) => return Err(usage),
        Err(failure) => {
            let text = failure.to_string();
            let (found, advice) = text.split_once("; ").unwrap_or((&text, "start one with `anybit up`"));
            return Ok(vec![Check::fail(name, found, advice)]);
        }
    };
    let coordinator = match client.healthy().await {
        Ok(true) => Check::ok(name, format!("{} serves", global.coordinator)),
        Ok(false) => Check::fail(
            name,
            format!("{} answers, and does not serve", global.coordinator),
            "wait for its start, or look into its log",
        ),
        Err(failure) => Check::fail(name, failure.to_string(), "look into the coordinator's log"),
    };
    let workers = match client.workers().await {
        Ok(workers) => workers,
        Err(failure) => {
            return Ok(vec![
                coordinator,
                Check::fail("workers", failure.to_string(), "look into the coordinator's log"),
            ]);
        }
    };
    let lost: Vec<&str> =
        workers.iter().filter(|worker| !worker.alive).map(|worker| worker.id.as_str()).collect();
    let alive = workers.len() - lost.len();
    let slots: u32 = workers.iter().filter(|worker| worker.alive).map(|worker| worker.slots).sum();
    let found = format!("{alive} alive, {}", text::counted(u64::from(slots), "slot"));
    let check = if alive == 0 {
        Check::fail(
            "workers",
            found,
            "start some with `anybit up`, or `anybit-worker agent --coordinator URL`",
        )
    } else if !lost.is_empty() {
        Check::warn(
            "workers",
            format!("{found}; lost: {}", lost.join(", ")),
            "look into their logs, or forget them",
        )
    } else {
        Check::ok("workers", found)
    };
    let now = text::now_unix_ms();
    let ahead = workers.iter().map(|worker| worker.attached_unix_ms - now).max().unwrap_or(0);
    let clock = match ahead {
        ahead if ahead > SKEW_MS => Check::warn(
            "clock",
            format!("the coordinator's is ahead by {}", text::duration(ahead as f64 / 1000.0)),
            "set both machines' clocks, with NTP for one",
        ),
        _ => Check::ok("clock", "not behind the coordinator's"),
    };
    Ok(vec![coordinator, check, clock])
}
