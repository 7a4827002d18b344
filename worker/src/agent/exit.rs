//! How a trainer ended: from the facts of its death to one kind and one sentence.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anybit_proto::v1::{ExitKind, TrainerExit};
use nix::sys::signal::Signal;

/// The exit status that Rust gives a process whose main thread panicked.
const PANICKED: i32 = 101;

/// Everything that was seen of a trainer's end.
#[derive(Debug, Clone)]
pub(crate) struct Death {
    /// What it said last, if it could still speak.
    pub(crate) reported: Option<TrainerExit>,
    /// What the kernel says.
    pub(crate) end: End,
    /// Why the agent killed it, if it did.
    pub(crate) killed_because: Option<KillReason>,
    /// Processes that the kernel's OOM killer took since this one last gave a sign of life.
    pub(crate) oom_kills: u64,
    /// Where its output went.
    pub(crate) log: PathBuf,
}

/// Why an agent kills a trainer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KillReason {
    /// It is no longer wanted, for this reason.
    Unwanted(String),
    /// It said nothing for this long.
    Stalled(Duration),
}

/// What the kernel says about an ended process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It returned a status.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

impl From<ExitStatus> for End {
    fn from(status: ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, signal) => Self::Signal(signal.unwrap_or_default()),
        }
    }
}

/// The verdict: a trainer's own word first, then what the agent did, then what the kernel says.
pub(crate) fn classify(death: &Death) -> (ExitKind, String) {
    let log = death.log.display();
    if let Some(exit) = &death.reported {
        return match exit.kind() {
            ExitKind::Unspecified => (
                ExitKind::Crashed,
                format!("ended for a reason that this agent does not know: {}", exit.message),
            ),
            kind => (kind, exit.message.clone()),
        };
    }
    match &death.killed_because {
        Some(KillReason::Unwanted(reason)) => {
            return (ExitKind::Stopped, format!("killed by its agent: {reason}"));
        }
        Some(KillReason::Stalled(silence)) => {
            let seconds = silence.as_secs_f64();
            let message = format!(
                "no sign of life for {seconds} s (stall_timeout), so its agent killed it; its log is {log}"
            );
            return (ExitKind::Crashed, message);
        }
        None => {}
    }
    match death.end {
        End::Code(PANICKED) => (ExitKind::Crashed, format!("the trainer panicked; its log is {log}")),
        End::Code(code) => (
            ExitKind::Crashed,
            format!("the trainer exited with status {code} without saying why; its log is {log}"),
        ),
        End::Signal(signal) => by_signal(signal, death),
    }
}

fn by_signal(number: i32, death: &Death) -> (ExitKind, String) {
    let log = death.log.display();
    let name = Signal::try_from(number).map_or_else(|_| format!("signal {number}"), |s| s.to_string());
    match Signal::try_from(number) {
        Ok(Signal::SIGKILL) if death.oom_kills > 0 => (
            ExitKind::OutOfMemory,
            "the kernel killed the trainer because memory ran out: use a smaller group, the sequential \
             schedule, or fewer ranks on this host"
                .to_owned(),
        ),
        Ok(Signal::SIGKILL | Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP) => {
            (ExitKind::Killed, format!("the trainer was killed by {name}, which its agent did not send"))
        }
        _ => (ExitKind::Crashed, format!("the trainer crashed with {name}; its log is {log}")),
    }
}

/// The OOM killer's count as it stood at a trainer's last signs of life. What it took before then
/// was not this trainer.
#[derive(Debug)]
pub(crate) struct OomBaseline {
    before: u64,
    latest: u64,
    taken: Instant,
}

impl OomBaseline {
    /// Signs closer than this count as one: the last of them may be read after the death.
    const APART: Duration = Duration::from_secs(1);

    pub(crate) fn new(count: u64, now: Instant) -> Self {
        Self { before: count, latest: count, taken: now }
    }

    /// The trainer gave a sign of life. `count` is called seldom, however many there are.
    pub(crate) fn refresh(&mut self, now: Instant, count: impl FnOnce() -> u64) {
        if now.saturating_duration_since(self.taken) >= Self::APART {
            // The one before counts, since the latest may be read after the death too.
            *self = Self { before: self.latest, latest: count(), taken: now };
        }
    }

    /// Kills since the trainer's last signs of life.
    pub(crate) fn since(&self, count: u64) -> u64 {
        count.saturating_sub(self.before)
    }
}

/// Processes killed by the kernel's OOM killer so far: in this process's cgroup where there is
/// one, otherwise on this machine. 0 when the kernel does not tell.
pub(crate) fn oom_kill_count() -> u64 {
    let own = fs::read_to_string("/proc/self/cgroup").ok();
    let events = own
        .as_deref()
        .and_then(cgroup_path)
        .map(|path| Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')).join("memory.events"));
    events
        .and_then(|path| fs::read_to_string(path).ok())
        .or_else(|| fs::read_to_string("/proc/vmstat").ok())
        .and_then(|text| counter(&text, "oom_kill"))
        .unwrap_or(0)
}

/// The version 2 path in `/proc/self/cgroup`.
fn cgroup_path(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// A counter in a file of `name value` lines.
fn counter(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| match line.split_once(' ') {
        Some((key, value)) if key == name => value.trim().parse().ok(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(end: End) -> Death {
        Death {
            reported: None,
            end,
            killed_because: None,
            oom_kills: 0,
            log: "/s/logs/j/g0001-r000.log".into(),
        }
    }

    fn said(kind: ExitKind) -> Option<TrainerExit> {
        Some(TrainerExit { kind: kind.into(), message: "its own words".to_owned() })
    }

    #[test]
    fn the_trainers_own_word_wins() {
        let mut death = death(End::Signal(11));
        death.reported = said(ExitKind::Succeeded);
        death.killed_because = Some(KillReason::Unwanted("the coordinator asked".to_owned()));
        assert_eq!(classify(&death), (ExitKind::Succeeded, "its own words".to_owned()));
    }

    #[test]
    fn an_unknown_word_is_a_crash() {
        let mut death = death(End::Code(0));
        death.reported = Some(TrainerExit { kind: 4711, message: "from the future".to_owned() });
        let (kind, message) = classify(&death);
        assert_eq!(kind, ExitKind::Crashed);
        assert!(message.contains("from the future"), "{message}");
    }

    #[test]
    fn a_kill_by_the_agent_is_no_loss() {
        let mut death = death(End::Signal(9));
        death.killed_because = Some(KillReason::Unwanted("superseded".to_owned()));
        // Even if something else on the host ran out of memory meanwhile.
        death.oom_kills = 1;
        assert_eq!(classify(&death).0, ExitKind::Stopped);
    }

    #[test]
    fn a_kill_for_silence_is_a_crash() {
        let mut death = death(End::Signal(9));
        death.killed_because = Some(KillReason::Stalled(Duration::from_secs(600)));
        death.oom_kills = 1;
        let (kind, message) = classify(&death);
        assert_eq!(kind, ExitKind::Crashed);
        assert!(message.contains("no sign of life for 600 s") && message.contains("g0001-r000.log"));
    }

    #[test]
    fn sigkill_means_killed_unless_memory_ran_out() {
        let mut death = death(End::Signal(9));
        assert_eq!(classify(&death).0, ExitKind::Killed);
        death.oom_kills = 1;
        assert_eq!(classify(&death).0, ExitKind::OutOfMemory);
    }

    #[test]
    fn an_abort_names_its_signal_and_its_log_even_under_memory_pressure() {
        for (number, name) in [(6, "SIGABRT"), (11, "SIGSEGV"), (7, "SIGBUS")] {
            let mut death = death(End::Signal(number));
            death.oom_kills = 1;
            let (kind, message) = classify(&death);
            assert_eq!(kind, ExitKind::Crashed);
            assert!(message.contains(name) && message.contains("g0001-r000.log"), "{message}");
        }
    }

    #[test]
    fn a_status_without_a_word_is_a_crash() {
        for code in [0, 1, 101] {
            let (kind, message) = classify(&death(End::Code(code)));
            assert_eq!(kind, ExitKind::Crashed);
            assert!(message.contains("g0001-r000.log"), "{message}");
        }
    }

    #[test]
    fn only_kills_since_the_last_signs_of_life_are_blamed() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut baseline = OomBaseline::new(3, start);
        assert_eq!(baseline.since(4), 1, "a death before the first sign");
        // Days ago somebody else was killed; this trainer went on.
        for n in 1..10 {
            baseline.refresh(at(n * 1000), || 4);
        }
        assert_eq!(baseline.since(4), 0);
        // Killed: what it sent just before is read afterwards.
        for n in 0..5 {
            baseline.refresh(at(10_000 + n), || 5);
        }
        assert_eq!(baseline.since(5), 1);
    }

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let text = "low 0\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(counter(text, "oom_kill"), Some(2));
        assert_eq!(counter(text, "absent"), None);
        assert_eq!(cgroup_path("1:cpu:/x\n0::/user.slice/a\n"), Some("/user.slice/a"));
    }
}
