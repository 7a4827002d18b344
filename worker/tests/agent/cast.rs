//! The processes that the tests start: an agent, and trainers that behave as they are named.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use anybit_proto::v1::{
    EvaluationMetrics, ExitKind, MetricRecord, StepMetrics, metric_record::Record, trainer_phase::Phase,
};
use anybit_shared::ids::{Generation, GlobalStep, JobId};
use anybit_shared::{shutdown, telemetry};
use anybit_worker::agent::{self, StoreHost, TrainerCommand};
use anybit_worker::assignment::Assignment;
use anybit_worker::settings::AgentArgs;
use anybit_worker::trainer_link::TrainerLink;
use clap::Parser;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

/// Step records of a "flood".
pub(crate) const FLOOD: u64 = 10_000;

#[derive(Parser)]
struct AgentProgram {
    #[command(flatten)]
    args: AgentArgs,
}

/// A rendezvous store as far as an agent can tell: something that listens until it is dropped.
struct Listening;

impl StoreHost for Listening {
    fn open(&self, _: &JobId, _: Generation) -> anyhow::Result<(Box<dyn Send>, String)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        Ok((Box::new(listener), address))
    }
}

pub(crate) fn agent() -> ExitCode {
    // A test that is killed takes its agents along.
    set_pdeathsig(Signal::SIGKILL).unwrap();
    let program = AgentProgram::parse_from(std::env::args().skip(1));
    let settings = program.args.load().unwrap();
    telemetry::init(settings.log_format, "debug,h2=info,hyper=info,tonic=info,tower=info").unwrap();
    let trainer = TrainerCommand {
        program: std::env::var_os("TEST_TRAINER").map_or_else(|| "/proc/self/exe".into(), PathBuf::from),
        args: vec!["as-trainer".into()],
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let result = runtime.block_on(async {
        let shutdown = shutdown::on_signals().unwrap();
        agent::run(settings, Arc::new(Listening), trainer, shutdown).await
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A trainer that somebody started by hand.
pub(crate) fn stray() -> ExitCode {
    println!("{}", TrainerLink::from_stdin().unwrap_err());
    ExitCode::SUCCESS
}

pub(crate) fn trainer() -> ExitCode {
    let file = std::env::args().skip_while(|arg| arg != "--assignment").nth(1).unwrap();
    let assignment = Assignment::read(file.as_ref()).unwrap();
    assert!(assignment.checkpoint_dir.ends_with(assignment.job.as_str()));
    let link = TrainerLink::from_stdin().unwrap();
    link.phase(Phase::Rendezvous, GlobalStep(0), "");
    println!("hello from rank {} of {}", assignment.rank, assignment.world_size);
    match assignment.spec.name.as_str() {
        "succeed" => train(&link, 20, 20),
        "flood" => train(&link, FLOOD, 1_000),
        "talk" => talk(&link),
        "abort" => std::process::abort(),
        "panic" => panic!("a panic on purpose"),
        "obey" => obey(&link),
        "deaf" => deaf(&link),
        "beat" => beat(&link),
        "meet" => hang(),
        "linger" => linger(&link),
        "parent" => {
            let mut child = Command::new("sleep").arg("600").spawn().unwrap();
            println!("grandchild {}.", child.id());
            child.wait().unwrap();
        }
        other => panic!("no such behaviour: {other}"),
    }
    ExitCode::SUCCESS
}

fn train(link: &TrainerLink, steps: u64, evaluate_every: u64) {
    link.phase(Phase::Training, GlobalStep(0), "");
    let record = |record| MetricRecord { record: Some(record), ..MetricRecord::default() };
    for step in 1..=steps {
        link.record(record(Record::Step(StepMetrics { step, ..StepMetrics::default() })));
        link.heartbeat(GlobalStep(step));
        if step % evaluate_every == 0 {
            link.record(record(Record::Evaluation(EvaluationMetrics { step, ..Default::default() })));
        }
        if step % 100 == 0 {
            sleep(Duration::from_millis(2));
        }
    }
    link.heartbeat(GlobalStep(steps));
    link.exit(ExitKind::Succeeded, "trained");
}

fn talk(link: &TrainerLink) {
    for line in 0..8_000 {
        println!("a line that is long enough to fill a window soon: line {line}");
        if line % 100 == 0 {
            sleep(Duration::from_millis(5));
        }
    }
    println!("the last line");
    link.exit(ExitKind::Succeeded, "talked");
}

fn obey(link: &TrainerLink) {
    link.phase(Phase::Training, GlobalStep(0), "");
    while !link.stop_requested() {
        sleep(Duration::from_millis(5));
    }
    link.exit(ExitKind::Stopped, "stopped as asked");
}

fn deaf(link: &TrainerLink) {
    link.phase(Phase::Training, GlobalStep(0), "");
    hang();
}

/// Commits a step now and then.
fn beat(link: &TrainerLink) {
    link.phase(Phase::Training, GlobalStep(0), "");
    for step in 1.. {
        link.heartbeat(GlobalStep(step));
        sleep(Duration::from_millis(5));
    }
}

/// Says its last word and does not end.
fn linger(link: &TrainerLink) {
    link.phase(Phase::Training, GlobalStep(0), "");
    link.exit(ExitKind::Succeeded, "trained");
    hang();
}

fn hang() {
    loop {
        sleep(Duration::from_secs(1));
    }
}
