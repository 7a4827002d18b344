//! One agent process, its coordinator, and questions about what happens.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anybit_proto::v1::attach_request::Message;
use anybit_proto::v1::{
    GenerationStopped, HostStore, MetricRecord, RankExited, StartRanks, StopGeneration,
    attach_response as response, trainer_phase::Phase,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::coordinator::{Connection, Coordinator};

const JOB: &str = "job";
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Lab {
    pub(crate) coordinator: Coordinator,
    pub(crate) connection: Connection,
    /// Messages of earlier connections.
    earlier: Vec<Message>,
    pub(crate) agent: Child,
    folder: tempfile::TempDir,
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        if std::thread::panicking() {
            eprintln!("--- the agent's log\n{}", self.agent_log());
        }
    }
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

/// True while the process runs; false for a zombie.
pub(crate) fn is_alive(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().unwrap_or_default().starts_with(['Z', 'X']))
}

impl Lab {
    pub(crate) async fn start() -> Self {
        Self::build(&[], Duration::from_secs(5)).await
    }

    pub(crate) async fn start_with(environment: &[(&str, &str)]) -> Self {
        Self::build(environment, Duration::from_secs(5)).await
    }

    pub(crate) async fn start_under_lease(lease: Duration) -> Self {
        Self::build(&[], lease).await
    }

    /// With settings whose timeouts go with this lease.
    pub(crate) async fn start_timed(environment: &[(&str, &str)], lease: Duration) -> Self {
        Self::build(environment, lease).await
    }

    async fn build(environment: &[(&str, &str)], lease: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut coordinator = Coordinator::start(lease).await;
        let log = fs::File::create(folder.path().join("agent.log")).unwrap();
        let mut command = command(&folder, &coordinator);
        let agent = command.envs(environment.iter().copied()).stderr(log).spawn().unwrap();
        let connection = tokio::time::timeout(PATIENCE, coordinator.attached()).await.unwrap();
        assert_eq!((connection.hello.worker_id.as_str(), connection.hello.slots), ("w1", 4));
        Self { coordinator, connection, earlier: Vec::new(), agent, folder }
    }

    /// The agent's command line, for another one.
    pub(crate) fn agent_command(&self) -> Command {
        command(&self.folder, &self.coordinator)
    }

    pub(crate) fn agent_log(&self) -> String {
        fs::read_to_string(self.folder.path().join("agent.log")).unwrap()
    }

    pub(crate) fn log_file(&self, name: &str) -> PathBuf {
        self.folder.path().join("state/logs").join(JOB).join(name)
    }

    pub(crate) fn signal_agent(&self, signal: Signal) {
        kill(Pid::from_raw(self.agent.id() as i32), signal).unwrap();
    }

    pub(crate) async fn agent_ended(&mut self) -> ExitStatus {
        let mut status = None;
        let agent = &mut self.agent;
        // The stream must be read, or the agent's last words are never acknowledged.
        let reading = async { while self.connection.next().await.is_some() {} };
        let ending = until("the agent ends", || {
            status = agent.try_wait().unwrap();
            status.is_some()
        });
        tokio::join!(reading, ending);
        status.unwrap()
    }

    // What the coordinator says.

    pub(crate) async fn host_store(&self, generation: u32) {
        let message = HostStore { job_id: JOB.to_owned(), generation };
        self.connection.tell(response::Message::HostStore(message)).await;
    }

    pub(crate) async fn start_ranks(&self, behaviour: &str, generation: u32, ranks: &[u32]) {
        self.start_job(JOB, behaviour, generation, ranks).await;
    }

    pub(crate) async fn start_job(&self, job: &str, behaviour: &str, generation: u32, ranks: &[u32]) {
        let spec_toml = format!(
            "name = \"{behaviour}\"\nmodel = {{ name = \"cnn8\", classes = 10, expand = 1 }}\n\
             train = {{ batch = 64, group = 32, epochs = 1, optimizer = \"adam\", learning_rate = 0.001 }}\n\
             data = {{ path = \"digits\", image_size = 40 }}\nresources = {{ ranks = 2 }}\n"
        );
        let message = StartRanks {
            job_id: job.to_owned(),
            generation,
            world_size: 2,
            ranks: ranks.to_vec(),
            spec_toml,
            store_address: "127.0.0.1:1".to_owned(),
            restorable_generations: Vec::new(),
        };
        self.connection.tell(response::Message::StartRanks(message)).await;
    }

    pub(crate) async fn stop(&self, generation: u32, grace_ms: u64) {
        let reason = "the test asked".to_owned();
        let message = StopGeneration { job_id: JOB.to_owned(), generation, grace_ms, reason };
        self.connection.tell(response::Message::StopGeneration(message)).await;
    }

    /// Breaks the stream and waits for the next.
    pub(crate) async fn reconnect(&mut self) {
        self.connection.drop_stream();
        self.attached().await;
    }

    /// Waits for the next stream.
    pub(crate) async fn attached(&mut self) {
        let next = tokio::time::timeout(PATIENCE, self.coordinator.attached()).await.unwrap();
        let before = std::mem::replace(&mut self.connection, next);
        self.earlier.extend(before.seen.into_iter().filter_map(|request| request.message));
    }

    // What the agent says.

    /// The first message on this connection, past or to come, that the question has an answer to.
    pub(crate) async fn wait<T>(&mut self, question: impl Fn(&Message) -> Option<T>) -> T {
        if let Some(answer) = self.messages().find_map(&question) {
            return answer;
        }
        let waiting = async {
            loop {
                let message = self.connection.next().await.expect("the agent went away");
                if let Some(answer) = question(&message) {
                    return answer;
                }
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("waited in vain for a message")
    }

    fn messages(&self) -> impl Iterator<Item = &Message> {
        self.connection.seen.iter().filter_map(|request| request.message.as_ref())
    }

    pub(crate) async fn exited(&mut self, rank: u32) -> RankExited {
        self.exited_of(JOB, rank).await
    }

    pub(crate) async fn exited_of(&mut self, job: &str, rank: u32) -> RankExited {
        self.wait(|m| match m {
            Message::RankExited(m) if m.rank == rank && m.job_id == job => Some(m.clone()),
            _ => None,
        })
        .await
    }

    pub(crate) fn is_exited(&self, rank: u32) -> bool {
        self.is_exited_of(JOB, rank)
    }

    pub(crate) fn is_exited_of(&self, job: &str, rank: u32) -> bool {
        self.messages().any(|m| matches!(m, Message::RankExited(m) if m.rank == rank && m.job_id == job))
    }

    pub(crate) async fn stopped(&mut self, generation: u32) {
        let expected = GenerationStopped { job_id: JOB.to_owned(), generation };
        self.wait(|m| matches!(m, Message::GenerationStopped(m) if *m == expected).then_some(())).await;
    }

    pub(crate) fn phase(&self, rank: u32, phase: Phase) -> bool {
        self.messages().any(|m| matches!(m, Message::TrainerPhase(m) if m.rank == rank && m.phase() == phase))
    }

    pub(crate) async fn training(&mut self, rank: u32) {
        self.wait(|m| match m {
            Message::TrainerPhase(m) => (m.rank == rank && m.phase() == Phase::Training).then_some(()),
            _ => None,
        })
        .await;
    }

    pub(crate) fn records(&self) -> Vec<MetricRecord> {
        let batches =
            self.messages().filter_map(|m| if let Message::Metrics(m) = m { Some(m) } else { None });
        batches.flat_map(|batch| batch.records.clone()).collect()
    }

    /// Those of earlier connections too, where none came twice.
    pub(crate) fn all_records(&self) -> Vec<MetricRecord> {
        let before = self.earlier.iter().filter_map(|m| match m {
            Message::Metrics(batch) => Some(batch.records.clone()),
            _ => None,
        });
        before.flatten().chain(self.records()).collect()
    }

    pub(crate) fn dropped_step_records(&self) -> u64 {
        let batches = self.earlier.iter().chain(self.messages());
        batches.map(|m| if let Message::Metrics(m) = m { m.dropped_step_records } else { 0 }).sum()
    }

    /// A rank's log as a coordinator would have stored it, by offset.
    pub(crate) fn log(&self, rank: u32) -> Vec<u8> {
        let mut log = Vec::new();
        for message in self.earlier.iter().chain(self.messages()) {
            let Message::Log(chunk) = message else { continue };
            if chunk.rank == rank && chunk.job_id == JOB {
                let start = chunk.offset as usize;
                assert!(start <= log.len(), "a hole before {start}");
                let end = start + chunk.data.len();
                log.resize(log.len().max(end), 0);
                log[start..end].copy_from_slice(&chunk.data);
            }
        }
        log
    }

    pub(crate) async fn wait_log(&mut self, rank: u32, text: &str) {
        while !String::from_utf8_lossy(&self.log(rank)).contains(text) {
            let next = tokio::time::timeout(PATIENCE, self.connection.next()).await;
            next.unwrap_or_else(|_| panic!("{text:?} is not in the log")).expect("the agent went away");
        }
    }

    /// The number that a trainer wrote as "word NUMBER.".
    pub(crate) async fn logged_pid(&mut self, rank: u32, word: &str) -> Pid {
        self.wait_log(rank, word).await;
        let mut pid = None;
        while pid.is_none() {
            let log = String::from_utf8(self.log(rank)).unwrap();
            pid = log.split_once(&format!("{word} ")).and_then(|(_, rest)| {
                rest.split_once('.').map(|(number, _)| Pid::from_raw(number.parse().unwrap()))
            });
            if pid.is_none() {
                self.connection.next().await.expect("the agent went away");
            }
        }
        pid.unwrap()
    }

    pub(crate) async fn trainer_pid(&self, rank: u32) -> Pid {
        self.pid_of(JOB, rank).await
    }

    /// The process that holds this lab's assignment for the rank.
    pub(crate) async fn pid_of(&self, job: &str, rank: u32) -> Pid {
        let folder = self.folder.path().join("state/run").join(job);
        let (folder, rank) = (folder.to_str().unwrap(), format!("-r{rank:03}.json"));
        let mut found = None;
        until("the trainer runs", || {
            found = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
                let ours = line.contains("as-trainer") && line.contains(folder) && line.contains(&rank);
                ours.then_some(Pid::from_raw(pid))
            });
            found.is_some()
        })
        .await;
        found.unwrap()
    }
}

fn command(folder: &tempfile::TempDir, coordinator: &Coordinator) -> Command {
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["as-agent", "--worker-id", "w1", "--slots", "4", "--coordinator", &coordinator.url])
        .args(["--state-dir", &path("state"), "--checkpoint-root", &path("checkpoints")])
        .stdin(Stdio::null());
    command
}
